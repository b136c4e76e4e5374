// Package waiter waits for a file descriptor with poll(2), outside Go's netpoller.
//
// The netpoller keeps every descriptor in one epoll set, edge-triggered in both directions, so that each
// datagram that arrives, and each one that leaves the send buffer, wakes an idle thread of the runtime
// even while the worker is busy with earlier ones. A worker of the data path asks for a wake-up only
// when it has nothing left to do (docs/decisions/waiting.md has the figures).
package waiter

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// File is a non-blocking descriptor that may be closed while others use it. Every use goes between Begin
// and End, so that the number is never another file's by then.
type File struct {
	fd     int
	wake   int // eventfd, readable from Close on
	using  sync.RWMutex
	closed atomic.Bool
}

// New takes over fd, which must be non-blocking. On an error fd is closed.
func New(fd int) (*File, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &File{fd: fd, wake: wake}, nil
}

// Begin returns the descriptor, good until End. After Close it returns os.ErrClosed, and End must not be
// called.
func (f *File) Begin() (int, error) {
	f.using.RLock()
	if f.closed.Load() {
		f.using.RUnlock()
		return -1, os.ErrClosed
	}
	return f.fd, nil
}

// End ends what Begin began.
func (f *File) End() { f.using.RUnlock() }

// Wait blocks until one of events (unix.POLLIN, unix.POLLOUT) or an error is there to be met by the next
// call, or until Close, which gives os.ErrClosed. fds is the caller's scratch: Wait allocates nothing.
// Call it between Begin and End.
func (f *File) Wait(events int16, fds *[2]unix.PollFd) error {
	for {
		fds[0] = unix.PollFd{Fd: int32(f.fd), Events: events}
		fds[1] = unix.PollFd{Fd: int32(f.wake), Events: unix.POLLIN}
		_, err := unix.Poll(fds[:], -1)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return os.NewSyscallError("poll", err)
		case fds[1].Revents != 0:
			return os.ErrClosed
		default:
			return nil
		}
	}
}

// Close wakes everybody who waits, waits for them to leave, and closes the descriptor. A second Close
// gives os.ErrClosed.
func (f *File) Close() error {
	if f.closed.Swap(true) {
		return os.ErrClosed
	}
	if _, err := unix.Write(f.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		return os.NewSyscallError("write eventfd", err)
	}
	f.using.Lock()
	defer f.using.Unlock()
	unix.Close(f.wake)
	return os.NewSyscallError("close", unix.Close(f.fd))
}
