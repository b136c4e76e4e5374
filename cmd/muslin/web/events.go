package web

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"muslin/cmd/muslin/control"
)

// GET /events is the view as server-sent events (the HTML standard, section 9.2): first "whole", the document, then
// every second "patch", what has changed of it as a JSON merge patch (RFC 7396). A page that has missed one gets "whole"
// again. So the server keeps nothing for a page but a goroutine: the events are made once, for all.

const eventsPath = "/events"

const (
	tick       = time.Second
	maxStreams = 32 // a browser has six at most of one address
	writeTime  = 10 * time.Second
	quietTime  = 15 * time.Second // then a comment goes out, so that whatever is between does not take it for dead
)

// allMeasured is how many peers are all measured each second while somebody looks on (package pulse). Of more than that it is those that
// pages have on the screen: they say so (lookPath).
const allMeasured = 50

// frame is the document at one tick. It does not change but for next.
type frame struct {
	number uint64
	at     time.Time
	doc    *document
	patch  []byte        // from the frame before, if its number is one less; nil: there is none
	next   chan struct{} // closed when there is another frame
	whole  func() []byte
}

// hub makes frames while there are streams.
type hub struct {
	cfg     *Config
	tick    time.Duration
	found   reports // run's
	streams atomic.Int64
	now     atomic.Pointer[frame]
	wake    chan struct{} // has room for one
}

func newHub(cfg *Config, tick time.Duration) *hub {
	h := &hub{cfg: cfg, tick: tick, found: make(reports), wake: make(chan struct{}, 1)}
	h.now.Store(&frame{next: make(chan struct{})})
	return h
}

// run makes frames until ctx ends.
func (h *hub) run(ctx context.Context) {
	every := time.NewTicker(h.tick)
	defer every.Stop()
	idle := true
	for {
		if h.streams.Load() == 0 {
			idle = true
			select {
			case <-ctx.Done():
				return
			case <-h.wake:
			}
			every.Reset(h.tick)
		}
		if h.streams.Load() > 0 {
			h.advance(idle)
			idle = false
		}
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
	}
}

// advance makes the next frame; fresh: without a patch, since nobody has the frame before.
func (h *hub) advance(fresh bool) {
	last := h.now.Load()
	f := &frame{number: last.number + 1, at: time.Now(), next: make(chan struct{})}
	all := h.cfg.Networks()
	if h.cfg.Watch != nil {
		for _, one := range all.Networks {
			if one.Status != nil && one.Status.Counts.Total <= allMeasured {
				h.cfg.Watch(one.Name, control.AllPeers)
			}
		}
	}
	f.doc = h.document(all, f.at)
	f.whole = sync.OnceValue(func() []byte { return event("whole", f.doc) })
	if fresh || last.doc == nil {
		f.number++
	} else {
		f.patch = event("patch", changes(last.doc, f.doc))
	}
	h.now.Store(f)
	close(last.next)
}

func event(name string, v any) []byte {
	data, err := json.Marshal(v)
	if err != nil { // a type of ours that has no JSON
		panic(err)
	}
	return fmt.Appendf(nil, "event: %s\ndata: %s\n\n", name, data)
}

// serve is one stream.
func (h *hub) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodHead {
		w.Header().Set("Content-Type", "text/event-stream")
		return
	}
	if h.streams.Add(1) > maxStreams {
		h.streams.Add(-1)
		w.Header().Set("Retry-After", "10")
		http.Error(w, fmt.Sprintf("%d pages look on already: close one", maxStreams), http.StatusServiceUnavailable)
		return
	}
	defer h.streams.Add(-1)
	select {
	case h.wake <- struct{}{}:
	default: // it is about to be woken
	}
	w.Header().Set("Content-Type", "text/event-stream")
	s := &stream{w: w, control: http.NewResponseController(w)}
	if err := s.control.SetReadDeadline(time.Time{}); err != nil { // or the request ends when the server's time for reading one does
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if err := s.send([]byte("retry: 1000\n\n")); err != nil {
		return
	}
	f := h.now.Load()
	had := false // the page has f
	if f.doc != nil && time.Since(f.at) < 2*h.tick {
		had = true
		if err := s.send(f.whole()); err != nil {
			return
		}
	}
	quiet := time.NewTicker(quietTime)
	defer quiet.Stop()
	for {
		var out []byte
		select {
		case <-r.Context().Done():
			return
		case <-f.next:
			before := f.number
			f = h.now.Load()
			if out = f.patch; !had || out == nil || f.number != before+1 {
				out = f.whole()
			}
			had = true
			quiet.Reset(quietTime)
		case <-quiet.C:
			out = []byte(": nothing new\n\n")
		}
		if err := s.send(out); err != nil {
			return
		}
	}
}

// stream writes events to a client, who has writeTime for each.
type stream struct {
	w       io.Writer
	control *http.ResponseController
}

func (s *stream) send(event []byte) error {
	if err := s.control.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return err
	}
	if _, err := s.w.Write(event); err != nil {
		return err
	}
	return s.control.Flush()
}
