//go:build linux

package handover

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

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
	c, s := predecessor(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	before := openFiles(t)
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
		if n := openFiles(t); n != before {
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
