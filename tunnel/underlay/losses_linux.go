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
// and what had a wrong UDP checksum. The last two are also counted in /proc/net/snmp, together with those of
// every other UDP socket of the network namespace. So of what the sockets dropped since the last look, at most
// as many found a full buffer as were counted there, of the rest at most as many had a wrong checksum, and what
// is left was refused. The sum is exact. Its parts are, unless in the same interval the kernel counts losses
// there that are not ours: of another UDP socket, or wrong checksums of datagrams up to 76 bytes (CHECKSUM_BREAK in
// linux/skbuff.h), which it finds before it looks for a socket. As many of what we refused then go by that name.
type losses struct {
	mu      sync.Mutex
	sum     tunnel.Losses
	drops   []uint32 // of each socket, which wrap
	full    uint64   // of the namespace, from here on
	badSums uint64
}

// begin makes what was lost before not count.
func (l *losses) begin(sockets []*socket) {
	l.full, l.badSums = lossCounters()
	l.drops = make([]uint32, len(sockets))
	for i, s := range sockets {
		l.drops[i], _ = s.drops()
	}
}

// lossCounters are the namespace's: for full buffers and, in kernels that tell it apart, for UDP's memory being
// used up; and for wrong checksums. What a kernel does not count is 0.
func lossCounters() (full, badSums uint64) {
	c := udpCounters()
	return c["RcvbufErrors"] + c["MemErrors"], c["InCsumErrors"]
}

// look adds what was lost since the last time; filtered says whether the sockets have a filter.
func (l *losses) look(sockets []*socket, filtered bool) tunnel.Losses {
	l.mu.Lock()
	defer l.mu.Unlock()
	var dropped uint64
	for i, s := range sockets {
		if n, ok := s.drops(); ok {
			dropped += uint64(n - l.drops[i])
			l.drops[i] = n
		}
	}
	// What is lost between the two readings is in the second one only. It then stands for a refused one in this
	// interval, and a refused one for it in the next.
	full, badSums := lossCounters()
	l.sum = l.sum.Plus(split(dropped, full-l.full, badSums-l.badSums, filtered))
	l.full, l.badSums = full, badSums
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
// (a2d133b1d465), else by /proc/net/udp (since 2.6.27).
func (s *socket) drops() (n uint32, ok bool) {
	err := s.with(func(fd int) error {
		n, ok = memInfoDrops(fd)
		if !ok {
			n, ok = procDrops(fd)
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

// procDrops finds the socket in /proc/net/udp by its inode.
func procDrops(fd int) (uint32, bool) {
	var stat unix.Stat_t
	if unix.Fstat(fd, &stat) != nil {
		return 0, false
	}
	data, err := kernel.ReadNet("udp")
	if err != nil {
		return 0, false
	}
	return parseProcUDP(string(data), stat.Ino)
}

// parseProcUDP reads the column "drops", the last, of the line with the inode (udp4_format_sock in
// net/ipv4/udp.c).
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
