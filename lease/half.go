package lease

import (
	"net/netip"

	"muslin/encap"
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
}

func (l Lease) half(family int) leaseHalf {
	if family == six {
		return leaseHalf{l.Subnet6, l.Attrs.PublicIPv6, l.Attrs.VNI6, l.Attrs.MAC6}
	}
	return leaseHalf{l.Subnet, l.Attrs.PublicIP, l.Attrs.VNI, l.Attrs.MAC}
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
