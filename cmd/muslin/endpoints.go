package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/doctor"
	"muslin/cmd/muslin/health"
	"muslin/cmd/muslin/metrics"
	"muslin/cmd/muslin/web"
	"muslin/tunnel/fib"
	"muslin/tunnel/handover"
)

// What the process answers by HTTP over TCP: whether it is in order, what Prometheus scrapes, and the page in the browser.

// endpointOptions say where, and what.
type endpointOptions struct {
	health  netip.AddrPort // port zero: nowhere
	metrics netip.AddrPort // likewise; health's: both are answered there
	peers   int            // that have series of their own
	pprof   string         // to whom: pprofOff, pprofLoopback or pprofAny
	web     netip.AddrPort // port zero: nowhere
	token   string         // file with the page's; empty: it asks for none
}

// Values of --pprof.
const (
	pprofOff      = "off"
	pprofLoopback = "loopback"
	pprofAny      = "any"
)

// endpointOptions checks the flags that are about them.
func (r *runFlags) endpointOptions() (o endpointOptions, err error) {
	var badMetrics error
	o.health, err = r.healthAddr()
	o.metrics, badMetrics = metricsAddr(r.metrics)
	bad := []error{err, badMetrics}
	o.peers, o.pprof = r.metricsPeers, r.pprof
	if o.peers < 0 {
		bad = append(bad, fmt.Errorf("--metrics-peers %d: want 0 for no series of single peers, or of how many there are some at most", o.peers))
	}
	switch {
	case !slices.Contains([]string{pprofOff, pprofLoopback, pprofAny}, o.pprof):
		bad = append(bad, fmt.Errorf("--pprof=%s: want off, loopback or any", o.pprof))
	case o.pprof != pprofOff && r.metrics == "":
		bad = append(bad, fmt.Errorf("--pprof: it is answered where metrics are: give --metrics as well, for example --metrics %d", exampleMetricsPort))
	}
	if badMetrics == nil && o.metrics.Port() != 0 && o.metrics.Port() == o.health.Port() && o.metrics != o.health {
		bad = append(bad, fmt.Errorf("--metrics %s and --healthz-ip %s have the same port: give both the same address, too, where they are then answered together, or another port", o.metrics, o.health.Addr()))
	}
	o.token = r.webToken
	if o.web, err = web.ParseAddr(r.web); err == nil {
		err = web.CheckToken(o.web, o.token)
	}
	bad = append(bad, err)
	if o.web.Port() != 0 && (o.web == o.health || o.web == o.metrics) {
		bad = append(bad, fmt.Errorf("--web %s: /healthz or metrics are answered there: give it a port of its own", o.web))
	}
	return o, errors.Join(bad...)
}

const exampleMetricsPort = 9469

// metricsAddr reads --metrics. A port alone, with a colon or without, is on loopback: an endpoint that answers to everybody
// should be somebody's decision.
func metricsAddr(s string) (netip.AddrPort, error) {
	if s == "" {
		return netip.AddrPort{}, nil
	}
	text := s
	if !strings.Contains(s, ":") {
		text = ":" + s
	}
	if strings.HasPrefix(text, ":") {
		text = "127.0.0.1" + text
	}
	a, err := netip.ParseAddrPort(text)
	if err != nil || a.Port() == 0 || a.Addr().Zone() != "" {
		return netip.AddrPort{}, fmt.Errorf("--metrics %q: want a port (on 127.0.0.1), or an address and a port, as 192.0.2.7:%d or 0.0.0.0:%[2]d", s, exampleMetricsPort)
	}
	return a, nil
}

// endpoints are the sockets; nil: none.
type endpoints struct {
	health  *net.TCPListener
	metrics *net.TCPListener // nil also where health's answers for both
	web     *net.TCPListener

	token string // the page's; empty: it asks for none
	made  bool   // just now
}

// listenEndpoints opens them, or takes over those at the same addresses. After an error nothing of them is open.
func (p *place) listenEndpoints(o *endpointOptions) (e endpoints, err error) {
	if e.health, err = p.listenTCP("--healthz-port", o.health); err != nil {
		return e, err
	}
	if o.metrics != o.health {
		if e.metrics, err = p.listenTCP("--metrics", o.metrics); err != nil {
			e.close()
			return e, err
		}
	}
	if o.token != "" {
		e.token, e.made, err = web.Token(o.token)
	}
	if err == nil {
		e.web, err = p.listenTCP("--web", o.web)
	}
	if err != nil {
		e.close()
	}
	return e, err
}

func (e endpoints) close() {
	for _, l := range []*net.TCPListener{e.health, e.metrics, e.web} {
		if l != nil {
			l.Close()
		}
	}
}

// offer adds them to what a successor gets.
func (e endpoints) offer(o *handover.Offer) error {
	for _, one := range []struct {
		name string
		l    *net.TCPListener
	}{{fileHealth, e.health}, {fileMetrics, e.metrics}, {fileWeb, e.web}} {
		if one.l == nil {
			continue
		}
		f, err := one.l.File()
		if err != nil {
			return err
		}
		add(o, one.name, f)
	}
	return nil
}

// listenTCP makes a listener, or takes over that of the daemon in whose place we come if it has one at that address. nil: none
// is wanted.
func (p *place) listenTCP(flag string, addr netip.AddrPort) (*net.TCPListener, error) {
	if addr.Port() == 0 {
		return nil, nil
	}
	for _, f := range []*os.File{p.health, p.metrics, p.web} {
		if f == nil {
			continue
		}
		l, err := net.FileListener(f)
		if err != nil {
			return nil, fmt.Errorf("%s: take over the listener of the running daemon: %w", flag, err)
		}
		if t, ok := l.(*net.TCPListener); ok && serves(t.Addr().(*net.TCPAddr).AddrPort(), addr) {
			return t, nil
		}
		l.Close()
	}
	network := "tcp"
	if addr.Addr().Is4() {
		network = "tcp4" // or else 0.0.0.0 becomes [::] (net.favoriteAddrFamily)
	}
	l, err := net.ListenTCP(network, net.TCPAddrFromAddrPort(addr))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return l, nil
}

// serves reports whether a listener at an address is one for another address, too: the same, or that of every address of both
// families for every one of IPv4, which keeps it from being opened.
func serves(at, wanted netip.AddrPort) bool {
	every4 := at.Port() == wanted.Port() && at.Addr().IsUnspecified() && wanted.Addr() == netip.IPv4Unspecified()
	return every4 || netip.AddrPortFrom(at.Addr().Unmap(), at.Port()) == wanted
}

// said is what is answered on the endpoints.
type said struct {
	alive, ready func() []health.Check
	networks     func() *control.Networks
	scrape       func(metrics.Choose) *control.Networks
	several      bool
	watch        func(network string, peers control.Peers) // somebody looks at them
	findings     func(name string) []string                // where doctor leaves what it found of a network, the likeliest file first
}

// serve has each endpoint answered, as soon as all of its answers are known: somebody may be waiting.
func (e endpoints) serve(answer func(net.Listener, http.Handler), o *endpointOptions, a said, log *slog.Logger) {
	healthMux := http.NewServeMux()
	metricsMux := healthMux
	if e.metrics != nil {
		metricsMux = http.NewServeMux()
	}
	health.Handle(healthMux, a.alive, a.ready)
	if o.metrics.Port() != 0 {
		metricsMux.Handle("GET /metrics", metrics.Handler(metrics.Config{Status: a.scrape, Several: a.several, Peers: o.peers, Logger: log}))
		if o.pprof != pprofOff {
			handleProfiles(metricsMux, o.pprof == pprofAny)
		}
	}
	if e.health != nil {
		answer(e.health, healthMux)
	}
	if e.metrics != nil {
		answer(e.metrics, metricsMux)
	}
}

// page serves the page in the browser.
func (e endpoints) page(serve func(net.Listener, func(context.Context, net.Listener) error), o *endpointOptions, a said, log *slog.Logger) {
	if e.web == nil {
		return
	}
	s := web.New(web.Config{Networks: a.networks, Watch: a.watch, Findings: a.findings, Addr: o.web, Token: e.token, Log: log})
	serve(e.web, s.Serve)
	args := []any{"url", fmt.Sprintf("http://%s/", o.web)}
	if o.token != "" {
		args = append(args, "token_file", o.token, "token_made", e.made)
	}
	log.Info("serving the page in the browser", args...)
}

// handleProfiles adds what `go tool pprof` asks for, but for the command line, which may have a password in it.
func handleProfiles(mux *http.ServeMux, any bool) {
	for path, h := range map[string]http.HandlerFunc{
		"":        pprof.Index,
		"profile": pprof.Profile,
		"symbol":  pprof.Symbol,
		"trace":   pprof.Trace,
		"cmdline": http.NotFound,
	} {
		mux.HandleFunc("GET /debug/pprof/"+path, func(w http.ResponseWriter, r *http.Request) {
			if !any && !fromThisHost(r) {
				http.Error(w, "profiles are for this host alone: ask from it, or start muslin with --pprof=any", http.StatusForbidden)
				return
			}
			h(w, r)
		})
	}
}

// fromThisHost says whether who asks is on this host: at a loopback address, or at the very address that was asked, which the
// kernel lets nobody else come from (RFC 1812, section 5.3.7).
func fromThisHost(r *http.Request) bool {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return from.Addr().Unmap().IsLoopback() || local != nil && local.AddrPort().Addr().Unmap() == from.Addr().Unmap()
}

// alive says whether it is worth to go on with this daemon.
func (d *daemon) alive() []health.Check {
	v := d.view.get()
	c := v.workers.Check(time.Now())
	c.Network = d.name
	return []health.Check{c}
}

// readiness says whether packets are carried. Trouble with the store alone does not keep them from that.
func (d *daemon) readiness() []health.Check {
	v := d.view.get()
	start := health.Check{Name: health.Start, Network: d.name, OK: v.running, Decides: true}
	if !v.running {
		start.Reason = "no packets are carried yet: " + v.state
		if v.state == "" {
			start.Reason = "no packets are carried yet"
		}
		return []health.Check{start}
	}
	start.Reason = "packets are carried since " + v.since.UTC().Format(time.RFC3339)
	all := append([]health.Check{start}, d.alive()...)

	store := health.Check{Name: health.Store, Network: d.name, OK: true, Reason: "the leases are known as they are"}
	w := v.member.peers.Status()
	var trouble []string
	if !w.Healthy {
		trouble = append(trouble, strings.TrimSpace("it is not watched now, and peers stay as last known; "+w.LastError))
	}
	if v.member.keeper != nil {
		if k := v.member.keeper.Status(); k.LastError != "" {
			trouble = append(trouble, "own lease: "+k.LastError)
		}
	}
	if len(trouble) > 0 {
		store.OK, store.Reason = false, strings.Join(trouble, "; ")+" (packets are carried all the same, so this alone does not make the node unready)"
	}
	return append(all, store)
}

// networks are the one that this process has.
func (d *daemon) networks() *control.Networks { return d.networksOf(nil) }

// scrape is it with the peers that are chosen.
func (d *daemon) scrape(choose metrics.Choose) *control.Networks {
	return d.networksOf(chosenBy(choose, ""))
}

func (d *daemon) networksOf(which selection) *control.Networks {
	s := d.statusOf(which)
	return &control.Networks{Version: s.Version, Kernel: s.Kernel, Networks: []control.NetworkStatus{{State: s.State, Status: s}}}
}

func (n *networks) scrape(choose metrics.Choose) *control.Networks {
	return n.statusOf(func(name string) selection { return chosenBy(choose, name) })
}

// chosenBy has metrics choose among the peers of a network.
func chosenBy(choose metrics.Choose, network string) selection {
	return func(t *fib.Table, traffic func(*fib.Peer) uint64) []*fib.Peer {
		peers := t.Peers()
		all := make([]metrics.Traffic, len(peers))
		for i, p := range peers {
			all[i] = metrics.Traffic{Subnet: p.Subnet, Bytes: traffic(p)}
		}
		var chosen []*fib.Peer
		for _, i := range choose(network, all) {
			chosen = append(chosen, peers[i])
		}
		return chosen
	}
}

// findings is where doctor leaves what it found.
func (d *daemon) findings(string) []string {
	return []string{filepath.Join(d.opts.flags.stateDir, doctor.FileName)}
}

// findings is where doctor leaves what it found of a network, or of all.
func (n *networks) findings(name string) []string {
	all := []string{filepath.Join(n.p.flags.stateDir, doctor.FileName)}
	if m := n.all()[name]; m != nil {
		all = append([]string{filepath.Join(m.flags.stateDir, doctor.FileName)}, all...)
	}
	return all
}

// watchOnly is of the one network.
func (d *daemon) watchOnly(_ string, peers control.Peers) { d.watch(peers) }

// watch is a network's.
func (n *networks) watch(network string, peers control.Peers) {
	if m := n.all()[network]; m != nil {
		if d, _, failed := m.now(); failed == nil {
			d.watch(peers)
		}
	}
}

// alive is that of each network.
func (n *networks) alive() []health.Check {
	return n.each(func(d *daemon, failed error) []health.Check {
		if failed != nil {
			return nil // nothing of it is there to be stuck
		}
		return d.alive()
	})
}

// readiness is that of each network, and whether the file describes them.
func (n *networks) readiness() []health.Check {
	all := n.each(func(d *daemon, failed error) []health.Check {
		if failed != nil {
			return []health.Check{{Name: health.Start, Network: d.name, Decides: true, Reason: "the network does not run, and starts again by itself: " + failed.Error()}}
		}
		return d.readiness()
	})
	n.mu.Lock()
	refused := n.refused
	n.mu.Unlock()
	file := health.Check{Name: health.File, OK: refused == "", Reason: "the networks are those of " + n.p.flags.config}
	if refused != "" {
		file.Reason = "the networks stay as they were, since the file is wrong now: " + refused
	}
	return append(all, file)
}

func (n *networks) each(of func(d *daemon, failed error) []health.Check) (all []health.Check) {
	members := n.all()
	for _, name := range slices.Sorted(maps.Keys(members)) {
		d, _, failed := members[name].now()
		all = append(all, of(d, failed)...)
	}
	return all
}
