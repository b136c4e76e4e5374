package tunnel

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"muslin/encap"
	"muslin/tunnel/gso"
)

// segments are TCP packets of one flow from B, each with size bytes of payload.
func segments(t testing.TB, n, size int) (all [][]byte) {
	t.Helper()
	for i := range n {
		all = append(all, tcpPacket(t, "10.2.0.5", "10.1.0.5", uint32(1+i*size), numbered(size), setDF))
	}
	return all
}

func (x *bench) fromAll(t testing.TB, n node, packets [][]byte) (ds []Datagram) {
	t.Helper()
	for _, p := range packets {
		ds = append(ds, x.from(t, n, p))
	}
	return ds
}

// What the kernel joined of a peer's datagrams (UDP_GRO) is taken apart, and what belongs together goes on as
// one superpacket.
func TestJoinedDatagrams(t *testing.T) {
	for _, name := range framingNames {
		for _, last := range []int{1400, 900, 1} {
			packets := segments(t, 20, 1400)
			packets = append(packets, tcpPacket(t, "10.2.0.5", "10.1.0.5", 1+20*1400, numbered(last), setDF))
			x := newBench(t, name)
			checkFlows(t, x.receive(t, joined(x.fromAll(t, nodeB, packets)...)), packets)
			runs := x.dev.takeRuns()
			if len(runs) != 1 || runs[0].Segments != 21 || runs[0].Info.Size != 1400 {
				t.Errorf("%s: handed on as %d runs: %+v", name, len(runs), runs[0].Info)
			}
			if n, size := x.b.Counters.RxPackets.Load(), x.b.Counters.RxBytes.Load(); n != 21 || size != uint64(21*40+20*1400+last) {
				t.Errorf("%s: %d packets of %d bytes counted", name, n, size)
			}
		}
	}
}

// A Size that says nothing new: as long as the datagram, or longer.
func TestSizeOfOneDatagram(t *testing.T) {
	for _, name := range framingNames {
		x := newBench(t, name)
		for _, more := range []int{0, 1, 1000} {
			d := x.from(t, nodeB, udpPacket(t, "10.2.0.5", "10.1.0.5", "some payload"))
			d.Size = len(d.Buf) + more
			checkFlows(t, x.receive(t, d), [][]byte{udpPacket(t, "10.2.0.5", "10.1.0.5", "some payload")})
		}
		if d := x.Drops(); len(d) != 0 {
			t.Errorf("drops %v", d)
		}
	}
}

// Datagrams with padding can be joined too.
func TestJoinedWithPadding(t *testing.T) {
	x := newBench(t, "vxlan")
	p := udpPacket(t, "10.2.0.5", "10.1.0.5", "short")
	padded := x.from(t, nodeB, p)
	padded.Buf = append(padded.Buf, make([]byte, 46-len(p))...)
	checkFlows(t, x.receive(t, joined(padded, padded, x.from(t, nodeB, p))), [][]byte{p, p, p})
	if d := x.Drops(); len(d) != 0 {
		t.Errorf("drops %v", d)
	}
}

// A bad datagram does no harm to those that the kernel joined it with, whatever is wrong with it and wherever
// it is.
func TestBadDatagramAmongJoined(t *testing.T) {
	cases := 0
	for _, c := range dropCases {
		for _, name := range framingNames {
			for _, n := range []node{nodeA, nodeA6} {
				if c.in == nil || c.framing != "" && c.framing != name || c.family != "" && (c.family == "IPv6") != n.six() {
					continue
				}
				for at := range 3 {
					x := newBenchOf(t, n, name, 1)
					bad := c.in(t, x)
					good, ok := neighbour(t, x, bad, at == 2)
					if !ok {
						continue
					}
					cases++
					t.Run(fmt.Sprintf("%v/%s/%s/%v/%d", c.reason, c.name, name, x.cfg.Framing.Family(), at), func(t *testing.T) {
						checkBadAmongJoined(t, x, c.reason, bad, good, at)
					})
				}
			}
		}
	}
	if cases < 200 {
		t.Errorf("%d cases only", cases)
	}
}

func checkBadAmongJoined(t *testing.T, x *bench, reason Reason, bad Datagram, good []byte, at int) {
	t.Helper()
	_, b, _, _ := x.nodes()
	ds := []Datagram{x.from(t, b, good), x.from(t, b, good), x.from(t, b, good)}
	ds[at] = bad
	all := joined(ds...)
	all.Addr, all.ECN = bad.Addr, bad.ECN
	want := map[string]uint64{reason.String(): 1}
	delivered := [][]byte{good, good}
	if reason == DropUnknownSource { // which they all have
		want, delivered = map[string]uint64{reason.String(): 3}, nil
	}
	if bad.ECN == encap.CE {
		for i, p := range delivered {
			delivered[i] = bytes.Clone(p)
			if isSix(p) {
				delivered[i][1] |= encap.CE << 4
			} else {
				delivered[i][1] |= encap.CE
				mend(delivered[i], false)
			}
		}
	}
	var packets [][]byte
	for _, p := range delivered {
		if len(p) > testMTU {
			super := superpacket(p, testMTU-headerLen(p)-20)
			packets = append(packets, cut(super.p, super.info)...)
		} else {
			packets = append(packets, p)
		}
	}
	checkFlows(t, x.receive(t, all), packets)
	if got := x.Drops(); !maps.Equal(got, want) {
		t.Errorf("drops %v, want %v", got, want)
	}
}

// neighbour is a good packet whose datagram may stand in one buffer with bad: as long, or longer where bad is
// the last. There is none for a datagram that never came, or did not fit the buffer.
func neighbour(t testing.TB, x *bench, bad Datagram, last bool) ([]byte, bool) {
	t.Helper()
	if !bad.Addr.IsValid() || bad.Truncated {
		return nil, false
	}
	length, headers := len(bad.Buf)-x.cfg.Framing.Headroom(), 28
	if x.node.six() {
		headers = 48
	}
	if length < headers {
		if !last || len(bad.Buf) == 0 {
			return nil, false
		}
		length = 100
	}
	if length > testMTU { // a TCP superpacket, of a kernel peer
		return tcpPacket(t, x.addr("10.2.0.5"), x.addr("10.1.0.5"), 1, numbered(length-headers-12)), true
	}
	var edit []func(*layers.IPv4)
	if bad.ECN == encap.CE {
		edit = append(edit, setECN(encap.ECT0))
	}
	return udpPacket(t, x.addr("10.2.0.5"), x.addr("10.1.0.5"), string(numbered(length-headers)), edit...), true
}

// A damaged packet in the middle of a stream is passed on as it is: its receiver drops it. Those around it are
// joined without it.
func TestDamagedSegmentAmongJoined(t *testing.T) {
	x := newBench(t, "vxlan")
	packets := segments(t, 9, 1000)
	packets[4][500] ^= 1
	checkFlows(t, x.receive(t, joined(x.fromAll(t, nodeB, packets)...)), packets)
	var got []int
	for _, r := range x.dev.takeRuns() {
		got = append(got, r.Segments)
	}
	if !slices.Equal(got, []int{4, 1, 4}) {
		t.Errorf("handed on as runs of %v packets, want 4, 1, 4", got)
	}
}

// Each packet of a joined buffer gets the congestion mark of the buffer.
func TestECNOfJoined(t *testing.T) {
	for outer := range uint8(4) {
		x := newBench(t, "udp")
		var packets, want [][]byte
		for i := range 6 {
			p := udpPacket(t, "10.2.0.5", "10.1.0.5", "payload", setECN([]uint8{encap.ECT0, encap.ECT0, encap.ECT1, encap.CE, encap.NotECT, encap.ECT0}[i]))
			packets = append(packets, p)
			var h encap.Header
			encap.ParseIPv4(p, 0, &h)
			if p = bytes.Clone(p); encap.MergeECN(p, &h, outer) {
				want = append(want, p)
			}
		}
		d := joined(x.fromAll(t, nodeB, packets)...)
		d.ECN = outer
		checkFlows(t, x.receive(t, d), want)
		if got := x.Drops()["ecn"]; got != uint64(6-len(want)) || (outer == encap.CE) != (got == 1) {
			t.Errorf("outer %d: %d dropped", outer, got)
		}
	}
}

// While datagrams come joined, few buffers are filled at once; when they come single, all.
func TestHowManyAreReceived(t *testing.T) {
	x := newBench(t, "vxlan")
	big := joined(x.fromAll(t, nodeB, segments(t, 40, 1000))...)
	small := x.from(t, nodeB, udpPacket(t, "10.2.0.5", "10.1.0.5", "small"))
	var want int
	for i, step := range []struct {
		ds    []Datagram
		asked []int
	}{
		{[]Datagram{small}, []int{BatchSize}},
		{[]Datagram{big}, []int{BatchSize}},
		{[]Datagram{big}, []int{fewDatagrams}},
		{slices.Repeat([]Datagram{big}, 2*fewDatagrams+1), []int{fewDatagrams, fewDatagrams, fewDatagrams}},
		{slices.Repeat([]Datagram{small}, BatchSize), []int{fewDatagrams, BatchSize}},
		{slices.Repeat([]Datagram{small}, BatchSize), []int{BatchSize}},
	} {
		x.und.asked = nil
		got := len(x.receive(t, step.ds...))
		want = 0
		for _, d := range step.ds {
			if want++; d.Size > 0 {
				want += 39
			}
		}
		if got != want || !slices.Equal(x.und.asked, step.asked) {
			t.Errorf("step %d: %d packets delivered, want %d; Receive was asked for %v, want %v", i, got, want, x.und.asked, step.asked)
		}
	}
}

// More packets in one batch than the coalescer has room for, of one flow and of many.
func TestMoreThanCanBeJoined(t *testing.T) {
	for _, flows := range []int{1, 7} {
		x := newBench(t, "vxlan")
		var ds []Datagram
		var want [][]byte
		seq := make([]uint32, flows)
		for i := range BatchSize {
			var packets [][]byte
			for k := range 30 {
				f := (i*30 + k) % flows
				packets = append(packets, tcpPacket(t, fmt.Sprintf("10.2.0.%d", f+1), "10.1.0.5", seq[f], numbered(1000), setDF))
				seq[f] += 1000
			}
			ds, want = append(ds, joined(x.fromAll(t, nodeB, packets)...)), append(want, packets...)
		}
		if len(want) < 3*joinPackets {
			t.Fatalf("%d packets are no test", len(want))
		}
		checkFlows(t, x.receive(t, ds...), want)
		if n := x.b.Counters.RxPackets.Load(); n != uint64(len(want)) {
			t.Errorf("%d packets counted, want %d", n, len(want))
		}
		if n := len(x.dev.takeRuns()); n > len(want)/20 {
			t.Errorf("%d packets handed on in %d runs", len(want), n)
		}
	}
}

// What the device takes joined can change from batch to batch.
func TestJoinsChange(t *testing.T) {
	tcp := segments(t, 10, 1000)
	var udp [][]byte
	for range 10 {
		udp = append(udp, udpPacket(t, "10.2.0.5", "10.1.0.5", string(numbered(500)), func(ip *layers.IPv4) { ip.Flags = layers.IPv4DontFragment }))
	}
	x := newBench(t, "vxlan")
	for _, on := range []struct{ tcp, udp bool }{{true, true}, {false, true}, {true, false}, {false, false}, {true, true}} {
		x.dev.tcp.Store(on.tcp)
		x.dev.udp.Store(on.udp)
		ds := []Datagram{joined(x.fromAll(t, nodeB, tcp)...), joined(x.fromAll(t, nodeB, udp)...)}
		checkFlows(t, x.receive(t, ds...), slices.Concat(tcp, udp))
		runs := map[gso.Kind]int{}
		for _, r := range x.dev.takeRuns() {
			runs[r.Info.Kind] += r.Segments
		}
		want := map[gso.Kind]int{}
		for kind, joins := range map[gso.Kind]bool{gso.TCPv4: on.tcp, gso.UDP: on.udp} {
			if !joins {
				kind = gso.None
			}
			want[kind] += 10
		}
		if !maps.Equal(runs, want) {
			t.Errorf("joins %+v: handed on as %v, want %v", on, runs, want)
		}
	}
}

// The refused packets of a superpacket are counted alone.
func TestDeviceRefusesPartOfRun(t *testing.T) {
	x := newBench(t, "vxlan")
	x.dev.refuse = refuseMarked
	packets := segments(t, 6, 1000)
	for _, i := range []uint32{1, 3} {
		packets[i] = tcpPacket(t, "10.2.0.5", "10.1.0.5", 1+i*1000, append([]byte(marked), numbered(1000-len(marked))...), setDF)
	}
	checkFlows(t, x.receive(t, joined(x.fromAll(t, nodeB, packets)...)), [][]byte{packets[0], packets[2], packets[4], packets[5]})
	if got := x.Drops(); !maps.Equal(got, map[string]uint64{"tun-write": 2}) {
		t.Errorf("drops %v", got)
	}
}

// Every peer that was heard of in a batch has the time of that batch, and no other.
func TestLastRx(t *testing.T) {
	x := newBench(t, "vxlan")
	b := joined(x.fromAll(t, nodeB, segments(t, 5, 100))...)
	c := x.from(t, nodeC, udpPacket(t, "10.3.0.5", "10.1.0.5", "payload"))
	before := time.Now().UnixNano()
	x.receive(t, b, c, b, c, b)
	after := time.Now().UnixNano()
	atB, atC := x.b.Counters.LastRx.Load(), x.c.Counters.LastRx.Load()
	if atB < before || atB > after || atC != atB {
		t.Errorf("B heard of at %d and C at %d, in one batch between %d and %d", atB, atC, before, after)
	}
	if x.b.Counters.RxPackets.Load() != 15 || x.c.Counters.RxPackets.Load() != 2 {
		t.Errorf("%d packets counted from B and %d from C", x.b.Counters.RxPackets.Load(), x.c.Counters.RxPackets.Load())
	}
	for time.Now().UnixNano() == after {
	}
	x.receive(t, c)
	if got := x.b.Counters.LastRx.Load(); got != atB {
		t.Errorf("B, silent, is heard of at %d", got)
	}
	if got := x.c.Counters.LastRx.Load(); got <= atC {
		t.Errorf("C is heard of at %d, want later than %d", got, atC)
	}
}
