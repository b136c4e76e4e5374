//go:build linux

package probe

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"muslin/bench/lab"
)

const (
	// DefaultRate is in datagrams per second.
	DefaultRate = 1000

	// Settle is how long a datagram may take before it counts as lost.
	Settle = 2 * time.Second

	// linger is how long Stop waits at least, for a duplicate of the last datagram.
	linger = 50 * time.Millisecond

	// patience is how late the sender may be and still send all that is due at once. Beyond it what is due is
	// put off, lest a queue on the way overflow.
	patience = 20 * time.Millisecond

	// buffer is the receiver's, in bytes: at 1,000 a second and some 800 bytes that the kernel counts for a
	// small datagram, more than a minute in which the reader gets no processor.
	buffer = 64 << 20
)

// Config says from where to where.
type Config struct {
	From, To *lab.Node
	Addr     netip.Addr // of To
	Rate     int        // datagrams per second; 0 means DefaultRate
}

// Probe is a probe under way.
type Probe struct {
	cfg     Config
	in, out *net.UDPConn
	count   *counter
	stop    context.CancelFunc
	sender  errgroup.Group
	reader  errgroup.Group
}

// Start sends until Stop, or until ctx ends. Stop is to be called in any case.
func Start(ctx context.Context, cfg Config) (*Probe, error) {
	if cfg.Rate == 0 {
		cfg.Rate = DefaultRate
	}
	in, err := listen(cfg.To, netip.AddrPortFrom(cfg.Addr, 0))
	if err != nil {
		return nil, fmt.Errorf("probe: receive at %s of %s: %w", cfg.Addr, cfg.To.Name, err)
	}
	any := netip.AddrPort{}
	if cfg.Addr.Is6() {
		any = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	}
	out, err := listen(cfg.From, any)
	if err != nil {
		in.Close()
		return nil, fmt.Errorf("probe: send from %s: %w", cfg.From.Name, err)
	}
	to := in.LocalAddr().(*net.UDPAddr).AddrPort()
	return start(ctx, cfg, in, out, to), nil
}

// start sends to an address from which the datagrams get to in.
func start(ctx context.Context, cfg Config, in, out *net.UDPConn, to netip.AddrPort) *Probe {
	ctx, stop := context.WithCancel(ctx)
	p := &Probe{cfg: cfg, in: in, out: out, count: newCounter(time.Now()), stop: stop}
	var mark [8]byte // tells this probe's datagrams from any other's
	rand.Read(mark[:])
	p.reader.Go(func() error { return p.receive(mark) })
	p.sender.Go(func() error { return p.send(ctx, mark, to) })
	return p
}

func listen(n *lab.Node, at netip.AddrPort) (*net.UDPConn, error) {
	network := "udp4"
	if at.Addr().Is6() {
		network = "udp6"
	}
	var conn *net.UDPConn
	if err := n.Do(func() (err error) {
		conn, err = net.ListenUDP(network, net.UDPAddrFromAddrPort(at))
		return err
	}); err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		var failed error
		err = raw.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer)
		})
		err = errors.Join(err, os.NewSyscallError("set SO_RCVBUFFORCE", failed))
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// send sends datagram i at i/Rate seconds.
func (p *Probe) send(ctx context.Context, mark [8]byte, to netip.AddrPort) error {
	every := time.Second / time.Duration(p.cfg.Rate)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for due := time.Now(); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		now := time.Now()
		if late := now.Sub(due); late > patience {
			p.count.stall(late)
			due = now
		}
		for ; !due.After(now); due = due.Add(every) {
			b := binary.BigEndian.AppendUint64(mark[:], uint64(p.count.send(time.Now())))
			if _, err := p.out.WriteToUDPAddrPort(b, to); errors.Is(err, net.ErrClosed) {
				return err
			} else if err != nil {
				p.count.refuse()
			}
		}
		timer.Reset(time.Until(due))
	}
}

// receive takes datagrams until the socket is closed.
func (p *Probe) receive(mark [8]byte) error {
	buf := make([]byte, 64) // longer than ours
	for {
		n, err := p.in.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		if n == len(mark)+8 && [8]byte(buf) == mark {
			p.count.arrive(binary.BigEndian.Uint64(buf[len(mark):]), time.Now())
		}
	}
}

// Snapshot is the result until now. What was sent less than Settle ago and has not arrived is in flight.
func (p *Probe) Snapshot() Result { return p.count.result(time.Now(), Settle) }

// WaitReceived waits until n more datagrams have arrived than when it was called, or ctx ends.
func (p *Probe) WaitReceived(ctx context.Context, n int) error {
	want := p.count.received() + n
	for p.count.received() < want {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("wait for %d datagrams from %s to %s: %w: %s", n, p.cfg.From.Name, p.cfg.To.Name, context.Cause(ctx), p.Snapshot())
		}
	}
	return nil
}

// Stop ends the sending, waits up to Settle for what is under way, and returns the whole result. It is called
// once.
func (p *Probe) Stop() Result {
	p.stop()
	if err := p.sender.Wait(); err != nil {
		p.count.fail(fmt.Errorf("probe: send: %w", err))
	}
	last := time.Now()
	for time.Since(last) < linger || !p.count.complete() && time.Since(last) < Settle {
		time.Sleep(time.Millisecond)
	}
	if dropped, err := p.dropped(); err != nil {
		p.count.fail(fmt.Errorf("probe: drops of its own socket: %w", err))
	} else if dropped > 0 {
		p.count.fail(fmt.Errorf("probe: its own socket dropped %d datagrams", dropped))
	}
	p.out.Close()
	p.in.Close()
	if err := p.reader.Wait(); err != nil {
		p.count.fail(fmt.Errorf("probe: receive: %w", err))
	}
	return p.count.result(last, 0)
}

// dropped is how many datagrams did not fit into the receiver's buffer: the last column of the socket's line
// in /proc/net/udp or udp6 (since Linux 2.6.27).
func (p *Probe) dropped() (int, error) {
	at := p.in.LocalAddr().(*net.UDPAddr).AddrPort()
	file, addr := "udp", at.Addr().Unmap().AsSlice()
	if len(addr) == 16 {
		file = "udp6"
	}
	local := ""
	for ; len(addr) > 0; addr = addr[4:] {
		local += fmt.Sprintf("%08X", binary.NativeEndian.Uint32(addr))
	}
	local += fmt.Sprintf(":%04X", at.Port())
	var table []byte
	if err := p.cfg.To.Do(func() (err error) {
		table, err = os.ReadFile("/proc/thread-self/net/" + file)
		return err
	}); err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(table)) {
		// sl local_address rem_address st … drops
		if f := strings.Fields(line); len(f) > 1 && f[1] == local {
			return strconv.Atoi(f[len(f)-1])
		}
	}
	return 0, fmt.Errorf("%s is not in /proc/net/%s", at, file)
}
