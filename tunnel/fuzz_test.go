package tunnel

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"muslin/encap"
	"muslin/tunnel/gso"
)

// FuzzInbound: no datagram panics, joined or not, and what is delivered are sound packets to our subnet, of its family.
// Each datagram is delivered or counted as dropped, and the receiver sees the same whether packets are joined
// for it or not.
func FuzzInbound(f *testing.F) {
	x := newBench(f, "vxlan")
	good := x.from(f, nodeB, udpPacket(f, "10.2.0.5", "10.1.0.5", "payload")).Buf
	f.Add(good, uint16(0), uint8(0), true)
	f.Add(good[22:], uint16(0), uint8(encap.CE), false)
	f.Add(good[:30], uint16(0), uint8(1), true)
	f.Add([]byte{}, uint16(0), uint8(0), false)
	f.Add(append(bytes.Clone(good), 0), uint16(0), uint8(2), true)
	f.Add(unfinished(good[22:]).p, uint16(0), uint8(0), false)
	f.Add(bytes.Repeat(good, 5), uint16(len(good)), uint8(0), true)
	f.Add(append(bytes.Repeat(good, 3), good[:40]...), uint16(len(good)), uint8(encap.CE), true)
	f.Add(bytes.Repeat(good[22:], 3), uint16(len(good)-23), uint8(0), false)
	f.Add(udpPacket(f, "10.2.0.5", "10.1.0.5", string(numbered(1600))), uint16(700), uint8(0), false)
	f.Add(unfinished(tcpPacket(f, "10.2.0.5", "10.1.0.5", 1, numbered(1600))).p, uint16(1410), uint8(0), false)
	var tcp []byte
	for i := range uint32(4) {
		tcp = append(tcp, tcpPacket(f, "10.2.0.5", "10.1.0.5", 1+100*i, numbered(100))...)
	}
	f.Add(tcp, uint16(140), uint8(encap.ECT0), false)

	x6 := newBench6(f, "vxlan")
	good = x6.from(f, nodeB6, udpPacket(f, "fd00:2::5", "fd00:1::5", "payload")).Buf
	f.Add(good, uint16(0), uint8(0), true)
	f.Add(good[22:], uint16(0), uint8(encap.CE), false)
	f.Add(good[:61], uint16(0), uint8(0), true)
	f.Add(append(bytes.Repeat(good, 3), good[:62]...), uint16(len(good)), uint8(encap.ECT0), true)
	f.Add(unfinished(tcpPacket(f, "fd00:2::5", "fd00:1::5", 1, numbered(1600))).p, uint16(1390), uint8(0), false)

	type twins struct{ joins, single *bench }
	both := map[bool][]twins{}
	for _, vxlan := range []bool{true, false} {
		for _, n := range []node{nodeA, nodeA6} {
			name := framingNames[1]
			if vxlan {
				name = framingNames[0]
			}
			w := twins{newBenchOf(f, n, name, 1), newBenchOf(f, n, name, 1)}
			nothingJoined.apply(w.single)
			both[vxlan] = append(both[vxlan], w)
		}
	}
	f.Fuzz(func(t *testing.T, payload []byte, size uint16, ecn uint8, vxlan bool) {
		if len(payload) > MaxPayload {
			return
		}
		for _, w := range both[vxlan] {
			checkDelivery(t, w.joins, w.single, mendAll(payload, int(size), w.single.cfg.Framing.Headroom()), size, ecn&3)
		}
	})
}

func checkDelivery(t *testing.T, joins, single *bench, payload []byte, size uint16, ecn uint8) {
	t.Helper()
	a, b, _, _ := single.nodes()
	from := netip.AddrPortFrom(b.public, 1)
	d := Datagram{Buf: payload, Size: int(size), Addr: from, ECN: ecn}
	again := Datagram{Buf: bytes.Clone(payload), Size: int(size), Addr: from, ECN: ecn}

	dropped, counted := total(single.Drops()), single.b.Counters.RxPackets.Load()
	packets := single.receive(t, d)
	runs := single.dev.takeRuns() // one for each datagram
	dropped, counted = total(single.Drops())-dropped, single.b.Counters.RxPackets.Load()-counted
	if counted != uint64(len(packets)) {
		t.Fatalf("%d packets counted and %d delivered", counted, len(packets))
	}
	datagrams := 1
	if size > 0 && int(size) < len(payload) && !whole(payload, single.cfg.Framing.Headroom()) {
		datagrams = (len(payload) + int(size) - 1) / int(size)
	}
	if len(runs)+int(dropped) != datagrams {
		t.Fatalf("%d datagrams delivered and %d dropped, of %d", len(runs), dropped, datagrams)
	}
	for _, r := range runs {
		if r.Info.Kind == gso.None && r.Segments != 1 {
			t.Fatalf("a run of %d packets with all joining off", r.Segments)
		}
	}
	for _, p := range packets {
		if h := single.parse(t, p); !a.subnet.Contains(h.Dst) || !b.subnet.Contains(h.Src) {
			t.Fatalf("delivered a packet from %v to %v", h.Src, h.Dst)
		}
	}
	checkFlows(t, joins.receive(t, again), packets)
	joins.dev.takeRuns()
}

// parse reads the header of a packet that must be sound, and of x's family.
func (x *bench) parse(t *testing.T, p []byte) (h encap.Header) {
	t.Helper()
	if x.six {
		if fault := encap.ParseIPv6(p, 0, &h); fault != encap.FaultNone {
			t.Fatalf("fault %d in %x", fault, p)
		}
	} else if fault := encap.ParseIPv4(p, 0, &h); fault != encap.FaultNone || !encap.VerifyHeader(p, &h) {
		t.Fatalf("fault %d in %x", fault, p)
	}
	return h
}

// mendAll puts right header checksums into the inner packets: a fuzzer does not find them, and more than that
// is to be tested.
func mendAll(payload []byte, size, head int) []byte {
	payload = bytes.Clone(payload)
	if size == 0 {
		size = len(payload)
	}
	for rest := payload; len(rest) > 0; rest = rest[min(size, len(rest)):] {
		if len(rest) < head+20 {
			break
		}
		p := rest[head:]
		if n := headerLen(p); n >= 20 && n <= len(p) && !isSix(p) {
			p[10], p[11] = 0, 0
			binary.BigEndian.PutUint16(p[10:], ^slowSum(p[:n], 0))
		}
	}
	return payload
}

func total(drops map[string]uint64) (n uint64) {
	for _, count := range drops {
		n += count
	}
	return n
}

// FuzzSharedPort has what came joined split as a slow twin does: whatever it is, each datagram goes to its network, none
// is lost or doubled, and those of one network keep their order.
func FuzzSharedPort(f *testing.F) {
	header := func(vni byte) []byte { return []byte{8, 0, 0, 0, 0, 0, vni, 0} }
	f.Add(bytes.Join([][]byte{header(1), header(2), header(1), header(9), header(2), header(2)}, nil), uint16(8), false)
	f.Add(append(bytes.Repeat(append(header(2), 1, 2, 3), 70), 8, 0, 0), uint16(11), false)
	f.Add(header(1), uint16(0), true)
	f.Add(header(2), uint16(3), false) // no datagram of it is long enough
	f.Add([]byte{}, uint16(1), false)
	lie := framed(f, 1, nodeB, sized(f, "10.2.0.5", "10.1.0.5", 50)).Buf // states the length of itself and the next one
	binary.BigEndian.PutUint16(lie[24:], uint16(2*len(lie)-encap.VXLANHeadroom))
	other := framed(f, 2, nodeB, sized(f, "10.2.0.5", "10.1.0.5", 50)).Buf
	f.Add(slices.Concat(lie, lie, other), uint16(len(lie)), false)
	p := newSharedPort(f, nodeA, 1, 1, 2)
	var got [2][][]byte // datagrams that the members were given
	for i, x := range p.ends {
		must(f, x.member.Feed([]func([]Datagram){func(ds []Datagram) {
			for _, d := range ds {
				got[i] = append(got[i], apart(d)...)
			}
		}}))
	}
	f.Fuzz(func(t *testing.T, payload []byte, size uint16, truncated bool) {
		if len(payload) > maxPacket {
			return
		}
		got = [2][][]byte{}
		d := Datagram{Buf: payload, Size: int(size), Truncated: truncated, Addr: netip.AddrPortFrom(nodeB.public, 1)}
		var want [2][][]byte
		for _, one := range apart(d) {
			to := 0 // has what is nobody's, too
			if len(one) >= 8 && bytes.Equal(one[4:7], []byte{0, 0, 2}) {
				to = 1
			}
			want[to] = append(want[to], one)
		}
		p.readers[0].carry([]Datagram{d})
		for i := range want {
			if !slices.EqualFunc(got[i], want[i], bytes.Equal) {
				t.Errorf("network %d got\n%x, want\n%x", i+1, got[i], want[i])
			}
		}
	})
}

// apart is what d holds, datagram by datagram.
func apart(d Datagram) (all [][]byte) {
	rest, size := d.Buf, d.Size
	if size == 0 || size >= len(rest) || d.Truncated || whole(rest, encap.VXLANHeadroom) {
		return [][]byte{rest}
	}
	for len(rest) > 0 {
		n := min(size, len(rest))
		all, rest = append(all, rest[:n]), rest[n:]
	}
	return all
}
