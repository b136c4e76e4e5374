package tunnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"

	"muslin/tunnel/fib"
)

// end is one of two VTEPs whose datagrams reach each other through memory.
type end struct {
	*VTEP
	dev  *fakeDevice
	peer *fib.Peer // the other one
	got  chan []byte
	done chan error
}

// join runs two VTEPs, A and B, until stop or the test's end.
func join(t *testing.T, framing string) (a, b *end, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	make := func(n, other node) (*end, *fakeUnderlay) {
		e := &end{dev: newFakeDevice(), peer: other.peer(), got: make(chan []byte, 1024), done: make(chan error, 1)}
		e.dev.onWrite = func(p []byte) { e.got <- p }
		und := newFakeUnderlay()
		e.VTEP = newVTEP(t, n, framing, e.dev, und)
		e.SetTable(fib.New([]*fib.Peer{e.peer}))
		return e, und
	}
	a, ua := make(nodeA, nodeB)
	b, ub := make(nodeB, nodeA)
	connect := func(from node, to *fakeUnderlay) func(Datagram) {
		return func(d Datagram) {
			d.Addr = netip.AddrPortFrom(from.public, uint16(40000+d.Flow%16))
			select {
			case to.in <- []Datagram{d}:
			case <-to.closed:
			}
		}
	}
	ua.onSend, ub.onSend = connect(nodeA, ub), connect(nodeB, ua)
	for _, e := range []*end{a, b} {
		go func() { e.done <- e.Run(ctx) }()
	}
	stop = sync.OnceFunc(func() {
		cancel()
		for _, e := range []*end{a, b} {
			if err := within(t, "the end of Run", e.done); err != nil {
				t.Errorf("Run ends with %v, want nil after its context was cancelled", err)
			}
		}
	})
	t.Cleanup(stop)
	return a, b, stop
}

// exchange sends n packets of four flows from one end to the other, each way, and checks that they
// arrive, each flow in order. between is called after each.
func exchange(t *testing.T, a, b *end, n int, between func(i int)) {
	t.Helper()
	const flows = 4
	var fromA, fromB [][]byte
	for i := range n {
		fromA = append(fromA, udpPacket(t, fmt.Sprintf("10.1.0.%d", 5+i%flows), "10.2.0.5", fmt.Sprint(i)))
		fromB = append(fromB, udpPacket(t, fmt.Sprintf("10.2.0.%d", 5+i%flows), "10.1.0.5", fmt.Sprint(i)))
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for i := range n {
			a.dev.in <- fromA[i : i+1]
			b.dev.in <- fromB[i : i+1]
		}
	}()
	var next [2][flows]int
	for f := range flows {
		next[0][f], next[1][f] = f, f
	}
	for i := range n {
		for side, e := range []*end{b, a} {
			p := within(t, fmt.Sprintf("packet %d", i), e.got)
			flow := int(p[15]) - 5
			if want := [][][]byte{fromA, fromB}[side][next[side][flow]]; !bytes.Equal(p, want) {
				t.Fatalf("side %d, flow %d: got %x, want packet %d, %x", side, flow, p, next[side][flow], want)
			}
			next[side][flow] += flows
		}
		between(i)
	}
	<-sent
	for _, e := range []*end{a, b} {
		if d := e.Drops(); len(d) != 0 {
			t.Errorf("drops %v", d)
		}
	}
}

func TestTwoVTEPs(t *testing.T) {
	for _, framing := range []string{"vxlan", "udp"} {
		t.Run(framing, func(t *testing.T) {
			a, b, stop := join(t, framing)
			const n = 300
			exchange(t, a, b, n, func(int) {})
			stop() // a worker counts its last packet after that has arrived
			for _, e := range []*end{a, b} {
				if c := e.peer.Counters; c.TxPackets.Load() != n || c.RxPackets.Load() != n || c.TxBytes.Load() != c.RxBytes.Load() {
					t.Errorf("sent %d packets of %d bytes, received %d of %d, want %d each way", c.TxPackets.Load(), c.TxBytes.Load(), c.RxPackets.Load(), c.RxBytes.Load(), n)
				}
			}
		})
	}
}

// A change of the table neither stalls nor loses a packet, and is seen by the next one.
func TestSetTableWhileTrafficFlows(t *testing.T) {
	a, b, _ := join(t, "vxlan")
	changes := 0
	exchange(t, a, b, 1500, func(i int) {
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
	if changes != 3000 {
		t.Errorf("%d changes", changes)
	}
}

func TestPeerRemovedAndAdded(t *testing.T) {
	x := newBench(t, "vxlan")
	p := udpPacket(t, "10.1.0.5", "10.2.0.5", "x")
	if len(x.send(t, p)) != 1 {
		t.Fatal("not sent at first")
	}
	x.SetTable(fib.New([]*fib.Peer{x.c}))
	if len(x.send(t, p)) != 0 || x.Drops()["no-route"] != 1 {
		t.Errorf("after the peer was removed: drops %v", x.Drops())
	}
	x.dev.takeWritten() // the ICMP error
	if len(x.receive(t, x.from(t, nodeB, udpPacket(t, "10.2.0.5", "10.1.0.5", "x")))) != 0 || x.Drops()["unknown-source"] != 1 {
		t.Errorf("a removed peer's packet: drops %v", x.Drops())
	}
	moved := &fib.Peer{Subnet: nodeB.subnet, PublicIP: stranger, MAC: nodeB.mac, Counters: x.b.Counters}
	x.SetTable(fib.New([]*fib.Peer{moved}))
	if sent := x.send(t, p); len(sent) != 1 || sent[0].Addr.Addr() != stranger || x.b.Counters.TxPackets.Load() != 2 {
		t.Errorf("after the peer moved: sent %+v", sent)
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
		{"cancelled, closed by the caller too", func(x *bench, cancel func()) { cancel(); x.dev.Close(); x.und.Close() }, nil},
		{"device fails", func(x *bench, _ func()) { x.dev.fail <- broken }, broken},
		{"underlay fails", func(x *bench, _ func()) { x.und.fail <- broken }, broken},
		{"device closed unasked", func(x *bench, _ func()) { x.dev.Close() }, os.ErrClosed},
		{"underlay closed unasked", func(x *bench, _ func()) { x.und.Close() }, os.ErrClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newBench(t, "vxlan")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- x.Run(ctx) }()
			c.end(x, cancel)
			if err := within(t, "the end of Run", done); !errors.Is(err, c.want) {
				t.Errorf("Run ends with %v, want %v", err, c.want)
			}
			for what, closed := range map[string]chan struct{}{"device": x.dev.closed, "underlay": x.und.closed} {
				select {
				case <-closed:
				default:
					t.Errorf("Run left the %s open", what)
				}
			}
		})
	}
}
