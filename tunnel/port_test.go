package tunnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"muslin/encap"
	"muslin/tunnel/fib"
	"muslin/tunnel/racetest"
)

// fakeShareable is a Shareable in memory: what is received comes from its own queues, what a share sends goes to the
// share's.
type fakeShareable struct {
	*fakeUnderlay
	shares  []*fakeShare
	lost    func() Losses
	resumed atomic.Int32
}

func newFakeShareable(queues int) *fakeShareable {
	return &fakeShareable{fakeUnderlay: newFakeUnderlay(queues)}
}

func (u *fakeShareable) Share() Share {
	s := &fakeShare{fakeUnderlay: newFakeUnderlay(len(u.queues))}
	u.shares = append(u.shares, s)
	return s
}

func (u *fakeShareable) Losses() Losses {
	if u.lost == nil {
		return Losses{}
	}
	return u.lost()
}

func (u *fakeShareable) Resume() error {
	u.resumed.Add(1)
	return u.fakeUnderlay.Resume()
}

func (u *fakeShareable) paused() bool {
	paused, _ := u.look()
	return paused
}

// fakeShare implements Share. Closing it twice is a breach: the port is to do it once.
type fakeShare struct {
	*fakeUnderlay
	gone atomic.Bool
}

func (s *fakeShare) Close() error {
	if s.gone.Swap(true) {
		s.breach("a share is closed again")
	}
	return nil
}

// networkOf is the framing of a node in the network with that VNI.
func networkOf(t testing.TB, n node, vni uint32) encap.Framing {
	t.Helper()
	v, err := encap.NewVNI(vni)
	must(t, err)
	if n.six() {
		return encap.NewVXLAN6(v, n.mac)
	}
	return encap.NewVXLAN(v, n.mac)
}

// sharedPort is a port whose members are VTEPs of one node, with the networks' inner addresses all the same.
type sharedPort struct {
	*Port
	und  *fakeShareable
	ends []*sharer
}

// sharer is a VTEP at a shared port.
type sharer struct {
	*bench
	member *Member
	share  *fakeShare
}

func newSharedPort(t testing.TB, n node, queues int, vnis ...uint32) *sharedPort {
	t.Helper()
	und := newFakeShareable(queues)
	p := &sharedPort{Port: NewPort(und), und: und}
	for _, vni := range vnis {
		p.join(t, n, vni)
	}
	return p
}

func (p *sharedPort) join(t testing.TB, n node, vni uint32) *sharer {
	t.Helper()
	v, err := encap.NewVNI(vni)
	must(t, err)
	m, err := p.Join(v)
	must(t, err)
	x := &sharer{member: m, share: p.und.shares[len(p.und.shares)-1]}
	x.bench = &bench{node: n, name: "vxlan", device: newFakeDevice(len(p.und.queues)), underlay: x.share.fakeUnderlay}
	x.dev, x.bench.und = x.device.queues[0], x.share.queues[0]
	x.VTEP = newVTEP(t, n, "vxlan", x.device, m, func(cfg *Config) { cfg.Framing = networkOf(t, n, vni) })
	x.renewPeers()
	p.ends = append(p.ends, x)
	return x
}

// feed makes all VTEPs run, as far as a test needs that calls carry itself.
func (p *sharedPort) feed(t testing.TB) {
	t.Helper()
	for _, x := range p.ends {
		must(t, x.member.Feed(x.carriers()))
	}
}

// framed is a datagram of a peer to node A in a network.
func framed(t testing.TB, vni uint32, from node, packet []byte) Datagram {
	t.Helper()
	to := nodeA
	if from.six() {
		to = nodeA6
	}
	f := networkOf(t, from, vni)
	buf := append(make([]byte, f.Headroom()), packet...)
	f.Encode(buf, to.mac)
	return Datagram{Buf: buf, Addr: netip.AddrPortFrom(from.public, 40000)}
}

// Whatever the kernel joins of the datagrams of three networks, each VTEP delivers and counts what it would at a port of
// its own, where they come one by one.
func TestSharedPortAgainstOwnPorts(t *testing.T) {
	for seed, nodes := range map[uint64][3]node{1: families[0], 2: families[0], 3: families[1]} {
		rng := rand.New(rand.NewPCG(seed, 5))
		const queue = 1
		p := newSharedPort(t, nodes[0], 2, 1, 2, 0xabcdef)
		p.feed(t)
		vnis := []uint32{1, 2, 0xabcdef, 7} // nobody has the last
		var own, senders []*bench
		var flows []*traffic
		for i, vni := range vnis {
			mine := vni
			if i == len(vnis)-1 {
				mine = 8 // so that it counts what is nobody's
			}
			own = append(own, newBenchOf(t, nodes[0], "vxlan", 1, func(cfg *Config) { cfg.Framing = networkOf(t, nodes[0], mine) }))
			senders = append(senders, newBenchOf(t, nodes[1], "vxlan", 1, func(cfg *Config) { cfg.Framing = networkOf(t, nodes[1], vni) }))
			flows = append(flows, newTraffic(seed+uint64(i), 3, nodes[1], nodes[0]))
		}
		mixed, orphans := 0, 0
		for range 150 {
			var sent []outer
			from := make(map[*byte]int) // by where a datagram begins
			for range 1 + rng.IntN(6) {
				i := rng.IntN(len(senders))
				for _, o := range senders[i].send(t, flows[i].batch(t, 6)...) {
					if rng.IntN(40) == 0 {
						o.buf = o.buf[:rng.IntN(12)+1]
					}
					o.buf = bytes.Clone(o.buf)
					o.port %= 2 // so that much is joined
					from[&o.buf[0]] = i
					at := len(sent)
					if rng.IntN(2) == 0 {
						at = rng.IntN(at + 1)
						for at < len(sent) && from[&sent[at].buf[0]] == i { // keep the network's own order
							at++
						}
						if slices.ContainsFunc(sent[at:], func(later outer) bool { return from[&later.buf[0]] == i }) {
							at = len(sent)
						}
					}
					sent = slices.Insert(sent, at, o)
				}
			}
			for _, o := range sent {
				i := from[&o.buf[0]]
				d := Datagram{Buf: bytes.Clone(o.buf), Addr: netip.AddrPortFrom(nodes[1].public, 40000+uint16(o.port)), ECN: o.ecn}
				if i == len(vnis)-1 || len(o.buf) < 8 {
					orphans++
					i = len(vnis) - 1
				}
				own[i].in[0].carry([]Datagram{d})
			}
			ds := received(senders[0].node, sent, func() bool { return rng.IntN(8) > 0 })
			for _, d := range ds {
				vni := vniOf(d.Buf)
				for at := 0; d.Size > 0 && at < len(d.Buf); at += d.Size {
					if vniOf(d.Buf[at:]) != vni {
						mixed++
						break
					}
				}
			}
			for len(ds) > 0 {
				n := min(len(ds), BatchSize)
				p.readers[queue].carry(ds[:n])
				ds = ds[n:]
			}
		}
		if mixed < 100 || orphans < 100 {
			t.Errorf("seed %d: %d joined datagrams of several networks, %d of none, are no test", seed, mixed, orphans)
		}
		drops, want := map[string]uint64{}, own[len(own)-1].Drops()
		for i, x := range p.ends {
			checkFlows(t, x.device.queues[queue].takeWritten(), own[i].dev.takeWritten())
			x.check(t)
			if other := x.dev.takeWritten(); len(other) != 0 {
				t.Errorf("seed %d: %d packets written to another queue", seed, len(other))
			}
			for reason, n := range x.Drops() {
				drops[reason] += n
			}
			for reason, n := range own[i].Drops() {
				want[reason] += n
			}
			if got, want := x.b.Counters.RxPackets.Load(), own[i].b.Counters.RxPackets.Load(); got != want || got == 0 {
				t.Errorf("seed %d: VTEP %d counted %d packets, want %d", seed, i, got, want)
			}
		}
		if !maps.Equal(drops, want) || want["vxlan-vni"] == 0 || want["short"] == 0 {
			t.Errorf("seed %d: drops %v, want %v", seed, drops, want)
		}
	}
}

// A superpacket of a kernel peer that is one datagram, and whose payload looks like those of another network wherever it
// would be cut, stays in one piece.
func TestSharedPortDoesNotCutOne(t *testing.T) {
	p := newSharedPort(t, nodeA, 1, 1, 2)
	p.feed(t)
	lure := framed(t, 2, nodeB, udpPacket(t, "10.2.0.5", "10.1.0.5", string(numbered(1200)))).Buf
	packet := udpPacket(t, "10.2.0.5", "10.1.0.5", string(slices.Concat(lure, lure, lure)))
	d := framed(t, 1, nodeB, packet)
	d.Size = len(lure)
	want := cut(superpacket(packet, len(lure)).p, infoOf(packet, len(lure)))
	p.readers[0].carry([]Datagram{d})
	checkFlows(t, p.ends[0].dev.takeWritten(), want)
	if got := p.ends[1].dev.takeWritten(); len(got) != 0 || len(p.ends[1].Drops()) != 0 {
		t.Errorf("the other network got %d packets and dropped %v", len(got), p.ends[1].Drops())
	}
}

// What is nobody's is counted once, by the reason that it has, with a member that knows the sender if there is one.
func TestSharedPortUnknownVNI(t *testing.T) {
	packet := udpPacket(t, "10.3.0.5", "10.1.0.5", "x")
	from := func(n node, vni uint32) Datagram { return framed(t, vni, n, packet) }
	strange := from(nodeC, 9)
	strange.Addr = netip.AddrPortFrom(stranger, 1)
	short := from(nodeC, 1)
	short.Buf = short.Buf[:7]
	badFlags := from(nodeC, 9)
	badFlags.Buf[0] = 0x88
	long := from(nodeC, 9)
	long.Truncated = true
	for name, c := range map[string]struct {
		d          Datagram
		one, other map[string]uint64 // drops of B's network, and of C's
	}{
		"VNI":             {from(nodeC, 9), nil, map[string]uint64{"vxlan-vni": 1}},
		"VNI of B":        {from(nodeB, 9), map[string]uint64{"vxlan-vni": 1}, nil},
		"joined":          {joined(from(nodeC, 9), from(nodeC, 9), from(nodeC, 8)), nil, map[string]uint64{"vxlan-vni": 3}},
		"flags":           {badFlags, nil, map[string]uint64{"vxlan-flags": 1}},
		"short":           {short, nil, map[string]uint64{"short": 1}},
		"truncated":       {long, nil, map[string]uint64{"oversized": 1}},
		"stranger":        {strange, map[string]uint64{"unknown-source": 1}, nil},
		"not B's network": {from(nodeC, 1), map[string]uint64{"unknown-source": 1}, nil},
	} {
		p := newSharedPort(t, nodeA, 1, 1, 2)
		p.ends[0].SetTable(fib.New([]*fib.Peer{nodeB.peer()}))
		p.ends[1].SetTable(fib.New([]*fib.Peer{nodeC.peer()}))
		p.feed(t)
		p.readers[0].carry([]Datagram{c.d})
		for i, want := range []map[string]uint64{c.one, c.other} {
			if got := p.ends[i].Drops(); !maps.Equal(got, want) {
				t.Errorf("%s: network %d drops %v, want %v", name, i+1, got, want)
			}
			if n := len(p.ends[i].dev.takeWritten()); n != 0 {
				t.Errorf("%s: network %d delivers %d packets", name, i+1, n)
			}
		}
	}
}

// More datagrams of one member than a batch has: a worker takes them in several.
func TestSharedPortGivesBatches(t *testing.T) {
	p := newSharedPort(t, nodeA, 1, 1, 2)
	var got [2][]int
	for i, x := range p.ends {
		must(t, x.member.Feed([]func([]Datagram){func(ds []Datagram) { got[i] = append(got[i], len(ds)) }}))
	}
	a, b := framed(t, 1, nodeB, sized(t, "10.2.0.5", "10.1.0.5", 100)), framed(t, 2, nodeB, sized(t, "10.2.0.5", "10.1.0.5", 100))
	turns := make([]Datagram, 0, 64)
	for range 32 {
		turns = append(turns, a, b)
	}
	p.readers[0].carry(slices.Repeat([]Datagram{joined(turns...)}, 5))
	if want := [2][]int{{64, 64, 32}, {64, 64, 32}}; !slices.Equal(got[0], want[0]) || !slices.Equal(got[1], want[1]) {
		t.Errorf("batches of %v datagrams, want %v", got, want)
	}
}

func TestSharedPortJoin(t *testing.T) {
	p := newSharedPort(t, nodeA, 2, 1, 2)
	one, _ := encap.NewVNI(1)
	if _, err := p.Join(one); err == nil || !strings.Contains(err.Error(), "VNI 1") {
		t.Errorf("a second member with VNI 1: %v", err)
	}
	first := p.ends[0]
	if n := len(first.member.Queues()); n != 2 {
		t.Errorf("%d queues", n)
	}
	table, used := fib.New([]*fib.Peer{nodeC.peer()}), false
	first.share.onPeers = func(got *fib.Table) {
		if got != table || used || first.Table() == table {
			t.Error("the table is in use before its peers are let in")
		}
		used = true
	}
	if first.SetTable(table); !used || first.Table() != table {
		t.Error("the table is not in use")
	}
	q := first.member.Queues()[1]
	if _, err := q.Receive(nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Receive: %v", err)
	}
	for range 2 {
		if err := first.member.Close(); err != nil {
			t.Error(err)
		}
	}
	for what, err := range map[string]error{"Send": q.Send(nil), "Pause": first.member.Pause(), "Resume": first.member.Resume()} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s after Close: %v", what, err)
		}
	}
	if !first.share.gone.Load() || p.ends[1].share.gone.Load() {
		t.Error("not just the share of the one that has left is closed")
	}
	must(t, first.member.Feed(first.carriers())) // as Run does that ends at once
	p.readers[0].carry([]Datagram{framed(t, 1, nodeB, udpPacket(t, "10.2.0.5", "10.1.0.5", "x"))})
	if got := first.dev.takeWritten(); len(got) != 0 {
		t.Error("a packet is carried to a VTEP that has left")
	}
	p.join(t, nodeA, 1)
	first.share.check(t)
}

// Who has left, or paused, has no packet under way.
func TestSharedPortAwaitsTheBatch(t *testing.T) {
	for name, stop := range map[string]func(m *Member) error{"Close": (*Member).Close, "Pause": (*Member).Pause} {
		p := newSharedPort(t, nodeA, 2, 1, 2)
		begun, finish := make(chan struct{}), make(chan struct{})
		var finished atomic.Bool
		m := p.ends[0].member
		must(t, m.Feed([]func([]Datagram){
			func([]Datagram) { t.Error("the other queue carries") },
			func([]Datagram) {
				close(begun)
				<-finish
				finished.Store(true)
			},
		}))
		r := runners{t: t}
		r.run(p, p.Port.Run)
		p.und.queues[1].in <- []Datagram{framed(t, 1, nodeB, udpPacket(t, "10.2.0.5", "10.1.0.5", "x"))}
		within(t, "a batch", begun)
		stopped := make(chan bool)
		go func() {
			if err := stop(m); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			stopped <- finished.Load()
		}()
		select {
		case <-stopped:
			t.Errorf("%s does not wait for the batch", name)
		case <-time.After(20 * time.Millisecond):
			close(finish)
			if !within(t, name, stopped) {
				t.Errorf("%s returns before the batch is carried", name)
			}
		}
		r.stop[p]()
	}
}

// A loss of the port is counted with the member that has run longest, and over all members once.
func TestSharedPortLosses(t *testing.T) {
	p := newSharedPort(t, nodeA, 1, 1, 2)
	var lost Losses
	p.und.lost = func() Losses { return lost }
	more := func(n uint64) { lost = lost.Plus(Losses{n, 10 * n, 100 * n}); p.und.sendOverflow.Add(1000 * n) }
	check := func(when string, want ...uint64) {
		t.Helper()
		for i, x := range p.ends {
			n := want[i]
			if got, over := x.member.Losses(), x.member.SendOverflow(); got != (Losses{n, 10 * n, 100 * n}) || over != 1000*n {
				t.Errorf("%s: member %d has %+v and %d, want %d", when, i, got, over, n)
			}
		}
	}
	more(1)
	check("before any runs", 0, 0)
	must(t, p.ends[1].member.Feed(p.ends[1].carriers()))
	more(2)
	check("the second runs", 0, 3)
	must(t, p.ends[0].member.Feed(p.ends[0].carriers()))
	more(4)
	check("both run", 0, 7)
	more(8)
	must(t, p.ends[1].member.Close())
	more(16)
	check("the second has left", 16, 15)
	if got, want := p.ends[0].Drops(), map[string]uint64{"socket-overflow": 16, "outer-checksum": 160, "unknown-source": 1600, "send-buffer-full": 16000}; !maps.Equal(got, want) {
		t.Errorf("drops %v, want %v", got, want)
	}
}

// runners are the goroutines of a test's port and VTEPs.
type runners struct {
	t    testing.TB
	stop map[any]func()
}

// run runs one of them until it is stopped, or at the test's end: then its error must be nil.
func (r *runners) run(who any, run func(context.Context) error) {
	if r.stop == nil {
		r.stop = make(map[any]func())
		r.t.Cleanup(func() {
			for _, stop := range r.stop {
				stop()
			}
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	r.stop[who] = func() {
		cancel()
		if err := within(r.t, "the end of Run", done); err != nil {
			r.t.Errorf("Run ends with %v", err)
		}
		delete(r.stop, who)
	}
}

// The port stands still while any member is paused, and takes nothing when a successor may be about to.
func TestSharedPortPause(t *testing.T) {
	p := newSharedPort(t, nodeA, 1, 1, 2)
	r := runners{t: t}
	a, b := p.ends[0], p.ends[1]
	got := make(chan []byte, 16)
	for _, x := range p.ends {
		x.dev.onWrite = func(packet []byte) { got <- packet }
	}
	send := func() {
		p.und.queues[0].in <- []Datagram{
			framed(t, 1, nodeB, udpPacket(t, "10.2.0.5", "10.1.0.5", "x")), framed(t, 2, nodeB, udpPacket(t, "10.2.0.5", "10.1.0.5", "x")),
		}
	}
	arrives := func(when string, packets int) {
		t.Helper()
		for range packets {
			within(t, when, got)
		}
		select {
		case <-got:
			t.Fatalf("%s: more than %d packets come", when, packets)
		case <-time.After(20 * time.Millisecond):
		}
	}
	must(t, b.Pause()) // before any runs, as with another daemon in our place
	send()
	r.run(p, p.Port.Run)
	r.run(a, a.Run)
	r.run(b, b.Run)
	must(t, a.Pause())
	must(t, b.Resume())
	must(t, b.Resume())
	arrives("one of two is paused", 0)
	must(t, a.Resume())
	arrives("none is paused", 2)

	for range 2 {
		must(t, a.Pause())
	}
	must(t, b.Pause())
	send()
	must(t, a.Resume())
	arrives("the other is paused", 0)
	must(t, a.Pause())
	must(t, b.Resume())
	must(t, a.Resume())
	arrives("none is paused again", 2)

	// A member that leaves paused is not waited for.
	must(t, a.Pause())
	send()
	r.stop[a]()
	arrives("the paused one has left", 1)
	resumed := p.und.resumed.Load()
	must(t, b.Resume())
	if p.und.resumed.Load() == resumed {
		t.Error("Resume does not set the sockets again")
	}

	// All are paused, and end one after the other, as those of a daemon that is replaced.
	late := p.join(t, nodeA, 3) // does not run yet
	must(t, b.Pause())
	r.stop[b]()
	send()
	if !p.und.paused() {
		t.Error("with all members that ran gone the port reads")
	}
	late.dev.onWrite = func(packet []byte) { got <- packet }
	r.run(late, late.Run)
	p.und.queues[0].in <- []Datagram{framed(t, 3, nodeB, udpPacket(t, "10.2.0.5", "10.1.0.5", "x"))}
	arrives("a new one runs", 1)
	if d := late.Drops(); !maps.Equal(d, map[string]uint64{"vxlan-vni": 2}) {
		t.Errorf("drops %v", d)
	}

	// One that is resumed before it runs is waited for.
	later := p.join(t, nodeA, 4)
	later.dev.onWrite = func(packet []byte) { got <- packet }
	must(t, later.Pause())
	must(t, later.Resume())
	p.und.queues[0].in <- []Datagram{framed(t, 4, nodeB, udpPacket(t, "10.2.0.5", "10.1.0.5", "x"))}
	arrives("the resumed one does not run", 0)
	r.run(later, later.Run)
	arrives("the resumed one runs", 1)
}

// Members come and go, and are paused, while another's packets are carried: each of its packets arrives, in order.
func TestSharedPortWhileMembersComeAndGo(t *testing.T) {
	const queues, numbers = 2, 500
	p := newSharedPort(t, nodeA, queues, 1)
	r := runners{t: t}
	stays := p.ends[0]
	var seen, sent [queues]atomic.Int32
	for q := range queues {
		stays.device.queues[q].onWrite = func(packet []byte) {
			if want := fmt.Sprint("packet ", seen[q].Load()%numbers); string(packet[28:]) != want {
				t.Errorf("queue %d: %q came, want %q", q, packet[28:], want)
			}
			seen[q].Add(1)
		}
	}
	r.run(p, p.Port.Run)
	r.run(stays, stays.Run)
	var ds []Datagram // in which the packets of VNI 1 are numbered
	for i := range numbers {
		packet := udpPacket(t, "10.2.0.5", "10.1.0.5", fmt.Sprint("packet ", i))
		one, two := framed(t, 1, nodeB, packet), framed(t, 2, nodeB, packet)
		if i%3 == 0 {
			ds = append(ds, joined(one, two))
		} else {
			ds = append(ds, one, two)
		}
	}
	enough, done := make(chan struct{}), make(chan struct{})
	for q := range queues {
		go func() {
			defer func() { done <- struct{}{} }()
			for {
				for part := range slices.Chunk(ds, 5) {
					select {
					case <-enough:
						return
					case p.und.queues[q].in <- part:
						for _, d := range part {
							if vniOf(d.Buf) == 1 {
								sent[q].Add(1)
							}
						}
					}
				}
			}
		}()
	}
	const visits = 20
	carried := uint64(0)
	for i := range visits {
		x := p.join(t, nodeA, 2)
		for _, q := range x.device.queues {
			q.onWrite = func([]byte) {}
		}
		r.run(x, x.Run)
		if i%2 == 0 {
			must(t, x.Pause())
			must(t, x.Resume())
		}
		x.SetTable(fib.New([]*fib.Peer{x.b}))
		time.Sleep(time.Duration(i%4) * time.Millisecond)
		r.stop[x]()
		before := x.b.Counters.RxPackets.Load()
		carried += before
		if i%5 == 0 {
			time.Sleep(time.Millisecond)
		}
		if after := x.b.Counters.RxPackets.Load(); after > before {
			t.Errorf("%d packets are carried to a VTEP that has left", after-before)
		}
		p.ends = p.ends[:1]
	}
	close(enough)
	for range queues {
		within(t, "the last packet sent", done)
	}
	for q := range queues {
		for late := time.Now().Add(10 * time.Second); seen[q].Load() < sent[q].Load(); time.Sleep(time.Millisecond) {
			if time.Now().After(late) {
				t.Fatalf("queue %d: %d packets of %d came", q, seen[q].Load(), sent[q].Load())
			}
		}
	}
	if carried == 0 || sent[0].Load() == 0 || sent[1].Load() == 0 {
		t.Errorf("%d packets were carried to those that came and went, beside %d and %d", carried, sent[0].Load(), sent[1].Load())
	}
	t.Logf("%d packets carried to those that came and went, beside %d and %d", carried, sent[0].Load(), sent[1].Load())
	for reason, n := range stays.Drops() {
		if reason != "vxlan-vni" {
			t.Errorf("%d packets dropped: %s", n, reason)
		}
	}
	p.und.check(t)
}

// An underlay that fails ends the port; one that the port closes does not.
func TestSharedPortRunEnds(t *testing.T) {
	p := newSharedPort(t, nodeA, 2, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Port.Run(ctx) }()
	cancel() // before any member runs
	must(t, within(t, "the end of Run", done))
	select {
	case <-p.und.closed:
	default:
		t.Error("the underlay is open still")
	}

	p = newSharedPort(t, nodeA, 2, 1)
	p.feed(t)
	failure := errors.New("no such device")
	p.und.queues[1].fail <- failure
	go func() { done <- p.Port.Run(t.Context()) }()
	if err := within(t, "the end of Run", done); !errors.Is(err, failure) {
		t.Errorf("Run ends with %v, want %v", err, failure)
	}
}

func TestSharedPortNoAllocation(t *testing.T) {
	if racetest.Enabled {
		t.Skip("the race detector allocates")
	}
	for _, members := range []int{1, 2, 3} {
		p, devices := steadyPort(t, members)
		small, mixed := portLoad(t, members, false), portLoad(t, members, true)
		for name, ds := range map[string][]Datagram{"small": small, "mixed": mixed} {
			for _, d := range devices {
				d.written = 0
			}
			r := p.readers[0]
			r.queue = &steadyUnderlay{datagrams: ds}
			for range 3 {
				must(t, r.batch())
			}
			if n := testing.AllocsPerRun(50, func() { must(t, r.batch()) }); n != 0 {
				t.Errorf("%d members, %s: %v allocations a batch", members, name, n)
			}
			for i, d := range devices {
				if d.written == 0 {
					t.Errorf("%d members, %s: member %d got nothing", members, name, i)
				}
			}
		}
	}
}

// steadyPort has members with devices that swallow everything.
func steadyPort(t testing.TB, members int) (*sharedPort, []*steadyDevice) {
	t.Helper()
	p := newSharedPort(t, nodeA, 1)
	var devices []*steadyDevice
	for i := range members {
		vni, err := encap.NewVNI(uint32(i + 1))
		must(t, err)
		m, err := p.Join(vni)
		must(t, err)
		dev := new(steadyDevice)
		v := newVTEP(t, nodeA, "vxlan", dev, m, func(cfg *Config) { cfg.Framing = networkOf(t, nodeA, vni.Uint32()) })
		v.SetTable(fib.New([]*fib.Peer{nodeB.peer()}))
		must(t, m.Feed(v.carriers()))
		devices = append(devices, dev)
	}
	return p, devices
}

// portLoad is a batch for so many members by turns: small datagrams, or joined ones of 44 segments, in every second of which
// the networks are mixed.
func portLoad(t testing.TB, members int, streams bool) (ds []Datagram) {
	t.Helper()
	if !streams {
		for i := range BatchSize {
			ds = append(ds, framed(t, uint32(1+i%members), nodeB, sized(t, fmt.Sprintf("10.2.0.%d", i), "10.1.0.5", 92)))
		}
		return ds
	}
	for i := range fewDatagrams {
		var all []Datagram
		for k := range 44 {
			vni := 1 + i%members
			if i%2 == 0 {
				vni = 1 + (i+k/4)%members
			}
			all = append(all, framed(t, uint32(vni), nodeB, tcpPacket(t, "10.2.0.5", "10.1.0.5", uint32((i*44+k)*1398), numbered(1398), setDF)))
		}
		ds = append(ds, joined(all...))
	}
	return ds
}

// A batch of 64 small packets, or of eight joined buffers, inbound: at a port of one's own, and at one with so many members.
func BenchmarkSharedPort(b *testing.B) {
	for _, streams := range []bool{false, true} {
		for _, members := range []int{0, 1, 2, 8} {
			kind, owner := "small", fmt.Sprintf("%d members", members)
			if streams {
				kind = "joined"
			}
			if members == 0 {
				owner = "own"
			}
			b.Run(kind+"/"+owner, func(b *testing.B) {
				p, _ := steadyPort(b, max(1, members))
				und := &steadyUnderlay{datagrams: portLoad(b, max(1, members), streams)}
				p.readers[0].queue = und
				batch := p.readers[0].batch
				if members == 0 {
					v := newVTEP(b, nodeA, "vxlan", new(steadyDevice), und, func(cfg *Config) { cfg.Framing = networkOf(b, nodeA, 1) })
					v.SetTable(fib.New([]*fib.Peer{nodeB.peer()}))
					batch = v.in[0].batch
				}
				b.ReportAllocs()
				for b.Loop() {
					must(b, batch())
				}
			})
		}
	}
}
