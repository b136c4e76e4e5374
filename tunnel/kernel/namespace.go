//go:build linux

package kernel

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// onOwnThread starts f on a thread that serves nobody else, and that ends with f. f may put it into another
// network namespace.
func onOwnThread(f func()) {
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		// The main thread would stay, and /proc/self is what it sees. While it is held here, the goroutine
		// that does the work cannot get it.
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread()
			f()
		}()
		<-done
		runtime.UnlockOSThread()
	}()
}

// enterNamespace puts the calling thread into a fresh network namespace. leave takes it back, and the
// namespace goes when nothing in it is open any more.
func enterNamespace() (leave func(), err error) {
	// /proc/thread-self is there since Linux 3.17 only.
	home, err := unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the own one: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		unix.Close(home)
		return nil, os.NewSyscallError("unshare", err)
	}
	return func() {
		// If that fails, the end of the thread does the same.
		_ = unix.Setns(home, unix.CLONE_NEWNET)
		unix.Close(home)
	}, nil
}
