//go:build linux

package probe

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"muslin/bench/lab"
)

func newLab(t *testing.T, hosts int) *lab.Lab {
	t.Helper()
	lab.RequireRoot(t)
	l, err := lab.New(t.Context(), lab.Config{Hosts: hosts})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func nft(t *testing.T, h *lab.Host, commands ...string) {
	t.Helper()
	for _, c := range commands {
		if out, err := h.Run(t.Context(), "nft", c); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
}

func wait(t *testing.T, p *Probe, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := p.WaitReceived(ctx, n); err != nil {
		t.Fatal(err)
	}
}

// h1 ── br0 ── h2, where the firewall drops every tenth datagram, and then all of them for a while.
func TestLossOnTheWay(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	lab.RequireTool(t, "nft")
	from, to := l.Host(1), l.Host(2)
	p, err := Start(t.Context(), Config{From: from.Node, To: to.Node, Addr: to.Addr})
	if err != nil {
		t.Fatal(err)
	}
	wait(t, p, 200)
	if r := p.Snapshot(); r.Lost != 0 {
		t.Errorf("before the fault: %v", r)
	}
	nft(t, to, "add table ip t", "add chain ip t in { type filter hook input priority 0; }",
		"add rule ip t in meta l4proto udp numgen inc mod 10 3 counter drop")
	wait(t, p, 900)
	nft(t, to, "flush chain ip t in")
	cut := time.Now()
	nft(t, to, "add rule ip t in meta l4proto udp drop")
	time.Sleep(300 * time.Millisecond) // the fault's length, which is measured
	nft(t, to, "flush chain ip t in")
	healed := time.Now()
	wait(t, p, 100)
	r := p.Stop()
	t.Log(r)
	if r.Err != nil || r.Duplicated != 0 || r.Reordered != 0 || r.Received+r.Lost != r.Sent {
		t.Errorf("%v", r)
	}
	singles, longest := 0, Gap{}
	for _, g := range r.Gaps {
		if g.Count == 1 {
			singles++
		}
		if g.Length > longest.Length {
			longest = g
		}
	}
	// 900 arrivals with one in ten lost; the commands before and after take their time.
	if singles < 90 {
		t.Errorf("%d single losses, want at least 90", singles)
	}
	const slack = 150 * time.Millisecond // for nft to start, on a busy machine
	if longest.Length < 300*time.Millisecond || longest.Start.Before(cut) || longest.End().After(healed.Add(slack)) || longest.Length != r.LongestGap {
		t.Errorf("longest gap from %v to %v, of %v; the fault was from %v to %v", longest.Start, longest.End(), r.LongestGap, cut, healed)
	}
}

// relay passes datagrams on as told by their count from 1: nil drops one, and several are sent in that order.
func relay(t *testing.T, to netip.AddrPort, pass func(count int, b []byte) [][]byte) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var g errgroup.Group
	g.Go(func() error {
		for count := 1; ; count++ {
			b := make([]byte, 100)
			n, err := conn.Read(b)
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			if err != nil {
				return err
			}
			for _, b := range pass(count, b[:n]) {
				if _, err := conn.WriteToUDPAddrPort(b, to); err != nil {
					return err
				}
			}
		}
	})
	t.Cleanup(func() {
		conn.Close()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// h1: probe ── relay ── probe, where of each ten datagrams one is lost, one doubled, and two change places.
func TestRelay(t *testing.T) {
	t.Parallel()
	h := newLab(t, 1).Host(1)
	in, err := listen(h.Node, netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	var (
		at   netip.AddrPort
		held []byte
	)
	if err := h.Do(func() error {
		at = relay(t, in.LocalAddr().(*net.UDPAddr).AddrPort(), func(count int, b []byte) [][]byte {
			switch count % 10 {
			case 3:
				return nil
			case 5:
				return [][]byte{b, b}
			case 7:
				held = b
				return nil
			case 8:
				return [][]byte{b, held}
			}
			return [][]byte{b}
		})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	out, err := listen(h.Node, netip.AddrPort{})
	if err != nil {
		t.Fatal(err)
	}
	p := start(t.Context(), Config{From: h.Node, To: h.Node, Addr: at.Addr(), Rate: 2000}, in, out, at)
	wait(t, p, 900)
	r := p.Stop()
	t.Log(r)
	// How often each place in the ten was reached; the last datagram may be the one that is held.
	reached := func(place int) int { return (r.Sent + 10 - place) / 10 }
	lost := reached(3)
	if r.Sent%10 == 7 {
		lost++
	}
	if r.Err != nil || r.Lost != lost || r.Duplicated != reached(5) || r.Reordered != reached(8) || r.Received != r.Sent-r.Lost {
		t.Errorf("want %d lost, %d duplicated, %d reordered: %v", lost, reached(5), reached(8), r)
	}
}

// What the sender's kernel does not take is lost, and said to be refused; strangers' datagrams count for
// nothing.
func TestRefusedAndStrange(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	lab.RequireTool(t, "ip")
	from, to := l.Host(1), l.Host(2)
	p, err := Start(t.Context(), Config{From: from.Node, To: to.Node, Addr: to.Addr})
	if err != nil {
		t.Fatal(err)
	}
	strange := []byte("sixteen bytes...")
	for range 10 {
		if _, err := p.out.WriteToUDPAddrPort(strange, p.in.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
			t.Fatal(err)
		}
	}
	wait(t, p, 50)
	if out, err := from.Run(t.Context(), "ip", "link", "set", "eth0", "down"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for deadline := time.Now().Add(5 * time.Second); p.Snapshot().Refused < 50; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("nothing refused: %v", p.Snapshot())
		}
	}
	r := p.Stop()
	if r.Err != nil || r.Refused < 50 || r.Lost < r.Refused || r.Duplicated != 0 || r.Received+r.Lost != r.Sent {
		t.Errorf("%v, %d refused", r, r.Refused)
	}
}

// A probe whose own socket overflowed says so.
func TestOwnSocketDrops(t *testing.T) {
	t.Parallel()
	h := newLab(t, 1).Host(1)
	p, err := Start(t.Context(), Config{From: h.Node, To: h.Node, Addr: h.Addr})
	if err != nil {
		t.Fatal(err)
	}
	wait(t, p, 10)
	if err := p.in.SetReadBuffer(1); err != nil { // the kernel's smallest, a few datagrams
		t.Fatal(err)
	}
	p.count.mu.Lock() // holds the reader up, and the sender's own count of time with it
	at := p.in.LocalAddr().(*net.UDPAddr).AddrPort()
	for range 1000 {
		if _, err := p.out.WriteToUDPAddrPort(make([]byte, 16), at); err != nil {
			t.Error(err)
		}
	}
	p.count.mu.Unlock()
	if r := p.Stop(); r.Err == nil || !strings.Contains(r.Err.Error(), "its own socket dropped") {
		t.Errorf("error %v", r.Err)
	}
}

func TestStartOnClosedLab(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	h := l.Host(1)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), Config{From: h.Node, To: h.Node, Addr: h.Addr}); !errors.Is(err, lab.ErrClosed) {
		t.Errorf("error %v, want ErrClosed", err)
	}
}
