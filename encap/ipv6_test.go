package encap

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

const (
	goodAddrs6 = "fd000001000000000000000000000005 fd000002000000000000000000000007 " // fd00:1::5 to fd00:2::7
	goodIP6    = "60012345 0008 3a 40 " + goodAddrs6                                  // version 6, class 0, flow label 0x12345; payload length 8; ICMPv6; hop limit 64
	goodICMP6  = "80 00 8372 0000 0000 "                                              // echo request

	goodType6 = "86dd "
)

// innerFaults6 are the ways in which an inner IPv6 packet can be wrong in any framing.
var innerFaults6 = []malformed{
	{"good", goodIP6 + goodICMP6, FaultNone},
	{"no payload", "60012345 0000 3b 40 " + goodAddrs6, FaultNone},
	{"a hop-by-hop header, which is payload", "60012345 0010 00 40 " + goodAddrs6 + "3a 00 0502 0000 0100 " + goodICMP6, FaultNone},
	{"a fragment, which is payload", "60012345 0010 2c 40 " + goodAddrs6 + "3a 00 0001 00000001 " + goodICMP6, FaultNone},
	{"version 0", "00012345 0008 3a 40 " + goodAddrs6 + goodICMP6, FaultIPVersion},
	{"version 7", "70012345 0008 3a 40 " + goodAddrs6 + goodICMP6, FaultIPVersion},
	{"version 4", "45 00 0030 1234 0000 40 01 0000 0a010005 0a020007 " + zeros(28), FaultIPv4},
	{"payload length one too long", "60012345 0009 3a 40 " + goodAddrs6 + goodICMP6, FaultIPLength},
	{"payload length 65535", "60012345 ffff 3a 40 " + goodAddrs6 + goodICMP6, FaultIPLength},
	{"payload length one too short", "60012345 0007 3a 40 " + goodAddrs6 + goodICMP6, FaultIPLength},
	{"jumbogram", "60012345 0000 00 40 " + goodAddrs6 + "3a 00 c204 00000008 " + goodICMP6, FaultIPLength},
}

// vxlanFaults6 are the rows of vxlanFaults that say something of the frame, about IPv6, and those of the inner
// packet.
func vxlanFaults6() (rows []malformed) {
	good := goodIP6 + goodICMP6
	rows = []malformed{
		{"empty", "", FaultShort},
		{"VXLAN header only", goodFlags + goodVNI, FaultShort},
		{"no room for an IPv6 header", goodFrame + goodType6 + "60012345 0000 3b 40 " + zeros(31), FaultShort},
		{"no room for an IPv4 header", goodFrame + goodType6 + "60012345 0000 3b 40 " + zeros(11), FaultShort},
		{"I flag clear", "00 000000 " + goodVNI + goodMACs + goodType6 + good, FaultFlags},
		{"another VNI", goodFlags + "00002b 00 " + goodMACs + goodType6 + good, FaultVNI},
		{"another destination MAC", goodFlags + goodVNI + "020000000003 020000000002 " + goodType6 + good, FaultMAC},
		{"our own source MAC", goodFlags + goodVNI + "020000000001 020000000001 " + goodType6 + good, FaultOwnMAC},
		{"802.1Q tag", goodFrame + "8100 0064 86dd " + good, FaultVLAN},
		{"ARP request", goodFrame + "0806 0001 0800 06 04 0001 020000000002 0a010000 000000000000 0a020000", FaultARP},
		{"LLDP", goodFrame + "88cc " + good, FaultNotIP},
		{"IPv4 EtherType", goodFrame + goodType + goodIP + goodICMP, FaultIPv4},
		{"IPv4 behind IPv6's EtherType", goodFrame + goodType6 + "45 00 0028 1234 0000 40 01 0000 0a010005 0a020007 " + zeros(20), FaultIPv4},
		{"IPv6 behind IPv4's EtherType", goodFrame + goodType + good, FaultIPv4},
		{"padded to a minimal frame", goodFrame + goodType6 + "60012345 0002 fd 40 " + goodAddrs6 + zeros(6), FaultNone},
		{"padded past a minimal frame", goodFrame + goodType6 + "60012345 0002 fd 40 " + goodAddrs6 + zeros(7), FaultIPLength},
	}
	for _, row := range innerFaults6 {
		rows = append(rows, malformed{"inner: " + row.name, goodFrame + goodType6 + row.hex, row.want})
	}
	return rows
}

var udpFaults6 = []malformed{
	{"empty", "", FaultShort},
	{"19 bytes", "60012345 0000 3b 40 " + zeros(11), FaultShort},
	{"39 bytes", "60012345 0000 3b 40 " + zeros(31), FaultShort},
	{"a short packet of IPv4", goodIP + goodICMP, FaultIPv4},
	{"a short packet of no version", "f5 00 001c 1234 0000 40 01 a49e 0a010005 0a020007 " + goodICMP, FaultIPVersion},
	{"one byte of padding", goodIP6 + goodICMP6 + "00", FaultIPLength},
}

// agreesWithGopacket6 compares every field of h to what gopacket reads in the same bytes.
func agreesWithGopacket6(t *testing.T, p []byte, h *Header) {
	t.Helper()
	var want layers.IPv6
	// gopacket refuses a packet without payload, and what it does not like in a hop-by-hop header, after it
	// has read the fields below.
	if err := want.DecodeFromBytes(p, gopacket.NilDecodeFeedback); err != nil && h.Protocol != 0 && h.TotalLen > 40 {
		t.Fatalf("accepted %x, which gopacket refuses: %v", p, err)
	}
	src, _ := netip.AddrFromSlice(want.SrcIP)
	dst, _ := netip.AddrFromSlice(want.DstIP)
	expected := Header{
		Src: src, Dst: dst, HeaderLen: 40, TotalLen: 40 + int(want.Length),
		TOS: want.TrafficClass, Protocol: uint8(want.NextHeader),
	}
	if *h != expected {
		t.Fatalf("ParseIPv6(%x)\n = %+v, gopacket reads\n   %+v", p, *h, expected)
	}
}

func TestParseIPv6AgainstGopacket(t *testing.T) {
	for name, edit := range map[string]func(*layers.IPv6){
		"plain":               func(*layers.IPv6) {},
		"every class bit":     func(l *layers.IPv6) { l.TrafficClass = 0xff },
		"half of the class":   func(l *layers.IPv6) { l.TrafficClass = 0x0f },
		"every label bit":     func(l *layers.IPv6) { l.FlowLabel = 0xfffff },
		"no hops left":        func(l *layers.IPv6) { l.HopLimit = 0 },
		"a fragment behind":   func(l *layers.IPv6) { l.NextHeader = layers.IPProtocolIPv6Fragment },
		"other addresses":     func(l *layers.IPv6) { l.SrcIP, l.DstIP = net.ParseIP("ff02::1"), net.IPv6unspecified },
		"an IPv4 one, mapped": func(l *layers.IPv6) { l.SrcIP = slices.Concat(make([]byte, 10), []byte{255, 255, 10, 1, 0, 5}) },
	} {
		t.Run(name, func(t *testing.T) {
			l := header6(layers.IPProtocolUDP)
			edit(l)
			p := serialize(t, l, gopacket.Payload("sixteen bytes ok"))
			// Every field starts out wrong: ParseIPv6 must assign all of them.
			h := Header{netip.IPv4Unspecified(), netip.IPv4Unspecified(), -1, -1, ^l.TrafficClass, ^p[6], true, true, true}
			if fault := ParseIPv6(p, 0, &h); fault != FaultNone {
				t.Fatalf("fault %d", fault)
			}
			agreesWithGopacket6(t, p, &h)
		})
	}
}

func FuzzParseIPv6(f *testing.F) {
	for _, row := range innerFaults6 {
		f.Add(unhex(f, row.hex), 0)
		f.Add(unhex(f, row.hex), 46)
	}
	f.Add(tcpPacket6(f, 1, 2), 0)
	f.Fuzz(func(t *testing.T, p []byte, pad int) {
		var h Header
		if ParseIPv6(p, pad, &h) != FaultNone {
			return
		}
		agreesWithGopacket6(t, p, &h)
		if h.TotalLen < 40 || h.TotalLen > len(p) || h.TotalLen < len(p) && len(p) > pad {
			t.Fatalf("accepted %x, %d bytes, with length %d and padding to %d", p, len(p), h.TotalLen, pad)
		}
		// Whatever ParseIPv6 accepts, the rest of the data path must stand.
		p = p[:h.TotalLen:h.TotalLen]
		hash := FlowHash6(p, &h)
		for ecn := range uint8(4) {
			before := bytes.Clone(p)
			MergeECN(p, &h, ecn)
			if again := parse6(t, p); again != h {
				t.Fatalf("MergeECN(%d) made %x of %x, and %+v of the header", ecn, p, before, h)
			}
		}
		if FlowHash6(p, &h) != hash {
			t.Fatal("the flow hash depends on ECN")
		}
	})
}

func TestFlowHash6(t *testing.T) {
	hash := func(all ...gopacket.SerializableLayer) uint32 {
		t.Helper()
		p := serialize(t, all...)
		h := parse6(t, p)
		return FlowHash6(p, &h)
	}
	tcp := func(src, dst int, payload string, edit func(*layers.IPv6, *layers.TCP)) uint32 {
		ip, segment := header6(layers.IPProtocolTCP), &layers.TCP{SrcPort: layers.TCPPort(src), DstPort: layers.TCPPort(dst)}
		edit(ip, segment)
		return hash(ip, segment, gopacket.Payload(payload))
	}
	same := func(*layers.IPv6, *layers.TCP) {}
	want := tcp(1000, 80, "payload", same)
	for name, got := range map[string]uint32{
		"other payload":    tcp(1000, 80, "another, longer payload", same),
		"other seq":        tcp(1000, 80, "payload", func(_ *layers.IPv6, s *layers.TCP) { s.Seq, s.ACK, s.FIN = 99, true, true }),
		"other class":      tcp(1000, 80, "payload", func(l *layers.IPv6, _ *layers.TCP) { l.TrafficClass = 0xff }),
		"other hop limit":  tcp(1000, 80, "payload", func(l *layers.IPv6, _ *layers.TCP) { l.HopLimit = 3 }),
		"other flow label": tcp(1000, 80, "payload", func(l *layers.IPv6, _ *layers.TCP) { l.FlowLabel = 7 }),
	} {
		if got != want {
			t.Errorf("%s: hash %#x, want the flow's %#x", name, got, want)
		}
	}
	for name, got := range map[string]uint32{
		"source port":      tcp(1001, 80, "payload", same),
		"destination port": tcp(1000, 81, "payload", same),
		"ports exchanged":  tcp(80, 1000, "payload", same),
		"source":           tcp(1000, 80, "payload", func(l *layers.IPv6, _ *layers.TCP) { l.SrcIP = net.ParseIP("fd00:1::6") }),
		"source network":   tcp(1000, 80, "payload", func(l *layers.IPv6, _ *layers.TCP) { l.SrcIP = net.ParseIP("fd00:3::5") }),
		"destination":      tcp(1000, 80, "payload", func(l *layers.IPv6, _ *layers.TCP) { l.DstIP = net.ParseIP("fd00:2::8") }),
		"addresses swapped": tcp(1000, 80, "payload", func(l *layers.IPv6, _ *layers.TCP) {
			l.SrcIP, l.DstIP = l.DstIP, l.SrcIP
		}),
		"protocol":   hash(header6(layers.IPProtocolUDP), &layers.UDP{SrcPort: 1000, DstPort: 80}),
		"SCTP ports": hash(header6(layers.IPProtocolSCTP), gopacket.Payload{3, 232, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0}),
	} {
		if got == want {
			t.Errorf("a flow that differs in %s has the same 32-bit hash", name)
		}
	}
	labelled := func(next layers.IPProtocol, label uint32, payload string) uint32 {
		l := header6(next)
		l.FlowLabel = label
		return hash(l, gopacket.Payload(payload))
	}
	first := labelled(layers.IPProtocolIPv6Fragment, 5, "\x11\x00\x00\x01\x00\x00\x00\x01\x03\xe8\x00\x50first part")
	last := labelled(layers.IPProtocolIPv6Fragment, 5, "\x11\x00\x00\x10\x00\x00\x00\x01and the end")
	if first != last {
		t.Errorf("hashes %#x and %#x of one packet's fragments", first, last)
	}
	if a, b := labelled(layers.IPProtocolICMPv6, 0, "\x80\x00\x01\x02\x03\x04\x05\x06"), labelled(layers.IPProtocolICMPv6, 0, "\x81\x00\x09\x09\x09\x09\x09\x09"); a != b {
		t.Error("ICMPv6 messages of one label between two hosts have different hashes")
	}
	if labelled(layers.IPProtocolESP, 5, "12345678") == labelled(layers.IPProtocolESP, 6, "12345678") {
		t.Error("two flow labels, one hash, where no port is to be seen")
	}
	if a, b := labelled(layers.IPProtocolTCP, 0, "123"), labelled(layers.IPProtocolTCP, 0, "456"); a != b {
		t.Error("a TCP header of 3 bytes was taken for ports")
	}
}

func TestFlowHash6Spreads(t *testing.T) {
	const flows, buckets = 1600, 16
	template := tcpPacket6(t, 0x3039, 80)
	for name, edit := range map[string]func(p []byte, i int){
		"source ports":         func(p []byte, i int) { p[40], p[41] = byte((32768+i)>>8), byte(i) },
		"destination ports":    func(p []byte, i int) { p[42], p[43] = byte((1024+i)>>8), byte(i) },
		"sources":              func(p []byte, i int) { p[22], p[23] = byte(i>>8), byte(i) },
		"source networks":      func(p []byte, i int) { p[14], p[15] = byte(i>>8), byte(i) },
		"destinations":         func(p []byte, i int) { p[38], p[39] = byte(i>>8), byte(i) },
		"destination networks": func(p []byte, i int) { p[30], p[31] = byte(i>>8), byte(i) },
		"flow labels":          func(p []byte, i int) { p[2], p[3], p[6] = byte(i>>8), byte(i), 58 },
		"pairs":                func(p []byte, i int) { p[22], p[23], p[38], p[39] = byte(i>>8), byte(i), byte(i>>8), byte(i) },
	} {
		var count [buckets]int
		for i := range flows {
			p := bytes.Clone(template)
			edit(p, i)
			h := parse6(t, p)
			count[FlowHash6(p, &h)%buckets]++
		}
		// 100 a bucket on average, standard deviation below 10: five of them either way.
		for b, n := range count {
			if n < 50 || n > 150 {
				t.Errorf("sequential %s: %d of %d flows in bucket %d, want about %d (%v)", name, n, flows, b, flows/buckets, count)
			}
		}
	}
}
