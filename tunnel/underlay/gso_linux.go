package underlay

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"muslin/encap"
	"muslin/tunnel/kernel"
)

// sender is one sending socket, and what is known of its UDP_SEGMENT (since Linux 4.18, bec1f6f69736).
type sender struct {
	socket *socket
	least  int // bytes of a datagram that every path takes

	most     int                   // datagrams in one piece, at first
	segments atomic.Int32          // the same, as it is now; 1: none
	size     atomic.Int32          // longest datagram that may be one of several
	paths    atomic.Pointer[paths] // the same of some destinations; nil: of none. Not changed once it is here
	gsoErr   atomic.Pointer[error] // why segments was lowered
}

// unlimited is longer than any datagram.
const unlimited = 1 << 16

// paths are the longest datagrams, bytes, that may be one of several to a destination with a smaller MTU.
type paths map[netip.Addr]int

// mostPaths is how many there may be in one: beyond them all destinations are limited alike.
const mostPaths = 1024

func newSender(s *socket, segments, least int) *sender {
	n := &sender{socket: s, least: least, most: segments}
	n.segments.Store(int32(segments))
	n.size.Store(unlimited)
	return n
}

// takes reports whether a message to a destination may go out in one piece.
func (s *sender) takes(segments, size int, to netip.Addr) bool {
	if segments > int(s.segments.Load()) || size > int(s.size.Load()) {
		return false
	}
	known := s.paths.Load()
	if known == nil {
		return true
	}
	most, there := (*known)[to]
	return !there || size <= most
}

// maxSegmentsBefore69 was UDP_MAX_SEGMENTS until Linux 6.9 (1382e3b6a350), which has 128.
const maxSegmentsBefore69 = 64

// refused notes that a message was sent in pieces only. It gives up as little as the error allows, and
// returns what to tell the operator, which is nothing when there was a refusal before.
func (s *sender) refused(err error, segments, size int, to netip.Addr) string {
	what := s.giveUp(err, segments, size, to)
	if s.gsoErr.Swap(&err) != nil {
		return ""
	}
	return what
}

func (s *sender) giveUp(err error, segments, size int, to netip.Addr) string {
	invalid := errors.Is(err, unix.EINVAL)
	switch {
	case invalid && segments > maxSegmentsBefore69:
		s.segments.Store(maxSegmentsBefore69)
		return fmt.Sprintf("at most %d datagrams in one piece from now on", maxSegmentsBefore69)
	case errors.Is(err, unix.EMSGSIZE), invalid && size > s.least:
		// Longer than the MTU of the way to this peer. Kernels before 6.14 say EINVAL; where that
		// meant something else, it comes again for ever shorter datagrams.
		s.limit(size-1, to)
		return fmt.Sprintf("datagrams of %d bytes and more to %v go out one by one from this source port: the path's MTU is smaller", size, to)
	}
	s.segments.Store(1)
	return "switched off for one source port: the kernel did not send a run of datagrams that it sent one by one"
}

// limit notes what a destination takes at most in one of several datagrams. Another worker may do so at the same time:
// what is lost of it comes again.
func (s *sender) limit(size int, to netip.Addr) {
	old := s.paths.Load()
	known := make(paths)
	if old != nil {
		known = maps.Clone(*old)
	}
	if len(known) == mostPaths {
		s.size.Store(int32(min(int(s.size.Load()), size)))
		return
	}
	if most, there := known[to]; !there || size < most {
		known[to] = size
	}
	s.paths.CompareAndSwap(old, &known)
}

// leastPathMTU is what every IPv4 host takes, or every IPv6 link, less both headers (RFC 791, section 3.1; RFC 8200,
// section 5).
func leastPathMTU(six bool) int {
	if six {
		return 1280 - encap.OuterIPv6Len - encap.OuterUDPLen
	}
	return 576 - encap.OuterIPv4Len - encap.OuterUDPLen
}

// isRefusal tells errors that a message in one piece may get where its datagrams would not: EIO from an
// interface without checksum offload or under an xfrm policy (udp_send_skb), EINVAL for too many segments,
// EMSGSIZE for segments above the MTU.
func isRefusal(err error) bool {
	return errors.Is(err, unix.EIO) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EMSGSIZE)
}

// MaxSegments implements tunnel.UnderlayQueue: the most that any source port takes.
func (q *queue) MaxSegments() int {
	most := int32(1)
	for _, s := range q.conn.senders {
		most = max(most, s.segments.Load())
	}
	return int(most)
}

// PathMTUChanged forgets that datagrams were too long: the underlay's MTU is another one now, or that of a path.
func (c *Conn) PathMTUChanged() {
	for _, s := range c.senders {
		limited := s.paths.Swap(nil) != nil
		if (s.size.Swap(unlimited) != unlimited || limited) && int(s.segments.Load()) == s.most {
			s.gsoErr.Store(nil)
		}
	}
}

// gsoFeature sums up all source ports.
func (c *Conn) gsoFeature() kernel.Feature {
	f := c.cfg.Features.Feature(kernel.UDPGSO)
	if !f.On {
		return f
	}
	var off, limited int
	var why error
	for _, s := range c.senders {
		switch {
		case s.segments.Load() == 1:
			off++
		case s.size.Load() != unlimited || s.paths.Load() != nil || int(s.segments.Load()) < s.most:
			limited++
		default:
			continue
		}
		if p := s.gsoErr.Load(); p != nil {
			why = *p
		}
	}
	if off+limited == 0 {
		f.Reason = fmt.Sprintf("up to %d datagrams in one piece", c.cfg.MaxSegments)
		return f
	}
	f.On = off < len(c.senders)
	f.Reason = fmt.Sprintf("off for %d and limited for %d of %d source ports: %v", off, limited, len(c.senders), why)
	return f
}
