package tunnel

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	"muslin/encap"
)

// ICMP errors (RFC 792, RFC 1191), for what a router has to answer: no route, too big. Those of ICMPv6 are in
// icmp6.go.

// icmpCode is the code of a "destination unreachable" message, ICMP type 3. It also stands for the ICMPv6 message
// that means the same.
type icmpCode uint8

const (
	icmpNetUnreachable  icmpCode = 0
	icmpHostUnreachable icmpCode = 1
	icmpFragNeeded      icmpCode = 4
)

const (
	icmpUnreachableType = 3
	icmpHeaderLen       = 8

	// icmpQuote is how much of the offending packet goes into the message: up to 576 bytes in all,
	// as a router does (RFC 1812, section 4.3.2.3).
	icmpQuote = 576 - 20 - icmpHeaderLen

	// icmpHeadroom is left in front of the message, as before every packet to a Device.
	icmpHeadroom = 32

	// A stuck sender must not turn us into a flood: from each queue 100 messages a second, 20 at once.
	icmpRate  = 100
	icmpBurst = 20
)

// icmpSender builds ICMP errors into one buffer. One worker uses it.
type icmpSender struct {
	source  netip.Addr
	limiter *rate.Limiter
	now     func() time.Time
	buf     []byte
	id      uint16
}

func (s *icmpSender) init(source netip.Addr, now func() time.Time) {
	s.source = source
	s.now = now
	s.limiter = rate.NewLimiter(icmpRate, icmpBurst)
	length := 576
	if source.Is6() {
		length = icmp6Max
	}
	s.buf = make([]byte, icmpHeadroom+length)
}

// build makes the message about packet p, or returns nil where none may be sent, or over the rate limit. mtu goes
// into the one that says "too big". The result has icmpHeadroom in front and is good until the next call.
func (s *icmpSender) build(p []byte, h *encap.Header, code icmpCode, mtu uint16) []byte {
	six := s.source.Is6()
	if six && !answerable6(p, h) || !six && !answerable(p, h) || !s.limiter.AllowN(s.now(), 1) {
		return nil
	}
	if six {
		return s.build6(p, h, code, mtu)
	}
	return s.build4(p, h, code, mtu)
}

// build4 makes an ICMP message. mtu is for a "fragmentation needed" (RFC 1191, section 4).
func (s *icmpSender) build4(p []byte, h *encap.Header, code icmpCode, mtu uint16) []byte {
	quote := p[:min(len(p), icmpQuote)]
	total := 20 + icmpHeaderLen + len(quote)
	m := s.buf[icmpHeadroom : icmpHeadroom+total]

	s.id++
	m[0], m[1] = 0x45, 0xc0 // precedence 6, internetwork control (RFC 1812, section 4.3.2.5)
	binary.BigEndian.PutUint16(m[2:], uint16(total))
	binary.BigEndian.PutUint16(m[4:], s.id)
	binary.BigEndian.PutUint16(m[6:], 0)
	m[8], m[9] = 64, 1
	binary.BigEndian.PutUint16(m[10:], 0)
	src, dst := s.source.As4(), h.Src.As4()
	copy(m[12:16], src[:])
	copy(m[16:20], dst[:])
	binary.BigEndian.PutUint16(m[10:], ^encap.Sum(m[:20], 0))

	c := m[20:]
	c[0], c[1] = icmpUnreachableType, byte(code)
	binary.BigEndian.PutUint32(c[2:], 0)
	binary.BigEndian.PutUint16(c[6:], mtu)
	copy(c[icmpHeaderLen:], quote)
	binary.BigEndian.PutUint16(c[2:], ^encap.Sum(c, 0))

	return s.buf[:icmpHeadroom+total]
}

// answerable leaves out another ICMP error, a fragment other than the first, a packet to many or from nobody in
// particular (RFC 1812, section 4.3.2.7).
func answerable(p []byte, h *encap.Header) bool {
	if h.Later {
		return false
	}
	if h.Protocol == 1 { // of ICMP, only queries and their replies
		if h.TotalLen <= h.HeaderLen {
			return false
		}
		switch p[h.HeaderLen] {
		case 0, 8, 13, 14: // echo, timestamp
		default:
			return false
		}
	}
	broadcast := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	if h.Dst.IsMulticast() || h.Dst == broadcast {
		return false
	}
	return !h.Src.IsMulticast() && !h.Src.IsUnspecified() && !h.Src.IsLoopback() && h.Src != broadcast
}
