// Package underlay moves outer datagrams in batches between the VTEP and UDP sockets, over IPv4 or over IPv6.
//
// It owns a receiving socket for each queue, all on the overlay's port, and a few sending sockets, whose
// ports give the underlay's switches and the receivers' queues something to spread flows by. Runs of
// datagrams leave and arrive in one piece where the kernel can cut and join them (UDP_SEGMENT, UDP_GRO). A
// filter on the receiving sockets has the kernel drop what comes from strangers (earlyfilter_linux.go). The room never
// looks into a datagram.
package underlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"muslin/encap"
	"muslin/tunnel"
	"muslin/tunnel/fib"
	"muslin/tunnel/kernel"
	"muslin/tunnel/waiter"
)

// bufferBytes is what each socket's buffers are set to. wireguard-go measured 4.08 → 5.27 Gb/s from the
// kernel's default to 7 MB; more than a full batch of both workers never hurts.
const bufferBytes = 8 << 20

// Config says where the underlay is.
type Config struct {
	Local       netip.Addr // of the underlay interface; all sockets bind to it, and have its address family
	Port        uint16     // the overlay's port
	Queues      int        // at least 1
	Features    kernel.Features
	MaxSegments int // datagrams that this kernel takes in one piece (kernel.UDPMaxSegments)
	Logger      *slog.Logger
	Turns       *waiter.Turns // that the queues' readers follow; nil: none

	// Adopt are the sockets of an earlier process, as many to receive with as Queues; they stay the
	// caller's to close. Sending sockets that are missing are opened, those too many not used.
	Adopt Sockets
}

// Conn implements tunnel.Underlay.
type Conn struct {
	cfg Config
	six bool // over IPv6
	log *slog.Logger

	queues  []*queue
	senders []*sender // by source port; all queues use them

	filter       *earlyFilter
	losses       losses
	sndbufErrors uint64 // at Open

	ecn     atomic.Bool // outer ECN can be set on sending
	buffers []kernel.Feature
}

// queue implements tunnel.UnderlayQueue.
type queue struct {
	conn     *Conn
	listener *socket
	receiver receiver
	out      sendState
}

type receiver interface {
	receive(ds []tunnel.Datagram) (int, error)
}

// Open binds the sockets. An error that is syscall.EADDRINUSE means the port is taken.
func Open(cfg Config) (*Conn, error) {
	family, ok := encap.FamilyOf(cfg.Local)
	if !ok {
		return nil, fmt.Errorf("underlay address %v: neither IPv4 nor IPv6", cfg.Local)
	}
	six := family == encap.IPv6
	c := &Conn{cfg: cfg, six: six, log: cfg.Logger, filter: newEarlyFilter(cfg.Features, six, cfg.Logger)}
	c.losses.six, c.sndbufErrors = six, udpCounters(six)["SndbufErrors"]
	if err := c.open(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Conn) open() error {
	adopted := len(c.cfg.Adopt.Receive)
	switch {
	case adopted > 0 && adopted != c.cfg.Queues:
		return fmt.Errorf("adopt sockets: %w: %d to receive with, want %d", ErrOtherSockets, adopted, c.cfg.Queues)
	case adopted == 0 && c.cfg.Queues > 1:
		if err := c.portFree(); err != nil {
			return err
		}
	}
	for i := range c.cfg.Queues {
		if err := c.listen(i); err != nil {
			return err
		}
	}
	ports := 1
	if c.cfg.Features.On(kernel.SourcePorts) {
		ports = tunnel.SourcePorts
	}
	for i := range ports {
		if err := c.addSender(i); err != nil {
			return err
		}
	}
	for _, q := range c.queues {
		q.out.init(c.senders, c.cfg.Features.On(kernel.MMsg), c.six)
	}
	c.ecn.Store(c.cfg.Features.On(kernel.OuterECN))
	c.filter.opened()
	c.losses.begin(c.filter.sockets)
	return nil
}

// portFree makes sure that nobody has the port: sockets that share it among them (SO_REUSEPORT) would also
// share it with another process of this user.
func (c *Conn) portFree() error {
	s, err := openSocket(netip.AddrPortFrom(c.cfg.Local, c.cfg.Port), func(int) error { return nil })
	if err != nil {
		return c.bindError(err)
	}
	return s.Close()
}

func (c *Conn) bindError(err error) error {
	return fmt.Errorf("bind UDP %v: %w", netip.AddrPortFrom(c.cfg.Local, c.cfg.Port), err)
}

// listen adds a queue with its receiving socket: the adopted one of that number, or one of its own.
func (c *Conn) listen(number int) error {
	options := c.listenOptions()
	local := netip.AddrPortFrom(c.cfg.Local, c.cfg.Port)
	var s *socket
	var err error
	if number < len(c.cfg.Adopt.Receive) {
		if s, err = adoptSocket(c.cfg.Adopt.Receive[number], local, options.set); err != nil {
			return fmt.Errorf("adopt the receiving socket of queue %d: %w", number, err)
		}
	} else if s, err = openSocket(local, func(fd int) error { c.filter.shut(fd); return options.set(fd) }); err != nil {
		return c.bindError(err)
	}
	s.file.Follow(c.cfg.Turns, waiter.Inbound)
	q := &queue{conn: c, listener: s}
	if c.cfg.Features.On(kernel.MMsg) {
		q.receiver = newMmsgReceiver(s, c.six)
	} else {
		q.receiver = newBatchReceiver(s, c.six)
	}
	if len(c.queues) == 0 {
		c.buffers = append(c.buffers, bufferFeature(s, "receive-buffer", true))
	}
	c.queues = append(c.queues, q)
	c.filter.sockets = append(c.filter.sockets, s)
	return nil
}

func (c *Conn) addSender(number int) error {
	local, options := netip.AddrPortFrom(c.cfg.Local, 0), sendOptions{c.six}
	var s *socket
	var err error
	if number < len(c.cfg.Adopt.Send) {
		if s, err = adoptSocket(c.cfg.Adopt.Send[number], local, options.set); err != nil {
			return fmt.Errorf("adopt sending socket %d: %w", number, err)
		}
	} else if s, err = openSocket(local, options.set); err != nil {
		return fmt.Errorf("bind a sending UDP socket to %v: %w", c.cfg.Local, err)
	}
	if len(c.senders) == 0 {
		c.buffers = append(c.buffers, bufferFeature(s, "send-buffer", false))
	}
	segments := 1
	if c.cfg.Features.On(kernel.UDPGSO) {
		segments = max(1, c.cfg.MaxSegments)
	}
	c.senders = append(c.senders, newSender(s, segments, leastPathMTU(c.six)))
	return nil
}

// Queues implements tunnel.Underlay.
func (c *Conn) Queues() []tunnel.UnderlayQueue {
	var all []tunnel.UnderlayQueue
	for _, q := range c.queues {
		all = append(all, q)
	}
	return all
}

// Features lists what the kernel gave and what it did not.
func (c *Conn) Features() []kernel.Feature {
	all := []kernel.Feature{
		c.cfg.Features.Feature(kernel.MMsg),
		c.cfg.Features.Feature(kernel.SourcePorts),
		c.ecnFeature(),
		c.gsoFeature(),
		c.cfg.Features.Feature(kernel.UDPGRO),
		c.filter.feature(c.cfg.Features.Feature(kernel.EarlyFilter)),
		c.busyPollFeature(),
	}
	return append(all, c.buffers...)
}

// busyPollFeature also says what it took of the processors.
func (c *Conn) busyPollFeature() kernel.Feature {
	f := c.cfg.Features.Feature(kernel.BusyPoll)
	if f.On {
		f.Reason += fmt.Sprintf("; %v of it so far", c.cfg.Turns.Awake().Round(time.Millisecond))
	}
	return f
}

func (c *Conn) ecnFeature() kernel.Feature {
	f := c.cfg.Features.Feature(kernel.OuterECN)
	if f.On && !c.ecn.Load() {
		f.On, f.Reason = false, "the kernel refused IP_TOS for a single datagram (before 3.13; IPv6: IPV6_TCLASS); outer ECN stays 0"
	}
	return f
}

// SetPeers implements tunnel.Underlay.
func (c *Conn) SetPeers(t *fib.Table, use func()) { c.filter.setPeers(nil, t, use) }

// Run keeps strangers out that SetPeers let in with the peers, until ctx ends; then it returns nil.
func (c *Conn) Run(ctx context.Context) error { return c.filter.run(ctx) }

// Receive implements tunnel.UnderlayQueue.
func (q *queue) Receive(ds []tunnel.Datagram) (int, error) { return q.receiver.receive(ds) }

// Source implements tunnel.Sourced.
func (q *queue) Source(port uint8) netip.AddrPort {
	return q.conn.senders[int(port)%len(q.conn.senders)].socket.addr.AddrPort()
}

// Pause implements tunnel.Underlay. Meanwhile it leaves the filter to whoever has adopted the sockets.
func (c *Conn) Pause() error {
	c.filter.freeze()
	return c.each((*waiter.File).Pause)
}

// Resume implements tunnel.Underlay. It sets again what another process may have changed that adopted the
// sockets, and did not take them over in the end.
func (c *Conn) Resume() error {
	c.filter.thaw()
	var all []error
	for _, q := range c.queues {
		all = append(all, q.listener.with(c.listenOptions().set))
	}
	return errors.Join(append(all, c.each((*waiter.File).Resume))...)
}

func (c *Conn) listenOptions() listenOptions {
	return listenOptions{six: c.six, share: c.cfg.Queues > 1, gro: c.cfg.Features.On(kernel.UDPGRO)}
}

func (c *Conn) each(do func(*waiter.File) error) error {
	var all []error
	for _, q := range c.queues {
		all = append(all, do(q.listener.file))
	}
	return errors.Join(all...)
}

// Close ends Send and Receive, both with os.ErrClosed.
func (c *Conn) Close() error {
	var all []error
	for _, q := range c.queues {
		all = append(all, q.listener.Close())
	}
	for _, s := range c.senders {
		all = append(all, s.socket.Close())
	}
	for i, err := range all {
		if errors.Is(err, os.ErrClosed) {
			all[i] = nil
		}
	}
	return errors.Join(all...)
}
