package underlay

import (
	"cmp"
	"encoding/binary"
	"math"
	"net/netip"
	"slices"
)

// span is a range of addresses as numbers. Both ends belong to it.
type span struct{ first, last uint32 }

// spans is a set of addresses: ascending, with at least one address that is left out between two of them.
type spans []span

// everything is the set of all addresses.
var everything = spans{{0, math.MaxUint32}}

// spansOf joins single addresses, in any order, to ranges. It sorts addrs.
func spansOf(addrs []uint32) spans {
	slices.Sort(addrs)
	var s spans
	for _, a := range addrs {
		s = s.append(span{a, a})
	}
	return s
}

// append adds a span that begins no earlier than any of s.
func (s spans) append(next span) spans {
	if n := len(s); n > 0 {
		if last := &s[n-1]; last.last == math.MaxUint32 || next.first <= last.last+1 {
			last.last = max(last.last, next.last)
			return s
		}
	}
	return append(s, next)
}

// with is the union.
func (s spans) with(other spans) spans {
	all := slices.Concat(s, other)
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	var union spans
	for _, next := range all {
		union = union.append(next)
	}
	return union
}

// contains reports whether the address is in the set.
func (s spans) contains(addr uint32) bool {
	_, found := slices.BinarySearchFunc(s, addr, func(s span, addr uint32) int {
		switch {
		case s.last < addr:
			return -1
		case s.first > addr:
			return 1
		}
		return 0
	})
	return found
}

// coarse is a set that holds s in at most so many ranges (at least 1): where there are more, the smallest gaps
// are closed.
func (s spans) coarse(most int) spans {
	surplus := len(s) - most
	if surplus <= 0 {
		return s
	}
	gaps := make([]uint32, 0, len(s)-1)
	for i := range s[1:] {
		gaps = append(gaps, s[i+1].first-s[i].last)
	}
	slices.Sort(gaps)
	limit := gaps[surplus-1]
	atLimit := surplus // how many gaps of just that size are to be closed
	for _, g := range gaps[:surplus] {
		if g < limit {
			atLimit--
		}
	}
	out := spans{s[0]}
	for _, next := range s[1:] {
		last := &out[len(out)-1]
		gap := next.first - last.last
		switch {
		case gap < limit:
			last.last = next.last
		case gap == limit && atLimit > 0:
			atLimit--
			last.last = next.last
		default:
			out = append(out, next)
		}
	}
	return out
}

// prefixes are the networks of so many bits (at least 1) around the addresses of s.
func (s spans) prefixes(bits int) spans {
	host := uint32(1)<<(32-bits) - 1
	var out spans
	for _, one := range s {
		out = out.append(span{one.first &^ host, one.last | host})
	}
	return out
}

// number is an address as a number of 32 bits, if it is of the family that is asked for. Of IPv4 it is the address
// itself, the first byte uppermost.
//
// Of IPv6 it is a sum over the address's four words, so that some other addresses have the same number: a filter lets
// those in, too. Hosts that lie side by side in one network have numbers side by side, and make one range.
func number(a netip.Addr, six bool) (n uint32, ok bool) {
	switch {
	case six && a.Is6():
		b := a.As16()
		for i, factor := range wordFactors {
			n += factor * binary.BigEndian.Uint32(b[4*i:])
		}
	case !six && a.Is4():
		b := a.As4()
		n = binary.BigEndian.Uint32(b[:])
	default:
		return 0, false
	}
	return n, true
}

// wordFactors are what an IPv6 address's words count in its number: odd, so that every bit does, and the last 1.
// Three are multipliers of well-known hashes: 2^32 over the golden ratio, and those of MurmurHash3's end.
var wordFactors = [4]uint32{0x85ebca6b, 0xc2b2ae35, 0x9e3779b1, 1}
