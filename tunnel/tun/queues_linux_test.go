package tun

import (
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"muslin/tunnel"
)

// arrivals is what every queue's reader has seen of numbered flows: the flow in the UDP source port, the
// number in the payload.
type arrivals struct {
	mu      sync.Mutex
	next    map[uint16]uint32
	queueOf map[uint16]int
	left    int
}

// collect reads from every queue until n packets are there, and closes the device.
func collect(t *testing.T, w twin, d device, n int) *arrivals {
	t.Helper()
	watchdog := time.AfterFunc(20*time.Second, func() { d.Close() })
	defer watchdog.Stop()
	a := &arrivals{next: map[uint16]uint32{}, queueOf: map[uint16]int{}, left: n}
	var g sync.WaitGroup
	for number, q := range d.Queues() {
		g.Go(func() {
			r := newReading(w, tunnel.BatchSize, vxlan)
			for {
				got, err := r.once(t, q)
				if err != nil {
					if !isClosed(err) {
						t.Errorf("queue %d: %v", number, err)
					}
					return
				}
				a.mu.Lock()
				for _, p := range got {
					a.packet(t, number, p.bytes)
				}
				if a.left == 0 {
					d.Close()
				}
				a.mu.Unlock()
			}
		})
	}
	g.Wait()
	if a.left != 0 {
		t.Errorf("%d of %d packets did not come", a.left, n)
	}
	return a
}

func (a *arrivals) packet(t *testing.T, queue int, p []byte) {
	flow, number := binary.BigEndian.Uint16(p[20:]), binary.BigEndian.Uint32(p[28:])
	if old, ok := a.queueOf[flow]; ok && old != queue {
		t.Errorf("flow %d came from queue %d and from %d", flow, old, queue)
	}
	a.queueOf[flow] = queue
	if number != a.next[flow] {
		t.Errorf("flow %d: packet %d when %d was next", flow, number, a.next[flow])
	}
	a.next[flow]++
	a.left--
}

// Flows are spread over the queues, and each stays where it is, in order.
func TestQueues(t *testing.T) {
	const queues, flows, each = 4, 64, 10
	for _, w := range []twin{full, plain} {
		t.Run(w.name, func(t *testing.T) {
			newNamespace(t)
			d := openUpQueues(t, w, queues, nil)
			fd := rawSocket(t)
			for number := range uint32(each) {
				for flow := range uint16(flows) {
					send(t, fd, oneUDP(0).with(func(s *spec) {
						s.from, s.to, s.sport, s.payload = "9.1", "9.7", flow, binary.BigEndian.AppendUint32(nil, number)
					}).build(t, true))
				}
			}
			a := collect(t, w, d, flows*each)
			used := map[int]bool{}
			for _, q := range a.queueOf {
				used[q] = true
			}
			if len(used) < 2 {
				t.Errorf("%d flows all came from one queue", flows)
			}
		})
	}
}

// Every queue writes, beside the others; what each writes arrives in its order.
func TestQueuesWriteBesideEachOther(t *testing.T) {
	const queues, packets, size = 3, 500, 100
	newNamespace(t)
	d := openUpQueues(t, full, queues, nil)
	fd := udpSocket(t, 5000, 2*queues*packets*1000)
	var g sync.WaitGroup
	for queue, q := range d.Queues() {
		g.Go(func() {
			for i := range uint32(packets) {
				if n, err := q.Write(runs(numbered(t, uint32(queue)<<16+i, size))); n != 1 || err != nil {
					t.Errorf("queue %d: Write = %d, %v", queue, n, err)
					return
				}
			}
		})
	}
	g.Wait()
	next := map[uint32]uint32{}
	for range queues * packets {
		buf := make([]byte, size)
		if _, err := read(fd, buf); err != nil {
			t.Fatalf("after %v: %v", next, err)
		}
		queue, number := binary.BigEndian.Uint32(buf)>>16, binary.BigEndian.Uint32(buf)&0xffff
		if number != next[queue] {
			t.Fatalf("queue %d: packet %d when %d was next", queue, number, next[queue])
		}
		next[queue]++
	}
}
