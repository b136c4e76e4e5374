//go:build linux

package systemd

import (
	"encoding/binary"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// What the kernel holds for a daemon that does not read: the TUN device's queue counts packets, the receive
// buffer bytes. Without runs of datagrams, of which it holds more: one by one is how they come at a low rate.
//
//	p1a ── h1 (muslin, stopped by a signal) ── br0 ── h2 (muslin) ── p2a
func TestWhatTheKernelHolds(t *testing.T) {
	l := labtest.NewLab(t, 2)
	m1 := labtest.StartMuslin(t, l.Host(1), "--embedded-etcd", "--network", labtest.Network, "--features=-udp-gro")
	m2 := labtest.StartMuslin(t, l.Host(2), "--etcd-endpoints", labtest.Endpoint(l.Host(1)), "--features=-udp-gso")
	labtest.WaitPeers(t, m1, 1)
	labtest.WaitPeers(t, m2, 1)
	p1, p2 := labtest.AddPod(t, m1, "a"), labtest.AddPod(t, m2, "a")
	for _, c := range []struct {
		name        string
		from, to    *lab.Pod
		size, sent  int // bytes of payload, datagrams
		least, most int // that get through, once the daemon reads again
	}{
		// The queue length that the daemon gives the device is 1000, and the kernel's ring keeps one place free. A
		// worker that is about to be stopped may read a batch of 64 before it is.
		{"out, 8 bytes", p1, p2, 8, 3000, 999, 1064},
		{"out, 1400 bytes", p1, p2, 1400, 3000, 999, 1064},
		// 16 MiB: the kernel doubles the 8 MiB that were asked for, and counts its own bookkeeping as well.
		{"in, 8 bytes", p2, p1, 8, 60000, 15000, 30000},
		{"in, 1400 bytes", p2, p1, 1400, 30000, 5000, 12000},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := sendPast(t, m1, c.from, c.to, c.size, c.sent)
			t.Logf("%d of %d datagrams were kept", got, c.sent)
			if got < c.least || got > c.most {
				t.Errorf("%d were kept, want %d to %d", got, c.least, c.most)
			}
		})
	}
}

// sendPast sends datagrams while a daemon is stopped, and counts what arrives once it goes on.
func sendPast(t *testing.T, stopped *lab.Muslin, from, to *lab.Pod, size, count int) int {
	t.Helper()
	in := listen(t, to)
	out := listen(t, from)
	at := in.LocalAddr().(*net.UDPAddr).AddrPort()
	send := func(n int) {
		payload := binary.BigEndian.AppendUint64(make([]byte, 0, size), uint64(n))
		if _, err := out.WriteToUDPAddrPort(payload[:size], at); err != nil {
			t.Fatal(err)
		}
	}
	send(0) // neighbours find each other
	if n := receive(t, in, 5*time.Second, 1); n != 1 {
		t.Fatal("nothing gets through")
	}
	if err := stopped.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for i := range count {
		send(i)
		if i%50 == 49 {
			time.Sleep(time.Millisecond) // what is on the way has smaller queues
		}
	}
	if err := stopped.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	return receive(t, in, time.Second, count)
}

// receive counts datagrams until there were that many, or none came for a while.
func receive(t *testing.T, in *net.UDPConn, quiet time.Duration, most int) int {
	t.Helper()
	buf := make([]byte, 2000)
	for n := 0; n < most; n++ {
		if err := in.SetReadDeadline(time.Now().Add(lab.Patience(quiet))); err != nil {
			t.Fatal(err)
		}
		if _, _, err := in.ReadFromUDPAddrPort(buf); err != nil {
			return n
		}
	}
	return most
}

// listen opens a socket in a pod that takes in as much as a test sends.
func listen(t *testing.T, p *lab.Pod) *net.UDPConn {
	t.Helper()
	return labtest.ListenUDP(t, p.Node, netip.AddrPortFrom(p.Addr, 0), 128<<20)
}
