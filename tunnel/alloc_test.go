package tunnel

import (
	"fmt"
	"testing"

	"github.com/google/gopacket/layers"

	"muslin/encap"
	"muslin/tunnel/fib"
	"muslin/tunnel/gso"
	"muslin/tunnel/racetest"
)

// steadyDevice and steadyUnderlay give the same batch for ever and swallow what they get, without an
// allocation of their own.
type steadyDevice struct {
	packets []inner
	written int
	replies int
}

func (d *steadyDevice) Queues() []DeviceQueue { return []DeviceQueue{d} }

func (d *steadyDevice) Read(slab []byte, ps []Packet, headroom int) (int, error) {
	at := 0
	for i := range d.packets {
		end := at + headroom + copy(slab[at+headroom:], d.packets[i].p)
		ps[i] = Packet{Buf: slab[at:end], Info: d.packets[i].info}
		at = end
	}
	return len(d.packets), nil
}

func (d *steadyDevice) Write(runs []gso.Run) (taken int, err error) {
	for i := range runs {
		taken += runs[i].Segments
	}
	d.written += taken
	return taken, nil
}

func (d *steadyDevice) Reply([]byte, int) error {
	d.replies++
	return nil
}

func (*steadyDevice) Joins() (tcp, udp bool) { return true, true }
func (*steadyDevice) Pause() error           { return nil }
func (*steadyDevice) Resume() error          { return nil }
func (*steadyDevice) Close() error           { return nil }
func (*steadyDevice) Overflow() uint64       { return 0 }

type steadyUnderlay struct {
	datagrams []Datagram
	sent      int
}

func (u *steadyUnderlay) Queues() []UnderlayQueue { return []UnderlayQueue{u} }

func (u *steadyUnderlay) Send(ms []Message) error {
	for i := range ms {
		u.sent += ms[i].Segments
	}
	return nil
}

func (u *steadyUnderlay) MaxSegments() int { return 127 }

func (u *steadyUnderlay) Receive(ds []Datagram) (int, error) {
	n := min(len(u.datagrams), len(ds))
	for i := range n {
		from, to := &u.datagrams[i], &ds[i]
		to.Buf = to.Buf[:copy(to.Buf, from.Buf)]
		to.Size, to.Addr, to.ECN, to.Truncated = from.Size, from.Addr, from.ECN, false
	}
	return n, nil
}

func (*steadyUnderlay) SetPeers(_ *fib.Table, use func()) { use() }
func (*steadyUnderlay) Losses() Losses                    { return Losses{} }
func (*steadyUnderlay) SendOverflow() uint64              { return 0 }
func (*steadyUnderlay) Pause() error                      { return nil }
func (*steadyUnderlay) Resume() error                     { return nil }
func (*steadyUnderlay) Close() error                      { return nil }

// load is what waits on both sides for ever.
type load struct {
	name              string
	out               []inner
	in                []Datagram
	sent, got, answer int // packets that come of a batch, and of out ICMP errors
}

// smallLoad is full batches of packets of size bytes, of 64 flows; bad of each are dropped.
func smallLoad(t testing.TB, x *bench, size, bad int) load {
	t.Helper()
	_, b, _, _ := x.nodes()
	l := load{name: fmt.Sprintf("%d bytes, %d bad", size, bad), sent: BatchSize - bad, got: BatchSize - bad, answer: bad}
	for i := range BatchSize {
		remote := fmt.Sprintf("10.2.0.%d", i)
		if i < bad {
			remote = fmt.Sprintf("10.9.0.%d", i)
		}
		local, remote := x.addr("10.1.0.5"), x.addr(remote)
		in := sized(t, remote, local, size)
		if i%2 == 0 {
			in = unfinished(in).p
		}
		l.out = append(l.out, inner{p: sized(t, local, remote, size)})
		l.in = append(l.in, x.from(t, b, in))
	}
	return l
}

// streamLoad is superpackets outbound, and joined datagrams inbound, of one flow.
func streamLoad(t testing.TB, x *bench, udp bool) load {
	t.Helper()
	size, n := 1398, 44 // as many as one buffer holds
	if x.node.six() {
		size = 1378
	}
	_, b, _, _ := x.nodes()
	local, remote := x.addr("10.1.0.5"), x.addr("10.2.0.5")
	packet := func(src, dst string, i, segments int) []byte {
		if udp {
			return udpPacket(t, src, dst, string(numbered(segments*size)), func(ip *layers.IPv4) { ip.Flags = layers.IPv4DontFragment })
		}
		return tcpPacket(t, src, dst, uint32(i*size), numbered(segments*size), setDF)
	}
	l := load{name: fmt.Sprintf("superpackets, UDP %v", udp), sent: slabPackets * n, got: fewDatagrams * n}
	for i := range slabPackets {
		l.out = append(l.out, superpacket(packet(local, remote, i*n, n), size))
	}
	for i := range fewDatagrams {
		var ds []Datagram
		for k := range n {
			ds = append(ds, x.from(t, b, packet(remote, local, i*n+k, 1)))
		}
		l.in = append(l.in, joined(ds...))
	}
	return l
}

// mixedLoad is packets of all kinds from both peers: superpackets of a kernel peer, joined and single ones.
func mixedLoad(t testing.TB, x *bench) load {
	t.Helper()
	l, headers := load{name: "mixed"}, 40
	if x.node.six() {
		headers = 60
	}
	a, b, c, _ := x.nodes()
	tr := newTraffic(1, 20, a, b, c)
	for length := 0; ; {
		packet := tr.next(t, tr.flows[len(l.out)%len(tr.flows)])
		if length += len(packet.p) + PacketRoom(0) - maxPacket; length > (slabPackets-1)*maxPacket || len(l.out) == BatchSize {
			break
		}
		l.out = append(l.out, packet)
		l.sent += len(cut(packet.p, packet.info))
	}
	for i := range fewDatagrams / 2 {
		from, address, local := b, x.addr("10.2.0.5"), x.addr("10.1.0.5")
		if i%2 == 0 {
			from, address = c, x.addr("10.3.0.5")
		}
		super := x.from(t, from, superpacket(tcpPacket(t, address, local, uint32(i), numbered(40*(testMTU-headers))), 1000).p)
		single := x.from(t, from, udpPacket(t, address, local, string(numbered(i*100))))
		l.in = append(l.in, super, joined(single, single, single))
		l.got += 40 + 3
	}
	return l
}

func steady(t testing.TB, n node, framing string, l load) (*VTEP, *steadyDevice, *steadyUnderlay) {
	t.Helper()
	dev, und := &steadyDevice{packets: l.out}, &steadyUnderlay{datagrams: l.in}
	v := newVTEP(t, n, framing, dev, und)
	v.SetTable(fib.New([]*fib.Peer{nodeB.peer(), nodeC.peer(), nodeB6.peer(), nodeC6.peer()}))
	return v, dev, und
}

func TestNoAllocation(t *testing.T) {
	if racetest.Enabled {
		t.Skip("the race detector allocates")
	}
	for _, framing := range framingNames {
		x, x6 := newBench(t, framing), newBench6(t, framing)
		for _, l := range []load{
			smallLoad(t, x, 1400, 0), smallLoad(t, x, 1400, 16), smallLoad(t, x, 92, 0), // drops and ICMP errors cost no memory either
			streamLoad(t, x, false), streamLoad(t, x, true), mixedLoad(t, x),
		} {
			checkNoAllocation(t, nodeA, framing, l)
		}
		for _, l := range []load{
			smallLoad(t, x6, 1400, 0), smallLoad(t, x6, 1400, 16), smallLoad(t, x6, 92, 0),
			streamLoad(t, x6, false), streamLoad(t, x6, true), mixedLoad(t, x6),
		} {
			l.name = "IPv6, " + l.name
			checkNoAllocation(t, nodeA6, framing, l)
		}
	}
}

func checkNoAllocation(t *testing.T, node node, framing string, l load) {
	t.Helper()
	v, dev, und := steady(t, node, framing, l)
	for range 3 { // until as many datagrams are received at once as always will be
		must(t, v.in[0].batch())
	}
	dev.written = 0
	const runs = 50
	if n := testing.AllocsPerRun(runs, func() { must(t, v.out[0].batch()) }); n != 0 {
		t.Errorf("%s, %s: %v allocations a batch outbound", framing, l.name, n)
	}
	if want := (runs + 1) * l.sent; und.sent != want {
		t.Errorf("%s, %s: %d datagrams sent, want %d", framing, l.name, und.sent, want)
	}
	if n := testing.AllocsPerRun(runs, func() { must(t, v.in[0].batch()) }); n != 0 {
		t.Errorf("%s, %s: %v allocations a batch inbound", framing, l.name, n)
	}
	if want := (runs + 1) * l.got; dev.written != want {
		t.Errorf("%s, %s: %d packets delivered, want %d", framing, l.name, dev.written, want)
	}
	if l.answer > 0 && dev.replies < icmpBurst {
		t.Errorf("%s, %s: %d ICMP errors, want %d at least", framing, l.name, dev.replies, icmpBurst)
	}
}

func must(t testing.TB, err error) {
	if err != nil {
		t.Fatal(err)
	}
}

// Both are per batch: 64 packets of one flow each, or four superpackets outbound and eight joined buffers
// inbound. MB/s is inner packets.
func benchmarkBatch(b *testing.B, batch func(v *VTEP) error, bytes func(v *VTEP, l *load) int) {
	for _, framing := range framingNames {
		for _, n := range []node{nodeA, nodeA6} {
			x, suffix := newBenchOf(b, n, framing, 1), ""
			if n.six() {
				suffix = "/ipv6"
			}
			for _, l := range []load{smallLoad(b, x, 92, 0), smallLoad(b, x, 1448, 0), streamLoad(b, x, false), streamLoad(b, x, true)} {
				b.Run(framing+"/"+l.name+suffix, func(b *testing.B) {
					v, _, _ := steady(b, n, framing, l)
					b.ReportAllocs()
					b.SetBytes(int64(bytes(v, &l)))
					for b.Loop() {
						must(b, batch(v))
					}
				})
			}
		}
	}
}

func BenchmarkOutboundBatch(b *testing.B) {
	benchmarkBatch(b, func(v *VTEP) error { return v.out[0].batch() }, func(_ *VTEP, l *load) (n int) {
		for _, packet := range l.out {
			n += len(packet.p)
		}
		return n
	})
}

func BenchmarkInboundBatch(b *testing.B) {
	benchmarkBatch(b, func(v *VTEP) error { return v.in[0].batch() }, func(v *VTEP, l *load) (n int) {
		var h encap.Header
		for _, d := range l.in {
			if p := d.Buf[v.cfg.Framing.Headroom():]; v.six {
				encap.ParseIPv6(p, len(d.Buf), &h)
			} else {
				encap.ParseIPv4(p, len(d.Buf), &h)
			}
			n += h.TotalLen * l.got / len(l.in)
		}
		return n
	})
}
