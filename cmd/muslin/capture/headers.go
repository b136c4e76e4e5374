package capture

import (
	"encoding/binary"
	"net/netip"

	"muslin/encap"
)

// What is around a datagram's payload is the kernel's: it is made up from what is known, so that a reader sees a packet as
// it was on the wire but for what nobody told us (TTL, identification, flow label, DF).

const (
	udpLen  = encap.OuterUDPLen
	protUDP = 17
)

// appendOuter appends the headers of a datagram with a payload of so many bytes. An address that is not known is the
// family's unspecified one.
func appendOuter(b []byte, src, dst netip.AddrPort, ecn uint8, payload int) []byte {
	if src.Addr().Is6() || dst.Addr().Is6() {
		b = append(b, 0x60|ecn>>4, ecn<<4, 0, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(udpLen+payload))
		b = append(b, protUDP, 64)
		s, d := orNone(src.Addr(), true).As16(), orNone(dst.Addr(), true).As16()
		b = append(append(b, s[:]...), d[:]...)
	} else {
		at := len(b)
		b = append(b, 0x45, ecn)
		b = binary.BigEndian.AppendUint16(b, uint16(encap.OuterIPv4Len+udpLen+payload))
		b = append(b, 0, 0, 0, 0, 64, protUDP, 0, 0)
		s, d := orNone(src.Addr(), false).As4(), orNone(dst.Addr(), false).As4()
		b = append(append(b, s[:]...), d[:]...)
		binary.BigEndian.PutUint16(b[at+10:], ^encap.Sum(b[at:], 0))
	}
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(udpLen+payload))
	return append(b, 0, 0)
}

func orNone(a netip.Addr, six bool) netip.Addr {
	switch {
	case a.IsValid():
		return a
	case six:
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// setUDPChecksum finishes the checksum of a whole datagram: of what we send the kernel does just so, and over IPv6 there is
// always one. Of what came over IPv4 it is not known whether there was one; 0 says that there was none (RFC 768).
func setUDPChecksum(p []byte) {
	var at int
	var sum uint16
	var pseudo [4]byte
	if p[0]>>4 == 6 {
		at = encap.OuterIPv6Len
		binary.BigEndian.PutUint16(pseudo[2:], protUDP)
		sum = encap.Sum(p[8:at], 0)
	} else {
		at = encap.OuterIPv4Len
		binary.BigEndian.PutUint16(pseudo[2:], protUDP)
		sum = encap.Sum(p[12:at], 0)
	}
	binary.BigEndian.PutUint16(pseudo[:], uint16(len(p)-at))
	sum = encap.Sum(pseudo[:], sum)
	sum = ^encap.Sum(p[at:], sum)
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(p[at+6:], sum)
}

// Packet is the record as an IP packet, appended to b, and how long it is when nothing is cut.
func (r *Record) packet(b []byte) (p []byte, length int) {
	if !r.Outer {
		return append(b, r.Data...), r.Length
	}
	begin := len(b)
	b = appendOuter(b, r.Src, r.Dst, r.ECN, r.Length)
	length = len(b) - begin + r.Length
	b = append(b, r.Data...)
	if six := b[begin]>>4 == 6; len(r.Data) == r.Length && (six || !r.Inbound) {
		setUDPChecksum(b[begin:])
	}
	return b, length
}
