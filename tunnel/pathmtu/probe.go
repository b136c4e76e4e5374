package pathmtu

import (
	"encoding/binary"
	"net/netip"

	"muslin/encap"
)

// A probe is an ICMP echo request of the overlay (RFC 792; RFC 4443, section 4.1) from the base of our subnet to that of
// the peer's, padded to the size in question, in the framing that all packets have. Behind the ICMP header stands a
// random number, by which its answer is known, and a router's word about it: both quote at least that much of it.

const (
	ipv4Len  = 20
	ipv6Len  = 40
	icmpLen  = 8
	nonceLen = 8

	protoICMP   = 1
	protoICMPv6 = 58

	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
)

// ipLen is that of the header.
func ipLen(six bool) int {
	if six {
		return ipv6Len
	}
	return ipv4Len
}

// appendProbe appends a probe's inner packet, size bytes long, to buf.
func appendProbe(buf []byte, from, to netip.Addr, id, seq uint16, nonce uint64, size int) []byte {
	var number [nonceLen]byte
	binary.BigEndian.PutUint64(number[:], nonce)
	return encap.AppendEcho(buf, from, to, id, seq, size, number[:])
}

// parseReply returns the number in an ICMP message that is an echo reply.
func parseReply(c []byte, six bool) (nonce uint64, ok bool) {
	reply := byte(echoReply4)
	if six {
		reply = echoReply6
	}
	if len(c) < icmpLen+nonceLen || c[0] != reply || c[1] != 0 {
		return 0, false
	}
	return binary.BigEndian.Uint64(c[icmpLen:]), true
}

// parseQuote returns the number in the beginning of a probe: framing, headroom bytes, and inner packet. ok is false where
// less is quoted (RFC 792 asks for 8 bytes behind the outer IP header, RFC 1812 for as many as fit into 576).
func parseQuote(d []byte, headroom int, six bool) (nonce uint64, ok bool) {
	at := headroom + ipLen(six)
	if len(d) < at+icmpLen+nonceLen {
		return 0, false
	}
	p, c := d[headroom:], d[at:]
	version, proto, kind := byte(4), p[9], byte(echoRequest4)
	if six {
		version, proto, kind = 6, p[6], echoRequest6
	}
	if p[0]>>4 != version || proto != protoICMP && !six || proto != protoICMPv6 && six || c[0] != kind {
		return 0, false
	}
	return binary.BigEndian.Uint64(c[icmpLen:]), true
}
