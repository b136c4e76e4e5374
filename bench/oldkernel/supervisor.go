//go:build linux && (amd64 || arm64)

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// notification is struct seccomp_notif: a thread has made a call that the filter asks about, and waits
// (seccomp_unotify(2)).
type notification struct {
	id     uint64
	pid    uint32 // of the thread
	flags  uint32
	number int32
	arch   uint32
	ip     uint64
	args   [6]uint64
}

// response is struct seccomp_notif_resp.
type response struct {
	id    uint64
	value int64
	errno int32 // negative
	flags uint32
}

// answer is what becomes of a call. The zero value lets the kernel have it as it is.
type answer struct {
	errno unix.Errno // the call fails with it
	done  bool       // the call returns 0, and the kernel does not see it
	fatal string     // the program is killed, and this is why
}

// supervisor answers for one filter.
type supervisor struct {
	listener int
	tunFlags uint16        // those that TUNSETIFF does not know
	controls []controlRule // of sendmsg and sendmmsg
	vnetGSO  byte          // that a TUN device does not take; 0: none
	paths    []func(string) bool
}

// superviseFrom learns from descriptor ask whom to supervise, says on the next one that it does, and answers until
// the last process with the filter has ended.
func superviseFrom(ask int, p profile) error {
	var who [2]int32 // process, its descriptor
	if err := binary.Read(os.NewFile(uintptr(ask), "ask"), binary.NativeEndian, &who); err != nil {
		return fmt.Errorf("nobody said whom to supervise: %w", err)
	}
	s := newSupervisor(p)
	var err error
	if s.listener, err = fetch(int(who[0]), int(who[1])); err != nil {
		return err
	}
	ack := os.NewFile(uintptr(ask+1), "ack")
	if _, err := ack.Write([]byte{1}); err != nil {
		return err
	}
	ack.Close()
	return s.serve()
}

func newSupervisor(p profile) *supervisor {
	s := &supervisor{}
	for _, r := range p.rows {
		s.tunFlags |= r.tunFlag
		if r.control != nil {
			s.controls = append(s.controls, *r.control)
		}
		if r.vnetGSO != 0 {
			s.vnetGSO = r.vnetGSO
		}
		if r.path != nil {
			s.paths = append(s.paths, r.path)
		}
	}
	return s
}

// fetch takes a copy of another process's descriptor.
func fetch(pid, fd int) (int, error) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(process)
	own, err := unix.PidfdGetfd(process, fd, 0)
	return own, os.NewSyscallError("pidfd_getfd", err)
}

// serve answers on as many threads as there are processors.
func (s *supervisor) serve() error {
	// Asking and answering stay on one processor, which is quicker (since Linux 6.6; without it, it works too).
	const syncWakeUp = 1 // SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP, linux/seccomp.h
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(s.listener), unix.SECCOMP_IOCTL_NOTIF_SET_FLAGS, syncWakeUp)
	failed := make(chan error, 1)
	for range runtime.NumCPU() {
		go func() {
			for {
				if err := s.one(); err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	go func() { failed <- s.waitForEnd() }()
	return <-failed
}

// waitForEnd returns when nobody has the filter any more.
func (s *supervisor) waitForEnd() error {
	for {
		poll := []unix.PollFd{{Fd: int32(s.listener)}} // POLLHUP comes without being asked for
		_, err := unix.Poll(poll, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("poll", err)
		}
		if poll[0].Revents&unix.POLLHUP != 0 {
			return nil
		}
	}
}

// one takes a notification and answers it.
func (s *supervisor) one() error {
	var n notification
	switch errno := s.ioctl(unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)); errno {
	case 0:
	case unix.EINTR, unix.ENOENT: // whoever asked has died, or all have: waitForEnd will tell
		return nil
	default:
		return os.NewSyscallError("SECCOMP_IOCTL_NOTIF_RECV", errno)
	}
	a := s.judge(&n)
	if a.fatal != "" {
		fmt.Fprintf(os.Stderr, "oldkernel: system call %d of process %d: the kernel that is played would not have refused it, but done harm: %s\n", n.number, n.pid, a.fatal)
		_ = unix.Kill(int(n.pid), unix.SIGKILL)
	}
	r := response{id: n.id, errno: -int32(a.errno)}
	if a == (answer{}) {
		r.flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
	}
	errno := s.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r))
	if errno != 0 && errno != unix.ENOENT && errno != unix.EINTR {
		return os.NewSyscallError("SECCOMP_IOCTL_NOTIF_SEND", errno)
	}
	return nil
}

func (s *supervisor) ioctl(request uintptr, arg unsafe.Pointer) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s.listener), request, uintptr(arg))
	return errno
}

// judge decides about a call. What cannot be read the kernel will not be able to read either: it may say so
// itself.
func (s *supervisor) judge(n *notification) answer {
	m := memory(n.pid)
	switch uintptr(n.number) {
	case unix.SYS_IOCTL:
		return s.judgeTUN(m, n)
	case unix.SYS_SENDMSG:
		return s.judgeMessages(m, n.args[1], 1, unix.SizeofMsghdr)
	case unix.SYS_SENDMMSG:
		return s.judgeMessages(m, n.args[1], int(uint32(n.args[2])), sizeofMmsghdr)
	case unix.SYS_WRITE, unix.SYS_WRITEV:
		return s.judgeWrite(m, n)
	default:
		return s.judgePath(m, n)
	}
}

// memory is another process's, by the number of one of its threads.
type memory uint32

// read fills b from the address there.
func (m memory) read(there uint64, b []byte) bool { return m.readAll([]uint64{there}, [][]byte{b}) }

// readAll fills each of bs from the address of the same index.
func (m memory) readAll(there []uint64, bs [][]byte) bool {
	// process_vm_readv takes 1,024 pieces at most (IOV_MAX).
	for len(bs) > 0 {
		n := min(len(bs), 1024)
		local, remote, size := vectors(there[:n], bs[:n])
		got, err := unix.ProcessVMReadv(int(m), local, remote, 0)
		if err != nil || got != size {
			return false
		}
		there, bs = there[n:], bs[n:]
	}
	return true
}

// write copies b to the address there.
func (m memory) write(there uint64, b []byte) bool {
	local, remote, size := vectors([]uint64{there}, [][]byte{b})
	got, err := unix.ProcessVMWritev(int(m), local, remote, 0)
	return err == nil && got == size
}

func vectors(there []uint64, bs [][]byte) (local []unix.Iovec, remote []unix.RemoteIovec, size int) {
	for i, b := range bs {
		if len(b) == 0 {
			continue
		}
		v := unix.Iovec{Base: &b[0]}
		v.SetLen(len(b))
		local = append(local, v)
		remote = append(remote, unix.RemoteIovec{Base: uintptr(there[i]), Len: len(b)})
		size += len(b)
	}
	return local, remote, size
}
