// Package capture shows packets on their way: what `muslin capture` does, and the part of it in the daemon.
//
// In the daemon a tap observes the VTEPs (tunnel.VTEP.Observe), lets through what a filter wants, and streams copies over the
// control socket: a reader that is too slow loses copies, and no packet waits for it (tap.go, record.go). At the other end the
// command writes them as pcapng, as lines, or to a ring of files (pcapng.go, text.go, files.go). What no VTEP carries, but the
// kernel, the command sees by itself on the kernel's devices (socket_linux.go, source.go); so it does on a node that runs
// flannel. Flows are counted where packets are seen, in bounded memory (flow.go). The room changes nothing of the host.
package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"muslin/cmd/muslin/capture/filter"
	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/text"
)

// Command is `muslin capture`, as its flags say.
type Command struct {
	Control, Net string
	Version      string
	SubnetFiles  []string // where flannel's may be, on a node without a daemon

	Wanted   Wanted // but for Subnets and Hosts
	Peer     string // an address or subnet of one; empty: any
	File     string // "-" is Stdout; empty: lines for a person, on Stdout
	Ring     int    // files; 0: one
	RingSize int64  // MB, of each
	Count    uint64 // packets, then it ends; 0: no end
	Duration time.Duration

	Stdout, Stderr io.Writer
}

// lineSnap is how much of a packet a line for a person is made of, bytes: more is not copied for it.
const lineSnap = 256

// check says what is wrong with the flags.
func (c *Command) check() error {
	if err := c.Wanted.check(); err != nil {
		return err
	}
	if c.Duration < 0 {
		return fmt.Errorf("--duration %v: want how long to capture", c.Duration)
	}
	if c.File == "-" && !c.Wanted.Flows && text.IsTerminal(c.Stdout) {
		return errors.New("-w - would write binary to this terminal: pipe it (muslin capture -w - | wireshark -k -i -), give a FILE, or leave -w out for lines of text")
	}
	return c.files().check()
}

func (c *Command) files() *files {
	return &files{name: c.File, to: c.Stdout, ring: c.Ring, size: c.RingSize * 1e6}
}

// Run captures until ctx ends, or it has what was wanted.
func (c *Command) Run(ctx context.Context) error {
	if err := c.check(); err != nil {
		return err
	}
	if c.File == "" && !c.Wanted.Flows {
		c.Wanted.Snap = min(c.Wanted.Snap, lineSnap)
	}
	plan, err := c.plan(ctx)
	if err != nil {
		return err
	}
	defer plan.close()
	out, err := c.sink(plan)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if c.Duration > 0 {
		ctx, stop = context.WithTimeout(ctx, c.Duration)
		defer stop()
	}
	r := &running{Command: c, plan: plan, sink: out, stop: stop}
	if c.Wanted.Flows {
		r.flows = newFlowTable(c.Wanted.Interval)
	}
	defer holdSignals(ctx)()
	fmt.Fprintf(c.Stderr, "capturing %s on %s; Ctrl-C ends it\n", c.what(), plan.where())
	err = r.run(ctx)
	if ended := out.close(r.counts()); err == nil {
		err = ended // of what could not be written before there is no end, either
	}
	fmt.Fprintln(c.Stderr, r.summary())
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w: what is in the file is whole; --ring-files and --ring-size keep it within bounds, --snaplen and a filter make it smaller", err)
	}
	return err
}

// holdSignals has a second Ctrl-C not kill the process while the end is written: timeout(1) sends each signal twice. Where that
// takes longer than it may, it does.
func holdSignals(ctx context.Context) (stop func()) {
	held := make(chan os.Signal, 1)
	signal.Notify(held, unix.SIGINT, unix.SIGTERM)
	context.AfterFunc(ctx, func() { time.AfterFunc(2*patience, func() { signal.Stop(held) }) })
	return func() { signal.Stop(held) }
}

func (c *Command) what() string {
	if c.Wanted.Flows {
		return "flows"
	}
	return strings.Join(names(c.Wanted.Points), ", ")
}

func (c *Command) sink(p *plan) (sink, error) {
	format := (&printer{framing: p.framing}).format
	if c.Wanted.Flows {
		return newLineSink(c.files(), format)
	}
	if c.File == "" {
		return newLineSink(c.files(), format)
	}
	return newPcapngSink(c.files(), &about{Version: c.Version, Device: p.where(), Filter: c.Wanted.Filter, Snap: c.Wanted.Snap, Points: c.Wanted.Points})
}

// running is a capture under way. Several sources give to one sink.
type running struct {
	*Command
	plan  *plan
	stop  context.CancelFunc
	flows *flowTable // of what the kernel carries

	mu     sync.Mutex
	sink   sink
	enough bool
	given  uint64 // packets, or flows, written
	lost   uint64 // copies, of the kernel's devices
	tap    uint64 // copies that the daemon lost; of daemons before this one: past
	past   uint64
}

func (r *running) counts() Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Counts{Captured: r.given, Lost: r.lost + r.tap + r.past}
}

// summary is the line at the end.
func (r *running) summary() string {
	c := r.counts()
	if r.Wanted.Flows {
		s := fmt.Sprintf("%d lines of flows captured, %d flows lost", c.Captured, c.Lost)
		if c.Lost > 0 {
			s += fmt.Sprintf(": more than %d at once, and more new ones than can be written: a filter, or --peer, leaves some out", maxFlows)
		}
		return s
	}
	s := fmt.Sprintf("%d packets captured, %d lost because this reader was too slow", c.Captured, c.Lost)
	if c.Lost > 0 {
		s += " (the packets themselves went on): a filter, or --snaplen 128, makes it faster"
	}
	return s
}

func (r *running) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for i, d := range r.plan.devices {
		s := r.plan.sockets[i]
		g.Go(func() error { return r.watch(ctx, d, s) })
	}
	r.plan.sockets = nil // whose watchers close them
	if r.plan.stream != nil {
		g.Go(func() error { return r.follow(ctx) })
	}
	if r.plan.follow {
		g.Go(func() error { return r.followPeers(ctx) })
	}
	if r.flows != nil && len(r.plan.devices) > 0 {
		g.Go(func() error { return r.tellFlows(ctx) })
	}
	err := g.Wait()
	if r.flows != nil && len(r.plan.devices) > 0 {
		err = errors.Join(err, r.sweep(true)) // now that nothing is added any more
	}
	return err
}

// learnEvery is how often the daemon is asked who the peers are, where that says which packets are the overlay's.
const learnEvery = 2 * time.Second

// every calls f at intervals, until ctx ends or f fails.
func every(ctx context.Context, interval time.Duration, f func() error) error {
	ticks := time.NewTicker(interval)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
		}
		if err := f(); err != nil {
			return err
		}
	}
}

// followPeers follows who the peers are, until ctx ends. While nobody can be asked they are as they were.
func (r *running) followPeers(ctx context.Context) error {
	return every(ctx, learnEvery, func() error {
		if status, err := control.AskNetwork(ctx, r.Control, r.Net); err == nil && status.State == control.StateRunning {
			r.plan.learn(status)
		}
		return nil
	})
}

// keep is how many bytes of a packet are taken from the kernel's devices: what is to be written, and what is looked at.
func (c *Command) keep() int {
	const headers = 256 // of a packet, and of one in it
	keep := headers
	if f, err := filter.Compile(c.Wanted.Filter); err == nil {
		keep = max(keep, f.Reach())
	}
	if !c.Wanted.Flows {
		keep = max(keep, c.Wanted.Snap)
	}
	return keep
}

// watch reads one of the kernel's devices.
func (r *running) watch(ctx context.Context, d *device, s *packetSocket) error {
	f, err := filter.Compile(r.Wanted.Filter)
	if err != nil {
		return err
	}
	give := func(p *Record) error {
		switch {
		case p == nil:
			return r.flush()
		case r.flows != nil:
			r.flows.add(p.At, p.Inbound, p.Data, p.Length, p.Segments, p.Peer, "")
			return nil
		}
		return r.packet(p)
	}
	return d.watch(ctx, s, &r.Wanted, f, give, func(n uint64) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.lost += n
	})
}

// packet writes one, and ends the capture with the last that was wanted.
func (r *running) packet(p *Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.enough {
		return nil
	}
	if err := r.sink.packet(p); err != nil {
		return err
	}
	r.more()
	return nil
}

func (r *running) line(b []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.enough {
		return nil
	}
	if err := r.sink.line(b); err != nil {
		return err
	}
	r.more()
	return nil
}

// more counts what was written. r.mu is held.
func (r *running) more() {
	if r.given++; r.given == r.Count {
		r.enough = true
		r.stop()
	}
}

func (r *running) flush() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sink.flush()
}

const (
	// patience is how long the daemon has to send what is left.
	patience = 2 * time.Second

	// retry is how often a daemon is looked for that has ended, or is replaced.
	retry = 500 * time.Millisecond
)

// follow reads the daemon's stream, and its successor's, until ctx ends.
func (r *running) follow(ctx context.Context) error {
	for {
		err := r.read(ctx)
		if err != nil || ctx.Err() != nil {
			return err
		}
		fmt.Fprintln(r.Stderr, "the daemon has ended: waiting for the next one; Ctrl-C ends the capture")
		for r.plan.stream = nil; r.plan.stream == nil; {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(retry):
			}
			if r.plan.stream, err = r.plan.ask(ctx); err != nil {
				r.plan.stream = nil
				if !errors.Is(err, control.ErrNobody) && !errors.Is(err, control.ErrUnavailable) {
					return err
				}
			}
		}
		fmt.Fprintln(r.Stderr, "the next daemon answers: capturing goes on")
	}
}

// read reads one stream to its end.
func (r *running) read(ctx context.Context) error {
	s := r.plan.stream
	defer s.Close()
	defer context.AfterFunc(ctx, func() { s.Enough(patience) })()
	from, p := newReader(s.Body), new(Record)
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.past, r.tap = r.past+r.tap, 0
	}()
	for {
		kind, body, err := from.next()
		switch {
		case err == io.EOF:
			return nil
		case err != nil && (errors.Is(err, io.ErrUnexpectedEOF) || ctx.Err() != nil || errors.Is(err, unix.ECONNRESET)):
			return nil // it was killed, or has no time for us
		case err != nil:
			return err
		}
		switch kind {
		case kindPacket:
			if err = parsePacket(body, p); err == nil {
				err = r.packet(p)
			}
		case kindFlow:
			err = r.line(body)
		case kindCounts:
			var c Counts
			if c, err = parseCounts(body); err == nil {
				r.mu.Lock()
				r.tap = c.Lost
				r.mu.Unlock()
			}
		} // and what a later version adds
		if err == nil && from.idle() {
			err = r.flush()
		}
		if err != nil {
			return err
		}
	}
}

// tellFlows writes those of the kernel's devices, until ctx ends.
func (r *running) tellFlows(ctx context.Context) error {
	return every(ctx, sweepEvery, func() error { return r.sweep(false) })
}

// sweep writes flows that have ended, or all.
func (r *running) sweep(all bool) error {
	told, lost := r.flows.sweep(time.Now(), all)
	for i := range told {
		if err := r.line(told[i].appendJSON(nil)); err != nil {
			return err
		}
	}
	r.mu.Lock()
	r.tap = max(r.tap, lost)
	r.mu.Unlock()
	return r.flush()
}
