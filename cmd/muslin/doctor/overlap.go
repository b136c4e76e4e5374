package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"muslin/lease"
	"muslin/tunnel/host"
)

var overlapChecks = []Check{
	{Name: "overlaps", Needs: NeedHost, Run: checkOverlaps},
	{Name: "lease-overlaps", Run: checkLeaseOverlaps},
}

// dockerBridge is a name as dockerd gives it.
var dockerBridge = regexp.MustCompile(`^(docker0|docker_gwbridge|br-[0-9a-f]{12})$`)

// checkOverlaps is about what this host reaches elsewhere of the overlay's network.
func checkOverlaps(_ context.Context, p *Patient) []Finding {
	four, six := p.Networks()
	var found []Finding
	for _, o := range []struct {
		network, subnet netip.Prefix
		tun             string
	}{{four, p.Local.Subnet, p.Local.TUN}, {six, p.Local.Subnet6, p.tun6()}} {
		if !o.network.IsValid() {
			continue
		}
		routes, err := host.Overlaps(o.network, o.subnet, o.tun)
		if err != nil {
			p.CannotTell("overlaps", err)
			return found
		}
		for _, r := range routes {
			if f := p.overlap(o.network, r); f != nil {
				found = append(found, *f)
			}
		}
	}
	return found
}

// tun6 is the device of IPv6.
func (p *Patient) tun6() string {
	if p.Local.TUN6 == "" {
		return p.Local.TUN
	}
	return p.Local.TUN6
}

// overlap is the finding about one of them; nil: it is none, or one for checkRoutes.
func (p *Patient) overlap(network netip.Prefix, r host.OverlappingRoute) *Finding {
	var hit []string // nodes whose subnets it concerns
	static := !r.Address && !slices.ContainsFunc(p.Host.Routes, func(o host.Route) bool {
		return o.Prefix == r.Prefix && o.Device == r.Device && o.Protocol == unix.RTPROT_KERNEL
	})
	for i := range p.Peers {
		n := &p.Peers[i]
		for _, subnet := range []netip.Prefix{n.Subnet, n.Subnet6} {
			if subnet == r.Prefix && r.Gateway.IsValid() && (r.Gateway == n.PublicIP || r.Gateway == n.PublicIPv6) {
				return nil // a direct route, as flannel has it
			}
			if subnet.IsValid() && subnet.Overlaps(r.Prefix) {
				hit = append(hit, subnet.String())
			}
		}
	}
	carried := p.Running() || p.flannelServes()
	if static && carried && len(hit) > 0 {
		return nil
	}
	f := broken("subnet-overlap-route", fmt.Sprintf("%s lies in the overlay %s, and takes its packets", r, network), "ip route show; ip addr show: "+r.String(),
		p.mendRoute(r.Prefix, r.Device, r.Address || !static)+" # or choose another Network for the overlay (muslin config set)")
	if dockerBridge.MatchString(r.Device) {
		f.ID, f.Summary = "subnet-overlap-docker", fmt.Sprintf("Docker's network on %s, %s, lies in the overlay %s, and takes its packets", r.Device, r.Prefix.Masked(), network)
		f.Fix = `"${EDITOR:-vi}" /etc/docker/daemon.json && systemctl restart docker # give Docker other addresses by "bip" or "default-address-pools"; with FLANNEL_SUBNET as bip docker0 is the overlay's own`
		if id, made := strings.CutPrefix(r.Device, "br-"); made {
			f.Fix = "docker network rm " + id + ` # and make it anew with another --subnet, or after "default-address-pools" in /etc/docker/daemon.json was changed`
		}
	}
	switch {
	case !carried:
		f.Summary += "; no daemon can start"
	case len(hit) > 0:
		f.Summary += ": those to " + strings.Join(hit[:min(3, len(hit))], ", ") + " are lost"
	default:
		f.Severity = Warning
		f.Summary += ": no node has that subnet yet"
	}
	f.Explains = append([]string{"route-missing", "route-wrong", "rp-filter"}, unstarted...)
	return &f
}

// mendRoute is the command that removes a route, or the address that it comes from.
func (p *Patient) mendRoute(prefix netip.Prefix, device string, address bool) string {
	ip := "ip" + option6(prefix.Addr())
	if address {
		for _, a := range p.Host.Addresses {
			if a.Link == device && prefix.Contains(a.Prefix.Addr()) {
				prefix = a.Prefix
				break
			}
		}
		return fmt.Sprintf("%s addr del %s dev %s", ip, prefix, device)
	}
	if device == "" {
		return fmt.Sprintf("%s route del %s", ip, prefix)
	}
	return fmt.Sprintf("%s route del %s dev %s", ip, prefix, device)
}

// checkLeaseOverlaps is about leases of different nodes that have addresses in common.
func checkLeaseOverlaps(_ context.Context, p *Patient) []Finding {
	all := slices.DeleteFunc(slices.Clone(p.Peers), func(n Node) bool { return p.gone(&n) })
	if p.Local.Lease != nil || p.Local.Subnet.IsValid() || p.Local.Subnet6.IsValid() {
		all = append(all, p.Local)
	}
	type half struct {
		subnet netip.Prefix
		node   *Node
	}
	var halves []half
	for i := range all {
		for _, subnet := range []netip.Prefix{all[i].Subnet, all[i].Subnet6} {
			if subnet.IsValid() {
				halves = append(halves, half{subnet, &all[i]})
			}
		}
	}
	// Sorted so, a subnet follows the one that it lies in.
	slices.SortStableFunc(halves, func(a, b half) int {
		if c := a.subnet.Addr().Compare(b.subnet.Addr()); c != 0 {
			return c
		}
		return a.subnet.Bits() - b.subnet.Bits()
	})
	var found []Finding
	for i, inner := range halves {
		for j := i - 1; j >= 0; j-- {
			outer := halves[j]
			if outer.subnet.Overlaps(inner.subnet) && outer.node != inner.node && outer.node.Name() != inner.node.Name() {
				found = append(found, p.leaseOverlap(outer.node, inner.node, outer.subnet, inner.subnet))
				break
			}
			if !outer.subnet.Overlaps(inner.subnet) && outer.subnet.Bits() <= inner.subnet.Bits() {
				break
			}
		}
	}
	return found
}

func (p *Patient) leaseOverlap(a, b *Node, subnetA, subnetB netip.Prefix) Finding {
	// The one to release is the one that does not fit the network, or else the newer.
	wrong, other, subnet := b, a, subnetB
	newer := a.Lease != nil && b.Lease != nil && a.Lease.Revision > b.Lease.Revision
	if c := p.Config(); b.Lease == nil || newer && (c == nil || c.FitsLease(b.Subnet, b.Subnet6)) {
		wrong, other, subnet = a, b, subnetA
	}
	key := subnet.String()
	if wrong.Lease != nil {
		key = wrong.Lease.Key
	}
	f := broken("subnet-overlap-lease", fmt.Sprintf("two nodes have leases for the same addresses, %s of %s and %s of %s: the packets of some go to the other", subnetA, a.Name(), subnetB, b.Name()),
		fmt.Sprintf("leases %s and %s", keyOf(a), keyOf(b)), fmt.Sprintf("muslin leases release '%s' # and start the node %s again, which takes another subnet", key, wrong.Name()))
	f.Node = wrong.Name()
	if local := p.Local.Name(); local == other.Name() || local == wrong.Name() {
		f.Node = local
	} else {
		f.Severity = Warning // for this node
	}
	return f
}

func keyOf(n *Node) string {
	if n.Lease != nil {
		return n.Lease.Key
	}
	return lease.LeaseKey(n.Subnet, n.Subnet6)
}
