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

// Node is what makes a lease a peer or not: how this node is set up.
type Node struct {
	Subnet   netip.Prefix // ours; zero while unknown
	PublicIP netip.Addr
	Backend  string        // its type
	VNI      encap.VNI     // vxlan
	Key      fib.PublicKey // wireguard
	Network  netip.Prefix  // the overlay's; zero: leases may lie anywhere
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
	lengths  [33]int                   // holdings by prefix length, and our own subnet
	own      *known                    // our subnet, for complaints about where it lies
	nested   bool                      // there were subnets inside others at the last look
	counters map[counterKey]*fib.Counters
	table    *fib.Table
}

// known is an entry, read and judged.
type known struct {
	lease Lease
	err   error
	why   string // it is no peer; own: it is ours; "": it holds its subnet, perhaps beside others
	said  [complaints]string

	vanished vanished
}

// The kinds of complaint that there may be about one entry at a time.
const (
	aboutItself  = iota // see judge
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
	if node.Subnet.IsValid() {
		r.own = &known{lease: Lease{Key: Key(node.Subnet), Subnet: node.Subnet}}
		r.lengths[node.Subnet.Bits()]++
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
	why, level, text, args := r.judge(k.lease, k.err)
	k.why = why
	r.complain(k, aboutItself, level, text, args...)
	switch why {
	case own:
	case "":
		r.supersede(k.lease.Subnet)
		r.hold(k)
	default:
		k.said[aboutDouble], k.said[aboutNesting] = "", ""
		r.skip(why, 1)
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

// hold puts a lease among those of its subnet.
func (r *roster) hold(k *known) {
	subnet := k.lease.Subnet
	h := r.holdings[subnet]
	if h != nil {
		r.skip(SkipDouble, 1)
	} else {
		h = r.touched[subnet] // perhaps it has just lost its last lease
		if h == nil {
			h = new(holding)
		}
		r.holdings[subnet] = h
		r.lengths[subnet.Bits()]++
	}
	at, _ := slices.BinarySearchFunc(h.leases, k, func(a, b *known) int { return strings.Compare(a.lease.Key, b.lease.Key) })
	h.leases = slices.Insert(h.leases, at, k)
	r.touched[subnet] = h
}

// withdraw undoes what set did.
func (r *roster) withdraw(k *known) {
	switch k.why {
	case own:
	case "":
		subnet := k.lease.Subnet
		h := r.holdings[subnet]
		h.leases = slices.DeleteFunc(h.leases, func(o *known) bool { return o == k })
		r.touched[subnet] = h
		if len(h.leases) > 0 {
			r.skip(SkipDouble, -1)
			return
		}
		delete(r.holdings, subnet)
		r.lengths[subnet.Bits()]--
	default:
		r.skip(k.why, -1)
	}
}

func (r *roster) skip(why string, by int) {
	if r.skipped[why] += by; r.skipped[why] == 0 {
		delete(r.skipped, why)
	}
}

// complain logs, unless the same was said of this key and value before; no text: there is nothing to
// complain about any more.
func (r *roster) complain(k *known, about int, level slog.Level, text string, args ...any) {
	if text == "" {
		k.said[about] = ""
		return
	}
	once := text + "\x00" + k.lease.Attrs.String()
	if k.said[about] != once {
		k.said[about] = once
		r.log.Log(context.Background(), level, text, append([]any{"key", clip(k.lease.Key)}, args...)...)
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
		if holder := r.holder(h); holder == nil {
			h.peer = nil
		} else if p := r.peer(holder.lease); old == nil || *p != *old {
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

// holder is whose lease of a subnet counts: the newest.
func (r *roster) holder(h *holding) *known {
	var newest *known
	for i, k := range h.leases {
		if i == 0 {
			r.complain(k, aboutDouble, slog.LevelWarn, "")
			newest = k
			continue
		}
		r.complain(k, aboutDouble, slog.LevelWarn, "two leases for one subnet: the newer one counts", "other", newest.lease.Key)
		if k.lease.Revision >= newest.lease.Revision {
			newest = k
		}
	}
	return newest
}

// lookForNesting complains about subnets that lie inside others. In a network as flannel makes them all are
// of one length, and none does.
func (r *roster) lookForNesting() {
	lengths := 0
	for _, n := range r.lengths {
		if n > 0 {
			lengths++
		}
	}
	if lengths < 2 && !r.nested {
		return
	}
	r.nested = false
	var open []netip.Prefix // the subnets that the one at hand may lie in, outermost first
	for _, k := range r.holders() {
		subnet := k.lease.Subnet
		for len(open) > 0 && !open[len(open)-1].Overlaps(subnet) {
			open = open[:len(open)-1]
		}
		if len(open) == 0 {
			r.complain(k, aboutNesting, slog.LevelWarn, "")
		} else {
			r.nested = true
			r.complain(k, aboutNesting, slog.LevelWarn, "a subnet lies inside another one: the longer prefix counts", "subnet", subnet, "inside", open[len(open)-1])
		}
		open = append(open, subnet)
	}
}

// holders is who holds each subnet, ours too, in an order in which a subnet follows those that it lies in.
func (r *roster) holders() []*known {
	var all []*known
	for _, p := range r.table.Peers() {
		all = append(all, r.holder(r.holdings[p.Subnet]))
	}
	if r.own != nil {
		at, _ := slices.BinarySearchFunc(all, r.own, func(a, b *known) int { return a.lease.Subnet.Compare(b.lease.Subnet) })
		all = slices.Insert(all, at, r.own)
	}
	return all
}

func (r *roster) peer(l Lease) *fib.Peer {
	key := counterKey{l.Subnet, l.Attrs.PublicIP}
	c, ok := r.counters[key]
	if !ok {
		c = new(fib.Counters)
		r.counters[key] = c
	}
	return &fib.Peer{Subnet: l.Subnet, PublicIP: l.Attrs.PublicIP, Backend: l.Attrs.BackendType, MAC: l.Attrs.MAC,
		Key: l.Attrs.Key, Port: l.Attrs.Port, Counters: c}
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
