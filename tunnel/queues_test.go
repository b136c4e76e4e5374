package tunnel

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
)

// Every queue of the device has one of the underlay, and its own workers: what one takes in it puts out.
func TestQueuesKeepApart(t *testing.T) {
	const queues = 3
	x := newBenchOf(t, nodeA, "vxlan", queues)
	for i := range queues {
		dev, und := x.device.queues[i], x.underlay.queues[i]
		out := stream(t, 5000+i)
		dev.pending = []inner{out, {p: udpPacket(t, "10.1.0.5", "10.9.0.1", "no route")}}
		must(t, x.out[i].batch())
		var sent []outer
		for k, q := range x.underlay.queues {
			if (len(q.sends) > 0) != (k == i) {
				t.Errorf("queue %d: %d sends from queue %d", i, len(q.sends), k)
			}
			for _, ms := range q.sends {
				for _, m := range ms {
					sent = append(sent, m.datagrams...)
				}
			}
			q.sends = nil
		}
		checkFlows(t, x.unframedAll(sent), cutAll([]inner{out}))

		in := [][]byte{
			udpPacket(t, "10.2.0.5", "10.1.0.5", fmt.Sprint("plain ", i)),
			unfinished(udpPacket(t, "10.2.0.5", "10.1.0.5", fmt.Sprint("unfinished ", i))).p,
			udpPacket(t, "10.3.0.5", "10.1.0.5", "not from there"),
		}
		und.pending = x.fromAll(t, nodeB, in)
		must(t, x.in[i].batch())
		for k, q := range x.device.queues {
			packets, replies := 0, 0
			if k == i {
				packets, replies = 2, 1
			}
			if p, r := len(q.takeWritten()), len(q.takeReplies()); p != packets || r != replies {
				t.Errorf("queue %d: %d packets and %d answers written to queue %d", i, p, r, k)
			}
		}
	}
	x.check(t)
	if got, want := x.Drops(), map[string]uint64{"no-route": queues, "inner-source": queues}; !maps.Equal(got, want) {
		t.Errorf("drops %v, want %v", got, want)
	}
	if got := x.ChecksumsUnfinished(); got != queues {
		t.Errorf("ChecksumsUnfinished = %d, want %d", got, queues)
	}
	if got := x.b.Counters.RxPackets.Load(); got != 2*queues {
		t.Errorf("%d packets counted, want %d", got, 2*queues)
	}
}

// A refused datagram of any queue is told of.
func TestLastSendErrorOfAnyQueue(t *testing.T) {
	x := newBenchOf(t, nodeA, "vxlan", 3)
	refusal := errors.New("a firewall rule")
	x.underlay.queues[2].refuse = func(*outer) error { return refusal }
	for i, o := range x.out {
		x.device.queues[i].pending = plain(udpPacket(t, "10.1.0.5", "10.2.0.5", "x"))
		must(t, o.batch())
	}
	if got := x.LastSendError(); got != refusal {
		t.Errorf("LastSendError = %v, want %v", got, refusal)
	}
	if got := x.Drops(); !maps.Equal(got, map[string]uint64{"send-failed": 1}) {
		t.Errorf("drops %v", got)
	}
}

func TestQueueMismatchIsNamed(t *testing.T) {
	_, err := New(Config{Device: newFakeDevice(4), Underlay: newFakeUnderlay(2), Framing: framing(t, nodeA, "udp"), Subnet: nodeA.subnet, MTU: testMTU})
	if err == nil || !strings.Contains(err.Error(), "4") || !strings.Contains(err.Error(), "2") {
		t.Errorf("New with 4 queues inside and 2 outside: %v", err)
	}
}
