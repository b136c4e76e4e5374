package main

import (
	"context"
	"net"
	"net/netip"
	"time"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/neighbour"
	"muslin/tunnel/fib"
	"muslin/tunnel/handover"
)

// What this daemon tells its peers (package neighbour).

// answers are the sockets that peers ask at, one for each family.
type answers []answering

type answering struct {
	six  bool
	sock *net.TCPListener
}

// openAnswers opens them, or takes them over. They are no reason not to start. With host-gw a node has no address of its own
// in the overlay, to be asked at or to ask from.
func (d *daemon) openAnswers(ctx context.Context, node *node, member *membership, c carrier) answers {
	if !d.opts.flags.peerAnswers {
		return nil
	}
	var all answers
	for i, n := range node.all() {
		device := parts(c)[i].name()
		if device == "" {
			continue
		}
		if n.directRouting {
			device = "" // neighbours ask past it
		}
		sock, err := d.place.listenAnswers(ctx, n.six, member.of(n).Addr(), device)
		if err != nil {
			d.log.Warn("this node's peers cannot ask it anything", "network", n.network, "err", err)
			continue
		}
		all = append(all, answering{n.six, sock})
	}
	return all
}

// listenAnswers opens one, or takes over the one at the same address.
func (p *place) listenAnswers(ctx context.Context, six bool, at netip.Addr, device string) (*net.TCPListener, error) {
	theirs := p.answers
	if six {
		theirs = p.six.answers
	}
	if theirs != nil {
		l, err := net.FileListener(theirs)
		if err != nil {
			return nil, err
		}
		if t, ok := l.(*net.TCPListener); ok && t.Addr().String() == netip.AddrPortFrom(at, neighbour.Port).String() {
			return t, nil
		}
		l.Close()
	}
	return neighbour.Listen(ctx, at, device)
}

func (all answers) close() {
	for _, a := range all {
		a.sock.Close()
	}
}

// offer adds them to what a successor gets.
func (all answers) offer(o *handover.Offer) error {
	for _, a := range all {
		f, err := a.sock.File()
		if err != nil {
			return err
		}
		name := fileAnswers
		if a.six {
			name += fileSix
		}
		add(o, name, f)
	}
	return nil
}

// tasks answer.
func (d *daemon) answerPeers(all answers) (tasks []task) {
	server := neighbour.NewServer(neighbour.Config{Peer: d.peerAt, About: d.about, Peers: d.peerStates, Arm: d.armForPeer, Seen: d.seenForPeer})
	for _, a := range all {
		tasks = append(tasks, d.whenAlone(func(ctx context.Context) error { return server.Serve(ctx, a.sock) }))
	}
	return tasks
}

// peerAt is the peer that holds an address of the overlay; nil: none, or nothing is carried.
func (d *daemon) peerAt(a netip.Addr) *fib.Peer {
	v := d.view.get()
	if !v.running {
		return nil
	}
	return v.table().Lookup(a)
}

// about is what a peer is told. Each field is named here: what is added to status is not told for that.
func (d *daemon) about(asker *fib.Peer) *neighbour.About {
	s := d.statusOf(func(*fib.Table, func(*fib.Peer) uint64) []*fib.Peer { return []*fib.Peer{asker} })
	n := &s.Node
	a := &neighbour.About{
		Version: s.Version, Kernel: s.Kernel, Now: time.Now().UTC(), Since: s.Since,
		PublicIP: n.PublicIP, PublicIPv6: n.PublicIPv6, Subnet: n.Subnet, Subnet6: n.Subnet6,
		Backend: n.Backend, VNI: n.VNI, Port: n.Port, Port6: n.Port6, MTU: n.MTU, VtepMAC: n.VtepMAC, VtepMAC6: n.VtepMAC6, PublicKey: n.PublicKey,
		Drops: s.Drops, Warnings: s.Warnings,
	}
	for i := range s.Peers {
		if s.Peers[i].Subnet == asker.Subnet.String() {
			a.You = told(&s.Peers[i])
		}
	}
	return a
}

func told(p *control.PeerStatus) *neighbour.Peer {
	return &neighbour.Peer{
		Subnet: p.Subnet, PublicIP: p.PublicIP, Backend: p.Backend, VtepMAC: p.VtepMAC,
		TxPackets: p.TxPackets, TxBytes: p.TxBytes, RxPackets: p.RxPackets, RxBytes: p.RxBytes, LastRx: p.LastRx, Up: p.Up, DownSince: p.DownSince,
		Way: p.Way, WayRule: p.WayRule, WayReason: p.WayReason, Endpoint: p.Endpoint,
		PathMTUState: p.PathMTUState, PathMTU: p.PathMTU, RTT: p.RTT, Loss: p.Loss,
	}
}

// peerStates is how this node reaches each of its peers.
func (d *daemon) peerStates() []neighbour.PeerState {
	v := d.view.get()
	if !v.running {
		return nil
	}
	peers := v.table().Peers()
	all := make([]neighbour.PeerState, 0, len(peers))
	for _, p := range peers {
		var quality control.PeerStatus
		fillQuality(&quality, v.prober.Quality(p))
		all = append(all, neighbour.PeerState{Subnet: p.Subnet.String(), Up: up(v.prober.Health(p)), RTT: quality.RTT, Loss: quality.Loss})
	}
	return all
}
