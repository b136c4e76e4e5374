package fib

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// With, change upon change, against New of everything: the same answers, and the tables before stay as
// they were.
func TestWithAgainstTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	for round := range 20 {
		// One round in two grows to more slots than a page has, and shrinks again.
		space, most := uint32(1<<7), 6
		if round%2 == 1 {
			space, most = 1<<13, 900
		}
		random := func() netip.Prefix {
			p, err := addr4(0x0a000000 | rng.Uint32N(space)<<2).Prefix(22 + rng.IntN(9))
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		now := make(map[netip.Prefix]*Peer)
		table := New(nil)
		for step := range 40 {
			var set []*Peer
			var gone []netip.Prefix
			for range rng.IntN(most) {
				set = append(set, &Peer{Subnet: random(), PublicIP: addr4(0xc0a80000 | rng.Uint32N(64))})
			}
			for range rng.IntN(most / 2 * (1 + step/10)) {
				gone = append(gone, random())
			}
			if step == 38 { // nobody is left
				gone = slices.AppendSeq(gone, maps.Keys(now))
			}
			before, peersBefore := table, slices.Clone(table.Peers())
			table = table.With(set, gone)
			for _, subnet := range gone {
				delete(now, subnet)
			}
			for _, p := range set {
				now[p.Subnet] = p
			}
			compareTables(t, table, New(slices.Collect(maps.Values(now))), space)
			if !slices.Equal(before.Peers(), peersBefore) {
				t.Fatal("With changed the table that it was made from")
			}
			compareTables(t, before, New(peersBefore), space)
		}
	}
}

// What OuterSince leaves out the table before has, and without one it yields everything, once.
func TestOuterSince(t *testing.T) {
	rng := rand.New(rand.NewPCG(13, 14))
	for round := range 20 {
		table := New(nil)
		for range 50 {
			var set []*Peer
			for range rng.IntN(1 + 100*round) {
				set = append(set, &Peer{Subnet: netip.PrefixFrom(addr4(rng.Uint32N(1<<13)<<8), 24), PublicIP: addr4(rng.Uint32N(1 << 13))})
			}
			next := table.With(set, nil)
			want := map[netip.Addr]bool{}
			for _, p := range next.Peers() {
				want[p.PublicIP] = true
			}
			since := map[netip.Addr]bool{}
			for a := range next.OuterSince(table) {
				if !want[a] {
					t.Fatalf("%v is no peer's", a)
				}
				since[a] = true
			}
			for a := range want {
				if !since[a] && !table.KnowsOuter(a) {
					t.Fatalf("%v is new and was left out", a)
				}
			}
			all := slices.Collect(next.OuterSince(nil))
			if len(all) != len(want) {
				t.Fatalf("%d addresses of %d", len(all), len(want))
			}
			for range next.OuterSince(nil) {
				break // as a caller may
			}
			table = next
		}
	}
	table, _, _ := benchTable(10_000, true)
	moved := *table.Peers()[5000]
	moved.PublicIP = addr4(0xac200000)
	if n := len(slices.Collect(table.With([]*Peer{&moved}, nil).OuterSince(table))); n > 3*pageSlots {
		t.Errorf("%d addresses looked at for one change", n)
	}
}

func compareTables(t *testing.T, got, want *Table, space uint32) {
	t.Helper()
	if !slices.Equal(got.Peers(), want.Peers()) {
		t.Fatalf("%d peers, want %d, or in another order", len(got.Peers()), len(want.Peers()))
	}
	if len(got.inner) != len(want.inner) {
		t.Fatalf("%d prefix lengths, want %d", len(got.inner), len(want.inner))
	}
	for n := range space {
		if a := addr4(0x0a000000 | n<<2 | 1); got.Lookup(a) != want.Lookup(a) {
			t.Fatalf("Lookup(%v) = %+v, want %+v", a, got.Lookup(a), want.Lookup(a))
		}
	}
	for n := range uint32(64) {
		if a := addr4(0xc0a80000 | n); got.KnowsOuter(a) != want.KnowsOuter(a) {
			t.Fatalf("KnowsOuter(%v) = %v", a, got.KnowsOuter(a))
		}
	}
}

// An index that has shrunk gives its memory back, and one that grows stays at most half full.
func TestIndexFitsItsContent(t *testing.T) {
	x := newIndex[uint32](0).edited()
	for i := range uint32(50_000) {
		x.put(i<<8, 1)
		if x.used*2 > x.size() || x.size() > max(pageSlots, 4*x.used) {
			t.Fatalf("%d values in %d slots", x.used, x.size())
		}
	}
	for i := range uint32(50_000) {
		x.remove(i << 8)
		x.remove(i << 8) // which is not there any more
		if x.used != int(49_999-i) || x.size() > max(pageSlots, 16*x.used) {
			t.Fatalf("%d values in %d slots", x.used, x.size())
		}
	}
}

// A change of one lease copies pages, not the table.
func TestWithSharesPages(t *testing.T) {
	table, _, _ := benchTable(10_000, true)
	moved := *table.Peers()[5000]
	moved.PublicIP = addr4(0xac200000)
	next := table.With([]*Peer{&moved}, nil)
	copied := 0
	for i, p := range next.inner[0].pages {
		if p != table.inner[0].pages[i] {
			copied++
		}
	}
	for i, p := range next.outer.pages {
		if p != table.outer.pages[i] {
			copied++
		}
	}
	// One page of subnets, one with the new PublicIP, and one with the old, or two where a run of slots
	// goes on in the next page.
	if copied < 3 || copied > 4 {
		t.Errorf("%d pages copied", copied)
	}
}
