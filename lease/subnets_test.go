package lease

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// slowFree is the twin of subnets.free: every subnet, held against every lease.
func slowFree(s subnets, taken []netip.Prefix, most int) []netip.Prefix {
	var free []netip.Prefix
	for p := netip.PrefixFrom(s.first, s.length); s.fits(p) && len(free) < most; p = nextSubnet(p) {
		if !slices.ContainsFunc(taken, p.Overlaps) {
			free = append(free, p)
		}
		if p.Addr() == s.last {
			break
		}
	}
	return free
}

func TestFreeAgainstTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for round := range 400 {
		// At the start, in the middle and at the end of all addresses.
		network := netip.MustParsePrefix([]string{"10.244.0.0/16", "0.0.0.0/8", "255.255.0.0/16", "2001:db8:42::/56", "::/40", "ffff:ffff:ffff:ff00::/56"}[rng.IntN(6)])
		length := network.Bits() + 2 + rng.IntN(7)
		s := subnets{network, length, network.Addr(), lastSubnet(network, length).Addr()}
		for range rng.IntN(4) {
			s.first = nextSubnet(netip.PrefixFrom(s.first, length)).Addr()
		}
		var taken []netip.Prefix
		for range rng.IntN(60) {
			b := network.Addr().AsSlice()
			at := network.Bits() / 8
			b[at] = byte(rng.Uint32())
			if at+1 < len(b) {
				b[at+1] = byte(rng.Uint32())
			}
			a, _ := netip.AddrFromSlice(b)
			taken = append(taken, netip.PrefixFrom(a, min(a.BitLen(), length-2+rng.IntN(5))).Masked())
		}
		if rng.IntN(3) == 0 {
			taken = append(taken, netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("172.16.0.0/12"))
		}
		most := 1 + rng.IntN(150)
		if got, want := s.free(taken, most), slowFree(s, taken, most); !slices.Equal(got, want) {
			t.Fatalf("round %d: of %s in /%d from %s, with %v taken:\n got %v\nwant %v", round, network, length, s.first, taken, got, want)
		}
	}
}

// One lease that covers 2^62 subnets of ours takes no longer than one that covers one.
func TestFreeBesideAVastLease(t *testing.T) {
	s := subnets{netip.MustParsePrefix("2001::/16"), 100, netip.MustParseAddr("2001::"), netip.MustParseAddr("2001:ffff:ffff:ffff:ffff:ffff:f000:0")}
	free := s.free([]netip.Prefix{netip.MustParsePrefix("2001::/17")}, 2)
	want := []netip.Prefix{netip.MustParsePrefix("2001:8000::/100"), netip.MustParsePrefix("2001:8000::1000:0/100")}
	if !slices.Equal(free, want) {
		t.Errorf("got %v, want %v", free, want)
	}
}

func TestSubnetsCount(t *testing.T) {
	for _, test := range []struct {
		config string
		want   int
	}{
		{`{"Network":"10.244.0.0/16"}`, 255},
		{`{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"2001:db8:42::/48"}`, 255},
		{`{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"2001:db8:42::/60"}`, 15},
		{`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"2001:db8:42::/56"}`, 255},
		{`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"2001:db8::/32"}`, 1<<32 - 1},
		{`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"2001:db8::/62","IPv6SubnetLen":66}`, 15},
		{`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"2001:db8::/124"}`, 3},
		{`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"2000::/3","IPv6SubnetLen":126}`, math.MaxInt},
		{`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"::/0","IPv6SubnetLen":64}`, math.MaxInt},
	} {
		if got := mustConfig(t, test.config).Subnets(); got != test.want {
			t.Errorf("%s: %d subnets, want %d", test.config, got, test.want)
		}
	}
}

func TestFits(t *testing.T) {
	v4, dual, v6 := mustConfig(t, three), mustConfig(t, threeDual), mustConfig(t, threeSix)
	for _, test := range []struct {
		subnet, subnet6  string
		four, both, only bool // whether networks of IPv4, of both and of IPv6 hand it out
	}{
		{"10.244.1.0/24", "", true, false, false},
		{"10.244.1.0/24", "2001:db8:42:1::/64", false, true, false},
		{"", "2001:db8:42:3::/64", false, false, true},
		{"10.244.1.0/24", "2001:db8:42:4::/64", false, false, false}, // above IPv6SubnetMax
		{"10.244.4.0/24", "2001:db8:42:1::/64", false, false, false}, // above SubnetMax
		{"", "2001:db8:42::/64", false, false, false},                // below IPv6SubnetMin
		{"", "2001:db8:42:1::/65", false, false, false},
		{"", "", false, false, false},
	} {
		var a, b netip.Prefix
		if test.subnet != "" {
			a = netip.MustParsePrefix(test.subnet)
		}
		if test.subnet6 != "" {
			b = netip.MustParsePrefix(test.subnet6)
		}
		for c, want := range map[*Config]bool{v4: test.four, dual: test.both, v6: test.only} {
			if got := c.FitsLease(a, b); got != want {
				t.Errorf("%s and %s in %s, %s: %v", a, b, c.Network, c.IPv6Network, got)
			}
		}
	}
	// Each half by itself, of either family.
	for subnet, want := range map[string]bool{"10.244.3.0/24": true, "2001:db8:42:3::/64": true, "10.244.4.0/24": false, "2001:db8:42:4::/64": false, "::ffff:10.244.3.0/120": false} {
		if got := dual.Fits(netip.MustParsePrefix(subnet)); got != want {
			t.Errorf("%s: %v", subnet, got)
		}
	}
	if dual.Fits(netip.Prefix{}) || v4.Fits(netip.MustParsePrefix("2001:db8:42:3::/64")) || v6.Fits(netip.MustParsePrefix("10.244.3.0/24")) {
		t.Error("what is no subnet, or of a family that is not enabled, fits")
	}
}
