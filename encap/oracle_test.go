package encap

import (
	"encoding/hex"
	"net"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// The oracle of this package's tests is gopacket: what it serializes we must produce and accept, what it
// decodes must agree with what we decode.

// serialize has gopacket write the layers, with lengths and checksums of its own making.
func serialize(t testing.TB, all ...gopacket.SerializableLayer) []byte {
	t.Helper()
	var network gopacket.NetworkLayer
	for _, l := range all {
		switch l := l.(type) {
		case *layers.IPv4:
			network = l
		case *layers.IPv6:
			network = l
		case *layers.TCP:
			l.SetNetworkLayerForChecksum(network)
		case *layers.UDP:
			l.SetNetworkLayerForChecksum(network)
		}
	}
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, all...); err != nil {
		t.Fatalf("gopacket serializes %v: %v", all, err)
	}
	return append([]byte(nil), buf.Bytes()...)
}

// header is an IPv4 layer from 10.1.0.5 to 10.2.0.7.
func header(protocol layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{
		Version: 4, TTL: 64, Id: 0x1234, Protocol: protocol,
		SrcIP: net.IP{10, 1, 0, 5}, DstIP: net.IP{10, 2, 0, 7},
	}
}

// tcpPacket is a TCP segment between two ports, with an odd-sized payload.
func tcpPacket(t testing.TB, src, dst int) []byte {
	return serialize(t, header(layers.IPProtocolTCP),
		&layers.TCP{SrcPort: layers.TCPPort(src), DstPort: layers.TCPPort(dst), Seq: 7, ACK: true, Window: 512},
		gopacket.Payload("an odd payload!"))
}

// parse is ParseIPv4 of a packet that must be good.
func parse(t testing.TB, p []byte) Header {
	t.Helper()
	var h Header
	if fault := ParseIPv4(p, 0, &h); fault != FaultNone {
		t.Fatalf("ParseIPv4(%x) = fault %d, want none", p, fault)
	}
	return h
}

// header6 is an IPv6 layer from fd00:1::5 to fd00:2::7.
func header6(next layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{
		Version: 6, HopLimit: 64, FlowLabel: 0x12345, NextHeader: next,
		SrcIP: net.ParseIP("fd00:1::5"), DstIP: net.ParseIP("fd00:2::7"),
	}
}

func tcpPacket6(t testing.TB, src, dst int) []byte {
	return serialize(t, header6(layers.IPProtocolTCP),
		&layers.TCP{SrcPort: layers.TCPPort(src), DstPort: layers.TCPPort(dst), Seq: 7, ACK: true, Window: 512},
		gopacket.Payload("an odd payload!"))
}

// parse6 is ParseIPv6 of a packet that must be good.
func parse6(t testing.TB, p []byte) Header {
	t.Helper()
	var h Header
	if fault := ParseIPv6(p, 0, &h); fault != FaultNone {
		t.Fatalf("ParseIPv6(%x) = fault %d, want none", p, fault)
	}
	return h
}

// unhex reads hexadecimal digits, spaces between them as one likes.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatalf("hex in the test's table: %v", err)
	}
	return b
}

func mustVNI(t testing.TB, n uint32) VNI {
	t.Helper()
	v, err := NewVNI(n)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
