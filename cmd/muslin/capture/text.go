package capture

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"

	"muslin/lease"
	"muslin/tunnel"
)

// framing is what is in datagrams.
type framing string

const (
	unknownFraming framing = ""
	vxlanFraming   framing = "vxlan"
	udpFraming     framing = "udp" // an IP packet
	wireGuard      framing = "wireguard"
)

// framingOf is that of a backend.
func framingOf(backend string) framing {
	switch backend {
	case lease.BackendVXLAN:
		return vxlanFraming
	case lease.BackendUDP:
		return udpFraming
	case lease.BackendWireGuard:
		return wireGuard
	}
	return unknownFraming
}

// printer writes a packet as a line for a person.
type printer struct {
	framing framing
	buf     []byte
}

// format appends the line: time, direction, peer, and the packet, and why it was dropped.
func (p *printer) format(b []byte, r *Record) []byte {
	b = r.At.AppendFormat(b, "15:04:05.000000")
	b = append(b, ' ')
	b = append(append(b, direction(r.Inbound)...), "   "[:4-len(direction(r.Inbound))]...)
	if r.Outer {
		var length int
		p.buf, length = r.packet(p.buf[:0])
		b = describe(b, p.buf, length, p.framing)
	} else {
		inside := unknownFraming
		if r.Point == tunnel.PointOuter {
			inside = p.framing
		}
		b = describe(b, r.Data, r.Length, inside)
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

// describe appends what an IP packet of so many bytes is, and what is in a datagram of that framing.
func describe(b, p []byte, length int, inside framing) []byte {
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
	if key.protocol == protoUDP && len(rest) > 8 && inside != unknownFraming {
		if out := describeInside(b, rest[8:], length-at-8, inside); out != nil {
			return out
		}
	}
	switch {
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

// describeInside appends what a datagram's payload is, of so many bytes; nil: it is none of that framing.
func describeInside(b, payload []byte, length int, inside framing) []byte {
	switch inside {
	case vxlanFraming:
		const headers = 8 + 14
		if len(payload) > headers {
			return describe(fmt.Appendf(b, ": vxlan %d: ", binary.BigEndian.Uint32(payload[4:])>>8), payload[headers:], length-headers, unknownFraming)
		}
	case udpFraming:
		if _, _, ok := parseFlow(payload); ok {
			return describe(append(b, ": udp: "...), payload, length, unknownFraming)
		}
	case wireGuard:
		// The message types of WireGuard's paper, section 5.4.
		if what := [...]string{"", "handshake initiation", "handshake response", "cookie reply", "data"}; len(payload) >= 4 && payload[0] >= 1 && payload[0] <= 4 {
			return fmt.Appendf(b, ": wireguard %s, length %d", what[payload[0]], length)
		}
	}
	return nil
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
	about := ""
	if key, _, ok := parseFlow(m[8:]); ok {
		if isError := protocol == protoICMP && (m[0] == 3 || m[0] == 11) || protocol == protoICMP6 && m[0] < 128; isError {
			about = fmt.Sprintf(" (about %s to %s)", protocolName(key.protocol), appendEnd(nil, key.dst, key.dstPort))
		}
	}
	switch {
	case protocol == protoICMP && m[0] == 3 && m[1] == 4:
		return fmt.Sprintf("icmp fragmentation needed, MTU %d%s", binary.BigEndian.Uint16(m[6:]), about)
	case protocol == protoICMP6 && m[0] == 2:
		return fmt.Sprintf("icmp6 packet too big, MTU %d%s", binary.BigEndian.Uint32(m[4:]), about)
	case protocol == protoICMP && m[0] == 3, protocol == protoICMP6 && m[0] == 1:
		what := unreachable[protocol][m[1]]
		if what == "" {
			what = fmt.Sprintf("unreachable, code %d", m[1])
		}
		return name + " " + what + about
	case protocol == protoICMP && m[0] == 11, protocol == protoICMP6 && m[0] == 3:
		return name + " time exceeded" + about
	}
	return fmt.Sprintf("%s type %d, code %d", name, m[0], m[1])
}

// unreachable is what the codes say (RFC 792, RFC 1812 section 5.2.7.1, RFC 4443 section 3.1).
var unreachable = map[uint8]map[uint8]string{
	protoICMP:  {0: "net unreachable", 1: "host unreachable", 2: "protocol unreachable", 3: "port unreachable", 9: "net prohibited", 10: "host prohibited", 13: "prohibited by a filter"},
	protoICMP6: {0: "no route", 1: "prohibited", 3: "address unreachable", 4: "port unreachable", 5: "source prohibited", 6: "route rejected"},
}
