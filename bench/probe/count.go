//go:build linux

package probe

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

// Result is what became of the datagrams: Sent = Received + Lost + InFlight.
type Result struct {
	Sent       int
	Received   int // different datagrams
	Lost       int // not there two seconds (Settle) after they were sent
	InFlight   int // not there yet, but sent a moment ago; 0 in what Stop returns
	Refused    int // of Lost: what the sender's own kernel did not take, as without a route
	Duplicated int // arrivals of a datagram that had arrived
	Reordered  int // first arrivals after a later datagram

	Gaps         []Gap         // runs of lost datagrams, in order
	LongestGap   time.Duration // 0 without a loss
	LongestDelay time.Duration // from sending to arriving, time in the receiver's own queue for a processor included
	LongestStall time.Duration // by which the sender was late, and everything after it was put off

	Err error // why the counts prove nothing: the probe itself failed
}

// Gap is a run of datagrams that were lost one after the other.
type Gap struct {
	First  int           // number of its first datagram, from 0
	Count  int           // of datagrams
	Start  time.Time     // when the first was sent
	Length time.Duration // from then until the first was sent that arrived again, or until the end
}

// End is when the first datagram was sent that arrived again.
func (g Gap) End() time.Time { return g.Start.Add(g.Length) }

// shownGaps is how many gaps String shows.
const shownGaps = 10

// String is for a test's log: one line, and one for each of the first gaps.
func (r Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d sent, %d received, %d lost, %d in flight, %d duplicated, %d reordered, longest delay %v",
		r.Sent, r.Received, r.Lost, r.InFlight, r.Duplicated, r.Reordered, r.LongestDelay.Round(time.Microsecond))
	for i, g := range r.Gaps {
		if i == shownGaps {
			fmt.Fprintf(&b, "\n  and %d gaps more, the longest of all %v", len(r.Gaps)-i, r.LongestGap.Round(time.Millisecond))
			break
		}
		fmt.Fprintf(&b, "\n  %d lost from number %d on, at %s, for %v", g.Count, g.First, g.Start.Format("15:04:05.000"), g.Length.Round(time.Millisecond))
	}
	if r.Err != nil {
		fmt.Fprintf(&b, "\n  %v", r.Err)
	}
	return b.String()
}

// counter is a Result in the making. Its methods may be called by several goroutines at once.
type counter struct {
	mu      sync.Mutex
	began   time.Time
	sent    []time.Duration // by number: when, since began
	arrived []bool          // by number
	highest int             // that arrived; -1: none
	r       Result          // Received, Refused, Duplicated, Reordered, LongestDelay, LongestStall, Err
}

func newCounter(began time.Time) *counter { return &counter{began: began, highest: -1} }

// send notes that the next datagram goes out at a time, and returns its number.
func (c *counter) send(now time.Time) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent, c.arrived = append(c.sent, now.Sub(c.began)), append(c.arrived, false)
	return len(c.sent) - 1
}

func (c *counter) refuse() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.r.Refused++
}

func (c *counter) stall(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.r.LongestStall = max(c.r.LongestStall, d)
}

func (c *counter) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.r.Err == nil {
		c.r.Err = err
	}
}

// arrive notes an arrival. A number that was never sent is not ours.
func (c *counter) arrive(number uint64, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if number >= uint64(len(c.sent)) {
		return
	}
	n := int(number)
	if c.arrived[n] {
		c.r.Duplicated++
		return
	}
	c.arrived[n] = true
	c.r.Received++
	if n < c.highest {
		c.r.Reordered++
	}
	c.highest = max(c.highest, n)
	c.r.LongestDelay = max(c.r.LongestDelay, now.Sub(c.began)-c.sent[n])
}

func (c *counter) received() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.r.Received
}

// complete reports whether everything has arrived.
func (c *counter) complete() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.r.Received == len(c.sent)
}

// result judges what was sent more than settle before now.
func (c *counter) result(now time.Time, settle time.Duration) Result {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.r
	r.Sent = len(c.sent)
	due := now.Add(-settle).Sub(c.began)
	for n := 0; n < len(c.sent); n++ {
		switch {
		case c.arrived[n]:
			continue
		case c.sent[n] > due:
			r.InFlight++
			continue
		}
		first := n
		for n+1 < len(c.sent) && !c.arrived[n+1] && c.sent[n+1] <= due {
			n++
		}
		end := now.Sub(c.began)
		if n+1 < len(c.sent) {
			end = c.sent[n+1]
		}
		g := Gap{First: first, Count: n + 1 - first, Start: c.began.Add(c.sent[first]), Length: end - c.sent[first]}
		r.Lost += g.Count
		r.Gaps = append(r.Gaps, g)
		r.LongestGap = max(r.LongestGap, g.Length)
	}
	return r
}
