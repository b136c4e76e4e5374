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

// space is where random subnets and addresses of one family come from: few, so that they nest, repeat and lie
// side by side.
type space struct {
	base          netip.Addr
	shift         int // of the random number in the inner address
	short, length int // of prefixes: bits, and how many lengths
	outer         netip.Addr
}

var spaces = []space{
	{netip.MustParseAddr("10.0.0.0"), 2, 18, 15, netip.MustParseAddr("192.168.0.0")},
	// The random bits lie on both sides of the middle, so that prefixes end there, too.
	{netip.MustParseAddr("fd00:10::"), 57, 57, 15, netip.MustParseAddr("2001:db8::")},
	// Those that lie at the end, and single addresses.
	{netip.MustParseAddr("fd00:11:2:3::"), 2, 114, 15, netip.MustParseAddr("2001:db8:1:2:3::")},
}

// plus is an address that lies so much further on.
func plus(a netip.Addr, n uint64, shift int) netip.Addr {
	b := a.AsSlice()
	for i := len(b) - 1; i >= 0; i-- {
		at := (len(b) - 1 - i) * 8 // bits of n<<shift below this byte
		switch {
		case at >= shift:
			if at-shift < 64 {
				b[i] += byte(n >> (at - shift))
			}
		case shift-at < 8:
			b[i] += byte(n << (shift - at))
		}
	}
	sum, _ := netip.AddrFromSlice(b)
	return sum
}

func (s *space) inner(rng *rand.Rand) netip.Addr { return plus(s.base, rng.Uint64N(1<<14), s.shift) }

func (s *space) public(n uint64) netip.Addr { return plus(s.outer, n, 0) }

func (s *space) peer(t testing.TB, rng *rand.Rand) *Peer {
	subnet, err := s.inner(rng).Prefix(s.short + rng.IntN(s.length))
	if err != nil {
		t.Fatal(err)
	}
	return &Peer{Subnet: subnet, PublicIP: s.public(rng.Uint64N(64))}
}

// last is the last address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Tables of peers of one family, of the others, and of all, against the scan of a slice.
func TestLookupAgainstTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	var hits, misses [3]int
	for round := range 120 {
		in := []int{0, 1, 2}
		if k := round % 4; k < 3 {
			in = []int{k}
		}
		peers := make([]*Peer, rng.IntN(100))
		for i := range peers {
			peers[i] = spaces[in[rng.IntN(len(in))]].peer(t, rng)
		}
		table := New(peers)
		if want := slowPeers(peers); !slices.Equal(table.Peers(), want) {
			t.Fatalf("round %d: Peers has %d, want %d", round, len(table.Peers()), len(want))
		}
		probe := func(space int, a netip.Addr) {
			want := slowLookup(peers, a)
			if got := table.Lookup(a); got != want {
				t.Fatalf("round %d: Lookup(%v) = %+v, want %+v", round, a, got, want)
			}
			if want == nil {
				misses[space]++
			} else {
				hits[space]++
			}
		}
		for k := range spaces {
			s := &spaces[k]
			for range 200 {
				probe(k, s.inner(rng))
			}
			for n := range uint64(64) {
				outer := s.public(n)
				want := slices.ContainsFunc(table.Peers(), func(p *Peer) bool { return p.PublicIP == outer })
				if got := table.KnowsOuter(outer); got != want {
					t.Fatalf("round %d: KnowsOuter(%v) = %v", round, outer, got)
				}
			}
		}
		for _, p := range peers { // both edges of every subnet, and the addresses beyond
			k := slices.IndexFunc(spaces, func(s space) bool { return p.Subnet.Addr().BitLen() == s.base.BitLen() })
			first, last := p.Subnet.Addr(), last(p.Subnet)
			for _, a := range []netip.Addr{first, first.Prev(), last, last.Next()} {
				probe(k, a)
			}
		}
	}
	for k := range spaces {
		if hits[k] < 1000 || misses[k] < 1000 {
			t.Errorf("%v: %d hits and %d misses: the random tables test only one of them", spaces[k].base, hits[k], misses[k])
		}
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
	table := New([]*Peer{
		peer("10.1.0.0/24", "192.0.2.1"), peer("10.0.0.0/8", "192.0.2.2"),
		peer("fd00:1::/64", "2001:db8::1"), peer("fd00::/16", "2001:db8::2"),
	})
	for _, a := range []string{"10.1.0.1", "10.9.0.1", "172.16.0.1", "fd00:1::1", "fd00:2::1", "2001:db8::1", "::ffff:10.1.0.1"} {
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
	all6, first6, last6 := peer("::/0", "::"), peer("::/128", "2001:db8::1"), peer("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", "2001:db8::2")
	for _, c := range []struct {
		peers []*Peer
		want  [3]*Peer // for ::, fd00::1, the last
	}{
		{[]*Peer{all6}, [3]*Peer{all6, all6, all6}},
		{[]*Peer{first6, last6}, [3]*Peer{first6, nil, last6}},
		{[]*Peer{first6, all6, last6}, [3]*Peer{first6, all6, last6}},
	} {
		table := New(c.peers)
		for i, a := range []netip.Addr{netip.IPv6Unspecified(), netip.MustParseAddr("fd00::1"), last6.Subnet.Addr()} {
			if got := table.Lookup(a); got != c.want[i] {
				t.Errorf("Lookup(%v) among %d = %+v, want %+v", a, len(c.peers), got, c.want[i])
			}
		}
	}
	if New([]*Peer{first6}).KnowsOuter(netip.IPv6Unspecified()) || !New([]*Peer{all6}).KnowsOuter(netip.IPv6Unspecified()) {
		t.Error("KnowsOuter(::) is wrong")
	}
	if New([]*Peer{first}).KnowsOuter(addr4(0)) || !New([]*Peer{all}).KnowsOuter(addr4(0)) {
		t.Error("KnowsOuter(0.0.0.0) is wrong")
	}
}

// The families have nothing to do with each other: not even where an IPv6 address maps one of IPv4, or has its
// bits.
func TestFamiliesApart(t *testing.T) {
	four, six := peer("10.1.0.0/24", "192.0.2.1"), peer("fd00::/64", "fd01::1")
	bits := peer("a01::/16", "c000:201::") // the bits of the first one's, from the top
	table := New([]*Peer{six, four, bits, {Subnet: netip.MustParsePrefix("10.2.0.0/24")}})
	for a, want := range map[string]*Peer{
		"10.1.0.1": four, "fd00::1": six, "a01::1": bits, "a01:ffff::": bits,
		"::ffff:10.1.0.1": nil, "::": nil, "::10.1.0.1": nil, "0.0.0.0": nil, "253.0.0.0": nil,
	} {
		if p := table.Lookup(netip.MustParseAddr(a)); p != want {
			t.Errorf("Lookup(%s) = %+v, want %+v", a, p, want)
		}
	}
	for a, want := range map[string]bool{
		"192.0.2.1": true, "fd01::1": true, "c000:201::": true,
		"::ffff:192.0.2.1": false, "::192.0.2.1": false, "253.1.0.0": false, "fd01::": false,
	} {
		if table.KnowsOuter(netip.MustParseAddr(a)) != want {
			t.Errorf("KnowsOuter(%v) is not %v", a, want)
		}
	}
	if table.Lookup(netip.Addr{}) != nil || table.KnowsOuter(netip.Addr{}) {
		t.Error("no address at all is somebody's")
	}
	if table.Lookup(netip.MustParseAddr("10.2.0.1")) == nil {
		t.Error("a peer without a PublicIP holds no subnet")
	}
	if six.Counters == nil || len(table.Peers()) != 4 {
		t.Error("Peers lacks one, or its counters")
	}
	mapped := netip.MustParseAddr("::ffff:10.1.0.1")
	all := New([]*Peer{peer("::/0", "::ffff:192.0.2.1"), {Subnet: netip.PrefixFrom(mapped, 128)}})
	if all.Lookup(mapped) != nil || all.KnowsOuter(netip.MustParseAddr("::ffff:192.0.2.1")) {
		t.Error("an IPv4-mapped address is somebody's")
	}
	if len(slices.Collect(all.OuterSince(nil))) != 0 {
		t.Error("an IPv4-mapped address is a peer's")
	}
}

// A node of both families leases a subnet of each, and has two peers in the table.
func TestOneNodeInBothFamilies(t *testing.T) {
	four, six := peer("10.1.0.0/24", "192.0.2.1"), peer("fd00:1::/64", "2001:db8::1")
	table := New([]*Peer{six, four})
	if !slices.Equal(table.Peers(), []*Peer{four, six}) {
		t.Errorf("Peers = %v, want IPv4 first", table.Peers())
	}
	without := table.With(nil, []netip.Prefix{six.Subnet})
	if without.Lookup(netip.MustParseAddr("10.1.0.1")) != four || without.Lookup(netip.MustParseAddr("fd00:1::1")) != nil ||
		!without.KnowsOuter(four.PublicIP) || without.KnowsOuter(six.PublicIP) {
		t.Error("the subnet of one family went, and that of the other did not stay")
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
		checkSpread(t, name, n, hash4, key)
	}
	const net, eui = 0x20010db800000000, 0x021122fffe000000
	for name, key := range map[string]func(i uint64) wide{
		"IPv6 /64s side by side":          func(i uint64) wide { return wide{net + i, 0} },
		"IPv6 /64s one in 256":            func(i uint64) wide { return wide{net + i<<8, 0} },
		"IPv6 /48s":                       func(i uint64) wide { return wide{net + i<<16, 0} },
		"IPv6 /16s":                       func(i uint64) wide { return wide{i << 48, 0} },
		"IPv6 /80s side by side":          func(i uint64) wide { return wide{net, i << 48} },
		"IPv6 /120s side by side":         func(i uint64) wide { return wide{net, i << 8} },
		"IPv6 /124s at random":            func(i uint64) wide { return wide{net, uint64(random[i]) << 4} },
		"IPv6 hosts counted":              func(i uint64) wide { return wide{net, i} },
		"IPv6 hosts by their MAC":         func(i uint64) wide { return wide{net, eui + i} },
		"IPv6 hosts ::1 in a /64 each":    func(i uint64) wide { return wide{net + i, 1} },
		"IPv6 hosts numbered by subnet":   func(i uint64) wide { return wide{net + i, i} },
		"IPv6 hosts with random ends":     func(i uint64) wide { return wide{net, uint64(random[i]) * 0xd1342543de82ef95} },
		"IPv6 ten hosts in each /64":      func(i uint64) wide { return wide{net + i/10, i % 10} },
		"IPv6 an IPv4 address at the end": func(i uint64) wide { return wide{net, 0x0a000000 + i<<8} },
	} {
		checkSpread(t, name, n, hash6, func(i uint32) wide { return key(uint64(i)) })
	}
}

func checkSpread[K comparable](t *testing.T, name string, n uint32, hash func(K) uint64, key func(i uint32) K) {
	t.Helper()
	x, p := newIndex[K, *Peer](int(n)).edited(hash), new(Peer)
	for i := range n {
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
			total += (i - x.home(hash(s.key))) & (x.size() - 1)
		}
	}
	// Four slots are a cache line. Random keys are 0.5 from home on average, regular ones
	// 0 to 4.
	if mean := float64(total) / float64(n); mean > 5 || longest > 64 {
		t.Errorf("%s: %.2f slots from home on average, %d in a row", name, mean, longest)
	}
}

// benchTable has n /28s spread over 10.0.0.0/9, in no order, and the packets that its peers send: as an inner
// and an outer source each. With few of them these are four, as with a few flows at a time; else uniformly
// random over all.
func benchTable(n int, few bool) (table *Table, inner, outer []netip.Addr) {
	return benchTableOf(n, few, 28, func(i, host uint32) netip.Addr { return addr4(0x0a000000 | i<<4 | host) },
		func(i uint32) netip.Addr { return addr4(0xac100000 | i) })
}

// benchTable6 is the same with /64s, which are spread over a /45.
func benchTable6(n int, few bool) (table *Table, inner, outer []netip.Addr) {
	return benchTableOf(n, few, 64, func(i, host uint32) netip.Addr { return address6(wide{0xfd00001000000000 | uint64(i), uint64(host)}) },
		func(i uint32) netip.Addr { return address6(wide{0x20010db800000000, uint64(i)}) })
}

func benchTableOf(n int, few bool, bits int, addr func(subnet, host uint32) netip.Addr, public func(uint32) netip.Addr) (table *Table, inner, outer []netip.Addr) {
	rng := rand.New(rand.NewPCG(7, 8))
	peers, at := make([]*Peer, n), rng.Perm(1 << 19)[:n]
	for i := range peers {
		peers[i] = &Peer{Subnet: netip.PrefixFrom(addr(uint32(at[i]), 0), bits), PublicIP: public(uint32(i))}
	}
	const packets = 1 << 17
	for i := range packets {
		k := rng.IntN(n)
		if few {
			k = i % 4 * (n / 5)
		}
		inner = append(inner, addr(uint32(at[k]), 1+rng.Uint32N(14)))
		outer = append(outer, peers[k].PublicIP)
	}
	return New(peers), inner, outer
}

func eachBenchTable(b *testing.B, f func(b *testing.B, table *Table, inner, outer []netip.Addr)) {
	for _, n := range []int{10, 1_000, 100_000} {
		for _, senders := range []string{"few", "all"} {
			run := func(family string, table *Table, inner, outer []netip.Addr) {
				b.Run(fmt.Sprintf("peers=%d/senders=%s%s", n, senders, family), func(b *testing.B) {
					b.ReportAllocs()
					f(b, table, inner, outer)
				})
			}
			table, inner, outer := benchTable(n, senders == "few")
			run("", table, inner, outer)
			table, inner, outer = benchTable6(n, senders == "few")
			run("/ipv6", table, inner, outer)
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
