package encap

import (
	"encoding/binary"
	"net/netip"
)

const ipv6Len = 40

// ParseIPv6 is ParseIPv4 for an overlay of IPv6: it reads an inner packet's header into h, every field of it.
// Extension headers are payload here: nothing on the way depends on them. A jumbogram's payload length is 0
// (RFC 2675), which no datagram's length agrees with. There is no header checksum.
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|Version| Traffic Class |           Flow Label                  |
//	|         Payload Length        |  Next Header  |   Hop Limit   |
//	|                                                               |
//	+                                                               +
//	|                         Source Address                        |
//	+                           (16 bytes)                          +
//	|                                                               |
//	+                                                               +
//	|                                                               |
//	+                      Destination Address                      +
//	|                           (16 bytes)                          |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
func ParseIPv6(p []byte, pad int, h *Header) Fault {
	if len(p) < ipv4MinLen {
		return FaultShort
	}
	switch p[0] >> 4 {
	case 6:
	case 4:
		return FaultIPv4
	default:
		return FaultIPVersion
	}
	if len(p) < ipv6Len {
		return FaultShort
	}
	h.HeaderLen = ipv6Len
	h.TotalLen = ipv6Len + int(binary.BigEndian.Uint16(p[4:]))
	if h.TotalLen > len(p) || h.TotalLen < len(p) && len(p) > pad {
		return FaultIPLength
	}
	h.TOS = p[0]<<4 | p[1]>>4
	h.Protocol = p[6]
	h.DF, h.More, h.Later = false, false, false
	h.Src = netip.AddrFrom16([16]byte(p[8:24]))
	h.Dst = netip.AddrFrom16([16]byte(p[24:40]))
	return FaultNone
}

// FlowHash6 is FlowHash for what ParseIPv6 accepted. Ports count where they lie right behind the header; where
// anything else does, an extension header, a fragment, ICMPv6, the flow label stands in for them (RFC 6438,
// section 3), which all fragments of a packet share. It does not count beside the ports: a kernel sets it anew in the
// midst of a flow.
func FlowHash6(p []byte, h *Header) uint32 {
	b := uint64(h.Protocol)
	switch h.Protocol {
	case protoTCP, protoUDP, protoSCTP:
		if h.TotalLen >= ipv6Len+4 {
			b |= uint64(binary.BigEndian.Uint32(p[ipv6Len:])) << 8
		}
	default:
		b |= uint64(binary.BigEndian.Uint32(p)&0xfffff) << 8
	}
	a := (binary.BigEndian.Uint64(p[8:])*golden ^ binary.BigEndian.Uint64(p[16:])) * golden
	a ^= a >> 32
	a = (a ^ binary.BigEndian.Uint64(p[24:])) * golden
	a ^= a >> 32
	return scatter(a ^ binary.BigEndian.Uint64(p[32:]) ^ b*golden)
}

// setTrafficClass replaces an IPv6 header's traffic class, which lies across two bytes.
func setTrafficClass(p []byte, class uint8) {
	p[0] = 6<<4 | class>>4
	p[1] = class<<4 | p[1]&0x0f
}
