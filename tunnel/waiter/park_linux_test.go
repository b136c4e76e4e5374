package waiter

import (
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"muslin/tunnel/racetest"
)

// parked is a File whose reader parks, and the other end of its socket.
func parked(t *testing.T) (f *File, other int) {
	t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f, err = New(ends[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Park(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close(); unix.Close(ends[1]) })
	return f, ends[1]
}

// read waits for a datagram as a queue does.
func read(f *File, fds *[3]unix.PollFd) (int, error) {
	fd, err := f.BeginRead()
	if err != nil {
		return 0, err
	}
	defer f.End()
	var buf [8]byte
	for {
		n, err := unix.Read(fd, buf[:])
		if err != unix.EAGAIN {
			return n, err
		}
		if err := f.Wait(unix.POLLIN, fds); err != nil {
			return 0, err
		}
	}
}

// Each datagram is met, whether it comes before the reader waits, while it does, or in between.
func TestParkMissesNothing(t *testing.T) {
	f, other := parked(t)
	const n = 50_000
	var got atomic.Int64
	ended := make(chan error, 1)
	go func() {
		var fds [3]unix.PollFd
		for got.Load() < n {
			if _, err := read(f, &fds); err != nil {
				ended <- err
				return
			}
			got.Add(1)
		}
		ended <- nil
	}()
	go func() {
		for i := 0; i < n; {
			switch _, err := unix.Write(other, []byte{1}); err {
			case nil:
				i++
				if i%97 == 0 {
					time.Sleep(time.Microsecond)
				}
			default:
				time.Sleep(10 * time.Microsecond) // the reader is slower
			}
		}
	}()
	select {
	case err := <-ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(60 * time.Second):
		t.Fatalf("%d of %d datagrams", got.Load(), n)
	}
}

func TestParkEnds(t *testing.T) {
	f, other := parked(t)
	results := make(chan error)
	go func() {
		var fds [3]unix.PollFd
		for {
			_, err := read(f, &fds)
			results <- err
			if errors.Is(err, os.ErrClosed) {
				return
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				time.Sleep(time.Millisecond)
			}
		}
	}()
	expect := func(want error) {
		t.Helper()
		select {
		case err := <-results:
			if !errors.Is(err, want) {
				t.Fatalf("%v, want %v", err, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("it waits; want %v", want)
		}
	}
	send := func() {
		if _, err := unix.Write(other, []byte{1}); err != nil {
			t.Error(err)
		}
	}
	for range 3 {
		time.Sleep(10 * time.Millisecond) // the reader waits
		send()
		expect(nil)
		time.Sleep(10 * time.Millisecond)
		if err := f.Pause(); err != nil {
			t.Fatal(err)
		}
		expect(os.ErrDeadlineExceeded)
		expect(os.ErrDeadlineExceeded)
		send() // waits for the reader
		if err := f.Resume(); err != nil {
			t.Fatal(err)
		}
		for err := range results {
			if err == nil {
				break
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
		}
	}
	time.Sleep(10 * time.Millisecond)
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	expect(os.ErrClosed)
}

func TestParkDoesNotAllocate(t *testing.T) {
	if racetest.Enabled {
		t.Skip("the race detector allocates")
	}
	f, other := parked(t)
	go func() {
		for {
			if _, err := unix.Write(other, []byte{1}); err != nil && err != unix.EAGAIN {
				return
			}
			time.Sleep(100 * time.Microsecond)
		}
	}()
	fds := new([3]unix.PollFd)
	if n := testing.AllocsPerRun(200, func() {
		if _, err := read(f, fds); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for each wait", n)
	}
}
