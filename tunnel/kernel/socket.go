//go:build linux

package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// endpoint is an IPv4 address with a port, as the system calls want it.
type endpoint = unix.SockaddrInet4

// udpSocket is a throw-away UDP socket, non-blocking.
type udpSocket struct{ fd int }

// option is a socket option that is an int.
type option struct{ level, name, value int }

func openUDP(local endpoint, options ...option) (udpSocket, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return udpSocket{}, os.NewSyscallError("socket", err)
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			unix.Close(fd)
			return udpSocket{}, os.NewSyscallError("setsockopt", err)
		}
	}
	if err := unix.Bind(fd, &local); err != nil {
		unix.Close(fd)
		return udpSocket{}, os.NewSyscallError("bind", err)
	}
	return udpSocket{fd}, nil
}

// loopback is a port of 127.0.0.1 that the kernel chooses.
var loopback = endpoint{Addr: [4]byte{127, 0, 0, 1}}

func (s udpSocket) close() { unix.Close(s.fd) }

// local is where the socket is bound.
func (s udpSocket) local() (endpoint, error) {
	addr, err := unix.Getsockname(s.fd)
	if err != nil {
		return endpoint{}, os.NewSyscallError("getsockname", err)
	}
	in4, ok := addr.(*endpoint)
	if !ok {
		return endpoint{}, fmt.Errorf("getsockname: %T", addr)
	}
	return *in4, nil
}

// send sends one datagram, or with a segment size of more than 0 as many as payload makes (UDP_SEGMENT).
func (s udpSocket) send(to endpoint, payload []byte, segment int) error {
	var control []byte
	if segment > 0 {
		control = cmsg(unix.IPPROTO_UDP, unix.UDP_SEGMENT, binary.NativeEndian.AppendUint16(nil, uint16(segment)))
	}
	return retry(func() error { return unix.Sendmsg(s.fd, payload, control, &to, 0) })
}

// read waits for a datagram and returns it, borrowed from buf; size is the length of each where the kernel
// joined several (UDP_GRO), else 0.
func (s udpSocket) read(ctx context.Context, buf []byte, until time.Time) (p []byte, size int, err error) {
	oob := make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := unix.Recvmsg(s.fd, buf, oob, unix.MSG_DONTWAIT)
		switch {
		case err == nil:
			return buf[:n], groSize(oob[:oobn]), nil
		case errors.Is(err, unix.EAGAIN):
			if err := waitReadable(ctx, s.fd, until); err != nil {
				return nil, 0, err
			}
		case errors.Is(err, unix.EINTR):
		default:
			return nil, 0, os.NewSyscallError("recvmsg", err)
		}
	}
}

func groSize(oob []byte) int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for _, m := range messages {
		if m.Header.Level == unix.IPPROTO_UDP && m.Header.Type == unix.UDP_GRO && len(m.Data) >= 4 {
			return int(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return 0
}

// cmsg is one control message (cmsg(3)).
func cmsg(level, kind int32, data []byte) []byte {
	b := make([]byte, unix.CmsgSpace(len(data)))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(len(data)))
	copy(b[unix.CmsgLen(0):], data)
	return b
}

func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// errLate: nothing came in time.
var errLate = errors.New("nothing came in time")

// waitReadable waits until fd can be read, and returns errLate after until, or what ended ctx.
func waitReadable(ctx context.Context, fd int, until time.Time) error {
	const slice = 50 * time.Millisecond // how soon the end of ctx is noticed
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(until) {
		until = deadline
	}
	for {
		if errors.Is(ctx.Err(), context.Canceled) {
			return ctx.Err()
		}
		left := time.Until(until)
		if left <= 0 {
			return errLate
		}
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		milliseconds := int(min(left, slice)/time.Millisecond) + 1
		n, err := unix.Poll(poll, milliseconds)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("poll", err)
		}
	}
}

// probeMMsg calls both with a descriptor that is none: a kernel that knows the call says just that.
func probeMMsg() Probe {
	for _, call := range []struct {
		name   string
		number uintptr
	}{{"sendmmsg", unix.SYS_SENDMMSG}, {"recvmmsg", unix.SYS_RECVMMSG}} {
		_, _, errno := unix.Syscall6(call.number, ^uintptr(0), 0, 0, 0, 0, 0)
		switch errno {
		case unix.EBADF:
		case unix.EPERM, unix.EACCES:
			return Probe{Answer: No, Err: errno, Reason: fmt.Sprintf("%s: %v: a seccomp filter refuses it; allow it for this service or container", call.name, errno)}
		default:
			return answered(call.name, errno, unix.ENOSYS)
		}
	}
	return given("sendmmsg and recvmmsg are there")
}

// probeOuterECN sends a datagram to itself with IP_TOS for just this one.
func probeOuterECN() Probe {
	s, err := openUDP(loopback)
	if err != nil {
		return answered("UDP socket", err)
	}
	defer s.close()
	self, err := s.local()
	if err != nil {
		return answered("UDP socket", err)
	}
	const ect0 = 2 // RFC 3168, section 5
	control := cmsg(unix.IPPROTO_IP, unix.IP_TOS, binary.NativeEndian.AppendUint32(nil, ect0))
	err = retry(func() error { return unix.Sendmsg(s.fd, []byte("ecn"), control, &self, 0) })
	if err != nil {
		return answered("sendmsg with IP_TOS", err, unix.EINVAL)
	}
	return given("IP_TOS can be set for a single datagram")
}

// probeUDPGSO sets what UDP_SEGMENT takes since Linux 4.18 (bec1f6f69736). Whether it sends what it should
// is for the self-test.
func probeUDPGSO() Probe {
	s, err := openUDP(loopback, option{unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1400})
	if err != nil {
		return answered("UDP_SEGMENT", err, unix.ENOPROTOOPT)
	}
	s.close()
	return awaiting()
}

// probeUDPGRO sets UDP_GRO and reads it back. It can be set since Linux 5.0, and read back since 5.12
// (98184612aca0) or a stable release that took that over; before that it is left alone, as wireguard-go does.
func probeUDPGRO() Probe {
	s, err := openUDP(loopback, option{unix.IPPROTO_UDP, unix.UDP_GRO, 1})
	if err != nil {
		return answered("UDP_GRO", err, unix.ENOPROTOOPT)
	}
	defer s.close()
	got, err := unix.GetsockoptInt(s.fd, unix.IPPROTO_UDP, unix.UDP_GRO)
	if err != nil {
		return answered("UDP_GRO can be set but not read back", err, unix.ENOPROTOOPT)
	}
	if got != 1 {
		return Probe{Answer: No, Reason: fmt.Sprintf("UDP_GRO was set to 1 and reads %d", got)}
	}
	return awaiting()
}

// sharesPort asks whether two sockets may have one port (SO_REUSEPORT, since Linux 3.9).
func sharesPort() Probe {
	share := option{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1}
	first, err := openUDP(loopback, share)
	if err != nil {
		return answered("SO_REUSEPORT", err, unix.ENOPROTOOPT)
	}
	defer first.close()
	port, err := first.local()
	if err != nil {
		return answered("SO_REUSEPORT", err)
	}
	second, err := openUDP(port, share)
	if err != nil {
		return answered("two sockets with SO_REUSEPORT", err, unix.EADDRINUSE)
	}
	second.close()
	return given("")
}

// UDPMaxSegments is how many datagrams one send may carry with UDP_SEGMENT, found out by sending over the
// loopback interface: 1 where there is no UDP_SEGMENT.
//
// UDP_MAX_SEGMENTS is 64, and 128 since Linux 6.9 (1382e3b6a350) and in stable releases that took that over.
// Until 5.16 and the stable releases of its time (158390e45612) udp_send_skb counted the headers in with the
// data, so that of 64 segments the last found no room: those kernels take 63.
func UDPMaxSegments() int {
	const size = 64 // bytes of a datagram: more than the headers, which so count as one segment at most
	const least = 63
	// A kernel without UDP_SEGMENT would take the control message for nothing, and send one long datagram.
	from, err := openUDP(loopback, option{unix.IPPROTO_UDP, unix.UDP_SEGMENT, size})
	if err != nil {
		return 1
	}
	defer from.close()
	to, err := openUDP(loopback)
	if err != nil {
		return least
	}
	defer to.close()
	addr, err := to.local()
	if err != nil {
		return least
	}
	for _, segments := range []int{128, 64} {
		switch err := from.send(addr, make([]byte, segments*size), size); {
		case err == nil:
			return segments
		case !errors.Is(err, unix.EINVAL):
			// A firewall, or a loopback interface that is down: it says nothing about the number.
			return least
		}
	}
	return least
}
