package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"muslin/encap"
	"muslin/tunnel/fib"
)

// end is one of two VTEPs that run, and whose datagrams reach each other through memory.
type end struct {
	*bench
	peer *fib.Peer // the other one
	got  chan []byte
	done chan error
}

// join runs two VTEPs, A and B, until stop or the test's end. The kernels between them join datagrams (UDP_GRO),
// and hand those of each source port to one queue, as SO_REUSEPORT does.
func join(t *testing.T, framing string, queues int) (a, b *end, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	make := func(n, other node) *end {
		e := &end{bench: newBenchOf(t, n, framing, queues), peer: other.peer(), got: make(chan []byte, 1024), done: make(chan error, 1)}
		e.SetTable(fib.New([]*fib.Peer{e.peer}))
		for _, q := range e.device.queues {
			q.onWrite = func(p []byte) {
				select {
				case e.got <- p:
				case <-e.device.closed:
				}
			}
		}
		return e
	}
	a, b = make(nodeA, nodeB), make(nodeB, nodeA)
	connect := func(from, to *end) {
		for _, q := range from.underlay.queues {
			q.onSend = func(sent []outer) {
				for _, d := range received(from.node, sent, func() bool { return true }) {
					select {
					case to.underlay.queues[int(d.Addr.Port())%queues].in <- []Datagram{d}:
					case <-to.underlay.closed:
					}
				}
			}
		}
	}
	connect(a, b)
	connect(b, a)
	for _, e := range []*end{a, b} {
		go func() { e.done <- e.Run(ctx) }()
	}
	stop = sync.OnceFunc(func() {
		cancel()
		for _, e := range []*end{a, b} {
			if err := within(t, "the end of Run", e.done); err != nil {
				t.Errorf("Run ends with %v, want nil after its context was cancelled", err)
			}
			e.check(t)
		}
	})
	t.Cleanup(stop)
	return a, b, stop
}

// exchange sends n packets or superpackets of four flows from one end to the other, each way, and checks that
// they arrive, each flow in order. between is called while they do, after each. A flow uses one queue of the
// device.
func exchange(t *testing.T, a, b *end, n int, between func(i int)) (packets int) {
	t.Helper()
	const flows = 4
	var sent [2][]inner // from A, from B
	for i := range n {
		for side, address := range [2]string{"10.1.0", "10.2.0"} {
			src, dst := fmt.Sprintf("%s.%d", address, 5+i%flows), "10.2.0.5"
			if side == 1 {
				dst = "10.1.0.5"
			}
			packet := inner{p: udpPacket(t, src, dst, fmt.Sprint(i))}
			if i%5 == 0 {
				packet = superpacket(tcpPacket(t, src, dst, uint32(i)<<16, numbered(5000), setDF), 1000+i%300)
			}
			sent[side] = append(sent[side], packet)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range n {
			for side, e := range [2]*end{a, b} {
				queues := e.device.queues
				select {
				case queues[i%flows%len(queues)].in <- sent[side][i : i+1]:
				case <-e.device.closed:
				}
			}
		}
	}()
	want := [2][][]byte{cutAll(sent[0]), cutAll(sent[1])}
	packets = len(want[0])
	var got [2][][]byte
	late := time.After(10 * time.Second)
	for i := range packets + len(want[1]) {
		select {
		case p := <-b.got:
			got[0] = append(got[0], p)
		case p := <-a.got:
			got[1] = append(got[1], p)
		case <-late:
			t.Fatalf("%d and %d packets of %d came in 10 seconds", len(got[0]), len(got[1]), packets)
		}
		between(i)
	}
	checkFlows(t, got[0], want[0])
	checkFlows(t, got[1], want[1])
	<-done
	for _, e := range []*end{a, b} {
		if d := e.Drops(); len(d) != 0 {
			t.Errorf("drops %v", d)
		}
	}
	return packets
}

func TestTwoVTEPs(t *testing.T) {
	for _, framing := range framingNames {
		for _, queues := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s/%d queues", framing, queues), func(t *testing.T) {
				a, b, stop := join(t, framing, queues)
				n := uint64(exchange(t, a, b, 300, func(int) {}))
				stop() // a worker counts its last packet after that has arrived
				for _, e := range []*end{a, b} {
					if c := e.peer.Counters; c.TxPackets.Load() != n || c.RxPackets.Load() != n || c.TxBytes.Load() != c.RxBytes.Load() {
						t.Errorf("sent %d packets of %d bytes, received %d of %d, want %d each way", c.TxPackets.Load(), c.TxBytes.Load(), c.RxPackets.Load(), c.RxBytes.Load(), n)
					}
				}
			})
		}
	}
}

// A change of the table neither stalls nor loses a packet, and is seen by the next one.
func TestSetTableWhileTrafficFlows(t *testing.T) {
	a, b, _ := join(t, "vxlan", 2)
	changes := 0
	exchange(t, a, b, 700, func(i int) {
		for _, e := range []*end{a, b} {
			peers := []*fib.Peer{e.peer}
			for k := range i % 5 {
				peers = append(peers, &fib.Peer{Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 7, byte(k), 0}), 24), PublicIP: stranger})
			}
			table := fib.New(peers)
			e.SetTable(table)
			if e.Table() != table {
				t.Fatal("Table is not what SetTable was given")
			}
			changes++
		}
	})
	if changes < 2000 {
		t.Errorf("%d changes", changes)
	}
}

// Nor does a change of the MTU, while all packets fit.
func TestSetMTUWhileTrafficFlows(t *testing.T) {
	a, b, _ := join(t, "udp", 2)
	exchange(t, a, b, 300, func(i int) {
		for _, e := range []*end{a, b} {
			e.SetMTU(encap.InnerMTU(1400 + i%100))
		}
	})
}

func TestPeerRemovedAndAdded(t *testing.T) {
	x := newBench(t, "vxlan")
	p := udpPacket(t, "10.1.0.5", "10.2.0.5", "x")
	if len(x.sendPlain(t, p)) != 1 {
		t.Fatal("not sent at first")
	}
	back := x.from(t, nodeB, udpPacket(t, "10.2.0.5", "10.1.0.5", "x"))
	if len(x.receive(t, back)) != 1 {
		t.Fatal("not received at first")
	}
	x.SetTable(fib.New([]*fib.Peer{x.c}))
	if len(x.sendPlain(t, p)) != 0 || x.Drops()["no-route"] != 1 {
		t.Errorf("after the peer was removed: drops %v", x.Drops())
	}
	if len(x.receive(t, back)) != 0 || x.Drops()["unknown-source"] != 1 {
		t.Errorf("a removed peer's packet: drops %v", x.Drops())
	}
	moved := &fib.Peer{Subnet: nodeB.subnet, PublicIP: stranger, MAC: nodeB.mac, Counters: x.b.Counters}
	x.SetTable(fib.New([]*fib.Peer{moved}))
	if sent := x.sendPlain(t, p); len(sent) != 1 || sent[0].addr.Addr() != stranger || x.b.Counters.TxPackets.Load() != 2 {
		t.Errorf("after the peer moved: sent %+v", sent)
	}
	if len(x.receive(t, back)) != 0 || x.Drops()["unknown-source"] != 2 {
		t.Errorf("a packet from where the peer was: drops %v", x.Drops())
	}
	back.Addr = netip.AddrPortFrom(stranger, 1)
	if len(x.receive(t, back)) != 1 || x.b.Counters.RxPackets.Load() != 2 {
		t.Errorf("a packet from where the peer is: drops %v", x.Drops())
	}
}

func TestRunEnds(t *testing.T) {
	broken := errors.New("the device was deleted under us")
	for _, c := range []struct {
		name string
		end  func(x *bench, cancel func())
		want error
	}{
		{"cancelled", func(_ *bench, cancel func()) { cancel() }, nil},
		{"cancelled, closed by the caller too", func(x *bench, cancel func()) { cancel(); x.device.Close(); x.underlay.Close() }, nil},
		{"device fails", func(x *bench, _ func()) { x.dev.fail <- broken }, broken},
		{"underlay fails", func(x *bench, _ func()) { x.und.fail <- broken }, broken},
		{"the last queue of the device fails", func(x *bench, _ func()) { x.device.queues[2].fail <- broken }, broken},
		{"the last queue of the underlay fails", func(x *bench, _ func()) { x.underlay.queues[2].fail <- broken }, broken},
		{"device closed unasked", func(x *bench, _ func()) { x.device.Close() }, os.ErrClosed},
		{"underlay closed unasked", func(x *bench, _ func()) { x.underlay.Close() }, os.ErrClosed},
		{"underlay closed while packets leave", func(x *bench, _ func()) {
			x.underlay.Close()
			for _, q := range x.device.queues {
				q.in <- []inner{stream(t, 5000)}
			}
		}, os.ErrClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newBenchOf(t, nodeA, "vxlan", 3)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- x.Run(ctx) }()
			c.end(x, cancel)
			if err := within(t, "the end of Run", done); !errors.Is(err, c.want) {
				t.Errorf("Run ends with %v, want %v", err, c.want)
			}
			x.check(t)
			for what, closed := range map[string]chan struct{}{"device": x.device.closed, "underlay": x.underlay.closed} {
				select {
				case <-closed:
				default:
					t.Errorf("Run left the %s open", what)
				}
			}
		})
	}
}

// A worker ends as soon as the underlay says that it was closed, in the middle of a batch too.
func TestClosedUnderlayEndsBatch(t *testing.T) {
	p := udpPacket(t, "10.1.0.5", "10.2.0.5", "x")
	full := superpacket(udpPacket(t, "10.1.0.5", "10.2.0.5", string(numbered(63))), 1)
	for name, packets := range map[string][]inner{
		"at its end":                 {{p: p}},
		"no message left":            {full, {p: p}, {p: p}},
		"no room for more headers":   {superpacket(tcpPacket(t, "10.1.0.5", "10.2.0.5", 1, numbered(20_000)), 1)},
		"no message left, segmented": {full, full},
	} {
		x := newBench(t, "vxlan")
		if name != "no room for more headers" {
			x.limitSegments(1)
		}
		x.underlay.Close()
		x.dev.pending = packets
		if err := x.out[0].batch(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: the batch ends with %v", name, err)
		}
	}
}

// The kernel lets a table's peers in before the VTEP knows them, and only then keeps out the others.
func TestSetTableOrder(t *testing.T) {
	x := newBench(t, "vxlan")
	before, next := x.Table(), fib.New([]*fib.Peer{nodeC.peer()})
	asked := false
	x.underlay.onPeers = func(t2 *fib.Table) {
		asked = true
		if t2 != next || x.Table() != before {
			t.Error("the table was in use before its peers were let in")
		}
	}
	x.SetTable(next)
	if !asked || x.Table() != next {
		t.Errorf("the underlay was asked: %v, the table is in use: %v", asked, x.Table() == next)
	}
}
