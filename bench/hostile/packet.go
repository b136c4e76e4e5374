package hostile

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
)

// VXLAN is a datagram in the making (RFC 7348, section 5): all that a sender could get wrong.
type VXLAN struct {
	Flags     byte
	VNI       uint32
	Reserved  byte // the last of the VXLAN header
	Dst, Src  net.HardwareAddr
	EtherType uint16
	Inner     []byte
}

// Bytes is the payload of the UDP datagram.
func (f VXLAN) Bytes() []byte {
	b := []byte{f.Flags, 0, 0, 0}
	b = binary.BigEndian.AppendUint32(b, f.VNI<<8|uint32(f.Reserved))
	b = slices.Concat(b, f.Dst, f.Src)
	b = binary.BigEndian.AppendUint16(b, f.EtherType)
	return append(b, f.Inner...)
}

// InnerUDP is an IPv4 packet with a UDP datagram for port 7300 in it, without a UDP checksum. TOS, source and
// destination are the sender's to choose.
func InnerUDP(src, dst netip.Addr, tos byte, payload int) []byte {
	p := UDP(netip.AddrPortFrom(src, 7300), netip.AddrPortFrom(dst, 7300), make([]byte, payload))
	p[1] = tos
	return mendHeader(p)
}

// UDP is an IPv4 packet (RFC 791) with a UDP datagram (RFC 768) in it. The UDP checksum is 0: there is none.
func UDP(src, dst netip.AddrPort, payload []byte) []byte {
	const ttl, protocol = 64, 17
	b := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, ttl, protocol, 0, 0}
	b = slices.Concat(b, src.Addr().AsSlice(), dst.Addr().AsSlice())
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = append(b, 0, 0)
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return mendHeader(b)
}

// Ethernet is a frame with an IPv4 packet in it.
func Ethernet(dst, src net.HardwareAddr, packet []byte) []byte {
	return slices.Concat(dst, src, []byte{0x08, 0x00}, packet)
}

// mendHeader puts the right checksum into an IPv4 header of the usual 20 bytes.
func mendHeader(b []byte) []byte {
	b[10], b[11] = 0, 0
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	return b
}

// changed is a copy of b with one byte replaced, and the header's checksum mended.
func changed(b []byte, at int, value byte) []byte {
	b = slices.Clone(b)
	b[at] = value
	return mendHeader(b)
}
