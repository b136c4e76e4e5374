package tunnel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"muslin/encap"
	"muslin/tunnel/gso"
)

// A superpacket of the TUN device leaves as the very datagrams that its sender would have sent, had it
// segmented itself. gopacket reads them.
func TestSuperpacketOutbound(t *testing.T) {
	const seq, size, last = 0xffff_ff00, 1000, 333 // the sequence number wraps
	payload := numbered(4*size + last)
	options := []layers.TCPOption{
		{OptionType: layers.TCPOptionKindNop}, {OptionType: layers.TCPOptionKindNop},
		{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: []byte("12345678")},
	}
	tcp := tcpPacket(t, "10.1.0.5", "10.2.0.5", seq, payload, func(ip *layers.IPv4, l *layers.TCP) {
		ip.Id, ip.TOS, l.Options = 0xfffe, 0x4a, options
		l.PSH, l.FIN, l.CWR, l.ECE = true, true, true, true
	})
	udp := udpPacket(t, "10.1.0.5", "10.2.0.5", string(payload), func(ip *layers.IPv4) { ip.Id, ip.Flags = 0xfffe, layers.IPv4DontFragment })
	for _, name := range framingNames {
		for _, whole := range [][]byte{tcp, udp} {
			x := newBench(t, name)
			sent := x.unframedAll(x.send(t, superpacket(whole, size)))
			if len(sent) != 5 {
				t.Fatalf("%s: %d datagrams, want 5, drops %v", name, len(sent), x.Drops())
			}
			first, _ := checkSound(t, whole)
			for i, p := range sent {
				ip, decoded := checkSound(t, p)
				if ip.Id != first.Id+uint16(i) || ip.TOS != first.TOS || ip.Flags != first.Flags || ip.TTL != first.TTL {
					t.Errorf("segment %d: IP header %+v", i, ip)
				}
				if tcp, ok := decoded.TransportLayer().(*layers.TCP); ok {
					wrapped := uint32(seq)
					if tcp.Seq != wrapped+uint32(i*size) || tcp.PSH != (i == 4) || tcp.FIN != (i == 4) || tcp.CWR != (i == 0) || !tcp.ECE || !tcp.ACK || len(tcp.Options) != 3 {
						t.Errorf("segment %d: TCP header %+v", i, tcp)
					}
				} else if udp := decoded.TransportLayer().(*layers.UDP); udp.SrcPort != 4000 || udp.DstPort != 5000 {
					t.Errorf("segment %d: UDP header %+v", i, udp)
				}
				if want := payload[i*size : min((i+1)*size, len(payload))]; !bytes.Equal(decoded.ApplicationLayer().Payload(), want) {
					t.Errorf("segment %d: payload of %d bytes, want %d", i, len(decoded.ApplicationLayer().Payload()), len(want))
				}
			}
		}
	}
}

// A superpacket that cannot go on is answered once, and every packet that it stands for is counted.
func TestSuperpacketIsAnsweredOnce(t *testing.T) {
	for _, c := range []struct {
		name, dst string
		size      int
		reason    Reason
		code      icmpCode
		mtu       int
	}{
		{"no route", "10.9.0.1", 1000, DropNoRoute, icmpNetUnreachable, 0},
		{"no such pod", "10.1.0.99", 1000, DropOwnSubnet, icmpHostUnreachable, 0},
		{"one byte too long", "10.2.0.5", testMTU - 40 + 1, DropTooBig, icmpFragNeeded, testMTU},
	} {
		x := newBench(t, "vxlan")
		super := superpacket(tcpPacket(t, "10.1.0.5", c.dst, 1, numbered(3*c.size+1)), c.size)
		if sent := x.send(t, super); len(sent) != 0 {
			t.Errorf("%s: %d datagrams sent", c.name, len(sent))
		}
		if got := x.Drops(); !maps.Equal(got, map[string]uint64{c.reason.String(): 4}) {
			t.Errorf("%s: drops %v", c.name, got)
		}
		replies := x.dev.takeReplies()
		if len(replies) != 1 {
			t.Fatalf("%s: %d answers, want one", c.name, len(replies))
		}
		checkICMP(t, replies[0], c.code, c.mtu, super.p)
	}
	x := newBench(t, "vxlan")
	fits := superpacket(tcpPacket(t, "10.1.0.5", "10.2.0.5", 1, numbered(4*(testMTU-40))), testMTU-40)
	if sent := x.send(t, fits); len(sent) != 4 {
		t.Errorf("%d datagrams of segments as long as the MTU, drops %v", len(sent), x.Drops())
	}
}

// A batch that is full of packets already, with a kernel peer's superpackets at its front, in its middle and
// at its end: all goes out in order, and nothing is overwritten before it is written.
func TestSuperpacketsInOrder(t *testing.T) {
	for _, name := range framingNames {
		x := newBench(t, name)
		var ds []Datagram
		var want []inner
		seq := uint32(1)
		for i := range BatchSize {
			length := 10 + i
			if i%31 == 0 || i == BatchSize-1 {
				length = 60000
			}
			p := tcpPacket(t, "10.2.0.1", "10.1.0.5", seq, numbered(length))
			seq += uint32(length)
			ds = append(ds, x.from(t, nodeB, p))
			if len(p) > testMTU {
				want = append(want, superpacket(p, testMTU-40))
			} else {
				want = append(want, inner{p: p})
			}
		}
		got := x.receive(t, ds...)
		packets := cutAll(want)
		if got, want := streamOf(t, got), streamOf(t, packets); !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes came out, want %d, in order", name, len(got), len(want))
		}
		if n := x.b.Counters.RxPackets.Load(); n != uint64(len(packets)) {
			t.Errorf("%s: %d packets counted, %d came", name, n, len(packets))
		}
		if d := x.Drops(); len(d) != 0 {
			t.Errorf("%s: drops %v", name, d)
		}
	}
}

// streamOf is the bytes of sound TCP packets.
func streamOf(t testing.TB, packets [][]byte) (all []byte) {
	t.Helper()
	for _, p := range packets {
		if len(p) > testMTU {
			t.Fatalf("a packet of %d bytes", len(p))
		}
		_, decoded := checkSound(t, p)
		all = append(all, decoded.Layer(layers.LayerTypeTCP).(*layers.TCP).Payload...)
	}
	return all
}

// A kernel VXLAN device over a virtual link sends superpackets. They are handed on as they are, with what the
// kernel needs to know of them, whether the sender's checksum is finished or not. The socket tells the
// segment size of both kinds, or of none where it has no UDP_GRO.
func TestSuperpacketFromKernelPeer(t *testing.T) {
	tcp := tcpPacket(t, "10.2.0.5", "10.1.0.5", 1, numbered(5000), func(_ *layers.IPv4, l *layers.TCP) { l.PSH = true })
	udp := func(length int) []byte { return udpPacket(t, "10.2.0.5", "10.1.0.5", string(numbered(length))) }
	const most = testMTU - 28
	for _, c := range []struct {
		name string
		p    []byte
		size int // as the socket tells
		want int // the segment size that the device is told; 0: no superpacket
	}{
		{"TCP", tcp, 1410, testMTU - 40},
		{"TCP, no UDP_GRO", tcp, 0, testMTU - 40},
		{"TCP, shorter segments", tcp, 500, testMTU - 40},
		{"UDP", udp(5000), 1000, 1000},
		{"UDP, last one short", udp(3001), 1000, 1000},
		{"UDP, as long as the MTU", udp(2 * most), most, most},
		{"UDP, all of it shorter than the MTU", udp(1200), 400, 400},
		{"UDP, as short as can be", udp(2), 1, 1},
		{"UDP, jumbo and no UDP_GRO", udp(jumbo - 200), 0, 0},
	} {
		for _, name := range framingNames {
			for _, left := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/unfinished %v", c.name, name, left), func(t *testing.T) {
					x := newBench(t, name)
					p := bytes.Clone(c.p)
					if left {
						p = superpacket(p, 1).p
					}
					d := x.from(t, nodeB, p)
					d.Size = c.size
					want := inner{p: c.p}
					if c.want > 0 {
						want = superpacket(c.p, c.want)
					}
					before := [][]byte{udp(20), udp(20)} // the flow's order is kept with plain packets
					got := x.receive(t, x.from(t, nodeB, before[0]), d, x.from(t, nodeB, before[1]))
					packets := cut(want.p, want.info)
					all := append([][]byte{before[0]}, packets...)
					checkFlows(t, got, append(all, before[1]))
					if n, bytes := x.b.Counters.RxPackets.Load(), x.b.Counters.RxBytes.Load(); n != uint64(2+len(packets)) || bytes != uint64(2*48+len(c.p)) {
						t.Errorf("%d packets of %d bytes counted, want %d of %d", n, bytes, 2+len(packets), 2*48+len(c.p))
					}
					super := 0
					for _, r := range x.dev.takeRuns() {
						if r.Info.Kind != gso.None && r.Len == len(c.p) {
							super++
						}
					}
					if c.want > 0 && super != 1 {
						t.Errorf("handed on as %d superpackets, want one", super)
					}
				})
			}
		}
	}
}

// With the MTU goes the segment size of TCP superpackets.
func TestSuperpacketFollowsMTU(t *testing.T) {
	x := newBench(t, "vxlan")
	p := tcpPacket(t, "10.2.0.5", "10.1.0.5", 1, numbered(5000))
	for _, mtu := range []int{1450, 1000, 1400} {
		x.SetMTU(encap.InnerMTU(mtu))
		checkFlows(t, x.receive(t, x.from(t, nodeB, p)), cutAll([]inner{superpacket(p, mtu-40)}))
	}
	if d := x.Drops(); len(d) != 0 {
		t.Errorf("drops %v", d)
	}
}

// What is too long and no superpacket is dropped: a damaged one, a fragment, UDP of which nobody told how it
// was cut, UDP of another size than fits.
func TestNoSuperpacket(t *testing.T) {
	tcp := tcpPacket(t, "10.2.0.5", "10.1.0.5", 1, numbered(jumbo))
	udp := udpPacket(t, "10.2.0.5", "10.1.0.5", string(numbered(jumbo)))
	fragment := bytes.Clone(tcp)
	fragment[6] = 0x20
	mend(fragment, false)
	damaged := bytes.Clone(tcp)
	damaged[jumbo-100] ^= 1
	other := serialize(t, ipLayer("10.2.0.5", "10.1.0.5", layers.IPProtocolSCTP), gopacket.Payload(numbered(jumbo)))
	bare := bytes.Clone(udp)
	bare[26], bare[27] = 0, 0 // no checksum
	for name, c := range map[string]struct {
		p    []byte
		size int
	}{
		"damaged":                {damaged, 1410},
		"fragment":               {fragment, 1410},
		"neither TCP nor UDP":    {other, 1410},
		"UDP of unknown size":    {udp, 0},
		"UDP without a checksum": {bare, 1000},
		"UDP above the MTU":      {udp, testMTU - 28 + 1},
	} {
		x := newBench(t, "vxlan")
		d := x.from(t, nodeB, c.p)
		d.Size = c.size
		good := udpPacket(t, "10.2.0.5", "10.1.0.5", "good")
		got := x.receive(t, x.from(t, nodeB, good), d, x.from(t, nodeB, good))
		checkFlows(t, got, [][]byte{good, good})
		if got := x.Drops(); !maps.Equal(got, map[string]uint64{"oversized": 1}) {
			t.Errorf("%s: drops %v", name, got)
		}
	}
}

// A superpacket that is not for us is one datagram, dropped for one reason: the segments that its Size speaks
// of are not datagrams.
func TestSuperpacketOfAnotherNetwork(t *testing.T) {
	for reason, edit := range map[Reason]func(d []byte){
		DropVNI: func(d []byte) { d[6] = 43 },
		DropMAC: func(d []byte) { d[13] = 0x99 },
	} {
		x := newBench(t, "vxlan")
		d := x.from(t, nodeB, superpacket(tcpPacket(t, "10.2.0.5", "10.1.0.5", 1, numbered(5000)), 1410).p)
		d.Size = 1410
		edit(d.Buf)
		if got := x.receive(t, d); len(got) != 0 {
			t.Errorf("%v: %d packets delivered", reason, len(got))
		}
		if got := x.Drops(); !maps.Equal(got, map[string]uint64{reason.String(): 1}) {
			t.Errorf("%v: drops %v", reason, got)
		}
	}
}

// A superpacket that we do not carry is one datagram, too: a piece of its payload that looks like a datagram of
// that peer goes nowhere.
func TestSuperpacketWithDatagramsInside(t *testing.T) {
	ipv6 := func(d []byte, at int) {
		clear(d[at:][:48])
		d[at] = 0x60
		binary.BigEndian.PutUint16(d[at+4:], uint16(len(d)-at-40))
		d[at+6] = 17
	}
	for reason, edit := range map[Reason]func(d []byte){
		DropInnerIPv6: func(d []byte) { d[20], d[21] = 0x86, 0xdd; ipv6(d, 22) },
		DropVLAN:      func(d []byte) { d[20], d[21] = 0x81, 0x00; ipv6(d, 26) },
	} {
		x := newBench(t, "vxlan")
		inside := x.from(t, nodeB, tcpPacket(t, "10.2.0.5", "10.1.0.5", 1, numbered(500))).Buf
		d := x.from(t, nodeB, superpacket(tcpPacket(t, "10.2.0.5", "10.1.0.5", 1, numbered(5*len(inside))), 1410).p)
		d.Size = len(inside)
		for at := d.Size; at+d.Size <= len(d.Buf); at += d.Size {
			copy(d.Buf[at:], inside)
		}
		edit(d.Buf)
		if got := x.receive(t, d); len(got) != 0 {
			t.Errorf("%v: %d packets delivered", reason, len(got))
		}
		if got := x.Drops(); !maps.Equal(got, map[string]uint64{reason.String(): 1}) {
			t.Errorf("%v: drops %v", reason, got)
		}
	}
}
