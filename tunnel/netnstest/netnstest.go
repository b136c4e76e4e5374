//go:build linux

// Package netnstest gives a test network namespaces of its own. Like net/http/httptest it is imported by tests only.
package netnstest

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// RequireRoot skips the test without root, or fails it where the environment variable CI says that every test must run.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Lacks(t, "root")
	}
}

// Lacks skips a test that needs what is not there, or fails it where the environment variable CI says that every test
// must run.
func Lacks(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("this test needs %s and CI is set", what)
	}
	t.Skipf("needs %s", what)
}

// Enter moves the test's goroutine and its thread into a fresh network namespace, which ends with the test. It needs
// root.
func Enter(t testing.TB) {
	t.Helper()
	RequireRoot(t)
	runtime.LockOSThread()
	before, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	here, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		here.Close()
		defer before.Close()
		// A thread that cannot go back stays locked and dies with the goroutine.
		if err := netns.Set(before); err != nil {
			t.Error(err)
			return
		}
		runtime.UnlockOSThread()
	})
}

// Namespace is a network namespace with a thread of its own, which runs what is to happen in it.
type Namespace struct {
	Thread int // its id, by which ip-link(8) finds the namespace
	calls  chan func()
}

// New makes a namespace, which ends with the test. It needs root.
func New(t testing.TB) *Namespace {
	t.Helper()
	RequireRoot(t)
	n := &Namespace{calls: make(chan func())}
	begun := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the namespace ends with the thread
		n.Thread = unix.Gettid()
		begun <- unix.Unshare(unix.CLONE_NEWNET)
		for f := range n.calls {
			f()
		}
	}()
	if err := <-begun; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(n.calls) })
	return n
}

// Do runs f inside, and fails the test with its error.
func (n *Namespace) Do(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error)
	n.calls <- func() { done <- f() }
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// AwaitIPv6 waits until this host takes what is sent to some addresses that it was given. The kernel sees to that a moment
// later, from a queue of its own (addrconf_dad_work in net/ipv6/addrconf.c).
func (n *Namespace) AwaitIPv6(t testing.TB, addrs ...netip.Addr) {
	t.Helper()
	for _, a := range addrs {
		n.Sh(t, fmt.Sprintf("for i in $(seq 1000); do ip -6 route show table local | grep -q '^local %v ' && exit; sleep 0.01; done; exit 1", a))
	}
}

// Sh runs a shell script inside and returns its output. A command that fails ends it, and the test.
func (n *Namespace) Sh(t testing.TB, script string) (out string) {
	t.Helper()
	n.Do(t, func() error {
		b, err := exec.Command("sh", "-ec", script).CombinedOutput()
		out = string(b)
		if err != nil {
			return fmt.Errorf("%w: %s in\n%s", err, b, script)
		}
		return nil
	})
	return out
}
