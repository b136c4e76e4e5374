package lease

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func udpAttrs(t *testing.T, ip string) Attrs {
	a := vxlanAttrs(t, ip, macA)
	return Attrs{PublicIP: a.PublicIP, BackendType: BackendUDP}
}

// What two hosts with one PublicIP write may differ or not: a udp lease names nothing else, and a cloned
// VTEP has its original's MAC. Either way the incumbent stays, however often the other one is started.
func TestNewcomerNeverWins(t *testing.T) {
	for _, test := range []struct {
		name     string
		ours     Attrs
		newcomer Attrs
	}{
		{"another MAC", vxlanAttrs(t, "192.0.2.1", macA), vxlanAttrs(t, "192.0.2.1", macB)},
		{"cloned MAC", vxlanAttrs(t, "192.0.2.1", macA), vxlanAttrs(t, "192.0.2.1", macA)},
		{"udp", udpAttrs(t, "192.0.2.1"), udpAttrs(t, "192.0.2.1")},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := NewMemStore()
				a, log := testKeeper(t, m, "192.0.2.1", macA, func(c *KeeperConfig) { c.Attrs = test.ours })
				stop := running(t, a)
				settle(time.Hour)
				if s := a.Status(); s.Conflict != "" {
					t.Fatalf("a conflict from the start: %s", s.Conflict)
				}
				for round := range 6 { // as a service manager does
					b, _ := testKeeper(t, m, "192.0.2.1", macB, func(c *KeeperConfig) { c.Attrs = test.newcomer })
					begun := time.Now()
					if _, err := b.Acquire(t.Context()); err != nil {
						t.Fatal(err)
					}
					ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
					err := b.Run(ctx)
					cancel()
					if !errors.Is(err, ErrPublicIPInUse) || !strings.Contains(err.Error(), "--public-ip") {
						t.Fatalf("round %d: got %v", round, err)
					}
					if took := time.Since(begun); took > defendMost+time.Second {
						t.Errorf("round %d: the newcomer gave way after %s", round, took)
					}
					if s := a.Status(); !strings.Contains(s.Conflict, "192.0.2.1") || !strings.Contains(s.Conflict, "--public-ip") {
						t.Errorf("round %d: the incumbent says %q", round, s.Conflict)
					}
					settle(2 * time.Second)
				}
				if n := log.count("two hosts have PublicIP"); n < 1 || n > 2 {
					t.Errorf("%d lines about it in a minute:\n%s", n, log.String())
				}
				entries, _, _ := m.List(t.Context())
				if len(entries) != 1 || string(entries[0].Value) != valueOf(t, a.cfg.Attrs) || entries[0].Revision != a.Status().Lease.Revision {
					t.Errorf("the incumbent does not have its lease: %v", entries)
				}
				settle(10 * time.Minute)
				if s := a.Status(); s.Conflict != "" {
					t.Errorf("the conflict never ends: %s", s.Conflict)
				}
				settle(48 * time.Hour)
				if s := a.Status(); s.Conflict != "" || time.Until(s.Lease.Expires) < 50*time.Minute {
					t.Errorf("two days later: %+v", s)
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// A keeper beside which a flanneld of the same host keeps the same lease: what that writes is no conflict if it is what
// both write, and is written over otherwise, from the first moment on.
func TestBesideFlannel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemStore()
		keeper := func() (*Keeper, *logBuffer) {
			return testKeeper(t, m, "192.0.2.1", macA, func(c *KeeperConfig) { c.Beside = true })
		}
		k, _ := keeper()
		put := func(hw string) {
			t.Helper()
			if _, err := m.PutLease(t.Context(), "10.244.1.0-24", []byte(valueOf(t, vxlanAttrs(t, "192.0.2.1", hw))), TTL, Any); err != nil {
				t.Fatal(err)
			}
		}
		stop := running(t, k) // a new lease; then a newcomer's, taken over
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		k, log := keeper()
		stop = running(t, k)
		put(macA)
		settle(10 * time.Hour)
		put(macA)
		settle(time.Second)
		if s := k.Status(); s.Conflict != "" || s.LastError != "" || time.Until(s.Lease.Expires) < 23*time.Hour {
			t.Errorf("beside one that renews it: %+v\n%s", s, log.String())
		}
		k, log = keeper()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		stop = running(t, k)
		put(macB)
		settle(time.Second)
		entries, _, _ := m.List(t.Context())
		if len(entries) != 1 || string(entries[0].Value) != valueOf(t, vxlanAttrs(t, "192.0.2.1", macA)) {
			t.Errorf("after another MAC: %v", entries)
		}
		if s := k.Status(); !strings.Contains(s.Conflict, "rescue --undo") || log.count("flanneld") != 1 {
			t.Errorf("%+v\n%s", s, log.String())
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// Two incumbents, each long past its newcomer's time, as after a host was cloned while it ran.
func TestTwoIncumbentsOfOneValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemStore()
		udp := func(c *KeeperConfig) { c.Attrs = udpAttrs(t, "192.0.2.1") }
		a, logA := testKeeper(t, m, "192.0.2.1", macA, udp)
		stopA := running(t, a)
		m.Fail(ErrUnavailable) // a does not hear of the newcomer in time
		settle(time.Second)
		m.mu.Lock()
		m.put("10.244.1.0-24", []byte(valueOf(t, udpAttrs(t, "192.0.2.1"))), TTL)
		m.mu.Unlock()
		m.Fail(nil)
		settle(time.Minute)
		if s := a.Status(); s.Conflict == "" || logA.count("level=ERROR") != 1 {
			t.Fatalf("not noticed: %+v\n%s", s, logA.String())
		}
		b, _ := testKeeper(t, m, "192.0.2.1", macA, udp)
		if _, err := b.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.reusedAt = time.Time{}
		ctx, cancel := context.WithCancel(t.Context())
		endedB := make(chan error, 1)
		go func() { endedB <- b.Run(ctx) }()
		_, before, _ := m.List(t.Context())
		settle(time.Hour)
		_, after, _ := m.List(t.Context())
		writes := after - before
		if writes > 2*3600/int64(defendMost.Seconds())+10 {
			t.Errorf("%d writes in an hour", writes)
		}
		if a.Status().Conflict == "" || b.Status().Conflict == "" {
			t.Errorf("status: %+v and %+v", a.Status(), b.Status())
		}
		cancel()
		if n := logA.count("level=ERROR"); n > 65 {
			t.Errorf("%d error lines in an hour", n)
		}
		if err := errors.Join(stopA(), <-endedB); err != nil {
			t.Fatal(err)
		}
	})
}

// None of these is another host.
func TestNoConflict(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(t *testing.T, m *MemStore, k *Keeper)
	}{
		{"reserve, and take that back", func(t *testing.T, m *MemStore, k *Keeper) {
			for _, ttl := range []time.Duration{Permanent, TTL} {
				if _, err := m.PutLease(t.Context(), k.Status().Lease.Key, []byte(valueOf(t, k.cfg.Attrs)), ttl, Any); err != nil {
					t.Fatal(err)
				}
				settle(time.Second)
			}
		}},
		{"release", func(t *testing.T, m *MemStore, k *Keeper) {
			if err := m.DeleteLease(t.Context(), k.Status().Lease.Key, Any); err != nil {
				t.Fatal(err)
			}
		}},
		{"an outage at the time of the renewal", func(t *testing.T, m *MemStore, k *Keeper) {
			m.Fail(ErrUnavailable)
			settle(23*time.Hour + time.Minute)
			m.PutRaw(k.Status().Lease.Key, valueOf(t, k.cfg.Attrs), TTL) // a write that was done, but not answered
			m.Fail(nil)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := NewMemStore()
				k, log := testKeeper(t, m, "192.0.2.1", macA)
				stop := running(t, k)
				test.do(t, m, k)
				settle(2 * time.Minute)
				if s := k.Status(); s.Conflict != "" || s.LastError != "" || log.count("two hosts") != 0 {
					t.Errorf("%+v\n%s", s, log.String())
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				// The same host again, soon: the old process is gone.
				for i := range 3 {
					k, log := testKeeper(t, m, "192.0.2.1", macA)
					stop := running(t, k)
					settle(10 * time.Second)
					if s := k.Status(); s.Conflict != "" || log.count("level=ERROR") != 0 {
						t.Errorf("restart %d: %+v\n%s", i, s, log.String())
					}
					if err := stop(); err != nil {
						t.Fatal(err)
					}
				}
			})
		})
	}
}

// A store may come back with another history, at any revision: our lease must be in it again, and the
// status must not promise more than the store has.
func TestStoreSetBack(t *testing.T) {
	type restored struct {
		revision int64 // of the store
		entry    int64 // of our key; 0: it is missing
	}
	for _, r := range []restored{{1, 0}, {2, 0}, {3, 0}, {4, 0}, {50, 0}, {2, 2}, {3, 2}, {3, 3}, {10, 2}, {10, 3}} {
		t.Run(fmt.Sprintf("revision %d, key %d", r.revision, r.entry), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := NewMemStore()
				k, log := testKeeper(t, m, "192.0.2.1", macA)
				stop := running(t, k)
				key := k.Status().Lease.Key
				settle(23*time.Hour + time.Second)
				if got := k.Status().Lease.Revision; got != 3 {
					t.Fatalf("revision %d after one renewal: the test counts on 3", got)
				}
				m.Fail(ErrUnavailable)
				settle(10 * time.Second)
				m.mu.Lock()
				m.revision, m.compacted, m.log = r.revision, 0, nil
				if l := m.leases[key]; r.entry == 0 {
					l.timer.Stop()
					delete(m.leases, key)
				} else {
					l.entry.Revision = r.entry
					if r.entry < 3 { // of the lease before its renewal
						l.expires = time.Now().Add(time.Hour)
						l.timer.Reset(time.Hour)
					}
				}
				m.mu.Unlock()
				m.Fail(nil)
				for i := range 140 {
					if i < 40 {
						settle(time.Minute)
					} else {
						settle(time.Hour)
					}
					if got := snapshot(t, m); got != "10.244.1.0-24=192.0.2.1" {
						t.Fatalf("store: %q\n%s", got, log.String())
					}
					left, _ := m.TimeToLive(t.Context(), key)
					if s := k.Status(); s.LastError != "" || s.Conflict != "" || time.Until(s.Lease.Expires) > left+time.Second {
						t.Fatalf("%+v, but the store has %s left\n%s", s, left, log.String())
					}
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// The restored store is of a time when another node had our subnet. That node has gone since, or it has another
// subnet now; what is written later than our lease counts, as ever.
func TestStoreSetBackToAnotherHolder(t *testing.T) {
	for _, test := range []struct {
		name  string
		entry int64 // the revision of the other node's lease; ours is 5
		want  string
	}{
		{"of the past", 2, "10.244.1.0-24=192.0.2.1"},
		{"of a newcomer after the restore", 4, "10.244.1.0-24=192.0.2.1"},
		{"newer than ours", 6, "10.244.1.0-24=192.0.2.9"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := NewMemStore()
				for range 3 { // up to revision 4
					m.PutRaw("10.244.3.0-24", `{"PublicIP":"192.0.2.3"}`, TTL)
				}
				k, log := testKeeper(t, m, "192.0.2.1", macA)
				stop := running(t, k)
				if got := k.Status().Lease.Revision; got != 5 {
					t.Fatalf("our revision is %d: the test counts on 5", got)
				}
				settle(time.Hour)
				m.Fail(ErrUnavailable)
				settle(10 * time.Second)
				m.mu.Lock()
				clear(m.leases)
				m.revision, m.compacted, m.log = test.entry-1, 0, nil
				m.put("10.244.1.0-24", []byte(`{"PublicIP":"192.0.2.9"}`), TTL)
				m.mu.Unlock()
				m.Fail(nil)
				settle(watchRetryMost + time.Second)
				if got := snapshot(t, m); got != test.want {
					t.Errorf("store: %s, want %s\n%s", got, test.want, log.String())
				}
				err := stop()
				if lost := test.want != "10.244.1.0-24=192.0.2.1"; errors.Is(err, ErrSubnetLost) != lost {
					t.Errorf("got %v", err)
				}
				if s := k.Status(); err == nil && (!strings.Contains(s.Conflict, "set back") || !strings.Contains(s.Conflict, "192.0.2.9")) {
					t.Errorf("status %+v", s)
				}
			})
		})
	}
}

// Peers send to the wrong node until our lease is back: the first time that is at once.
func TestFirstDefenceIsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemStore()
		k, _ := testKeeper(t, m, "192.0.2.1", macA)
		stop := running(t, k)
		settle(time.Hour)
		for _, after := range []time.Duration{0, defendLeast, 2 * defendLeast, 4 * defendLeast} {
			m.PutRaw("10.244.1.0-24", valueOf(t, vxlanAttrs(t, "192.0.2.1", macB)), TTL)
			began := time.Now()
			for {
				entries, _, _ := m.List(t.Context())
				if string(entries[0].Value) == valueOf(t, k.cfg.Attrs) {
					break
				}
				settle(time.Millisecond)
			}
			if took := time.Since(began); took < after || took > after+10*time.Millisecond {
				t.Errorf("written back after %s, want %s", took, after)
			}
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
}
