// Package underlay moves outer datagrams in batches between the VTEP and UDP sockets.
//
// It owns one receiving socket on the overlay's port and a few sending sockets, whose ports give the
// underlay's switches and the receivers' queues something to spread flows by. It never looks into a
// datagram.
package underlay

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync/atomic"

	"golang.org/x/net/ipv4"

	"muslin/tunnel"
	"muslin/tunnel/kernel"
)

const (
	// senders is the number of sending sockets, so of outer source ports. Every peer sees the same
	// ports; 16 is enough for the hash of an ECMP group or of a NIC's queues to find its spread.
	senders = 16

	// bufferBytes is what each socket's buffers are set to. wireguard-go measured 4.08 → 5.27 Gb/s from
	// the kernel's default to 7 MB; more than a full batch of both workers never hurts.
	bufferBytes = 8 << 20
)

// Config says where the underlay is.
type Config struct {
	Local  netip.Addr // IPv4 address of the underlay interface; both ends of every socket bind to it
	Port   uint16     // the overlay's port
	Logger *slog.Logger

	// Portable receives through golang.org/x/net's ReadBatch instead of our own recvmmsg call. It is
	// the slow twin: it allocates an address for every datagram (docs/decisions/receive-path.md).
	Portable bool
}

// Conn implements tunnel.Underlay. Send is for one goroutine at a time, Receive for one other.
type Conn struct {
	cfg Config
	log *slog.Logger

	listener *socket
	receiver interface {
		receive(ds []tunnel.Datagram) (int, error)
	}

	senders []*socket
	packets []*ipv4.PacketConn // over senders
	out     sendState

	sndbufErrors uint64 // at Open

	ecn      atomic.Bool // outer ECN can be set on sending
	features []kernel.Feature
}

// Open binds the sockets. An error that is syscall.EADDRINUSE means the port is taken.
func Open(cfg Config) (*Conn, error) {
	c := &Conn{cfg: cfg, log: cfg.Logger, sndbufErrors: sndbufErrors()}
	if err := c.listen(); err != nil {
		c.Close()
		return nil, err
	}
	for range senders {
		if err := c.addSender(); err != nil {
			c.Close()
			return nil, err
		}
	}
	c.out.init()
	c.ecn.Store(true)
	return c, nil
}

func (c *Conn) listen() error {
	s, err := openSocket(netip.AddrPortFrom(c.cfg.Local, c.cfg.Port), setListenOptions)
	if err != nil {
		return fmt.Errorf("bind UDP %v:%d: %w", c.cfg.Local, c.cfg.Port, err)
	}
	c.listener = s
	c.features = append(c.features, bufferFeature(s, "receive-buffer", true))
	if c.cfg.Portable {
		c.receiver = newBatchReceiver(s)
		c.features = append(c.features, kernel.Feature{Name: "recvmmsg", Reason: "portable data path asked for: ReadBatch"})
		return nil
	}
	c.receiver = newMmsgReceiver(s)
	c.features = append(c.features, kernel.Feature{
		Name: "recvmmsg", On: true, Reason: fmt.Sprintf("up to %d datagrams a call", tunnel.BatchSize)})
	return nil
}

func (c *Conn) addSender() error {
	s, err := openSocket(netip.AddrPortFrom(c.cfg.Local, 0), setSendOptions)
	if err != nil {
		return fmt.Errorf("bind a sending UDP socket to %v: %w", c.cfg.Local, err)
	}
	if len(c.senders) == 0 {
		c.features = append(c.features, bufferFeature(s, "send-buffer", false))
	}
	c.senders = append(c.senders, s)
	c.packets = append(c.packets, ipv4.NewPacketConn(s))
	return nil
}

// Features lists what the kernel gave and what it did not.
func (c *Conn) Features() []kernel.Feature {
	ecn := kernel.Feature{Name: "outer-ecn", On: c.ecn.Load(), Reason: "congestion marks are copied (RFC 6040)"}
	if !ecn.On {
		ecn.Reason = "the kernel refused IP_TOS for a single datagram (before 3.13); outer ECN stays 0"
	}
	spread := kernel.Feature{Name: "source-ports", On: true, Reason: fmt.Sprintf("flows spread over %d outer ports", senders)}
	sendmmsg := kernel.Feature{Name: "sendmmsg", On: true, Reason: fmt.Sprintf("up to %d datagrams a call", tunnel.BatchSize)}
	return append(append([]kernel.Feature(nil), c.features...), sendmmsg, spread, ecn)
}

// Receive implements tunnel.Underlay.
func (c *Conn) Receive(ds []tunnel.Datagram) (int, error) { return c.receiver.receive(ds) }

// Close ends Send and Receive, both with os.ErrClosed.
func (c *Conn) Close() error {
	var all []error
	for _, s := range append([]*socket{c.listener}, c.senders...) {
		if s == nil {
			continue
		}
		if err := s.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}
