//go:build linux

// Package netnstest gives a test a network namespace of its own. Like net/http/httptest it is imported by tests only.
package netnstest

import (
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netns"
)

// RequireRoot skips the test without root, or fails it where the environment variable CI says that every test must run.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("this test needs root and CI is set")
	}
	t.Skip("needs root")
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
