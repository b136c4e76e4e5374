package main

import (
	"net/netip"
	"os"

	"muslin/encap"
	"muslin/tunnel/fib"
	"muslin/tunnel/handover"
	"muslin/tunnel/kernel"
	"muslin/tunnel/underlay"
	"muslin/tunnel/wireguard"
)

// carrier is what carries packets between this node's containers and its peers: what a backend comes down to in this
// process. There are three: sides (a VTEP between a TUN device and sockets, or WireGuard's engine), kernelWireGuard, and
// absent, with host-gw, where routes alone carry packets.
type carrier interface {
	// name is the device's that the overlay's route leads to; empty: there is none.
	name() string

	// connect makes it ready to carry, once there is a lease. Nothing is carried before its tasks run, nor, with
	// another daemon in our place, before resume.
	connect(d *daemon, node *node, subnet netip.Prefix, peers *fib.Table) error

	// setTable says who the peers are from now on; table is them, or nil where nobody but the lease side keeps them.
	setTable(*fib.Table)
	table() *fib.Table

	// setMTU says how long an inner packet is at most from now on; pathMTUChanged, that the underlay's MTU is another.
	setMTU(encap.InnerMTU)
	pathMTUChanged()

	// persist has the device outlive a crash; keep says whether it stays when it is closed.
	persist(*daemon)
	keep(stay bool)

	// pause stops what is carried between two batches, until resume. restore has everything as it was, after another
	// process has been at it.
	pause() error
	resume() error
	restore() error

	// offer adds the descriptors to what a successor gets; files are those that outlive the process with systemd.
	offer(*handover.Offer) error
	files() (queues []*os.File, sockets underlay.Sockets, err error)

	// What status shows.
	features() []kernel.Feature
	counts() (drops map[string]uint64, unfinished uint64)
	lastSendError() error
	sessions() (map[string]wireguard.Session, error) // by a peer's WireGuard key; nil: there are none
	shared() string                                  // see wireguard.Underlay.Shared

	tasks() []task
	close()
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
func (absent) files() ([]*os.File, underlay.Sockets, error)           { return nil, underlay.Sockets{}, nil }
func (absent) features() []kernel.Feature                             { return nil }
func (absent) counts() (map[string]uint64, uint64)                    { return map[string]uint64{}, 0 }
func (absent) lastSendError() error                                   { return nil }
func (absent) sessions() (map[string]wireguard.Session, error)        { return nil, nil }
func (absent) shared() string                                         { return "" }
func (absent) tasks() []task                                          { return nil }
func (absent) close()                                                 {}
