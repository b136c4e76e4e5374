package tunnel

import (
	"bytes"
	"encoding/binary"
	"maps"
	"net/netip"
	"testing"
	"time"

	"muslin/encap"
)

func TestSourceCheck(t *testing.T) {
	const ok = numReasons
	for _, c := range []struct {
		name                string
		outer               netip.Addr
		inner               string
		strict, peers, open Reason // what becomes of the packet; ok: it is delivered
	}{
		{"peer and its own packet", nodeB.public, "10.2.0.5", ok, ok, ok},
		{"peer and another peer's packet", nodeB.public, "10.3.0.5", DropInnerSource, ok, ok},
		{"peer and nobody's packet", nodeB.public, "10.9.0.5", DropInnerSource, DropInnerSource, ok},
		{"peer and our own packet", nodeB.public, "10.1.0.6", DropInnerSource, DropInnerSource, DropInnerSource},
		{"stranger and our own packet", stranger, "10.1.0.6", DropUnknownSource, DropUnknownSource, DropInnerSource},
		{"stranger and a peer's packet", stranger, "10.2.0.5", DropUnknownSource, DropUnknownSource, ok},
		{"peer and a packet from outside the network", nodeB.public, "192.0.2.77", DropInnerSource, DropInnerSource, DropInnerSource},
		{"stranger and nobody's packet", stranger, "10.9.0.5", DropUnknownSource, DropUnknownSource, ok},
	} {
		for check, want := range map[SourceCheck]Reason{SourceCheckStrict: c.strict, SourceCheckPeers: c.peers, SourceCheckOff: c.open} {
			for _, framing := range []string{"vxlan", "udp"} {
				t.Run(c.name+"/"+check.String()+"/"+framing, func(t *testing.T) {
					x := newBench(t, framing, func(cfg *Config) {
						cfg.SourceCheck, cfg.Network = check, netip.MustParsePrefix("10.0.0.0/8")
					})
					p := udpPacket(t, c.inner, "10.1.0.5", "payload")
					d := x.from(t, node{public: c.outer, mac: nodeB.mac}, p)
					written := x.receive(t, d)
					if want == ok {
						if len(written) != 1 || !bytes.Equal(written[0], p) || len(x.Drops()) != 0 {
							t.Errorf("%d packets delivered, drops %v, want it delivered", len(written), x.Drops())
						}
						return
					}
					if len(written) != 0 || !maps.Equal(x.Drops(), map[string]uint64{want.String(): 1}) {
						t.Errorf("%d packets delivered, drops %v, want %v", len(written), x.Drops(), want)
					}
				})
			}
		}
	}
	t.Run("destination is checked all the same", func(t *testing.T) {
		x := newBench(t, "udp", func(cfg *Config) { cfg.SourceCheck = SourceCheckOff })
		if w := x.receive(t, x.from(t, nodeB, udpPacket(t, "10.2.0.5", "10.3.0.5", "x"))); len(w) != 0 {
			t.Error("with the source check off a packet to another subnet was delivered")
		}
	})
}

func TestParseSourceCheck(t *testing.T) {
	for _, want := range []SourceCheck{SourceCheckStrict, SourceCheckPeers, SourceCheckOff} {
		if got, err := ParseSourceCheck(want.String()); err != nil || got != want {
			t.Errorf("ParseSourceCheck(%q) = %v, %v", want, got, err)
		}
	}
	for _, bad := range []string{"", "Strict", "none"} {
		if got, err := ParseSourceCheck(bad); err == nil {
			t.Errorf("ParseSourceCheck(%q) = %v, want an error", bad, got)
		}
	}
}

// Outer congestion marks reach the receiver's packet, whose header stays sound.
func TestECNInbound(t *testing.T) {
	for _, c := range []struct{ inner, outer, want uint8 }{
		{encap.NotECT, encap.NotECT, encap.NotECT},
		{encap.NotECT, encap.ECT0, encap.NotECT},
		{encap.ECT0, encap.NotECT, encap.ECT0},
		{encap.ECT0, encap.ECT1, encap.ECT1},
		{encap.ECT0, encap.CE, encap.CE},
		{encap.ECT1, encap.CE, encap.CE},
		{encap.CE, encap.NotECT, encap.CE},
	} {
		x := newBench(t, "vxlan")
		d := x.from(t, nodeB, udpPacket(t, "10.2.0.5", "10.1.0.5", "x", setECN(c.inner)))
		d.ECN = c.outer
		written := x.receive(t, d)
		if len(written) != 1 {
			t.Fatalf("inner %d, outer %d: %v", c.inner, c.outer, x.Drops())
		}
		if ip, _ := checkSound(t, written[0]); ip.TOS != 0x48|c.want {
			t.Errorf("inner %d, outer %d: TOS %#x, want %#x", c.inner, c.outer, ip.TOS, 0x48|c.want)
		}
	}
}

func TestPartialChecksumIsCompleted(t *testing.T) {
	for _, framing := range []string{"vxlan", "udp"} {
		x := newBench(t, framing)
		want := udpPacket(t, "10.2.0.5", "10.1.0.5", "the NIC was to do the sum")
		partial := bytes.Clone(want)
		leavePartial(partial)
		if bytes.Equal(partial, want) {
			t.Fatal("the test's packet is no test")
		}
		written := x.receive(t, x.from(t, nodeB, partial), x.from(t, nodeB, want))
		if len(written) != 2 || !bytes.Equal(written[0], want) || !bytes.Equal(written[1], want) {
			t.Errorf("%s: delivered %x, want %x twice", framing, written, want)
		}
		if n := x.ChecksumsCompleted(); n != 1 {
			t.Errorf("%s: ChecksumsCompleted = %d, want 1", framing, n)
		}
	}
}

// Ethernet pads a short frame; the padding is not the packet's.
func TestPadding(t *testing.T) {
	pad := func(x *bench, size, to int) Datagram {
		d := x.from(t, nodeB, sized(t, "10.2.0.5", "10.1.0.5", size))
		d.Buf = append(d.Buf, make([]byte, to-size)...)
		return d
	}
	for _, c := range []struct {
		framing  string
		size, to int
		ok       bool
	}{
		{"vxlan", 28, 46, true}, {"vxlan", 45, 46, true}, {"vxlan", 28, 29, true}, {"vxlan", 46, 46, true},
		{"vxlan", 28, 47, false}, {"vxlan", 46, 47, false}, {"vxlan", 100, 101, false},
		{"udp", 28, 46, false}, {"udp", 28, 29, false}, {"udp", 28, 28, true},
	} {
		x := newBench(t, c.framing)
		written := x.receive(t, pad(x, c.size, c.to))
		if !c.ok {
			if len(written) != 0 || !maps.Equal(x.Drops(), map[string]uint64{"inner-length": 1}) {
				t.Errorf("%s, %d padded to %d: delivered %x, drops %v", c.framing, c.size, c.to, written, x.Drops())
			}
			continue
		}
		if len(written) != 1 || len(written[0]) != c.size || x.b.Counters.RxBytes.Load() != uint64(c.size) {
			t.Errorf("%s, %d padded to %d: delivered %x, counted %d bytes, drops %v",
				c.framing, c.size, c.to, written, x.b.Counters.RxBytes.Load(), x.Drops())
		}
	}
}

func TestInboundCounters(t *testing.T) {
	x := newBench(t, "vxlan")
	before := time.Now().UnixNano()
	x.receive(t,
		x.from(t, nodeB, sized(t, "10.2.0.5", "10.1.0.5", 100)),
		x.from(t, nodeB, sized(t, "10.2.0.6", "10.1.0.5", 50)),
		x.from(t, nodeB, sized(t, "10.3.0.6", "10.1.0.5", 60))) // dropped
	b, c := x.b.Counters, x.c.Counters
	if b.RxPackets.Load() != 2 || b.RxBytes.Load() != 150 || b.TxPackets.Load() != 0 {
		t.Errorf("B: %d packets of %d bytes, want 2 of 150", b.RxPackets.Load(), b.RxBytes.Load())
	}
	if last := b.LastRx.Load(); last < before || last > time.Now().UnixNano() {
		t.Errorf("B: last datagram at %d", last)
	}
	if c.RxPackets.Load() != 0 || c.RxBytes.Load() != 0 || c.LastRx.Load() != 0 {
		t.Error("C sent nothing, but is counted")
	}
}

// FuzzInbound: no datagram panics, and what is delivered is a sound IPv4 packet to our subnet.
func FuzzInbound(f *testing.F) {
	x := newBench(f, "vxlan")
	good := x.from(f, nodeB, udpPacket(f, "10.2.0.5", "10.1.0.5", "payload")).Buf
	f.Add(good, uint8(0), true)
	f.Add(good[22:], uint8(encap.CE), false)
	f.Add(good[:30], uint8(1), true)
	f.Add([]byte{}, uint8(0), false)
	f.Add(append(bytes.Clone(good), 0), uint8(2), true)
	partial := bytes.Clone(good[22:])
	leavePartial(partial)
	f.Add(partial, uint8(0), false)
	benches := map[bool]*bench{true: newBench(f, "vxlan"), false: newBench(f, "udp")}
	f.Fuzz(func(t *testing.T, payload []byte, ecn uint8, vxlan bool) {
		x := benches[vxlan]
		if len(payload) >= x.cfg.Framing.Headroom()+20 {
			// A fuzzer does not find checksums: mend the header's, so that more than that is tested.
			p := payload[x.cfg.Framing.Headroom():]
			if n := int(p[0]&15) * 4; n >= 20 && n <= len(p) {
				payload = bytes.Clone(payload)
				p = payload[x.cfg.Framing.Headroom():]
				p[10], p[11] = 0, 0
				binary.BigEndian.PutUint16(p[10:], ^encap.Sum(p[:n], 0))
			}
		}
		dropped := func() (n uint64) {
			for _, count := range x.Drops() {
				n += count
			}
			return n
		}
		before := dropped()
		written := x.receive(t, Datagram{Buf: payload, Addr: netip.AddrPortFrom(nodeB.public, 1), ECN: ecn & 3})
		if uint64(len(written))+dropped()-before != 1 {
			t.Fatalf("%d packets delivered and %d dropped, of one", len(written), dropped()-before)
		}
		for _, p := range written {
			var h encap.IPv4
			if fault := encap.ParseIPv4(p, 0, &h); fault != encap.FaultNone || !encap.VerifyHeader(p, &h) {
				t.Fatalf("delivered %x with fault %d", p, fault)
			}
			if !nodeA.subnet.Contains(h.Dst) || !nodeB.subnet.Contains(h.Src) {
				t.Fatalf("delivered a packet from %v to %v", h.Src, h.Dst)
			}
		}
	})
}
