package lease

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// TTL is a lease's time to live, as flannel has it.
const TTL = 24 * time.Hour

// Lease is a subnet, or one of each address family, and the node that holds it.
type Lease struct {
	Key      string       // the store's, below "<prefix>/subnets/"
	Subnet   netip.Prefix // masked; zero for a lease that has IPv6 only
	Subnet6  netip.Prefix // masked; zero for a lease that has IPv4 only
	Attrs    Attrs
	Expires  time.Time // zero: unknown or, with Reserved, never
	Reserved bool      // has no time to live
	Revision int64     // of its key's last change
}

// ParseLease reads a store's entry strictly. After an error the Lease still holds what could be read.
func ParseLease(e Entry) (Lease, error) {
	l := Lease{Key: e.Key, Revision: e.Revision, Reserved: e.Reserved}
	var err error
	if l.Subnet, l.Subnet6, err = ParseKey(e.Key); err != nil {
		return l, err
	}
	if l.Attrs, err = DecodeAttrs(e.Value); err != nil {
		return l, fmt.Errorf("lease %s: %w", e.Key, err)
	}
	return l, nil
}

// LeaseKey is the key of a lease with these subnets, either of which may be zero: "10.244.1.0-24",
// "10.244.1.0-24&2001:db8:1::-64", "0.0.0.0-0&2001:db8:1::-64".
func LeaseKey(subnet, subnet6 netip.Prefix) string {
	if !subnet6.IsValid() {
		return Key(subnet)
	}
	if !subnet.IsValid() {
		subnet = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return Key(subnet) + "&" + Key(subnet6)
}

// Key is the lease key of a subnet: "10.244.1.0-24".
func Key(subnet netip.Prefix) string {
	subnet = subnet.Masked()
	return subnet.Addr().String() + "-" + strconv.Itoa(subnet.Bits())
}

// ParseKey reads a lease key: "10.244.1.0-24", or dual-stack "10.244.1.0-24&2001:db8:1::-64". The IPv4
// half of a network that has IPv6 only is written 0.0.0.0-0 and comes back as the zero Prefix. Anything
// else, and any spelling but the canonical one, is an error: it is not a key that a lease was written
// under.
func ParseKey(key string) (subnet, subnet6 netip.Prefix, err error) {
	v4, v6, dual := strings.Cut(key, "&")
	subnet, err = parseHalfKey(v4, 4)
	if err == nil && dual {
		subnet6, err = parseHalfKey(v6, 6)
	}
	if err == nil && subnet.Bits() == 0 {
		if !dual {
			err = fmt.Errorf("%q covers every address", key)
		}
		subnet = netip.Prefix{}
	}
	if err != nil {
		return netip.Prefix{}, netip.Prefix{}, fmt.Errorf("lease key %q is not of the form A.B.C.D-LEN or A.B.C.D-LEN&IPV6-LEN: %w", key, err)
	}
	return subnet, subnet6, nil
}

func parseHalfKey(s string, version int) (netip.Prefix, error) {
	addr, bits, ok := strings.Cut(s, "-")
	if !ok {
		return netip.Prefix{}, fmt.Errorf("%q has no \"-\"", s)
	}
	p, err := netip.ParsePrefix(addr + "/" + bits)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%q: %w", s, err)
	case version == 4 != p.Addr().Is4():
		return netip.Prefix{}, fmt.Errorf("%q is not IPv%d", s, version)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%q has host bits set", s)
	case Key(p) != s:
		return netip.Prefix{}, fmt.Errorf("%q is usually written %q", s, Key(p))
	}
	return p, nil
}
