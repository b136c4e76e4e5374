package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Door is a UDP port of a host, and a socket of ours to it whose errors are kept.
type Door struct {
	To    netip.AddrPort
	Local netip.AddrPort // ours

	conn *net.UDPConn
	raw  syscall.RawConn
	sent int
	err  error
}

// OpenDoor connects a socket to a port. local, if valid, is its source address; the interface is the route's choice, as in
// the data path.
func OpenDoor(local netip.Addr, to netip.AddrPort) (*Door, error) {
	six := to.Addr().Is6()
	network := "udp4"
	if six {
		network = "udp6"
	}
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		return errors.Join(c.Control(func(fd uintptr) {
			option, level := unix.IP_RECVERR, unix.IPPROTO_IP
			if six {
				option, level = unix.IPV6_RECVERR, unix.IPPROTO_IPV6
			}
			failed = os.NewSyscallError("set RECVERR", unix.SetsockoptInt(int(fd), level, option, 1))
		}), failed)
	}}
	if local.IsValid() {
		dialer.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0))
	}
	conn, err := dialer.DialContext(context.Background(), network, to.String())
	if err != nil {
		return nil, fmt.Errorf("a UDP socket to %s: %w", to, err)
	}
	d := &Door{To: to, conn: conn.(*net.UDPConn)}
	d.Local = d.conn.LocalAddr().(*net.UDPAddr).AddrPort()
	if d.raw, err = d.conn.SyscallConn(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return d, nil
}

// Send sends a datagram.
func (d *Door) Send(payload []byte) {
	d.sent++
	d.err = nil
	for range 3 { // an ICMP error about an earlier one is reported once
		if _, d.err = d.conn.Write(payload); d.err == nil || !errors.Is(d.err, unix.ECONNREFUSED) && !errors.Is(d.err, unix.EHOSTUNREACH) {
			return
		}
	}
}

// Knock is what came of a door's datagrams.
type Knock struct {
	Sent    int
	Refused *Refusal // the last ICMP error
	Err     error    // the kernel's, of the last send: EPERM is a firewall's of this host
}

// Result is what is known so far.
func (d *Door) Result() Knock {
	k := Knock{Sent: d.sent, Err: d.err}
	var oob [512]byte
	for {
		var oobn int
		var failed error
		if err := d.raw.Control(func(fd uintptr) {
			_, oobn, _, _, failed = unix.Recvmsg(int(fd), nil, oob[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		}); err != nil || failed != nil {
			return k
		}
		if r := parseError(oob[:oobn]); r != nil {
			k.Refused = r
		}
	}
}

// Close closes the socket.
func (d *Door) Close() error { return d.conn.Close() }

// Alive reports whether a host answers a TCP connection, be it with a refusal: then it is there, also if it answers no ICMP.
func Alive(ctx context.Context, to netip.AddrPort, within time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", to.String())
	if err == nil {
		conn.Close()
		return true
	}
	return errors.Is(err, unix.ECONNREFUSED)
}
