package health

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"muslin/tunnel"
)

// A worker has a batch in hand for microseconds, and for as long as the kernel keeps it in a write. One that has the same batch
// at two looks in a row is stuck.
const lookEvery = 5 * time.Second

// Stuck is a worker that does not come to the end of a batch.
type Stuck struct {
	Queue     int
	Direction tunnel.Direction
	IPv6      bool
	Since     time.Time // when the batch was seen first
}

// Describe is a sentence without its period.
func (s Stuck) Describe(now time.Time) string {
	family := "IPv4"
	if s.IPv6 {
		family = "IPv6"
	}
	return fmt.Sprintf("the %s worker of queue %d (%s) has had the same batch in hand for %s at least, which takes microseconds: packets of its flows do not get through",
		s.Direction, s.Queue, family, now.Sub(s.Since).Round(time.Second))
}

// Watch looks at workers. Its methods may be called by several goroutines at once; of a nil one no worker is stuck.
type Watch struct {
	look func() []tunnel.QueueStats

	mu     sync.Mutex
	last   time.Time
	inHand map[worker]batch // at the last look
	stuck  []Stuck          // as of the last look, in the order of look
}

type worker struct {
	queue int
	dir   tunnel.Direction
	six   bool
}

type batch struct {
	number uint64
	since  time.Time
}

// NewWatch watches the workers that look gives.
func NewWatch(look func() []tunnel.QueueStats) *Watch { return &Watch{look: look} }

// Run looks until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			w.update(time.Now())
		}
	}
}

// update takes one look. A process that was stopped meanwhile (SIGSTOP, a machine that slept) begins anew.
func (w *Watch) update(now time.Time) {
	all := w.look()
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.inHand
	if now.Sub(w.last) > 2*lookEvery {
		before = nil
	}
	w.last, w.inHand, w.stuck = now, make(map[worker]batch), nil
	for _, q := range all {
		if q.InHand == 0 {
			continue
		}
		k, b := worker{q.Queue, q.Direction, q.IPv6}, batch{q.InHand, now}
		if old, ok := before[k]; ok && old.number == b.number {
			b = old
			w.stuck = append(w.stuck, Stuck{q.Queue, q.Direction, q.IPv6, b.since})
		}
		w.inHand[k] = b
	}
}

// Stuck is which workers are, as of the last look.
func (w *Watch) Stuck() []Stuck {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.stuck)
}

// Check is what the workers are to an endpoint.
func (w *Watch) Check(now time.Time) Check {
	c := Check{Name: Workers, OK: true, Decides: true, Reason: "every batch comes to its end"}
	var all []string
	for _, s := range w.Stuck() {
		all = append(all, s.Describe(now))
	}
	if len(all) > 0 {
		c.OK, c.Reason = false, strings.Join(all, "; ")
	}
	return c
}
