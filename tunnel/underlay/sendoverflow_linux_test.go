package underlay

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"muslin/tunnel"
)

// slow makes out0 a link that takes 1 Mbit/s and queues a tenth of a second of it: 12.5 KB, and a bucket of
// 4 KB.
const slow = "tc qdisc add dev out0 root tbf rate 1mbit burst 4kb latency 100ms"

// Most of what is sent at once is dropped by the queue, after the socket was told that it was sent.
func TestSendOverflow(t *testing.T) {
	for _, c := range []struct {
		name     string
		segments int
	}{
		{"single datagrams", 1},
		{"runs", 10}, // the kernel counts each as one (udp_send_skb)
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLink(t)
			l.near.Sh(t, slow)
			sender, _ := l.pair(t, "auto", "auto", nil)
			overflow := func() (n uint64) {
				l.near.Do(t, func() error { n = sender.SendOverflow(); return nil })
				return n
			}
			if n := overflow(); n != 0 {
				t.Fatalf("overflow %d at first", n)
			}
			const messages = 640
			failed := uint64(0)
			for range messages / tunnel.BatchSize {
				var ms []tunnel.Message
				for range tunnel.BatchSize {
					ms = append(ms, run(netip.AddrPortFrom(farAddr, 8472), 0, datagrams(c.segments, 1000, 1000)...))
				}
				if err := sender.queues[0].Send(ms); err != nil {
					t.Fatal(err)
				}
				for i := range ms {
					failed += uint64(ms[i].Failed / c.segments)
				}
			}
			if lost := overflow() + failed; lost < messages*9/10 || lost > messages {
				t.Errorf("%d of %d messages are counted as dropped, want most of them", lost, messages)
			}
		})
	}
}

// A socket that is told of a full queue (IP_RECVERR) says so of the message.
func TestSendBufferFull(t *testing.T) {
	l := newLink(t)
	l.near.Sh(t, slow)
	sender, _ := l.pair(t, "auto", "auto", nil)
	setInt(t, sender.senders[0].socket, unix.IPPROTO_IP, unix.IP_RECVERR, 1)
	var ms []tunnel.Message
	for range tunnel.BatchSize {
		ms = append(ms, run(netip.AddrPortFrom(farAddr, 8472), 0, datagrams(3, 1000, 1000)...))
	}
	if err := sender.queues[0].Send(ms); err != nil {
		t.Fatal(err)
	}
	full := 0
	for i := range ms {
		if ms[i].Failed == 0 && ms[i].Err == nil {
			continue
		}
		full++
		if !errors.Is(ms[i].Err, tunnel.ErrSendBufferFull) || ms[i].Failed != 3 {
			t.Errorf("message %d: %d failed: %v", i, ms[i].Failed, ms[i].Err)
		}
	}
	if full < tunnel.BatchSize/2 || full == tunnel.BatchSize {
		t.Errorf("%d of %d messages met a full queue", full, len(ms))
	}
	if !sender.senders[0].takes(maxSegments, 1000, farAddr) {
		t.Error("a full queue changed what goes out in one piece")
	}
}
