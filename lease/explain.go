package lease

import (
	"maps"
	"slices"
)

// ExplainSkip says in a sentence what a reason of WatchStatus.Skipped means for an operator; empty for
// one that this version does not know.
func ExplainSkip(reason string) string { return skipMeans[reason] }

// SkipReasons are all the reasons, sorted.
func SkipReasons() []string { return slices.Sorted(maps.Keys(skipMeans)) }

var skipMeans = map[string]string{
	SkipKey:      "a key that is no lease key; flannel nodes lose all their peers over it: muslin leases list shows it",
	SkipValue:    "a lease whose value cannot be read: muslin leases list shows why",
	SkipIPv6:     "a lease without an IPv4 subnet",
	SkipIPv4:     "a lease without an IPv6 subnet: its node is a peer of IPv4 alone",
	SkipOutside:  "a subnet that does not lie in the network",
	SkipBackend:  "a lease of another backend type; such a node and this one cannot talk",
	SkipVNI:      "a lease of another VXLAN network: compare the VNI in the config of both nodes",
	SkipPublicIP: "a lease with this node's PublicIP but another subnet: an old one of ours, or another host's",
	SkipKeyOurs:  "a host with this node's WireGuard key: one of the two was made from the other's image; delete the file of the key there",
	SkipReserved: "a reservation that no node has taken up yet",
	SkipEndpoint: "a node without an address of the family that the network's Backend.Mode goes over: give it one, or choose another Mode",
	SkipCircular: "a PublicIP inside the overlay: that node must be started with a --public-ip of the underlay",
	SkipDouble:   "the same subnet under another key, which is newer",
}
