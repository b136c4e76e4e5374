package gso

import (
	"encoding/binary"

	"muslin/encap"
)

// Splitter cuts one superpacket after another into segments. The zero value is ready for Reset. It keeps the
// superpacket until the last Next, and does not write to it.
type Splitter struct {
	p      []byte // the superpacket
	l      layout
	size   int    // payload bytes of each segment but the last
	at     int    // where the next segment's payload begins in p
	left   int    // segments to come
	all    int    // segments in all
	id     uint16 // IPv4: the next segment's identification
	seq    uint32 // TCP: the next segment's sequence number
	flags  byte   // TCP: the next segment's flags but those of the last
	ipSum  uint64 // IPv4: sum over the header less total length, identification, checksum
	traSum uint64 // sum over the pseudo and transport headers less lengths, sequence number, flags, checksum
}

// Reset prepares to cut p, a whole IP packet, exactly its length, with Info info. It reports false where p is
// not what info says: another protocol, no segment size, headers that are cut short, a fragment, IPv6
// extension headers that no segment can repeat, or, where info says that the checksum is there, a wrong one.
// Where the headers end is read from p; Linux puts more into info.HeaderLen on forwarded packets.
func (s *Splitter) Reset(p []byte, info Info) bool {
	s.left, s.all = 0, 0
	if info.Kind == None || info.Size == 0 || !s.l.read(p) || s.l.kind() != info.Kind || !info.NeedsCsum && !s.l.verify(p) {
		return false
	}
	l := &s.l
	payload := len(p) - l.headers
	s.p, s.at = p, l.headers
	s.size = min(int(info.Size), payload)
	s.all = 1
	if payload > 0 {
		s.all = (payload + s.size - 1) / s.size
	}
	s.left = s.all

	if !l.v6 {
		s.id = binary.BigEndian.Uint16(p[4:])
		s.ipSum = uint64(encap.Sum(p[:l.transport], 0)) + without(p[2:6]) + without(p[10:12])
	}
	t := p[l.transport:l.headers]
	s.traSum = uint64(l.addressSum(p))
	if l.udp {
		s.traSum += uint64(encap.Sum(t[:4], 0))
		return true
	}
	s.seq, s.flags = binary.BigEndian.Uint32(t[4:]), t[13]
	s.traSum += uint64(encap.Sum(t, 0)) + without(t[4:8]) + without(t[12:14]) + without(t[16:18])
	return true
}

// without is what to add to a sum to take the 16-bit words of b out of it: the sum of their complements.
func without(b []byte) (sum uint64) {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint64(^binary.BigEndian.Uint16(b))
	}
	return sum
}

// Segments is how many segments there are in all.
func (s *Splitter) Segments() int { return s.all }

// HeaderLen is how many bytes of IP and transport header each segment has.
func (s *Splitter) HeaderLen() int { return s.l.headers }

// SegmentLen is the length of the longest segment, headers and payload, in bytes: that of every one but the last.
func (s *Splitter) SegmentLen() int { return s.l.headers + s.size }

// Next writes the next segment's headers to hdr[:HeaderLen()] and returns its payload, borrowed from the
// superpacket. ok is false when there is none left. What differs from segment to segment is what a NIC would
// change: lengths, IPv4 identification, sequence number, checksums; CWR stays on the first alone (RFC 3168,
// section 6.1.2), FIN and PSH on the last.
func (s *Splitter) Next(hdr []byte) (payload []byte, ok bool) {
	if s.left == 0 {
		return nil, false
	}
	s.left--
	end := s.at + s.size
	if s.left == 0 {
		end = len(s.p)
	}
	payload = s.p[s.at:end:end]
	s.at = end

	hdr = hdr[:s.l.headers]
	copy(hdr, s.p)
	n := len(hdr) + len(payload)
	if s.l.v6 {
		binary.BigEndian.PutUint16(hdr[4:], uint16(n-ipv6Len))
	} else {
		binary.BigEndian.PutUint16(hdr[2:], uint16(n))
		binary.BigEndian.PutUint16(hdr[4:], s.id)
		binary.BigEndian.PutUint16(hdr[10:], ^fold(s.ipSum+uint64(n)+uint64(s.id)))
		s.id++
	}
	t := hdr[s.l.transport:]
	n -= s.l.transport
	if s.l.udp {
		binary.BigEndian.PutUint16(t[4:], uint16(n))
		sum := ^encap.Sum(payload, fold(s.traSum+2*uint64(n))) // once in the pseudo-header, once in UDP's own
		if sum == 0 {
			sum = 0xffff // RFC 768: 0 means "no checksum"
		}
		binary.BigEndian.PutUint16(t[6:], sum)
		return payload, true
	}
	binary.BigEndian.PutUint32(t[4:], s.seq)
	flags := s.flags
	if s.left > 0 {
		flags &^= tcpFIN | tcpPSH
	}
	t[13] = flags
	sum := s.traSum + uint64(n) + uint64(s.seq) + uint64(binary.BigEndian.Uint16(t[12:]))
	binary.BigEndian.PutUint16(t[16:], ^encap.Sum(payload, fold(sum)))
	s.seq += uint32(len(payload))
	s.flags &^= tcpCWR
	return payload, true
}
