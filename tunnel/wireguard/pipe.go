package wireguard

import (
	"os"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/conn"
	wgtun "golang.zx2c4.com/wireguard/tun"

	"muslin/encap"
	"muslin/tunnel"
)

// pipe joins the VTEP and the engine. To the VTEP it is an underlay's queue, to the engine a TUN device. On each way one
// side comes with buffers to be filled and waits; the other comes with packets, copies as many as there is room for, and
// both go on. Nothing is kept in between, so what one side does not take in time waits where it did: in the TUN device's
// queue, or in the engine's.
type pipe struct {
	// The engine's Read waits for Send.
	room chan *room // of Read
	read room       // its only one

	// The VTEP's Receive waits for Write.
	place chan *place // of Receive
	want  place       // its only one

	mtu    atomic.Int32
	events chan wgtun.Event
	closed chan struct{}
	paused atomic.Pointer[chan struct{}] // closed while paused

	mu      sync.Mutex // held to change what follows
	stopped bool       // paused is closed
	ended   bool       // events and closed are
}

// room is the engine's buffers: packets go into bufs[i][offset:], their lengths into sizes.
type room struct {
	bufs   [][]byte
	sizes  []int
	offset int
	filled chan int // how many were; holds one
}

// place is the VTEP's.
type place struct {
	ds     []tunnel.Datagram
	filled chan int
}

func (p *pipe) init(mtu encap.InnerMTU) {
	p.room, p.place = make(chan *room), make(chan *place)
	p.read.filled, p.want.filled = make(chan int, 1), make(chan int, 1)
	p.events, p.closed = make(chan wgtun.Event, 1), make(chan struct{})
	open := make(chan struct{})
	p.paused.Store(&open)
	p.mtu.Store(int32(mtu))
}

// pause ends Receive and Write where they wait, until resume.
func (p *pipe) pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.stopped {
		p.stopped = true
		close(*p.paused.Load())
	}
}

func (p *pipe) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		p.stopped = false
		open := make(chan struct{})
		p.paused.Store(&open)
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

// Send implements tunnel.UnderlayQueue. What the engine drops, as while it has no session with a peer, it does not tell.
func (p *pipe) Send(ms []tunnel.Message) error {
	var r *room
	n := 0
	for i := range ms {
		c := cutter{bufs: ms[i].Bufs}
		for left := ms[i].Len; left > 0; {
			if r == nil {
				select {
				case r = <-p.room:
					n = 0
				case <-p.closed:
					return os.ErrClosed
				}
			}
			size := min(ms[i].Size, left)
			r.sizes[n] = c.take(r.bufs[n][r.offset:], size)
			left -= size
			if n++; n == len(r.bufs) {
				r.filled <- n
				r = nil
			}
		}
	}
	if r != nil {
		r.filled <- n
	}
	return nil
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

// Receive implements tunnel.UnderlayQueue. A Datagram's Addr is not set: its sender has proved who it is.
func (p *pipe) Receive(ds []tunnel.Datagram) (int, error) {
	p.want.ds = ds
	select {
	case <-p.closed:
		return 0, os.ErrClosed
	case <-*p.paused.Load():
		return 0, os.ErrDeadlineExceeded
	case p.place <- &p.want:
		return <-p.want.filled, nil
	}
}

// The engine's side.

// Read implements wireguard/tun.Device. One goroutine of the engine calls it.
func (p *pipe) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	p.read.bufs, p.read.sizes, p.read.offset = bufs, sizes, offset
	select {
	case p.room <- &p.read:
		return <-p.read.filled, nil
	case <-p.closed:
		return 0, os.ErrClosed
	}
}

// Write implements wireguard/tun.Device. A goroutine of the engine for each peer calls it. While paused nobody takes what
// came, and it is lost.
func (p *pipe) Write(bufs [][]byte, offset int) (int, error) {
	for rest := bufs; len(rest) > 0; {
		select {
		case <-p.closed:
			return 0, os.ErrClosed
		case <-*p.paused.Load():
			return len(bufs), nil
		case w := <-p.place:
			n := min(len(rest), len(w.ds))
			for i, b := range rest[:n] {
				d := &w.ds[i]
				d.Buf = d.Buf[:copy(d.Buf, b[offset:])]
				d.Size, d.ECN, d.Truncated = 0, 0, false
			}
			w.filled <- n
			rest = rest[n:]
		}
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
