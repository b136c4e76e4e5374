package lease

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAcquireRules(t *testing.T) {
	us := `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":9,"VtepMAC":"76:0a:15:7b:a4:2c"}}`
	them := `{"PublicIP":"192.0.2.2","PublicIPv6":null}`
	type kv struct {
		key, value string
		ttl        time.Duration
	}
	for _, test := range []struct {
		name     string
		there    []kv
		previous string
		after    string
	}{
		{"empty", nil, "", "10.244.1.0-24=192.0.2.1"},
		{"rule 1: our PublicIP", []kv{{"10.244.3.0-24", us, TTL}}, "10.244.2.0/24", "10.244.3.0-24=192.0.2.1"},
		{"rule 1: a reservation stays one", []kv{{"10.244.3.0-24", us, Permanent}}, "", "10.244.3.0-24=192.0.2.1!"},
		{"rule 1: a reservation made by hand", []kv{{"10.244.3.0-24", `{"PublicIP":"192.0.2.1"}`, Permanent}}, "", "10.244.3.0-24=192.0.2.1!"},
		{"rule 1: broken but for the PublicIP", []kv{{"10.244.3.0-24", `{"PublicIP":"192.0.2.1","BackendType":"vxlan"}`, TTL}}, "", "10.244.3.0-24=192.0.2.1"},
		{"rule 1: two, the previous one", []kv{{"10.244.1.0-24", us, TTL}, {"10.244.2.0-24", us, TTL}}, "10.244.2.0/24", "10.244.1.0-24=192.0.2.1 10.244.2.0-24=192.0.2.1"},
		{"rule 1: wrong length", []kv{{"10.244.3.0-25", us, TTL}}, "", "10.244.1.0-24=192.0.2.1"},
		{"rule 1: above SubnetMax", []kv{{"10.244.4.0-24", us, TTL}}, "", "10.244.1.0-24=192.0.2.1"},
		{"rule 1: below SubnetMin", []kv{{"10.244.0.0-24", us, TTL}}, "", "10.244.1.0-24=192.0.2.1"},
		{"rule 1: dual-stack, same IPv4 half", []kv{{"10.244.3.0-24&2001:db8::-64", us, TTL}}, "", "10.244.3.0-24=192.0.2.1"},
		{"rule 1: a reservation that does not fit", []kv{{"10.244.4.0-24", us, Permanent}}, "", "10.244.1.0-24=192.0.2.1 10.244.4.0-24=192.0.2.1!"},
		{"rule 2: previous", nil, "10.244.2.0/24", "10.244.2.0-24=192.0.2.1"},
		{"rule 2: previous is taken", []kv{{"10.244.2.0-24", them, TTL}}, "10.244.2.0/24", "10.244.1.0-24=192.0.2.1 10.244.2.0-24=192.0.2.2"},
		{"rule 2: previous does not fit", nil, "10.99.0.0/24", "10.244.1.0-24=192.0.2.1"},
		{"rule 2: previous is half taken", []kv{{"10.244.2.128-25", them, TTL}}, "10.244.2.0/24", "10.244.1.0-24=192.0.2.1 10.244.2.128-25=192.0.2.2"},
		{"rule 3: skips overlaps", []kv{{"10.244.0.0-23", them, TTL}, {"10.244.2.64-26", them, Permanent}}, "",
			"10.244.0.0-23=192.0.2.2 10.244.2.64-26=192.0.2.2! 10.244.3.0-24=192.0.2.1"},
		{"rule 3: a broken value occupies its key", []kv{{"10.244.1.0-24", "garbage", TTL}}, "", "10.244.1.0-24=invalid IP 10.244.2.0-24=192.0.2.1"},
		{"rule 3: a foreign key does not matter", []kv{{"zoo", "garbage", TTL}}, "", "10.244.1.0-24=192.0.2.1 zoo=invalid IP"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := NewMemStore()
				for _, e := range test.there {
					m.PutRaw(e.key, e.value, e.ttl)
				}
				k, _ := testKeeper(t, m, "192.0.2.1", macA, func(c *KeeperConfig) {
					if test.previous != "" {
						c.Previous = netip.MustParsePrefix(test.previous)
					}
				})
				l, err := k.Acquire(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if got := snapshot(t, m); got != test.after {
					t.Errorf("store afterwards:\n got %s\nwant %s", got, test.after)
				}
				entries, _, _ := m.List(t.Context())
				for _, e := range entries {
					if e.Key == l.Key && (string(e.Value) != valueOf(t, k.cfg.Attrs) || e.Revision != l.Revision || e.Reserved != l.Reserved) {
						t.Errorf("the store has %s, the lease is %+v", e.Value, l)
					}
				}
				if want := time.Now().Add(TTL); !l.Reserved && !l.Expires.Equal(want) || l.Reserved && !l.Expires.IsZero() {
					t.Errorf("expires %s", l.Expires)
				}
			})
		})
	}
}

func TestAcquireExhausted(t *testing.T) {
	m := NewMemStore()
	for i := 1; i <= 3; i++ {
		m.PutRaw(fmt.Sprintf("10.244.%d.0-24", i), fmt.Sprintf(`{"PublicIP":"192.0.2.%d"}`, 10+i), TTL)
	}
	k, _ := testKeeper(t, m, "192.0.2.1", macA)
	_, err := k.Acquire(t.Context())
	if !errors.Is(err, ErrExhausted) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"has 3 of them", "10.244.2.0/24 by 192.0.2.12", "muslin leases release"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q lacks %q", err, want)
		}
	}
}

// racer lets somebody in between the list and the write.
type racer struct {
	*MemStore
	between []func()
}

func (r *racer) List(ctx context.Context) ([]Entry, int64, error) {
	entries, revision, err := r.MemStore.List(ctx)
	if len(r.between) > 0 {
		r.between[0]()
		r.between = r.between[1:]
	}
	return entries, revision, err
}

func TestAcquireLostRace(t *testing.T) {
	m := NewMemStore()
	take := func(key string) func() { return func() { m.PutRaw(key, `{"PublicIP":"192.0.2.9"}`, TTL) } }
	k, _ := testKeeper(t, &racer{m, []func(){take("10.244.1.0-24"), take("10.244.2.0-24")}}, "192.0.2.1", macA)
	l, err := k.Acquire(t.Context())
	if err != nil || l.Key != "10.244.3.0-24" {
		t.Fatalf("%v, %v", l.Key, err)
	}
	m2 := NewMemStore()
	m2.PutRaw("10.244.1.0-24", `{"PublicIP":"192.0.2.1"}`, TTL)
	k, _ = testKeeper(t, &racer{m2, []func(){func() { m2.PutRaw("10.244.1.0-24", `{"PublicIP":"192.0.2.9"}`, TTL) }}}, "192.0.2.1", macA)
	if l, err := k.Acquire(t.Context()); err != nil || l.Key != "10.244.2.0-24" {
		t.Fatalf("overwrote another node's lease, or failed: %v, %v", l.Key, err)
	}
}

func TestAcquireWaitsForTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemStore()
		m.Fail(ErrUnavailable)
		k, log := testKeeper(t, m, "192.0.2.1", macA)
		time.AfterFunc(time.Hour, func() { m.Fail(nil) })
		if _, err := k.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		if log.count("store trouble") != 1 || log.count("store is back") != 1 {
			t.Errorf("log:\n%s", log.String())
		}
		m.Fail(ErrDenied)
		if _, err := k.Acquire(t.Context()); !errors.Is(err, ErrDenied) {
			t.Errorf("got %v", err)
		}
		m.Fail(ErrUnavailable)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := k.Acquire(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}
