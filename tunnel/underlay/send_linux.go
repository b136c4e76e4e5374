package underlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"muslin/tunnel"
)

// sendState is what Send reuses, so that a datagram costs no allocation.
type sendState struct {
	ways []way // by source port

	whole  batch // messages, in one piece where that may be
	pieces batch // the datagrams of a message that the kernel refused in one piece
}

// way is a sending socket as one queue uses it: all queues share the socket, none the state of a call.
type way struct {
	*sender
	packet batchConn
}

// batchConn is an ipv4.PacketConn or an ipv6.PacketConn, whose messages are of one type.
type batchConn interface {
	ReadBatch(ms []ipv4.Message, flags int) (int, error)
	WriteBatch(ms []ipv4.Message, flags int) (int, error)
}

func newBatchConn(s *socket, six bool) batchConn {
	if six {
		return ipv6.NewPacketConn(s)
	}
	return ipv4.NewPacketConn(s)
}

func (s *sendState) init(senders []*sender, many, six bool) {
	for _, n := range senders {
		s.ways = append(s.ways, way{n, newBatchConn(n.socket, six)})
	}
	s.whole.init(many, six)
	s.pieces.init(many, six)
}

// Send implements tunnel.UnderlayQueue. The datagrams of one source port go through one socket in the order
// of ms.
func (q *queue) Send(ms []tunnel.Message) error {
	ways := q.out.ways
	var used [tunnel.SourcePorts]bool
	for i := range ms {
		ms[i].Failed, ms[i].Err = 0, nil
		used[int(ms[i].Port)%len(ways)] = true
	}
	for n := range ways {
		s := &ways[n]
		if !used[n] {
			continue
		}
		for i := range ms {
			if int(ms[i].Port)%len(ways) != n {
				continue
			}
			if err := q.add(s, &ms[i]); err != nil {
				return err
			}
		}
		if err := q.transmit(s, &q.out.whole); err != nil {
			return err
		}
	}
	return nil
}

// add puts a message into the batch for s, datagram by datagram where s does not take it in one piece.
func (q *queue) add(s *way, m *tunnel.Message) error {
	b := &q.out.whole
	ecn := m.ECN
	if !q.conn.ecn.Load() {
		ecn = 0
	}
	if m.Segments == 1 || s.takes(m.Segments, m.Size, m.Addr.Addr()) {
		if b.full(len(m.Bufs)) {
			if err := q.transmit(s, b); err != nil {
				return err
			}
		}
		b.addWhole(m, ecn)
		return nil
	}
	return q.addPieces(s, b, m, ecn)
}

func (q *queue) addPieces(s *way, b *batch, m *tunnel.Message, ecn uint8) error {
	for c := (cutter{bufs: m.Bufs}); c.more(); {
		if b.full(len(m.Bufs)) {
			if err := q.transmit(s, b); err != nil {
				return err
			}
		}
		b.addPiece(m, &c, ecn)
	}
	return nil
}

// transmit sends the batch through s and empties it. The error is os.ErrClosed.
func (q *queue) transmit(s *way, b *batch) error {
	for k := 0; k < b.n; {
		sent, err := s.packet.WriteBatch(b.msgs[k:min(k+b.limit, b.n)], 0)
		if sent > 0 {
			k += sent // what stopped the batch comes again as its first message
			continue
		}
		e := &b.entries[k]
		switch {
		case errors.Is(err, os.ErrClosed):
			b.reset()
			return err
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNREFUSED):
			// An unconnected socket gets ECONNREFUSED only for an earlier datagram's ICMP error; it is
			// cleared by being reported.
		case e.segments > 1 && isRefusal(err):
			if err := q.replay(s, e, err); err != nil {
				b.reset()
				return err
			}
			k++
		case errors.Is(err, unix.EINVAL) && e.ecn != 0 && !e.plain:
			// Either the kernel refuses the ECN or the destination: without the ECN it shows which.
			e.plain = true
			b.msgs[k].OOB = nil
			sent, err := s.packet.WriteBatch(b.msgs[k:k+1], 0)
			if sent > 0 {
				q.conn.giveUpECN()
				b.dropECN(k + 1)
				k++
			} else if errors.Is(err, os.ErrClosed) {
				b.reset()
				return err
			}
		default:
			e.message.Failed += e.segments
			e.message.Err = sendError(err)
			k++
		}
	}
	b.reset()
	return nil
}

// replay sends a message that the kernel refused in one piece datagram by datagram. When that works, it was
// the one piece that was at fault.
func (q *queue) replay(s *way, e *entry, refusal error) error {
	m := e.message
	before := m.Failed
	if err := q.addPieces(s, &q.out.pieces, m, e.ecn); err != nil {
		return err
	}
	if err := q.transmit(s, &q.out.pieces); err != nil {
		return err
	}
	if m.Failed-before < m.Segments && s.takes(m.Segments, m.Size, m.Addr.Addr()) {
		if what := s.refused(refusal, m.Segments, m.Size, m.Addr.Addr()); what != "" {
			q.conn.log.Warn(what, "feature", "udp-gso", "err", refusal, "segments", m.Segments, "size", m.Size)
		}
	}
	return nil
}

// giveUpECN sends everything from now on without ECN.
func (c *Conn) giveUpECN() {
	if c.ecn.CompareAndSwap(true, false) {
		c.log.Warn("outer ECN switched off: the kernel refuses IP_TOS, or IPV6_TCLASS, for a datagram", "feature", "outer-ecn")
	}
}

func sendError(err error) error {
	switch {
	case errors.Is(err, unix.ENOBUFS):
		return tunnel.ErrSendBufferFull
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("a firewall rule on this host rejects the outer datagram: %w", err)
	}
	return err
}

// batch is what goes to WriteBatch. golang.org/x/net wants a net.Addr for each message, and takes one that
// we overwrite in place.
type batch struct {
	six     bool // over IPv6
	limit   int  // how many messages go out in one call
	n       int
	msgs    []ipv4.Message
	entries []entry
	addrs   []net.UDPAddr
	control []byte   // of all messages, controlLen each
	slices  [][]byte // the Bufs of datagrams that were cut out of a message
	cut     int      // how many of slices are in use
}

// entry is what a message of a batch was made from.
type entry struct {
	message  *tunnel.Message
	segments int
	ecn      uint8
	plain    bool // tried without its ECN
}

// controlLen has room for UDP_SEGMENT and IP_TOS or IPV6_TCLASS.
var controlLen = unix.CmsgSpace(2) + unix.CmsgSpace(4)

func (b *batch) init(many, six bool) {
	const n = tunnel.BatchSize
	b.six, b.limit = six, 1
	if many {
		b.limit = n
	}
	b.msgs = make([]ipv4.Message, n)
	b.entries = make([]entry, n)
	b.addrs = make([]net.UDPAddr, n)
	b.control = make([]byte, n*controlLen)
	b.slices = make([][]byte, 2*tunnel.MaxBuffers)
	for i := range b.msgs {
		b.addrs[i].IP = make(net.IP, 0, net.IPv6len)
		b.msgs[i].Addr = &b.addrs[i]
	}
}

func (b *batch) reset() { b.n, b.cut = 0, 0 }

// full reports whether there is no room for another message, or for bufs more slices.
func (b *batch) full(bufs int) bool { return b.n == len(b.msgs) || b.cut+bufs > len(b.slices) }

func (b *batch) addWhole(m *tunnel.Message, ecn uint8) {
	b.add(m, m.Bufs, m.Segments, ecn)
}

// addPiece adds the next datagram of m.
func (b *batch) addPiece(m *tunnel.Message, c *cutter, ecn uint8) {
	first := b.cut
	b.cut += c.next(m.Size, b.slices[first:])
	b.add(m, b.slices[first:b.cut], 1, ecn)
}

func (b *batch) add(m *tunnel.Message, bufs [][]byte, segments int, ecn uint8) {
	// An address of the other family, which no peer of ours should have, is the kernel's to refuse.
	ip := b.addrs[b.n].IP[:0]
	if addr := m.Addr.Addr(); addr.Is4() {
		four := addr.As4()
		ip = append(ip, four[:]...)
	} else {
		six := addr.As16()
		ip = append(ip, six[:]...)
	}
	b.addrs[b.n].IP = ip
	b.addrs[b.n].Port = int(m.Addr.Port())
	b.msgs[b.n].Buffers = bufs
	b.entries[b.n] = entry{message: m, segments: segments, ecn: ecn}
	b.setControl(b.n, m.Size)
	b.n++
}

// setControl writes the control messages of message i: UDP_SEGMENT with the datagrams' length (udp(7)), and
// IP_TOS (ip(7); for a single datagram since Linux 3.13) or IPV6_TCLASS (RFC 3542, section 6.5).
func (b *batch) setControl(i, size int) {
	e := &b.entries[i]
	room := b.control[i*controlLen:][:controlLen]
	used := 0
	if e.segments > 1 {
		putCmsg(room, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2)
		binary.NativeEndian.PutUint16(room[unix.CmsgLen(0):], uint16(size))
		used = unix.CmsgSpace(2)
	}
	if e.ecn != 0 {
		if b.six {
			putCmsg(room[used:], unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 4)
		} else {
			putCmsg(room[used:], unix.IPPROTO_IP, unix.IP_TOS, 4)
		}
		binary.NativeEndian.PutUint32(room[used+unix.CmsgLen(0):], uint32(e.ecn))
		used += unix.CmsgSpace(4)
	}
	b.msgs[i].OOB = room[:used]
}

// dropECN takes the ECN off the messages from i on.
func (b *batch) dropECN(i int) {
	for ; i < b.n; i++ {
		b.entries[i].ecn = 0
		b.setControl(i, b.entries[i].message.Size)
	}
}

// cutter walks over a message's buffers, datagram by datagram.
type cutter struct {
	bufs [][]byte
	at   int // in bufs[0]
}

func (c *cutter) more() bool { return len(c.bufs) > 0 }

// next puts the pieces of the next datagram, of size bytes or what is left, into dst and returns how many
// there are.
func (c *cutter) next(size int, dst [][]byte) (n int) {
	for size > 0 && c.more() {
		piece := c.bufs[0][c.at:]
		if len(piece) > size {
			piece = piece[:size]
			c.at += size
		} else {
			c.bufs, c.at = c.bufs[1:], 0
		}
		dst[n] = piece
		size -= len(piece)
		n++
	}
	return n
}
