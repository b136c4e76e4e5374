package lease

import (
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"muslin/tunnel/fib"
	"muslin/tunnel/racetest"
)

// slowRoster is the twin of roster: the peers and the skipped ones, made from all entries at once.
func slowRoster(node Node, entries map[string]Entry) (peers []string, skipped map[string]int) {
	judge := roster{node: node}
	skipped = make(map[string]int)
	type holder struct {
		Lease
		family int
	}
	bySubnet := make(map[netip.Prefix]holder)
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		l, err := ParseLease(entries[key])
		for family, v := range judge.judge(l, err) {
			switch {
			case v.why == own || v.why == notOurs:
				continue
			case v.why != "":
				skipped[v.why]++
				continue
			}
			subnet := l.half(family).subnet
			if other, ok := bySubnet[subnet]; ok {
				skipped[SkipDouble]++
				if other.Revision > l.Revision {
					continue
				}
			}
			bySubnet[subnet] = holder{l, family}
		}
	}
	for subnet, l := range bySubnet {
		if l.family == four {
			peers = append(peers, fmt.Sprint(subnet, l.Attrs.PublicIP, l.Attrs.BackendType, l.Attrs.MAC))
		} else {
			peers = append(peers, fmt.Sprint(subnet, l.Attrs.PublicIPv6, l.Attrs.BackendType, l.Attrs.MAC6))
		}
	}
	slices.Sort(peers)
	return peers, skipped
}

func peersOf(t *fib.Table) []string {
	var out []string
	for _, p := range t.Peers() {
		out = append(out, fmt.Sprint(p.Subnet, p.PublicIP, p.Backend, p.MAC))
	}
	slices.Sort(out)
	return out
}

// randomEntry is mostly a lease as it should be, of one of few subnets, so that they collide and nest.
func randomEntry(rng *rand.Rand, revision int64) Entry {
	key := fmt.Sprintf("10.244.%d.0-24", rng.IntN(12))
	switch rng.IntN(8) {
	case 0:
		key = fmt.Sprintf("10.244.%d.%d-25", rng.IntN(12), rng.IntN(2)*128)
	case 1, 2:
		key += fmt.Sprintf("&2001:db8:%d::-%d", 1+rng.IntN(3), []int{64, 64, 64, 66}[rng.IntN(4)])
	case 3:
		key = []string{"zoo", "10.99.0.0-24", "10.244.0.0-22", "0.0.0.0-0&2001:db8:2::-64", "0.0.0.0-0&2001:db9::-64"}[rng.IntN(5)]
	}
	ip, mac := fmt.Sprintf("192.0.2.%d", 1+rng.IntN(5)), []string{macA, macB}[rng.IntN(2)]
	value := vxlanValue(ip, 1, mac)
	switch rng.IntN(8) {
	case 0:
		value = []string{"garbage", `{"PublicIP":null}`, `{"PublicIP":"192.0.2.3"}`, vxlanValue("192.0.2.5", 2, macB), vxlanValue("10.244.200.1", 1, macB), flannelSix,
			dualOf(ip, "2001:db8:2::9", 1, mac), dualOf(ip, "2001:db9::9", 2, mac), dualOf(ip, "fe80::1", 1, mac), dualOf(ip, "2001:db9::9", 1, "01:00:5e:00:00:01")}[rng.IntN(10)]
	case 1, 2, 3:
		value = dualOf(ip, fmt.Sprintf("2001:db9::%d", 1+rng.IntN(5)), 1, mac)
	}
	return Entry{Key: key, Value: []byte(value), Revision: revision, Reserved: rng.IntN(10) == 0}
}

// dualOf is the value of a dual-stack lease whose IPv4 half is as it should be.
func dualOf(ip, ip6 string, vni6 int, mac6 string) string {
	v4 := strings.Replace(vxlanValue(ip, 1, macA), `"PublicIPv6":null`, fmt.Sprintf(`"PublicIPv6":%q`, ip6), 1)
	return fmt.Sprintf(`%s,"BackendV6Data":{"VNI":%d,"VtepMAC":%q}}`, strings.TrimSuffix(v4, "}"), vni6, mac6)
}

// testNodes are nodes of a backend that carry IPv4, both families, and IPv6 alone.
func testNodes(t *testing.T, backend string) []Node {
	four := testNode(t, backend)
	both := four
	both.Subnet6, both.PublicIPv6, both.Network6 = netip.MustParsePrefix("2001:db8:1::/64"), netip.MustParseAddr("2001:db9::1"), netip.MustParsePrefix("2001:db8::/32")
	six := both
	six.Subnet, six.PublicIP, six.Network = netip.Prefix{}, netip.Addr{}, netip.Prefix{}
	return []Node{four, both, six}
}

// Change upon change gives what all entries at once give: peers, what is skipped, and which complaints stand.
func TestRosterAgainstTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range racetest.Rounds(60, 12) {
		node := testNodes(t, []string{BackendVXLAN, BackendUDP}[round%2])[round%3]
		r := newRoster(node, slog.New(slog.DiscardHandler))
		entries := make(map[string]Entry)
		for step := range 60 {
			for range rng.IntN(4) {
				e := randomEntry(rng, int64(round*1000+step))
				if rng.IntN(3) == 0 {
					r.remove(e.Key)
					delete(entries, e.Key)
				} else {
					r.set(e)
					entries[e.Key] = e
				}
			}
			if rng.IntN(20) == 0 { // listed again, half of it gone meanwhile
				for key := range entries {
					if rng.IntN(2) == 0 {
						delete(entries, key)
					}
				}
				r.replace(slices.Collect(maps.Values(entries)))
			}
			before := r.table
			table, changed := r.update()
			if changed == (table == before) {
				t.Fatalf("round %d, step %d: changed is %v", round, step, changed)
			}
			peers, skipped := slowRoster(node, entries)
			if got := peersOf(table); !slices.Equal(got, peers) {
				t.Fatalf("round %d, step %d: peers\n%s\nwant\n%s", round, step, strings.Join(got, "\n"), strings.Join(peers, "\n"))
			}
			if !maps.Equal(r.skipped, skipped) {
				t.Fatalf("round %d, step %d: skipped %v, want %v", round, step, r.skipped, skipped)
			}
			anew := newRoster(node, slog.New(slog.DiscardHandler))
			anew.replace(slices.Collect(maps.Values(entries)))
			anew.update()
			if got, want := standing(r), standing(anew); got != want {
				t.Fatalf("round %d, step %d: complaints\n%s\nwant\n%s", round, step, got, want)
			}
		}
	}
}

// standing is the complaints about those who hold a subnet, and about the leases that are skipped.
func standing(r *roster) string {
	var out []string
	add := func(p place) {
		line := fmt.Sprintf("%s, family %d", p.lease.Key, p.family)
		for _, said := range p.said[p.family] {
			text, _, _ := strings.Cut(said, "\x00")
			line += "; " + text
		}
		out = append(out, line)
	}
	for _, p := range r.holders() {
		add(p)
	}
	for _, k := range r.known {
		for family, why := range k.why {
			if why != "" {
				add(place{k, family})
			}
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// A lease written again as it was, as flannel renews it, makes no new table.
func TestRenewalsMakeNoTable(t *testing.T) {
	r := newRoster(testNode(t, BackendVXLAN), slog.New(slog.DiscardHandler))
	e := Entry{Key: "10.244.2.0-24", Value: []byte(vxlanValue("192.0.2.2", 1, macA)), Revision: 7}
	r.set(e)
	if table, changed := r.update(); !changed || len(table.Peers()) != 1 {
		t.Fatalf("the first: changed %v, %d peers", changed, len(table.Peers()))
	}
	e.Revision = 8
	r.set(e)
	r.remove(e.Key)
	r.set(e)
	if _, changed := r.update(); changed {
		t.Error("a renewal changed the table")
	}
}

// manyLeases are n leases as flannel's nodes write them.
func manyLeases(n int) []Entry {
	var entries []Entry
	for i := range n {
		entries = append(entries, Entry{
			Key: fmt.Sprintf("10.%d.%d.0-24", i>>8, i&255), Revision: int64(i),
			Value: []byte(vxlanValue(fmt.Sprintf("172.16.%d.%d", i>>8, i&255), 1, macA)),
		})
	}
	return entries
}

// What a change of one lease costs among many: to read it, and to make the table.
func BenchmarkRosterChange(b *testing.B) {
	for _, n := range []int{100, 10_000, 50_000} {
		b.Run(fmt.Sprintf("leases=%d", n), func(b *testing.B) {
			r := newRoster(Node{Subnet: netip.MustParsePrefix("10.255.0.0/24"), Backend: BackendUDP}, slog.New(slog.DiscardHandler))
			entries := manyLeases(n)
			r.replace(entries)
			r.update()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				e := entries[i%n]
				e.Value = []byte(vxlanValue(fmt.Sprintf("172.17.%d.%d", i>>8&255, i&255), 1, macB))
				r.set(e)
				if _, changed := r.update(); !changed {
					b.Fatal("no change")
				}
			}
		})
	}
}

// What the first list costs.
func BenchmarkRosterList(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(fmt.Sprintf("leases=%d", n), func(b *testing.B) {
			entries := manyLeases(n)
			b.ReportAllocs()
			for b.Loop() {
				r := newRoster(Node{Subnet: netip.MustParsePrefix("10.255.0.0/24"), Backend: BackendUDP}, slog.New(slog.DiscardHandler))
				r.replace(entries)
				r.update()
			}
		})
	}
}
