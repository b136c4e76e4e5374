// Package storetest is the conformance test that every lease.Store passes: it holds down what package
// lease counts on. It contains no store.
package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"muslin/lease"
)

// Harness is a fresh, empty store and what somebody else can do to it.
type Harness struct {
	Store        lease.Store
	PutRaw       func(t *testing.T, key, value string) // below the leases, without a time to live
	RemoveConfig func(t *testing.T)
	Compact      func(t *testing.T) // the history up to now
	// ShortTTL is a time to live that the store keeps to and that a test can wait for.
	ShortTTL time.Duration
}

const (
	keyA  = "10.244.1.0-24"
	keyB  = "10.244.2.0-24"
	valid = `{"PublicIP":"192.0.2.1","PublicIPv6":null}`
	other = `{"PublicIP":"192.0.2.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"be:e3:93:3d:62:d0"}}`

	keyDual   = "10.244.1.0-24&2001:db8:1::-64"
	keySix    = "0.0.0.0-0&2001:db8:2::-64"
	validDual = `{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"be:e3:93:3d:62:d0"},"BackendV6Data":{"VNI":1,"VtepMAC":"76:0a:15:7b:a4:2c"}}`
	validSix  = `{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::2","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"76:0a:15:7b:a4:2c"}}`
)

// Run runs every test on a store of its own.
func Run(t *testing.T, fresh func(t *testing.T) Harness) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, context.Context, Harness)
	}{
		{"config", config},
		{"watch of the config", watchConfig},
		{"create", create},
		{"compare and set", compareAndSet},
		{"delete", remove},
		{"time to live", timeToLive},
		{"refuses what is not a lease", refuses},
		{"foreign keys are seen", foreign},
		{"leases with IPv6", withIPv6},
		{"watch", watch},
		{"compaction", compaction},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			test.run(t, ctx, fresh(t))
		})
	}
}

func want(t *testing.T, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) || kind == nil && err != nil {
		t.Fatalf("%s: got error %v, want %v", what, err, kind)
	}
}

func put(t *testing.T, ctx context.Context, h Harness, key, value string, ttl time.Duration, revision int64) lease.Entry {
	t.Helper()
	e, err := h.Store.PutLease(ctx, key, []byte(value), ttl, revision)
	if err != nil {
		t.Fatalf("PutLease(%s): %v", key, err)
	}
	return e
}

func config(t *testing.T, ctx context.Context, h Harness) {
	_, _, err := h.Store.Config(ctx)
	want(t, "Config of an empty store", err, lease.ErrNoConfig)
	want(t, "compare-and-set of nothing", h.Store.PutConfig(ctx, []byte("x"), 1), lease.ErrConflict)
	want(t, "create", h.Store.PutConfig(ctx, []byte("one"), lease.Absent), nil)
	want(t, "create again", h.Store.PutConfig(ctx, []byte("two"), lease.Absent), lease.ErrExists)
	value, revision, err := h.Store.Config(ctx)
	if err != nil || string(value) != "one" {
		t.Fatalf("Config: %q, %v", value, err)
	}
	want(t, "compare-and-set", h.Store.PutConfig(ctx, []byte("three"), revision), nil)
	want(t, "stale compare-and-set", h.Store.PutConfig(ctx, []byte("four"), revision), lease.ErrConflict)
	want(t, "put", h.Store.PutConfig(ctx, []byte("five"), lease.Any), nil)
	if value, _, err := h.Store.Config(ctx); err != nil || string(value) != "five" {
		t.Fatalf("Config: %q, %v", value, err)
	}
	if entries, _, err := h.Store.List(ctx); err != nil || len(entries) != 0 {
		t.Fatalf("the config shows among the leases: %v, %v", entries, err)
	}
}

func create(t *testing.T, ctx context.Context, h Harness) {
	a := put(t, ctx, h, keyA, valid, time.Hour, lease.Absent)
	_, err := h.Store.PutLease(ctx, keyA, []byte(other), time.Hour, lease.Absent)
	want(t, "create again", err, lease.ErrExists)
	b := put(t, ctx, h, keyB, other, lease.Permanent, lease.Absent)
	entries, revision, err := h.Store.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if a.Reserved || !b.Reserved {
		t.Errorf("Reserved: %v and %v, want false and true", a.Reserved, b.Reserved)
	}
	slices.SortFunc(entries, func(x, y lease.Entry) int { return int(x.Revision - y.Revision) })
	if len(entries) != 2 || !same(entries[0], a) || !same(entries[1], b) {
		t.Fatalf("List: %v, want %v and %v", entries, a, b)
	}
	if string(entries[0].Value) != valid {
		t.Errorf("value: %s", entries[0].Value)
	}
	if revision < b.Revision || b.Revision <= a.Revision {
		t.Errorf("revisions do not grow: %d, %d, list %d", a.Revision, b.Revision, revision)
	}
}

func same(a, b lease.Entry) bool {
	return a.Key == b.Key && string(a.Value) == string(b.Value) && a.Revision == b.Revision && a.Reserved == b.Reserved
}

func compareAndSet(t *testing.T, ctx context.Context, h Harness) {
	a := put(t, ctx, h, keyA, valid, time.Hour, lease.Absent)
	b := put(t, ctx, h, keyA, other, lease.Permanent, a.Revision)
	_, err := h.Store.PutLease(ctx, keyA, []byte(valid), time.Hour, a.Revision)
	want(t, "stale revision", err, lease.ErrConflict)
	_, err = h.Store.PutLease(ctx, keyB, []byte(valid), time.Hour, b.Revision)
	want(t, "missing key", err, lease.ErrConflict)
	c := put(t, ctx, h, keyA, valid, time.Hour, lease.Any)
	if entries, _, err := h.Store.List(ctx); err != nil || len(entries) != 1 || !same(entries[0], c) {
		t.Fatalf("List: %v, %v, want %v", entries, err, c)
	}
}

func remove(t *testing.T, ctx context.Context, h Harness) {
	want(t, "delete what is not there", h.Store.DeleteLease(ctx, keyA, lease.Any), lease.ErrNotFound)
	a := put(t, ctx, h, keyA, valid, time.Hour, lease.Absent)
	b := put(t, ctx, h, keyA, valid, time.Hour, a.Revision)
	want(t, "delete a stale revision", h.Store.DeleteLease(ctx, keyA, a.Revision), lease.ErrConflict)
	want(t, "delete", h.Store.DeleteLease(ctx, keyA, b.Revision), nil)
	want(t, "delete again", h.Store.DeleteLease(ctx, keyA, b.Revision), lease.ErrNotFound)
	put(t, ctx, h, keyA, valid, time.Hour, lease.Absent)
	want(t, "delete any", h.Store.DeleteLease(ctx, keyA, lease.Any), nil)
	if entries, _, err := h.Store.List(ctx); err != nil || len(entries) != 0 {
		t.Fatalf("List: %v, %v", entries, err)
	}
}

func timeToLive(t *testing.T, ctx context.Context, h Harness) {
	_, err := h.Store.TimeToLive(ctx, keyA)
	want(t, "TimeToLive of nothing", err, lease.ErrNotFound)
	reserved := put(t, ctx, h, keyB, valid, lease.Permanent, lease.Absent)
	if left, err := h.Store.TimeToLive(ctx, keyB); err != nil || left != lease.Permanent {
		t.Fatalf("TimeToLive of a reservation: %s, %v", left, err)
	}
	long := put(t, ctx, h, keyA, valid, time.Hour, lease.Absent)
	if left, err := h.Store.TimeToLive(ctx, keyA); err != nil || left < 50*time.Minute || left > time.Hour {
		t.Fatalf("TimeToLive: %s, %v, want about an hour", left, err)
	}
	short := put(t, ctx, h, keyA, valid, h.ShortTTL, long.Revision)
	gone := make(chan lease.Event, 1)
	watching, stop := context.WithCancel(ctx)
	defer stop()
	err = h.Store.Watch(watching, short.Revision+1, func(events []lease.Event, _ int64) {
		for _, e := range events {
			gone <- e
			stop()
		}
	})
	want(t, "Watch", err, nil)
	select {
	case e := <-gone:
		if !e.Deleted || e.Key != keyA {
			t.Fatalf("event %v, want the expiry of %s", e, keyA)
		}
	default:
		t.Fatal("the lease did not expire")
	}
	if entries, _, err := h.Store.List(ctx); err != nil || len(entries) != 1 || !same(entries[0], reserved) {
		t.Fatalf("List: %v, %v, want just the reservation", entries, err)
	}
}

func refuses(t *testing.T, ctx context.Context, h Harness) {
	for _, c := range []struct{ key, value string }{
		{"config", valid}, {"10.244.1.5-24", valid}, {"../config", valid}, {"", valid},
		{keyA, "garbage"}, {keyA, "{}"}, {keyA, `{"PublicIP":null,"PublicIPv6":null}`}, {keyA, validSix},
	} {
		_, err := h.Store.PutLease(ctx, c.key, []byte(c.value), time.Hour, lease.Any)
		want(t, "PutLease "+c.key+" "+c.value, err, lease.ErrInvalid)
	}
	if entries, _, err := h.Store.List(ctx); err != nil || len(entries) != 0 {
		t.Fatalf("List: %v, %v", entries, err)
	}
}

func foreign(t *testing.T, ctx context.Context, h Harness) {
	h.PutRaw(t, "not-a-key", "\x00not JSON")
	h.PutRaw(t, keyA, "")
	entries, _, err := h.Store.List(ctx)
	if err != nil || len(entries) != 2 {
		t.Fatalf("List: %v, %v, want both", entries, err)
	}
	for _, e := range entries {
		want(t, "delete "+e.Key, h.Store.DeleteLease(ctx, e.Key, e.Revision), nil)
	}
}

// withIPv6: a key with "&" and ":" in it is one like any other, beside one of IPv4 for the same subnet.
func withIPv6(t *testing.T, ctx context.Context, h Harness) {
	put(t, ctx, h, keyA, valid, time.Hour, lease.Absent)
	dual := put(t, ctx, h, keyDual, validDual, time.Hour, lease.Absent)
	six := put(t, ctx, h, keySix, validSix, time.Hour, lease.Absent)
	_, err := h.Store.PutLease(ctx, keyDual, []byte(validDual), time.Hour, lease.Absent)
	want(t, "create again", err, lease.ErrExists)
	dual = put(t, ctx, h, keyDual, validDual, time.Hour, dual.Revision)
	want(t, "delete beside them", h.Store.DeleteLease(ctx, keyA, lease.Any), nil)
	if left, err := h.Store.TimeToLive(ctx, keyDual); err != nil || left < 50*time.Minute {
		t.Errorf("TimeToLive: %s, %v, want about an hour", left, err)
	}
	entries, _, err := h.Store.List(ctx)
	if err != nil || len(entries) != 2 || !same(entries[0], six) || !same(entries[1], dual) {
		t.Fatalf("List: %v, %v, want %v and %v", entries, err, six, dual)
	}
}

func watch(t *testing.T, ctx context.Context, h Harness) {
	put(t, ctx, h, keyA, valid, time.Hour, lease.Absent)
	_, revision, err := h.Store.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// Two changes before the watch, two after it stands.
	b := put(t, ctx, h, keyB, valid, time.Hour, lease.Absent)
	h.PutRaw(t, "zoo", "garbage")
	watching, stop := context.WithCancel(ctx)
	defer stop()
	var got []lease.Event
	standing := 0
	err = h.Store.Watch(watching, revision+1, func(events []lease.Event, seen int64) {
		if standing++; standing == 1 {
			if len(events) != 0 || seen < revision {
				t.Errorf("first call: %v, seen %d, want no events and at least %d", events, seen, revision)
			}
			put(t, ctx, h, keyB, other, lease.Permanent, b.Revision)
			want(t, "delete", h.Store.DeleteLease(ctx, keyA, lease.Any), nil)
		}
		got = append(got, events...)
		for _, e := range events {
			if e.Revision > seen {
				t.Errorf("event of revision %d, but seen is %d", e.Revision, seen)
			}
		}
		if len(got) >= 4 {
			stop()
		}
	})
	want(t, "Watch that was cancelled", err, nil)
	var story []string
	for i, e := range got {
		text := e.Key + " " + string(e.Value)
		if e.Deleted {
			text = e.Key + " deleted"
		}
		if e.Reserved {
			text += " reserved"
		}
		story = append(story, text)
		if i > 0 && e.Revision <= got[i-1].Revision {
			t.Errorf("event %d has revision %d after %d", i, e.Revision, got[i-1].Revision)
		}
	}
	expected := []string{keyB + " " + valid, "zoo garbage reserved", keyB + " " + other + " reserved", keyA + " deleted"}
	if !slices.Equal(story, expected) {
		t.Fatalf("events:\n got %s\nwant %s", lines(story), lines(expected))
	}
}

func lines(s []string) string {
	b, _ := json.MarshalIndent(s, "", " ")
	return string(b)
}

func compaction(t *testing.T, ctx context.Context, h Harness) {
	a := put(t, ctx, h, keyA, valid, time.Hour, lease.Absent)
	put(t, ctx, h, keyA, valid, time.Hour, lease.Any)
	put(t, ctx, h, keyA, valid, time.Hour, lease.Any)
	h.Compact(t)
	err := h.Store.Watch(ctx, a.Revision, func(events []lease.Event, _ int64) {
		if len(events) > 0 {
			t.Errorf("events from before the compaction: %v", events)
		}
	})
	want(t, "Watch from a compacted revision", err, lease.ErrCompacted)
}

func watchConfig(t *testing.T, ctx context.Context, h Harness) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	told := make(chan string, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- h.Store.WatchConfig(ctx, func() {
			value, _, err := h.Store.Config(ctx)
			if errors.Is(err, lease.ErrNoConfig) {
				value, err = []byte("none"), nil
			}
			if err != nil {
				t.Errorf("Config: %v", err)
			}
			told <- string(value)
		})
	}()
	expect := func(value string) {
		t.Helper()
		for {
			select {
			case got := <-told: // perhaps several times
				if got == value {
					return
				}
			case err := <-ended:
				t.Fatalf("WatchConfig ended: %v", err)
			case <-ctx.Done():
				t.Fatalf("not told of %q", value)
			}
		}
	}
	expect("none")
	want(t, "create", h.Store.PutConfig(ctx, []byte("one"), lease.Absent), nil)
	expect("one")
	want(t, "change", h.Store.PutConfig(ctx, []byte("two"), lease.Any), nil)
	expect("two")
	h.RemoveConfig(t)
	expect("none")
	put(t, ctx, h, keyA, valid, time.Minute, lease.Absent)
	cancel()
	want(t, "WatchConfig of an ended context", <-ended, nil)
	for len(told) > 0 {
		if got := <-told; got != "none" {
			t.Errorf("told of %q", got)
		}
	}
}
