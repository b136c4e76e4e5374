package tunnel

import (
	"errors"
	"net/netip"
	"time"

	"muslin/encap"
	"muslin/tunnel/fib"
	"muslin/tunnel/gso"
)

// Outbound flow, TUN to UDP. The functions stand in the order in which a packet meets them:
//
//  1. batch    reads what waits in the TUN device into one slab, each packet behind its headroom
//  2. route    parses the inner header, looks the peer up, and answers with ICMP what cannot go on
//  3. frame    writes the framing over the headroom, in place; of a superpacket, over each segment's
//  4. add      puts the datagram to others of its length, peer and source port (messages.go)
//  5. send     sends and counts
//
// A packet's payload stays where it was read until the kernel has taken the datagram.
type outbound struct {
	v     *VTEP
	dev   DeviceQueue
	drops drops
	stats workerStats
	icmp  icmpSender

	slab    []byte
	packets []Packet
	split   gso.Splitter
	heads   []byte // what is in front of the payload of each segment: headroom, IP and transport header
	headed  int    // how much of heads is in use
	cut     int    // the packet that route has let through is cut into fragments so long at most; 0: it is not

	msgs messages

	telling
	source func(port uint8) netip.AddrPort // see Sourced
	engine bool                            // the underlay is one: what is sent is not on the wire yet
}

const (
	// slabPackets is how many superpackets the slab has room for. They go out in one batch, so that what
	// the one leaves of its last message fills up with the next.
	slabPackets = 4

	// headBytes has room for the headers of such superpackets at the usual MTU.
	headBytes = 64 << 10
)

func newOutbound(v *VTEP, dev DeviceQueue, out UnderlayQueue) *outbound {
	o := &outbound{
		v: v, dev: dev,
		slab:    make([]byte, slabPackets*PacketRoom(v.cfg.Framing.Headroom())),
		packets: make([]Packet, BatchSize),
		heads:   make([]byte, headBytes),
		source:  sourceOf(out),
	}
	_, o.engine = v.cfg.Underlay.(Engine)
	o.msgs.init(out)
	o.icmp.init(v.cfg.Subnet.Addr(), time.Now)
	return o
}

// batch carries what is waiting in the TUN device, at least one packet.
func (o *outbound) batch() error {
	head := o.v.cfg.Framing.Headroom()
	n, err := o.dev.Read(o.slab, o.packets, head)
	if err != nil {
		return err
	}
	if n == 0 { // see Halves
		return nil
	}
	o.stats.begin(n)
	table := o.v.table.Load()
	o.begin(&o.v.watch)
	for i := range n {
		p := &o.packets[i]
		var h encap.Header
		peer := o.route(table, p, head, &h)
		if peer == nil {
			continue
		}
		if err := o.frame(p, head, peer, &h); err != nil {
			return err
		}
	}
	err = o.send()
	o.stats.end()
	return err
}

// route finds the peer that an inner packet goes to, or drops the packet and returns nil.
func (o *outbound) route(table *fib.Table, p *Packet, head int, h *encap.Header) *fib.Peer {
	ip := p.Buf[head:]
	var fault encap.Fault
	if o.v.six {
		fault = encap.ParseIPv6(ip, 0, h)
	} else {
		fault = encap.ParseIPv4(ip, 0, h)
	}
	if fault != encap.FaultNone {
		o.drop(outboundFault(fault), p, 1, nil)
		return nil
	}
	longest, segments := h.TotalLen, 1
	if p.Info.Kind != gso.None {
		if !o.split.Reset(ip, p.Info) {
			o.drop(DropMalformed, p, 1, nil)
			return nil
		}
		longest, segments = o.split.SegmentLen(), o.split.Segments()
		o.stats.several(segments)
	} else if p.Info.NeedsCsum && !gso.Complete(ip, p.Info) {
		o.drop(DropMalformed, p, 1, nil)
		return nil
	}
	peer := table.Lookup(h.Dst)
	if peer == nil {
		reason, code := o.unroutable(h.Dst)
		o.drop(reason, p, segments, nil)
		if reason != DropLinkLocal {
			o.reply(ip, h, code, 0)
		}
		return nil
	}
	if o.v.cfg.ClampMSS && p.Info.Kind == gso.None {
		o.v.clamp(ip, h, peer, false)
	}
	if longest > int(o.v.MTU()) || longest > o.v.least && longest > int(peer.Counters.PathMTU.Load()) {
		if !o.fits(p, ip, h, peer, longest, segments) {
			return nil
		}
	}
	if o.wants(PointInner) {
		o.tellInner(p, segments, peer)
	}
	return peer
}

// fits decides about a packet, of which the longest segment has that length, where it may be too long for the way to
// the peer. What may not be cut is answered and dropped, as a router does. What may be is, in frame: outside, the
// fragments could be lost.
func (o *outbound) fits(p *Packet, ip []byte, h *encap.Header, peer *fib.Peer, longest, segments int) bool {
	mtu := int(o.v.MTU())
	path := int(peer.Counters.PathMTU.Load())
	if path == 0 {
		path = fib.PathAny
		if longest > o.v.least {
			peer.Counters.PathMTU.CompareAndSwap(0, fib.PathAny)
		}
	}
	switch {
	case longest > mtu, longest > path && (h.DF || o.v.six):
		o.drop(DropTooBig, p, segments, peer)
		o.reply(ip, h, icmpFragNeeded, uint16(min(mtu, path)))
		return false
	case longest > path:
		o.cut = path
	}
	return true
}

// outboundFault is the reason for what is wrong with a packet that the local kernel handed over.
func outboundFault(fault encap.Fault) Reason {
	switch fault {
	case encap.FaultIPv6:
		return DropIPv6
	case encap.FaultIPv4:
		return DropIPv4
	}
	return DropMalformed
}

// unroutable tells an address that nobody leases from one of our own that no pod has, and both from what a kernel
// sends to the link of each IPv6 interface, a TUN device that leads to no link included.
func (o *outbound) unroutable(dst netip.Addr) (Reason, icmpCode) {
	switch {
	case o.v.cfg.Subnet.Contains(dst):
		return DropOwnSubnet, icmpHostUnreachable
	case o.v.six && (dst.IsLinkLocalUnicast() || dst.IsLinkLocalMulticast() || dst.IsInterfaceLocalMulticast()):
		return DropLinkLocal, 0
	}
	return DropNoRoute, icmpNetUnreachable
}

// reply sends an ICMP error about p back into the TUN device, when one may be sent (see icmp.go).
func (o *outbound) reply(p []byte, h *encap.Header, code icmpCode, mtu uint16) {
	if msg := o.icmp.build(p, h, code, mtu); msg != nil {
		if o.wants(PointInner) {
			o.tellReply(msg[icmpHeadroom:])
		}
		if o.dev.Reply(msg, icmpHeadroom) != nil {
			o.drops.count(DropTUNWrite)
		}
	}
}

// frame makes a datagram of a packet, or one of each segment of a superpacket that route has prepared. The
// error is Send's.
func (o *outbound) frame(p *Packet, head int, peer *fib.Peer, h *encap.Header) error {
	var hash uint32
	if o.v.six {
		hash = encap.FlowHash6(p.Buf[head:], h)
	} else {
		hash = encap.FlowHash(p.Buf[head:], h)
	}
	to := destination{
		peer: peer,
		addr: netip.AddrPortFrom(peer.PublicIP, o.v.cfg.Port),
		port: uint8(hash % SourcePorts),
		ecn:  encap.OuterECN(h.TOS),
	}
	cut := o.cut
	o.cut = 0
	if p.Info.Kind == gso.None {
		if cut != 0 {
			at := head + h.HeaderLen
			return o.fragment(&to, p.Buf[head:at], p.Buf[at:head+h.TotalLen], h.HeaderLen, cut)
		}
		if o.msgs.full() {
			if err := o.send(); err != nil {
				return err
			}
		}
		o.v.cfg.Framing.Encode(p.Buf, peer.MAC)
		o.msgs.add(&to, p.Buf, nil)
		return nil
	}
	length := head + o.split.HeaderLen()
	for {
		if len(o.heads)-o.headed < length || o.msgs.full() {
			if err := o.send(); err != nil {
				return err
			}
		}
		front := o.heads[o.headed : o.headed+length]
		payload, ok := o.split.Next(front[head:])
		if !ok {
			return nil
		}
		if cut != 0 {
			if err := o.fragment(&to, front[head:], payload, h.HeaderLen, cut); err != nil {
				return err
			}
			continue
		}
		o.headed += length
		o.v.cfg.Framing.Encode(front, peer.MAC)
		o.msgs.add(&to, front, payload)
	}
}

// send sends everything that was added, and counts. The slab and heads are free then.
func (o *outbound) send() error {
	if o.wants(PointOuter) && !o.engine {
		o.tellOuter()
	}
	err := o.msgs.send()
	head, bytes := o.v.cfg.Framing.Headroom(), 0
	for i := range o.msgs.n {
		m, c := &o.msgs.all[i], o.msgs.peers[i].Counters
		sent, length := m.Segments, m.Len-head*m.Segments
		o.stats.write.note(m.Segments)
		bytes += length
		if m.Failed > 0 {
			sent -= m.Failed
			o.countFailure(m)
			if o.wants(PointDrop) {
				o.tellUnsent(i)
			}
		}
		c.TxPackets.Add(uint64(sent))
		c.TxBytes.Add(uint64(length * sent / m.Segments))
	}
	if o.msgs.n > 0 {
		o.stats.wrote(bytes)
	}
	o.msgs.reset()
	o.headed = 0
	return err
}

func (o *outbound) countFailure(m *Message) {
	reason := sendReason(m.Err)
	o.drops.add(reason, m.Failed)
	if reason == DropSendFailed {
		err := m.Err
		o.v.sendErr.Store(&err)
	}
}

// sendReason is why a datagram was not sent.
func sendReason(err error) Reason {
	if errors.Is(err, ErrSendBufferFull) {
		return DropSendBufferFull
	}
	return DropSendFailed
}

// LastSendError is why the last datagram under DropSendFailed was refused, or nil.
func (v *VTEP) LastSendError() error {
	if p := v.sendErr.Load(); p != nil {
		return *p
	}
	return nil
}
