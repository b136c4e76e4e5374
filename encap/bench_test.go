package encap

import (
	"encoding/binary"
	"fmt"
	"testing"
)

// benchPacket is a datagram of an inner packet of 1448 bytes payload, and its parts.
func benchPacket(b *testing.B) (f *VXLAN, d, inner []byte, h Header) {
	f = NewVXLAN(mustVNI(b, 1), ourMAC)
	d = make([]byte, VXLANHeadroom+1500)
	inner = d[VXLANHeadroom:]
	p := tcpPacket(b, 1000, 80)
	copy(inner, p)
	inner[2], inner[3] = 1500>>8, 1500&0xff
	binary.BigEndian.PutUint16(inner[10:], 0)
	binary.BigEndian.PutUint16(inner[10:], ^Sum(inner[:20], 0))
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
		var h Header
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

func BenchmarkParseIPv6(b *testing.B) {
	p := tcpPacket6(b, 1000, 80)
	b.ReportAllocs()
	for b.Loop() {
		var h Header
		if fault := ParseIPv6(p, 0, &h); fault != FaultNone {
			b.Fatal(fault)
		}
	}
}

func BenchmarkFlowHash6(b *testing.B) {
	p := tcpPacket6(b, 1000, 80)
	h := parse6(b, p)
	b.ReportAllocs()
	for b.Loop() {
		FlowHash6(p, &h)
	}
}

func BenchmarkVerifyHeader(b *testing.B) {
	_, _, inner, h := benchPacket(b)
	b.ReportAllocs()
	for b.Loop() {
		if !VerifyHeader(inner, &h) {
			b.Fatal("wrong checksum")
		}
	}
}

func BenchmarkSum(b *testing.B) {
	// Two bytes off, as what follows an Ethernet header is.
	buf := make([]byte, 2+65000)[2:]
	for _, n := range []int{20, 64, 1400, 65000} {
		b.Run(fmt.Sprintf("%d_bytes", n), func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				Sum(buf[:n], 0)
			}
		})
	}
}

func BenchmarkSumWithoutWide(b *testing.B) {
	withoutWide(b, func() { BenchmarkSum(b) })
}
