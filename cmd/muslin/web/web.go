// Package web serves the page in the browser: the daemon's status as a picture, a table and the words around them, live.
//
// It reads and never changes anything: GET and HEAD, and one POST that trades the token for a cookie. It asks the daemon
// for its view once a second while somebody looks, however many do, and not at all while nobody does. It never touches
// the data path. Everything that a page loads is in the binary, and the page may load nothing else
// (Content-Security-Policy).
package web

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"path"
	"time"

	"golang.org/x/net/netutil"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/graceful"
)

//go:embed assets
var embedded embed.FS

// Bounds on what strangers may have of the process.
const (
	maxConns     = 128
	maxHeader    = 16 << 10 // bytes
	headerTime   = 5 * time.Second
	idleTime     = 60 * time.Second
	maxLoginBody = 4 << 10 // bytes
)

// Config is what a Server needs.
type Config struct {
	Networks func() *control.Networks      // called by one goroutine at a time; what it returns is the Server's
	Watch    Watch                         // nil: nobody wants to know who looks on
	Findings func(network string) []string // files where doctor leaves what it found, the likeliest first (findings.go); nil: nowhere
	Addr     netip.AddrPort                // that it listens at
	Token    string                        // that is to be shown by who asks; empty: none is
	Log      *slog.Logger
}

// Watch is told which peers of a network somebody looks at, again and again as long as that goes on. It is called from anywhere.
type Watch func(network string, peers control.Peers)

// Server serves the page.
type Server struct {
	cfg    Config
	hub    *hub
	assets map[string]asset // by their path in a URL
}

type asset struct {
	content []byte
	kind    string // its Content-Type
	tag     string // its ETag
}

// New makes a Server.
func New(cfg Config) *Server {
	return &Server{cfg: cfg, hub: newHub(&cfg, tick), assets: loadAssets()}
}

// loadAssets reads what is embedded. The page itself is "/".
func loadAssets() map[string]asset {
	all := make(map[string]asset)
	entries, err := fs.ReadDir(embedded, "assets")
	if err != nil {
		panic(err) // the binary is broken
	}
	for _, e := range entries {
		content, err := embedded.ReadFile("assets/" + e.Name())
		if err != nil {
			panic(err)
		}
		sum := sha256.Sum256(content)
		a := asset{content: content, kind: kindOf(e.Name()), tag: `"` + hex.EncodeToString(sum[:12]) + `"`}
		switch e.Name() {
		case "index.html":
			all["/"] = a
		case "login.html":
			all[loginPath] = a
		default:
			all["/assets/"+e.Name()] = a
		}
	}
	return all
}

// kindOf does not ask the host's mime.types, which may say anything.
func kindOf(name string) string {
	switch path.Ext(name) {
	case ".js":
		return "text/javascript; charset=utf-8"
	case ".css":
		return "text/css; charset=utf-8"
	case ".html":
		return "text/html; charset=utf-8"
	case ".svg":
		return "image/svg+xml"
	}
	return mime.TypeByExtension(path.Ext(name))
}

// Serve answers at l until ctx ends. Streams end with it; l is closed.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ticking := make(chan struct{})
	go func() {
		defer close(ticking)
		s.hub.run(ctx)
	}()
	srv := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: headerTime,
		ReadTimeout:       2 * headerTime,
		WriteTimeout:      3 * writeTime, // of a stream: for each event (events.go)
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug), // what clients do wrong
	}
	err := graceful.Serve(ctx, srv, netutil.LimitListener(l, maxConns))
	cancel()
	<-ticking
	if err != nil {
		return fmt.Errorf("serve the page at %s: %w", l.Addr(), err)
	}
	return nil
}

// Handler answers every request.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.known(s.serveAsset))
	mux.HandleFunc("GET /assets/{name}", s.serveAsset)
	mux.HandleFunc("GET "+eventsPath, s.known(s.hub.serve))
	mux.HandleFunc("GET "+lookPath, s.known(s.look))
	if s.cfg.Token != "" {
		mux.HandleFunc("GET "+loginPath, s.serveAsset)
		mux.HandleFunc("POST "+loginPath, s.login)
	}
	return s.guard(mux)
}

// policy lets a page load and ask nothing but this server, and nobody frame it. Strings never become code or markup.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; " +
	"base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// guard sets what every answer has, and refuses names of this host that are none of ours.
func (s *Server) guard(next http.Handler) http.Handler {
	origin := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		if s.cfg.Addr.Addr().IsLoopback() && !isLoopbackName(r.Host) {
			http.Error(w, "this page answers to the names localhost, 127.0.0.1 and [::1] only: a page elsewhere could otherwise read it under a name of its own (DNS rebinding). A proxy in front of it sets \"Host: localhost\".", http.StatusMisdirectedRequest)
			return
		}
		if err := origin.Check(r); err != nil {
			http.Error(w, "a page elsewhere has sent this", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// GET /look says which peers a page has on the screen, where they are too many to measure them all each second: network= is theirs, peers=
// their subnets with commas between.
const lookPath = "/look"

func (s *Server) look(w http.ResponseWriter, r *http.Request) {
	values := r.URL.Query()
	peers, err := control.ParsePeers(values.Get("peers"))
	if err != nil {
		http.Error(w, "peers: want subnets with commas between: "+err.Error(), http.StatusBadRequest)
		return
	}
	if s.cfg.Watch != nil && !peers.All {
		s.cfg.Watch(values.Get("network"), peers)
	}
	w.WriteHeader(http.StatusNoContent)
}

// serveAsset answers with a file of the page.
func (s *Server) serveAsset(w http.ResponseWriter, r *http.Request) {
	a, ok := s.assets[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	h := w.Header()
	h.Set("Content-Type", a.kind)
	h.Set("Cache-Control", "no-cache") // may be kept, and is asked for again: another version may run by then
	h.Set("ETag", a.tag)
	if r.Header.Get("If-None-Match") == a.tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Length", fmt.Sprint(len(a.content)))
	_, _ = w.Write(a.content) // the client is gone: nobody to tell
}
