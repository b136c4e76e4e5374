package ping

import (
	"context"
	"net/netip"
	"time"
)

// Sweep is how large packets may be. Requests have DF; the answers are as large, and Linux sends them without.
type Sweep struct {
	Tried   int    `json:"tried"`   // bytes, of the largest that was
	Largest int    `json:"largest"` // that was answered; 0: none was
	Why     string `json:"why"`     // a larger one was not; empty: the largest that was tried was
	MTU     int    `json:"mtu"`     // what an ICMP error said of it; 0: there was none
	By      string `json:"by"`      // who sent that
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
