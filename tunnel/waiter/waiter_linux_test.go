package waiter

import (
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pipe returns a File over the non-blocking end of a pipe that the test reads or writes, and the other
// end.
func pipe(t *testing.T, reading bool) (*File, int) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	mine, other := p[0], p[1]
	if !reading {
		mine, other = other, mine
	}
	f, err := New(mine)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.Close()
		unix.Close(other)
	})
	return f, other
}

// wait is one use of f that waits for events.
func wait(f *File, events int16) error {
	var fds [3]unix.PollFd
	if _, err := f.Begin(); err != nil {
		return err
	}
	defer f.End()
	return f.Wait(events, &fds)
}

// within fails the test when nothing comes out of done in ten seconds.
func within[T any](t *testing.T, what string, done <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: nothing in 10 seconds", what)
	}
	return v
}

func TestWaitSeesWhatIsThere(t *testing.T) {
	f, other := pipe(t, true)
	if _, err := unix.Write(other, []byte("x")); err != nil {
		t.Fatal(err)
	}
	// Level-triggered: it is there until it is read.
	for range 2 {
		if err := wait(f, unix.POLLIN); err != nil {
			t.Fatal(err)
		}
	}
	writer, _ := pipe(t, false)
	if err := wait(writer, unix.POLLOUT); err != nil {
		t.Fatal(err)
	}
}

func TestWaitIsWokenByData(t *testing.T) {
	f, other := pipe(t, true)
	begun, done := make(chan struct{}), make(chan error, 1)
	go func() {
		var fds [3]unix.PollFd
		if _, err := f.Begin(); err != nil {
			t.Error(err)
		}
		close(begun)
		done <- f.Wait(unix.POLLIN, &fds)
		f.End()
	}()
	<-begun
	if _, err := unix.Write(other, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := within(t, "wake-up by data", done); err != nil {
		t.Error(err)
	}
}

// The other end's hang-up is there to be met by the next read: no error of Wait.
func TestWaitIsWokenByHangUp(t *testing.T) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	f, err := New(p[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unix.Close(p[1])
	if err := wait(f, unix.POLLIN); err != nil {
		t.Errorf("Wait on a pipe without writers: %v", err)
	}
}

func TestCloseWakesEverybody(t *testing.T) {
	f, _ := pipe(t, true)
	const n = 4
	done := make(chan error, n)
	var begun sync.WaitGroup
	for range n {
		begun.Add(1)
		go func() {
			var fds [3]unix.PollFd
			_, err := f.Begin()
			begun.Done()
			if err != nil {
				done <- err
				return
			}
			defer f.End()
			done <- f.Wait(unix.POLLIN, &fds)
		}()
	}
	begun.Wait()
	closed := make(chan error, 1)
	go func() { closed <- f.Close() }()
	for range n {
		if err := within(t, "wake-up by Close", done); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Wait during Close: %v, want os.ErrClosed", err)
		}
	}
	if err := within(t, "Close", closed); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// Close lets a use that is under way finish with its descriptor.
func TestCloseWaitsForUses(t *testing.T) {
	f, other := pipe(t, true)
	fd, err := f.Begin()
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- f.Close() }()
	deadline := time.Now().Add(10 * time.Second)
	for !f.closed.Load() {
		if time.Now().After(deadline) {
			t.Fatal("Close does not begin")
		}
		time.Sleep(time.Millisecond)
	}
	if _, err := unix.Write(other, []byte("still here")); err != nil {
		t.Fatal(err)
	}
	var b [32]byte
	if n, err := unix.Read(fd, b[:]); err != nil || string(b[:n]) != "still here" {
		t.Errorf("read between Close and End: %q, %v", b[:max(n, 0)], err)
	}
	select {
	case err := <-closed:
		t.Errorf("Close returned (%v) before End", err)
	default:
	}
	f.End()
	if err := within(t, "Close after End", closed); err != nil {
		t.Error(err)
	}
}

func TestUseAfterClose(t *testing.T) {
	f, _ := pipe(t, true)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if fd, err := f.Begin(); !errors.Is(err, os.ErrClosed) || fd != -1 {
		t.Errorf("Begin after Close = %d, %v, want -1 and os.ErrClosed", fd, err)
	}
	if err := f.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("second Close: %v, want os.ErrClosed", err)
	}
}

func TestNoDescriptorLeaks(t *testing.T) {
	var p [2]int
	before := openFiles(t)
	for range 20 {
		if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		f, err := New(p[0])
		if err != nil {
			t.Fatal(err)
		}
		if n := openFiles(t); n != before+4 {
			t.Fatalf("%d files open, want %d, a pipe and two eventfds more", n, before+4)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		unix.Close(p[1])
	}
	if n := openFiles(t); n != before {
		t.Errorf("%d files open, before it were %d", n, before)
	}
}

// A paused reader stands still even before data that is there, and a writer does not notice.
func TestPause(t *testing.T) {
	f, other := pipe(t, true)
	done := make(chan error, 1)
	go func() { done <- wait(f, unix.POLLIN) }()
	if err := f.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := within(t, "wake-up by Pause", done); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Wait during Pause: %v, want os.ErrDeadlineExceeded", err)
	}
	if _, err := unix.Write(other, []byte("x")); err != nil {
		t.Fatal(err)
	}
	for range 2 { // pausing again changes nothing
		if err := wait(f, unix.POLLIN); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Wait after Pause: %v, want os.ErrDeadlineExceeded", err)
		}
		if _, err := f.BeginRead(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("BeginRead after Pause: %v, want os.ErrDeadlineExceeded", err)
		}
		if err := f.Pause(); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := f.Resume(); err != nil {
			t.Fatal(err)
		}
		if err := wait(f, unix.POLLIN); err != nil {
			t.Errorf("Wait after Resume: %v", err)
		}
	}
	if _, err := f.BeginRead(); err != nil {
		t.Errorf("BeginRead after Resume: %v", err)
	} else {
		f.End()
	}
	writer, _ := pipe(t, false)
	if err := writer.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := wait(writer, unix.POLLOUT); err != nil {
		t.Errorf("a paused writer: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"Pause": f.Pause(), "Resume": f.Resume()} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s after Close: %v, want os.ErrClosed", what, err)
		}
	}
}

// A paused File can be closed, and says so to who waits.
func TestCloseWhilePaused(t *testing.T) {
	f, _ := pipe(t, true)
	if err := f.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := wait(f, unix.POLLIN); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Wait after Close: %v, want os.ErrClosed", err)
	}
}

// What was given out goes on after Close, and does not block.
func TestDupOutlivesClose(t *testing.T) {
	f, other := pipe(t, true)
	dup, err := f.Dup()
	if err != nil {
		t.Fatal(err)
	}
	defer dup.Close()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	var b [8]byte
	if _, err := unix.Read(int(dup.Fd()), b[:]); err != unix.EAGAIN {
		t.Errorf("read of an empty pipe: %v, want EAGAIN", err)
	}
	if _, err := unix.Write(other, []byte("later")); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Read(int(dup.Fd()), b[:]); err != nil || string(b[:n]) != "later" {
		t.Errorf("read after Close: %q, %v", b[:max(n, 0)], err)
	}
	if _, err := f.Dup(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Dup after Close: %v, want os.ErrClosed", err)
	}
}

func TestWaitDoesNotAllocate(t *testing.T) {
	f, other := pipe(t, true)
	if _, err := unix.Write(other, []byte("x")); err != nil {
		t.Fatal(err)
	}
	var fds [3]unix.PollFd
	n := testing.AllocsPerRun(100, func() {
		if _, err := f.Begin(); err != nil {
			t.Error(err)
			return
		}
		if err := f.Wait(unix.POLLIN, &fds); err != nil {
			t.Error(err)
		}
		f.End()
	})
	if n != 0 {
		t.Errorf("%v allocations a wait", n)
	}
}

// openFiles is the number of this process's descriptors.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
