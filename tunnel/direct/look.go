package direct

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"muslin/tunnel/fib"
	"muslin/tunnel/way"
)

// A look goes over all peers in memory, and asks the kernel only for what may be another answer than last time: how
// the PublicIPs of new peers are reached, or all of them after a change of the underlay; which routes are there,
// after one of ours is gone. It adds and removes what differs.

// look brings the routes up to date. A failure is logged, once, and the next look tries again.
func (r *Router) look(changed Change) {
	t := r.table.Load()
	if t == nil {
		return
	}
	began := time.Now()
	did, err := r.update(t, changed|r.owed)
	r.owed = 0
	if err != nil {
		r.owed = Routes | Underlay
	}
	r.ended = time.Now()
	r.took = r.ended.Sub(began)
	r.report(did, err)
}

// done is what a look did.
type done struct {
	added, removed int
	lost           []netip.Prefix // whose routes something else had removed
	refused        []*entry       // whose routes the kernel did not take, for the first time or for another reason
}

func (r *Router) update(t *fib.Table, changed Change) (did done, err error) {
	iface, err := r.cfg.Kernel.Iface()
	if err != nil {
		return did, err
	}
	if iface != r.iface {
		r.iface = iface
		changed |= Routes | Underlay
	}
	stray := r.follow(t)
	if err := r.ask(changed&Underlay != 0); err != nil {
		return did, err
	}
	if changed&Routes != 0 {
		strange, lost, err := r.compare()
		if err != nil {
			return did, err
		}
		stray, did.lost = append(stray, strange...), lost
	}
	err = r.remove(stray, &did)
	r.add(changed != 0, &did)
	r.tellLeftOut()
	return did, err
}

// tellLeftOut logs who is not reached at all, each once for each reason.
func (r *Router) tellLeftOut() {
	n := 0
	for _, e := range r.entries {
		if e.choice.Way != way.None {
			e.told = ""
			continue
		}
		if e.told == e.choice.Rule {
			continue
		}
		e.told = e.choice.Rule
		if n++; n <= named {
			r.log.Error("a peer is left out: host-gw reaches neighbours only; put both nodes on one link, or use another backend for the network", "subnet", e.peer.Subnet, "peer", e.peer.PublicIP, "reason", e.choice.Reason())
		}
	}
	if n > named {
		r.log.Error("more peers are left out: muslin status names them", "peers", n-named)
	}
}

// follow makes the entries those of the table, and returns the routes of peers that are no more.
func (r *Router) follow(t *fib.Table) (stray []Route) {
	if t == r.seen {
		return nil
	}
	r.seen = t
	r.looks++
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, p := range t.Peers() {
		if !r.keeps(p) {
			continue
		}
		e := r.entries[p.Subnet]
		if e == nil {
			e = new(entry)
			r.entries[p.Subnet] = e
		}
		if e.peer == nil || e.peer.PublicIP != p.PublicIP {
			e.hop, e.refused = way.Hop{}, ""
		}
		e.peer, e.look, e.holds = p, r.looks, r.heldBy(t.Peers(), i)
		e.choice = r.choose(e)
	}
	for subnet, e := range r.entries {
		if e.look == r.looks {
			continue
		}
		if e.route != (Route{}) {
			stray = append(stray, e.route)
		}
		delete(r.entries, subnet)
	}
	return stray
}

// keeps reports whether a peer is of our address family.
func (r *Router) keeps(p *fib.Peer) bool { return p.Subnet.Addr().Is4() == r.cfg.Subnet.Addr().Is4() }

// heldBy is a subnet that lies inside that of peer i, another peer's or ours; zero: none does. In the table's order
// a subnet is followed by those that lie in it.
func (r *Router) heldBy(peers []*fib.Peer, i int) netip.Prefix {
	subnet := peers[i].Subnet
	switch {
	case i+1 < len(peers) && subnet.Overlaps(peers[i+1].Subnet):
		return peers[i+1].Subnet
	case subnet.Bits() < r.cfg.Subnet.Bits() && subnet.Overlaps(r.cfg.Subnet):
		return r.cfg.Subnet
	}
	return netip.Prefix{}
}

// ask finds out how the PublicIPs are reached that were not asked for yet, or all of them.
func (r *Router) ask(all bool) error {
	about := make(map[netip.Addr][]*entry)
	for _, e := range r.entries {
		if all || e.hop == (way.Hop{}) {
			about[e.peer.PublicIP] = append(about[e.peer.PublicIP], e)
		}
	}
	if len(about) == 0 {
		return nil
	}
	addrs := slices.Collect(maps.Keys(about))
	hops, err := r.cfg.Kernel.Hops(addrs)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, addr := range addrs {
		for _, e := range about[addr] {
			e.hop = hops[i]
			e.choice = r.choose(e)
		}
	}
	return nil
}

// compare notes which routes the kernel has. It returns those that are nobody's, and whose are gone.
func (r *Router) compare() (strange []Route, lost []netip.Prefix, err error) {
	have, err := r.cfg.Kernel.Routes()
	if err != nil {
		return nil, nil, err
	}
	found := make(map[netip.Prefix]Route, len(have))
	for _, route := range have {
		e := r.entries[route.Subnet]
		other, twice := found[route.Subnet]
		switch {
		case e == nil || twice && other == r.route(e):
			strange = append(strange, route)
			continue
		case twice:
			strange = append(strange, other)
		}
		found[route.Subnet] = route
	}
	for subnet, e := range r.entries {
		now := found[subnet]
		if e.route != (Route{}) && now == (Route{}) {
			lost = append(lost, subnet)
		}
		e.route = now
	}
	return strange, lost, nil
}

// remove removes strays, and what is to be otherwise. Of a subnet the old route goes before a new one comes: between
// the two its packets are encapsulated.
func (r *Router) remove(stray []Route, did *done) error {
	for _, e := range r.entries {
		if e.route != (Route{}) && e.route != r.route(e) {
			stray = append(stray, e.route)
			e.route = Route{}
		}
	}
	var failed []error
	for _, route := range stray {
		if err := r.cfg.Kernel.Remove(route); err != nil {
			failed = append(failed, err)
		} else {
			did.removed++
		}
	}
	return failures(failed)
}

// add adds what is missing. What was refused before is tried again only if asked to.
func (r *Router) add(again bool, did *done) {
	var missing []*entry
	for _, e := range r.entries {
		if e.route != r.route(e) && (e.refused == "" || again) {
			missing = append(missing, e)
		}
	}
	slices.SortFunc(missing, func(a, b *entry) int { return a.peer.Subnet.Compare(b.peer.Subnet) })
	for _, e := range missing {
		route, refused := r.route(e), ""
		if err := r.cfg.Kernel.Add(route); err != nil {
			refused = err.Error()
		} else {
			e.route = route
			did.added++
		}
		if refused == e.refused {
			continue
		}
		if refused != "" {
			did.refused = append(did.refused, e)
		}
		e.refused = refused
		r.mu.Lock()
		e.choice = r.choose(e)
		r.mu.Unlock()
	}
}

func (r *Router) facts(e *entry) way.Facts {
	return way.Facts{
		DirectRouting: r.cfg.Routing, NoTunnel: r.cfg.Alone, PublicIP: e.peer.PublicIP, Underlay: r.cfg.Iface,
		Hop: e.hop, Holds: e.holds, Refused: e.refused,
	}
}

func (r *Router) choose(e *entry) way.Choice { return way.Choose(r.facts(e)) }

// route is the route that a peer is to have if the kernel takes it; zero: none.
func (r *Router) route(e *entry) Route {
	f := r.facts(e)
	f.Refused = ""
	if way.Choose(f).Way != way.Direct {
		return Route{}
	}
	return Route{Subnet: e.peer.Subnet, Via: e.peer.PublicIP, Iface: r.iface}
}

// named is how many peers one line in the log names.
const named = 3

// report logs what a look did.
func (r *Router) report(did done, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != r.said && err != nil {
		r.log.Error("cannot keep the direct routes; trying again every period", "period", r.cfg.Resync, "err", err)
	}
	r.said = text
	if r.cfg.Alone {
		did.refused = nil // see tellLeftOut
	}
	for _, e := range did.refused[:min(named, len(did.refused))] {
		r.log.Warn("a direct route cannot be installed: the peer's packets stay encapsulated", "subnet", e.peer.Subnet, "peer", e.peer.PublicIP, "reason", e.refused)
	}
	if more := len(did.refused) - named; more > 0 {
		r.log.Warn("more direct routes cannot be installed: muslin status names them", "routes", more)
	}
	if len(did.lost) > 0 {
		r.log.Warn("direct routes went that we did not remove; those that are still wanted are back", "routes", len(did.lost), "such_as", did.lost[0])
	}
	if did.added+did.removed > 0 {
		r.log.Info("the ways to peers have changed", "routes_added", did.added, "routes_removed", did.removed, "direct", r.count(), "peers", len(r.entries))
	}
}

// count is how many peers have a direct route.
func (r *Router) count() (n int) {
	for _, e := range r.entries {
		if e.route != (Route{}) {
			n++
		}
	}
	return n
}

// failures joins the first few of many errors.
func failures(all []error) error {
	if len(all) <= named {
		return errors.Join(all...)
	}
	return fmt.Errorf("%w; and %d more", errors.Join(all[:named]...), len(all)-named)
}
