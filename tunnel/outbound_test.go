package tunnel

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"muslin/encap"
)

func TestOutboundDatagram(t *testing.T) {
	x := newBench(t, "vxlan")
	p := udpPacket(t, "10.1.0.5", "10.3.0.5", "payload longer than Ethernet's minimum", setECN(encap.ECT0))
	sent := x.send(t, p)
	if len(sent) != 1 {
		t.Fatalf("%d datagrams sent, drops %v", len(sent), x.Drops())
	}
	d := sent[0]
	if want := netip.AddrPortFrom(nodeC.public, port); d.Addr != want || d.ECN != encap.ECT0 {
		t.Errorf("sent to %v with ECN %d, want %v with %d", d.Addr, d.ECN, want, encap.ECT0)
	}
	decoded := gopacket.NewPacket(d.Buf, layers.LayerTypeVXLAN, gopacket.Default)
	vx, eth := decoded.Layer(layers.LayerTypeVXLAN).(*layers.VXLAN), decoded.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	if vx.VNI != 42 || encap.MAC(eth.SrcMAC) != nodeA.mac || encap.MAC(eth.DstMAC) != nodeC.mac || !bytes.Equal(eth.Payload, p) {
		t.Errorf("framed as VNI %d, %v to %v: %x", vx.VNI, eth.SrcMAC, eth.DstMAC, eth.Payload)
	}

	bare := newBench(t, "udp").send(t, p)
	if len(bare) != 1 || !bytes.Equal(bare[0].Buf, p) || bare[0].Flow != d.Flow {
		t.Errorf("udp framing sends %+v", bare)
	}
}

func TestECNOutbound(t *testing.T) {
	x := newBench(t, "vxlan")
	for ecn := range uint8(4) {
		p := udpPacket(t, "10.1.0.5", "10.2.0.5", "x", setECN(ecn))
		sent := x.send(t, p)
		if len(sent) != 1 || sent[0].ECN != ecn || !bytes.HasSuffix(sent[0].Buf, p) {
			t.Errorf("inner ECN %d: sent %+v", ecn, sent)
		}
	}
}

// Packets leave in the order in which they came, and those of one flow with one hash.
func TestOutboundOrder(t *testing.T) {
	x := newBench(t, "udp")
	var packets [][]byte
	for i := range BatchSize {
		packets = append(packets, udpPacket(t, fmt.Sprintf("10.1.0.%d", 5+i%5), "10.2.0.5", fmt.Sprint(i)))
	}
	flows := map[uint32]int{}
	sent := x.send(t, packets...)
	if len(sent) != len(packets) {
		t.Fatalf("%d of %d sent", len(sent), len(packets))
	}
	for i, d := range sent {
		if !bytes.Equal(d.Buf, packets[i]) {
			t.Fatalf("datagram %d is another packet", i)
		}
		if first, ok := flows[d.Flow]; ok && first != i%5 {
			t.Errorf("flows %d and %d have one hash", first, i%5)
		}
		flows[d.Flow] = i % 5
	}
	if len(flows) != 5 {
		t.Errorf("%d hashes for 5 flows", len(flows))
	}
}

func TestMTUEdge(t *testing.T) {
	for _, framing := range []string{"vxlan", "udp"} {
		x := newBench(t, framing)
		if sent := x.send(t, sized(t, "10.1.0.5", "10.2.0.5", testMTU)); len(sent) != 1 || len(x.Drops()) != 0 {
			t.Errorf("%s: %d datagrams of a packet as long as the MTU, drops %v", framing, len(sent), x.Drops())
		}
		if sent := x.send(t, sized(t, "10.1.0.5", "10.2.0.5", testMTU+1)); len(sent) != 0 {
			t.Errorf("%s: a packet one byte longer than the MTU was sent", framing)
		}
		written := x.dev.takeWritten()
		if len(written) != 1 {
			t.Fatalf("%s: %d answers", framing, len(written))
		}
		checkICMP(t, written[0], icmpFragNeeded, testMTU, sized(t, "10.1.0.5", "10.2.0.5", testMTU+1))
	}
}

// The read buffer holds the longest IP packet, whatever the device's MTU was set to.
func TestLongestPacket(t *testing.T) {
	x := newBench(t, "vxlan")
	if sent := x.send(t, sized(t, "10.1.0.5", "10.2.0.5", 65535)); len(sent) != 0 || x.Drops()["too-big"] != 1 {
		t.Errorf("%d datagrams of a packet of 65535 bytes, drops %v", len(sent), x.Drops())
	}
}

func TestOutboundCounters(t *testing.T) {
	x := newBench(t, "vxlan")
	x.send(t, sized(t, "10.1.0.5", "10.2.0.5", 100), sized(t, "10.1.0.5", "10.2.0.9", 28), sized(t, "10.1.0.5", "10.9.0.9", 28))
	b, c := x.b.Counters, x.c.Counters
	if b.TxPackets.Load() != 2 || b.TxBytes.Load() != 128 || b.RxPackets.Load() != 0 {
		t.Errorf("B: %d packets of %d bytes, want 2 of 128", b.TxPackets.Load(), b.TxBytes.Load())
	}
	if c.TxPackets.Load() != 0 || c.TxBytes.Load() != 0 {
		t.Error("C was sent nothing, but is counted")
	}
}

func TestNewRefuses(t *testing.T) {
	good := Config{Device: newFakeDevice(), Underlay: newFakeUnderlay(), Framing: encap.UDP{}, Subnet: nodeA.subnet, MTU: 68, Jumbo: 2000}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*Config){
		"IPv6 subnet": func(c *Config) { c.Subnet = netip.MustParsePrefix("fd00::/64") },
		"MTU 67":      func(c *Config) { c.MTU = 67 },
		"no subnet":   func(c *Config) { c.Subnet = netip.Prefix{} },
	} {
		bad := good
		edit(&bad)
		if _, err := New(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
