package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"muslin/tunnel/racetest"
)

// memoryOf is what a node with a lease remembers.
func memoryOf(t *testing.T, m *MemStore, own Lease) *Memory {
	t.Helper()
	entries, _, err := m.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	memory := &Memory{Prefix: "/coreos.com/network", Config: json.RawMessage(three), Lease: own}
	for _, e := range entries {
		if l, err := ParseLease(e); err == nil {
			memory.Leases = append(memory.Leases, l)
		}
	}
	return memory
}

func TestMemoryFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemStore()
		m.PutRaw("10.244.2.0-24", vxlanValue("192.0.2.2", 1, macB), TTL)
		m.PutRaw("10.244.3.0-24", "not a lease", TTL)
		k, _ := testKeeper(t, m, "192.0.2.1", macA)
		own, err := k.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "network.json")
		if got, err := ReadMemory(path); got != nil || err != nil {
			t.Errorf("a file that is not there: %v, %v", got, err)
		}
		content, err := json.Marshal(memoryOf(t, m, own))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time over the first, and over what a killed writer left
			if err := WriteMemory(path, content); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(filepath.Dir(path), ".network.json.new"), []byte(strings.Repeat("x", 10_000)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := ReadMemory(path)
		if err != nil {
			t.Fatal(err)
		}
		if got.Lease.Key != own.Key || got.Lease.Revision != own.Revision || !got.Lease.Expires.Equal(own.Expires) ||
			!got.Lease.Attrs.Equal(own.Attrs) || got.Prefix != "/coreos.com/network" || !sameJSON(got.Config, json.RawMessage(three)) {
			t.Errorf("read %+v, want our lease %+v", got, own)
		}
		w := NewWatcher(WatcherConfig{Store: m, Node: testNode(t, BackendVXLAN), Known: got.Entries()})
		if peers := peersOf(w.Table()); len(peers) != 1 || !strings.Contains(peers[0], "192.0.2.2") {
			t.Errorf("peers from the memory: %v", peers)
		}
		// The leases, with the config, are what --peers-file takes.
		var file struct{ Leases json.RawMessage }
		if err := json.Unmarshal(content, &file); err != nil {
			t.Fatal(err)
		}
		peersFile := filepath.Join(t.TempDir(), "peers.json")
		if err := os.WriteFile(peersFile, file.Leases, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := NewStatic(StaticConfig{Path: peersFile, PublicIP: own.Attrs.PublicIP}); err != nil || s.Own().Subnet != own.Subnet {
			t.Errorf("as a peers file: %v", err)
		}
	})
}

func TestMemoryThatCannotBeRead(t *testing.T) {
	for name, content := range map[string]string{
		"empty":                  "",
		"cut off":                `{"version":1,"prefix":"/x","conf`,
		"another version":        `{"version":2,"prefix":"/x","lease":{"key":"10.244.1.0-24"},"leases":{"10.244.1.0-24":{"PublicIP":"192.0.2.1"}}}`,
		"no leases":              `{"version":1,"prefix":"/x","lease":{"key":"10.244.1.0-24"}}`,
		"own lease missing":      `{"version":1,"prefix":"/x","lease":{"key":"10.244.9.0-24"},"leases":{"10.244.1.0-24":{"PublicIP":"192.0.2.1"}}}`,
		"a lease that is broken": `{"version":1,"prefix":"/x","lease":{"key":"10.244.1.0-24"},"leases":{"10.244.1.0-24":{"PublicIP":"192.0.2.1"},"10.244.2.0-24":{}}}`,
	} {
		path := filepath.Join(t.TempDir(), "network.json")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if m, err := ReadMemory(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: read %+v, error %v; want one that names the file", name, m, err)
		}
	}
}

func TestMemoryHolds(t *testing.T) {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	attrs := vxlanAttrs(t, "192.0.2.1", macA)
	const prefix = "/coreos.com/network"
	for _, c := range []struct {
		name   string
		change func(*Memory)
		want   string // in the reason; "": it holds
	}{
		{"as it is", func(*Memory) {}, ""},
		{"a reservation", func(m *Memory) { m.Lease.Reserved, m.Lease.Expires = true, time.Time{} }, ""},
		{"expired", func(m *Memory) { m.Lease.Expires = now }, "expired"},
		{"another prefix", func(m *Memory) { m.Prefix = "/other" }, "/other"},
		{"another MAC", func(m *Memory) { m.Lease.Attrs = vxlanAttrs(t, "192.0.2.1", macB) }, macB},
		{"another address", func(m *Memory) { m.Lease.Attrs = vxlanAttrs(t, "192.0.2.7", macA) }, "192.0.2.7"},
		{"a subnet outside the config", func(m *Memory) { m.Lease.Subnet = testNode(t, BackendUDP).Network }, "does not fit"},
		{"a broken config", func(m *Memory) { m.Config = json.RawMessage(`{"Network":7}`) }, "Network"},
	} {
		m := &Memory{Prefix: prefix, Config: json.RawMessage(three), Lease: Lease{
			Key: "10.244.1.0-24", Subnet: testNode(t, BackendVXLAN).Subnet, Attrs: attrs, Expires: now.Add(time.Second)}}
		c.change(m)
		err := m.Holds(prefix, attrs, now)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: Holds = %v, want %q", c.name, err, c.want)
		}
	}
}

// remembering starts Run on a lease that another keeper had, and meanwhile somebody did something.
func remembering(t *testing.T, away bool, meanwhile func(m *MemStore, own Lease)) (m *MemStore, k *Keeper, log *logBuffer, stop func() error) {
	t.Helper()
	m = NewMemStore()
	before, _ := testKeeper(t, m, "192.0.2.1", macA)
	own, err := before.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	settle(time.Hour)
	meanwhile(m, own)
	k, log = testKeeper(t, m, "192.0.2.1", macA)
	k.Remember(own, away)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx) }()
	synctest.Wait()
	return m, k, log, func() error {
		t.Helper()
		synctest.Wait()
		cancel()
		return <-ended
	}
}

// A lease that is as it was is taken up without a write, and renewed when it is due.
func TestRemember(t *testing.T) {
	for _, away := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			m, k, _, stop := remembering(t, away, func(*MemStore, Lease) {})
			own := k.Status().Lease
			_, revision, err := m.List(t.Context())
			if err != nil || revision != own.Revision {
				t.Errorf("the store's revision is %d, %v, want %d: nothing was written", revision, err, own.Revision)
			}
			settle(23 * time.Hour)
			if now := k.Status().Lease; now.Revision == own.Revision {
				t.Error("not renewed in time")
			}
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRememberWhatHasChanged(t *testing.T) {
	for _, c := range []struct {
		name      string
		away      bool
		meanwhile func(m *MemStore, own Lease)
		want      error  // of Run
		store     string // afterwards
		conflict  bool
	}{
		{"renewed by the keeper before us", true, func(m *MemStore, own Lease) {
			m.PutRaw(own.Key, valueOf(t, own.Attrs), TTL)
		}, nil, "10.244.1.0-24=192.0.2.1", false},
		{"made a reservation", true, func(m *MemStore, own Lease) {
			m.PutRaw(own.Key, valueOf(t, own.Attrs), Permanent)
		}, nil, "10.244.1.0-24=192.0.2.1!", false},
		{"deleted", true, func(m *MemStore, own Lease) {
			m.DeleteLease(context.Background(), own.Key, Any)
		}, nil, "10.244.1.0-24=192.0.2.1", false},
		{"another node's now", true, func(m *MemStore, own Lease) {
			m.PutRaw(own.Key, vxlanValue("192.0.2.7", 1, macB), TTL)
		}, ErrOutdated, "10.244.1.0-24=192.0.2.7", false},
		{"another host has our PublicIP", true, func(m *MemStore, own Lease) {
			m.PutRaw(own.Key, vxlanValue("192.0.2.1", 1, macB), TTL)
		}, ErrOutdated, "10.244.1.0-24=192.0.2.1", false},
		{"another node's, though we were never away", false, func(m *MemStore, own Lease) {
			m.PutRaw(own.Key, vxlanValue("192.0.2.7", 1, macB), TTL)
		}, ErrSubnetLost, "10.244.1.0-24=192.0.2.7", false},
		{"another host has our PublicIP, and came after us", false, func(m *MemStore, own Lease) {
			m.PutRaw(own.Key, vxlanValue("192.0.2.1", 1, macB), TTL)
		}, nil, "10.244.1.0-24=192.0.2.1", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, k, log, stop := remembering(t, c.away, c.meanwhile)
				settle(2 * time.Second)
				err := stop()
				if !errors.Is(err, c.want) || errors.Is(err, ErrOutdated) != (c.want == ErrOutdated) {
					t.Errorf("Run ends with %v, want %v", err, c.want)
				}
				if got := snapshot(t, m); got != c.store {
					t.Errorf("the store has %s, want %s", got, c.store)
				}
				if (k.Status().Conflict != "") != c.conflict {
					t.Errorf("conflict %q, want one: %v; log:\n%s", k.Status().Conflict, c.conflict, log)
				}
				if c.want == nil && k.Status().LastError != "" {
					t.Errorf("last error %q", k.Status().LastError)
				}
			})
		})
	}
}

// What was seen in the store once is no longer only remembered: later it is lost as any lease is.
func TestRememberedOnlyUntilSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, k, _, stop := remembering(t, true, func(*MemStore, Lease) {})
		m.PutRaw(k.Status().Lease.Key, vxlanValue("192.0.2.7", 1, macB), TTL)
		if err := stop(); !errors.Is(err, ErrSubnetLost) || errors.Is(err, ErrOutdated) {
			t.Errorf("Run ends with %v, want ErrSubnetLost alone", err)
		}
	})
}

// A keeper that was stopped can be started again, and has missed nothing.
func TestRunAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemStore()
		k, _ := testKeeper(t, m, "192.0.2.1", macA)
		if err := running(t, k)(); err != nil {
			t.Fatal(err)
		}
		m.DeleteLease(t.Context(), k.Status().Lease.Key, Any)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- k.Run(ctx) }()
		settle(time.Second)
		if got := snapshot(t, m); got != "10.244.1.0-24=192.0.2.1" {
			t.Errorf("the store has %q", got)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// A node reads its memory at each start: of a large network, too, that takes no time to speak of.
func TestReadingManyLeasesIsLinear(t *testing.T) {
	fastest := func(n int) time.Duration {
		leases := make([]Lease, n)
		for i := range leases {
			subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
			value := vxlanValue(fmt.Sprintf("172.16.%d.%d", i>>8, i&255), 1, macA)
			attrs, err := DecodeAttrs([]byte(value))
			if err != nil {
				t.Fatal(err)
			}
			leases[i] = Lease{Key: Key(subnet), Subnet: subnet, Attrs: attrs}
		}
		text, err := MarshalPeersFile(leases)
		if err != nil {
			t.Fatal(err)
		}
		least := time.Hour
		for range 3 {
			began := time.Now()
			if entries, err := ParsePeersFile(text); err != nil || len(entries) != n {
				t.Fatalf("%d entries of %d, %v", len(entries), n, err)
			}
			least = min(least, time.Since(began))
		}
		return least
	}
	n := racetest.Rounds(2000, 500)
	few, many := fastest(n), fastest(8*n)
	t.Logf("%d leases: %v, %d: %v", n, few, 8*n, many)
	if many > 24*few {
		t.Errorf("8 times the leases take %.0f times as long", float64(many)/float64(few))
	}
}
