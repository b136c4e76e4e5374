package neighbour

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"time"

	"muslin/cmd/muslin/graceful"
	"muslin/cmd/muslin/sight"
	"muslin/tunnel/fib"
)

// Limits of one question.
const (
	maxHeader = 4 << 10 // bytes
	maxBody   = 4 << 10
	readIn    = 2 * time.Second
	answerIn  = 5 * time.Second
)

// Config is what a Server tells, and to whom.
type Config struct {
	Peer  func(netip.Addr) *fib.Peer // that holds an address of the overlay; nil: none does
	About func(asker *fib.Peer) *About
	Peers func() []PeerState

	// A packet of the asker's that is looked for here (package sight). An error is the asker's to hear.
	Arm  func(asker *fib.Peer, o sight.Order) (sight.Armed, error)
	Seen func(asker *fib.Peer, id string, end bool) (sight.Report, error)
}

// Server answers peers.
type Server struct {
	cfg Config
}

// NewServer starts nothing: see Serve.
func NewServer(cfg Config) *Server { return &Server{cfg} }

// Serve answers on a listener, which it closes, until ctx ends; then it returns nil.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler: s.Handler(), MaxHeaderBytes: maxHeader,
		ReadHeaderTimeout: readIn, ReadTimeout: readIn, WriteTimeout: answerIn,
		ErrorLog: log.New(io.Discard, "", 0), // of what a peer sends nothing is logged
	}
	srv.SetKeepAlivesEnabled(false)
	if err := graceful.Serve(ctx, srv, newGuard(l, s.cfg.Peer)); err != nil {
		return fmt.Errorf("answer peers at %s: %w", l.Addr(), err)
	}
	return nil
}

// Handler answers whoever was let in.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	s.handle(mux, "GET "+AboutPath, func(asker *fib.Peer, _ *http.Request) (any, error) { return s.cfg.About(asker), nil })
	s.handle(mux, "GET "+PeersPath, func(*fib.Peer, *http.Request) (any, error) { return limited(s.cfg.Peers()), nil })
	s.handle(mux, "POST "+sight.Path, func(asker *fib.Peer, r *http.Request) (any, error) {
		var o sight.Order
		if err := json.NewDecoder(r.Body).Decode(&o); err != nil {
			return nil, fmt.Errorf("read the question: %w", err)
		}
		return s.cfg.Arm(asker, o)
	})
	s.handle(mux, "GET "+sight.Path, func(asker *fib.Peer, r *http.Request) (any, error) {
		return s.cfg.Seen(asker, r.URL.Query().Get("id"), r.URL.Query().Get("end") == "true")
	})
	return mux
}

func limited(all []PeerState) Peers {
	p := Peers{Peers: all}
	if len(all) > MaxPeers {
		p.Peers, p.More = all[:MaxPeers], len(all)-MaxPeers
	}
	if p.Peers == nil {
		p.Peers = []PeerState{}
	}
	return p
}

// handle answers a question of a peer, by who that is now: leases may have changed since the connection was taken.
func (s *Server) handle(mux *http.ServeMux, pattern string, answer func(asker *fib.Peer, r *http.Request) (any, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		var asker *fib.Peer
		if err == nil {
			asker = s.cfg.Peer(from.Addr().Unmap())
		}
		if asker == nil {
			http.Error(w, "you are no peer of this node", http.StatusForbidden)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		said, err := answer(asker, r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(said) // the peer is gone: nobody to tell
	})
}
