//go:build linux

// Package kernel says what this kernel can do for the daemon, and why not.
//
// Every answer comes from trying, on file descriptors that are closed at once; a version number is for
// people to read and decides nothing. What is there is not believed until it has carried packets rightly
// (selftest.go). The package keeps no state and leaves nothing behind: the TUN devices and the network
// namespace that it tries live for a moment.
package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Answer is what a probe found out. The zero value is Unknown: the probe could not tell, and asking again
// may give another answer.
type Answer int

const (
	Unknown Answer = iota
	Yes
	No
)

func (a Answer) String() string {
	switch a {
	case Yes:
		return "yes"
	case No:
		return "no"
	}
	return "unknown"
}

// Probe is one question with its answer.
type Probe struct {
	Name   string // short and stable: "net-admin"
	Answer Answer
	Reason string // what was given for Yes, why not for No and Unknown, with what to do about it
	Err    error  // the system's error behind No and Unknown; may be nil
	Broken bool   // No: the kernel takes what it is asked, and spoils packets: its self-test has failed
}

// TUNPath is the device that every TUN is made through (networking/tuntap.rst in the kernel).
const TUNPath = "/dev/net/tun"

// NetAdmin asks whether this thread may change the network: CAP_NET_ADMIN in its effective set. In a
// user namespace that says nothing of the host's network.
func NetAdmin() Probe {
	p := Probe{Name: "net-admin"}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData // capabilities 0 to 31, 32 to 63
	if err := unix.Capget(&header, &sets[0]); err != nil {
		p.Err, p.Reason = err, fmt.Sprintf("capget: %v", err)
		return p
	}
	if sets[unix.CAP_NET_ADMIN/32].Effective&(1<<(unix.CAP_NET_ADMIN%32)) != 0 {
		p.Answer, p.Reason = Yes, "CAP_NET_ADMIN is effective"
		return p
	}
	p.Answer = No
	p.Reason = fmt.Sprintf("user %d lacks CAP_NET_ADMIN: run as root, or give the service AmbientCapabilities=CAP_NET_ADMIN, or the container --cap-add=NET_ADMIN", os.Geteuid())
	return p
}

// TUNDevice asks whether the TUN driver is there and may be opened. path is TUNPath but in tests.
func TUNDevice(path string) Probe {
	p := Probe{Name: "tun-device"}
	fd, err := openTUN(path)
	if err == nil {
		unix.Close(fd)
		p.Answer, p.Reason = Yes, path+" can be opened"
		return p
	}
	p.Err, p.Answer = err, No
	switch {
	case errors.Is(err, fs.ErrNotExist):
		p.Reason = path + " does not exist: run `modprobe tun`, or give the container --device=" + TUNPath
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		p.Reason = path + " has no driver behind it: run `modprobe tun`; if that fails, this kernel was built without CONFIG_TUN"
	case errors.Is(err, fs.ErrPermission):
		p.Reason = path + " may not be opened: run as root, or give the container --device=" + TUNPath
	default:
		p.Answer = Unknown
		p.Reason = fmt.Sprintf("open %s: %v", path, err)
	}
	return p
}

func openTUN(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// TUNCreate asks whether a TUN device can be made, by making one in this network namespace under a name
// of the kernel's choice (mprobe0, ...). It goes with the file descriptor.
func TUNCreate(path string) Probe {
	p := Probe{Name: "tun-create"}
	fd, err := openTUN(path)
	if err != nil {
		p.Err, p.Reason = err, fmt.Sprintf("not tried: %v", err)
		return p
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("mprobe%d")
	if err != nil {
		p.Err, p.Reason = err, err.Error()
		return p
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		p.Err, p.Answer = err, Unknown
		p.Reason = fmt.Sprintf("TUNSETIFF: %v", err)
		switch {
		case errors.Is(err, unix.EPERM):
			p.Answer = No
			p.Reason = "TUNSETIFF is not permitted: CAP_NET_ADMIN is needed in the user namespace that owns this network namespace; run as root of the host, or with the container's own network"
		case errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EBADFD), errors.Is(err, unix.EINVAL):
			p.Answer = No
			p.Reason = fmt.Sprintf("%s is not the TUN driver (TUNSETIFF: %v): make it again with `mknod %s c 10 200`", path, err, TUNPath)
		}
		return p
	}
	p.Answer, p.Reason = Yes, "a TUN device can be made"
	return p
}

// NotPrivilegedError: the process may not change the network.
type NotPrivilegedError struct{ Probe Probe }

func (e *NotPrivilegedError) Error() string { return "not enough rights: " + e.Probe.Reason }

// Unwrap is EPERM when the system gave no error of its own.
func (e *NotPrivilegedError) Unwrap() error {
	if e.Probe.Err != nil {
		return e.Probe.Err
	}
	return unix.EPERM
}

// NoTUNError: no TUN device can be made.
type NoTUNError struct{ Probe Probe }

func (e *NoTUNError) Error() string { return "no TUN device: " + e.Probe.Reason }

// Unwrap is the system's error.
func (e *NoTUNError) Unwrap() error { return e.Probe.Err }

// Preflight returns why the daemon cannot work on this host: a *NotPrivilegedError, a *NoTUNError, or
// nil. Only a certain No stops it; what could not be told is left to the real attempt.
func Preflight() error { return preflight(TUNPath) }

func preflight(path string) error {
	if p := NetAdmin(); p.Answer == No {
		return &NotPrivilegedError{p}
	}
	for _, p := range []Probe{TUNDevice(path), TUNCreate(path)} {
		if p.Answer == No {
			return &NoTUNError{p}
		}
	}
	return nil
}

// Host is what uname says.
type Host struct {
	System  string // "Linux"
	Name    string // the host's name
	Release string // "6.1.0-18-amd64"
	Version string // build number and date
	Machine string // "x86_64"
}

// String is the line that `uname -srm` prints.
func (h Host) String() string { return h.System + " " + h.Release + " " + h.Machine }

// Uname describes the running kernel, for logs and status.
func Uname() (Host, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Host{}, fmt.Errorf("uname: %w", err)
	}
	text := func(b []byte) string {
		s, _, _ := bytes.Cut(b, []byte{0})
		return string(s)
	}
	return Host{
		System: text(u.Sysname[:]), Name: text(u.Nodename[:]), Release: text(u.Release[:]),
		Version: text(u.Version[:]), Machine: text(u.Machine[:]),
	}, nil
}
