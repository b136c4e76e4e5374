package lease

import (
	"context"
	"log/slog"
)

// Feed lists and watches the leases, once for all in this process who want to know of them: a watch costs
// etcd the same for one key as for all, and a proxy before etcd joins watches only where they are alike.
// Who is made with a Feed hears of the leases while it runs.
type Feed struct {
	store  Store
	log    *slog.Logger
	reader []reader
}

// reader is told of all leases at once, of their changes, and whether the watch stands. Its functions are
// called from Run's goroutine, one at a time, and must not block. The entries are everybody's to read.
type reader struct {
	listed  func(entries []Entry, revision int64)
	changed func(events []Event, revision int64)
	health  func(err error)
}

// NewFeed starts nothing: see Run.
func NewFeed(store Store, log *slog.Logger) *Feed {
	if log == nil {
		log = slog.Default()
	}
	return &Feed{store: store, log: log}
}

func (f *Feed) add(r reader) { f.reader = append(f.reader, r) }

// Run lists and watches until ctx ends; then it returns nil. Nothing else ends it. All who are to hear of
// the leases are there before it.
func (f *Feed) Run(ctx context.Context) error {
	all := follower{
		store: f.store, log: f.log, what: "watch the leases",
		listed: func(entries []Entry, revision int64) {
			for _, r := range f.reader {
				r.listed(entries, revision)
			}
		},
		changed: func(events []Event, revision int64) {
			for _, r := range f.reader {
				r.changed(events, revision)
			}
		},
		health: func(err error) {
			for _, r := range f.reader {
				r.health(err)
			}
		},
	}
	return all.run(ctx)
}
