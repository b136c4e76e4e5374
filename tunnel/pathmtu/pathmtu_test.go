package pathmtu

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"muslin/encap"
	"muslin/tunnel/fib"
)

const testInterval = DefaultInterval

// paths are a Conn to peers that all answer, unless something is said of them.
type paths struct {
	mu      sync.Mutex
	mtu     map[*fib.Peer]int // inner, of the way to it; none: what is longer is nothing's
	icmp    bool              // a router says so
	local   int               // the longest that this host sends; 0: any
	silent  map[*fib.Peer]bool
	sent    []sending
	replies chan uint64
	errs    chan long
}

type sending struct {
	at   time.Time
	to   *fib.Peer
	size int
}

type long struct {
	nonce uint64
	mtu   int
}

func (w *paths) Send(peer *fib.Peer, nonce uint64, size int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.local != 0 && size > w.local {
		return ErrTooLong
	}
	w.sent = append(w.sent, sending{time.Now(), peer, size})
	mtu := w.mtu[peer]
	switch {
	case w.silent[peer]:
	case mtu == 0 || size <= mtu:
		w.replies <- nonce
	case w.icmp:
		w.errs <- long{nonce, mtu + testOverhead}
	}
	return nil
}

func (w *paths) Reply() (uint64, error) {
	if nonce, ok := <-w.replies; ok {
		return nonce, nil
	}
	return 0, net.ErrClosed
}

func (w *paths) TooLong() (nonce uint64, mtu int, err error) {
	if l, ok := <-w.errs; ok {
		return l.nonce, l.mtu, nil
	}
	return 0, 0, net.ErrClosed
}

func (w *paths) Close() error {
	close(w.replies)
	close(w.errs)
	return nil
}

// set changes what lies between.
func (w *paths) set(do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	do()
}

// taken are the probes since the last call.
func (w *paths) taken() []sending {
	w.mu.Lock()
	defer w.mu.Unlock()
	sent := w.sent
	w.sent = nil
	return sent
}

// world is a Prober among peers.
type world struct {
	*testing.T
	*paths
	*Prober
	peers  []*fib.Peer
	log    bytes.Buffer
	forgot int

	mu    sync.Mutex
	table *fib.Table
	full  encap.InnerMTU
}

// among runs a Prober, in a bubble of its own time, among so many peers.
func among(t *testing.T, peers int, do func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, full: testFull, paths: &paths{
			mtu: make(map[*fib.Peer]int), silent: make(map[*fib.Peer]bool),
			replies: make(chan uint64, 100000), errs: make(chan long, 100000),
		}}
		for n := range peers {
			w.peers = append(w.peers, &fib.Peer{
				Subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 0}), 24),
				PublicIP: netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)}),
				Counters: new(fib.Counters),
			})
		}
		w.setTable(w.peers)
		vni, err := encap.NewVNI(1)
		if err != nil {
			t.Fatal(err)
		}
		w.Prober = New(Config{
			Conn: w.paths, Framing: encap.NewVXLAN(vni, encap.MAC{2}), Interval: testInterval,
			Table:  func() *fib.Table { w.mu.Lock(); defer w.mu.Unlock(); return w.table },
			MTU:    func() encap.InnerMTU { w.mu.Lock(); defer w.mu.Unlock(); return w.full },
			Forget: func() { w.mu.Lock(); defer w.mu.Unlock(); w.forgot++ },
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

func (w *world) setTable(peers []*fib.Peer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.table = fib.New(peers)
}

func (w *world) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// want is what is known of a path, and what the data path was told.
func (w *world) want(when string, p *fib.Peer, state State, mtu int, by Source, told int) {
	w.Helper()
	got := w.Path(p)
	got.Since = time.Time{}
	if want := (Path{State: state, MTU: encap.InnerMTU(mtu), By: by}); got != want || int(p.Counters.PathMTU.Load()) != told {
		w.Errorf("%s: %s is %+v, the data path has %d; want %+v, %d", when, p.Subnet, got, p.Counters.PathMTU.Load(), want, told)
	}
}

// ask is what the data path does with the first long packet.
func ask(peers ...*fib.Peer) {
	for _, p := range peers {
		p.Counters.PathMTU.CompareAndSwap(0, fib.PathAny)
	}
}

func TestProberLooksWhenAsked(t *testing.T) {
	among(t, 4, func(w *world) {
		never, whole, told, hole := w.peers[0], w.peers[1], w.peers[2], w.peers[3]
		w.set(func() { w.mtu[told] = 1350; w.icmp = true })
		w.pass(testInterval)
		if sent := w.taken(); len(sent) != 0 {
			t.Errorf("%d probes before anything was sent", len(sent))
		}
		ask(whole, told)
		w.pass(600 * time.Millisecond) // a round, and the answers
		w.want("never asked", never, NotAsked, 0, "", 0)
		w.want("all passes", whole, Full, 0, "", fib.PathAny)
		w.want("a router says so", told, Smaller, 1350, ICMP, 1350)

		w.set(func() { w.mtu[hole] = 1350; w.icmp = false })
		ask(hole)
		w.pass(2500 * time.Millisecond)
		w.want("a black hole", hole, Smaller, 1350, Probe, 1350)
		if slices.ContainsFunc(w.taken(), func(s sending) bool { return s.to == never }) {
			t.Error("a peer was probed that nothing long was sent to")
		}
	})
}

// This host's own word counts like a router's, but for who said it first.
func TestProberOfAShortInterface(t *testing.T) {
	among(t, 1, func(w *world) {
		w.set(func() { w.local = 1350 })
		ask(w.peers[0])
		w.pass(2500 * time.Millisecond)
		w.want("the interface takes less", w.peers[0], Smaller, 1350, ICMP, 1350)
		if sent := w.taken(); len(sent) == 0 || slices.ContainsFunc(sent, func(s sending) bool { return s.size > 1350 }) {
			t.Errorf("sent: %v", sent)
		}
	})
}

// However many peers are asked at once, and answer nothing: no second has more than the budget, and a quiet second's before.
func TestProberHasABudget(t *testing.T) {
	const peers, seconds = 3000, 30
	among(t, peers, func(w *world) {
		for _, p := range w.peers {
			w.set(func() { w.silent[p] = true })
		}
		w.pass(5 * time.Second)
		ask(w.peers...)
		w.pass(seconds * time.Second)
		sent := w.taken()
		const sizes = 2 // of a search that nobody answers: the longest it may overdraw
		if most := perSecond*(seconds+1) + sizes; len(sent) > most {
			t.Errorf("%d probes in %d s, want %d at most", len(sent), seconds, most)
		}
		if least := perSecond * seconds * 9 / 10; len(sent) < least {
			t.Errorf("%d probes in %d s: a budget that is not used, want %d at least", len(sent), seconds, least)
		}
		began := sent[0].at
		after := slices.IndexFunc(sent, func(s sending) bool { return s.at.Sub(began) > time.Second })
		for i := after; i < len(sent); i++ {
			n := 0
			for _, s := range sent[i:] {
				if s.at.Sub(sent[i].at) >= time.Second {
					break
				}
				n++
			}
			if n > perSecond+sizes {
				t.Fatalf("%d probes in the second that begins after %v", n, sent[i].at.Sub(began))
			}
		}

		// Everyone has had a turn by the time that so many take: two sizes, the shorter of them three times.
		w.pass(peers*(tries+1)/perSecond*time.Second + 10*time.Second - seconds*time.Second)
		for _, p := range w.peers {
			w.want("after everybody's turn", p, Unknown, 0, "", fib.PathAny)
			if t.Failed() {
				return
			}
		}
	})
}

func TestProberAsksAgain(t *testing.T) {
	among(t, 2, func(w *world) {
		whole, less := w.peers[0], w.peers[1]
		w.set(func() { w.mtu[less] = 1350; w.icmp = true })
		ask(whole, less)
		w.pass(time.Second)
		w.want("at first", whole, Full, 0, "", fib.PathAny)
		w.want("at first", less, Smaller, 1350, ICMP, 1350)
		since := w.Path(less).Since
		w.taken()

		// What passed whole is looked at a fifth of the interval later, if something long is sent then.
		w.pass(testInterval/verifyParts - 2*time.Second)
		w.want("before its time", whole, Full, 0, "", fib.PathAny)
		w.pass(2 * time.Second)
		w.want("in time", whole, Full, 0, "", 0)
		w.pass(testInterval / 2)
		if sent := w.taken(); len(sent) != 0 {
			t.Errorf("probes that nobody asked for: %v", sent)
		}
		w.set(func() { w.mtu[whole] = 1350 })
		ask(whole)
		w.pass(time.Second)
		w.want("asked again", whole, Smaller, 1350, ICMP, 1350)
		w.set(func() { w.mtu[whole] = 0 })
		w.taken()

		// What did not is tried upwards a whole interval after it was found, and not before; all that time it stays.
		w.pass(testInterval - time.Since(since) - 2*time.Second)
		if sent := w.taken(); len(sent) != 0 {
			t.Errorf("probes before the interval is over: %v", sent)
		}
		w.pass(4 * time.Second)
		sent := w.taken()
		if len(sent) == 0 || slices.ContainsFunc(sent, func(s sending) bool { return s.to != less }) {
			t.Fatalf("probes after the interval: %v", sent)
		}
		if !slices.ContainsFunc(sent, func(s sending) bool { return s.size == 1350 && s.at.Equal(sent[0].at) }) {
			t.Errorf("what passed before is not tried at once: %v", sent)
		}
		w.want("still so", less, Smaller, 1350, ICMP, 1350)
		if got := w.Path(less).Since; !got.Equal(since) {
			t.Errorf("smaller since %v, was %v", got, since)
		}
		w.set(func() { w.mtu[less] = 0 })
		w.pass(testInterval)
		w.want("wider", less, Full, 0, "", fib.PathAny)
		w.want("wider for longer than a full path is believed in", whole, Full, 0, "", 0)
	})
}

// What takes more again has the underlay forget, too, before the interval is over.
func TestProberTellsTheUnderlay(t *testing.T) {
	among(t, 1, func(w *world) {
		p := w.peers[0]
		w.set(func() { w.mtu[p] = 1350; w.icmp = true })
		w.pass(testInterval / 2)
		ask(p)
		w.pass(testInterval/2 + time.Second)
		if w.forgot != 1 {
			t.Errorf("forgot %d times in one interval", w.forgot)
		}
		w.set(func() { w.mtu[p] = 0 })
		w.pass(testInterval / 2) // that is when its path is looked at
		w.want("wider", p, Full, 0, "", fib.PathAny)
		w.pass(logEvery)
		if w.forgot != 2 {
			t.Errorf("forgot %d times, want once more for the path that is wider", w.forgot)
		}
		if text := w.log.String(); strings.Count(text, "smaller packets") != 1 || strings.Count(text, "larger packets again") != 1 ||
			!strings.Contains(text, "10.0.0.0/24 at 198.18.0.0: 1350 (icmp)") {
			t.Errorf("log:\n%s", text)
		}
	})
}

func TestProberSeesTrouble(t *testing.T) {
	among(t, 1, func(w *world) {
		p := w.peers[0]
		c := p.Counters
		send := func(bytes uint64) { c.TxPackets.Add(1); c.TxBytes.Add(bytes) }
		ask(p)
		w.pass(time.Second)
		w.want("at first", p, Full, 0, "", fib.PathAny)
		w.pass(troubleEvery)
		w.set(func() { w.mtu[p] = 1350 })
		w.taken()

		// None: what is sent is little, or something comes back.
		send(troubleBytes - 1)
		w.pass(3 * time.Second)
		c.RxPackets.Add(1)
		w.pass(600 * time.Millisecond)
		for range 4 {
			send(100 * troubleBytes)
			w.pass(time.Second)
			c.RxPackets.Add(1)
			w.pass(600 * time.Millisecond)
		}
		if sent := w.taken(); len(sent) != 0 {
			t.Errorf("probes without trouble: %v", sent)
		}

		began := time.Now()
		send(troubleBytes)
		for time.Since(began) < 10*time.Second && w.Path(p).State == Full {
			w.pass(50 * time.Millisecond)
		}
		w.want("in trouble", p, Smaller, 1350, Probe, 1350)
		if took := time.Since(began); took > troubleAfter+2500*time.Millisecond {
			t.Errorf("a black hole was found after %v", took)
		}
	})
}

// A dead peer is asked now and then, and what was known of its path stays.
func TestProberOfTheDead(t *testing.T) {
	among(t, 2, func(w *world) {
		p, q := w.peers[0], w.peers[1]
		w.set(func() { w.mtu[q] = 1350; w.icmp = true })
		ask(p, q)
		w.pass(time.Second)
		w.set(func() { w.silent[p] = true; w.silent[q] = true })
		w.taken()
		for range 10 * 50 {
			for _, peer := range w.peers {
				peer.Counters.TxBytes.Add(troubleBytes)
				ask(peer)
			}
			w.pass(100 * time.Millisecond)
		}
		w.want("dead", p, Unknown, 0, "", fib.PathAny)
		w.want("dead", q, Unknown, 1350, ICMP, 1350)
		// A search is three tries of the shortest size, in 3 s, and then nothing until troubleEvery is over.
		sent := w.taken()
		for _, peer := range w.peers {
			var at []time.Time
			for _, s := range sent {
				if s.to == peer && s.size == testFloor {
					at = append(at, s.at)
				}
			}
			searches := 0
			for i := range at {
				if i == 0 || at[i].Sub(at[i-1]) > patience+2*tick {
					searches++
				}
			}
			if searches < 2 || searches > 4 || len(at) != tries*searches {
				t.Errorf("%s: %d searches and %d tries in 50 s", peer.Subnet, searches, len(at))
			}
		}
		// It comes back as it was, and is believed when it is asked next.
		w.set(func() { clear(w.silent) })
		w.pass(troubleEvery + time.Second)
		w.want("alive again", q, Smaller, 1350, ICMP, 1350)
	})
}

func TestProberForgetsPeers(t *testing.T) {
	among(t, 3, func(w *world) {
		stays, goes := w.peers[0], w.peers[1]
		w.set(func() { w.mtu[stays] = 1350; w.mtu[goes] = 1350; w.icmp = true })
		ask(stays, goes)
		w.pass(time.Second)
		w.want("at first", goes, Smaller, 1350, ICMP, 1350)
		w.setTable([]*fib.Peer{stays, w.peers[2]})
		w.pass(time.Second)
		w.want("gone", goes, NotAsked, 0, "", 1350)
		w.want("there", stays, Smaller, 1350, ICMP, 1350)

		// One that goes while it is asked: it is not asked any more, and what was in flight is forgotten.
		last := w.peers[2]
		w.set(func() { w.silent[last] = true })
		ask(last)
		w.pass(550 * time.Millisecond)
		if len(w.taken()) == 0 {
			t.Error("it was not asked")
		}
		w.setTable(nil)
		w.pass(5 * time.Second)
		w.want("gone while asked", last, NotAsked, 0, "", fib.PathAny)
		w.Prober.mu.Lock()
		defer w.Prober.mu.Unlock()
		if len(w.taken()) != 0 || len(w.records) != 0 || len(w.probes) != 0 || len(w.active) != 0 {
			t.Errorf("left: %d records, %d probes, %d searches", len(w.records), len(w.probes), len(w.active))
		}
	})
}

// Numbers that are no probe's.
func TestProberTakesNothingElse(t *testing.T) {
	among(t, 1, func(w *world) {
		p := w.peers[0]
		w.set(func() { w.silent[p] = true })
		ask(p)
		w.pass(500 * time.Millisecond)
		for nonce := range uint64(100) {
			w.replies <- nonce
			w.errs <- long{nonce, 1300}
		}
		w.pass(100 * time.Millisecond)
		w.want("forged", p, NotAsked, 0, "", fib.PathAny)
		w.pass(4 * time.Second)
		w.want("in the end", p, Unknown, 0, "", fib.PathAny)
		if sent := w.taken(); len(sent) != tries+1 {
			t.Errorf("%d probes: something was believed", len(sent))
		}
	})
}

// The VTEP's MTU is what full is.
func TestProberFollowsTheMTU(t *testing.T) {
	among(t, 1, func(w *world) {
		p := w.peers[0]
		w.set(func() { w.mtu[p] = testFull })
		ask(p)
		w.pass(time.Second)
		w.want("at first", p, Full, 0, "", fib.PathAny)
		w.mu.Lock()
		w.full = 8950
		w.mu.Unlock()
		w.pass(5 * time.Second)
		w.want("jumbo frames", p, Smaller, testFull, Probe, testFull)
	})
}
