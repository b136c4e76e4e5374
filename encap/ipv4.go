package encap

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

const (
	ipv4MinLen = 20

	protoICMP = 1
	protoTCP  = 6
	protoUDP  = 17
	protoSCTP = 132
)

// IPv4 is what the data path needs to know of an inner IPv4 header (RFC 791, section 3.1).
type IPv4 struct {
	Src, Dst  netip.Addr
	HeaderLen int   // bytes, options included
	TotalLen  int   // bytes, header included; never more than the packet given to ParseIPv4
	TOS       uint8 // DSCP in the upper six bits, ECN in the lower two
	Protocol  uint8
	DF        bool // don't fragment
	More      bool // more fragments follow
	Later     bool // a fragment other than the first: no transport header
}

// ParseIPv4 reads an inner packet's header into h, every field of it. pad is the framing's MinPayload:
// a packet up to that long may carry padding behind its total length; a longer one must be exactly as
// long as it says. After a fault h is undefined. The header checksum is not looked at: see
// VerifyHeader.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|Version|  IHL  |      TOS      |         Total Length          |
//	|         Identification        |Flags|      Fragment Offset    |
//	|      TTL      |    Protocol   |        Header Checksum        |
//	|                         Source Address                        |
//	|                      Destination Address                      |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
func ParseIPv4(p []byte, pad int, h *IPv4) Fault {
	if len(p) < ipv4MinLen {
		return FaultShort
	}
	switch p[0] >> 4 {
	case 4:
	case 6:
		return FaultIPv6
	default:
		return FaultIPVersion
	}
	h.HeaderLen = int(p[0]&0x0f) * 4
	h.TotalLen = int(binary.BigEndian.Uint16(p[2:]))
	if h.HeaderLen < ipv4MinLen || h.HeaderLen > len(p) {
		return FaultIPHeader
	}
	if h.TotalLen < h.HeaderLen || h.TotalLen > len(p) || h.TotalLen < len(p) && len(p) > pad {
		return FaultIPLength
	}
	h.TOS = p[1]
	h.Protocol = p[9]
	fragment := binary.BigEndian.Uint16(p[6:])
	h.DF = fragment&0x4000 != 0
	h.More = fragment&0x2000 != 0
	h.Later = fragment&0x1fff != 0
	h.Src = netip.AddrFrom4([4]byte(p[12:16]))
	h.Dst = netip.AddrFrom4([4]byte(p[16:20]))
	return FaultNone
}

// VerifyHeader checks the IPv4 header checksum of a packet that ParseIPv4 accepted.
func VerifyHeader(p []byte, h *IPv4) bool {
	if h.HeaderLen != ipv4MinLen {
		return Sum(p[:h.HeaderLen], 0) == 0xffff
	}
	// As Sum does it, for the one length that nearly all have. 0xffff is the same in either byte order.
	sum, carry := bits.Add64(binary.NativeEndian.Uint64(p), binary.NativeEndian.Uint64(p[8:]), 0)
	sum, carry = bits.Add64(sum, uint64(binary.NativeEndian.Uint32(p[16:])), carry)
	return fold(sum+carry) == 0xffff
}

// FlowHash spreads inner flows over outer source ports: every packet of one flow has the same hash.
// Fragments carry their ports only in the first, so all of a fragmented packet, and ICMP, hash on
// addresses and protocol alone and stay in order.
func FlowHash(p []byte, h *IPv4) uint32 {
	a := uint64(binary.BigEndian.Uint32(p[12:]))<<32 | uint64(binary.BigEndian.Uint32(p[16:]))
	b := uint64(h.Protocol)
	if !h.More && !h.Later && h.TotalLen >= h.HeaderLen+4 {
		switch h.Protocol {
		case protoTCP, protoUDP, protoSCTP:
			b |= uint64(binary.BigEndian.Uint32(p[h.HeaderLen:])) << 8
		}
	}
	// Multiply and fold, with the odd constants of SplitMix64 (Steele, Lea, Flood 2014): flows that
	// differ in one bit of a port come out unrelated.
	x := (a ^ b*0x9e3779b97f4a7c15) * 0xbf58476d1ce4e5b9
	x ^= x >> 29
	x *= 0x94d049bb133111eb
	return uint32(x >> 32)
}
