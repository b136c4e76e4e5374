package wire

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"muslin/encap"
)

// Sizes in bytes and numbers of the protocols that are written and read here.
const (
	ipv4Len = 20
	ipv6Len = 40
	udpLen  = 8
	icmpLen = 8

	protoICMP   = 1
	protoUDP    = 17
	protoICMPv6 = 58

	echoRequest4, echoReply4 = 8, 0     // RFC 792
	echoRequest6, echoReply6 = 128, 129 // RFC 4443

	unreachable4, unreachable6 = 3, 1 // the same

	echoPayload = 56 // ping(8)'s
)

// ipLen is the length of an address's family's header.
func ipLen(six bool) int {
	if six {
		return ipv6Len
	}
	return ipv4Len
}

// SmallEcho is the length in bytes of a packet that every path takes, in an address's family.
func SmallEcho(to netip.Addr) int { return ipLen(to.Is6()) + icmpLen + echoPayload }

// appendEcho appends an echo request as an IP packet, size bytes long, or SmallEcho with size 0.
func appendEcho(buf []byte, from, to netip.Addr, id, seq uint16, size int) []byte {
	if size == 0 {
		size = SmallEcho(to)
	}
	return encap.AppendEcho(buf, from, to, id, seq, size, nil)
}

// pseudoSum is the sum over the pseudo-header of both addresses (RFC 768; RFC 8200, section 8.1, has the same sum).
func pseudoSum(addresses []byte, proto byte, length int) uint16 {
	var rest [8]byte
	binary.BigEndian.PutUint32(rest[:], uint32(length))
	rest[7] = proto
	return encap.Sum(rest[:], encap.Sum(addresses, 0))
}

// appendUDP appends an IPv4 packet with a UDP datagram and its checksum (RFC 791, RFC 768).
func appendUDP(buf []byte, from, to netip.AddrPort, payload []byte) []byte {
	const dontFragment, hops = 0x4000, 64
	p := make([]byte, ipv4Len+udpLen, ipv4Len+udpLen+len(payload))
	p[0], p[8], p[9] = 4<<4|ipv4Len/4, hops, protoUDP
	binary.BigEndian.PutUint16(p[2:], uint16(ipv4Len+udpLen+len(payload)))
	binary.BigEndian.PutUint16(p[6:], dontFragment)
	copy(p[12:], from.Addr().AsSlice())
	copy(p[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(p[10:], ^encap.Sum(p[:ipv4Len], 0))
	udp := p[ipv4Len:]
	binary.BigEndian.PutUint16(udp, from.Port())
	binary.BigEndian.PutUint16(udp[2:], to.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(udpLen+len(payload)))
	p = append(p, payload...)
	udp = p[ipv4Len:]
	binary.BigEndian.PutUint16(udp[6:], ^encap.Sum(udp, pseudoSum(p[12:ipv4Len], protoUDP, len(udp))))
	return append(buf, p...)
}

// VTEP is who sends and who is meant in a datagram made by hand.
type VTEP struct {
	Base netip.Addr // of the subnet: the overlay's own address
	MAC  encap.MAC
}

// Datagram is the payload of a UDP datagram of the overlay that asks for an echo: of vxlan in its framing, of flannel's udp
// the packet alone.
func Datagram(vxlan bool, vni encap.VNI, from, to VTEP, id, seq uint16) []byte {
	if !vxlan {
		return appendEcho(nil, from.Base, to.Base, id, seq, 0)
	}
	framing := encap.NewVXLAN(vni, from.MAC)
	buf := appendEcho(make([]byte, encap.VXLANHeadroom), from.Base, to.Base, id, seq, 0)
	framing.Encode(buf, to.MAC)
	return buf
}

// Unchecked is the payload of a datagram of the overlay of IPv4, in which nothing has a checksum but the inner IP header: to a port
// where nobody listens, whose host says so, and quotes what has arrived (RFC 1812, section 4.3.2.3). Sent by Door.SendUnchecked it
// is answered also where a hop damages it.
func Unchecked(vxlan bool, vni encap.VNI, from, to VTEP, id, port uint16) []byte {
	headroom := 0
	if vxlan {
		headroom = encap.VXLANHeadroom
	}
	buf := appendUDP(make([]byte, headroom), netip.AddrPortFrom(from.Base, id), netip.AddrPortFrom(to.Base, port), unchecked[:])
	clear(buf[headroom+ipv4Len+6 : headroom+ipv4Len+udpLen]) // RFC 768: no checksum
	if vxlan {
		framing := encap.NewVXLAN(vni, from.MAC)
		framing.Encode(buf, to.MAC)
	}
	return buf
}

// unchecked is what is in it: as long as ping's.
var unchecked = func() (b [echoPayload]byte) {
	for i := range b {
		b[i] = byte(i)
	}
	return b
}()

// Sighting is a packet seen at an interface: a UDP datagram and what is in it, if it is one of the overlay, or an echo reply.
type Sighting struct {
	Out              bool // it leaves
	Iface            int  // index
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16 // 0: it is no UDP
	BadChecksum      bool   // UDP's is there, complete and wrong

	VXLAN              bool // its framing is that of a datagram of VXLAN with a frame of IP in it
	VNI                uint32
	InnerSrc, InnerDst encap.MAC

	// Of the packet inside, or of one that is not inside anything; invalid: there is none.
	From, To      netip.Addr
	Reply         bool // to an echo request, with these numbers
	Request       bool
	EchoID, EchoN uint16

	// Of an ICMP error about a UDP datagram of this host's: what it says, and where that went. By is zero: it is none.
	Refused Refusal
	About   netip.AddrPort

	Closed bool // it says that nobody listens where an Unchecked went; its id and port are EchoID and EchoN
	Spoilt bool // and what it quotes is not what was sent
}

// parse reads a packet from its IP header on, cut perhaps. partial: its UDP checksum is not filled in yet. ok is false for
// what is neither UDP nor an echo reply nor an ICMP error about UDP.
func parse(p []byte, partial bool) (s Sighting, ok bool) {
	proto, payload, length, ok := s.parseIP(p)
	if !ok {
		return s, false
	}
	if proto != protoUDP {
		s.From, s.To = s.Src, s.Dst
		s.parseEcho(proto, payload)
		s.parseError(proto, payload)
		return s, s.Reply || s.Refused.By.IsValid()
	}
	if len(payload) < udpLen {
		return s, false
	}
	s.SrcPort, s.DstPort = binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:])
	stated := int(binary.BigEndian.Uint16(payload[4:]))
	if sum := binary.BigEndian.Uint16(payload[6:]); sum != 0 && !partial && stated == length && stated <= len(payload) {
		addresses := p[12:ipv4Len]
		if s.Src.Is6() {
			addresses = p[8:ipv6Len]
		}
		s.BadChecksum = encap.Sum(payload[:stated], pseudoSum(addresses, protoUDP, stated)) != 0xffff
	}
	s.parseInner(payload[udpLen:])
	return s, true
}

// parseIP reads the header. length is that of what follows it, also where payload is cut.
func (s *Sighting) parseIP(p []byte) (proto byte, payload []byte, length int, ok bool) {
	switch {
	case len(p) >= ipv4Len && p[0]>>4 == 4:
		head := int(p[0]&15) * 4
		total := int(binary.BigEndian.Uint16(p[2:]))
		if head < ipv4Len || len(p) < head || total < head || binary.BigEndian.Uint16(p[6:])&0x1fff != 0 {
			return 0, nil, 0, false
		}
		s.Src, s.Dst = netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:]))
		return p[9], p[head:min(len(p), total)], total - head, true
	case len(p) >= ipv6Len && p[0]>>4 == 6:
		length = int(binary.BigEndian.Uint16(p[4:]))
		s.Src, s.Dst = netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:]))
		return p[6], p[ipv6Len:min(len(p), ipv6Len+length)], length, true
	}
	return 0, nil, 0, false
}

// parseInner reads a datagram's payload: VXLAN, or an IP packet without framing.
func (s *Sighting) parseInner(d []byte) {
	inner := d
	if len(d) >= encap.VXLANHeadroom && binary.BigEndian.Uint32(d) == 0x08<<24 && d[7] == 0 { // RFC 7348, section 5
		if kind := binary.BigEndian.Uint16(d[20:]); kind == 0x0800 || kind == 0x86dd {
			s.VXLAN = true
			s.VNI = binary.BigEndian.Uint32(d[4:]) >> 8
			s.InnerDst, s.InnerSrc = encap.MAC(d[8:14]), encap.MAC(d[14:20])
			inner = d[encap.VXLANHeadroom:]
		}
	}
	var in Sighting
	if proto, payload, _, ok := in.parseIP(inner); ok {
		s.From, s.To = in.Src, in.Dst
		s.parseEcho(proto, payload)
	}
}

// parseError reads an ICMP error that says unreachable, and of its quote where the datagram went.
func (s *Sighting) parseError(proto byte, c []byte) {
	if len(c) < icmpLen || !(proto == protoICMP && c[0] == unreachable4 || proto == protoICMPv6 && c[0] == unreachable6) {
		return
	}
	var quote Sighting
	if proto, udp, _, ok := quote.parseIP(c[icmpLen:]); ok && proto == protoUDP && len(udp) >= 4 {
		s.Refused = Refusal{By: s.Src, Type: c[0], Code: c[1]}
		s.About = netip.AddrPortFrom(quote.Dst, binary.BigEndian.Uint16(udp[2:]))
	}
}

func (s *Sighting) parseEcho(proto byte, c []byte) {
	if len(c) < icmpLen || proto != protoICMP && proto != protoICMPv6 {
		return
	}
	s.Reply = proto == protoICMP && c[0] == echoReply4 || proto == protoICMPv6 && c[0] == echoReply6
	s.Request = proto == protoICMP && c[0] == echoRequest4 || proto == protoICMPv6 && c[0] == echoRequest6
	if s.Reply || s.Request {
		s.EchoID, s.EchoN = binary.BigEndian.Uint16(c[4:]), binary.BigEndian.Uint16(c[6:])
		return
	}
	const closed, whole = 3, ipv4Len + udpLen + len(unchecked) // RFC 792
	quote := c[icmpLen:]
	if proto != protoICMP || c[0] != unreachable4 || c[1] != closed || len(quote) < ipv4Len+udpLen {
		return
	}
	udp := quote[ipv4Len:]
	s.Closed, s.Spoilt = true, len(quote) != whole || binary.BigEndian.Uint16(quote[2:]) != uint16(whole) || quote[9] != protoUDP || !bytes.Equal(udp[udpLen:], unchecked[:])
	s.EchoID, s.EchoN = binary.BigEndian.Uint16(udp), binary.BigEndian.Uint16(udp[2:])
}
