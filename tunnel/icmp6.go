package tunnel

import (
	"encoding/binary"

	"muslin/encap"
)

// ICMPv6 errors (RFC 4443).

const (
	protoICMPv6 = 58
	ipv6Len     = 40

	icmp6Unreachable = 1
	icmp6NoRoute     = 0 // code: no route to destination
	icmp6NoAddress   = 3 // code: address unreachable
	icmp6TooBig      = 2

	// icmp6Query is the type from which on a message is none of an error (RFC 4443, section 2.1), and
	// icmp6Redirect, which is answered by no error either (section 2.4(e)).
	icmp6Query    = 128
	icmp6Redirect = 137

	// icmp6Max is the longest message, header included, bytes: as much of the offending packet goes into it as
	// every link carries (section 2.4(c)).
	icmp6Max = int(encap.MinInnerMTU6)
)

// build6 makes an ICMPv6 message.
func (s *icmpSender) build6(p []byte, h *encap.Header, code icmpCode, mtu uint16) []byte {
	quote := p[:min(len(p), icmp6Max-ipv6Len-icmpHeaderLen)]
	length := icmpHeaderLen + len(quote)
	m := s.buf[icmpHeadroom : icmpHeadroom+ipv6Len+length]

	binary.BigEndian.PutUint32(m, 6<<28|0xc0<<20) // class selector 6, as the ICMP ones have
	binary.BigEndian.PutUint16(m[4:], uint16(length))
	m[6], m[7] = protoICMPv6, 64
	src, dst := s.source.As16(), h.Src.As16()
	copy(m[8:24], src[:])
	copy(m[24:40], dst[:])

	c := m[ipv6Len:]
	switch code {
	case icmpFragNeeded:
		c[0], c[1] = icmp6TooBig, 0
	case icmpHostUnreachable:
		c[0], c[1] = icmp6Unreachable, icmp6NoAddress
	default:
		c[0], c[1] = icmp6Unreachable, icmp6NoRoute
	}
	binary.BigEndian.PutUint16(c[2:], 0)
	binary.BigEndian.PutUint32(c[4:], uint32(mtu))
	copy(c[icmpHeaderLen:], quote)
	// Over the pseudo-header, too (section 2.3): both addresses, the length, the protocol. Of the last two neither
	// is longer than a word.
	binary.BigEndian.PutUint16(c[2:], ^encap.Sum(c, encap.Sum(m[8:40], addWords(uint16(length), protoICMPv6))))

	return s.buf[:icmpHeadroom+ipv6Len+length]
}

// addWords is the one's complement sum of two words.
func addWords(a, b uint16) uint16 {
	sum := uint32(a) + uint32(b)
	return uint16(sum>>16 + sum)
}

// answerable6 leaves out an ICMPv6 error or redirect, what may be one and does not show it, a packet to many or from
// nobody in particular (RFC 4443, section 2.4(e)), and a fragment other than the first, as with IPv4.
func answerable6(p []byte, h *encap.Header) bool {
	if h.Dst.IsMulticast() || h.Src.IsMulticast() || h.Src.IsUnspecified() || h.Src.IsLoopback() {
		return false
	}
	proto, at, ok := behindExtensions(p[:h.TotalLen], h.Protocol)
	switch {
	case !ok:
		return false
	case proto != protoICMPv6:
		return true
	}
	return at < h.TotalLen && p[at] >= icmp6Query && p[at] != icmp6Redirect
}

// behindExtensions goes over the extension headers of p (RFC 8200, section 4; RFC 7045), of which proto is the first
// or else the transport, and returns the transport and where it begins. ok is false where one is cut short, and in a
// fragment other than the first.
func behindExtensions(p []byte, proto uint8) (transport uint8, at int, ok bool) {
	const hopByHop, routing, fragment, authentication, destination = 0, 43, 44, 51, 60
	for at = ipv6Len; ; {
		length := 0
		switch proto {
		case hopByHop, routing, destination, fragment, authentication:
			if at+8 > len(p) {
				return 0, 0, false
			}
			length = 8 + int(p[at+1])*8
		default:
			return proto, at, true
		}
		switch proto {
		case fragment:
			if binary.BigEndian.Uint16(p[at+2:])&^7 != 0 {
				return 0, 0, false
			}
			length = 8
		case authentication:
			length = 8 + int(p[at+1])*4 // RFC 4302, section 2.2
		}
		proto = p[at]
		if at += length; at > len(p) {
			return 0, 0, false
		}
	}
}
