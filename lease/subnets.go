package lease

import (
	"encoding/binary"
	"math"
	"math/bits"
	"net/netip"
	"slices"
)

// subnets is what may be leased of one address family; the zero value: nothing, the family is not enabled.
type subnets struct {
	network     netip.Prefix
	length      int
	first, last netip.Addr
}

func (c *Config) v4() subnets { return subnets{c.Network, c.SubnetLen, c.SubnetMin, c.SubnetMax} }

func (c *Config) v6() subnets {
	return subnets{c.IPv6Network, c.IPv6SubnetLen, c.IPv6SubnetMin, c.IPv6SubnetMax}
}

// Subnets is how many leases the network has room for, SubnetMin and SubnetMax included; with both families
// enabled that of the smaller one. It is never more than the largest int.
func (c *Config) Subnets() int {
	count := math.MaxInt
	for _, s := range []subnets{c.v4(), c.v6()} {
		if s.enabled() {
			count = min(count, s.count())
		}
	}
	return count
}

// Fits reports whether the subnet, of either family, is one that this config hands out.
func (c *Config) Fits(subnet netip.Prefix) bool {
	if subnet.Addr().Is4() {
		return c.v4().fits(subnet)
	}
	return c.v6().fits(subnet)
}

// FitsLease reports whether a lease has a subnet that this config hands out of each family that is enabled, and
// none of another.
func (c *Config) FitsLease(subnet, subnet6 netip.Prefix) bool {
	half := func(s subnets, p netip.Prefix) bool {
		if !s.enabled() {
			return !p.IsValid()
		}
		return s.fits(p)
	}
	return half(c.v4(), subnet) && half(c.v6(), subnet6)
}

func (s subnets) enabled() bool { return s.network.IsValid() }

func (s subnets) count() int {
	firstHigh, firstLow := number(s.first)
	lastHigh, lastLow := number(s.last)
	low, borrow := bits.Sub64(lastLow, firstLow, 0)
	high, _ := bits.Sub64(lastHigh, firstHigh, borrow)
	shift := s.first.BitLen() - s.length
	if shift >= 64 {
		high, low = 0, high>>(shift-64)
	} else {
		high, low = high>>shift, low>>shift|high<<(64-shift)
	}
	if high > 0 || low >= math.MaxInt {
		return math.MaxInt
	}
	return int(low) + 1
}

// number is an address as one of 128 bits.
func number(a netip.Addr) (high, low uint64) {
	if a.Is4() {
		b := a.As4()
		return 0, uint64(binary.BigEndian.Uint32(b[:]))
	}
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

func (s subnets) fits(p netip.Prefix) bool {
	return s.enabled() && p.IsValid() && p.Addr().BitLen() == s.first.BitLen() && p.Bits() == s.length && p == p.Masked() &&
		!p.Addr().Less(s.first) && !s.last.Less(p.Addr())
}

// free returns the first subnets that overlap none of those taken, at most so many, in ascending order.
func (s subnets) free(taken []netip.Prefix, most int) []netip.Prefix {
	taken = slices.DeleteFunc(slices.Clone(taken), func(t netip.Prefix) bool { return !t.Overlaps(s.network) })
	slices.SortFunc(taken, netip.Prefix.Compare)
	var free []netip.Prefix
	p := netip.PrefixFrom(s.first, s.length)
	for len(free) < most && s.fits(p) {
		for len(taken) > 0 && lastAddr(taken[0]).Less(p.Addr()) {
			taken = taken[1:]
		}
		after := p
		if len(taken) > 0 && taken[0].Overlaps(p) {
			after = netip.PrefixFrom(lastAddr(taken[0]), s.length).Masked() // where several lie in it
		} else {
			free = append(free, p)
		}
		next := nextSubnet(after)
		if !p.Addr().Less(next.Addr()) {
			break // round the end of all addresses
		}
		p = next
	}
	return free
}

func lastAddr(p netip.Prefix) netip.Addr { return lastSubnet(p.Masked(), p.Addr().BitLen()).Addr() }

// nextSubnet is the subnet of the same length behind p; past the last one it wraps around to the zero
// address.
func nextSubnet(p netip.Prefix) netip.Prefix {
	b := p.Addr().AsSlice()
	bit := p.Bits() - 1
	for i, add := bit/8, uint16(1)<<(7-bit%8); i >= 0 && add > 0; i-- {
		add += uint16(b[i])
		b[i] = byte(add)
		add >>= 8
	}
	next, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(next, p.Bits())
}

// lastSubnet is the last one of that length in the network.
func lastSubnet(network netip.Prefix, length int) netip.Prefix {
	b := network.Addr().AsSlice()
	for bit := network.Bits(); bit < length; bit++ {
		b[bit/8] |= 1 << (7 - bit%8)
	}
	last, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(last, length)
}
