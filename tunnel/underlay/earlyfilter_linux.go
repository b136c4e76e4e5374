package underlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"muslin/tunnel/fib"
	"muslin/tunnel/kernel"
)

// maxRanges is how many ranges of addresses a filter holds within maxInstructions.
const maxRanges = 2000

// narrowEvery is how often at most the filter is made as narrow as the peers again. In between a change can
// only widen it, and that by steps.
const narrowEvery = 2 * time.Second

// A filter that must let in somebody new is widened by just that address at first. Where that happens often
// before the filter is made narrow again, the steps become longer, so that a churn of peers costs a bounded
// number of filters: steps[i].times to i, then everything is let in.
var wideningSteps = []struct{ times, bits int }{{4, 32}, {8, 24}, {8, 16}}

// earlyFilter keeps the early filter of the receiving sockets in step with the peers. It may let in too many, which
// the VTEP then sees to, and never too few.
type earlyFilter struct {
	six          bool // over IPv6
	log          *slog.Logger
	dirty        chan struct{} // holds one token while the filter may be wider than the peers are
	attachFilter func(fd int, program []bpf.Instruction) error

	mu       sync.Mutex
	sockets  []*socket
	off      string                // why there is no filter, empty where there is one
	frozen   bool                  // the sockets are another process's, too, which sees to their filter
	peers    map[*share]*fib.Table // in use; nil's are those of Conn.SetPeers
	open     spans                 // what the filter lets in
	most     int                   // ranges that this kernel takes
	widened  int                   // times since the filter was narrow
	attached int                   // filters so far, for the tests of what a churn costs
}

func newEarlyFilter(features kernel.Features, six bool, log *slog.Logger) *earlyFilter {
	return &earlyFilter{
		six: six, log: log, dirty: make(chan struct{}, 1), attachFilter: attachFilter,
		off: features.Why(kernel.EarlyFilter), most: maxRanges, peers: make(map[*share]*fib.Table),
	}
}

// shut gives a receiving socket, which is not bound yet, a filter that lets nobody in, as there are no peers.
func (e *earlyFilter) shut(fd int) {
	if e.off != "" {
		return
	}
	if err := e.attachFilter(fd, filterProgram(nil, source4)); err != nil {
		e.off = fmt.Sprintf("the kernel refused the filter: %v", err)
	}
}

// opened is called with all sockets open. Without a filter none of them keeps one: neither that of another process
// that it was adopted from, nor one that a later socket did not get.
func (e *earlyFilter) opened() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.off != "" {
		e.detachAll()
	}
}

// freeze leaves the filter as it is.
func (e *earlyFilter) freeze() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.frozen = true
}

// thaw makes it what it should be, whatever became of it.
func (e *earlyFilter) thaw() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.frozen = false
	switch {
	case e.off != "":
		e.detachAll()
	case len(e.peers) > 0:
		e.attach(spansOf(e.wanted()))
	}
}

// setPeers lets in the peers of t, calls use, which puts t to use, and leaves it to run to keep out those that nobody
// else wants.
func (e *earlyFilter) setPeers(who *share, t *fib.Table, use func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if who != nil && who.closed {
		use()
		return
	}
	e.admit(who, t)
	use()
	e.peers[who] = t
	e.markDirty()
}

// forget leaves it to run to keep out the peers that a share alone wanted. The last ones stay let in: another process
// may have the sockets by now, and others here may yet say whom they want.
func (e *earlyFilter) forget(who *share) {
	e.mu.Lock()
	defer e.mu.Unlock()
	who.closed = true
	delete(e.peers, who)
	e.markDirty()
}

func (e *earlyFilter) markDirty() {
	select {
	case e.dirty <- struct{}{}:
	default:
	}
}

// admit widens the filter where a peer of t does not pass it.
func (e *earlyFilter) admit(who *share, t *fib.Table) {
	if e.off != "" || e.frozen {
		return
	}
	var missing []uint32
	for a := range t.OuterSince(e.peers[who]) {
		if n, ok := number(a, e.six); ok && !e.open.contains(n) {
			missing = append(missing, n)
		}
	}
	if len(missing) == 0 {
		return
	}
	e.attach(e.open.with(widened(spansOf(missing), e.widened)))
	e.widened++
}

// widened is what is let in for the sake of s, after the filter was widened so many times.
func widened(s spans, times int) spans {
	for _, step := range wideningSteps {
		if times < step.times {
			return s.prefixes(step.bits)
		}
		times -= step.times
	}
	return everything
}

// run makes the filter narrow again from time to time, until ctx ends.
func (e *earlyFilter) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.dirty:
		}
		pause := time.NewTimer(narrowEvery)
		select {
		case <-ctx.Done():
			pause.Stop()
			return nil
		case <-pause.C:
		}
		e.narrow()
	}
}

// narrow lets in the peers and nobody else, as far as the filter can be that exact.
func (e *earlyFilter) narrow() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.widened = 0
	if e.off != "" || e.frozen || len(e.peers) == 0 {
		return
	}
	if exact := spansOf(e.wanted()).coarse(e.most); !slices.Equal(exact, e.open) {
		e.attach(exact)
	}
}

// attach gives every socket a filter for s, or a coarser one where this kernel takes no more.
func (e *earlyFilter) attach(s spans) {
	for {
		s = s.coarse(e.most)
		err := e.attachAll(filterProgram(s, e.source()))
		switch {
		case err == nil:
			e.open = s
			e.attached++
			return
		case errors.Is(err, os.ErrClosed):
			return
		case errors.Is(err, unix.ENOMEM) && len(s) > 1:
			e.most = len(s) / 2
		default:
			e.drop(err)
			return
		}
	}
}

// source is where the filter finds what it looks at.
func (e *earlyFilter) source() source {
	if e.six {
		return source6
	}
	return source4
}

func (e *earlyFilter) attachAll(program []bpf.Instruction) error {
	for _, s := range e.sockets {
		if err := s.with(func(fd int) error { return e.attachFilter(fd, program) }); err != nil {
			return err
		}
	}
	return nil
}

// drop goes without a filter from now on.
func (e *earlyFilter) drop(cause error) {
	e.off = fmt.Sprintf("the kernel refused the filter: %v", cause)
	e.detachAll()
	e.log.Warn("strangers' datagrams are dropped here instead of in the kernel", "feature", kernel.EarlyFilter, "reason", e.off)
}

func (e *earlyFilter) detachAll() {
	for _, s := range e.sockets {
		if err := s.with(detachFilter); err != nil && !errors.Is(err, os.ErrClosed) {
			e.log.Error("a filter cannot be taken off the overlay's socket, and new peers will not be heard: restart with --features=-"+kernel.EarlyFilter,
				"feature", kernel.EarlyFilter, "err", err)
		}
	}
}

// on reports whether the sockets have a filter.
func (e *earlyFilter) on() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.off == ""
}

func (e *earlyFilter) feature(f kernel.Feature) kernel.Feature {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.off != "":
		f.On, f.Reason = false, e.off
	case slices.Equal(e.open, everything):
		f.Reason = "every address passes for the moment, as the peers change fast"
	default:
		f.Reason = fmt.Sprintf("%s; ranges of peers' addresses: %d", f.Reason, len(e.open))
	}
	return f
}

// wanted are the numbers of everybody's peers.
func (e *earlyFilter) wanted() (addrs []uint32) {
	for _, t := range e.peers {
		addrs = append(addrs, outerAddrs(t, e.six)...)
	}
	return addrs
}

// outerAddrs are the numbers of the peers' addresses on the underlay, as far as they are of its family.
func outerAddrs(t *fib.Table, six bool) []uint32 {
	addrs := make([]uint32, 0, len(t.Peers()))
	for a := range t.OuterSince(nil) {
		if n, ok := number(a, six); ok {
			addrs = append(addrs, n)
		}
	}
	return addrs
}

// attachFilter replaces a socket's filter. Both the old and the new one count against net.core.optmem_max
// meanwhile (20 KiB before Linux 6.9), so where that is not enough the old one goes first: then everything
// passes for a moment.
func attachFilter(fd int, program []bpf.Instruction) error {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	attach := func() error {
		return os.NewSyscallError("setsockopt SO_ATTACH_FILTER", unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog))
	}
	err = attach()
	if errors.Is(err, unix.ENOMEM) {
		if err := detachFilter(fd); err != nil {
			return err
		}
		err = attach()
	}
	return err
}

// detachFilter takes a socket's filter off, if it has one.
func detachFilter(fd int) error {
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return os.NewSyscallError("setsockopt SO_DETACH_FILTER", err)
}
