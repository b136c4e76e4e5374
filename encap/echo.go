package encap

import (
	"encoding/binary"
	"net/netip"
)

// echoHeaderLen is the length in bytes of the ICMP header of an echo (RFC 792; RFC 4443, section 4.1).
const echoHeaderLen = 8

const (
	protoICMP, echoRequest4   = 1, 8    // RFC 792
	protoICMPv6, echoRequest6 = 58, 128 // RFC 4443
)

// AppendEcho appends an ICMP echo request as an IP packet, size bytes long, to buf. payload stands behind the ICMP header, and zeros
// behind it. size has room for the headers and the payload; both addresses are of one family.
func AppendEcho(buf []byte, from, to netip.Addr, id, seq uint16, size int, payload []byte) []byte {
	at := len(buf)
	buf = append(buf, make([]byte, size)...)
	p := buf[at:]
	six := from.Is6()
	head := ipv4MinLen
	if six {
		head = ipv6Len
	}
	c := p[head:]
	binary.BigEndian.PutUint16(c[4:], id)
	binary.BigEndian.PutUint16(c[6:], seq)
	copy(c[echoHeaderLen:], payload)
	if six {
		p[0] = 6 << 4
		binary.BigEndian.PutUint16(p[4:], uint16(len(c)))
		p[6], p[7] = protoICMPv6, 64
		src, dst := from.As16(), to.As16()
		copy(p[8:], src[:])
		copy(p[24:], dst[:])
		c[0] = echoRequest6
		var pseudo [8]byte // RFC 8200, section 8.1
		binary.BigEndian.PutUint32(pseudo[:], uint32(len(c)))
		pseudo[7] = protoICMPv6
		binary.BigEndian.PutUint16(c[2:], ^Sum(c, Sum(pseudo[:], Sum(p[8:head], 0))))
		return buf
	}
	p[0] = 4<<4 | byte(head/4)
	binary.BigEndian.PutUint16(p[2:], uint16(size))
	binary.BigEndian.PutUint16(p[4:], seq)
	p[8], p[9] = 64, protoICMP
	src, dst := from.As4(), to.As4()
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
	binary.BigEndian.PutUint16(p[10:], ^Sum(p[:head], 0))
	c[0] = echoRequest4
	binary.BigEndian.PutUint16(c[2:], ^Sum(c, 0))
	return buf
}
