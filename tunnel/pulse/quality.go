package pulse

import (
	"time"

	"muslin/tunnel/fib"
)

const (
	// spans of at least spanLong each are what a loss is over: the last minute. Where a peer is asked more seldom each has one request.
	spans    = 6
	spanLong = 10 * time.Second

	// enough requests say something about loss. A peer that is down has not answered so many.
	enough = tries

	// smooth is the weight of what was measured before, against 1 of the new round trip: TCP's (RFC 6298, section 2, alpha = 1/8).
	smooth = 7
)

// Quality is what the way to a peer and back is like, as far as echo requests tell.
type Quality struct {
	RTT   time.Duration // the round trip, smoothed; 0: not known
	Loss  float64       // of Asked requests, the share that was not answered within a second
	Asked int           // in the last minute, or the last few if they are rarer; 0: the loss is not known
}

// Quality may be called from anywhere. It is not known of a peer that packets come from and that has never answered:
// something keeps requests away from it, such as its firewall, and that says nothing about other packets.
func (p *Prober) Quality(peer *fib.Peer) Quality {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.records[peer.Counters]
	if r == nil || r.answered.IsZero() && r.state != Down {
		return Quality{}
	}
	q := r.history.quality()
	if r.state == Down {
		q.RTT = 0
	}
	return q
}

// roundTrip is from when a request left until the kernel got the answer, which is sooner than we did: a process waits for a
// processor. A wall clock that was set meanwhile does not count.
func roundTrip(left, kernel, now time.Time) time.Duration {
	if d := kernel.Sub(left.Round(0)); !kernel.IsZero() && d > 0 {
		return min(d, now.Sub(left))
	}
	return now.Sub(left)
}

// history is what became of the last requests to a peer.
type history struct {
	rtt   time.Duration
	spans [spans]span
	now   int // the span that is being filled
}

type span struct {
	began       time.Time
	asked, lost uint16
}

// add takes what became of a request: the round trip of one that was answered. The first after a pause does not go by those
// before it: the way may be another.
func (h *history) add(now time.Time, answered bool, rtt time.Duration, first bool) {
	s := &h.spans[h.now]
	if s.asked > 0 && now.Sub(s.began) >= spanLong {
		h.now = (h.now + 1) % spans
		s = &h.spans[h.now]
		*s = span{}
	}
	if s.asked == 0 {
		s.began = now
	}
	s.asked++
	if !answered {
		s.lost++
		return
	}
	if rtt = max(rtt, 1); first || h.rtt == 0 {
		h.rtt = rtt
	}
	h.rtt = (smooth*h.rtt + rtt) / (smooth + 1)
}

func (h *history) quality() Quality {
	asked, lost := 0, 0
	for _, s := range h.spans {
		asked, lost = asked+int(s.asked), lost+int(s.lost)
	}
	var q Quality
	if lost < asked {
		q.RTT = h.rtt
	}
	if asked >= enough {
		q.Asked, q.Loss = asked, float64(lost)/float64(asked)
	}
	return q
}
