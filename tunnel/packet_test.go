package tunnel

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"muslin/encap"
)

// Packets come from gopacket, which is also what they are checked with.

func serialize(t testing.TB, all ...gopacket.SerializableLayer) []byte {
	t.Helper()
	for i, l := range all {
		if l, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			if err := l.SetNetworkLayerForChecksum(all[i-1].(gopacket.NetworkLayer)); err != nil {
				t.Fatal(err)
			}
		}
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

func ipLayer(src, dst string, protocol layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{
		Version: 4, TTL: 64, Id: 77, Protocol: protocol,
		SrcIP: netip.MustParseAddr(src).AsSlice(), DstIP: netip.MustParseAddr(dst).AsSlice(),
	}
}

// udpPacket is a UDP packet with that payload.
func udpPacket(t testing.TB, src, dst, payload string, edit ...func(*layers.IPv4)) []byte {
	t.Helper()
	ip := ipLayer(src, dst, layers.IPProtocolUDP)
	for _, f := range edit {
		f(ip)
	}
	return serialize(t, ip, &layers.UDP{SrcPort: 4000, DstPort: 5000}, gopacket.Payload(payload))
}

// sized is a UDP packet of just that many bytes, header included.
func sized(t testing.TB, src, dst string, bytes int) []byte {
	t.Helper()
	p := udpPacket(t, src, dst, string(make([]byte, bytes-28)))
	if len(p) != bytes {
		t.Fatalf("made a packet of %d bytes, wanted %d", len(p), bytes)
	}
	return p
}

func ipv6Packet(t testing.TB) []byte {
	t.Helper()
	return serialize(t, &layers.IPv6{
		Version: 6, NextHeader: layers.IPProtocolUDP, HopLimit: 64,
		SrcIP: netip.MustParseAddr("fd00::1").AsSlice(), DstIP: netip.MustParseAddr("fd00::2").AsSlice(),
	}, &layers.UDP{SrcPort: 4000, DstPort: 5000}, gopacket.Payload("six"))
}

func setECN(codepoint uint8) func(*layers.IPv4) {
	return func(l *layers.IPv4) { l.TOS = 0x48 | codepoint }
}

// leavePartial puts the pseudo-header's sum where the checksum of a UDP packet is.
func leavePartial(p []byte) {
	length := len(p) - 20
	pseudo := append(bytes.Clone(p[12:20]), 0, p[9], byte(length>>8), byte(length))
	binary.BigEndian.PutUint16(p[26:], encap.Sum(pseudo, 0))
}

// checkSound fails when gopacket finds p's headers at fault, or its checksums other than its own.
func checkSound(t testing.TB, p []byte) (*layers.IPv4, gopacket.Packet) {
	t.Helper()
	decoded := gopacket.NewPacket(p, layers.LayerTypeIPv4, gopacket.Default)
	ip, ok := decoded.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	if !ok {
		t.Fatalf("not an IPv4 packet: %x", p)
	}
	if int(ip.Length) != len(p) {
		t.Errorf("total length %d in a packet of %d bytes", ip.Length, len(p))
	}
	if encap.Sum(p[:int(ip.IHL)*4], 0) != 0xffff {
		t.Errorf("header checksum wrong in %x", p)
	}
	return ip, decoded
}
