package tunnel

import (
	"net/netip"

	"muslin/tunnel/fib"
)

// messages gathers datagrams into messages: runs of equal length to one peer from one source port, which
// the kernel takes in one piece. Flows that share a source port may share a message; a source port's
// messages keep the order of their datagrams, so every flow does.
type messages struct {
	out   UnderlayQueue
	all   []Message
	peers []*fib.Peer // of all
	n     int         // messages in use
	limit int         // datagrams in a message

	// open[p] is the message that the next datagram of source port p may join, -1 where there is none.
	open [SourcePorts]int
}

// destination is where a datagram goes and how.
type destination struct {
	peer *fib.Peer
	addr netip.AddrPort
	port uint8
	ecn  uint8
}

func (s *messages) init(out UnderlayQueue) {
	s.out = out
	s.all = make([]Message, BatchSize)
	s.peers = make([]*fib.Peer, BatchSize)
	for i := range s.all {
		s.all[i].Bufs = make([][]byte, 0, MaxBuffers)
	}
	s.reset()
}

func (s *messages) reset() {
	s.n, s.limit = 0, s.out.MaxSegments()
	for i := range s.open {
		s.open[i] = -1
	}
}

// full reports whether there is no room for another datagram.
func (s *messages) full() bool { return s.n == len(s.all) }

// add takes a datagram that consists of front and, unless empty, payload. Both are borrowed until reset. The
// messages must not be full.
func (s *messages) add(to *destination, front, payload []byte) {
	length := len(front) + len(payload)
	if i := s.open[to.port]; i >= 0 {
		m := &s.all[i]
		if s.peers[i] == to.peer && m.ECN == to.ecn && length <= m.Size && m.Len+length <= MaxPayload &&
			len(m.Bufs)+2 <= MaxBuffers {
			m.join(front, payload)
			if length < m.Size || m.Segments >= s.limit {
				s.open[to.port] = -1
			}
			return
		}
	}
	m := &s.all[s.n]
	*m = Message{Bufs: m.Bufs[:0], Size: length, Addr: to.addr, Port: to.port, ECN: to.ecn}
	m.join(front, payload)
	s.peers[s.n] = to.peer
	if s.limit > 1 {
		s.open[to.port] = s.n
	}
	s.n++
}

// join adds a datagram to the message. Small packets lie one behind the other in the slab they were read
// into, so that a run of them is a single piece.
func (m *Message) join(front, payload []byte) {
	if last := len(m.Bufs) - 1; last >= 0 && len(payload) == 0 && follows(m.Bufs[last], front) {
		m.Bufs[last] = m.Bufs[last][:len(m.Bufs[last])+len(front)]
	} else {
		m.Bufs = append(m.Bufs, front)
	}
	if len(payload) > 0 {
		m.Bufs = append(m.Bufs, payload)
	}
	m.Segments++
	m.Len += len(front) + len(payload)
}

// follows reports whether b begins in memory where a ends.
func follows(a, b []byte) bool {
	return len(a) > 0 && cap(a) >= len(a)+len(b) && &a[:len(a)+1][len(a)] == &b[0]
}

// send hands the messages to the underlay, which says in each what failed. They stay until reset.
func (s *messages) send() error {
	if s.n == 0 {
		return nil
	}
	return s.out.Send(s.all[:s.n])
}
