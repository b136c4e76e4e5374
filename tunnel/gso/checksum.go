package gso

import (
	"encoding/binary"

	"muslin/encap"
)

// Complete finishes the checksum that info says is left undone in p, and does nothing where none is. It
// reports false where the offsets lie outside p, or in its IP header: that has been looked at already, and a
// guest of this host, whose virtio header the kernel passes on, could have it changed afterwards. The field holds
// the pseudo-header's sum and is part of what is summed.
func Complete(p []byte, info Info) bool {
	if !info.NeedsCsum {
		return true
	}
	at := int(info.CsumStart) + int(info.CsumOffset)
	if at+2 > len(p) || int(info.CsumStart) < ipHeaderLen(p) {
		return false
	}
	sum := ^encap.Sum(p[info.CsumStart:], 0)
	if sum == 0 && info.CsumOffset == udpCsumOffset {
		sum = 0xffff // RFC 768: 0 means "no checksum"
	}
	binary.BigEndian.PutUint16(p[at:], sum)
	return true
}

// ipHeaderLen is where an IP packet's payload begins, or its first extension header.
func ipHeaderLen(p []byte) int {
	if p[0]>>4 == 6 {
		return 40
	}
	return int(p[0]&15) * 4
}

// Partial returns the Info with which p is handed on as it is, when p is a TCP or UDP packet, no fragment,
// whose checksum field holds just the pseudo-header's sum; ok is false for any other. Linux leaves the field
// so for a NIC to finish (CHECKSUM_PARTIAL), and a kernel VXLAN device over a virtual link delivers inner
// packets in that state. A field that holds the sum by chance and was right loses nothing: finished, it comes
// to the same value.
func Partial(p []byte) (info Info, ok bool) {
	var l layout
	if !l.read(p) || !l.isPartial(p) {
		return Info{}, false
	}
	return l.partial(), true
}

// isPartial reports whether p's checksum field holds just the pseudo-header's sum.
func (l *layout) isPartial(p []byte) bool {
	return binary.BigEndian.Uint16(p[l.transport+l.csumOffset():]) == l.pseudoSum(p, len(p)-l.transport)
}

// verify reports whether p's checksum is right. A UDP packet without one passes.
func (l *layout) verify(p []byte) bool {
	if l.udp && binary.BigEndian.Uint16(p[l.transport+udpCsumOffset:]) == 0 {
		return true
	}
	return encap.Sum(p[l.transport:], l.pseudoSum(p, len(p)-l.transport)) == 0xffff
}

// Superpacket returns the Info of a packet that its sender left to a NIC to segment and that no NIC has
// seen, and sets p's checksum field to the pseudo-header's sum, as the kernel wants it with such an Info. ok
// is false, and p untouched, where p is no such thing.
//
// A kernel VXLAN device over a virtual link sends such packets, and a plain UDP socket receives them whole,
// because the kernel segments only what is UDP GSO itself (udp_unexpected_gso in include/linux/udp.h looks
// for SKB_GSO_UDP_L4, not SKB_GSO_UDP_TUNNEL).
//
// TCP: a packet longer than mtu bytes. Its segment size is not in the packet; mtu, the overlay's, which both
// ends share, stands in for it.
//
// UDP: udpSize is the payload of each segment in bytes as the socket reported it (the UDP_GRO control message
// gives the skb's gso_size, which for a tunnelled superpacket is the inner one); 0 says that it did not, and
// then no UDP packet is one. A superpacket shorter than mtu counts: handed on as one datagram, the reader
// would get several in one.
//
// A checksum that is neither right nor left to the NIC says that p was damaged on the way, which the segments'
// own right checksums would hide, so that is no superpacket either.
func Superpacket(p []byte, mtu, udpSize int) (info Info, ok bool) {
	if len(p) <= mtu && udpSize <= 0 {
		return Info{}, false
	}
	var l layout
	if !l.read(p) {
		return Info{}, false
	}
	size := udpSize
	if !l.udp {
		size = mtu - l.headers
	} else if l.headers+size > mtu || binary.BigEndian.Uint16(p[l.transport+udpCsumOffset:]) == 0 {
		return Info{}, false // UDP GSO without a checksum does not exist: the kernel refuses to send it
	}
	if size <= 0 || len(p)-l.headers <= size {
		return Info{}, false
	}
	pseudo := l.pseudoSum(p, len(p)-l.transport)
	field := p[l.transport+l.csumOffset():]
	if binary.BigEndian.Uint16(field) != pseudo && encap.Sum(p[l.transport:], pseudo) != 0xffff {
		return Info{}, false
	}
	binary.BigEndian.PutUint16(field, pseudo)
	return l.superpacket(p, size), true
}

// superpacket is the Info of a superpacket p with segments of size bytes.
func (l *layout) superpacket(p []byte, size int) Info {
	info := l.partial()
	info.Kind, info.HeaderLen, info.Size = l.kind(), uint16(l.headers), uint16(size)
	info.ECN = !l.udp && p[l.transport+13]&tcpCWR != 0
	return info
}
