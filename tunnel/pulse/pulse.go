// Package pulse finds out which peers are alive, how long the way to each and back takes, and how much is lost on it. It
// sends ICMP echo requests through the overlay, to the base address of each peer's subnet, which is its TUN device's
// with muslin and its flannel.VNI's with flannel: both answer.
//
// Whether a peer is alive is asked of those that nothing was heard of lately. They come first. Round trip and loss are
// measured of all, with what is left: seldom, and each second of those that somebody watches (Watch).
//
// A node of both address families is two peers, each with a way of its own, and each is up or down by itself.
//
// The room knows three states: a peer is up, down, or not known to be either. It decides nothing and changes
// nothing: no route, no packet depends on it. An answer counts like a packet for a peer whose lease has vanished
// (fib.Counters). It never touches the data path: it reads the table and the peers' counters, and its packets take the
// way of all others.
//
// What it costs is bounded, whatever the number of peers: perSecond requests a second at most, of 84 bytes on
// the overlay, 104 of IPv6; a fifth of that where all peers are heard and nobody watches, and twice that while somebody
// watches some of many. With many peers it takes longer until each has had its turn.
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
	"sync/atomic"
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

	// perTickUnwatched is how many of them go to peers that are known to be alive while nobody watches: 10 a second,
	// so that up to 100 peers are measured every 10 s, 10,000 every 17 minutes.
	perTickUnwatched = 1

	// lookAt is at how many peers a tick looks, at least, for one whose turn it is to be measured. Where there are more,
	// requests are short and not turns.
	lookAt = 64

	// watchedEvery is how often a peer is measured while somebody watches, and watchFor, how long one does who said so once.
	watchedEvery = time.Second
	watchFor     = 10 * time.Second

	// mostSeen is how many peers may be named to Watch at a time: more than there is room for on a screen, and more than
	// get a request each second.
	mostSeen = 1000

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
	Receive() (Reply, error)
	Close() error
}

// Reply is an answer to an echo request.
type Reply struct {
	From    netip.Addr
	ID, Seq uint16
	At      time.Time // when the kernel got it, by its wall clock; zero: it does not say
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

	watched atomic.Int64 // Unix nanoseconds: until when somebody watches all

	mu           sync.Mutex
	seen         map[netip.Prefix]time.Time // until when somebody watches some
	records      map[*fib.Counters]*record
	asked        map[netip.Addr]*record // who has a request to answer, by the address that it went to
	next         int                    // in the table: whose turn it is to be asked whether it is alive
	nextMeasured int                    // and whose to be measured
	budget       int                    // of requests, in this tick
	seq          uint16
	came         []string // of the next line in the log: who is up again
	went         []string // and who is down
}

// key is a peer as its counters have it, which survive a change of the lease, and by which it is known here.
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
	since    time.Time // of Down

	missed int       // requests in a row, since it is silent
	first  time.Time // of the requests since its last sign of life; zero: there is none
	sent   time.Time // the tick of the last request, or when it was seen first
	left   time.Time // when exactly the last request went out
	seq    uint16    // its number

	history history
}

// New starts nothing: see Run.
func New(cfg Config) *Prober {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Prober{cfg: cfg, id: uint16(rand.Uint32()), records: make(map[*fib.Counters]*record), asked: make(map[netip.Addr]*record), seen: make(map[netip.Prefix]time.Time)}
}

// Health may be called from anywhere.
func (p *Prober) Health(peer *fib.Peer) Health {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.records[peer.Counters]
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

// Watch has the peers with these subnets measured each second for the next watchFor, or all of them where none is named, as
// far as perSecond goes. May be called from anywhere.
func (p *Prober) Watch(subnets ...netip.Prefix) {
	until := time.Now().Add(watchFor)
	if len(subnets) == 0 {
		p.watched.Store(until.UnixNano())
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range subnets {
		if _, there := p.seen[s]; there || len(p.seen) < mostSeen {
			p.seen[s] = until
		}
	}
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
		reply, err := c.Receive()
		now := time.Now() // before there is a lock to wait for
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive echo replies: %w", err)
		}
		if reply.ID == p.id {
			p.answer(reply, now)
		}
	}
}

// answer takes a reply: only one to the last request counts. The lowest address of a subnet of IPv6 is every router's there
// (RFC 4291, section 2.6.1), and a node that takes a request for one to that may answer by another address of the subnet.
func (p *Prober) answer(reply Reply, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.asked[reply.From]
	if r == nil && !reply.From.Is4() {
		if peer := p.cfg.Table().Lookup(reply.From); peer != nil {
			r = p.asked[peer.Subnet.Addr()]
		}
	}
	if r != nil && r.seq == reply.Seq {
		r.history.add(now, true, roundTrip(r.left, reply.At, now), r.state == Down)
		r.answered = now
		r.counters.Answered.Store(now.UnixNano())
		delete(p.asked, r.key.subnet.Addr())
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
		p.tick(t, time.Now())
		if ticks%int(logEvery/tick) == 0 {
			p.report()
		}
		p.mu.Unlock()
	}
}

// tick gives a tenth of a second's requests out.
func (p *Prober) tick(t *fib.Table, now time.Time) {
	p.budget = perTick
	p.overdue(t, now)
	p.turns(t.Peers(), now)
	p.measure(t.Peers(), now)
	p.measureSeen(t, now)
}

// overdue looks at those that have not answered in time: one that is silent is asked again, or is down. One that is no
// peer any more is let alone: there is no way to it.
func (p *Prober) overdue(t *fib.Table, now time.Time) {
	for addr, r := range p.asked {
		peer := t.Lookup(addr)
		if peer == nil || r.key != (key{peer.Subnet, peer.PublicIP}) {
			delete(p.asked, addr)
			continue
		}
		heard := lastHeard(r.counters)
		if heard.After(r.left) {
			p.alive(r) // whether it answers that request or not
		}
		if now.Sub(r.left) < answerWithin {
			continue
		}
		retry := r.missed+1 < tries && r.state != Down && now.Sub(r.lastSign()) >= fresh
		if retry && p.budget == 0 {
			continue
		}
		r.history.add(now, false, 0, false)
		switch {
		case retry:
			r.missed++
			p.request(r, now)
		case now.Sub(r.lastSign()) < fresh:
			delete(p.asked, addr) // lost, but it lives
		default:
			delete(p.asked, addr)
			p.dead(r)
		}
	}
}

// lastSign is its last sign of life, of any kind.
func (r *record) lastSign() time.Time {
	if heard := lastHeard(r.counters); heard.After(r.answered) {
		return heard
	}
	return r.answered
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
	if r := p.records[peer.Counters]; now.Sub(lastHeard(peer.Counters)) < fresh {
		if r != nil {
			p.alive(r)
		}
		return true
	}
	return p.due(p.record(peer, now), fresh, now)
}

// measureSeen asks those that somebody watches, in no order. They have as many requests as all others together, which a network of
// hundreds of idle peers needs for itself.
func (p *Prober) measureSeen(t *fib.Table, now time.Time) {
	p.budget = perTick
	for subnet, until := range p.seen {
		if now.After(until) {
			delete(p.seen, subnet)
			continue
		}
		if peer := t.Lookup(subnet.Addr()); peer != nil && peer.Subnet == subnet && p.conn(subnet.Addr()) != nil {
			if !p.due(p.record(peer, now), watchedEvery, now) {
				return
			}
		}
	}
}

// measure asks the next peers, heard or not, as long as there are requests left that nobody needs to be found alive.
func (p *Prober) measure(peers []*fib.Peer, now time.Time) {
	every, most := fresh, perTickUnwatched
	if now.UnixNano() < p.watched.Load() {
		every, most = watchedEvery, perTick
	}
	p.budget = min(p.budget, most)
	for range min(len(peers), len(peers)/roundTicks+lookAt) {
		if p.nextMeasured >= len(peers) {
			p.nextMeasured = 0
		}
		peer := peers[p.nextMeasured]
		if p.conn(peer.Subnet.Addr()) != nil && !p.due(p.record(peer, now), every, now) {
			return
		}
		p.nextMeasured++
	}
}

// record is a peer's, which is made for one that is new.
func (p *Prober) record(peer *fib.Peer, now time.Time) *record {
	r := p.records[peer.Counters]
	if r == nil {
		r = &record{key: key{peer.Subnet, peer.PublicIP}, counters: peer.Counters, sent: now} // it has time to be heard by itself
		if !lastHeard(peer.Counters).IsZero() {
			r.state = Up // until it proves to be down
		}
		p.records[peer.Counters] = r
	}
	return r
}

// due asks a peer whose last request was so long ago, to half a tick, which itself comes not on time; false: there is
// no request left.
func (p *Prober) due(r *record, every time.Duration, now time.Time) bool {
	switch {
	case p.asked[r.key.subnet.Addr()] == r, now.Sub(r.sent) < every-tick/2:
		return true
	case p.budget == 0:
		return false
	}
	p.request(r, now)
	return true
}

// request asks. One that the kernel does not take counts like one that is not answered: so does the data path.
func (p *Prober) request(r *record, now time.Time) {
	p.budget--
	p.seq++
	r.seq, r.sent = p.seq, now
	if r.first.IsZero() {
		r.first = now
	}
	p.asked[r.key.subnet.Addr()] = r
	to := r.key.subnet.Addr()
	r.left = time.Now()
	_ = p.conn(to).Send(to, p.id, r.seq)
}

func (p *Prober) alive(r *record) {
	if r.state == Down {
		p.came = append(p.came, r.key.String())
	}
	r.state, r.missed, r.first = Up, 0, time.Time{}
}

func (p *Prober) dead(r *record) {
	if r.state != Down {
		p.went = append(p.went, r.key.String())
		if r.since = r.lastSign(); r.since.IsZero() {
			r.since = r.first
		}
	}
	r.state, r.missed = Down, 0
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
		if there[c] {
			continue
		}
		delete(p.records, c)
		if addr := r.key.subnet.Addr(); p.asked[addr] == r {
			delete(p.asked, addr)
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
