package main

import (
	"context"
	"errors"
	"net/netip"

	"muslin/encap"
	"muslin/tunnel"
	"muslin/tunnel/fib"
	"muslin/tunnel/handover"
	"muslin/tunnel/kernel"
	"muslin/tunnel/pathmtu"
	"muslin/tunnel/underlay"
	"muslin/tunnel/wireguard"
)

// sides are the TUN device and the underlay, and the VTEP that carries packets between them. It implements carrier.
type sides struct {
	conn outer // nil before connect, where flannel has the port till then
	dev  device
	open func() (outer, error) // of conn, then
	vtep *tunnel.VTEP          // once connected
	six  bool                  // of IPv6

	// Where one WireGuard tunnel carries both families: how conn and dev are shared. IPv6's is a guest at IPv4's.
	halves *tunnel.Halves
	guest  bool

	release func() // gives its workers' processors back

	paths *pathmtu.Prober // nil: nobody looks at them
}

// outer is what both kinds of underlay have beside moving datagrams: the one that does just that, and WireGuard's.
type outer interface {
	tunnel.Underlay
	Run(ctx context.Context) error
}

func (s *sides) name() string { return s.dev.Name() }

func (s *sides) close() {
	s.dev.Close()
	if s.conn != nil {
		s.conn.Close()
	}
	s.release()
}

func (s *sides) connect(d *daemon, node *node, subnet netip.Prefix, peers *fib.Table) (err error) {
	if s.conn == nil {
		if s.conn, err = s.open(); err != nil {
			return err
		}
	}
	inner, outer := tunnel.Device(s.dev), tunnel.Underlay(s.conn)
	if s.halves != nil {
		inner, outer = s.halves.Device(node.family()), s.halves.Engine(node.family())
	}
	s.vtep, err = tunnel.New(tunnel.Config{
		Device:      inner,
		Underlay:    outer,
		Framing:     node.framing,
		Network:     node.network,
		Subnet:      subnet,
		Port:        node.port,
		MTU:         node.mtu,
		Jumbo:       max(16<<10, node.iface.MTU), // beyond any Ethernet's jumbo frame
		SourceCheck: node.sourceCheck(d.opts.sourceCheck),
		ClampMSS:    d.opts.flags.clampMSS,
	})
	if err != nil {
		return err
	}
	s.paths = d.openPaths(s, node, subnet)
	if d.place.from != nil {
		if err := s.pause(); err != nil { // until succeed
			return err
		}
	}
	s.vtep.SetTable(peers)
	return nil
}

func (s *sides) setTable(t *fib.Table) { s.vtep.SetTable(t) }
func (s *sides) table() *fib.Table     { return s.vtep.Table() }

func (s *sides) setMTU(mtu encap.InnerMTU) {
	s.vtep.SetMTU(mtu)
	if u := s.wireGuard(); u != nil {
		u.SetMTU(mtu)
	}
}

// pathMTUChanged has the sockets find out anew how large a run of datagrams may be.
func (s *sides) pathMTUChanged() {
	if c := s.sockets(); c != nil {
		c.PathMTUChanged()
	}
}

func (s *sides) persist(d *daemon) {
	if d.place.from != nil || s.guest {
		return
	}
	s.dev.Keep(false) // at the end, not with a crash
	if err := s.dev.Persist(); err != nil {
		d.log.Warn("the TUN device and its routes go away if this daemon is killed", "tun", s.dev.Name(), "err", err)
	}
}

func (s *sides) keep(stay bool) { s.dev.Keep(stay) }

func (s *sides) pause() error   { return s.vtep.Pause() }
func (s *sides) resume() error  { return s.vtep.Resume() }
func (s *sides) restore() error { return errors.Join(s.dev.Resume(), s.conn.Resume()) }

// offer leaves out WireGuard's sockets: nobody can go on with them without its sessions.
func (s *sides) offer(o *handover.Offer) error {
	if s.guest {
		return nil
	}
	suffix := ""
	if s.six {
		suffix = fileSix
	}
	queues, err := s.dev.Files()
	add(o, fileTUN+suffix, queues...)
	if c := s.sockets(); c != nil && err == nil {
		var sockets underlay.Sockets
		sockets, err = c.Sockets()
		add(o, fileReceive+suffix, sockets.Receive...)
		add(o, fileSend+suffix, sockets.Send...)
	}
	return err
}

// sockets and wireGuard are the underlay of the one kind or of the other; nil: it is not that.
func (s *sides) sockets() *underlay.Conn {
	if m, ok := s.conn.(*portMember); ok {
		return m.shared.conn
	}
	c, _ := s.conn.(*underlay.Conn)
	return c
}

func (s *sides) wireGuard() *wireguard.Underlay {
	u, _ := s.conn.(*wireguard.Underlay)
	return u
}

// features are in the order of a packet's way.
func (s *sides) features() []kernel.Feature {
	all := s.dev.Features()
	if c := s.sockets(); c != nil {
		all = append(all, c.Features()...)
	}
	return all
}

func (s *sides) counts() (drops map[string]uint64, unfinished uint64) {
	return s.vtep.Drops(), s.vtep.ChecksumsUnfinished()
}

func (s *sides) queues() []tunnel.QueueStats { return s.vtep.Queues() }

func (s *sides) lastSendError() error { return s.vtep.LastSendError() }

func (s *sides) sessions() (map[string]wireguard.Session, error) {
	if u := s.wireGuard(); u != nil {
		return u.Sessions()
	}
	return nil, nil
}

func (s *sides) shared() string {
	if u := s.wireGuard(); u != nil {
		return u.Shared()
	}
	return ""
}

func (s *sides) tasks() []task {
	all := []task{s.vtep.Run}
	if !s.guest {
		all = append(all, s.conn.Run)
	}
	if s.paths != nil {
		all = append(all, s.paths.Run)
	}
	return all
}
