package gso

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/gopacket/layers"
)

// each runs f over TCP and UDP, IPv4 and IPv6.
func each(t *testing.T, payload int, f func(t *testing.T, s spec)) {
	both(t, func(t *testing.T, v6 func(*spec)) {
		t.Run("TCP", func(t *testing.T) { f(t, oneTCP(payload).with(v6)) })
		t.Run("UDP", func(t *testing.T) { f(t, oneUDP(payload).with(v6)) })
	})
}

func TestComplete(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 100, 1399} {
		each(t, n, func(t *testing.T, s spec) {
			p, want := s.with(bad(undone)).build(t), s.build(t)
			if !Complete(p, s.partialInfo()) || !bytes.Equal(p, want) {
				t.Errorf("completed to\n%x, gopacket has\n%x", p, want)
			}
			if !Complete(p, Info{}) || !bytes.Equal(p, want) {
				t.Errorf("a packet that is complete came out as\n%x", p)
			}
		})
	}
}

// TestCompleteZero: a checksum that comes to 0 says "none" in UDP, so it is written as 0xffff there.
func TestCompleteZero(t *testing.T) {
	each(t, 100, func(t *testing.T, s spec) {
		s.payload[98], s.payload[99] = 0, 0
		p := s.build(t)
		at := int(s.partialInfo().CsumStart) + int(s.partialInfo().CsumOffset)
		copy(s.payload[98:], p[at:at+2]) // now the sum of all else is 0xffff
		p = s.with(bad(undone)).build(t)
		want := uint16(0)
		if s.udp {
			want = 0xffff
		}
		if Complete(p, s.partialInfo()); binary.BigEndian.Uint16(p[at:]) != want {
			t.Errorf("checksum %x, want %x", p[at:at+2], want)
		}
		// The same where it is a segment's.
		segment := cut(t, s.with(bad(undone)).build(t), s.superInfo(200))[0]
		if binary.BigEndian.Uint16(segment[at:]) != want {
			t.Errorf("a segment's checksum is %x, want %x", segment[at:at+2], want)
		}
	})
}

func TestCompleteOutside(t *testing.T) {
	p := make([]byte, 30)
	p[0] = 0x45
	for _, c := range []struct {
		start, offset uint16
		want          bool
	}{
		{20, 8, true}, {28, 0, true}, {20, 9, false}, {29, 0, false}, {30, 0, false}, {31, 0, false}, {65535, 65535, false}, {0, 65535, false},
		{0, 2, false}, {19, 1, false}, {12, 10, false}, // where it would spoil the IP header
	} {
		if got := Complete(p, Info{NeedsCsum: true, CsumStart: c.start, CsumOffset: c.offset}); got != c.want {
			t.Errorf("checksum at %d + %d of 30 bytes: %v", c.start, c.offset, got)
		}
	}
	six := append([]byte{0x60}, make([]byte, 49)...)
	if Complete(six, Info{NeedsCsum: true, CsumStart: 39}) || !Complete(six, Info{NeedsCsum: true, CsumStart: 40}) {
		t.Error("IPv6's header is not kept, or more than it")
	}
	if Complete(nil, Info{NeedsCsum: true}) {
		t.Error("a checksum of nothing")
	}
}

func TestPartial(t *testing.T) {
	each(t, 100, func(t *testing.T, s spec) {
		p := s.with(bad(undone)).build(t)
		info, ok := Partial(p)
		if want := s.partialInfo(); !ok || info != want {
			t.Fatalf("%+v, %v, want %+v", info, ok, want)
		}
		if !Complete(p, info) || !bytes.Equal(p, s.build(t)) {
			t.Errorf("completed to\n%x", p)
		}
		for name, q := range map[string][]byte{
			"right": s.build(t), "wrong": s.with(bad(wrong)).build(t), "no checksum": s.with(bad(absent)).build(t), "cut short": p[:len(p)-1],
			"headers only": p[:20], "nothing": nil, "ICMP": icmp(s.v6),
		} {
			if info, ok := Partial(q); ok || info != (Info{}) {
				t.Errorf("%s: %+v, %v", name, info, ok)
			}
		}
		if s.v6 {
			if info, ok := Partial(extend(s.with(bad(undone)).build(t), 0)); !ok || info.CsumStart != ipv6Len+8 {
				t.Errorf("behind an extension header: %+v, %v", info, ok)
			}
			return
		}
		for name, f := range map[string]func(*spec){
			"first fragment": func(s *spec) { s.flags = layers.IPv4MoreFragments },
			"later fragment": func(s *spec) { s.offset = 4 },
		} {
			if _, ok := Partial(s.with(bad(undone)).with(f).build(t)); ok {
				t.Errorf("%s was taken", name)
			}
		}
	})
}

func TestSuperpacketTCP(t *testing.T) {
	const mtu = 1450
	both(t, func(t *testing.T, v6 func(*spec)) {
		s := oneTCP(4000).with(v6)
		headers := len(s.build(t)) - 4000
		for name, how := range map[string]sum{"checksum left to the NIC": undone, "checksum filled in": right} {
			for _, tcp := range []byte{tcpACK, tcpACK | tcpPSH | tcpFIN | tcpCWR} {
				s.tcp = tcp
				p := s.with(bad(how)).build(t)
				info, ok := Superpacket(p, mtu, 0)
				want := s.superInfo(mtu - headers)
				want.ECN = tcp&tcpCWR != 0
				if !ok || info != want {
					t.Fatalf("%s: %+v, %v, want %+v", name, info, ok, want)
				}
				if !bytes.Equal(p, s.with(bad(undone)).build(t)) {
					t.Errorf("%s: left as %x", name, head(p))
				}
				equalAll(t, cut(t, p, info), segmentsOf(t, s, mtu-headers))
			}
		}
	})
}

// TestSuperpacketUDP: only with the segment size, and then even where the whole would fit.
func TestSuperpacketUDP(t *testing.T) {
	const mtu = 1450
	both(t, func(t *testing.T, v6 func(*spec)) {
		for _, n := range []int{301, 4000} {
			s := oneUDP(n).with(v6)
			for _, how := range []sum{undone, right} {
				p := s.with(bad(how)).build(t)
				if _, ok := Superpacket(p, mtu, 0); ok {
					t.Errorf("%d bytes: taken without a segment size", n)
				}
				info, ok := Superpacket(p, mtu, 100)
				if !ok || info != s.superInfo(100) {
					t.Fatalf("%d bytes: %+v, %v", n, info, ok)
				}
				equalAll(t, cut(t, p, info), segmentsOf(t, s, 100))
			}
		}
	})
}

func TestNoSuperpacket(t *testing.T) {
	const mtu = 1450
	tcp, udp := oneTCP(4000), oneUDP(4000)
	six := func(s *spec) { s.v6 = true }
	for name, c := range map[string]struct {
		p       []byte
		mtu     int
		udpSize int
	}{
		"fits":                          {oneTCP(mtu - 52).build(t), mtu, 0},
		"fits, IPv6":                    {oneTCP(mtu - 72).with(six).build(t), mtu, 0},
		"fits, and a UDP size":          {oneTCP(mtu - 52).build(t), mtu, 100},
		"headers longer than the MTU":   {tcp.build(t), 52, 0},
		"headers only, longer than MTU": {oneTCP(0).build(t), 51, 0},
		"wrong checksum":                {tcp.with(bad(wrong)).build(t), mtu, 0},
		"wrong checksum, IPv6":          {tcp.with(six).with(bad(wrong)).build(t), mtu, 0},
		"first fragment":                {tcp.with(func(s *spec) { s.flags = layers.IPv4MoreFragments }).build(t), mtu, 0},
		"later fragment":                {tcp.with(func(s *spec) { s.offset = 9 }).build(t), mtu, 0},
		"IPv6 fragment":                 {extend(tcp.with(six).build(t), 44), mtu, 0},
		"data offset below 5":           {edit(tcp.build(t), 32, 4<<4), mtu, 0},
		"cut short":                     {tcp.build(t)[:3000], mtu, 0},
		"another protocol":              {edit(tcp.build(t), 9, 132), mtu, 0},
		"UDP, one segment":              {oneUDP(100).build(t), mtu, 100},
		"UDP, wrong checksum":           {udp.with(bad(wrong)).build(t), mtu, 100},
		"UDP, no checksum":              {udp.with(bad(absent)).build(t), mtu, 100},
		"UDP, segments beyond the MTU":  {udp.build(t), mtu, mtu - 27},
		"UDP, a size that is none":      {udp.build(t), mtu, -1},
		"UDP, length of another":        {edit(udp.build(t), 25, 0), mtu, 100},
	} {
		t.Run(name, func(t *testing.T) {
			before := bytes.Clone(c.p)
			if info, ok := Superpacket(c.p, c.mtu, c.udpSize); ok || info != (Info{}) {
				t.Errorf("taken for one: %+v", info)
			}
			if !bytes.Equal(c.p, before) {
				t.Error("it was written to")
			}
		})
	}
}
