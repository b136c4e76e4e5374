//go:build linux && (amd64 || arm64)

package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// launch puts the filter on this thread, hands its listener to a supervisor, and becomes the program.
func launch(p profile, program []string) error {
	path, err := exec.LookPath(program[0])
	if err != nil {
		return err
	}
	filter, err := p.filter()
	if err != nil {
		return err
	}
	s, err := startSupervisor(p)
	if err != nil {
		return fmt.Errorf("start the supervisor: %w", err)
	}
	runtime.LockOSThread() // for good: the filter is on this thread, and execve(2) keeps it
	listener, err := install(filter)
	if err != nil {
		return fmt.Errorf("install the filter: %w", err)
	}
	if err := s.hand(listener); err != nil {
		return fmt.Errorf("hand the filter to the supervisor: %w", err)
	}
	return fmt.Errorf("start %s: %w", path, unix.Exec(path, program, os.Environ()))
}

// install puts the filter on the calling thread, and returns the descriptor on which the kernel asks about calls.
// It is closed by execve(2).
func install(filter []bpf.RawInstruction) (int, error) {
	program := make([]unix.SockFilter, len(filter))
	for i, f := range filter {
		program[i] = unix.SockFilter{Code: f.Op, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	// Go interrupts its threads by signals all the time; with the second flag (since Linux 5.19) they wait until
	// the supervisor has answered, instead of making it begin again.
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	set := func() (uintptr, unix.Errno) {
		fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
		return fd, errno
	}
	fd, errno := set()
	if errno == unix.EACCES { // without CAP_SYS_ADMIN only those may who give up gaining rights
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return -1, os.NewSyscallError("prctl", err)
		}
		fd, errno = set()
	}
	if errno != 0 {
		return -1, os.NewSyscallError("seccomp (it takes Linux 5.19)", errno)
	}
	return int(fd), nil
}

// supervisorProcess is the supervisor as the launcher sees it.
type supervisorProcess struct {
	cmd *exec.Cmd
	ask *os.File // where it is told whom to supervise
	ack *os.File // where it says that it does
}

// The supervisor's descriptors.
const (
	askFD = 3 + iota
	ackFD
)

func startSupervisor(p profile) (*supervisorProcess, error) {
	askRead, askWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	ackRead, ackWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s := &supervisorProcess{ask: askWrite, ack: ackRead}
	s.cmd = exec.Command("/proc/self/exe", "--profile", p.kernel.String(), "--supervise", fmt.Sprint(askFD))
	s.cmd.ExtraFiles = []*os.File{askRead, ackWrite}
	s.cmd.Stderr = os.Stderr
	s.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true} // a signal to the program's group is not for it
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	askRead.Close()
	ackWrite.Close()
	// Where Yama is on, only a process's ancestors and those whom it names may read its memory.
	if err := unix.Prctl(unix.PR_SET_PTRACER, uintptr(s.cmd.Process.Pid), 0, 0, 0); err != nil && err != unix.EINVAL {
		return nil, os.NewSyscallError("prctl", err)
	}
	return s, nil
}

// hand tells the supervisor the listener's number in this process, and waits until it has fetched it.
func (s *supervisorProcess) hand(listener int) error {
	if err := binary.Write(s.ask, binary.NativeEndian, [2]int32{int32(os.Getpid()), int32(listener)}); err != nil {
		return err
	}
	var answer [1]byte
	if _, err := s.ack.Read(answer[:]); err != nil {
		return fmt.Errorf("it ended without taking it: %w", err)
	}
	return nil
}
