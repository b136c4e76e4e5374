package doctor

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"muslin/cmd/muslin/doctor/wire"
	"muslin/encap"
	"muslin/lease"
)

var leaseChecks = []Check{
	{Name: "own lease", Needs: NeedStore | NeedLocal, Run: checkOwnLease},
	{Name: "leases", Needs: NeedStore, Run: checkLeases},
	{Name: "flannel's device", Needs: NeedStore | NeedLocal | NeedPeers | NeedRoot, Run: checkDevice},
}

// consequences are what is wrong with peers where the leases are not what the nodes are.
var consequences = []string{"udp-filtered-here*", "udp-filtered-at-peer*", "udp-filtered-one-way*", "public-ip-nat*", "lease-dead-node*", "public-ip-unreachable*",
	"peer-silent*", "vtep-mac-wrong*", "lease-stale*", "port-mismatch*"}

// ofPeer are those where one lease is not what its node is.
var ofPeer = []string{"udp-filtered-here", "udp-filtered-at-peer", "udp-filtered-one-way", "public-ip-nat", "lease-dead-node", "public-ip-unreachable", "peer-silent", "vtep-mac-wrong"}

// checkOwnLease compares this node with its lease and with the network's config.
func checkOwnLease(_ context.Context, p *Patient) []Finding {
	if p.Store.Kind != "etcd" {
		return nil
	}
	found := p.againstConfig()
	n, l := &p.Local, p.Local.Lease
	own := lease.LeaseKey(n.Subnet, n.Subnet6)
	restart := "systemctl restart muslin"
	if p.flannelCarries() {
		restart = restartFlannel
	}
	switch {
	case l == nil && p.carries():
		f := broken("lease-expired", fmt.Sprintf("this node carries packets of %s, and has no lease for it (any more): other nodes send it nothing", own),
			fmt.Sprintf("no key %s among the %d leases of revision %d", own, len(p.Store.Leases), p.Store.Revision), restart)
		f.Explains = consequences
		found = append(found, f)
	case l == nil && (p.Flannel != nil && p.Flannel.File.Subnet.IsValid()):
		f := broken("lease-expired", fmt.Sprintf("this node had %s, and has no lease for it any more", own),
			fmt.Sprintf("%s names it; no such key among the %d leases of revision %d", p.Options.SubnetFile, len(p.Store.Leases), p.Store.Revision), "systemctl start muslin # or flanneld: it asks for the same subnet again")
		f.Severity, f.Confidence = Warning, Likely
		found = append(found, f)
	case l != nil && p.carries() && n.Backend == lease.BackendVXLAN && l.Attrs.BackendType == lease.BackendVXLAN:
		found = append(found, p.againstLease(l, restart)...)
	}
	return found
}

// againstLease looks at the MAC in this node's own lease.
func (p *Patient) againstLease(l *lease.Lease, restart string) []Finding {
	four, _ := p.ownHalf(false)
	if !four.subnet.IsValid() || four.mac == l.Attrs.MAC || four.mac == (encap.MAC{}) {
		return nil
	}
	if p.Running() { // it writes what is its own again: if that did not last, somebody else writes, too
		f := broken("public-ip-duplicate", fmt.Sprintf("another host has PublicIP %s as well, and writes this node's lease over", l.Attrs.PublicIP),
			fmt.Sprintf("the lease %s names VTEP MAC %s, and this node's is %s", l.Key, l.Attrs.MAC, four.mac), "stop that host's flanneld or muslin, or start it with a --public-ip of its own")
		f.Confidence, f.Explains = Likely, consequences
		return []Finding{f}
	}
	f := broken("vtep-mac-wrong", fmt.Sprintf("the lease of this node names VTEP MAC %s, and its device %s has %s: it drops all that is sent to it", l.Attrs.MAC, p.Local.TUN, four.mac),
		fmt.Sprintf("lease %s; ip link show %s", l.Key, p.Local.TUN), restart)
	f.Explains = consequences
	return []Finding{f}
}

// againstConfig is about a node that was started before the network's config was changed.
func (p *Patient) againstConfig() []Finding {
	c, n := p.Store.Config, &p.Local
	if c == nil || !p.carries() {
		return nil
	}
	restart := "systemctl restart muslin"
	if !p.Running() {
		restart = restartFlannel
	}
	what := func(id, name string, ours, theirs any) []Finding {
		f := broken(id, fmt.Sprintf("this node has %s %v, and the network's config says %v", name, ours, theirs), fmt.Sprintf("%s %v in use here; config: %s", name, ours, p.Store.Raw), restart)
		if slices.ContainsFunc(p.Peers, func(n Node) bool { return n.Peer != nil && n.Peer.Up != nil && *n.Peer.Up }) {
			f.Severity = Warning // the others have not been started again either
		}
		f.Explains = append([]string{"backend-mismatch*", "vni-mismatch*", "port-mismatch*"}, consequences...)
		return []Finding{f}
	}
	switch {
	case n.Backend != c.Backend.Type:
		return what("backend-mismatch", "backend", n.Backend, c.Backend.Type)
	case n.Backend == lease.BackendVXLAN && n.VNI != c.Backend.VNI:
		return what("vni-mismatch", "VNI", n.VNI, c.Backend.VNI)
	case n.Port != c.Backend.Port && n.Backend != lease.BackendHostGW && n.Backend != lease.BackendWireGuard:
		return what("port-mismatch", "UDP port", n.Port, c.Backend.Port)
	}
	return nil
}

// checkLeases compares the leases with each other and with this node.
func checkLeases(ctx context.Context, p *Patient) []Finding {
	nodes := slices.Clone(p.Peers)
	if p.Local.Lease != nil {
		nodes = append(nodes, p.nodeOf(p.Local.Lease))
	}
	found := p.vanished()
	nodes = slices.DeleteFunc(nodes, func(n Node) bool { return n.Lease == nil })
	for i := range nodes {
		found = append(found, p.otherKind(&nodes[i])...)
		found = append(found, p.circular(&nodes[i])...)
		found = append(found, p.runsOut(&nodes[i])...)
	}
	found = append(found, p.doubles(ctx, nodes)...)
	var out []Finding
	for _, f := range grouped(found) {
		out = append(out, f.Finding)
	}
	return out
}

// vanished is about peers that the daemon holds on to, since they are heard, while the store has no lease of theirs.
func (p *Patient) vanished() []said {
	var found []said
	for _, n := range p.Peers {
		if n.Lease != nil || !p.Running() || p.Store.Kind != "etcd" {
			continue
		}
		f := broken("lease-expired", fmt.Sprintf("%s lives and has no lease (any more): flannel's nodes send it nothing, muslin's do for five minutes", n.Name()),
			fmt.Sprintf("the daemon hears it as %s; no such key among the %d leases of revision %d", lease.LeaseKey(n.Subnet, n.Subnet6), len(p.Store.Leases), p.Store.Revision),
			restartOn(n.Name(), reachesEtcd))
		f.Node, f.Explains = n.Name(), ofPeer
		found = append(found, said{Finding: f})
	}
	return found
}

// otherKind is about a node that cannot talk to this one, by what its lease says.
func (p *Patient) otherKind(n *Node) []said {
	own := &p.Local
	c := p.Store.Config
	if own.Backend == "" || n.Lease.Key == p.ownKey() {
		return nil
	}
	odd := func(id, what string, ours, theirs any, wrong bool) []said {
		f := broken(id, fmt.Sprintf("%s has %s %v, and this node %v: the two cannot talk", n.Name(), what, theirs, ours), fmt.Sprintf("lease %s: %s", n.Lease.Key, n.Lease.Attrs),
			restartOn(n.Name(), takesConfig+", as this node has it"))
		f.Node, f.Explains = n.Name(), ofPeer
		if wrong {
			f.Fix = "systemctl try-restart muslin flanneld # here: the network's config (muslin config get) is with the other one"
		}
		return []said{{Finding: f, kind: fmt.Sprint(theirs)}}
	}
	switch {
	case n.Backend != own.Backend:
		return odd("backend-mismatch", "backend", own.Backend, n.Backend, c != nil && c.Backend.Type == n.Backend)
	case own.Backend == lease.BackendVXLAN && n.VNI != own.VNI:
		return odd("vni-mismatch", "VNI", own.VNI, n.VNI, c != nil && c.Backend.VNI == n.VNI)
	}
	return nil
}

// circular is about a PublicIP in the overlay.
func (p *Patient) circular(n *Node) []said {
	four, six := p.Networks()
	for _, a := range []netip.Addr{n.PublicIP, n.PublicIPv6} {
		if a.IsValid() && (four.Contains(a) || six.Contains(a)) {
			f := broken("public-ip-unreachable", fmt.Sprintf("the PublicIP %s of a node lies in the overlay itself: no datagram gets there", a), "lease "+n.Lease.Key+": "+n.Lease.Attrs.String(),
				"start that node with a --public-ip of the underlay")
			f.Node = n.Name()
			return []said{{Finding: f}}
		}
	}
	return nil
}

// soon is a time to live in which a lease ought to have been renewed: an hour before its end, if not told otherwise.
const soon = 10 * time.Minute

// runsOut is about a lease that nobody renews.
func (p *Patient) runsOut(n *Node) []said {
	left, ok := p.Store.TTL[n.Lease.Key]
	if !ok || n.Lease.Reserved || left > soon {
		return nil
	}
	f := Finding{ID: "lease-stale", Severity: Warning, Confidence: Possible, Node: n.Name(),
		Summary:  fmt.Sprintf("nobody renews the lease of %s: it runs out in %v, and then no node sends there", n.Name(), left.Round(time.Second)),
		Evidence: fmt.Sprintf("lease %s has %v left; it is renewed an hour before its end, if that node was not told otherwise", n.Lease.Key, left.Round(time.Second)),
		Fix:      fmt.Sprintf("ssh %s muslin doctor # does muslin or flanneld run there, and reach etcd?", n.Name())}
	if left < time.Minute {
		f.Confidence = Likely
	}
	return []said{{Finding: f}}
}

// doubles is about leases that say the same of two nodes.
func (p *Patient) doubles(ctx context.Context, nodes []Node) []said {
	var found []said
	byMAC, byIP := make(map[encap.MAC][]*Node), make(map[netip.Addr][]*Node)
	for i := range nodes {
		n := &nodes[i]
		for _, h := range n.halves() {
			if h.mac != (encap.MAC{}) && !slices.Contains(byMAC[h.mac], n) {
				byMAC[h.mac] = append(byMAC[h.mac], n)
			}
			if h.outer.IsValid() {
				byIP[h.outer] = append(byIP[h.outer], n)
			}
		}
	}
	keys := func(all []*Node) string {
		var names []string
		for _, n := range all {
			names = append(names, n.Lease.Key+" ("+n.Lease.Attrs.String()+")")
		}
		return strings.Join(names, " and ")
	}
	for outer, all := range byIP {
		if len(all) < 2 {
			continue
		}
		slices.SortFunc(all, func(a, b *Node) int { return int(b.Lease.Revision - a.Lease.Revision) })
		newest, old := all[0], all[1]
		if newest.MAC != (encap.MAC{}) && newest.MAC == old.MAC || newest.MAC6 != (encap.MAC{}) && newest.MAC6 == old.MAC6 {
			found = append(found, stale(old, fmt.Sprintf("%s has a newer lease, %s, and the old one, %s, is still there", outer, newest.Lease.Key, old.Lease.Key), keys(all)))
			continue
		}
		f := broken("public-ip-duplicate", fmt.Sprintf("%d leases are of one PublicIP, %s: two hosts have it, or one of the leases is an old one", len(all), outer), keys(all),
			fmt.Sprintf("start each host with a --public-ip of its own; or, if it is one host: muslin leases release '%s', if it has the other one", old.Lease.Key))
		f.Node, f.Explains = outer.String(), ofPeer
		found = append(found, said{Finding: f, kind: outer.String()})
	}
	for mac, all := range byMAC {
		if len(all) < 2 || slices.ContainsFunc(all[1:], all[0].sharesAddress) {
			continue
		}
		slices.SortFunc(all, func(a, b *Node) int { return int(b.Lease.Revision - a.Lease.Revision) })
		if gone := p.dead(ctx, all[1]); gone {
			found = append(found, stale(all[1], fmt.Sprintf("the node with VTEP MAC %s has a newer lease, %s, and another address; the old one, %s, is still there", mac, all[0].Lease.Key, all[1].Lease.Key),
				fmt.Sprintf("%s; %s does not answer", keys(all), all[1].Name())))
			continue
		}
		f := broken("vtep-mac-duplicate", fmt.Sprintf("%d nodes have one VTEP MAC, %s: each drops what the other sends", len(all), mac), keys(all),
			fmt.Sprintf("on the one that was made from the other's image: delete vtep-mac in muslin's state directory, or flannel's device (ip link del flannel.%s), and restart", all[0].VNI))
		f.Node, f.Explains = all[0].Name(), consequences
		found = append(found, said{Finding: f, kind: mac.String()})
	}
	return found
}

// sharesAddress reports whether both have the same PublicIP of either family.
func (n *Node) sharesAddress(other *Node) bool {
	return n.PublicIP.IsValid() && n.PublicIP == other.PublicIP || n.PublicIPv6.IsValid() && n.PublicIPv6 == other.PublicIPv6
}

func stale(old *Node, summary, evidence string) said {
	f := Finding{ID: "lease-stale", Severity: Warning, Confidence: Likely, Summary: summary, Evidence: evidence, Fix: "muslin leases release '" + old.Lease.Key + "'", Node: old.Name(), Explains: ofPeer}
	return said{Finding: f, kind: old.Lease.Key}
}

// dead reports whether a host gives no sign of life.
func (p *Patient) dead(ctx context.Context, n *Node) bool {
	h := n.halves()[0]
	echoes, err := wire.OpenEchoes(h.six, netip.Addr{})
	if err != nil || !h.outer.IsValid() {
		return false
	}
	defer echoes.Close()
	return echoes.Ask(ctx, askTries, askEvery, []wire.Question{{To: h.outer}})[0].Got == 0 && !wire.Alive(ctx, netip.AddrPortFrom(h.outer, 22), time.Second)
}

// checkDevice compares what flanneld has written into the kernel for its device with the leases.
func checkDevice(_ context.Context, p *Patient) []Finding {
	if !p.flannelCarries() || p.Local.Backend != lease.BackendVXLAN {
		return nil
	}
	var wrong []string
	looked := 0
	newest := p.newestAt()
	for _, six := range []bool{false, true} {
		d := p.device(six)
		if d == nil || d.VXLAN == nil || six != d.VXLAN.Local.Is6() {
			continue
		}
		table, err := readDevice(d.Index, six)
		if err != nil {
			p.CannotTell("flannel's device", err)
			return nil
		}
		for i := range p.Peers {
			for _, h := range p.Peers[i].halves() {
				if h.six != six || !p.talks(h, newest) || h.mac == (encap.MAC{}) || !p.throughDevice(h, d.Name) {
					continue
				}
				looked++
				if why := table.differs(h); why != "" {
					wrong = append(wrong, why)
				}
			}
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	const most = 3
	f := broken("lease-stale", fmt.Sprintf("flannel's device here works from old leases, of %d of %d peers: flanneld does not run, or has lost its watch on etcd", len(wrong), looked),
		strings.Join(wrong[:min(len(wrong), most)], "; "), restartFlannel)
	f.Explains = consequences
	return []Finding{f}
}

// throughDevice reports whether the peer's subnet is routed by the device: with DirectRouting it may not be.
func (p *Patient) throughDevice(h half, device string) bool {
	for _, r := range p.Host.Routes {
		if r.Prefix == h.subnet {
			return r.Device == device
		}
	}
	return true
}

// entries are the kernel's for one vxlan device.
type entries struct {
	neighbour map[netip.Addr]encap.MAC // of the overlay's addresses
	forward   map[encap.MAC]netip.Addr // to the underlay's
}

func readDevice(index int, six bool) (*entries, error) {
	family := unix.AF_INET
	if six {
		family = unix.AF_INET6
	}
	out := &entries{make(map[netip.Addr]encap.MAC), make(map[encap.MAC]netip.Addr)}
	neighbours, err := netlink.NeighList(index, family)
	if err != nil {
		return nil, fmt.Errorf("list neighbours: %w", err)
	}
	for _, n := range neighbours {
		if mac, ok := macOf(n.HardwareAddr); ok {
			a, _ := netip.AddrFromSlice(n.IP)
			out.neighbour[a.Unmap()] = mac
		}
	}
	forward, err := netlink.NeighList(index, unix.AF_BRIDGE)
	if err != nil {
		return nil, fmt.Errorf("list forwarding entries: %w", err)
	}
	for _, n := range forward {
		if mac, ok := macOf(n.HardwareAddr); ok && n.IP != nil {
			a, _ := netip.AddrFromSlice(n.IP)
			out.forward[mac] = a.Unmap()
		}
	}
	return out, nil
}

func macOf(h net.HardwareAddr) (encap.MAC, bool) {
	if len(h) != len(encap.MAC{}) {
		return encap.MAC{}, false
	}
	return encap.MAC(h), true
}

// differs says what is wrong about a peer; empty: nothing.
func (e *entries) differs(h half) string {
	mac, ok := e.neighbour[h.base()]
	switch {
	case !ok:
		return fmt.Sprintf("no neighbour entry for %s, of %s", h.base(), h.outer)
	case mac != h.mac:
		return fmt.Sprintf("neighbour %s has %s, its lease says %s", h.base(), mac, h.mac)
	case !e.forward[mac].IsValid():
		return fmt.Sprintf("no forwarding entry for %s, of %s", mac, h.outer)
	case e.forward[mac] != h.outer:
		return fmt.Sprintf("%s is forwarded to %s, its lease says %s", mac, e.forward[mac], h.outer)
	}
	return ""
}
