package tunnel

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"time"

	"muslin/encap"
	"muslin/tunnel/gso"
)

// Inbound flow, UDP to TUN. A datagram is hostile until it has passed all of accept. The functions stand
// in the order in which it meets them:
//
//  1. batch    receives what waits; carry takes what an Engine or a Port has received
//  2. unpack   checks the outer source, and takes apart what the kernel has joined
//  3. accept   unframes and checks one datagram: framing, inner header, inner source, inner destination;
//     merges ECN
//  4. queue    joins its packet to those before it in the same flow (gso.Coalescer)
//  5. flush    writes the runs to the TUN device
//
// A packet stays in the buffer that it was received into until the kernel has taken it.
type inbound struct {
	v          *VTEP
	dev        DeviceQueue
	out        UnderlayQueue
	drops      drops
	stats      workerStats
	unfinished atomic.Uint64

	intake *intake // nil: others receive
	join   *gso.Coalescer
	queued int // bytes of inner packets that wait in join
	tally  tally

	known sourceCache

	telling
	local  netip.AddrPort // what datagrams are sent to; the address may be zero: not known
	engine bool           // the underlay is one: what came was not on the wire like that
}

const (
	// fewDatagrams is how many are received at once while they come joined, 64 KiB each: more would
	// leave the processor's cache before they are written.
	fewDatagrams = 8

	// stagger keeps the buffers' beginnings out of each other's cache sets.
	stagger = 64 * 19
)

// newInbound makes one that receives by itself, or not.
func newInbound(v *VTEP, dev DeviceQueue, out UnderlayQueue, receives bool) *inbound {
	in := &inbound{v: v, dev: dev, out: out, join: gso.NewCoalescer(joinPackets)}
	in.local = netip.AddrPortFrom(sourceOf(out)(0).Addr(), v.cfg.Port)
	_, in.engine = v.cfg.Underlay.(Engine)
	if receives {
		in.intake = newIntake()
	}
	return in
}

// intake is what datagrams are received into.
type intake struct {
	ds   []Datagram
	full [][]byte // the buffers at their full length, to restore ds[i].Buf
	want int      // how many of ds to fill next time
}

func newIntake() *intake {
	k := &intake{ds: make([]Datagram, BatchSize), full: make([][]byte, BatchSize), want: BatchSize}
	slab := make([]byte, BatchSize*(maxPacket+1+stagger))
	for i := range k.full {
		at := i * (maxPacket + 1 + stagger)
		k.full[i] = slab[at : at+maxPacket : at+maxPacket]
	}
	return k
}

// receive takes what is waiting at the socket, at least one datagram. They stay until the next call.
func (k *intake) receive(from UnderlayQueue) ([]Datagram, error) {
	ds := k.ds[:k.want]
	for i := range ds {
		ds[i].Buf = k.full[i]
	}
	n, err := from.Receive(ds)
	if err != nil {
		return nil, err
	}
	ds = ds[:n]
	bytes := 0
	for i := range ds {
		bytes += len(ds[i].Buf)
	}
	k.want = BatchSize
	if bytes/n > maxPacket/4 {
		k.want = fewDatagrams
	}
	return ds, nil
}

// joinPackets is how many packets are gathered before they are written: more than eight buffers of 64 KiB
// hold at the usual MTU.
const joinPackets = 512

// batch carries what is waiting at the socket, at least one datagram.
func (in *inbound) batch() error {
	ds, err := in.intake.receive(in.out)
	if err != nil {
		return err
	}
	in.carry(ds)
	return nil
}

// carry takes datagrams that were received, at least one.
func (in *inbound) carry(ds []Datagram) {
	in.stats.begin(len(ds))
	in.known.renew(in.v.table.Load())
	in.join.TCP, in.join.UDP = in.dev.Joins()
	in.begin(&in.v.watch)
	for i := range ds {
		in.unpack(&ds[i])
	}
	in.flush()
	in.tally.settle(time.Now())
	in.stats.end()
}

// unpack takes the datagrams out of what was received: several in one buffer where the kernel joined them
// (UDP_GRO). A kernel VXLAN device over a virtual link sends superpackets that look just so: one datagram
// whose inner UDP packet has segments of this Size.
//
// The outer source comes first, as in the early filter (underlay): what it would have refused costs little here,
// too, and is counted under the same reason with the filter and without.
func (in *inbound) unpack(d *Datagram) {
	rest, size := d.Buf, d.Size
	single, n := size == 0 || size >= len(rest) || whole(rest, in.v.cfg.Framing.Headroom()), 1
	if !single {
		n = datagrams(d)
		in.stats.several(n)
	}
	if in.wants(PointOuter) && !in.engine {
		in.tellReceived(d, single)
	}
	switch {
	case in.v.cfg.SourceCheck != SourceCheckOff && !in.known.outer(d.Addr.Addr()):
		in.drop(DropUnknownSource, rest, d, n)
		return
	case d.Truncated:
		in.drop(DropOversized, rest, d, 1)
		return
	case single:
		in.datagram(rest, d, size)
		return
	}
	for len(rest) > 0 {
		one := rest[:min(size, len(rest))]
		rest = rest[len(one):]
		in.datagram(one, d, 0)
	}
}

// whole reports whether b is a single datagram, by the inner packet's own length: of IPv4 or IPv6, behind up
// to two VLAN tags. head is the framing's length. Whom it is for, and whether we carry it, is looked at later. To cut it would be to take
// pieces of its payload, which whoever sent it could have made look like datagrams.
func whole(b []byte, head int) bool {
	at := head
	for tags := 0; tags < 2 && at >= 2 && at+4 <= len(b) && isTag(b[at-2:at]); tags++ {
		at += 4
	}
	if at+20 > len(b) {
		return false
	}
	length := 0
	switch p := b[at:]; p[0] >> 4 {
	case 4:
		length = int(binary.BigEndian.Uint16(p[2:]))
	case 6:
		length = 40 + int(binary.BigEndian.Uint16(p[4:]))
	}
	return length == len(b)-at
}

// isTag reports whether an EtherType is that of a VLAN tag (IEEE 802.1Q, 802.1ad), which four bytes later another one follows.
func isTag(etherType []byte) bool {
	t := binary.BigEndian.Uint16(etherType)
	return t == 0x8100 || t == 0x88a8
}

func (in *inbound) datagram(b []byte, d *Datagram, udpSize int) {
	if reason, ok := in.accept(b, d, udpSize); !ok {
		in.drop(reason, b, d, 1)
	}
}

// accept checks one datagram and queues its inner packet, or says why not.
func (in *inbound) accept(b []byte, d *Datagram, udpSize int) (Reason, bool) {
	cfg := &in.v.cfg
	p, fault := cfg.Framing.Decode(b)
	if fault != encap.FaultNone {
		return inboundFault[fault], false
	}
	var h encap.Header
	if in.v.six {
		if fault := encap.ParseIPv6(p, cfg.Framing.MinPayload(), &h); fault != encap.FaultNone {
			return inboundFault[fault], false
		}
	} else {
		if fault := encap.ParseIPv4(p, cfg.Framing.MinPayload(), &h); fault != encap.FaultNone {
			return inboundFault[fault], false
		}
		if !encap.VerifyHeader(p, &h) {
			return DropInnerChecksum, false
		}
	}
	peer := in.known.inner(h.Src)
	switch {
	case cfg.Subnet.Contains(h.Src): // nobody else may speak for our own, whatever the check
		return DropInnerSource, false
	case cfg.Network.IsValid() && !cfg.Network.Contains(h.Src): // as this host's own other addresses
		return DropInnerSource, false
	case cfg.SourceCheck == SourceCheckOff:
	case peer == nil:
		return DropInnerSource, false
	case cfg.SourceCheck == SourceCheckStrict && peer.PublicIP != d.Addr.Addr():
		return DropInnerSource, false
	}
	if !cfg.Subnet.Contains(h.Dst) {
		return DropInnerDestination, false
	}
	p = p[:h.TotalLen]
	if !encap.MergeECN(p, &h, d.ECN) {
		return DropECN, false
	}
	var info gso.Info
	segments := 1
	if mtu := int(in.v.MTU()); len(p) > mtu || udpSize > 0 {
		super, ok := gso.Superpacket(p, mtu, udpSize)
		if !ok && len(b) > cfg.Jumbo {
			return DropOversized, false
		}
		if ok {
			info, segments = super, super.Segments(len(p))
		}
	}
	if info.Kind == gso.None {
		var unfinished bool
		if info, unfinished = gso.Partial(p); unfinished {
			in.unfinished.Add(1)
		}
		if cfg.ClampMSS {
			in.v.clamp(p, &h, peer, unfinished)
		}
	}
	if in.wants(PointInner) {
		in.tellInner(p, info, segments, peer)
	}
	in.queue(p, info)
	in.tally.count(peer, segments, len(p))
	return 0, true
}

// queue takes a packet for the next write.
func (in *inbound) queue(p []byte, info gso.Info) {
	if !in.join.Add(p, info) {
		in.flush()
		in.join.Add(p, info)
	}
	in.queued += len(p)
}

func (in *inbound) flush() {
	runs := in.join.Runs()
	if len(runs) == 0 {
		return
	}
	packets := 0
	for i := range runs {
		packets += runs[i].Segments
		in.stats.write.note(runs[i].Segments)
	}
	if taken, _ := in.dev.Write(runs); taken < packets {
		in.drops.add(DropTUNWrite, packets-taken)
		if in.wants(PointDrop) {
			in.tellUnwritten(runs, packets-taken)
		}
	}
	in.stats.wrote(in.queued)
	in.queued = 0
	in.join.Reset()
}
