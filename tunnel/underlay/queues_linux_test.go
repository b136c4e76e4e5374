package underlay

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"muslin/tunnel"
)

// Several queues share the port, and whatever comes from one source stays in one of them, in order.
func TestFlowStaysOnItsQueue(t *testing.T) {
	const queues, flows, each = 4, 64, 20
	c := open(t, "auto", func(cfg *Config) { cfg.Queues, cfg.Port = queues, freePort(t) })
	if n := len(c.Queues()); n != queues {
		t.Fatalf("%d queues, want %d", n, queues)
	}
	watchdog := time.AfterFunc(20*time.Second, func() { c.Close() })
	defer watchdog.Stop()
	to := netip.AddrPortFrom(loopback, c.cfg.Port)
	var sources []int
	for range flows {
		fd, _ := plainSocket(t)
		sources = append(sources, fd)
	}
	for i := range uint32(each) {
		for _, fd := range sources {
			sendPlain(t, fd, to, binary.BigEndian.AppendUint32(nil, i))
		}
	}
	var mu sync.Mutex
	queueOf := map[netip.AddrPort]int{}
	next := map[netip.AddrPort]uint32{}
	left := flows * each
	var g sync.WaitGroup
	for number, q := range c.Queues() {
		g.Go(func() {
			buf := make([]byte, 100)
			for {
				ds := []tunnel.Datagram{{Buf: buf}}
				if _, err := q.Receive(ds); err != nil {
					return // closed, when all is there
				}
				mu.Lock()
				from := ds[0].Addr
				if old, ok := queueOf[from]; ok && old != number {
					t.Errorf("flow %v came from queue %d and from %d", from, old, number)
				}
				queueOf[from] = number
				if got := binary.BigEndian.Uint32(ds[0].Buf); got != next[from] {
					t.Errorf("flow %v: datagram %d when %d was next", from, got, next[from])
				}
				next[from]++
				left--
				if left == 0 {
					c.Close()
				}
				mu.Unlock()
			}
		})
	}
	g.Wait()
	if left != 0 {
		t.Errorf("%d of %d datagrams did not come", left, flows*each)
	}
	used := map[int]bool{}
	for _, q := range queueOf {
		used[q] = true
	}
	if len(used) < 2 {
		t.Errorf("%d flows all came from one queue", flows)
	}
}

// The queues share the sending sockets. Each sends its flows in order while the sockets' buffers are full.
func TestQueuesSendBesideEachOther(t *testing.T) {
	const queues, rounds, segments = 2, 40, 5
	l := newLink(t)
	l.near.Sh(t, "tc qdisc add dev out0 root tbf rate 100mbit burst 20kb limit 10mb")
	far := l.far.open(t, "auto", func(cfg *Config) { cfg.Local, cfg.Port = farAddr, 8472 })
	near := l.near.open(t, "auto", func(cfg *Config) { cfg.Local, cfg.Port, cfg.Queues = nearAddr, 8472, queues })
	for _, s := range near.senders {
		setInt(t, s.socket, unix.SOL_SOCKET, unix.SO_SNDBUF, 8<<10)
	}
	var g sync.WaitGroup
	for number, q := range near.queues {
		g.Go(func() {
			for round := range rounds {
				all := datagrams(segments, 1000, 1000)
				for i := range all {
					binary.BigEndian.PutUint32(all[i], uint32(number))
					binary.BigEndian.PutUint32(all[i][4:], uint32(round*segments+i))
				}
				ms := []tunnel.Message{run(netip.AddrPortFrom(farAddr, 8472), 1, all...)}
				if err := q.Send(ms); err != nil || ms[0].Failed != 0 {
					t.Errorf("queue %d: %v, %d failed: %v", number, err, ms[0].Failed, ms[0].Err)
				}
			}
		})
	}
	got, _ := receive(t, far, queues*rounds*segments, 8, 1<<16)
	g.Wait()
	next := map[uint32]uint32{}
	for _, r := range got {
		queue, place := binary.BigEndian.Uint32([]byte(r.payload)), binary.BigEndian.Uint32([]byte(r.payload[4:]))
		if place != next[queue] {
			t.Fatalf("queue %d: datagram %d when %d was next", queue, place, next[queue])
		}
		next[queue]++
	}
}

// Close ends a Send that waits for room in the socket's buffer.
func TestCloseWhileSending(t *testing.T) {
	l := newLink(t)
	l.near.Sh(t, "tc qdisc add dev out0 root tbf rate 8kbit burst 2kb limit 10mb")
	sender, _ := l.pair(t, "auto", "auto", nil)
	setInt(t, sender.senders[1].socket, unix.SOL_SOCKET, unix.SO_SNDBUF, 8<<10)
	done := make(chan error, 1)
	go func() {
		for {
			ms := []tunnel.Message{run(netip.AddrPortFrom(farAddr, 8472), 1, datagrams(2, 1000, 1000)...)}
			if err := sender.queues[0].Send(ms); err != nil {
				done <- err
				return
			}
		}
	}()
	waitUntilBlocked(t, sender.senders[1].socket)
	if err := sender.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := within(t, "Send during Close", done); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Send during Close: %v, want os.ErrClosed", err)
	}
}

// waitUntilBlocked waits until the socket's buffer is full.
func waitUntilBlocked(t *testing.T, s *socket) {
	t.Helper()
	fd, err := s.file.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer s.file.End()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if n, err := unix.Poll(fds, 0); err == nil && n == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the socket's buffer does not fill up")
		}
	}
}
