// Package tun opens the TUN device and moves inner packets through it in batches.
//
// Device takes everything that waits in one wake-up. Portable does the same through
// golang.zx2c4.com/wireguard/tun, one packet a call: the slow twin, and a way out when the fast one is
// suspected. The room touches the TUN's file descriptor only: addresses, routes and the MTU are
// tunnel/host's.
package tun

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"muslin/tunnel/kernel"
	"muslin/tunnel/waiter"
)

const clonePath = "/dev/net/tun"

// ErrNameTaken says that another process holds a TUN device of this name, or that a link of another kind
// has it.
var ErrNameTaken = errors.New("the name is taken")

// create makes the TUN device name and returns its non-blocking descriptor: IFF_TUN, no packet
// information, no virtio header, one queue, and the further flags.
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

// Device is an open TUN device. It implements tunnel.Device. One goroutine may Read while any number
// Write. The link goes away with Close, or with the process.
type Device struct {
	name string
	file *waiter.File
	poll [2]unix.PollFd // of the reader
	napi error          // nil: polled by a kernel thread; otherwise why not
}

// Open creates the TUN device name, in NAPI mode where the kernel has it. An error that is ErrNameTaken
// means what it says.
func Open(name string) (*Device, error) {
	ok, err := supportsNAPI()
	if err != nil {
		return nil, err
	}
	if !ok {
		return open(name, 0, errors.New("the kernel has no NAPI for TUN devices (before 4.15)"))
	}
	d, err := open(name, unix.IFF_NAPI, nil)
	if err != nil {
		return nil, err
	}
	if d.napi = d.threadNAPI(); d.napi != nil {
		// NAPI without its thread gains nothing: the plain device is the simpler one.
		why := d.napi
		if err := d.Close(); err != nil {
			return nil, err
		}
		return open(name, 0, why)
	}
	return d, nil
}

// OpenPlain creates the TUN device name without NAPI.
func OpenPlain(name string) (*Device, error) { return open(name, 0, errPlain) }

var errPlain = errors.New("a plain TUN device was asked for")

func open(name string, flags uint16, napi error) (*Device, error) {
	fd, err := create(name, flags)
	if err != nil {
		return nil, err
	}
	file, err := waiter.New(fd)
	if err != nil {
		return nil, fmt.Errorf("open TUN %q: %w", name, err)
	}
	return &Device{name: name, file: file, napi: napi}, nil
}

// Name is the interface's name.
func (d *Device) Name() string { return d.name }

// Features lists how packets are moved.
func (d *Device) Features() []kernel.Feature {
	return []kernel.Feature{
		{Name: "tun-drain", On: true, Reason: "one wake-up takes every packet that waits in the TUN device"},
		napiFeature(d.napi),
	}
}

// Read implements tunnel.Device.
func (d *Device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	fd, err := d.file.Begin()
	if err != nil {
		return 0, err
	}
	defer d.file.End()
	for {
		n, errno := drain(fd, bufs, sizes, offset)
		switch {
		case n > 0:
			return n, nil // an error, if there was one, comes again on the next call
		case errno == unix.EAGAIN:
			if err := d.file.Wait(unix.POLLIN, &d.poll); err != nil {
				return 0, err
			}
		default:
			return 0, d.failed("read", errno)
		}
	}
}

// drain reads until the device is empty or bufs are full, and returns what stopped it.
func drain(fd int, bufs [][]byte, sizes []int, offset int) (n int, errno syscall.Errno) {
	for n < len(bufs) {
		b := bufs[n][offset:]
		// The descriptor is non-blocking, so the scheduler need not be told of the call.
		size, _, errno := syscall.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		switch errno {
		case 0:
			sizes[n] = int(size)
			n++
		case unix.EINTR:
		default:
			return n, errno
		}
	}
	return n, 0
}

// Write implements tunnel.Device. The network stack takes each packet or refuses it at once; only in NAPI
// mode is there a queue, and Write waits while that is full.
func (d *Device) Write(bufs [][]byte, offset int) (written int, err error) {
	fd, err := d.file.Begin()
	if err != nil {
		return 0, err
	}
	defer d.file.End()
	for i := 0; i < len(bufs); {
		b := bufs[i][offset:]
		_, _, errno := syscall.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN:
			if err := d.waitWritable(); err != nil {
				return written, err
			}
			continue
		case errno == 0:
			written++
		case err == nil:
			err = d.failed("write", errno)
		}
		i++
	}
	return written, err
}

// waitWritable is apart from Write so that only a wait costs an allocation.
func (d *Device) waitWritable() error {
	var poll [2]unix.PollFd
	return d.file.Wait(unix.POLLOUT, &poll)
}

func (d *Device) failed(op string, errno syscall.Errno) error {
	if errno == unix.EBADFD {
		return deleted(op, d.name)
	}
	return fmt.Errorf("%s TUN %q: %w", op, d.name, errno)
}

func deleted(op, name string) error {
	return fmt.Errorf("%s TUN %q: the device was deleted under us: %w", op, name, unix.EBADFD)
}

// Close removes the device and ends Read and Write with os.ErrClosed.
func (d *Device) Close() error {
	if err := d.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close TUN %q: %w", d.name, err)
	}
	return nil
}
