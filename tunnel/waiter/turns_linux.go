package waiter

import (
	"math/bits"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Turns notices when packets go out and come in by turns, as requests and answers do. The next one is then likely to
// be there soon, and the worker that it will meet stays awake for it, so that nobody has to wake a processor that
// has halted meanwhile. It yields to everything else that wants the processor (docs/decisions/busy-poll.md). A nil
// *Turns has everybody sleep.
type Turns struct {
	waits [2]atomic.Uint32 // by direction: how often its workers ran out of packets
	bulk  [2]atomic.Bool   // by direction: the last batch was no mere request or answer
	awake atomic.Int64     // ns, of all workers
}

// Direction is whose packets a File's reader waits for.
type Direction int

const (
	Outbound Direction = iota
	Inbound
)

const (
	// awakeMost is how long a worker stays awake at most, and how long its last wait may have been for it to do so at
	// all. It is what KVM takes for the same purpose (halt_poll_ns).
	awakeMost = 200 * time.Microsecond

	// A processor that does not come back for crowded after it was yielded has other work, or the machine had, if it
	// is virtual; a packet may have had to wait for that. When it happens twice in 16 times, the worker sleeps as ever
	// for restShare times as long as it took.
	crowded   = 100 * time.Microsecond
	restShare = 100
)

// Awake is how long workers stayed awake waiting so far, all of them together.
func (t *Turns) Awake() time.Duration {
	if t == nil {
		return 0
	}
	return time.Duration(t.awake.Load())
}

// Follow has the reader of f take part in t. Call it before the first Wait; f has one reader only.
func (f *File) Follow(t *Turns, d Direction) {
	if t != nil {
		f.turn = &turn{turns: t, direction: d}
	}
}

// Beyond so much a batch is bulk: where there is much to carry, a wake-up is little of the cost.
const (
	fewPackets = 4
	fewBytes   = 4 << 10
)

// Carried tells of a batch that was read from f: how many packets, and the bytes of the first.
func (f *File) Carried(packets, bytes int) {
	if f.turn == nil {
		return
	}
	bulk := packets > fewPackets || bytes > fewBytes
	if last := &f.turn.turns.bulk[f.turn.direction]; last.Load() != bulk {
		last.Store(bulk)
	}
}

// turn is a reader's part in Turns.
type turn struct {
	turns     *Turns
	direction Direction
	seen      uint32        // of the other direction's waits, at the last wait
	soon      bool          // the last wait was no longer than awakeMost
	crowds    uint16        // the last 16 times of staying awake: a bit for each that a crowded processor ended
	until     time.Duration // to sleep as ever, on now's clock
	zero      unix.Timespec // ppoll(2) writes to it
}

// begin notes that the reader has run out of packets, and says whether to stay awake for the next.
func (t *turn) begin(now time.Duration) bool {
	t.turns.waits[t.direction].Add(1)
	other := t.turns.waits[1-t.direction].Load()
	turned := other != t.seen
	t.seen = other
	return turned && t.soon && now >= t.until && !t.turns.bulk[0].Load() && !t.turns.bulk[1].Load()
}

// wait is Wait for a reader that takes part in Turns.
func (t *turn) wait(f *File, fds *[3]unix.PollFd) error {
	began := now()
	if t.begin(began) && t.stayAwake(f, began, fds) {
		return nil
	}
	err := f.sleep(unix.POLLIN, fds)
	t.soon = now()-began <= awakeMost
	return err
}

// stayAwake reports whether something was there before it was time to sleep.
func (t *turn) stayAwake(f *File, began time.Duration, fds *[3]unix.PollFd) (ready bool) {
	at := began
	t.crowds <<= 1
	for !ready && at-began < awakeMost && !f.closed.Load() && !f.paused.Load() {
		if ready = t.ready(f.fd, fds); !ready {
			syscall.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		}
		then := at
		if at = now(); at-then > crowded {
			if t.crowds |= 1; bits.OnesCount16(t.crowds) > 1 {
				t.crowds, t.until = 0, at+restShare*(at-then)
			}
			break
		}
	}
	t.turns.awake.Add(int64(at - began))
	return ready
}

// ready asks and does not wait, so the scheduler need not be told of the call.
func (t *turn) ready(fd int, fds *[3]unix.PollFd) bool {
	fds[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	t.zero = unix.Timespec{}
	n, _, errno := syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), 1, uintptr(unsafe.Pointer(&t.zero)), 0, 0, 0)
	return errno == 0 && n > 0
}

// now is a monotonic clock.
func now() time.Duration { return time.Since(epoch) }

var epoch = time.Now()
