//go:build linux

package probe

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

const ms = time.Millisecond

var began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(d time.Duration) time.Time { return began.Add(d) }

// run sends a datagram every millisecond, from 0 on; each arrives half a millisecond later, in the order given.
func run(sent int, arrivals ...int) *counter {
	c := newCounter(began)
	for i := range sent {
		c.send(at(time.Duration(i) * ms))
	}
	for _, n := range arrivals {
		c.arrive(uint64(n), at(time.Duration(n)*ms+ms/2))
	}
	return c
}

func TestCounts(t *testing.T) {
	gap := func(first, count, length int) Gap {
		return Gap{First: first, Count: count, Start: at(time.Duration(first) * ms), Length: time.Duration(length) * ms}
	}
	for name, c := range map[string]struct {
		sent     int
		arrivals []int
		want     Result
	}{
		"none sent":              {0, nil, Result{}},
		"all there":              {3, []int{0, 1, 2}, Result{Sent: 3, Received: 3}},
		"one lost":               {3, []int{0, 2}, Result{Sent: 3, Received: 2, Lost: 1, Gaps: []Gap{gap(1, 1, 1)}}},
		"the first two":          {4, []int{2, 3}, Result{Sent: 4, Received: 2, Lost: 2, Gaps: []Gap{gap(0, 2, 2)}}},
		"the last two":           {4, []int{0, 1}, Result{Sent: 4, Received: 2, Lost: 2, Gaps: []Gap{gap(2, 2, 8)}}},
		"two gaps":               {7, []int{0, 3, 4, 6}, Result{Sent: 7, Received: 4, Lost: 3, Gaps: []Gap{gap(1, 2, 2), gap(5, 1, 1)}}},
		"all lost":               {3, nil, Result{Sent: 3, Lost: 3, Gaps: []Gap{gap(0, 3, 10)}}},
		"one twice":              {3, []int{0, 1, 1, 2}, Result{Sent: 3, Received: 3, Duplicated: 1}},
		"one three times":        {1, []int{0, 0, 0}, Result{Sent: 1, Received: 1, Duplicated: 2}},
		"one overtaken":          {3, []int{0, 2, 1}, Result{Sent: 3, Received: 3, Reordered: 1}},
		"one overtakes three":    {4, []int{3, 0, 1, 2}, Result{Sent: 4, Received: 4, Reordered: 3}},
		"an old one again":       {3, []int{0, 1, 2, 0}, Result{Sent: 3, Received: 3, Duplicated: 1}},
		"a number not sent":      {2, []int{0, 1, 2, 1 << 40}, Result{Sent: 2, Received: 2}},
		"lost, late, and double": {5, []int{0, 4, 2, 2}, Result{Sent: 5, Received: 3, Lost: 2, Duplicated: 1, Reordered: 1, Gaps: []Gap{gap(1, 1, 1), gap(3, 1, 1)}}},
	} {
		t.Run(name, func(t *testing.T) {
			got := run(c.sent, c.arrivals...).result(at(10*ms), 0)
			for _, g := range c.want.Gaps {
				c.want.LongestGap = max(c.want.LongestGap, g.Length)
			}
			if c.want.Received > 0 {
				c.want.LongestDelay = ms / 2
			}
			if !slices.Equal(got.Gaps, c.want.Gaps) {
				t.Errorf("gaps %+v, want %+v", got.Gaps, c.want.Gaps)
			}
			if got.String() != c.want.String() || got.LongestGap != c.want.LongestGap {
				t.Errorf("got %+v\nwant %+v", got, c.want)
			}
		})
	}
}

// What was sent a moment ago is neither here nor lost.
func TestInFlight(t *testing.T) {
	c := run(6, 0, 3)
	now := c.result(at(5*ms), 3*ms) // judges the numbers 0 to 2
	if now.Received != 2 || now.Lost != 2 || now.InFlight != 2 {
		t.Errorf("meanwhile: %v", now)
	}
	later := c.result(at(9*ms), 3*ms)
	if later.Lost != 4 || later.InFlight != 0 || later.LongestGap != 5*ms {
		t.Errorf("later: %v", later)
	}
	c.arrive(4, at(20*ms)) // late beyond hope, but there
	if last := c.result(at(30*ms), 3*ms); last.Lost != 3 || last.Received != 3 || last.LongestDelay != 16*ms {
		t.Errorf("last: %v", last)
	}
}

func TestString(t *testing.T) {
	c := run(4, 0, 3)
	c.fail(errors.New("the probe stumbled"))
	c.fail(errors.New("and fell"))
	text := c.result(at(10*ms), 0).String()
	for _, want := range []string{"4 sent", "2 received", "2 lost", "from number 1 on, at 03:04:05.001, for 2ms", "the probe stumbled"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in:\n%s", want, text)
		}
	}
	if strings.Contains(text, "fell") {
		t.Errorf("not the first failure:\n%s", text)
	}
}
