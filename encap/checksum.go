package encap

import (
	"encoding/binary"
	"math/bits"

	"golang.org/x/sys/cpu"
)

// Sum is the Internet checksum's folded one's complement sum over b, started from initial (RFC 1071).
// It is not complemented: a region that includes its own correct checksum sums to 0xffff. Only zeros sum to
// 0.
//
// It adds in this machine's byte order and swaps once at the end (RFC 1071, section 2(B)), and adds up the
// most of a long b with sumWide where there is one.
func Sum(b []byte, initial uint16) uint16 {
	var sum, carry uint64
	if len(b) >= wideMin && hasWide {
		n := len(b) &^ 31
		sum = sumWide(b[:n])
		b = b[n:]
	}
	for len(b) >= 64 {
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(b), carry)
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(b[8:]), carry)
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(b[16:]), carry)
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(b[24:]), carry)
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(b[32:]), carry)
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(b[40:]), carry)
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(b[48:]), carry)
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(b[56:]), carry)
		b = b[64:]
	}
	if len(b) >= 32 {
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(b), carry)
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(b[8:]), carry)
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(b[16:]), carry)
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(b[24:]), carry)
		b = b[32:]
	}
	if len(b) >= 16 {
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(b), carry)
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(b[8:]), carry)
		b = b[16:]
	}
	if len(b) >= 8 {
		sum, carry = bits.Add64(sum, binary.NativeEndian.Uint64(b), carry)
		b = b[8:]
	}
	last := uint64(networkOrder(initial))
	if len(b) >= 4 {
		last += uint64(binary.NativeEndian.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		last += uint64(binary.NativeEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) > 0 { // the upper half of a word
		last += uint64(networkOrder(uint16(b[0]) << 8))
	}
	sum, carry = bits.Add64(sum, last, carry)
	return networkOrder(fold(sum + carry)) // after a carry sum is at most last: this cannot carry again
}

// fold adds the four words of a sum, and brings the carries back around. A number plus itself turned by half
// its width has the sum of its halves in the upper half: the lower half carries into it.
func fold(sum uint64) uint16 {
	sum += bits.RotateLeft64(sum, 32)
	half := uint32(sum >> 32)
	half += bits.RotateLeft32(half, 16)
	return uint16(half >> 16)
}

// networkOrder turns a word from this machine's byte order into the network's, or back.
func networkOrder(word uint16) uint16 {
	if cpu.IsBigEndian {
		return word
	}
	return bits.ReverseBytes16(word)
}

// PseudoSum is the sum over the pseudo-header of the TCP or UDP packet p, whose length is h.TotalLen (RFC
// 9293, section 3.1; RFC 768).
func PseudoSum(p []byte, h *IPv4) uint16 {
	s := Sum(p[12:20], 0)
	sum := uint32(s) + uint32(h.Protocol) + uint32(h.TotalLen-h.HeaderLen)
	sum = sum>>16 + sum&0xffff
	return uint16(sum>>16 + sum)
}

// CompletePartial finishes a TCP or UDP checksum that the sender left to its NIC, and reports whether it
// was one. Linux leaves such a field holding just the pseudo-header's sum (CHECKSUM_PARTIAL); a kernel
// VXLAN device over a virtual link delivers inner packets in that state, and a receiver that does not
// finish them sees TCP never connect. A field that holds the same value by chance and was right comes
// out unchanged, since the correct value is unique.
func CompletePartial(p []byte, h *IPv4) bool {
	if h.More || h.Later {
		return false
	}
	var at int // offset of the checksum in the transport header
	switch h.Protocol {
	case protoTCP:
		at = 16
	case protoUDP:
		at = 6
	default:
		return false
	}
	t := p[h.HeaderLen:h.TotalLen]
	if len(t) < at+2 {
		return false
	}
	field := binary.BigEndian.Uint16(t[at:])
	if field != PseudoSum(p, h) {
		return false
	}
	// The field is part of the sum, so the pseudo-header is already in it.
	sum := ^Sum(t, 0)
	if sum == 0 && h.Protocol == protoUDP {
		sum = 0xffff // RFC 768: 0 means "no checksum"
	}
	binary.BigEndian.PutUint16(t[at:], sum)
	return true
}

// updateTOS replaces the TOS byte of an IPv4 header and mends its checksum by difference (RFC 1624,
// equation 3).
func updateTOS(p []byte, tos uint8) {
	old := binary.BigEndian.Uint16(p)
	p[1] = tos
	sum := uint32(^binary.BigEndian.Uint16(p[10:])) + uint32(^old) + uint32(binary.BigEndian.Uint16(p))
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum))
}
