package tunnel

import (
	"errors"
	"net/netip"
	"os"
	"sync/atomic"

	"muslin/tunnel/fib"
)

// Member is a Port's underlay for one VTEP. It implements Fed.
type Member struct {
	port   *Port
	vni    uint32
	share  Share
	queues []UnderlayQueue
	feeds  []*feed                   // by queue, once its VTEP runs; then always the same
	table  atomic.Pointer[fib.Table] // its peers; nil: none yet
	closed atomic.Bool

	paused  bool // what follows: port.mu is held
	resumed bool // but its VTEP does not run yet

	losses   Losses // port.counting is held
	overflow uint64
}

// memberQueue sends.
type memberQueue struct {
	UnderlayQueue
	m *Member
}

// Send implements UnderlayQueue.
func (q memberQueue) Send(ms []Message) error {
	if q.m.closed.Load() {
		return os.ErrClosed
	}
	return q.UnderlayQueue.Send(ms)
}

// Source implements Sourced.
func (q memberQueue) Source(port uint8) netip.AddrPort { return sourceOf(q.UnderlayQueue)(port) }

// Receive implements UnderlayQueue: nobody calls it.
func (memberQueue) Receive([]Datagram) (int, error) { return 0, errors.ErrUnsupported }

// Queues implements Underlay.
func (m *Member) Queues() []UnderlayQueue { return m.queues }

// Feed implements Fed.
func (m *Member) Feed(inbound []func(ds []Datagram)) error { return m.port.feed(m, inbound) }

// SetPeers implements Underlay. The kernel lets in the peers of all members.
func (m *Member) SetPeers(t *fib.Table, use func()) {
	m.share.SetPeers(t, func() {
		m.table.Store(t)
		use()
	})
}

// Losses implements Underlay. Those of the port are counted with the member that has run longest.
func (m *Member) Losses() Losses {
	m.port.counting.Lock()
	defer m.port.counting.Unlock()
	m.port.count(m)
	return m.losses
}

// SendOverflow implements Underlay, as Losses.
func (m *Member) SendOverflow() uint64 {
	m.port.counting.Lock()
	defer m.port.counting.Unlock()
	m.port.count(m)
	return m.overflow
}

// Pause implements Underlay. The whole port stands still until no member is paused: what comes meanwhile waits, for all
// of them. Sending goes on.
func (m *Member) Pause() error {
	if m.closed.Load() {
		return os.ErrClosed
	}
	return m.port.pause(m)
}

// Resume implements Underlay. Of a member whose VTEP does not run yet it takes effect when that does, so that nothing of what
// waits for it is dropped. Where nobody is paused it sets again what another process may have changed of the sockets.
func (m *Member) Resume() error {
	if m.closed.Load() {
		return os.ErrClosed
	}
	return m.port.resume(m)
}

// Close implements Underlay: m leaves the port, whose underlay stays open. Nothing is carried to its VTEP any more.
func (m *Member) Close() error { return m.port.leave(m) }

var _ Fed = (*Member)(nil)
