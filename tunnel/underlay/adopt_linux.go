package underlay

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"muslin/tunnel/waiter"
)

// Sockets are an underlay's sockets, on their way from one process to the next. What waits in their buffers
// goes with them.
type Sockets struct {
	Receive []*os.File // one for each queue, on the overlay's port
	Send    []*os.File // one for each source port
}

// Close closes them here; where else they are open they stay.
func (s Sockets) Close() {
	for _, all := range [][]*os.File{s.Receive, s.Send} {
		for _, f := range all {
			f.Close()
		}
	}
}

// ErrOtherSockets says that adopted sockets are not what Config wants.
var ErrOtherSockets = errors.New("the sockets are not those of this underlay")

// Sockets returns descriptors of all sockets, for another process. They are the caller's to close, and keep
// the sockets beyond Close.
func (c *Conn) Sockets() (s Sockets, err error) {
	for _, q := range c.queues {
		if err == nil {
			err = give(&s.Receive, q.listener)
		}
	}
	for _, n := range c.senders {
		if err == nil {
			err = give(&s.Send, n.socket)
		}
	}
	if err != nil {
		s.Close()
		return Sockets{}, fmt.Errorf("descriptors of the underlay's sockets: %w", err)
	}
	return s, nil
}

func give(to *[]*os.File, s *socket) error {
	f, err := s.file.Dup()
	if err == nil {
		*to = append(*to, f)
	}
	return err
}

// adoptSocket is openSocket on a socket that another process has bound to local; port 0 stands for any. f
// stays the caller's to close.
func adoptSocket(f *os.File, local netip.AddrPort, options func(fd int) error) (*socket, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	bound, err := udpAddress(fd)
	if err == nil && (bound.Addr() != local.Addr() || local.Port() != 0 && bound.Port() != local.Port()) {
		err = fmt.Errorf("%w: bound to %v, want %v", ErrOtherSockets, bound, local)
	}
	if err == nil {
		err = os.NewSyscallError("fcntl F_SETFL", unix.SetNonblock(fd, true))
	}
	if err == nil {
		err = options(fd)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	file, err := waiter.New(fd)
	if err != nil {
		return nil, err
	}
	return newSocket(file, bound), nil
}

// udpAddress is where a UDP socket is bound.
func udpAddress(fd int) (netip.AddrPort, error) {
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%w: getsockopt SO_PROTOCOL: %w", ErrOtherSockets, err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getsockname", err)
	}
	if protocol == unix.IPPROTO_UDP {
		switch a := name.(type) {
		case *unix.SockaddrInet4:
			return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)), nil
		case *unix.SockaddrInet6:
			return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)), nil
		}
	}
	return netip.AddrPort{}, fmt.Errorf("%w: not UDP", ErrOtherSockets)
}
