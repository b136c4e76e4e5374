// Package tunnel is the VTEP: it joins the inner side (a TUN device) and the outer side (UDP sockets)
// through the FIB, both ways.
//
// How a packet leaves is outbound.go, how one arrives is inbound.go, why one was dropped is drop.go.
// Each direction is one worker that carries a batch from read to write without a channel, a lock, an
// allocation or a log line. The package makes no system call of its own and knows nothing of etcd.
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
)

// BatchSize is how many packets a worker takes in one go. The prototype gained up to 64 and nothing
// beyond.
const BatchSize = 64

// Device is the inner side. Its Read and Write have the shape of golang.zx2c4.com/wireguard/tun, on which
// one of its implementations rests.
type Device interface {
	// Read blocks until there is a packet, then fills as many of bufs as there are packets waiting:
	// packet i at bufs[i][offset:], its length in sizes[i]. len(sizes) >= len(bufs). After Close it
	// returns an error that is os.ErrClosed.
	Read(bufs [][]byte, sizes []int, offset int) (n int, err error)

	// Write hands bufs[i][offset:] to the kernel, each an IP packet. It goes on after a refused packet
	// and returns how many were taken, with the first error. bufs are borrowed until it returns, and
	// the bytes before offset may be overwritten. Both workers call it, at the same time.
	Write(bufs [][]byte, offset int) (n int, err error)

	// Overflow is how many packets the kernel dropped because the device's queue to us was full.
	Overflow() uint64

	// Close ends Read and Write with os.ErrClosed. Closing again changes nothing.
	Close() error
}

// Datagram is an outer datagram on its way in or out.
type Datagram struct {
	Buf  []byte         // payload; borrowed by Send until it returns, filled by Receive up to its length
	Addr netip.AddrPort // outer destination (Send) or source (Receive)
	Flow uint32         // Send: encap.FlowHash of the inner packet; one flow keeps one source port
	ECN  uint8          // outer ECN codepoint, both ways

	Truncated bool  // Receive: the datagram was longer than Buf
	Err       error // Send: why this datagram was not sent
}

// ErrSendBufferFull is a Datagram's Err when the outgoing queue had no room.
var ErrSendBufferFull = errors.New("underlay interface queue is full")

// Underlay is the outer side.
type Underlay interface {
	// Send sends every datagram that the kernel will take, datagrams of one flow in order, and sets
	// Err of the others. It returns an error (os.ErrClosed) only when the underlay was closed.
	Send(ds []Datagram) error

	// Receive blocks until there is a datagram, then takes what is waiting, at most len(ds). ds[i].Buf
	// must have its full length before each call and is cut to the datagram. After Close it returns
	// os.ErrClosed.
	Receive(ds []Datagram) (n int, err error)

	// Overflow is how many datagrams the kernel dropped because the receive buffer was full.
	Overflow() uint64

	// SendOverflow is how many datagrams the kernel took and then dropped because the outgoing
	// interface's queue was full. They were counted as sent before.
	SendOverflow() uint64

	// Close ends Send and Receive with os.ErrClosed. Closing again changes nothing.
	Close() error
}

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
	Framing  encap.Framing
	Network  netip.Prefix   // the whole overlay: no inner source lies elsewhere; zero: anywhere
	Subnet   netip.Prefix   // our own lease; its base is the source of our ICMP errors
	Port     uint16         // the overlay's UDP port, the same on every node
	MTU      encap.InnerMTU // what is longer is answered with ICMP
	Jumbo    int            // longest datagram taken, bytes, but for TCP superpackets: else DropOversized

	SourceCheck SourceCheck
}

// VTEP is one end of the overlay's tunnels. Make it with New, give it peers with SetTable, and Run it.
type VTEP struct {
	cfg   Config
	table atomic.Pointer[fib.Table]

	out outbound
	in  inbound
}

// New makes a VTEP that has no peers yet. It allocates all buffers of the data path. cfg.Device and
// cfg.Underlay stay the caller's to close until Run, which closes both.
func New(cfg Config) (*VTEP, error) {
	if !cfg.Subnet.Addr().Is4() {
		return nil, fmt.Errorf("VTEP subnet %v: not IPv4", cfg.Subnet)
	}
	if cfg.MTU < encap.MinInnerMTU {
		return nil, fmt.Errorf("VTEP MTU %d: IPv4 needs at least %d (RFC 791)", cfg.MTU, encap.MinInnerMTU)
	}
	v := &VTEP{cfg: cfg}
	v.table.Store(fib.New(nil))
	v.out.init(v)
	v.in.init(v)
	return v, nil
}

// SetTable replaces the peers. Packets under way finish with the old table.
func (v *VTEP) SetTable(t *fib.Table) { v.table.Store(t) }

// Table is the peers as they are now.
func (v *VTEP) Table() *fib.Table { return v.table.Load() }

// Run carries packets until ctx is cancelled, which gives nil, or until Device or Underlay fails, which is
// returned. Either way it closes both: no context reaches a worker that waits in one of them.
func (v *VTEP) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return ended(ctx, v.out.run()) })
	g.Go(func() error { return ended(ctx, v.in.run()) })
	g.Go(func() error {
		<-ctx.Done()
		return errors.Join(v.cfg.Device.Close(), v.cfg.Underlay.Close())
	})
	return g.Wait()
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
	for r := range numReasons {
		n := v.out.drops[r].Load() + v.in.drops[r].Load()
		switch r {
		case DropTUNOverflow:
			n += v.cfg.Device.Overflow()
		case DropSendBufferFull:
			n += v.cfg.Underlay.SendOverflow()
		case DropSocketOverflow:
			n += v.cfg.Underlay.Overflow()
		}
		if n > 0 {
			all[r.String()] = n
		}
	}
	return all
}

// ChecksumsCompleted is how many inner packets arrived with a checksum that their sender had left to
// its NIC, and were finished here (see encap.CompletePartial).
func (v *VTEP) ChecksumsCompleted() uint64 { return v.in.completed.Load() }
