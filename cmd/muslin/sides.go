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
	"muslin/tunnel/underlay"
	"muslin/tunnel/wireguard"
)

// sides are the TUN device and the sockets, and what carries packets between them. nil: there are none, as with
// host-gw, where the kernel alone carries packets; every method works on nil.
type sides struct {
	conn outer
	dev  device
	vtep *tunnel.VTEP // once connected
}

// outer is what both kinds of underlay have beside moving datagrams: the one that does just that, and WireGuard's.
type outer interface {
	tunnel.Underlay
	Run(ctx context.Context) error
}

// sockets are those that another process can go on with; WireGuard's cannot, without its sessions.
func (s *sides) sockets() (underlay.Sockets, error) {
	if c, ok := s.conn.(*underlay.Conn); ok {
		return c.Sockets()
	}
	return underlay.Sockets{}, nil
}

// wireGuard is the underlay of that kind; nil: it is none.
func (s *sides) wireGuard() *wireguard.Underlay {
	if s == nil {
		return nil
	}
	u, _ := s.conn.(*wireguard.Underlay)
	return u
}

// setMTU says how long an inner packet is at most from now on, as the underlay's MTU has changed.
func (s *sides) setMTU(mtu encap.InnerMTU) {
	s.vtep.SetMTU(mtu)
	if u := s.wireGuard(); u != nil {
		u.SetMTU(mtu)
	}
}

// pathMTUChanged has the sockets find out anew how large a run of datagrams may be.
func (s *sides) pathMTUChanged() {
	if c, ok := s.conn.(*underlay.Conn); ok {
		c.PathMTUChanged()
	}
}

// features are those in use, in the order of a packet's way.
func (s *sides) features() []kernel.Feature {
	if s == nil {
		return nil
	}
	all := s.dev.Features()
	if c, ok := s.conn.(*underlay.Conn); ok {
		all = append(all, c.Features()...)
	}
	return all
}

func (s *sides) close() {
	if s != nil {
		s.dev.Close()
		s.conn.Close()
	}
}

// connect puts the VTEP between the two. Nothing is carried before its Run, nor, with another daemon in our place,
// before resume.
func (s *sides) connect(d *daemon, node *node, subnet netip.Prefix, peers *fib.Table) (err error) {
	if s == nil {
		return nil
	}
	s.vtep, err = tunnel.New(tunnel.Config{
		Device:      s.dev,
		Underlay:    s.conn,
		Framing:     node.framing,
		Network:     node.network,
		Subnet:      subnet,
		Port:        node.port,
		MTU:         node.mtu,
		Jumbo:       max(16<<10, node.iface.MTU), // beyond any Ethernet's jumbo frame
		SourceCheck: node.sourceCheck(d.opts.sourceCheck),
	})
	if err != nil {
		return err
	}
	if d.place.from != nil {
		if err := s.pause(); err != nil { // until succeed
			return err
		}
	}
	s.vtep.SetTable(peers)
	return nil
}

// persist has the device outlive a crash.
func (s *sides) persist(d *daemon) {
	if s == nil || d.place.from != nil {
		return
	}
	s.dev.Keep(false) // at the end, not with a crash
	if err := s.dev.Persist(); err != nil {
		d.log.Warn("the TUN device and its routes go away if this daemon is killed", "tun", s.dev.Name(), "err", err)
	}
}

// name is the TUN device's; empty: there is none.
func (s *sides) name() string {
	if s == nil {
		return ""
	}
	return s.dev.Name()
}

func (s *sides) setTable(t *fib.Table) {
	if s != nil {
		s.vtep.SetTable(t)
	}
}

// pause and resume stop the workers between two batches, and let them go on.
func (s *sides) pause() error {
	if s == nil {
		return nil
	}
	return s.vtep.Pause()
}

func (s *sides) resume() error {
	if s == nil {
		return nil
	}
	return s.vtep.Resume()
}

// keep says whether the device stays when it is closed.
func (s *sides) keep(stay bool) {
	if s != nil {
		s.dev.Keep(stay)
	}
}

// restore has device and sockets as they were, after another process has been at them.
func (s *sides) restore() error {
	if s == nil {
		return nil
	}
	return errors.Join(s.dev.Resume(), s.conn.Resume())
}

// offer adds the descriptors to what a successor gets.
func (s *sides) offer(o *handover.Offer) error {
	if s == nil {
		return nil
	}
	queues, err := s.dev.Files()
	add(o, fileTUN, queues...)
	if err != nil {
		return err
	}
	sockets, err := s.sockets()
	add(o, fileReceive, sockets.Receive...)
	add(o, fileSend, sockets.Send...)
	return err
}

// tasks are those of both sides.
func (s *sides) tasks() []task {
	if s == nil {
		return nil
	}
	return []task{s.vtep.Run, s.conn.Run}
}
