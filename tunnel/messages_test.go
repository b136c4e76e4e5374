package tunnel

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"muslin/encap"
)

// lettered is a UDP packet from A with a payload of size bytes. Its source port is such that its flow leaves
// through the outer source port that port says.
func lettered(t testing.TB, dst string, port uint8, size int, edit ...func(*layers.IPv4)) inner {
	t.Helper()
	ip := ipLayer("10.1.0.5", dst, layers.IPProtocolUDP)
	for _, f := range edit {
		f(ip)
	}
	for source := layers.UDPPort(1024); ; source++ {
		p := serialize(t, ip, &layers.UDP{SrcPort: source, DstPort: 5000}, gopacket.Payload(numbered(size)))
		if outerPort(t, p) == port {
			return inner{p: p}
		}
	}
}

// outerPort is the source port that a packet's flow leaves through.
func outerPort(t testing.TB, p []byte) uint8 {
	t.Helper()
	var h encap.Header
	if fault := encap.ParseIPv4(p, 0, &h); fault != encap.FaultNone {
		t.Fatalf("fault %d", fault)
	}
	return uint8(encap.FlowHash(p, &h) % SourcePorts)
}

// stream is a TCP superpacket of so many bytes of payload, segments of 1,410.
func stream(t testing.TB, length int) inner {
	t.Helper()
	return superpacket(tcpPacket(t, "10.1.0.5", "10.2.0.5", 1000, numbered(length)), 1410)
}

// lengths is how many bytes of inner packet each datagram of each message of each Send has; as many of one
// length as {-n, length}.
func lengths(x *bench, sends [][]sentMessage) (all [][][]int) {
	for _, ms := range sends {
		var of [][]int
		for _, m := range ms {
			var l []int
			for _, d := range m.datagrams {
				n := len(d.buf) - x.cfg.Framing.Headroom()
				switch k := len(l); {
				case k >= 2 && l[k-1] == n && l[k-2] < 0:
					l[k-2]--
				case k >= 1 && l[k-1] == n:
					l = append(l[:k-1], -2, n)
				default:
					l = append(l, n)
				}
			}
			of = append(of, l)
		}
		all = append(all, of)
	}
	return all
}

// What goes into one message, and what does not. A packet of 72 bytes of payload has 100.
func TestMessages(t *testing.T) {
	b := func(size int) inner { return lettered(t, "10.2.0.5", 3, size) }
	b7 := func(size int) inner { return lettered(t, "10.2.0.5", 7, size) }
	c := func(size int) inner { return lettered(t, "10.3.0.5", 3, size) }
	ect := func(size int) inner { return lettered(t, "10.2.0.5", 3, size, setECN(encap.ECT0)) }
	udp := func(segments int) inner {
		return superpacket(lettered(t, "10.2.0.5", 3, 72*segments).p, 72)
	}
	for _, test := range []struct {
		name     string
		segments int // 0: 127
		perRead  int
		packets  []inner
		want     [][][]int // Send, message, datagrams as lengths has it
	}{
		{name: "one", packets: []inner{b(72)}, want: [][][]int{{{100}}}},
		{name: "equal ones join", packets: slices.Repeat([]inner{b(72)}, 10), want: [][][]int{{{-10, 100}}}},
		{name: "a shorter one joins and ends it", packets: []inner{b(72), b(72), b(71), b(72)},
			want: [][][]int{{{-2, 100, 99}, {100}}}},
		{name: "nothing joins a shorter one", packets: []inner{b(72), b(20), b(20), b(20)},
			want: [][][]int{{{100, 48}, {-2, 48}}}},
		{name: "a longer one begins the next", packets: []inner{b(72), b(73), b(72)},
			want: [][][]int{{{100}, {101, 100}}}},
		{name: "another ECN", packets: []inner{b(72), ect(72), ect(72), b(72)},
			want: [][][]int{{{100}, {-2, 100}, {100}}}},
		{name: "another peer on the same source port", packets: []inner{b(72), c(72), c(72), b(72)},
			want: [][][]int{{{100}, {-2, 100}, {100}}}},
		{name: "source ports keep apart", packets: []inner{b(72), b7(72), b(72), b7(72)},
			want: [][][]int{{{-2, 100}, {-2, 100}}}},
		{name: "a source port ends its own", packets: []inner{b(72), b7(72), b(20), b7(72), b(72)},
			want: [][][]int{{{100, 48}, {-2, 100}, {100}}}},
		{name: "one at a time", segments: 1, packets: []inner{b(72), b(72), udp(2)},
			want: [][][]int{{{100}, {100}, {100}, {100}}}},
		{name: "two at most", segments: 2, packets: []inner{b(72), b(72), b(72)},
			want: [][][]int{{{-2, 100}, {100}}}},
		{name: "64 at most", segments: 64, packets: []inner{udp(150)},
			want: [][][]int{{{-64, 100}, {-64, 100}, {-22, 100}}}},
		{name: "127 at most", packets: []inner{udp(150)}, want: [][][]int{{{-127, 100}, {-23, 100}}}},
		{name: "as many pieces as there may be", segments: 1000, packets: []inner{udp(150)},
			want: [][][]int{{{-MaxBuffers / 2, 100}, {-22, 100}}}},
		{name: "64 messages are sent at once", segments: 1, packets: []inner{udp(100)},
			want: [][][]int{slices.Repeat([][]int{{100}}, 64), slices.Repeat([][]int{{100}}, 36)}},
		{name: "64 messages, plain packets", segments: 1, packets: []inner{udp(63), b(72), b(72)},
			want: [][][]int{slices.Repeat([][]int{{100}}, 64), {{100}}}},
		{name: "a superpacket and plain packets", packets: []inner{udp(3), b(72), b(72), b(30), b(72)},
			want: [][][]int{{{-5, 100, 58}, {100}}}},
		// 44 datagrams of 1,472 bytes are 64,768, one more would be 66,240.
		{name: "the tail of a superpacket joins the next", packets: []inner{stream(t, 46*1410), stream(t, 46*1410)},
			want: [][][]int{{{-44, 1450}, {-44, 1450}, {-4, 1450}}}},
		{name: "a short tail does not", packets: []inner{stream(t, 45*1410+5), stream(t, 46*1410)},
			want: [][][]int{{{-44, 1450}, {1450, 45}, {-44, 1450}, {-2, 1450}}}},
		{name: "nothing waits for the next read", perRead: 1, packets: []inner{stream(t, 46*1410), stream(t, 46*1410)},
			want: [][][]int{{{-44, 1450}, {-2, 1450}}, {{-44, 1450}, {-2, 1450}}}},
		{name: "the slab has room for four", packets: slices.Repeat([]inner{stream(t, 45*1410)}, 5),
			want: [][][]int{{{-44, 1450}, {-44, 1450}, {-44, 1450}, {-44, 1450}, {-4, 1450}}, {{-44, 1450}, {1450}}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			x := newBench(t, "vxlan")
			x.dev.perRead = test.perRead
			if test.segments > 0 {
				x.limitSegments(test.segments)
			}
			sends := x.sendMessages(t, test.packets...)
			if got := lengths(x, sends); !reflect.DeepEqual(got, test.want) {
				t.Errorf("sent %v, want %v", got, test.want)
			}
			var ds []outer
			for _, m := range slices.Concat(sends...) {
				ds = append(ds, m.datagrams...)
			}
			checkFlows(t, x.unframedAll(ds), cutAll(test.packets))
			if d := x.Drops(); len(d) != 0 {
				t.Errorf("drops %v", d)
			}
		})
	}
}

// All datagrams of a message together are as long as one may be, and not a byte longer.
func TestMessageLength(t *testing.T) {
	const fits, tooLong = MaxPayload / 13, (MaxPayload + 1) / 12 // both without a remainder
	for length, want := range map[int][][][]int{
		fits:    {{{-13, fits}, {fits}}},
		tooLong: {{{-11, tooLong}, {-3, tooLong}}},
	} {
		x := newBench(t, "udp", func(cfg *Config) { cfg.MTU = 9000 })
		p := lettered(t, "10.2.0.5", 0, length-28)
		if got := lengths(x, x.sendMessages(t, slices.Repeat([]inner{p}, 14)...)); !reflect.DeepEqual(got, want) {
			t.Errorf("packets of %d bytes are sent as %v, want %v", length, got, want)
		}
	}
}

// Small packets that lie one behind the other go out in one piece, the segments of a superpacket in two each.
func TestPieces(t *testing.T) {
	x := newBench(t, "vxlan")
	small := lettered(t, "10.2.0.5", 3, 72)
	ms := x.sendMessages(t, slices.Repeat([]inner{small}, 30)...)[0]
	if len(ms) != 1 || ms[0].pieces != 1 {
		t.Errorf("30 small packets go out as %d messages, the first in %d pieces, want one in one", len(ms), ms[0].pieces)
	}
	ms = x.sendMessages(t, stream(t, 20*1410))[0]
	if len(ms) != 1 || ms[0].pieces != 40 {
		t.Errorf("20 segments go out as %d messages, the first in %d pieces, want one in 40", len(ms), ms[0].pieces)
	}
}

// The headers of many short segments do not fit the slab for them at once.
func TestManyShortSegments(t *testing.T) {
	for _, name := range framingNames {
		x := newBench(t, name)
		for size := 1; size <= 64; size *= 4 {
			packets := []inner{
				superpacket(tcpPacket(t, "10.1.0.5", "10.2.0.5", 1, numbered(20_000)), size),
				superpacket(udpPacket(t, "10.1.0.5", "10.2.0.5", string(numbered(20_000))), size),
			}
			checkFlows(t, x.unframedAll(x.send(t, packets...)), cutAll(packets))
		}
	}
}

// A limit that has fallen holds for the next batch at the latest.
func TestMaxSegmentsFalls(t *testing.T) {
	x := newBench(t, "vxlan")
	p := lettered(t, "10.2.0.5", 3, 10)
	packets := []inner{superpacket(lettered(t, "10.2.0.5", 3, 3000).p, 10), p, p, superpacket(lettered(t, "10.2.0.5", 3, 3000).p, 10)}
	for _, limit := range []int{100, 64, 1, 127} {
		x.und.segments = func() int { return limit }
		x.send(t, inner{p: sized(t, "10.1.0.5", "10.3.0.5", 100)})
		most := 0
		sends := x.sendMessages(t, packets...)
		for _, m := range slices.Concat(sends...) {
			most = max(most, len(m.datagrams))
		}
		if most != limit {
			t.Errorf("%d datagrams in a message, want %d", most, limit)
		}
	}
}

// Of a message some datagrams may fail: they alone are counted as dropped, and the others as sent.
func TestPartOfMessageFails(t *testing.T) {
	errNoRoute := errors.New("no route of the underlay")
	for _, test := range []struct {
		name   string
		packet inner
		sent   int
		bytes  int
	}{
		{"plain packets", lettered(t, "10.2.0.5", 3, 72), 10, 10 * 100},
		{"a superpacket", superpacket(tcpPacket(t, "10.1.0.5", "10.2.0.5", 1, numbered(10*60)), 60), 10, 10 * 100},
	} {
		packets := []inner{test.packet}
		if test.packet.info.Size == 0 {
			packets = slices.Repeat(packets, 10)
		}
		for _, refused := range []int{0, 1, 3, 9, 10} {
			for _, err := range []error{errNoRoute, fmt.Errorf("sendmsg: %w", ErrSendBufferFull)} {
				x := newBench(t, "vxlan")
				left := refused
				x.und.refuse = func(*outer) error {
					if left > 0 {
						left--
						return err
					}
					return nil
				}
				x.send(t, packets...)
				want := map[string]uint64{}
				if refused > 0 {
					want[DropSendFailed.String()] = uint64(refused)
				}
				if refused > 0 && err != errNoRoute {
					want = map[string]uint64{DropSendBufferFull.String(): uint64(refused)}
				}
				if got := x.Drops(); !maps.Equal(got, want) {
					t.Errorf("%s, %d refused: drops %v, want %v", test.name, refused, got, want)
				}
				n, bytes := x.b.Counters.TxPackets.Load(), x.b.Counters.TxBytes.Load()
				if n != uint64(10-refused) || bytes != uint64(100*(10-refused)) {
					t.Errorf("%s, %d refused: %d packets of %d bytes counted as sent", test.name, refused, n, bytes)
				}
				if got := x.LastSendError(); errors.Is(got, errNoRoute) != (refused > 0 && err == errNoRoute) {
					t.Errorf("%s, %d refused: LastSendError = %v", test.name, refused, got)
				}
			}
		}
	}
}

// Flows spread over source ports, and each keeps its own.
func TestSourcePorts(t *testing.T) {
	x := newBench(t, "udp")
	flows := map[flow]uint8{}
	seen := map[uint8]bool{}
	for range 2 {
		for i := range 100 {
			p := udpPacket(t, fmt.Sprintf("10.1.0.%d", i), "10.2.0.5", "payload")
			ds := x.sendPlain(t, p, p)
			if len(ds) != 2 || ds[0].port != ds[1].port {
				t.Fatalf("one flow leaves as %+v", ds)
			}
			if before, ok := flows[flowOf(p)]; ok && before != ds[0].port {
				t.Errorf("flow %d leaves through port %d, and before through %d", i, ds[0].port, before)
			}
			flows[flowOf(p)], seen[ds[0].port] = ds[0].port, true
			if ds[0].addr != netip.AddrPortFrom(nodeB.public, port) {
				t.Errorf("sent to %v", ds[0].addr)
			}
		}
	}
	if len(seen) != SourcePorts {
		t.Errorf("100 flows use %d source ports, want %d", len(seen), SourcePorts)
	}
}
