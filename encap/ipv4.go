package encap

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

const ipv4MinLen = 20

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
func ParseIPv4(p []byte, pad int, h *Header) Fault {
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
func VerifyHeader(p []byte, h *Header) bool {
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
// addresses and protocol alone and stay in order. p is what ParseIPv4 accepted.
func FlowHash(p []byte, h *Header) uint32 {
	a := uint64(binary.BigEndian.Uint32(p[12:]))<<32 | uint64(binary.BigEndian.Uint32(p[16:]))
	b := uint64(h.Protocol)
	if !h.More && !h.Later && h.TotalLen >= h.HeaderLen+4 {
		switch h.Protocol {
		case protoTCP, protoUDP, protoSCTP:
			b |= uint64(binary.BigEndian.Uint32(p[h.HeaderLen:])) << 8
		}
	}
	return scatter(a ^ b*golden)
}
