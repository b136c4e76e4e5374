//go:build linux

package doctor

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"muslin/bench/labtest"
)

func TestMain(m *testing.M) {
	if what := os.Getenv(refuseEnv); what != "" {
		fmt.Fprintln(os.Stderr, refuse(what, os.Args[1:])) // it returns with an error only
		os.Exit(1)
	}
	os.Exit(labtest.Main(m))
}

// refuseEnv makes this binary a command in front of another one, for which the kernel then is another: it holds the number of
// a system call, the errno with which the call ends at once, 0 for a success that does nothing, and conditions
// on arguments: INDEX=VALUE, or INDEX>VALUE.
const refuseEnv = "MUSLIN_DOCTOR_REFUSE"

// refusing is such a command: a socket's option cannot be set.
func refusing(level, option int, errno syscall.Errno) []string {
	return []string{"env", fmt.Sprintf("%s=%d %d 1=%d 2=%d", refuseEnv, unix.SYS_SETSOCKOPT, errno, level, option), os.Args[0]}
}

// swallowing is one: what is written in a piece of more bytes than that comes to nothing, without an error.
func swallowing(bytes int) []string {
	return []string{"env", fmt.Sprintf("%s=%d 0 2>%d", refuseEnv, unix.SYS_WRITE, bytes), os.Args[0]}
}

// refuse becomes the command that follows, below a filter of the kernel's (seccomp(2)).
func refuse(what string, command []string) error {
	filter, err := refusal(strings.Fields(what))
	if err != nil {
		return err
	}
	path, err := exec.LookPath(command[0])
	if err != nil {
		return err
	}
	runtime.LockOSThread() // the filter is the thread's, and what it executes
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("PR_SET_NO_NEW_PRIVS", err)
	}
	program := &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(program)), 0, 0); err != nil {
		return os.NewSyscallError("PR_SET_SECCOMP", err)
	}
	environ := slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, refuseEnv+"=") })
	return unix.Exec(path, command, environ)
}

func refusal(fields []string) ([]unix.SockFilter, error) {
	var number, errno uint32
	if _, err := fmt.Sscan(strings.Join(fields[:2], " "), &number, &errno); err != nil {
		return nil, err
	}
	const arguments = 16 // their offset in struct seccomp_data; each has 64 bits, the lower half first
	conditions := fields[2:]
	left := uint8(2*len(conditions) + 1) // instructions up to the one that allows
	program := []bpf.Instruction{bpf.LoadAbsolute{Off: 0, Size: 4}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: number, SkipFalse: left}}
	for _, c := range conditions {
		var index, value uint32
		cond := bpf.JumpEqual
		if strings.Contains(c, ">") {
			cond = bpf.JumpGreaterThan
		}
		if _, err := fmt.Sscan(strings.NewReplacer("=", " ", ">", " ").Replace(c), &index, &value); err != nil {
			return nil, err
		}
		left -= 2
		program = append(program, bpf.LoadAbsolute{Off: arguments + 8*index, Size: 4}, bpf.JumpIf{Cond: cond, Val: value, SkipFalse: left})
	}
	program = append(program, bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | errno}, bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW})
	raw, err := bpf.Assemble(program)
	if err != nil {
		return nil, err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	return filter, nil
}
