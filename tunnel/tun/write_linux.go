package tun

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"muslin/tunnel"
	"muslin/tunnel/gso"
	"muslin/tunnel/kernel"
)

// join is whether the kernel takes a kind of superpacket from one queue. Three kernel series refused what
// they had taken before (docs/kernels.md).
type join struct {
	on  atomic.Bool
	err atomic.Pointer[error]
}

func (j *join) why() error {
	if p := j.err.Load(); p != nil {
		return *p
	}
	return nil
}

// Joins implements tunnel.DeviceQueue.
func (q *queue) Joins() (tcp, udp bool) { return q.tcp.on.Load(), q.udp.on.Load() }

// writer is what Write reuses.
type writer struct {
	iov    []unix.Iovec
	header [gso.InfoLen]byte
	plain  [gso.InfoLen]byte // of a packet that is complete: all zero
	poll   [3]unix.PollFd

	// For superpackets that the kernel does not take.
	flat  []byte
	front []byte
	split gso.Splitter
}

// maxPieces is what the kernel takes in one writev: UIO_MAXIOV.
const maxPieces = 1024

func (w *writer) init() {
	w.iov = make([]unix.Iovec, 0, maxPieces)
	w.flat = make([]byte, tunnel.PacketRoom(0))
	w.front = make([]byte, tunnel.PacketRoom(0))
}

// Write implements tunnel.DeviceQueue. The network stack takes each packet or refuses it at once; only in
// NAPI mode is there a queue, and Write waits while that is full.
func (q *queue) Write(runs []gso.Run) (taken int, err error) {
	fd, err := q.file.Begin()
	if err != nil {
		return 0, err
	}
	defer q.file.End()
	for i := range runs {
		n, werr := q.run(fd, &runs[i])
		taken += n
		if werr != nil && err == nil {
			err = werr
		}
	}
	return taken, err
}

// run writes one run, as it is where the kernel takes it so.
func (q *queue) run(fd int, r *gso.Run) (taken int, err error) {
	if r.Info.Kind == gso.None {
		return q.single(fd, r)
	}
	kind := &q.tcp
	if r.Info.Kind == gso.UDP {
		kind = &q.udp
	}
	// A peer's kernel may join more datagrams than ours takes: 128 since Linux 6.9, 64 before.
	if !kind.on.Load() || r.Info.Kind == gso.UDP && r.Segments > gso.MaxUDPSegments {
		return q.cut(fd, r)
	}
	r.Info.Encode(q.write.header[:])
	refused := q.writev(fd, q.write.header[:], r.Bufs...)
	if refused == 0 {
		return r.Segments, nil
	}
	taken, err = q.cut(fd, r)
	// EINVAL alone speaks of the superpacket: EIO is a device that was down just then, ENOBUFS a lack of memory.
	if refused == unix.EINVAL && taken > 0 && kind.on.CompareAndSwap(true, false) {
		why := q.failed("write", refused)
		kind.err.Store(&why)
		name := kernel.TUNTCPGRO
		if r.Info.Kind == gso.UDP {
			name = kernel.TUNUDPGRO
		}
		q.dev.cfg.Logger.Warn("switched off for one queue: the kernel refused a superpacket and took its segments", "feature", name, "err", why)
	}
	return taken, err
}

func (q *queue) single(fd int, r *gso.Run) (taken int, err error) {
	header := q.write.plain[:]
	if r.Info.NeedsCsum {
		if q.vnet {
			header = q.write.header[:]
			r.Info.Encode(header)
		} else {
			gso.Complete(r.Bufs[0], r.Info)
		}
	}
	if errno := q.writev(fd, header, r.Bufs...); errno != 0 {
		return 0, q.failed("write", errno)
	}
	return 1, nil
}

// cut writes a superpacket segment by segment.
func (q *queue) cut(fd int, r *gso.Run) (taken int, err error) {
	w := &q.write
	flat := w.flat[:0]
	for _, b := range r.Bufs {
		flat = append(flat, b...)
	}
	if !w.split.Reset(flat, r.Info) {
		return 0, q.failed("cut superpacket for", unix.EINVAL)
	}
	for {
		payload, ok := w.split.Next(w.front)
		if !ok {
			return taken, err
		}
		if errno := q.writev(fd, w.plain[:], w.front[:w.split.HeaderLen()], payload); errno == 0 {
			taken++
		} else if err == nil {
			err = q.failed("write", errno)
		}
	}
}

// writev writes one packet that consists of bufs, with the virtio header where the device has one.
func (q *queue) writev(fd int, header []byte, bufs ...[]byte) syscall.Errno {
	iov := q.write.iov[:0]
	if q.vnet {
		iov = appendPiece(iov, header)
	}
	for _, b := range bufs {
		if len(b) > 0 {
			iov = appendPiece(iov, b)
		}
	}
	if len(iov) > maxPieces {
		return unix.EINVAL
	}
	for {
		_, _, errno := syscall.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(len(iov)))
		switch errno {
		case unix.EINTR:
		case unix.EAGAIN:
			if q.file.Wait(unix.POLLOUT, &q.write.poll) != nil {
				return unix.EBADF // closed meanwhile: Read says so
			}
		default:
			return errno
		}
	}
}

func appendPiece(iov []unix.Iovec, b []byte) []unix.Iovec {
	v := unix.Iovec{Base: unsafe.SliceData(b)}
	v.SetLen(len(b))
	return append(iov, v)
}

// Reply implements tunnel.DeviceQueue.
func (q *queue) Reply(buf []byte, offset int) error {
	fd, err := q.file.Begin()
	if err != nil {
		return err
	}
	defer q.file.End()
	if q.vnet {
		offset -= gso.InfoLen
		clear(buf[offset:][:gso.InfoLen])
	}
	for {
		_, err := unix.Write(fd, buf[offset:])
		switch err {
		case nil:
			return nil
		case unix.EINTR:
		default:
			return fmt.Errorf("write TUN %q: %w", q.dev.cfg.Name, err)
		}
	}
}
