package lease

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"muslin/encap"
	"muslin/tunnel/fib"
)

// What nodes of IPv4, of both families and of IPv6 alone make of the same leases.
func TestWatcherPeersOfBothFamilies(t *testing.T) {
	dual := func(n string) string { return dualOf("192.0.2."+n, "2001:db9::"+n, 1, macB) }
	entries := map[string]string{
		"10.244.1.0-24&2001:db8:1::-64":    dual("1"), // ours, of whichever halves we have
		"10.244.2.0-24&2001:db8:2::-64":    dual("2"),
		"10.244.3.0-24":                    vxlanValue("192.0.2.3", 1, macA),
		"0.0.0.0-0&2001:db8:4::-64":        strings.Replace(flannelSix, "2001:db8::2", "2001:db9::4", 1),
		"10.244.5.0-24&2001:db8:5::-64":    dualOf("192.0.2.5", "2001:db9::5", 2, macB),                // other VNI
		"10.244.6.0-24&2001:db8:6::-64":    dualOf("192.0.2.6", "fe80::6", 1, macB),                    // no node's address
		"10.244.7.0-24&2001:db8:7::-64":    dualOf("192.0.2.7", "2001:db9::7", 1, "01:00:5e:00:00:01"), // no VTEP's
		"10.244.8.0-24&2001:db8:8::-64":    dualOf("192.0.2.8", "2001:db8:8::8", 1, macB),              // inside the overlay
		"10.244.9.0-24&2001:db7::-64":      dualOf("192.0.2.9", "2001:db9::9", 1, macB),                // outside the network
		"10.244.10.0-24&2001:db8:a::-64":   dualOf("192.0.2.10", "2001:db9::1", 1, macB),               // our PublicIPv6
		"10.244.11.0-24&2001:db8:b::-64":   `{"PublicIP":"192.0.2.11"}`,                                // another backend, or reserved
		"10.244.12.0-24&2001:db8:2::-64":   dual("12"),                                                 // shares a subnet with the second
		"10.244.13.0-24&2001:db8:d::-64":   vxlanValue("192.0.2.13", 1, macA),                          // no IPv6 address, no VTEP of IPv6
		"10.244.14.0-24&2001:db8:2:e::-80": dual("14"),                                                 // beside
		"zoo":                              "garbage",
		"10.244.15.0-24&2001:db8:f::-64":   "garbage",
	}
	const all4 = "10.244.2.0/24>192.0.2.2 10.244.3.0/24>192.0.2.3 10.244.5.0/24>192.0.2.5 10.244.6.0/24>192.0.2.6 10.244.7.0/24>192.0.2.7 10.244.8.0/24>192.0.2.8 " +
		"10.244.9.0/24>192.0.2.9 10.244.10.0/24>192.0.2.10 10.244.12.0/24>192.0.2.12 10.244.13.0/24>192.0.2.13 10.244.14.0/24>192.0.2.14"
	const all6 = "2001:db8:2::/64>2001:db9::12 2001:db8:2:e::/80>2001:db9::14 2001:db8:4::/64>2001:db9::4"
	nodes := testNodes(t, BackendVXLAN)
	for i, test := range []struct {
		name, peers string
		skipped     map[string]int
	}{
		{"IPv4", all4, map[string]int{SkipIPv6: 1, SkipBackend: 1, SkipKey: 1, SkipValue: 1}},
		{"both", all4 + " " + all6, map[string]int{SkipIPv6: 1, SkipIPv4: 1, SkipBackend: 1, SkipKey: 1, SkipValue: 4, SkipVNI: 1, SkipCircular: 1, SkipOutside: 1, SkipPublicIP: 1, SkipDouble: 1}},
		{"IPv6", all6, map[string]int{SkipIPv4: 1, SkipBackend: 1, SkipKey: 1, SkipValue: 4, SkipVNI: 1, SkipCircular: 1, SkipOutside: 1, SkipPublicIP: 1, SkipDouble: 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := NewMemStore()
				var keys []string
				for key := range entries {
					keys = append(keys, key)
				}
				slices.Sort(keys)
				// The lease for .12 is the newer one of the two that share a subnet, at first and when all are put again.
				slices.SortStableFunc(keys, func(a, b string) int { return strings.Index(b, "10.244.2.0") - strings.Index(a, "10.244.2.0") })
				for _, key := range keys {
					m.PutRaw(key, entries[key], TTL)
				}
				w, got, log, stop := watching(t, m, nodes[i])
				defer stop()
				if got.last() != test.peers {
					t.Errorf("peers:\n got %s\nwant %s", got.last(), test.peers)
				}
				s := w.Status()
				for why, n := range test.skipped {
					if s.Skipped[why] != n {
						t.Errorf("skipped for %s: %d, want %d", why, s.Skipped[why], n)
					}
				}
				if len(s.Skipped) != len(test.skipped) {
					t.Errorf("skipped %v, want %v", s.Skipped, test.skipped)
				}
				for why := range s.Skipped {
					if ExplainSkip(why) == "" {
						t.Errorf("%s is not explained", why)
					}
				}
				before := log.String()
				for _, key := range keys {
					m.PutRaw(key, entries[key], TTL)
				}
				settle(time.Second)
				if after := log.String(); after != before {
					t.Errorf("said again:\n%s", strings.TrimPrefix(after, before))
				}
			})
		})
	}
}

// A change of one half makes one peer anew; and each half has the VTEP of its own family.
func TestHalvesAreTheirOwnPeers(t *testing.T) {
	r := newRoster(testNodes(t, BackendVXLAN)[1], new(logBuffer).logger())
	set := func(value string) (four, six *fib.Peer) {
		r.set(Entry{Key: "10.244.2.0-24&2001:db8:2::-64", Value: []byte(value)})
		table, _ := r.update()
		return table.Lookup(netip.MustParseAddr("10.244.2.9")), table.Lookup(netip.MustParseAddr("2001:db8:2::9"))
	}
	four, six := set(dualOf("192.0.2.2", "2001:db9::2", 1, macB))
	if four == nil || six == nil || four.MAC != mac(t, macA) || six.MAC != mac(t, macB) || six.PublicIP != netip.MustParseAddr("2001:db9::2") || four.Counters == six.Counters {
		t.Fatalf("peers %+v and %+v", four, six)
	}
	if !r.table.KnowsOuter(netip.MustParseAddr("2001:db9::2")) || !r.table.KnowsOuter(netip.MustParseAddr("192.0.2.2")) {
		t.Error("the outer addresses are not known")
	}
	four2, six2 := set(dualOf("192.0.2.2", "2001:db9::3", 1, macB))
	if four2 != four || six2 == six || six2.PublicIP != netip.MustParseAddr("2001:db9::3") {
		t.Errorf("after a change of PublicIPv6: %+v and %+v", four2, six2)
	}
	if four3, six3 := set(dualOf("192.0.2.2", "fe80::1", 1, macB)); four3 != four || six3 != nil {
		t.Errorf("without a node's PublicIPv6: %+v and %+v", four3, six3)
	}
	r.remove("10.244.2.0-24&2001:db8:2::-64")
	if table, _ := r.update(); len(table.Peers()) != 0 {
		t.Errorf("left %v", table.Peers())
	}
}

// A lease of udp or host-gw has nothing beside its addresses. Each half knows of the other, if we carry that.
func TestHalvesWithoutVTEP(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	attrs := Attrs{PublicIP: addr("192.0.2.2"), PublicIPv6: addr("2001:db9::2")}
	for _, test := range []struct{ backend, both, alone string }{
		// flannel's udp writes no PublicIPv6, and reads over one.
		{BackendUDP, `{"PublicIP":"192.0.2.2","PublicIPv6":"2001:db9::2"}`, `{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db9::2"}`},
		{BackendHostGW, `{"PublicIP":"192.0.2.2","PublicIPv6":"2001:db9::2","BackendType":"host-gw"}`, `{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db9::2","BackendType":"host-gw"}`},
	} {
		attrs.BackendType = test.backend
		alone := attrs
		alone.PublicIP = netip.Addr{}
		for want, a := range map[string]Attrs{test.both: attrs, test.alone: alone} {
			text, err := a.MarshalJSON()
			if err != nil || string(text) != want {
				t.Errorf("%s, %v, want %s", text, err, want)
			}
			if back, err := DecodeAttrs(text); err != nil || !back.Equal(a) {
				t.Errorf("read as %v, %v, want %v", back, err, a)
			}
		}
		nodes := testNodes(t, test.backend)
		for i, want := range []string{"10.244.2.0/24", "10.244.2.0/24 2001:db8:2::/64", "2001:db8:2::/64"} {
			r := newRoster(nodes[i], new(logBuffer).logger())
			r.set(Entry{Key: "10.244.2.0-24&2001:db8:2::-64", Value: []byte(test.both)})
			table, _ := r.update()
			var got []string
			for _, p := range table.Peers() {
				got = append(got, p.Subnet.String())
				other := netip.Prefix{}
				if i == 1 && p.Subnet.Addr().Is4() {
					other = prefix("2001:db8:2::/64")
				} else if i == 1 {
					other = prefix("10.244.2.0/24")
				}
				if p.Other != other || p.MAC != (encap.MAC{}) {
					t.Errorf("%s of node %d: %+v, want other %v", test.backend, i, p, other)
				}
			}
			if strings.Join(got, " ") != want {
				t.Errorf("%s, node %d: peers %q, want %q", test.backend, i, got, want)
			}
			r.set(Entry{Key: "0.0.0.0-0&2001:db8:3::-64", Value: []byte(test.alone)})
			if table, _ := r.update(); (table.Lookup(addr("2001:db8:3::9")) != nil) != (i > 0) {
				t.Errorf("%s, node %d: of a lease of IPv6 alone: %v", test.backend, i, table.Peers())
			}

			// What flannel's udp writes in a network of both families.
			if test.backend == BackendUDP && i == 1 {
				r.set(Entry{Key: "10.244.4.0-24&2001:db8:4::-64", Value: []byte(`{"PublicIP":"192.0.2.4","PublicIPv6":null}`)})
				table, _ := r.update()
				if table.Lookup(addr("10.244.4.9")) == nil || table.Lookup(addr("2001:db8:4::9")) != nil || r.skipped[SkipValue] != 1 {
					t.Errorf("of flannel's udp: %v, skipped %v", table.Peers(), r.skipped)
				}
			}
		}
	}
}

// Who is heard by either family outlives his lease with both halves.
func TestVanishedLeaseOfBothFamilies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMemStore()
		const key = "10.244.2.0-24&2001:db8:2::-64"
		m.PutRaw(key, dualOf("192.0.2.2", "2001:db9::2", 1, macB), TTL)
		w, got, _, stop := watching(t, m, testNodes(t, BackendVXLAN)[1])
		defer stop()
		got.peer("2001:db8:2::/64").Counters.LastRx.Store(time.Now().UnixNano())
		if err := m.DeleteLease(t.Context(), key, Any); err != nil {
			t.Fatal(err)
		}
		settle(5 * time.Second)
		const both = "10.244.2.0/24>192.0.2.2 2001:db8:2::/64>2001:db9::2"
		if got.last() != both || w.Status().Held != 1 {
			t.Errorf("peers %s, status %+v", got.last(), w.Status())
		}
		settle(15 * time.Second)
		if got.last() != "" {
			t.Errorf("not heard for 20 s: peers %s", got.last())
		}

		// Together with ours it goes for any reason but being dead.
		own := "10.244.1.0-24&2001:db8:1::-64"
		m.PutRaw(own, dualOf("192.0.2.1", "2001:db9::1", 1, macB), TTL)
		m.PutRaw(key, dualOf("192.0.2.2", "2001:db9::2", 1, macB), TTL)
		settle(time.Second)
		m.mu.Lock()
		m.remove(own)
		m.remove(key)
		m.compacted, m.log = m.revision, nil
		m.mu.Unlock()
		settle(time.Minute)
		if got.last() != both {
			t.Errorf("vanished together with ours: peers %s", got.last())
		}
		m.PutRaw("0.0.0.0-0&2001:db8:2::-64", strings.Replace(flannelSix, "2001:db8::2", "2001:db9::4", 1), TTL)
		settle(time.Second)
		if got.last() != "2001:db8:2::/64>2001:db9::4" {
			t.Errorf("one half is another's: peers %s", got.last())
		}
	})
}

func TestStaticOfBothFamilies(t *testing.T) {
	path := filepath.Join(t.TempDir(), "peers.json")
	text := `{
  "10.244.1.0-24&2001:db8:1::-64": ` + dualOf("192.0.2.1", "2001:db9::1", 1, macB) + `,
  "10.244.2.0-24&2001:db8:2::-64": ` + dualOf("192.0.2.2", "2001:db9::2", 1, macB) + `,
  "10.244.3.0-24": ` + vxlanValue("192.0.2.3", 1, macB) + `,
  "0.0.0.0-0&2001:db8:4::-64": ` + strings.Replace(flannelSix, "2001:db8::2", "2001:db9::4", 1) + `
}
`
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	four, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db9::1")
	for _, test := range []struct {
		name  string
		cfg   StaticConfig
		peers string // or an error
	}{
		{"IPv4", StaticConfig{PublicIP: four}, "10.244.2.0/24>192.0.2.2 10.244.3.0/24>192.0.2.3"},
		{"both", StaticConfig{PublicIP: four, PublicIPv6: six}, "10.244.2.0/24>192.0.2.2 10.244.3.0/24>192.0.2.3 2001:db8:2::/64>2001:db9::2 2001:db8:4::/64>2001:db9::4"},
		{"both, of one network", StaticConfig{PublicIP: four, PublicIPv6: six, Network6: netip.MustParsePrefix("2001:db8::/46")}, "10.244.2.0/24>192.0.2.2 10.244.3.0/24>192.0.2.3 2001:db8:2::/64>2001:db9::2"},
		{"IPv6", StaticConfig{PublicIPv6: six}, "2001:db8:2::/64>2001:db9::2 2001:db8:4::/64>2001:db9::4"},
		{"IPv6, a lease of IPv6 alone", StaticConfig{PublicIPv6: netip.MustParseAddr("2001:db9::4")}, "2001:db8:1::/64>2001:db9::1 2001:db8:2::/64>2001:db9::2"},
		{"not there", StaticConfig{PublicIPv6: netip.MustParseAddr("2001:db9::5")}, "no lease has our PublicIPv6 2001:db9::5"},
		{"no IPv6 half", StaticConfig{PublicIP: netip.MustParseAddr("192.0.2.3"), PublicIPv6: six}, "has no IPv6 subnet"},
	} {
		got := new(tables)
		test.cfg.Path, test.cfg.OnTable, test.cfg.Logger = path, got.add, new(logBuffer).logger()
		s, err := NewStatic(test.cfg)
		if err != nil {
			if !strings.Contains(err.Error(), test.peers) {
				t.Errorf("%s: %v", test.name, err)
			}
			continue
		}
		got.add(s.Table())
		if got.last() != test.peers {
			t.Errorf("%s: peers\n%s\nwant\n%s", test.name, got.last(), test.peers)
		}
		if back, err := MarshalPeersFile(s.Leases()); err != nil || len(back) != len(text) {
			t.Errorf("%s: written back %v\n%s", test.name, err, back)
		}
	}
}
