package hostile

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// Case is a datagram and what must become of it.
type Case struct {
	Name     string
	Datagram []byte
	Drop     string // the drop reason; "" for one that is good
	Stranger bool   // sent from a host that no lease knows
	ECN      int    // of the outer header
}

// Inner is what can be wrong with the inner packet in either framing, from a pod of a peer to one of ours. The
// datagram is the packet.
func Inner(from, to netip.Addr) []Case {
	good := InnerUDP(from, to, 0, 40) // 68 bytes: no room for Ethernet's padding
	badSum := slices.Clone(good)
	badSum[10] ^= 0xff
	v6 := slices.Clone(good)
	v6[0] = 0x65
	v7 := slices.Clone(good)
	v7[0] = 0x75
	return []Case{
		{Name: "good", Datagram: good},
		{Name: "good, congestion marks that may be merged", Datagram: InnerUDP(from, to, 2, 40), ECN: 3},
		{Name: "IHL 4", Datagram: changed(good, 0, 0x44), Drop: "inner-header"},
		{Name: "total length 1 more", Datagram: changed(good, 3, good[3]+1), Drop: "inner-length"},
		{Name: "total length 1 less", Datagram: changed(good, 3, good[3]-1), Drop: "inner-length"},
		{Name: "total length 0", Datagram: changed(good, 3, 0), Drop: "inner-length"},
		{Name: "total length of the maximum", Datagram: changed(changed(good, 3, 0xff), 2, 0xff), Drop: "inner-length"},
		{Name: "header checksum", Datagram: badSum, Drop: "inner-checksum"},
		{Name: "inner source of nobody", Datagram: InnerUDP(netip.MustParseAddr("10.244.222.2"), to, 0, 40), Drop: "inner-source"},
		{Name: "inner source ours", Datagram: InnerUDP(to.Next(), to, 0, 40), Drop: "inner-source"},
		{Name: "inner source outside the network", Datagram: InnerUDP(netip.MustParseAddr("8.8.8.8"), to, 0, 40), Drop: "inner-source"},
		{Name: "inner destination of another node", Datagram: InnerUDP(from, netip.MustParseAddr("10.244.222.2"), 0, 40), Drop: "inner-destination"},
		{Name: "inner destination outside the network", Datagram: InnerUDP(from, netip.MustParseAddr("198.18.0.3"), 0, 40), Drop: "inner-destination"},
		{Name: "inner destination multicast", Datagram: InnerUDP(from, netip.MustParseAddr("224.0.0.1"), 0, 40), Drop: "inner-destination"},
		{Name: "outer CE on a packet that is not ECN-capable", Datagram: good, ECN: 3, Drop: "ecn"},
		{Name: "unknown outer source", Datagram: good, Stranger: true, Drop: "unknown-source"},
		{Name: "a stranger's nonsense", Datagram: []byte("nonsense"), Stranger: true, Drop: "unknown-source"},
		{Name: "IPv6", Datagram: v6, Drop: "inner-ipv6"},
		{Name: "IP version 7", Datagram: v7, Drop: "inner-version"},
		{Name: "empty", Datagram: nil, Drop: "short"},
		{Name: "19 bytes", Datagram: good[:19], Drop: "short"},
		{Name: "oversized", Datagram: InnerUDP(from, to, 0, 40000), Drop: "oversized"},
	}
}

// InVXLAN puts the inner cases into good frames for the VTEP with the MAC own, and adds what can be wrong with the
// frame. good is an inner packet that is taken.
func InVXLAN(own net.HardwareAddr, inner []Case, good []byte) []Case {
	frame := VXLAN{
		Flags: 8, VNI: 1, Dst: own, Src: net.HardwareAddr{0x0a, 0, 0, 0, 0, 2}, EtherType: 0x0800, Inner: good,
	}
	var all []Case
	for _, c := range inner {
		f := frame
		f.Inner = c.Datagram
		switch c.Name {
		case "IPv6", "IP version 7": // the EtherType speaks first: below
			continue
		}
		c.Datagram = f.Bytes()
		all = append(all, c)
	}
	add := func(name, drop string, change func(*VXLAN)) {
		f := frame
		change(&f)
		all = append(all, Case{Name: name, Drop: drop, Datagram: f.Bytes()})
	}
	short := InnerUDP(netip.AddrFrom4([4]byte(good[12:16])), netip.AddrFrom4([4]byte(good[16:20])), 0, 2)
	add("a short packet that a NIC padded to 46 bytes", "", func(f *VXLAN) { f.Inner = append(short, make([]byte, 16)...) })
	add("padded beyond 46 bytes", "inner-length", func(f *VXLAN) { f.Inner = append(short, make([]byte, 17)...) })
	add("no I flag", "vxlan-flags", func(f *VXLAN) { f.Flags = 0 })
	add("GPE's P flag", "vxlan-flags", func(f *VXLAN) { f.Flags = 0x0c })
	add("GBP's G flag", "vxlan-flags", func(f *VXLAN) { f.Flags = 0x88 })
	add("reserved byte set", "vxlan-flags", func(f *VXLAN) { f.Reserved = 1 })
	add("VNI 0", "vxlan-vni", func(f *VXLAN) { f.VNI = 0 })
	add("VNI 2", "vxlan-vni", func(f *VXLAN) { f.VNI = 2 })
	add("VNI of 24 bits", "vxlan-vni", func(f *VXLAN) { f.VNI = 1<<24 - 1 })
	add("destination MAC of another", "vxlan-mac", func(f *VXLAN) { f.Dst = net.HardwareAddr{0x0a, 0, 0, 0, 0, 9} })
	add("destination MAC broadcast", "vxlan-mac", func(f *VXLAN) { f.Dst = net.HardwareAddr{255, 255, 255, 255, 255, 255} })
	add("source MAC ours", "vxlan-own-mac", func(f *VXLAN) { f.Src = own })
	add("802.1Q tag", "vlan", func(f *VXLAN) { f.EtherType = 0x8100; f.Inner = append([]byte{0, 1, 8, 0}, good...) })
	add("802.1ad tag", "vlan", func(f *VXLAN) { f.EtherType = 0x88a8; f.Inner = append([]byte{0, 1, 8, 0}, good...) })
	add("ARP", "arp", func(f *VXLAN) { f.EtherType = 0x0806; f.Inner = make([]byte, 28) })
	add("LLDP", "not-ip", func(f *VXLAN) { f.EtherType = 0x88cc })
	add("IPv6 by EtherType", "inner-ipv6", func(f *VXLAN) { f.EtherType = 0x86dd; f.Inner = make([]byte, 60); f.Inner[0] = 0x60 })
	add("IPv6 in an IPv4 frame", "inner-ipv6", func(f *VXLAN) { f.Inner = slices.Clone(good); f.Inner[0] = 0x65 })
	add("IP version 0", "inner-version", func(f *VXLAN) { f.Inner = slices.Clone(good); f.Inner[0] = 0x05 })
	add("IHL past the end", "inner-header", func(f *VXLAN) { f.Inner = changed(good[:24], 0, 0x4f) })
	for _, n := range []int{1, 7, 8, 21, 22, 41} {
		all = append(all, Case{Name: fmt.Sprintf("%d bytes", n), Drop: "short", Datagram: frame.Bytes()[:n]})
	}
	return all
}
