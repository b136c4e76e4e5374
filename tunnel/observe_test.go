package tunnel

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/google/gopacket/layers"

	"muslin/tunnel/racetest"
)

// recorder is an Observer that keeps copies.
type recorder struct {
	mu  sync.Mutex
	all []recorded
}

// recorded is a Seen with its bytes.
type recorded struct {
	Seen
	b []byte
}

func (r *recorder) Observe(s *Seen) {
	r.mu.Lock()
	defer r.mu.Unlock()
	one := recorded{*s, s.AppendTo(nil, s.Len)}
	one.Bufs = nil
	r.all = append(r.all, one)
}

func (r *recorder) take() []recorded {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.all
	r.all = nil
	return all
}

// at are the bytes of what was told of one point.
func at(all []recorded, p Points) (b [][]byte) {
	for _, s := range all {
		if s.Point == p {
			b = append(b, s.b)
		}
	}
	return b
}

func observed(x *bench, at Points) *recorder {
	r := new(recorder)
	x.Observe(r, at)
	return r
}

const everywhere = PointInner | PointOuter | PointDrop

// sameBytes fails the test unless both are the same, one by one.
func sameBytes(t *testing.T, what string, got, want [][]byte) {
	t.Helper()
	if len(want) == 0 || !slices.EqualFunc(got, want, bytes.Equal) {
		t.Errorf("%s: told of %d: %x\nwant %d: %x", what, len(got), got, len(want), want)
	}
}

// What is sent and received is told as it was, in each direction, framing and family.
func TestObserve(t *testing.T) {
	for _, name := range framingNames {
		for _, nodes := range families {
			x := newBenchOf(t, nodes[0], name, 1)
			local, remote := x.addr("10.1.0.5"), x.addr("10.2.0.5")
			r := observed(x, everywhere)

			small := udpPacket(t, local, remote, "small")
			super := superpacket(tcpPacket(t, local, remote, 1, numbered(2500)), 1000)
			ds := x.send(t, inner{p: small}, super)
			told := r.take()
			sameBytes(t, name+" inner outbound", at(told, PointInner), [][]byte{small, super.p})
			var sent [][]byte
			for _, d := range ds {
				sent = append(sent, d.buf)
			}
			sameBytes(t, name+" outer outbound", at(told, PointOuter), sent)
			if len(sent) != 4 || len(told) != 6 {
				t.Errorf("%s: %d datagrams, told of %d things: want 4 and 6", name, len(sent), len(told))
			}
			for _, s := range told {
				if s.Inbound || s.Peer == nil || s.Peer.PublicIP != nodes[1].public || s.At.IsZero() || s.Outer != (s.Point == PointOuter) ||
					s.Outer && s.Dst != netip.AddrPortFrom(nodes[1].public, port) {
					t.Errorf("%s outbound: %+v", name, s.Seen)
				}
			}
			if s := told[1]; s.Segments != 3 || s.Info.Kind != super.info.Kind || s.Info.Size != 1000 {
				t.Errorf("%s: a superpacket of 3 is told as %+v", name, s.Seen)
			}

			back := udpPacket(t, remote, local, "back")
			one := x.from(t, nodes[1], back)
			two := joined(one, one, x.from(t, nodes[1], udpPacket(t, remote, local, "b")))
			wire := slices.Clone(one.Buf)
			got := x.receive(t, one, two)
			told = r.take()
			sameBytes(t, name+" inner inbound", at(told, PointInner), got)
			outer := at(told, PointOuter)
			if len(outer) != 4 || !bytes.Equal(outer[0], wire) || !bytes.Equal(outer[2], wire) || len(outer[3]) != len(wire)-3 {
				t.Errorf("%s: outer inbound %x", name, outer)
			}
			for _, s := range told {
				if !s.Inbound || s.Outer && s.Src != one.Addr || !s.Outer && s.Peer.PublicIP != nodes[1].public {
					t.Errorf("%s inbound: %+v", name, s.Seen)
				}
			}
		}
	}
}

// Each drop of the workers is told once, with its reason and its bytes.
func TestObserveDrops(t *testing.T) {
	for _, n := range []node{nodeA, nodeA6} {
		x := newBenchOf(t, n, "vxlan", 1)
		_, b, _, strange := x.nodes()
		r := observed(x, PointDrop)
		local, remote := x.addr("10.1.0.5"), x.addr("10.2.0.5")

		check := func(what string, reason Reason, segments int, want ...[]byte) {
			t.Helper()
			told := r.take()
			sameBytes(t, what, at(told, PointDrop), want)
			for _, s := range told {
				if s.Reason != reason || s.Segments != segments || s.Point != PointDrop {
					t.Errorf("%s: told %+v, want reason %v and %d segments", what, s.Seen, reason, segments)
				}
			}
		}
		nowhere := udpPacket(t, local, x.addr("10.9.0.5"), "x")
		x.sendPlain(t, nowhere)
		check("no route", DropNoRoute, 1, nowhere)
		super := superpacket(tcpPacket(t, local, x.addr("10.9.0.5"), 1, numbered(2500)), 1000)
		x.send(t, super)
		check("no route for a superpacket", DropNoRoute, 3, super.p)
		long := udpPacket(t, local, remote, string(numbered(testMTU)), func(ip *layers.IPv4) { ip.Flags = layers.IPv4DontFragment })
		x.sendPlain(t, long)
		check("too big", DropTooBig, 1, long)
		x.sendPlain(t, []byte{0x15, 1, 2})
		check("malformed", DropMalformed, 1, []byte{0x15, 1, 2})

		x.und.refuse = func(d *outer) error {
			if d.last {
				return errors.New("refused")
			}
			return nil
		}
		super = superpacket(tcpPacket(t, local, remote, 1, numbered(2000)), 1000)
		x.send(t, super)
		x.und.refuse = nil
		told := r.take()
		if len(told) != 1 || told[0].Reason != DropSendFailed || !told[0].Outer || !bytes.Equal(told[0].b[len(told[0].b)-1000:], numbered(2000)[1000:]) {
			t.Errorf("send failed: told %+v", told)
		}

		in := x.from(t, b, udpPacket(t, remote, local, "in"))
		from := func(edit func(d *Datagram)) []byte {
			d := in
			d.Buf = slices.Clone(in.Buf)
			edit(&d)
			want := slices.Clone(d.Buf)
			x.receive(t, d)
			return want
		}
		check("stranger", DropUnknownSource, 1, from(func(d *Datagram) { d.Addr = netip.AddrPortFrom(strange, 1) }))
		check("VNI", DropVNI, 1, from(func(d *Datagram) { d.Buf[6]++ }))
		check("short", DropShort, 1, from(func(d *Datagram) { d.Buf = d.Buf[:5] }))
		check("empty", DropShort, 1, from(func(d *Datagram) { d.Buf = nil }))
		three := joined(in, in, in)
		three.Addr = netip.AddrPortFrom(strange, 1)
		x.receive(t, three)
		check("three of a stranger", DropUnknownSource, 1, in.Buf, in.Buf, in.Buf)

		x.dev.refuse = func([]byte) error { return errors.New("down") }
		packet := udpPacket(t, remote, local, "in")
		x.receive(t, x.from(t, b, packet))
		x.dev.refuse = nil
		check("TUN write", DropTUNWrite, 1, packet)

		var counted uint64
		for _, c := range x.Drops() {
			counted += c
		}
		if want := uint64(1 + 3 + 1 + 1 + 1 + 4 + 3 + 1); counted != want {
			t.Errorf("%d drops are counted, want %d", counted, want)
		}
	}
}

// Who asks for one point is not told of others; who stops is told of nothing more; several are told at once.
func TestObserveSeveral(t *testing.T) {
	x := newBench(t, "vxlan")
	packet := udpPacket(t, "10.1.0.5", "10.2.0.5", "x")
	first, second := new(recorder), new(recorder)
	stop := x.Observe(first, PointInner)
	stopSecond := x.Observe(second, PointOuter)
	x.sendPlain(t, packet)
	if a, b := first.take(), second.take(); len(a) != 1 || a[0].Point != PointInner || len(b) != 1 || b[0].Point != PointOuter {
		t.Errorf("the first is told %+v, the second %+v", a, b)
	}
	stop()
	stop()
	x.sendPlain(t, packet)
	if a, b := first.take(), second.take(); len(a) != 0 || len(b) != 1 {
		t.Errorf("after its end the first is told %+v, the second %+v", a, b)
	}
	stopSecond()
	if x.watch.now.Load() != nil {
		t.Error("somebody observes still")
	}
}

// An ICMP error of our own is told as what goes to the TUN device, of no peer.
func TestObserveReply(t *testing.T) {
	x := newBench(t, "vxlan")
	r := observed(x, PointInner)
	x.sendPlain(t, udpPacket(t, "10.1.0.5", "10.9.0.5", "x"))
	told := r.take()
	sameBytes(t, "ICMP", at(told, PointInner), x.dev.takeReplies())
	if s := told[0]; !s.Inbound || s.Peer != nil {
		t.Errorf("told %+v", s.Seen)
	}
}

// With an Engine there are no datagrams of ours to tell of.
func TestObserveEngine(t *testing.T) {
	x := newBench(t, "udp")
	x.out[0].engine, x.in[0].engine = true, true
	r := observed(x, everywhere)
	out, in := udpPacket(t, "10.1.0.5", "10.2.0.5", "x"), udpPacket(t, "10.2.0.5", "10.1.0.5", "x")
	x.sendPlain(t, out)
	x.receive(t, x.from(t, nodeB, in))
	x.receive(t, x.from(t, nodeB, in[:12]))
	told := r.take()
	sameBytes(t, "inner", at(told, PointInner), [][]byte{out, in})
	sameBytes(t, "dropped", at(told, PointDrop), [][]byte{in[:12]})
	if len(told) != 3 || told[2].Outer {
		t.Errorf("told of %+v", told)
	}
}

// counter is an Observer that looks at each byte's place and keeps nothing.
type counter struct{ packets, bytes int }

func (c *counter) Observe(s *Seen) { c.packets, c.bytes = c.packets+s.Segments, c.bytes+s.Len }

// Telling allocates nothing.
func TestObserveNoAllocation(t *testing.T) {
	if racetest.Enabled {
		t.Skip("the race detector allocates")
	}
	x := newBench(t, "vxlan")
	for _, l := range []load{smallLoad(t, x, 1400, 16), streamLoad(t, x, false), mixedLoad(t, x)} {
		v, _, _ := steady(t, nodeA, "vxlan", l)
		c := new(counter)
		v.Observe(c, everywhere)
		for range 3 {
			must(t, v.in[0].batch())
		}
		for what, batch := range map[string]func() error{"outbound": v.out[0].batch, "inbound": v.in[0].batch} {
			c.packets = 0
			if n := testing.AllocsPerRun(20, func() { must(t, batch()) }); n != 0 {
				t.Errorf("%s, %s: %v allocations a batch", l.name, what, n)
			}
			if c.packets < 20*l.got {
				t.Errorf("%s, %s: told of %d packets only", l.name, what, c.packets)
			}
		}
	}
}

// Per batch: with nobody who observes (what BenchmarkOutboundBatch measures), and with somebody who only counts.
func BenchmarkObserve(b *testing.B) {
	x := newBench(b, "vxlan")
	for _, l := range []load{smallLoad(b, x, 92, 0), streamLoad(b, x, false)} {
		for _, points := range []Points{0, PointDrop, PointInner, PointOuter, everywhere} {
			v, _, _ := steady(b, nodeA, "vxlan", l)
			if points != 0 {
				v.Observe(new(counter), points)
			}
			for what, batch := range map[string]func() error{"out": v.out[0].batch, "in": v.in[0].batch} {
				b.Run(fmt.Sprintf("%s/%s/points=%d", l.name, what, points), func(b *testing.B) {
					for b.Loop() {
						must(b, batch())
					}
				})
			}
		}
	}
}

// A Member knows the source as its port's sockets do.
func TestMemberSource(t *testing.T) {
	want := netip.MustParseAddrPort("192.0.2.1:40007")
	q := memberQueue{sourcedQueue{new(fakeUnderlayQueue), want}, nil}
	if got := sourceOf(q)(7); got != want {
		t.Errorf("source %v, want %v", got, want)
	}
	if got := sourceOf(memberQueue{new(fakeUnderlayQueue), nil})(7); got.IsValid() {
		t.Errorf("the source of a queue that knows none: %v", got)
	}
}

type sourcedQueue struct {
	*fakeUnderlayQueue
	source netip.AddrPort
}

func (q sourcedQueue) Source(uint8) netip.AddrPort { return q.source }
