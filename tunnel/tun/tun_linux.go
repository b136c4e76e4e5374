// Package tun opens the TUN device and moves inner packets through it in batches.
//
// Device takes everything that waits in one wake-up, and superpackets both ways where the kernel has them.
// Portable does without all that, through golang.zx2c4.com/wireguard/tun, one packet a call: the slow
// twin, and a way out when the fast one is suspected. The room touches the TUN's file descriptors only:
// addresses, routes and the MTU are tunnel/host's.
package tun

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"muslin/tunnel"
	"muslin/tunnel/gso"
	"muslin/tunnel/kernel"
	"muslin/tunnel/waiter"
)

const clonePath = "/dev/net/tun"

// ErrNameTaken says that another process holds a TUN device of this name, or that a link of another kind
// has it.
var ErrNameTaken = errors.New("the name is taken")

// Config says which device to open.
type Config struct {
	Name     string
	Queues   int // at least 1; more with kernel.MultiQueue only
	Features kernel.Features
	Logger   *slog.Logger
	Turns    *waiter.Turns // that the queues' readers follow; nil: none
	Park     bool          // the readers wait in Go's netpoller (waiter.File.Park), and not in Turns

	// Adopt are the descriptors of a device's queues that another process opened (Files), one for each of
	// Queues; they stay the caller's to close. What the device was made without goes off among Features.
	Adopt []*os.File

	// Reuse attaches to a persistent device that is there. The caller has made sure that it is ours, and
	// that no process holds it.
	Reuse bool
}

// create makes the TUN device name, or attaches to it where it is there, or with IFF_MULTI_QUEUE makes
// another queue of it, and returns its non-blocking descriptor: IFF_TUN, no packet information, and the
// further flags.
func create(name string, flags uint16) (int, error) {
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", clonePath, err)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("TUN name %q: %w (at most %d bytes)", name, err, unix.IFNAMSIZ-1)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		if err == unix.EBUSY || err == unix.EINVAL {
			// EBUSY: a TUN device that is open; EINVAL: a link that is no TUN device (tun_set_iff).
			err = fmt.Errorf("%w: %w", ErrNameTaken, err)
		}
		return -1, fmt.Errorf("open TUN %q: TUNSETIFF: %w", name, err)
	}
	return fd, nil
}

// Device is an open TUN device. It implements tunnel.Device. The link goes away with Close, or with the
// process unless it is persistent.
type Device struct {
	cfg     Config
	queues  []*queue
	napi    error // nil: polled by a kernel thread; otherwise why not
	life    life
	dropped uint64 // by the kernel, before Open
}

// Open creates the TUN device, or takes it over, with as many of cfg.Features as it can. An error that is
// ErrNameTaken or ErrOtherMode means what it says.
func Open(cfg Config) (*Device, error) {
	if len(cfg.Adopt) > 0 {
		return adopt(cfg)
	}
	flags, napi, err := cfg.napiFlags()
	if err != nil {
		return nil, err
	}
	d, err := open(cfg, flags)
	if err != nil || napi != nil {
		if d != nil {
			d.napi = napi
		}
		return d, err
	}
	if why := d.threadNAPI(); why != nil {
		// NAPI without its thread gains nothing: the plain device is the simpler one.
		d.life.Keep(cfg.Reuse)
		if err := d.Close(); err != nil {
			return nil, err
		}
		if d, err = open(cfg, 0); err != nil {
			return nil, err
		}
		d.napi = why
	}
	return d, nil
}

func open(cfg Config, flags uint16) (*Device, error) {
	if cfg.Features.On(kernel.TUNVnet) {
		flags |= unix.IFF_VNET_HDR
	}
	if cfg.Queues > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	d := &Device{cfg: cfg}
	for i := range cfg.Queues {
		first := uint16(0)
		if i == 0 && cfg.Queues > 1 && !cfg.Reuse {
			// Otherwise this would be one more queue of a device that another process has.
			first = unix.IFF_TUN_EXCL
		}
		if err := d.addQueue(flags | first); err != nil {
			d.life.Keep(cfg.Reuse)
			d.Close()
			if cfg.Reuse && errors.Is(err, unix.EINVAL) { // single-queue and multi-queue do not mix
				err = fmt.Errorf("%w: %w", ErrOtherMode, err)
			}
			return nil, err
		}
	}
	d.dropped = overflow(cfg.Name)
	return d, nil
}

func (d *Device) addQueue(flags uint16) error {
	fd, err := create(d.cfg.Name, flags)
	if err != nil {
		return err
	}
	if d.cfg.Reuse {
		_, m, err := modeOf(fd)
		if err != nil {
			unix.Close(fd)
			return fmt.Errorf("open TUN %q: %w", d.cfg.Name, err)
		}
		d.life.persistent.Store(m.has(unix.IFF_PERSIST))
	}
	if err := d.setOffload(fd); err != nil {
		unix.Close(fd)
		return fmt.Errorf("open TUN %q: %w", d.cfg.Name, err)
	}
	file, err := d.newFile(fd)
	if err != nil {
		return fmt.Errorf("open TUN %q: %w", d.cfg.Name, err)
	}
	d.queues = append(d.queues, newQueue(d, file))
	return nil
}

// newFile takes over the descriptor of a queue.
func (d *Device) newFile(fd int) (*waiter.File, error) {
	file, err := waiter.New(fd)
	if err != nil {
		return nil, err
	}
	if d.cfg.Park {
		if err := file.Park(); err != nil {
			file.Close()
			return nil, err
		}
		return file, nil
	}
	file.Follow(d.cfg.Turns, waiter.Outbound)
	return file, nil
}

// setOffload tells the kernel what we take from it unfinished. What we may give does not depend on it.
func (d *Device) setOffload(fd int) error {
	f := d.cfg.Features
	if !f.On(kernel.TUNVnet) {
		return nil
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, gso.InfoLen); err != nil {
		return fmt.Errorf("TUNSETVNETHDRSZ: %w", err)
	}
	var offload int
	if f.On(kernel.TUNTSO) {
		offload = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	}
	if f.On(kernel.TUNUSO) {
		offload |= unix.TUN_F_USO4 | unix.TUN_F_USO6
	}
	err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offload)
	if err == unix.EINVAL && f.On(kernel.TUNUSO) { // kernel.Examine could not tell
		d.cfg.Features = f.Without(kernel.TUNUSO, "the kernel refuses it (before 6.2)")
		return d.setOffload(fd)
	}
	if err != nil {
		return fmt.Errorf("TUNSETOFFLOAD: %w", err)
	}
	return nil
}

// Name is the interface's name.
func (d *Device) Name() string { return d.cfg.Name }

// Queues implements tunnel.Device.
func (d *Device) Queues() []tunnel.DeviceQueue {
	var all []tunnel.DeviceQueue
	for _, q := range d.queues {
		all = append(all, q)
	}
	return all
}

// Features lists how packets are moved.
func (d *Device) Features() []kernel.Feature {
	f := d.cfg.Features
	queues := f.Feature(kernel.MultiQueue)
	if queues.On {
		queues.On, queues.Reason = len(d.queues) > 1, fmt.Sprintf("%d of --queues", len(d.queues))
	}
	return []kernel.Feature{
		f.Feature(kernel.TUNDrain), queues,
		f.Feature(kernel.TUNVnet), f.Feature(kernel.TUNTSO), f.Feature(kernel.TUNUSO),
		d.joinFeature(kernel.TUNTCPGRO, func(q *queue) *join { return &q.tcp }),
		d.joinFeature(kernel.TUNUDPGRO, func(q *queue) *join { return &q.udp }),
		d.napiFeature(),
	}
}

// joinFeature sums up what became of a kind of superpacket on all queues.
func (d *Device) joinFeature(name string, of func(*queue) *join) kernel.Feature {
	f := d.cfg.Features.Feature(name)
	for _, q := range d.queues {
		if why := of(q).why(); f.On && why != nil {
			f.On, f.Reason = false, "the kernel refused a superpacket, and took its segments: "+why.Error()
		}
	}
	return f
}

// Pause implements tunnel.Device.
func (d *Device) Pause() error { return d.each((*waiter.File).Pause) }

// Resume implements tunnel.Device. It sets again what another process may have changed that adopted the
// device, and did not take it over in the end.
func (d *Device) Resume() error {
	var all []error
	for _, q := range d.queues {
		fd, err := q.file.Begin()
		if err == nil {
			err = d.setOffload(fd)
			q.file.End()
		}
		all = append(all, err)
	}
	return errors.Join(append(all, d.each((*waiter.File).Resume))...)
}

func (d *Device) each(do func(*waiter.File) error) error {
	var all []error
	for _, q := range d.queues {
		all = append(all, do(q.file))
	}
	return errors.Join(all...)
}

// Close removes the device, unless Keep says otherwise, and ends Read and Write with os.ErrClosed.
func (d *Device) Close() error {
	var all []error
	if len(d.queues) > 0 {
		if fd, err := d.queues[0].file.Begin(); err == nil {
			all = append(all, d.life.end(fd, d.cfg.Name))
			d.queues[0].file.End()
		}
	}
	for _, q := range d.queues {
		if err := q.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			all = append(all, fmt.Errorf("close TUN %q: %w", d.cfg.Name, err))
		}
	}
	return errors.Join(all...)
}

func deleted(op, name string) error {
	return fmt.Errorf("%s TUN %q: the device was deleted under us: %w", op, name, unix.EBADFD)
}
