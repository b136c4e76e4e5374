package neighbour

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// hops is the TTL (hop limit) of packets that nobody has forwarded: whoever forwards one takes one off, and nobody can add
// one (RFC 5082). The kernel drops what comes with less, since 2.6.34 and over IPv6 since 2.6.35.
const hops = 255

// segment is the MSS of these connections, bytes: with it they work on a path that takes no more than IPv4's least MTU,
// since a path that loses larger packets is what one asks about.
const segment = 576 - 40

// Listen opens the socket of a Server, at the base address of this node's subnet. With a device it takes what comes by that
// alone, which takes CAP_NET_RAW before Linux 5.7 (c427bfec18f2). Without, what comes directly from the underlay as well.
func Listen(ctx context.Context, at netip.Addr, device string) (*net.TCPListener, error) {
	cfg := net.ListenConfig{KeepAlive: -1, Control: control(at, func(fd int) error {
		level, least := unix.SOL_IP, unix.IP_MINTTL
		if at.Is6() {
			level, least = unix.SOL_IPV6, unix.IPV6_MINHOPCOUNT
		}
		if err := unix.SetsockoptInt(fd, level, least, hops); err != nil || device == "" {
			return os.NewSyscallError("set the least TTL", err)
		}
		return os.NewSyscallError("set SO_BINDTODEVICE", unix.BindToDevice(fd, device))
	})}
	cfg.SetMultipathTCP(false)
	l, err := cfg.Listen(ctx, network(at), netip.AddrPortFrom(at, Port).String())
	if err != nil {
		return nil, fmt.Errorf("listen for peers' questions: %w", err)
	}
	return l.(*net.TCPListener), nil
}

// control sets what both ends have, and more.
func control(at netip.Addr, more func(fd int) error) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = errors.Join(setOptions(int(fd), at), more(int(fd))) })
		return errors.Join(err, failed)
	}
}

func setOptions(fd int, at netip.Addr) error {
	level, ttl := unix.SOL_IP, unix.IP_TTL
	if at.Is6() {
		level, ttl = unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS
	}
	return errors.Join(
		os.NewSyscallError("set the TTL", unix.SetsockoptInt(fd, level, ttl, hops)),
		os.NewSyscallError("set TCP_MAXSEG", unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_MAXSEG, segment)))
}

func network(at netip.Addr) string {
	if at.Is6() {
		return "tcp6"
	}
	return "tcp4"
}

// dial connects to a Server, from a port that takes root.
func dial(ctx context.Context, from, to netip.Addr) (net.Conn, error) {
	const lowest, tries = 600, 50 // ports below have services of their own
	var err error
	for range tries {
		port := uint16(lowest + rand.IntN(reserved-lowest))
		d := net.Dialer{
			LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, port)),
			Control:   control(from, func(int) error { return nil }),
			KeepAlive: -1,
		}
		d.SetMultipathTCP(false)
		var c net.Conn
		c, err = d.DialContext(ctx, network(to), netip.AddrPortFrom(to, Port).String())
		if !errors.Is(err, unix.EADDRINUSE) && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return c, err
		}
	}
	return nil, err
}
