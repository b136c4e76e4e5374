package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"muslin/lease"
	"muslin/tunnel/host"
	"muslin/tunnel/way"
)

var routeChecks = []Check{
	{Name: "routes", Needs: NeedHost | NeedLocal | NeedPeers, Run: checkRoutes},
}

// expected is where the kernel is to send what is for a peer.
type expected struct {
	device  string
	gateway netip.Addr // of a direct route; invalid: any
}

// checkRoutes asks the kernel for the way to each peer's subnet, and compares.
func checkRoutes(_ context.Context, p *Patient) []Finding {
	if !p.Running() && !p.flannelServes() {
		return nil // there is nothing that could have made routes
	}
	missing, wrong := new(lostRoutes), new(lostRoutes)
	looked := 0
	for i := range p.Peers {
		n := &p.Peers[i]
		for _, six := range []bool{false, true} {
			subnet := n.Subnet
			if six {
				subnet = n.Subnet6
			}
			want, ok := p.expects(n, six)
			if !ok || looked >= somePeers {
				continue
			}
			looked++
			p.compareRoute(subnet, want, missing, wrong)
		}
	}
	var found []Finding
	if f := missing.finding("route-missing", "there is no route to %s: packets to its containers leave by the default route, or not at all"); f != nil {
		found = append(found, *f)
	}
	if f := wrong.finding("route-wrong", "packets to %s go elsewhere: another program's route or rule comes before the overlay's"); f != nil {
		found = append(found, *f)
	}
	return found
}

// expects says where what is for a peer's half is to go; not ok: it is nobody's business here.
func (p *Patient) expects(n *Node, six bool) (expected, bool) {
	subnet, public, peer, tun := n.Subnet, n.PublicIP, n.Peer, p.Local.TUN
	if six {
		subnet, public, peer, tun = n.Subnet6, n.PublicIPv6, n.Peer6, p.tun6()
	}
	if !subnet.IsValid() || p.gone(n) || subnet.Overlaps(p.Local.Subnet) || subnet.Overlaps(p.Local.Subnet6) {
		return expected{}, false
	}
	if p.flannelServes() {
		if p.Local.Backend == lease.BackendHostGW {
			return expected{p.Local.Iface, public}, n.Backend == p.Local.Backend
		}
		for _, r := range p.Host.Routes {
			if r.Prefix == subnet && r.Gateway.IsValid() && r.Gateway == public {
				return expected{r.Device, public}, true // flannel's DirectRouting
			}
		}
		// A lease that flannel makes no peer of is none to expect a route for.
		return expected{device: tun}, tun != "" && n.Backend == p.Local.Backend && n.Lease != nil && n.Lease.Attrs.VNI == p.Local.VNI
	}
	switch {
	case peer == nil:
		return expected{}, false // the daemon makes no peer of it
	case peer.Way == string(way.Direct):
		return expected{p.Local.Iface, public}, true
	case peer.Way == string(way.None), tun == "":
		return expected{}, false
	}
	return expected{device: tun}, true
}

// compareRoute asks for the first container's address, and looks for routes to parts of the subnet.
func (p *Patient) compareRoute(subnet netip.Prefix, want expected, missing, wrong *lostRoutes) {
	to := subnet.Addr().Next()
	longest := p.longestRoute(to)
	got, err := host.RouteTo(to)
	switch {
	case err == nil && got.Device == want.device && (!want.gateway.IsValid() || got.Gateway == want.gateway):
		if seen, fix := p.forwardedWrong(to, want); seen != "" {
			wrong.add(subnet, seen, fix)
		} else if part := p.partRoute(subnet, want.device); part != nil {
			wrong.add(subnet, fmt.Sprintf("%s takes a part of it", part), p.mendRoute(part.Prefix, part.Device, part.Protocol == unix.RTPROT_KERNEL))
		}
	case longest == nil || longest.Prefix.Bits() == 0 || !inside(longest.Prefix, p.networkOf(to)) && longest.Kind == unix.RTN_UNICAST:
		seen := fmt.Sprintf("ip route get %s: %s", to, describeWay(got, err))
		fix := "systemctl restart muslin"
		if p.flannelServes() {
			fix = fmt.Sprintf("ip%s route replace %s via %s dev %s onlink # or: systemctl restart flanneld", option6(subnet.Addr()), subnet, subnet.Addr(), want.device)
		}
		missing.add(subnet, seen, fix)
	case longest.Device == want.device:
		fix := "ip rule show # and remove the rule that sends it to another table"
		if to.Is6() {
			fix = "ip -6 rule show # and remove the rule that sends it to another table"
		}
		if r := p.ruleFor(to, netip.Addr{}, ""); r != nil {
			fix = fmt.Sprintf("ip%s rule del pref %d", option6(to), r.Priority)
		}
		wrong.add(subnet, fmt.Sprintf("ip route get %s: %s, though the main table has %s", to, describeWay(got, err), longest), fix)
	default:
		wrong.add(subnet, fmt.Sprintf("%s; ip route get %s: %s", longest, to, describeWay(got, err)), p.mendRoute(longest.Prefix, longest.Device, longest.Protocol == unix.RTPROT_KERNEL))
	}
}

func option6(a netip.Addr) string {
	if a.Is6() {
		return " -6"
	}
	return ""
}

func describeWay(r host.KernelRoute, err error) string {
	switch {
	case err != nil:
		return err.Error()
	case r.Gateway.IsValid():
		return fmt.Sprintf("via %s dev %s", r.Gateway, r.Device)
	}
	return "dev " + r.Device
}

// networkOf is the overlay's of an address's family.
func (p *Patient) networkOf(a netip.Addr) netip.Prefix {
	four, six := p.Networks()
	if a.Is6() {
		return six
	}
	return four
}

// longestRoute is the main table's for an address; nil: it has none.
func (p *Patient) longestRoute(to netip.Addr) *host.Route {
	var best *host.Route
	for i := range p.Host.Routes {
		r := &p.Host.Routes[i]
		if !r.Prefix.Contains(to) {
			continue
		}
		if best == nil || r.Prefix.Bits() > best.Prefix.Bits() || r.Prefix.Bits() == best.Prefix.Bits() && r.Metric < best.Metric {
			best = r
		}
	}
	return best
}

// partRoute is a route to a part of a subnet by another device; nil: there is none.
func (p *Patient) partRoute(subnet netip.Prefix, device string) *host.Route {
	for i := range p.Host.Routes {
		r := &p.Host.Routes[i]
		if r.Prefix.Bits() > subnet.Bits() && subnet.Contains(r.Prefix.Addr()) && r.Device != device && r.Protocol != host.RouteProtocol {
			return r
		}
	}
	return nil
}

// ruleFor is a routing rule that a packet to an address may meet before the main table; nil: there is none. Without a sender
// it is one of this host's own.
func (p *Patient) ruleFor(to, from netip.Addr, in string) *host.Rule {
	for i := range p.Host.Rules {
		r := &p.Host.Rules[i]
		if r.Six != to.Is6() || r.Priority >= 32766 { // the main table's
			continue
		}
		meets := !r.Narrower && (!r.Dst.IsValid() || r.Dst.Contains(to)) && (!r.Src.IsValid() || from.IsValid() && r.Src.Contains(from)) && (r.In == "" || r.In == in)
		if meets != r.Not {
			return r
		}
	}
	return nil
}

// forwardedWrong looks whether packets of containers go another way than this host's own, as rules can have it; empty: they
// do not.
func (p *Patient) forwardedWrong(to netip.Addr, want expected) (seen, fix string) {
	if !slices.ContainsFunc(p.Host.Rules, func(r host.Rule) bool { return r.Six == to.Is6() && r.Priority < 32766 }) {
		return "", ""
	}
	from := p.container(to.Is6())
	for _, in := range p.podLinks() {
		if l := p.Host.Link(in); !from.IsValid() || !l.Up {
			continue
		}
		got, err := host.RouteForwarded(to, from, in)
		if errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EXDEV) || err != nil && p.ruleFor(to, from, in) == nil ||
			err == nil && got.Device == want.device && (!want.gateway.IsValid() || got.Gateway == want.gateway) {
			continue // an error without a rule is another check's, and so are these: forwarding is off, or rp_filter strict
		}
		seen = fmt.Sprintf("ip route get %s from %s iif %s: %s, and this host's own packets go the right way", to, from, in, describeWay(got, err))
		if r := p.ruleFor(to, from, in); r != nil {
			return seen, fmt.Sprintf("ip%s rule del pref %d", option6(to), r.Priority)
		}
		return seen, fmt.Sprintf("ip%s rule show # and remove the rule that sends it to another table", option6(to))
	}
	return "", ""
}

// container is an address that a container of this node may have, and this host has not; invalid: none.
func (p *Patient) container(six bool) netip.Addr {
	subnet := p.Local.Subnet
	if six {
		subnet = p.Local.Subnet6
	}
	if !subnet.IsValid() {
		return netip.Addr{}
	}
	a := subnet.Addr()
	for range 16 {
		if a = a.Next(); subnet.Contains(a) && !p.ownAddress(a) {
			return a
		}
	}
	return netip.Addr{}
}

// lostRoutes are subnets of the same trouble.
type lostRoutes struct{ subnets, seen, fix []string }

func (l *lostRoutes) add(subnet netip.Prefix, seen, fix string) {
	l.subnets, l.seen, l.fix = append(l.subnets, subnet.String()), append(l.seen, seen), append(l.fix, fix)
}

// finding is one for all of them; nil: there are none.
func (l *lostRoutes) finding(id, summary string) *Finding {
	n := len(l.subnets)
	if n == 0 {
		return nil
	}
	const shown = 3
	names := strings.Join(l.subnets[:min(shown, n)], ", ")
	if n > shown {
		names += fmt.Sprintf(" and %d more", n-shown)
	}
	f := broken(id, fmt.Sprintf(summary, names), strings.Join(unique(l.seen[:min(shown, n)]), "; "), strings.Join(unique(l.fix[:min(shown, n)]), "; "))
	f.Explains = []string{"rp-filter", "mtu-*", "peer-*"}
	return &f
}

func unique(all []string) []string {
	var out []string
	said := make(map[string]bool)
	for _, s := range all {
		if !said[s] {
			said[s] = true
			out = append(out, s)
		}
	}
	return out
}
