package sight

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Numbers of protocols and messages (RFC 792, RFC 4443, IANA).
const (
	protoICMP, protoTCP, protoUDP, protoICMP6 = 1, 6, 17, 58

	echoReply, echoRequest   = 0, 8
	unreachable, exceeded    = 3, 11
	echoRequest6, echoReply6 = 128, 129
	lastError6               = 127 // errors are below

	flagSYN, flagRST, flagACK = 0x02, 0x04, 0x10
)

// header is what is looked at of an IP packet.
type header struct {
	src, dst netip.Addr
	proto    byte
	rest     []byte // what follows the IP header, at least 8 bytes
	len      int    // that the header states, bytes
}

// parse reads an IP packet's beginning; false: it is none, or none of a first fragment.
func parse(b []byte) (h header, ok bool) {
	if len(b) < 20 {
		return h, false
	}
	switch b[0] >> 4 {
	case 4:
		head := int(b[0]&15) * 4
		if head < 20 || len(b) < head+8 || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
			return h, false
		}
		return header{netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), b[9], b[head:], int(binary.BigEndian.Uint16(b[2:]))}, true
	case 6:
		if len(b) < 48 {
			return h, false
		}
		return header{netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:])), b[6], b[40:], 40 + int(binary.BigEndian.Uint16(b[4:]))}, true
	}
	return h, false
}

// number is the protocol's.
func (p *Packet) number() byte {
	switch {
	case p.Proto == TCP:
		return protoTCP
	case p.Proto == UDP:
		return protoUDP
	case p.Dst.Is6():
		return protoICMP6
	}
	return protoICMP
}

// is reports whether h is the packet.
func (p *Packet) is(h *header) bool {
	if h.dst != p.Dst || h.proto != p.number() {
		return false
	}
	if p.Proto == ICMP {
		return (h.rest[0] == echoRequest && h.proto == protoICMP || h.rest[0] == echoRequest6 && h.proto == protoICMP6) && binary.BigEndian.Uint16(h.rest[4:]) == p.ID
	}
	return binary.BigEndian.Uint16(h.rest) == p.SrcPort && binary.BigEndian.Uint16(h.rest[2:]) == p.DstPort
}

// answers says what kind of answer h is; empty: none.
func (p *Packet) answers(h *header) string {
	if h.src != p.Dst || h.proto != p.number() {
		return ""
	}
	if p.Proto == ICMP {
		if (h.rest[0] == echoReply && h.proto == protoICMP || h.rest[0] == echoReply6 && h.proto == protoICMP6) && binary.BigEndian.Uint16(h.rest[4:]) == p.ID {
			return "echo reply"
		}
		return ""
	}
	if binary.BigEndian.Uint16(h.rest) != p.DstPort || binary.BigEndian.Uint16(h.rest[2:]) != p.SrcPort {
		return ""
	}
	if p.Proto == UDP {
		return "datagram"
	}
	switch flags := byte(0); {
	case len(h.rest) < 14:
	default:
		flags = h.rest[13]
		switch {
		case flags&flagRST != 0:
			return RST
		case flags&flagSYN != 0 && flags&flagACK != 0:
			return "SYN/ACK"
		}
	}
	return "segment"
}

// match says what b is to the packet; false: nothing.
func (p *Packet) match(b []byte) (s Sighting, ok bool) {
	h, ok := parse(b)
	if !ok || h.dst != p.Dst && h.src != p.Dst && h.proto != protoICMP && h.proto != protoICMP6 {
		return s, false
	}
	s = Sighting{Bytes: h.len, src: h.src, dst: h.dst}
	if p.is(&h) {
		s.What = Itself
	} else if s.Says = p.answers(&h); s.Says != "" {
		s.What = Answer
	} else if s.Says = p.complains(&h); s.Says != "" {
		s.What = Error
	} else {
		return s, false
	}
	s.Src, s.Dst = h.src.String(), h.dst.String()
	return s, true
}

// complains says what an ICMP error about the packet says; empty: it is none.
func (p *Packet) complains(h *header) string {
	v4 := h.proto == protoICMP && (h.rest[0] == unreachable || h.rest[0] == exceeded)
	v6 := h.proto == protoICMP6 && h.rest[0] < lastError6
	if !v4 && !v6 {
		return ""
	}
	about, ok := parse(h.rest[8:])
	if !ok || !p.is(&about) {
		return ""
	}
	return explain(v6, h.rest[0], h.rest[1])
}

func explain(six bool, kind, code byte) string {
	names := map[[2]byte]string{{3, 0}: "net unreachable", {3, 1}: "host unreachable", {3, 2}: "protocol unreachable", {3, 3}: "port unreachable",
		{3, 4}: "fragmentation needed", {3, 9}: "prohibited", {3, 10}: "prohibited", {3, 13}: "prohibited", {11, 0}: "time exceeded"}
	if six {
		names = map[[2]byte]string{{1, 0}: "no route", {1, 1}: "prohibited", {1, 3}: "address unreachable", {1, 4}: "port unreachable", {1, 5}: "prohibited",
			{1, 6}: "prohibited", {2, 0}: "packet too big", {3, 0}: "hop limit exceeded"}
	}
	if name := names[[2]byte{kind, code}]; name != "" {
		return name
	}
	return fmt.Sprintf("ICMP type %d code %d", kind, code)
}
