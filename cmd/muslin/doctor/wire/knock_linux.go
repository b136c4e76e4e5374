package wire

import (
	"context"
	"encoding/binary"
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

// SendUnchecked sends one without a UDP checksum, of IPv4 (RFC 768): no host drops it for being damaged.
func (d *Door) SendUnchecked(payload []byte) error {
	set := func(to int) error {
		var failed error
		err := d.raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, to) })
		return errors.Join(err, os.NewSyscallError("set SO_NO_CHECK", failed))
	}
	if err := set(1); err != nil {
		return err
	}
	d.Send(payload)
	return set(0)
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

// misshapenEvery is how often one is sent: a host may tell an address of closed ports no more than once a second.
const misshapenEvery = 250 * time.Millisecond

// Misshapen sends datagrams that no UDP of any host takes: their length is none (RFC 768: 8 at least), and of IPv6 the checksum is
// missing (RFC 8200, section 8.1). A port where nobody listens is silent about them; a firewall that refuses the port answers, since it
// looks at no more than addresses and ports. It is how the two are told apart when both say "port unreachable".
func Misshapen(ctx context.Context, from, to netip.AddrPort, within time.Duration) (*Refusal, error) {
	six := to.Addr().Is6()
	network, local := "ip4:udp", &net.IPAddr{IP: from.Addr().AsSlice()}
	if six {
		network = "ip6:udp"
	}
	conn, err := net.DialIP(network, local, &net.IPAddr{IP: to.Addr().AsSlice()})
	if err != nil {
		return nil, fmt.Errorf("open raw UDP socket: %w: it takes CAP_NET_RAW: run this as root", err)
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var failed error
	if err := errors.Join(raw.Control(func(fd uintptr) { failed = setProbing(int(fd), six, nil) }), failed); err != nil {
		return nil, err
	}
	var p [udpLen + 32]byte
	binary.BigEndian.PutUint16(p[:], from.Port())
	binary.BigEndian.PutUint16(p[2:], to.Port())
	if six {
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)))
	}
	for until := time.Now().Add(within); time.Now().Before(until) && ctx.Err() == nil; time.Sleep(misshapenEvery) {
		_, _ = conn.Write(p[:]) // an error about an earlier one is reported once
		if r := misshapenRefused(raw, six); r != nil {
			return r, nil
		}
	}
	return misshapenRefused(raw, six), nil
}

// misshapenRefused reads the error queue of a raw socket, where the errors about all of the host's datagrams to that address are:
// ours are those whose quote is misshapen.
func misshapenRefused(raw syscall.RawConn, six bool) *Refusal {
	var quote [128]byte
	var oob [512]byte
	for {
		var n, oobn int
		var failed error
		if err := raw.Control(func(fd uintptr) {
			n, oobn, _, _, failed = unix.Recvmsg(int(fd), quote[:], oob[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		}); err != nil || failed != nil {
			return nil
		}
		if r := parseError(oob[:oobn]); r != nil && isMisshapen(quote[:n], six) {
			return r
		}
	}
}

// isMisshapen reports whether a quote, from the IP header on or from behind it, is of a datagram of Misshapen.
func isMisshapen(udp []byte, six bool) bool {
	if !six && len(udp) >= ipv4Len && udp[0] == 4<<4|ipv4Len/4 && udp[9] == protoUDP { // what is behind ours is zeros
		udp = udp[ipv4Len:]
	}
	if len(udp) < udpLen {
		return false
	}
	if six {
		return binary.BigEndian.Uint16(udp[6:]) == 0
	}
	return binary.BigEndian.Uint16(udp[4:]) == 0
}

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
