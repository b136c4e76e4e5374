package tun

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
	wgtun "golang.zx2c4.com/wireguard/tun"

	"muslin/tunnel/kernel"
)

// Portable is a TUN device through golang.zx2c4.com/wireguard/tun alone: one packet a call, waiting in
// Go's netpoller. It implements tunnel.Device as Device does, more slowly.
type Portable struct {
	dev    wgtun.Device
	name   string
	closed atomic.Bool
}

// OpenPortable creates the TUN device name, as Open does.
func OpenPortable(name string) (*Portable, error) {
	fd, err := create(name, 0)
	if err != nil {
		return nil, err
	}
	// Unmonitored: the monitored kind writes an empty packet every second to learn whether the link is
	// up, which a device without virtio headers counts as a drop (rx_dropped).
	dev, got, err := wgtun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open TUN %q: %w", name, err)
	}
	return &Portable{dev: dev, name: got}, nil
}

// Name is the interface's name.
func (p *Portable) Name() string { return p.name }

// Features lists how packets are moved.
func (p *Portable) Features() []kernel.Feature {
	return []kernel.Feature{{Name: "tun-drain", Reason: "portable data path asked for: one packet a call"}, napiFeature(errPlain)}
}

// Read implements tunnel.Device, with one packet at most.
func (p *Portable) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := p.dev.Read(bufs, sizes, offset)
	return n, p.failed("read", err)
}

// Write implements tunnel.Device. The library counts bytes, and goes on after a refused packet only
// within a batch, so each packet is a batch of its own.
func (p *Portable) Write(bufs [][]byte, offset int) (written int, err error) {
	for i := range bufs {
		if _, werr := p.dev.Write(bufs[i:i+1], offset); werr == nil {
			written++
		} else if err == nil {
			err = p.failed("write", werr)
		}
	}
	return written, err
}

// failed tells a deleted device from a closed one: the library calls both os.ErrClosed, and Go's netpoller
// a third thing when Read was waiting in it.
func (p *Portable) failed(op string, err error) error {
	if err != nil && !p.closed.Load() && p.gone() {
		return deleted(op, p.name)
	}
	return err
}

// gone asks the kernel whether the descriptor has lost its device.
func (p *Portable) gone() bool {
	conn, err := p.dev.File().SyscallConn()
	if err != nil {
		return false
	}
	var lost error
	err = conn.Control(func(fd uintptr) {
		ifr, err := unix.NewIfreq(p.name)
		if err == nil {
			err = unix.IoctlIfreq(int(fd), unix.TUNGETIFF, ifr)
		}
		lost = err
	})
	return err == nil && lost == unix.EBADFD
}

// Close removes the device and ends Read and Write with os.ErrClosed.
func (p *Portable) Close() error {
	p.closed.Store(true)
	return p.dev.Close()
}
