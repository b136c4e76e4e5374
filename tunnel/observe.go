package tunnel

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"muslin/tunnel/fib"
	"muslin/tunnel/gso"
)

// Observer is told of packets that a VTEP carries, or drops (VTEP.Observe).
type Observer interface {
	// Observe is called by each worker, so by several at once, in the middle of its work: the packets behind wait until
	// it returns. It does not block, and copies what it keeps. s and all it refers to is borrowed until it returns.
	Observe(s *Seen)
}

// Points are places on a packet's way, one or several.
type Points uint8

const (
	// PointInner: an inner packet that came from the TUN device and has a peer to go to, or that goes to the TUN device.
	// A superpacket is told as the one packet that it is to the kernel here, with its Info, as a capture on the device shows
	// it. Outbound the workers still have to send it: of what they do not get rid of PointDrop tells afterwards. Inbound it
	// is told before it is joined to others. ICMP errors of our own are told, too: inbound, without a peer.
	PointInner Points = 1 << iota

	// PointOuter: a datagram that is handed to the kernel, or one that was received, before any check. What goes out, or
	// came, in one piece is told datagram by datagram, as it is on the wire. What the kernel does not take PointDrop tells
	// afterwards. With an Engine there is none: what is on the wire is its.
	PointOuter

	// PointDrop: a packet or datagram that was counted under a Reason by the workers. What the kernel dropped before
	// (Losses, SendOverflow, Device.Overflow) nobody has seen.
	PointDrop
)

// Seen is what an Observer is told.
type Seen struct {
	At      time.Time // the same for all of a batch
	Point   Points    // one of them
	Inbound bool      // UDP to TUN
	Outer   bool      // Bufs is a datagram's UDP payload, between Src and Dst, and not an inner IP packet

	Bufs [][]byte // the bytes in order
	Len  int      // bytes over all Bufs

	Info     gso.Info // of an inner packet: a superpacket, or one whose checksum is not finished
	Segments int      // how many packets it stands for, at least 1
	Reason   Reason   // of PointDrop

	// Peer is who gets the packet, or whose subnet holds its inner source; nil: nobody's, or not known, as of any datagram
	// that was received.
	Peer *fib.Peer

	Src, Dst netip.AddrPort // outer; one of ours that is not known is zero
	ECN      uint8          // outer codepoint
}

// AppendTo appends the first bytes, at most so many.
func (s *Seen) AppendTo(b []byte, most int) []byte {
	for _, piece := range s.Bufs {
		piece = piece[:min(len(piece), most)]
		b, most = append(b, piece...), most-len(piece)
	}
	return b
}

// Sourced is an UnderlayQueue that knows where datagrams come from that it sends, and go to that it receives.
type Sourced interface {
	// Source is the outer source of what is sent with a Message.Port.
	Source(port uint8) netip.AddrPort
}

// Observe has o told of what passes at the points, until stop. After that it may be told of the batches under way.
// Several may observe at once. While nobody does, it costs the workers a load for each batch.
func (v *VTEP) Observe(o Observer, at Points) (stop func()) { return v.watch.add(o, at) }

// watch is who observes.
type watch struct {
	mu  sync.Mutex                // held to change now
	now atomic.Pointer[observers] // nil: nobody
}

// observers is immutable.
type observers struct {
	points Points // of any
	all    []*observing
}

type observing struct {
	Observer
	points Points
}

func (w *watch) add(o Observer, at Points) (stop func()) {
	one := &observing{o, at}
	w.change(func(all []*observing) []*observing { return append(all, one) })
	return sync.OnceFunc(func() {
		w.change(func(all []*observing) []*observing {
			return slices.DeleteFunc(all, func(other *observing) bool { return other == one })
		})
	})
}

func (w *watch) change(f func(all []*observing) []*observing) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var next observers
	if old := w.now.Load(); old != nil {
		next.all = slices.Clone(old.all)
	}
	if next.all = f(next.all); len(next.all) == 0 {
		w.now.Store(nil)
		return
	}
	for _, o := range next.all {
		next.points |= o.points
	}
	w.now.Store(&next)
}

// telling is one worker's: whom it tells, and what.
type telling struct {
	*observers // nil: nobody
	seen       Seen
	bufs       [2][]byte
}

// begin is at the beginning of a batch.
func (t *telling) begin(w *watch) {
	t.observers = w.now.Load()
	if t.observers != nil {
		t.seen.At = time.Now()
	}
}

// wants reports whether anybody observes there.
func (t *telling) wants(p Points) bool { return t.observers != nil && t.points&p != 0 }

// packet begins with a clean Seen of bytes b.
func (t *telling) packet(p Points, inbound bool, b []byte) *Seen {
	t.bufs[0] = b
	t.seen = Seen{At: t.seen.At, Point: p, Inbound: inbound, Bufs: t.bufs[:1], Len: len(b), Segments: 1}
	return &t.seen
}

// tell tells all that want to know.
func (t *telling) tell() {
	for _, o := range t.all {
		if o.points&t.seen.Point != 0 {
			o.Observe(&t.seen)
		}
	}
}

// sourceOf is how to ask a queue for the outer source, where it knows.
func sourceOf(q UnderlayQueue) func(port uint8) netip.AddrPort {
	if s, ok := q.(Sourced); ok {
		return s.Source
	}
	return func(uint8) netip.AddrPort { return netip.AddrPort{} }
}

// Outbound.

// tellInner is about a packet that has a peer.
func (o *outbound) tellInner(p *Packet, segments int, peer *fib.Peer) {
	s := o.telling.packet(PointInner, false, p.Buf[o.v.cfg.Framing.Headroom():])
	s.Info, s.Segments, s.Peer = p.Info, segments, peer
	o.telling.tell()
}

// drop counts and tells a packet that the TUN device gave.
func (o *outbound) drop(r Reason, p *Packet, segments int, peer *fib.Peer) {
	o.drops.add(r, segments)
	if o.telling.wants(PointDrop) {
		s := o.telling.packet(PointDrop, false, p.Buf[o.v.cfg.Framing.Headroom():])
		s.Reason, s.Info, s.Segments, s.Peer = r, p.Info, segments, peer
		o.telling.tell()
	}
}

// tellReply is about an ICMP error of our own.
func (o *outbound) tellReply(ip []byte) {
	o.telling.packet(PointInner, true, ip)
	o.telling.tell()
}

// tellOuter is about the messages that are about to be sent.
func (o *outbound) tellOuter() {
	for i := range o.msgs.n {
		o.tellDatagrams(i, 0, func(*Seen) {})
	}
}

// tellUnsent is about the datagrams of a message that were not sent. Which ones is not known: it says the last ones.
func (o *outbound) tellUnsent(i int) {
	m := &o.msgs.all[i]
	o.tellDatagrams(i, m.Segments-m.Failed, func(s *Seen) { s.Point, s.Reason = PointDrop, sendReason(m.Err) })
}

// tellDatagrams is about those of a message from one on, as edit has them.
func (o *outbound) tellDatagrams(i, from int, edit func(s *Seen)) {
	m, t := &o.msgs.all[i], &o.telling
	src := o.source(m.Port)
	c := pieces{bufs: m.Bufs}
	left := m.Len
	for k := range m.Segments {
		size := min(m.Size, left)
		left -= size
		s := t.packet(PointOuter, false, nil)
		s.Bufs, s.Len = c.take(t.bufs[:0], size), size
		if k < from {
			continue
		}
		s.Outer, s.Src, s.Dst, s.ECN, s.Peer = true, src, m.Addr, m.ECN, o.msgs.peers[i]
		edit(s)
		t.tell()
	}
}

// pieces takes datagrams out of a message.
type pieces struct {
	bufs [][]byte
	at   int // in bufs[0]
}

// take appends where the next size bytes lie.
func (c *pieces) take(to [][]byte, size int) [][]byte {
	for size > 0 {
		piece := c.bufs[0][c.at:]
		if len(piece) <= size {
			c.bufs, c.at = c.bufs[1:], 0
		} else {
			piece = piece[:size]
			c.at += size
		}
		to, size = append(to, piece), size-len(piece)
	}
	return to
}

// Inbound.

// tellReceived is about what came, before any check: of one sender, one datagram if single.
func (in *inbound) tellReceived(d *Datagram, single bool) {
	rest, size, n := d.Buf, len(d.Buf), 1
	if !single {
		size, n = d.Size, datagrams(d)
	}
	for range n {
		one := rest[:min(size, len(rest))]
		rest = rest[len(one):]
		in.outer(PointOuter, one, d)
		in.telling.tell()
	}
}

// datagrams is how many lie in d, which holds several of its Size.
func datagrams(d *Datagram) int { return (len(d.Buf) + d.Size - 1) / d.Size }

// outer begins with a datagram that was received; with an Engine, with an inner packet.
func (in *inbound) outer(p Points, b []byte, d *Datagram) *Seen {
	s := in.telling.packet(p, true, b)
	if !in.engine {
		s.Outer, s.Src, s.Dst, s.ECN = true, d.Addr, in.local, d.ECN
	}
	return s
}

// drop counts and tells datagrams of one sender: b, which is so many.
func (in *inbound) drop(r Reason, b []byte, d *Datagram, n int) {
	in.drops.add(r, n)
	if !in.telling.wants(PointDrop) {
		return
	}
	size := len(b)
	if n > 1 {
		size = d.Size
	}
	for range n {
		one := b[:min(size, len(b))]
		b = b[len(one):]
		in.outer(PointDrop, one, d).Reason = r
		in.telling.tell()
	}
}

// tellInner is about a packet that goes to the TUN device.
func (in *inbound) tellInner(p []byte, info gso.Info, segments int, peer *fib.Peer) {
	s := in.telling.packet(PointInner, true, p)
	s.Info, s.Segments, s.Peer = info, segments, peer
	in.telling.tell()
}

// tellUnwritten is about the runs of which the TUN device refused so many packets. Which ones is not known: it says the
// last ones.
func (in *inbound) tellUnwritten(runs []gso.Run, packets int) {
	for i := len(runs) - 1; i >= 0 && packets > 0; i-- {
		r := &runs[i]
		packets -= r.Segments
		s := in.telling.packet(PointDrop, true, nil)
		s.Bufs, s.Len, s.Info, s.Segments, s.Reason = r.Bufs, r.Len, r.Info, r.Segments, DropTUNWrite
		in.telling.tell()
	}
}
