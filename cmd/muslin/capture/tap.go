package capture

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"muslin/cmd/muslin/capture/filter"
	"muslin/tunnel"
)

// Observable is a VTEP, as far as it matters here.
type Observable interface {
	Observe(o tunnel.Observer, at tunnel.Points) (stop func())
}

const (
	// bufferBytes is how much waits for a reader. There are two: one is filled while the other is written.
	bufferBytes = 8 << 20

	// gather is how long packets are gathered before they are written, so that a worker seldom wakes anybody.
	gather = 10 * time.Millisecond

	// tellCounts is how often counts are sent, so that a reader knows them when the daemon ends.
	tellCounts = time.Second

	// lastWord is how long a reader has for what is left.
	lastWord = time.Second
)

// tap is an Observer that copies what is wanted for a reader. A worker holds its lock while it copies a packet; it never waits
// for the reader.
type tap struct {
	wanted   Wanted
	filter   *filter.Filter
	headroom int // of the framing: where the inner packet is in a datagram
	scratch  sync.Pool

	mu     sync.Mutex
	buf    []byte // frames; of fixed capacity
	counts Counts
	some   chan struct{} // has a token when buf is no longer empty

	flows *flowTable // nil: packets
}

// scratch is what a worker needs for a moment.
type scratch struct {
	bytes []byte
	p     filter.Packet
}

func newTap(w Wanted, headroom int) (*tap, error) {
	f, err := filter.Compile(w.Filter)
	if err != nil {
		return nil, err
	}
	t := &tap{wanted: w, filter: f, headroom: headroom, some: make(chan struct{}, 1)}
	t.scratch.New = func() any { return &scratch{bytes: make([]byte, 0, 2048)} }
	if w.Flows {
		t.flows = newFlowTable(w.Interval)
	} else {
		t.buf = make([]byte, 0, bufferBytes)
	}
	return t, nil
}

// Observe implements tunnel.Observer.
func (t *tap) Observe(s *tunnel.Seen) {
	w := t.scratch.Get().(*scratch)
	defer t.scratch.Put(w)
	if !t.wants(w, s) {
		return
	}
	if t.flows != nil {
		if p := t.inner(w, s); len(p) > 0 {
			t.flows.seen(s, p, s.Len-t.skipped(s))
		}
		return
	}
	n := min(s.Len, t.wanted.Snap)
	t.mu.Lock()
	defer t.mu.Unlock()
	const headMost = 256
	if len(t.buf)+headMost+n > cap(t.buf) {
		t.counts.Lost++
		return
	}
	t.counts.Captured++
	t.buf = s.AppendTo(appendPacket(t.buf, s, n), n)
	if len(t.some) == 0 {
		select {
		case t.some <- struct{}{}:
		default:
		}
	}
}

// skipped is what is in front of the inner packet.
func (t *tap) skipped(s *tunnel.Seen) int {
	if s.Outer {
		return t.headroom
	}
	return 0
}

// inner is the beginning of the inner packet, or nothing.
func (t *tap) inner(w *scratch, s *tunnel.Seen) []byte {
	skip := t.skipped(s)
	if len(s.Bufs) == 0 {
		return nil
	}
	b := s.Bufs[0]
	if len(s.Bufs) > 1 && len(b) < skip+t.filter.Reach() {
		w.bytes = s.AppendTo(w.bytes[:0], skip+t.filter.Reach())
		b = w.bytes
	}
	if len(b) <= skip {
		return nil
	}
	return b[skip:]
}

// wants reports whether a packet is to be told of.
func (t *tap) wants(w *scratch, s *tunnel.Seen) bool {
	if !t.wanted.ofAnyPeer() && !t.ofPeer(w, s) {
		return false
	}
	if t.filter.String() == "" {
		return true
	}
	// Of a drop it may be true of the packet, or of the datagram around it.
	if !s.Outer || s.Point == tunnel.PointDrop || t.wanted.Flows {
		if p := t.inner(w, s); len(p) > 0 {
			w.p.Bytes, w.p.Length, w.p.Inbound = p, s.Len-t.skipped(s), s.Inbound
			if t.filter.Match(&w.p) {
				return true
			}
		}
	}
	if !s.Outer {
		return false
	}
	w.bytes = appendOuter(w.bytes[:0], s.Src, s.Dst, s.ECN, s.Len)
	w.p.Length, w.p.Inbound = len(w.bytes)+s.Len, s.Inbound
	w.bytes = s.AppendTo(w.bytes, t.filter.Reach())
	w.p.Bytes = w.bytes
	return t.filter.Match(&w.p)
}

func (t *tap) ofPeer(w *scratch, s *tunnel.Seen) bool {
	switch {
	case s.Peer != nil:
		return t.wanted.ofPeer(s.Peer.Subnet.Addr(), false)
	case s.Outer && s.Inbound:
		return t.wanted.ofPeer(s.Src.Addr(), true)
	case s.Outer:
		return t.wanted.ofPeer(s.Dst.Addr(), true)
	}
	remote, _ := ends(t.inner(w, s), !s.Inbound)
	return t.wanted.ofPeer(remote, false)
}

// ends are an IP packet's remote and local address, of one that goes out or comes in; invalid where there is none.
func ends(p []byte, out bool) (remote, local netip.Addr) {
	var src, dst netip.Addr
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		src, dst = netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:]))
	case len(p) >= 40 && p[0]>>4 == 6:
		src, dst = netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:]))
	}
	if out {
		return dst, src
	}
	return src, dst
}

// take gives what was gathered, and free to be filled from now on.
func (t *tap) take(free []byte) ([]byte, Counts) {
	t.mu.Lock()
	defer t.mu.Unlock()
	full := t.buf
	t.buf = free[:0]
	return full, t.counts
}

// Serve answers a request on the control socket: it streams what passes the VTEPs until the client has closed its end of the
// connection, or r's context ends for another reason; then what is left, and the counts. headroom is that of their framing.
func Serve(w http.ResponseWriter, r *http.Request, headroom int, from ...Observable) {
	wanted, err := ParseWanted(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	t, err := newTap(wanted, headroom)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	points := wanted.Points
	if wanted.Flows {
		points = tunnel.PointInner | tunnel.PointDrop
	}
	for _, o := range from {
		defer o.Observe(t, points)()
	}
	c := http.NewResponseController(w)
	defer context.AfterFunc(r.Context(), func() {
		_ = c.SetWriteDeadline(time.Now().Add(lastWord)) // a connection has one
	})()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.WriteHeader(http.StatusOK)
	if c.Flush() != nil {
		return
	}
	if t.flows != nil {
		_ = t.streamFlows(r.Context(), w, c.Flush) // whoever does not read is gone
		return
	}
	_ = t.stream(r.Context(), w, c.Flush)
}

// stream writes frames until ctx ends.
func (t *tap) stream(ctx context.Context, w io.Writer, flush func() error) error {
	free := make([]byte, 0, bufferBytes)
	ticks := time.NewTicker(tellCounts)
	defer ticks.Stop()
	for ended := false; !ended; {
		tell := false
		select {
		case <-ctx.Done():
			ended, tell = true, true
		case <-t.some:
			select {
			case <-ctx.Done():
			case <-time.After(gather):
			}
		case <-ticks.C:
			tell = true
		}
		full, counts := t.take(free)
		if _, err := w.Write(full); err != nil {
			return fmt.Errorf("write packets: %w", err)
		}
		if tell {
			if _, err := w.Write(appendCounts(nil, counts)); err != nil {
				return fmt.Errorf("write counts: %w", err)
			}
		}
		if err := flush(); err != nil {
			return fmt.Errorf("write packets: %w", err)
		}
		free = full
	}
	return nil
}

// streamFlows writes flows as they end, until ctx ends; then those that have not.
func (t *tap) streamFlows(ctx context.Context, w io.Writer, flush func() error) error {
	ticks := time.NewTicker(sweepEvery)
	defer ticks.Stop()
	var line, frame []byte
	for {
		ended := false
		select {
		case <-ctx.Done():
			ended = true
		case <-ticks.C:
		}
		flows, lost := t.flows.sweep(time.Now(), ended)
		for i := range flows {
			line = flows[i].appendJSON(line[:0])
			frame = appendFlow(frame[:0], line)
			if _, err := w.Write(frame); err != nil {
				return fmt.Errorf("write flows: %w", err)
			}
			t.counts.Captured++
		}
		t.counts.Lost = lost
		if _, err := w.Write(appendCounts(nil, t.counts)); err != nil {
			return fmt.Errorf("write counts: %w", err)
		}
		if err := flush(); err != nil {
			return fmt.Errorf("write flows: %w", err)
		}
		if ended {
			return nil
		}
	}
}
