// Package pulse finds out which peers are alive. It sends ICMP echo requests through the overlay, to the base
// address of each peer's subnet, which is its TUN device's with muslin and its flannel.VNI's with flannel: both
// answer. A peer that packets came from lately is not asked.
//
// A node of both address families is two peers, each with a way of its own, and each is up or down by itself.
//
// The room knows three states: a peer is up, down, or not known to be either. It decides nothing and changes
// nothing: no route, no packet depends on it. An answer counts like a packet for a peer whose lease has vanished
// (fib.Counters). It never touches the data path: it reads the table and the peers' counters, and its packets take the
// way of all others.
//
// What it costs is bounded, whatever the number of peers: perSecond requests a second at most, of 84 bytes on
// the overlay, 104 of IPv6. With many silent peers it takes longer until each has had its turn.
package pulse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"muslin/tunnel/fib"
)

const (
	// fresh is how long a sign of life counts. A peer that is silent for longer is asked.
	fresh = 10 * time.Second

	// answerWithin is how long a peer has for an answer, and tries how many it may miss in a row.
	answerWithin = time.Second
	tries        = 3

	// perSecond is how many requests go out at most, to all peers together. With 10,000 silent peers each has its
	// turn every 200 s.
	perSecond = 50

	tick    = 100 * time.Millisecond
	perTick = int(perSecond * tick / time.Second)

	// roundTicks is in how many ticks all peers are looked at, unless too many are to be asked.
	roundTicks = int(fresh / tick)

	logEvery = 10 * time.Second
	logNames = 3 // of the peers, in one line
)

// State is what is known of a peer.
type State int

// The states.
const (
	Unknown State = iota
	Up
	Down
)

// Health is a peer's state, and for one that is down since when: its last sign of life, or the first request that
// it did not answer.
type Health struct {
	State State
	Since time.Time // zero unless Down
}

// Conn sends echo requests and takes the answers. Receive returns net.ErrClosed after Close.
type Conn interface {
	Send(to netip.Addr, id, seq uint16) error
	Receive() (from netip.Addr, id, seq uint16, err error)
	Close() error
}

// Config is what a Prober needs.
type Config struct {
	Conn   Conn // of IPv4, closed when Run ends; nil: no peer is asked, and only one that is heard is known to be up
	Conn6  Conn // the same of IPv6
	Table  func() *fib.Table
	Logger *slog.Logger
}

// Prober asks the peers.
type Prober struct {
	cfg Config
	id  uint16

	mu      sync.Mutex
	records map[key]*record
	asked   map[netip.Addr]*record // who has a request to answer, by the address that it went to
	next    int                    // in the table: whose turn it is
	budget  int                    // of requests, in this tick
	seq     uint16
	came    []string // of the next line in the log: who is up again
	went    []string // and who is down
}

// key is a peer, as its counters have it: they too survive a change of the lease.
type key struct {
	subnet   netip.Prefix
	publicIP netip.Addr
}

// record is what is known of a peer that was asked.
type record struct {
	key      key
	counters *fib.Counters
	state    State
	answered time.Time // last; zero: never
	since    time.Time // of Down, while it is down or is about to be

	missed int       // requests in a row
	sent   time.Time // of the last request, or when it was seen first
	seq    uint16    // its number
}

// New starts nothing: see Run.
func New(cfg Config) *Prober {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Prober{cfg: cfg, id: uint16(rand.Uint32()), records: make(map[key]*record), asked: make(map[netip.Addr]*record)}
}

// Health may be called from anywhere.
func (p *Prober) Health(peer *fib.Peer) Health {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.records[key{peer.Subnet, peer.PublicIP}]
	heard := lastHeard(peer.Counters)
	switch {
	case r != nil && r.state == Down && !heard.After(r.since):
		return Health{Down, r.since}
	case r != nil && r.state == Up, now.Sub(heard) < 2*fresh: // whose turn has not come yet
		return Health{State: Up}
	}
	return Health{}
}

func lastHeard(c *fib.Counters) time.Time {
	if n := c.LastRx.Load(); n != 0 {
		return time.Unix(0, n)
	}
	return time.Time{}
}

// conn is that of an address's family.
func (p *Prober) conn(a netip.Addr) Conn {
	if a.Is4() {
		return p.cfg.Conn
	}
	return p.cfg.Conn6
}

// Run asks until ctx ends; then it returns nil. Without a Conn it does nothing.
func (p *Prober) Run(ctx context.Context) error {
	conns := slices.DeleteFunc([]Conn{p.cfg.Conn, p.cfg.Conn6}, func(c Conn) bool { return c == nil })
	if len(conns) == 0 {
		<-ctx.Done()
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, c := range conns {
		g.Go(func() error { return p.receive(c) })
	}
	g.Go(func() error {
		for _, c := range conns {
			defer c.Close() // ends receive
		}
		return p.ask(ctx)
	})
	return g.Wait()
}

func (p *Prober) receive(c Conn) error {
	for {
		from, id, seq, err := c.Receive()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive echo replies: %w", err)
		}
		if id == p.id {
			p.answer(from, seq)
		}
	}
}

// answer takes a reply: only one to the last request counts. The lowest address of a subnet of IPv6 is every router's there
// (RFC 4291, section 2.6.1), and a node that takes a request for one to that may answer by another address of the subnet.
func (p *Prober) answer(from netip.Addr, seq uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.asked[from]
	if r == nil && !from.Is4() {
		if peer := p.cfg.Table().Lookup(from); peer != nil {
			r = p.asked[peer.Subnet.Addr()]
		}
	}
	if r != nil && r.seq == seq {
		r.answered = time.Now()
		r.counters.Answered.Store(r.answered.UnixNano())
		p.alive(r)
	}
}

func (p *Prober) ask(ctx context.Context) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for ticks := 1; ; ticks++ {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		p.mu.Lock()
		p.budget = perTick
		t := p.cfg.Table()
		p.overdue(t, time.Now())
		p.turns(t.Peers(), time.Now())
		if ticks%int(logEvery/tick) == 0 {
			p.report()
		}
		p.mu.Unlock()
	}
}

// overdue looks at those that have not answered in time: they are asked again, or are down. One that is no peer any
// more is let alone: there is no way to it.
func (p *Prober) overdue(t *fib.Table, now time.Time) {
	for addr, r := range p.asked {
		peer := t.Lookup(addr)
		switch {
		case peer == nil || r.key != (key{peer.Subnet, peer.PublicIP}):
			delete(p.asked, addr)
		case lastHeard(r.counters).After(r.sent):
			p.alive(r)
		case now.Sub(r.sent) < answerWithin:
		case r.missed+1 < tries && r.state != Down:
			if p.budget > 0 {
				r.missed++
				p.request(r, now)
			}
		default:
			delete(p.asked, r.key.subnet.Addr())
			p.dead(r)
		}
	}
}

// turns gives the next peers theirs: as many as make a round of all in the time that a sign of life counts, or as
// there are requests left for.
func (p *Prober) turns(peers []*fib.Peer, now time.Time) {
	for range min(len(peers), len(peers)/roundTicks+1) {
		if p.next >= len(peers) {
			p.next = 0
			p.forget(peers)
		}
		peer := peers[p.next]
		if !p.turn(peer, now) {
			return // the next tick goes on here
		}
		p.next++
	}
}

// turn asks a peer, unless it was heard lately; false: there is no request left.
func (p *Prober) turn(peer *fib.Peer, now time.Time) bool {
	if p.conn(peer.Subnet.Addr()) == nil {
		return true
	}
	k := key{peer.Subnet, peer.PublicIP}
	r := p.records[k]
	heard := lastHeard(peer.Counters)
	switch {
	case now.Sub(heard) < fresh:
		if r != nil {
			p.alive(r)
		}
		return true
	case r == nil:
		r = &record{key: k, counters: peer.Counters}
		p.records[k] = r
		if heard.IsZero() {
			r.sent = now // one that is new has time to be heard by itself
			return true
		}
		r.state = Up // until it proves to be down
	}
	switch {
	case p.asked[peer.Subnet.Addr()] == r, now.Sub(r.sent) < fresh:
		return true
	case p.budget == 0:
		return false
	}
	if r.state != Down {
		r.since = r.answered
		if heard.After(r.since) {
			r.since = heard
		}
		if r.since.IsZero() {
			r.since = now
		}
	}
	p.request(r, now)
	return true
}

// request asks. One that the kernel does not take counts like one that is not answered: so does the data path.
func (p *Prober) request(r *record, now time.Time) {
	p.budget--
	p.seq++
	r.seq, r.sent = p.seq, now
	p.asked[r.key.subnet.Addr()] = r
	to := r.key.subnet.Addr()
	_ = p.conn(to).Send(to, p.id, r.seq)
}

func (p *Prober) alive(r *record) {
	if r.state == Down {
		p.came = append(p.came, r.key.String())
	}
	r.state, r.missed = Up, 0
	if p.asked[r.key.subnet.Addr()] == r {
		delete(p.asked, r.key.subnet.Addr())
	}
}

func (p *Prober) dead(r *record) {
	if r.state != Down {
		p.went = append(p.went, r.key.String())
	}
	r.state, r.missed = Down, 0
}

// forget drops what is known of those that are no peers any more.
func (p *Prober) forget(peers []*fib.Peer) {
	if len(p.records) == 0 {
		return
	}
	there := make(map[key]bool, len(peers))
	for _, peer := range peers {
		there[key{peer.Subnet, peer.PublicIP}] = true
	}
	for k, r := range p.records {
		if there[k] {
			continue
		}
		delete(p.records, k)
		if p.asked[k.subnet.Addr()] == r {
			delete(p.asked, k.subnet.Addr())
		}
	}
}

// report logs who went and came since the last time, in a line each however many they are.
func (p *Prober) report() {
	if len(p.went) > 0 {
		p.cfg.Logger.Warn("peers do not answer in the overlay", "peers", len(p.went), "peer", names(p.went))
	}
	if len(p.came) > 0 {
		p.cfg.Logger.Info("peers answer again", "peers", len(p.came), "peer", names(p.came))
	}
	p.went, p.came = nil, nil
}

func names(all []string) string {
	slices.Sort(all)
	if len(all) > logNames {
		return strings.Join(all[:logNames], ", ") + ", …"
	}
	return strings.Join(all, ", ")
}

func (k key) String() string { return fmt.Sprintf("%s at %s", k.subnet, k.publicIP) }
