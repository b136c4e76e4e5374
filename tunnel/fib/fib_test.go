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
		if !slices.Equal(table.Peers(), peers) {
			t.Fatalf("round %d: Peers is not what New was given", round)
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
			want := slices.ContainsFunc(peers, func(p *Peer) bool { return p.PublicIP == outer })
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

func BenchmarkFIBLookup(b *testing.B) {
	for _, n := range []int{10, 1_000, 100_000} {
		peers := make([]*Peer, n)
		for i := range peers { // /28s side by side from 10.0.0.0 on
			peers[i] = &Peer{Subnet: netip.PrefixFrom(addr4(0x0a000000|uint32(i)<<4), 28), PublicIP: addr4(0xac100000 | uint32(i))}
		}
		table := New(peers)
		rng := rand.New(rand.NewPCG(7, 8))
		probes := make([]netip.Addr, 1024)
		for i := range probes {
			probes[i] = addr4(0x0a000000 | rng.Uint32N(uint32(n)<<4))
		}
		b.Run(fmt.Sprintf("%d_peers", n), func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if table.Lookup(probes[i&1023]) == nil {
					b.Fatal("miss")
				}
				i++
			}
		})
	}
}
