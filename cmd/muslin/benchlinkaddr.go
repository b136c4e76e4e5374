package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"muslin/cmd/muslin/control"
)

// Which addresses `muslin bench link` measures.

// askRunning is the daemon's status once it carries packets.
func (b *benchLink) askRunning(ctx context.Context) (*control.Status, error) {
	status, err := control.AskStatus(ctx, b.control)
	if err != nil {
		return nil, fmt.Errorf("%w; or give --overlay-addr and --underlay-addr, which need no daemon", err)
	}
	if status.State != control.StateRunning {
		return nil, fmt.Errorf("the daemon carries no packets yet (%s): try again when `muslin status` says %s", status.State, control.StateRunning)
	}
	return status, nil
}

// ownAddrs are this node's addresses for the other one, and the underlay address to listen on: behind NAT
// the PublicIP is not one of this host's.
func (b *benchLink) ownAddrs(ctx context.Context) (overlay, underlay, listen netip.Addr, err error) {
	overlay, _ = optionalIPv4("", b.overlayAddr)
	underlay, _ = optionalIPv4("", b.underlayAddr)
	if overlay.IsValid() && underlay.IsValid() {
		return overlay, underlay, underlay, nil
	}
	status, err := b.askRunning(ctx)
	if err != nil {
		return overlay, underlay, listen, err
	}
	if !overlay.IsValid() {
		if overlay, err = baseAddr(status.Node.Subnet); err != nil {
			return overlay, underlay, listen, err
		}
	}
	if underlay.IsValid() {
		return overlay, underlay, underlay, nil
	}
	if underlay, err = netip.ParseAddr(status.Node.PublicIP); err != nil {
		return overlay, underlay, listen, fmt.Errorf("the daemon's PublicIP: %w", err)
	}
	listen, err = addrOnInterface(underlay, status.Node.Iface)
	return overlay, underlay, listen, err
}

// baseAddr is the address that a node's TUN device, or flannel's VXLAN device, carries.
func baseAddr(subnet string) (netip.Addr, error) {
	p, err := netip.ParsePrefix(subnet)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("the daemon's subnet: %w", err)
	}
	return p.Masked().Addr(), nil
}

// addrOnInterface is addr if this host has it, else the first IPv4 address of the interface.
func addrOnInterface(addr netip.Addr, name string) (netip.Addr, error) {
	own, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("this host's addresses: %w", err)
	}
	if slices.ContainsFunc(own, func(a net.Addr) bool { return addrOf(a) == addr }) {
		return addr, nil
	}
	iface, err := net.InterfaceByName(name)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("underlay interface %s: %w", name, err)
	}
	addrs, err := iface.Addrs()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("addresses of %s: %w", name, err)
	}
	for _, a := range addrs {
		if a := addrOf(a); a.Is4() {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("neither is the PublicIP %s an address of this host nor has %s one; give --underlay-addr", addr, name)
}

func addrOf(a net.Addr) netip.Addr {
	p, _ := netip.ParsePrefix(a.String()) // invalid for what is no IP address
	return p.Addr()
}

// linkTarget is the node to measure to.
type linkTarget struct {
	overlay, underlay netip.Addr
	own               netip.Addr // this node's overlay address; invalid if it is not known
}

// target is what PEER and the flags name.
func (b *benchLink) target(ctx context.Context, args []string) (linkTarget, error) {
	var t linkTarget
	t.overlay, _ = optionalIPv4("", b.overlayAddr)
	t.underlay, _ = optionalIPv4("", b.underlayAddr)
	if t.overlay.IsValid() && t.underlay.IsValid() {
		return t, nil
	}
	status, err := b.askRunning(ctx)
	if err != nil {
		return t, err
	}
	peer, err := findPeer(status, args[0])
	if err != nil {
		return t, err
	}
	if t.own, err = baseAddr(status.Node.Subnet); err != nil {
		return t, err
	}
	if !t.overlay.IsValid() {
		if t.overlay, err = baseAddr(peer.Subnet); err != nil {
			return t, err
		}
	}
	if !t.underlay.IsValid() {
		if t.underlay, err = netip.ParseAddr(peer.PublicIP); err != nil {
			return t, fmt.Errorf("the PublicIP of peer %s: %w", peer.Subnet, err)
		}
	}
	return t, nil
}

// findPeer is the one peer that has the subnet, the subnet with the address, or the PublicIP.
func findPeer(status *control.Status, name string) (*control.PeerStatus, error) {
	wanted, err := netip.ParsePrefix(name)
	addr, addrErr := netip.ParseAddr(name)
	if err != nil && addrErr != nil {
		return nil, fmt.Errorf("PEER %q: want a subnet such as 10.244.15.0/24, or an address", name)
	}
	is := func(subnet, publicIP string) bool {
		p, err := netip.ParsePrefix(subnet)
		return err == nil && (p.Masked() == wanted.Masked() || p.Contains(addr)) || publicIP == name
	}
	if is(status.Node.Subnet, status.Node.PublicIP) {
		return nil, fmt.Errorf("PEER %s is this node itself: name the other one", name)
	}
	var found []*control.PeerStatus
	var subnets []string
	for i, p := range status.Peers {
		if is(p.Subnet, p.PublicIP) {
			found, subnets = append(found, &status.Peers[i]), append(subnets, p.Subnet)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("no peer %s: `muslin status` lists them", name)
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%d peers have the PublicIP %s: name one by its subnet, %s", len(found), name, strings.Join(subnets, " or "))
}
