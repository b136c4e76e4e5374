//go:build linux

package kernel

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"muslin/tunnel/netnstest"
)

// dropNetAdmin takes CAP_NET_ADMIN from this goroutine's thread, which ends with the test.
func dropNetAdmin(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread must not serve anybody else
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		t.Fatal(err)
	}
	sets[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	if err := unix.Capset(&header, &sets[0]); err != nil {
		t.Fatal(err)
	}
}

// Root in a namespace of its own on a kernel newer than every feature's minimum: a No here means that the
// probe is wrong, not the kernel.
func TestProbesAsRoot(t *testing.T) {
	netnstest.RequireRoot(t)
	runtime.LockOSThread() // never unlocked
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	probes := []Probe{NetAdmin(), TUNDevice(TUNPath), TUNCreate(TUNPath)}
	seen := make(map[string]bool)
	for _, p := range probes {
		if p.Answer != Yes || p.Reason == "" || seen[p.Name] {
			t.Errorf("%s: %v (%s)", p.Name, p.Answer, p.Reason)
		}
		seen[p.Name] = true
	}
	if err := Preflight(); err != nil {
		t.Errorf("Preflight() = %v", err)
	}
	devices, err := os.ReadFile("/proc/thread-self/net/dev")
	if err != nil || !strings.Contains(string(devices), "lo:") {
		t.Fatalf("cannot look for what the probes left: %v\n%s", err, devices)
	}
	if strings.Contains(string(devices), "mprobe") {
		t.Errorf("a probe left its device:\n%s", devices)
	}
}

func TestWithoutNetAdmin(t *testing.T) {
	netnstest.RequireRoot(t)
	dropNetAdmin(t)
	for _, p := range []Probe{NetAdmin(), TUNCreate(TUNPath)} {
		if p.Answer != No {
			t.Errorf("%s: %v (%s), want no", p.Name, p.Answer, p.Reason)
		}
	}
	err := Preflight()
	var want *NotPrivilegedError
	if !errors.As(err, &want) || !errors.Is(err, unix.EPERM) {
		t.Fatalf("Preflight() = %v, want a NotPrivilegedError", err)
	}
	for _, word := range []string{"CAP_NET_ADMIN", "run as root"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not say %q", err, word)
		}
	}
}

func TestPreflightTUN(t *testing.T) {
	netnstest.RequireRoot(t)
	dir := t.TempDir()
	node := func(name string, mode uint32, dev uint64) string {
		path := filepath.Join(dir, name)
		if err := unix.Mknod(path, unix.S_IFCHR|mode, int(dev)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		name, path string
		is         error
		advice     string
	}{
		{"missing", filepath.Join(dir, "absent"), fs.ErrNotExist, "--device=/dev/net/tun"},
		{"no driver", node("nodriver", 0o600, unix.Mkdev(120, 77)), unix.ENXIO, "modprobe tun"},
		{"another driver", node("null", 0o600, unix.Mkdev(1, 3)), unix.ENOTTY, "mknod"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := preflight(c.path)
			var want *NoTUNError
			if !errors.As(err, &want) {
				t.Fatalf("preflight() = %v, want a NoTUNError", err)
			}
			if !errors.Is(err, c.is) {
				t.Errorf("%v is not %v", err, c.is)
			}
			if !strings.Contains(err.Error(), c.advice) || !strings.Contains(err.Error(), c.path) {
				t.Errorf("%q does not say %q and %q", err, c.advice, c.path)
			}
		})
	}
}

func TestUnknownIsNotARefusal(t *testing.T) {
	if p := TUNCreate(t.TempDir() + "/absent"); p.Answer != Unknown || p.Err == nil || p.Reason == "" {
		t.Errorf("TUNCreate without a driver = %+v, want unknown", p)
	}
	if got := (Probe{}).Answer.String(); got != "unknown" {
		t.Errorf("zero Answer = %q", got)
	}
}

func TestUname(t *testing.T) {
	h, err := Uname()
	if err != nil {
		t.Fatal(err)
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	if h.Release != strings.TrimSpace(string(release)) || h.System != "Linux" || h.Machine == "" {
		t.Errorf("Uname() = %+v", h)
	}
	if want := "Linux " + h.Release + " " + h.Machine; h.String() != want {
		t.Errorf("String() = %q, want %q", h, want)
	}
}
