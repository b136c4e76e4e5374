package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lockName is the lock's file in the state directory. It holds the pid of the daemon that has it.
const lockName = "lock"

// errStateInUse says that another process works with the state directory.
var errStateInUse = errors.New("the state directory is in use")

// lockState makes the state directory if need be and locks it: the MAC, the journal of host changes and the
// embedded etcd in it are one daemon's. The lock goes with the returned file, or with the process.
func lockState(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w; give another with --state-dir", err)
	}
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w; give another with --state-dir", err)
	}
	if err := flock(f); err != nil {
		defer f.Close()
		if err != unix.EWOULDBLOCK {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		holder, _ := os.ReadFile(path)
		return nil, fmt.Errorf("%w: process %s runs with %s", errStateInUse, strings.TrimSpace(string(holder)), dir)
	}
	if err := writePID(f); err != nil {
		f.Close()
		hint := ""
		if errors.Is(err, unix.ENOSPC) {
			hint = ": make room on its disk, or give another --state-dir, below /run for example (there a boot takes it away)"
		}
		return nil, fmt.Errorf("lock %s: %w%s", path, err, hint)
	}
	return f, nil
}

// dying is how long a daemon that was killed may take until the kernel has closed its files.
const dying = time.Second

// flock waits that long for the lock.
func flock(f *os.File) error {
	for late := time.Now().Add(dying); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EWOULDBLOCK || time.Now().After(late) {
			return err
		}
	}
}

// writePID writes who we are into the lock's file.
func writePID(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt(fmt.Appendln(nil, os.Getpid()), 0)
	return err
}
