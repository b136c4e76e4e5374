package encap

import "testing"

// benchPacket is a datagram of an inner packet of 1448 bytes payload, and its parts.
func benchPacket(b *testing.B) (f *VXLAN, d, inner []byte, h IPv4) {
	f = NewVXLAN(mustVNI(b, 1), ourMAC)
	d = make([]byte, VXLANHeadroom+1500)
	inner = d[VXLANHeadroom:]
	p := tcpPacket(b, 1000, 80)
	copy(inner, p)
	inner[2], inner[3] = 1500>>8, 1500&0xff
	NewVXLAN(mustVNI(b, 1), peerMAC).Encode(d, ourMAC)
	h = parse(b, inner)
	return f, d, inner, h
}

func BenchmarkEncodeVXLAN(b *testing.B) {
	f, d, _, _ := benchPacket(b)
	b.ReportAllocs()
	for b.Loop() {
		f.Encode(d, peerMAC)
	}
}

func BenchmarkDecodeVXLAN(b *testing.B) {
	f, d, _, _ := benchPacket(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, fault := f.Decode(d); fault != FaultNone {
			b.Fatal(fault)
		}
	}
}

func BenchmarkParseIPv4(b *testing.B) {
	_, _, inner, _ := benchPacket(b)
	b.ReportAllocs()
	for b.Loop() {
		var h IPv4
		if fault := ParseIPv4(inner, 0, &h); fault != FaultNone {
			b.Fatal(fault)
		}
	}
}

func BenchmarkFlowHash(b *testing.B) {
	_, _, inner, h := benchPacket(b)
	b.ReportAllocs()
	for b.Loop() {
		FlowHash(inner, &h)
	}
}

func BenchmarkSum1448(b *testing.B) {
	_, _, inner, _ := benchPacket(b)
	b.SetBytes(1448)
	for b.Loop() {
		Sum(inner[:1448], 0)
	}
}
