package lease

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const (
	macA = "be:e3:93:3d:62:d0"
	macB = "76:0a:15:7b:a4:2c"
)

func mustConfig(t *testing.T, text string) *Config {
	t.Helper()
	c, err := ParseConfig([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// three leaves the subnets 10.244.1.0 to 10.244.3.0.
const three = `{"Network":"10.244.0.0/16","SubnetMax":"10.244.3.0","Backend":{"Type":"vxlan"}}`

func testKeeper(t *testing.T, store Store, ip, hw string, change ...func(*KeeperConfig)) (*Keeper, *logBuffer) {
	t.Helper()
	log := new(logBuffer)
	cfg := KeeperConfig{Store: store, Network: mustConfig(t, three), Attrs: vxlanAttrs(t, ip, hw), Logger: log.logger(), Pick: func(int) int { return 0 }}
	for _, f := range change {
		f(&cfg)
	}
	k, err := NewKeeper(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return k, log
}

func valueOf(t *testing.T, a Attrs) string {
	t.Helper()
	b, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// snapshot is the store in words: "10.244.1.0-24=192.0.2.1", a reservation with "!".
func snapshot(t *testing.T, m *MemStore) string {
	t.Helper()
	entries, _, err := m.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		l, _ := ParseLease(e)
		text := e.Key + "=" + l.Attrs.PublicIP.String()
		if e.Reserved {
			text += "!"
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

// running acquires and starts Run; stop ends it and returns its error.
func running(t *testing.T, k *Keeper) (stop func() error) {
	t.Helper()
	if _, err := k.Acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx) }()
	synctest.Wait()
	return func() error {
		t.Helper()
		synctest.Wait()
		cancel()
		return <-ended
	}
}

func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemStore()
		k, _ := testKeeper(t, m, "192.0.2.1", macA)
		stop := running(t, k)
		first := k.Status().Lease
		settle(23*time.Hour - time.Second)
		if got := k.Status().Lease; got.Revision != first.Revision {
			t.Fatal("renewed too early")
		}
		settle(2 * time.Second)
		got := k.Status().Lease
		if got.Revision == first.Revision || !got.Expires.Equal(first.Expires.Add(23*time.Hour)) {
			t.Fatalf("not renewed: %+v", got)
		}
		settle(30 * 24 * time.Hour)
		if left, err := m.TimeToLive(t.Context(), got.Key); err != nil || left < time.Hour-time.Second {
			t.Errorf("after a month: %s, %v", left, err)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if snapshot(t, m) != "10.244.1.0-24=192.0.2.1" {
			t.Error("the lease was not kept at the end")
		}
	})
}

func TestReservationIsNeverRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemStore()
		m.PutRaw("10.244.2.0-24", `{"PublicIP":"192.0.2.1"}`, Permanent)
		k, _ := testKeeper(t, m, "192.0.2.1", macA)
		stop := running(t, k)
		first := k.Status().Lease
		settle(100 * 24 * time.Hour)
		if got := k.Status().Lease; !got.Reserved || got.Revision != first.Revision {
			t.Errorf("%+v", got)
		}
		// An operator ends the reservation, and makes another.
		m.PutRaw(first.Key, valueOf(t, k.cfg.Attrs), 2*time.Hour)
		settle(time.Second)
		if got := k.Status().Lease; got.Reserved || time.Until(got.Expires) < time.Hour {
			t.Errorf("after the end of the reservation: %+v", got)
		}
		settle(48 * time.Hour)
		if got := snapshot(t, m); got != "10.244.2.0-24=192.0.2.1" {
			t.Errorf("the lease is not renewed: %s", got)
		}
		m.PutRaw(first.Key, valueOf(t, k.cfg.Attrs), Permanent)
		settle(48 * time.Hour)
		if got := snapshot(t, m); got != "10.244.2.0-24=192.0.2.1!" || !k.Status().Lease.Reserved {
			t.Errorf("the new reservation was not kept: %s", got)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestOutage(t *testing.T) {
	for _, length := range []time.Duration{time.Minute, 23*time.Hour + 30*time.Minute, 100 * time.Hour} {
		t.Run(length.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := NewMemStore()
				k, log := testKeeper(t, m, "192.0.2.1", macA)
				stop := running(t, k)
				m.Fail(ErrUnavailable)
				settle(length)
				m.Fail(nil)
				settle(watchRetryMost + time.Second) // however long it lasted
				if got := snapshot(t, m); got != "10.244.1.0-24=192.0.2.1" {
					t.Errorf("store: %s", got)
				}
				if s := k.Status(); s.LastError != "" || time.Until(s.Lease.Expires) < 50*time.Minute {
					t.Errorf("status: %+v", s)
				}
				// One for the watch, and one for the write if the outage covered a renewal.
				if n := log.count("store trouble"); n < 1 || n > 2 || n != log.count("store is back") {
					t.Errorf("log:\n%s", log.String())
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

func TestSubnetTakenDuringOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemStore()
		k, _ := testKeeper(t, m, "192.0.2.1", macA)
		stop := running(t, k)
		m.Fail(ErrUnavailable)
		settle(25 * time.Hour)
		m.PutRaw("10.244.1.0-24", `{"PublicIP":"192.0.2.9"}`, TTL)
		m.Fail(nil)
		settle(time.Minute)
		err := stop()
		if !errors.Is(err, ErrSubnetLost) || !strings.Contains(err.Error(), "192.0.2.9") {
			t.Fatalf("got %v", err)
		}
		if got := snapshot(t, m); got != "10.244.1.0-24=192.0.2.9" {
			t.Errorf("the other node's lease was touched: %s", got)
		}
	})
}

func TestStoreMadeAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemStore()
		for range 50 {
			m.PutRaw("10.244.3.0-24", `{"PublicIP":"192.0.2.9"}`, TTL)
		}
		k, log := testKeeper(t, m, "192.0.2.1", macA)
		stop := running(t, k)
		m.Fail(ErrUnavailable)
		settle(time.Second)
		m.mu.Lock()
		m.revision, m.compacted, m.log = 1, 0, nil
		clear(m.leases)
		m.mu.Unlock()
		m.Fail(nil)
		settle(time.Minute)
		if got := snapshot(t, m); got != "10.244.1.0-24=192.0.2.1" {
			t.Errorf("store: %s\n%s", got, log.String())
		}
		if log.count("history went back") != 1 {
			t.Errorf("log:\n%s", log.String())
		}
		settle(48 * time.Hour)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestOwnKeyDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemStore()
		k, log := testKeeper(t, m, "192.0.2.1", macA)
		stop := running(t, k)
		if err := m.DeleteLease(t.Context(), "10.244.1.0-24", Any); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		if got := snapshot(t, m); got != "10.244.1.0-24=192.0.2.1" {
			t.Fatalf("store: %s", got)
		}
		if log.count("level=ERROR") != 1 || log.count("our lease was deleted") != 1 || log.count("hold our subnet again") != 1 {
			t.Errorf("log:\n%s", log.String())
		}
		// Deleted, and taken by somebody else before we can look.
		m.mu.Lock()
		m.remove("10.244.1.0-24")
		m.put("10.244.1.0-24", []byte(`{"PublicIP":"192.0.2.9"}`), TTL)
		m.mu.Unlock()
		settle(time.Minute)
		if err := stop(); !errors.Is(err, ErrSubnetLost) {
			t.Fatalf("got %v", err)
		}
	})
}

func TestIncumbentDefendsItsLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemStore()
		a, logA := testKeeper(t, m, "192.0.2.1", macA)
		stopA := running(t, a)
		settle(time.Hour)
		b, _ := testKeeper(t, m, "192.0.2.1", macB)
		stopB := running(t, b)
		settle(5 * time.Second)
		err := stopB()
		if !errors.Is(err, ErrPublicIPInUse) || !strings.Contains(err.Error(), "--public-ip") || !strings.Contains(err.Error(), macA) || !strings.Contains(err.Error(), macB) {
			t.Fatalf("newcomer: got %v", err)
		}
		entries, _, _ := m.List(t.Context())
		if string(entries[0].Value) != valueOf(t, a.cfg.Attrs) {
			t.Errorf("the incumbent did not get its lease back: %s", entries[0].Value)
		}
		if s := a.Status(); !strings.Contains(s.Conflict, macB) || logA.count("two hosts have PublicIP") != 1 {
			t.Errorf("status %+v, log:\n%s", s, logA.String())
		}
		settle(10 * time.Minute)
		if s := a.Status(); s.Conflict != "" {
			t.Errorf("the conflict never ends: %s", s.Conflict)
		}
		if err := stopA(); err != nil {
			t.Fatal(err)
		}
	})
}

// A host that never yields, as a flannel node does when it renews, must not make us write at its pace.
func TestDefenceBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemStore()
		m.PutRaw("10.244.1.0-24", `{"PublicIP":"192.0.2.1"}`, Permanent)
		k, log := testKeeper(t, m, "192.0.2.1", macA)
		stop := running(t, k)
		settle(time.Minute)
		for range 600 { // ten minutes
			m.PutRaw("10.244.1.0-24", `{"PublicIP":"192.0.2.1","BackendType":"host-gw"}`, Permanent)
			settle(time.Second)
		}
		settle(2 * time.Minute)
		// Each foreign write postpones ours at most by the back-off, and is logged; what counts here
		// is that in the end ours is there, still reserved.
		entries, _, _ := m.List(t.Context())
		if string(entries[0].Value) != valueOf(t, k.cfg.Attrs) || !entries[0].Reserved {
			t.Errorf("store: %+v", entries[0])
		}
		if n := log.count("two hosts have PublicIP"); n > 30 {
			t.Errorf("%d error lines in ten minutes", n)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestGarbageOverOurLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemStore()
		k, log := testKeeper(t, m, "192.0.2.1", macA)
		stop := running(t, k)
		m.PutRaw("10.244.1.0-24", "garbage", TTL)
		settle(3 * time.Second)
		if got := snapshot(t, m); got != "10.244.1.0-24=192.0.2.1" || log.count("what is not a lease") != 1 {
			t.Errorf("store %s, log:\n%s", got, log.String())
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// A lease may be made to live for seconds, which tests of the whole daemon need.
func TestShortLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemStore()
		k, _ := testKeeper(t, m, "192.0.2.1", macA, func(c *KeeperConfig) { c.TTL, c.Margin = 10*time.Second, 4*time.Second })
		stop := running(t, k)
		for range 100 {
			settle(time.Second)
			left, err := m.TimeToLive(t.Context(), "10.244.1.0-24")
			if err != nil || left < 4*time.Second || left > 10*time.Second {
				t.Fatalf("%s left, %v", left, err)
			}
		}
		// Tried again often enough that a short outage does not cost the lease.
		m.Fail(ErrUnavailable)
		settle(6 * time.Second)
		m.Fail(nil)
		settle(time.Second)
		if got := snapshot(t, m); got != "10.244.1.0-24=192.0.2.1" {
			t.Errorf("store: %s", got)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestNewKeeperRefuses(t *testing.T) {
	network := mustConfig(t, three)
	for _, c := range []KeeperConfig{
		{Network: network, Attrs: vxlanAttrs(t, "192.0.2.1", macA), Margin: -time.Second},
		{Network: network, Attrs: vxlanAttrs(t, "192.0.2.1", macA), Margin: time.Minute, TTL: time.Minute},
		{Network: network, Attrs: vxlanAttrs(t, "192.0.2.1", macA), Margin: TTL},
		{Network: network, Margin: time.Hour},
		{Attrs: vxlanAttrs(t, "192.0.2.1", macA), Margin: time.Hour},
	} {
		if _, err := NewKeeper(c); err == nil {
			t.Errorf("took %+v", c)
		}
	}
}
