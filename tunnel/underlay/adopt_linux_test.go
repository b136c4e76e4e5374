package underlay

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"muslin/tunnel"
	"muslin/tunnel/kernel"
)

// handOver opens an underlay on the sockets of another, with other features perhaps, and closes that one.
func handOver(t *testing.T, old *Conn, features string) *Conn {
	t.Helper()
	s, err := old.Sockets()
	if err != nil {
		t.Fatal(err)
	}
	cfg := config(t, features, nil)
	cfg.Port, cfg.Queues, cfg.Adopt = old.cfg.Port, old.cfg.Queues, s
	c, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s.Close()
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	return c
}

// What waits in the sockets goes on with them, whatever the features before and after.
func TestAdopt(t *testing.T) {
	for _, before := range twins {
		for _, after := range twins {
			t.Run(before+" to "+after, func(t *testing.T) {
				old := open(t, before, func(cfg *Config) { cfg.Port = freePort(t) })
				done := make(chan error, 1)
				go func() {
					_, err := old.queues[0].Receive([]tunnel.Datagram{{Buf: make([]byte, 100)}})
					done <- err
				}()
				if err := old.Pause(); err != nil {
					t.Fatal(err)
				}
				if err := within(t, "Receive during Pause", done); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("Receive during Pause: %v, want os.ErrDeadlineExceeded", err)
				}
				to := netip.AddrPortFrom(loopback, old.cfg.Port)
				send(t, old, singles(20, 4, to)...) // a paused underlay still sends
				if _, err := old.queues[0].Receive([]tunnel.Datagram{{Buf: make([]byte, 100)}}); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("Receive of a paused underlay in which datagrams wait: %v, want os.ErrDeadlineExceeded", err)
				}
				ports := map[netip.AddrPort]bool{}
				for _, s := range old.senders {
					ports[boundTo(t, s.socket)] = true
				}
				c := handOver(t, old, after)
				send(t, c, singles(20, 4, to)...)
				got, _ := receive(t, c, 40, 8, 2000)
				for i, g := range got {
					if c.cfg.Features.On(kernel.SourcePorts) == old.cfg.Features.On(kernel.SourcePorts) && !ports[g.from] {
						t.Errorf("datagram %d comes from %v, which is no port of before", i, g.from)
					}
				}
				send(t, c, run(to, 1, datagrams(maxSegments, 100, 100)...))
				_, joined := receive(t, c, maxSegments, 64, 65535)
				if !c.cfg.Features.On(kernel.UDPGRO) && joined[0] != 1 {
					t.Errorf("udp-gro is off, and %d datagrams came joined", joined[0])
				}
			})
		}
	}
}

// One that was not taken over in the end goes on.
func TestAdoptedAndGivenUp(t *testing.T) {
	old := open(t, "auto", func(cfg *Config) { cfg.Queues, cfg.Port = 2, freePort(t) })
	if err := old.Pause(); err != nil {
		t.Fatal(err)
	}
	s, err := old.Sockets()
	if err != nil {
		t.Fatal(err)
	}
	cfg := old.cfg
	cfg.Adopt = s
	cfg.Features = cfg.Features.Without(kernel.UDPGRO, "the other process does without")
	c, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(c.queues); n != 2 {
		t.Errorf("%d queues, want 2", n)
	}
	c.Close()
	s.Close()
	gro := func() (on int) {
		if err := old.queues[0].listener.with(func(fd int) (err error) {
			on, err = unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return on
	}
	if gro() != 0 {
		t.Error("the other process left UDP_GRO on")
	}
	if err := old.Resume(); err != nil {
		t.Fatal(err)
	}
	if gro() != 1 {
		t.Error("UDP_GRO is off after Resume")
	}
	fd, _ := plainSocket(t)
	done := make(chan error, 2)
	for _, q := range old.queues {
		go func() {
			_, err := q.Receive([]tunnel.Datagram{{Buf: make([]byte, 100)}})
			done <- err
		}()
	}
	sendPlain(t, fd, netip.AddrPortFrom(loopback, cfg.Port), []byte("x"))
	if err := within(t, "a datagram after Resume", done); err != nil {
		t.Error(err)
	}
	old.Close()
}

func TestAdoptForeignSockets(t *testing.T) {
	old := open(t, "auto", func(cfg *Config) { cfg.Port = freePort(t) })
	good, err := old.Sockets()
	if err != nil {
		t.Fatal(err)
	}
	defer good.Close()
	file := func(domain, kind int, at unix.Sockaddr) *os.File {
		fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Bind(fd, at)
		}
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "")
		t.Cleanup(func() { f.Close() })
		return f
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	foreign := map[string]*os.File{
		"another port": file(unix.AF_INET, unix.SOCK_DGRAM, &unix.SockaddrInet4{Addr: loopback.As4()}),
		"any address":  file(unix.AF_INET, unix.SOCK_DGRAM, &unix.SockaddrInet4{}),
		"TCP":          file(unix.AF_INET, unix.SOCK_STREAM, &unix.SockaddrInet4{Addr: loopback.As4()}),
		"IPv6":         file(unix.AF_INET6, unix.SOCK_DGRAM, &unix.SockaddrInet6{}),
		"no socket":    null,
	}
	for name, f := range foreign {
		sets := map[string]Sockets{"to receive with": {Receive: []*os.File{f}, Send: good.Send}}
		if name != "another port" {
			sets["to send with"] = Sockets{Receive: good.Receive, Send: []*os.File{f}}
		}
		for use, s := range sets {
			expectOther(t, name+", "+use, old.cfg, s)
		}
	}
	expectOther(t, "too many to receive with", old.cfg, Sockets{Receive: append(good.Receive, good.Receive...), Send: good.Send})
}

func expectOther(t *testing.T, what string, cfg Config, s Sockets) {
	t.Helper()
	before := openFiles(t)
	cfg.Adopt = s
	c, err := Open(cfg)
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, ErrOtherSockets) || !strings.Contains(err.Error(), "adopt") {
		t.Errorf("%s: error %v, want ErrOtherSockets", what, err)
	}
	if n := openFiles(t); n != before {
		t.Errorf("%s: %d files open, before it %d", what, n, before)
	}
}
