package underlay

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"muslin/tunnel"
)

var _ tunnel.Underlay = (*Conn)(nil)

var loopback = netip.MustParseAddr("127.0.0.1")

// open opens an underlay on a free port of the loopback address.
func open(t testing.TB, portable bool) *Conn {
	t.Helper()
	c, err := Open(Config{Local: loopback, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Portable: portable})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return c
}

// boundTo is the address that the kernel gave a socket.
func boundTo(t testing.TB, s *socket) netip.AddrPort {
	t.Helper()
	fd, err := s.file.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer s.file.End()
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	in := sa.(*unix.SockaddrInet4)
	return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port))
}

// received is what one datagram looked like to Receive.
type received struct {
	payload   string
	from      netip.AddrPort
	ecn       uint8
	truncated bool
}

// receive takes n datagrams in calls of at most batch, into buffers of size bytes.
func receive(t testing.TB, c *Conn, n, batch, size int) (all []received) {
	t.Helper()
	// The watchdog makes a datagram that never comes a failure rather than a test that hangs.
	watchdog := time.AfterFunc(20*time.Second, func() { c.Close() })
	defer watchdog.Stop()
	buf := make([]byte, batch*size)
	ds := make([]tunnel.Datagram, batch)
	for len(all) < n {
		for i := range ds {
			// All fields start out wrong: Receive must assign each.
			ds[i] = tunnel.Datagram{Buf: buf[i*size : (i+1)*size : (i+1)*size], ECN: 7, Truncated: true, Addr: netip.MustParseAddrPort("1.2.3.4:5")}
		}
		got, err := c.Receive(ds)
		if err != nil {
			t.Fatalf("Receive after %d of %d datagrams: %v", len(all), n, err)
		}
		if got < 1 || got > batch {
			t.Fatalf("Receive = %d, want 1 to %d", got, batch)
		}
		for _, d := range ds[:got] {
			all = append(all, received{string(d.Buf), d.Addr, d.ECN, d.Truncated})
		}
	}
	return all
}

// plainSocket is a UDP socket that has nothing to do with this package.
func plainSocket(t testing.TB) (fd int, addr netip.AddrPort) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fd, netip.AddrPortFrom(loopback, uint16(sa.(*unix.SockaddrInet4).Port))
}

func sendPlain(t testing.TB, fd int, to netip.AddrPort, payload []byte) {
	t.Helper()
	if err := unix.Sendto(fd, payload, 0, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil {
		t.Fatal(err)
	}
}

func TestClose(t *testing.T) {
	for _, portable := range []bool{false, true} {
		before := openFiles(t)
		c, err := Open(Config{Local: loopback, Logger: slog.Default(), Portable: portable})
		if err != nil {
			t.Fatal(err)
		}
		to := boundTo(t, c.listener)
		done := make(chan error, 1)
		go func() {
			_, err := c.Receive([]tunnel.Datagram{{Buf: make([]byte, 100)}})
			done <- err
		}()
		if err := c.Close(); err != nil {
			t.Errorf("portable %v: Close: %v", portable, err)
		}
		select {
		case err := <-done:
			if !errors.Is(err, os.ErrClosed) {
				t.Errorf("portable %v: Receive during Close: %v, want os.ErrClosed", portable, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("portable %v: Close does not end Receive", portable)
		}
		if _, err := c.Receive([]tunnel.Datagram{{Buf: make([]byte, 100)}}); !errors.Is(err, os.ErrClosed) {
			t.Errorf("portable %v: Receive after Close: %v", portable, err)
		}
		if err := c.Send(batch(3, 3, to)); !errors.Is(err, os.ErrClosed) {
			t.Errorf("portable %v: Send after Close: %v", portable, err)
		}
		if n := c.Overflow(); n != 0 {
			t.Errorf("portable %v: Overflow after Close = %d", portable, n)
		}
		if err := c.Close(); err != nil {
			t.Errorf("portable %v: second Close: %v", portable, err)
		}
		if n := openFiles(t); n != before {
			t.Errorf("portable %v: %d files open after Close, before Open %d", portable, n, before)
		}
	}
}

func TestOpenRefused(t *testing.T) {
	holder := open(t, false)
	port := boundTo(t, holder.listener).Port()
	for _, c := range []struct {
		name string
		cfg  Config
		want error
	}{
		{"port taken", Config{Local: loopback, Port: port}, syscall.EADDRINUSE},
		{"address of another host", Config{Local: netip.MustParseAddr("192.0.2.1")}, syscall.EADDRNOTAVAIL},
	} {
		before := openFiles(t)
		c.cfg.Logger = slog.Default()
		conn, err := Open(c.cfg)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", c.name, err, c.want)
			continue
		}
		if conn != nil {
			t.Errorf("%s: a Conn together with an error", c.name)
		}
		if !strings.Contains(err.Error(), fmt.Sprintf("%v:%d", c.cfg.Local, c.cfg.Port)) {
			t.Errorf("%s: %q does not name the address", c.name, err)
		}
		if n := openFiles(t); n != before {
			t.Errorf("%s: %d files open, before it %d", c.name, n, before)
		}
	}
}

func TestSendersRefuseDatagrams(t *testing.T) {
	c := open(t, false)
	plain, from := plainSocket(t)
	for i, s := range c.senders {
		sendPlain(t, plain, boundTo(t, s), []byte("unwanted"))
		fd, err := s.file.Begin()
		if err != nil {
			t.Fatal(err)
		}
		var b [100]byte
		if n, _, err := unix.Recvfrom(fd, b[:], unix.MSG_DONTWAIT); err != unix.EAGAIN {
			t.Errorf("sending socket %d took a datagram of %d bytes (%v)", i, n, err)
		}
		s.file.End()
	}
	sendPlain(t, plain, boundTo(t, c.listener), []byte("wanted"))
	if got := receive(t, c, 1, 1, 100); got[0].payload != "wanted" || got[0].from != from {
		t.Errorf("the listening socket received %+v", got)
	}
}

func TestFeatures(t *testing.T) {
	for _, portable := range []bool{false, true} {
		c := open(t, portable)
		var names []string
		for _, f := range c.Features() {
			names = append(names, f.Name)
			if f.Reason == "" {
				t.Errorf("feature %s has no reason", f.Name)
			}
			if f.Name == "recvmmsg" && f.On == portable {
				t.Errorf("portable %v: feature %+v", portable, f)
			}
			if strings.HasSuffix(f.Name, "-buffer") && os.Geteuid() == 0 && !f.On && !strings.Contains(f.Reason, "net.core.") {
				t.Errorf("feature %+v is off and does not say what to raise", f)
			}
		}
		want := []string{"receive-buffer", "recvmmsg", "send-buffer", "sendmmsg", "source-ports", "outer-ecn"}
		slices.Sort(names)
		slices.Sort(want)
		if !slices.Equal(names, want) {
			t.Errorf("portable %v: features %v, want %v", portable, names, want)
		}
	}
}

// carrier sends and receives one full batch at a time, in buffers that stay.
type carrier struct {
	sender, receiver *Conn
	out, in          []tunnel.Datagram
	full             [][]byte
}

func newCarrier(t testing.TB, size int) *carrier {
	c := &carrier{sender: open(t, false), receiver: open(t, false)}
	c.out = batch(tunnel.BatchSize, 40, boundTo(t, c.receiver.listener))
	for i := range c.out {
		c.out[i].Buf = append(c.out[i].Buf, make([]byte, size-8)...)
	}
	c.in = make([]tunnel.Datagram, tunnel.BatchSize)
	for range c.in {
		c.full = append(c.full, make([]byte, 2000))
	}
	return c
}

func (c *carrier) carry(t testing.TB) {
	if err := c.sender.Send(c.out); err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(c.out); {
		for i := range c.in {
			c.in[i].Buf = c.full[i]
		}
		got, err := c.receiver.Receive(c.in)
		if err != nil {
			t.Fatal(err)
		}
		n += got
	}
}

func TestNoAllocation(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	c := newCarrier(t, 1400)
	if n := testing.AllocsPerRun(200, func() { c.carry(t) }); n != 0 {
		t.Errorf("%v allocations for a batch of %d sent and received", n, tunnel.BatchSize)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
