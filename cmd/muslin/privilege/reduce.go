//go:build linux

package privilege

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrCgo says that this binary was built with cgo, under which Go cannot act on threads that C has started.
var ErrCgo = errors.New("this binary was built with cgo; build it with CGO_ENABLED=0")

// Reduce leaves the process, in all its threads, what it has of keep, and nothing more for ever: neither it nor
// a program that it starts can gain another right. With programs, what it starts keeps the same rights;
// without, a program of another user than root has none.
//
// The bounding set can be reduced with CAP_SETPCAP only. Where that is lacking it stays, which changes nothing
// under PR_SET_NO_NEW_PRIVS.
func Reduce(keep Set, programs bool) error {
	now, err := Now()
	if err != nil {
		return err
	}
	keep &= now.Permitted
	if now.Effective.Has(unix.CAP_SETPCAP) {
		for _, c := range (now.Bounding &^ keep).List() {
			if err := prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0); err != nil {
				return fmt.Errorf("drop %s from the bounding set: %w", Name(c), err)
			}
		}
	}
	// EINVAL: the kernel is older than 3.5, and has the bounding set alone.
	if err := prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil && err != unix.EINVAL {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	// Root's programs get the bounding set and, under no_new_privs, at most what we have permitted
	// (cap_bprm_creds_from_file in security/commoncap.c). Another user's get the ambient set.
	var inherit Set
	if programs && os.Geteuid() != 0 {
		inherit = keep
	}
	if err := capset(keep, inherit); err != nil {
		return fmt.Errorf("give up capabilities: %w", err)
	}
	// The kernel has taken out of the ambient set what is no longer both permitted and inheritable.
	return raiseAmbient(inherit)
}

// Inherit makes the programs that the process starts keep what it has of capabilities, as root's do anyway. A
// process that was given its capabilities by its file (setcap(8)) needs that.
func Inherit(capabilities Set) error {
	if os.Geteuid() == 0 {
		return nil
	}
	now, err := Now()
	if err != nil {
		return err
	}
	missing := capabilities & now.Permitted &^ now.Ambient
	if missing == 0 {
		return nil
	}
	if err := capset(now.Permitted, now.Inheritable|missing); err != nil {
		return fmt.Errorf("leave capabilities to the programs that are started: %w", err)
	}
	return raiseAmbient(missing)
}

// raiseAmbient takes what is both permitted and inheritable. EINVAL: the kernel is older than 4.3 and has no
// ambient set.
func raiseAmbient(capabilities Set) error {
	for _, c := range capabilities.List() {
		if err := prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c)); err != nil && err != unix.EINVAL {
			return fmt.Errorf("leave %s to the programs that are started: %w", Name(c), err)
		}
	}
	return nil
}

// prctl and capset are each thread's own affair for the kernel, so they are called on every one.

func prctl(option, arg2, arg3 uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, option, arg2, arg3, 0, 0, 0)
	return allThreads(errno)
}

func capset(permitted, inheritable Set) error {
	header, sets := capData(permitted, permitted, inheritable)
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(sets)), 0)
	return allThreads(errno)
}

// capData is the argument of capset(2): capabilities 0 to 31, then 32 to 63.
func capData(effective, permitted, inheritable Set) (*unix.CapUserHeader, *[2]unix.CapUserData) {
	var sets [2]unix.CapUserData
	for i := range sets {
		sets[i] = unix.CapUserData{
			Effective: uint32(effective >> (32 * i)), Permitted: uint32(permitted >> (32 * i)), Inheritable: uint32(inheritable >> (32 * i))}
	}
	return &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &sets
}

func allThreads(errno syscall.Errno) error {
	switch errno {
	case 0:
		return nil
	case syscall.ENOTSUP:
		return ErrCgo
	}
	return errno
}
