package capture

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"

	"muslin/tunnel"
)

// printer writes a packet as a line for a person.
type printer struct {
	vxlan bool // what is in datagrams
	buf   []byte
}

// format appends the line: time, direction, peer, and the packet, and why it was dropped.
func (p *printer) format(b []byte, r *Record) []byte {
	b = r.At.AppendFormat(b, "15:04:05.000000")
	b = append(b, ' ')
	b = append(append(b, direction(r.Inbound)...), "   "[:4-len(direction(r.Inbound))]...)
	if r.Outer {
		var length int
		p.buf, length = r.packet(p.buf[:0])
		b = describe(b, p.buf, length, p.vxlan)
	} else {
		b = describe(b, r.Data, r.Length, p.vxlan && r.Point == tunnel.PointOuter)
		if r.Peer.IsValid() {
			b = append(r.Peer.AppendTo(append(b, " [peer "...)), ']')
		}
	}
	if r.Segments > 1 {
		b = fmt.Appendf(b, " [superpacket of %d]", r.Segments)
	}
	if r.Point == tunnel.PointDrop {
		b = fmt.Appendf(b, " DROPPED %s: %s", r.Reason, tunnel.ExplainDrop(r.Reason))
	}
	return b
}

// describe appends what an IP packet of so many bytes is, or with vxlan what is in the datagram, too.
func describe(b, p []byte, length int, vxlan bool) []byte {
	key, flags, ok := parseFlow(p)
	if !ok {
		return fmt.Appendf(b, "no IP packet, %d bytes", length)
	}
	echo := key.protocol == protoICMP || key.protocol == protoICMP6
	if echo {
		key.srcPort, key.dstPort = 0, 0
	}
	b = appendEnd(b, key.src, key.srcPort)
	b = append(b, " > "...)
	b = appendEnd(b, key.dst, key.dstPort)
	at := 40
	if p[0]>>4 == 4 {
		at = int(p[0]&0xf) * 4
	}
	var rest []byte
	if at <= len(p) {
		rest = p[at:]
	}
	switch {
	case vxlan && key.protocol == protoUDP && len(rest) > 8+8+14:
		return describe(fmt.Appendf(b, ": vxlan %d: ", binary.BigEndian.Uint32(rest[12:])>>8), rest[8+8+14:], length-at-8-8-14, false)
	case key.protocol == protoTCP:
		b = append(append(b, ": tcp "...), flagLetters(flags)...)
		if len(rest) >= 20 {
			b = fmt.Appendf(b, " seq %d", binary.BigEndian.Uint32(rest[4:]))
			if flags&0x10 != 0 {
				b = fmt.Appendf(b, " ack %d", binary.BigEndian.Uint32(rest[8:]))
			}
		}
	case echo && len(rest) >= 8:
		b = append(append(b, ": "...), describeICMP(key.protocol, rest)...)
	default:
		b = append(append(b, ": "...), protocolName(key.protocol)...)
	}
	return fmt.Appendf(b, ", length %d", length)
}

func appendEnd(b []byte, a netip.Addr, port uint16) []byte {
	b = a.AppendTo(b)
	if port != 0 {
		b = strconv.AppendUint(append(b, '.'), uint64(port), 10)
	}
	return b
}

func protocolName(n uint8) string {
	switch n {
	case protoICMP:
		return "icmp"
	case protoTCP:
		return "tcp"
	case protoUDP:
		return "udp"
	case protoICMP6:
		return "icmp6"
	case protoSCTP:
		return "sctp"
	}
	return "ip-proto-" + strconv.Itoa(int(n))
}

// describeICMP is what a message of ICMP or ICMPv6 says, of at least 8 bytes.
func describeICMP(protocol uint8, m []byte) string {
	name := protocolName(protocol)
	if isEcho(protocol, m[0]) {
		what := "echo request"
		if m[0] == 0 || m[0] == 129 {
			what = "echo reply"
		}
		return fmt.Sprintf("%s %s, id %d, seq %d", name, what, binary.BigEndian.Uint16(m[4:]), binary.BigEndian.Uint16(m[6:]))
	}
	switch {
	case protocol == protoICMP && m[0] == 3 && m[1] == 4:
		return fmt.Sprintf("icmp fragmentation needed, MTU %d", binary.BigEndian.Uint16(m[6:]))
	case protocol == protoICMP6 && m[0] == 2:
		return fmt.Sprintf("icmp6 packet too big, MTU %d", binary.BigEndian.Uint32(m[4:]))
	case protocol == protoICMP && m[0] == 3, protocol == protoICMP6 && m[0] == 1:
		return fmt.Sprintf("%s unreachable, code %d", name, m[1])
	case protocol == protoICMP && m[0] == 11, protocol == protoICMP6 && m[0] == 3:
		return name + " time exceeded"
	}
	return fmt.Sprintf("%s type %d, code %d", name, m[0], m[1])
}
