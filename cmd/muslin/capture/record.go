package capture

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"muslin/tunnel"
)

// Record is one packet, as the daemon hands it over and as it is written.
type Record struct {
	At       time.Time
	Point    tunnel.Points
	Inbound  bool
	Outer    bool           // Data is a datagram's payload, between Src and Dst, and not an IP packet
	Reason   string         // of a drop
	Segments int            // how many packets a superpacket stands for, at least 1
	Size     int            // payload bytes of each but the last; 0: it is none
	Peer     netip.Addr     // PublicIP; invalid: not known
	Src, Dst netip.AddrPort // outer
	ECN      uint8
	Length   int    // bytes, of all that Data is the beginning of
	Data     []byte // borrowed
}

// Counts are what became of the packets that were wanted.
type Counts struct {
	Captured uint64 // handed over
	Lost     uint64 // not, for the reader was too slow
}

// The stream on the control socket: frames of a length (of what follows, 4 bytes), a kind, and the kind's own. Numbers are big
// endian. A packet's:
//
//	 0       1       2       3       4       5       6       7       8
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                 Unix time, nanoseconds                        |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	| point | flags |  ECN  |segments       | size          |reason |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	| length                        | peer (a length, then so many bytes) …
//	+-------+-------+-------+-------+-------+-- and if flagOuter: source and destination, each
//	                                        so, and a port of 2 bytes; then reason, then data
const (
	kindPacket = 1
	kindCounts = 2
	kindFlow   = 3 // a line of JSON

	flagInbound = 1
	flagOuter   = 2

	packetFixed = 8 + 8 + 4

	// maxFrame is more than a superpacket and its headers.
	maxFrame = 1 << 17
)

// appendPacket appends a packet's frame but for its data, of which dataLen bytes are to follow.
func appendPacket(b []byte, s *tunnel.Seen, dataLen int) []byte {
	begin := len(b)
	b = append(b, 0, 0, 0, 0, kindPacket)
	b = binary.BigEndian.AppendUint64(b, uint64(s.At.UnixNano()))
	flags := byte(0)
	if s.Inbound {
		flags |= flagInbound
	}
	if s.Outer {
		flags |= flagOuter
	}
	reason := ""
	if s.Point == tunnel.PointDrop {
		reason = s.Reason.String()
	}
	size := uint16(0)
	if s.Segments > 1 {
		size = s.Info.Size
	}
	b = append(b, byte(s.Point), flags, s.ECN)
	b = binary.BigEndian.AppendUint16(b, uint16(s.Segments))
	b = binary.BigEndian.AppendUint16(b, size)
	b = append(b, byte(len(reason)))
	b = binary.BigEndian.AppendUint32(b, uint32(s.Len))
	peer := netip.Addr{}
	if s.Peer != nil {
		peer = s.Peer.PublicIP
	}
	b = appendAddr(b, peer)
	if s.Outer {
		b = binary.BigEndian.AppendUint16(appendAddr(b, s.Src.Addr()), s.Src.Port())
		b = binary.BigEndian.AppendUint16(appendAddr(b, s.Dst.Addr()), s.Dst.Port())
	}
	b = append(b, reason...)
	binary.BigEndian.PutUint32(b[begin:], uint32(len(b)-begin-4+dataLen))
	return b
}

func appendAddr(b []byte, a netip.Addr) []byte {
	switch {
	case a.Is4():
		four := a.As4()
		return append(append(b, 4), four[:]...)
	case a.Is6():
		six := a.As16()
		return append(append(b, 16), six[:]...)
	}
	return append(b, 0)
}

func appendCounts(b []byte, c Counts) []byte {
	b = append(b, 0, 0, 0, 17, kindCounts)
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, c.Captured), c.Lost)
}

func appendFlow(b, line []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(1+len(line)))
	return append(append(b, kindFlow), line...)
}

// reader reads the stream.
type reader struct {
	from *bufio.Reader
	buf  []byte
}

func newReader(r io.Reader) *reader { return &reader{from: bufio.NewReaderSize(r, 1<<18)} }

// idle reports whether the next frame has yet to come.
func (r *reader) idle() bool { return r.from.Buffered() == 0 }

var errFrame = errors.New("the daemon's stream of packets is not understood: is it of another version?")

// next is the next frame: a kind and what is in it, borrowed until the next call. At the stream's end, between two frames,
// the error is io.EOF.
func (r *reader) next() (kind byte, body []byte, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r.from, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > maxFrame {
		return 0, nil, fmt.Errorf("%w (a frame of %d bytes)", errFrame, n)
	}
	if cap(r.buf) < int(n) {
		r.buf = make([]byte, maxFrame)
	}
	r.buf = r.buf[:n]
	if _, err := io.ReadFull(r.from, r.buf); err != nil {
		return 0, nil, fmt.Errorf("the daemon's stream of packets ends in the middle of one: %w", io.ErrUnexpectedEOF)
	}
	return r.buf[0], r.buf[1:], nil
}

// parsePacket reads a packet's frame. Data is borrowed.
func parsePacket(b []byte, r *Record) error {
	if len(b) < packetFixed {
		return errFrame
	}
	*r = Record{
		At: time.Unix(0, int64(binary.BigEndian.Uint64(b))), Point: tunnel.Points(b[8]), Inbound: b[9]&flagInbound != 0, Outer: b[9]&flagOuter != 0,
		ECN: b[10], Segments: max(1, int(binary.BigEndian.Uint16(b[11:]))), Size: int(binary.BigEndian.Uint16(b[13:])), Length: int(binary.BigEndian.Uint32(b[16:])),
	}
	reason := int(b[15])
	b = b[packetFixed:]
	var ok bool
	if r.Peer, b, ok = cutAddr(b); !ok {
		return errFrame
	}
	if r.Outer {
		for _, to := range []*netip.AddrPort{&r.Src, &r.Dst} {
			var a netip.Addr
			if a, b, ok = cutAddr(b); !ok || len(b) < 2 {
				return errFrame
			}
			*to = netip.AddrPortFrom(a, binary.BigEndian.Uint16(b))
			b = b[2:]
		}
	}
	if len(b) < reason {
		return errFrame
	}
	r.Reason, r.Data = string(b[:reason]), b[reason:]
	if r.Length < len(r.Data) || r.Length > maxFrame {
		return errFrame
	}
	switch r.Point {
	case tunnel.PointInner, tunnel.PointOuter, tunnel.PointDrop:
		return nil
	}
	return errFrame
}

func cutAddr(b []byte) (a netip.Addr, rest []byte, ok bool) {
	if len(b) == 0 {
		return a, nil, false
	}
	n := int(b[0])
	b = b[1:]
	if n > len(b) || n != 0 && n != 4 && n != 16 {
		return a, nil, false
	}
	a, _ = netip.AddrFromSlice(b[:n])
	return a, b[n:], true
}

func parseCounts(b []byte) (Counts, error) {
	if len(b) != 16 {
		return Counts{}, errFrame
	}
	return Counts{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}, nil
}
