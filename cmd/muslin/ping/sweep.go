package ping

import (
	"context"
	"net/netip"
	"time"

	"muslin/cmd/muslin/neighbour"
	"muslin/cmd/muslin/overlay"
	"muslin/cmd/muslin/sight"
)

// Sweep is how large packets may be. Requests have DF; the answers are as large, and Linux sends them without.
type Sweep struct {
	Tried   int    `json:"tried"`   // bytes, of the largest that was
	Largest int    `json:"largest"` // that was answered; 0: none was
	Why     string `json:"why"`     // a larger one was not; empty: the largest that was tried was
	MTU     int    `json:"mtu"`     // what an ICMP error said of it; 0: there was none
	By      string `json:"by"`      // who sent that

	// What the other node saw, if it runs muslin: where larger ones came than were answered, it is the way back that takes less.
	Reached int `json:"reached"` // bytes, of the largest request that came there; 0: it does not tell
}

// sweepLimit is how long an answer may take while sizes are tried: many are not answered.
const sweepLimit = 300 * time.Millisecond

// sweepBoth is sweep, with what the peer sees of the requests.
func (p *pinger) sweepBoth(ctx context.Context, n *overlay.Network, to overlay.Place, most int, limit time.Duration) *Sweep {
	var asked overlay.Question
	var armed sight.Armed
	if to.Peer != nil {
		order := sight.Order{Packet: sight.Packet{Src: p.from, Dst: to.Addr, Proto: sight.ICMP, ID: p.sock.id}, Seconds: sight.MaxWatch.Seconds()}
		for _, q := range n.Asked(to.Peer) {
			if neighbour.Tell(ctx, q.From, q.To, sight.Path, order, &armed) == nil {
				asked = q
				break
			}
		}
	}
	s := p.sweep(ctx, to.Addr, most, min(limit, sweepLimit))
	if armed.ID == "" {
		return s
	}
	var r sight.Report
	if neighbour.Ask(ctx, asked.From, asked.To, sight.Path+"?end=true&id="+armed.ID, &r) != nil {
		return s
	}
	for i := range r.Sightings {
		if seen := &r.Sightings[i]; seen.What == sight.Itself && seen.Inbound && seen.Point != sight.Outer && seen.Point != sight.Drop {
			s.Reached = max(s.Reached, seen.Bytes)
		}
	}
	return s
}

// perSize is how often a size is tried before it counts as lost.
const perSize = 2

// sweep finds the largest packet that is answered, up to what our own device takes.
func (p *pinger) sweep(ctx context.Context, to netip.Addr, most int, limit time.Duration) *Sweep {
	s := &Sweep{Tried: most}
	try := func(size int) bool {
		var e Echo
		for range perSize {
			if e = p.echo(ctx, to, size, limit); e.answered() {
				s.Largest = max(s.Largest, size)
				return true
			}
			if e.From != "" { // an error is an answer as well
				break
			}
		}
		s.Why, s.MTU, s.By = e.Why, e.MTU, e.From
		return false
	}
	low, high := headersOf(to)+1, most
	if !try(low) || try(high) {
		if s.Largest == high {
			s.Why, s.MTU, s.By = "", 0, ""
		}
		return s
	}
	for low+1 < high && ctx.Err() == nil {
		middle := (low + high) / 2
		if hint := s.MTU; hint > low && hint < high && middle != hint { // tried first: it is mostly right
			if try(hint) {
				low = hint
				if low+1 < high && !try(low+1) {
					high = low + 1
				}
				s.MTU = 0
				continue
			}
			high = hint
			continue
		}
		if try(middle) {
			low = middle
		} else {
			high = middle
		}
	}
	return s
}
