// Package gso cuts superpackets into segments. It touches bytes only.
package gso

import (
	"encoding/binary"

	"muslin/encap"
)

const (
	protoTCP     = 6
	tcpHeaderLen = 20

	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpCWR = 0x80
)

// TCPSegments is a TCP superpacket on its way to being cut: one value for one packet.
//
// A superpacket is a TCP packet that its sender left to a NIC to segment (TSO) and that no NIC has seen: a
// kernel VXLAN device over a virtual link sends such, and a plain UDP socket receives them whole, because
// the kernel segments only what is UDP GSO itself (udp_unexpected_gso in include/linux/udp.h looks for
// SKB_GSO_UDP_L4, not SKB_GSO_UDP_TUNNEL). Its segment size is not in the packet; the overlay's MTU, which
// both ends share, stands in for it.
type TCPSegments struct {
	p       []byte // the superpacket
	ip      encap.IPv4
	headers int // length of the IP and TCP headers
	size    int // payload of a segment
	at      int // where the next segment's payload starts in p
	id      uint16
}

// SplitTCP prepares to cut p, whose header is h, into packets of at most mtu bytes. It keeps p until the
// last Next. ok is false where p is no TCP superpacket: another protocol, a fragment, short enough as it
// is, or with a checksum that is neither right nor left to the NIC, which segments of their own right
// checksums would hide.
func SplitTCP(p []byte, h *encap.IPv4, mtu int) (s TCPSegments, ok bool) {
	if h.Protocol != protoTCP || h.More || h.Later || h.TotalLen <= mtu || h.TotalLen < h.HeaderLen+tcpHeaderLen {
		return s, false
	}
	t := p[h.HeaderLen:h.TotalLen]
	tcpLen := int(t[12]>>4) * 4
	headers := h.HeaderLen + tcpLen
	if tcpLen < tcpHeaderLen || headers >= min(h.TotalLen, mtu) {
		return s, false
	}
	pseudo := encap.PseudoSum(p, h)
	if partial := binary.BigEndian.Uint16(t[16:]) == pseudo; !partial && encap.Sum(t, pseudo) != 0xffff {
		return s, false
	}
	return TCPSegments{
		p: p[:h.TotalLen], ip: *h, headers: headers, size: mtu - headers, at: headers,
		id: binary.BigEndian.Uint16(p[4:]),
	}, true
}

// More reports whether there is another segment.
func (s *TCPSegments) More() bool { return s.at < len(s.p) }

// Next writes the next segment, a whole IP packet, to the start of buf, which has room for mtu bytes, and
// returns its length. What differs from segment to segment is what a NIC would change: total length, IP
// identification, sequence number, checksums; CWR stays on the first alone (RFC 3168, section 6.1.2), FIN
// and PSH on the last.
func (s *TCPSegments) Next(buf []byte) int {
	end := min(s.at+s.size, len(s.p))
	n := s.headers + end - s.at
	b := buf[:n]
	copy(b, s.p[:s.headers])
	copy(b[s.headers:], s.p[s.at:end])

	binary.BigEndian.PutUint16(b[2:], uint16(n))
	binary.BigEndian.PutUint16(b[4:], s.id)
	binary.BigEndian.PutUint16(b[10:], 0)
	binary.BigEndian.PutUint16(b[10:], ^encap.Sum(b[:s.ip.HeaderLen], 0))

	t := b[s.ip.HeaderLen:]
	seq := binary.BigEndian.Uint32(t[4:]) + uint32(s.at-s.headers)
	binary.BigEndian.PutUint32(t[4:], seq)
	if s.at > s.headers {
		t[13] &^= tcpCWR
	}
	if end < len(s.p) {
		t[13] &^= tcpFIN | tcpPSH
	}
	s.ip.TotalLen = n
	binary.BigEndian.PutUint16(t[16:], 0)
	binary.BigEndian.PutUint16(t[16:], ^encap.Sum(t, encap.PseudoSum(b, &s.ip)))

	s.at = end
	s.id++
	return n
}
