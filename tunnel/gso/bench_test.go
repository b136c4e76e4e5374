package gso

import (
	"bytes"
	"testing"
)

func benchSplit(b *testing.B, s spec, size int) {
	p, info := s.build(b), s.superInfo(size)
	hdr := make([]byte, 128)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	var segments int
	for b.Loop() {
		var c Splitter
		if !c.Reset(p, info) {
			b.Fatal("not cut")
		}
		segments = c.Segments()
		for {
			if _, ok := c.Next(hdr); !ok {
				break
			}
		}
	}
	perPacket(b, segments)
}

func perPacket(b *testing.B, packets int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*packets), "ns/packet")
}

// A superpacket of 64 KiB, as TUN reads bring it.
func BenchmarkSplitTCP(b *testing.B) {
	benchSplit(b, oneTCP(65000).with(func(s *spec) { s.sum = undone }), 1398)
}

func BenchmarkSplitUDP(b *testing.B) {
	benchSplit(b, oneUDP(64000).with(func(s *spec) { s.sum = undone }), 1400)
}

// Short segments: what a segment costs besides its payload's checksum.
func BenchmarkSplitSmall(b *testing.B) {
	benchSplit(b, oneTCP(640).with(func(s *spec) { s.sum = undone }), 10)
}

// benchCoalesce joins the packets again and again. Its first packet's headers are put back before each
// round, since a run patches them: that is counted in, and cheap.
func benchCoalesce(b *testing.B, specs []spec, runs int) {
	packets := make([][]byte, len(specs))
	for i, s := range specs {
		packets[i] = s.build(b)
	}
	header := bytes.Clone(packets[0][:60])
	c := NewCoalescer(len(packets))
	b.ReportAllocs()
	for b.Loop() {
		for _, p := range packets {
			if !c.Add(p, Info{}) {
				b.Fatal("no room")
			}
		}
		out := c.Runs()
		if len(out) != runs {
			b.Fatalf("%d runs", len(out))
		}
		for i := range out {
			if out[i].Segments > 1 {
				copy(out[i].Bufs[0], header)
			}
		}
		c.Reset()
	}
	perPacket(b, len(packets))
}

func follow(s spec, n, payload int) []spec {
	all := []spec{s}
	for range n - 1 {
		s = s.after(payload)
		all = append(all, s)
	}
	return all
}

// One flow's 46 segments, which become one superpacket of 64 KiB.
func BenchmarkCoalesceTCP(b *testing.B) {
	benchCoalesce(b, follow(oneTCP(1398), 46, 1398), 1)
}

func BenchmarkCoalesceTCPv6(b *testing.B) {
	benchCoalesce(b, follow(oneTCP(1378).with(func(s *spec) { s.v6 = true }), 46, 1378), 1)
}

// The same with hardly any payload: what a packet costs besides its checksum.
func BenchmarkCoalesceTCPSmall(b *testing.B) {
	benchCoalesce(b, follow(oneTCP(8), 46, 8), 1)
}

func BenchmarkCoalesceUDP(b *testing.B) {
	benchCoalesce(b, follow(oneUDP(64), 64, 64), 1)
}

// 64 flows of one packet each: nothing to join.
func BenchmarkCoalesceMixed(b *testing.B) {
	var all []spec
	for i := range 64 {
		all = append(all, oneTCP(1398).with(func(s *spec) { s.sport += uint16(i) }))
	}
	benchCoalesce(b, all, 64)
}

// Acknowledgements, the other half of a one-way stream.
func BenchmarkCoalesceACKs(b *testing.B) {
	var all []spec
	for i := range 64 {
		all = append(all, oneTCP(0).with(func(s *spec) { s.ack += uint32(i) * 2800 }))
	}
	benchCoalesce(b, all, 64)
}
