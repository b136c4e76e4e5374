package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Back-off between tries to list or watch, as flannel has it.
const (
	watchRetryLeast = 100 * time.Millisecond
	watchRetryMost  = 5 * time.Second
)

// backoff doubles from least to most.
type backoff struct{ least, most, now time.Duration }

func newBackoff(least, most time.Duration) *backoff { return &backoff{least: least, most: most} }

func (b *backoff) next() time.Duration {
	b.now = max(b.least, min(b.now*2, b.most))
	return b.now
}

func (b *backoff) reset() { b.now = 0 }

// outage logs the beginning and the end of trouble, each once.
type outage struct {
	log   *slog.Logger
	what  string
	since time.Time // zero: none
}

func (o *outage) begin(err error) {
	if o.since.IsZero() {
		o.since = time.Now()
		o.log.Warn("store trouble: cannot "+o.what+", trying again until it works", "err", err)
	}
}

func (o *outage) over() {
	if !o.since.IsZero() {
		o.log.Info("store is back: can "+o.what+" again", "after", time.Since(o.since).Round(time.Millisecond))
		o.since = time.Time{}
	}
}

// follower lists and watches for as long as its context lives. Its functions are called from run's own
// goroutine, one at a time.
type follower struct {
	store   Store
	log     *slog.Logger
	what    string // for the log: what it follows
	listed  func(entries []Entry, revision int64)
	changed func(events []Event, revision int64)
	health  func(err error) // nil: list done and watch standing
}

// run lists at a revision and watches from the next one. After any break it lists again: the store may
// have been restored from an older copy, and a compaction may have swallowed events. Returns nil when
// ctx ends.
func (f *follower) run(ctx context.Context) error {
	wait := newBackoff(watchRetryLeast, watchRetryMost)
	out := outage{log: f.log, what: f.what}
	for ctx.Err() == nil {
		err := f.round(ctx, func() {
			wait.reset()
			out.over()
			f.health(nil)
		})
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, ErrCompacted) {
			f.log.Info("the store compacted its history: listing again")
		} else {
			f.health(err)
			out.begin(err)
		}
		if pause(ctx, wait.next()) != nil {
			return nil
		}
	}
	return nil
}

func (f *follower) round(ctx context.Context, standing func()) error {
	entries, revision, err := f.store.List(ctx)
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	f.listed(entries, revision)
	stands := false
	err = f.store.Watch(ctx, revision+1, func(events []Event, seen int64) {
		if !stands {
			stands = true
			standing()
		}
		if len(events) > 0 {
			f.changed(events, seen)
		}
	})
	if err == nil && ctx.Err() == nil {
		err = fmt.Errorf("the watch ended by itself: %w", ErrUnavailable)
	}
	if err != nil {
		return fmt.Errorf("watch leases: %w", err)
	}
	return nil
}
