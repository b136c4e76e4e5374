package health

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"muslin/tunnel"
)

func get(t *testing.T, checks []Check, path, accept string) (int, string, string) {
	t.Helper()
	mux := http.NewServeMux()
	Handle(mux, func() []Check { return nil }, func() []Check { return checks })
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.Header.Set("Accept", accept)
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, r)
	return w.Code, w.Header().Get("Content-Type"), w.Body.String()
}

func TestEndpoints(t *testing.T) {
	started := Check{Name: Start, OK: true, Decides: true, Reason: "carrying packets"}
	waiting := Check{Name: Start, Network: "blue", Decides: true, Reason: "waits for etcd"}
	trouble := Check{Name: Store, Reason: "etcd is away"}
	for _, test := range []struct {
		name, path string
		checks     []Check
		status     int
		text       string
	}{
		{"alive", "/healthz", nil, 200, "ok\n"},
		{"ready", "/readyz", []Check{started}, 200, "ready\n"},
		{"all of it", "/readyz?verbose", []Check{started, waiting}, 503, "not ready\nok     start: carrying packets\nNOT OK blue: start: waits for etcd\n"},
		{"why not", "/readyz", []Check{started, waiting}, 503, "not ready\nNOT OK blue: start: waits for etcd\n"},
		{"what does not decide is told", "/readyz", []Check{started, trouble}, 200, "ready\nnote   store: etcd is away\n"},
	} {
		status, kind, text := get(t, test.checks, test.path, "*/*")
		if status != test.status || text != test.text || !strings.HasPrefix(kind, "text/plain") {
			t.Errorf("%s: %d %s %q, want %d %q", test.name, status, kind, text, test.status, test.text)
		}
		status, kind, text = get(t, test.checks, test.path, "text/html, application/json")
		var got Answer
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Fatal(err)
		}
		if want := of(test.checks); status != test.status || kind != "application/json" || !reflect.DeepEqual(got, want) || got.OK != (status == 200) || got.Checks == nil {
			t.Errorf("%s: %d %s %s, want %+v", test.name, status, kind, text, want)
		}
	}
}

// TestWatch: a worker is stuck when the same batch is there at two looks; not when it is another one, nor because the process
// stood still.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now atomic.Pointer[[]tunnel.QueueStats]
		w := NewWatch(func() []tunnel.QueueStats { return *now.Load() })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		out, in := tunnel.QueueStats{Direction: tunnel.Outbound}, tunnel.QueueStats{Queue: 1, Direction: tunnel.Inbound, IPv6: true}
		look := func(outbound, inbound uint64) []Stuck {
			out.InHand, in.InHand = outbound, inbound
			now.Store(&[]tunnel.QueueStats{out, in})
			time.Sleep(lookEvery)
			synctest.Wait()
			return w.Stuck()
		}
		for i, step := range []struct {
			out, in uint64
			stuck   int
		}{{0, 0, 0}, {7, 3, 0}, {8, 4, 0}, {0, 4, 1}, {9, 4, 1}, {9, 4, 2}, {10, 5, 0}, {0, 0, 0}} {
			got := look(step.out, step.in)
			if len(got) != step.stuck {
				t.Errorf("look %d: %+v stuck, want %d", i, got, step.stuck)
			}
			if c := w.Check(time.Now()); c.OK != (step.stuck == 0) || !c.Decides {
				t.Errorf("look %d: %+v", i, c)
			}
		}
		look(0, 6)
		got := look(0, 6)
		if want := []Stuck{{1, tunnel.Inbound, true, time.Now().Add(-lookEvery)}}; !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
		if text := w.Check(time.Now()).Reason; !strings.Contains(text, "inbound worker of queue 1 (IPv6)") || !strings.Contains(text, "for 5s") {
			t.Errorf("said %q", text)
		}
		w.update(time.Now().Add(time.Minute)) // as after a stop
		if got := w.Stuck(); got != nil {
			t.Errorf("after a stop: %+v", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if c := (*Watch)(nil).Check(time.Now()); !c.OK {
		t.Errorf("nobody watches: %+v", c)
	}
}
