package etcd_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"muslin/lease"
	"muslin/lease/etcd"
	"muslin/tunnel/fib"
)

// Keys that begin with <prefix>/subnets, as flannel asks for them, and what they are called here.
var besides = []struct{ key, full string }{
	{"../subnets", "/subnets"},
	{"../subnets-old", "/subnets-old"},
	{"../subnets-10.244.1.0-24", "/subnets-10.244.1.0-24"},
	{"../subnets10.244.1.0-24", "/subnets10.244.1.0-24"},
	{"../subnets-old/10.244.1.0-24", "/subnets-old/10.244.1.0-24"},
	{"../subnets/../subnets-old", "/subnets/../subnets-old"},
	{"-old", "/subnets/-old"},
	{"/10.244.1.0-24", "/subnets//10.244.1.0-24"},
	{"", "/subnets/"},
	{"..", "/subnets/.."},
	{"10.244.1.0-24", "/subnets/10.244.1.0-24"},
}

func TestKeysBesideTheLeases(t *testing.T) {
	server := startReal(t, "http")
	raw := rawClient(t, server.url)
	s := dial(t, etcd.Config{Endpoints: []string{server.url}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, before, err := s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const value = `{"PublicIP":"192.0.2.9","PublicIPv6":null}`
	var want []string
	for _, b := range besides {
		if _, err := raw.Put(ctx, etcd.DefaultPrefix+b.full, value); err != nil {
			t.Fatal(err)
		}
		want = append(want, b.key)
	}
	for _, other := range []string{"/subnet", "/config", "/other/subnets-old"} {
		if _, err := raw.Put(ctx, etcd.DefaultPrefix+other, value); err != nil {
			t.Fatal(err)
		}
	}
	var listed, watched []string
	entries, _, err := s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		listed = append(listed, e.Key)
		if _, _, err := lease.ParseKey(e.Key); (err == nil) != (e.Key == "10.244.1.0-24") {
			t.Errorf("%q: ParseKey says %v", e.Key, err)
		}
	}
	watching, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	err = s.Watch(watching, before+1, func(events []lease.Event, _ int64) {
		for _, e := range events {
			watched = append(watched, e.Key)
		}
		if len(watched) >= len(want) {
			stop()
		}
	})
	if err != nil || !slices.Equal(watched, want) {
		t.Errorf("watched %q, %v, want %q", watched, err, want)
	}
	slices.Sort(listed)
	if sorted := slices.Sorted(slices.Values(want)); !slices.Equal(listed, sorted) {
		t.Errorf("listed %q, want %q", listed, sorted)
	}

	// Each can be deleted by its Key, and nothing else goes with it.
	for i, b := range besides {
		if err := s.DeleteLease(ctx, b.key, lease.Any); err != nil {
			t.Errorf("delete %q: %v", b.key, err)
		}
		for j, o := range besides {
			r, err := raw.Get(ctx, etcd.DefaultPrefix+o.full)
			if err != nil {
				t.Fatal(err)
			}
			if (r.Count == 1) != (j > i) {
				t.Fatalf("after deleting %q: %q is there %d times", b.key, o.full, r.Count)
			}
		}
	}
	if r, err := raw.Get(ctx, etcd.DefaultPrefix+"/other/subnets-old"); err != nil || r.Count != 1 {
		t.Errorf("another key is gone: %v", err)
	}
	for _, key := range []string{"../subnets/10.244.1.0-24", "../subnets-old", "../config"} {
		if _, err := s.PutLease(ctx, key, []byte(value), lease.TTL, lease.Any); !errors.Is(err, lease.ErrInvalid) {
			t.Errorf("PutLease %q: %v", key, err)
		}
	}
}

// The watcher says what flannel nodes stumble over, and makes no peer of it.
func TestWatcherCountsKeysBesideTheLeases(t *testing.T) {
	server := startReal(t, "http")
	raw := rawClient(t, server.url)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := lease.NewWatcher(lease.WatcherConfig{
		Store:   dial(t, etcd.Config{Endpoints: []string{server.url}}),
		Node:    lease.Node{Backend: lease.BackendUDP},
		OnTable: func(*fib.Table) {},
		Logger:  new(logged).logger(),
	})
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	eventually(t, "the watch stands", func() bool { return w.Status().Healthy })
	if _, err := raw.Put(ctx, etcd.DefaultPrefix+"/subnets-old/10.244.1.0-24", `{"PublicIP":"192.0.2.9"}`); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the foreign key counts", func() bool { return w.Status().Skipped[lease.SkipKey] == 1 })
	if n := w.Status().Peers; n != 0 {
		t.Errorf("%d peers", n)
	}
	if _, err := raw.Delete(ctx, etcd.DefaultPrefix+"/subnets-old/10.244.1.0-24"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it counts no longer", func() bool { return w.Status().Skipped[lease.SkipKey] == 0 })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
