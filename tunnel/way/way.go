// Package way chooses how packets get to a peer, and says why.
//
// There is one such choice, Choose, a pure function of what is known. It touches nothing: the routes that follow
// from it are package direct's, and the kernel, which takes the longest prefix, carries it out packet by packet.
package way

import (
	"fmt"
	"net/netip"
)

// Way is how packets get to a peer.
type Way string

// The ways.
const (
	Encapsulated Way = "encapsulated" // through the TUN device, in datagrams to the peer's PublicIP
	Direct       Way = "direct"       // as they are, by a route of the kernel's via the peer's PublicIP
	Encrypted    Way = "encrypted"    // through the TUN device, in WireGuard's datagrams to the peer
	None         Way = "none"         // they do not: there is nothing to encapsulate them, and no direct route
)

// Rule names what decided. The names are an interface: they stand in what `muslin status` and `muslin route` print
// as JSON.
type Rule string

// The rules, in the order in which Choose looks at them.
const (
	RuleWireGuard   Rule = "wireguard"          // the network's backend encrypts
	RuleOff         Rule = "direct-routing-off" // the network's config does not ask for direct routes
	RuleUnknown     Rule = "not-asked-yet"      // the kernel was not asked yet
	RuleUnreachable Rule = "unreachable"        // the kernel has no route to the PublicIP
	RuleInterface   Rule = "other-interface"    // it leaves by another interface than the underlay's
	RuleGateway     Rule = "gateway"            // it goes through a gateway
	RuleHolds       Rule = "holds-others"       // the peer's subnet holds another node's
	RuleRefused     Rule = "route-refused"      // the kernel does not take the route
	RuleOnLink      Rule = "on-link"            // none of these: the PublicIP is a neighbour's
)

// Hop is the kernel's answer to the question how a PublicIP is reached. The zero value: it was not asked.
type Hop struct {
	Iface   string     // the interface that it leaves by
	Gateway netip.Addr // invalid: none
	Err     string     // there is no way, and why; the other fields are zero then
}

// Facts is what is known of a peer.
type Facts struct {
	DirectRouting bool         // Backend.DirectRouting of the network's config, or host-gw
	NoTunnel      bool         // host-gw: nothing is ever encapsulated
	Encrypted     bool         // wireguard: nothing goes any other way
	PublicIP      netip.Addr   // the peer's
	Underlay      string       // our underlay interface
	Hop           Hop          // to PublicIP
	Holds         netip.Prefix // another node's subnet, or ours, that lies inside the peer's; zero: none does
	Refused       string       // why its direct route could not be installed; empty: it was, or was not tried
}

// Choice is a way and what decided.
type Choice struct {
	Way  Way
	Rule Rule

	facts Facts
}

// Choose chooses the way to a peer. The first rule that applies decides.
func Choose(f Facts) Choice {
	instead := func(rule Rule) Choice {
		if f.NoTunnel {
			return Choice{None, rule, f}
		}
		return Choice{Encapsulated, rule, f}
	}
	switch {
	case f.Encrypted:
		return Choice{Encrypted, RuleWireGuard, f}
	case !f.DirectRouting:
		return instead(RuleOff)
	case f.Hop == Hop{}:
		return instead(RuleUnknown)
	case f.Hop.Err != "":
		return instead(RuleUnreachable)
	case f.Hop.Iface != f.Underlay:
		return instead(RuleInterface)
	case f.Hop.Gateway.IsValid():
		return instead(RuleGateway)
	case f.Holds.IsValid():
		return instead(RuleHolds)
	case f.Refused != "":
		return instead(RuleRefused)
	}
	return Choice{Direct, RuleOnLink, f}
}

// Reason says for a person why the choice is so: a clause without a full stop.
func (c Choice) Reason() string {
	f := c.facts
	switch c.Rule {
	case RuleWireGuard:
		return "the network's backend is wireguard, which everything goes through"
	case RuleOff:
		return "the network's config does not ask for direct routes"
	case RuleUnknown:
		return fmt.Sprintf("the kernel was not asked yet how %s is reached", f.PublicIP)
	case RuleUnreachable:
		return fmt.Sprintf("the kernel does not know how to reach %s: %s", f.PublicIP, f.Hop.Err)
	case RuleInterface:
		return fmt.Sprintf("%s is reached by %s and not by the underlay's %s", f.PublicIP, f.Hop.Iface, f.Underlay)
	case RuleGateway:
		return fmt.Sprintf("%s is reached through the gateway %s", f.PublicIP, f.Hop.Gateway)
	case RuleHolds:
		return fmt.Sprintf("the subnet holds %s, which a route would lead to the wrong node", f.Holds)
	case RuleRefused:
		return fmt.Sprintf("the direct route cannot be installed: %s", f.Refused)
	case RuleOnLink:
		return fmt.Sprintf("%s is reached without a gateway on %s", f.PublicIP, f.Underlay)
	}
	return ""
}
