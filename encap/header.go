package encap

import "net/netip"

const (
	protoTCP  = 6
	protoUDP  = 17
	protoSCTP = 132
)

// Header is what the data path needs to know of an inner IP header (RFC 791, section 3.1; RFC 8200, section 3).
type Header struct {
	Src, Dst  netip.Addr
	HeaderLen int   // bytes: IPv4's options included, IPv6's extension headers not
	TotalLen  int   // bytes, header included; never more than the packet that was parsed
	TOS       uint8 // IPv6: the traffic class. DSCP in the upper six bits, ECN in the lower two
	Protocol  uint8 // IPv6: the next header, which may be an extension header
	DF        bool  // IPv4: don't fragment
	More      bool  // IPv4: more fragments follow
	Later     bool  // IPv4: a fragment other than the first: no transport header
}

const golden = 0x9e3779b97f4a7c15 // 2^64 over the golden ratio

// scatter multiplies and folds, with the odd constants of SplitMix64 (Steele, Lea, Flood 2014): flows that
// differ in one bit of a port come out unrelated.
func scatter(x uint64) uint32 {
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 29
	x *= 0x94d049bb133111eb
	return uint32(x >> 32)
}
