package fib

import (
	"net/netip"
	"slices"
	"testing"
)

// Any changes in any order, against the scan of a slice: each is a byte that says what, four of a subnet and one of
// a PublicIP. What the addresses lack in bits they have in neighbours.
func FuzzTable(f *testing.F) {
	f.Add([]byte{0, 10, 1, 0, 24, 1, 1, 10, 1, 0, 24, 1, 2, 10, 1, 0, 24, 1})
	f.Add([]byte{1, 1, 2, 3, 64, 1, 1, 1, 2, 4, 70, 2, 3, 1, 2, 3, 64, 1, 1, 1, 2, 3, 128, 1})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 255, 255, 255, 32, 255, 1, 255, 255, 255, 128, 255})
	f.Fuzz(func(t *testing.T, changes []byte) {
		table := New(nil)
		now := make(map[netip.Prefix]*Peer)
		var probes []netip.Addr
		changes = changes[:min(len(changes), 6*200)] // each takes the time of all before it
		for ; len(changes) >= 6; changes = changes[6:] {
			c := changes[:6]
			inner, outer := addr4(uint32(c[1])<<24|uint32(c[2])<<16|uint32(c[3])<<4), addr4(uint32(c[5]))
			if c[0]&1 != 0 {
				inner = address6(wide{uint64(c[1])<<56 | uint64(c[2]), uint64(c[2])<<60 | uint64(c[3])})
				outer = address6(wide{uint64(c[5]) << 40, uint64(c[5])})
			}
			subnet, err := inner.Prefix(int(c[4]) % (inner.BitLen() + 1))
			if err != nil {
				t.Fatal(err)
			}
			if c[0]&2 != 0 {
				table = table.With(nil, []netip.Prefix{subnet})
				delete(now, subnet)
			} else {
				now[subnet] = &Peer{Subnet: subnet, PublicIP: outer}
				table = table.With([]*Peer{now[subnet]}, nil)
			}
			probes = append(probes, inner, subnet.Addr(), subnet.Addr().Prev(), last(subnet), last(subnet).Next(), outer)
		}
		var peers []*Peer
		known := make(map[netip.Addr]bool)
		for _, p := range now {
			peers = append(peers, p)
			known[p.PublicIP] = true
		}
		if !slices.Equal(table.Peers(), slowPeers(peers)) {
			t.Fatalf("Peers are %v", table.Peers())
		}
		for _, a := range probes {
			if isIPv6(a) || a.Is4() {
				if got, want := table.Lookup(a), slowLookup(peers, a); got != want {
					t.Fatalf("Lookup(%v) = %+v, want %+v", a, got, want)
				}
				if table.KnowsOuter(a) != known[a] {
					t.Fatalf("KnowsOuter(%v) is not %v", a, known[a])
				}
			}
		}
		all := slices.Collect(table.OuterSince(nil))
		if len(all) != len(known) {
			t.Fatalf("OuterSince yields %v, want %v", all, known)
		}
	})
}
