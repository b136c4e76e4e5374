//go:build linux

package host

import (
	"fmt"
	"net/netip"
)

// Our chains have names of our own. FLANNEL-FWD and FLANNEL-POSTRTG belong to flannel's daemon, which
// rewrites them; ours hold the same rules in the same order, so that a host moves from one to the other
// without a difference, and neither daemon ever edits the other's.
// With several overlays in one host, each has its own: MUSLIN-FWD-blue.
const (
	forwardChain     = "MUSLIN-FWD"
	postroutingChain = "MUSLIN-POSTRTG"
	apartChain       = "MUSLIN-APART" // of the rules that keep overlays apart (apart.go)
)

// exemptMark is on packets that somebody decided must keep their source: 0x4000/0x4000 is the mark that
// kube-proxy masquerades by, and flannel leaves those to it.
const exemptMark = 0x4000

var (
	multicast  = netip.MustParsePrefix("224.0.0.0/4")
	multicast6 = netip.MustParsePrefix("ff00::/8")
)

// firewallKind is the tool that the rules were put in with.
type firewallKind string

const (
	withIPTables firewallKind = "iptables"
	withNFTables firewallKind = "nftables"
	withLegacy   firewallKind = "iptables-legacy" // by its own name, where the one of withIPTables does not work
)

// firewall keeps our rules of one family in the kernel.
type firewall interface {
	// apply puts all rules in, in place of what our chains had. It may be called again at any time.
	apply() error
	// intact reports whether the rules are as apply left them.
	intact() (bool, error)
	// remove takes out everything that apply put in, by this process or an earlier one, and reports
	// whether there was anything.
	remove() (bool, error)
	// ofIPv6 tells which family's rules these are.
	ofIPv6() bool
	// needs is what doing any of this takes beside CAP_NET_ADMIN.
	needs() Needs
}

// Needs is what looking after the host takes beside CAP_NET_ADMIN.
type Needs struct {
	Programs  bool // starting a program that is to have our capabilities
	RawSocket bool // CAP_NET_RAW, in that program
}

// verdict is what a rule does with the packets that match it.
type verdict int

const (
	accept verdict = iota
	leave          // leave our chain: "return"
	masquerade
	drop
)

// match is a source or destination prefix; the zero value matches everything.
type match struct {
	prefix netip.Prefix
	not    bool
}

// rule is one rule of ours in the terms that both tools share.
type rule struct {
	src, dst match
	marked   bool // only packets with exemptMark
	do       verdict
}

// rules is everything that is put into the firewall for one family. An empty list means no chain.
type rules struct {
	six         bool
	name        string // of the overlay, where a host has several
	apart       bool   // the rules that keep overlays apart, which are no single one's
	cluster     netip.Prefix
	forward     []rule
	postrouting []rule
	randomFully bool
}

// chain is the name of the overlay's own chain of a kind.
func (r rules) chain(kind string) string {
	if r.name == "" {
		return kind
	}
	return kind + "-" + r.name
}

func (r rules) empty() bool { return len(r.forward)+len(r.postrouting) == 0 }

// rulesFor are flannel's rules of each family that has any.
func rulesFor(c SetupConfig) []rules {
	var all []rules
	for _, h := range c.halves() {
		if r := rulesOf(c, h); !r.empty() {
			all = append(all, r)
		}
	}
	return all
}

// rulesOf are flannel's rules of one family, in its order.
func rulesOf(c SetupConfig, h half) rules {
	cluster, pod := match{prefix: h.network.Masked()}, match{prefix: h.subnet.Masked()}
	elsewhere := match{prefix: cluster.prefix, not: true}
	out := rules{six: h.network.Addr().Is6(), name: c.Name, cluster: cluster.prefix, randomFully: c.MasqRandomFully}
	group := match{prefix: multicast, not: true}
	if out.six {
		group.prefix = multicast6
	}
	if c.ForwardRules {
		out.forward = []rule{
			{src: cluster, do: accept},
			{dst: cluster, do: accept},
		}
	}
	if c.IPMasq {
		out.postrouting = []rule{
			{marked: true, do: leave},
			{src: pod, dst: cluster, do: leave},
			{src: cluster, dst: pod, do: leave},
			{src: elsewhere, dst: pod, do: leave},
			{src: cluster, dst: group, do: masquerade},
			{src: elsewhere, dst: cluster, do: masquerade},
		}
	}
	return out
}

// commandFor is the binary's name.
func commandFor(six bool) string {
	if six {
		return "ip6tables"
	}
	return "iptables"
}

// command is the binary that the tool needs; empty: none.
func (k firewallKind) command(six bool) string {
	switch k {
	case withIPTables:
		return commandFor(six)
	case withLegacy:
		return commandFor(six) + "-legacy"
	}
	return ""
}

func newFirewall(kind firewallKind, r rules) (firewall, error) {
	switch kind {
	case withIPTables, withLegacy:
		return newIPTables(kind.command(r.six), r)
	case withNFTables:
		return newNFTables(r), nil
	}
	return nil, fmt.Errorf("firewall tool %q is not known to this version", kind)
}
