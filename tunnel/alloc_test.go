package tunnel

import (
	"fmt"
	"testing"

	"muslin/tunnel/fib"
)

// steadyDevice and steadyUnderlay give the same batch for ever and swallow what they get, without an
// allocation of their own.
type steadyDevice struct {
	packets [][]byte
	written int
}

func (d *steadyDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for i, p := range d.packets {
		sizes[i] = copy(bufs[i][offset:], p)
	}
	return len(d.packets), nil
}

func (d *steadyDevice) Write(bufs [][]byte, _ int) (int, error) {
	d.written += len(bufs)
	return len(bufs), nil
}

func (*steadyDevice) Close() error     { return nil }
func (*steadyDevice) Overflow() uint64 { return 0 }

type steadyUnderlay struct {
	datagrams []Datagram
	sent      int
}

func (u *steadyUnderlay) Send(ds []Datagram) error {
	u.sent += len(ds)
	return nil
}

func (u *steadyUnderlay) Receive(ds []Datagram) (int, error) {
	for i := range u.datagrams {
		from, to := &u.datagrams[i], &ds[i]
		to.Buf = to.Buf[:copy(to.Buf, from.Buf)]
		to.Addr, to.ECN, to.Truncated = from.Addr, from.ECN, false
	}
	return len(u.datagrams), nil
}

func (*steadyUnderlay) Overflow() uint64     { return 0 }
func (*steadyUnderlay) SendOverflow() uint64 { return 0 }
func (*steadyUnderlay) Close() error         { return nil }

// steady is a VTEP with full batches waiting on both sides; bad of each batch are dropped.
func steady(t testing.TB, framing string, size, bad int) (*VTEP, *steadyDevice, *steadyUnderlay) {
	t.Helper()
	dev, und := &steadyDevice{}, &steadyUnderlay{}
	x := newBench(t, framing)
	for i := range BatchSize {
		remote := fmt.Sprintf("10.2.0.%d", i)
		if i < bad {
			remote = fmt.Sprintf("10.9.0.%d", i)
		}
		in := sized(t, remote, "10.1.0.5", size)
		if i%2 == 0 {
			leavePartial(in)
		}
		dev.packets = append(dev.packets, sized(t, "10.1.0.5", remote, size))
		und.datagrams = append(und.datagrams, x.from(t, nodeB, in))
	}
	v := newVTEP(t, nodeA, framing, dev, und)
	v.SetTable(fib.New([]*fib.Peer{nodeB.peer(), nodeC.peer()}))
	return v, dev, und
}

func TestNoAllocation(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for _, framing := range []string{"vxlan", "udp"} {
		for _, bad := range []int{0, 16} { // drops and ICMP errors cost no memory either
			v, dev, und := steady(t, framing, 1400, bad)
			const runs = 50
			if n := testing.AllocsPerRun(runs, func() { must(t, v.out.batch()) }); n != 0 {
				t.Errorf("%s, %d of %d bad: %v allocations a batch outbound", framing, bad, BatchSize, n)
			}
			if want := (runs + 1) * (BatchSize - bad); und.sent != want {
				t.Errorf("%s, %d bad: %d datagrams sent, want %d", framing, bad, und.sent, want)
			}
			answers := dev.written
			if n := testing.AllocsPerRun(runs, func() { must(t, v.in.batch()) }); n != 0 {
				t.Errorf("%s, %d of %d bad: %v allocations a batch inbound", framing, bad, BatchSize, n)
			}
			if want := (runs + 1) * (BatchSize - bad); dev.written-answers != want {
				t.Errorf("%s, %d bad: %d packets delivered, want %d", framing, bad, dev.written-answers, want)
			}
			if bad > 0 && answers < icmpBurst {
				t.Errorf("%s: %d ICMP errors, want %d at least", framing, answers, icmpBurst)
			}
		}
	}
}

func must(t testing.TB, err error) {
	if err != nil {
		t.Fatal(err)
	}
}

// Both are per batch of 64 packets; MB/s is inner packets.
func benchmarkBatch(b *testing.B, batch func(v *VTEP) error) {
	for _, framing := range []string{"vxlan", "udp"} {
		b.Run(framing, func(b *testing.B) {
			v, _, _ := steady(b, framing, 1448, 0)
			b.ReportAllocs()
			b.SetBytes(BatchSize * 1448)
			for b.Loop() {
				must(b, batch(v))
			}
		})
	}
}

func BenchmarkOutboundBatch(b *testing.B) {
	benchmarkBatch(b, func(v *VTEP) error { return v.out.batch() })
}

func BenchmarkInboundBatch(b *testing.B) {
	benchmarkBatch(b, func(v *VTEP) error { return v.in.batch() })
}
