package tunnel

import (
	"encoding/binary"
	"math/bits"

	"muslin/encap"
	"muslin/tunnel/fib"
)

// TCP MSS clamping (Config.ClampMSS): each end of a connection tells the other, in its first segment, how long those may
// be that it wants to get (RFC 9293, section 3.7.1). What is said through the tunnel, either way, is lowered to what fits.
// It helps where the ICMP errors by which a sender learns the MTU are lost between us and it.

const (
	protoTCP  = 6
	tcpLen    = 20 // bytes, without options
	tcpFlags  = 13 // where they are
	tcpSYN    = 0x02
	tcpCsum   = 16
	optionEnd = 0
	optionNOP = 1
	optionMSS = 2 // 4 bytes: kind, length, and the MSS in two
)

// clamp lowers the MSS of a packet that comes from or goes to the peer, if it is a SYN; nil is a peer that nothing more is
// known of. unfinished says that the checksum field holds just the pseudo-header's sum (gso.Partial).
func (v *VTEP) clamp(p []byte, h *encap.Header, peer *fib.Peer, unfinished bool) {
	if h.Protocol != protoTCP || h.Later {
		return
	}
	mtu := int(v.MTU())
	if peer != nil {
		if path := int(peer.Counters.PathMTU.Load()); path != 0 {
			mtu = min(mtu, path)
		}
	}
	least := 20 // of the IP header, which the options of a packet to come are not taken from
	if v.six {
		least = ipv6Len
	}
	lowerMSS(p[h.HeaderLen:h.TotalLen], uint16(mtu-least-tcpLen), !unfinished)
}

// lowerMSS lowers the MSS that a SYN states to most, and corrects its checksum if it is there.
func lowerMSS(t []byte, most uint16, checksum bool) {
	if len(t) < tcpLen || t[tcpFlags]&tcpSYN == 0 {
		return
	}
	end := min(int(t[12]>>4)*4, len(t))
	for at := tcpLen; at+1 < end && t[at] != optionEnd; {
		if t[at] == optionNOP {
			at++
			continue
		}
		length := int(t[at+1])
		if length < 2 || at+length > end {
			return
		}
		if t[at] == optionMSS && length == 4 {
			value := t[at+2 : at+4]
			was := binary.BigEndian.Uint16(value)
			if was <= most {
				return
			}
			binary.BigEndian.PutUint16(value, most)
			if checksum {
				if at&1 != 0 { // its bytes lie in two words
					was, most = bits.ReverseBytes16(was), bits.ReverseBytes16(most)
				}
				sum := t[tcpCsum : tcpCsum+2]
				binary.BigEndian.PutUint16(sum, updated(binary.BigEndian.Uint16(sum), was, most))
			}
			return
		}
		at += length
	}
}

// updated is a checksum after one word has changed: HC' = ~(~HC + ~m + m'), RFC 1624, section 3.
func updated(sum, was, is uint16) uint16 {
	n := uint32(^sum) + uint32(^was) + uint32(is)
	n = n>>16 + n&0xffff
	return ^uint16(n>>16 + n)
}
