package tunnel

import (
	"errors"
	"sync"

	"muslin/encap"
	"muslin/tunnel/fib"
	"muslin/tunnel/gso"
)

// Halves makes two pairs of one TUN device and one Engine, one of each address family, for a VTEP each: a network whose one
// WireGuard tunnel carries inner IPv4 and inner IPv6. What comes out of either is sorted by IP version and carried by the
// VTEP of that family, in the goroutine that has it; a packet is not copied for that. What is neither goes the way of IPv4,
// whose VTEP drops it.
//
// Both VTEPs are paused, resumed and closed together. Losses and Overflow count as IPv4's.
type Halves struct {
	dev    Device
	queue  DeviceQueue
	engine Engine

	mu      sync.Mutex
	workers [2]Workers // of the VTEPs, once they run
	there   int        // how many

	// Of the goroutine that carries outbound.
	aside  [BatchSize]Packet // IPv6 packets of the last batch, in the slab of IPv4's VTEP
	asides int

	sorted [2][BatchSize]Datagram // of the goroutine that carries inbound
}

// NewHalves takes a device and an engine of one queue each. Both stay the caller's.
func NewHalves(dev Device, engine Engine) (*Halves, error) {
	if len(dev.Queues()) != 1 || len(engine.Queues()) != 1 {
		return nil, errors.New("a TUN device and an engine that two VTEPs share have one queue each")
	}
	return &Halves{dev: dev, queue: dev.Queues()[0], engine: engine}, nil
}

// Device is the TUN device as a family's VTEP sees it.
func (h *Halves) Device(f encap.Family) Device { return halfDevice{h, f == encap.IPv6} }

// Engine is the Engine as a family's VTEP sees it. That of IPv4 has the peers of both told.
func (h *Halves) Engine(f encap.Family) Engine { return halfEngine{h, f == encap.IPv6} }

// halfDevice is what the families do not share of the device: its queue's Read.
type halfDevice struct {
	h   *Halves
	six bool
}

func (d halfDevice) Queues() []DeviceQueue { return []DeviceQueue{halfQueue(d)} }

func (d halfDevice) Overflow() uint64 {
	if d.six {
		return 0
	}
	return d.h.dev.Overflow()
}

func (d halfDevice) Pause() error  { return d.h.dev.Pause() }
func (d halfDevice) Resume() error { return d.h.dev.Resume() }
func (d halfDevice) Close() error  { return d.h.dev.Close() }

type halfQueue halfDevice

// Read implements DeviceQueue. IPv4's reads the device and puts IPv6's aside, which is read next: see outbound. Unlike that
// of a device it may give no packet.
func (q halfQueue) Read(slab []byte, ps []Packet, headroom int) (int, error) {
	h := q.h
	if q.six {
		n := copy(ps, h.aside[:h.asides])
		h.asides = 0
		return n, nil
	}
	all, err := h.queue.Read(slab, ps, headroom)
	n := 0
	for i := range ps[:all] {
		if isVersion6(ps[i].Buf[headroom:]) {
			h.aside[h.asides] = ps[i]
			h.asides++
			continue
		}
		ps[n] = ps[i]
		n++
	}
	return n, err
}

func (q halfQueue) Write(runs []gso.Run) (int, error)  { return q.h.queue.Write(runs) }
func (q halfQueue) Reply(buf []byte, offset int) error { return q.h.queue.Reply(buf, offset) }
func (q halfQueue) Joins() (tcp, udp bool)             { return q.h.queue.Joins() }

func isVersion6(p []byte) bool { return len(p) > 0 && p[0]>>4 == 6 }

// halfEngine is what the families do not share of the engine.
type halfEngine struct {
	h   *Halves
	six bool
}

func (e halfEngine) Queues() []UnderlayQueue { return e.h.engine.Queues() }

func (e halfEngine) Losses() Losses {
	if e.six {
		return Losses{}
	}
	return e.h.engine.Losses()
}

func (e halfEngine) SendOverflow() uint64 {
	if e.six {
		return 0
	}
	return e.h.engine.SendOverflow()
}

func (e halfEngine) Pause() error  { return e.h.engine.Pause() }
func (e halfEngine) Resume() error { return e.h.engine.Resume() }
func (e halfEngine) Close() error  { return e.h.engine.Close() }

// SetPeers implements Underlay. Each VTEP gets the same table, which the engine is told once.
func (e halfEngine) SetPeers(t *fib.Table, use func()) {
	if e.six {
		use()
		return
	}
	e.h.engine.SetPeers(t, use)
}

// Drive implements Engine. The engine is driven when both VTEPs run.
func (e halfEngine) Drive(w Workers) {
	h := e.h
	h.mu.Lock()
	defer h.mu.Unlock()
	i := 0
	if e.six {
		i = 1
	}
	h.workers[i] = w
	if h.there++; h.there == len(h.workers) {
		h.engine.Drive(Workers{Outbound: h.outbound, Inbound: h.inbound})
	}
}

// outbound carries a batch of each family. That of IPv6 lies in the slab of IPv4's VTEP, which reads into it again in the
// next call only.
func (h *Halves) outbound() error {
	h.asides = 0
	if err := h.workers[0].Outbound(); err != nil {
		return err
	}
	if h.asides == 0 {
		return nil
	}
	return h.workers[1].Outbound()
}

// inbound carries datagrams by the version of what is in them.
func (h *Halves) inbound(ds []Datagram) {
	var n [2]int
	for i := range ds {
		f := 0
		if isVersion6(ds[i].Buf) {
			f = 1
		}
		h.sorted[f][n[f]] = ds[i]
		n[f]++
	}
	for f := range n {
		if n[f] > 0 {
			h.workers[f].Inbound(h.sorted[f][:n[f]])
		}
	}
}
