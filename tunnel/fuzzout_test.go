package tunnel

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/gopacket"

	"muslin/encap"
	"muslin/tunnel/gso"
)

// FuzzOutbound: nothing that a TUN device hands over panics, virtio header and all. What is sent are sound packets
// no longer than the MTU, each to the peer whose subnet holds its destination, the same in runs as singly; or the
// packet is counted as dropped, and answered at most once.
func FuzzOutbound(f *testing.F) {
	add := func(i inner) {
		f.Add(i.p, uint8(i.info.Kind), i.info.Size, i.info.CsumStart, i.info.CsumOffset, i.info.NeedsCsum)
	}
	for _, dst := range []string{"10.2.0.5", "10.3.0.5", "10.1.0.5", "10.9.0.5"} {
		add(inner{p: udpPacket(f, "10.1.0.5", dst, "payload")})
		add(unfinished(tcpPacket(f, "10.1.0.5", dst, 7, numbered(500))))
		add(superpacket(tcpPacket(f, "10.1.0.5", dst, 7, numbered(5000), setDF), 1000))
		add(superpacket(udpPacket(f, "10.1.0.5", dst, string(numbered(3000))), 700))
	}
	for _, dst := range []string{"fd00:2::5", "fd00:1::5", "fd00:9::5", "ff02::2"} {
		add(inner{p: udpPacket(f, "fd00:1::5", dst, "payload")})
		add(unfinished(tcpPacket(f, "fd00:1::5", dst, 7, numbered(500))))
		add(superpacket(tcpPacket(f, "fd00:1::5", dst, 7, numbered(5000)), 1000))
		add(superpacket(udpPacket(f, "fd00:1::5", dst, string(numbered(3000))), 700))
	}
	add(inner{p: onIP(f, ipLayer("fd00:1::5", "fd00:9::5", 0), gopacket.Payload{58, 0, 1, 4, 0, 0, 0, 0, 1, 0, 0, 0})})
	add(inner{p: ipv6Packet(f)})
	add(inner{p: sized(f, "10.1.0.5", "10.2.0.5", testMTU+1)})
	add(inner{p: []byte{0x45}})

	type twins struct{ runs, single *bench }
	var all []twins
	for _, name := range framingNames {
		for _, n := range []node{nodeA, nodeA6} {
			w := twins{newBenchOf(f, n, name, 1), newBenchOf(f, n, name, 1)}
			w.single.limitSegments(1)
			all = append(all, w)
		}
	}
	f.Fuzz(func(t *testing.T, p []byte, kind uint8, size, start, offset uint16, needsCsum bool) {
		if len(p) == 0 || len(p) > maxPacket {
			return
		}
		p = mendAll(p, 0, 0)
		in := inner{p, gso.Info{Kind: gso.Kind(kind), Size: size, CsumStart: start, CsumOffset: offset, NeedsCsum: needsCsum}}
		for _, w := range all {
			dropped := total(w.runs.Drops())
			sent := w.runs.send(t, inner{bytes.Clone(p), in.info})
			dropped = total(w.runs.Drops()) - dropped
			if (len(sent) > 0) == (dropped > 0) {
				t.Fatalf("%d sent and %d dropped", len(sent), dropped)
			}
			replies := w.runs.dev.takeReplies()
			if len(replies) > 1 || len(replies) == 1 && len(sent) > 0 {
				t.Fatalf("%d answers to a packet of which %d were sent", len(replies), len(sent))
			}
			for _, d := range sent {
				checkSent(t, w.runs, d, p)
			}
			for _, r := range replies {
				if h := w.runs.parse(t, r); h.Src != w.runs.node.subnet.Masked().Addr() {
					t.Fatalf("answered %x", r)
				}
			}
			single := w.single.send(t, inner{bytes.Clone(p), in.info})
			w.single.dev.takeReplies()
			if !slices.EqualFunc(sent, single, func(a, b outer) bool {
				return a.addr == b.addr && a.port == b.port && a.ecn == b.ecn && bytes.Equal(a.buf, b.buf)
			}) {
				t.Fatalf("%d datagrams in runs, and others singly: %d", len(sent), len(single))
			}
		}
	})
}

// checkSent holds a datagram that p was sent in against what a peer takes.
func checkSent(t *testing.T, x *bench, d outer, p []byte) {
	t.Helper()
	if _, fault := x.cfg.Framing.Decode(d.buf); fault != encap.FaultNone && fault != encap.FaultMAC && fault != encap.FaultOwnMAC { // it is framed for the peer
		t.Fatalf("framing fault %d", fault)
	}
	got := d.buf[x.cfg.Framing.Headroom():]
	h := x.parse(t, got)
	addresses := func(p []byte) []byte {
		if x.six {
			return p[8:40]
		}
		return p[12:20]
	}
	if len(got) > testMTU || !bytes.Equal(addresses(got), addresses(p)) {
		t.Fatalf("sent %d bytes from %v to %v", len(got), h.Src, h.Dst)
	}
	if peer := x.Table().Lookup(h.Dst); peer == nil || peer.PublicIP != d.addr.Addr() || d.addr.Port() != port {
		t.Fatalf("sent to %v what is for %v", d.addr, h.Dst)
	}
}
