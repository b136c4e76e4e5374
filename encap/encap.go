// Package encap turns an inner packet into the bytes of an outer UDP datagram, and back.
//
// It knows two framings, both flannel's: VXLAN (RFC 7348) with an inner Ethernet header, and "udp",
// which is the bare inner IP packet. Either carries one address family, inside and outside the same. It touches
// bytes and nothing else: no system call, no clock, no goroutine, no allocation after construction.
package encap

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// Outer header sizes in bytes, without the framing itself.
const (
	OuterIPv4Len = 20 // RFC 791, no options
	OuterIPv6Len = 40 // RFC 8200, no extension headers
	OuterUDPLen  = 8  // RFC 768
)

// Family is an address family: of the packets that a framing carries, and of the datagrams that it makes of them.
type Family uint8

const (
	IPv4 Family = iota // the zero value
	IPv6
)

// String is "IPv4" or "IPv6".
func (f Family) String() string {
	if f == IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

// FamilyOf is an address's family. One of IPv4 that IPv6 maps is of neither, as none at all is: ok is false.
func FamilyOf(a netip.Addr) (f Family, ok bool) {
	if a.Is4() {
		return IPv4, true
	}
	return IPv6, a.Is6() && !a.Is4In6()
}

// MinMTU is what every link of the family must carry.
func (f Family) MinMTU() InnerMTU {
	if f == IPv6 {
		return MinInnerMTU6
	}
	return MinInnerMTU
}

// outerLen is the outer IP header, bytes.
func (f Family) outerLen() int {
	if f == IPv6 {
		return OuterIPv6Len
	}
	return OuterIPv4Len
}

// Framing is how an inner packet is laid into a datagram. Implementations keep no state between calls
// and may be used by several workers at once.
type Framing interface {
	// Name is flannel's backend type: "vxlan" or "udp".
	Name() string

	// Family is the one whose packets it carries; those of the other are a Fault.
	Family() Family

	// Headroom is the number of bytes that Encode writes in front of the inner packet, and that the
	// framing adds to every datagram.
	Headroom() int

	// MinPayload is the length, in bytes, up to which an inner packet may be followed by padding that
	// the link layer added; 0 where there is none.
	MinPayload() int

	// Encode writes the framing over buf[:Headroom()]; buf[Headroom():] holds the inner IP packet and
	// stays as it is. The datagram is then the whole of buf, which the caller keeps owning. dst is the
	// receiving VTEP's MAC; a framing without Ethernet ignores it.
	Encode(buf []byte, dst MAC)

	// Decode checks the framing of a received datagram and returns where the inner IP packet lies in
	// it, as a sub-slice that shares its memory. With any fault but FaultNone the slice is nil. The IP
	// header itself is checked by ParseIPv4 or ParseIPv6, as the family is.
	Decode(datagram []byte) ([]byte, Fault)
}

// Overhead is how many bytes an inner packet grows by: 50 for VXLAN, 28 for udp, and 20 more over IPv6. (flannel
// counts 50 for VXLAN over IPv6, too, and its largest packets are fragmented there.)
func Overhead(f Framing) int { return f.Family().outerLen() + OuterUDPLen + f.Headroom() }

// InnerMTU is the largest inner IP packet, in bytes. It is a type of its own so that it cannot be
// mistaken for an OuterMTU.
type InnerMTU int

// MinInnerMTU is what every IPv4 link must carry (RFC 791, section 3.2).
const MinInnerMTU InnerMTU = 68

// MinInnerMTU6 is what every IPv6 link must carry (RFC 8200, section 5).
const MinInnerMTU6 InnerMTU = 1280

// OuterMTU is the largest outer IP packet, in bytes: the MTU of the underlay interface.
type OuterMTU int

// LeastOuter is what every path is taken to carry whole, header included, whatever anyone says: over IPv6 what each link
// has to (RFC 8200, section 5), over IPv4 what each host has to take (RFC 791, section 3.1), which links of today all
// exceed. Linux believes no ICMP message that says less either (net.ipv4.route.min_pmtu, 552).
func (f Family) LeastOuter() OuterMTU {
	if f == IPv6 {
		return 1280
	}
	return 576
}

// LeastInner is what remains of that inside framing f, but over IPv6 what inner IPv6 is entitled to all the same.
func LeastInner(f Framing) InnerMTU {
	least := f.Family().LeastOuter().Inner(f)
	if f.Family() == IPv6 {
		return max(least, MinInnerMTU6)
	}
	return least
}

// Inner returns what remains of the outer MTU inside framing f.
func (m OuterMTU) Inner(f Framing) InnerMTU { return InnerMTU(int(m) - Overhead(f)) }

// MAC is an Ethernet address, comparable and without a pointer.
type MAC [6]byte

// ParseMAC reads "aa:bb:cc:dd:ee:ff" and its other usual spellings. Anything that is not 48 bits is an
// error.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil {
		return MAC{}, err
	}
	if len(hw) != 6 {
		return MAC{}, fmt.Errorf("MAC %q has %d bytes, want 6", s, len(hw))
	}
	return MAC(hw), nil
}

// String is the lower-case, colon-separated form that flannel writes into leases.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// IsUnicast reports whether the address can belong to one station: the group bit is clear and it is
// not all zeros.
func (m MAC) IsUnicast() bool { return m[0]&1 == 0 && m != MAC{} }

// LocalMAC makes a locally administered unicast address (IEEE 802, second and first bit of the first
// byte) out of six random bytes.
func LocalMAC(random [6]byte) MAC {
	m := MAC(random)
	m[0] = m[0]&^1 | 2
	return m
}

// VNI is a VXLAN network identifier, 24 bits (RFC 7348, section 5). NewVNI is the only way to make one
// that is not zero, so a VNI always fits its field.
type VNI struct{ v uint32 }

// ErrVNIRange says that a number does not fit into a VNI's 24 bits.
var ErrVNIRange = errors.New("a VNI has 24 bits: 0 to 16777215")

// NewVNI refuses what does not fit into 24 bits.
func NewVNI(n uint32) (VNI, error) {
	if n >= 1<<24 {
		return VNI{}, fmt.Errorf("VNI %d: %w", n, ErrVNIRange)
	}
	return VNI{n}, nil
}

// Uint32 is the identifier as a number.
func (v VNI) Uint32() uint32 { return v.v }

// String is the decimal number.
func (v VNI) String() string { return fmt.Sprint(v.v) }
