package doctor

import (
	"cmp"
	"net/netip"
	"regexp"

	"muslin/cmd/muslin/control"
	"muslin/encap"
	"muslin/lease"
	"muslin/tunnel/host"
)

// findNodes makes this node and its peers of what is known: of the leases in the store, else of those that the daemon
// knew last, and of what the daemon says.
func (p *Patient) findNodes() {
	leases := p.Store.Leases
	if p.Store.Err != nil && p.Memory != nil {
		leases = p.Memory.Leases
	}
	p.Local = p.local(leases)
	for i := range leases {
		l := &leases[i]
		if l.Key == p.ownKey() {
			p.Local.Lease = l
			if left, ok := p.Store.TTL[l.Key]; ok {
				p.Local.TTL = &left
			}
			continue
		}
		n := p.nodeOf(l)
		if left, ok := p.Store.TTL[l.Key]; ok {
			n.TTL = &left
		}
		p.Peers = append(p.Peers, n)
	}
	if p.Status == nil {
		return
	}
	at := make(map[netip.Prefix]int, len(p.Peers))
	for i := range p.Peers {
		for _, subnet := range []netip.Prefix{p.Peers[i].Subnet, p.Peers[i].Subnet6} {
			if subnet.IsValid() {
				at[subnet] = i
			}
		}
	}
	for i := range p.Status.Peers {
		p.attach(&p.Status.Peers[i], at)
	}
}

// ownKey is the key of this node's lease; empty: it is not known.
func (p *Patient) ownKey() string {
	if !p.Local.Subnet.IsValid() && !p.Local.Subnet6.IsValid() {
		return ""
	}
	return lease.LeaseKey(p.Local.Subnet, p.Local.Subnet6)
}

// local is this node.
func (p *Patient) local(leases []lease.Lease) Node {
	var n Node
	if s := p.Status; s != nil {
		n = Node{
			PublicIP: address(s.Node.PublicIP), PublicIPv6: address(s.Node.PublicIPv6), Subnet: prefix(s.Node.Subnet), Subnet6: prefix(s.Node.Subnet6),
			Backend: s.Node.Backend, Port: s.Node.Port, MTU: s.Node.MTU, Iface: s.Node.Iface, TUN: s.Node.TUN, TUN6: s.Node.TUN6,
		}
		n.MAC, _ = encap.ParseMAC(s.Node.VtepMAC)
		n.MAC6, _ = encap.ParseMAC(s.Node.VtepMAC6)
		if s.Node.VNI != nil {
			n.VNI, _ = encap.NewVNI(*s.Node.VNI)
		}
	}
	if own := p.ownLease(leases, &n); own != nil && !n.Subnet.IsValid() && !n.Subnet6.IsValid() {
		known := p.nodeOf(own)
		known.Iface, known.TUN, known.TUN6, known.MTU = n.Iface, n.TUN, n.TUN6, n.MTU
		n = known
	}
	if f := p.Flannel; f != nil {
		if !n.Subnet.IsValid() && !n.Subnet6.IsValid() {
			n.Subnet, n.Subnet6 = f.File.Subnet, f.File.Subnet6
		}
		n.MTU = cmp.Or(n.MTU, int(f.File.MTU))
	}
	if p.flannelCarries() {
		d := p.Flannel.Device
		n.TUN, n.Iface, n.Port, n.Backend = d.Name, cmp.Or(n.Iface, d.VXLAN.Device), d.VXLAN.Port, lease.BackendVXLAN
		n.VNI, _ = encap.NewVNI(d.VXLAN.VNI)
		n.MAC, _ = encap.ParseMAC(d.MAC)
		if !n.PublicIP.IsValid() && d.VXLAN.Local.Is4() {
			n.PublicIP = d.VXLAN.Local
		}
		if six := p.flannelDevice6(); six != nil {
			n.TUN6 = six.Name
			n.MAC6, _ = encap.ParseMAC(six.MAC)
			if !n.PublicIPv6.IsValid() {
				n.PublicIPv6 = six.VXLAN.Local
			}
		}
	}
	if f := p.Flannel; f != nil && f.Daemon && p.Status == nil && n.TUN == "" {
		for _, a := range p.Host.Addresses {
			switch at := a.Prefix.Addr(); {
			case !otherDevices.MatchString(a.Link):
			case n.Subnet.IsValid() && n.Subnet.Contains(at):
				n.TUN = a.Link
			case n.Subnet6.IsValid() && n.Subnet6.Contains(at):
				n.TUN6 = a.Link
			}
		}
	}
	if c := p.Config(); c != nil {
		n.Port, n.Backend = cmp.Or(n.Port, c.Backend.Port), cmp.Or(n.Backend, c.Backend.Type)
	}
	if n.Iface == "" {
		n.Iface = p.Host.Holder(n.PublicIP)
	}
	if n.Iface == "" && len(p.Options.Iface.Iface) > 0 && p.Host.Link(p.Options.Iface.Iface[0]) != nil {
		n.Iface = p.Options.Iface.Iface[0]
	}
	return n
}

// otherDevices are what flannel's udp and wireguard carry by (pkg/backend in v0.26.7). With them, too, the overlay's routes lead there.
var otherDevices = regexp.MustCompile(`^flannel(?:[0-9]+|-wg|-wg-v6)$`)

// flannelDevice6 is flannel's device of IPv6, flannel-v6.1 beside flannel.1; nil: there is none.
func (p *Patient) flannelDevice6() *host.Link {
	for i, l := range p.Host.Links {
		if l.VXLAN != nil && l.VXLAN.Local.Is6() && l.VXLAN.VNI == p.Flannel.Device.VXLAN.VNI {
			return &p.Host.Links[i]
		}
	}
	return nil
}

// flannelCarries reports whether the kernel's vxlan device, and no daemon of muslin's, carries this node's packets.
func (p *Patient) flannelCarries() bool {
	return p.Status == nil && !p.Daemon.Silent && p.Flannel != nil && p.Flannel.Device != nil
}

// ownLease is that of this node among the leases: of the subnet that it is known to have, or else of an address of its
// own, the newest; nil: there is none.
func (p *Patient) ownLease(leases []lease.Lease, n *Node) *lease.Lease {
	remembered := p.Memory.Subnet()
	var own *lease.Lease
	for i := range leases {
		l := &leases[i]
		switch {
		case n.Subnet.IsValid() && l.Subnet == n.Subnet, n.Subnet6.IsValid() && l.Subnet6 == n.Subnet6:
			return l
		case !p.isOurs(l, n):
		case own == nil, remembered.IsValid() && l.Subnet == remembered, l.Revision > own.Revision && own.Subnet != remembered:
			own = l
		}
	}
	return own
}

func (p *Patient) isOurs(l *lease.Lease, n *Node) bool {
	for _, pair := range [][2]netip.Addr{
		{l.Attrs.PublicIP, n.PublicIP}, {l.Attrs.PublicIP, p.Options.Iface.PublicIP},
		{l.Attrs.PublicIPv6, n.PublicIPv6}, {l.Attrs.PublicIPv6, p.Options.Iface.PublicIPv6},
	} {
		if pair[0].IsValid() && pair[0] == pair[1] {
			return true
		}
	}
	return !n.PublicIP.IsValid() && !n.PublicIPv6.IsValid() && (p.ownAddress(l.Attrs.PublicIP) || p.ownAddress(l.Attrs.PublicIPv6))
}

// gone reports whether a peer is but kept by the daemon for a while, and has no lease any more.
func (p *Patient) gone(n *Node) bool { return n.Lease == nil && p.Store.Err == nil }

// nodeOf is what a lease says of its node.
func (p *Patient) nodeOf(l *lease.Lease) Node {
	a := l.Attrs
	n := Node{PublicIP: a.PublicIP, PublicIPv6: a.PublicIPv6, Subnet: l.Subnet, Subnet6: l.Subnet6, Backend: a.BackendType, VNI: a.VNI, MAC: a.MAC, MAC6: a.MAC6, Lease: l}
	if !a.PublicIP.IsValid() {
		n.VNI = a.VNI6
	}
	if c := p.Config(); c != nil {
		n.Port = c.Backend.Port
	}
	if a.BackendType == lease.BackendWireGuard {
		n.Port = cmp.Or(a.Port, n.Port)
	}
	return n
}

// attach finds the node of a peer that the daemon knows, by where each subnet's is, or makes one: its lease may have vanished, or
// the store is away.
func (p *Patient) attach(s *control.PeerStatus, at map[netip.Prefix]int) {
	subnet := prefix(s.Subnet)
	six := subnet.Addr().Is6()
	i, ok := at[subnet]
	if !ok {
		i, ok = at[prefix(s.OtherSubnet)]
	}
	if !ok {
		p.Peers = append(p.Peers, Node{Backend: s.Backend, Port: p.Local.Port, VNI: p.Local.VNI})
		i = len(p.Peers) - 1
	}
	at[subnet] = i
	n := &p.Peers[i]
	mac, _ := encap.ParseMAC(s.VtepMAC)
	if six {
		n.Peer6 = s
		if n.Lease == nil {
			n.Subnet6, n.PublicIPv6, n.MAC6 = subnet, address(s.PublicIP), mac
		}
		return
	}
	n.Peer = s
	if n.Lease == nil {
		n.Subnet, n.PublicIP, n.MAC = subnet, address(s.PublicIP), mac
	}
}
