package lease

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"muslin/tunnel/fib"
)

// A change waits for others, so that a burst makes one table. While changes keep coming they wait longer, and
// the longer the dearer tables are: making them, and taking them into use, keeps a processor busy for no more
// than one part in gatherShare.
const (
	gatherLeast  = 5 * time.Millisecond
	gatherSteady = 20 * time.Millisecond // where the last table was made less than steady ago
	gatherMost   = 50 * time.Millisecond
	gatherShare  = 20

	steady = 100 * time.Millisecond
)

// gather is how long a change waits that comes some time after the last table was made, which took a time.
func gather(since, took time.Duration) time.Duration {
	if since >= steady {
		return gatherLeast
	}
	return min(max(gatherSteady, gatherShare*took), gatherMost)
}

// WatcherConfig says what a Watcher watches and for whom.
type WatcherConfig struct {
	Store   Store
	Feed    *Feed // in place of Store, where others follow the leases as well
	Node    Node
	Known   []Entry          // what was known of the leases before
	OnTable func(*fib.Table) // at each change, from one goroutine
	Logger  *slog.Logger     // nil means slog.Default
}

// WatchStatus is what a Watcher, or Static, can tell about itself.
type WatchStatus struct {
	Healthy   bool           // the store answers and the watch stands; Static: the last read was good
	Revision  int64          // of the store, up to which everything is known; Static: number of reads
	Peers     int            // in the last table, which has one for each half of a lease
	Skipped   map[string]int // leases that make no peer, by reason
	LastError string         // while not Healthy
	Held      int            // of the peers: those whose leases have vanished, perhaps by mistake
	HeldUntil time.Time      // when the last of them goes, at the latest
}

// Watcher turns everybody's leases into the peers of a fib.Table. While the store does not answer, the
// last peers stay.
type Watcher struct {
	cfg  WatcherConfig
	feed *Feed // nil: cfg.Feed, which others run

	mu     sync.Mutex
	roster *roster
	status WatchStatus

	dirty chan struct{} // holds one token while there is something new
}

// NewWatcher starts nothing: see Run.
func NewWatcher(cfg WatcherConfig) *Watcher {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	w := &Watcher{cfg: cfg, roster: newRoster(cfg.Node, cfg.Logger), dirty: make(chan struct{}, 1)}
	feed := cfg.Feed
	if feed == nil {
		w.feed = NewFeed(cfg.Store, cfg.Logger)
		feed = w.feed
	}
	feed.add(reader{listed: w.listed, changed: w.changed, health: w.health})
	if len(cfg.Known) > 0 {
		w.roster.replace(cfg.Known)
		w.touch()
	}
	return w
}

// Table is the peers as they are known now.
func (w *Watcher) Table() *fib.Table { return w.update() }

// Run hands out tables until ctx ends; then it returns nil. Nothing else ends it. It watches the store itself,
// unless there is a Feed.
func (w *Watcher) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if w.feed != nil {
		g.Go(func() error { return w.feed.Run(ctx) })
	}
	g.Go(func() error { return w.publish(ctx) })
	return g.Wait()
}

// publish hands out a table at first, and whenever the peers have changed.
func (w *Watcher) publish(ctx context.Context) error {
	var given *fib.Table // what was handed out last: who asks for the Table meanwhile has it brought up to date
	var last time.Time   // when the last table was in use
	var took time.Duration
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.dirty:
		case <-w.holdCheck():
		}
		if pause(ctx, gather(time.Since(last), took)) != nil {
			return nil
		}
		select {
		case <-w.dirty:
		default:
		}
		began := time.Now()
		if t := w.update(); t != given {
			given = t
			w.cfg.OnTable(t)
		}
		last = time.Now()
		took = last.Sub(began)
	}
}

// Status may be called from anywhere.
func (w *Watcher) Status() WatchStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.status
	s.Skipped = maps.Clone(s.Skipped)
	return s
}

// Leases is every lease that could be read, ours and those of other backends too, sorted by key.
func (w *Watcher) Leases() []Lease {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.roster.leases()
}

func (w *Watcher) listed(entries []Entry, revision int64) {
	w.mu.Lock()
	_, had := w.roster.known[w.ownKey()]
	there := w.roster.setAll(entries)
	together := had && !there[w.ownKey()] || revision < w.status.Revision
	held := w.roster.loseAllBut(there, together, time.Now())
	w.status.Revision = revision
	w.mu.Unlock()
	w.noteHeld(held, together)
	w.touch()
}

func (w *Watcher) changed(events []Event, revision int64) {
	now, held := time.Now(), 0
	together := slices.ContainsFunc(events, func(e Event) bool { return e.Deleted && e.Key == w.ownKey() })
	w.mu.Lock()
	for _, e := range events {
		switch {
		case !e.Deleted:
			w.roster.set(e.Entry)
		case w.roster.lose(e.Key, together, now):
			held++
		}
	}
	w.status.Revision = revision
	w.mu.Unlock()
	w.noteHeld(held, together)
	w.touch()
}

func (w *Watcher) ownKey() string { return LeaseKey(w.cfg.Node.Subnet, w.cfg.Node.Subnet6) }

func (w *Watcher) noteHeld(peers int, together bool) {
	switch {
	case peers == 0:
	case together:
		w.cfg.Logger.Error("leases vanished from the store together with ours, or because it was set back: their peers stay for now, since nodes that are alive take their leases again",
			"peers", peers, "at_most", holdMost)
	default:
		w.cfg.Logger.Warn("leases vanished from the store whose nodes are alive: their peers stay while they are heard", "peers", peers, "at_most", holdMost)
	}
}

// holdCheck fires after a while if there is somebody to let go.
func (w *Watcher) holdCheck() <-chan time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.roster.held) == 0 {
		return nil
	}
	return time.After(holdCheck)
}

func (w *Watcher) health(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.Healthy, w.status.LastError = err == nil, ""
	if err != nil {
		w.status.LastError = err.Error()
	}
}

func (w *Watcher) touch() {
	select {
	case w.dirty <- struct{}{}:
	default:
	}
}

func (w *Watcher) update() *fib.Table {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.roster.letGo(time.Now())
	t, changed := w.roster.update()
	w.status.Held, w.status.HeldUntil = len(w.roster.held), w.roster.heldUntil()
	w.status.Peers, w.status.Skipped = len(t.Peers()), maps.Clone(w.roster.skipped)
	if changed {
		w.cfg.Logger.Debug("peers changed", "peers", len(t.Peers()), "skipped", describe(w.status.Skipped))
	}
	return t
}
