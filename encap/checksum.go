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
