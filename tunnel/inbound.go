package tunnel

import (
	"sync/atomic"
	"time"

	"muslin/encap"
	"muslin/tunnel/fib"
	"muslin/tunnel/gso"
)

// Inbound flow, UDP to TUN. A datagram is hostile until it has passed all of accept. The functions stand
// in the order in which it meets them:
//
//  1. run      receives a batch
//  2. accept   unframes and checks one datagram: framing, outer source, inner header, inner source,
//     inner destination; merges ECN, finishes a checksum left to the NIC
//  3. split    cuts a TCP superpacket that no NIC has cut
//  4. flush    writes the batch to the TUN device and counts
type inbound struct {
	v         *VTEP
	drops     drops
	completed atomic.Uint64

	ds   []Datagram
	full [][]byte // the receive buffers at their full length, to restore ds[i].Buf

	// Accepted packets: the datagram cut to the end of the inner packet, and what to count.
	bufs [][]byte
	from []*fib.Peer // nil with SourceCheckOff and an inner source that nobody leases

	segments [][]byte // room for a superpacket's segments; reused after each flush
	cut      int      // how many of segments are in bufs
}

// maxDatagram is the longest UDP payload over IPv4, 65,507 bytes, and some.
const maxDatagram = 1<<16 - 1

func (in *inbound) init(v *VTEP) {
	in.v = v
	in.ds = make([]Datagram, BatchSize)
	in.full = make([][]byte, BatchSize)
	for i := range in.full {
		in.full[i] = make([]byte, maxDatagram)
	}
	in.bufs = make([][]byte, 0, BatchSize)
	in.from = make([]*fib.Peer, 0, BatchSize)
	in.segments = make([][]byte, BatchSize)
	for i := range in.segments {
		in.segments[i] = make([]byte, v.cfg.Framing.Headroom()+int(v.cfg.MTU))
	}
}

func (in *inbound) run() error {
	for {
		if err := in.batch(); err != nil {
			return err
		}
	}
}

// batch carries what is waiting at the socket, at least one datagram.
func (in *inbound) batch() error {
	for i := range in.ds {
		in.ds[i].Buf = in.full[i]
	}
	n, err := in.v.cfg.Underlay.Receive(in.ds)
	if err != nil {
		return err
	}
	table := in.v.table.Load()
	for i := range n {
		if reason, ok := in.accept(table, &in.ds[i]); !ok {
			in.drops.count(reason)
		}
	}
	in.flush()
	return nil
}

// accept checks one datagram and queues its inner packet, or says why not.
func (in *inbound) accept(table *fib.Table, d *Datagram) (Reason, bool) {
	cfg := &in.v.cfg
	if d.Truncated {
		return DropOversized, false
	}
	p, fault := cfg.Framing.Decode(d.Buf)
	if fault != encap.FaultNone {
		return inboundFault[fault], false
	}
	outer := d.Addr.Addr()
	if cfg.SourceCheck != SourceCheckOff && !table.KnowsOuter(outer) {
		return DropUnknownSource, false
	}
	var h encap.IPv4
	if fault := encap.ParseIPv4(p, cfg.Framing.MinPayload(), &h); fault != encap.FaultNone {
		return inboundFault[fault], false
	}
	if !encap.VerifyHeader(p, &h) {
		return DropInnerChecksum, false
	}
	peer := table.Lookup(h.Src)
	switch {
	case cfg.Subnet.Contains(h.Src): // nobody else may speak for our own, whatever the check
		return DropInnerSource, false
	case cfg.Network.IsValid() && !cfg.Network.Contains(h.Src): // as this host's own other addresses
		return DropInnerSource, false
	case cfg.SourceCheck == SourceCheckOff:
	case peer == nil:
		return DropInnerSource, false
	case cfg.SourceCheck == SourceCheckStrict && peer.PublicIP != outer:
		return DropInnerSource, false
	}
	if !cfg.Subnet.Contains(h.Dst) {
		return DropInnerDestination, false
	}
	p = p[:h.TotalLen]
	if !encap.MergeECN(p, &h, d.ECN) {
		return DropECN, false
	}
	if in.split(p, &h, peer) {
		return 0, true
	}
	if len(d.Buf) > cfg.Jumbo {
		return DropOversized, false
	}
	if encap.CompletePartial(p, &h) {
		in.completed.Add(1)
	}
	in.queue(d.Buf[:cfg.Framing.Headroom()+h.TotalLen], peer)
	return 0, true
}

// split queues the segments of a TCP superpacket, and reports false for any other packet. As it is, it would
// not fit the pods' links.
func (in *inbound) split(p []byte, h *encap.IPv4, peer *fib.Peer) bool {
	if h.TotalLen <= int(in.v.cfg.MTU) {
		return false
	}
	s, ok := gso.SplitTCP(p, h, int(in.v.cfg.MTU))
	if !ok {
		return false
	}
	head := in.v.cfg.Framing.Headroom()
	for s.More() {
		in.makeRoom() // may make all of segments free, so before one is taken
		buf := in.segments[in.cut]
		in.cut++
		in.queue(buf[:head+s.Next(buf[head:])], peer)
	}
	return true
}

// makeRoom flushes when the queue is full. There are as many segments as places in the queue, so then one
// of those is free, too.
func (in *inbound) makeRoom() {
	if len(in.bufs) == cap(in.bufs) {
		in.flush()
	}
}

// queue takes a packet, with its headroom in front, for the next write.
func (in *inbound) queue(buf []byte, peer *fib.Peer) {
	in.makeRoom()
	in.bufs = append(in.bufs, buf)
	in.from = append(in.from, peer)
}

func (in *inbound) flush() {
	if len(in.bufs) == 0 {
		return
	}
	head := in.v.cfg.Framing.Headroom()
	n, _ := in.v.cfg.Device.Write(in.bufs, head)
	if refused := len(in.bufs) - n; refused > 0 {
		in.drops[DropTUNWrite].Add(uint64(refused))
	}
	now := time.Now().UnixNano()
	for i, peer := range in.from {
		if peer == nil {
			continue
		}
		c := peer.Counters
		c.RxPackets.Add(1)
		c.RxBytes.Add(uint64(len(in.bufs[i]) - head))
		c.LastRx.Store(now)
	}
	in.bufs, in.from, in.cut = in.bufs[:0], in.from[:0], 0
}
