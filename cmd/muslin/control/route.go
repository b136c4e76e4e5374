package control

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"time"

	"muslin/cmd/muslin/text"
	"muslin/tunnel/way"
)

// RouteAnswer is what `muslin route --output json` prints and what the control socket serves. Others script against
// it: fields are added, never renamed or removed (docs/configuration.md).
type RouteAnswer struct {
	Address string       `json:"address"`
	Way     string       `json:"way"`      // WayLocal, WayNone, or as PeerStatus.Way
	Rule    string       `json:"rule"`     // what decided: a rule below, or as PeerStatus.WayRule
	Reason  string       `json:"reason"`   // the same as a sentence
	Subnet  string       `json:"subnet"`   // that holds the address, CIDR; empty: nobody's does
	Peer    *PeerStatus  `json:"peer"`     // null: it is no peer's
	Device  string       `json:"device"`   // that the packet leaves by, as muslin has it; empty: none
	NextHop string       `json:"next_hop"` // where it, or its datagram, is sent to; empty: nowhere else
	MTU     int          `json:"mtu"`      // bytes, of the largest packet that this way takes; 0: there is none
	MTURule string       `json:"mtu_rule"` // what it is: a rule below; empty: there is none
	Kernel  KernelAnswer `json:"kernel"`
	Notes   []string     `json:"notes"` // sentences: where the kernel does something else, what else is to be known
}

// KernelAnswer is what the kernel does with a packet to the address.
type KernelAnswer struct {
	Device  string `json:"device"`
	Gateway string `json:"gateway"` // empty: none
	Source  string `json:"source"`  // of a packet of this host's own
	MTU     int    `json:"mtu"`     // bytes
	Error   string `json:"error"`   // why there is no way; the rest is empty then
}

// Ways of an address that is no peer's, and their rules.
const (
	WayLocal = "local"
	WayNone  = "none"

	RuleOwnSubnet = "own-subnet"
	RuleOutside   = "outside-network"
	RuleNoPeer    = "no-peer"
)

// Rules of RouteAnswer.MTU.
const (
	MTUDevice  = "device"   // the device's that the packet leaves by, or its route's
	MTUOverlay = "overlay"  // the underlay's less what is put around a packet
	MTUPath    = "path-mtu" // a hop on the way to the peer takes less
)

// Found reports whether there is a way.
func (a *RouteAnswer) Found() bool { return a.Way != WayNone }

// ParseAddress reads an inner address that somebody typed. The error says what to give.
func ParseAddress(text string) (netip.Addr, error) {
	to, err := netip.ParseAddr(text)
	if err != nil || to.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%q is not an address: give one such as 10.244.3.7", text)
	}
	return to.Unmap(), nil
}

// AskRoute asks which way a packet goes from the daemon's node. With several networks and no name it is the one that the address is in.
func AskRoute(ctx context.Context, control, name string, to netip.Addr) (*RouteAnswer, error) {
	var a RouteAnswer
	query := url.Values{"to": {to.String()}}
	if name != "" {
		query.Set("net", name)
	}
	err := Ask(ctx, control, RoutePath+"?"+query.Encode(), &a)
	return &a, err
}

// Describe is the way alone.
func (k *KernelAnswer) Describe() string {
	switch {
	case k.Error != "":
		return k.Error
	case k.Gateway != "":
		return k.Device + " via " + k.Gateway
	}
	return k.Device
}

// print writes the answer for a person.
func (a *RouteAnswer) Print(w io.Writer, now time.Time) error {
	p := text.NewPrinter(w)
	p.Line("%s: %s", a.Address, a.Way)
	p.Line("  because\t%s (%s)", a.Reason, a.Rule)
	if a.Peer != nil {
		p.Line("  peer\t%s at %s, %s", a.Peer.Subnet, a.Peer.PublicIP, a.Peer.DescribeState(now))
	} else if a.Subnet != "" {
		p.Line("  subnet\t%s", a.Subnet)
	}
	if a.Device != "" {
		hop := ""
		switch {
		case a.Way == string(way.Encapsulated), a.Way == string(way.Encrypted):
			hop = " in datagrams to " + a.NextHop
		case a.NextHop != "":
			hop = " via " + a.NextHop
		}
		p.Line("  leaves by\t%s%s, MTU %d (%s)", a.Device, hop, a.MTU, a.MTURule)
	}
	if a.Kernel.Error != "" {
		p.Line("  kernel\t%s", a.Kernel.Error)
	} else {
		p.Line("  kernel\t%s, from %s, MTU %d", a.Kernel.Describe(), text.Dash(a.Kernel.Source), a.Kernel.MTU)
	}
	for _, note := range a.Notes {
		p.Line("  NOTE\t%s", note)
	}
	return p.Finish()
}
