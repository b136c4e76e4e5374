package doctor

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"muslin/cmd/muslin/doctor/wire"
	"muslin/encap"
	"muslin/lease"
)

// How long silent peers are watched: what is asked is answered at once; a muslin that does not hear us asks by itself
// every 10 s (package pulse).
const (
	lookAtLeast = 1700 * time.Millisecond
	lookAtMost  = 10700 * time.Millisecond
	spare       = 2 * time.Second // before ctx ends
)

// lookInto looks into peers that do not answer, of how many others that do, and at who else sends here.
func (p *Patient) lookInto(ctx context.Context, silent []half, answering int) ([]said, error) {
	chosen := p.triage(ctx, silent)
	id := uint16(rand.Uint32())
	var suspects []*evidence
	var hosts []netip.Addr
	for _, c := range chosen {
		if e := p.suspect(c.half); e != nil {
			e.silence, e.alike = c.silence, c.alike
			suspects = append(suspects, e)
			hosts = append(hosts, e.peer.outer)
		}
	}
	watch, err := wire.OpenWatch(wire.WatchConfig{Port: p.Local.Port, Hosts: hosts, ID: id})
	if err != nil {
		return nil, err
	}
	defer watch.Close()
	began := time.Now()
	before := p.count(ctx)
	var all sync.WaitGroup
	most := began.Add(lookAtMost)
	if d, ok := ctx.Deadline(); ok && d.Add(-spare).Before(most) {
		most = d.Add(-spare)
	}
	lets := sync.OnceValue(func() bool { return p.letsIn(ctx) })
	for i, e := range suspects {
		all.Go(func() {
			p.try(ctx, e, id, uint16(i), watch.Seen, func(e *evidence) bool {
				return time.Now().Before(most) && ctx.Err() == nil && e.open(watch.Seen(), id, uint16(i), lets)
			})
		})
	}
	if len(suspects) == 0 {
		all.Go(func() { pause(ctx, lookAtLeast) })
	}
	if p.carries() && !p.vxlanOrUDP() {
		all.Go(func() { _, _ = p.askOverlay(ctx, silent[:min(len(silent), mostAsked)], nil) })
	}
	all.Wait()
	seen := watch.Seen()
	after := p.count(ctx)
	var found []said
	for i, e := range suspects {
		e.waited = time.Since(began)
		e.counted = after.since(before, e.peer)
		e.take(seen, id, uint16(i))
		e.judged = e.judge()
	}
	spread(suspects)
	for _, e := range suspects {
		if e.judged != nil {
			found = append(found, *e.judged)
		}
	}
	found = p.allOfUs(found, answering)
	return append(found, p.strangers(seen, suspects)...), nil
}

// suspect begins an evidence; nil: nothing can be made of the peer.
func (p *Patient) suspect(h half) *evidence {
	own, ok := p.ownHalf(h.six)
	if !ok {
		return nil
	}
	e := &evidence{peer: h, own: own, port: h.node.Port, carried: p.carries(), local: p.ownAddress(own.outer), rumours: p.rumours(), knocks: make(map[uint16]wire.Knock)}
	if s := h.status; s != nil {
		if s.LastRx != nil {
			e.heard = *s.LastRx
		}
		if s.DownSince != nil && p.Running() {
			e.deaf = time.Since(*s.DownSince)
		}
		e.oneSided = e.recent() && s.Loss != nil && *s.Loss >= 1
	}
	if h.node.TTL != nil && *h.node.TTL > 0 {
		e.age = lease.TTL - *h.node.TTL
	}
	return e
}

// allOfUs: if all peers that were looked into are silent for the same reason, and none answers, then it is likelier that
// something is wrong before this node than there.
func (p *Patient) allOfUs(found []said, answering int) []said {
	nodes := make(map[string]bool)
	for _, f := range found {
		if f.ID != "udp-filtered-at-peer" || f.Confidence == Certain {
			return found
		}
		nodes[f.Node] = true
	}
	if answering > 0 || len(nodes) < 2 {
		return found
	}
	f := found[0]
	f.ID, f.Node, f.kind = "udp-filtered-here", p.Local.Name(), "before"
	f.Summary = fmt.Sprintf("UDP %d is dropped before this node (a security group, a firewall in front of it): none of %d peers is reached, though their hosts are", p.Local.Port, len(nodes))
	f.Evidence = "of all of them: " + f.Evidence
	f.Fix = fmt.Sprintf("let UDP %d in and out in front of this host", p.Local.Port)
	return []said{f}
}

// pause reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
	return ctx.Err() == nil
}

// chosen is a silent peer that is looked into.
type chosen struct {
	half
	silence string // of which kind it is, as howSilent says
	alike   []half // those of its kind that are not looked into: it speaks for them
}

// triage picks the silent peers that are looked into: where there are many, some of each kind.
func (p *Patient) triage(ctx context.Context, silent []half) []chosen {
	silent = slices.Clone(silent)
	slices.SortStableFunc(silent, func(a, b half) int { return a.outer.Compare(b.outer) }) // IPv4 first
	var out []chosen
	if len(silent) <= mostSuspect {
		for _, h := range silent {
			out = append(out, chosen{half: h})
		}
		return out
	}
	return choose(silent, p.howSilent(ctx, silent))
}

// choose picks some of each kind.
func choose(silent []half, how []string) []chosen {
	var out []chosen
	var kinds []string
	of := make(map[string][]half)
	for i, kind := range how {
		if of[kind] == nil {
			kinds = append(kinds, kind)
		}
		of[kind] = append(of[kind], silent[i])
	}
	slices.SortStableFunc(kinds, func(a, b string) int { return len(of[b]) - len(of[a]) })
	kinds = kinds[:min(len(kinds), mostSuspect)]
	for took := true; took && len(out) < mostSuspect; { // by turns
		took = false
		for _, kind := range kinds {
			if rest := of[kind]; len(rest) > 0 && len(out) < mostSuspect {
				out, of[kind], took = append(out, chosen{half: rest[0], silence: kind}), rest[1:], true
			}
		}
	}
	for i, kind := range kinds { // the first turn gave each kind one
		out[i].alike = of[kind]
	}
	return out
}

// howSilent says in a word how each host is, so that those that are alike have the same word.
func (p *Patient) howSilent(ctx context.Context, silent []half) []string {
	const tries, every = 2, 400 * time.Millisecond
	out := make([]string, len(silent))
	var all sync.WaitGroup
	for _, six := range []bool{false, true} {
		var questions []wire.Question
		var of []int
		for i, h := range silent {
			if h.six == six {
				questions, of = append(questions, wire.Question{To: h.outer}), append(of, i)
			}
		}
		if questions == nil {
			continue
		}
		all.Go(func() {
			echoes, err := wire.OpenEchoes(six, netip.Addr{})
			if err != nil {
				return
			}
			defer echoes.Close()
			for k, a := range echoes.Ask(ctx, tries, every, questions) {
				switch {
				case a.Got > 0:
					out[of[k]] = "answers"
				case a.Refused != nil:
					out[of[k]] = a.Refused.String()
				}
			}
		})
	}
	all.Wait()
	neighbours := readNeighbours()
	for i, h := range silent {
		r := p.routeTo(h.outer)
		r.lookUp(neighbours, h.outer)
		out[i] += fmt.Sprintf(" %v %s %s %t %t", r.err != nil, r.device, r.gateway, r.failed, r.found != (encap.MAC{}))
	}
	return out
}

// spread has what was found of a peer said of those that are silent in the same way and were not looked into, if it is the
// same with all of that kind that were.
func spread(suspects []*evidence) {
	for _, e := range suspects {
		same := e.judged != nil && !slices.ContainsFunc(suspects, func(o *evidence) bool {
			return o.silence == e.silence && (o.judged == nil || o.judged.ID != e.judged.ID || o.judged.kind != e.judged.kind)
		})
		for _, h := range e.alike {
			if same {
				e.judged.others = append(e.judged.others, h.node.Name())
			}
		}
	}
}
