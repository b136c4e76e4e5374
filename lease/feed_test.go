package lease

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"
)

// counting counts lists and watches, and makes writes slow while slow is set.
type counting struct {
	Store
	lists, watches atomic.Int32
	slow           atomic.Int64 // nanoseconds
}

func (c *counting) List(ctx context.Context) ([]Entry, int64, error) {
	c.lists.Add(1)
	return c.Store.List(ctx)
}

func (c *counting) Watch(ctx context.Context, from int64, changed func([]Event, int64)) error {
	c.watches.Add(1)
	return c.Store.Watch(ctx, from, changed)
}

func (c *counting) PutLease(ctx context.Context, key string, value []byte, ttl time.Duration, revision int64) (Entry, error) {
	time.Sleep(time.Duration(c.slow.Load()))
	return c.Store.PutLease(ctx, key, value, ttl, revision)
}

// One list and one watch serve the Keeper and the Watcher, and neither waits for the other.
func TestFeedServesKeeperAndWatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemStore()
		store := &counting{Store: m}
		log := new(logBuffer)
		feed := NewFeed(store, log.logger())
		k, _ := testKeeper(t, store, "192.0.2.1", macA, func(c *KeeperConfig) { c.Feed = feed })
		own, err := k.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		store.lists.Store(0)
		got := new(tables)
		w := NewWatcher(WatcherConfig{Feed: feed, Node: testNode(t, BackendVXLAN), OnTable: got.add, Logger: log.logger()})
		ctx, cancel := context.WithCancel(t.Context())
		g, ctx := errgroup.WithContext(ctx)
		for _, run := range []func(context.Context) error{k.Run, w.Run, feed.Run} {
			g.Go(func() error { return run(ctx) })
		}
		m.PutRaw("10.244.2.0-24", vxlanValue("192.0.2.2", 1, macB), TTL)
		settle(time.Second)
		if got.last() != "10.244.2.0/24>192.0.2.2" || !w.Status().Healthy {
			t.Errorf("peers %s, status %+v", got.last(), w.Status())
		}

		// While the Keeper takes its deleted lease again, with a store that takes an hour to write, the
		// peers go on changing.
		store.slow.Store(int64(time.Hour))
		if err := m.DeleteLease(t.Context(), own.Key, Any); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		m.PutRaw("10.244.3.0-24", vxlanValue("192.0.2.3", 1, macB), TTL)
		settle(time.Second)
		if got.last() != "10.244.2.0/24>192.0.2.2 10.244.3.0/24>192.0.2.3" {
			t.Errorf("peers while a write is under way: %s", got.last())
		}
		if _, err := m.TimeToLive(t.Context(), own.Key); err == nil {
			t.Fatal("the write was not slow")
		}
		settle(2 * time.Hour)
		if _, err := m.TimeToLive(t.Context(), own.Key); err != nil {
			t.Errorf("our lease was not taken again: %v", err)
		}
		if lists, watches := store.lists.Load(), store.watches.Load(); lists != 1 || watches != 1 {
			t.Errorf("%d lists and %d watches, want one of each", lists, watches)
		}
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
}
