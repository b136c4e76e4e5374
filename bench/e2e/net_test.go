//go:build linux

package e2e

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// listenUDP opens a UDP socket in a node. The test closes it at its end.
func listenUDP(t *testing.T, n *lab.Node, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	return labtest.ListenUDP(t, n, at, 4<<20)
}

// copyTCP sends size random bytes through one TCP connection from one pod to another, and compares the
// SHA-256 sums of both ends.
func copyTCP(t *testing.T, from, to *lab.Pod, size int64) {
	t.Helper()
	if err := tryCopyTCP(from, to, size); err != nil {
		t.Errorf("copy %d bytes from %s to %s: %v", size, from.Name, to.Name, err)
	}
}

func tryCopyTCP(from, to *lab.Pod, size int64) error {
	const slowest = 4 << 20 // bytes per second, on a machine that does much else
	random := io.LimitReader(rand.NewChaCha8([32]byte{1}), size)
	return streamTCP(from, to, random, lab.Patience(20*time.Second+time.Duration(size/slowest)*time.Second))
}

// streamTCP is tryCopyTCP for what a reader gives until its end.
func streamTCP(from, to *lab.Pod, content io.Reader, limit time.Duration) error {
	// Whatever port is free: one that was just closed may be open still, in a child of another test's fork.
	var listener *net.TCPListener
	if err := to.Do(func() (err error) {
		listener, err = net.ListenTCP("tcp", &net.TCPAddr{IP: to.Addr.AsSlice()})
		return err
	}); err != nil {
		return err
	}
	defer listener.Close()
	deadline := time.Now().Add(limit)
	var size, arrived int64
	var sent, received [sha256.Size]byte
	var g errgroup.Group
	g.Go(func() error {
		if err := listener.SetDeadline(deadline); err != nil {
			return err
		}
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
		sum := sha256.New()
		arrived, err = io.Copy(sum, conn)
		sum.Sum(received[:0])
		return err
	})
	g.Go(func() error {
		var conn net.Conn
		if err := from.Do(func() (err error) {
			conn, err = net.DialTimeout("tcp", listener.Addr().String(), lab.Patience(10*time.Second))
			return err
		}); err != nil {
			listener.Close()
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
		sum := sha256.New()
		var err error
		size, err = io.Copy(io.MultiWriter(conn, sum), content)
		sum.Sum(sent[:0])
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if size != arrived || sent != received {
		return fmt.Errorf("sent %d bytes with SHA-256 %x, received %d with %x", size, sent, arrived, received)
	}
	return nil
}

// probe sends a numbered datagram from one pod to another every few milliseconds, so that a loss of any
// is seen, one that comes twice, and where the machine keeps the order one that is overtaken.
type probe struct {
	stop   chan struct{}
	sender errgroup.Group
	sent   uint64 // valid after the sender has ended
	in     *net.UDPConn
	got    atomic.Uint64
	reader errgroup.Group

	overtaken, doubled int // valid after the reader has ended
}

const probeEvery = 4 * time.Millisecond

func startProbe(t *testing.T, from, to *lab.Pod) *probe {
	t.Helper()
	at := netip.AddrPortFrom(to.Addr, 7100)
	p := &probe{stop: make(chan struct{}), in: listenUDP(t, to.Node, at)}
	out := listenUDP(t, from.Node, netip.AddrPortFrom(from.Addr, 0))
	p.reader.Go(func() error {
		buf := make([]byte, 100)
		seen := make(map[uint64]bool)
		var next uint64
		for {
			n, _, err := p.in.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			if err != nil {
				return err
			}
			seq := binary.BigEndian.Uint64(buf[:n])
			if seen[seq] {
				p.doubled++
				continue
			}
			seen[seq] = true
			if seq < next {
				p.overtaken++
			}
			next = max(next, seq+1)
			p.got.Add(1)
		}
	})
	p.sender.Go(func() error {
		tick := time.NewTicker(probeEvery)
		defer tick.Stop()
		for {
			select {
			case <-p.stop:
				return nil
			case <-tick.C:
			}
			if _, err := out.WriteToUDPAddrPort(binary.BigEndian.AppendUint64(nil, p.sent), at); err != nil {
				return err
			}
			p.sent++
		}
	})
	return p
}

// waitReceived waits until n more datagrams have arrived.
func (p *probe) waitReceived(t *testing.T, n uint64) {
	t.Helper()
	from := p.got.Load()
	eventually(t, 10*time.Second, func() error {
		if got := p.got.Load() - from; got < n {
			return fmt.Errorf("%d of %d probes arrived", got, n)
		}
		return nil
	})
}

// expectNoLoss ends the probe.
func (p *probe) expectNoLoss(t *testing.T) {
	t.Helper()
	p.end(t)
	if got := p.got.Load(); p.sent == 0 || got != p.sent || p.doubled > 0 || p.overtaken > 0 && lab.Steady() {
		t.Errorf("%d of %d probes arrived, %d overtaken, %d twice", got, p.sent, p.overtaken, p.doubled)
	}
}

// end stops sending, and waits until all have arrived or no more can come.
func (p *probe) end(t *testing.T) {
	t.Helper()
	close(p.stop)
	if err := p.sender.Wait(); err != nil {
		t.Errorf("send probes: %v", err)
	}
	for deadline := time.Now().Add(lab.Patience(2 * time.Second)); p.got.Load() < p.sent && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	p.in.Close()
	if err := p.reader.Wait(); err != nil {
		t.Errorf("receive probes: %v", err)
	}
}
