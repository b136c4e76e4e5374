package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"path"
	"strings"

	"muslin/lease"
	"muslin/tunnel/host"
)

// The kernel's switches.
var hostChecks = []Check{
	{Name: "forwarding", Run: checkForwarding},
	{Name: "rp-filter", Needs: NeedHost, Run: checkReversePath},
}

// checkForwarding is about the switches without which the kernel hands nothing on between a container and the overlay:
// the host's, and those of the devices that packets come in by.
func checkForwarding(_ context.Context, p *Patient) []Finding {
	four, six := p.Networks()
	devices := p.podLinks()
	for _, tun := range []string{p.Local.TUN, p.Local.TUN6} {
		if tun != "" {
			devices = append(devices, tun)
		}
	}
	var found []Finding
	if four.IsValid() {
		paths := []string{"net/ipv4/ip_forward"}
		for _, d := range devices {
			paths = append(paths, path.Join("net/ipv4/conf", d, "forwarding"))
		}
		found = append(found, forwardingOff(paths, "IPv4")...)
	}
	if six.IsValid() {
		found = append(found, forwardingOff([]string{"net/ipv6/conf/all/forwarding"}, "IPv6")...)
	}
	return found
}

// forwardingOff looks at switches of one family, the first of which is for all.
func forwardingOff(paths []string, family string) []Finding {
	for _, path := range paths {
		value, err := host.Sysctl(path)
		if err != nil || value != "0" {
			continue
		}
		name := dotted(path)
		f := broken("ip-forward", "this host does not forward "+family+": its containers reach no other node, and none reaches them",
			name+" = "+value, "sysctl -w "+name+"=1 # and for good in /etc/sysctl.d")
		f.Repair = &Repair{What: "set " + name + " to 1", Do: func(context.Context) error { return host.SetSysctl(path, "1") }}
		return []Finding{f}
	}
	return nil
}

// dotted is a switch as sysctl(8) has it: with slashes where a device's name has a dot.
func dotted(path string) string {
	if strings.Contains(path, ".") {
		return path
	}
	return strings.ReplaceAll(path, "/", ".")
}

// somePeers is how many are asked the kernel about.
const somePeers = 128

// checkReversePath is about devices on which the kernel drops packets that come in by another way than answers would go
// out by (rp_filter 1). IPv6 has no such switch.
func checkReversePath(_ context.Context, p *Patient) []Finding {
	if f := p.strictFor(p.Local.Iface, func(n *Node) (netip.Addr, string) { return n.PublicIP, "the datagrams of " + n.PublicIP.String() }); f != nil {
		return []Finding{*f}
	}
	tunneled := func(n *Node) (netip.Addr, string) {
		if !n.Subnet.IsValid() || n.Peer != nil && n.Peer.Way != "encapsulated" && n.Peer.Way != "encrypted" {
			return netip.Addr{}, ""
		}
		return n.Subnet.Addr().Next(), "packets from " + n.Subnet.String()
	}
	if f := p.strictFor(p.Local.TUN, tunneled); f != nil {
		return []Finding{*f}
	}
	c := p.Config()
	name := host.StrictReversePath(p.Local.Iface)
	if name == "" || c == nil || c.Backend.Type != lease.BackendVXLAN || !c.Backend.DirectRouting || !p.Local.Subnet.IsValid() {
		return nil
	}
	return []Finding{{
		ID: "rp-filter", Severity: Warning, Confidence: Likely,
		Summary:  fmt.Sprintf("rp_filter of %s is strict: what a peer sends directly is dropped while this node encapsulates to it, as happens while a path changes", p.Local.Iface),
		Evidence: name + " is 1, by itself or by net/ipv4/conf/all/rp_filter; the network has DirectRouting",
		Fix:      fmt.Sprintf("sysctl -w %s=2 # and for good in /etc/sysctl.d", name), Repair: loosen(name),
	}}
}

// strictFor finds a peer whose packets, which come in by a device, the kernel drops there; nil: there is none.
func (p *Patient) strictFor(device string, from func(n *Node) (netip.Addr, string)) *Finding {
	if device == "" {
		return nil
	}
	name := host.StrictReversePath(device)
	if name == "" {
		return nil
	}
	for i := range p.Peers[:min(len(p.Peers), somePeers)] {
		a, what := from(&p.Peers[i])
		if !a.IsValid() || !a.Is4() {
			continue
		}
		way, err := host.RouteTo(a)
		if err != nil || way.Device == device || way.Local {
			continue
		}
		f := broken("rp-filter", fmt.Sprintf("rp_filter of %s is strict, and drops %s, which come in there and would be answered by %s", device, what, way.Device),
			fmt.Sprintf("%s is 1, by itself or by net/ipv4/conf/all/rp_filter; ip route get %s: dev %s", name, a, way.Device),
			fmt.Sprintf("sysctl -w %s=2 # and for good in /etc/sysctl.d", name))
		f.Repair, f.Explains = loosen(name), []string{"udp-*", "public-ip-*", "peer-*"}
		return &f
	}
	return nil
}

func loosen(name string) *Repair {
	return &Repair{What: "set " + name + " to 2", Do: func(context.Context) error { return host.SetSysctl(name, "2") }}
}
