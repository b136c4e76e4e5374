package tun

import (
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	wgtun "golang.zx2c4.com/wireguard/tun"

	"muslin/tunnel"
	"muslin/tunnel/gso"
	"muslin/tunnel/kernel"
)

// Portable is a TUN device through golang.zx2c4.com/wireguard/tun alone: one packet a call, waiting in
// Go's netpoller. It implements tunnel.Device as Device does, more slowly, and is its own only queue.
type Portable struct {
	dev    wgtun.Device
	cfg    Config
	closed atomic.Bool

	bufs  [1][]byte // of Read
	sizes [1]int

	writing sync.Mutex // of what follows
	one     [1][]byte
	flat    []byte
	split   gso.Splitter
}

// writeHeadroom is left in front of a packet for the library.
const writeHeadroom = 16

// OpenPortable creates the TUN device, as Open does.
func OpenPortable(cfg Config) (*Portable, error) {
	fd, err := create(cfg.Name, 0)
	if err != nil {
		return nil, err
	}
	// Unmonitored: the monitored kind writes an empty packet every second to learn whether the link is
	// up, which a device without virtio headers counts as a drop (rx_dropped).
	dev, _, err := wgtun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open TUN %q: %w", cfg.Name, err)
	}
	return &Portable{dev: dev, cfg: cfg, flat: make([]byte, writeHeadroom+tunnel.PacketRoom(0))}, nil
}

// Name is the interface's name.
func (p *Portable) Name() string { return p.cfg.Name }

// Queues implements tunnel.Device.
func (p *Portable) Queues() []tunnel.DeviceQueue { return []tunnel.DeviceQueue{p} }

// Features lists how packets are moved: none of the features is on.
func (p *Portable) Features() []kernel.Feature {
	var all []kernel.Feature
	for _, name := range []string{kernel.TUNDrain, kernel.MultiQueue, kernel.TUNVnet, kernel.TUNTSO, kernel.TUNUSO,
		kernel.TUNTCPGRO, kernel.TUNUDPGRO, kernel.TUNNAPI} {
		all = append(all, p.cfg.Features.Feature(name))
	}
	return all
}

// Joins implements tunnel.DeviceQueue.
func (p *Portable) Joins() (tcp, udp bool) { return false, false }

// Read implements tunnel.DeviceQueue, with one packet at most.
func (p *Portable) Read(slab []byte, ps []tunnel.Packet, headroom int) (int, error) {
	p.bufs[0] = slab
	n, err := p.dev.Read(p.bufs[:], p.sizes[:], headroom)
	if err != nil {
		return 0, p.failed("read", err)
	}
	if n > 0 {
		ps[0] = tunnel.Packet{Buf: slab[:headroom+p.sizes[0]]}
	}
	return n, nil
}

// Write implements tunnel.DeviceQueue.
func (p *Portable) Write(runs []gso.Run) (taken int, err error) {
	p.writing.Lock()
	defer p.writing.Unlock()
	for i := range runs {
		n, werr := p.run(&runs[i])
		taken += n
		if werr != nil && err == nil {
			err = werr
		}
	}
	return taken, err
}

func (p *Portable) run(r *gso.Run) (taken int, err error) {
	flat := p.flat[:writeHeadroom]
	for _, b := range r.Bufs {
		flat = append(flat, b...)
	}
	packet := flat[writeHeadroom:]
	if r.Info.Kind == gso.None {
		if r.Info.NeedsCsum {
			gso.Complete(packet, r.Info)
		}
		if err := p.packet(flat, writeHeadroom); err != nil {
			return 0, err
		}
		return 1, nil
	}
	if !p.split.Reset(packet, r.Info) {
		return 0, fmt.Errorf("cut superpacket for TUN %q: %w", p.cfg.Name, unix.EINVAL)
	}
	segment := make([]byte, writeHeadroom+p.split.SegmentLen())
	for {
		payload, ok := p.split.Next(segment[writeHeadroom:])
		if !ok {
			return taken, err
		}
		n := writeHeadroom + p.split.HeaderLen()
		n += copy(segment[n:], payload)
		if werr := p.packet(segment[:n], writeHeadroom); werr == nil {
			taken++
		} else if err == nil {
			err = werr
		}
	}
}

// Reply implements tunnel.DeviceQueue.
func (p *Portable) Reply(buf []byte, offset int) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	return p.packet(buf, offset)
}

// packet writes buf[offset:]. The library goes on after a refused packet only within a batch, so each is a
// batch of its own.
func (p *Portable) packet(buf []byte, offset int) error {
	p.one[0] = buf
	_, err := p.dev.Write(p.one[:], offset)
	return p.failed("write", err)
}

// failed tells a deleted device from a closed one: the library calls both os.ErrClosed, and Go's netpoller
// a third thing when Read was waiting in it.
func (p *Portable) failed(op string, err error) error {
	if err != nil && !p.closed.Load() && p.gone() {
		return deleted(op, p.cfg.Name)
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
		ifr, err := unix.NewIfreq(p.cfg.Name)
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
