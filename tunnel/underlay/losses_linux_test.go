package underlay

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"muslin/tunnel"
)

// Refused, spoiled and overflowing datagrams are told apart, exactly while no other UDP socket of the network
// namespace loses any, in the columns that every kernel has.
func TestLosses(t *testing.T) {
	eachFamily(t, func(t *testing.T, local netip.Addr) {
		if local.Is6() {
			checkLosses(t, nearAddr6, farAddr6, netip.MustParseAddr("2001:db8::77"))
		} else {
			checkLosses(t, nearAddr, farAddr, netip.MustParseAddr("192.0.2.77"))
		}
	})
}

func checkLosses(t *testing.T, nearAddr, farAddr, stranger netip.Addr) {
	for _, features := range []string{"auto", "-early-filter", "-udp-gro", "none"} {
		t.Run(features, func(t *testing.T) {
			l := newLink6(t)
			l.near.Sh(t, "ethtool -K out0 rx off") // or a virtual link's checksums count as right
			c := l.near.open(t, features, func(cfg *Config) { cfg.Local, cfg.Port = nearAddr, 8472 })
			befriend(c, farAddr)
			c.filter.narrow()
			want := tunnel.Losses{}
			check := func(what string) {
				t.Helper()
				var got tunnel.Losses
				for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
					l.near.Do(t, func() error { got = c.Losses(); return nil })
					if got == want {
						return
					}
					if time.Now().After(deadline) {
						t.Fatalf("%s: losses %+v, want %+v", what, got, want)
					}
				}
			}
			check("at first")
			flood := func(n int, source netip.Addr, sum sumOf) {
				l.far.Do(t, func() error { return sendRaw(n, source, netip.AddrPortFrom(nearAddr, 8472), sum) })
			}
			for !waiting(t, c) { // the far end's carrier comes a moment after ours
				flood(1, farAddr, rightSum)
			}
			drain(t, c)
			flood(100, stranger, rightSum)
			if c.filter.on() {
				want.Refused += 100
				check("100 of a stranger")
			} else {
				receive(t, c, 100, 64, 100)
			}
			flood(30, farAddr, wrongSum)
			flood(1, farAddr, rightSum) // a socket without a filter looks at a checksum when it is read
			receive(t, c, 1, 64, 100)
			want.Checksum += 30
			check("30 with a wrong checksum")

			setInt(t, c.queues[0].listener, unix.SOL_SOCKET, unix.SO_RCVBUF, 16<<10)
			const many = 300
			flood(many, farAddr, rightSum)
			queued := uint64(0)
			var got tunnel.Losses
			for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
				queued += drain(t, c)
				l.near.Do(t, func() error { got = c.Losses(); return nil })
				if queued+got.Overflow == many {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("%d received and losses %+v of %d", queued, got, many)
				}
			}
			if want.Overflow = got.Overflow; want.Overflow == 0 {
				t.Error("everything found room in a small buffer")
			}
			check("more than the buffer holds")
		})
	}
}

// drain takes what is there.
func drain(t testing.TB, c *Conn) (n uint64) {
	t.Helper()
	for ds := []tunnel.Datagram{{Buf: make([]byte, 100)}}; waiting(t, c); n++ {
		ds[0].Buf = ds[0].Buf[:100]
		if got, err := c.queues[0].Receive(ds); got != 1 || err != nil {
			t.Fatal(got, err)
		}
	}
	return n
}

// waiting reports whether there is something to be received.
func waiting(t testing.TB, c *Conn) bool {
	t.Helper()
	ready := false
	if err := c.queues[0].listener.with(func(fd int) error {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		ready = n > 0
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return ready
}

type sumOf int

const (
	rightSum sumOf = iota
	wrongSum
)

// rawPayload is beyond what the kernel sums before it looks for a socket: up to 76 bytes with the UDP header
// (CHECKSUM_BREAK in linux/skbuff.h).
const rawPayload = 80

// sendRaw sends datagrams with a source address that this host does not have, and no offloads.
func sendRaw(n int, source netip.Addr, to netip.AddrPort, sum sumOf) error {
	domain := unix.AF_INET
	if source.Is6() {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW) // the header is in what is sent
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for i := range n {
		udp := binary.BigEndian.AppendUint16(nil, 7000)
		udp = binary.BigEndian.AppendUint16(udp, to.Port())
		udp = binary.BigEndian.AppendUint16(udp, 8+rawPayload)
		udp = append(udp, 0, 0)
		udp = binary.BigEndian.AppendUint32(udp, uint32(i))
		udp = append(udp, make([]byte, rawPayload-4)...)
		check := udpSum(source, to.Addr(), udp)
		if sum == wrongSum {
			check ^= 0x0101
		}
		binary.BigEndian.PutUint16(udp[6:], check)
		p := []byte{0x45, 0, 0, byte(20 + len(udp)), 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0} // the kernel sums (raw(7))
		if source.Is6() {
			p = []byte{0x60, 0, 0, 0, 0, byte(len(udp)), unix.IPPROTO_UDP, 64}
		}
		p = append(append(p, source.AsSlice()...), to.Addr().AsSlice()...)
		if err := unix.Sendto(fd, append(p, udp...), 0, sockaddr(netip.AddrPortFrom(to.Addr(), 0))); err != nil {
			return err
		}
	}
	return nil
}

// udpSum is the UDP checksum (RFC 768) of a datagram whose field for it is 0.
func udpSum(src, dst netip.Addr, udp []byte) uint16 {
	pseudo := append(append(src.AsSlice(), dst.AsSlice()...), 0, unix.IPPROTO_UDP, 0, byte(len(udp)))
	sum := uint32(0)
	for b := append(pseudo, udp...); len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// What the namespace counted never makes the sum other than what the sockets dropped.
func TestSplit(t *testing.T) {
	for _, c := range []struct {
		dropped, full, badSums uint64
		filtered               bool
		want                   tunnel.Losses
	}{
		{0, 0, 0, true, tunnel.Losses{}},
		{0, 5, 5, true, tunnel.Losses{}},
		{10, 0, 0, true, tunnel.Losses{Refused: 10}},
		{10, 0, 0, false, tunnel.Losses{Overflow: 10}}, // a kernel that does not tell
		{10, 4, 3, true, tunnel.Losses{Overflow: 4, Checksum: 3, Refused: 3}},
		{10, 4, 3, false, tunnel.Losses{Overflow: 7, Checksum: 3}},
		{10, 7, 9, true, tunnel.Losses{Overflow: 7, Checksum: 3}},
		{10, 20, 9, true, tunnel.Losses{Overflow: 10}}, // another socket's
	} {
		if got := split(c.dropped, c.full, c.badSums, c.filtered); got != c.want {
			t.Errorf("split(%d, %d, %d, %v) = %+v, want %+v", c.dropped, c.full, c.badSums, c.filtered, got, c.want)
		}
	}
}

// The counter of a socket has 32 bits, and a flood takes it round.
func TestLossesWrapRound(t *testing.T) {
	quietLoopback(t)
	c := open(t, "auto", nil)
	drops, ok := c.queues[0].listener.drops(false)
	if !ok {
		t.Fatal("no counter")
	}
	c.losses.drops[0] = drops - 5 // as if it had stood there at the last look
	if got := c.Losses(); got != (tunnel.Losses{Refused: 5}) {
		t.Errorf("losses %+v, want 5 refused", got)
	}
}

// Kernels before 4.12 tell the same in /proc/net/udp, or udp6.
func TestDropsOfOldKernels(t *testing.T) { eachFamily(t, dropsOfOldKernels) }

func dropsOfOldKernels(t *testing.T, local netip.Addr) {
	c := open(t, "auto", on(local))
	stranger := loopbackHost(99)
	if local.Is6() {
		stranger = loopback6
		befriend(c, nearAddr6)
		c.filter.narrow()
	}
	fd := boundSocket(t, stranger)
	for range 7 {
		sendPlain(t, fd, boundTo(t, c.queues[0].listener), []byte("stranger"))
	}
	if err := c.queues[0].listener.with(func(fd int) error {
		by, ok := memInfoDrops(fd)
		proc, procOK := procDrops(fd, local.Is6())
		if !ok || !procOK || by != 7 || proc != 7 {
			t.Errorf("SO_MEMINFO says %d (%v), /proc/net/udp %d (%v), want 7", by, ok, proc, procOK)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestParseProcUDP(t *testing.T) {
	const table = `   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  163: 0100007F:A0A3 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 91247 2 0000000000000000 4294967295
  401: 0101A8C0:2118 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 9124 2 0000000000000000 12
`
	for _, c := range []struct {
		inode uint64
		want  uint32
		ok    bool
	}{{91247, 4294967295, true}, {9124, 12, true}, {912, 0, false}} {
		if got, ok := parseProcUDP(table, c.inode); got != c.want || ok != c.ok {
			t.Errorf("inode %d: %d, %v, want %d, %v", c.inode, got, ok, c.want, c.ok)
		}
	}
	for _, broken := range []string{"", "a b c", "1 2 3 4 5 6 7 8 9 912 11 12 x"} {
		if got, ok := parseProcUDP(broken, 912); ok {
			t.Errorf("%q gives %d", broken, got)
		}
	}
}

func TestParseSNMP(t *testing.T) {
	const data = "Tcp: A\nTcp: 1\nUdp: InDatagrams RcvbufErrors Later\nUdp: 5 18446744073709551615\n"
	got := parseSNMP(data, "Udp:")
	if len(got) != 2 || got["InDatagrams"] != 5 || got["RcvbufErrors"] != 1<<64-1 || got["Later"] != 0 {
		t.Errorf("counters %v", got)
	}
	if got := parseSNMP(data, "Icmp:"); got != nil {
		t.Errorf("counters of no protocol: %v", got)
	}
	const six = "Ip6InReceives                   \t2\nUdp6InDatagrams                 \t5\nUdp6RcvbufErrors\t18446744073709551615\nUdpLite6InDatagrams \t7\nUdp6Odd\nUdp6Bad x\n"
	got = parseSNMP6(six, "Udp6")
	if len(got) != 2 || got["InDatagrams"] != 5 || got["RcvbufErrors"] != 1<<64-1 {
		t.Errorf("counters of IPv6 %v", got)
	}
}
