package lease

import (
	"iter"
	"slices"
	"sync"
)

// observation is what somebody saw at our key: an entry or its absence, as of a revision of the store.
type observation struct {
	entry  Entry
	absent bool
	asOf   int64 // the store's revision that this was true at
	listed bool  // it comes from a list, which is the whole truth as of then
}

func observe(entries []Entry, key string, revision int64) observation {
	for _, e := range entries {
		if e.Key == key {
			return observation{entry: e, asOf: revision, listed: true}
		}
	}
	return observation{absent: true, asOf: revision, listed: true}
}

// listed and changed are the Feed's to call.

func (k *Keeper) listed(entries []Entry, revision int64) {
	k.seen.add(observe(entries, k.Status().Lease.Key, revision))
	k.listRivals(entries)
}

func (k *Keeper) changed(events []Event, _ int64) {
	key := k.Status().Lease.Key
	for _, e := range events {
		if e.Key == key {
			k.seen.add(observation{entry: e.Entry, absent: e.Deleted, asOf: e.Revision})
		} else {
			k.changeRival(e)
		}
	}
}

// inbox holds observations, in order, until somebody takes them. Who adds one does not wait: it may be the
// one who brings everybody the news, and a write to a slow store takes seconds.
type inbox struct {
	news chan struct{} // holds one token while there may be something to take

	mu   sync.Mutex
	seen []observation
}

func newInbox() inbox { return inbox{news: make(chan struct{}, 1)} }

func (b *inbox) add(o observation) {
	b.mu.Lock()
	b.seen = append(b.seen, o)
	b.mu.Unlock()
	select {
	case b.news <- struct{}{}:
	default:
	}
}

// take empties the inbox.
func (b *inbox) take() iter.Seq[observation] {
	b.mu.Lock()
	defer b.mu.Unlock()
	taken := b.seen
	b.seen = nil
	return slices.Values(taken)
}
