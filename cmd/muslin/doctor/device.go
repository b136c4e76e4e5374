package doctor

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"muslin/lease"
	"muslin/tunnel/host"
	"muslin/tunnel/kernel"
)

// The devices that packets go through, from the underlay up.
var deviceChecks = []Check{
	{Name: "underlay", Needs: NeedHost, Run: checkUnderlay},
	{Name: "underlay-address", Needs: NeedHost, Run: checkUnderlayAddress},
	{Name: "udp-port", Needs: NeedHost, Run: checkPort},
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
	f.Explains = append([]string{"underlay-address-changed", "daemon-stopped"}, acrossUnderlay...)
	l := p.Host.Link(name)
	switch {
	case l == nil:
		f.Summary = fmt.Sprintf("the underlay's interface %s is gone: no other node is reached", name)
		f.Evidence, f.Fix = "ip link show has no "+name, "ip -br addr; then bring "+name+" back, or start the daemon with another --iface"
	case !l.Up:
		f.Summary = fmt.Sprintf("the underlay's interface %s is down: no other node is reached", name)
		f.Evidence = "ip link show " + name + ": it was not set up, or was set down"
		f.Repair = &Repair{What: "set " + name + " up", Do: func(context.Context) error { return host.SetLinkUp(name) }}
	case !l.Carrier:
		f.Summary = fmt.Sprintf("the underlay's interface %s has no link: no other node is reached", name)
		f.Evidence, f.Fix = "ip link show "+name+": NO-CARRIER", "look at the cable, the switch port, or the virtual machine's network; ethtool "+name
	default:
		return nil
	}
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
		fmt.Sprintf("systemctl restart muslin, which takes the new address; or give the old one back: ip addr add %s dev %s", gone, cmp.Or(p.Local.Iface, "IFACE")))
	if p.flannelCarries() {
		f.Fix = "systemctl restart flanneld"
	}
	f.Explains = acrossUnderlay
	return []Finding{f}
}

// checkPort is about the overlay's UDP port in other hands, so that no daemon can start. Of one that runs it is its own.
func checkPort(_ context.Context, p *Patient) []Finding {
	port := p.Local.Port
	if p.Running() || p.Daemon.Silent || port == 0 || p.flannelServes() {
		return nil
	}
	for _, l := range p.Host.Links {
		if l.VXLAN == nil || l.VXLAN.Port != port {
			continue
		}
		ours := p.Local.Backend == lease.BackendVXLAN && !l.VXLAN.ForAll && p.configuredVNI() == l.VXLAN.VNI
		if !l.Up && !ours { // whose socket is not open
			continue
		}
		f := broken("vxlan-port-held", fmt.Sprintf("the kernel's vxlan device %s has UDP port %d: no daemon can start", l.Name, port),
			fmt.Sprintf("ip -d link show %s: VNI %d, port %d", l.Name, l.VXLAN.VNI, port), "ip link del "+l.Name+", after stopping what made it (flanneld)")
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
			fmt.Sprintf("ss -lunp 'sport = :%d', and stop what is there", port))
		if owner.PID != 0 {
			f.Fix = fmt.Sprintf("kill %d, or stop the service that it is of", owner.PID)
		}
		f.Explains = unstarted
		return []Finding{f}
	}
	return nil
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
			Fix:      strings.Join(fix, "; ") + "; give the runtime FLANNEL_MTU (Docker: --mtu), and make the containers anew",
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
			Summary:  fmt.Sprintf("this kernel's %s spoils packets; the daemon leaves it out", probe.Name),
			Evidence: probe.Reason,
			Fix:      fmt.Sprintf("boot another kernel (docs/kernels.md); until then start the daemon with --features=-%s", probe.Name),
			Explains: []string{"checksum-*"},
		}
		if p.uses(probe.Name) {
			f.Severity, f.Summary = Broken, fmt.Sprintf("this kernel's %s spoils packets, and the daemon uses it", probe.Name)
		}
		found = append(found, f)
	}
	return found
}

// uses reports whether the daemon that runs uses a feature.
func (p *Patient) uses(feature string) bool {
	return p.Running() && slices.ContainsFunc(p.Status.Features, func(f kernel.Feature) bool { return f.Name == feature && f.On })
}
