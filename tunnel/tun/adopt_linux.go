package tun

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"muslin/tunnel/kernel"
)

// A device outlives its process in two ways. Its descriptors are handed to another process (Files), which
// adopts them (Config.Adopt): nothing that waits in their queues is lost. Or it is persistent (Persist) and
// stays as a link without a queue, which the next process attaches to (Config.Reuse): routes and addresses
// stay, and what is sent to it meanwhile is dropped.

// ErrOtherMode says that a device which is there is not what Config wants, in something that is settled when
// a device is made.
var ErrOtherMode = errors.New("the TUN device was made in another mode")

// mode is the flags of TUNSETIFF that a descriptor has.
type mode uint16

// modeOf asks a descriptor for its device's name and mode.
func modeOf(fd int) (string, mode, error) {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return "", 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return "", 0, fmt.Errorf("TUNGETIFF: %w", err)
	}
	return ifr.Name(), mode(ifr.Uint16()), nil
}

func (m mode) has(flag uint16) bool { return uint16(m)&flag != 0 }

// checkOurs makes sure that a descriptor is a queue of the TUN device name, without packet information.
func checkOurs(fd int, name string) (mode, error) {
	of, m, err := modeOf(fd)
	switch {
	case err != nil:
		return 0, err
	case of != name:
		return 0, fmt.Errorf("%w: the descriptor is one of %q", ErrOtherMode, of)
	case !m.has(unix.IFF_TUN) || !m.has(unix.IFF_NO_PI):
		return 0, fmt.Errorf("%w: flags %#x, want a TUN device without packet information", ErrOtherMode, uint16(m))
	}
	return m, nil
}

// errMadeWithout is why a feature is off that the device's mode does not allow.
const errMadeWithout = "the device, which was there already, was made without it"

// fit leaves out of the features what a device of this mode does not have. One that the mode has and the
// features do not is ErrOtherMode.
func (m mode) fit(f kernel.Features) (kernel.Features, error) {
	for _, settled := range []struct {
		flag    uint16
		feature string
	}{
		{unix.IFF_VNET_HDR, kernel.TUNVnet},
		{unix.IFF_NAPI, kernel.TUNNAPI},
	} {
		switch why := f.Why(settled.feature); {
		case !m.has(settled.flag):
			f = f.Without(settled.feature, errMadeWithout)
		case why != "":
			return f, fmt.Errorf("%w: with %s, which is off now (%s)", ErrOtherMode, settled.feature, why)
		}
	}
	return f, nil
}

// dup returns a descriptor of the same queue that is ours to close.
func dup(f *os.File) (int, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	return fd, os.NewSyscallError("fcntl F_SETFL", unix.SetNonblock(fd, true))
}

// adopt is Open on descriptors that another process had.
func adopt(cfg Config) (*Device, error) {
	if len(cfg.Adopt) != cfg.Queues {
		return nil, fmt.Errorf("adopt TUN %q: %w: it has %d queues, and %d are wanted", cfg.Name, ErrOtherMode, len(cfg.Adopt), cfg.Queues)
	}
	d := &Device{cfg: cfg}
	d.life.Keep(true)
	for _, f := range cfg.Adopt {
		if err := d.adoptQueue(f); err != nil {
			d.Close()
			return nil, fmt.Errorf("adopt TUN %q: %w", cfg.Name, err)
		}
	}
	d.dropped = overflow(cfg.Name)
	return d, nil
}

func (d *Device) adoptQueue(f *os.File) error {
	fd, err := dup(f)
	if err != nil {
		return err
	}
	m, err := checkOurs(fd, d.cfg.Name)
	if err == nil {
		d.cfg.Features, err = m.fit(d.cfg.Features)
	}
	if err == nil {
		err = d.setOffload(fd)
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	d.life.persistent.Store(m.has(unix.IFF_PERSIST))
	if !m.has(unix.IFF_NAPI) {
		d.napi = errors.New(d.cfg.Features.Why(kernel.TUNNAPI))
	}
	file, err := d.newFile(fd)
	if err != nil {
		return err
	}
	d.queues = append(d.queues, newQueue(d, file))
	return nil
}

// Files returns a descriptor of each queue, for another process. They are the caller's to close, and keep the
// device beyond Close.
func (d *Device) Files() (all []*os.File, err error) {
	for _, q := range d.queues {
		f, err := q.file.Dup()
		if err != nil {
			closeAll(all)
			return nil, fmt.Errorf("descriptors of TUN %q: %w", d.cfg.Name, err)
		}
		all = append(all, f)
	}
	return all, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Persist has the device outlive this process, if that is killed. Close still removes it.
func (d *Device) Persist() error {
	fd, err := d.queues[0].file.Begin()
	if err != nil {
		return err
	}
	defer d.queues[0].file.End()
	return d.life.persist(fd, d.cfg.Name)
}

// Keep says whether Close leaves the device in the host. An adopted one stays unless Keep says otherwise.
func (d *Device) Keep(keep bool) { d.life.Keep(keep) }

// life is when a device goes away.
type life struct {
	persistent atomic.Bool
	keep       atomic.Bool
}

// Keep says whether Close leaves the device in the host.
func (l *life) Keep(keep bool) { l.keep.Store(keep) }

func (l *life) persist(fd int, name string) error {
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("TUN %q: TUNSETPERSIST: %w", name, err)
	}
	l.persistent.Store(true)
	return nil
}

// end makes the device go away with its last descriptor, unless it is to be kept.
func (l *life) end(fd int, name string) error {
	if l.keep.Load() || !l.persistent.Swap(false) {
		return nil
	}
	err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 0)
	if err != nil && err != unix.EBADFD { // deleted under us
		return fmt.Errorf("TUN %q: TUNSETPERSIST: %w; remove it with `ip link del %s`", name, err, name)
	}
	return nil
}
