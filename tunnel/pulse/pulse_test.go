package pulse

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"muslin/tunnel/fib"
)

// overlay is a Conn whose other ends answer, or do not.
type overlay struct {
	mu      sync.Mutex
	silent  map[netip.Addr]bool
	sent    map[netip.Addr]int
	forge   func(r Reply) []Reply // what comes in place of an answer; nil: the answer
	way     time.Duration         // there and back
	lossy   int                   // each so-manieth request is lost
	late    sync.WaitGroup        // of answers
	replies chan Reply
}

func newOverlay() *overlay {
	return &overlay{silent: make(map[netip.Addr]bool), sent: make(map[netip.Addr]int), replies: make(chan Reply, 1000)}
}

func (o *overlay) Send(to netip.Addr, id, seq uint16) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sent[to]++
	answer := []Reply{{to, id, seq, time.Time{}}}
	if o.forge != nil {
		answer = o.forge(answer[0])
	}
	if o.silent[to] {
		return fmt.Errorf("no route to %s", to)
	}
	if o.lossy > 0 && o.sent[to]%o.lossy == 0 {
		return nil
	}
	way := o.way
	o.late.Go(func() {
		time.Sleep(way)
		for _, r := range answer {
			o.replies <- r
		}
	})
	return nil
}

func (o *overlay) Receive() (Reply, error) {
	r, ok := <-o.replies
	if !ok {
		return Reply{}, net.ErrClosed
	}
	return r, nil
}

func (o *overlay) Close() error {
	o.late.Wait()
	close(o.replies)
	return nil
}

// takes sets how long an answer is under way, and of how many requests one is lost; 0: none.
func (o *overlay) takes(way time.Duration, lossy int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.way, o.lossy = way, lossy
}

func (o *overlay) silence(silent bool, peers ...*fib.Peer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range peers {
		o.silent[p.Subnet.Addr()] = silent
	}
}

// requests is how many requests there were, to one peer or to all.
func (o *overlay) requests(peers ...*fib.Peer) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := 0
	for addr, sent := range o.sent {
		if len(peers) == 0 || addr == peers[0].Subnet.Addr() {
			n += sent
		}
	}
	return n
}

// world is a Prober among peers.
type world struct {
	*testing.T
	*overlay
	*Prober
	six   *overlay // the same of IPv6
	peers []*fib.Peer
	log   bytes.Buffer

	mu    sync.Mutex
	table *fib.Table
}

func (w *world) setTable(peers []*fib.Peer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.table = fib.New(peers)
}

// among runs a Prober, in a bubble of its own time, among so many peers that all answer.
func among(t *testing.T, peers int, do func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, overlay: newOverlay(), six: newOverlay()}
		for n := range peers {
			w.peers = append(w.peers, peer(n))
		}
		w.setTable(w.peers)
		w.Prober = New(Config{
			Conn: w.overlay, Conn6: w.six,
			Table: func() *fib.Table {
				w.mu.Lock()
				defer w.mu.Unlock()
				return w.table
			},
			Logger: slog.New(slog.NewTextHandler(&w.log, nil)),
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.Prober.Run(ctx) }()
		do(w)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// peer number n, as one that is known by no packet.
func peer(n int) *fib.Peer {
	return &fib.Peer{
		Subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 0}), 24),
		PublicIP: netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)}),
		Counters: new(fib.Counters),
	}
}

func (w *world) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (w *world) want(when string, p *fib.Peer, state State, since time.Time) {
	w.Helper()
	if got := w.Health(p); got.State != state || !got.Since.Equal(since) {
		w.Errorf("%s: %s is %+v, want state %d since %v", when, p.Subnet, got, state, since)
	}
}

func hear(p *fib.Peer) { p.Counters.LastRx.Store(time.Now().UnixNano()) }

func TestUpAndDown(t *testing.T) {
	among(t, 3, func(w *world) {
		began := time.Now()
		a, b, c := w.peers[0], w.peers[1], w.peers[2]
		w.silence(true, c)
		w.pass(fresh)
		w.want("before anybody was asked", a, Unknown, time.Time{})
		if n := w.requests(); n != 0 {
			t.Errorf("%d requests in the first %v", n, fresh)
		}
		w.pass(time.Second)
		w.want("asked", a, Up, time.Time{})
		w.want("asked", b, Up, time.Time{})
		if a.Counters.Answered.Load() == 0 || c.Counters.Answered.Load() != 0 {
			t.Error("the counters do not say who has answered")
		}
		w.want("not answered yet", c, Unknown, time.Time{})
		w.pass(4 * time.Second)
		if h := w.Health(c); h.State != Down || h.Since.Before(began.Add(fresh)) || h.Since.After(began.Add(fresh+time.Second)) {
			t.Errorf("never answered: %+v, asked first %v after %v", h, fresh, began)
		}

		w.pass(time.Minute)
		w.silence(true, a)
		last := time.Now()
		w.pass(fresh + 5*time.Second)
		h := w.Health(a)
		if h.State != Down || h.Since.After(last) || h.Since.Before(last.Add(-fresh-2*time.Second)) {
			t.Errorf("%+v, its last answer was within %v before %v", h, fresh, last)
		}
		w.want("the others", b, Up, time.Time{})

		w.silence(false, a, c)
		w.pass(fresh + time.Second)
		w.want("back", a, Up, time.Time{})
		w.want("there at last", c, Up, time.Time{})
		w.pass(logEvery)
		for text, lines := range map[string]int{"peers do not answer": 2, "peers answer again": 1, "10.0.0.0/24 at 198.18.0.0, 10.0.2.0/24 at 198.18.0.2": 1} {
			if n := strings.Count(w.log.String(), text); n != lines {
				t.Errorf("%q %d times, want %d, in:\n%s", text, n, lines, w.log.String())
			}
		}
	})
}

// A peer that packets come from is up, whether it answers or not; one that is heard again is up at once.
func TestHeard(t *testing.T) {
	among(t, 1, func(w *world) {
		p := w.peers[0]
		w.silence(true, p)
		for range 10 {
			hear(p)
			w.pass(fresh / 2)
			w.want("heard", p, Up, time.Time{})
		}
		if n := w.requests(p); n != 4 {
			t.Errorf("measured %d times in 50 s, want once in 10 after the first", n)
		}
		if q := w.Quality(p); q != (Quality{}) {
			t.Errorf("%+v of one that never answers", q)
		}
		hear(p)
		last := time.Now()
		w.pass(fresh)
		w.want("about to be asked", p, Up, time.Time{})
		w.pass((tries + 1) * answerWithin)
		w.want("silent", p, Down, last)
		if q := w.Quality(p); q.Loss != 1 || q.RTT != 0 {
			t.Errorf("%+v of one that is down", q)
		}
		w.pass(fresh / 2)
		hear(p)
		w.want("heard again", p, Up, time.Time{})
		w.pass(time.Second)
		w.want("and a moment later", p, Up, time.Time{})
	})
}

// An answer counts that has our identifier, the number of the last request and the address that was asked.
func TestStrangeReplies(t *testing.T) {
	elsewhere := netip.MustParseAddr("10.9.9.0")
	for name, forge := range map[string]func(r Reply) []Reply{
		"another's": func(r Reply) []Reply { return []Reply{{r.From, r.ID + 1, r.Seq, r.At}} },
		"an old one": func(r Reply) []Reply {
			return []Reply{{r.From, r.ID, r.Seq - 1, r.At}, {r.From, r.ID, r.Seq + 1, r.At}}
		},
		"from elsewhere": func(r Reply) []Reply { return []Reply{{elsewhere, r.ID, r.Seq, r.At}} },
	} {
		t.Run(name, func(t *testing.T) {
			among(t, 1, func(w *world) {
				w.overlay.mu.Lock()
				w.forge = forge
				w.overlay.mu.Unlock()
				w.pass(fresh + 5*time.Second)
				if h := w.Health(w.peers[0]); h.State != Down {
					t.Errorf("%+v", h)
				}
			})
		})
	}
}

// peer6 is peer of IPv6.
func peer6(n int) *fib.Peer {
	return &fib.Peer{
		Subnet:   netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 4: byte(n >> 8), 5: byte(n)}), 64),
		PublicIP: netip.AddrFrom16([16]byte{0xfd, 0x99, 14: byte(n >> 8), 15: byte(n)}),
		Counters: new(fib.Counters),
	}
}

// Each address family of a node is asked by itself, and is down by itself.
func TestBothFamilies(t *testing.T) {
	among(t, 2, func(w *world) {
		a, b, a6, b6 := w.peers[0], w.peers[1], peer6(0), peer6(1)
		w.setTable([]*fib.Peer{a, b, a6, b6})
		w.silence(true, a)
		w.six.silence(true, b6)
		w.pass(fresh + 5*time.Second)
		w.want("IPv6 of the one", a6, Up, time.Time{})
		w.want("IPv4 of the other", b, Up, time.Time{})
		for _, p := range []*fib.Peer{a, b6} {
			if h := w.Health(p); h.State != Down {
				t.Errorf("%s: %+v, want down", p.Subnet, h)
			}
		}
		if a6.Counters.Answered.Load() == 0 || b6.Counters.Answered.Load() != 0 {
			t.Error("the counters do not say who has answered")
		}
		if w.requests(a6)+w.requests(b6)+w.six.requests(a)+w.six.requests(b) != 0 {
			t.Error("asked by the other family's socket")
		}
		w.six.silence(false, b6)
		w.pass(fresh + time.Second)
		w.want("back", b6, Up, time.Time{})
		w.pass(logEvery)
		if !strings.Contains(w.log.String(), "10.0.0.0/24 at 198.18.0.0, fd00:0:1::/64 at fd99::1") {
			t.Errorf("the log:\n%s", w.log.String())
		}
	})
}

// A router of the subnet answers for its lowest address by one of its own: that counts, and what comes from elsewhere
// does not.
func TestAnycastReply(t *testing.T) {
	for from, state := range map[string]State{"fd00:0:1::1": Up, "fd00:0:2::1": Down, "fd99::1": Down} {
		among(t, 0, func(w *world) {
			w.six.mu.Lock()
			w.six.forge = func(r Reply) []Reply { return []Reply{{netip.MustParseAddr(from), r.ID, r.Seq, r.At}} }
			w.six.mu.Unlock()
			peer := peer6(1)
			w.setTable([]*fib.Peer{peer})
			w.pass(fresh + 5*time.Second)
			if h := w.Health(peer); h.State != state {
				t.Errorf("answers from %s: %+v, want state %d", from, h, state)
			}
		})
	}
}

// Ten thousand silent peers cost no more than fifty requests a second, and each has its turn.
func TestTenThousandPeers(t *testing.T) {
	const n = 10_000
	among(t, n, func(w *world) {
		w.silence(true, w.peers...)
		w.pass(fresh)
		w.pass(time.Minute)
		if got := w.requests(); got > 60*perSecond || got < 55*perSecond {
			t.Errorf("%d requests in a minute, want %d", got, 60*perSecond)
		}
		w.pass(tries * n / perSecond * time.Second)
		down := 0
		for _, p := range w.peers {
			if w.Health(p).State == Down {
				down++
			}
		}
		if down != n {
			t.Errorf("%d of %d are down", down, n)
		}
		if lines := strings.Count(w.log.String(), "\n"); lines > (60+tries*n/perSecond)/int(logEvery/time.Second)+1 {
			t.Errorf("%d lines in the log", lines)
		}
		w.silence(false, w.peers...)
		w.pass(n/perSecond*time.Second + fresh)
		for _, p := range w.peers {
			w.want("all are back", p, Up, time.Time{})
		}
	})
}

// What is known of a peer goes with it.
func TestPeersGo(t *testing.T) {
	among(t, 3, func(w *world) {
		w.silence(true, w.peers[2])
		w.pass(time.Minute)
		w.setTable(w.peers[:1])
		w.pass(time.Second)
		w.Prober.mu.Lock()
		records, asked := len(w.records), len(w.Prober.asked)
		w.Prober.mu.Unlock()
		if records != 1 || asked > 1 {
			t.Errorf("%d records, %d asked, of one peer", records, asked)
		}
		w.setTable(nil)
		w.pass(time.Second)
		w.setTable(w.peers)
		w.want("forgotten", w.peers[2], Unknown, time.Time{})
	})
}

// One that goes while it has a request to answer is not asked again: there is no way to it any more.
func TestPeerGoesUnasked(t *testing.T) {
	among(t, 1000, func(w *world) {
		gone := w.peers[500]
		w.silence(true, gone)
		for w.requests(gone) == 0 {
			w.pass(tick)
		}
		w.setTable(slices.Delete(slices.Clone(w.peers), 500, 501))
		w.pass(time.Minute)
		if n := w.requests(gone); n != 1 {
			t.Errorf("asked %d times, want once: it had gone", n)
		}
	})
}

// Without a socket only what is heard is known.
func TestWithoutConn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(Config{})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.Run(ctx) }()
		silent, heard := peer(1), peer(2)
		hear(heard)
		if a, b := p.Health(silent), p.Health(heard); a.State != Unknown || b.State != Up {
			t.Errorf("%+v, %+v", a, b)
		}
		time.Sleep(time.Hour)
		if h := p.Health(heard); h != (Health{}) {
			t.Errorf("an hour later: %+v", h)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// BenchmarkTick is a tenth of a second among 10,000 peers: that are all heard, and that are all silent.
func BenchmarkTick(b *testing.B) {
	for _, c := range []struct{ silent, watched bool }{{false, false}, {true, false}, {false, true}, {true, true}} {
		silent := c.silent
		b.Run(fmt.Sprintf("silent=%t/watched=%t", silent, c.watched), func(b *testing.B) {
			o := &overlay{silent: make(map[netip.Addr]bool), sent: make(map[netip.Addr]int)}
			p := New(Config{Conn: o})
			if c.watched {
				p.watched.Store(math.MaxInt64)
			}
			var peers []*fib.Peer
			for n := range 10_000 {
				peers = append(peers, peer(n))
				if !silent {
					hear(peers[n])
				}
				o.silent[peers[n].Subnet.Addr()] = true
			}
			table, now, n := fib.New(peers), time.Now(), 0
			for b.Loop() {
				now = now.Add(tick)
				for range 200 { // so that each is heard twice in the time that it counts
					if n = (n + 1) % len(peers); !silent {
						peers[n].Counters.LastRx.Store(now.UnixNano())
					}
				}
				p.tick(table, now)
			}
		})
	}
}
