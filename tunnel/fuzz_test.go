package tunnel

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"muslin/encap"
	"muslin/tunnel/gso"
)

// FuzzInbound: no datagram panics, joined or not, and what is delivered are sound IPv4 packets to our subnet.
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

	type twins struct{ joins, single *bench }
	make := func(name string) twins {
		w := twins{newBench(f, name), newBench(f, name)}
		nothingJoined.apply(w.single)
		return w
	}
	both := map[bool]twins{true: make("vxlan"), false: make("udp")}
	f.Fuzz(func(t *testing.T, payload []byte, size uint16, ecn uint8, vxlan bool) {
		if len(payload) > MaxPayload {
			return
		}
		w := both[vxlan]
		payload = mendAll(payload, int(size), w.single.cfg.Framing.Headroom())
		d := Datagram{Buf: payload, Size: int(size), Addr: netip.AddrPortFrom(nodeB.public, 1), ECN: ecn & 3}

		dropped, counted := total(w.single.Drops()), w.single.b.Counters.RxPackets.Load()
		packets := w.single.receive(t, d)
		runs := w.single.dev.takeRuns() // one for each datagram
		dropped, counted = total(w.single.Drops())-dropped, w.single.b.Counters.RxPackets.Load()-counted
		if counted != uint64(len(packets)) {
			t.Fatalf("%d packets counted and %d delivered", counted, len(packets))
		}
		datagrams := 1
		if size > 0 && int(size) < len(payload) && !w.single.in[0].whole(payload) {
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
			var h encap.Header
			if fault := encap.ParseIPv4(p, 0, &h); fault != encap.FaultNone || !encap.VerifyHeader(p, &h) {
				t.Fatalf("delivered %x with fault %d", p, fault)
			}
			if !nodeA.subnet.Contains(h.Dst) || !nodeB.subnet.Contains(h.Src) {
				t.Fatalf("delivered a packet from %v to %v", h.Src, h.Dst)
			}
		}
		checkFlows(t, w.joins.receive(t, d), packets)
		w.joins.dev.takeRuns()
	})
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
		if n := headerLen(p); n >= 20 && n <= len(p) {
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
