package gso

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/google/gopacket/layers"
)

// segmentsOf is what s comes to in segments of size bytes, each made by gopacket.
func segmentsOf(t testing.TB, s spec, size int) (all [][]byte) {
	t.Helper()
	whole := s
	s.sum = right
	for at := 0; at == 0 || at < len(whole.payload); at += size {
		seg := s
		seg.payload = whole.payload[at:min(at+size, len(whole.payload))]
		seg.seq += uint32(at)
		seg.id += uint16(at / size)
		if at > 0 {
			seg.tcp &^= tcpCWR
		}
		if at+size < len(whole.payload) {
			seg.tcp &^= tcpFIN | tcpPSH
		}
		all = append(all, seg.build(t))
	}
	return all
}

func equalAll(t testing.TB, got, want [][]byte) {
	t.Helper()
	for i := range min(len(got), len(want)) {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("segment %d of %d is\n%x, gopacket makes\n%x", i, len(want), head(got[i]), head(want[i]))
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%d segments, want %d", len(got), len(want))
	}
}

func TestSplit(t *testing.T) {
	busy := func(s *spec) {
		s.tcp, s.tos, s.label, s.id, s.seq = tcpACK|tcpPSH|tcpFIN|tcpCWR|tcpECE, 0x2a, 0x12345, 65534, 0xfffffff0
	}
	both(t, func(t *testing.T, v6 func(*spec)) {
		for name, s := range map[string]spec{
			"TCP": oneTCP(0), "TCP, all flags and wraps": oneTCP(0).with(busy), "TCP without options": oneTCP(0).with(bare),
			"TCP without DF": oneTCP(0).with(noDF), "TCP, IP options": oneTCP(0).with(func(s *spec) { s.ipOptions = 3 }),
			"UDP": oneUDP(0), "UDP, other header": oneUDP(0).with(busy),
		} {
			s = s.with(v6)
			for _, size := range []int{1, 2, 500, 501, 1398, 60000} {
				for _, n := range []int{0, 1, size - 1, size, size + 1, 2 * size, 3*size + 1, 65535 - 120} {
					if n < 0 || n/size > 200 || n > 65535-120 {
						continue
					}
					s.payload = random(n)
					want := segmentsOf(t, s, size)
					for _, how := range []sum{undone, garbage, right} {
						info := s.superInfo(size)
						info.NeedsCsum = how != right
						info.HeaderLen = 9999 // a hint that is often wrong
						p := s.with(bad(how)).build(t)
						before := bytes.Clone(p)
						t.Run(fmt.Sprint(name, "/", n, " in ", size, "/", how), func(t *testing.T) {
							equalAll(t, cut(t, p, info), want)
							if !bytes.Equal(p, before) {
								t.Error("the superpacket was written to")
							}
						})
					}
				}
			}
		}
	})
}

// The same from one Splitter after another packet, and after one it refused.
func TestSplitAgain(t *testing.T) {
	var s Splitter
	hdr := make([]byte, 128)
	for _, sp := range []spec{oneTCP(3000), oneUDP(500), oneTCP(0), oneUDP(2000).with(func(s *spec) { s.v6 = true }), oneTCP(999)} {
		if s.Reset(sp.build(t), Info{}) {
			t.Error("a plain packet was taken")
		}
		if _, ok := s.Next(hdr); ok || s.Segments() != 0 {
			t.Error("a segment of nothing")
		}
		if !s.Reset(sp.with(bad(undone)).build(t), sp.superInfo(400)) {
			t.Fatal("refused")
		}
		want := segmentsOf(t, sp, 400)
		if longest := len(want[0]); s.SegmentLen() != longest || s.Segments() != len(want) {
			t.Errorf("%d segments of %d bytes, want %d of %d", s.Segments(), s.SegmentLen(), len(want), longest)
		}
		var got [][]byte
		for payload, ok := s.Next(hdr); ok; payload, ok = s.Next(hdr) {
			if cap(payload) != len(payload) {
				t.Fatal("a payload can be appended to, over the next one")
			}
			got = append(got, append(bytes.Clone(hdr[:s.HeaderLen()]), payload...))
		}
		equalAll(t, got, want)
	}
}

// TestSplitExtensionHeaders: every segment repeats them.
func TestSplitExtensionHeaders(t *testing.T) {
	for _, kinds := range [][]byte{{0}, {60}, {43}, {0, 60, 43, 60}} {
		for name, s := range map[string]spec{"TCP": oneTCP(1000), "UDP": oneUDP(1000)} {
			s.v6 = true
			whole, want := s.with(bad(undone)).build(t), segmentsOf(t, s, 300)
			info := s.superInfo(300)
			for _, k := range kinds {
				whole = extend(whole, k)
				for i := range want {
					want[i] = extend(want[i], k)
				}
				info.CsumStart += 8
			}
			t.Run(fmt.Sprint(name, kinds), func(t *testing.T) { equalAll(t, cut(t, whole, info), want) })
		}
	}
}

func TestNoSplit(t *testing.T) {
	tcp, udp := oneTCP(1000).with(bad(undone)), oneUDP(1000).with(bad(undone))
	tcp6, udp6 := tcp.with(func(s *spec) { s.v6 = true }), udp.with(func(s *spec) { s.v6 = true })
	size0, ufo := tcp.superInfo(0), udp.superInfo(100)
	ufo.Kind = 3 // VIRTIO_NET_HDR_GSO_UDP
	done := tcp.superInfo(100)
	done.NeedsCsum = false
	doneUDP := udp.superInfo(100)
	doneUDP.NeedsCsum = false

	for name, c := range map[string]struct {
		p    []byte
		info Info
	}{
		"no superpacket":                  {tcp.build(t), tcp.partialInfo()},
		"no segment size":                 {tcp.build(t), size0},
		"UFO":                             {udp.build(t), ufo},
		"TCPv4 that is UDP":               {udp.build(t), tcp.superInfo(100)},
		"UDP that is TCP":                 {tcp.build(t), udp.superInfo(100)},
		"TCPv4 that is TCPv6":             {tcp6.build(t), tcp.superInfo(100)},
		"TCPv6 that is TCPv4":             {tcp.build(t), tcp6.superInfo(100)},
		"nothing":                         {nil, tcp.superInfo(100)},
		"version 5":                       {edit(tcp.build(t), 0, 0x55), tcp.superInfo(100)},
		"IP header of 16 bytes":           {edit(tcp.build(t), 0, 0x44), tcp.superInfo(100)},
		"cut short":                       {tcp.build(t)[:900], tcp.superInfo(100)},
		"cut short, IPv6":                 {tcp6.build(t)[:900], tcp6.superInfo(100)},
		"padded":                          {append(tcp.build(t), 0), tcp.superInfo(100)},
		"a first fragment":                {tcp.with(func(s *spec) { s.flags = layers.IPv4MoreFragments }).build(t), tcp.superInfo(100)},
		"a later fragment":                {tcp.with(func(s *spec) { s.offset = 1 }).build(t), tcp.superInfo(100)},
		"an IPv6 fragment":                {extend(tcp6.build(t), 44), tcp6.superInfo(100)},
		"an authentication header":        {extend(tcp6.build(t), 51), tcp6.superInfo(100)},
		"a route with segments left":      {edit(extend(tcp6.build(t), 43), ipv6Len+3, 1), tcp6.superInfo(100)},
		"an extension header too long":    {edit(extend(tcp6.build(t), 60), ipv6Len+1, 255), tcp6.superInfo(100)},
		"an extension header cut short":   {edit(shortIPv6(4), 6, 60), tcp6.superInfo(100)},
		"a routing header cut short":      {edit(shortIPv6(3), 6, 43), tcp6.superInfo(100)},
		"TCP header cut short":            {edit(shortIPv6(19), 6, protoTCP), tcp6.superInfo(100)},
		"UDP header cut short":            {edit(shortIPv6(7), 6, protoUDP), udp6.superInfo(100)},
		"TCP header of 16 bytes":          {edit(tcp.build(t), 32, 4<<4), tcp.superInfo(100)},
		"TCP header beyond the end":       {edit(oneTCP(0).build(t), 32, 15<<4), tcp.superInfo(100)},
		"UDP length of another":           {edit(udp.build(t), 25, 0), udp.superInfo(100)},
		"a checksum that is wrong":        {tcp.with(bad(wrong)).build(t), done},
		"a checksum that is wrong, UDP":   {udp.with(bad(wrong)).build(t), doneUDP},
		"a checksum undone, and not said": {tcp.build(t), done},
	} {
		t.Run(name, func(t *testing.T) {
			var s Splitter
			if s.Reset(c.p, c.info) {
				t.Errorf("cut into %d", s.Segments())
			}
		})
	}

	var s Splitter
	if !s.Reset(udp.with(bad(absent)).build(t), doneUDP) {
		t.Error("a UDP superpacket without a checksum was refused")
	}
}

// shortIPv6 is an IPv6 header with n zeros behind it.
func shortIPv6(n int) []byte {
	p := make([]byte, ipv6Len+n)
	p[0] = 0x60
	binary.BigEndian.PutUint16(p[4:], uint16(n))
	return p
}

func TestSplitNoAllocation(t *testing.T) {
	tcp, udp := oneTCP(60000).with(bad(undone)), oneUDP(60000).with(bad(undone)).with(func(s *spec) { s.v6 = true })
	p, q, hdr := tcp.build(t), udp.build(t), make([]byte, 128)
	ip, iq := tcp.superInfo(1400), udp.superInfo(1400)
	var s Splitter
	if n := testing.AllocsPerRun(20, func() {
		if !s.Reset(p, ip) {
			t.Fatal("not cut")
		}
		for _, ok := s.Next(hdr); ok; _, ok = s.Next(hdr) {
		}
		if !s.Reset(q, iq) {
			t.Fatal("not cut")
		}
		for _, ok := s.Next(hdr); ok; _, ok = s.Next(hdr) {
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzSplit: whatever comes is left alone, or cut into sound segments that carry the same bytes.
func FuzzSplit(f *testing.F) {
	for _, s := range []spec{oneTCP(300), oneUDP(300), oneTCP(0), oneTCP(300).with(bare)} {
		for _, v6 := range []bool{false, true} {
			s.v6 = v6
			p := s.with(bad(undone)).build(f)
			f.Add(p, uint8(s.superInfo(1).Kind), uint16(100), true)
			f.Add(s.build(f), uint8(s.superInfo(1).Kind), uint16(7), false)
			if v6 {
				f.Add(extend(extend(p, 43), 0), uint8(s.superInfo(1).Kind), uint16(40), true)
			}
		}
	}
	f.Fuzz(func(t *testing.T, p []byte, kind uint8, size uint16, needsCsum bool) {
		p = p[:min(len(p), 1<<16)]
		before := bytes.Clone(p)
		var s Splitter
		info := Info{Kind: Kind(kind), Size: size, NeedsCsum: needsCsum}
		if !s.Reset(p, info) {
			return
		}
		hdr := make([]byte, s.HeaderLen())
		var payload []byte
		n := 0
		for b, ok := s.Next(hdr); ok; b, ok = s.Next(hdr) {
			n++
			seg := append(bytes.Clone(hdr), b...)
			var l layout
			if !l.read(seg) || l.kind() != info.Kind || len(seg) > s.SegmentLen() {
				t.Fatalf("segment %d is no packet: %x", n, seg)
			}
			if !l.v6 && slowSum(seg[:l.transport], 0) != 0xffff {
				t.Fatalf("segment %d: IPv4 header checksum of %x", n, seg[:l.transport])
			}
			if !l.verify(seg) || l.udp && seg[l.transport+6] == 0 && seg[l.transport+7] == 0 {
				t.Fatalf("segment %d: checksum of %x", n, seg)
			}
			payload = append(payload, b...)
		}
		if n != s.Segments() || !bytes.Equal(payload, p[s.HeaderLen():]) || !bytes.Equal(p, before) {
			t.Fatalf("%d segments of %d, %d bytes", n, s.Segments(), len(payload))
		}
	})
}
