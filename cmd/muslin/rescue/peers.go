package rescue

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"muslin/encap"
	"muslin/lease"
)

// Peer is another node as flannel's vxlan reaches it.
type Peer struct {
	Subnet   netip.Prefix `json:"subnet"`
	PublicIP netip.Addr   `json:"public_ip"`
	MAC      encap.MAC    `json:"mac"`
	Direct   bool         `json:"direct,omitempty"` // without encapsulation
}

// Peers are the other nodes as they are now; nil where they are not known.
type Peers []Peer

// findPeers finds the other nodes: by the leases, or else in the kernel's tables.
func (s *Search) findPeers(j *Journal) error {
	if s.leases != nil {
		s.peers = PeersOf(s.config, s.leases, j)
		return nil
	}
	for i := range j.Devices {
		d := &j.Devices[i]
		peers, lost := d.Peers(j.network(d.Six), j.subnet(d.Six).Bits())
		s.peers = append(s.peers, peers...)
		for _, subnet := range lost {
			s.warnings = append(s.warnings, fmt.Sprintf("which host has %s the kernel's tables do not say: it is not reached until etcd answers", subnet))
		}
	}
	for _, r := range j.Direct {
		s.peers = append(s.peers, Peer{Subnet: r.Prefix, PublicIP: r.Gateway, Direct: true})
	}
	if len(s.peers) == 0 {
		return fmt.Errorf("%w; and the kernel's tables here know no peers any more: get etcd back, or give what was saved with --peers-file (and --network)", s.storeErr)
	}
	return nil
}

// PeersIn are the other nodes as the store has them.
func PeersIn(ctx context.Context, store Store, j *Journal) (Peers, error) {
	raw, _, err := store.Config(ctx)
	if err != nil {
		return nil, err
	}
	cfg, err := lease.ParseConfig(raw)
	if err != nil {
		return nil, err
	}
	entries, _, err := store.List(ctx)
	if err != nil {
		return nil, err
	}
	s := new(Search)
	s.setLeases(entries)
	return PeersOf(cfg, s.leases, j), nil
}

// PeersOf are the other nodes that flannel reaches, by their leases.
func PeersOf(cfg *lease.Config, leases []lease.Lease, j *Journal) Peers {
	peers := Peers{}
	add := func(p Peer) {
		if cfg.Backend.Type == lease.BackendHostGW || cfg.Backend.DirectRouting && onLink(p.PublicIP) {
			p.Direct = true
		}
		if p.Direct || p.MAC != (encap.MAC{}) || cfg.Backend.Type == lease.BackendUDP {
			peers = append(peers, p)
		}
	}
	for _, l := range leases {
		if l.Subnet == j.Subnet && l.Subnet6 == j.Subnet6 || l.Attrs.BackendType != cfg.Backend.Type {
			continue
		}
		if cfg.EnableIPv4 && l.Subnet.IsValid() && l.Attrs.PublicIP.IsValid() {
			add(Peer{Subnet: l.Subnet, PublicIP: l.Attrs.PublicIP, MAC: l.Attrs.MAC})
		}
		if cfg.EnableIPv6 && l.Subnet6.IsValid() && l.Attrs.PublicIPv6.IsValid() {
			add(Peer{Subnet: l.Subnet6, PublicIP: l.Attrs.PublicIPv6, MAC: l.Attrs.MAC6})
		}
	}
	return peers
}

// onLink reports whether a host is reached without a gateway.
func onLink(addr netip.Addr) bool {
	routes, err := netlink.RouteGet(addr.AsSlice())
	return err == nil && len(routes) > 0 && routes[0].Gw == nil
}

// Peers are those that the kernel knows by the device: the base of a subnet has a MAC, and a host has this MAC. The subnet's length
// is that of its route, or where that is gone bits, which all subnets of a network have. Lost are subnets with a route to a
// host that nothing tells. Without a network only what has a route counts. It is the last resort when nobody else can be asked.
func (d *Device) Peers(network netip.Prefix, bits int) (all []Peer, lost []netip.Prefix) {
	routed := make(map[netip.Addr]netip.Prefix)
	for _, r := range d.Routes {
		if ofPeer(r, network) || !network.IsValid() && r.Gateway == r.Prefix.Addr() {
			routed[r.Gateway] = r.Prefix
		}
	}
	for _, n := range d.Neighbours {
		subnet, ok := routed[n.Address]
		if !ok && network.Contains(n.Address) {
			subnet = netip.PrefixFrom(n.Address, bits)
		}
		f := slices.IndexFunc(d.Forwarding, func(f Forward) bool { return f.MAC == n.MAC && f.To.IsValid() })
		mac, err := encap.ParseMAC(n.MAC)
		if f >= 0 && err == nil && subnet.IsValid() && subnet == subnet.Masked() {
			all = append(all, Peer{Subnet: subnet, PublicIP: d.Forwarding[f].To, MAC: mac})
			delete(routed, n.Address)
		}
	}
	for _, subnet := range routed {
		lost = append(lost, subnet)
	}
	slices.SortFunc(lost, netip.Prefix.Compare)
	return all, lost
}
