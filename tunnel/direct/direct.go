// Package direct keeps a route of the kernel's for each peer that packets get to without being encapsulated: "peer's
// subnet via its PublicIP". Which peers those are package way chooses; this room finds out what the choice hangs on,
// and makes the kernel's routing table follow it.
//
// It sees the peers' table and the routing table, never a packet: the kernel takes the longest prefix, which is the
// direct route where there is one and the overlay's route to the TUN device where there is none. So a peer changes
// its way from one packet to the next, and a route that is missing costs speed and no packet.
//
// A Router has one address family: a node of both has two, and a peer of both may be reached directly by the one and not by
// the other.
//
// It touches only routes with our protocol number, inside the overlay's network, that have a gateway. It does not
// undo them at its end: a successor goes on with them, or package host removes them.
package direct

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"muslin/tunnel/fib"
	"muslin/tunnel/way"
)

// Route is a direct route.
type Route struct {
	Subnet netip.Prefix // of the peer
	Via    netip.Addr   // its PublicIP
	Iface  int          // index of the interface
	Astray bool         // its source address is not what Add gives a route; never so of one to be added
}

// Change is what a kernel's event may have changed, as a set of bits.
type Change uint32

// The changes.
const (
	Routes   Change = 1 << iota // a route of ours is gone
	Underlay                    // the way to a PublicIP may be another: a route, address, link or rule
)

// Kernel is the kernel's routing table, as far as this room needs it. Open's speaks netlink.
type Kernel interface {
	// Iface is the index of the underlay's interface now, 0 while there is none.
	Iface() (int, error)
	// Hops asks how each address is reached. The answer is in the order of the question.
	Hops(to []netip.Addr) ([]way.Hop, error)
	// Routes lists the direct routes that are there, in no order.
	Routes() ([]Route, error)
	// Add adds a route, and never takes the place of another one: that is an error that says so.
	Add(Route) error
	// Remove removes this very route. One that is gone already is no error.
	Remove(Route) error
	// Watch calls changed, from a goroutine of its own, when something may have changed, until stop is called,
	// which waits for that goroutine.
	Watch(changed func(Change)) (stop func(), err error)
}

// Config is what a Router needs.
type Config struct {
	Kernel  Kernel
	Iface   string        // the underlay's interface
	Subnet  netip.Prefix  // this node's own; peers of the other address family are left alone
	Resync  time.Duration // how often to look when no event told to
	Routing bool          // direct routes are wanted: Backend.DirectRouting, or host-gw
	Alone   bool          // host-gw: a peer without a direct route is not reached at all
	Logger  *slog.Logger  // nil discards
}

// Router keeps the direct routes.
type Router struct {
	cfg   Config
	log   *slog.Logger
	table atomic.Pointer[fib.Table] // nil: nobody has said yet who the peers are
	fresh chan struct{}             // holds one token while the table is new

	changes atomic.Uint32 // Change bits that no look has seen yet
	event   chan struct{} // holds one token while there are some

	// Run's alone.
	seen  *fib.Table    // at the last look
	looks uint64        // so many tables were seen
	iface int           // at the last look
	took  time.Duration // the last look
	ended time.Time     // when it did
	owed  Change        // to be looked at again, since the last look failed
	said  string        // why it did, as it was logged

	mu      sync.Mutex // held to write what Choice reads: entries, their peers and choices
	entries map[netip.Prefix]*entry
}

// entry is one peer.
type entry struct {
	peer    *fib.Peer
	hop     way.Hop
	look    uint64       // at which it was in the table
	holds   netip.Prefix // way.Facts.Holds
	refused string       // way.Facts.Refused
	choice  way.Choice
	told    way.Rule // why it is left out, as it was logged
	route   Route    // that is in the kernel's table, as far as we know; zero: none
}

// New starts nothing: see Run.
func New(cfg Config) *Router {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Router{
		cfg: cfg, log: cfg.Logger,
		fresh: make(chan struct{}, 1), event: make(chan struct{}, 1),
		entries: make(map[netip.Prefix]*entry),
	}
}

// SetTable says who the peers are from now on. It never blocks. Before the first call no route is touched: what a
// daemon that was killed has left is in use.
func (r *Router) SetTable(t *fib.Table) {
	r.table.Store(t)
	put(r.fresh)
}

// Choice is the way to a peer and what decided. It may be called from anywhere.
func (r *Router) Choice(p *fib.Peer) way.Choice {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.entries[p.Subnet]; e != nil && e.peer.PublicIP == p.PublicIP {
		return e.choice
	}
	return way.Choose(way.Facts{DirectRouting: r.cfg.Routing, NoTunnel: r.cfg.Alone, PublicIP: p.PublicIP, Underlay: r.cfg.Iface})
}

func put(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// How long a look waits after an event, so that a burst of them is one look: little where all was quiet, for a path
// that has changed may lose packets meanwhile. Looks that events caused keep a processor busy for no more than one
// part in share.
const (
	settleQuiet = 10 * time.Millisecond
	settleBusy  = 100 * time.Millisecond
	share       = 20
)

// settle is how long a look waits after an event that came some time after the last look, which took a time.
func settle(since, took time.Duration) time.Duration {
	if since >= time.Second {
		return max(settleQuiet, share*took-since)
	}
	return max(settleBusy, share*took-since)
}

// Run keeps the routes until ctx ends; then it returns nil and leaves them as they are. Nothing else ends it. It may
// be called again.
func (r *Router) Run(ctx context.Context) error {
	stop, err := r.cfg.Kernel.Watch(func(c Change) {
		r.changes.Or(uint32(c))
		put(r.event)
	})
	if err != nil {
		r.log.Warn("no events from the kernel: a change of the underlay is noticed later", "iface", r.cfg.Iface, "period", r.cfg.Resync, "err", err)
	} else {
		defer stop()
	}
	tick := time.NewTicker(r.cfg.Resync)
	defer tick.Stop()
	r.look(Routes | Underlay)
	var due <-chan time.Time // of the look that an event asked for
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.fresh:
			r.look(0)
		case <-r.event:
			if due == nil {
				due = time.After(settle(time.Since(r.ended), r.took))
			}
		case <-due:
			due = nil
			r.look(Change(r.changes.Swap(0)))
		case <-tick.C:
			r.look(Routes | Underlay)
		}
	}
}
