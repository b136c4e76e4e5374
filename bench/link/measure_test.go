//go:build linux

package link

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// config measures a server's first address as the overlay, its second as the underlay.
func config(s *Server) Config {
	return Config{Token: testToken, Overlay: s.Addrs()[0], Underlay: s.Addrs()[1], Each: MinEach, Streams: 3}
}

// closedPort is an address where nobody listens.
func closedPort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func TestMeasure(t *testing.T) {
	s := serve(t, nil)
	var said []string
	cfg := config(s)
	cfg.Progress = func(words string) { said = append(said, words) }
	r, err := Measure(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Measures) != len(measures) {
		t.Errorf("%d measures, want %d", len(r.Measures), len(measures))
	}
	for name, row := range r.Measures {
		for path, o := range map[string]*Outcome{"overlay": row.Overlay, "underlay": row.Underlay} {
			if o == nil || o.Error != "" {
				t.Fatalf("%s over the %s: %+v", name, path, o)
			}
		}
		over := row.Overlay
		switch {
		case strings.HasPrefix(name, "tcp_round"), strings.HasPrefix(name, "udp_round"):
			if over.Latency == nil || over.RoundTrips == 0 || over.Min <= 0 || over.P50 < over.Min || over.Max < over.P50 || row.Ratio == nil {
				t.Errorf("%s: %+v, ratio %v", name, over.Latency, row.Ratio)
			}
		case strings.HasPrefix(name, "tcp_"):
			streams := 1
			if strings.Contains(name, "streams") {
				streams = 3
			}
			if over.Throughput == nil || over.Streams != streams || over.Bytes == 0 || over.Seconds <= 0 || row.Ratio == nil {
				t.Errorf("%s: %+v, ratio %v", name, over.Throughput, row.Ratio)
			}
		case strings.HasPrefix(name, "udp_loss"):
			if over.Loss == nil || over.Sent != 100 || over.Received == 0 || row.Ratio != nil {
				t.Errorf("%s: %+v, ratio %v", name, over.Loss, row.Ratio)
			}
		default:
			if over.Largest == nil || *over.Largest != (Largest{maxPacket, maxPacket}) || row.Ratio != nil {
				t.Errorf("%s: %+v, ratio %v", name, over.Largest, row.Ratio)
			}
		}
	}
	if r.Overlay.Error != "" || r.Overlay.Local != "127.0.0.1" || r.Overlay.Address != s.Addrs()[0].String() || r.Underlay.Address != s.Addrs()[1].String() {
		t.Errorf("%+v, %+v", r.Overlay, r.Underlay)
	}
	if len(said) != 2+2*len(measures) {
		t.Errorf("progress: %q", said)
	}
	if table := r.Table(); len(table) != 1+len(measures) || table[3][0] != "TCP to the peer, 3 streams" || strings.Contains(table[1][1], "FAILED") {
		t.Errorf("%q", table)
	}
	// The server is free again.
	open(t, newClient(testToken, nil), s.Addrs()[0], jobHello)
}

// jsonPaths are the fields that a type has in JSON, joined by dots; those of a map's values under NAME.
func jsonPaths(typ reflect.Type, prefix string) []string {
	var out []string
	for i := range typ.NumField() {
		f := typ.Field(i)
		kind := f.Type
		path := prefix + strings.Split(f.Tag.Get("json"), ",")[0]
		if kind.Kind() == reflect.Map {
			kind, path = kind.Elem(), path+".NAME"
		}
		if kind.Kind() == reflect.Pointer {
			kind = kind.Elem()
		}
		switch {
		case f.Anonymous:
			out = append(out, jsonPaths(kind, prefix)...)
		case kind.Kind() == reflect.Struct && kind != reflect.TypeFor[time.Time]():
			out = append(out, jsonPaths(kind, path+".")...)
		default:
			out = append(out, path)
		}
	}
	return out
}

// docs/bench-link.md names every field and every measure, and no other.
func TestDocs(t *testing.T) {
	page, err := os.ReadFile("../../docs/bench-link.md")
	if err != nil {
		t.Fatal(err)
	}
	var inDocs, want []string
	for line := range strings.Lines(string(page)) {
		if cells := strings.Split(line, "`"); strings.HasPrefix(line, "| `") && len(cells) > 2 {
			inDocs = append(inDocs, cells[1])
		}
	}
	for _, path := range jsonPaths(reflect.TypeFor[Result](), "") {
		// What both paths have is said once.
		path = strings.Replace(path, ".underlay.", ".overlay.", 1)
		path = strings.Replace(path, "underlay.", "overlay.", 1)
		if !slices.Contains(want, path) {
			want = append(want, path)
		}
	}
	for _, m := range measures {
		want = append(want, m.name)
	}
	slices.Sort(inDocs)
	slices.Sort(want)
	if !slices.Equal(inDocs, want) {
		t.Errorf("the page has\n%s\nthe code\n%s", strings.Join(inDocs, "\n"), strings.Join(want, "\n"))
	}
}

func TestMeasureKeepsToRate(t *testing.T) {
	const rate = 16e6
	for name, c := range map[string]struct{ server, client int64 }{
		"own limit":        {0, rate},
		"the server's":     {rate, 0},
		"the stricter one": {rate, 2 * rate},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, func(s *Server) {
				s.cfg.Rate = c.server
				s.pace.rate = c.server
			})
			cfg := config(s)
			cfg.Rate, cfg.Each = c.client, 500*time.Millisecond
			r := &run{cfg: cfg, client: newClient(testToken, nil), rate: cfg.Rate}
			if err := r.hello(t.Context(), new(Path), cfg.Overlay); err != nil {
				t.Fatal(err)
			}
			if r.rate != rate {
				t.Errorf("limit %d, want %d", r.rate, int64(rate))
			}
			for _, m := range measures[:4] {
				// What was due before the counting began may be in it.
				if o := m.run(r, t.Context(), cfg.Overlay); o.Error != "" || o.BitsPerSecond > 1.5*rate || o.BitsPerSecond == 0 {
					t.Errorf("%s: %+v %+v", m.name, o, o.Throughput)
				}
			}
		})
	}
}

func TestMeasureRefused(t *testing.T) {
	s := serve(t, nil)
	cfg := config(s)
	cfg.Token = "wrong"
	if r, err := Measure(t.Context(), cfg); !errors.Is(err, ErrRefused) {
		t.Errorf("%+v, %v; want %v", r, err, ErrRefused)
	}
}

func TestMeasureConfig(t *testing.T) {
	good := Config{Token: testToken, Each: time.Second, Streams: 1}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Config){
		"no token":      func(c *Config) { c.Token = "" },
		"no time":       func(c *Config) { c.Each = 0 },
		"long":          func(c *Config) { c.Each = MaxEach + 1 },
		"no stream":     func(c *Config) { c.Streams = 0 },
		"many streams":  func(c *Config) { c.Streams = MaxStreams + 1 },
		"slow":          func(c *Config) { c.Rate = MinRate - 1 },
		"negative rate": func(c *Config) { c.Rate = -1 },
	} {
		c := good
		change(&c)
		if r, err := Measure(t.Context(), c); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if sending, all := (&Config{Each: 3 * time.Second, Streams: 4}).Load(); sending != 12*time.Second || all != 52*time.Second {
		t.Errorf("4 streams: %v of %v", sending, all)
	}
	if sending, all := (&Config{Each: 3 * time.Second, Streams: 1}).Load(); sending != 6*time.Second || all != 40*time.Second {
		t.Errorf("1 stream: %v of %v", sending, all)
	}
}

func TestUnreachable(t *testing.T) {
	t.Run("overlay", func(t *testing.T) {
		s := serve(t, nil)
		cfg := config(s)
		cfg.Overlay = closedPort(t)
		r, err := Measure(t.Context(), cfg)
		if err != nil || len(r.Failures) != 1 || len(r.Both) != 0 || len(r.Measures) != 0 || !strings.Contains(r.Failures[0], "--serve") {
			t.Errorf("%+v, %v", r, err)
		}
	})
	t.Run("underlay", func(t *testing.T) {
		s := serve(t, nil)
		cfg := config(s)
		cfg.Underlay, cfg.Streams = closedPort(t), 1
		r, err := Measure(t.Context(), cfg)
		// With one stream, those with several are left out.
		if err != nil || len(r.Failures) != 0 || len(r.Both) != 0 || len(r.Notes) != 1 || len(r.Measures) != len(measures)-2 {
			t.Fatalf("%+v, %v", r, err)
		}
		if row := r.Measures["tcp_to_peer"]; row.Underlay != nil || row.Ratio != nil || row.Overlay.Error != "" {
			t.Errorf("%+v", row)
		}
	})
	t.Run("both", func(t *testing.T) {
		cfg := Config{Token: testToken, Overlay: closedPort(t), Underlay: closedPort(t), Each: MinEach, Streams: 1}
		r, err := Measure(t.Context(), cfg)
		if err != nil || len(r.Failures) != 0 || len(r.Both) != 1 {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// Something else listens on the port.
func TestNotAServer(t *testing.T) {
	for name, says := range map[string]string{
		"hangs up":       "",
		"SSH":            "SSH-2.0-OpenSSH_9.2\r\n",
		"other protocol": "\x00\x20" + `{"protocol":"x","nonce":"AAAA"} `,
		"other version":  "\x00\x48" + `{"protocol":"muslin bench link 9","nonce":"AAAAAAAAAAAAAAAAAAAAAA=="}   `,
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				if conn, err := l.Accept(); err == nil {
					conn.Write([]byte(says))
					conn.Close()
				}
			}()
			_, err = newClient(testToken, nil).open(t.Context(), l.Addr().(*net.TCPAddr).AddrPort(), request{Job: jobHello, Millis: 1000})
			if err == nil || !strings.Contains(err.Error(), "serve") && !strings.Contains(err.Error(), "same version") {
				t.Errorf("%v", err)
			}
		})
	}
}

// Ctrl-C ends it at once, in whatever it is.
func TestMeasureCancelled(t *testing.T) {
	interrupted := errors.New("interrupted")
	for i, m := range measures {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancelCause(t.Context())
			cfg := config(serve(t, nil))
			cfg.Each = MaxEach
			r := &run{cfg: cfg, client: newClient(testToken, nil)}
			began := make(chan struct{})
			go func() {
				defer close(began)
				m.run(r, ctx, cfg.Overlay)
			}()
			if i < len(measures)-2 { // the sizes on loopback are found in no time
				select {
				case <-began:
					t.Error("it ended by itself")
				case <-time.After(50 * time.Millisecond):
				}
			}
			cancel(interrupted)
			select {
			case <-began:
			case <-time.After(20 * time.Second):
				t.Error("it does not end")
			}
		})
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cfg := config(serve(t, nil))
	cfg.Each = MaxEach
	cfg.Progress = func(words string) {
		if strings.HasPrefix(words, "TCP to") {
			cancel(interrupted)
		}
	}
	if r, err := Measure(ctx, cfg); !errors.Is(err, interrupted) {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestJudge(t *testing.T) {
	p := func(v float64) *float64 { return &v }
	fine := func() *Outcome { return &Outcome{Throughput: &Throughput{BitsPerSecond: 8e9}} }
	for name, c := range map[string]struct {
		measure               string
		overlay, underlay     *Outcome
		failures, both, notes int
		ratio                 *float64
	}{
		"fine":                   {"tcp_to_peer", &Outcome{Throughput: &Throughput{BitsPerSecond: 4e9}}, fine(), 0, 0, 0, p(0.5)},
		"round trip":             {"tcp_round_trip", &Outcome{Latency: &Latency{P50: 30}}, &Outcome{Latency: &Latency{P50: 10}}, 0, 0, 0, p(3)},
		"overlay fails":          {"tcp_to_peer", &Outcome{Error: "stalled", Throughput: &Throughput{}}, fine(), 1, 0, 0, nil},
		"underlay fails":         {"tcp_to_peer", fine(), &Outcome{Error: "stalled"}, 0, 0, 1, nil},
		"both fail":              {"tcp_to_peer", &Outcome{Error: "stalled"}, &Outcome{Error: "stalled"}, 0, 1, 0, nil},
		"overlay fails alone":    {"tcp_to_peer", &Outcome{Error: "stalled"}, nil, 1, 0, 0, nil},
		"overlay alone":          {"tcp_to_peer", fine(), nil, 0, 0, 0, nil},
		"some loss":              {"udp_loss_to_peer", &Outcome{Loss: &Loss{Sent: 100, Share: MaxLoss}}, &Outcome{Loss: &Loss{Sent: 100}}, 0, 0, 0, nil},
		"much loss":              {"udp_loss_to_peer", &Outcome{Loss: &Loss{Sent: 100, Share: 0.06}}, &Outcome{Loss: &Loss{Sent: 100}}, 1, 0, 0, nil},
		"much loss on both":      {"udp_loss_to_peer", &Outcome{Loss: &Loss{Sent: 100, Share: 0.06}}, &Outcome{Loss: &Loss{Sent: 100, Share: 0.5}}, 0, 1, 0, nil},
		"overlay below its MTU":  {"largest_to_peer", &Outcome{Largest: &Largest{1400, 1450}}, &Outcome{Largest: &Largest{1500, 1500}}, 1, 0, 0, nil},
		"underlay below its MTU": {"largest_to_peer", &Outcome{Largest: &Largest{1450, 1450}}, &Outcome{Largest: &Largest{8000, 9000}}, 0, 0, 1, nil},
		"more than the MTU":      {"largest_to_peer", &Outcome{Largest: &Largest{1500, 1450}}, &Outcome{Largest: &Largest{1500, 1500}}, 0, 0, 0, nil},
		"MTU not known":          {"largest_to_peer", &Outcome{Largest: &Largest{1450, 0}}, &Outcome{Largest: &Largest{1500, 0}}, 0, 0, 0, nil},
	} {
		row := &Row{Title: "the measure", Overlay: c.overlay, Underlay: c.underlay}
		r := Result{Measures: map[string]*Row{c.measure: row}}
		r.judge()
		if len(r.Failures) != c.failures || len(r.Both) != c.both || len(r.Notes) != c.notes || !reflect.DeepEqual(row.Ratio, c.ratio) {
			t.Errorf("%s: failures %q, both %q, notes %q, ratio %v", name, r.Failures, r.Both, r.Notes, row.Ratio)
		}
		for _, sentence := range slices.Concat(r.Failures, r.Both, r.Notes) {
			if !strings.HasPrefix(sentence, "the measure: ") {
				t.Errorf("%s: %q does not say of what it speaks", name, sentence)
			}
		}
		if r.Table()[1][1] == "FAILED" != (c.overlay.Error != "") {
			t.Errorf("%s: %q", name, r.Table())
		}
	}
}

// A script reads back what was written.
func TestResultJSON(t *testing.T) {
	p99 := 25.0
	r := Result{Measures: map[string]*Row{
		"tcp_to_peer":      {Overlay: &Outcome{Throughput: &Throughput{Streams: 1, BitsPerSecond: 4e9, Bytes: 5, Seconds: 2.7}}, Underlay: &Outcome{Error: "stalled"}},
		"udp_loss_to_peer": {Overlay: &Outcome{Loss: &Loss{Sent: 10, Share: 0.1, tally: tally{Received: 9, Reordered: 1}}}},
		"tcp_round_trip":   {Overlay: &Outcome{Latency: &Latency{RoundTrips: 7, P50: 3, P99: &p99}}},
	}}
	r.judge()
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var back Result
	if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(back, r) {
		t.Errorf("%v\n%s\n%+v", err, text, back)
	}
	for _, want := range []string{`"bits_per_second":4e`, `"received":9`, `"p999_us":null`, `"error":"stalled"`, `"both_failed":[]`} {
		if !strings.Contains(strings.ReplaceAll(string(text), "4000000000", "4e"), want) {
			t.Errorf("%s is missing in %s", want, text)
		}
	}
}
