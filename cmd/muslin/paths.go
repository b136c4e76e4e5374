package main

import (
	"net/netip"

	"muslin/cmd/muslin/control"
	"muslin/tunnel/fib"
	"muslin/tunnel/pathmtu"
)

// openPaths opens what looks at the MTU of the paths to the peers. It is no reason not to start; without it a path with a
// smaller one is as good as its routers are at fragmenting. With wireguard the engine has the sockets.
func (d *daemon) openPaths(s *sides, node *node, subnet netip.Prefix) *pathmtu.Prober {
	sockets := s.sockets()
	if sockets == nil || d.opts.flags.pathMTU == 0 {
		return nil
	}
	conn, err := pathmtu.Open(pathmtu.SocketConfig{Local: node.iface.Addr, Port: node.port, Framing: node.framing, Base: subnet.Masked().Addr()})
	if err != nil {
		d.log.Warn("it will not be known where a path to a peer takes smaller packets than this node's interface", "err", err)
		return nil
	}
	return pathmtu.New(pathmtu.Config{
		Conn: conn, Table: s.vtep.Table, MTU: s.vtep.MTU, Framing: node.framing, Interval: d.opts.flags.pathMTU,
		Forget: sockets.PathMTUChanged, Logger: d.log,
	})
}

// path is the path to a peer, for a daemon that runs.
func (v *viewState) path(peer *fib.Peer) pathmtu.Path {
	for _, c := range parts(v.carrier) {
		if s, ok := c.(*sides); ok && s.paths != nil && s.six == peer.Subnet.Addr().Is6() {
			return s.paths.Path(peer)
		}
	}
	return pathmtu.Path{}
}

func fillPath(p *control.PeerStatus, path pathmtu.Path) {
	p.PathMTUState, p.PathMTU, p.PathMTUBy = string(path.State), int(path.MTU), string(path.By)
	if !path.Since.IsZero() {
		since := path.Since.UTC()
		p.PathMTUSince = &since
	}
}
