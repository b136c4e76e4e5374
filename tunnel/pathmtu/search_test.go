package pathmtu

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

const (
	testFull     = 1450
	testFloor    = 526
	testOverhead = 50
	roundTrip    = 10 * time.Millisecond
)

// way is what lies between, for a search that runs by itself: it takes packets up to mtu, inner.
type way struct {
	mtu    int
	icmp   bool // says so, and which
	mute   bool // says so, and not which
	silent bool // nothing is answered
	lose   func(bytes, nth int) bool
	limits []int // every value of limit, as it came
	sent   int
}

// run has a search sent to its end, in steps of 50 ms, and returns the verdict and how long it took.
func (w *way) run(s *search) (v verdict, took time.Duration) {
	type event struct {
		bytes int
		long  bool
	}
	start := time.Unix(1000, 0)
	var events []event
	nth := make(map[int]int)
	for now := start; now.Sub(start) < time.Minute; now = now.Add(50 * time.Millisecond) {
		for _, e := range events {
			if e.long && w.mute {
				s.tooLong(e.bytes, 0)
			} else if e.long {
				s.tooLong(e.bytes, w.mtu)
			} else {
				s.answered(e.bytes, roundTrip)
			}
			w.note(s)
		}
		events = events[:0]
		var send []int
		send, v = s.next(now, send)
		w.note(s)
		if v != searching {
			return v, now.Sub(start)
		}
		for _, bytes := range send {
			w.sent++
			nth[bytes]++
			switch {
			case w.silent, w.lose != nil && w.lose(bytes, nth[bytes]):
			case bytes <= w.mtu:
				events = append(events, event{bytes: bytes})
			case w.icmp, w.mute:
				events = append(events, event{bytes: bytes, long: true})
			}
		}
	}
	return v, time.Minute
}

func (w *way) note(s *search) {
	if l := s.limit(); len(w.limits) == 0 || w.limits[len(w.limits)-1] != l {
		w.limits = append(w.limits, l)
	}
}

func TestSearchFindsEveryMTU(t *testing.T) {
	for _, full := range []int{testFull, 8951} {
		for mtu := testFloor; mtu <= full; mtu++ {
			for _, kind := range []string{"silent", "icmp", "mute"} {
				w := &way{mtu: mtu, icmp: kind == "icmp", mute: kind == "mute"}
				s := newSearch(full, testFloor, testOverhead, 0)
				v, took := w.run(s)
				got := s.limit()
				if mtu == full {
					if v != found || got != 0 {
						t.Fatalf("%s, all %d pass: verdict %d, limit %d", kind, full, v, got)
					}
					continue
				}
				if v != found || got > mtu || got < mtu-grain || kind == "icmp" && got != mtu {
					t.Fatalf("%s, MTU %d of %d: verdict %d, limit %d after %v", kind, mtu, full, v, got, w.limits)
				}
				if s.icmp != (kind != "silent") && kind == "icmp" {
					t.Fatalf("%s, MTU %d: by ICMP %v", kind, mtu, s.icmp)
				}
				// Nothing that was put to use on the way is much smaller: who learns it keeps it for minutes.
				for _, l := range w.limits {
					if l != 0 && (l > mtu || l < mtu-near) {
						t.Fatalf("%s, MTU %d: limits %v", kind, mtu, w.limits)
					}
				}
				if took > 6*time.Second || w.sent > 70 {
					t.Fatalf("%s, MTU %d of %d: took %v and %d probes", kind, mtu, full, took, w.sent)
				}
			}
		}
	}
}

// How soon it is over where it matters, in the order of the issue: a 1,400-byte hop.
func TestSearchIsSoonOver(t *testing.T) {
	for _, c := range []struct {
		way  way
		most time.Duration // until what was found is put to use
		sent int
	}{
		{way{mtu: 1350, icmp: true}, 100 * time.Millisecond, 4},
		{way{mtu: 1350}, 1500 * time.Millisecond, 35},
		{way{mtu: testFull}, 100 * time.Millisecond, 2},
	} {
		s := newSearch(testFull, testFloor, testOverhead, 0)
		v, took := c.way.run(s)
		if v != found || took > c.most || c.way.sent > c.sent {
			t.Errorf("MTU %d, ICMP %v: verdict %d after %v and %d probes, limits %v; want %v and %d at most", c.way.mtu, c.way.icmp, v, took, c.way.sent, c.way.limits, c.most, c.sent)
		}
	}
}

// Any loss but that of all tries of one size leads to the same.
func TestSearchWithLoss(t *testing.T) {
	for _, mtu := range []int{testFull, 1350, 1111} {
		for pattern := range 1 << 6 {
			w := &way{mtu: mtu, lose: func(bytes, nth int) bool { return nth < tries && pattern>>((bytes+nth)%6)&1 != 0 }}
			s := newSearch(testFull, testFloor, testOverhead, 0)
			v, _ := w.run(s)
			got := s.limit()
			if got == 0 {
				got = testFull
			}
			if v != found || got > mtu || got < mtu-grain {
				t.Errorf("MTU %d, loss pattern %b: verdict %d, limit %d", mtu, pattern, v, got)
			}
		}
	}
}

func TestSearchOfTheSilent(t *testing.T) {
	w := &way{mtu: testFull, silent: true}
	s := newSearch(testFull, testFloor, testOverhead, 0)
	v, took := w.run(s)
	if v != silent || s.limit() != 0 || took > 4*time.Second || w.sent > 2*tries {
		t.Errorf("verdict %d, limit %d, %v, %d probes", v, s.limit(), took, w.sent)
	}
	// One that knows a smaller MTU goes on with it, and finds it at once if it still is so.
	w = &way{mtu: 1350}
	s = newSearch(testFull, testFloor, testOverhead, 1350)
	if v, _ := w.run(s); v != found || s.limit() != 1350 {
		t.Errorf("verdict %d, limit %d", v, s.limit())
	}
	w = &way{mtu: testFull}
	s = newSearch(testFull, testFloor, testOverhead, 1350)
	if v, took := w.run(s); v != found || s.limit() != 0 || took > 100*time.Millisecond {
		t.Errorf("a path that takes all again: verdict %d, limit %d after %v", v, s.limit(), took)
	}
}

// What a router says counts as far as it can be true.
func TestSearchDoubtsRouters(t *testing.T) {
	for name, c := range map[string]struct {
		bytes, mtu int
		lowest     int // what limit may come to be
	}{
		"less than any host takes": {testFull, 100, 0},
		"negative":                 {testFull, -50, 0},
		"none":                     {testFull, 0, 0},
		"as long":                  {testFull, testFull, 0},
		"longer":                   {testFull, 9000, 0},
		"true":                     {testFull, 1350, 1350},
	} {
		s := newSearch(testFull, testFloor, testOverhead, 0)
		_, _ = s.next(time.Unix(1000, 0), nil)
		s.answered(testFloor, roundTrip)
		s.tooLong(c.bytes, c.mtu)
		if got := s.limit(); got != c.lowest {
			t.Errorf("%s: limit %d, want %d", name, got, c.lowest)
		}
	}
	// A lie is found out: what it says is too long passes, if that is tried.
	w := &way{mtu: testFull}
	s := newSearch(testFull, testFloor, testOverhead, 0)
	_, _ = s.next(time.Unix(1000, 0), nil)
	s.tooLong(testFull, 600)
	s.answered(testFull, roundTrip) // it was another's word, or the path has changed
	if v, _ := w.run(s); v != found || s.limit() != 0 {
		t.Errorf("verdict %d, limit %d", v, s.limit())
	}
}

// The sizes stay in order and between what is known, whatever comes.
func FuzzSearch(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Add([]byte{255, 0, 128, 64, 32, 16})
	f.Fuzz(func(t *testing.T, moves []byte) {
		s := newSearch(testFull, testFloor, testOverhead, 0)
		now := time.Unix(1000, 0)
		var send []int
		for i := 0; i+1 < len(moves); i += 2 {
			var v verdict
			if send, v = s.next(now, send); v != searching {
				return
			}
			bytes := testFloor + int(moves[i+1])*(testFull-testFloor)/255
			if len(send) > 0 {
				bytes = send[int(moves[i+1])%len(send)]
			}
			switch moves[i] % 4 {
			case 0:
				s.answered(bytes, time.Duration(moves[i])*time.Millisecond)
			case 1:
				s.tooLong(bytes, int(moves[i])*6)
			case 2:
				now = now.Add(time.Duration(moves[i]) * 10 * time.Millisecond)
			}
			all := fmt.Sprintf("%+v", *s)
			if !slices.IsSortedFunc(s.sizes, func(a, b size) int { return a.bytes - b.bytes }) || s.passes >= s.fails || s.passes > s.full {
				t.Fatal(all)
			}
			for _, z := range s.sizes {
				if z.bytes <= s.passes || z.bytes >= s.fails || z.bytes < s.floor || z.bytes > s.full {
					t.Fatal(z, all)
				}
			}
			if l := s.limit(); l != 0 && (l < s.floor || l >= s.full) {
				t.Fatal(l, all)
			}
		}
	})
}
