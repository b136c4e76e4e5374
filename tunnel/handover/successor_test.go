//go:build linux

package handover

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

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
