package fib

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"muslin/tunnel/racetest"
)

// With, change upon change, against New of everything: the same answers, and the tables before stay as
// they were.
func TestWithAgainstTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	for round := range racetest.Rounds(24, 4) { // 12 have every mixture once
		in := spaces[round%3 : round%3+1]
		if round%4 == 3 {
			in = spaces // all families in one table
		}
		// One round in two grows to more slots than a page has, and shrinks again.
		few, most := uint64(1<<7), 6
		if round%2 == 1 {
			few, most = 1<<13, 900
		}
		random := func() netip.Prefix {
			s := &in[rng.IntN(len(in))]
			p, err := plus(s.base, rng.Uint64N(few), s.shift).Prefix(s.short + 4 + rng.IntN(9))
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
				set = append(set, &Peer{Subnet: random(), PublicIP: in[rng.IntN(len(in))].public(rng.Uint64N(64))})
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
			compareTables(t, table, New(slices.Collect(maps.Values(now))), in, few)
			if !slices.Equal(before.Peers(), peersBefore) {
				t.Fatal("With changed the table that it was made from")
			}
			compareTables(t, before, New(peersBefore), in, few)
		}
	}
}

// What OuterSince leaves out the table before has, and without one it yields everything, once.
func TestOuterSince(t *testing.T) {
	rng := rand.New(rand.NewPCG(13, 14))
	for round := range racetest.Rounds(20, 6) {
		table := New(nil)
		for range 50 {
			var set []*Peer
			for range rng.IntN(1 + 100*round) {
				p := &Peer{Subnet: netip.PrefixFrom(addr4(rng.Uint32N(1<<13)<<8), 24), PublicIP: addr4(rng.Uint32N(1 << 13))}
				if rng.IntN(2) == 0 {
					subnet := address6(wide{0xfd00000000000000 | rng.Uint64N(1<<13), 0})
					p = &Peer{Subnet: netip.PrefixFrom(subnet, 64), PublicIP: address6(wide{0x20010db800000000, rng.Uint64N(1 << 13)})}
				}
				set = append(set, p)
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
	four, _, _ := benchTable(10_000, true)
	six, _, _ := benchTable6(10_000, true)
	table := four.With(six.Peers(), nil)
	for _, change := range []struct {
		peer     int
		publicIP netip.Addr
	}{{5_000, addr4(0xac200000)}, {15_000, address6(wide{1, 1})}} {
		moved := *table.Peers()[change.peer]
		moved.PublicIP = change.publicIP
		if n := len(slices.Collect(table.With([]*Peer{&moved}, nil).OuterSince(table))); n > 3*pageSlots {
			t.Errorf("%d addresses looked at for a change to %v", n, change.publicIP)
		}
	}
}

func compareTables(t *testing.T, got, want *Table, in []space, few uint64) {
	t.Helper()
	if !slices.Equal(got.Peers(), want.Peers()) {
		t.Fatalf("%d peers, want %d, or in another order", len(got.Peers()), len(want.Peers()))
	}
	if len(got.four.inner) != len(want.four.inner) || len(got.six.inner) != len(want.six.inner) {
		t.Fatalf("%d and %d prefix lengths, want %d and %d", len(got.four.inner), len(got.six.inner), len(want.four.inner), len(want.six.inner))
	}
	for _, s := range in {
		for n := range few {
			if a := plus(s.base, n, s.shift).Next(); got.Lookup(a) != want.Lookup(a) {
				t.Fatalf("Lookup(%v) = %+v, want %+v", a, got.Lookup(a), want.Lookup(a))
			}
		}
		for n := range uint64(64) {
			if a := s.public(n); got.KnowsOuter(a) != want.KnowsOuter(a) {
				t.Fatalf("KnowsOuter(%v) = %v", a, got.KnowsOuter(a))
			}
		}
	}
}

// An index that has shrunk gives its memory back, and one that grows stays at most half full.
func TestIndexFitsItsContent(t *testing.T) {
	fitsItsContent(t, hash4, func(i uint32) uint32 { return i << 8 })
	fitsItsContent(t, hash6, func(i uint32) wide { return wide{uint64(i) << 32, uint64(i)} })
}

func fitsItsContent[K comparable](t *testing.T, hash func(K) uint64, key func(i uint32) K) {
	t.Helper()
	x := newIndex[K, uint32](0).edited(hash)
	for i := range uint32(50_000) {
		x.put(key(i), 1)
		if x.used*2 > x.size() || x.size() > max(pageSlots, 4*x.used) {
			t.Fatalf("%d values in %d slots", x.used, x.size())
		}
	}
	for i := range uint32(50_000) {
		x.remove(key(i))
		x.remove(key(i)) // which is not there any more
		if x.used != int(49_999-i) || x.size() > max(pageSlots, 16*x.used) {
			t.Fatalf("%d values in %d slots", x.used, x.size())
		}
	}
}

// A change of one lease copies pages, not the table, and nothing of the other family.
func TestWithSharesPages(t *testing.T) {
	four, _, _ := benchTable(10_000, true)
	six, _, _ := benchTable6(10_000, true)
	table := four.With(six.Peers(), nil)
	for _, change := range []struct {
		peer      int
		publicIP  netip.Addr
		four, six int // pages copied, at least
	}{{5_000, addr4(0xac200000), 3, 0}, {15_000, address6(wide{1, 1}), 0, 3}} {
		moved := *table.Peers()[change.peer]
		moved.PublicIP = change.publicIP
		next := table.With([]*Peer{&moved}, nil)
		four := copied(next.four.inner[0].pages, table.four.inner[0].pages) + copied(next.four.outer.pages, table.four.outer.pages)
		six := copied(next.six.inner[0].pages, table.six.inner[0].pages) + copied(next.six.outer.pages, table.six.outer.pages)
		// One page of subnets, one with the new PublicIP, and one with the old, or two where a run of
		// slots goes on in the next page.
		if four < change.four || four > change.four*4/3 || six < change.six || six > change.six*4/3 {
			t.Errorf("%v: %d pages of IPv4 copied and %d of IPv6", change.publicIP, four, six)
		}
	}
}

func copied[K comparable, V comparable](next, before []*page[K, V]) (n int) {
	for i, p := range next {
		if p != before[i] {
			n++
		}
	}
	return n
}
