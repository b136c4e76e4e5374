package tunnel

import (
	"errors"
	"net/netip"
	"sync"
	"testing"
)

// sizesOf is a Sizes of these sizes.
func sizesOf(all ...int) (s Sizes) {
	for _, n := range all {
		s.Sum += uint64(n)
		i := 0
		for i < len(SizeBounds) && n > SizeBounds[i] { // the slow twin of sizeIndex
			i++
		}
		s.Counts[i]++
	}
	return s
}

func TestSizes(t *testing.T) {
	var s sizes
	var want []int
	for n := 1; n < 300; n++ {
		s.note(n)
		want = append(want, n)
		if n%7 == 0 {
			s.settle()
			if got := s.load(); got != sizesOf(want...) {
				t.Fatalf("1 to %d: %v, want %v", n, got, sizesOf(want...))
			}
		}
	}
	all := sizesOf(1, 1, 2, 500)
	if all.Total() != 4 || all.Larger() != 2 || all.Sum != 504 {
		t.Errorf("%v: %d in all, %d larger than 1", all, all.Total(), all.Larger())
	}
}

// TestQueueStats: what each worker counts of packets of all kinds, dropped and refused ones among them.
func TestQueueStats(t *testing.T) {
	for _, x := range []*bench{newBench(t, "vxlan"), newBench6(t, "vxlan")} {
		t.Run(x.cfg.Subnet.String(), func(t *testing.T) { testQueueStats(t, x) })
	}
}

func testQueueStats(t *testing.T, x *bench) {
	a, b, _, strange := x.nodes()
	local, remote := x.addr("10.1.0.5"), x.addr("10.2.0.5")
	headers := 40
	if x.node.six() {
		headers = 60
	}
	small := func(payload int) []byte { return udpPacket(t, local, remote, string(numbered(payload))) }
	stream := func(src, dst string, n int) []byte { return tcpPacket(t, src, dst, 1, numbered(n*1000), setDF) }

	// Five pieces, of which one goes nowhere: three datagrams of one length and a shorter one make one message, ten segments of a superpacket another.
	lost := udpPacket(t, local, x.addr("10.9.0.5"), "nobody has it")
	out := append(plain(small(100), small(100), lost, small(50)), superpacket(stream(local, remote, 10), 1000))
	sent := x.send(t, out...)
	if len(sent) != 13 {
		t.Fatalf("%d datagrams, want 13", len(sent))
	}
	bytes := 0
	for _, d := range sent {
		bytes += len(x.unframed(d))
	}
	want := QueueStats{Direction: Outbound, IPv6: x.node.six(), Bytes: uint64(bytes),
		Batch: sizesOf(5), Read: sizesOf(1, 1, 1, 1, 10), Write: sizesOf(3, 10)}
	if got := x.Queues()[0]; got != want {
		t.Errorf("outbound:\n%+v, want\n%+v", got, want)
	}

	// Three pieces: a packet, ten that the kernel has joined, and two of a stranger.
	segment := func(i int) Datagram {
		return x.from(t, b, tcpPacket(t, remote, local, uint32(1+i*1000), numbered(1000), setDF))
	}
	var train []Datagram
	for i := range 10 {
		train = append(train, segment(i))
	}
	one := udpPacket(t, remote, local, "one")
	foreign := joined(x.from(t, a, one), x.from(t, a, one))
	foreign.Addr = netip.AddrPortFrom(strange, 40000)
	if got := x.receive(t, x.from(t, b, one), joined(train...), foreign); len(got) != 11 {
		t.Fatalf("%d packets, want 11", len(got))
	}
	want = QueueStats{Direction: Inbound, IPv6: x.node.six(), Bytes: uint64(len(one) + 10*(1000+headers)),
		Batch: sizesOf(3), Read: sizesOf(1, 10, 2), Write: sizesOf(1, 10)}
	if got := x.Queues()[1]; got != want {
		t.Errorf("inbound:\n%+v, want\n%+v", got, want)
	}
	if n := x.Queues()[1].Bytes; n != x.b.Counters.RxBytes.Load() {
		t.Errorf("%d bytes of the queue, %d of the peer that sent them all", n, x.b.Counters.RxBytes.Load())
	}
}

// TestInHand: a worker that does not come back from a write is seen, by a number that stays.
func TestInHand(t *testing.T) {
	x := newBench(t, "vxlan")
	entered, goOn := make(chan struct{}), make(chan struct{})
	block := sync.OnceFunc(func() { close(entered); <-goOn })
	x.dev.refuse = func([]byte) error { block(); return errors.New("no") }
	one := x.from(t, nodeB, udpPacket(t, "10.2.0.5", "10.1.0.5", "one"))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range 3 {
			x.in[0].carry([]Datagram{one})
		}
	}()
	within(t, "the write", entered)
	for range 2 {
		if got := x.Queues()[1].InHand; got != 1 {
			t.Errorf("batch %d in hand, want the first", got)
		}
	}
	if got := x.Queues()[0].InHand; got != 0 {
		t.Errorf("outbound: batch %d in hand", got)
	}
	close(goOn)
	within(t, "the end", ended)
	if s := x.Queues()[1]; s.InHand != 0 || s.Batch != sizesOf(1, 1, 1) {
		t.Errorf("after all: %+v", s)
	}
}
