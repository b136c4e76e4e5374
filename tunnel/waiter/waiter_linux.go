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
// (or BeginRead) and End, so that the number is never another file's by then.
type File struct {
	fd     int
	wake   int // eventfd, readable from Close on
	halt   int // eventfd, readable from Pause to Resume
	using  sync.RWMutex
	closed atomic.Bool
	paused atomic.Bool
	turn   *turn   // nil: the reader always sleeps (Follow)
	parker *parker // nil: it sleeps in poll(2) (Park)
}

// New takes over fd, which must be non-blocking. On an error fd is closed.
func New(fd int) (*File, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	halt, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		unix.Close(wake)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &File{fd: fd, wake: wake, halt: halt}, nil
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

// BeginRead is Begin for a reader: between Pause and Resume it returns os.ErrDeadlineExceeded, and End must
// not be called.
func (f *File) BeginRead() (int, error) {
	fd, err := f.Begin()
	if err == nil && f.paused.Load() {
		f.End()
		return -1, os.ErrDeadlineExceeded
	}
	return fd, err
}

// End ends what Begin began.
func (f *File) End() { f.using.RUnlock() }

// Wait blocks until one of events (unix.POLLIN, unix.POLLOUT) or an error is there to be met by the next
// call, or until Close, which gives os.ErrClosed. With POLLIN it gives os.ErrDeadlineExceeded between Pause
// and Resume. fds is the caller's scratch: Wait allocates nothing. Call it between Begin and End.
func (f *File) Wait(events int16, fds *[3]unix.PollFd) error {
	if f.turn != nil && events&unix.POLLIN != 0 {
		return f.turn.wait(f, fds)
	}
	if f.parker != nil && events&unix.POLLIN != 0 {
		return f.parker.wait(fds)
	}
	return f.sleep(events, fds)
}

func (f *File) sleep(events int16, fds *[3]unix.PollFd) error {
	_, err := f.poll(events, -1, fds)
	return err
}

// poll waits for so many milliseconds, -1 for as long as it takes, and says whether there is anything.
func (f *File) poll(events int16, timeout int, fds *[3]unix.PollFd) (any bool, err error) {
	halt := int32(-1) // poll(2) passes over it
	if events&unix.POLLIN != 0 {
		halt = int32(f.halt)
	}
	for {
		fds[0] = unix.PollFd{Fd: int32(f.fd), Events: events}
		fds[1] = unix.PollFd{Fd: int32(f.wake), Events: unix.POLLIN}
		fds[2] = unix.PollFd{Fd: halt, Events: unix.POLLIN}
		n, err := unix.Poll(fds[:], timeout)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return true, os.NewSyscallError("poll", err)
		case fds[1].Revents != 0:
			return true, os.ErrClosed
		case fds[2].Revents != 0:
			return true, os.ErrDeadlineExceeded
		default:
			return n > 0, nil
		}
	}
}

// Pause ends what readers are waiting for with os.ErrDeadlineExceeded, as a read deadline that is past would.
// A read that has begun takes what is there; writers notice nothing.
func (f *File) Pause() error {
	if _, err := f.Begin(); err != nil {
		return err
	}
	defer f.End()
	if f.paused.Swap(true) {
		return nil
	}
	_, err := unix.Write(f.halt, one[:])
	return os.NewSyscallError("write eventfd", err)
}

// Resume lets readers read again.
func (f *File) Resume() error {
	if _, err := f.Begin(); err != nil {
		return err
	}
	defer f.End()
	if !f.paused.Swap(false) {
		return nil
	}
	var count [8]byte
	_, err := unix.Read(f.halt, count[:])
	return os.NewSyscallError("read eventfd", err)
}

// Dup returns another descriptor of the same open file, non-blocking like this one: Close does not end it.
func (f *File) Dup() (*os.File, error) {
	fd, err := f.Begin()
	if err != nil {
		return nil, err
	}
	defer f.End()
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	return os.NewFile(uintptr(dup), ""), nil
}

// one is what is added to an eventfd, in either byte order not 0.
var one = [8]byte{1}

// Close wakes everybody who waits, waits for them to leave, and closes the descriptor. A second Close
// gives os.ErrClosed.
func (f *File) Close() error {
	if f.closed.Swap(true) {
		return os.ErrClosed
	}
	if _, err := unix.Write(f.wake, one[:]); err != nil {
		return os.NewSyscallError("write eventfd", err)
	}
	f.using.Lock()
	defer f.using.Unlock()
	unix.Close(f.wake)
	unix.Close(f.halt)
	f.parker.close()
	return os.NewSyscallError("close", unix.Close(f.fd))
}
