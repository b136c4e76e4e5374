package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/health"
	"muslin/cmd/muslin/metrics"
	"muslin/tunnel/handover"
)

func TestMetricsAddr(t *testing.T) {
	for text, want := range map[string]string{
		"9469":           "127.0.0.1:9469",
		":9469":          "127.0.0.1:9469",
		"0.0.0.0:9469":   "0.0.0.0:9469",
		"192.0.2.7:1":    "192.0.2.7:1",
		"[::1]:9469":     "[::1]:9469",
		"[::]:9469":      "[::]:9469",
		"":               "invalid AddrPort",
		"127.0.0.1":      "error",
		"::1":            "error",
		"[fe80::1%e0]:1": "error",
		"-1":             "error",
		"http://x:1":     "error",
	} {
		got, err := metricsAddr(text)
		if (err != nil) != (want == "error") || err == nil && got.String() != want {
			t.Errorf("%q: %v, %v; want %s", text, got, err, want)
		}
	}
}

// freeAddr is one that nobody listens at.
func freeAddr(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

var exampleAnswers = said{
	alive: func() []health.Check { return nil },
	ready: func() []health.Check { return []health.Check{{Name: health.Start, Decides: true, Reason: "why"}} },
	networks: func() *control.Networks {
		return &control.Networks{Networks: []control.NetworkStatus{{Status: newStatus()}}}
	},
	scrape: func(metrics.Choose) *control.Networks {
		return &control.Networks{Networks: []control.NetworkStatus{{Status: newStatus()}}}
	},
}

// serveEndpoints serves until the test ends, or close is called.
func serveEndpoints(t *testing.T, e endpoints, o *endpointOptions) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	n := 0
	e.serve(func(l net.Listener, h http.Handler) {
		n++
		go func() {
			err := serveHTTP(ctx, l, h)
			l.Close()
			ended <- err
		}()
	}, o, exampleAnswers, slog.New(slog.DiscardHandler))
	return func() {
		cancel()
		for range n {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}
}

func ask(t *testing.T, addr netip.AddrPort, path string) (int, string) {
	t.Helper()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + addr.String() + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// TestEndpoints: apart, and together at one address.
func TestEndpoints(t *testing.T) {
	for _, together := range []bool{false, true} {
		o := &endpointOptions{health: freeAddr(t), metrics: freeAddr(t), pprof: pprofLoopback}
		if together {
			o.metrics = o.health
		}
		e, err := new(place).listenEndpoints(o)
		if err != nil {
			t.Fatal(err)
		}
		stop := serveEndpoints(t, e, o)
		for _, want := range []struct {
			at     netip.AddrPort
			path   string
			status int
			text   string
		}{
			{o.health, "/healthz", 200, "ok"},
			{o.health, "/readyz", 503, "start: why"},
			{o.metrics, "/metrics", 200, "muslin_running 0"},
			{o.metrics, "/debug/pprof/", 200, "goroutine"},
			{o.metrics, "/debug/pprof/goroutine?debug=1", 200, "goroutine profile"},
			{o.metrics, "/debug/pprof/cmdline", 404, ""},
			{o.metrics, "/", 404, ""},
		} {
			if status, text := ask(t, want.at, want.path); status != want.status || !strings.Contains(text, want.text) {
				t.Errorf("together %v: %s: %d %.100q, want %d with %q", together, want.path, status, text, want.status, want.text)
			}
		}
		if status, _ := ask(t, o.health, "/metrics"); (status == 200) != together {
			t.Errorf("together %v: /metrics at health's address: %d", together, status)
		}
		if status, _ := ask(t, o.metrics, "/healthz"); (status == 200) != together {
			t.Errorf("together %v: /healthz at metrics' address: %d", together, status)
		}
		stop()
	}
}

// TestEndpointsHandedOver: a successor has those at the same addresses, apart or together, and opens the others.
func TestEndpointsHandedOver(t *testing.T) {
	before := &endpointOptions{health: freeAddr(t), metrics: freeAddr(t), web: freeAddr(t)}
	old, err := new(place).listenEndpoints(before)
	if err != nil {
		t.Fatal(err)
	}
	var o handover.Offer
	if err := old.offer(&o); err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	p := &place{health: o.Named(fileHealth)[0], metrics: o.Named(fileMetrics)[0], web: o.Named(fileWeb)[0]}
	for name, next := range map[string]*endpointOptions{
		"the same":         before,
		"turned round":     {health: before.metrics, metrics: before.health},
		"together now":     {health: before.metrics, metrics: before.metrics},
		"health elsewhere": {health: freeAddr(t), metrics: before.metrics},
		"no health":        {metrics: before.health},
		"the page alone":   {web: before.web},
	} {
		e, err := p.listenEndpoints(next)
		if err != nil {
			t.Errorf("%s: %v", name, err) // the old ones are still open
			continue
		}
		e.close()
	}
	// What came while nobody took it is answered by the successor.
	answered := make(chan int, 1)
	go func() {
		status, _ := ask(t, before.metrics, "/metrics")
		answered <- status
	}()
	old.close()
	e, err := p.listenEndpoints(before)
	if err != nil {
		t.Fatal(err)
	}
	stop := serveEndpoints(t, e, before)
	if status := <-answered; status != 200 {
		t.Errorf("between the two: status %d", status)
	}
	stop()

	taken := &endpointOptions{metrics: before.metrics}
	if _, err := new(place).listenEndpoints(taken); err == nil || !strings.Contains(err.Error(), "--metrics: listen tcp") {
		t.Errorf("taken: %v", err)
	}
}

// TestEveryAddressHandedOver: 0.0.0.0 is taken over as what it was opened as, and so is [::], which earlier versions opened in its place.
func TestEveryAddressHandedOver(t *testing.T) {
	for _, c := range []struct{ old, wanted string }{{"0.0.0.0", "0.0.0.0"}, {"::", "::"}, {"::", "0.0.0.0"}, {"127.0.0.1", "127.0.0.1"}} {
		port := freeAddr(t).Port()
		at := func(a string) *endpointOptions {
			return &endpointOptions{metrics: netip.AddrPortFrom(netip.MustParseAddr(a), port)}
		}
		old, err := new(place).listenEndpoints(at(c.old))
		if err != nil {
			t.Fatal(err)
		}
		var o handover.Offer
		if err := old.offer(&o); err != nil {
			t.Fatal(err)
		}
		next, err := (&place{metrics: o.Named(fileMetrics)[0]}).listenEndpoints(at(c.wanted))
		if err != nil {
			t.Errorf("%s after %s: %v", c.wanted, c.old, err)
		}
		if got := next.metrics.Addr().String(); got != old.metrics.Addr().String() {
			t.Errorf("%s after %s: at %s", c.wanted, c.old, got)
		}
		next.close()
		old.close()
		o.Close()
	}
	if serves(netip.MustParseAddrPort("0.0.0.0:1"), netip.MustParseAddrPort("[::]:1")) || serves(netip.MustParseAddrPort("[::]:1"), netip.MustParseAddrPort("127.0.0.1:1")) {
		t.Error("a listener is taken for one that it is not")
	}
}

// TestProfiles: who gets them.
func TestProfiles(t *testing.T) {
	for _, c := range []struct {
		from   string
		any    bool
		status int
	}{
		{"127.0.0.1:5", false, 200}, {"[::1]:5", false, 200}, {"[::ffff:127.0.0.1]:5", false, 200},
		{"192.0.2.1:5", false, 403}, {"[2001:db8::1]:5", false, 403}, {"", false, 403},
		{"192.0.2.1:5", true, 200},
		{"192.0.2.7:5", false, 200}, // this host, by the address that is asked
	} {
		mux := http.NewServeMux()
		handleProfiles(mux, c.any)
		for _, path := range []string{"heap?debug=1", "symbol", ""} {
			r := httptest.NewRequest("GET", "/debug/pprof/"+path, nil)
			r.RemoteAddr = c.from
			r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.ParseIP("192.0.2.7"), Port: 9469}))
			w := httptest.NewRecorder()
			mux.ServeHTTP(w, r)
			if w.Code != c.status {
				t.Errorf("%s from %s, any %v: %d, want %d", path, c.from, c.any, w.Code, c.status)
			}
			if w.Code == 403 && !strings.Contains(w.Body.String(), "--pprof=any") {
				t.Errorf("said %q", w.Body)
			}
			if bytes.Contains(w.Body.Bytes(), []byte(os.Args[0])) && path == "" {
				t.Error("the command line is there")
			}
		}
	}
}

// TestReadiness of a daemon that has not begun, and that waits.
func TestReadiness(t *testing.T) {
	d := newDaemon(&options{})
	d.name = "blue"
	d.view.waiting("waiting for etcd at http://x")
	got := d.readiness()
	if len(got) != 1 || got[0].OK || !got[0].Decides || got[0].Network != "blue" || got[0].Reason != "no packets are carried yet: waiting for etcd at http://x" {
		t.Errorf("%+v", got)
	}
	if got := d.alive(); len(got) != 1 || !got[0].OK || got[0].Network != "blue" {
		t.Errorf("alive: %+v", got)
	}
}
