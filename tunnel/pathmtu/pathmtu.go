// Package pathmtu finds out how long a packet to each peer may be, where a hop on the way takes less than our interface
// does, and tells the data path (fib.Counters.PathMTU).
//
// The data path's own datagrams have DF clear and are nobody's question: a router fragments them, or loses them. What asks
// are probes with DF set, a few for each peer, that every node of the overlay answers, flannel's too (probe.go). A router's
// ICMP error counts at once if it quotes the number in a probe that is in flight; silence counts when something shorter is
// answered (search.go; RFC 8899). A path is looked at when the first packet goes out that could be too long for it, from
// time to time after that, and when a peer is not heard of while much is sent to it. docs/decisions/path-mtu.md has the
// reasons.
//
// What it costs is bounded: perSecond probes a second at most, and as many again after a quiet second, whatever the number
// of peers.
package pathmtu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"muslin/encap"
	"muslin/tunnel/fib"
)

// DefaultInterval is RFC 8899's PMTU_RAISE_TIMER (section 5.1.1), and about how long Linux believes in a path MTU.
const DefaultInterval = 10 * time.Minute

const (
	tick = 50 * time.Millisecond

	// perSecond is how many probes go out at most, to all peers together: 2.4 Mbit/s of 1,500 bytes. Some 100 peers a
	// second have their path looked at, while nothing is found.
	perSecond = 200
	perTick   = int(perSecond * tick / time.Second)

	// roundTicks is in how many ticks all peers are looked at: the time in which one is noticed.
	roundTicks = int(500 * time.Millisecond / tick)

	// verifyParts: what passes whole is looked at so many times as often as what does not. A path that has become smaller
	// loses packets, one that has become larger just time.
	verifyParts = 5

	// A peer that nothing came from for so long, while trouble bytes were sent to it, has its path looked at, unless that
	// was done within troubleEvery.
	troubleAfter = 2 * time.Second
	troubleBytes = 1000
	troubleEvery = 15 * time.Second

	logEvery = 10 * time.Second
	logNames = 3 // of the peers, in one line
)

// ErrTooLong is Send's error where this host itself does not send a packet so long.
var ErrTooLong = errors.New("longer than the interface's MTU")

// Conn sends probes and takes what comes back. Each method is for one goroutine. Reply and TooLong return net.ErrClosed
// after Close.
type Conn interface {
	// Send sends a probe whose inner packet is size bytes long.
	Send(peer *fib.Peer, nonce uint64, size int) error

	// Reply is the next answer.
	Reply() (nonce uint64, err error)

	// TooLong is the next router's word that a probe was too long: for a hop with that MTU, of outer packets, bytes. 0: it
	// does not say.
	TooLong() (nonce uint64, mtu int, err error)

	Close() error
}

// Config is what a Prober needs.
type Config struct {
	Conn     Conn // closed when Run ends
	Table    func() *fib.Table
	MTU      func() encap.InnerMTU // of the VTEP, as it is now
	Framing  encap.Framing         // of the address family whose peers are asked
	Interval time.Duration         // how often a smaller MTU is tried upwards
	Forget   func()                // called every Interval and when a path takes more again: what the underlay knows of MTUs; nil: nothing
	Logger   *slog.Logger
}

// State is what is known of the path to a peer.
type State string

// The states. Their names stand in what `muslin status` prints as JSON.
const (
	NotAsked State = ""        // nothing was sent to the peer that could be too long
	Full     State = "full"    // it takes what the VTEP's MTU allows
	Smaller  State = "smaller" // it takes less
	Unknown  State = "unknown" // the peer answers no probe
)

// Source is who said that a path takes less.
type Source string

// The sources, as in the JSON.
const (
	ICMP  Source = "icmp"  // a router, by ICMP
	Probe Source = "probe" // probes that vanished
)

// Path is the path to a peer.
type Path struct {
	State State
	MTU   encap.InnerMTU // where it is Smaller; or the last one known, while it is Unknown; 0: none
	By    Source         // of MTU
	Since time.Time      // State and MTU are so
}

// Prober looks at the paths. Its methods may be called from anywhere.
type Prober struct {
	cfg      Config
	overhead int
	floor    int

	mu      sync.Mutex
	records map[*fib.Counters]*record // of peers that something was sent to
	probes  map[uint64]probe          // in flight
	active  []*record                 // with a search
	next    int                       // in the table: whose turn it is
	budget  int                       // of probes
	sizes   []int
	smaller []string // of the next line in the log
	larger  []string
}

// record is what is known of a peer.
type record struct {
	peer   *fib.Peer
	search *search // nil: none goes on
	path   Path
	full   int       // the MTU that the last search was made for
	ended  time.Time // the last search

	rx, tx  uint64    // packets from it, and bytes to it
	rxSince time.Time // the first is what it is
}

// probe is one in flight.
type probe struct {
	record *record
	search *search
	size   int
	sent   time.Time
}

// New starts nothing: see Run.
func New(cfg Config) *Prober {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Prober{cfg: cfg, overhead: encap.Overhead(cfg.Framing), floor: int(encap.LeastInner(cfg.Framing)),
		records: make(map[*fib.Counters]*record), probes: make(map[uint64]probe)}
}

// Path is what is known of the path to a peer.
func (p *Prober) Path(peer *fib.Peer) Path {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r := p.records[peer.Counters]; r != nil {
		return r.path
	}
	return Path{}
}

// Run looks at the paths until ctx ends; then it returns nil.
func (p *Prober) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.receive("echo replies", p.reply) })
	g.Go(func() error { return p.receive("ICMP errors", p.tooLong) })
	g.Go(func() error {
		defer p.cfg.Conn.Close() // ends both
		return p.look(ctx)
	})
	return g.Wait()
}

func (p *Prober) receive(what string, one func() error) error {
	for {
		if err := one(); errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) {
			return nil
		} else if err != nil {
			return fmt.Errorf("path MTU: receive %s: %w", what, err)
		}
	}
}

func (p *Prober) reply() error {
	nonce, err := p.cfg.Conn.Reply()
	if err != nil {
		return err
	}
	now := time.Now()
	p.take(nonce, now, func(b probe) { b.search.answered(b.size, now.Sub(b.sent)) })
	return nil
}

func (p *Prober) tooLong() error {
	nonce, mtu, err := p.cfg.Conn.TooLong()
	if err != nil {
		return err
	}
	p.take(nonce, time.Now(), func(b probe) { b.search.tooLong(b.size, mtu-p.overhead) })
	return nil
}

// take gives its search what came of a probe. What is no probe in flight is nothing.
func (p *Prober) take(nonce uint64, now time.Time, note func(probe)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b, ok := p.probes[nonce]
	if !ok {
		return
	}
	delete(p.probes, nonce)
	if b.record.search == b.search {
		note(b)
		p.apply(b.record, now)
	}
}

func (p *Prober) look(ctx context.Context) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	logged, forgot := time.Now(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		now := time.Now()
		forget := now.Sub(forgot) >= p.cfg.Interval
		p.mu.Lock()
		p.step(now)
		if now.Sub(logged) >= logEvery {
			logged = now
			forget = forget || len(p.larger) > 0
			p.report()
		}
		p.mu.Unlock()
		if forget && p.cfg.Forget != nil {
			forgot = now
			p.cfg.Forget()
		}
	}
}

// step is what is done in a tick.
func (p *Prober) step(now time.Time) {
	p.budget = min(p.budget+perTick, perSecond) // of a quiet second's, so that a search may send many at once
	p.turns(p.cfg.Table().Peers(), now)
	p.active = slices.DeleteFunc(p.active, func(r *record) bool {
		if r.search != nil && p.budget > 0 {
			p.advance(r, now)
		}
		return r.search == nil
	})
	for nonce, b := range p.probes {
		if now.Sub(b.sent) > tries*patience {
			delete(p.probes, nonce)
		}
	}
}

// turns gives the next peers theirs.
func (p *Prober) turns(peers []*fib.Peer, now time.Time) {
	for range min(len(peers), len(peers)/roundTicks+1) {
		if p.next >= len(peers) {
			p.next = 0
			p.forget(peers)
		}
		p.turn(peers[p.next], now)
		p.next++
	}
	if len(peers) == 0 {
		p.forget(nil)
	}
}

// turn begins a search where one is due.
func (p *Prober) turn(peer *fib.Peer, now time.Time) {
	family, _ := encap.FamilyOf(peer.Subnet.Addr())
	c := peer.Counters
	path := c.PathMTU.Load()
	if path == 0 || family != p.cfg.Framing.Family() {
		return
	}
	r := p.records[c]
	if r == nil {
		r = &record{rxSince: now}
		p.records[c] = r
	}
	r.peer = peer
	trouble := r.trouble(now)
	if r.search != nil {
		return
	}
	full := int(p.cfg.MTU())
	since := now.Sub(r.ended)
	switch {
	case r.ended.IsZero(), r.full != full, trouble && since >= troubleEvery, r.path.State == Smaller && since >= p.cfg.Interval:
	case r.path.State != Smaller && since >= p.cfg.Interval/verifyParts:
		// Not before something long is sent to it again.
		if r.path.MTU == 0 && c.PathMTU.CompareAndSwap(fib.PathAny, 0) {
			r.ended = time.Time{}
			return
		}
	default:
		return
	}
	first := 0
	if r.path.MTU != 0 {
		first = int(r.path.MTU)
	}
	r.full = full
	r.search = newSearch(full, p.floor, p.overhead, first)
	p.active = append(p.active, r)
}

// trouble reports whether nothing comes back of what is sent.
func (r *record) trouble(now time.Time) bool {
	c := r.peer.Counters
	if rx := c.RxPackets.Load(); rx != r.rx {
		r.rx, r.tx, r.rxSince = rx, c.TxBytes.Load(), now
	}
	return now.Sub(r.rxSince) >= troubleAfter && c.TxBytes.Load()-r.tx >= troubleBytes
}

// advance sends what a search wants sent, or ends it.
func (p *Prober) advance(r *record, now time.Time) {
	s := r.search
	var done verdict
	p.sizes, done = s.next(now, p.sizes)
	for _, size := range p.sizes {
		p.budget--
		nonce := rand.Uint64()
		p.probes[nonce] = probe{r, s, size, now}
		// What the kernel does not take for another reason counts like what is not answered.
		switch err := p.cfg.Conn.Send(r.peer, nonce, size); {
		case errors.Is(err, ErrTooLong):
			delete(p.probes, nonce)
			s.tooLong(size, 0)
		case err == nil: // the peer counts it among what it receives
			r.peer.Counters.TxPackets.Add(1)
			r.peer.Counters.TxBytes.Add(uint64(size))
			r.tx += uint64(size) // no sign of trouble
		}
	}
	p.apply(r, now)
	if done == searching {
		return
	}
	r.search, r.ended = nil, now
	path := r.path
	switch limit := s.limit(); {
	case done == silent:
		path.State = Unknown
	case limit == 0:
		path = Path{State: Full}
		r.peer.Counters.PathMTU.Store(fib.PathAny)
	}
	p.note(r, path, now)
}

// apply tells the data path what a search knows so far, if that is that the path takes less.
func (p *Prober) apply(r *record, now time.Time) {
	limit := r.search.limit()
	if limit == 0 {
		return
	}
	by := Probe
	if r.search.icmp {
		by = ICMP
	}
	r.peer.Counters.PathMTU.Store(int32(limit))
	p.note(r, Path{State: Smaller, MTU: encap.InnerMTU(limit), By: by}, now)
}

// note takes down what the path is now.
func (p *Prober) note(r *record, path Path, now time.Time) {
	path.Since = r.path.Since
	if path == r.path {
		return
	}
	path.Since = now
	before := r.path
	r.path = path
	name := fmt.Sprintf("%s at %s", r.peer.Subnet, r.peer.PublicIP)
	switch {
	case path.State == Smaller && (before.State != Smaller || path.MTU < before.MTU):
		p.smaller = append(p.smaller, fmt.Sprintf("%s: %d (%s)", name, path.MTU, path.By))
	case path.State == Full && before.MTU != 0, path.State == Smaller && path.MTU > before.MTU:
		p.larger = append(p.larger, name)
	}
}

// forget drops what is known of those that are no peers any more.
func (p *Prober) forget(peers []*fib.Peer) {
	if len(p.records) == 0 {
		return
	}
	there := make(map[*fib.Counters]bool, len(peers))
	for _, peer := range peers {
		there[peer.Counters] = true
	}
	for c, r := range p.records {
		if !there[c] {
			delete(p.records, c)
			r.search = nil
		}
	}
}

// report logs what has changed since the last time, in a line each however many peers it is about.
func (p *Prober) report() {
	if len(p.smaller) > 0 {
		p.cfg.Logger.Warn("paths to peers take smaller packets than this node's interface", "peers", len(p.smaller), "peer", names(p.smaller))
	}
	if len(p.larger) > 0 {
		p.cfg.Logger.Info("paths to peers take larger packets again", "peers", len(p.larger), "peer", names(p.larger))
	}
	p.smaller, p.larger = nil, nil
}

func names(all []string) string {
	if len(all) > logNames {
		return strings.Join(all[:logNames], ", ") + ", …"
	}
	return strings.Join(all, ", ")
}
