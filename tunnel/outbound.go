package tunnel

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	"muslin/encap"
	"muslin/tunnel/fib"
)

// Outbound flow, TUN to UDP. The functions stand in the order in which a packet meets them:
//
//  1. run      reads a batch from the TUN device, each packet behind its framing's headroom
//  2. route    parses the inner header, looks the peer up, and answers with ICMP what cannot go on
//  3. frame    writes the framing over the headroom, in place
//  4. flush    sends the batch and counts
type outbound struct {
	v     *VTEP
	drops drops
	icmp  icmpSender

	bufs  [][]byte // read buffers; each has the headroom in front
	sizes []int
	ds    []Datagram // what is to be sent
	peers []*fib.Peer

	sendErr atomic.Pointer[error] // the last reason of DropSendFailed, for LastSendError
}

// readBuffer is the largest IP packet. The TUN device's MTU can be raised by hand to nearly that, and a
// packet that did not fit would be cut without a word.
const readBuffer = 65535

func (o *outbound) init(v *VTEP) {
	o.v = v
	o.bufs = make([][]byte, BatchSize)
	for i := range o.bufs {
		o.bufs[i] = make([]byte, v.cfg.Framing.Headroom()+readBuffer)
	}
	o.sizes = make([]int, BatchSize)
	o.ds = make([]Datagram, 0, BatchSize)
	o.peers = make([]*fib.Peer, 0, BatchSize)
	o.icmp.init(v.cfg.Subnet.Addr(), time.Now)
}

func (o *outbound) run() error {
	for {
		if err := o.batch(); err != nil {
			return err
		}
	}
}

// batch carries what is waiting in the TUN device, at least one packet.
func (o *outbound) batch() error {
	head := o.v.cfg.Framing.Headroom()
	n, err := o.v.cfg.Device.Read(o.bufs, o.sizes, head)
	if err != nil {
		return err
	}
	table := o.v.table.Load()
	for i := range n {
		buf := o.bufs[i][:head+o.sizes[i]]
		var h encap.IPv4
		if peer := o.route(table, buf[head:], &h); peer != nil {
			o.frame(buf, peer, &h)
		}
	}
	return o.flush()
}

// route finds the peer that an inner packet goes to, or drops the packet and returns nil.
func (o *outbound) route(table *fib.Table, p []byte, h *encap.IPv4) *fib.Peer {
	switch encap.ParseIPv4(p, 0, h) {
	case encap.FaultNone:
	case encap.FaultIPv6:
		o.drops.count(DropIPv6)
		return nil
	default:
		o.drops.count(DropMalformed)
		return nil
	}
	peer := table.Lookup(h.Dst)
	if peer == nil {
		reason, code := o.unroutable(h.Dst)
		o.drops.count(reason)
		o.reply(p, h, code, 0)
		return nil
	}
	if len(p) > int(o.v.cfg.MTU) {
		o.drops.count(DropTooBig)
		o.reply(p, h, icmpFragNeeded, uint16(o.v.cfg.MTU))
		return nil
	}
	return peer
}

// unroutable tells an address that nobody leases from one of our own that no pod has.
func (o *outbound) unroutable(dst netip.Addr) (Reason, icmpCode) {
	if o.v.cfg.Subnet.Contains(dst) {
		return DropOwnSubnet, icmpHostUnreachable
	}
	return DropNoRoute, icmpNetUnreachable
}

// reply sends an ICMP error about p back into the TUN device, when one may be sent (see icmp.go).
func (o *outbound) reply(p []byte, h *encap.IPv4, code icmpCode, mtu uint16) {
	if msg := o.icmp.build(p, h, code, mtu); msg != nil {
		if n, _ := o.v.cfg.Device.Write(msg, icmpHeadroom); n == 0 {
			o.drops.count(DropTUNWrite)
		}
	}
}

func (o *outbound) frame(buf []byte, peer *fib.Peer, h *encap.IPv4) {
	head := o.v.cfg.Framing.Headroom()
	flow := encap.FlowHash(buf[head:], h)
	o.v.cfg.Framing.Encode(buf, peer.MAC)
	o.ds = append(o.ds, Datagram{
		Buf:  buf,
		Addr: netip.AddrPortFrom(peer.PublicIP, o.v.cfg.Port),
		Flow: flow,
		ECN:  encap.OuterECN(h.TOS),
	})
	o.peers = append(o.peers, peer)
}

func (o *outbound) flush() error {
	if len(o.ds) == 0 {
		return nil
	}
	err := o.v.cfg.Underlay.Send(o.ds)
	head := o.v.cfg.Framing.Headroom()
	for i := range o.ds {
		d := &o.ds[i]
		if d.Err != nil {
			o.countFailure(d.Err)
			continue
		}
		c := o.peers[i].Counters
		c.TxPackets.Add(1)
		c.TxBytes.Add(uint64(len(d.Buf) - head))
	}
	o.ds, o.peers = o.ds[:0], o.peers[:0]
	return err
}

func (o *outbound) countFailure(err error) {
	if errors.Is(err, ErrSendBufferFull) {
		o.drops.count(DropSendBufferFull)
		return
	}
	o.drops.count(DropSendFailed)
	o.sendErr.Store(&err)
}

// LastSendError is why the last datagram under DropSendFailed was refused, or nil.
func (v *VTEP) LastSendError() error {
	if p := v.out.sendErr.Load(); p != nil {
		return *p
	}
	return nil
}
