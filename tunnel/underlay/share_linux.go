package underlay

import (
	"errors"

	"muslin/tunnel"
	"muslin/tunnel/fib"
	"muslin/tunnel/kernel"
)

// share implements tunnel.Share: one VTEP's of several that have the sockets together. It sends through the same sockets
// as the others, as the queues of one VTEP do.
type share struct {
	conn   *Conn
	queues []tunnel.UnderlayQueue
	closed bool // held by the filter's mu
}

// Share implements tunnel.Shareable.
func (c *Conn) Share() tunnel.Share {
	s := &share{conn: c}
	for range c.queues {
		q := &queue{conn: c, receiver: noReceiver{}}
		q.out.init(c.senders, c.cfg.Features.On(kernel.MMsg), c.six)
		s.queues = append(s.queues, q)
	}
	return s
}

// noReceiver is of a queue that only sends.
type noReceiver struct{}

func (noReceiver) receive([]tunnel.Datagram) (int, error) { return 0, errors.ErrUnsupported }

// Queues implements tunnel.Share.
func (s *share) Queues() []tunnel.UnderlayQueue { return s.queues }

// SetPeers implements tunnel.Share.
func (s *share) SetPeers(t *fib.Table, use func()) { s.conn.filter.setPeers(s, t, use) }

// Close implements tunnel.Share.
func (s *share) Close() error {
	s.conn.filter.forget(s)
	return nil
}

var _ tunnel.Shareable = (*Conn)(nil)
