package tun

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	wgtun "golang.zx2c4.com/wireguard/tun"

	"muslin/tunnel"
	"muslin/tunnel/gso"
	"muslin/tunnel/kernel"
)

// Portable is a TUN device through golang.zx2c4.com/wireguard/tun alone: one packet a call, waiting in
// Go's netpoller. It implements tunnel.Device as Device does, more slowly, and is its own only queue.
type Portable struct {
	dev     wgtun.Device
	cfg     Config
	closed  atomic.Bool
	life    life
	dropped uint64 // by the kernel, before OpenPortable

	bufs  [1][]byte // of Read
	sizes [1]int

	writing sync.Mutex // of what follows
	one     [1][]byte
	flat    []byte
	split   gso.Splitter
}

// writeHeadroom is left in front of a packet for the library.
const writeHeadroom = 16

// OpenPortable creates the TUN device or takes it over, as Open does.
func OpenPortable(cfg Config) (*Portable, error) {
	p := &Portable{cfg: cfg, flat: make([]byte, writeHeadroom+tunnel.PacketRoom(0))}
	fd, err := p.descriptor()
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
	p.dev, p.dropped = dev, overflow(cfg.Name)
	return p, nil
}

// descriptor makes the device, or takes it over.
func (p *Portable) descriptor() (fd int, err error) {
	name := p.cfg.Name
	switch {
	case len(p.cfg.Adopt) > 1:
		return -1, fmt.Errorf("adopt TUN %q: %w: it has %d queues, and tun-drain is off (%s)", name, ErrOtherMode, len(p.cfg.Adopt), p.cfg.Features.Why(kernel.TUNDrain))
	case len(p.cfg.Adopt) == 1:
		p.life.Keep(true)
		fd, err = dup(p.cfg.Adopt[0])
	default:
		fd, err = create(name, 0)
	}
	if err != nil {
		if p.cfg.Reuse && errors.Is(err, unix.EINVAL) {
			err = fmt.Errorf("%w: %w", ErrOtherMode, err)
		}
		return -1, err
	}
	m, err := checkOurs(fd, name)
	if err == nil {
		_, err = m.fit(p.cfg.Features)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("open TUN %q: %w", name, err)
	}
	p.life.persistent.Store(m.has(unix.IFF_PERSIST))
	return fd, nil
}

// Files is Device.Files.
func (p *Portable) Files() ([]*os.File, error) {
	fd, err := dup(p.dev.File())
	if err != nil {
		return nil, fmt.Errorf("descriptor of TUN %q: %w", p.cfg.Name, err)
	}
	return []*os.File{os.NewFile(uintptr(fd), "")}, nil
}

// Persist is Device.Persist.
func (p *Portable) Persist() error {
	return p.control(func(fd int) error { return p.life.persist(fd, p.cfg.Name) })
}

// Keep is Device.Keep.
func (p *Portable) Keep(keep bool) { p.life.Keep(keep) }

// control calls do with the descriptor.
func (p *Portable) control(do func(fd int) error) error {
	conn, err := p.dev.File().SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) { failed = do(int(fd)) })
	return errors.Join(err, failed)
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
	return errors.Is(p.control(func(fd int) error { _, _, err := modeOf(fd); return err }), unix.EBADFD)
}

// Pause implements tunnel.Device.
func (p *Portable) Pause() error { return p.dev.File().SetReadDeadline(time.Unix(1, 0)) }

// Resume implements tunnel.Device.
func (p *Portable) Resume() error { return p.dev.File().SetReadDeadline(time.Time{}) }

// Close removes the device, unless Keep says otherwise, and ends Read and Write with os.ErrClosed.
func (p *Portable) Close() error {
	if p.closed.Swap(true) {
		return nil
	}
	err := p.control(func(fd int) error { return p.life.end(fd, p.cfg.Name) })
	return errors.Join(err, p.dev.Close())
}
