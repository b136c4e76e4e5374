package tunnel

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"testing"

	"muslin/encap"
	"muslin/tunnel/fib"
	"muslin/tunnel/racetest"
)

// steadyEngine is an Engine in memory: the test calls the workers.
type steadyEngine struct {
	steadyUnderlay
	workers Workers
	drives  int
	told    int // how often peers were
	payload [][]byte
	keep    bool
}

func (e *steadyEngine) Queues() []UnderlayQueue { return []UnderlayQueue{e} }
func (e *steadyEngine) Drive(w Workers)         { e.workers, e.drives = w, e.drives+1 }
func (e *steadyEngine) Losses() Losses          { return Losses{Overflow: 1} }
func (e *steadyEngine) SendOverflow() uint64    { return 2 }

func (e *steadyEngine) SetPeers(_ *fib.Table, use func()) {
	e.told++
	use()
}

func (e *steadyEngine) Send(ms []Message) error {
	if e.keep {
		for _, m := range ms {
			for all := bytes.Join(m.Bufs, nil); len(all) > 0; all = all[min(m.Size, len(all)):] {
				e.payload = append(e.payload, bytes.Clone(all[:min(m.Size, len(all))]))
			}
		}
	}
	return e.steadyUnderlay.Send(ms)
}

// halved is two VTEPs on one device and engine.
func halved(t *testing.T, dev *steadyDevice, engine *steadyEngine) (four, six *VTEP) {
	t.Helper()
	h, err := NewHalves(dev, engine)
	if err != nil {
		t.Fatal(err)
	}
	open := func(cfg *Config) { cfg.SourceCheck = SourceCheckOff }
	four = newVTEP(t, nodeA, "udp", h.Device(encap.IPv4), h.Engine(encap.IPv4), open)
	six = newVTEP(t, nodeA6, "udp", h.Device(encap.IPv6), h.Engine(encap.IPv6), open)
	for i, v := range []*VTEP{six, four} {
		if engine.drives != 0 {
			t.Error("driven before both are there")
		}
		v.cfg.Underlay.(Engine).Drive(v.workers())
		if engine.drives != i {
			t.Errorf("driven %d times by %d", engine.drives, i+1)
		}
		v.SetTable(fib.New([]*fib.Peer{nodeB.peer(), nodeB6.peer()}))
	}
	if engine.told != 1 {
		t.Errorf("the peers were told %d times", engine.told)
	}
	return four, six
}

// Packets of both families come out of one device, and go in, each through the VTEP of its family and none twice; those of one
// family stay in order.
func TestHalves(t *testing.T) {
	var want4, want6 [][]byte
	dev, engine := new(steadyDevice), &steadyEngine{keep: true}
	for i := range 20 {
		p4, p6 := udpPacket(t, "10.1.0.5", "10.2.0.5", fmt.Sprint(i)), udpPacket(t, "fd00:1::5", "fd00:2::5", fmt.Sprint(i))
		want4, want6 = append(want4, p4), append(want6, p6)
		dev.packets = append(dev.packets, inner{p: p4}, inner{p: p6})
	}
	dev.packets = append(dev.packets, inner{p: []byte{0x50, 0, 0, 0}}) // neither
	four, six := halved(t, dev, engine)
	if err := engine.workers.Outbound(); err != nil {
		t.Fatal(err)
	}
	var got [2][][]byte
	for _, p := range engine.payload {
		f := 0
		if p[0]>>4 == 6 {
			f = 1
		}
		got[f] = append(got[f], p)
	}
	for f, want := range [][][]byte{want4, want6} {
		if !bytes.Equal(bytes.Join(got[f], nil), bytes.Join(want, nil)) || len(got[f]) != len(want) {
			t.Errorf("%d packets of IPv%d were sent, want %d", len(got[f]), 4+2*f, len(want))
		}
	}
	if d := four.Drops(); d["malformed"] != 1 {
		t.Errorf("drops of IPv4: %v", d)
	}
	// What belongs to the device and the engine as a whole is counted once.
	both := four.Drops()
	for reason, n := range six.Drops() {
		both[reason] += n
	}
	if want := map[string]uint64{"malformed": 1, "socket-overflow": 1, "send-buffer-full": 2}; !maps.Equal(both, want) {
		t.Errorf("drops: %v, want %v", both, want)
	}

	// A batch of one family alone, of which nothing is left over for the next one.
	dev.packets, engine.payload = []inner{{p: want6[0]}}, nil
	for range 2 {
		if err := engine.workers.Outbound(); err != nil {
			t.Fatal(err)
		}
	}
	dev.packets = []inner{{p: want4[0]}}
	if err := engine.workers.Outbound(); err != nil {
		t.Fatal(err)
	}
	if len(engine.payload) != 3 || !bytes.Equal(engine.payload[1], want6[0]) || !bytes.Equal(engine.payload[2], want4[0]) {
		t.Errorf("%d packets: %x", len(engine.payload), engine.payload)
	}

	var ds []Datagram
	for i := range 10 {
		ds = append(ds, Datagram{Buf: udpPacket(t, "fd00:2::5", "fd00:1::5", fmt.Sprint(i))}, Datagram{Buf: udpPacket(t, "10.2.0.5", "10.1.0.5", fmt.Sprint(i))})
	}
	ds = append(ds, Datagram{}, Datagram{Buf: []byte{0x60}}, Datagram{Buf: udpPacket(t, "fd00:2::5", "fd00:9::5", "not ours")})
	engine.workers.Inbound(ds)
	if dev.written != 20 {
		t.Errorf("%d packets came in", dev.written)
	}
	if d4, d6 := four.Drops(), six.Drops(); d4["short"] != 1 || d6["short"] != 1 || d6["inner-destination"] != 1 {
		t.Errorf("drops: %v, %v", d4, d6)
	}

	broken := &failingDevice{steadyDevice: dev, err: os.ErrDeadlineExceeded}
	h, err := NewHalves(broken, engine)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Device(encap.IPv4).Queues()[0].Read(nil, nil, 0); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a paused device: %v", err)
	}
	if _, err := NewHalves(newFakeDevice(2), engine); err == nil {
		t.Error("a device of two queues is shared")
	}
}

// failingDevice's Read fails.
type failingDevice struct {
	*steadyDevice
	err error
}

func (d *failingDevice) Queues() []DeviceQueue                   { return []DeviceQueue{d} }
func (d *failingDevice) Read([]byte, []Packet, int) (int, error) { return 0, d.err }

func TestHalvesAllocateNothing(t *testing.T) {
	if racetest.Enabled {
		t.Skip("the race detector allocates")
	}
	x, x6 := newBench(t, "udp"), newBench6(t, "udp")
	a, b := smallLoad(t, x, 1400, 0), smallLoad(t, x6, 1400, 0)
	dev, engine := new(steadyDevice), new(steadyEngine)
	for i := range BatchSize / 2 {
		dev.packets = append(dev.packets, a.out[i], b.out[i])
	}
	ds := make([]Datagram, BatchSize)
	halved(t, dev, engine)
	if n := testing.AllocsPerRun(50, func() {
		if err := engine.workers.Outbound(); err != nil {
			t.Fatal(err)
		}
		for i := range ds {
			ds[i] = []Datagram{a.in[i], b.in[i]}[i%2]
		}
		engine.workers.Inbound(ds)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if engine.sent != 51*BatchSize || dev.written != 51*BatchSize {
		t.Errorf("%d packets sent, %d written", engine.sent, dev.written)
	}
}
