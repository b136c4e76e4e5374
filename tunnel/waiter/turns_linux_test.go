package waiter

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// follower is a File that reads from a pipe and follows t, and the pipe's other end.
func follower(t *testing.T, turns *Turns, d Direction) (*File, int) {
	t.Helper()
	f, other := pipe(t, true)
	f.Follow(turns, d)
	return f, other
}

// take waits for a byte and reads it.
func take(f *File) error {
	if err := wait(f, unix.POLLIN); err != nil {
		return err
	}
	fd, err := f.Begin()
	if err != nil {
		return err
	}
	defer f.End()
	var b [1]byte
	if _, err := unix.Read(fd, b[:]); err != nil {
		return err
	}
	f.Carried(1, 1)
	return nil
}

var someByte = []byte{1}

// Requests and answers, as fast as they go: the readers of both directions stay awake for each other.
func TestTurnsAreNoticed(t *testing.T) {
	turns := new(Turns)
	out, request := follower(t, turns, Outbound)
	in, answer := follower(t, turns, Inbound)
	const rounds = 2000
	done := make(chan error, 1)
	go func() {
		for range rounds {
			if err := take(out); err != nil {
				done <- err
				return
			}
			if _, err := unix.Write(answer, someByte); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for range rounds {
		if _, err := unix.Write(request, someByte); err != nil {
			t.Fatal(err)
		}
		if err := take(in); err != nil {
			t.Fatal(err)
		}
	}
	if err := within(t, "the answers", done); err != nil {
		t.Fatal(err)
	}
	if turns.Awake() == 0 {
		t.Error("nobody stayed awake")
	}
}

// What goes one way only finds its reader asleep, however soon the next packet is there.
func TestOneWayIsNoTurn(t *testing.T) {
	turns := new(Turns)
	out, other := follower(t, turns, Outbound)
	for range 500 {
		if _, err := unix.Write(other, someByte); err != nil {
			t.Fatal(err)
		}
		if err := take(out); err != nil {
			t.Fatal(err)
		}
	}
	if awake := turns.Awake(); awake != 0 {
		t.Errorf("awake for %v", awake)
	}
}

// What each condition for staying awake does by itself.
func TestBegin(t *testing.T) {
	const at = time.Second
	for name, c := range map[string]struct {
		change func(*turn)
		want   bool
	}{
		"by turns, and soon":       {func(*turn) {}, true},
		"the other was not there":  {func(u *turn) { u.seen = 1 }, false},
		"the last wait was long":   {func(u *turn) { u.soon = false }, false},
		"the processor is crowded": {func(u *turn) { u.until = at + 1 }, false},
		"it was":                   {func(u *turn) { u.until = at }, true},
		"much comes in":            {func(u *turn) { u.turns.bulk[Inbound].Store(true) }, false},
		"much goes out":            {func(u *turn) { u.turns.bulk[Outbound].Store(true) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			turns := new(Turns)
			turns.waits[Inbound].Store(1)
			u := &turn{turns: turns, direction: Outbound, soon: true}
			c.change(u)
			if got := u.begin(at); got != c.want {
				t.Errorf("stays awake: %t, want %t", got, c.want)
			}
			if turns.waits[Outbound].Load() != 1 {
				t.Error("the wait was not noted")
			}
		})
	}
}

func TestCarried(t *testing.T) {
	turns := new(Turns)
	f, _ := follower(t, turns, Inbound)
	for _, c := range []struct {
		packets, bytes int
		bulk           bool
	}{
		{1, 100, false}, {fewPackets, fewBytes, false}, {fewPackets + 1, 64, true}, {1, 64, false}, {1, fewBytes + 1, true},
	} {
		if f.Carried(c.packets, c.bytes); turns.bulk[Inbound].Load() != c.bulk {
			t.Errorf("%d packets, the first of %d bytes: bulk %t, want %t", c.packets, c.bytes, !c.bulk, c.bulk)
		}
	}
	if turns.bulk[Outbound].Load() {
		t.Error("it is the other direction's, too")
	}
}

// expectant is a follower that stays awake at its next wait.
func expectant(t *testing.T) *File {
	t.Helper()
	turns := new(Turns)
	f, _ := follower(t, turns, Outbound)
	f.turn.soon = true
	turns.waits[Inbound].Add(1)
	return f
}

// Nobody stays awake for good: what does not come is waited for asleep.
func TestAwakeEnds(t *testing.T) {
	f := expectant(t)
	done := make(chan error, 1)
	go func() { done <- wait(f, unix.POLLIN) }()
	time.Sleep(20 * time.Millisecond)
	awake := f.turn.turns.Awake()
	time.Sleep(20 * time.Millisecond)
	if now := f.turn.turns.Awake(); awake == 0 || now != awake {
		t.Errorf("awake for %v, and later for %v", awake, now)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := within(t, "wake-up by Close", done); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Wait during Close: %v, want os.ErrClosed", err)
	}
	if f.turn.soon {
		t.Error("a wait of 40 ms counts as a short one")
	}
}

func TestPauseEndsAwake(t *testing.T) {
	f := expectant(t)
	if err := f.Pause(); err != nil {
		t.Fatal(err)
	}
	if err := wait(f, unix.POLLIN); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Wait during Pause: %v, want os.ErrDeadlineExceeded", err)
	}
}

// Without Turns nothing is different.
func TestNoTurns(t *testing.T) {
	f, other := follower(t, nil, Outbound)
	if _, err := unix.Write(other, someByte); err != nil {
		t.Fatal(err)
	}
	if err := take(f); err != nil || f.turn != nil {
		t.Errorf("%v, %+v", err, f.turn)
	}
	if awake := (*Turns)(nil).Awake(); awake != 0 {
		t.Errorf("awake for %v", awake)
	}
}

func TestAwakeDoesNotAllocate(t *testing.T) {
	f := expectant(t)
	var fds [3]unix.PollFd
	n := testing.AllocsPerRun(100, func() {
		if f.turn.stayAwake(f, now(), &fds) {
			t.Error("there was something")
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}
