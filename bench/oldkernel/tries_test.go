//go:build linux && (amd64 || arm64)

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tryAll tries every row, and prints its name and what came of it.
func tryAll() {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bring lo up:", err)
		os.Exit(1)
	}
	for _, s := range syscalls {
		fmt.Printf("%s\t%s\n", s.name, bare(s.number))
	}
	for _, r := range otherRows {
		if try, ok := tries[r.name]; ok {
			fmt.Printf("%s\t%s\n", r.name, try())
		}
	}
}

// bare calls with arguments that no call takes.
func bare(number uintptr) string {
	const none = ^uintptr(0)
	_, _, errno := unix.Syscall6(number, none, none, none, none, none, none)
	return outcome(errno)
}

func outcome(err error) string {
	var errno unix.Errno
	switch {
	case err == nil || err == unix.Errno(0):
		return "ok"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// tries of the rows that are not a whole system call.
var tries = map[string]func() string{
	"SO_REUSEPORT":             setting(unix.SOL_SOCKET, unix.SO_REUSEPORT),
	"SO_INCOMING_CPU":          getting(unix.SOL_SOCKET, soIncomingCPU),
	"SO_ATTACH_BPF":            setting(unix.SOL_SOCKET, unix.SO_ATTACH_BPF),
	"SO_ATTACH_REUSEPORT_CBPF": setting(unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF),
	"SO_MEMINFO":               getting(unix.SOL_SOCKET, soMeminfo),
	"SO_ZEROCOPY":              setting(unix.SOL_SOCKET, unix.SO_ZEROCOPY),
	"UDP_SEGMENT":              setting(unix.IPPROTO_UDP, unix.UDP_SEGMENT),
	"UDP_GRO, set":             setting(unix.IPPROTO_UDP, unix.UDP_GRO),
	"UDP_GRO, read back":       getting(unix.IPPROTO_UDP, unix.UDP_GRO),
	"UDP_SEGMENT, read back":   getting(unix.IPPROTO_UDP, unix.UDP_SEGMENT),
	"IPPROTO_MPTCP":            func() string { return outcome(openSocket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)) },
	"NETLINK_CAP_ACK":          netlinkSetting(unix.NETLINK_CAP_ACK),
	"NETLINK_EXT_ACK":          netlinkSetting(unix.NETLINK_EXT_ACK),
	"NETLINK_GET_STRICT_CHK":   netlinkSetting(unix.NETLINK_GET_STRICT_CHK),

	"IP_TOS for a single datagram": func() string { return sendSelf([]byte("tos"), tosControl()) },
	"64 datagrams in one piece":    func() string { return sendRun(64) },
	"128 datagrams in one piece":   func() string { return sendRun(128) },

	"IFF_MULTI_QUEUE":        func() string { return twoQueues(unix.IFF_MULTI_QUEUE) },
	"IFF_NAPI":               func() string { return oneQueue(unix.IFF_NAPI) },
	"TUN_F_USO4, TUN_F_USO6": setOffload,
	"UDP superpackets written to the TUN device": writeSuperpackets,

	"/proc/thread-self":              func() string { return outcome(unix.Access("/proc/thread-self/net", unix.R_OK)) },
	"/sys/class/net/DEVICE/threaded": func() string { return opening("/sys/class/net/lo/threaded") },

	"F_OFD_GETLK":         lockOFD(unix.F_OFD_GETLK),
	"F_OFD_SETLK":         lockOFD(unix.F_OFD_SETLK),
	"F_OFD_SETLKW":        lockOFD(unix.F_OFD_SETLKW),
	"MADV_FREE":           advising(unix.MADV_FREE),
	"MADV_POPULATE_WRITE": advising(unix.MADV_POPULATE_WRITE),
	"MADV_COLLAPSE":       advising(unix.MADV_COLLAPSE),
	"waitid for P_PIDFD":  waitPidfd,
	"PR_SET_VMA":          func() string { return outcome(unix.Prctl(unix.PR_SET_VMA, ^uintptr(0), 0, 0, 0)) },
}

func openSocket(domain, typ, proto int) error {
	fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC, proto)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func onSocket(domain int, f func(fd int) error) string {
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err.Error()
	}
	defer unix.Close(fd)
	return outcome(f(fd))
}

func setting(level, name int) func() string {
	return func() string {
		return onSocket(unix.AF_INET, func(fd int) error { return unix.SetsockoptInt(fd, level, name, 1) })
	}
}

func netlinkSetting(name int) func() string {
	return func() string {
		return onSocket(unix.AF_NETLINK, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_NETLINK, name, 1) })
	}
}

func getting(level, name int) func() string {
	return func() string {
		return onSocket(unix.AF_INET, func(fd int) error {
			_, err := unix.GetsockoptInt(fd, level, name)
			return err
		})
	}
}

func control(level, kind int32, data []byte) []byte {
	b := make([]byte, unix.CmsgSpace(len(data)))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(len(data)))
	copy(b[unix.CmsgLen(0):], data)
	return b
}

func tosControl() []byte {
	return control(unix.IPPROTO_IP, unix.IP_TOS, binary.NativeEndian.AppendUint32(nil, 2))
}

func segmentControl(size uint16) []byte {
	return control(unix.IPPROTO_UDP, unix.UDP_SEGMENT, binary.NativeEndian.AppendUint16(nil, size))
}

// sendSelf sends to the loopback interface, once by sendmsg and once by sendmmsg, which have to agree.
func sendSelf(payload, oob []byte) string {
	to := &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}}
	one := onSocket(unix.AF_INET, func(fd int) error { return unix.Sendmsg(fd, payload, oob, to, 0) })
	batch := onSocket(unix.AF_INET, func(fd int) error { return sendBatch(fd, payload, oob) })
	if one != batch {
		return fmt.Sprintf("%s by sendmsg, %s by sendmmsg", one, batch)
	}
	return one
}

// noSegments is what becomes of a run where there is no UDP_SEGMENT: it must not be tried there.
const noSegments = "no UDP_SEGMENT"

func sendRun(count int) string {
	if setting(unix.IPPROTO_UDP, unix.UDP_SEGMENT)() != "ok" {
		return noSegments
	}
	const size = 64 // bytes of a datagram
	return sendSelf(make([]byte, count*size), segmentControl(size))
}

// sendBatch sends one datagram for each of oobs by sendmmsg(2).
func sendBatch(fd int, payload []byte, oobs ...[]byte) error {
	type mmsghdr struct {
		hdr unix.Msghdr
		n   uint32
	}
	name := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: 9 << 8, Addr: [4]byte{127, 0, 0, 1}}
	iov := unix.Iovec{Base: &payload[0]}
	iov.SetLen(len(payload))
	messages := make([]mmsghdr, len(oobs))
	for i, oob := range oobs {
		h := &messages[i].hdr
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&name)), unix.SizeofSockaddrInet4
		h.Iov = &iov
		h.SetIovlen(1)
		if len(oob) > 0 {
			h.Control = &oob[0]
			h.SetControllen(len(oob))
		}
	}
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&messages[0])), uintptr(len(messages)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	if int(n) != len(oobs) {
		return fmt.Errorf("%d of %d sent", n, len(oobs))
	}
	return nil
}

func openTUN(name string, flags uint16) (int, error) {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return -1, err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func listed(flag int) bool {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	flags, err := unix.IoctlGetInt(fd, unix.TUNGETFEATURES)
	return err == nil && flags&flag != 0
}

// kept reports whether the kernel remembers the flag of an open device.
func kept(fd int, flag uint16) bool {
	ifr, err := unix.NewIfreq("")
	return err == nil && unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr) == nil && ifr.Uint16()&flag != 0
}

func oneQueue(flag uint16) string {
	fd, err := openTUN("try%d", flag)
	if err != nil {
		return outcome(err)
	}
	defer unix.Close(fd)
	switch known, there := kept(fd, flag), listed(int(flag)); {
	case known && there:
		return "known, listed"
	case !known && !there:
		return "ignored, not listed"
	default:
		return fmt.Sprintf("known %v, listed %v", known, there)
	}
}

// twoQueues is oneQueue, where a flag that is ignored does not give a second queue either.
func twoQueues(flag uint16) string {
	first, err := openTUN("trymq", flag)
	if err != nil {
		return outcome(err)
	}
	defer unix.Close(first)
	second, err := openTUN("trymq", flag)
	if err == nil {
		unix.Close(second)
	}
	if (err == nil) != listed(int(flag)) || err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Sprintf("listed %v, a second queue: %s", listed(int(flag)), outcome(err))
	}
	return oneQueue(flag)
}

func setOffload() string {
	fd, err := openTUN("try%d", unix.IFF_VNET_HDR)
	if err != nil {
		return outcome(err)
	}
	defer unix.Close(fd)
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6); err != nil {
		return "without USO: " + outcome(err)
	}
	return outcome(unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6|unix.TUN_F_USO4|unix.TUN_F_USO6))
}

// writeSuperpackets writes one in one piece and one in two, to a device that is down: what it takes it answers
// with EIO (tun_get_user).
func writeSuperpackets() string {
	fd, err := openTUN("try%d", unix.IFF_VNET_HDR)
	if err != nil {
		return outcome(err)
	}
	defer unix.Close(fd)
	header, packet := udpSuperpacket()
	_, whole := unix.Write(fd, append(append([]byte{}, header...), packet...))
	_, pieces := unix.Writev(fd, [][]byte{append(append([]byte{}, header...), packet[:100]...), packet[100:]})
	if outcome(whole) != outcome(pieces) {
		return fmt.Sprintf("%s in one piece, %s in two", outcome(whole), outcome(pieces))
	}
	return outcome(whole)
}

func udpSuperpacket() (header, packet []byte) {
	const size, count = 1000, 6
	header = []byte{1, gsoUDPL4}                  // VIRTIO_NET_HDR_F_NEEDS_CSUM
	for _, v := range []uint16{28, size, 20, 6} { // header length, segment, checksum's start and offset
		header = binary.NativeEndian.AppendUint16(header, v)
	}
	packet = make([]byte, 28+size*count)
	packet[0], packet[8], packet[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
	copy(packet[12:], []byte{127, 0, 0, 1, 127, 0, 0, 1})
	binary.BigEndian.PutUint16(packet[24:], uint16(len(packet)-20))
	return header, packet
}

func opening(path string) string {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	return outcome(err)
}

func lockOFD(command int) func() string {
	return func() string {
		fd, err := unix.Open(os.TempDir(), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err.Error()
		}
		defer unix.Close(fd)
		return outcome(unix.FcntlFlock(uintptr(fd), command, &unix.Flock_t{Type: unix.F_WRLCK}))
	}
}

// advising of memory that is there.
func advising(advice int) func() string {
	return func() string {
		const size = 1 << 22
		memory, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return err.Error()
		}
		defer unix.Munmap(memory)
		memory[0] = 1
		return outcome(unix.Madvise(memory, advice))
	}
}

// waitPidfd waits for a descriptor that is none: a kernel that knows the kind says EBADF.
func waitPidfd() string {
	return outcome(unix.Waitid(pidfdIDType, 1<<20, nil, unix.WEXITED, nil))
}

// harms are what a launched program does in tests of its own.
var harms = map[string]func(){
	"UDP_SEGMENT for a single call": func() { sendSelf(make([]byte, 640), segmentControl(64)) },
	"second message of a batch": func() {
		onSocket(unix.AF_INET, func(fd int) error { return sendBatch(fd, []byte("tos"), nil, tosControl()) })
	},
	"child that outlives its parent": func() {
		child := exec.Command("/proc/self/exe", "harm", "child")
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		// Nobody writes to the pipe, but its end here goes with this process.
		orphaned, _, err := os.Pipe()
		if err == nil {
			child.Stdin = orphaned
			err = child.Start()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	},
	"child": func() {
		_, _ = io.ReadAll(os.Stdin) // until the parent has ended
		fmt.Println("child:", sendSelf([]byte("tos"), tosControl()))
	},
}
