//go:build linux

// Package host changes what the daemon needs in the host beside the TUN device, and undoes it: the
// TUN's address, state, MTU and queue length, one route for the whole overlay, forwarding, reverse path
// filter, and the firewall's forward and masquerade rules. Direct routes, which package direct makes, it only
// undoes. It also looks at the host before start: which
// interface carries the underlay, and what would stand in the daemon's way.
//
// Every change is written to a journal in the state directory before it is made (journal.go), so that
// Cleanup can put back what a killed daemon left. The package never opens a TUN or UDP file descriptor
// that carries packets, never touches another owner's firewall rules or routes, and works in the network
// namespace of the calling thread. It speaks netlink to the kernel, asks it for iptables-legacy's rules by a
// socket, and executes nothing but iptables.
//
// Why does the daemon refuse to start? conflict.go. Which interface did it choose? iface.go. What did it
// change? setup.go, converge.go. What is left after a crash? cleanup.go. Whose rules drop our packets? obstacle.go.
// Which tool has our rules? choose.go.
package host

import (
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// RouteProtocol marks our routes (`ip route show proto 218`), so that they are told from everybody
// else's. The kernel does not interpret numbers from 4 up (linux/rtnetlink.h, "Values of protocol >=
// RTPROT_STATIC are not interpreted by kernel"); 218 stands neither there nor in iproute2's rt_protos.
const RouteProtocol = 218

// TxQueueLen is the TUN's queue length in packets. The kernel's default for a TUN is 500, which one TCP
// window of small packets fills; 1000 is what Ethernet devices have.
const TxQueueLen = 1000

// blackholeMetric loses against every route that means business: those of pod bridges have metric 0.
const blackholeMetric = 1_000_000

// DefaultResync is how often Run looks after the rules when no event told it to: flannel's
// --iptables-resync default.
const DefaultResync = 5 * time.Second

// SetupConfig says what Setup changes. It is about one TUN device, which carries one family or both. A node with a
// TUN for each has a Setup for each, with a StateDir of its own; neither touches what is the other's.
type SetupConfig struct {
	Name    string       // of the overlay, in the names of its rules, where the host has several; at most 12 characters
	TUN     string       // name of the TUN device, which exists; empty: there is none, nor what leads to it
	Address netip.Prefix // the TUN's address: base of Subnet, a /32
	MTU     int          // bytes of the largest inner packet; with IPv6 at least 1280
	Network netip.Prefix // the whole overlay; one route to the TUN, and "cluster" in the firewall rules
	Subnet  netip.Prefix // this node's lease; "pod" in the firewall rules

	// The same of IPv6; Address6 is a /128. The three of one family may be zero: the overlay does not carry it.
	Address6, Network6, Subnet6 netip.Prefix

	Outer Outer  // what carries the overlay
	Pods  string // the bridge that this node's containers are behind; empty: it is not known, or there are several

	DirectRoutes    bool // routes to peers come and go in Network (package direct): Undo and Cleanup remove them
	BlackholeRoute  bool // a route of last resort for Subnet, so that packets for absent pods do not loop
	ForwardRules    bool // accept forwarding from and to Network
	IPMasq          bool // masquerade what leaves the overlay
	MasqRandomFully bool // masquerade with fully random ports where the tool can do it
	UseNFTables     bool // nftables even where there is an iptables binary

	Resync   time.Duration // period of Run's check; 0 means DefaultResync
	StateDir string        // directory of the journal; made if missing
	Shared   bool          // a daemon that we are about to replace still runs on what it set up
	Logger   *slog.Logger  // nil discards
}

// Outer is the underlay as its firewall sees it.
type Outer struct {
	Iface string // "": not known. Its router advertisements are to count when the host has begun to forward IPv6
	Port  uint16 // the UDP port that peers send to; 0: there is none
	IPv6  bool   // what they send there is of IPv6
}

// State is what Setup changed in the host. It is safe for concurrent use.
type State struct {
	config  SetupConfig
	log     *slog.Logger
	journal *journal

	firewalls []firewall // of each family for which rules are wanted and can be had

	noForward, noMasquerade error    // why there are none
	firewallWarnings        []string // sentences about that, and about a tool that stands in for the one that was wanted

	mu         sync.Mutex // held during every change
	undone     bool
	sysctlTold bool // a switch that cannot be set was logged

	obstacles atomic.Pointer[[]string] // other owners' chains that drop our packets, as sentences
}

// half is what Setup makes of one address family.
type half struct {
	address, network, subnet netip.Prefix
}

// halves are those of the families that the overlay carries.
func (c SetupConfig) halves() []half {
	var out []half
	for _, h := range []half{{c.Address, c.Network, c.Subnet}, {c.Address6, c.Network6, c.Subnet6}} {
		if h.network.IsValid() {
			out = append(out, h)
		}
	}
	return out
}

func (c SetupConfig) has6() bool { return c.Network6.IsValid() }

func orDiscard(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
