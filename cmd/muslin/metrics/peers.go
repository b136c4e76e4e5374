package metrics

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Which peers have series of their own, where there are more than so many: those with the most traffic, chosen anew from time to
// time, so that series do not come and go with each scrape. A peer that was chosen stays as long as it is among the twice as many
// with the most traffic since the last time, and has had some where another one wants its place; one that is gone makes room at
// once.

// Choose picks those of a network's peers that have series, by their place.
type Choose func(network string, peers []Traffic) []int

// Traffic is the bytes exchanged with a peer.
type Traffic struct {
	Subnet netip.Prefix
	Bytes  uint64
}

// How long it is from one choice to the next: so long at first, when nothing much has been carried, then twice as long each time,
// up to the longest.
const (
	firstReview   = time.Minute
	longestReview = time.Hour
)

// choices are of all networks, by their names. Its methods may be called by several goroutines at once.
type choices struct {
	most int

	mu     sync.Mutex
	chosen map[string]*choice
}

type choice struct {
	held   map[netip.Prefix]bool   // by subnet
	before map[netip.Prefix]uint64 // bytes exchanged with each peer at the last review
	next   time.Time               // when the next one is due
	pause  time.Duration
}

// keep forgets the networks that are not among these.
func (c *choices) keep(names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.chosen {
		if !slices.Contains(names, name) {
			delete(c.chosen, name)
		}
	}
}

// choose returns the indices of those of a network's peers that have series, in their order.
func (c *choices) choose(network string, now time.Time, peers []Traffic) []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.most <= 0 {
		return nil
	}
	one := c.chosen[network]
	if one == nil {
		if c.chosen == nil {
			c.chosen = make(map[string]*choice)
		}
		one = &choice{held: make(map[netip.Prefix]bool), pause: firstReview, next: now.Add(firstReview)}
		c.chosen[network] = one
	}
	one.update(now, peers, c.most)
	var all []int
	for i := range peers {
		if one.held[peers[i].Subnet] {
			all = append(all, i)
		}
	}
	return all
}

// update leaves no more than most in held, all of which are peers.
func (c *choice) update(now time.Time, peers []Traffic, most int) {
	held := make(map[netip.Prefix]bool, most)
	for i := range peers {
		if subnet := peers[i].Subnet; c.held[subnet] || len(peers) <= most {
			held[subnet] = true
		}
	}
	review := !now.Before(c.next)
	if review || len(held) < min(most, len(peers)) {
		c.fill(held, peers, most, review)
	}
	c.held = held
	if !review {
		return
	}
	c.before = make(map[netip.Prefix]uint64, len(peers))
	for i := range peers {
		c.before[peers[i].Subnet] = peers[i].Bytes
	}
	c.pause = min(2*c.pause, longestReview)
	c.next = now.Add(c.pause)
}

// fill ranks the peers by their traffic since the last review, and puts those in front into held. At a review those that are held
// and too far behind leave it first.
func (c *choice) fill(held map[netip.Prefix]bool, peers []Traffic, most int, review bool) {
	ranked := make([]*Traffic, len(peers))
	grown := make(map[netip.Prefix]uint64, len(peers))
	for i := range peers {
		ranked[i] = &peers[i]
		grown[peers[i].Subnet] = peers[i].Bytes - min(c.before[peers[i].Subnet], peers[i].Bytes)
	}
	first := func(p *Traffic) int { // of those with as much traffic, 0
		if held[p.Subnet] {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(ranked, func(a, b *Traffic) int { // else in the order of their subnets
		return cmp.Or(cmp.Compare(grown[b.Subnet], grown[a.Subnet]), cmp.Compare(first(a), first(b)))
	})
	for i, p := range ranked {
		if review && (i >= 2*most || i >= most && grown[p.Subnet] == 0) {
			delete(held, p.Subnet)
		}
	}
	for _, p := range ranked {
		if len(held) >= most {
			return
		}
		held[p.Subnet] = true
	}
}
