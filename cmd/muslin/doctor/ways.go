package doctor

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"muslin/cmd/muslin/control"
	"muslin/encap"
	"muslin/lease"
	"muslin/tunnel/way"
)

// half is what a node has of one address family.
type half struct {
	node   *Node
	six    bool
	subnet netip.Prefix
	outer  netip.Addr // its PublicIP
	mac    encap.MAC
	status *control.PeerStatus // a peer's; nil: the daemon does not know it
}

// base is the overlay's own address of the node: of its TUN device, or flannel's.
func (h half) base() netip.Addr { return h.subnet.Addr() }

// to names the node's overlay port in a sentence.
func (h half) to() string { return netip.AddrPortFrom(h.outer, h.node.Port).String() }

// halves are those that a node has.
func (n *Node) halves() []half {
	var out []half
	if n.Subnet.IsValid() {
		out = append(out, half{node: n, subnet: n.Subnet.Masked(), outer: n.PublicIP, mac: n.MAC, status: n.Peer})
	}
	if n.Subnet6.IsValid() {
		out = append(out, half{node: n, six: true, subnet: n.Subnet6.Masked(), outer: n.PublicIPv6, mac: n.MAC6, status: n.Peer6})
	}
	return out
}

// ownHalf is this node's of a family.
func (p *Patient) ownHalf(six bool) (half, bool) {
	all := p.Local.halves()
	i := slices.IndexFunc(all, func(h half) bool { return h.six == six })
	if i < 0 {
		return half{}, false
	}
	h := all[i]
	if !h.outer.IsValid() && p.Local.Lease != nil { // what the daemon or device does not say
		h.outer = p.Local.Lease.Attrs.PublicIP
		if six {
			h.outer = p.Local.Lease.Attrs.PublicIPv6
		}
	}
	if d := p.device(six); h.mac == (encap.MAC{}) && d != nil {
		h.mac, _ = encap.ParseMAC(d.MAC)
	}
	if h.mac == (encap.MAC{}) && p.Local.Lease != nil {
		h.mac = p.Local.Lease.Attrs.MAC
		if six {
			h.mac = p.Local.Lease.Attrs.MAC6
		}
	}
	return h, true
}

// vxlanOrUDP reports whether a datagram of the overlay can be made by hand.
func (p *Patient) vxlanOrUDP() bool {
	return p.Local.Backend == lease.BackendVXLAN || p.Local.Backend == lease.BackendUDP
}

// carries reports whether anything here carries the overlay's packets.
func (p *Patient) carries() bool { return p.Running() || p.flannelCarries() }

// talks reports whether a lease is of a node that this one can exchange packets with at all, by what both leases say. What
// is wrong otherwise is the leases' checks' to find.
func (p *Patient) talks(h half) bool {
	own, ok := p.ownHalf(h.six)
	n := h.node
	switch {
	case !ok, !h.outer.IsValid(), h.outer == own.outer, h.subnet == own.subnet, p.ownAddress(h.outer):
		return false
	case n.Lease != nil && n.Lease.Reserved && h.status == nil:
		return false
	case n.Lease != nil && slices.ContainsFunc(p.Peers, func(o Node) bool { return o.Lease != nil && o.Lease.Revision > n.Lease.Revision && o.sharesAddress(n) }):
		return false // at that address is somebody else
	case n.Backend != p.Local.Backend && p.Local.Backend != lease.BackendUDP:
		return false
	case n.Backend == lease.BackendVXLAN && n.VNI != p.Local.VNI:
		return false
	}
	four, six := p.Networks()
	return !four.Contains(h.outer) && !six.Contains(h.outer)
}

// Bounds, so that a thousand peers take no longer than a few.
const (
	mostAsked   = 64 // halves that are asked over the overlay
	mostSuspect = 8  // of those, silent ones that are looked into
)

// sample picks whom to ask: those that the daemon has as down first, then those that it does not know to be up, then
// others.
func (p *Patient) sample() []half {
	var all []half
	for i := range p.Peers {
		for _, h := range p.Peers[i].halves() {
			if p.talks(h) {
				all = append(all, h)
			}
		}
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	worth := func(h half) int {
		switch {
		case h.status != nil && h.status.DownSince != nil:
			return 0
		case h.status == nil || h.status.Up == nil:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(all, func(a, b half) int { return cmp.Compare(worth(a), worth(b)) })
	return all[:min(len(all), mostAsked)]
}

// answerer is the address of a peer that answers echo requests which go as a packet to its containers does. With host-gw
// nobody has the base of its subnet, and the way is that to the node itself.
func (h half) answerer() netip.Addr {
	if h.node.Backend == lease.BackendHostGW {
		return h.outer
	}
	return h.base()
}

// direct reports whether packets to a peer are not encapsulated.
func (h half) direct() bool { return h.status != nil && h.status.Way == string(way.Direct) }

// said is a finding with what is known of it until it is reported.
type said struct {
	Finding
	kind  string // those of one ID and kind say the same
	peer  string // that showed it, where the finding is about another node; empty: its own
	rules int    // which rules of this host's firewall may be the cause
}

const (
	ruleIn = iota + 1
	ruleOut
)

// grouped makes one finding of those that say the same of many nodes: the first, with how many there are.
func grouped(all []said) []said {
	var out []said
	count := make(map[[4]string][]string)
	key := func(f *said) [4]string { return [4]string{f.ID, string(f.Severity), f.Confidence, f.kind} }
	for i := range all {
		f := &all[i]
		if count[key(f)] == nil {
			out = append(out, *f)
		}
		about := f.Node
		if f.peer != "" {
			about = f.peer
		}
		if !slices.Contains(count[key(f)], about) {
			count[key(f)] = append(count[key(f)], about)
		}
	}
	for i := range out {
		f := &out[i]
		if nodes := count[key(f)]; len(nodes) > 1 {
			more := nodes[1:min(len(nodes), 4)]
			f.Summary += fmt.Sprintf("; so it is with %d nodes in all, such as %s", len(nodes), strings.Join(more, ", "))
		}
	}
	return out
}
