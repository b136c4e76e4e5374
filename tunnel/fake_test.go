package tunnel

import (
	"bytes"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"muslin/encap"
	"muslin/tunnel/fib"
)

// fakeDevice is a Device in memory. What is sent to in comes out of Read, one slice a call; what is
// written is kept, or handed to onWrite.
type fakeDevice struct {
	in      chan [][]byte
	fail    chan error // ends Read with an error
	closed  chan struct{}
	once    sync.Once
	refuse  func(p []byte) error // nil: Write takes everything
	onWrite func(p []byte)       // p is a copy of one packet

	overflow atomic.Uint64

	mu      sync.Mutex
	written [][]byte
}

func newFakeDevice() *fakeDevice {
	return &fakeDevice{in: make(chan [][]byte, 16), fail: make(chan error, 1), closed: make(chan struct{})}
}

func (d *fakeDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-d.closed:
		return 0, os.ErrClosed
	case err := <-d.fail:
		return 0, err
	case packets := <-d.in:
		for i, p := range packets {
			sizes[i] = copy(bufs[i][offset:], p)
		}
		return len(packets), nil
	}
}

func (d *fakeDevice) Write(bufs [][]byte, offset int) (n int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, buf := range bufs {
		p := bytes.Clone(buf[offset:])
		clear(buf[:offset]) // a Device may use the headroom
		if d.refuse != nil {
			if refusal := d.refuse(p); refusal != nil {
				err = refusal
				continue
			}
		}
		n++
		if d.onWrite != nil {
			d.onWrite(p)
			continue
		}
		d.written = append(d.written, p)
	}
	return n, err
}

func (d *fakeDevice) Overflow() uint64 { return d.overflow.Load() }

func (d *fakeDevice) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}

// takeWritten returns what was written since the last call.
func (d *fakeDevice) takeWritten() [][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.written
	d.written = nil
	return w
}

// fakeUnderlay is an Underlay in memory, like fakeDevice.
type fakeUnderlay struct {
	in           chan []Datagram
	fail         chan error
	closed       chan struct{}
	once         sync.Once
	refuse       func(d *Datagram) error
	onSend       func(d Datagram) // d.Buf is a copy
	sendOverflow atomic.Uint64
	overflow     atomic.Uint64
	sent         []Datagram // with Buf copied; one writer, and no reader beside it
}

func newFakeUnderlay() *fakeUnderlay {
	return &fakeUnderlay{in: make(chan []Datagram, 16), fail: make(chan error, 1), closed: make(chan struct{})}
}

func (u *fakeUnderlay) Send(ds []Datagram) error {
	select {
	case <-u.closed:
		return os.ErrClosed
	default:
	}
	for i := range ds {
		d := &ds[i]
		d.Err = nil
		if u.refuse != nil {
			if d.Err = u.refuse(d); d.Err != nil {
				continue
			}
		}
		copied := *d
		copied.Buf = bytes.Clone(d.Buf)
		if u.onSend != nil {
			u.onSend(copied)
			continue
		}
		u.sent = append(u.sent, copied)
	}
	return nil
}

func (u *fakeUnderlay) Receive(ds []Datagram) (int, error) {
	select {
	case <-u.closed:
		return 0, os.ErrClosed
	case err := <-u.fail:
		return 0, err
	case batch := <-u.in:
		for i, d := range batch {
			n := copy(ds[i].Buf, d.Buf)
			ds[i] = Datagram{Buf: ds[i].Buf[:n], Addr: d.Addr, ECN: d.ECN, Truncated: n < len(d.Buf)}
		}
		return len(batch), nil
	}
}

func (u *fakeUnderlay) Overflow() uint64 { return u.overflow.Load() }

func (u *fakeUnderlay) SendOverflow() uint64 { return u.sendOverflow.Load() }

func (u *fakeUnderlay) Close() error {
	u.once.Do(func() { close(u.closed) })
	return nil
}

// node is one host of the tests' overlay.
type node struct {
	subnet netip.Prefix
	public netip.Addr
	mac    encap.MAC
}

// The overlay: us, and two peers. 10.9.0.0/24 is leased by nobody.
var (
	nodeA = node{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParseAddr("192.0.2.1"), encap.MAC{2, 0, 0, 0, 0, 0xa}}
	nodeB = node{netip.MustParsePrefix("10.2.0.0/24"), netip.MustParseAddr("192.0.2.2"), encap.MAC{2, 0, 0, 0, 0, 0xb}}
	nodeC = node{netip.MustParsePrefix("10.3.0.0/24"), netip.MustParseAddr("192.0.2.3"), encap.MAC{2, 0, 0, 0, 0, 0xc}}

	stranger = netip.MustParseAddr("198.51.100.1")
)

const (
	port    = 8472
	testMTU = 1450
	jumbo   = 4096
)

func (n node) peer() *fib.Peer { return &fib.Peer{Subnet: n.subnet, PublicIP: n.public, MAC: n.mac} }

// framings of the node, each by its name.
func framings(t testing.TB, n node) []encap.Framing {
	t.Helper()
	vni, err := encap.NewVNI(42)
	if err != nil {
		t.Fatal(err)
	}
	return []encap.Framing{encap.NewVXLAN(vni, n.mac), encap.UDP{}}
}

func framing(t testing.TB, n node, name string) encap.Framing {
	t.Helper()
	for _, f := range framings(t, n) {
		if f.Name() == name {
			return f
		}
	}
	t.Fatalf("no framing %q", name)
	return nil
}

// bench is a VTEP of node A on fakes, with B and C as its peers.
type bench struct {
	*VTEP
	name string // of the framing
	dev  *fakeDevice
	und  *fakeUnderlay
	b, c *fib.Peer
}

func newBench(t testing.TB, framingName string, edit ...func(*Config)) *bench {
	t.Helper()
	x := &bench{name: framingName, dev: newFakeDevice(), und: newFakeUnderlay(), b: nodeB.peer(), c: nodeC.peer()}
	x.VTEP = newVTEP(t, nodeA, framingName, x.dev, x.und, edit...)
	x.SetTable(fib.New([]*fib.Peer{x.b, x.c}))
	return x
}

func newVTEP(t testing.TB, n node, framingName string, dev Device, und Underlay, edit ...func(*Config)) *VTEP {
	t.Helper()
	cfg := Config{
		Device: dev, Underlay: und, Framing: framing(t, n, framingName), Subnet: n.subnet,
		Port: port, MTU: testMTU, Jumbo: jumbo,
	}
	for _, f := range edit {
		f(&cfg)
	}
	v, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// send takes packets through the outbound worker, one batch, and returns the datagrams.
func (x *bench) send(t testing.TB, packets ...[]byte) []Datagram {
	t.Helper()
	x.und.sent = nil
	x.dev.in <- packets
	if err := x.out.batch(); err != nil {
		t.Fatalf("outbound batch: %v", err)
	}
	return x.und.sent
}

// receive takes datagrams through the inbound worker, one batch, and returns what reached the device.
func (x *bench) receive(t testing.TB, ds ...Datagram) [][]byte {
	t.Helper()
	x.und.in <- ds
	if err := x.VTEP.in.batch(); err != nil {
		t.Fatalf("inbound batch: %v", err)
	}
	return x.dev.takeWritten()
}

// from frames a packet as a peer does that sends it to us.
func (x *bench) from(t testing.TB, n node, packet []byte) Datagram {
	t.Helper()
	f := framing(t, n, x.name)
	buf := append(make([]byte, f.Headroom()), packet...)
	f.Encode(buf, nodeA.mac)
	return Datagram{Buf: buf, Addr: netip.AddrPortFrom(n.public, 40000)}
}

// within fails the test when nothing comes out of done in ten seconds.
func within[T any](t testing.TB, what string, done <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: nothing in 10 seconds", what)
	}
	return v
}
