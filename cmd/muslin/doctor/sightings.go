package doctor

import (
	"fmt"
	"slices"

	"muslin/cmd/muslin/doctor/wire"
	"muslin/encap"
)

// suspicious are reasons of drops that somebody's datagrams in the interface may explain.
var suspicious = []string{"unknown-source", "vxlan-vni", "vxlan-mac", "vxlan-own-mac", "outer-checksum", "inner-source"}

// rumours reports whether the daemon has dropped what somebody who is no peer may have sent.
func (p *Patient) rumours() bool {
	return p.Running() && slices.ContainsFunc(suspicious, func(reason string) bool { return p.Status.Drops[reason] > 0 })
}

// open reports whether more may be learnt of a suspect by waiting: a host that is there, whose port is silent, and that was not
// seen. lets reports whether this host lets in what the peer sends.
func (e *evidence) open(seen map[wire.Sighting]int, id, number uint16, lets func() bool) bool {
	if e.made.Err != nil || e.route.err != nil && !e.mayBeNAT() || e.made.Refused != nil && !e.refusedThough() && !e.mayBeNAT() {
		return false
	}
	if !e.mayBeNAT() && e.host.Got == 0 && !e.alive && !e.closed.Refused.Port() && e.route.found == (encap.MAC{}) && !e.route.gateway.IsValid() {
		return false
	}
	for s := range seen {
		if !s.Out && (s.SrcPort != 0 && s.Src == e.peer.outer || e.inItsName(s) || s.SrcPort == 0 && s.Reply && s.EchoID == id && s.EchoN == number*kindsMade+madeBare) {
			return false
		}
	}
	if e.oneSided {
		return false
	}
	return e.deaf < mustAsk || e.rumours || !lets()
}

// refusedThough reports whether a port is refused whose owner was heard a moment ago.
func (e *evidence) refusedThough() bool {
	return e.made.Refused.Port() && e.made.Refused.By == e.peer.outer && e.misshapen == nil && e.recent() && e.otherPort() == 0
}

// mayBeNAT reports whether somebody sends who is no peer, and the peer's address is one that is often translated.
func (e *evidence) mayBeNAT() bool { return e.rumours && e.peer.outer.IsPrivate() }

// inItsName reports whether a datagram is the peer's by what is in it, wherever it came from.
func (e *evidence) inItsName(s wire.Sighting) bool {
	return s.SrcPort != 0 && s.From.IsValid() && (e.peer.subnet.Contains(s.From) && s.VXLAN && s.VNI == e.own.node.VNI.Uint32() || s.VXLAN && e.peer.mac != (encap.MAC{}) && s.InnerSrc == e.peer.mac)
}

// take sorts what was seen of a suspect.
func (e *evidence) take(seen map[wire.Sighting]int, id, number uint16) {
	first := number * kindsMade
	for s, n := range seen {
		mine := s.EchoID == id && s.EchoN/kindsMade == number
		switch {
		case s.Out:
			if s.Dst == e.peer.outer && s.DstPort == e.port {
				e.left += n
			}
			continue
		case s.Refused.By.IsValid():
			continue
		case s.SrcPort == 0: // no UDP
			e.bare = e.bare || mine && s.Reply && s.EchoN == first+madeBare
			continue
		case s.Src != e.peer.outer && !e.inItsName(s):
			continue
		}
		e.seen = append(e.seen, sighting{s, n})
		e.answer = e.answer || mine && s.Reply && s.EchoN == first+madeAsLeased
		if s.Closed && s.EchoID == id && s.EchoN == uncheckedPort(number) {
			e.unchecked, e.spoilt = true, e.spoilt || s.Spoilt
		}
		e.anyMAC = e.anyMAC || mine && s.Reply && s.EchoN == first+madeToAny
	}
	e.anyMAC = e.anyMAC && !e.answer
	// What says most first: an order that does not depend on a map's.
	slices.SortFunc(e.seen, func(a, b sighting) int { return b.n - a.n })
}

// strangers are those who send datagrams of this overlay and have no lease.
func (p *Patient) strangers(seen map[wire.Sighting]int, suspects []*evidence) []said {
	four, six := p.Networks()
	var out []said
	for s, n := range seen {
		inNetwork := four.Contains(s.From) || six.Contains(s.From)
		if s.Out || s.DstPort != p.Local.Port || !s.VXLAN || s.VNI != p.Local.VNI.Uint32() || !inNetwork || p.leased(s) || p.Store.Err != nil ||
			slices.ContainsFunc(suspects, func(e *evidence) bool { return e.inItsName(s) || s.Src == e.peer.outer }) {
			continue
		}
		out = append(out, said{Finding: Finding{ID: "lease-expired", Severity: Broken, Confidence: Certain, Node: s.Src.String(),
			Summary:  fmt.Sprintf("%s sends into this overlay and has no lease (any more): what it sends is dropped, and nobody sends to it", s.Src),
			Evidence: fmt.Sprintf("%d datagrams of VNI %d from there, of %s, whose subnet nobody leases", n, s.VNI, s.From),
			Fix:      restartOn(s.Src, reachesEtcd)}})
	}
	return out
}

// leased reports whether somebody's lease explains a datagram, by its outer or its inner source.
func (p *Patient) leased(s wire.Sighting) bool {
	nodes := append([]Node{p.Local}, p.Peers...)
	return slices.ContainsFunc(nodes, func(n Node) bool {
		return n.PublicIP == s.Src || n.PublicIPv6 == s.Src || n.Subnet.IsValid() && n.Subnet.Contains(s.From) || n.Subnet6.IsValid() && n.Subnet6.Contains(s.From)
	})
}
