package underlay

import (
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"muslin/tunnel"
	"muslin/tunnel/kernel"
)

// losses tells apart why the kernel dropped datagrams of the receiving sockets before they could be received.
//
// A socket has one counter for all of them (sk_drops): for what its filter refused, what found the buffer full,
// and what had a wrong UDP checksum. The last two are also counted in /proc/net/snmp, or snmp6, together with those
// of every other UDP socket of the network namespace and the family. So of what the sockets dropped since the last look, at most
// as many found a full buffer as were counted there, of the rest at most as many had a wrong checksum, and what
// is left was refused. The sum is exact. Its parts are, unless in the same interval the kernel counts losses
// there that are not ours: of another UDP socket, or wrong checksums of datagrams up to 76 bytes (CHECKSUM_BREAK in
// linux/skbuff.h), which it finds before it looks for a socket. As many of what we refused then go by that name.
type losses struct {
	six    bool // over IPv6
	mu     sync.Mutex
	sum    tunnel.Losses
	drops  []uint32 // of each socket, which wrap
	before namespaceLosses
}

// namespaceLosses are what all UDP sockets of the network namespace have lost since it was made.
type namespaceLosses struct{ full, badSums uint64 }

// begin makes what was lost before not count.
func (l *losses) begin(sockets []*socket) {
	l.before = readNamespaceLosses(l.six)
	l.drops = make([]uint32, len(sockets))
	for i, s := range sockets {
		l.drops[i], _ = s.drops(l.six)
	}
}

// readNamespaceLosses counts as full also what, in kernels that tell it apart, found UDP's memory used up. What a
// kernel does not count is 0.
func readNamespaceLosses(six bool) namespaceLosses {
	c := udpCounters(six)
	return namespaceLosses{c["RcvbufErrors"] + c["MemErrors"], c["InCsumErrors"]}
}

// look adds what was lost since the last time; filtered says whether the sockets have a filter. It reads the
// namespace's counters before those of the sockets and after them, so that whatever a socket dropped in between
// two looks is surely in the difference.
func (l *losses) look(sockets []*socket, filtered bool) tunnel.Losses {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := readNamespaceLosses(l.six)
	var dropped uint64
	for i, s := range sockets {
		if n, ok := s.drops(l.six); ok {
			dropped += uint64(n - l.drops[i])
			l.drops[i] = n
		}
	}
	after := readNamespaceLosses(l.six)
	l.sum = l.sum.Plus(split(dropped, after.full-l.before.full, after.badSums-l.before.badSums, filtered))
	l.before = before
	return l.sum
}

// split divides what the sockets dropped by what the namespace counted meanwhile.
func split(dropped, full, badSums uint64, filtered bool) tunnel.Losses {
	overflow := min(dropped, full)
	checksum := min(dropped-overflow, badSums)
	rest := dropped - overflow - checksum
	if filtered {
		return tunnel.Losses{Overflow: overflow, Checksum: checksum, Refused: rest}
	}
	return tunnel.Losses{Overflow: overflow + rest, Checksum: checksum}
}

// Losses implements tunnel.Underlay.
func (c *Conn) Losses() tunnel.Losses { return c.losses.look(c.filter.sockets, c.filter.on()) }

// drops is how many datagrams the kernel dropped of this socket, modulo 2^32: by SO_MEMINFO since Linux 4.12
// (a2d133b1d465), else by /proc/net/udp or udp6 (since 2.6.27).
func (s *socket) drops(six bool) (n uint32, ok bool) {
	err := s.with(func(fd int) error {
		n, ok = memInfoDrops(fd)
		if !ok {
			n, ok = procDrops(fd, six)
		}
		return nil
	})
	return n, ok && err == nil
}

func memInfoDrops(fd int) (uint32, bool) {
	const (
		soMeminfo      = 55 // SO_MEMINFO in asm-generic/socket.h
		skMeminfoDrops = 8  // SK_MEMINFO_DROPS in linux/sock_diag.h
	)
	var info [9]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, soMeminfo,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	return info[skMeminfoDrops], errno == 0
}

// procDrops finds the socket in /proc/net/udp, or udp6, by its inode.
func procDrops(fd int, six bool) (uint32, bool) {
	var stat unix.Stat_t
	if unix.Fstat(fd, &stat) != nil {
		return 0, false
	}
	file := "udp"
	if six {
		file = "udp6"
	}
	data, err := kernel.ReadNet(file)
	if err != nil {
		return 0, false
	}
	return parseProcUDP(string(data), stat.Ino)
}

// parseProcUDP reads the column "drops", the last, of the line with the inode (udp4_format_sock in
// net/ipv4/udp.c; __ip6_dgram_sock_seq_show in net/ipv6/datagram.c has the same).
func parseProcUDP(data string, inode uint64) (uint32, bool) {
	const inodeColumn, dropsColumn = 9, 12
	want := strconv.FormatUint(inode, 10)
	for line := range strings.Lines(data) {
		f := strings.Fields(line)
		if len(f) > dropsColumn && f[inodeColumn] == want {
			n, err := strconv.ParseUint(f[dropsColumn], 10, 32)
			return uint32(n), err == nil
		}
	}
	return 0, false
}
