package tunnel

import (
	"bytes"
	"maps"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"muslin/encap"
	"muslin/tunnel/gso"
)

func TestOutboundDatagram(t *testing.T) {
	x := newBench(t, "vxlan")
	p := udpPacket(t, "10.1.0.5", "10.3.0.5", "payload longer than Ethernet's minimum", setECN(encap.ECT0))
	sent := x.sendPlain(t, p)
	if len(sent) != 1 {
		t.Fatalf("%d datagrams sent, drops %v", len(sent), x.Drops())
	}
	d := sent[0]
	if want := netip.AddrPortFrom(nodeC.public, port); d.addr != want || d.ecn != encap.ECT0 {
		t.Errorf("sent to %v with ECN %d, want %v with %d", d.addr, d.ecn, want, encap.ECT0)
	}
	decoded := gopacket.NewPacket(d.buf, layers.LayerTypeVXLAN, gopacket.Default)
	vx, eth := decoded.Layer(layers.LayerTypeVXLAN).(*layers.VXLAN), decoded.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	if vx.VNI != 42 || encap.MAC(eth.SrcMAC) != nodeA.mac || encap.MAC(eth.DstMAC) != nodeC.mac || !bytes.Equal(eth.Payload, p) {
		t.Errorf("framed as VNI %d, %v to %v: %x", vx.VNI, eth.SrcMAC, eth.DstMAC, eth.Payload)
	}

	bare := newBench(t, "udp").sendPlain(t, p)
	if len(bare) != 1 || !bytes.Equal(bare[0].buf, p) || bare[0].port != d.port {
		t.Errorf("udp framing sends %+v", bare)
	}
}

func TestECNOutbound(t *testing.T) {
	x := newBench(t, "vxlan")
	for ecn := range uint8(4) {
		for _, packet := range []inner{
			{p: udpPacket(t, "10.1.0.5", "10.2.0.5", "x", setECN(ecn))},
			superpacket(udpPacket(t, "10.1.0.5", "10.2.0.5", "x23x", setECN(ecn)), 1),
		} {
			want := cut(packet.p, packet.info)
			sent := x.send(t, packet)
			checkFlows(t, x.unframedAll(sent), want)
			for _, d := range sent {
				if d.ecn != ecn {
					t.Errorf("inner ECN %d: sent %+v", ecn, d)
				}
			}
		}
	}
}

func TestMTUEdge(t *testing.T) {
	for _, name := range framingNames {
		x := newBench(t, name)
		if sent := x.sendPlain(t, sized(t, "10.1.0.5", "10.2.0.5", testMTU)); len(sent) != 1 || len(x.Drops()) != 0 {
			t.Errorf("%s: %d datagrams of a packet as long as the MTU, drops %v", name, len(sent), x.Drops())
		}
		if sent := x.sendPlain(t, sized(t, "10.1.0.5", "10.2.0.5", testMTU+1)); len(sent) != 0 {
			t.Errorf("%s: a packet one byte longer than the MTU was sent", name)
		}
		replies := x.dev.takeReplies()
		if len(replies) != 1 {
			t.Fatalf("%s: %d answers", name, len(replies))
		}
		checkICMP(t, replies[0], icmpFragNeeded, testMTU, sized(t, "10.1.0.5", "10.2.0.5", testMTU+1))
	}
}

// The read buffer holds the longest IP packet, whatever the device's MTU was set to.
func TestLongestPacket(t *testing.T) {
	x := newBench(t, "vxlan")
	if sent := x.sendPlain(t, sized(t, "10.1.0.5", "10.2.0.5", 65535)); len(sent) != 0 || x.Drops()["too-big"] != 1 {
		t.Errorf("%d datagrams of a packet of 65535 bytes, drops %v", len(sent), x.Drops())
	}
}

func TestOutboundCounters(t *testing.T) {
	x := newBench(t, "vxlan")
	x.send(t, inner{p: sized(t, "10.1.0.5", "10.2.0.5", 100)}, inner{p: sized(t, "10.1.0.5", "10.2.0.9", 28)},
		inner{p: sized(t, "10.1.0.5", "10.9.0.9", 28)}, superpacket(sized(t, "10.1.0.5", "10.2.0.5", 28+250), 100))
	b, c := x.b.Counters, x.c.Counters
	if n, bytes := b.TxPackets.Load(), b.TxBytes.Load(); n != 5 || bytes != 128+3*28+250 || b.RxPackets.Load() != 0 {
		t.Errorf("B: %d packets of %d bytes, want 5 of %d", n, bytes, 128+3*28+250)
	}
	if c.TxPackets.Load() != 0 || c.TxBytes.Load() != 0 {
		t.Error("C was sent nothing, but is counted")
	}
}

// A checksum that the sender left to a NIC is finished: there is none between here and the peer.
func TestOutboundChecksumIsFinished(t *testing.T) {
	for _, name := range framingNames {
		x := newBench(t, name)
		for _, want := range [][]byte{
			udpPacket(t, "10.1.0.5", "10.2.0.5", "some payload"),
			tcpPacket(t, "10.1.0.5", "10.2.0.5", 7, []byte("some payload")),
			tcpPacket(t, "10.1.0.5", "10.2.0.5", 7, nil, func(_ *layers.IPv4, l *layers.TCP) { l.SYN, l.ACK = true, false }),
		} {
			left := unfinished(want)
			if bytes.Equal(left.p, want) {
				t.Fatal("the test's packet is no test")
			}
			sent := x.send(t, left)
			if len(sent) != 1 || !bytes.Equal(x.unframed(sent[0]), want) {
				t.Errorf("%s: sent %x, want %x", name, x.unframedAll(sent), want)
			}
		}
	}
}

// What the kernel says of a packet must be true of it. What is not is dropped alone.
func TestMalformedInfo(t *testing.T) {
	tcp := tcpPacket(t, "10.1.0.5", "10.2.0.5", 1, numbered(1000))
	udp := udpPacket(t, "10.1.0.5", "10.2.0.5", string(numbered(1000)))
	fragment := bytes.Clone(udp)
	fragment[6] = 0x20 // more fragments
	mend(fragment, false)
	with := func(p []byte, edit func(i *gso.Info)) inner {
		super := superpacket(p, 100)
		edit(&super.info)
		return super
	}
	headers := func(p []byte, length int) inner { // cut short, but for its own length
		super := superpacket(p, 100)
		super.p = super.p[:length]
		super.p[2], super.p[3] = 0, byte(length)
		return super
	}
	for name, bad := range map[string]inner{
		"UDP as TCP":                with(udp, func(i *gso.Info) { i.Kind = gso.TCPv4 }),
		"TCP as UDP":                with(tcp, func(i *gso.Info) { i.Kind = gso.UDP }),
		"IPv4 as IPv6":              with(tcp, func(i *gso.Info) { i.Kind = gso.TCPv6 }),
		"a kind that nobody knows":  with(udp, func(i *gso.Info) { i.Kind = 3 }),
		"no segment size":           with(tcp, func(i *gso.Info) { i.Size = 0 }),
		"TCP cut in its header":     headers(tcp, 39),
		"UDP cut in its header":     headers(udp, 27),
		"no transport header":       headers(udp, 20),
		"a fragment":                with(fragment, func(*gso.Info) {}),
		"checksum behind the end":   {udp, gso.Info{NeedsCsum: true, CsumStart: 20, CsumOffset: 1008}},
		"checksum far off":          {udp, gso.Info{NeedsCsum: true, CsumStart: 65535, CsumOffset: 65535}},
		"checksum half out":         {udp, gso.Info{NeedsCsum: true, CsumStart: 20, CsumOffset: 1007}},
		"superpacket, wrong length": {append(superpacket(tcp, 100).p, 0), superpacket(tcp, 100).info},
	} {
		t.Run(name, func(t *testing.T) {
			x := newBench(t, "vxlan")
			good := superpacket(tcp, 300)
			checkFlows(t, x.unframedAll(x.send(t, good, inner{bytes.Clone(bad.p), bad.info}, good)), cutAll([]inner{good, good}))
			if got := x.Drops(); !maps.Equal(got, map[string]uint64{"malformed": 1}) {
				t.Errorf("drops %v", got)
			}
			if replies := x.dev.takeReplies(); len(replies) != 0 {
				t.Errorf("%d answers", len(replies))
			}
		})
	}
}

// The MTU may change at any time: the next packet sees it, and the next ICMP error names it.
func TestSetMTU(t *testing.T) {
	x := newBench(t, "vxlan")
	p := sized(t, "10.1.0.5", "10.2.0.5", 1200)
	super := superpacket(tcpPacket(t, "10.1.0.5", "10.2.0.5", 1, numbered(3000)), 1000)
	for _, step := range []struct{ mtu, plain, super int }{{1450, 1, 3}, {1199, 0, 3}, {1040, 0, 3}, {1039, 0, 0}, {1200, 1, 3}} {
		x.SetMTU(encap.InnerMTU(step.mtu))
		if got := x.MTU(); got != encap.InnerMTU(step.mtu) {
			t.Errorf("MTU = %d, want %d", got, step.mtu)
		}
		for _, c := range []struct {
			packet inner
			want   int
		}{{inner{p: p}, step.plain}, {super, step.super}} {
			if sent := x.send(t, c.packet); len(sent) != c.want {
				t.Errorf("MTU %d: %d datagrams sent of %d bytes, want %d", step.mtu, len(sent), len(c.packet.p), c.want)
			}
			replies := x.dev.takeReplies()
			if (len(replies) == 1) != (c.want == 0) {
				t.Fatalf("MTU %d: %d answers", step.mtu, len(replies))
			}
			if c.want == 0 {
				checkICMP(t, replies[0], icmpFragNeeded, step.mtu, c.packet.p)
			}
		}
	}
	if got := x.Drops(); !maps.Equal(got, map[string]uint64{"too-big": 1 + 1 + 1 + 3}) {
		t.Errorf("drops %v", got)
	}
}

func TestNewRefuses(t *testing.T) {
	good := Config{Device: newFakeDevice(2), Underlay: newFakeUnderlay(2), Framing: encap.UDP{}, Subnet: nodeA.subnet, MTU: 68, Jumbo: 2000}
	if v, err := New(good); err != nil || v.MTU() != 68 {
		t.Fatal(err)
	}
	six := good
	six.Framing, six.Subnet, six.MTU = encap.UDP{Inner: encap.IPv6}, nodeA6.subnet, 1280
	if v, err := New(six); err != nil || v.MTU() != 1280 {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*Config){
		"IPv6 in IPv4": func(c *Config) { c.Subnet = nodeA6.subnet },
		"IPv4 in IPv6": func(c *Config) { c.Framing, c.MTU = encap.UDP{Inner: encap.IPv6}, 1280 },
		"an IPv4 one, mapped": func(c *Config) {
			c.Subnet, c.Framing = netip.MustParsePrefix("::ffff:10.1.0.0/120"), encap.UDP{Inner: encap.IPv6}
		},
		"MTU 67":              func(c *Config) { c.MTU = 67 },
		"IPv6, MTU 1279":      func(c *Config) { *c = six; c.MTU = 1279 },
		"no subnet":           func(c *Config) { c.Subnet = netip.Prefix{} },
		"one queue outside":   func(c *Config) { c.Underlay = newFakeUnderlay(1) },
		"three queues inside": func(c *Config) { c.Device = newFakeDevice(3) },
	} {
		bad := good
		edit(&bad)
		if _, err := New(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
