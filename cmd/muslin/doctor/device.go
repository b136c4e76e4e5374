package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"muslin/lease"
	"muslin/tunnel/host"
	"muslin/tunnel/kernel"
)

// The devices that packets go through, from the underlay up.
var deviceChecks = []Check{
	{Name: "underlay", Needs: NeedHost, Run: checkUnderlay},
	{Name: "underlay-address", Needs: NeedHost, Run: checkUnderlayAddress},
	{Name: "udp-port", Needs: NeedHost, Run: checkPort},
	{Name: "flannel", Needs: NeedHost, Run: checkFlannel},
	{Name: "bridge-mtu", Needs: NeedHost | NeedLocal, Run: checkBridgeMTU},
	{Name: "offloads", Needs: NeedRoot, Run: checkOffloads},
}

// acrossUnderlay are what follows when this node does not get at the others at all.
var acrossUnderlay = []string{"etcd-unreachable", "udp-*", "public-ip-*", "mtu-*", "lease-*", "checksum-*", "peer-*", "route-*", "rp-filter", "daemon-waiting"}

// checkUnderlay is about an interface that is down.
func checkUnderlay(_ context.Context, p *Patient) []Finding {
	name := p.Local.Iface
	if name == "" {
		return nil
	}
	f := broken("underlay-down", "", "", "ip link set "+name+" up")
	f.Explains = append([]string{"underlay-address-changed", "underlay-route-missing", "daemon-stopped"}, acrossUnderlay...)
	l := p.Host.Link(name)
	if l == nil {
		if l = p.renamed(); l != nil && l.Up && l.Carrier {
			f := Finding{ID: "underlay-renamed", Severity: Warning, Confidence: Likely,
				Summary:  fmt.Sprintf("the underlay's interface %s is called %s now: what runs goes on, and a daemon that is told to take %[1]s cannot start", name, l.Name),
				Evidence: fmt.Sprintf("ip link show has no %s; %s has this node's address", name, l.Name),
				Fix:      fmt.Sprintf("ip link set %s down; ip link set %[1]s name %s; ip link set %[2]s up # or start the daemon with --iface %[1]s", l.Name, name)}
			return []Finding{f}
		}
	}
	if l != nil {
		name = l.Name
		f.Fix = "ip link set " + name + " up"
	}
	switch {
	case l == nil:
		f.Summary = fmt.Sprintf("the underlay's interface %s is gone: no other node is reached", name)
		f.Evidence, f.Fix = "ip link show has no "+name, "ip -br addr # then bring "+name+" back, or start the daemon with another --iface"
	case !l.Up:
		f.Summary = fmt.Sprintf("the underlay's interface %s is down: no other node is reached", name)
		f.Evidence = "ip link show " + name + ": it was not set up, or was set down"
		f.Repair = &Repair{What: "set " + name + " up", Do: func(context.Context) error { return host.SetLinkUp(name) }}
	case !l.Carrier:
		f.Summary = fmt.Sprintf("the underlay's interface %s has no link: no other node is reached", name)
		f.Evidence, f.Fix = "ip link show "+name+": NO-CARRIER", "ethtool "+name+" # then look at the cable, the switch port, or the virtual machine's network"
	default:
		return p.withoutRoute(l)
	}
	return []Finding{f}
}

// renamed is the link that has this node's address, whatever it is called; nil: none has.
func (p *Patient) renamed() *host.Link {
	return p.Host.Link(cmp.Or(p.Host.Holder(p.Local.PublicIP), p.Host.Holder(p.Local.PublicIPv6)))
}

// withoutRoute is about a host that has no route to any of the other nodes, as without a default route, or with an address
// that was given another length.
func (p *Patient) withoutRoute(underlay *host.Link) []Finding {
	seen, first := "", ""
	for i := range p.Peers[:min(len(p.Peers), somePeers)] {
		for _, public := range []netip.Addr{p.Peers[i].PublicIP, p.Peers[i].PublicIPv6} {
			if !public.IsValid() {
				continue
			}
			_, err := host.RouteTo(public)
			if !errors.Is(err, unix.ENETUNREACH) {
				return nil
			}
			if first == "" {
				first, seen = public.String(), fmt.Sprintf("ip route get %s: %v", public, unix.ENETUNREACH)
			}
		}
	}
	if first == "" {
		return nil
	}
	var has []string
	for _, a := range p.Host.Addresses {
		if a.Link == underlay.Name && !a.Prefix.Addr().IsLinkLocalUnicast() {
			has = append(has, a.Prefix.String())
		}
	}
	f := broken("underlay-route-missing", "this host has no route to any of the other nodes", fmt.Sprintf("%s; %s has %s", seen, underlay.Name, cmp.Or(strings.Join(has, ", "), "no address")),
		fmt.Sprintf("ip route add default via GATEWAY dev %s # with the network's own; or give its address the right length", underlay.Name))
	f.Explains = acrossUnderlay
	return []Finding{f}
}

// checkUnderlayAddress is about an address that the daemon, or flannel's device, is bound to, and that this host has no
// longer.
func checkUnderlayAddress(_ context.Context, p *Patient) []Finding {
	var gone netip.Addr
	evidence := ""
	switch {
	case p.Running():
		for _, s := range p.Host.Sockets {
			a := s.Local.Addr().Unmap()
			if s.Local.Port() == p.Local.Port && p.Local.Port != 0 && !a.IsUnspecified() && !a.IsLoopback() && p.Host.Holder(a) == "" {
				gone, evidence = a, fmt.Sprintf("the daemon's socket is bound to %s", s.Local)
			}
		}
		for _, public := range []netip.Addr{p.Local.PublicIP, p.Local.PublicIPv6} {
			behindNAT := p.Options.Iface.PublicIP.IsValid() || p.Options.Iface.PublicIPv6.IsValid() || p.Daemon.Blind != ""
			if !gone.IsValid() && public.IsValid() && !behindNAT && p.Host.Holder(public) == "" {
				gone, evidence = public, fmt.Sprintf("the lease has the PublicIP %s", public)
			}
		}
	case p.flannelCarries() && p.Flannel.Device.VXLAN.Local.IsValid() && p.Host.Holder(p.Flannel.Device.VXLAN.Local) == "":
		gone = p.Flannel.Device.VXLAN.Local
		evidence = fmt.Sprintf("%s is bound to %s", p.Flannel.Device.Name, gone)
	}
	if !gone.IsValid() {
		return nil
	}
	var now []string
	for _, a := range p.Host.Addresses {
		if a.Link == p.Local.Iface && a.Prefix.Addr().Is4() == gone.Is4() && !a.Prefix.Addr().IsLinkLocalUnicast() {
			now = append(now, a.Prefix.Addr().String())
		}
	}
	f := broken("underlay-address-changed", fmt.Sprintf("this host no longer has the address %s, at which the other nodes reach it", gone),
		fmt.Sprintf("%s; %s has %s", evidence, cmp.Or(p.Local.Iface, "the underlay"), cmp.Or(strings.Join(now, ", "), "no address")),
		fmt.Sprintf("systemctl restart muslin # which takes the new address; or give the old one back: ip addr add %s/%d dev %s", gone, p.lengthOf(gone), cmp.Or(p.Local.Iface, "IFACE")))
	if p.flannelCarries() {
		f.Fix = "systemctl restart flanneld"
	}
	f.Explains = append([]string{"underlay-route-missing"}, acrossUnderlay...)
	return []Finding{f}
}

// lengthOf guesses the length of the network that an address of the underlay was in, from what its interface has now.
func (p *Patient) lengthOf(gone netip.Addr) int {
	for _, a := range p.Host.Addresses {
		if a.Link == p.Local.Iface && a.Prefix.Contains(gone) {
			return a.Prefix.Bits()
		}
	}
	return gone.BitLen() - 8
}

// checkPort is about the overlay's UDP port in other hands, so that no daemon can start. Of one that runs it is its own.
func checkPort(_ context.Context, p *Patient) []Finding {
	port := p.Local.Port
	if p.Running() || p.Daemon.Silent || port == 0 || p.flannelServes() {
		return nil
	}
	_, rescued := p.rescued()
	for _, l := range p.Host.Links {
		if l.VXLAN == nil || l.VXLAN.Port != port || rescued && !l.Up {
			continue // or it was set down by a rescue, and stays there
		}
		ours := p.Local.Backend == lease.BackendVXLAN && !l.VXLAN.ForAll && p.configuredVNI() == l.VXLAN.VNI
		if rescued && ours {
			return nil // a flanneld has set it up since; a daemon that goes on with the rescue sets it down
		}
		if !l.Up && !ours { // whose socket is not open
			continue
		}
		f := broken("vxlan-port-held", fmt.Sprintf("the kernel's vxlan device %s has UDP port %d: no daemon can start", l.Name, port),
			fmt.Sprintf("ip -d link show %s: VNI %d, port %d", l.Name, l.VXLAN.VNI, port), "systemctl stop flanneld; ip link del "+l.Name+" # or stop what else made it")
		if ours {
			f.Summary = fmt.Sprintf("the kernel's vxlan device %s does this overlay's work, and has its UDP port %d: no daemon can start beside it", l.Name, port)
		}
		f.Explains = unstarted
		return []Finding{f}
	}
	if p.Status == nil && !p.Daemon.Absent {
		p.CannotTell("udp-port", p.StatusErr) // it may be the daemon's own
		return nil
	}
	for _, s := range p.Host.Sockets {
		a := s.Local.Addr().Unmap()
		if s.Local.Port() != port || !a.IsUnspecified() && a != p.Host.underlayAddress(p.Local.Iface, a.Is4()) {
			continue
		}
		owner, _ := host.PortOwner(s.Local)
		f := broken("udp-port-held", fmt.Sprintf("UDP port %d is taken: no daemon can start", port), fmt.Sprintf("%s is held by %s", s.Local, owner),
			fmt.Sprintf("ss -lunp 'sport = :%d' # and stop what is there", port))
		if owner.PID != 0 {
			f.Fix = fmt.Sprintf("kill %d # or stop the service that it is of", owner.PID)
		}
		f.Explains = unstarted
		return []Finding{f}
	}
	return nil
}

// checkFlannel is about a node of flannel's whose vxlan device is down or gone.
func checkFlannel(_ context.Context, p *Patient) []Finding {
	if four, _ := p.Networks(); !p.flannelServes() || p.Local.Backend != lease.BackendVXLAN || !four.IsValid() { // Flannel.Device is IPv4's
		return nil
	}
	f := broken("flannel-device", "", "", "systemctl restart flanneld # or, if that does not do it: muslin rescue")
	f.Explains = append([]string{"route-missing", "route-wrong", "lease-stale", "lease-expired"}, consequences...)
	d := p.Flannel.Device
	switch {
	case d == nil:
		name := fmt.Sprintf("flannel.%d", p.configuredVNI())
		f.Summary = fmt.Sprintf("flannel's device %s is gone, though flanneld runs: nothing is carried", name)
		f.Evidence = "ip link show has no " + name
	case !d.Up:
		f.Summary = fmt.Sprintf("flannel's device %s is down: nothing is carried", d.Name)
		f.Evidence = "ip link show " + d.Name + ": it was not set up, or was set down, which took its routes away, too"
	default:
		return nil
	}
	return []Finding{f}
}

// configuredVNI is the config's of a vxlan network.
func (p *Patient) configuredVNI() uint32 {
	if c := p.Config(); c != nil {
		return c.Backend.VNI.Uint32()
	}
	return p.Local.VNI.Uint32()
}

// underlayAddress is the first address of a link, of one family.
func (h *Host) underlayAddress(link string, four bool) netip.Addr {
	for _, a := range h.Addresses {
		if a.Link == link && a.Prefix.Addr().Is4() == four && !a.Prefix.Addr().IsLinkLocalUnicast() {
			return a.Prefix.Addr()
		}
	}
	return netip.Addr{}
}

// checkBridgeMTU is about containers whose packets do not fit into the overlay.
func checkBridgeMTU(_ context.Context, p *Patient) []Finding {
	most := p.Local.MTU
	if most == 0 {
		return nil
	}
	var found []Finding
	for _, bridge := range p.podLinks() {
		devices := []host.Link{*p.Host.Link(bridge)}
		for _, l := range p.Host.Links {
			if l.Master == bridge {
				devices = append(devices, l)
			}
		}
		var large, seen, fix []string
		for _, l := range devices {
			if l.MTU > most {
				large, seen, fix = append(large, l.Name), append(seen, fmt.Sprintf("%s %d", l.Name, l.MTU)), append(fix, fmt.Sprintf("ip link set %s mtu %d", l.Name, most))
			}
		}
		if len(large) == 0 {
			continue
		}
		const most3 = 3
		if n := len(seen) - most3; n > 0 {
			seen, fix = append(seen[:most3], fmt.Sprintf("and %d more", n)), fix[:most3]
		}
		found = append(found, Finding{
			ID: "bridge-mtu", Severity: Warning, Confidence: Certain,
			Summary:  fmt.Sprintf("containers on %s may send larger packets than the overlay takes: large packets are lost where ICMP does not get to them", bridge),
			Evidence: fmt.Sprintf("MTU %s; the overlay's is %d", strings.Join(seen, ", "), most),
			Fix:      strings.Join(fix, "; ") + " # give the runtime FLANNEL_MTU (Docker: --mtu), and make the containers anew",
			Explains: []string{"mtu-*"},
			Repair: &Repair{What: fmt.Sprintf("set the MTU of %s to %d", strings.Join(large, ", "), most), Do: func(context.Context) error {
				for _, name := range slices.Backward(large) { // a bridge follows its ports
					if err := host.SetLinkMTU(name, most); err != nil {
						return err
					}
				}
				return nil
			}},
		})
	}
	return found
}

// podLinks are the devices that lead to this node's containers: those with an address in its subnet.
func (p *Patient) podLinks() []string {
	var all []string
	for _, a := range p.Host.Addresses {
		own := inside(a.Prefix, p.Local.Subnet) || inside(a.Prefix, p.Local.Subnet6)
		if own && a.Link != p.Local.TUN && a.Link != p.Local.TUN6 && a.Link != "lo" && !slices.Contains(all, a.Link) && p.Host.Link(a.Link) != nil {
			all = append(all, a.Link)
		}
	}
	return all
}

// inside reports whether a prefix lies in another one, both of one family.
func inside(p, in netip.Prefix) bool {
	return p.IsValid() && in.IsValid() && in.Bits() <= p.Bits() && in.Contains(p.Addr())
}

// checkOffloads has the kernel's offloads carry packets through a throw-away network, as the daemon does when it starts.
func checkOffloads(ctx context.Context, p *Patient) []Finding {
	_, probes := kernel.Examine(ctx, p.Options.Features)
	var found []Finding
	for _, probe := range probes {
		if !probe.Broken {
			continue
		}
		f := Finding{
			ID: "offload-broken", Severity: Warning, Confidence: Certain,
			Summary:  fmt.Sprintf("this kernel's %s spoils packets: a daemon that starts leaves it out, and is slower", probe.Name),
			Evidence: probe.Reason,
			Fix:      fmt.Sprintf("boot another kernel (docs/kernels.md), or live with it, as nothing is lost: with --features=-%s this is said no more", probe.Name),
		}
		switch {
		case p.uses(probe.Name):
			f.Severity, f.Summary = Broken, fmt.Sprintf("this kernel's %s spoils packets, and the daemon uses it", probe.Name)
			f.Fix = fmt.Sprintf("systemctl restart muslin # which tries it out, and leaves it out; for certain with --features=-%s; then boot another kernel (docs/kernels.md)", probe.Name)
			f.Explains = []string{"checksum-*", "peer-*"}
		case p.Running():
			f.Summary = fmt.Sprintf("this kernel's %s spoils packets; the daemon leaves it out, so that nothing is lost, and is slower", probe.Name)
		}
		found = append(found, f)
	}
	return found
}

// uses reports whether the daemon that runs uses a feature.
func (p *Patient) uses(feature string) bool {
	return p.Running() && slices.ContainsFunc(p.Status.Features, func(f kernel.Feature) bool { return f.Name == feature && f.On })
}
