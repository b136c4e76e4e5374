//go:build linux

package handover

import (
	"bytes"
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

// A predecessor that refuses, or cannot stop, goes on, and the successor hears why.
func TestPredecessorGoesOn(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*daemon)
		took   []string
		did    []string
	}{
		{"refuses", func(d *daemon) { d.refusal = errors.New("cannot stop") }, nil, []string{"offer to new"}},
		{"keeps its packets", func(d *daemon) { d.keep = Packets }, nil, []string{"offer to new", "keep packets", "go on"}},
		{"keeps its store", func(d *daemon) { d.keep = Store }, []string{`take packets {"revision":7}`},
			[]string{"offer to new", "release packets", "keep store", "resume packets", "go on"}},
	} {
		d, _ := newDaemon(t, Packets, Store)
		c.change(d)
		control, outcome := serve(t, d, DefaultLimits)
		var got recorder
		s, err := Call(t.Context(), control, Hello{Version: "new"}, DefaultLimits)
		if err == nil {
			err = s.Take(t.Context(), got.take)
		}
		other := new(OtherError)
		if !errors.As(err, &other) || !strings.Contains(err.Error(), "cannot stop") {
			t.Errorf("%s: the successor hears %v", c.name, err)
		}
		if o := within(t, "the end of Give", outcome); o.err == nil {
			t.Errorf("%s: Give says that all is handed over", c.name)
		}
		if !slices.Equal(got.did, c.took) {
			t.Errorf("%s: the successor did %q, want %q", c.name, got.did, c.took)
		}
		d.expect(t, c.did...)
	}
}

// predecessor plays a predecessor by hand until ready was heard.
func predecessor(t *testing.T) (conn, *Successor) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "")
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		t.Cleanup(func() { c.Close() })
		ends[i] = conn{c.(*net.UnixConn)}
	}
	return ends[0], &Successor{conn: ends[1], limits: quick, Offer: Offer{Parts: []string{Packets, Store}}}
}

// A predecessor that dies leaves everything to its successor, at whichever point.
func TestPredecessorDies(t *testing.T) {
	for name, steps := range map[string]func(c conn){
		"at once":                     func(conn) {},
		"after the packets are given": func(c conn) { c.send(&message{Kind: yours, Part: Packets}) },
		"after the packets are taken": func(c conn) {
			c.send(&message{Kind: yours, Part: Packets})
			c.expect(taken, time.Second)
		},
		"after the store is taken": func(c conn) {
			c.send(&message{Kind: yours, Part: Packets})
			c.expect(taken, time.Second)
			c.send(&message{Kind: yours, Part: Store})
			c.expect(taken, time.Second)
		},
		"in the middle of a message": func(c conn) { c.unix.Write([]byte{0, 0, 1}) },
	} {
		c, s := predecessor(t)
		go func() {
			c.expect(ready, time.Second)
			steps(c)
			c.unix.Close()
		}()
		var got recorder
		if err := s.Take(t.Context(), got.take); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if want := []string{"take packets", "take store"}; !slices.Equal(got.did, want) {
			t.Errorf("%s: the successor did %q, want %q", name, got.did, want)
		}
	}
}

// One that gave up waiting long ago has said so, and that counts, though the connection is closed by now.
func TestPredecessorGaveUpWaiting(t *testing.T) {
	c, s := predecessor(t)
	if err := c.send(&message{Kind: abort, Reason: "too late"}); err != nil {
		t.Fatal(err)
	}
	c.unix.Close()
	var got recorder
	other := new(OtherError)
	if err := s.Take(t.Context(), got.take); !errors.As(err, &other) || err.Error() != "too late" || len(got.did) != 0 {
		t.Errorf("Take ends with %v, after %q", err, got.did)
	}
}

// One that hangs before everything is handed over is not replaced; one that hangs afterwards does not matter.
func TestPredecessorHangs(t *testing.T) {
	c, s := predecessor(t)
	var got recorder
	if err := s.Take(t.Context(), got.take); !errors.Is(err, errLate) || len(got.did) != 0 {
		t.Errorf("Take ends with %v, after %q", err, got.did)
	}
	if m, err := c.receive(time.Second); err != nil || m.Kind != ready {
		t.Errorf("it hears %+v, %v", m, err)
	}
	if _, err := c.expect(taken, time.Second); err == nil || !strings.Contains(err.Error(), errLate.Error()) {
		t.Errorf("it hears %v, want why it was not replaced", err)
	}
	c, s = predecessor(t)
	go func() {
		for _, part := range s.Offer.Parts {
			c.send(&message{Kind: yours, Part: part})
		}
	}()
	if err := s.Take(t.Context(), got.take); err != nil || len(got.did) != 2 {
		t.Errorf("Take ends with %v, after %q", err, got.did)
	}
}

func TestCallWithoutPredecessor(t *testing.T) {
	dir := t.TempDir()
	if _, err := Call(t.Context(), filepath.Join(dir, "none"), Hello{}, quick); !errors.Is(err, ErrNobody) {
		t.Errorf("no socket: %v, want ErrNobody", err)
	}
	dead := filepath.Join(dir, "dead")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := Call(t.Context(), dead, Hello{}, quick); !errors.Is(err, ErrNobody) {
		t.Errorf("a dead daemon's socket: %v, want ErrNobody", err)
	}
}

// A daemon that knows of no handover, or of another one, is not bothered.
func TestCallOfAnotherVersion(t *testing.T) {
	control := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", control)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.NewServeMux()}
	go server.Serve(l)
	defer server.Close()
	if _, err := Call(t.Context(), control, Hello{}, DefaultLimits); err == nil || !strings.Contains(err.Error(), "cannot hand over") {
		t.Errorf("a version without handover: %v", err)
	}

	d, _ := newDaemon(t, Packets)
	control, outcome := serve(t, d, DefaultLimits)
	s := &Successor{limits: DefaultLimits}
	c, err := net.Dial("unix", control)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s.conn = conn{c.(*net.UnixConn)}
	if err := s.upgrade(); err != nil {
		t.Fatal(err)
	}
	s.conn.send(&message{Kind: hello, Body: json.RawMessage(`{"protocol":2,"version":"v9"}`)})
	other := new(OtherError)
	if _, err := s.conn.expect(offer, time.Second); !errors.As(err, &other) || !strings.Contains(err.Error(), "v9, speaks 2") {
		t.Errorf("handover 2: %v", err)
	}
	within(t, "the end of Give", outcome)
	d.expect(t)
}

// A request without the upgrade, as a browser's, changes nothing.
func TestAcceptWithoutUpgrade(t *testing.T) {
	d, _ := newDaemon(t, Packets)
	control, outcome := serve(t, d, DefaultLimits)
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", control)
	}}}
	defer client.CloseIdleConnections()
	r, err := client.Post("http://muslin"+Path, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("status %s", r.Status)
	}
	within(t, "the outcome", outcome)
	d.expect(t)
}

func TestLongMessage(t *testing.T) {
	c, s := predecessor(t)
	body, err := json.Marshal(bytes.Repeat([]byte("x"), 4<<20))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- c.send(&message{Kind: offer, Body: body}) }()
	m, err := s.conn.receive(5 * time.Second)
	if err != nil || !bytes.Equal(m.Body, body) {
		t.Errorf("received %d bytes, %v", len(m.Body), err)
	}
	if err := within(t, "send", done); err != nil {
		t.Error(err)
	}
}

// A listener whose copy is sent stays non-blocking: else only another connection would end its Accept.
func TestSentListenerStaysNonBlocking(t *testing.T) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "socket"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	c, s := predecessor(t)
	if err := c.send(&message{Kind: offer, Names: []string{"control"}, files: []*os.File{file}}); err != nil {
		t.Fatal(err)
	}
	m, err := s.conn.receive(time.Second)
	if err != nil {
		t.Fatal(err)
	}
	m.close()
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
		if err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("flags %#x, %v: blocking", flags, err)
		}
	}); err != nil {
		t.Fatal(err)
	}
}

// Nothing that is passed on, or not, stays open.
func TestNoDescriptorLeaks(t *testing.T) {
	open := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	c, s := predecessor(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	before := open()
	for _, m := range []message{
		{Kind: offer, Names: []string{"a", "b"}, files: []*os.File{r, w}},
		{Kind: offer, Names: []string{"a"}, files: []*os.File{r, w}}, // one without a name
		{Kind: abort, files: []*os.File{r}},
	} {
		if err := c.send(&m); err != nil {
			t.Fatal(err)
		}
		if got, err := s.conn.receive(time.Second); err == nil {
			got.close()
		}
		if n := open(); n != before {
			t.Errorf("%d files open, before it %d", n, before)
		}
	}
	many := message{Kind: offer}
	for range most + 1 {
		many.files = append(many.files, r)
	}
	if err := c.send(&many); err == nil {
		t.Error("more descriptors were sent than fit")
	}
}
