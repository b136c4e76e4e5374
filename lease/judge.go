package lease

import "log/slog"

// Why a lease is not made a peer: the keys of WatchStatus.Skipped.
const (
	SkipKey      = "foreign-key"     // not a lease key
	SkipValue    = "bad-value"       // a lease key with a value that cannot be read
	SkipIPv6     = "ipv6-only"       // has no IPv4 subnet
	SkipOutside  = "outside-network" // does not lie in the network
	SkipBackend  = "other-backend"   // of a BackendType that does not talk to ours
	SkipVNI      = "other-vni"       // of another VXLAN network
	SkipKeyOurs  = "own-key"         // of a host that has our WireGuard key
	SkipPublicIP = "own-public-ip"   // has our PublicIP, but another subnet
	SkipReserved = "reserved"        // but for udp: a reservation that no node has taken up yet
	SkipCircular = "circular"        // its PublicIP lies inside the overlay
	SkipDouble   = "same-subnet"     // the same subnet under another key, which is newer
)

// own is judge's answer for our own lease.
const own = "own"

// judge says why a lease is not made a peer, "" if it is, and what to log about it.
func (r *roster) judge(l Lease, err error) (why string, level slog.Level, text string, args []any) {
	n := r.node
	level = slog.LevelWarn
	switch {
	case err != nil && !l.Subnet.IsValid() && !l.Subnet6.IsValid():
		return SkipKey, level, "a foreign key lies among the leases: skipped; flannel nodes lose their peers over it, so remove it", []any{"err", err}
	case l.Subnet.IsValid() && l.Subnet == n.Subnet:
		return own, level, "", nil
	case err != nil:
		return SkipValue, level, "a lease cannot be read: skipped", []any{"err", err}
	case !l.Subnet.IsValid():
		return SkipIPv6, slog.LevelInfo, "a lease has no IPv4 subnet: skipped", nil
	case n.Network.IsValid() && (l.Subnet.Bits() < n.Network.Bits() || !n.Network.Contains(l.Subnet.Addr())):
		return SkipOutside, level, "a lease lies outside the network: skipped", []any{"subnet", l.Subnet, "network", n.Network}
	case n.Network.IsValid() && n.Network.Contains(l.Attrs.PublicIP):
		return SkipCircular, slog.LevelError, "a lease's PublicIP lies inside the overlay: skipped, since its datagrams would be routed into the overlay again, and again; start that node with a --public-ip of the underlay",
			[]any{"subnet", l.Subnet, "public_ip", l.Attrs.PublicIP, "network", n.Network}
	case l.Attrs.PublicIP == n.PublicIP:
		return SkipPublicIP, slog.LevelError, "a lease for another subnet has our PublicIP: skipped; if another host uses that address, give one of the two its own with --public-ip",
			[]any{"subnet", l.Subnet, "public_ip", n.PublicIP}
	case n.Backend == BackendUDP:
		return "", level, "", nil // a flannel udp node accepts every lease
	case l.Reserved && l.Attrs.BackendType == BackendUDP:
		// A reservation made by hand names a PublicIP only.
		return SkipReserved, slog.LevelDebug, "a reserved subnet is not in use yet", []any{"subnet", l.Subnet}
	case l.Attrs.BackendType != n.Backend:
		return SkipBackend, level, "a lease is of another backend: no traffic with that node", []any{"peer", l.Attrs.PublicIP, "backend", clip(l.Attrs.BackendType), "ours", n.Backend}
	case l.Attrs.VNI != n.VNI:
		return SkipVNI, slog.LevelError, "a lease is of another VNI: no traffic with that node until both agree",
			[]any{"peer", l.Attrs.PublicIP, "vni", l.Attrs.VNI, "ours", n.VNI}
	case !n.Key.IsZero() && l.Attrs.Key == n.Key:
		return SkipKeyOurs, slog.LevelError, "another host has our WireGuard key: no traffic with it; if it was made from this one's image, delete the file of the key there and start its daemon again",
			[]any{"subnet", l.Subnet, "peer", l.Attrs.PublicIP}
	}
	return "", level, "", nil
}
