package wireguard

import (
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/conn"
	wgtun "golang.zx2c4.com/wireguard/tun"

	"muslin/encap"
	"muslin/tunnel"
)

// pipe joins the VTEP and the engine. To the VTEP it is an underlay's queue, to the engine a TUN device. The engine's
// goroutines do the VTEP's work: its Read carries a batch out of the real TUN device, whose packets Send copies to where
// Read was to put them, and its Write carries what came to the real TUN device, from where it lies.
type pipe struct {
	driven  chan struct{} // closed once workers are there
	workers tunnel.Workers

	reading sync.Mutex // held while a batch is carried out
	room    room
	spill   spill

	writing sync.Mutex // held while a batch is carried in
	ds      [tunnel.BatchSize]tunnel.Datagram

	mtu    atomic.Int32
	events chan wgtun.Event
	closed chan struct{}
	pauses atomic.Pointer[pauses]

	mu    sync.Mutex // held to change pauses, and what follows
	ended bool       // events and closed are closed
}

// pauses is a state of the pipe: it is paused, or not; and changed is closed when it becomes another.
type pauses struct {
	paused  bool
	changed chan struct{}
}

// room is the engine's buffers: packets go into bufs[i][offset:], their lengths into sizes.
type room struct {
	bufs   [][]byte
	sizes  []int
	offset int
	n      int // how many there are
}

// spill is packets of one batch that had no room: a batch may be four superpackets, the engine takes the segments of
// some three. The next Read takes them.
type spill struct {
	bytes []byte // one packet behind the other
	sizes []int
	taken int // of sizes
	at    int // in bytes, of the first that was not taken
}

// room for size more bytes at the end of bytes.
func (s *spill) room(size int) []byte {
	at := len(s.bytes)
	s.bytes = slices.Grow(s.bytes, size)[:at+size]
	return s.bytes[at:]
}

func (p *pipe) init(mtu encap.InnerMTU) {
	p.driven, p.closed = make(chan struct{}), make(chan struct{})
	p.events = make(chan wgtun.Event, 1)
	p.pauses.Store(&pauses{changed: make(chan struct{})})
	p.mtu.Store(int32(mtu))
}

// pause has packets that come dropped, and none taken out of the TUN device, until resume. When it returns no batch is
// under way; for that the TUN device has to be paused already, where a batch may wait.
func (p *pipe) pause() {
	p.set(true)
	for _, under := range []*sync.Mutex{&p.reading, &p.writing} {
		under.Lock() // once whoever has it is done
		defer under.Unlock()
	}
}

func (p *pipe) resume() { p.set(false) }

func (p *pipe) set(paused bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := p.pauses.Load(); old.paused != paused {
		p.pauses.Store(&pauses{paused, make(chan struct{})})
		close(old.changed)
	}
}

// await returns when the pipe is not paused, with an error when it is closed.
func (p *pipe) await() error {
	for {
		now := p.pauses.Load()
		if !now.paused {
			return nil
		}
		select {
		case <-now.changed:
		case <-p.closed:
			return os.ErrClosed
		}
	}
}

// end ends everything that waits, for good.
func (p *pipe) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		p.ended = true
		close(p.closed)
		close(p.events)
	}
}

func (p *pipe) setMTU(mtu encap.InnerMTU) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mtu.Store(int32(mtu))
	if p.ended {
		return
	}
	select {
	case p.events <- wgtun.EventMTUUpdate:
	default: // the engine has yet to look at the last one, and will see this
	}
}

// The VTEP's side.

// MaxSegments implements tunnel.UnderlayQueue. The engine takes packets one by one, so that any number will do.
func (p *pipe) MaxSegments() int { return tunnel.BatchSize }

// Send implements tunnel.UnderlayQueue, inside of Read. What the engine drops, as while it has no session with a peer, it
// does not tell.
func (p *pipe) Send(ms []tunnel.Message) error {
	for i := range ms {
		c := cutter{bufs: ms[i].Bufs}
		for left := ms[i].Len; left > 0; {
			size := min(ms[i].Size, left)
			left -= size
			p.put(&c, size)
		}
	}
	select {
	case <-p.closed:
		return os.ErrClosed
	default:
		return nil
	}
}

// put takes one packet to where there is room.
func (p *pipe) put(c *cutter, size int) {
	r := &p.room
	if r.n < len(r.bufs) {
		r.sizes[r.n] = c.take(r.bufs[r.n][r.offset:], size)
		r.n++
		return
	}
	p.spill.sizes = append(p.spill.sizes, c.take(p.spill.room(size), size))
}

// cutter takes a message's bytes out of its pieces.
type cutter struct {
	bufs [][]byte
	at   int // in bufs[0]
}

// take copies the next size bytes to dst, and returns how many had room there.
func (c *cutter) take(dst []byte, size int) (n int) {
	for size > 0 {
		piece := c.bufs[0][c.at:]
		if len(piece) <= size {
			c.bufs, c.at = c.bufs[1:], 0
		} else {
			piece = piece[:size]
			c.at += size
		}
		n += copy(dst[n:], piece)
		size -= len(piece)
	}
	return n
}

// Receive implements tunnel.UnderlayQueue: with an Engine nobody calls it.
func (p *pipe) Receive([]tunnel.Datagram) (int, error) { return 0, errors.ErrUnsupported }

// The engine's side.

// Read implements wireguard/tun.Device. One goroutine of the engine calls it.
func (p *pipe) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-p.driven:
	case <-p.closed:
		return 0, os.ErrClosed
	}
	for {
		n, err := p.readBatch(bufs, sizes, offset)
		switch {
		case n > 0:
			return n, nil // an error comes again
		case errors.Is(err, os.ErrDeadlineExceeded):
			if err := p.await(); err != nil {
				return 0, err
			}
		case err != nil:
			<-p.closed // by the VTEP, which has the error, too
			return 0, os.ErrClosed
		}
	}
}

// readBatch is a batch, or what was left of the last one.
func (p *pipe) readBatch(bufs [][]byte, sizes []int, offset int) (int, error) {
	p.reading.Lock()
	defer p.reading.Unlock()
	p.room = room{bufs: bufs, sizes: sizes, offset: offset}
	if len(p.spill.sizes) > 0 { // which goes out while paused, too
		p.unspill()
		return p.room.n, nil
	}
	if p.pauses.Load().paused {
		return 0, os.ErrDeadlineExceeded
	}
	err := p.workers.Outbound()
	return p.room.n, err
}

// unspill moves what fits.
func (p *pipe) unspill() {
	r, s := &p.room, &p.spill
	for ; r.n < len(r.bufs) && s.taken < len(s.sizes); r.n++ {
		size := s.sizes[s.taken]
		r.sizes[r.n] = copy(r.bufs[r.n][r.offset:], s.bytes[s.at:s.at+size])
		s.taken, s.at = s.taken+1, s.at+size
	}
	if s.taken == len(s.sizes) {
		*s = spill{bytes: s.bytes[:0], sizes: s.sizes[:0]}
	}
}

// Write implements wireguard/tun.Device. A goroutine of the engine for each peer calls it.
func (p *pipe) Write(bufs [][]byte, offset int) (int, error) {
	p.writing.Lock()
	defer p.writing.Unlock()
	select {
	case <-p.driven:
	case <-p.closed:
		return 0, os.ErrClosed
	default:
		return len(bufs), nil // too early
	}
	for rest := bufs; len(rest) > 0 && !p.pauses.Load().paused; {
		ds := p.ds[:min(len(rest), len(p.ds))]
		for i := range ds {
			ds[i] = tunnel.Datagram{Buf: rest[i][offset:]}
		}
		p.workers.Inbound(ds)
		rest = rest[len(ds):]
	}
	return len(bufs), nil
}

// MTU implements wireguard/tun.Device.
func (p *pipe) MTU() (int, error) { return int(p.mtu.Load()), nil }

// Name implements wireguard/tun.Device.
func (p *pipe) Name() (string, error) { return "vtep", nil }

// File implements wireguard/tun.Device: there is none.
func (p *pipe) File() *os.File { return nil }

// Events implements wireguard/tun.Device.
func (p *pipe) Events() <-chan wgtun.Event { return p.events }

// BatchSize implements wireguard/tun.Device.
func (p *pipe) BatchSize() int { return conn.IdealBatchSize }

// Close implements wireguard/tun.Device: the engine's own end.
func (p *pipe) Close() error {
	p.end()
	return nil
}
