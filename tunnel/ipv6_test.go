package tunnel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"muslin/encap"
	"muslin/tunnel/gso"
)

// A VTEP of IPv6. What the families share is tested with IPv4 alone; the drop reasons, allocations and fuzzers with
// both.

func TestOutboundDatagram6(t *testing.T) {
	for ecn := range uint8(4) {
		x := newBench6(t, "vxlan")
		p := udpPacket(t, "fd00:1::5", "fd00:3::5", "payload", setECN(ecn))
		sent := x.sendPlain(t, p)
		if len(sent) != 1 {
			t.Fatalf("%d datagrams sent, drops %v", len(sent), x.Drops())
		}
		d := sent[0]
		if want := netip.AddrPortFrom(nodeC6.public, port); d.addr != want || d.ecn != ecn {
			t.Errorf("sent to %v with ECN %d, want %v with %d", d.addr, d.ecn, want, ecn)
		}
		decoded := gopacket.NewPacket(d.buf, layers.LayerTypeVXLAN, gopacket.Default)
		eth := decoded.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
		if eth.EthernetType != layers.EthernetTypeIPv6 || encap.MAC(eth.SrcMAC) != nodeA6.mac || encap.MAC(eth.DstMAC) != nodeC6.mac || !bytes.Equal(eth.Payload, p) {
			t.Errorf("framed as %v, %v to %v: %x", eth.EthernetType, eth.SrcMAC, eth.DstMAC, eth.Payload)
		}
		bare := newBench6(t, "udp").sendPlain(t, p)
		if len(bare) != 1 || !bytes.Equal(bare[0].buf, p) || bare[0].port != d.port {
			t.Errorf("udp framing sends %+v", bare)
		}
	}
}

// Packets both ways, singly and as superpackets, of a network that loses nothing. The hop limit stays.
func TestBothWays6(t *testing.T) {
	for _, name := range framingNames {
		a, b := newBenchOf(t, nodeA6, name, 1), newBenchOf(t, nodeB6, name, 1)
		n := newNetwork(1, a, b)
		n.gro = 0.7
		out := []inner{
			{p: udpPacket(t, "fd00:1::5", "fd00:2::7", "single")},
			unfinished(tcpPacket(t, "fd00:1::5", "fd00:2::7", 1, []byte("unfinished"))),
			superpacket(tcpPacket(t, "fd00:1::6", "fd00:2::7", 1, numbered(20_333)), 1390),
			superpacket(udpPacket(t, "fd00:1::6", "fd00:2::7", string(numbered(9_000))), 1000),
		}
		n.send(t, a, out...)
		checkFlows(t, b.dev.takeWritten(), cutAll(out))
		back := []inner{
			superpacket(tcpPacket(t, "fd00:2::7", "fd00:1::6", 1, numbered(60_000)), 1390),
			{p: udpPacket(t, "fd00:2::7", "fd00:1::5", "single")},
		}
		n.send(t, b, back...)
		checkFlows(t, a.dev.takeWritten(), cutAll(back))
		runs := 0
		for _, r := range a.dev.takeRuns() {
			if r.Info.Kind == gso.TCPv6 && r.Info.Size == 1390 {
				runs++
			}
		}
		if runs == 0 {
			t.Errorf("%s: nothing was joined", name)
		}
		for _, x := range []*bench{a, b} {
			if d := x.Drops(); len(d) != 0 {
				t.Errorf("%s: drops %v", name, d)
			}
		}
	}
}

func TestECNInbound6(t *testing.T) {
	for _, c := range []struct{ inner, outer, want uint8 }{
		{encap.NotECT, encap.ECT0, encap.NotECT}, {encap.ECT0, encap.NotECT, encap.ECT0}, {encap.ECT0, encap.ECT1, encap.ECT1},
		{encap.ECT0, encap.CE, encap.CE}, {encap.ECT1, encap.CE, encap.CE}, {encap.CE, encap.NotECT, encap.CE},
	} {
		x := newBench6(t, "vxlan")
		d := x.from(t, nodeB6, udpPacket(t, "fd00:2::5", "fd00:1::5", "x", setECN(c.inner)))
		d.ECN = c.outer
		written := x.receive(t, d)
		if len(written) != 1 {
			t.Fatalf("inner %d, outer %d: %v", c.inner, c.outer, x.Drops())
		}
		if ip, _ := checkSound6(t, written[0]); ip.TrafficClass != 0x48|c.want || ip.FlowLabel != 0x12345 {
			t.Errorf("inner %d, outer %d: traffic class %#x and flow label %#x, want %#x", c.inner, c.outer, ip.TrafficClass, ip.FlowLabel, 0x48|c.want)
		}
	}
}

// A kernel VXLAN device over a virtual link sends superpackets of IPv6, too. TCP's segment size is the MTU less 60.
func TestSuperpacketFromKernelPeer6(t *testing.T) {
	tcp := tcpPacket(t, "fd00:2::5", "fd00:1::5", 1, numbered(5000))
	udp := udpPacket(t, "fd00:2::5", "fd00:1::5", string(numbered(5000)))
	for _, c := range []struct {
		p          []byte
		size, want int
	}{{tcp, 1390, testMTU - 60}, {tcp, 0, testMTU - 60}, {udp, 1000, 1000}, {udp, testMTU - 48, testMTU - 48}} {
		for _, name := range framingNames {
			for _, left := range []bool{false, true} {
				x := newBench6(t, name)
				p := bytes.Clone(c.p)
				if left {
					p = superpacket(p, 1).p
				}
				d := x.from(t, nodeB6, p)
				d.Size = c.size
				want := superpacket(c.p, c.want)
				checkFlows(t, x.receive(t, d), cut(want.p, want.info))
				if runs := x.dev.takeRuns(); len(runs) != 1 || runs[0].Info != want.info {
					t.Errorf("%s: handed on as %d runs, %+v, want %+v", name, len(runs), runs[0].Info, want.info)
				}
			}
		}
	}
}

func TestSourceCheck6(t *testing.T) {
	const ok = numReasons
	for _, c := range []struct {
		name                string
		outer               netip.Addr
		inner               string
		strict, peers, open Reason
	}{
		{"peer and its own packet", nodeB6.public, "fd00:2::5", ok, ok, ok},
		{"peer and another peer's packet", nodeC6.public, "fd00:2::5", DropInnerSource, ok, ok},
		{"peer and our own packet", nodeB6.public, "fd00:1::9", DropInnerSource, DropInnerSource, DropInnerSource},
		{"stranger and a peer's packet", stranger6, "fd00:2::5", DropUnknownSource, DropUnknownSource, ok},
		{"peer and nobody's packet", nodeB6.public, "fd00:9::5", DropInnerSource, DropInnerSource, ok},
		{"peer and a packet from outside the network", nodeB6.public, "2001:db8::77", DropInnerSource, DropInnerSource, DropInnerSource},
		{"a peer's node over IPv4", nodeB.public, "fd00:2::5", DropInnerSource, ok, ok},
	} {
		for check, want := range map[SourceCheck]Reason{SourceCheckStrict: c.strict, SourceCheckPeers: c.peers, SourceCheckOff: c.open} {
			t.Run(c.name+"/"+check.String(), func(t *testing.T) {
				x := newBench6(t, "vxlan", func(cfg *Config) {
					cfg.SourceCheck, cfg.Network = check, netip.MustParsePrefix("fd00::/16")
				})
				p := udpPacket(t, c.inner, "fd00:1::5", "payload")
				written := x.receive(t, x.from(t, node{public: c.outer, subnet: nodeB6.subnet, mac: nodeB6.mac}, p))
				drops := map[string]uint64{}
				if want != ok {
					drops[want.String()] = 1
				}
				if (len(written) == 1) != (want == ok) || !maps.Equal(x.Drops(), drops) {
					t.Errorf("%d packets delivered, drops %v, want %v", len(written), x.Drops(), drops)
				}
			})
		}
	}
}

// checkICMP6 has gopacket decode an ICMPv6 error about packet, which fd00:1::5 sent.
func checkICMP6(t *testing.T, message []byte, kind, code uint8, mtu int, packet []byte) {
	t.Helper()
	ip, decoded := checkSound6(t, message)
	if ip.SrcIP.String() != "fd00:1::" || ip.DstIP.String() != "fd00:1::5" {
		t.Errorf("from %v to %v, want from the subnet's base to the sender", ip.SrcIP, ip.DstIP)
	}
	if ip.NextHeader != layers.IPProtocolICMPv6 || ip.HopLimit == 0 || len(message) > 1280 {
		t.Errorf("next header %v, hop limit %d, %d bytes", ip.NextHeader, ip.HopLimit, len(message))
	}
	icmp, ok := decoded.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
	if !ok {
		t.Fatalf("gopacket finds no ICMPv6 in %x", message)
	}
	if icmp.TypeCode != layers.CreateICMPv6TypeCode(kind, code) {
		t.Errorf("%v, want type %d, code %d", icmp.TypeCode, kind, code)
	}
	body := icmp.Payload // four bytes, unused or the MTU, then the packet
	if got := binary.BigEndian.Uint32(body); got != uint32(mtu) {
		t.Errorf("MTU %d, want %d", got, mtu)
	}
	if want := packet[:min(len(packet), 1280-48)]; !bytes.Equal(body[4:], want) {
		t.Errorf("quotes %d bytes, want the packet's first %d", len(body)-4, len(want))
	}
}

func TestICMP6Answers(t *testing.T) {
	for _, c := range []struct {
		name, dst  string
		kind, code uint8
	}{{"no route", "fd00:9::1", 1, 0}, {"no such pod", "fd00:1::99", 1, 3}} {
		x := newBench6(t, "vxlan") // one sender for all, so one buffer that every message leaves dirty
		for _, length := range []int{1400, 48, 49, 1231, 1232, 1233} {
			p := sized(t, "fd00:1::5", c.dst, length)
			x.sendPlain(t, p)
			written := x.dev.takeReplies()
			if len(written) != 1 {
				t.Fatalf("%s, %d bytes: %d answers", c.name, length, len(written))
			}
			checkICMP6(t, written[0], c.kind, c.code, 0, p)
		}
	}
}

func TestMTUEdge6(t *testing.T) {
	for _, name := range framingNames {
		x := newBench6(t, name)
		for _, mtu := range []int{testMTU, 1280, 9000} {
			x.SetMTU(encap.InnerMTU(mtu))
			if sent := x.sendPlain(t, sized(t, "fd00:1::5", "fd00:2::5", mtu)); len(sent) != 1 || len(x.dev.takeReplies()) != 0 {
				t.Errorf("%s: %d datagrams of a packet as long as the MTU, drops %v", name, len(sent), x.Drops())
			}
			long := sized(t, "fd00:1::5", "fd00:2::5", mtu+1)
			super := superpacket(tcpPacket(t, "fd00:1::5", "fd00:2::5", 1, numbered(3*mtu)), mtu-60+1)
			for _, packet := range []inner{{p: long}, super} {
				if sent := x.send(t, packet); len(sent) != 0 {
					t.Errorf("%s: a packet one byte longer than the MTU was sent", name)
				}
				replies := x.dev.takeReplies()
				if len(replies) != 1 {
					t.Fatalf("%s: %d answers", name, len(replies))
				}
				checkICMP6(t, replies[0], 2, 0, mtu, packet.p)
			}
		}
	}
}

// What a router must not answer, and what it must (RFC 4443, section 2.4(e)).
func TestICMP6IsSilentAbout(t *testing.T) {
	const nobody = "fd00:9::1"
	behind := func(src, dst string, next layers.IPProtocol, payload ...byte) []byte {
		return onIP(t, ipLayer(src, dst, next), gopacket.Payload(payload))
	}
	icmp := func(kind byte) []byte { return behind("fd00:1::5", nobody, 58, kind, 0, 0, 0, 0, 0, 0, 0) }
	// What is in front of an ICMPv6 error, and of an echo request.
	extended := func(kind byte, next layers.IPProtocol, header ...byte) []byte {
		return behind("fd00:1::5", nobody, next, append(header, kind, 0, 0, 0, 0, 0, 0, 0)...)
	}
	options := []byte{58, 0, 1, 4, 0, 0, 0, 0}
	for _, c := range []struct {
		name   string
		p      []byte
		answer bool
	}{
		{"echo request", icmp(128), true},
		{"echo reply", icmp(129), true},
		{"a query that nobody knows", icmp(200), true},
		{"destination unreachable", icmp(1), false},
		{"packet too big", icmp(2), false},
		{"an error that nobody knows", icmp(127), false},
		{"redirect", icmp(137), false},
		{"ICMPv6 without a type", behind("fd00:1::5", nobody, 58), false},
		{"UDP behind options", behind("fd00:1::5", nobody, 60, 17, 0, 1, 4, 0, 0, 0, 0, 1, 2, 3, 4, 0, 8, 0, 0), true},
		{"an error behind hop-by-hop options", extended(1, 0, options...), false},
		{"a query behind hop-by-hop options", extended(128, 0, options...), true},
		{"an error behind destination options", extended(1, 60, options...), false},
		{"an error behind two headers", extended(3, 0, append([]byte{60, 0, 1, 4, 0, 0, 0, 0}, options...)...), false},
		{"an error behind a long header", extended(1, 43, append([]byte{58, 1}, make([]byte, 14)...)...), false},
		{"an error behind an authentication header", extended(1, 51, append([]byte{58, 4}, make([]byte, 22)...)...), false},
		{"a query behind an authentication header", extended(128, 51, append([]byte{58, 4}, make([]byte, 22)...)...), true},
		{"a header cut short", behind("fd00:1::5", nobody, 0, 58, 0, 1, 4), false},
		{"a header longer than the packet", behind("fd00:1::5", nobody, 0, 58, 9, 1, 4, 0, 0, 0, 0), false},
		{"headers, and nothing behind", behind("fd00:1::5", nobody, 0, options...), false},
		{"nothing at all", behind("fd00:1::5", nobody, 59), true},
		{"encrypted", behind("fd00:1::5", nobody, 50, 0, 0, 0, 1, 0, 0, 0, 1), true},
		{"first fragment of UDP", behind("fd00:1::5", nobody, 44, 17, 0, 0, 1, 0, 0, 0, 9, 1, 2, 3, 4, 0, 8, 0, 0), true},
		{"first fragment of an error", extended(1, 44, 58, 0, 0, 1, 0, 0, 0, 9), false},
		{"first fragment of a query", extended(128, 44, 58, 0, 0, 1, 0, 0, 0, 9), true},
		{"middle fragment", extended(128, 44, 58, 0, 0, 9, 0, 0, 0, 9), false},
		{"last fragment", extended(128, 44, 17, 0, 0, 8, 0, 0, 0, 9), false},
		{"to a multicast group", udpPacket(t, "fd00:1::5", "ff05::1", "x"), false},
		{"from a multicast group", udpPacket(t, "ff05::1", nobody, "x"), false},
		{"from nobody", udpPacket(t, "::", nobody, "x"), false},
		{"from loopback", udpPacket(t, "::1", nobody, "x"), false},
	} {
		x := newBench6(t, "udp")
		x.sendPlain(t, c.p)
		written := x.dev.takeReplies()
		if (len(written) == 1) != c.answer || len(written) > 1 {
			t.Errorf("%s: %d answers, want one: %v", c.name, len(written), c.answer)
		}
		for _, message := range written {
			checkICMP6(t, message, 1, 0, 0, c.p)
		}
		if n := x.Drops()["no-route"]; n != 1 {
			t.Errorf("%s: counted %d times, answered or not", c.name, n)
		}
	}
}

// No more of them than of IPv4's, and none of the rate for what is not answered.
func TestICMP6RateLimit(t *testing.T) {
	x := newBench6(t, "udp")
	now := time.Unix(1_000_000, 0)
	x.out[0].icmp.init(nodeA6.subnet.Addr(), func() time.Time { return now })
	answers := func(src string, packets int) (n int) {
		for range packets {
			x.sendPlain(t, udpPacket(t, src, "fd00:9::1", "x"))
			n += len(x.dev.takeReplies())
		}
		return n
	}
	if n := answers("::", 50); n != 0 {
		t.Errorf("%d answers to nobody", n)
	}
	if n := answers("fd00:1::5", 50); n != icmpBurst {
		t.Errorf("%d answers at once, want %d", n, icmpBurst)
	}
	now = now.Add(10 * time.Millisecond)
	if n := answers("fd00:1::5", 5); n != 1 {
		t.Errorf("%d answers after 10 ms, want one", n)
	}
	if n := x.Drops()["no-route"]; n != 105 {
		t.Errorf("%d packets counted: the limit must not reach the counters", n)
	}
}

// The other family's peers in the table are nobody's business: not as a destination, and not as a source.
func TestOneTableForBothFamilies(t *testing.T) {
	for _, n := range []node{nodeA, nodeA6} {
		x := newBenchOf(t, n, "vxlan", 1)
		for i := range 4 {
			x.sendPlain(t, udpPacket(t, x.addr("10.1.0.5"), x.addr(fmt.Sprintf("10.2.0.%d", i)), "x"))
		}
		if got := x.b.Counters.TxPackets.Load(); got != 4 || len(x.Drops()) != 0 {
			t.Errorf("%v: %d sent, drops %v", x.cfg.Framing.Family(), got, x.Drops())
		}
		for _, p := range x.Table().Peers() {
			if p.Subnet.Addr().Is6() != n.six() && p.Counters.TxPackets.Load() != 0 {
				t.Errorf("%v: %v was sent something", x.cfg.Framing.Family(), p.Subnet)
			}
		}
	}
}
