//go:build linux

package handover

import (
	"encoding/json"
	"net"
	"os"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// FuzzReceive: bytes that are no message are refused without a panic, and what is one is the same after it was
// sent on. Descriptors that came are handed out under their names, or closed.
func FuzzReceive(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x10{\"kind\":\"hello\"}"), uint8(0))
	f.Add([]byte("\x00\x00\x00\x2a{\"kind\":\"offer\",\"body\":{},\"files\":[\"tun\"]}"), uint8(1))
	f.Add([]byte("\xff\xff\xff\xff"), uint8(2))
	f.Add([]byte{}, uint8(3))
	f.Fuzz(func(t *testing.T, data []byte, files uint8) {
		if len(data) >= 4 && data[0] == 0 && data[1] > 1 {
			return // a length that is allowed, and only takes memory
		}
		before := openFiles(t)
		here, there := pair(t)
		var oob []byte
		if n := int(files % 4); n > 0 && len(data) > 0 { // descriptors come with a byte at least
			fds := make([]int, n)
			for i := range fds {
				fds[i] = int(os.Stderr.Fd())
			}
			oob = unix.UnixRights(fds...)
		}
		if _, _, err := there.unix.WriteMsgUnix(data, oob, nil); err != nil {
			t.Fatal(err)
		}
		there.unix.CloseWrite()
		m, err := here.receive(time.Second)
		if err == nil {
			checkSentOn(t, here, there, m)
			m.close()
		}
		here.unix.Close()
		there.unix.Close()
		if after := openFiles(t); after != before {
			t.Fatalf("%d files open, before %d (%v)", after, before, err)
		}
	})
}

// checkSentOn sends a message the other way and compares.
func checkSentOn(t *testing.T, from, to conn, m *message) {
	t.Helper()
	if err := from.send(m); err != nil {
		t.Fatal(err)
	}
	again, err := to.receive(time.Second)
	if err != nil {
		t.Fatalf("cannot receive what was sent: %v", err)
	}
	defer again.close()
	a, errA := json.Marshal(m)
	b, errB := json.Marshal(again)
	if errA != nil || errB != nil || !reflect.DeepEqual(a, b) || len(m.files) != len(again.files) {
		t.Fatalf("%s with %d files came as %s with %d", a, len(m.files), b, len(again.files))
	}
}

// pair is both ends of a connection.
func pair(t *testing.T) (a, b conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	end := func(fd int) conn {
		f := os.NewFile(uintptr(fd), "")
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		return conn{c.(*net.UnixConn)}
	}
	return end(fds[0]), end(fds[1])
}

func openFiles(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}
