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

// Networks of both families and of IPv6 alone that leave three subnets of each.
const (
	threeDual = `{"Network":"10.244.0.0/16","SubnetMax":"10.244.3.0","EnableIPv6":true,"IPv6Network":"2001:db8:42::/56","IPv6SubnetMax":"2001:db8:42:3::","Backend":{"Type":"vxlan"}}`
	threeSix  = `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"2001:db8:42::/56","IPv6SubnetMax":"2001:db8:42:3::","Backend":{"Type":"vxlan"}}`
)

// testDual is a keeper of node n of a dual-stack network: 192.0.2.n and 2001:db8::n.
func testDual(t *testing.T, store Store, n int, change ...func(*KeeperConfig)) (*Keeper, *logBuffer) {
	t.Helper()
	change = append([]func(*KeeperConfig){func(c *KeeperConfig) {
		c.Network = mustConfig(t, threeDual)
		c.Attrs = dualAttrs(t, fmt.Sprintf("192.0.2.%d", n), fmt.Sprintf("2001:db8::%d", n))
	}}, change...)
	return testKeeper(t, store, "192.0.2.1", macA, change...)
}

// testSix is one of a network of IPv6 alone.
func testSix(t *testing.T, store Store, n int, change ...func(*KeeperConfig)) (*Keeper, *logBuffer) {
	t.Helper()
	change = append([]func(*KeeperConfig){func(c *KeeperConfig) {
		c.Network = mustConfig(t, threeSix)
		c.Attrs = Attrs{PublicIPv6: netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", n)), BackendType: BackendVXLAN, VNI6: vni(t, 1), MAC6: mac(t, macB)}
	}}, change...)
	return testKeeper(t, store, "192.0.2.1", macA, change...)
}

// keysOf is what lies in the store, as "10.244.1.0-24&2001:db8:42:1::-64=1" with the last number of the node's
// addresses, a reservation with "!".
func keysOf(t *testing.T, m *MemStore) string {
	t.Helper()
	entries, _, err := m.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		l, _ := ParseLease(e)
		a := l.Attrs.PublicIP
		if !a.IsValid() {
			a = l.Attrs.PublicIPv6
		}
		text := e.Key + "=?"
		if b := a.AsSlice(); len(b) > 0 {
			text = fmt.Sprintf("%s=%d", e.Key, b[len(b)-1])
		}
		if e.Reserved {
			text += "!"
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

func dualValue(t *testing.T, n int) string {
	return valueOf(t, dualAttrs(t, fmt.Sprintf("192.0.2.%d", n), fmt.Sprintf("2001:db8::%d", n)))
}

func TestAcquireBothFamilies(t *testing.T) {
	us, them := dualValue(t, 1), dualValue(t, 2)
	usFour := `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"be:e3:93:3d:62:d0"}}`
	const one, two, both12 = "10.244.1.0-24&2001:db8:42:1::-64", "10.244.2.0-24&2001:db8:42:2::-64", "10.244.1.0-24&2001:db8:42:2::-64"
	type kv struct {
		key, value string
		ttl        time.Duration
	}
	for _, test := range []struct {
		name      string
		there     []kv
		previous  string
		previous6 string
		after     string
	}{
		{"empty", nil, "", "", one + "=1"},
		{"our PublicIP", []kv{{two, us, TTL}}, "10.244.3.0/24", "2001:db8:42:3::/64", two + "=1"},
		{"our PublicIP, another PublicIPv6", []kv{{two, strings.Replace(us, "2001:db8::1", "2001:db8::9", 1), TTL}}, "", "", two + "=1"},
		{"our PublicIPv6, another PublicIP", []kv{{two, strings.Replace(us, "192.0.2.1", "192.0.2.2", 1), TTL}}, "", "", one + "=1 " + two + "=2"},
		{"a reservation stays one", []kv{{two, us, Permanent}}, "", "", two + "=1!"},
		{"a reservation made by hand", []kv{{two, `{"PublicIP":"192.0.2.1"}`, Permanent}}, "", "", two + "=1!"},
		{"from IPv4 alone: the half that there was stays", []kv{{"10.244.3.0-24", usFour, TTL}}, "", "", "10.244.3.0-24&2001:db8:42:1::-64=1"},
		{"from IPv4 alone, by the subnet file", nil, "10.244.3.0/24", "", "10.244.3.0-24&2001:db8:42:1::-64=1"},
		{"the IPv6 half does not fit", []kv{{"10.244.3.0-24&2001:db8:42:9::-64", us, TTL}}, "", "", "10.244.3.0-24&2001:db8:42:1::-64=1"},
		{"the IPv4 half does not fit", []kv{{"10.244.9.0-24&2001:db8:42:3::-64", us, TTL}}, "", "", "10.244.1.0-24&2001:db8:42:3::-64=1"},
		{"previous", nil, "10.244.3.0/24", "2001:db8:42:2::/64", "10.244.3.0-24&2001:db8:42:2::-64=1"},
		{"previous: the IPv6 half is taken", []kv{{"10.244.1.0-24&2001:db8:42:2::-64", them, TTL}}, "10.244.3.0/24", "2001:db8:42:2::/64",
			both12 + "=2 10.244.3.0-24&2001:db8:42:1::-64=1"},
		{"previous: the IPv4 half is taken, by one of IPv4 alone", []kv{{"10.244.3.0-24", `{"PublicIP":"192.0.2.2"}`, TTL}}, "10.244.3.0/24", "2001:db8:42:2::/64",
			both12 + "=1 10.244.3.0-24=2"},
		{"each half is free by itself", []kv{{"10.244.1.0-24", `{"PublicIP":"192.0.2.2"}`, TTL}, {"0.0.0.0-0&2001:db8:42::-62", `{"PublicIPv6":"2001:db8::3"}`, TTL}, {"10.244.3.0-24&2001:db8:42:4::-62", them, TTL}}, "", "", "exhausted"},
		{"a broken value occupies its key", []kv{{both12, "garbage", TTL}}, "", "", ""},
		{"ours, and another's with one half of it", []kv{{one, us, TTL}, {both12, them, TTL}}, "", "", both12 + "=2 10.244.2.0-24&2001:db8:42:1::-64=1"},
		{"ours, and a reservation with one half of it", []kv{{one, us, TTL}, {both12, them, Permanent}}, "", "", one + "=1 " + both12 + "=2!"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := NewMemStore()
				for _, e := range test.there {
					m.PutRaw(e.key, e.value, e.ttl)
				}
				k, _ := testDual(t, m, 1, func(c *KeeperConfig) {
					if test.previous != "" {
						c.Previous = netip.MustParsePrefix(test.previous)
					}
					if test.previous6 != "" {
						c.Previous6 = netip.MustParsePrefix(test.previous6)
					}
				})
				l, err := k.Acquire(t.Context())
				if test.after == "exhausted" {
					if !errors.Is(err, ErrExhausted) || errors.Is(err, errContested) || !strings.Contains(err.Error(), "IPv6SubnetMin") {
						t.Errorf("got %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if got := keysOf(t, m); test.after != "" && got != test.after {
					t.Errorf("store afterwards:\n got %s\nwant %s", got, test.after)
				}
				entries, _, _ := m.List(t.Context())
				for _, e := range entries {
					if e.Key != l.Key && e.Key == LeaseKey(l.Subnet, l.Subnet6) || e.Key == l.Key && (string(e.Value) != us || e.Revision != l.Revision) {
						t.Errorf("the store has %s=%s, the lease is %+v", e.Key, e.Value, l)
					}
				}
				if !k.cfg.Network.FitsLease(l.Subnet, l.Subnet6) {
					t.Errorf("took %+v", l)
				}
			})
		})
	}
}

// Where there is no IPv4, flannel writes PublicIP 0.0.0.0 for every node, and takes each for itself: nodes are told
// apart by their PublicIPv6.
func TestAcquireIPv6Alone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemStore()
		m.PutRaw("10.244.1.0-24", `{"PublicIP":"192.0.2.9"}`, TTL) // takes nothing away
		for _, n := range []int{1, 2, 1, 2} {
			k, _ := testSix(t, m, n)
			l, err := k.Acquire(t.Context())
			if want := fmt.Sprintf("0.0.0.0-0&2001:db8:42:%d::-64", n); err != nil || l.Key != want || l.Subnet.IsValid() {
				t.Fatalf("%+v, %v, want %s", l, err, want)
			}
		}
		if got, want := keysOf(t, m), "0.0.0.0-0&2001:db8:42:1::-64=1 0.0.0.0-0&2001:db8:42:2::-64=2 10.244.1.0-24=9"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		k, _ := testSix(t, m, 3)
		stop := running(t, k)
		settle(30 * 24 * time.Hour)
		if err := m.DeleteLease(t.Context(), k.Status().Lease.Key, Any); err != nil {
			t.Fatal(err)
		}
		settle(time.Minute)
		if got, want := keysOf(t, m), "0.0.0.0-0&2001:db8:42:3::-64=3"; got != want {
			t.Errorf("after a month, and a deletion: %s, want %s", got, want)
		}
		m.PutRaw("0.0.0.0-0&2001:db8:42:3::-64", strings.Replace(flannelSix, "2001:db8::2", "2001:db8::4", 1), TTL)
		settle(time.Second)
		if err := stop(); !errors.Is(err, ErrSubnetLost) {
			t.Errorf("another node's lease at our key: %v", err)
		}
	})
}

func TestKeeperNeedsAnAddressOfEachFamily(t *testing.T) {
	for config, attrs := range map[string]Attrs{
		threeDual: vxlanAttrs(t, "192.0.2.1", macA),
		threeSix:  {PublicIPv6: netip.MustParseAddr("::ffff:192.0.2.1"), BackendType: BackendUDP},
	} {
		_, err := NewKeeper(KeeperConfig{Store: NewMemStore(), Network: mustConfig(t, config), Attrs: attrs})
		if err == nil || !strings.Contains(err.Error(), "--public-ipv6") {
			t.Errorf("%s: %v", config, err)
		}
	}
}

// Two nodes list at the same time and create keys that share a subnet. The one that comes second yields.
func TestAcquireLostRaceForOneHalf(t *testing.T) {
	for _, test := range []struct{ faster, want string }{
		{"10.244.3.0-24&2001:db8:42:1::-64", "10.244.1.0-24&2001:db8:42:2::-64"},
		{"10.244.1.0-24&2001:db8:42:3::-64", "10.244.2.0-24&2001:db8:42:1::-64"},
		{"10.244.1.0-24", "10.244.2.0-24&2001:db8:42:1::-64"},
	} {
		m := NewMemStore()
		k, _ := testDual(t, &racer{m, []func(){func() { m.PutRaw(test.faster, dualValue(t, 2), TTL) }}}, 1)
		l, err := k.Acquire(t.Context())
		if err != nil || l.Key != test.want {
			t.Errorf("beside %s: got %s, %v, want %s", test.faster, l.Key, err, test.want)
		}
		if got := keysOf(t, m); strings.Count(got, "=1") != 1 {
			t.Errorf("the store has %s", got)
		}
	}
	// The first one stays: what it sees is younger.
	m := NewMemStore()
	k, _ := testDual(t, &racer{m, []func(){func() {}, func() {
		m.PutRaw("10.244.1.0-24&2001:db8:42:3::-64", dualValue(t, 2), TTL)
	}}}, 1)
	if l, err := k.Acquire(t.Context()); err != nil || l.Key != "10.244.1.0-24&2001:db8:42:1::-64" {
		t.Errorf("got %s, %v", l.Key, err)
	}
}

// A crowd of nodes that all start at once shares nothing.
func TestManyAcquireAtOnce(t *testing.T) {
	m := NewMemStore()
	const wide = `{"Network":"10.244.0.0/16","SubnetMax":"10.244.12.0","EnableIPv6":true,"IPv6Network":"2001:db8:42::/56","IPv6SubnetMax":"2001:db8:42:c::","Backend":{"Type":"vxlan"}}`
	type result struct {
		lease Lease
		err   error
	}
	results := make(chan result)
	for n := range 12 {
		k, _ := testDual(t, m, n+1, func(c *KeeperConfig) { c.Network, c.Pick = mustConfig(t, wide), nil })
		go func() {
			l, err := k.Acquire(t.Context())
			results <- result{l, err}
		}()
	}
	seen := make(map[netip.Prefix]bool)
	for range 12 {
		r := <-results
		if r.err != nil || seen[r.lease.Subnet] || seen[r.lease.Subnet6] {
			t.Errorf("%s, %v", r.lease.Key, r.err)
		}
		seen[r.lease.Subnet], seen[r.lease.Subnet6] = true, true
	}
	if got := keysOf(t, m); strings.Count(got, "=") != 12 {
		t.Errorf("the store has %s", got)
	}
}

// A network that is full only while somebody is about to take his lease back is waited for; one in which two share
// a subnet for good is not for ever.
func TestAcquireWaitsForTheContested(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemStore()
		for key, n := range map[string]int{"10.244.1.0-24&2001:db8:42:1::-64": 2, "10.244.2.0-24&2001:db8:42:2::-64": 3, "10.244.3.0-24&2001:db8:42:2::-64": 4} {
			m.PutRaw(key, dualValue(t, n), TTL)
		}
		k, _ := testDual(t, m, 1)
		begun := time.Now()
		if _, err := k.Acquire(t.Context()); !errors.Is(err, ErrExhausted) || time.Since(begun) > time.Minute {
			t.Fatalf("after %s: %v", time.Since(begun), err)
		}
		time.AfterFunc(50*time.Millisecond, func() { _ = m.DeleteLease(context.Background(), "10.244.2.0-24&2001:db8:42:2::-64", Any) })
		if l, err := k.Acquire(t.Context()); err != nil || l.Key != "10.244.2.0-24&2001:db8:42:3::-64" {
			t.Errorf("%s, %v", l.Key, err)
		}
	})
}

// While we hold our lease, somebody makes one that shares a subnet with it. It is said for as long as it lasts.
func TestRivalIsSaid(t *testing.T) {
	for _, key := range []string{"10.244.2.0-24&2001:db8:42:1::-64", "10.244.1.0-24&2001:db8:42:2::-64", "10.244.1.0-24", "0.0.0.0-0&2001:db8:42::-60"} {
		synctest.Test(t, func(t *testing.T) {
			m := NewMemStore()
			k, log := testDual(t, m, 1)
			stop := running(t, k)
			m.PutRaw("10.244.3.0-24&2001:db8:42:3::-64", dualValue(t, 3), TTL)
			settle(time.Minute)
			if s := k.Status(); s.Conflict != "" {
				t.Fatalf("without one: %s", s.Conflict)
			}
			for range 2 {
				m.PutRaw(key, dualValue(t, 2), TTL)
				settle(time.Second)
			}
			if s := k.Status(); !strings.Contains(s.Conflict, key) || !strings.Contains(s.Conflict, "192.0.2.2") || log.count("level=ERROR") != 1 {
				t.Errorf("status %q\n%s", s.Conflict, log.String())
			}
			m.Compact() // and a list says the same as the watch
			settle(48 * time.Hour)
			if s := k.Status(); s.Conflict != "" || log.count("level=ERROR") != 1 || s.Lease.Key != "10.244.1.0-24&2001:db8:42:1::-64" {
				t.Errorf("when it has run out: %+v\n%s", s, log.String())
			}
			if err := stop(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Our lease ran out while we could not renew it, and somebody has one half of it now: it is lost.
func TestRetakenLeaseYields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemStore()
		k, _ := testDual(t, m, 1)
		stop := running(t, k)
		m.Fail(ErrUnavailable)
		settle(25 * time.Hour)
		m.mu.Lock()
		m.put("10.244.2.0-24&2001:db8:42:1::-64", []byte(dualValue(t, 2)), TTL)
		m.mu.Unlock()
		m.Fail(nil)
		settle(10 * time.Minute)
		if err := stop(); !errors.Is(err, ErrSubnetLost) || !strings.Contains(err.Error(), "192.0.2.2") {
			t.Errorf("got %v", err)
		}
		if got, want := keysOf(t, m), "10.244.2.0-24&2001:db8:42:1::-64=2"; got != want {
			t.Errorf("left %s, want %s", got, want)
		}
	})
}

func TestMemoryOfBothFamilies(t *testing.T) {
	m := NewMemStore()
	k, _ := testDual(t, m, 1)
	own, err := k.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	memory := memoryOf(t, m, own)
	memory.Config = []byte(threeDual)
	text := jsonText(t, memory)
	var back Memory
	if err := back.UnmarshalJSON([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if back.Subnet() != own.Subnet || back.Subnet6() != own.Subnet6 || !back.Subnet6().IsValid() {
		t.Errorf("read back %+v", back.Lease)
	}
	if err := back.Holds(memory.Prefix, own.Attrs, time.Now()); err != nil {
		t.Error(err)
	}
	back.Config = []byte(three)
	if err := back.Holds(memory.Prefix, own.Attrs, time.Now()); err == nil || !strings.Contains(err.Error(), "does not fit") {
		t.Errorf("in a network of IPv4 alone: %v", err)
	}
	other := own.Attrs
	other.MAC6[5]++
	if err := back.Holds(memory.Prefix, other, time.Now()); err == nil {
		t.Error("another VtepMAC of IPv6 counts as ours")
	}
	var none *Memory
	if none.Subnet6().IsValid() {
		t.Error("no memory has a subnet")
	}
}

func jsonText(t *testing.T, m *Memory) string {
	t.Helper()
	b, err := m.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
