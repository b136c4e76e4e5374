//go:build linux && (amd64 || arm64)

package main

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// row is one thing that kernels have since a version, and what an older one does when it is asked for it.
type row struct {
	name   string
	since  version
	source string // of since: a manual page, or a commit of the kernel
	says   string // what the older kernel does, for people

	// A row is either a call that the filter refuses by itself,
	call  call
	errno unix.Errno

	// or something that only the supervisor can see.
	tunFlag uint16            // of TUNSETIFF and TUNGETFEATURES
	control *controlRule      // a control message of sendmsg or sendmmsg
	vnetGSO byte              // gso_type of a virtio header that is written to a TUN device
	path    func(string) bool // a file that is not there
}

// call is a system call, with conditions that all have to hold.
type call struct {
	number uintptr
	args   []arg
}

// arg is a condition on the lower half of an argument: under mask it is value, or with any it has one of the bits.
type arg struct {
	index       int
	mask, value uint32
	any         bool
	above       bool // the argument is greater than value
}

func is(index int, value uint32) arg      { return arg{index: index, mask: ^uint32(0), value: value} }
func hasAny(index int, bits uint32) arg   { return arg{index: index, mask: bits, any: true} }
func greater(index int, value uint32) arg { return arg{index: index, value: value, above: true} }
func (c call) equal(o call) bool          { return c.number == o.number && slices.Equal(c.args, o.args) }
func on(number uintptr, args ...arg) call { return call{number, args} }
func setOption(level, name uint32) call   { return on(unix.SYS_SETSOCKOPT, is(1, level), is(2, name)) }
func getOption(level, name uint32) call   { return on(unix.SYS_GETSOCKOPT, is(1, level), is(2, name)) }
func pathIs(path string) func(string) bool {
	return func(p string) bool { return p == path || strings.HasPrefix(p, path+"/") }
}

// Numbers of the kernel's that golang.org/x/sys does not have.
const (
	soIncomingCPU     = 49 // SO_INCOMING_CPU, asm-generic/socket.h
	soMeminfo         = 55 // SO_MEMINFO
	pidfdIDType       = 3  // P_PIDFD, linux/wait.h
	gsoUDPL4          = 5  // VIRTIO_NET_HDR_GSO_UDP_L4, linux/virtio_net.h
	maxSegmentsBefore = 64 // UDP_MAX_SEGMENTS before 6.9, linux/udp.h
)

// otherRows are those that are not a whole system call.
var otherRows = []row{
	// Sockets. An option that a kernel does not know is ENOPROTOOPT (setsockopt(2)).
	{name: "SO_REUSEPORT", since: version{3, 9}, source: "socket(7)",
		call: setOption(unix.SOL_SOCKET, unix.SO_REUSEPORT), errno: unix.ENOPROTOOPT},
	{name: "SO_INCOMING_CPU", since: version{3, 19}, source: "socket(7)",
		call: getOption(unix.SOL_SOCKET, soIncomingCPU), errno: unix.ENOPROTOOPT},
	{name: "SO_ATTACH_BPF", since: version{3, 19}, source: "socket(7)",
		call: setOption(unix.SOL_SOCKET, unix.SO_ATTACH_BPF), errno: unix.ENOPROTOOPT},
	{name: "SO_ATTACH_REUSEPORT_CBPF", since: version{4, 5}, source: "socket(7)",
		call: setOption(unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF), errno: unix.ENOPROTOOPT},
	{name: "SO_MEMINFO", since: version{4, 12}, source: "a2d133b1d465",
		call: getOption(unix.SOL_SOCKET, soMeminfo), errno: unix.ENOPROTOOPT},
	{name: "SO_ZEROCOPY", since: version{4, 14}, source: "networking/msg_zerocopy.rst",
		call: setOption(unix.SOL_SOCKET, unix.SO_ZEROCOPY), errno: unix.ENOPROTOOPT},
	{name: "UDP_SEGMENT", since: version{4, 18}, source: "bec1f6f69736",
		call: setOption(unix.IPPROTO_UDP, unix.UDP_SEGMENT), errno: unix.ENOPROTOOPT},
	{name: "UDP_SEGMENT, read back", since: version{4, 18}, source: "bec1f6f69736",
		call: getOption(unix.IPPROTO_UDP, unix.UDP_SEGMENT), errno: unix.ENOPROTOOPT},
	{name: "UDP_GRO, set", since: version{5, 0}, source: "e20cf8d3f1f7",
		call: setOption(unix.IPPROTO_UDP, unix.UDP_GRO), errno: unix.ENOPROTOOPT},
	{name: "UDP_GRO, read back", since: version{5, 12}, source: "98184612aca0",
		call: getOption(unix.IPPROTO_UDP, unix.UDP_GRO), errno: unix.ENOPROTOOPT},
	{name: "IPPROTO_MPTCP", since: version{5, 6}, source: "networking/mptcp.rst",
		call: on(unix.SYS_SOCKET, is(2, unix.IPPROTO_MPTCP)), errno: unix.EPROTONOSUPPORT},
	{name: "NETLINK_CAP_ACK", since: version{4, 3}, source: "netlink(7)",
		call: setOption(unix.SOL_NETLINK, unix.NETLINK_CAP_ACK), errno: unix.ENOPROTOOPT},
	{name: "NETLINK_EXT_ACK", since: version{4, 12}, source: "2d4bc93368f5",
		call: setOption(unix.SOL_NETLINK, unix.NETLINK_EXT_ACK), errno: unix.ENOPROTOOPT},
	{name: "NETLINK_GET_STRICT_CHK", since: version{4, 20}, source: "89d35528d17d",
		call: setOption(unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK), errno: unix.ENOPROTOOPT},

	// Control messages of a datagram.
	{name: "IP_TOS for a single datagram", since: version{3, 13}, source: "aa6615814533", says: "EINVAL",
		control: &controlRule{level: unix.IPPROTO_IP, kind: unix.IP_TOS, errno: unix.EINVAL}},
	{name: "UDP_SEGMENT for a single call", since: version{4, 18}, source: "2e8de8576343",
		says:    "sends one long datagram: the program is killed, with a word of explanation",
		control: &controlRule{level: unix.IPPROTO_UDP, kind: unix.UDP_SEGMENT, fatal: "it would have sent one long datagram"}},
	{name: "64 datagrams in one piece", since: version{5, 16}, source: "158390e45612", says: "EINVAL: 63 at most",
		control: &controlRule{level: unix.IPPROTO_UDP, kind: unix.UDP_SEGMENT, errno: unix.EINVAL, segments: maxSegmentsBefore, headers: 20 + 8}},
	{name: "128 datagrams in one piece", since: version{6, 9}, source: "1382e3b6a350", says: "EINVAL: 64 at most",
		control: &controlRule{level: unix.IPPROTO_UDP, kind: unix.UDP_SEGMENT, errno: unix.EINVAL, segments: maxSegmentsBefore}},

	// The TUN device. A flag that TUNSETIFF does not know it ignores, and TUNGETFEATURES does not list.
	{name: "IFF_MULTI_QUEUE", since: version{3, 8}, source: "c8d68e6be1c3", says: "ignored, not listed", tunFlag: unix.IFF_MULTI_QUEUE},
	{name: "IFF_NAPI", since: version{4, 15}, source: "943170998b20", says: "ignored, not listed", tunFlag: unix.IFF_NAPI},
	{name: "TUN_F_USO4, TUN_F_USO6", since: version{6, 2}, source: "399e0827642f",
		call: on(unix.SYS_IOCTL, is(1, unix.TUNSETOFFLOAD), hasAny(2, unix.TUN_F_USO4|unix.TUN_F_USO6)), errno: unix.EINVAL},
	{name: "UDP superpackets written to the TUN device", since: version{6, 2}, source: "860b7f27b8f7", says: "EINVAL", vnetGSO: gsoUDPL4},

	// Files.
	{name: "/proc/thread-self", since: version{3, 17}, source: "proc(5)", says: "ENOENT", path: pathIs("/proc/thread-self")},
	{name: "/sys/class/net/DEVICE/threaded", since: version{5, 12}, source: "29863d41bb6e", says: "ENOENT",
		path: func(p string) bool {
			return strings.HasPrefix(p, "/sys/class/net/") && strings.HasSuffix(p, "/threaded")
		}},

	// Further arguments.
	// All three: who asks for one takes the answer for the others too.
	{name: "F_OFD_GETLK", since: version{3, 15}, source: "fcntl(2)",
		call: on(unix.SYS_FCNTL, is(1, unix.F_OFD_GETLK)), errno: unix.EINVAL},
	{name: "F_OFD_SETLK", since: version{3, 15}, source: "fcntl(2)",
		call: on(unix.SYS_FCNTL, is(1, unix.F_OFD_SETLK)), errno: unix.EINVAL},
	{name: "F_OFD_SETLKW", since: version{3, 15}, source: "fcntl(2)",
		call: on(unix.SYS_FCNTL, is(1, unix.F_OFD_SETLKW)), errno: unix.EINVAL},
	{name: "MADV_FREE", since: version{4, 5}, source: "madvise(2)",
		call: on(unix.SYS_MADVISE, is(2, unix.MADV_FREE)), errno: unix.EINVAL},
	{name: "MADV_POPULATE_WRITE", since: version{5, 14}, source: "madvise(2)",
		call: on(unix.SYS_MADVISE, is(2, unix.MADV_POPULATE_WRITE)), errno: unix.EINVAL},
	{name: "MADV_COLLAPSE", since: version{6, 1}, source: "madvise(2)",
		call: on(unix.SYS_MADVISE, is(2, unix.MADV_COLLAPSE)), errno: unix.EINVAL},
	{name: "waitid for P_PIDFD", since: version{5, 4}, source: "waitid(2)",
		call: on(unix.SYS_WAITID, is(0, pidfdIDType)), errno: unix.EINVAL},
	{name: "PR_SET_VMA", since: version{5, 17}, source: "prctl(2)",
		call: on(unix.SYS_PRCTL, is(0, unix.PR_SET_VMA)), errno: unix.EINVAL},
}

// looked are the calls that the supervisor has to look at for the row; none if the filter does it alone.
func (r row) looked() []call {
	switch {
	case r.tunFlag != 0:
		return []call{on(unix.SYS_IOCTL, is(1, unix.TUNSETIFF)), on(unix.SYS_IOCTL, is(1, unix.TUNGETFEATURES))}
	case r.control != nil:
		return []call{on(unix.SYS_SENDMSG), on(unix.SYS_SENDMMSG)}
	case r.vnetGSO != 0:
		// A superpacket in one piece is long; muslin hands over a run of datagrams in several.
		return []call{on(unix.SYS_WRITE, greater(2, shortWrite)), on(unix.SYS_WRITEV)}
	case r.path != nil:
		var calls []call
		for number := range pathArguments {
			calls = append(calls, on(number))
		}
		slices.SortFunc(calls, func(a, b call) int { return int(a.number) - int(b.number) })
		return calls
	}
	return nil
}

// shortWrite is up to how many bytes a write(2) is none of a superpacket's: it has to be so much that packets
// of the usual MTU are written without asking.
const shortWrite = 4096

// verdict is what the older kernel does, in a few words.
func (r row) verdict() string {
	if r.says != "" {
		return r.says
	}
	return unix.ErrnoName(r.errno)
}

func allRows() []row { return slices.Concat(syscallRows(), otherRows) }

// markdown is the table of refusals that are not a whole system call, for docs/kernels.md.
func markdown() string {
	var b strings.Builder
	b.WriteString("| What | Since | Source | An older kernel |\n|---|---|---|---|\n")
	rows := slices.Clone(otherRows)
	slices.SortStableFunc(rows, func(a, b row) int {
		return (a.since.major-b.since.major)*1000 + a.since.minor - b.since.minor
	})
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %v | %s | %s |\n", r.name, r.since, r.source, r.verdict())
	}
	return b.String()
}
