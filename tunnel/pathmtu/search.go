package pathmtu

import (
	"slices"
	"time"
)

const (
	// tries is how often a size is sent before its silence means that it does not pass (RFC 8899, section 5.1.2,
	// MAX_PROBES).
	tries = 3

	// patience is how long an answer may take at first, and once a round trip was seen, four of those, within limits: a
	// size that vanishes has to be told from one that is slow, and both from loss.
	patience      = time.Second
	leastPatience = 200 * time.Millisecond

	// grain is how near the path's MTU a search comes, bytes, and near is how near it is to be before what is known so far
	// is put to use: who learns a smaller MTU keeps it for minutes.
	grain = 8
	near  = 64
)

// common are outer MTUs that are met in practice: jumbo frames, Ethernet, and what is left of it by PPPoE (RFC 2516), IPIP,
// GRE, VXLAN, WireGuard, IPsec, clouds and mobile networks; then IPv6's least, and steps down to IPv4's.
var common = []int{8951, 8500, 4352, 2002, 1500, 1492, 1480, 1476, 1460, 1450, 1436, 1420, 1400, 1380, 1340, 1300, 1280, 1200, 1000, 750}

// search finds out how long a packet to one peer may be. Sizes are inner packets', bytes. It sends nothing and knows no
// clock. Its rule is that of RFC 8899: what was answered passes; what is not answered three times does not, if something
// shorter is.
type search struct {
	full, floor int // the longest packet there is, and what passes everywhere
	overhead    int // from an inner packet to an outer one

	passes int // the longest that was answered; 0: none
	fails  int // the shortest that does not pass; full+1: none
	icmp   bool
	sizes  []size // to be tried, those between passes and fails, ascending
	wide   bool   // the common sizes are among them
	wait   time.Duration
}

// size is one that is being tried.
type size struct {
	bytes int
	sent  int // how often
	last  time.Time
}

// newSearch begins with the longest packet. first is what passed before, 0: nothing is known.
func newSearch(full, floor, overhead, first int) *search {
	s := &search{full: full, floor: min(floor, full), overhead: overhead, fails: full + 1, wait: patience}
	s.add(s.floor)
	s.add(full)
	if first > 0 {
		s.add(first)
	}
	return s
}

// add takes a size in that is worth trying.
func (s *search) add(bytes int) {
	if bytes < s.floor || bytes <= s.passes || bytes >= s.fails {
		return
	}
	if i, there := slices.BinarySearchFunc(s.sizes, bytes, func(z size, b int) int { return z.bytes - b }); !there {
		s.sizes = slices.Insert(s.sizes, i, size{bytes: bytes})
	}
}

// settle drops the sizes that nothing is left to learn of.
func (s *search) settle() {
	s.sizes = slices.DeleteFunc(s.sizes, func(z size) bool { return z.bytes <= s.passes || z.bytes >= s.fails })
}

// answered takes note of an answer to a packet of so many bytes, and of the time that it took.
func (s *search) answered(bytes int, took time.Duration) {
	s.passes = max(s.passes, bytes)
	s.wait = min(max(4*took, leastPatience), patience)
	if s.fails <= s.passes { // an earlier verdict was wrong
		s.fails, s.icmp = s.full+1, false
		if s.passes < s.full {
			s.add(s.full)
		}
	}
	s.settle()
}

// tooLong takes note that a packet of so many bytes does not pass, by a router's or this host's own word: of packets that
// are longer than mtu. 0, or what cannot be true, says nothing more.
func (s *search) tooLong(bytes, mtu int) {
	if bytes >= s.fails || bytes <= s.passes {
		return
	}
	s.fails, s.icmp = bytes, true
	if mtu < bytes && (mtu == 0 || mtu >= s.passes) { // what has passed is not longer than what passes
		mtu = max(mtu, s.floor)
		s.add(mtu)
		if mtu > s.floor {
			s.fails = mtu + 1
		}
	}
	s.settle()
}

// limit is what is known so far of how long a packet may be, or 0 where it is nothing.
func (s *search) limit() int {
	switch {
	case s.fails > s.full: // no size is known not to pass
		return 0
	case s.icmp && s.fails-1 > s.passes && s.wants(s.fails-1): // whom a router tells so has no need to wait
		return s.fails - 1
	case s.passes > 0 && s.fails-s.passes <= near:
		return s.passes
	}
	return 0
}

func (s *search) wants(bytes int) bool {
	return slices.ContainsFunc(s.sizes, func(z size) bool { return z.bytes == bytes })
}

// verdict of a search.
type verdict int

const (
	searching verdict = iota
	found             // see limit: 0 says that everything passes
	silent            // the peer answers nothing
)

// next says which sizes to send now, borrowed until the next call, or how the search ended.
func (s *search) next(now time.Time, send []int) ([]int, verdict) {
	send = send[:0]
	for {
		if len(s.sizes) == 0 {
			if s.passes == 0 {
				return send, silent
			}
			if s.passes == s.full || s.fails-s.passes <= grain {
				return send, found
			}
			if s.wide {
				s.narrow()
			}
			s.widen()
			continue
		}
		for i := range s.sizes {
			if z := &s.sizes[i]; z.sent == 0 {
				send = append(send, z.bytes)
				z.sent, z.last = 1, now
			}
		}
		// Of those that are sent the shortest decides.
		z := &s.sizes[0]
		if now.Sub(z.last) < s.wait {
			return send, searching
		}
		if s.passes > 0 && !s.wide {
			s.widen() // in one go with the next try
			continue
		}
		if z.sent < tries {
			send = append(send, z.bytes)
			z.sent++
			z.last = now
			return send, searching
		}
		if s.passes == 0 {
			// Neither this one nor a longer one is answered.
			s.sizes = nil
			continue
		}
		s.fails = z.bytes
		s.settle()
	}
}

// widen adds the common sizes.
func (s *search) widen() {
	s.wide = true
	for _, outer := range common {
		s.add(outer - s.overhead)
	}
}

// narrow adds some sizes between what passes and what does not.
func (s *search) narrow() {
	const parts = 8
	for i := 1; i < parts; i++ {
		s.add(s.passes + (s.fails-s.passes)*i/parts)
	}
}
