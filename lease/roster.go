package lease

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"muslin/encap"
	"muslin/tunnel/fib"
)

// Why a lease is not made a peer: the keys of WatchStatus.Skipped.
const (
	SkipKey      = "foreign-key"     // not a lease key
	SkipValue    = "bad-value"       // a lease key with a value that cannot be read
	SkipIPv6     = "ipv6-only"       // has no IPv4 subnet
	SkipOutside  = "outside-network" // does not lie in the network
	SkipBackend  = "other-backend"   // of a BackendType that does not talk to ours
	SkipVNI      = "other-vni"       // of another VXLAN network
	SkipPublicIP = "own-public-ip"   // has our PublicIP, but another subnet
	SkipReserved = "reserved"        // vxlan: a reservation that no node has taken up yet
	SkipCircular = "circular"        // its PublicIP lies inside the overlay
	SkipDouble   = "same-subnet"     // the same subnet under another key, which is newer
)

// Node is what makes a lease a peer or not: how this node is set up.
type Node struct {
	Subnet   netip.Prefix // ours; zero while unknown
	PublicIP netip.Addr
	Backend  string       // "vxlan" or "udp"
	VNI      encap.VNI    // vxlan
	Network  netip.Prefix // the overlay's; zero: leases may lie anywhere
}

// roster turns entries into a table. It keeps each peer's counters from table to table, and says each
// thing that is wrong just once.
type roster struct {
	node     Node
	log      *slog.Logger
	parsed   map[string]parsedEntry // by key
	counters map[counterKey]*fib.Counters
	said     map[string]bool
}

type parsedEntry struct {
	lease Lease
	err   error
}

type counterKey struct {
	subnet   netip.Prefix
	publicIP netip.Addr
}

// strangers is how many counters of peers that are gone are kept, for the case that they come back.
const strangers = 1024

func newRoster(node Node, log *slog.Logger) *roster {
	return &roster{
		node: node, log: log,
		parsed:   make(map[string]parsedEntry),
		counters: make(map[counterKey]*fib.Counters),
		said:     make(map[string]bool),
	}
}

func (r *roster) set(e Entry) {
	l, err := ParseLease(e)
	r.parsed[e.Key] = parsedEntry{l, err}
}

func (r *roster) remove(key string) { delete(r.parsed, key) }

func (r *roster) replace(entries []Entry) {
	clear(r.parsed)
	for _, e := range entries {
		r.set(e)
	}
}

// leases is everything that could be read, sorted by key.
func (r *roster) leases() []Lease {
	var out []Lease
	for _, key := range slices.Sorted(maps.Keys(r.parsed)) {
		if p := r.parsed[key]; p.err == nil {
			out = append(out, p.lease)
		}
	}
	return out
}

// table builds the peers that these leases make, sorted by subnet, and counts what makes none.
func (r *roster) table() (*fib.Table, map[string]int) {
	skipped := make(map[string]int)
	said := make(map[string]bool)
	say := func(level slog.Level, text string, l Lease, args ...any) {
		once := strings.Join([]string{text, l.Key, l.Attrs.String()}, "\x00")
		said[once] = true
		if !r.said[once] {
			r.log.Log(context.Background(), level, text, append([]any{"key", clip(l.Key)}, args...)...)
		}
	}
	bySubnet := make(map[netip.Prefix]Lease)
	for _, key := range slices.Sorted(maps.Keys(r.parsed)) {
		p := r.parsed[key]
		l := p.lease
		why, level, text, args := r.judge(l, p.err)
		if text != "" {
			say(level, text, l, args...)
		}
		if why == own {
			continue
		}
		if why != "" {
			skipped[why]++
			continue
		}
		if other, ok := bySubnet[l.Subnet]; ok {
			skipped[SkipDouble]++
			say(slog.LevelWarn, "two leases for one subnet: the newer one counts", l, "other", other.Key)
			if other.Revision > l.Revision {
				continue
			}
		}
		bySubnet[l.Subnet] = l
	}
	var peers []*fib.Peer
	var open []netip.Prefix // the subnets that the one at hand may lie in, outermost first
	for _, subnet := range r.withOwn(bySubnet) {
		for len(open) > 0 && !open[len(open)-1].Overlaps(subnet) {
			open = open[:len(open)-1]
		}
		l, isPeer := bySubnet[subnet]
		if len(open) > 0 {
			if !isPeer {
				l.Key = Key(subnet)
			}
			say(slog.LevelWarn, "a subnet lies inside another one: the longer prefix counts", l, "subnet", subnet, "inside", open[len(open)-1])
		}
		open = append(open, subnet)
		if isPeer {
			peers = append(peers, r.peer(l))
		}
	}
	r.said = said
	r.forget(peers)
	return fib.New(peers), skipped
}

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
	case n.Backend != BackendVXLAN:
		return "", level, "", nil // a flannel udp node accepts every lease
	case l.Reserved && l.Attrs.BackendType == BackendUDP:
		// A reservation made by hand names a PublicIP only.
		return SkipReserved, slog.LevelDebug, "a reserved subnet is not in use yet", []any{"subnet", l.Subnet}
	case l.Attrs.BackendType != BackendVXLAN:
		return SkipBackend, level, "a lease is of another backend: no traffic with that node", []any{"peer", l.Attrs.PublicIP, "backend", clip(l.Attrs.BackendType), "ours", n.Backend}
	case l.Attrs.VNI != n.VNI:
		return SkipVNI, slog.LevelError, "a lease is of another VNI: no traffic with that node until both agree",
			[]any{"peer", l.Attrs.PublicIP, "vni", l.Attrs.VNI, "ours", n.VNI}
	}
	return "", level, "", nil
}

// withOwn is every subnet in use, ours too, in an order in which a subnet follows those that it lies in.
func (r *roster) withOwn(peers map[netip.Prefix]Lease) []netip.Prefix {
	all := slices.Collect(maps.Keys(peers))
	if r.node.Subnet.IsValid() {
		all = append(all, r.node.Subnet)
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	return all
}

func (r *roster) peer(l Lease) *fib.Peer {
	key := counterKey{l.Subnet, l.Attrs.PublicIP}
	c, ok := r.counters[key]
	if !ok {
		c = new(fib.Counters)
		r.counters[key] = c
	}
	return &fib.Peer{Subnet: l.Subnet, PublicIP: l.Attrs.PublicIP, Backend: l.Attrs.BackendType, MAC: l.Attrs.MAC, Counters: c}
}

// forget drops the counters of peers that are gone, once there are many.
func (r *roster) forget(peers []*fib.Peer) {
	if len(r.counters) <= len(peers)+strangers {
		return
	}
	live := make(map[counterKey]*fib.Counters, len(peers))
	for _, p := range peers {
		live[counterKey{p.Subnet, p.PublicIP}] = p.Counters
	}
	r.counters = live
}

// describe is for one log line about a change of the table.
func describe(skipped map[string]int) string {
	var parts []string
	for _, why := range slices.Sorted(maps.Keys(skipped)) {
		parts = append(parts, fmt.Sprintf("%s=%d", why, skipped[why]))
	}
	return strings.Join(parts, " ")
}
