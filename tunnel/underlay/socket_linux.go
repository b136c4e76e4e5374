package underlay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"muslin/tunnel/kernel"
	"muslin/tunnel/waiter"
)

// socket is a UDP socket outside Go's netpoller. It is a net.PacketConn, and has the methods by which
// golang.org/x/net recognises a UDP connection, just so that ReadBatch and WriteBatch take it: they use
// SyscallConn and nothing else.
type socket struct {
	file *waiter.File
	addr *net.UDPAddr // with the port that the kernel has chosen
}

func openSocket(local netip.AddrPort, options func(fd int) error) (*socket, error) {
	domain := unix.AF_INET
	if local.Addr().Is6() {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := options(fd); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if err := unix.Bind(fd, sockaddr(local)); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	if local.Port() == 0 {
		bound, err := udpAddress(fd)
		if err != nil {
			unix.Close(fd)
			return nil, err
		}
		local = bound
	}
	file, err := waiter.New(fd)
	if err != nil {
		return nil, err
	}
	return newSocket(file, local), nil
}

// sockaddr is an address as the kernel has it, of its family.
func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is6() {
		return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

func newSocket(file *waiter.File, local netip.AddrPort) *socket {
	return &socket{file: file, addr: net.UDPAddrFromAddrPort(local)}
}

func (s *socket) Close() error                          { return s.file.Close() }
func (s *socket) LocalAddr() net.Addr                   { return s.addr }
func (s *socket) SyscallConn() (syscall.RawConn, error) { return &rawSocket{file: s.file}, nil }

// What follows is asked for by the interfaces and called by nobody.

var errBatchOnly = errors.New("this socket moves datagrams in batches only")

func (s *socket) Read([]byte) (int, error)               { return 0, errBatchOnly }
func (s *socket) Write([]byte) (int, error)              { return 0, errBatchOnly }
func (s *socket) ReadFrom([]byte) (int, net.Addr, error) { return 0, nil, errBatchOnly }
func (s *socket) WriteTo([]byte, net.Addr) (int, error)  { return 0, errBatchOnly }
func (s *socket) RemoteAddr() net.Addr                   { return nil }
func (s *socket) SetDeadline(time.Time) error            { return errBatchOnly }
func (s *socket) SetReadDeadline(time.Time) error        { return errBatchOnly }
func (s *socket) SetWriteDeadline(time.Time) error       { return errBatchOnly }
func (s *socket) ReadMsgUDP(_, _ []byte) (n, oobn, flags int, addr *net.UDPAddr, err error) {
	return 0, 0, 0, nil, errBatchOnly
}

// rawSocket implements syscall.RawConn: it calls f until f is content, and waits in between.
type rawSocket struct {
	file *waiter.File
	poll [2][3]unix.PollFd // of the one reader and the one writer
}

func (r *rawSocket) Control(f func(fd uintptr)) error {
	fd, err := r.file.Begin()
	if err != nil {
		return err
	}
	defer r.file.End()
	f(uintptr(fd))
	return nil
}

func (r *rawSocket) Read(f func(fd uintptr) bool) error {
	fd, err := r.file.BeginRead()
	if err != nil {
		return err
	}
	defer r.file.End()
	return r.until(f, fd, unix.POLLIN, &r.poll[0])
}

func (r *rawSocket) Write(f func(fd uintptr) bool) error {
	fd, err := r.file.Begin()
	if err != nil {
		return err
	}
	defer r.file.End()
	return r.until(f, fd, unix.POLLOUT, &r.poll[1])
}

func (r *rawSocket) until(f func(fd uintptr) bool, fd int, events int16, poll *[3]unix.PollFd) error {
	for !f(uintptr(fd)) {
		if err := r.file.Wait(events, poll); err != nil {
			return err
		}
	}
	return nil
}

// listenOptions are those of a receiving socket.
type listenOptions struct {
	six   bool // over IPv6
	share bool // the port with our other queues: the kernel spreads flows over them (since Linux 3.9)
	gro   bool // take several datagrams in one piece
}

func (o listenOptions) set(fd int) error {
	setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF)
	if o.share {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return fmt.Errorf("setsockopt SO_REUSEPORT: %w", err)
		}
	}
	if err := setGRO(fd, o.gro); err != nil {
		return fmt.Errorf("setsockopt UDP_GRO: %w", err)
	}
	if o.six {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1); err != nil {
			return fmt.Errorf("setsockopt IPV6_RECVTCLASS: %w", err)
		}
		return onlyIPv6(fd)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVTOS, 1); err != nil {
		return fmt.Errorf("setsockopt IP_RECVTOS: %w", err)
	}
	return nil
}

// onlyIPv6 keeps IPv4 in IPv6's clothes out (ipv6(7), IPV6_V6ONLY), so that a VTEP of IPv4 may have the same port. A
// socket that is bound, as an adopted one, has it already and refuses it.
func onlyIPv6(fd int) error {
	if on, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY); err == nil && on != 0 {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
		return fmt.Errorf("setsockopt IPV6_V6ONLY: %w", err)
	}
	return nil
}

// setGRO leaves a socket alone that has it off: the kernel may not know it.
func setGRO(fd int, on bool) error {
	if !on {
		// An adopted socket may have it on. Unreadable before 5.12, where we never set it.
		if was, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO); err != nil || was == 0 {
			return nil
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 0)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
}

// sendOptions are those of a sending socket.
type sendOptions struct{ six bool }

// set leaves a UDP checksum on, which over IPv6 each datagram must have (RFC 8200, section 8.1).
func (o sendOptions) set(fd int) error {
	setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF)
	// Go's sockets keep the system's path MTU discovery, which sets DF. flannel's do not set it: an
	// outer datagram that meets a smaller MTU is fragmented rather than lost. Over IPv6 that is done here, by
	// what is known of the path's MTU.
	if o.six {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT); err != nil {
			return fmt.Errorf("setsockopt IPV6_MTU_DISCOVER: %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 0); err != nil {
			return fmt.Errorf("setsockopt IPV6_DONTFRAG: %w", err)
		}
		if err := onlyIPv6(fd); err != nil {
			return err
		}
		return refuseAll(fd)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT); err != nil {
		return fmt.Errorf("setsockopt IP_MTU_DISCOVER: %w", err)
	}
	return refuseAll(fd)
}

// refuseAll makes the kernel drop what is sent to a socket that only sends, before it takes up memory.
func refuseAll(fd int) error { return attachFilter(fd, filterProgram(nil, source4)) }

// setBuffer asks for bufferBytes past the system's limit, which takes CAP_NET_ADMIN, and falls back to
// what the limit (net.core.rmem_max, wmem_max) allows. bufferFeature reports which it was.
func setBuffer(fd, force, plain int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, bufferBytes) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, bufferBytes)
	}
}

func bufferFeature(s *socket, name string, receive bool) kernel.Feature {
	option, limit := unix.SO_SNDBUF, "net.core.wmem_max"
	if receive {
		option, limit = unix.SO_RCVBUF, "net.core.rmem_max"
	}
	got, err := getInt(s, option)
	got /= 2 // the kernel doubles what was asked for, for its own bookkeeping (socket(7))
	switch {
	case err != nil:
		return kernel.Feature{Name: name, Reason: err.Error()}
	case got < bufferBytes:
		return kernel.Feature{Name: name, Reason: fmt.Sprintf("%d of %d KiB: no CAP_NET_ADMIN in the host's namespace; raise %s", got>>10, bufferBytes>>10, limit)}
	}
	return kernel.Feature{Name: name, On: true, Reason: fmt.Sprintf("%d KiB", got>>10)}
}

func getInt(s *socket, option int) (n int, err error) {
	err = s.with(func(fd int) error {
		n, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, option)
		return os.NewSyscallError("getsockopt", err)
	})
	return n, err
}

// with calls f with the descriptor, which stays open meanwhile.
func (s *socket) with(f func(fd int) error) error {
	fd, err := s.file.Begin()
	if err != nil {
		return err
	}
	defer s.file.End()
	return f(fd)
}
