package main

import (
	"cmp"
	"errors"
	"net/netip"

	"muslin/encap"
	"muslin/tunnel"
	"muslin/tunnel/fib"
	"muslin/tunnel/handover"
	"muslin/tunnel/host"
	"muslin/tunnel/kernel"
	"muslin/tunnel/wireguard"
)

// carrier is what carries packets between this node's containers and its peers: what a backend comes down to in this
// process. There are three: sides (a VTEP between a TUN device and sockets, or WireGuard's engine), kernelWireGuard, and
// absent, with host-gw, where routes alone carry packets. A network of both families has two as one: both.
type carrier interface {
	// name is the device's that the overlay's route leads to; empty: there is none.
	name() string

	// setTable says who the peers are from now on; table is them, or nil where nobody but the lease side keeps them.
	setTable(*fib.Table)
	table() *fib.Table

	pathMTUChanged() // the underlay's MTU is another

	// persist has the device outlive a crash; keep says whether it stays when it is closed.
	persist(*daemon)
	keep(stay bool)

	// pause stops what is carried between two batches, until resume. restore has everything as it was, after another
	// process has been at it.
	pause() error
	resume() error
	restore() error

	// offer adds the descriptors to what a successor gets, or systemd.
	offer(*handover.Offer) error

	// What status shows.
	features() []kernel.Feature
	counts() (drops map[string]uint64, unfinished uint64)
	queues() []tunnel.QueueStats
	lastSendError() error
	shared() string // see wireguard.Underlay.Shared

	tasks() []task
	close()
}

// part is a carrier of one address family: every one but both.
type part interface {
	carrier

	// connect makes it ready to carry, once there is a lease. Nothing is carried before its tasks run, nor, with
	// another daemon in our place, before resume.
	connect(d *daemon, node *node, subnet netip.Prefix, peers *fib.Table) error

	// setMTU says how long an inner packet is at most from now on (see mtuFollower).
	setMTU(encap.InnerMTU)

	// sessions are by a peer's WireGuard key, of which a node has one for both families; nil: there are none.
	sessions() (map[string]wireguard.Session, error)
}

// absent carries nothing.
type absent struct{}

func (absent) name() string                                           { return "" }
func (absent) connect(*daemon, *node, netip.Prefix, *fib.Table) error { return nil }
func (absent) setTable(*fib.Table)                                    {}
func (absent) table() *fib.Table                                      { return nil }
func (absent) setMTU(encap.InnerMTU)                                  {}
func (absent) pathMTUChanged()                                        {}
func (absent) persist(*daemon)                                        {}
func (absent) keep(bool)                                              {}
func (absent) pause() error                                           { return nil }
func (absent) resume() error                                          { return nil }
func (absent) restore() error                                         { return nil }
func (absent) offer(*handover.Offer) error                            { return nil }
func (absent) features() []kernel.Feature                             { return nil }
func (absent) counts() (map[string]uint64, uint64)                    { return map[string]uint64{}, 0 }
func (absent) queues() []tunnel.QueueStats                            { return nil }
func (absent) lastSendError() error                                   { return nil }
func (absent) sessions() (map[string]wireguard.Session, error)        { return nil, nil }
func (absent) shared() string                                         { return "" }
func (absent) tasks() []task                                          { return nil }
func (absent) close()                                                 {}

// both carries each address family by itself. The first is IPv4's, whose device and features stand for the two.
type both struct{ four, six part }

func (b both) each(do func(carrier) error) error { return errors.Join(do(b.four), do(b.six)) }

func (b both) name() string { return b.four.name() }

func (b both) setTable(t *fib.Table) { b.four.setTable(t); b.six.setTable(t) }
func (b both) table() *fib.Table     { return b.four.table() }

func (b both) pathMTUChanged() { b.four.pathMTUChanged(); b.six.pathMTUChanged() }

func (b both) persist(d *daemon) { b.four.persist(d); b.six.persist(d) }
func (b both) keep(stay bool)    { b.four.keep(stay); b.six.keep(stay) }

func (b both) pause() error   { return b.each(carrier.pause) }
func (b both) resume() error  { return b.each(carrier.resume) }
func (b both) restore() error { return b.each(carrier.restore) }

func (b both) offer(o *handover.Offer) error {
	return b.each(func(c carrier) error { return c.offer(o) })
}

func (b both) features() []kernel.Feature { return b.four.features() }

func (b both) counts() (map[string]uint64, uint64) {
	drops, unfinished := b.four.counts()
	more, also := b.six.counts()
	for reason, n := range more {
		drops[reason] += n
	}
	return drops, unfinished + also
}

func (b both) queues() []tunnel.QueueStats { return append(b.four.queues(), b.six.queues()...) }

func (b both) lastSendError() error {
	if err := b.four.lastSendError(); err != nil {
		return err
	}
	return b.six.lastSendError()
}

func (b both) shared() string { return cmp.Or(b.four.shared(), b.six.shared()) }

func (b both) tasks() []task { return append(b.four.tasks(), b.six.tasks()...) }
func (b both) close()        { b.four.close(); b.six.close() }

// parts are the carriers of each family.
func parts(c carrier) []part {
	if b, ok := c.(both); ok {
		return []part{b.four, b.six}
	}
	return []part{c.(part)}
}

// family is what there is of one address family.
type family struct {
	node    *node
	carrier part
	state   *host.State
}

// hosts are what was set up in the host, for each family.
type hosts []*host.State

// Needs is what all of them need.
func (all hosts) Needs() host.Needs {
	var needs host.Needs
	for _, s := range all {
		n := s.Needs()
		needs.Programs, needs.RawSocket = needs.Programs || n.Programs, needs.RawSocket || n.RawSocket
	}
	return needs
}

// Restore is that of each.
func (all hosts) Restore() (err error) {
	for _, s := range all {
		err = errors.Join(err, s.Restore())
	}
	return err
}
