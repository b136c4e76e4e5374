package tunnel

import (
	"bytes"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
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
			for _, framing := range framingNames {
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

// A checksum that its sender left to a NIC is left to the kernel here too.
func TestUnfinishedChecksum(t *testing.T) {
	for _, framing := range framingNames {
		for _, want := range [][]byte{
			udpPacket(t, "10.2.0.5", "10.1.0.5", "the NIC was to do the sum"),
			tcpPacket(t, "10.2.0.5", "10.1.0.5", 1, []byte("the NIC was to do the sum")),
		} {
			x := newBench(t, framing)
			left := unfinished(want).p
			if bytes.Equal(left, want) {
				t.Fatal("the test's packet is no test")
			}
			checkFlows(t, x.receive(t, x.from(t, nodeB, left), x.from(t, nodeB, want), x.from(t, nodeB, left)), [][]byte{want, want, want})
			var got []bool
			for _, r := range x.dev.takeRuns() {
				got = append(got, r.Info.NeedsCsum)
			}
			if !slices.Equal(got, []bool{true, false, true}) {
				t.Errorf("%s: handed on with NeedsCsum %v", framing, got)
			}
			if n := x.ChecksumsUnfinished(); n != 2 {
				t.Errorf("%s: ChecksumsUnfinished = %d, want 2", framing, n)
			}
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
		x.from(t, nodeC, sized(t, "10.2.0.5", "10.1.0.5", 70)), // dropped
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

// No train of joined datagrams is taken for one datagram, whatever its first packet's header says: neither a checksum nor
// an identification is a length behind a VLAN tag.
func TestWholeIsNoTrain(t *testing.T) {
	const head, packet, trains = encap.VXLANHeadroom, 100, 10
	train := make([]byte, trains*(head+packet))
	for i := range trains {
		ip := train[i*(head+packet)+head:]
		binary.BigEndian.PutUint16(ip, 0x4500)
		binary.BigEndian.PutUint16(train[i*(head+packet)+head-2:], 0x0800)
		binary.BigEndian.PutUint16(ip[2:], packet)
	}
	ip := train[head:]
	for id := range 1 << 16 {
		for _, ttl := range []byte{0x40, 0x60} {
			binary.BigEndian.PutUint16(ip[4:], uint16(id))
			ip[8], ip[9] = ttl, 17
			for _, word := range []int{6, 8, 10, 12} { // what would be the length behind one tag or two
				old := binary.BigEndian.Uint16(ip[word:])
				for _, length := range []int{len(train) - head - 4, len(train) - head - 8} {
					binary.BigEndian.PutUint16(ip[word:], uint16(length))
					if word == 8 {
						ip[8] = ttl
					}
					if whole(train, head) {
						t.Fatalf("taken for one datagram: %x", ip[:20])
					}
				}
				binary.BigEndian.PutUint16(ip[word:], old)
			}
		}
	}
	for tags := range 3 {
		one := make([]byte, head+4*tags+packet)
		for at := range tags {
			binary.BigEndian.PutUint16(one[head-2+4*at:], 0x8100)
		}
		binary.BigEndian.PutUint16(one[head-2+4*tags:], 0x0800)
		one[head+4*tags] = 0x45
		binary.BigEndian.PutUint16(one[head+4*tags+2:], packet)
		if !whole(one, head) {
			t.Errorf("a datagram behind %d VLAN tags is not one", tags)
		}
	}
}
