//go:build linux

// Package fdstore keeps descriptors with systemd, so that they outlive the process, and gets them back
// (FileDescriptorStoreMax= in systemd.service(5); FDSTORE=1 in sd_notify(3); sd_listen_fds(3)).
//
// What waits in a socket's buffer or a device's queue meanwhile is not lost. The package does not look at what a
// descriptor is: whether it still is what its owner wants is the owner's affair.
package fdstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// Store is systemd's, for this service. The zero Store keeps nothing: there is no systemd.
type Store struct {
	socket string
}

// Open returns the store of the service that this process is, by its environment.
func Open() Store { return Store{socket: os.Getenv("NOTIFY_SOCKET")} }

// Exists reports whether there is a systemd. It may still keep nothing, if the unit does not say how much.
func (s Store) Exists() bool { return s.socket != "" }

// Keep gives systemd descriptors by a name. They stay the caller's to close. systemd is not to watch them
// (FDPOLL=0, since 246): every packet would wake it.
func (s Store) Keep(name string, files []*os.File) error {
	for i, f := range files {
		if err := s.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+numbered(name, i), f); err != nil {
			return fmt.Errorf("leave %s with systemd: %w", name, err)
		}
	}
	return nil
}

// Drop has systemd close what it keeps of a name, and waits until it has.
func (s Store) Drop(ctx context.Context, name string, count int) error {
	for i := range count {
		if err := s.send("FDSTOREREMOVE=1\nFDNAME=" + numbered(name, i)); err != nil {
			return fmt.Errorf("have systemd forget %s: %w", name, err)
		}
	}
	return s.wait(ctx)
}

// wait returns when systemd has read everything that was sent. It closes what comes with BARRIER=1 then (since
// 246); an older one closes it at once, as it does whatever it has no use for.
func (s Store) wait(ctx context.Context) error {
	here, there, err := os.Pipe()
	if err != nil {
		return err
	}
	defer here.Close()
	err = s.send("BARRIER=1", there)
	there.Close()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	defer context.AfterFunc(ctx, func() { here.Close() })()
	if _, err := here.Read(make([]byte, 1)); errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("wait for systemd: %w", context.Cause(ctx))
	}
	return nil
}

// send sends a message of sd_notify(3), with descriptors. It waits while systemd has much to read.
func (s Store) send(state string, files ...*os.File) error {
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(socket)
	var fds []int
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		// Not Fd, which would take the file out of its non-blocking mode.
		if err := raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) }); err != nil {
			return err
		}
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for {
		err := unix.Sendmsg(socket, []byte(state), rights, &unix.SockaddrUnix{Name: s.socket}, 0)
		if err != unix.EINTR {
			runtime.KeepAlive(files)
			return os.NewSyscallError("sendmsg", err)
		}
	}
}

// numbered is the name under which systemd keeps the descriptor: it returns those of one name in no order.
func numbered(name string, i int) string { return name + "." + strconv.Itoa(i) }

// File is a descriptor that systemd has kept.
type File struct {
	Name string // as given to Keep
	File *os.File
}

// Received returns what systemd has kept for this service over the end of the last process, those of one name in
// the order in which they were given. They are the caller's to close; systemd has them still. A second call
// returns none.
func Received() []File {
	type kept struct {
		File
		number int
	}
	var all []kept
	for _, f := range activation.Files(true) {
		name, number, ok := cutNumber(f.Name())
		if !ok { // not from Keep: a socket unit's
			f.Close()
			continue
		}
		all = append(all, kept{File{name, f}, number})
	}
	slices.SortFunc(all, func(a, b kept) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.number, b.number))
	})
	var files []File
	for _, k := range all {
		files = append(files, k.File)
	}
	return files
}

func cutNumber(text string) (name string, number int, ok bool) {
	i := strings.LastIndexByte(text, '.')
	if i <= 0 {
		return "", 0, false
	}
	number, err := strconv.Atoi(text[i+1:])
	return text[:i], number, err == nil
}
