package gso

import (
	"encoding/binary"

	"muslin/encap"
)

const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58

	ipv4MinLen = 20
	ipv6Len    = 40
	tcpMinLen  = 20
	udpLen     = 8

	tcpCsumOffset = 16
	udpCsumOffset = 6

	ipv4DF = 0x4000 // don't fragment, in the 16 bits of flags and fragment offset

	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpACK = 0x10
	tcpECE = 0x40
	tcpCWR = 0x80
)

// layout is where things lie in an IP packet that carries TCP or UDP.
type layout struct {
	v6        bool
	udp       bool // TCP otherwise
	transport int  // where the transport header begins
	headers   int  // where the payload begins
}

// read finds the layout of p, a whole IP packet, and reports whether it has one: TCP or UDP, no fragment, all
// lengths agreeing with len(p) and each other.
func (l *layout) read(p []byte) bool {
	if len(p) < ipv4MinLen {
		return false
	}
	var proto byte
	switch p[0] >> 4 {
	case 4:
		l.v6, l.transport = false, int(p[0]&15)*4
		fragment := binary.BigEndian.Uint16(p[6:])
		if l.transport < ipv4MinLen || int(binary.BigEndian.Uint16(p[2:])) != len(p) || fragment&0x3fff != 0 {
			return false
		}
		proto = p[9]
	case 6:
		// A jumbogram (payload length 0) is none of ours: no datagram of the underlay holds one.
		if len(p) < ipv6Len || ipv6Len+int(binary.BigEndian.Uint16(p[4:])) != len(p) {
			return false
		}
		l.v6 = true
		if proto, l.transport = walkIPv6(p); proto == 0 {
			return false
		}
	default:
		return false
	}
	switch proto {
	case protoTCP:
		if l.transport+tcpMinLen > len(p) {
			return false
		}
		n := int(p[l.transport+12]>>4) * 4
		l.udp, l.headers = false, l.transport+n
		return n >= tcpMinLen && l.headers <= len(p)
	case protoUDP:
		l.udp, l.headers = true, l.transport+udpLen
		return l.headers <= len(p) && int(binary.BigEndian.Uint16(p[l.transport+4:])) == len(p)-l.transport
	}
	return false
}

// walkIPv6 goes over the extension headers that every segment can repeat as they are (RFC 8200, section 4) and
// returns the protocol behind them and where it begins, or protocol 0. A routing header with segments left is
// not passed: the checksum is over another destination than the header's (section 8.1).
func walkIPv6(p []byte) (proto byte, at int) {
	const hopByHop, routing, destination = 0, 43, 60
	proto, at = p[6], ipv6Len
	for proto == hopByHop || proto == routing || proto == destination {
		if at+8 > len(p) || proto == routing && p[at+3] != 0 {
			return 0, 0
		}
		proto, at = p[at], at+8+int(p[at+1])*8
	}
	if proto != protoTCP && proto != protoUDP {
		return 0, 0
	}
	return proto, at
}

// csumOffset is where the checksum lies in the transport header.
func (l *layout) csumOffset() int {
	if l.udp {
		return udpCsumOffset
	}
	return tcpCsumOffset
}

// addressSum is the sum over the pseudo-header of p (RFC 9293, section 3.1; RFC 768; RFC 8200, section 8.1)
// less the length, which is what changes from segment to segment.
func (l *layout) addressSum(p []byte) uint16 {
	proto := uint16(protoTCP)
	if l.udp {
		proto = protoUDP
	}
	if l.v6 {
		return encap.Sum(p[8:40], proto)
	}
	return encap.Sum(p[12:20], proto)
}

// pseudoSum is the sum over the pseudo-header of p for n bytes of transport header and payload.
func (l *layout) pseudoSum(p []byte, n int) uint16 {
	return fold(uint64(l.addressSum(p)) + uint64(n))
}

// kind is what a superpacket of this layout is called.
func (l *layout) kind() Kind {
	switch {
	case l.udp:
		return UDP
	case l.v6:
		return TCPv6
	}
	return TCPv4
}

// partial is the Info of a packet whose checksum is left undone.
func (l *layout) partial() Info {
	return Info{NeedsCsum: true, CsumStart: uint16(l.transport), CsumOffset: uint16(l.csumOffset())}
}

// fold brings a sum of 16-bit words down to one, carries brought around.
func fold(sum uint64) uint16 {
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return uint16(sum>>16 + sum)
}
