package lease

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"muslin/encap"
	"muslin/tunnel/fib"
)

// Node is what makes a lease a peer or not: how this node is set up. Subnet6 says whether it carries IPv6, of
// which nothing is looked at without; and Subnet6 without Subnet that it does not carry IPv4.
type Node struct {
	Subnet, Subnet6      netip.Prefix // ours; both zero while unknown
	PublicIP, PublicIPv6 netip.Addr
	Network, Network6    netip.Prefix  // the overlay's; zero: leases may lie anywhere
	Backend              string        // its type
	VNI                  encap.VNI     // vxlan, of both families
	Key                  fib.PublicKey // wireguard
	Mode                 string        // wireguard: see ModeSeparate, which is also meant by ""
}

// roster turns entries into a table, change by change: what a lease costs does not grow with how many there
// are. It keeps each peer's counters from table to table, and says each thing that is wrong just once.
type roster struct {
	node     Node
	log      *slog.Logger
	known    map[string]*known         // by key
	held     map[string]*known         // those of known whose leases have vanished (hold.go)
	holdings map[netip.Prefix]*holding // by subnet
	touched  map[netip.Prefix]*holding // whose peer may be another one than in the table
	skipped  map[string]int            // by reason; SkipDouble too
	lengths  [families][129]int        // holdings by prefix length, and our own subnets
	own      []place                   // our subnets, for complaints about where they lie
	nested   bool                      // there were subnets inside others at the last look
	counters map[counterKey]*fib.Counters
	table    *fib.Table
}

// known is an entry, read and judged.
type known struct {
	lease Lease
	err   error
	why   [families]string // each half is no peer; own: it is ours; "": it holds its subnet, perhaps beside others
	said  [families][complaints]string

	vanished vanished
}

// holds reports whether it holds a subnet.
func (k *known) holds() bool { return k.why[four] == "" || k.why[six] == "" }

// place is a half of an entry.
type place struct {
	*known
	family int
}

func (p place) subnet() netip.Prefix { return p.lease.half(p.family).subnet }

// The kinds of complaint that there may be about one half of an entry at a time.
const (
	aboutItself  = iota // see judge; what is about the entry as a whole is said of the first half that we carry
	aboutDouble         // there is another lease for its subnet
	aboutNesting        // its subnet lies inside another one
	complaints
)

// holding is the leases of one subnet, more than one only if they have different keys, sorted by key; and
// the peer in the table.
type holding struct {
	leases []*known
	peer   *fib.Peer
}

type counterKey struct {
	subnet   netip.Prefix
	publicIP netip.Addr
}

// strangers is how many counters of peers that are gone are kept, for the case that they come back.
const strangers = 1024

func newRoster(node Node, log *slog.Logger) *roster {
	r := &roster{
		node: node, log: log,
		known:    make(map[string]*known),
		held:     make(map[string]*known),
		holdings: make(map[netip.Prefix]*holding),
		touched:  make(map[netip.Prefix]*holding),
		skipped:  make(map[string]int),
		counters: make(map[counterKey]*fib.Counters),
		table:    fib.New(nil),
	}
	ours := &known{lease: Lease{Key: LeaseKey(node.Subnet, node.Subnet6), Subnet: node.Subnet, Subnet6: node.Subnet6}}
	for family := range families {
		if p := (place{ours, family}); p.subnet().IsValid() {
			r.own = append(r.own, p)
			r.lengths[family][p.subnet().Bits()]++
		}
	}
	return r
}

// set takes an entry in, in place of the one with its key.
func (r *roster) set(e Entry) {
	k := new(known)
	k.lease, k.err = ParseLease(e)
	if !r.spoilt(r.known[e.Key], k) {
		r.take(k)
	}
}

func (r *roster) take(k *known) {
	key := k.lease.Key
	if old := r.known[key]; old != nil {
		r.withdraw(old)
		delete(r.held, key)
		k.said = old.said
	}
	r.known[key] = k
	for family, v := range r.judge(k.lease, k.err) {
		p := place{k, family}
		k.why[family] = v.why
		r.complain(p, aboutItself, v.level, v.text, v.args...)
		if v.why == "" {
			r.supersede(p.subnet())
			r.hold(p)
			continue
		}
		k.said[family][aboutDouble], k.said[family][aboutNesting] = "", ""
		if v.why != own && v.why != notOurs {
			r.skip(v.why, 1)
		}
	}
}

func (r *roster) remove(key string) {
	if old := r.known[key]; old != nil {
		r.withdraw(old)
		delete(r.known, key)
		delete(r.held, key)
	}
}

// replace makes the entries all that there are.
func (r *roster) replace(entries []Entry) {
	there := r.setAll(entries)
	for key := range r.known {
		if !there[key] {
			r.remove(key)
		}
	}
}

// setAll is set for many, and returns their keys.
func (r *roster) setAll(entries []Entry) (there map[string]bool) {
	there = make(map[string]bool, len(entries))
	for _, e := range entries {
		there[e.Key] = true
		r.set(e)
	}
	return there
}

// hold puts a half of a lease among those of its subnet.
func (r *roster) hold(p place) {
	subnet := p.subnet()
	h := r.holdings[subnet]
	if h != nil {
		r.skip(SkipDouble, 1)
	} else {
		h = r.touched[subnet] // perhaps it has just lost its last lease
		if h == nil {
			h = new(holding)
		}
		r.holdings[subnet] = h
		r.lengths[p.family][subnet.Bits()]++
	}
	at, _ := slices.BinarySearchFunc(h.leases, p.known, func(a, b *known) int { return strings.Compare(a.lease.Key, b.lease.Key) })
	h.leases = slices.Insert(h.leases, at, p.known)
	r.touched[subnet] = h
}

// withdraw undoes what set did.
func (r *roster) withdraw(k *known) {
	for family, why := range k.why {
		switch why {
		case own, notOurs:
		case "":
			r.release(place{k, family})
		default:
			r.skip(why, -1)
		}
	}
}

// release undoes hold.
func (r *roster) release(p place) {
	subnet := p.subnet()
	h := r.holdings[subnet]
	h.leases = slices.DeleteFunc(h.leases, func(o *known) bool { return o == p.known })
	r.touched[subnet] = h
	if len(h.leases) > 0 {
		r.skip(SkipDouble, -1)
		return
	}
	delete(r.holdings, subnet)
	r.lengths[p.family][subnet.Bits()]--
}

func (r *roster) skip(why string, by int) {
	if r.skipped[why] += by; r.skipped[why] == 0 {
		delete(r.skipped, why)
	}
}

// complain logs, unless the same was said of this key and value before; no text: there is nothing to
// complain about any more.
func (r *roster) complain(p place, about int, level slog.Level, text string, args ...any) {
	said := &p.said[p.family][about]
	if text == "" {
		*said = ""
		return
	}
	once := text + "\x00" + p.lease.Attrs.String()
	if *said != once {
		*said = once
		r.log.Log(context.Background(), level, text, append([]any{"key", clip(p.lease.Key)}, args...)...)
	}
}

// leases is everything that could be read, sorted by key.
func (r *roster) leases() []Lease {
	var out []Lease
	for _, key := range slices.Sorted(maps.Keys(r.known)) {
		if k := r.known[key]; k.err == nil {
			out = append(out, k.lease)
		}
	}
	return out
}

// update brings the table up to date, and reports whether it had to change.
func (r *roster) update() (t *fib.Table, changed bool) {
	var set []*fib.Peer
	var gone []netip.Prefix
	for subnet, h := range r.touched {
		old := h.peer
		if holder := r.holder(h, familyOf(subnet)); holder.known == nil {
			h.peer = nil
		} else if p := r.peer(holder); old == nil || *p != *old {
			h.peer = p
		}
		switch {
		case h.peer == old:
		case h.peer == nil:
			gone = append(gone, subnet)
		default:
			set = append(set, h.peer)
		}
	}
	if changed = len(set)+len(gone) > 0; changed {
		r.table = r.table.With(set, gone)
		r.forget()
	}
	if len(r.touched) > 0 {
		r.lookForNesting()
		clear(r.touched)
	}
	return r.table, changed
}

// holder is whose lease of a subnet of that family counts: the newest. Of none it is nobody.
func (r *roster) holder(h *holding, family int) place {
	newest := place{family: family}
	for i, k := range h.leases {
		p := place{k, family}
		if i == 0 {
			r.complain(p, aboutDouble, slog.LevelWarn, "")
			newest = p
			continue
		}
		r.complain(p, aboutDouble, slog.LevelWarn, "two leases for one subnet: the newer one counts", "other", newest.lease.Key)
		if k.lease.Revision >= newest.lease.Revision {
			newest = p
		}
	}
	return newest
}

// lookForNesting complains about subnets that lie inside others. In a network as flannel makes them all of a family
// are of one length, and none does.
func (r *roster) lookForNesting() {
	possible := false
	for _, lengths := range r.lengths {
		n := 0
		for _, holdings := range lengths {
			if holdings > 0 {
				n++
			}
		}
		possible = possible || n > 1
	}
	if !possible && !r.nested {
		for subnet, h := range r.touched { // one that came to hold its subnet may have lain inside another before
			if p := r.holder(h, familyOf(subnet)); p.known != nil {
				r.complain(p, aboutNesting, slog.LevelWarn, "")
			}
		}
		return
	}
	r.nested = false
	var open []netip.Prefix // the subnets that the one at hand may lie in, outermost first
	for _, p := range r.holders() {
		subnet := p.subnet()
		for len(open) > 0 && !open[len(open)-1].Overlaps(subnet) {
			open = open[:len(open)-1]
		}
		if len(open) == 0 {
			r.complain(p, aboutNesting, slog.LevelWarn, "")
		} else {
			r.nested = true
			r.complain(p, aboutNesting, slog.LevelWarn, "a subnet lies inside another one: the longer prefix counts", "subnet", subnet, "inside", open[len(open)-1])
		}
		open = append(open, subnet)
	}
}

// holders is who holds each subnet, ours too, in an order in which a subnet follows those that it lies in.
func (r *roster) holders() []place {
	var all []place
	for _, p := range r.table.Peers() {
		all = append(all, r.holder(r.holdings[p.Subnet], familyOf(p.Subnet)))
	}
	for _, p := range r.own {
		at, _ := slices.BinarySearchFunc(all, p, func(a, b place) int { return a.subnet().Compare(b.subnet()) })
		all = slices.Insert(all, at, p)
	}
	return all
}

func (r *roster) peer(p place) *fib.Peer {
	l := r.node.half(p.lease, p.family)
	key := counterKey{l.subnet, l.address}
	c, ok := r.counters[key]
	if !ok {
		c = new(fib.Counters)
		r.counters[key] = c
	}
	var other netip.Prefix
	if family := six - p.family; r.node.carries(family) {
		other = p.lease.half(family).subnet
	}
	return &fib.Peer{Subnet: l.subnet, PublicIP: l.address, Backend: p.lease.Attrs.BackendType, MAC: l.mac,
		Key: l.key, Port: l.port, Counters: c, Other: other}
}

// forget drops the counters of peers that are gone, once there are many.
func (r *roster) forget() {
	peers := r.table.Peers()
	if len(r.counters) <= len(peers)+strangers {
		return
	}
	live := make(map[counterKey]*fib.Counters, len(peers))
	for _, p := range peers {
		live[counterKey{p.Subnet, p.PublicIP}] = p.Counters
	}
	r.counters = live
}

// describe is for one log line about a change of the table.
func describe(skipped map[string]int) string {
	var parts []string
	for _, why := range slices.Sorted(maps.Keys(skipped)) {
		parts = append(parts, fmt.Sprintf("%s=%d", why, skipped[why]))
	}
	return strings.Join(parts, " ")
}
