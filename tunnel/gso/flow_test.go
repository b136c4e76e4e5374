package gso

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
)

// TestCoalesceMalformed: what cannot be read might be of any flow, so every run ends before it; a protocol
// without runs is passed by. Each comes out as it went in.
func TestCoalesceMalformed(t *testing.T) {
	six := func(s *spec) { s.v6 = true }
	tcp, udp := oneTCP(100), oneUDP(100)
	type malformed struct {
		p    []byte
		want []int // packets in runs, where it came between two that go together
	}
	apart, by := []int{1, 1, 1}, []int{2, 1}
	for name, m := range map[string]malformed{
		"nothing":                   {nil, apart},
		"19 bytes":                  {tcp.build(t)[:19], apart},
		"version 5":                 {edit(tcp.build(t), 0, 0x55), apart},
		"longer than it says":       {append(tcp.build(t), 0), apart},
		"shorter than it says":      {tcp.build(t)[:150], apart},
		"IPv6, 39 bytes":            {tcp.with(six).build(t)[:39], apart},
		"IPv6, longer than it says": {append(tcp.with(six).build(t), 0), apart},
		"IPv6, TCP cut short":       {edit(shortIPv6(19), 6, protoTCP), apart},
		"IPv6, UDP cut short":       {edit(shortIPv6(7), 6, protoUDP), apart},
		"TCP header of 16 bytes":    {edit(tcp.build(t), 32, 4<<4), apart},
		"TCP header beyond the end": {edit(oneTCP(0).build(t), 32, 15<<4), apart},
		"UDP length of another":     {edit(udp.build(t), 25, 9), by}, // its ports can be read: of another flow
		"SCTP":                      {edit(tcp.build(t), 9, 132), by},
		"IPv6, SCTP":                {edit(tcp.with(six).build(t), 6, 132), apart}, // an extension header, for all we know
	} {
		t.Run(name, func(t *testing.T) {
			c := NewCoalescer(3)
			for _, p := range [][]byte{tcp.build(t), m.p, tcp.after(100).build(t)} {
				if !c.Add(bytes.Clone(p), Info{}) {
					t.Fatal("no room")
				}
			}
			runs := c.Runs()
			if got := bufsOf(runs); !slices.Equal(got, m.want) {
				t.Fatalf("runs of %v packets, want %v", got, m.want)
			}
			if r := runs[1]; r.Info != (Info{}) || !bytes.Equal(r.Bufs[0], m.p) {
				t.Errorf("came out as %+v", r)
			}
		})
	}
}

// TestCoalesceOddUDP: neither a length of its own nor a checksum of 0 is joined, even where the sum comes out.
func TestCoalesceOddUDP(t *testing.T) {
	both(t, func(t *testing.T, v6 func(*spec)) {
		a := oneUDP(100).with(v6)
		b := a.after(100)
		b.payload[98], b.payload[99] = 0, 0
		at := int(b.partialInfo().CsumStart)
		copy(b.payload[98:], b.build(t)[at+6:at+8]) // the right checksum is 0 now, which is written 0xffff

		long := b.build(t)
		long[at+5]++
		binary.BigEndian.PutUint16(long[at+6:], 0)
		binary.BigEndian.PutUint16(long[at+6:], ^slowSum(long[at:], slowPseudo(long)))
		for name, p := range map[string][]byte{"checksum 0": b.with(bad(absent)).build(t), "another length": long} {
			if slowSum(p[at:], slowPseudo(p)) != 0xffff {
				t.Fatalf("%s: the sum does not come out, so the test shows nothing", name)
			}
			c := NewCoalescer(3)
			for _, p := range [][]byte{a.build(t), p, b.after(100).build(t)} {
				c.Add(p, Info{})
			}
			if got := bufsOf(c.Runs()); !slices.Equal(got, []int{1, 1, 1}) {
				t.Errorf("%s: runs of %v packets", name, got)
			}
		}
	})
}

// TestGoesOnBits turns each bit of a header that goes on from a run's. The flow table keeps most such packets
// away from the run, but it goes by hashes, which may be equal.
func TestGoesOnBits(t *testing.T) {
	both(t, func(t *testing.T, v6 func(*spec)) {
		for _, a := range []spec{oneTCP(100).with(v6), oneUDP(100).with(v6)} {
			first, p := a.build(t), a.after(100).build(t)
			var k, of candidate
			if of.read(first, 0) != joinable || k.read(p, 0) != joinable {
				t.Fatal("not joinable")
			}
			var s series
			s.begin(first, &of)
			// What is looked at elsewhere (lengths, checksums) or is free to differ (identification with DF, PSH).
			ignored := map[int]byte{2: 0xff, 3: 0xff, 4: 0xff, 5: 0xff, 10: 0xff, 11: 0xff, 36: 0xff, 37: 0xff, 33: tcpPSH}
			switch {
			case a.v6 && a.udp:
				ignored = map[int]byte{4: 0xff, 5: 0xff, 44: 0xff, 45: 0xff, 46: 0xff, 47: 0xff}
			case a.v6:
				ignored = map[int]byte{4: 0xff, 5: 0xff, 56: 0xff, 57: 0xff, 53: tcpPSH}
			case a.udp:
				ignored = map[int]byte{2: 0xff, 3: 0xff, 4: 0xff, 5: 0xff, 10: 0xff, 11: 0xff, 24: 0xff, 25: 0xff, 26: 0xff, 27: 0xff}
			}
			for bit := range k.headers * 8 {
				at, mask := bit/8, byte(1)<<(bit%8)
				p[at] ^= mask
				if got, want := s.goesOn(first, p, &k), ignored[at]&mask != 0; got != want {
					t.Errorf("UDP %v: goes on with bit %#x of byte %d turned: %v", a.udp, mask, at, got)
				}
				p[at] ^= mask
			}
			if !s.goesOn(first, p, &k) {
				t.Error("does not go on as it is")
			}
		}
	})
}

// TestFlowTable: two flows of one tag share a place; a full table still finds an end.
func TestFlowTable(t *testing.T) {
	tab := newFlowTable(4)
	for i := range uint64(4) {
		l := tab.find(i<<32 | 7) // all of them crowd at one place
		if tab.knows(l) {
			t.Fatalf("flow %d is known already", i)
		}
		*l = place{run: tab.first + i, tag: uint32(i)}
	}
	for i := range uint64(4) {
		if l := tab.find(i<<32 | 7); !tab.knows(l) || l.run != tab.first+i {
			t.Errorf("flow %d: %+v", i, *l)
		}
	}
	if tab.knows(tab.find(9<<32 | 7)) {
		t.Error("a flow that never came is known")
	}
	tab.forget(tab.first + 4)
	if tab.knows(tab.find(1<<32 | 7)) {
		t.Error("a forgotten flow is known")
	}
}
