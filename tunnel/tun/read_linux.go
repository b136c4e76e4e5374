package tun

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"muslin/tunnel"
	"muslin/tunnel/gso"
	"muslin/tunnel/kernel"
	"muslin/tunnel/waiter"
)

// queue is one descriptor of the device. It implements tunnel.DeviceQueue.
type queue struct {
	dev  *Device
	file *waiter.File
	vnet bool           // a virtio_net_hdr stands in front of each packet
	poll [3]unix.PollFd // of the reader

	tcp, udp join // which superpackets the kernel takes
	write    writer
}

func newQueue(d *Device, file *waiter.File) *queue {
	f := d.cfg.Features
	q := &queue{dev: d, file: file, vnet: f.On(kernel.TUNVnet)}
	q.tcp.on.Store(f.On(kernel.TUNTCPGRO))
	q.udp.on.Store(f.On(kernel.TUNUDPGRO))
	q.write.init()
	return q
}

// Read implements tunnel.DeviceQueue.
func (q *queue) Read(slab []byte, ps []tunnel.Packet, headroom int) (int, error) {
	fd, err := q.file.BeginRead()
	if err != nil {
		return 0, err
	}
	defer q.file.End()
	for {
		n, errno := q.drain(fd, slab, ps, headroom)
		switch {
		case n > 0:
			q.file.Carried(n, len(ps[0].Buf))
			return n, nil // an error, if there was one, comes again on the next call
		case errno == unix.EAGAIN:
			if err := q.file.Wait(unix.POLLIN, &q.poll); err != nil {
				return 0, err
			}
		default:
			return 0, q.failed("read", errno)
		}
	}
}

// drain reads until the device is empty or there is no room, and returns what stopped it.
//
// The virtio header is read over the headroom of the packet behind it. With a headroom of at least its
// length, as VXLAN's 22 bytes, packets so lie without a gap between one's end and the next one's headroom.
func (q *queue) drain(fd int, slab []byte, ps []tunnel.Packet, headroom int) (n int, errno syscall.Errno) {
	header := 0
	if q.vnet {
		header = gso.InfoLen
	}
	front, room := max(headroom, header), tunnel.PacketRoom(headroom)
	at := 0
	for n < len(ps) && len(slab)-at >= room {
		packet := at + front
		b := slab[packet-header:]
		// The descriptor is non-blocking, so the scheduler need not be told of the call.
		size, _, errno := syscall.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(room-front+header))
		switch errno {
		case 0:
			end := packet - header + int(size)
			ps[n] = tunnel.Packet{}
			if q.vnet {
				ps[n].Info.Decode(b)
			}
			ps[n].Buf = slab[packet-headroom : end]
			at = end
			n++
		case unix.EINTR:
		default:
			return n, errno
		}
	}
	return n, 0
}

func (q *queue) failed(op string, errno syscall.Errno) error {
	if errno == unix.EBADFD {
		return deleted(op, q.dev.cfg.Name)
	}
	return fmt.Errorf("%s TUN %q: %w", op, q.dev.cfg.Name, errno)
}
