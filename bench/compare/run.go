//go:build linux

package compare

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"muslin/bench/lab"
)

// Plan says what Run measures.
type Plan struct {
	Programs Programs
	Systems  []System
	Measures []Measure
	// WholeLadder measures everything of muslin with features switched off too, not just what is marked for
	// the ladder.
	WholeLadder bool
	Settings    Settings
	Progress    func(Progress) // called before each step, from one goroutine; nil: nobody wants to know
	Logger      *slog.Logger   // of the labs; nil discards
}

// Progress is what Run is about to do.
type Progress struct {
	Text        string
	Done, Total int           // measurements
	Left        time.Duration // an estimate
	News        bool          // Text is not about what comes next, but something to remember
}

const (
	setupTimeout  = time.Minute // for one system, until its pods reach each other
	settleTimeout = time.Minute // after that
	settleEvery   = 200 * time.Millisecond
	spareTime     = 20 * time.Second // that a measurement may take beyond its length
	idleTime      = time.Second      // for which the machine is watched before the first round
)

// wants reports whether a system gets a measure.
func (p *Plan) wants(e Entry, m Measure) bool {
	return (!e.Rung || m.Ladder || p.WholeLadder) && !(e.IPv6 && m.IPv4)
}

// subject is a system that stands.
type subject struct {
	entry *Entry // in the results
	lab   *lab.Lab
	bed   bed
	ended bool // a daemon of it has
}

// run is one call of Run.
type run struct {
	Plan
	results  *Results
	subjects []*subject
	done     int
	total    int
	spent    time.Duration // on the measurements that are done
}

// Run sets every system up, measures round by round, and takes everything away again. A system that cannot be
// set up, and a measurement that fails, are noted in the results. The error is for what stops the whole, ctx
// among it: then there are no results.
func Run(ctx context.Context, p Plan) (_ *Results, err error) {
	if err := lab.MissingTools("ip", "iperf3", "sockperf", "ethtool", "bridge"); err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	if p.Progress == nil {
		p.Progress = func(Progress) {}
	}
	if p.Settings.MTU == 0 {
		p.Settings.MTU = lab.DefaultMTU
	}
	r := &run{Plan: p, results: &Results{
		Schema:   Schema,
		Started:  time.Now().UTC().Truncate(time.Second),
		Machine:  describeMachine(p.Programs.Version),
		Settings: p.Settings,
	}}
	r.results.Machine.Iperf3 = versionLine(ctx, "iperf3", "--version")
	r.results.Machine.Sockperf = versionLine(ctx, "sockperf", "--version")
	for _, m := range p.Measures {
		r.results.Figures = append(r.results.Figures, m.Figures...)
	}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.setup(ctx); err != nil {
		return nil, err
	}
	if err := r.measure(ctx); err != nil {
		return nil, err
	}
	r.results.Ended = time.Now().UTC().Truncate(time.Second)
	return r.results, nil
}

func (r *run) close() error {
	r.progress("taking everything away")
	var closing sync.WaitGroup
	errs := make([]error, len(r.subjects))
	for i, s := range r.subjects {
		closing.Go(func() { errs[i] = s.lab.Close() })
	}
	closing.Wait()
	return errors.Join(errs...)
}

func (r *run) progress(format string, args ...any) {
	left := time.Duration(r.total-r.done) * time.Duration(r.Settings.Seconds+1) * time.Second
	if r.done > 0 {
		left = r.spent / time.Duration(r.done) * time.Duration(r.total-r.done)
	}
	r.Progress(Progress{Text: fmt.Sprintf(format, args...), Done: r.done, Total: r.total, Left: left})
}

// setup builds a lab for each system. What it cannot set up it leaves out, and says why in the results.
func (r *run) setup(ctx context.Context) error {
	for _, system := range r.Systems {
		r.results.Systems = append(r.results.Systems, system.Entry())
		for _, m := range r.Measures {
			if r.wants(system.Entry(), m) {
				r.total += r.Settings.Rounds
			}
		}
	}
	for i, system := range r.Systems {
		entry := &r.results.Systems[i]
		r.progress("setting up %s", entry.Name)
		s, err := r.setupOne(ctx, system, entry)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil {
			r.subjects = append(r.subjects, s)
			continue
		}
		entry.NotMeasured, entry.Missing = err.Error(), errors.Is(err, ErrMissing)
		r.Progress(Progress{Text: fmt.Sprintf("not measured: %s: %v", entry.Name, err), News: true})
		for _, m := range r.Measures {
			if r.wants(*entry, m) {
				r.total -= r.Settings.Rounds
			}
		}
	}
	return nil
}

func (r *run) setupOne(ctx context.Context, system System, entry *Entry) (_ *subject, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, setupTimeout+settleTimeout, fmt.Errorf("not set up within %v", setupTimeout+settleTimeout))
	defer cancel()
	l, err := lab.New(ctx, lab.Config{Hosts: 2, MTU: r.Settings.MTU, Logger: r.Logger})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	joined, err := system.Setup(ctx, l)
	if err != nil {
		return nil, err
	}
	entry.Version, entry.Notes = joined.Version, joined.Notes
	s := &subject{entry: entry, lab: l, bed: bed{
		from: l.Host(1).Pods()[0], to: l.Host(2).Pods()[0], daemons: joined.Daemons, settings: r.Settings,
	}}
	if entry.MTU, err = podMTU(ctx, s.bed.from); err != nil {
		return nil, err
	}
	for _, pod := range []*lab.Pod{s.bed.from, s.bed.to} {
		// Or the kernel would start each connection from what it remembers of the one before.
		if err := pod.Sysctl("net/ipv4/tcp_no_metrics_save", "1"); err != nil {
			return nil, err
		}
	}
	return s, warmUp(ctx, s, joined.Settled)
}

// podMTU reads the MTU of the pod's device.
func podMTU(ctx context.Context, pod *lab.Pod) (mtu int, err error) {
	out, err := pod.Output(ctx, "cat", "/sys/class/net/eth0/mtu")
	if err != nil {
		return 0, err
	}
	_, err = fmt.Sscan(out, &mtu)
	return mtu, err
}

// warmUp waits until the pods reach each other, and sends each way for a second, unmeasured.
func warmUp(ctx context.Context, s *subject, settled func(context.Context) (bool, error)) error {
	for {
		ping, err := s.bed.from.Ping(ctx, s.bed.to.Addr, lab.PingOptions{Count: 1})
		if err != nil {
			return err
		}
		if ping.Received == 1 {
			break
		}
		if name := s.deadDaemon(); name != "" {
			return fmt.Errorf("the pods do not reach each other: %s", name)
		}
	}
	for settled != nil {
		ok, err := settled(ctx)
		if err != nil {
			return err
		}
		if ok {
			break
		}
		if ctx.Err() != nil {
			return fmt.Errorf("still changing: %w", context.Cause(ctx))
		}
		pause(ctx, settleEvery)
	}
	short := s.bed
	short.settings.Seconds = 1
	for _, back := range []bool{false, true} {
		if _, err := (tcpRun{streams: 1, back: back}).run(ctx, short); err != nil {
			return fmt.Errorf("warm up: %w", err)
		}
	}
	return nil
}

// deadDaemon names a daemon that has ended, with its log, or returns "".
func (s *subject) deadDaemon() string {
	for _, d := range s.bed.daemons {
		if !d.Running() {
			return fmt.Sprintf("%s has ended; its log:\n%s", d.Name, d.Output())
		}
	}
	return ""
}

func (r *run) measure(ctx context.Context) error {
	r.progress("watching the idle machine")
	var err error
	if r.results.Machine.IdleCPU, err = idleCPU(ctx, r.results.Machine.Cores); err != nil {
		return err
	}
	for round := 1; round <= r.Settings.Rounds; round++ {
		for _, m := range r.Measures {
			for _, s := range rotate(r.subjects, round-1, r.Settings.Rounds) {
				if !r.wants(*s.entry, m) {
					continue
				}
				r.progress("round %d of %d: %s of %s", round, r.Settings.Rounds, m.Name, s.entry.Name)
				start := time.Now()
				r.take(ctx, round, m, s)
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				r.done++
				r.spent += time.Since(start)
			}
		}
	}
	return nil
}

// rotate begins with another system each round, so that none has the same place in all of them.
func rotate(subjects []*subject, round, rounds int) []*subject {
	if len(subjects) == 0 {
		return nil
	}
	first := round * max(1, len(subjects)/rounds) % len(subjects)
	return slices.Concat(subjects[first:], subjects[:first])
}

// take takes one measurement, or notes why it failed.
func (r *run) take(ctx context.Context, round int, m Measure, s *subject) {
	if s.ended {
		return // and was noted
	}
	limit := time.Duration(r.Settings.Seconds)*time.Second + spareTime
	bounded, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done within %v", limit))
	defer cancel()
	values, err := m.run(bounded, s.bed)
	if dead := s.deadDaemon(); dead != "" {
		s.ended = true
		err = errors.Join(err, fmt.Errorf("%s; nothing was measured of %s after that", dead, s.entry.Name))
	}
	if ctx.Err() != nil {
		return // the whole ends
	}
	if err != nil {
		r.results.Failures = append(r.results.Failures, Failure{Round: round, System: s.entry.Name, Measure: m.Name, Error: err.Error()})
		r.Progress(Progress{Text: fmt.Sprintf("failed: round %d, %s of %s: %v", round, m.Name, s.entry.Name, err), News: true})
		return
	}
	for _, f := range m.Figures {
		if v, ok := values[f.Name]; ok {
			r.results.Samples = append(r.results.Samples, Sample{Round: round, System: s.entry.Name, Figure: f.Name, Value: significant(v)})
		}
	}
}

// significant rounds to six significant digits, which is more than any of this is good for.
func significant(v float64) float64 {
	if v == 0 {
		return 0
	}
	scale := math.Pow(10, 5-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}

// idleCPU is how busy the machine is while nobody does anything, in percent of all cores.
func idleCPU(ctx context.Context, cores int) (float64, error) {
	before, err := machineCPU()
	if err != nil {
		return 0, err
	}
	select {
	case <-time.After(idleTime):
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	after, err := machineCPU()
	return 100 * float64(after-before) / float64(idleTime) / float64(cores), err
}
