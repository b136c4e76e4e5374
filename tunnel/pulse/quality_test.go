package pulse

import (
	"math"
	"net/netip"
	"testing"
	"time"

	"muslin/tunnel/fib"
)

// What is measured, of peers that packets come from and of silent ones, over both families.
func TestQuality(t *testing.T) {
	const way = 3 * time.Millisecond
	among(t, 3, func(w *world) {
		a, b, c, d := w.peers[0], w.peers[1], w.peers[2], peer6(3)
		w.setTable([]*fib.Peer{a, b, c, d})
		w.overlay.takes(way, 0)
		w.six.takes(2*way, 4)
		w.silence(true, c)
		for range 9 {
			hear(b)
			w.pass(9 * time.Second)
		}
		for _, p := range []*fib.Peer{a, b} {
			if q := w.Quality(p); q.RTT != way || q.Loss != 0 || q.Asked < 5 || q.Asked > 7 {
				t.Errorf("%s: %+v, want %v, nothing lost of about 6", p.Subnet, q, way)
			}
			if n := w.requests(p); n < 7 || n > 9 {
				t.Errorf("%s: %d requests in 81 s", p.Subnet, n)
			}
		}
		if q := w.Quality(c); q.RTT != 0 || q.Loss != 1 || q.Asked < enough {
			t.Errorf("of one that is down: %+v", q)
		}

		for range 12 {
			w.Watch()
			hear(b)
			w.pass(9 * time.Second)
		}
		if q := w.Quality(d); q.RTT != 2*way || math.Abs(q.Loss-0.25) > 0.03 {
			t.Errorf("over IPv6: %+v, want %v and each fourth lost", q, 2*way)
		}
		before := w.requests(b)
		w.pass(watchFor - 9*time.Second)
		w.pass(time.Minute)
		w.want("not watched any more", b, Up, time.Time{})
		if n := w.requests(b) - before; n > 8 {
			t.Errorf("%d requests in the minute that nobody watched", n)
		}

		w.silence(false, c)
		w.pass(70 * time.Second)
		if q := w.Quality(c); q.RTT != way || q.Loss != 0 {
			t.Errorf("a minute after it is back: %+v", q)
		}
	})
}

// Each second while somebody watches, and what is lost shows within some seconds.
func TestWatched(t *testing.T) {
	among(t, 50, func(w *world) {
		w.overlay.takes(time.Millisecond, 0)
		for range 12 {
			w.Watch()
			w.pass(5 * time.Second)
		}
		for _, p := range w.peers {
			if n := w.requests(p); n < 55 || n > 61 {
				t.Fatalf("%s: %d requests in a minute, want 60", p.Subnet, n)
			}
		}
		w.silence(true, w.peers[0])
		w.Watch()
		w.pass(8 * time.Second)
		w.want("its last answer was within 10 s", w.peers[0], Up, time.Time{})
		if q := w.Quality(w.peers[0]); q.Loss < 0.09 || q.Loss > 0.15 {
			t.Errorf("7 of 60 are lost: %+v", q)
		}
		w.pass(6 * time.Second)
		if h := w.Health(w.peers[0]); h.State != Down {
			t.Errorf("%+v", h)
		}
	})
}

// Ten thousand peers that are all heard cost ten requests a second, fifty while somebody watches, and the one that is silent
// is found out as soon as one among few.
func TestTenThousandPeersMeasured(t *testing.T) {
	const n = 10_000
	among(t, n, func(w *world) {
		silent := w.peers[n/2]
		w.silence(true, silent)
		minute := func() int {
			before := w.requests()
			for range 12 {
				for _, p := range w.peers {
					if p != silent {
						hear(p)
					}
				}
				w.pass(5 * time.Second)
			}
			return w.requests() - before
		}
		minute()
		if got := minute(); got > 60*perTickUnwatched*10+10*tries || got < 55*perTickUnwatched*10 {
			t.Errorf("%d requests in a minute", got)
		}
		if h := w.Health(silent); h.State != Down {
			t.Errorf("the silent one: %+v", h)
		}
		go func() {
			for range 10 {
				w.Watch()
				time.Sleep(5 * time.Second)
			}
		}()
		if got := minute(); got > 60*perSecond || got < 55*perSecond {
			t.Errorf("%d requests in a minute while somebody watches", got)
		}
	})
}

// The smoothed round trip follows a change, at once after a pause; a loss is of a minute, or of six requests.
func TestHistory(t *testing.T) {
	var h history
	now := time.Now()
	if q := h.quality(); q != (Quality{}) {
		t.Errorf("of nothing: %+v", q)
	}
	h.add(now, true, 8*time.Millisecond, false)
	h.add(now, true, 16*time.Millisecond, false)
	if q := h.quality(); q.RTT != 9*time.Millisecond || q.Asked != 0 {
		t.Errorf("of two: %+v, want 9 ms, and no loss yet", q)
	}
	h.add(now, true, time.Millisecond, true)
	if q := h.quality(); q.RTT != time.Millisecond || q.Asked != 3 {
		t.Errorf("after a pause: %+v", q)
	}
	for _, c := range []struct {
		every time.Duration
		asked int
	}{{time.Second, 51}, {fresh, spans}, {time.Hour, spans}} {
		for i := range 200 {
			now = now.Add(c.every)
			h.add(now, i < 100, time.Millisecond, false)
			if q := h.quality(); i == 99 && (q.Loss != 0 || q.Asked != c.asked) || i == 199 && (q.Loss != 1 || q.RTT != 0) {
				t.Errorf("every %v, after %d: %+v", c.every, i, q)
			}
		}
	}
}

func TestRoundTrip(t *testing.T) {
	left := time.Now()
	wall := left.Round(0)
	for _, c := range []struct {
		kernel time.Time
		want   time.Duration
	}{
		{time.Time{}, 5 * time.Millisecond},
		{wall.Add(3 * time.Millisecond), 3 * time.Millisecond},
		{wall.Add(-time.Hour), 5 * time.Millisecond}, // the clock was set back
		{wall.Add(time.Hour), 5 * time.Millisecond},  // or forward
	} {
		if got := roundTrip(left, c.kernel, left.Add(5*time.Millisecond)); got != c.want {
			t.Errorf("%v: %v, want %v", c.kernel, got, c.want)
		}
	}
}

// Of many peers those that somebody looks at are measured each second, and the others as if nobody did.
func TestWatchedSome(t *testing.T) {
	among(t, 500, func(w *world) {
		w.overlay.takes(time.Millisecond, 0)
		w.pass(time.Minute)
		before := make([]int, len(w.peers))
		for i, p := range w.peers {
			before[i] = w.requests(p)
		}
		for range 12 {
			w.Watch(w.peers[3].Subnet, w.peers[77].Subnet, netip.MustParsePrefix("192.0.2.0/24"))
			w.pass(5 * time.Second)
		}
		others := 0
		for i, p := range w.peers {
			n := w.requests(p) - before[i]
			switch {
			case i == 3 || i == 77:
				if n < 55 || n > 61 {
					t.Errorf("%s, which is looked at: %d requests in a minute, want 60", p.Subnet, n)
				}
			default:
				others += n
			}
		}
		if others < 500 || others > 3000 {
			t.Errorf("%d requests to the others in a minute", others)
		}
		w.pass(watchFor + time.Second)
		if len(w.seen) != 0 {
			t.Errorf("after nobody looks any more: %v", w.seen)
		}
		for i := range 2 * mostSeen {
			w.Watch(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, byte(i >> 8), byte(i)}), 32))
		}
		if len(w.seen) > mostSeen {
			t.Errorf("%d are looked at", len(w.seen))
		}
	})
}
