package underlay

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"muslin/tunnel"
	"muslin/tunnel/kernel"
	"muslin/tunnel/racetest"
)

var _ tunnel.Underlay = (*Conn)(nil)

func TestClose(t *testing.T) {
	for _, features := range twins {
		t.Run(features, func(t *testing.T) {
			before := openFiles(t)
			cfg := config(t, features, nil)
			cfg.Port = freePort(t)
			if cfg.Features.On(kernel.MultiQueue) {
				cfg.Queues = 3
			}
			c, err := Open(cfg)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, cfg.Queues)
			for _, q := range c.Queues() {
				go func() {
					_, err := q.Receive([]tunnel.Datagram{{Buf: make([]byte, 100)}})
					done <- err
				}()
			}
			if err := c.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			for range cfg.Queues {
				if err := within(t, "Receive during Close", done); !errors.Is(err, os.ErrClosed) {
					t.Errorf("Receive during Close: %v, want os.ErrClosed", err)
				}
			}
			for i, q := range c.Queues() {
				if _, err := q.Receive([]tunnel.Datagram{{Buf: make([]byte, 100)}}); !errors.Is(err, os.ErrClosed) {
					t.Errorf("queue %d: Receive after Close: %v", i, err)
				}
				to := netip.AddrPortFrom(loopback, cfg.Port)
				for name, ms := range map[string][]tunnel.Message{
					"single datagrams": singles(3, 3, to),
					"a run":            {run(to, 1, datagrams(3, 100, 100)...)},
					"too many for one": {run(to, 1, datagrams(maxSegments+1, 100, 100)...)},
				} {
					if err := q.Send(ms); !errors.Is(err, os.ErrClosed) {
						t.Errorf("queue %d: Send of %s after Close: %v", i, name, err)
					}
				}
			}
			if n := c.Losses(); n != (tunnel.Losses{}) {
				t.Errorf("losses after Close: %+v", n)
			}
			if err := c.Close(); err != nil {
				t.Errorf("second Close: %v", err)
			}
			if n := openFiles(t); n != before {
				t.Errorf("%d files open after Close, before Open %d", n, before)
			}
		})
	}
}

func TestOpenRefused(t *testing.T) {
	holder := open(t, "auto", nil)
	port := boundTo(t, holder.queues[0].listener).Port()
	generous, err := openSocket(netip.AddrPortFrom(loopback, 0), listenOptions{share: true}.set)
	if err != nil {
		t.Fatal(err)
	}
	defer generous.Close()
	shared := boundTo(t, generous).Port()
	several := open(t, "auto", func(cfg *Config) { cfg.Queues, cfg.Port = 2, freePort(t) })
	for _, c := range []struct {
		name   string
		local  netip.Addr
		port   uint16
		queues int
		want   error
	}{
		{"port taken", loopback, port, 1, syscall.EADDRINUSE},
		{"port taken, several queues", loopback, port, 2, syscall.EADDRINUSE},
		{"port of somebody who would share it", loopback, shared, 1, syscall.EADDRINUSE},
		{"port of somebody who would share it, several queues", loopback, shared, 2, syscall.EADDRINUSE},
		{"port of several queues", loopback, several.cfg.Port, 1, syscall.EADDRINUSE},
		{"port of several queues, several queues", loopback, several.cfg.Port, 2, syscall.EADDRINUSE},
		{"address of another host", netip.MustParseAddr("192.0.2.1"), 0, 1, syscall.EADDRNOTAVAIL},
		{"address of another host, several queues", netip.MustParseAddr("192.0.2.1"), 0, 2, syscall.EADDRNOTAVAIL},
	} {
		before := openFiles(t)
		cfg := config(t, "auto", nil)
		cfg.Local, cfg.Port, cfg.Queues = c.local, c.port, c.queues
		conn, err := Open(cfg)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", c.name, err, c.want)
			continue
		}
		if conn != nil {
			t.Errorf("%s: a Conn together with an error", c.name)
		}
		if !strings.Contains(err.Error(), netip.AddrPortFrom(c.local, c.port).String()) {
			t.Errorf("%s: %q does not name the address", c.name, err)
		}
		if n := openFiles(t); n != before {
			t.Errorf("%s: %d files open, before it %d", c.name, n, before)
		}
	}
}

func TestSendersRefuseDatagrams(t *testing.T) {
	c := open(t, "auto", nil)
	plain, from := plainSocket(t)
	for i, s := range c.senders {
		sendPlain(t, plain, boundTo(t, s.socket), []byte("unwanted"))
		fd, err := s.socket.file.Begin()
		if err != nil {
			t.Fatal(err)
		}
		var b [100]byte
		if n, _, err := unix.Recvfrom(fd, b[:], unix.MSG_DONTWAIT); err != unix.EAGAIN {
			t.Errorf("sending socket %d took a datagram of %d bytes (%v)", i, n, err)
		}
		s.socket.file.End()
	}
	sendPlain(t, plain, boundTo(t, c.queues[0].listener), []byte("wanted"))
	if got, _ := receive(t, c, 1, 1, 100); got[0].payload != "wanted" || got[0].from != from {
		t.Errorf("the listening socket received %+v", got)
	}
}

func TestFeatures(t *testing.T) {
	for _, features := range twins {
		t.Run(features, func(t *testing.T) {
			c := open(t, features, nil)
			var names []string
			for _, f := range c.Features() {
				names = append(names, f.Name)
				if f.Reason == "" {
					t.Errorf("feature %s has no reason", f.Name)
				}
				if strings.HasSuffix(f.Name, "-buffer") {
					if os.Geteuid() == 0 && !f.On && !strings.Contains(f.Reason, "net.core.") {
						t.Errorf("feature %+v is off and does not say what to raise", f)
					}
				} else if want := c.cfg.Features.On(f.Name); f.On != want {
					t.Errorf("feature %+v, want it on: %v", f, want)
				}
			}
			want := []string{"early-filter", "busy-poll", "mmsg", "source-ports", "outer-ecn", "udp-gso", "udp-gro", "receive-buffer", "send-buffer"}
			slices.Sort(names)
			slices.Sort(want)
			if !slices.Equal(names, want) {
				t.Errorf("features %v, want %v", names, want)
			}
			most := 1
			if c.cfg.Features.On(kernel.UDPGSO) {
				most = maxSegments
			}
			if got := c.queues[0].MaxSegments(); got != most {
				t.Errorf("MaxSegments = %d, want %d", got, most)
			}
		})
	}
}

// carrier sends and receives the same messages again and again, in buffers that stay.
type carrier struct {
	sender, receiver *Conn
	out              []tunnel.Message
	count            int // datagrams in out
	in               []tunnel.Datagram
	full             [][]byte
}

func newCarrier(t testing.TB, local netip.Addr, features string, messages, segments, size int) *carrier {
	c := &carrier{sender: open(t, features, on(local)), receiver: open(t, features, on(local)), count: messages * segments}
	to := boundTo(t, c.receiver.queues[0].listener)
	for i := range messages {
		m := run(to, uint8(i%tunnel.SourcePorts), datagrams(segments, size, size)...)
		m.ECN = uint8(i & 3)
		c.out = append(c.out, m)
	}
	c.in = make([]tunnel.Datagram, tunnel.BatchSize)
	for range c.in {
		c.full = append(c.full, make([]byte, 1<<16))
	}
	return c
}

func (c *carrier) carry(t testing.TB) {
	if err := c.sender.queues[0].Send(c.out); err != nil {
		t.Fatal(err)
	}
	for n := 0; n < c.count; {
		for i := range c.in {
			c.in[i].Buf = c.full[i]
		}
		got, err := c.receiver.queues[0].Receive(c.in)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range c.in[:got] {
			n += parts(d)
		}
	}
}

func TestNoAllocation(t *testing.T) {
	if racetest.Enabled {
		t.Skip("the race detector allocates")
	}
	eachFamily(t, noAllocation)
}

func noAllocation(t *testing.T, local netip.Addr) {
	for _, c := range []struct {
		name, features string
		segments       int
	}{
		{"single datagrams", "auto", 1},
		{"runs", "auto", 20},
		{"runs that we cut", "-udp-gso", 20},
		{"runs that arrive in pieces", "-udp-gro", 20},
		{"more than go in one piece", "auto", maxSegments + 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			carrier := newCarrier(t, local, c.features, tunnel.BatchSize/2, c.segments, 500)
			if n := testing.AllocsPerRun(50, func() { carrier.carry(t) }); n != 0 {
				t.Errorf("%v allocations for %d datagrams sent and received", n, carrier.count)
			}
		})
	}
}

// within fails the test when nothing comes out of done in ten seconds.
func within[T any](t *testing.T, what string, done <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: nothing in 10 seconds", what)
	}
	return v
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
