//go:build linux

package privilege

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// TryWithout runs try as if the process did not have the given capabilities. try must not start goroutines.
func TryWithout(capabilities Set, try func() error) error {
	result := make(chan error, 1)
	go func() { result <- tryWithout(capabilities, try) }()
	return <-result
}

func tryWithout(capabilities Set, try func() error) error {
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var before [2]unix.CapUserData
	if err := unix.Capget(&header, &before[0]); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("capget: %w", err)
	}
	reduced := before
	for i := range reduced {
		reduced[i].Effective &^= uint32(capabilities >> (32 * i))
	}
	if err := unix.Capset(&header, &reduced[0]); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("capset: %w", err)
	}
	defer func() {
		// What is permitted can be made effective again. A thread of which that is not true stays locked,
		// so that it ends with this goroutine and serves nobody else.
		if unix.Capset(&header, &before[0]) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return try()
}
