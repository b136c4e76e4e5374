package tun

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"muslin/tunnel/kernel"
)

// A TUN device in NAPI mode (IFF_NAPI, since Linux 4.15, 943170998b20) hands what we write to the kernel
// through a queue, where its own GRO joins the TCP segments of a flow before the stack sees them. That
// comes to nothing while the queue is polled within each write. With threaded polling (since 5.12,
// 29863d41bb6e) a kernel thread empties it, and finds as many packets as we wrote meanwhile
// (docs/decisions/tun-napi.md has the figures).

// napiFlags is what NAPI adds to TUNSETIFF's flags, and why it is off otherwise.
func (cfg *Config) napiFlags() (flags uint16, why, err error) {
	if off := cfg.Features.Why(kernel.TUNNAPI); off != "" {
		return 0, errors.New(off), nil
	}
	if cfg.Features.On(kernel.TUNTCPGRO) {
		return 0, errJoined, nil
	}
	ok, err := supportsNAPI()
	if err != nil {
		return 0, nil, err
	}
	if !ok {
		return 0, errors.New("the kernel has no NAPI for TUN devices (before 4.15)"), nil
	}
	return unix.IFF_NAPI, nil, nil
}

var errJoined = errors.New("not needed: TCP is written in superpackets (tun-tcp-gro)")

// supportsNAPI asks the kernel which flags TUNSETIFF knows.
func supportsNAPI() (bool, error) {
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("open %s: %w", clonePath, err)
	}
	defer unix.Close(fd)
	flags, err := unix.IoctlGetInt(fd, unix.TUNGETFEATURES)
	if err != nil {
		return false, fmt.Errorf("TUNGETFEATURES: %w", err)
	}
	return flags&unix.IFF_NAPI != 0, nil
}

// queueBytes bounds the queue, which the kernel would let grow to 2 GiB: when the thread does not keep up,
// packets are to wait in the socket's buffer, where those that do not fit are counted. The kernel counts
// about 2.3 KB for a packet of 1,450 bytes, so this is ten of GRO's superpackets.
const queueBytes = 1 << 20

// threadNAPI turns threaded polling on for the device, which has IFF_NAPI.
func (d *Device) threadNAPI() error {
	for _, q := range d.queues {
		if err := q.boundSend(); err != nil {
			return err
		}
	}
	dir := filepath.Join("/sys/class/net", d.cfg.Name)
	if err := sameDevice(dir, d.cfg.Name); err != nil {
		return err
	}
	// O_TRUNC and O_CREATE mean nothing in sysfs, and a device that is gone must not become a file.
	f, err := os.OpenFile(filepath.Join(dir, "threaded"), os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return errors.New("the kernel cannot poll in a thread (before 5.12)")
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString("1")
	return errors.Join(err, f.Close())
}

func (q *queue) boundSend() error {
	fd, err := q.file.Begin()
	if err != nil {
		return err
	}
	defer q.file.End()
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETSNDBUF, queueBytes); err != nil {
		return fmt.Errorf("TUNSETSNDBUF: %w", err)
	}
	return nil
}

// sameDevice makes sure that /sys shows our network namespace: a process that was moved into one by
// setns(2) alone sees another namespace's devices there, perhaps one of the same name.
func sameDevice(dir, name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return os.NewSyscallError("SIOCGIFINDEX", err)
	}
	index, err := readNumber(filepath.Join(dir, "ifindex"))
	if err != nil {
		return fmt.Errorf("/sys does not show this network namespace: %w", err)
	}
	flags, err := readNumber(filepath.Join(dir, "tun_flags"))
	if err != nil || index != uint64(ifr.Uint32()) || flags&unix.IFF_NAPI == 0 {
		return errors.New("/sys shows another network namespace")
	}
	return nil
}

func readNumber(path string) (uint64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(data)), 0, 32)
}

// napiFeature says whether the device polls in a thread, and why not.
func (d *Device) napiFeature() kernel.Feature {
	f := d.cfg.Features.Feature(kernel.TUNNAPI)
	if d.napi != nil {
		f.On, f.Reason = false, d.napi.Error()
	}
	return f
}
