package fib

import (
	"encoding/binary"
	"net/netip"
)

// A key is an address as a number: uint32 for IPv4, wide for IPv6.

// wide is a number of 128 bits.
type wide struct{ hi, lo uint64 }

func (w wide) and(m wide) wide { return wide{w.hi & m.hi, w.lo & m.lo} }

// golden is 2^64 over the golden ratio, for Fibonacci hashing (Knuth, The Art of Computer Programming, volume 3,
// section 6.4), whose upper bits spread keys that lie side by side, or apart by a power of two, evenly.
const golden = 0x9e3779b97f4a7c15

func hash4(key uint32) uint64 { return uint64(key) * golden }

// hash6 gives each half a multiplier of its own (that of the lower half is SplitMix64's: Steele, Lea, Flood 2014),
// so that what differs in both does not cancel out.
func hash6(key wide) uint64 { return key.hi*golden + key.lo*0xbf58476d1ce4e5b9 }

// number4 is an IPv4 address as a number, the first byte uppermost.
func number4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func address4(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}

// mask4 keeps the upper bits.
func mask4(bits int) uint32 { return ^uint32(0) << (32 - bits) }

// isIPv6 tells an IPv6 address from one of IPv4, and from one of IPv4 in IPv6's clothes, which no packet and no
// lease has.
func isIPv6(a netip.Addr) bool { return a.Is6() && !a.Is4In6() }

// number6 is an IPv6 address as a number. A zone, which none of those in packets has, is left out.
func number6(a netip.Addr) wide {
	b := a.As16()
	return wide{binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint64(b[8:])}
}

func address6(n wide) netip.Addr {
	b := binary.BigEndian.AppendUint64(nil, n.hi)
	return netip.AddrFrom16([16]byte(binary.BigEndian.AppendUint64(b, n.lo)))
}

// mask6 keeps the upper bits. A shift by 64 and more gives 0.
func mask6(bits int) wide {
	if bits <= 64 {
		return wide{hi: ^uint64(0) << (64 - bits)}
	}
	return wide{^uint64(0), ^uint64(0) << (128 - bits)}
}
