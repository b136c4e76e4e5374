package underlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"muslin/tunnel"
	"muslin/tunnel/fib"
	"muslin/tunnel/kernel"
	"muslin/tunnel/netnstest"
	"muslin/tunnel/waiter"
)

// twins are the choices of features that must carry the same datagrams.
var twins = []string{"auto", "-udp-gso", "-udp-gro", "-udp-gso,-udp-gro", "-mmsg", "-early-filter", "-source-ports", "-outer-ecn", "none"}

// maxSegments is what every kernel with UDP_SEGMENT takes.
const maxSegments = 64

var (
	loopback  = netip.MustParseAddr("127.0.0.1")
	loopback6 = netip.IPv6Loopback()
)

// eachFamily runs f with the loopback address of either.
func eachFamily(t *testing.T, f func(t *testing.T, local netip.Addr)) {
	t.Run("IPv4", func(t *testing.T) { f(t, loopback) })
	t.Run("IPv6", func(t *testing.T) {
		requireIPv6(t)
		f(t, loopback6)
	})
}

// requireIPv6 wants the loopback interface to have an address of IPv6, as it has not in every container.
func requireIPv6(t testing.TB) {
	t.Helper()
	s, err := openSocket(netip.AddrPortFrom(loopback6, 0), func(int) error { return nil })
	if err != nil {
		netnstest.Lacks(t, "IPv6 on the loopback interface")
	}
	s.Close()
}

// on opens at an address.
func on(local netip.Addr) func(*Config) { return func(cfg *Config) { cfg.Local = local } }

// logbook keeps what was logged, a record a line.
type logbook struct {
	mu    sync.Mutex
	lines []string
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(p))
	return len(p), nil
}

// check wants so many records, each of the feature.
func (l *logbook) check(t testing.TB, feature string, want int) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lines) != want {
		t.Errorf("%d log lines, want %d: %q", len(l.lines), want, l.lines)
	}
	for _, line := range l.lines {
		if !strings.Contains(line, "level=WARN") || !strings.Contains(line, "feature="+feature) {
			t.Errorf("log line %q, want a warning of feature %s", line, feature)
		}
	}
}

func config(t testing.TB, features string, log *logbook) Config {
	t.Helper()
	f, err := kernel.ParseFeatures(features)
	if err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.DiscardHandler)
	if log != nil {
		logger = slog.New(slog.NewTextHandler(log, nil))
	}
	return Config{Local: loopback, Queues: 1, Features: f, MaxSegments: maxSegments, Logger: logger}
}

// open opens an underlay on a free port of the loopback address, unless change says something else.
func open(t testing.TB, features string, change func(*Config)) *Conn {
	t.Helper()
	cfg := config(t, features, nil)
	if change != nil {
		change(&cfg)
	}
	c, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	befriend(c, loopback, loopback6)
	return c
}

// befriend makes these addresses the peers.
func befriend(c *Conn, addrs ...netip.Addr) { c.SetPeers(tableOf(addrs...), func() {}) }

// tableOf is a table of peers with these addresses.
func tableOf(addrs ...netip.Addr) *fib.Table {
	var peers []*fib.Peer
	for i, a := range addrs {
		peers = append(peers, &fib.Peer{Subnet: netip.PrefixFrom(address(10<<24|uint32(i)<<8), 24), PublicIP: a})
	}
	return fib.New(peers)
}

// boundTo is the address that the kernel gave a socket.
func boundTo(t testing.TB, s *socket) netip.AddrPort {
	t.Helper()
	fd, err := s.file.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer s.file.End()
	return name(t, fd)
}

func name(t testing.TB, fd int) netip.AddrPort {
	t.Helper()
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	if in, ok := sa.(*unix.SockaddrInet6); ok {
		return netip.AddrPortFrom(netip.AddrFrom16(in.Addr), uint16(in.Port))
	}
	in := sa.(*unix.SockaddrInet4)
	return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port))
}

// setInt sets an option of one of our sockets.
func setInt(t testing.TB, s *socket, level, option, value int) {
	t.Helper()
	fd, err := s.file.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer s.file.End()
	if err := unix.SetsockoptInt(fd, level, option, value); err != nil {
		t.Fatal(err)
	}
}

// freePort is a port of the loopback address that nobody has.
func freePort(t testing.TB) uint16 {
	t.Helper()
	s, err := openSocket(netip.AddrPortFrom(loopback, 0), func(int) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	return boundTo(t, s).Port()
}

// plainSocket is a UDP socket that has nothing to do with this package.
func plainSocket(t testing.TB) (fd int, addr netip.AddrPort) {
	t.Helper()
	fd = boundSocket(t, loopback)
	return fd, name(t, fd)
}

func sendPlain(t testing.TB, fd int, to netip.AddrPort, payload []byte) {
	t.Helper()
	if err := unix.Sendto(fd, payload, 0, sockaddr(to)); err != nil {
		t.Fatal(err)
	}
}

// datagrams makes n of them, the last one tail bytes long; no two are the same.
func datagrams(n, size, tail int) [][]byte {
	var all [][]byte
	for i := range n {
		length := size
		if i == n-1 {
			length = tail
		}
		d := make([]byte, length)
		for k := range d {
			d[k] = byte(i + k)
		}
		binary.BigEndian.PutUint32(d, uint32(i))
		all = append(all, d)
	}
	return all
}

// run is a message whose datagrams are in two pieces each, as a segment's headers and payload are. What
// Send must set is set to something else.
func run(to netip.AddrPort, port uint8, datagrams ...[]byte) tunnel.Message {
	m := tunnel.Message{Addr: to, Port: port, Size: len(datagrams[0]), Segments: len(datagrams), Failed: 99, Err: errors.New("from the batch before")}
	for _, d := range datagrams {
		cut := len(d) / 3
		if cut > 0 {
			m.Bufs = append(m.Bufs, d[:cut])
		}
		m.Bufs = append(m.Bufs, d[cut:])
		m.Len += len(d)
	}
	return m
}

// solid is a message in one piece, as small packets are that were read one behind the other.
func solid(to netip.AddrPort, port uint8, datagrams ...[]byte) tunnel.Message {
	m := run(to, port, datagrams...)
	var all []byte
	for _, b := range m.Bufs {
		all = append(all, b...)
	}
	m.Bufs = [][]byte{all}
	return m
}

// singles makes n messages of one datagram each: flow number i%flows, payload its flow and its place in it.
func singles(n, flows int, to netip.AddrPort) []tunnel.Message {
	var ms []tunnel.Message
	for i := range n {
		payload := binary.BigEndian.AppendUint32(nil, uint32(i%flows))
		payload = binary.BigEndian.AppendUint32(payload, uint32(i/flows))
		m := run(to, uint8(i%flows%tunnel.SourcePorts), payload)
		m.ECN = uint8(i & 3)
		ms = append(ms, m)
	}
	return ms
}

// send wants all messages to be sent.
func send(t testing.TB, c *Conn, ms ...tunnel.Message) {
	t.Helper()
	if err := c.queues[0].Send(ms); err != nil {
		t.Fatal(err)
	}
	for i := range ms {
		if ms[i].Failed != 0 || ms[i].Err != nil {
			t.Fatalf("message %d: %d of %d datagrams failed: %v", i, ms[i].Failed, ms[i].Segments, ms[i].Err)
		}
	}
}

// received is what one datagram looked like to Receive.
type received struct {
	payload   string
	from      netip.AddrPort
	ecn       uint8
	truncated bool
}

// receive takes n datagrams in calls of at most batch, into buffers of size bytes. joined is how many each
// buffer held.
func receive(t testing.TB, c *Conn, n, batch, size int) (all []received, joined []int) {
	t.Helper()
	// The watchdog makes a datagram that never comes a failure rather than a test that hangs.
	watchdog := time.AfterFunc(20*time.Second, func() { c.Close() })
	defer watchdog.Stop()
	buf := make([]byte, batch*size)
	ds := make([]tunnel.Datagram, batch)
	for len(all) < n {
		for i := range ds {
			// All fields start out wrong: Receive must assign each.
			ds[i] = tunnel.Datagram{Buf: buf[i*size : (i+1)*size : (i+1)*size], Size: 3, ECN: 7, Truncated: true, Addr: netip.MustParseAddrPort("1.2.3.4:5")}
		}
		got, err := c.queues[0].Receive(ds)
		if err != nil {
			t.Fatalf("Receive after %d of %d datagrams: %v", len(all), n, err)
		}
		if got < 1 || got > batch {
			t.Fatalf("Receive = %d, want 1 to %d", got, batch)
		}
		for _, d := range ds[:got] {
			all = append(all, apart(d)...)
			joined = append(joined, parts(d))
		}
	}
	if len(all) != n {
		t.Fatalf("%d datagrams received, want %d", len(all), n)
	}
	return all, joined
}

// apart takes datagrams apart that the kernel joined.
func apart(d tunnel.Datagram) (all []received) {
	size := d.Size
	if size == 0 {
		size = len(d.Buf)
	}
	for b := d.Buf; ; b = b[size:] {
		all = append(all, received{string(b[:min(size, len(b))]), d.Addr, d.ECN, d.Truncated})
		if len(b) <= size {
			return all
		}
	}
}

// parts is how many datagrams are in d.
func parts(d tunnel.Datagram) int {
	if d.Size == 0 {
		return 1
	}
	return (len(d.Buf) + d.Size - 1) / d.Size
}

func summary(all []received) string {
	var b strings.Builder
	for _, r := range all {
		fmt.Fprintf(&b, "[%d bytes %.8x from %v, ECN %d, truncated %v] ", len(r.payload), r.payload, r.from, r.ecn, r.truncated)
	}
	return b.String()
}

// waiterSocket makes one of our sockets of a descriptor.
func waiterSocket(fd int) (*socket, error) {
	file, err := waiter.New(fd)
	return &socket{file: file}, err
}
