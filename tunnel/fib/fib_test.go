package fib

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
)

func peer(subnet, publicIP string) *Peer {
	return &Peer{Subnet: netip.MustParsePrefix(subnet), PublicIP: netip.MustParseAddr(publicIP)}
}

// slowLookup is the twin of Table.Lookup: of all peers whose subnet holds the address the longest prefix,
// of equal ones the last.
func slowLookup(peers []*Peer, inner netip.Addr) *Peer {
	var best *Peer
	for _, p := range peers {
		if p.Subnet.Contains(inner) && (best == nil || p.Subnet.Bits() >= best.Subnet.Bits()) {
			best = p
		}
	}
	return best
}

// slowPeers is the twin of Table.Peers: of each subnet the last peer, sorted.
func slowPeers(peers []*Peer) []*Peer {
	var out []*Peer
	for i, p := range peers {
		if !slices.ContainsFunc(peers[i+1:], func(later *Peer) bool { return later.Subnet == p.Subnet }) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b *Peer) int { return a.Subnet.Compare(b.Subnet) })
	return out
}

func addr4(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

func TestLookupAgainstTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	hits, misses := 0, 0
	for round := range 60 {
		// Addresses are few, so that subnets nest, repeat and lie side by side.
		random := func() netip.Addr { return addr4(0x0a000000 | rng.Uint32N(1<<14)<<2) }
		peers := make([]*Peer, rng.IntN(100))
		for i := range peers {
			subnet, err := random().Prefix(18 + rng.IntN(15))
			if err != nil {
				t.Fatal(err)
			}
			peers[i] = &Peer{Subnet: subnet, PublicIP: addr4(0xc0a80000 | rng.Uint32N(64))}
		}
		table := New(peers)
		if want := slowPeers(peers); !slices.Equal(table.Peers(), want) {
			t.Fatalf("round %d: Peers has %d, want %d", round, len(table.Peers()), len(want))
		}
		probe := func(a netip.Addr) {
			want := slowLookup(peers, a)
			if got := table.Lookup(a); got != want {
				t.Fatalf("round %d: Lookup(%v) = %+v, want %+v", round, a, got, want)
			}
			if want == nil {
				misses++
			} else {
				hits++
			}
		}
		for range 200 {
			probe(random())
		}
		for _, p := range peers { // both edges of every subnet, and the addresses beyond
			first := p.Subnet.Addr()
			b := first.As4()
			last := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
			last |= 1<<(32-p.Subnet.Bits()) - 1
			for _, a := range []netip.Addr{first, first.Prev(), addr4(last), addr4(last).Next()} {
				probe(a)
			}
		}
		for n := range uint32(64) {
			outer := addr4(0xc0a80000 | n)
			want := slices.ContainsFunc(table.Peers(), func(p *Peer) bool { return p.PublicIP == outer })
			if got := table.KnowsOuter(outer); got != want {
				t.Fatalf("round %d: KnowsOuter(%v) = %v", round, outer, got)
			}
		}
	}
	if hits < 1000 || misses < 1000 {
		t.Errorf("%d hits and %d misses: the random tables test only one of them", hits, misses)
	}
}

func TestEmptyTable(t *testing.T) {
	for _, table := range []*Table{New(nil), New([]*Peer{})} {
		for _, a := range []string{"10.0.0.1", "0.0.0.0", "255.255.255.255", "fd00::1"} {
			if p := table.Lookup(netip.MustParseAddr(a)); p != nil {
				t.Errorf("Lookup(%s) in an empty table = %+v", a, p)
			}
			if table.KnowsOuter(netip.MustParseAddr(a)) {
				t.Errorf("an empty table knows %s", a)
			}
		}
		if len(table.Peers()) != 0 {
			t.Errorf("Peers of an empty table: %v", table.Peers())
		}
	}
}

func TestTwoPeersWithOnePublicIP(t *testing.T) {
	a, b := peer("10.1.0.0/24", "192.0.2.1"), peer("10.2.0.0/24", "192.0.2.1")
	table := New([]*Peer{a, b})
	if table.Lookup(netip.MustParseAddr("10.1.0.9")) != a || table.Lookup(netip.MustParseAddr("10.2.0.9")) != b {
		t.Error("two subnets behind one PublicIP are mixed up")
	}
	if !table.KnowsOuter(netip.MustParseAddr("192.0.2.1")) || table.KnowsOuter(netip.MustParseAddr("192.0.2.2")) {
		t.Error("KnowsOuter is wrong for a PublicIP that two peers share")
	}
}

func TestLaterOfTwoEqualSubnetsWins(t *testing.T) {
	first, second := peer("10.1.0.0/24", "192.0.2.1"), peer("10.1.0.0/24", "192.0.2.2")
	if got := New([]*Peer{first, second}).Lookup(netip.MustParseAddr("10.1.0.1")); got != second {
		t.Errorf("Lookup = %+v, want the later peer", got)
	}
}

func TestCountersSurviveATable(t *testing.T) {
	p := peer("10.1.0.0/24", "192.0.2.1")
	New([]*Peer{p})
	if p.Counters == nil {
		t.Fatal("New leaves Counters nil")
	}
	p.Counters.RxPackets.Add(3)
	renewed := &Peer{Subnet: p.Subnet, PublicIP: netip.MustParseAddr("192.0.2.9"), Counters: p.Counters}
	got := New([]*Peer{renewed}).Lookup(netip.MustParseAddr("10.1.0.1"))
	if got != renewed || got.Counters.RxPackets.Load() != 3 {
		t.Errorf("the renewed peer has counters %+v, want those of before", got.Counters)
	}
}

// A table does not change when the next one is built, and readers need no lock meanwhile.
func TestTableStaysAsBuilt(t *testing.T) {
	var peers []*Peer
	for i := range 50 {
		peers = append(peers, peer(fmt.Sprintf("10.1.%d.0/24", i), fmt.Sprintf("192.0.2.%d", i)))
	}
	before := New(slices.Clone(peers))
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for n := range 5000 {
				i := n % len(peers)
				if got := before.Lookup(addr4(0x0a010001 | uint32(i)<<8)); got != peers[i] {
					t.Errorf("Lookup in subnet %d while other tables are built: %+v", i, got)
					return
				}
			}
		})
	}
	for i := range 50 {
		changed := slices.Clone(peers)
		changed[i] = peer(peers[i].Subnet.String(), "198.51.100.1")
		after := New(changed)
		if after.Lookup(addr4(0x0a010001|uint32(i)<<8)) != changed[i] || before.KnowsOuter(netip.MustParseAddr("198.51.100.1")) {
			t.Errorf("table %d: the change is missing, or got into the table before it", i)
		}
	}
	readers.Wait()
	if len(before.Peers()) != 50 {
		t.Errorf("the first table has %d peers now", len(before.Peers()))
	}
}

func TestLookupDoesNotAllocate(t *testing.T) {
	table := New([]*Peer{peer("10.1.0.0/24", "192.0.2.1"), peer("10.0.0.0/8", "192.0.2.2")})
	for _, a := range []string{"10.1.0.1", "10.9.0.1", "172.16.0.1"} {
		inner := netip.MustParseAddr(a)
		if n := testing.AllocsPerRun(100, func() { table.Lookup(inner); table.KnowsOuter(inner) }); n != 0 {
			t.Errorf("Lookup(%v): %v allocations", inner, n)
		}
	}
}

func TestEdgesOfTheAddressSpace(t *testing.T) {
	all, first, last := peer("0.0.0.0/0", "0.0.0.0"), peer("0.0.0.0/32", "192.0.2.1"), peer("255.255.255.255/32", "192.0.2.2")
	for _, c := range []struct {
		peers []*Peer
		want  [3]*Peer // for 0.0.0.0, 10.0.0.1, 255.255.255.255
	}{
		{[]*Peer{all}, [3]*Peer{all, all, all}},
		{[]*Peer{first, last}, [3]*Peer{first, nil, last}},
		{[]*Peer{first, all, last}, [3]*Peer{first, all, last}},
	} {
		table := New(c.peers)
		for i, a := range []netip.Addr{addr4(0), addr4(0x0a000001), addr4(1<<32 - 1)} {
			if got := table.Lookup(a); got != c.want[i] {
				t.Errorf("Lookup(%v) among %d = %+v, want %+v", a, len(c.peers), got, c.want[i])
			}
		}
	}
	if New([]*Peer{first}).KnowsOuter(addr4(0)) || !New([]*Peer{all}).KnowsOuter(addr4(0)) {
		t.Error("KnowsOuter(0.0.0.0) is wrong")
	}
}

// What is not IPv4 is in the list, but nobody's: not even where an IPv6 address maps one of IPv4.
func TestIPv4Alone(t *testing.T) {
	six := peer("fd00::/64", "fd01::1")
	table := New([]*Peer{six, peer("10.1.0.0/24", "192.0.2.1"), {Subnet: netip.MustParsePrefix("10.2.0.0/24")}})
	for _, a := range []string{"fd00::1", "::ffff:10.1.0.1", "::", "::10.1.0.1"} {
		if p := table.Lookup(netip.MustParseAddr(a)); p != nil {
			t.Errorf("Lookup(%s) = %+v", a, p)
		}
	}
	for _, a := range []netip.Addr{netip.MustParseAddr("fd01::1"), netip.MustParseAddr("::ffff:192.0.2.1"), {}} {
		if table.KnowsOuter(a) {
			t.Errorf("KnowsOuter(%v)", a)
		}
	}
	if table.Lookup(netip.Addr{}) != nil {
		t.Error("Lookup of no address finds somebody")
	}
	if table.Lookup(netip.MustParseAddr("10.1.0.1")) == nil || table.Lookup(netip.MustParseAddr("10.2.0.1")) == nil {
		t.Error("a peer of another family hides those of IPv4")
	}
	if six.Counters == nil || len(table.Peers()) != 3 {
		t.Error("Peers lacks one, or its counters")
	}
}

// The layouts that leases have, in sizes at which an index is as full as it gets.
func TestIndexSpreads(t *testing.T) {
	const n = 1<<16 - 1
	rng := rand.New(rand.NewPCG(11, 12))
	random := rng.Perm(1 << 20)
	for name, key := range map[string]func(i uint32) uint32{
		"/24s side by side":          func(i uint32) uint32 { return 0x0a000000 + i<<8 },
		"/28s side by side":          func(i uint32) uint32 { return 0x0a000000 + i<<4 },
		"/24s one in four":           func(i uint32) uint32 { return 0x0a000000 + i<<10 },
		"/16s":                       func(i uint32) uint32 { return i << 16 },
		"/28s at random":             func(i uint32) uint32 { return 0x0a000000 + uint32(random[i])<<4 },
		"single addresses":           func(i uint32) uint32 { return 0xc0a80000 + i },
		"the last in each /24":       func(i uint32) uint32 { return 0x0afffffe + i<<8 },
		"ten hosts in each of many ": func(i uint32) uint32 { return 0xac100000 + i/10<<8 + i%10 },
	} {
		x, p := newIndex[*Peer](n).edited(), new(Peer)
		for i := range uint32(n) {
			x.put(key(i), p)
		}
		total, run, longest := 0, 0, 0
		for i := range 2 * x.size() { // twice, for the run that goes round the end
			s := x.at(i & (x.size() - 1))
			if s.value == nil {
				run = 0
				continue
			}
			run++
			longest = max(longest, run)
			if i < x.size() {
				total += (i - x.home(s.key)) & (x.size() - 1)
			}
		}
		// Four slots are a cache line. Random keys are 0.5 from home on average, regular ones
		// 0 to 4.
		if mean := float64(total) / n; mean > 5 || longest > 64 {
			t.Errorf("%s: %.2f slots from home on average, %d in a row", name, mean, longest)
		}
	}
}

// benchTable has n /28s spread over 10.0.0.0/9, in no order, and the packets that its peers send: as an inner
// and an outer source each. With few of them these are four, as with a few flows at a time; else uniformly
// random over all.
func benchTable(n int, few bool) (table *Table, inner, outer []netip.Addr) {
	rng := rand.New(rand.NewPCG(7, 8))
	peers := make([]*Peer, n)
	for i, at := range rng.Perm(1 << 19)[:n] {
		peers[i] = &Peer{Subnet: netip.PrefixFrom(addr4(0x0a000000|uint32(at)<<4), 28), PublicIP: addr4(0xac100000 | uint32(i))}
	}
	const packets = 1 << 17
	for i := range packets {
		p := peers[rng.IntN(n)]
		if few {
			p = peers[i%4*(n/5)]
		}
		inner = append(inner, addr4(number(p.Subnet.Addr())|1+rng.Uint32N(14)))
		outer = append(outer, p.PublicIP)
	}
	return New(peers), inner, outer
}

func eachBenchTable(b *testing.B, f func(b *testing.B, table *Table, inner, outer []netip.Addr)) {
	for _, n := range []int{10, 1_000, 100_000} {
		for _, senders := range []string{"few", "all"} {
			table, inner, outer := benchTable(n, senders == "few")
			b.Run(fmt.Sprintf("peers=%d/senders=%s", n, senders), func(b *testing.B) {
				b.ReportAllocs()
				f(b, table, inner, outer)
			})
		}
	}
}

// The lookup and the strict source check. A lookup waits for the one before, as it would for a packet's work.
func BenchmarkFIBLookup(b *testing.B) {
	eachBenchTable(b, func(b *testing.B, table *Table, inner, outer []netip.Addr) {
		i := 0
		for b.Loop() {
			p := table.Lookup(inner[i])
			if p == nil || p.PublicIP != outer[i] {
				b.Fatal("miss")
			}
			i = (i + 1 + int(p.MAC[0])) & (len(inner) - 1)
		}
	})
}

func BenchmarkFIBKnowsOuter(b *testing.B) {
	eachBenchTable(b, func(b *testing.B, table *Table, _, outer []netip.Addr) {
		i := 0
		for b.Loop() {
			if !table.KnowsOuter(outer[i]) {
				b.Fatal("miss")
			}
			i = (i + 1) & (len(outer) - 1)
		}
	})
}

// What the first list of all leases costs.
func BenchmarkFIBNew(b *testing.B) {
	for _, n := range []int{10, 1_000, 10_000, 100_000} {
		table, _, _ := benchTable(n, true)
		b.Run(fmt.Sprintf("peers=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				New(table.Peers())
			}
		})
	}
}

// What a change of one lease costs: its PublicIP.
func BenchmarkFIBWith(b *testing.B) {
	for _, n := range []int{10, 1_000, 10_000, 100_000} {
		table, _, _ := benchTable(n, true)
		b.Run(fmt.Sprintf("peers=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			i := uint32(0)
			for b.Loop() {
				moved := *table.Peers()[int(i)%n]
				moved.PublicIP = addr4(0xac200000 + i)
				table = table.With([]*Peer{&moved}, nil)
				i = (i + 1) & 0xfffff
			}
		})
	}
}
