package underlay

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"muslin/tunnel"
)

// controlBytes holds an IP_TOS control message, which the kernel sends as a single byte (ip(7), IP_RECVTOS), or an
// IPV6_TCLASS one, which is an int (RFC 3542, section 6.5), and a UDP_GRO one, which is an int, too (udp(7)).
var controlBytes = 2 * unix.CmsgSpace(4)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32 // bytes received
}

// mmsgReceiver calls recvmmsg(2) itself. golang.org/x/net's ReadBatch does the same call, but allocates
// a net.UDPAddr for each datagram (docs/decisions/receive-path.md has the figures); here addresses land
// in an array that stays.
type mmsgReceiver struct {
	socket  *socket
	six     bool // over IPv6
	nameLen uint32
	poll    [3]unix.PollFd
	hdrs    []mmsghdr
	iovs    []unix.Iovec
	names   []unix.RawSockaddrInet6 // or RawSockaddrInet4, which is shorter
	oob     []byte
}

func newMmsgReceiver(s *socket, six bool) *mmsgReceiver {
	n := tunnel.BatchSize
	r := &mmsgReceiver{
		socket: s, six: six, nameLen: unix.SizeofSockaddrInet4,
		hdrs:  make([]mmsghdr, n),
		iovs:  make([]unix.Iovec, n),
		names: make([]unix.RawSockaddrInet6, n),
		oob:   make([]byte, n*controlBytes),
	}
	if six {
		r.nameLen = unix.SizeofSockaddrInet6
	}
	for i := range r.hdrs {
		h := &r.hdrs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		h.Iov = &r.iovs[i]
		h.SetIovlen(1)
		h.Control = &r.oob[i*controlBytes]
	}
	return r
}

func (r *mmsgReceiver) receive(ds []tunnel.Datagram) (int, error) {
	want := min(len(ds), len(r.hdrs))
	for i := range want {
		r.iovs[i].Base = unsafe.SliceData(ds[i].Buf)
		r.iovs[i].SetLen(len(ds[i].Buf))
		h := &r.hdrs[i].hdr
		h.Namelen = r.nameLen
		h.SetControllen(controlBytes)
		h.Flags = 0
	}
	n, err := r.recvmmsg(want)
	for i := range n {
		h := &r.hdrs[i].hdr
		d := &ds[i]
		d.Buf = d.Buf[:r.hdrs[i].n]
		d.Addr = r.source(i)
		d.Truncated = h.Flags&unix.MSG_TRUNC != 0
		d.ECN, d.Size = readControl(r.oob[i*controlBytes:][:h.Controllen])
	}
	return n, err
}

// recvmmsg takes at most want datagrams, and waits for the first.
func (r *mmsgReceiver) recvmmsg(want int) (int, error) {
	fd, err := r.socket.file.BeginRead()
	if err != nil {
		return 0, err
	}
	defer r.socket.file.End()
	for {
		// The call cannot block (MSG_DONTWAIT), so the scheduler need not be told of it.
		n, _, errno := syscall.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&r.hdrs[0])),
			uintptr(want), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			r.socket.file.Carried(int(n), int(r.hdrs[0].n))
			return int(n), nil
		case unix.EINTR, unix.ECONNREFUSED:
		case unix.EAGAIN:
			if err := r.socket.file.Wait(unix.POLLIN, &r.poll); err != nil {
				return 0, err
			}
		default:
			return 0, os.NewSyscallError("recvmmsg", errno)
		}
	}
}

// source leaves out the scope that IPv6 has for a link-local address.
func (r *mmsgReceiver) source(i int) netip.AddrPort {
	if r.six {
		name := &r.names[i]
		port := (*[2]byte)(unsafe.Pointer(&name.Port)) // network byte order
		return netip.AddrPortFrom(netip.AddrFrom16(name.Addr), binary.BigEndian.Uint16(port[:]))
	}
	name := (*unix.RawSockaddrInet4)(unsafe.Pointer(&r.names[i]))
	port := (*[2]byte)(unsafe.Pointer(&name.Port))
	return netip.AddrPortFrom(netip.AddrFrom4(name.Addr), binary.BigEndian.Uint16(port[:]))
}

// readControl reads the control messages that came with a datagram: its outer ECN, and the length of each
// datagram where the kernel joined several (UDP_GRO), else 0.
func readControl(oob []byte) (ecn uint8, size int) {
	for len(oob) >= unix.CmsgLen(0) {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
		length := int(h.Len)
		if length < unix.CmsgLen(0) || length > len(oob) {
			break
		}
		data := oob[unix.CmsgLen(0):length]
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && len(data) >= 1:
			ecn = data[0] & 3
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && len(data) >= 4:
			ecn = uint8(binary.NativeEndian.Uint32(data)) & 3
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			size = int(binary.NativeEndian.Uint32(data))
		}
		oob = oob[min(unix.CmsgSpace(len(data)), len(oob)):]
	}
	return ecn, size
}

func putCmsg(b []byte, level, typ int32, dataLen int) {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, typ
	h.SetLen(unix.CmsgLen(dataLen))
}

// batchReceiver is the slow twin of mmsgReceiver, over golang.org/x/net: one datagram a call.
type batchReceiver struct {
	conn batchConn
	six  bool
	msgs []ipv4.Message
}

func newBatchReceiver(s *socket, six bool) *batchReceiver {
	r := &batchReceiver{conn: newBatchConn(s, six), six: six, msgs: make([]ipv4.Message, 1)}
	for i := range r.msgs {
		r.msgs[i].Buffers = make([][]byte, 1)
		r.msgs[i].OOB = make([]byte, controlBytes)
	}
	return r
}

func (r *batchReceiver) receive(ds []tunnel.Datagram) (int, error) {
	msgs := r.msgs[:min(len(ds), len(r.msgs))]
	for i := range msgs {
		msgs[i].Buffers[0] = ds[i].Buf
		msgs[i].OOB = msgs[i].OOB[:controlBytes]
	}
	n, err := r.conn.ReadBatch(msgs, 0)
	if err != nil {
		return 0, err
	}
	for i := range n {
		m, d := &msgs[i], &ds[i]
		d.Buf = d.Buf[:m.N]
		d.Addr = netip.AddrPort{}
		if from, ok := m.Addr.(*net.UDPAddr); ok {
			addr := from.AddrPort().Addr().WithZone("")
			if !r.six {
				addr = addr.Unmap()
			}
			d.Addr = netip.AddrPortFrom(addr, uint16(from.Port))
		}
		d.Truncated = m.Flags&unix.MSG_TRUNC != 0
		d.ECN, d.Size = readControl(m.OOB[:m.NN])
	}
	return n, nil
}
