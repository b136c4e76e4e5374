package tunnel

import (
	"sync/atomic"

	"muslin/encap"
)

// Reason names why a packet was not delivered. Every packet that muslin takes is either handed on or
// counted under exactly one of these; `muslin status` shows the counts and Explain's text.
type Reason uint8

// Outbound: the packet came from the TUN device.
const (
	DropTUNOverflow    Reason = iota // the TUN device's queue was full: the kernel dropped it before us
	DropNoRoute                      // no peer's subnet holds the destination
	DropOwnSubnet                    // the destination is in our own subnet, but no pod route took it
	DropTooBig                       // longer than the inner MTU, or than the path takes
	DropMalformed                    // the local kernel handed over something that is not an IP packet
	DropIPv6                         // inner IPv6, on an overlay that carries IPv4
	DropIPv4                         // inner IPv4, on an overlay that carries IPv6
	DropLinkLocal                    // IPv6 that never leaves a link; the kernel's own, mostly
	DropSendFailed                   // the kernel refused the outer datagram
	DropSendBufferFull               // the outer interface's queue was full (ENOBUFS)

	// Inbound: the datagram came from the underlay.

	DropOuterChecksum    // outer UDP checksum wrong: the kernel dropped it before us
	DropUnknownSource    // outer source address is no peer's PublicIP
	DropOversized        // longer than Config.Jumbo, and no TCP superpacket
	DropShort            // shorter than its framing and an IP header
	DropFlags            // VXLAN flags or reserved bits are not what flannel sends
	DropVNI              // another VXLAN network
	DropMAC              // inner destination MAC is not our VtepMAC
	DropOwnMAC           // inner source MAC is our own VtepMAC
	DropVLAN             // inner frame with a VLAN tag
	DropARP              // inner frame is ARP
	DropNotIP            // inner frame of another EtherType
	DropInnerIPv6        // inner IPv6 from the underlay, on an overlay that carries IPv4
	DropInnerIPv4        // inner IPv4 from the underlay, on an overlay that carries IPv6
	DropInnerVersion     // inner IP version neither 4 nor 6
	DropInnerHeader      // inner IHL impossible
	DropInnerLength      // the length that the inner header states and the datagram's differ
	DropInnerChecksum    // inner IPv4 header checksum wrong
	DropInnerSource      // inner source is not in the sending peer's subnet
	DropInnerDestination // inner destination is not in our subnet
	DropECN              // congestion mark on a packet that cannot carry it (RFC 6040)
	DropTUNWrite         // the TUN device refused the packet
	DropSocketOverflow   // the receive buffer was full: the kernel dropped datagrams before us

	numReasons
)

// reasons holds each reason's name in status, metrics and docs, and what an operator should know.
var reasons = [numReasons]struct{ name, explain string }{
	DropTUNOverflow:    {"tun-overflow", "the TUN device's queue was full: senders were faster than the daemon, as in any router"},
	DropNoRoute:        {"no-route", "no lease holds the destination; the sender got ICMP net unreachable"},
	DropOwnSubnet:      {"own-subnet", "destination in this node's subnet, but no pod route took it: is the pod bridge up?"},
	DropTooBig:         {"too-big", "longer than the overlay MTU or the path to the peer takes; the sender got ICMP fragmentation needed (IPv6: packet too big)"},
	DropMalformed:      {"malformed", "the local kernel handed over something that is not an IP packet"},
	DropIPv6:           {"ipv6", "a local IPv6 packet; this overlay carries IPv4"},
	DropIPv4:           {"ipv4", "a local IPv4 packet; this overlay carries IPv6"},
	DropLinkLocal:      {"link-local", "IPv6 for the link alone, as this kernel sends by itself (router solicitation, multicast listener report): nothing is lost"},
	DropSendFailed:     {"send-failed", "the kernel refused the outer datagram: no underlay route, or a firewall rule (see the log)"},
	DropSendBufferFull: {"send-buffer-full", "the underlay interface's queue was full"},

	DropOuterChecksum:    {"outer-checksum", "outer UDP checksum is wrong: damaged on the way, by a NIC or a switch"},
	DropUnknownSource:    {"unknown-source", "outer source is no peer's PublicIP: an intruder, a peer behind NAT, or a lease not seen yet"},
	DropOversized:        {"oversized", "datagram larger than any MTU the underlay could have"},
	DropShort:            {"short", "datagram too short for its framing and an IP header"},
	DropFlags:            {"vxlan-flags", "VXLAN flags other than 08, or a reserved bit set (GBP, GPE or a foreign sender)"},
	DropVNI:              {"vxlan-vni", "datagram of another VXLAN network: compare the VNI in the config of both nodes"},
	DropMAC:              {"vxlan-mac", "inner destination MAC is not this node's VtepMAC: the sender works from an old lease"},
	DropOwnMAC:           {"vxlan-own-mac", "inner source MAC is this node's own: a loop, or two nodes with one VtepMAC"},
	DropVLAN:             {"vlan", "inner frame carries a VLAN tag"},
	DropARP:              {"arp", "inner frame is ARP; flannel's schema needs none"},
	DropNotIP:            {"not-ip", "inner frame is neither IPv4, IPv6, ARP nor VLAN"},
	DropInnerIPv6:        {"inner-ipv6", "inner packet is IPv6; this overlay carries IPv4"},
	DropInnerIPv4:        {"inner-ipv4", "inner packet is IPv4; this overlay carries IPv6"},
	DropInnerVersion:     {"inner-version", "inner packet has no valid IP version"},
	DropInnerHeader:      {"inner-header", "inner IPv4 header length is impossible"},
	DropInnerLength:      {"inner-length", "the length in the inner IP header does not match the datagram"},
	DropInnerChecksum:    {"inner-checksum", "inner IPv4 header checksum is wrong"},
	DropInnerSource:      {"inner-source", "inner source is not in the subnet that the sending peer leases"},
	DropInnerDestination: {"inner-destination", "inner destination is not in this node's subnet"},
	DropECN:              {"ecn", "congestion mark on an inner packet that is not ECN-capable (RFC 6040)"},
	DropTUNWrite:         {"tun-write", "the TUN device refused the packet: is it up?"},
	DropSocketOverflow:   {"socket-overflow", "the socket's receive buffer was full; the daemon does not get enough CPU, or the buffer is small"},
}

// String is the reason's name, for example "no-route".
func (r Reason) String() string { return reasons[r].name }

// Direction is which way the packet was carried.
func (r Reason) Direction() Direction {
	if r < DropOuterChecksum {
		return Outbound
	}
	return Inbound
}

// Explain says in a sentence what the reason means for an operator.
func (r Reason) Explain() string { return reasons[r].explain }

// Reasons lists every reason, outbound first, in the order in which a packet meets them.
func Reasons() []Reason {
	all := make([]Reason, numReasons)
	for i := range all {
		all[i] = Reason(i)
	}
	return all
}

// ExplainDrop is Explain by name; empty for a name that this version does not know.
func ExplainDrop(name string) string {
	for _, r := range reasons {
		if r.name == name {
			return r.explain
		}
	}
	return ""
}

// inboundFault maps what encap finds wrong with a datagram to its reason.
var inboundFault = [...]Reason{
	encap.FaultShort:     DropShort,
	encap.FaultFlags:     DropFlags,
	encap.FaultVNI:       DropVNI,
	encap.FaultMAC:       DropMAC,
	encap.FaultOwnMAC:    DropOwnMAC,
	encap.FaultVLAN:      DropVLAN,
	encap.FaultARP:       DropARP,
	encap.FaultNotIP:     DropNotIP,
	encap.FaultIPv6:      DropInnerIPv6,
	encap.FaultIPv4:      DropInnerIPv4,
	encap.FaultIPVersion: DropInnerVersion,
	encap.FaultIPHeader:  DropInnerHeader,
	encap.FaultIPLength:  DropInnerLength,
}

// drops are one worker's counters: one writer, any number of readers.
type drops [numReasons]atomic.Uint64

func (d *drops) count(r Reason) { d[r].Add(1) }

func (d *drops) add(r Reason, packets int) { d[r].Add(uint64(packets)) }
