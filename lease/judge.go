package lease

import (
	"log/slog"
	"net/netip"

	"muslin/encap"
)

// Why a lease is not made a peer, or one half of it is not: the keys of WatchStatus.Skipped.
const (
	SkipKey      = "foreign-key"     // not a lease key
	SkipValue    = "bad-value"       // a lease key with a value, or half of it, that cannot be read
	SkipIPv6     = "ipv6-only"       // has no IPv4 subnet
	SkipIPv4     = "ipv4-only"       // has no IPv6 subnet, and we have
	SkipOutside  = "outside-network" // does not lie in the network
	SkipBackend  = "other-backend"   // of a BackendType that does not talk to ours
	SkipVNI      = "other-vni"       // of another VXLAN network
	SkipKeyOurs  = "own-key"         // of a host that has our WireGuard key
	SkipPublicIP = "own-public-ip"   // has our PublicIP, but another subnet
	SkipReserved = "reserved"        // but for udp: a reservation that no node has taken up yet
	SkipEndpoint = "no-endpoint"     // has no address of the family that Backend.Mode goes over
	SkipCircular = "circular"        // its PublicIP lies inside the overlay
	SkipDouble   = "same-subnet"     // the same subnet under another key, which is newer
)

// Judge's answers besides those and "".
const (
	own     = "own"     // our own lease
	notOurs = "notOurs" // nothing is made of this half, nor said: we do not carry its family, or all has been said of the other half
)

// verdict says why a half of a lease is not made a peer, "" if it is, and what to log about it.
type verdict struct {
	why   string
	level slog.Level
	text  string
	args  []any
}

// judge looks at both halves of a lease. A reason that holds for both counts once.
func (r *roster) judge(l Lease, err error) [families]verdict {
	var out [families]verdict
	for family := range out {
		out[family].why = notOurs
		if r.node.carries(family) {
			out[family] = r.judgeHalf(l, err, family)
		}
	}
	if why := out[four].why; why == out[six].why && why != "" && why != own {
		out[six] = verdict{why: notOurs}
	}
	return out
}

// ours is what is compared with a lease's half, and the family's name.
func (n Node) ours(family int) (half leaseHalf, name string) {
	if family == six {
		return leaseHalf{subnet: n.Subnet6, vni: n.VNI}, "IPv6"
	}
	return leaseHalf{subnet: n.Subnet, vni: n.VNI}, "IPv4"
}

// at is what an outer address is compared with: ours of its family, the overlay's network there, and the flag that gives
// the address.
func (n Node) at(outer netip.Addr) (address netip.Addr, network netip.Prefix, flag string) {
	if outer.Is6() {
		return n.PublicIPv6, n.Network6, "--public-ipv6"
	}
	return n.PublicIP, n.Network, "--public-ip"
}

func (r *roster) judgeHalf(l Lease, err error, family int) verdict {
	ours, name := r.node.ours(family)
	theirs, network, backend := r.node.half(l, family), r.node.Network, r.node.Backend
	ownAddress, around, flag := r.node.at(theirs.address)
	if family == six {
		network = r.node.Network6
	}
	switch {
	case err != nil && !l.Subnet.IsValid() && !l.Subnet6.IsValid():
		return verdict{SkipKey, slog.LevelWarn, "a foreign key lies among the leases: skipped; flannel nodes lose their peers over it, so remove it", []any{"err", err}}
	case theirs.subnet.IsValid() && theirs.subnet == ours.subnet:
		return verdict{why: own}
	case err != nil && (backend != BackendUDP || !isNode(theirs.address)): // udp has no use for what a backend wrote
		return verdict{SkipValue, slog.LevelWarn, "a lease cannot be read: skipped", []any{"err", err}}
	case !theirs.subnet.IsValid():
		return r.missing(l, family)
	case network.IsValid() && (theirs.subnet.Bits() < network.Bits() || !network.Contains(theirs.subnet.Addr())):
		return verdict{SkipOutside, slog.LevelWarn, "a lease lies outside the network: skipped", []any{"subnet", theirs.subnet, "network", network}}
	case around.IsValid() && around.Contains(theirs.address):
		return verdict{SkipCircular, slog.LevelError, "a lease's PublicIP lies inside the overlay: skipped, since its datagrams would be routed into the overlay again, and again; start that node with a " + flag + " of the underlay",
			[]any{"subnet", theirs.subnet, "public_ip", theirs.address, "network", around}}
	case theirs.address.IsValid() && theirs.address == ownAddress:
		return verdict{SkipPublicIP, slog.LevelError, "a lease for another subnet has our PublicIP: skipped; if another host uses that address, give one of the two its own with " + flag,
			[]any{"subnet", theirs.subnet, "public_ip", ownAddress}}
	case backend == BackendUDP && isNode(theirs.address):
		return verdict{} // a flannel udp node accepts every lease
	case l.Reserved && l.Attrs.BackendType == BackendUDP && backend != BackendUDP:
		// A reservation made by hand names a PublicIP only.
		return verdict{SkipReserved, slog.LevelDebug, "a reserved subnet is not in use yet", []any{"subnet", theirs.subnet}}
	case l.Attrs.BackendType != backend && backend != BackendUDP:
		return verdict{SkipBackend, slog.LevelWarn, "a lease is of another backend: no traffic with that node", []any{"peer", theirs.address, "backend", clip(l.Attrs.BackendType), "ours", backend}}
	case !isNode(theirs.address) && (r.node.Mode == ModeIPv4 || r.node.Mode == ModeIPv6):
		return verdict{SkipEndpoint, slog.LevelError, "a lease has no address of the family that Backend.Mode goes over: no traffic with that node; give it one, or choose another Mode for the network",
			[]any{"subnet", theirs.subnet, "mode", r.node.Mode, "peer", l.Attrs.String()}}
	case !isNode(theirs.address):
		return verdict{SkipValue, slog.LevelWarn, "a lease has an " + name + " subnet, but no address by which its node is reached over " + name + ": that half is skipped", []any{"subnet", theirs.subnet, "public_ip", theirs.address}}
	case backend == BackendVXLAN && theirs.mac == encap.MAC{}:
		_, _, err := decodeVXLANData(l.Attrs.BackendV6Data)
		return verdict{SkipValue, slog.LevelWarn, "the " + name + " half of a lease cannot be read: that half is skipped", []any{"subnet", theirs.subnet, "err", err}}
	case backend == BackendWireGuard && theirs.key.IsZero():
		_, _, err := decodeWireGuardData(l.Attrs.BackendV6Data)
		return verdict{SkipValue, slog.LevelWarn, "the " + name + " half of a lease cannot be read: that half is skipped", []any{"subnet", theirs.subnet, "err", err}}
	case theirs.vni != ours.vni:
		return verdict{SkipVNI, slog.LevelError, "a lease is of another VNI: no traffic with that node until both agree",
			[]any{"peer", theirs.address, "vni", theirs.vni, "ours", ours.vni}}
	case !r.node.Key.IsZero() && theirs.key == r.node.Key:
		return verdict{SkipKeyOurs, slog.LevelError, "another host has our WireGuard key: no traffic with it; if it was made from this one's image, delete the file of the key there and start its daemon again",
			[]any{"subnet", theirs.subnet, "peer", theirs.address}}
	}
	return verdict{}
}

// missing is about a lease without a subnet of a family that we carry.
func (r *roster) missing(l Lease, family int) verdict {
	switch {
	case family == six && r.node.carries(four):
		return verdict{SkipIPv4, slog.LevelInfo, "a lease has no IPv6 subnet: no IPv6 with that node", []any{"subnet", l.Subnet, "peer", l.Attrs.PublicIP}}
	case family == six:
		return verdict{SkipIPv4, slog.LevelInfo, "a lease has no IPv6 subnet: skipped", nil}
	case r.node.carries(six):
		return verdict{SkipIPv6, slog.LevelInfo, "a lease has no IPv4 subnet: no IPv4 with that node", []any{"subnet", l.Subnet6, "peer", l.Attrs.PublicIPv6}}
	}
	return verdict{SkipIPv6, slog.LevelInfo, "a lease has no IPv4 subnet: skipped", nil}
}
