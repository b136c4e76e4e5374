//go:build linux && (amd64 || arm64)

package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sizeofMmsghdr is struct mmsghdr: a msghdr, an int, and what fills it up.
const sizeofMmsghdr = unix.SizeofMsghdr + 8

// controlRule is what an older kernel makes of a control message.
type controlRule struct {
	level, kind int32
	errno       unix.Errno
	fatal       string

	// For UDP_SEGMENT alone: how many datagrams are taken in one piece, and how many bytes of headers such a
	// kernel counts in with them.
	segments, headers int
}

// judgeTUN has TUNSETIFF without the flags that the older kernel does not know, which it would not look at, and
// TUNGETFEATURES without naming them.
func (s *supervisor) judgeTUN(m memory, n *notification) answer {
	switch uint32(n.args[1]) {
	case unix.TUNSETIFF:
		var flags [2]byte
		at := n.args[2] + unix.IFNAMSIZ // struct ifreq: the name, then the flags
		if !m.read(at, flags[:]) {
			return answer{}
		}
		given := binary.NativeEndian.Uint16(flags[:])
		if given&s.tunFlags != 0 {
			binary.NativeEndian.PutUint16(flags[:], given&^s.tunFlags)
			if !m.write(at, flags[:]) {
				return answer{errno: unix.EFAULT}
			}
		}
	case unix.TUNGETFEATURES:
		flags, err := tunFeatures()
		if err != nil {
			return answer{}
		}
		var b [4]byte
		binary.NativeEndian.PutUint32(b[:], uint32(flags)&^uint32(s.tunFlags))
		if !m.write(n.args[2], b[:]) {
			return answer{errno: unix.EFAULT}
		}
		return answer{done: true}
	}
	return answer{}
}

// tunFeatures is TUNGETFEATURES of the running kernel.
func tunFeatures() (int, error) {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return unix.IoctlGetInt(fd, unix.TUNGETFEATURES)
}

const tunPath = "/dev/net/tun"

// judgeMessages looks at the control messages of count msghdrs, which lie size bytes apart.
func (s *supervisor) judgeMessages(m memory, at uint64, count, size int) answer {
	count = min(count, 1024)
	raw := make([]byte, count*size)
	if !m.read(at, raw) {
		return answer{}
	}
	for i := range count {
		h := (*unix.Msghdr)(unsafe.Pointer(&raw[i*size]))
		if h.Controllen == 0 || h.Control == nil || h.Controllen > 1<<16 {
			continue
		}
		control := make([]byte, h.Controllen)
		if !m.read(uint64(uintptr(unsafe.Pointer(h.Control))), control) {
			return answer{}
		}
		a := s.judgeControl(m, h, control)
		if a != (answer{}) && i > 0 {
			// The kernel would send those before it, and say how many. muslin tries such things on a message
			// of its own, so nobody has needed that so far.
			a = answer{fatal: fmt.Sprintf("message %d of a sendmmsg has a control message that it does not take: this launcher cannot send those before it", i)}
		}
		if a != (answer{}) {
			return a
		}
	}
	return answer{}
}

func (s *supervisor) judgeControl(m memory, h *unix.Msghdr, control []byte) answer {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return answer{}
	}
	for _, c := range messages {
		for _, rule := range s.controls {
			if c.Header.Level != rule.level || c.Header.Type != rule.kind {
				continue
			}
			if rule.segments > 0 {
				if len(c.Data) < 2 || m.payload(h)+rule.headers <= rule.segments*int(binary.NativeEndian.Uint16(c.Data)) {
					continue
				}
			}
			return answer{errno: rule.errno, fatal: rule.fatal}
		}
	}
	return answer{}
}

// payload is how many bytes a message carries.
func (m memory) payload(h *unix.Msghdr) int {
	var one unix.Iovec
	raw := make([]byte, min(uint64(h.Iovlen), 1024)*uint64(unsafe.Sizeof(one)))
	if !m.read(uint64(uintptr(unsafe.Pointer(h.Iov))), raw) {
		return 0
	}
	total := 0
	for len(raw) > 0 {
		total += int((*unix.Iovec)(unsafe.Pointer(&raw[0])).Len)
		raw = raw[unsafe.Sizeof(one):]
	}
	return total
}

// judgeWrite refuses a packet whose virtio header says that it is a kind of superpacket that the older kernel
// does not know. What goes to anything but a TUN device is none.
func (s *supervisor) judgeWrite(m memory, n *notification) answer {
	at := n.args[1]
	if uintptr(n.number) == unix.SYS_WRITEV {
		var first unix.Iovec
		raw := unsafe.Slice((*byte)(unsafe.Pointer(&first)), unsafe.Sizeof(first))
		if n.args[2] == 0 || !m.read(at, raw) || first.Len < 2 {
			return answer{}
		}
		at = uint64(uintptr(unsafe.Pointer(first.Base)))
	}
	var header [2]byte // of struct virtio_net_hdr: flags, gso_type
	if !m.read(at, header[:]) || header[0] > 7 || header[1]&^gsoECN != s.vnetGSO {
		return answer{} // flags above 7 are none: the version of an IP packet without such a header
	}
	file, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", n.pid, int32(n.args[0])))
	if err != nil || file != tunPath {
		return answer{}
	}
	return answer{errno: unix.EINVAL}
}

const gsoECN = 0x80 // VIRTIO_NET_HDR_GSO_ECN, linux/virtio_net.h

// pathArguments are the system calls that name a file, and which of their arguments does.
var pathArguments = map[uintptr]int{
	unix.SYS_OPENAT:     1,
	unix.SYS_FACCESSAT:  1,
	unix.SYS_FACCESSAT2: 1,
	unix.SYS_READLINKAT: 1,
	sysNewfstatat:       1,
}

func (s *supervisor) judgePath(m memory, n *notification) answer {
	path, ok := m.text(n.args[pathArguments[uintptr(n.number)]])
	if !ok {
		return answer{}
	}
	for _, absent := range s.paths {
		if absent(path) {
			return answer{errno: unix.ENOENT}
		}
	}
	return answer{}
}

// text reads a string of no more bytes than the paths have that matter; of a longer one it reads the beginning.
func (m memory) text(at uint64) (string, bool) {
	const page, longest = 4096, 256
	b := make([]byte, longest)
	n := min(page-int(at%page), longest) // the next page may not be there
	if !m.read(at, b[:n]) {
		return "", false
	}
	if i := bytes.IndexByte(b[:n], 0); i >= 0 {
		return string(b[:i]), true
	}
	if !m.read(at+uint64(n), b[n:]) {
		return "", false
	}
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b), true
}
