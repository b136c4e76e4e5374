package waiter

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// parker has readers wait in Go's netpoller after all. A goroutine that waits in poll(2) keeps its processor for some
// time, and with it the goroutines that it has just made ready to run: where packets go on to other goroutines
// (tunnel.Engine), those would wait for a thread of the runtime to find them.
//
// Not the descriptor itself is with the netpoller, for the reasons above, but an epoll set around it, in which it is armed
// while somebody waits.
type parker struct {
	set  *os.File
	conn syscall.RawConn
	look func(set uintptr) bool // made once: see ready

	// Of the one reader that waits.
	file  *File
	fds   *[3]unix.PollFd
	error error
}

// Park has readers wait so. It is for a File that has one reader and no Turns, and to be called before it is read.
func (f *File) Park() error {
	set, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	for fd, events := range map[int]uint32{f.fd: 0, f.wake: unix.EPOLLIN, f.halt: unix.EPOLLIN} {
		if err := unix.EpollCtl(set, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err != nil {
			unix.Close(set)
			return os.NewSyscallError("epoll_ctl", err)
		}
	}
	// os.NewFile gives to the netpoller what is non-blocking.
	if err := unix.SetNonblock(set, true); err != nil {
		unix.Close(set)
		return os.NewSyscallError("fcntl F_SETFL", err)
	}
	p := &parker{set: os.NewFile(uintptr(set), "epoll"), file: f}
	if p.conn, err = p.set.SyscallConn(); err != nil {
		p.set.Close()
		return err
	}
	p.look = p.ready
	f.parker = p
	return nil
}

// wait is sleep for a reader.
func (p *parker) wait(fds *[3]unix.PollFd) error {
	p.fds, p.error = fds, nil
	if err := p.conn.Read(p.look); err != nil {
		if errors.Is(err, os.ErrClosed) {
			return os.ErrClosed
		}
		return fmt.Errorf("wait in the netpoller: %w", err)
	}
	return p.error
}

// ready arms the descriptor, and then looks whether the wait is over: an event between the two ends it as well.
func (p *parker) ready(set uintptr) bool {
	f := p.file
	if p.error = p.arm(set, unix.EPOLLIN); p.error != nil {
		return true
	}
	over, err := f.poll(unix.POLLIN, 0, p.fds)
	if over {
		err = errors.Join(err, p.arm(set, 0))
	}
	p.error = err
	return over
}

func (p *parker) arm(set uintptr, events uint32) error {
	err := unix.EpollCtl(int(set), unix.EPOLL_CTL_MOD, p.file.fd, &unix.EpollEvent{Events: events, Fd: int32(p.file.fd)})
	return os.NewSyscallError("epoll_ctl", err)
}

func (p *parker) close() error {
	if p == nil {
		return nil
	}
	return p.set.Close()
}
