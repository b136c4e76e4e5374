package pathmtu

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

	"muslin/encap"
	"muslin/tunnel/fib"
)

// SocketConfig says what probes look like.
type SocketConfig struct {
	Local   netip.Addr    // of the underlay interface, as the data path's sockets have it
	Port    uint16        // of the peers
	Framing encap.Framing // of the address family that Local has
	Base    netip.Addr    // of our subnet
}

// sockets implement Conn: one that probes leave by, and to whose error queue the kernel puts what routers say to them;
// and a raw one for the answers, which come as packets to this host.
type sockets struct {
	cfg  SocketConfig
	six  bool
	out  *net.UDPConn
	raw  syscall.RawConn // of out
	in   *net.IPConn
	id   uint16
	seq  uint16
	head int
	buf  []byte
}

// Open opens the sockets. It takes CAP_NET_RAW, which may be given up afterwards.
func Open(cfg SocketConfig) (Conn, error) {
	s := &sockets{cfg: cfg, six: cfg.Local.Is6(), id: uint16(rand.Uint32()), head: cfg.Framing.Headroom()}
	udp, icmp := "udp4", "ip4:icmp"
	if s.six {
		udp, icmp = "udp6", "ip6:ipv6-icmp"
	}
	in, err := net.ListenIP(icmp, nil)
	if err != nil {
		return nil, fmt.Errorf("open raw ICMP socket: %w: it takes CAP_NET_RAW", err)
	}
	s.in = in
	if err := control(in, s.filterReplies); err != nil {
		return nil, errors.Join(err, in.Close())
	}
	listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		return errors.Join(c.Control(func(fd uintptr) { failed = s.setProbing(int(fd)) }), failed)
	}}
	conn, err := listen.ListenPacket(context.Background(), udp, netip.AddrPortFrom(cfg.Local, 0).String())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("bind a UDP socket for probes to %v: %w", cfg.Local, err), in.Close())
	}
	s.out = conn.(*net.UDPConn)
	if s.raw, err = s.out.SyscallConn(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func control(c syscall.Conn, set func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	return errors.Join(raw.Control(func(fd uintptr) { failed = set(int(fd)) }), failed)
}

// Of linux/icmp.h, linux/socket.h; since Linux 2.4. A bit that is set in the value keeps that type of message away.
const (
	icmpFilter = 1
	solRaw     = 255
)

// filterReplies lets in echo replies and nothing else.
func (s *sockets) filterReplies(fd int) error {
	if !s.six {
		return os.NewSyscallError("set ICMP_FILTER", unix.SetsockoptInt(fd, solRaw, icmpFilter, ^(1<<echoReply4)))
	}
	var f unix.ICMPv6Filter // a bit keeps a type away, too (RFC 3542, section 3.2)
	for i := range f.Data {
		f.Data[i] = ^uint32(0)
	}
	f.Data[echoReply6/32] &^= 1 << (echoReply6 % 32)
	return os.NewSyscallError("set ICMPV6_FILTER", unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &f))
}

// setProbing: PMTUDISC_PROBE (since Linux 2.6.22) sets DF, sends up to the interface's MTU whatever the kernel knows of the
// path, and sends nothing that is longer.
func (s *sockets) setProbing(fd int) error {
	level, discover, probe, errs := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE, unix.IP_RECVERR
	if s.six {
		level, discover, probe, errs = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE, unix.IPV6_RECVERR
	}
	if err := unix.SetsockoptInt(fd, level, discover, probe); err != nil {
		return os.NewSyscallError("set MTU_DISCOVER", err)
	}
	if err := unix.SetsockoptInt(fd, level, errs, 1); err != nil {
		return os.NewSyscallError("set RECVERR", err)
	}
	if s.six {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1); err != nil {
			return os.NewSyscallError("set IPV6_DONTFRAG", err)
		}
	}
	// What anyone sends to this socket is of no use: answers go to the overlay's port.
	refuse := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	return os.NewSyscallError("set SO_ATTACH_FILTER",
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &refuse}))
}

// Send implements Conn.
func (s *sockets) Send(peer *fib.Peer, nonce uint64, size int) error {
	s.seq++
	s.buf = appendProbe(append(s.buf[:0], make([]byte, s.head)...), s.cfg.Base, peer.Subnet.Addr(), s.id, s.seq, nonce, size)
	s.cfg.Framing.Encode(s.buf, peer.MAC)
	to := netip.AddrPortFrom(peer.PublicIP, s.cfg.Port)
	// The kernel reports an earlier probe's error by the next call, once; this one's own comes again.
	var err error
	for range tries {
		if _, err = s.out.WriteToUDPAddrPort(s.buf, to); err == nil {
			return nil
		}
	}
	if errors.Is(err, unix.EMSGSIZE) {
		return ErrTooLong
	}
	return err
}

// Reply implements Conn.
func (s *sockets) Reply() (nonce uint64, err error) {
	var buf [128]byte // of IPv4 the IP header is read, too, and taken off; what is longer is cut
	for {
		n, _, err := s.in.ReadFromIP(buf[:])
		if err != nil {
			return 0, err
		}
		if nonce, ok := parseReply(buf[:n], s.six); ok {
			return nonce, nil
		}
	}
}

// TooLong implements Conn.
func (s *sockets) TooLong() (nonce uint64, mtu int, err error) {
	var quote [128]byte // what is longer is cut
	var oob [512]byte
	for {
		var n, oobn int
		var failed error
		err := s.raw.Read(func(fd uintptr) bool {
			n, oobn, _, _, failed = unix.Recvmsg(int(fd), quote[:], oob[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			return !errors.Is(failed, unix.EAGAIN)
		})
		switch {
		case err != nil:
			return 0, 0, err
		case failed != nil:
			return 0, 0, os.NewSyscallError("recvmsg MSG_ERRQUEUE", failed)
		}
		mtu, ok := parseExtendedError(oob[:oobn], s.six)
		if !ok {
			continue
		}
		if nonce, ok := parseQuote(quote[:n], s.head, s.six); ok {
			return nonce, mtu, nil
		}
	}
}

// Close implements Conn.
func (s *sockets) Close() error { return errors.Join(s.out.Close(), s.in.Close()) }
