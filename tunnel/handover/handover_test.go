//go:build linux

package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// quick are limits for tests in which somebody hangs.
var quick = Limits{Prepare: 300 * time.Millisecond, Packets: 100 * time.Millisecond, Part: 200 * time.Millisecond}

// daemon is a Predecessor that notes what happens to it.
type daemon struct {
	mu      sync.Mutex
	did     []string
	refusal error // of Offer
	keep    string
	pipe    *os.File // what it offers
	parts   []string
}

func newDaemon(t *testing.T, parts ...string) (*daemon, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return &daemon{pipe: r, parts: parts}, w
}

func (d *daemon) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.did = append(d.did, fmt.Sprintf(format, args...))
}

func (d *daemon) Offer(h Hello) (Offer, error) {
	d.note("offer to %s", h.Version)
	if d.refusal != nil {
		return Offer{}, d.refusal
	}
	fd, err := unix.FcntlInt(d.pipe.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return Offer{}, err
	}
	again, err := unix.FcntlInt(d.pipe.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return Offer{}, err
	}
	return Offer{Version: "old", Parts: d.parts, About: json.RawMessage(`{"subnet":"10.244.1.0/24"}`), Files: []File{
		{"tun", os.NewFile(uintptr(fd), "")}, {"lock", os.NewFile(uintptr(again), "")}}}, nil
}

func (d *daemon) Release(part string) (any, error) {
	if d.keep == part {
		d.note("keep %s", part)
		return nil, errors.New("cannot stop")
	}
	d.note("release %s", part)
	return map[string]int{"revision": len(part)}, nil
}

func (d *daemon) Resume(part string) error {
	d.note("resume %s", part)
	return nil
}

func (d *daemon) GoOn() { d.note("go on") }

// expect wants the daemon to have done just this.
func (d *daemon) expect(t *testing.T, want ...string) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.Equal(d.did, want) {
		t.Errorf("the predecessor did %q, want %q", d.did, want)
	}
}

// serve has a daemon behind a control socket, and gives what became of each handover.
func serve(t *testing.T, d Predecessor, limits Limits) (control string, outcome <-chan result) {
	t.Helper()
	dir, err := os.MkdirTemp("", "") // a socket's path has little room
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	control = filepath.Join(dir, "sock")
	l, err := net.Listen("unix", control)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan result, 8)
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+Path, func(w http.ResponseWriter, r *http.Request) {
		c, err := Accept(w, r)
		if err != nil {
			ended <- result{err: err}
			return
		}
		left, err := Give(c, d, limits)
		ended <- result{left, err}
	})
	server := &http.Server{Handler: mux}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return control, ended
}

type result struct {
	left *Departure
	err  error
}

func call(t *testing.T, control string, limits Limits) *Successor {
	t.Helper()
	s, err := Call(t.Context(), control, Hello{Version: "new"}, limits)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// within fails the test when nothing comes out of done in ten seconds.
func within[T any](t *testing.T, what string, done <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: nothing in 10 seconds", what)
	}
	return v
}

// recorder is a take that notes its calls.
type recorder struct {
	did []string
	err map[string]error // by part
}

func (r *recorder) take(part string, changed json.RawMessage) error {
	r.did = append(r.did, strings.TrimSpace("take "+part+" "+string(changed)))
	return r.err[part]
}

func TestHandover(t *testing.T) {
	d, w := newDaemon(t, Packets, Store)
	control, outcome := serve(t, d, DefaultLimits)
	s := call(t, control, DefaultLimits)
	if s.Offer.Version != "old" || string(s.Offer.About) != `{"subnet":"10.244.1.0/24"}` {
		t.Errorf("offer %+v", s.Offer)
	}
	if n := len(s.Offer.Named("tun")); n != 1 || len(s.Offer.Named("lock")) != 1 || len(s.Offer.Named("health")) != 0 {
		t.Errorf("files %+v", s.Offer.Files)
	}
	// It is the very pipe of the predecessor.
	if _, err := w.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	var b [5]byte
	if _, err := io.ReadFull(s.Offer.Named("tun")[0], b[:]); err != nil || string(b[:]) != "hello" {
		t.Errorf("read %q, %v", b, err)
	}
	var got recorder
	done := make(chan error, 1)
	go func() { done <- s.Take(t.Context(), got.take) }()
	o := within(t, "the end of Give", outcome)
	if o.err != nil {
		t.Fatal(o.err)
	}
	select {
	case err := <-done:
		t.Fatalf("Take ends before its predecessor has left, with %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	o.left.Left()
	if err := within(t, "the end of Take", done); err != nil {
		t.Error(err)
	}
	d.expect(t, "offer to new", "release packets", "release store")
	if want := []string{`take packets {"revision":7}`, `take store {"revision":5}`}; !slices.Equal(got.did, want) {
		t.Errorf("the successor did %q, want %q", got.did, want)
	}
}

// Whatever becomes of the successor, and whenever, the predecessor goes on with all that it had.
func TestSuccessorFails(t *testing.T) {
	all := []string{"offer to new", "release packets", "release store", "resume store", "resume packets", "go on"}
	one := []string{"offer to new", "release packets", "resume packets", "go on"}
	none := []string{"offer to new", "go on"}
	// stop says how the successor ends; at which step is the row's matter.
	for how, stop := range map[string]func(s *Successor){
		"dies":        func(s *Successor) { s.Close() },
		"hangs":       func(*Successor) {},
		"says so":     func(s *Successor) { s.Fail(errors.New("not ready")) },
		"says rot":    func(s *Successor) { s.conn.unix.Write([]byte{0, 0, 0, 3, '{', '{', '{'}) },
		"says much":   func(s *Successor) { s.conn.unix.Write([]byte{0xff, 0, 0, 0}) },
		"talks along": func(s *Successor) { s.conn.say(&message{Kind: left}) },
	} {
		for _, c := range []struct {
			when string
			step func(t *testing.T, s *Successor)
			want []string
		}{
			{"at the offer", func(t *testing.T, s *Successor) { stop(s) }, none},
			{"at the packets", func(t *testing.T, s *Successor) {
				say(t, s, ready)
				hear(t, s, yours)
				stop(s)
			}, one},
			{"at the store", func(t *testing.T, s *Successor) {
				say(t, s, ready)
				hear(t, s, yours)
				say(t, s, taken)
				hear(t, s, yours)
				stop(s)
			}, all},
		} {
			t.Run(how+" "+c.when, func(t *testing.T) {
				d, _ := newDaemon(t, Packets, Store)
				control, outcome := serve(t, d, quick)
				s := call(t, control, DefaultLimits)
				c.step(t, s)
				o := within(t, "the end of Give", outcome)
				if o.err == nil {
					t.Fatal("Give says that all is handed over")
				}
				d.expect(t, c.want...)
				if how == "says so" && !strings.Contains(o.err.Error(), "not ready") {
					t.Errorf("error %q lacks the successor's reason", o.err)
				}
				if how == "hangs" {
					// Whenever it wakes up, it learns that it is not to go on.
					if m, err := s.conn.receive(time.Second); err != nil || m.Kind != abort {
						t.Errorf("the successor hears %+v, %v, want abort", m, err)
					}
				}
				// Another one gets everything.
				d.did = nil
				again := call(t, control, DefaultLimits)
				var got recorder
				done := make(chan error, 1)
				go func() { done <- again.Take(t.Context(), got.take) }()
				o = within(t, "the end of the second Give", outcome)
				if o.err != nil {
					t.Fatal(o.err)
				}
				o.left.Left()
				if err := within(t, "the end of the second Take", done); err != nil || len(got.did) != 2 {
					t.Errorf("the second successor: %v, did %q", err, got.did)
				}
			})
		}
	}
}

func say(t *testing.T, s *Successor, kind string) {
	t.Helper()
	if err := s.conn.send(&message{Kind: kind}); err != nil {
		t.Fatal(err)
	}
}

func hear(t *testing.T, s *Successor, kind string) {
	t.Helper()
	if _, err := s.conn.expect(kind, 5*time.Second); err != nil {
		t.Fatal(err)
	}
}

// A part that the successor cannot begin with goes back, with those before it.
func TestTakeFails(t *testing.T) {
	for part, want := range map[string][]string{
		Packets: {"offer to new", "release packets", "resume packets", "go on"},
		Store:   {"offer to new", "release packets", "release store", "resume store", "resume packets", "go on"},
	} {
		d, _ := newDaemon(t, Packets, Store)
		control, outcome := serve(t, d, DefaultLimits)
		broken := errors.New("the disk is full")
		got := recorder{err: map[string]error{part: broken}}
		if err := call(t, control, DefaultLimits).Take(t.Context(), got.take); !errors.Is(err, broken) {
			t.Errorf("Take ends with %v", err)
		}
		if o := within(t, "the end of Give", outcome); o.err == nil || !strings.Contains(o.err.Error(), "the disk is full") {
			t.Errorf("Give ends with %v, want the successor's reason", o.err)
		}
		d.expect(t, want...)
	}
}

// A successor that is stopped before it has everything leaves it all.
func TestTakeCancelled(t *testing.T) {
	d, _ := newDaemon(t, Packets, Store)
	control, outcome := serve(t, d, DefaultLimits)
	ctx, cancel := context.WithCancel(t.Context())
	err := call(t, control, DefaultLimits).Take(ctx, func(part string, _ json.RawMessage) error {
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Take ends with %v", err)
	}
	if o := within(t, "the end of Give", outcome); o.err == nil {
		t.Error("Give says that all is handed over")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.did[len(d.did)-1] != "go on" {
		t.Errorf("the predecessor did %q", d.did)
	}
}
