package tunnel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"muslin/encap"
	"muslin/tunnel/fib"
	"muslin/tunnel/gso"
)

// poison is what the fakes write over memory that nobody may rely on any more.
var poison = bytes.Repeat([]byte{0xa5}, 1<<20)

// contract gathers what a VTEP did that the interfaces forbid.
type contract struct {
	mu     sync.Mutex
	broken []string
}

func (c *contract) breach(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = append(c.broken, fmt.Sprintf(format, args...))
}

// check fails the test for each breach since the last check.
func (c *contract) check(t testing.TB) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range c.broken {
		t.Error(b)
	}
	c.broken = nil
}

// pauser is what a fake's readers look at: paused says whether they stand still, change ends their waiting.
type pauser struct {
	mu     sync.Mutex
	paused bool
	change chan struct{}
}

func (p *pauser) set(paused bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused = paused
	if p.change != nil {
		close(p.change)
		p.change = nil
	}
	return nil
}

func (p *pauser) look() (paused bool, change <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.change == nil {
		p.change = make(chan struct{})
	}
	return p.paused, p.change
}

func (p *pauser) Pause() error  { return p.set(true) }
func (p *pauser) Resume() error { return p.set(false) }

// fakeDevice is a Device in memory.
type fakeDevice struct {
	contract
	pauser
	queues   []*fakeDeviceQueue
	closed   chan struct{}
	once     sync.Once
	overflow atomic.Uint64
}

// fakeDeviceQueue is a queue of a fakeDevice, and stands for the kernel behind it. What is sent to in comes
// out of Read, one slice a call or, where the slab has no room, more. Runs that are written are cut, and the
// packets kept or handed to onWrite.
type fakeDeviceQueue struct {
	dev      *fakeDevice
	in       chan []inner
	fail     chan error // ends Read with an error
	pending  []inner    // Read's
	perRead  int        // the most packets that a Read takes; 0: all
	used     int        // how much of the slab the last Read filled
	tcp, udp atomic.Bool

	refuse      func(p []byte) error // nil: Write takes everything
	refuseReply func() error
	onWrite     func(p []byte) // p is a copy of one packet

	mu      sync.Mutex
	written [][]byte
	runs    []gso.Run // as they were written, with copies of Bufs
	replies [][]byte
}

func newFakeDevice(queues int) *fakeDevice {
	d := &fakeDevice{closed: make(chan struct{})}
	for range queues {
		q := &fakeDeviceQueue{dev: d, in: make(chan []inner, 16), fail: make(chan error, 1)}
		q.tcp.Store(true)
		q.udp.Store(true)
		d.queues = append(d.queues, q)
	}
	return d
}

func (d *fakeDevice) Queues() (all []DeviceQueue) {
	for _, q := range d.queues {
		all = append(all, q)
	}
	return all
}

func (d *fakeDevice) Overflow() uint64 { return d.overflow.Load() }

func (d *fakeDevice) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}

func (q *fakeDeviceQueue) Read(slab []byte, ps []Packet, headroom int) (n int, err error) {
	room := PacketRoom(headroom)
	if len(slab) < room || len(ps) == 0 {
		q.dev.breach("Read into %d packets and a slab of %d bytes", len(ps), len(slab))
	}
	for len(q.pending) == 0 {
		paused, change := q.dev.look()
		select {
		case <-q.dev.closed:
			return 0, os.ErrClosed
		default:
		}
		if paused {
			return 0, os.ErrDeadlineExceeded
		}
		select {
		case <-change:
		case <-q.dev.closed:
			return 0, os.ErrClosed
		case err := <-q.fail:
			return 0, err
		case q.pending = <-q.in:
		}
	}
	copy(slab[:q.used], poison)
	at := 0
	for ; n < len(ps) && len(q.pending) > 0 && len(slab)-at >= room && (q.perRead == 0 || n < q.perRead); n++ {
		packet := at + max(headroom, gso.InfoLen)
		at = packet + copy(slab[packet:], q.pending[0].p)
		ps[n] = Packet{Buf: slab[packet-headroom : at], Info: q.pending[0].info}
		q.pending = q.pending[1:]
	}
	q.used = at
	return n, nil
}

func (q *fakeDeviceQueue) Write(runs []gso.Run) (taken int, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(runs) == 0 {
		q.dev.breach("Write of no run")
	}
	for _, r := range runs {
		whole := bytes.Join(r.Bufs, nil)
		packets := cut(whole, r.Info)
		checkRun(&q.dev.contract, &r, whole, len(packets))
		before := taken
		for _, p := range packets {
			if q.refuse != nil {
				if refusal := q.refuse(p); refusal != nil {
					err = refusal
					continue
				}
			}
			taken++
			if q.onWrite != nil {
				q.onWrite(p)
				continue
			}
			q.written = append(q.written, p)
		}
		if taken-before == len(packets) {
			for _, b := range r.Bufs {
				copy(b, poison)
			}
		}
		r.Bufs = [][]byte{whole}
		q.runs = append(q.runs, r)
	}
	return taken, err
}

// checkRun holds a run against what gso.Run and the kernel want of it. whole is its bytes, of so many packets.
func checkRun(c *contract, r *gso.Run, whole []byte, packets int) {
	i := &r.Info
	if r.Len != len(whole) || len(whole) > maxPacket {
		c.breach("a run of Len %d has %d bytes", r.Len, len(whole))
	}
	if !soundHeader(whole) {
		c.breach("a run's IP header is not sound: %x", whole[:min(20, len(whole))])
		return
	}
	if r.Segments != packets {
		c.breach("a run of Segments %d is %d packets", r.Segments, packets)
	}
	if i.Kind == gso.None && len(r.Bufs) != 1 {
		c.breach("a single packet comes in %d pieces", len(r.Bufs))
	}
	if !i.NeedsCsum {
		if *i != (gso.Info{}) {
			c.breach("a superpacket's checksum is not left to the kernel: %+v", *i)
		}
		return
	}
	want := infoOf(whole, int(i.Size))
	if i.Kind == gso.None {
		want.Kind, want.HeaderLen, want.Size = 0, i.HeaderLen, i.Size
	}
	if *i != want {
		c.breach("a run has Info %+v, want %+v", *i, want)
	} else if at := i.CsumStart + i.CsumOffset; binary.BigEndian.Uint16(whole[at:]) != pseudoSum(whole) {
		c.breach("a run's checksum field holds %#x, want the pseudo-header's sum %#x", whole[at:at+2], pseudoSum(whole))
	}
}

func (q *fakeDeviceQueue) Reply(buf []byte, offset int) error {
	if offset < gso.InfoLen {
		q.dev.breach("Reply with %d bytes of headroom", offset)
	}
	if q.refuseReply != nil {
		if err := q.refuseReply(); err != nil {
			return err
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.replies = append(q.replies, bytes.Clone(buf[offset:]))
	copy(buf[:offset], poison)
	return nil
}

func (q *fakeDeviceQueue) Joins() (tcp, udp bool) { return q.tcp.Load(), q.udp.Load() }

// takeWritten returns the packets that were written since the last call.
func (q *fakeDeviceQueue) takeWritten() [][]byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	w := q.written
	q.written = nil
	return w
}

// takeRuns returns the runs in which those packets came.
func (q *fakeDeviceQueue) takeRuns() []gso.Run {
	q.mu.Lock()
	defer q.mu.Unlock()
	r := q.runs
	q.runs = nil
	return r
}

func (q *fakeDeviceQueue) takeReplies() [][]byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	r := q.replies
	q.replies = nil
	return r
}

// fakeUnderlay is an Underlay in memory.
type fakeUnderlay struct {
	contract
	pauser
	queues       []*fakeUnderlayQueue
	closed       chan struct{}
	once         sync.Once
	sendOverflow atomic.Uint64
	losses       Losses             // to be set before anybody looks
	onPeers      func(t *fib.Table) // what SetPeers does before use
}

// fakeUnderlayQueue is a queue of a fakeUnderlay. It cuts messages as the kernel does. What is sent to in
// comes out of Receive.
type fakeUnderlayQueue struct {
	und     *fakeUnderlay
	in      chan []Datagram
	fail    chan error
	pending []Datagram // Receive's
	asked   []int      // how many datagrams Receive was to take, call by call

	segments func() int // MaxSegments
	most     int        // the most that it ever said
	refuse   func(d *outer) error
	onSend   func(ds []outer) // the datagrams of one Send
	sends    [][]sentMessage  // the messages of each Send; one writer, and no reader beside it
}

// outer is a datagram as it was sent.
type outer struct {
	buf  []byte
	addr netip.AddrPort // destination
	port uint8          // source port
	ecn  uint8
	last bool // of its message
}

// sentMessage is a message as it was sent.
type sentMessage struct {
	pieces    int
	datagrams []outer
}

func newFakeUnderlay(queues int) *fakeUnderlay {
	u := &fakeUnderlay{closed: make(chan struct{})}
	for range queues {
		u.queues = append(u.queues, &fakeUnderlayQueue{
			und: u, in: make(chan []Datagram, 16), fail: make(chan error, 1), segments: func() int { return 127 },
		})
	}
	return u
}

func (u *fakeUnderlay) Queues() (all []UnderlayQueue) {
	for _, q := range u.queues {
		all = append(all, q)
	}
	return all
}

func (u *fakeUnderlay) SetPeers(t *fib.Table, use func()) {
	if u.onPeers != nil {
		u.onPeers(t)
	}
	use()
}

func (u *fakeUnderlay) Losses() Losses { return u.losses }

func (u *fakeUnderlay) SendOverflow() uint64 { return u.sendOverflow.Load() }

func (u *fakeUnderlay) Close() error {
	u.once.Do(func() { close(u.closed) })
	return nil
}

func (q *fakeUnderlayQueue) MaxSegments() int {
	n := q.segments()
	q.most = max(q.most, n)
	return n
}

func (q *fakeUnderlayQueue) Send(ms []Message) error {
	select {
	case <-q.und.closed:
		return os.ErrClosed
	default:
	}
	if len(ms) == 0 {
		q.und.breach("Send of no message")
	}
	var sent []sentMessage
	var all []outer
	for i := range ms {
		m := &ms[i]
		s := sentMessage{len(m.Bufs), q.cut(m)}
		sent, all = append(sent, s), append(all, s.datagrams...)
	}
	if q.onSend != nil {
		q.onSend(all)
		return nil
	}
	q.sends = append(q.sends, sent)
	return nil
}

// cut returns the datagrams of a message that were not refused, and holds the message against its contract.
func (q *fakeUnderlayQueue) cut(m *Message) (ds []outer) {
	rest := bytes.Join(m.Bufs, nil)
	if m.Len != len(rest) || m.Len > MaxPayload || len(m.Bufs) > MaxBuffers || m.Segments > max(q.most, 1) ||
		int(m.Port) >= SourcePorts || !m.Addr.IsValid() || m.Size <= 0 || m.Segments != (len(rest)+m.Size-1)/m.Size {
		q.und.breach("a message of %d bytes in %d pieces, %d segments at most: %+v", len(rest), len(m.Bufs), q.most, *m)
		return nil
	}
	if slices.ContainsFunc(m.Bufs, func(b []byte) bool { return len(b) == 0 }) {
		q.und.breach("a message with an empty piece")
	}
	m.Failed, m.Err = 0, nil
	for len(rest) > 0 {
		n := min(m.Size, len(rest))
		d := outer{rest[:n:n], m.Addr, m.Port, m.ECN, n == len(rest)}
		rest = rest[n:]
		if q.refuse != nil {
			if err := q.refuse(&d); err != nil {
				m.Failed, m.Err = m.Failed+1, err
				continue
			}
		}
		ds = append(ds, d)
	}
	return ds
}

func (q *fakeUnderlayQueue) Receive(ds []Datagram) (n int, err error) {
	for len(q.pending) == 0 {
		paused, change := q.und.look()
		select {
		case <-q.und.closed:
			return 0, os.ErrClosed
		default:
		}
		if paused {
			return 0, os.ErrDeadlineExceeded
		}
		select {
		case <-change:
		case <-q.und.closed:
			return 0, os.ErrClosed
		case err := <-q.fail:
			return 0, err
		case q.pending = <-q.in:
		}
	}
	q.asked = append(q.asked, len(ds))
	for n < len(ds) && len(q.pending) > 0 {
		from, to := &q.pending[0], &ds[n]
		if len(to.Buf) < encap.OuterUDPLen+MaxPayload {
			q.und.breach("Receive into %d bytes", len(to.Buf))
		}
		size := copy(to.Buf, from.Buf)
		copy(to.Buf[size:], poison[:64])
		*to = Datagram{to.Buf[:size], from.Size, from.Addr, from.ECN, from.Truncated || size < len(from.Buf)}
		q.pending = q.pending[1:]
		n++
	}
	return n, nil
}
