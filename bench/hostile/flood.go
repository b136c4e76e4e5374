//go:build linux

package hostile

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Flood sends prepared Ethernet frames again and again, by a packet socket.
type Flood struct {
	fd   int
	iovs []unix.Iovec
	msgs []mmsghdr // all frames, in the order in which they are sent
	sent atomic.Uint64
}

// mmsghdr is struct mmsghdr of sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// OpenFlood prepares to send frames from an interface of the thread's network namespace. They are kept.
func OpenFlood(device string, frames [][]byte) (*Flood, error) {
	iface, err := net.InterfaceByName(device)
	if err != nil {
		return nil, fmt.Errorf("flood from %s: %w", device, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // protocol 0: receives nothing
	if err != nil {
		return nil, fmt.Errorf("flood from %s: packet socket: %w", device, err)
	}
	f := &Flood{fd: fd}
	if err := f.prepare(iface, frames); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("flood from %s: %w", device, err)
	}
	return f, nil
}

func (f *Flood) prepare(iface *net.Interface, frames [][]byte) error {
	if len(frames) == 0 {
		return errors.New("no frames")
	}
	// Straight to the driver, as pktgen does: a queue in between would be the sender's cost, not the
	// receiver's.
	if err := unix.SetsockoptInt(f.fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
		return os.NewSyscallError("setsockopt PACKET_QDISC_BYPASS", err)
	}
	if err := unix.Bind(f.fd, &unix.SockaddrLinklayer{Ifindex: iface.Index}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	f.iovs, f.msgs = make([]unix.Iovec, len(frames)), make([]mmsghdr, len(frames))
	for i, frame := range frames {
		f.iovs[i].Base = &frame[0]
		f.iovs[i].SetLen(len(frame))
		f.msgs[i].hdr.Iov = &f.iovs[i]
		f.msgs[i].hdr.SetIovlen(1)
	}
	return nil
}

// Run sends until ctx ends, as fast as frames go, and returns nil then. It keeps a thread busy meanwhile.
func (f *Flood) Run(ctx context.Context) error {
	const batch = 64 // frames a system call
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for at := 0; ctx.Err() == nil; at %= len(f.msgs) {
		n, _, errno := syscall.Syscall6(unix.SYS_SENDMMSG, uintptr(f.fd), uintptr(unsafe.Pointer(&f.msgs[at])),
			uintptr(min(batch, len(f.msgs)-at)), 0, 0, 0)
		switch errno {
		case 0:
			at += int(n)
			f.sent.Add(uint64(n))
		case unix.EINTR, unix.EAGAIN, unix.ENOBUFS:
		default:
			return os.NewSyscallError("flood: sendmmsg", errno)
		}
	}
	return nil
}

// Sent is how many frames have left.
func (f *Flood) Sent() uint64 { return f.sent.Load() }

// Close is for after Run.
func (f *Flood) Close() error { return unix.Close(f.fd) }

// Send sends each frame once, from an interface of the thread's network namespace. What leaves a TUN device is IP
// packets, or whatever else the daemon behind it should get to read.
func Send(device string, frames ...[]byte) error {
	f, err := OpenFlood(device, frames)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, frame := range frames {
		if _, err := unix.Write(f.fd, frame); err != nil {
			return fmt.Errorf("send %d bytes from %s: %w", len(frame), device, err)
		}
	}
	return nil
}
