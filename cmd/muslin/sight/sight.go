// Package sight finds one packet on its way through a host, its answer, and ICMP errors about it: in the data path, by an
// observer (tunnel.Observer), and at every device, by a packet socket. It is what `muslin trace` asks the daemons of both
// ends for. It tells where the packet was, when, and what became of it, and nothing of its content.
//
// Nothing looks until a watch is armed, and a watch ends by itself within seconds.
package sight

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Protocols of a Packet.
const (
	ICMP = "icmp" // an echo request, of ICMPv6 where the addresses are IPv6's
	TCP  = "tcp"
	UDP  = "udp"
)

// Packet is what to look for. Its source is not compared: that it is another one on the way may be what is wrong.
type Packet struct {
	Src     netip.Addr `json:"src"`
	Dst     netip.Addr `json:"dst"`
	Proto   string     `json:"proto"`
	ID      uint16     `json:"id"` // of an ICMP echo
	SrcPort uint16     `json:"src_port"`
	DstPort uint16     `json:"dst_port"`
}

// Check refuses what is no packet.
func (p *Packet) Check() error {
	switch {
	case !p.Src.IsValid() || !p.Dst.IsValid() || p.Src.Is4() != p.Dst.Is4() || p.Src.Is4In6() || p.Dst.Is4In6():
		return errors.New("src and dst: want two addresses of one family")
	case p.Proto != ICMP && p.Proto != TCP && p.Proto != UDP:
		return fmt.Errorf("proto %q: want %s, %s or %s", p.Proto, ICMP, TCP, UDP)
	}
	return nil
}

// Points at which a packet is seen.
const (
	Inner  = "inner"  // as an IP packet in the daemon's data path
	Outer  = "outer"  // as a datagram of the daemon's
	Drop   = "drop"   // dropped by the daemon
	Device = "device" // at a device of this host
)

// What was seen.
const (
	Itself = "packet"
	Answer = "answer"
	Error  = "error" // an ICMP error about the packet
)

// RST is what an answer says that refuses a connection.
const RST = "RST"

// Sighting is one place that the packet was seen at.
type Sighting struct {
	At      time.Time `json:"at"` // by this host's clock
	Point   string    `json:"point"`
	Inbound bool      `json:"inbound"` // from the underlay to the TUN device; at a device: it came in there
	Device  string    `json:"device"`  // of Device
	What    string    `json:"what"`
	Says    string    `json:"says"` // an answer's or error's kind: "echo reply", "SYN/ACK", "RST", "host unreachable"
	Src     string    `json:"src"`  // of the IP packet, as it was there
	Dst     string    `json:"dst"`
	Bytes   int       `json:"bytes"` // of the IP packet; of Outer, of the datagram's payload

	OuterSrc string `json:"outer_src"` // of Outer, and of a Drop that was one; empty: not known
	OuterDst string `json:"outer_dst"`
	Reason   string `json:"reason"` // of Drop (docs/drops.md)
	Means    string `json:"means"`

	outer netip.Addr // OuterSrc's
	src   netip.Addr
	dst   netip.Addr
}

// Report is what a watch has seen.
type Report struct {
	Packet
	Sightings []Sighting `json:"sightings"`  // at most MaxSightings
	More      int        `json:"more"`       // were not kept
	Devices   bool       `json:"devices"`    // devices were looked at
	DataPath  bool       `json:"data_path"`  // the daemon's data path was; false: there is none, or the kernel has it
	OuterSeen bool       `json:"outer_seen"` // datagrams are seen: not with WireGuard
	Ground    Ground     `json:"ground"`
}

// MaxSightings is how many a watch keeps.
const MaxSightings = 256

// Ground is what the host would do with the packet: how the kernel routes it, and what could stop it.
type Ground struct {
	Device      string   `json:"device"` // that the kernel's route to the destination leads to
	Gateway     string   `json:"gateway"`
	Source      string   `json:"source_device"` // that the kernel's route to the source leads to; empty: there is none
	Local       bool     `json:"local"`         // the destination is the host itself
	Error       string   `json:"error"`         // why there is no route
	Forwards    bool     `json:"forwards"`      // the kernel forwards packets of the family at all
	RPFilter    string   `json:"rp_filter"`     // the setting that is strict for where the packet comes from; empty: none
	Neighbour   string   `json:"neighbour"`     // of the destination on that device: "reachable", "failed", "incomplete", "" not known
	Warnings    []string `json:"warnings"`      // of other owners' firewall rules that drop for certain
	TUN         string   `json:"tun"`           // the overlay's device here
	Underlay    string   `json:"underlay"`
	Subnet      string   `json:"subnet"` // this node's, CIDR
	Network     string   `json:"network"`
	SourceCheck string   `json:"source_check"` // how far senders are checked here
}

// Path is that of the questions about a watch, on the control socket and over the overlay: POST an Order, which gives an Armed, and
// GET with id=, which gives a Report, and with end=true as well ends the watch.
const Path = "/v1/trace"

// Order asks for a watch.
type Order struct {
	Packet
	Seconds float64 `json:"seconds"` // that it looks: MaxWatch at most
}

// Armed is a watch that looks.
type Armed struct {
	ID string `json:"id"`
}

// Long is how long an Order's watch looks.
func (o *Order) Long() time.Duration { return time.Duration(o.Seconds * float64(time.Second)) }
