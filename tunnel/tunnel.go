// Package tunnel is the VTEP: it joins the inner side (a TUN device) and the outer side (UDP sockets)
// through the FIB, both ways. It carries one address family: inner packets of it in outer datagrams of it.
//
// How a packet leaves is outbound.go, how one arrives is inbound.go, why one was dropped is drop.go, who is told of it is
// observe.go. How several VTEPs share a UDP port is port.go.
// Each queue has two workers, one for each direction, that carry a batch from read to write without a
// channel, a lock, an allocation or a log line. The package makes no system call of its own and knows nothing of etcd.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"muslin/encap"
	"muslin/tunnel/fib"
	"muslin/tunnel/gso"
)

// BatchSize is how many packets, or datagrams, a worker takes in one go. The prototype gained up to 64 and
// nothing beyond.
const BatchSize = 64

// SourcePorts is how many outer source ports the inner flows are spread over: enough for the hash of an
// ECMP group or of a NIC's queues to find its spread. Every peer sees the same ports.
const SourcePorts = 16

// Device is the inner side: a TUN device with one or more queues.
type Device interface {
	// Queues are the device's, always the same. Each has its own two workers.
	Queues() []DeviceQueue

	// Overflow is how many packets the kernel dropped because the device's queues to us were full.
	Overflow() uint64

	// Pause ends Read of every queue with os.ErrDeadlineExceeded, at once where it waits, until Resume.
	// What a Read takes it still returns; Write and Reply go on. Doing either again changes nothing.
	Pause() error
	Resume() error

	// Close ends Read and Write of every queue with os.ErrClosed. Closing again changes nothing.
	Close() error
}

// DeviceQueue moves inner packets. Read is for one goroutine, Write for one other.
type DeviceQueue interface {
	// Read blocks until there is a packet, then takes what is waiting, as far as ps and slab have room:
	// one packet behind the other in slab, each with headroom bytes in front of it. A packet needs
	// PacketRoom(headroom) bytes of slab, however short it turns out; slab has room for at least one.
	// After Close it returns an error that is os.ErrClosed.
	Read(slab []byte, ps []Packet, headroom int) (n int, err error)

	// Write hands runs to the kernel. What the kernel does not take as a superpacket is cut first. It
	// goes on after a refused run, and returns how many packets (Segments) were taken, with the first
	// error. The runs are borrowed until it returns. The bytes of what was taken may be changed, of what was refused
	// the transport's checksum only.
	Write(runs []gso.Run) (taken int, err error)

	// Reply hands over the one plain packet buf[offset:], where offset >= gso.InfoLen, and may
	// overwrite what lies before it. It may be called beside Write.
	Reply(buf []byte, offset int) error

	// Joins says for which kinds it is worth joining packets before Write. It may change at any time.
	Joins() (tcp, udp bool)
}

// maxPacket is the largest IP packet, in bytes, superpackets included.
const maxPacket = 65535

// PacketRoom is how much of a slab must be free for Read to read one more packet, in bytes.
func PacketRoom(headroom int) int { return max(headroom, gso.InfoLen) + maxPacket }

// Packet is an inner packet on its way out.
type Packet struct {
	Buf  []byte   // headroom, then the IP packet; in the slab
	Info gso.Info // a superpacket, or one whose checksum is not finished
}

// Underlay is the outer side.
type Underlay interface {
	// Queues are as many as the Device's, always the same.
	Queues() []UnderlayQueue

	// SetPeers says whose datagrams are wanted. It lets those of t's peers in, calls use, which puts t to
	// use, and only then may have the kernel drop those of others, which Losses counts as Refused. It is
	// not called by two goroutines at once.
	SetPeers(t *fib.Table, use func())

	// Losses is what the kernel dropped of what came, before Receive.
	Losses() Losses

	// SendOverflow is how many datagrams the kernel took and then dropped because the outgoing
	// interface's queue was full. They were counted as sent before.
	SendOverflow() uint64

	// Pause ends Receive of every queue with os.ErrDeadlineExceeded, at once where it waits, until
	// Resume. Send goes on. Doing either again changes nothing.
	Pause() error
	Resume() error

	// Close ends Send and Receive of every queue with os.ErrClosed. Closing again changes nothing.
	Close() error
}

// Engine is an Underlay that works in goroutines of its own, and has the packets carried in them: from one to the other
// they would change threads twice for each batch. It has one queue, whose Receive is not called.
type Engine interface {
	Underlay

	// Drive says what carries packets from now on. It is called once.
	Drive(Workers)
}

// Fed is an Underlay that others receive for, as a Port does for its Members. Receive of its queues is not called.
type Fed interface {
	Underlay

	// Feed says what carries datagrams to the TUN device from now on, of each queue: as Workers.Inbound does. It is
	// called once. After Close nothing is carried any more.
	Feed(inbound []func(ds []Datagram)) error
}

// Workers carry a batch each when they are called, of an Engine's one queue.
type Workers struct {
	// Outbound blocks until there is a packet in the TUN device, then carries what is waiting there to Send. It is for
	// one goroutine. With os.ErrDeadlineExceeded the TUN device is paused: it is to be called again after Resume. After
	// any other error it is not.
	Outbound func() error

	// Inbound carries datagrams to the TUN device, at most BatchSize. It is for one goroutine at a time. Their bytes are
	// borrowed until it returns, and may be changed.
	Inbound func(ds []Datagram)
}

// Losses are datagrams that the kernel dropped before they could be received, by cause. Of datagrams that it
// had joined to one piece it counts the piece.
type Losses struct {
	Overflow uint64 // a receive buffer was full
	Checksum uint64 // the outer UDP checksum was wrong
	Refused  uint64 // they came from no peer
}

// Plus is the sum.
func (l Losses) Plus(m Losses) Losses {
	return Losses{l.Overflow + m.Overflow, l.Checksum + m.Checksum, l.Refused + m.Refused}
}

// since is what was added to m.
func (l Losses) since(m Losses) Losses {
	return Losses{l.Overflow - m.Overflow, l.Checksum - m.Checksum, l.Refused - m.Refused}
}

// UnderlayQueue moves outer datagrams. Send is for one goroutine, Receive for one other.
type UnderlayQueue interface {
	// Send sends every datagram that the kernel will take, those of one source port in order, and
	// counts the others in Failed. Messages that the kernel does not cut are cut first. It returns an
	// error (os.ErrClosed) only when the underlay was closed.
	Send(ms []Message) error

	// MaxSegments is how many datagrams a Message may hold, at least 1. It may change at any time.
	MaxSegments() int

	// Receive blocks until there is a datagram, then takes what is waiting, at most len(ds). ds[i].Buf
	// must have its full length before each call and is cut to what came. After Close it returns
	// os.ErrClosed.
	Receive(ds []Datagram) (n int, err error)
}

// MaxPayload is the longest UDP payload over IPv4, bytes: 65,535 less both headers. All of a Message's
// datagrams together are no longer either: for the kernel they are one until it cuts them (UDP_SEGMENT,
// udp(7)). Over IPv6, whose length field leaves its header out, 20 more would do.
const MaxPayload = 1<<16 - 1 - encap.OuterIPv4Len - encap.OuterUDPLen

// MaxBuffers is how many pieces a Message may consist of.
const MaxBuffers = 256

// Message is outer datagrams of equal length that go to one peer from one source port.
type Message struct {
	Bufs     [][]byte       // the datagrams one behind the other, in pieces; borrowed until Send returns
	Len      int            // bytes over all Bufs, at most MaxPayload
	Size     int            // bytes of each datagram but the last, which may be shorter
	Segments int            // how many datagrams
	Addr     netip.AddrPort // outer destination
	Port     uint8          // source port: below SourcePorts; a flow keeps its own
	ECN      uint8          // outer ECN codepoint

	Failed int   // set by Send: how many of the datagrams were not sent
	Err    error // why
}

// Datagram is an outer datagram as it was received, or several of one sender one behind the other.
type Datagram struct {
	Buf       []byte         // payload, filled by Receive up to its length
	Size      int            // bytes of each datagram in Buf but the last; 0: there is one
	Addr      netip.AddrPort // outer source
	ECN       uint8          // outer ECN codepoint
	Truncated bool           // it was longer than Buf
}

// ErrSendBufferFull is a Message's Err when the outgoing queue had no room.
var ErrSendBufferFull = errors.New("underlay interface queue is full")

// SourceCheck is how far a datagram's sender is checked.
type SourceCheck uint8

const (
	// SourceCheckStrict, the default: the outer source is the PublicIP of the very peer whose subnet
	// holds the inner source.
	SourceCheckStrict SourceCheck = iota
	// SourceCheckPeers: the outer source is some peer's PublicIP and the inner source is in some
	// peer's subnet. For hosts that answer from another of their addresses.
	SourceCheckPeers
	// SourceCheckOff: any outer source, and any inner one in the Network that is not ours. For peers behind NAT, on an underlay that is
	// trusted.
	SourceCheckOff
)

var sourceChecks = [...]string{SourceCheckStrict: "strict", SourceCheckPeers: "peers", SourceCheckOff: "off"}

func (c SourceCheck) String() string { return sourceChecks[c] }

// ParseSourceCheck reads "off", "peers" or "strict".
func ParseSourceCheck(s string) (SourceCheck, error) {
	for c, name := range sourceChecks {
		if name == s {
			return SourceCheck(c), nil
		}
	}
	return 0, fmt.Errorf("source check %q: want off, peers or strict", s)
}

// Config is what a VTEP is made of.
type Config struct {
	Device   Device
	Underlay Underlay
	Framing  encap.Framing  // of the family that Subnet has
	Network  netip.Prefix   // the whole overlay: no inner source lies elsewhere; zero: anywhere
	Subnet   netip.Prefix   // our own lease; its base is the source of our ICMP errors
	Port     uint16         // the overlay's UDP port, the same on every node
	MTU      encap.InnerMTU // at first (SetMTU); what is longer is answered with ICMP
	Jumbo    int            // longest datagram taken, bytes, but for superpackets: else DropOversized

	SourceCheck SourceCheck
	ClampMSS    bool // see mss.go
}

// VTEP is one end of the overlay's tunnels. Make it with New, give it peers with SetTable, and Run it.
type VTEP struct {
	cfg   Config
	six   bool // carries IPv6, not IPv4
	least int  // bytes of an inner packet that every path takes
	table atomic.Pointer[fib.Table]
	mtu   atomic.Int32
	gate  gate // where workers stand while paused
	watch watch

	sendErr atomic.Pointer[error] // see LastSendError
	failed  chan error            // of what an Engine drives; holds one

	out []*outbound // one of each for each queue
	in  []*inbound
}

// New makes a VTEP, of the family that cfg.Subnet has, that has no peers yet. It allocates all buffers of the data path. cfg.Device and
// cfg.Underlay stay the caller's to close until Run, which closes both.
func New(cfg Config) (*VTEP, error) {
	family, ok := encap.FamilyOf(cfg.Subnet.Addr())
	if !ok {
		return nil, fmt.Errorf("VTEP subnet %v: neither IPv4 nor IPv6", cfg.Subnet)
	}
	if cfg.Framing.Family() != family {
		return nil, fmt.Errorf("VTEP subnet %v: the %s framing carries %v", cfg.Subnet, cfg.Framing.Name(), cfg.Framing.Family())
	}
	if cfg.MTU < family.MinMTU() {
		return nil, fmt.Errorf("VTEP MTU %d: %v needs at least %d", cfg.MTU, family, family.MinMTU())
	}
	inner, outer := cfg.Device.Queues(), cfg.Underlay.Queues()
	if len(inner) != len(outer) {
		return nil, fmt.Errorf("VTEP: %d queues on the TUN device, %d on the underlay", len(inner), len(outer))
	}
	v := &VTEP{cfg: cfg, six: family == encap.IPv6, least: int(encap.LeastInner(cfg.Framing)), failed: make(chan error, 1)}
	v.gate.init()
	v.SetMTU(cfg.MTU)
	v.table.Store(fib.New(nil))
	for i := range inner {
		v.out = append(v.out, newOutbound(v, inner[i], outer[i]))
		v.in = append(v.in, newInbound(v, inner[i], outer[i], v.receives()))
	}
	return v, nil
}

// receives reports whether the workers receive, and nobody does so for them.
func (v *VTEP) receives() bool {
	switch v.cfg.Underlay.(type) {
	case Engine, Fed:
		return false
	}
	return true
}

// SetTable replaces the peers. Packets under way finish with the old table. It is not to be called by two
// goroutines at once.
func (v *VTEP) SetTable(t *fib.Table) {
	v.cfg.Underlay.SetPeers(t, func() { v.table.Store(t) })
}

// Table is the peers as they are now.
func (v *VTEP) Table() *fib.Table { return v.table.Load() }

// SetMTU changes the inner MTU, as when the underlay's has changed.
func (v *VTEP) SetMTU(mtu encap.InnerMTU) { v.mtu.Store(int32(mtu)) }

// MTU is the inner MTU as it is now.
func (v *VTEP) MTU() encap.InnerMTU { return encap.InnerMTU(v.mtu.Load()) }

// Run carries packets until ctx is cancelled, which gives nil, or until Device or Underlay fails, which is
// returned. Either way it closes both: no context reaches a worker that waits in one of them.
func (v *VTEP) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	var batches []func() error
	switch u := v.cfg.Underlay.(type) {
	case Engine:
		u.Drive(v.workers())
		g.Go(func() error { return v.failure(ctx) })
	case Fed:
		g.Go(func() error { return u.Feed(v.carriers()) })
		batches = v.batches(false)
	default:
		batches = v.batches(true)
	}
	v.gate.enter(len(batches))
	for _, batch := range batches {
		g.Go(func() error { return ended(ctx, v.gate.work(batch)) })
	}
	g.Go(func() error {
		<-ctx.Done()
		err := errors.Join(v.cfg.Device.Close(), v.cfg.Underlay.Close())
		v.gate.end()
		return err
	})
	return g.Wait()
}

// batches are what the workers do: those that send, and those that receive, if we do.
func (v *VTEP) batches(receive bool) (all []func() error) {
	for i := range v.out {
		all = append(all, v.out[i].batch)
		if receive {
			all = append(all, v.in[i].batch)
		}
	}
	return all
}

// carriers are what a Fed underlay calls.
func (v *VTEP) carriers() (all []func(ds []Datagram)) {
	for _, in := range v.in {
		all = append(all, in.carry)
	}
	return all
}

// workers are those that an Engine drives.
func (v *VTEP) workers() Workers {
	return Workers{
		Outbound: func() error {
			err := v.out[0].batch()
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				select {
				case v.failed <- err:
				default: // it is called again after an error
				}
			}
			return err
		},
		Inbound: v.in[0].carry,
	}
}

// failure is the error of a worker that an Engine drives, or nil at the end of ctx.
func (v *VTEP) failure(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-v.failed:
		return ended(ctx, err)
	}
}

// Pause has every worker finish the batch that it has in hand, and returns when all stand still. What comes
// meanwhile waits in the kernel: in the TUN device's queues and the sockets' buffers. It may be called before
// Run, whose workers then wait for Resume.
func (v *VTEP) Pause() error {
	v.gate.set(true)
	err := errors.Join(v.cfg.Device.Pause(), v.cfg.Underlay.Pause())
	if err == nil {
		v.gate.settle()
	}
	return err
}

// Resume lets the workers go on.
func (v *VTEP) Resume() error {
	err := errors.Join(v.cfg.Device.Resume(), v.cfg.Underlay.Resume())
	v.gate.set(false)
	return err
}

// ended turns the error of a worker whose device was closed on purpose into nil.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// Drops returns the count of every reason that has occurred, by name.
func (v *VTEP) Drops() map[string]uint64 {
	all := make(map[string]uint64)
	lost := v.cfg.Underlay.Losses()
	for r := range numReasons {
		var n uint64
		for i := range v.out {
			n += v.out[i].drops[r].Load() + v.in[i].drops[r].Load()
		}
		switch r {
		case DropTUNOverflow:
			n += v.cfg.Device.Overflow()
		case DropSendBufferFull:
			n += v.cfg.Underlay.SendOverflow()
		case DropUnknownSource:
			n += lost.Refused
		case DropOuterChecksum:
			n += lost.Checksum
		case DropSocketOverflow:
			n += lost.Overflow
		}
		if n > 0 {
			all[r.String()] = n
		}
	}
	return all
}

// ChecksumsUnfinished is how many inner packets arrived with a checksum that their sender had left to its
// NIC (see gso.Partial). They are handed on in that state, or finished here where the TUN device does not
// take them so.
func (v *VTEP) ChecksumsUnfinished() uint64 {
	var n uint64
	for _, in := range v.in {
		n += in.unfinished.Load()
	}
	return n
}
