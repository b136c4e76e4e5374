package lease

import (
	"net/netip"

	"muslin/encap"
	"muslin/tunnel/fib"
)

// The address families, as indices. A lease has a half in one or in both; each has a subnet, an address, and a VTEP
// of its own, and makes a peer of its own.
const (
	four = iota
	six
	families
)

// familyOf is that of a subnet.
func familyOf(subnet netip.Prefix) int {
	if subnet.Addr().Is4() {
		return four
	}
	return six
}

// carries reports whether this node takes part in a family.
func (n Node) carries(family int) bool {
	if family == six {
		return n.Subnet6.IsValid()
	}
	return n.Subnet.IsValid() || !n.Subnet6.IsValid()
}

// leaseHalf is what a lease says of one family; each may be zero.
type leaseHalf struct {
	subnet  netip.Prefix
	address netip.Addr
	vni     encap.VNI
	mac     encap.MAC
	key     fib.PublicKey
	port    uint16
}

func (l Lease) half(family int) leaseHalf {
	if family == six {
		return leaseHalf{l.Subnet6, l.Attrs.PublicIPv6, l.Attrs.VNI6, l.Attrs.MAC6, l.Attrs.Key6, l.Attrs.Port6}
	}
	return leaseHalf{l.Subnet, l.Attrs.PublicIP, l.Attrs.VNI, l.Attrs.MAC, l.Attrs.Key, l.Attrs.Port}
}

// half is a lease's as this node uses it: where one WireGuard tunnel carries both families, both halves have the key and
// the address of that tunnel.
func (n Node) half(l Lease, family int) leaseHalf {
	h := l.half(family)
	if n.Backend != BackendWireGuard || n.Mode == "" || n.Mode == ModeSeparate {
		return h
	}
	a := l.Attrs
	h.key, h.port = a.Key6, a.Port6 // where the two differ, flannel's nodes take this one
	if h.key.IsZero() {
		h.key, h.port = a.Key, a.Port
	}
	switch n.Mode {
	case ModeIPv4:
		h.address = a.PublicIP
	case ModeIPv6:
		h.address = a.PublicIPv6
	default:
		h.address = n.likelier(a)
	}
	return h
}

// likelier is the address by which a node is more likely to be reached, as flannel judges it: by IPv4 if its address there
// is a public one, or else by IPv6 if both nodes' there are.
func (n Node) likelier(a Attrs) netip.Addr {
	switch {
	case !a.PublicIP.IsValid(), !n.PublicIP.IsValid() && a.PublicIPv6.IsValid():
		return a.PublicIPv6
	case !a.PublicIPv6.IsValid(), !n.PublicIPv6.IsValid():
		return a.PublicIP
	case !a.PublicIP.IsPrivate():
		return a.PublicIP
	case !a.PublicIPv6.IsPrivate() && !n.PublicIPv6.IsPrivate():
		return a.PublicIPv6
	}
	return a.PublicIP
}

// halves are the subnets of one lease, of IPv4 and of IPv6; zero for what it has not.
type halves struct{ v4, v6 netip.Prefix }

func (l Lease) halves() halves { return halves{l.Subnet, l.Subnet6} }

// String is for logs and errors: "10.244.1.0/24 and 2001:db8:1::/64".
func (h halves) String() string {
	switch {
	case !h.v6.IsValid():
		return h.v4.String()
	case !h.v4.IsValid():
		return h.v6.String()
	}
	return h.v4.String() + " and " + h.v6.String()
}

// shared is a subnet that both have a part of, ours of the two; zero if there is none.
func (h halves) shared(other halves) netip.Prefix {
	switch {
	case h.v4.Overlaps(other.v4):
		return h.v4
	case h.v6.Overlaps(other.v6):
		return h.v6
	}
	return netip.Prefix{}
}

// claims reports whether both have the very same subnet of either family.
func (h halves) claims(other halves) bool {
	return h.v4.IsValid() && h.v4 == other.v4 || h.v6.IsValid() && h.v6 == other.v6
}
