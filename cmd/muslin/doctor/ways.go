package doctor

import (
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
func (p *Patient) carries() bool { return p.Running() || p.flannelCarries() || p.flannelServes() }

// newestAt is the newest lease's revision at each PublicIP of the peers.
func (p *Patient) newestAt() map[netip.Addr]int64 {
	newest := make(map[netip.Addr]int64, len(p.Peers))
	for i := range p.Peers {
		n := &p.Peers[i]
		for _, a := range []netip.Addr{n.PublicIP, n.PublicIPv6} {
			if n.Lease != nil && a.IsValid() {
				newest[a] = max(newest[a], n.Lease.Revision)
			}
		}
	}
	return newest
}

// talks reports whether a lease is of a node that this one can exchange packets with at all, by what both leases say. What
// is wrong otherwise is the leases' checks' to find.
func (p *Patient) talks(h half, newest map[netip.Addr]int64) bool {
	own, ok := p.ownHalf(h.six)
	n := h.node
	switch {
	case !ok, !h.outer.IsValid(), h.outer == own.outer, h.subnet == own.subnet, p.ownAddress(h.outer):
		return false
	case n.Lease != nil && n.Lease.Reserved && h.status == nil:
		return false
	case n.Lease != nil && max(newest[n.PublicIP], newest[n.PublicIPv6]) > n.Lease.Revision:
		return false // at that address is somebody else
	case n.Backend != p.Local.Backend && p.Local.Backend != lease.BackendUDP:
		return false
	case n.Backend == lease.BackendVXLAN && n.VNI != p.Local.VNI:
		return false
	}
	four, six := p.Networks()
	return !four.Contains(h.outer) && !six.Contains(h.outer)
}

// Bounds, so that ten thousand peers take no longer than a few.
const (
	mostAsked   = 64   // halves that are asked over the overlay, half of them at most such as the daemon has as down
	mostDown    = 1000 // others that it has as down: they get a small packet
	mostSuspect = 16   // silent ones that are looked into: as many as wire.WatchConfig takes
)

// sample picks whom to ask: those that the daemon has as down, those that it does not know to be up, and others; and down, more
// of the first.
func (p *Patient) sample() (asked, down []half) {
	var unknown, up []half
	newest := p.newestAt()
	for i := range p.Peers {
		for _, h := range p.Peers[i].halves() {
			switch {
			case !p.talks(h, newest):
			case h.status != nil && h.status.DownSince != nil:
				down = append(down, h)
			case h.status == nil || h.status.Up == nil:
				unknown = append(unknown, h)
			default:
				up = append(up, h)
			}
		}
	}
	for _, all := range [][]half{down, unknown, up} {
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	}
	others := slices.Concat(unknown, up)
	first := min(len(down), max(mostAsked/2, mostAsked-len(others)))
	asked = slices.Concat(down[:first], others[:min(len(others), mostAsked-first)])
	down = down[first:]
	return asked, down[:min(len(down), mostDown)]
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
	kind   string   // those of one ID and kind say the same
	others []string // nodes with which it is the same, and that were not looked into
	peer   string   // that showed it, where the finding is about another node; empty: its own
	rules  int      // which rules of this host's firewall may be the cause
}

const (
	ruleIn = iota + 1
	ruleOut
)

// grouped makes one finding of those that say the same of many nodes: the first, with how many there are.
func grouped(all []said) []said {
	var out []said
	count, counted := make(map[[4]string][]string), make(map[[5]string]bool)
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
		for _, node := range append([]string{about}, f.others...) {
			if id := [5]string{f.ID, string(f.Severity), f.Confidence, f.kind, node}; !counted[id] {
				counted[id] = true
				count[key(f)] = append(count[key(f)], node)
			}
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
