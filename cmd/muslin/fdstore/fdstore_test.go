//go:build linux

package fdstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets TestReceived run this binary as a service that systemd has started.
func TestMain(m *testing.M) {
	if os.Getenv("MUSLIN_FDSTORE_SERVICE") == "" {
		os.Exit(m.Run())
	}
	for _, f := range Received() {
		content, err := io.ReadAll(f.File)
		flags, ferr := unix.FcntlInt(f.File.Fd(), unix.F_GETFD, 0)
		fmt.Printf("%s %s close-on-exec %t %v\n", f.Name, content, flags&unix.FD_CLOEXEC != 0, errors.Join(err, ferr))
	}
	fmt.Printf("again %d, LISTEN_FDS=%q\n", len(Received()), os.Getenv("LISTEN_FDS"))
}

// service runs this binary with descriptors from 3 on, as systemd does.
func service(t *testing.T, names string, files ...*os.File) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", `export LISTEN_PID=$$; exec "$0"`, self)
	cmd.Env = append(os.Environ(), "MUSLIN_FDSTORE_SERVICE=1", fmt.Sprintf("LISTEN_FDS=%d", len(files)), "LISTEN_FDNAMES="+names)
	cmd.ExtraFiles = files
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// textFile is an open file with this content.
func textFile(t *testing.T, content string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestReceived(t *testing.T) {
	got := service(t, "tun.10:udp.0:tun.2:varlink:tun.0",
		textFile(t, "k"), textFile(t, "u"), textFile(t, "c"), textFile(t, "foreign"), textFile(t, "a"))
	want := `tun a close-on-exec true <nil>
tun c close-on-exec true <nil>
tun k close-on-exec true <nil>
udp u close-on-exec true <nil>
again 0, LISTEN_FDS=""
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if got := service(t, ""); got != "again 0, LISTEN_FDS=\"\"\n" {
		t.Errorf("nothing kept: %s", got)
	}
}

// message is one that a manager got.
type message struct {
	text  string
	files []*os.File
}

// manager listens as systemd does.
func manager(t *testing.T) (Store, <-chan message) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	got := make(chan message, 10)
	go func() {
		for {
			text, rights := make([]byte, 1000), make([]byte, 1000)
			n, r, _, _, err := conn.ReadMsgUnix(text, rights)
			if err != nil {
				return
			}
			m := message{text: string(text[:n])}
			controls, _ := unix.ParseSocketControlMessage(rights[:r])
			for _, c := range controls {
				fds, _ := unix.ParseUnixRights(&c)
				for _, fd := range fds {
					m.files = append(m.files, os.NewFile(uintptr(fd), "received"))
				}
			}
			got <- m
		}
	}()
	return Open(), got
}

// next is the manager's next message.
func next(t *testing.T, got <-chan message) message {
	t.Helper()
	select {
	case m := <-got:
		return m
	case <-time.After(10 * time.Second):
		t.Fatal("the manager got nothing")
	}
	return message{}
}

func TestKeep(t *testing.T) {
	s, got := manager(t)
	if !s.Exists() {
		t.Fatal("no store")
	}
	if err := s.Keep("tun", []*os.File{textFile(t, "first"), textFile(t, "second")}); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"first", "second"} {
		m := next(t, got)
		if text := fmt.Sprintf("FDSTORE=1\nFDPOLL=0\nFDNAME=tun.%d", i); m.text != text || len(m.files) != 1 {
			t.Fatalf("got %q with %d files, want %q with one", m.text, len(m.files), text)
		}
		if content, err := io.ReadAll(m.files[0]); err != nil || string(content) != want {
			t.Errorf("descriptor %d is of %q, %v; want %q", i, content, err, want)
		}
	}
}

// A non-blocking descriptor stays one: its owner waits on it with poll(2).
func TestKeepLeavesTheModeAlone(t *testing.T) {
	s, _ := manager(t)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	f := os.NewFile(uintptr(fds[0]), "socket")
	defer f.Close()
	if err := s.Keep("udp", []*os.File{f}); err != nil {
		t.Fatal(err)
	}
	if flags, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("flags %#x, %v: want O_NONBLOCK", flags, err)
	}
}

func TestDrop(t *testing.T) {
	s, got := manager(t)
	done := make(chan error, 1)
	go func() { done <- s.Drop(t.Context(), "tun", 2) }()
	for i := range 2 {
		if m, want := next(t, got), fmt.Sprintf("FDSTOREREMOVE=1\nFDNAME=tun.%d", i); m.text != want {
			t.Errorf("got %q, want %q", m.text, want)
		}
	}
	barrier := next(t, got)
	if barrier.text != "BARRIER=1" || len(barrier.files) != 1 {
		t.Fatalf("got %+v, want a barrier", barrier)
	}
	select {
	case err := <-done:
		t.Fatal("did not wait for systemd:", err)
	case <-time.After(50 * time.Millisecond):
	}
	barrier.files[0].Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestDropGivesUp(t *testing.T) {
	s, _ := manager(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	time.AfterFunc(50*time.Millisecond, func() { cancel(why) })
	if err := s.Drop(ctx, "tun", 1); !errors.Is(err, why) {
		t.Errorf("got %v, want %v", err, why)
	}
}

func TestNobodyThere(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if Open().Exists() {
		t.Error("there is a store without a systemd")
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody"))
	err := Open().Keep("tun", []*os.File{textFile(t, "x")})
	if err == nil || !strings.Contains(err.Error(), "tun") {
		t.Errorf("a systemd that does not listen: %v", err)
	}
}
