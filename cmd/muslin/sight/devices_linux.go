package sight

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Devices is a packet socket. It is opened while there is the right to (CAP_NET_RAW), and takes nothing until it is told
// what: a socket of protocol 0 is none that the kernel gives packets to (packet_create in net/packet/af_packet.c), and to
// bind it later takes no right.
type Devices struct {
	f    *os.File
	loop int // index of the loopback device
	buf  []byte
	name map[int]string
	idle atomic.Int64 // Unix time, nanoseconds, at which everything had been read
}

// asleep is the protocol that the socket is bound to, at the loopback device, while nothing is looked for: one for local
// experiments (IEEE 802, 88B5), which no packet there has.
const asleep = 0x88b5

// OpenDevices opens it, asleep.
func OpenDevices() (*Devices, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	d := &Devices{f: os.NewFile(uintptr(fd), "packet socket"), loop: 1, buf: make([]byte, 256)}
	if lo, err := net.InterfaceByName("lo"); err == nil {
		d.loop = lo.Index
	}
	return d, nil
}

func (d *Devices) close() {
	if d != nil {
		d.f.Close()
	}
}

// look has the socket take these packets, at every device; none: it sleeps.
func (d *Devices) look(packets []Packet) error {
	raw, err := d.f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = d.bind(int(fd), packets) })
	return errors.Join(err, failed)
}

func (d *Devices) bind(fd int, packets []Packet) error {
	program, err := assemble(packets)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil {
		return os.NewSyscallError("set SO_ATTACH_FILTER", err)
	}
	at := &unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_ALL)}
	if len(packets) == 0 {
		at = &unix.SockaddrLinklayer{Protocol: bigEndian(asleep), Ifindex: d.loop}
	}
	return os.NewSyscallError("bind", unix.Bind(fd, at))
}

func bigEndian(n uint16) uint16 {
	return binary.NativeEndian.Uint16([]byte{byte(n >> 8), byte(n)})
}

// read waits for packets, so long in all, and hands over each one's beginning, borrowed.
func (d *Devices) read(long time.Duration, got func(device string, inbound bool, b []byte)) {
	if d == nil {
		time.Sleep(long)
		return
	}
	d.name = make(map[int]string)
	if d.f.SetReadDeadline(time.Now().Add(long)) != nil {
		time.Sleep(long)
		return
	}
	raw, err := d.f.SyscallConn()
	if err != nil {
		return
	}
	for {
		var n int
		var from unix.Sockaddr
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, from, failed = unix.Recvfrom(int(fd), d.buf, 0)
			if failed == unix.EAGAIN {
				d.idle.Store(time.Now().UnixNano())
			}
			return failed != unix.EAGAIN
		})
		if err != nil || failed != nil && failed != unix.EINTR && failed != unix.ENETDOWN { // the deadline, or the end
			return
		}
		if at, ok := from.(*unix.SockaddrLinklayer); ok && failed == nil {
			got(d.device(at.Ifindex), at.Pkttype != unix.PACKET_OUTGOING, d.buf[:n])
		}
	}
}

func (d *Devices) device(index int) string {
	name, ok := d.name[index]
	if !ok {
		if i, err := net.InterfaceByIndex(index); err == nil {
			name = i.Name
		} else {
			name = fmt.Sprintf("device %d", index)
		}
		d.name[index] = name
	}
	return name
}
