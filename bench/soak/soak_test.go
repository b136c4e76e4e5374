//go:build linux

package soak

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"muslin/bench/crowd"
	"muslin/bench/lab"
	"muslin/bench/labtest"
	"muslin/bench/probe"
)

func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }

const (
	// trial is the length of a run unless the environment variable SOAK gives another one.
	trial = time.Minute

	crowdNodes   = 1000
	crowdChanges = 20 // a second

	tcpMbits  = 50
	probeRate = 200 // datagrams a second
)

// What may grow over the second half of a run.
const (
	mostMemory = 0.05    // of its mean,
	leastBytes = 4 << 20 // or this much: the garbage collector's and the allocator's own rhythm
	mostCount  = 1.5     // goroutines, descriptors: one may come and go with a request

	// A daemon asks its silent peers for a sign of life, and a lease may be taken away with a request to it on its way:
	// no-route may count one for so many changes. No other drop may count at all.
	takenAway = 1000
)

// Two daemons run for the whole time and are watched; a third is ended, killed and replaced again and again.
//
//	h1: etcd, and a crowd of leases that change
//	h2: a pod ── 50 Mb/s of TCP, 200 datagrams a second ──► h3: a pod
//	    └─────────────────────── 200 datagrams a second ──► h4: a pod, whose daemon is restarted
func TestSoak(t *testing.T) {
	length := trial
	if text := os.Getenv("SOAK"); text != "" {
		length = labtest.Must(time.ParseDuration(text))(t)
	}
	s := newSoak(t, length)
	ctx, cancel := context.WithTimeoutCause(t.Context(), length, errOver)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	for what, task := range map[string]func(context.Context) error{
		"TCP": s.tcp, "churn": s.churn, "restarts": s.restart, "samples": s.sample,
	} {
		g.Go(func() error {
			if err := task(ctx); err != nil && !errors.Is(context.Cause(ctx), errOver) {
				return fmt.Errorf("%s: %w", what, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	s.judge()
	if path := os.Getenv("SOAK_OUT"); path != "" {
		if err := s.results.Write(path); err != nil {
			t.Error(err)
		}
	}
}

var errOver = errors.New("the soak is over")

type soak struct {
	t       *testing.T
	results Results
	crowd   *crowd.Crowd
	watched []*lab.Muslin
	third   *lab.Muslin
	flags   []string
	pods    []*lab.Pod // of hosts 2, 3 and 4

	steady   *probe.Probe // to host 3
	restless *probe.Probe // to host 4
	tcpBytes int64
	tcpTime  time.Duration
	restarts []restarted
}

func newSoak(t *testing.T, length time.Duration) *soak {
	t.Helper()
	l := labtest.NewLab(t, 4)
	e := labtest.StartEtcd(t, l.Host(1), "--auto-compaction-mode", "periodic", "--auto-compaction-retention", "5m")
	e.Config(t, `{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"vxlan"}}`)
	client := labtest.Must(crowd.DialFrom(l.Host(1).Node, labtest.Endpoint(l.Host(1))))(t)
	t.Cleanup(func() { client.Close() })
	s := &soak{
		t: t, crowd: labtest.Must(crowd.New(crowd.Config{Client: client, Nodes: crowdNodes}))(t),
		flags:   []string{"--etcd-endpoints", labtest.Endpoint(l.Host(1))},
		results: Results{Began: time.Now().UTC(), Length: length.Seconds(), Kernel: release(t), Cores: runtime.NumCPU()},
	}
	if err := s.crowd.Fill(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, h := range l.Hosts()[1:] {
		// What is sent to the crowd goes to host 1, which forwards nothing.
		labtest.Must(h.Run(t.Context(), "ip", "route", "add", "172.16.0.0/12", "via", l.Host(1).Addr.String()))(t)
		m := labtest.StartMuslin(t, h, s.flags...)
		s.pods = append(s.pods, labtest.AddPod(t, m, "a"))
		if h.Number < 4 {
			s.watched = append(s.watched, m)
			s.results.Daemons = append(s.results.Daemons, Daemon{Name: h.Name})
		} else {
			s.third = m
		}
	}
	for _, m := range append(s.watched, s.third) {
		labtest.WaitPeers(t, m, crowdNodes+2)
	}
	start := func(to *lab.Pod) *probe.Probe {
		return labtest.Must(probe.Start(t.Context(), probe.Config{From: s.pods[0].Node, To: to.Node, Addr: to.Addr, Rate: probeRate}))(t)
	}
	s.steady, s.restless = start(s.pods[1]), start(s.pods[2])
	return s
}

func release(t *testing.T) string {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	return unix.ByteSliceToString(name.Release[:])
}

// piece is how long one connection lasts. Each is a new one, so that connections come and go as well.
const piece = 20 * time.Second

func (s *soak) tcp(ctx context.Context) error {
	for ctx.Err() == nil {
		seconds := int(min(piece, time.Until(s.end()))/time.Second) - 1
		if seconds < 1 {
			return nil
		}
		flow, err := lab.Iperf(ctx, s.pods[0].Node, s.pods[1].Node, s.pods[1].Addr, nil,
			"-t", fmt.Sprint(seconds), "-b", fmt.Sprintf("%dM", tcpMbits))
		if err != nil {
			return err
		}
		s.tcpBytes += flow.Bytes
		s.tcpTime += time.Duration(flow.Seconds * float64(time.Second))
	}
	return nil
}

func (s *soak) end() time.Time {
	return s.results.Began.Add(time.Duration(s.results.Length * float64(time.Second)))
}

func (s *soak) churn(ctx context.Context) error {
	churned, err := s.crowd.Churn(ctx, crowdChanges)
	s.t.Log(churned)
	return err
}

// way is how the third daemon is restarted. again returns the daemon that runs then.
type way struct {
	name  string
	again func(s *soak, ctx context.Context) (*lab.Muslin, error)
	none  bool // not a packet may be lost
}

var ways = []way{
	{"SIGTERM", func(s *soak, ctx context.Context) (*lab.Muslin, error) {
		if err := s.third.Stop(); err != nil {
			return nil, err
		}
		return s.third.Host.StartMuslin(ctx, labtest.Bin, s.flags...)
	}, false},
	{"kill -9", func(s *soak, ctx context.Context) (*lab.Muslin, error) {
		s.third.Kill()
		return s.third.Host.StartMuslin(ctx, labtest.Bin, s.flags...)
	}, false},
	{"--replace", replace, true},
}

func replace(s *soak, ctx context.Context) (*lab.Muslin, error) {
	m, err := s.third.Host.LaunchMuslin(labtest.Bin, append(s.flags, "--replace")...)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lab.Patience(20*time.Second))
	defer cancel()
	if status, err := s.third.Wait(ctx); err != nil || status != 0 {
		return nil, fmt.Errorf("the old daemon ended with status %d, %w; the log of both:\n%s", status, err, m.Output())
	}
	status, err := m.Status(ctx)
	if err == nil && status.Process.PID != m.PID() {
		err = fmt.Errorf("process %d answers, not %d", status.Process.PID, m.PID())
	}
	return m, err
}

// restarted is one restart: from before it until the pod behind the daemon is heard of again.
type restarted struct {
	way      way
	from, to time.Time
}

// caused says whether a gap lies within the restart. Its first packets may have been sent just before: they were on
// their way, or in the daemon's hands, when it ended.
func (r restarted) caused(gap probe.Gap) bool {
	return gap.Start.Before(r.to) && gap.End().After(r.from)
}

// restart restarts the third daemon every ten seconds.
func (s *soak) restart(ctx context.Context) error {
	for i := 0; ; i++ {
		select {
		case <-time.After(10 * time.Second):
		case <-ctx.Done():
			return nil
		}
		r := restarted{way: ways[i%len(ways)], from: time.Now()}
		m, err := r.way.again(s, ctx)
		if ctx.Err() != nil {
			s.restarts = append(s.restarts, restarted{r.way, r.from, time.Now()}) // cut short by the end
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", r.way.name, err)
		}
		s.third = m
		wait, cancel := context.WithTimeout(ctx, lab.Patience(10*time.Second))
		err = s.restless.WaitReceived(wait, probeRate/10)
		cancel()
		r.to = time.Now()
		s.restarts = append(s.restarts, r)
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("after %s: %w", r.way.name, err)
		}
	}
}

// judgeRestarts says what each way of restarting cost.
func (s *soak) judgeRestarts(r probe.Result) {
	t := s.t
	if r.Err != nil {
		t.Errorf("to host 4: %v", r)
	}
	seen := 0
	for _, w := range ways {
		count, lost, longest := 0, 0, time.Duration(0)
		for _, one := range s.restarts {
			if one.way.name != w.name {
				continue
			}
			count++
			for _, gap := range r.Gaps {
				if one.caused(gap) {
					seen++
					lost += gap.Count
					longest = max(longest, gap.Length)
				}
			}
		}
		t.Logf("%d restarts by %s: %d packets lost in all, %v at a time at most", count, w.name, lost, longest.Round(time.Millisecond))
		if longest > lab.Patience(5*time.Second) || w.none && lost > 0 {
			t.Errorf("%s: %d packets lost, %v at a time at most", w.name, lost, longest)
		}
	}
	if seen < len(r.Gaps) {
		t.Errorf("%d of %d gaps on the way to host 4 lie outside the restarts: %v", len(r.Gaps)-seen, len(r.Gaps), r)
	}
}

func (s *soak) sample(ctx context.Context) error {
	every := max(time.Second, time.Duration(s.results.Length/360*float64(time.Second)))
	tick := time.NewTicker(every)
	defer tick.Stop()
	said := time.Now()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		for i, m := range s.watched {
			status, err := m.Status(ctx)
			if err != nil {
				return err
			}
			if status.Process.PID != m.PID() {
				return fmt.Errorf("%s is process %d, not %d any more", m.Name, status.Process.PID, m.PID())
			}
			d := &s.results.Daemons[i]
			d.Samples = append(d.Samples, Sample{
				At: time.Since(s.results.Began).Seconds(), Drops: status.Drops,
				Resident: status.Process.Resident, Goroutines: status.Process.Goroutines, Descriptors: status.Process.Descriptors,
			})
		}
		if time.Since(said) > time.Minute {
			said = time.Now()
			s.t.Logf("%v: %+v; to host 3: %v", time.Since(s.results.Began).Round(time.Second), s.results.Daemons[0].Samples[len(s.results.Daemons[0].Samples)-1], s.steady.Snapshot())
		}
	}
}

// judge holds the run to what must not have happened.
func (s *soak) judge() {
	t := s.t
	steady, restless := s.steady.Stop(), s.restless.Stop()
	t.Logf("to host 3: %v", steady)
	if steady.Err != nil || steady.Lost > 0 || steady.Duplicated > 0 {
		t.Errorf("between daemons that were not touched: %v", steady)
	}
	s.judgeRestarts(restless)
	if mbits := float64(s.tcpBytes) * 8 / 1e6 / s.tcpTime.Seconds(); mbits < 0.9*tcpMbits {
		t.Errorf("TCP: %.1f Mb/s, want %d", mbits, tcpMbits)
	} else {
		t.Logf("TCP: %.1f Mb/s, %.1f GB in all", mbits, float64(s.tcpBytes)/1e9)
	}
	for i, m := range s.watched {
		if !m.Running() {
			t.Errorf("%s has ended", m.Name)
		}
		s.judgeDaemon(s.results.Daemons[i])
	}
}

func (s *soak) judgeDaemon(d Daemon) {
	t := s.t
	half := d.SecondHalf(s.results.Length)
	if len(half) < 10 {
		t.Errorf("%s: %d samples in the second half", d.Name, len(half))
		return
	}
	for name, value := range map[string]func(Sample) float64{
		"resident memory": func(s Sample) float64 { return float64(s.Resident) },
		"goroutines":      func(s Sample) float64 { return float64(s.Goroutines) },
		"descriptors":     func(s Sample) float64 { return float64(s.Descriptors) },
	} {
		mean, growth := Mean(half, value), Growth(half, value)
		most := mostCount
		if name == "resident memory" {
			most = max(mostMemory*mean, leastBytes)
		}
		t.Logf("%s: %s %.0f on average, grew by %.1f over the second half", d.Name, name, mean, growth)
		if growth > most {
			t.Errorf("%s: %s grew by %.1f over the second half, more than %.1f", d.Name, name, growth, most)
		}
	}
	before, after := half[0].Drops, half[len(half)-1].Drops
	for _, reason := range slices.Sorted(maps.Keys(after)) {
		t.Logf("%s: dropped %d packets: %s, %d of them in the second half", d.Name, after[reason], reason, after[reason]-before[reason])
		most := uint64(0)
		if reason == "no-route" {
			most = uint64(s.results.Length / 2 * crowdChanges / takenAway)
		}
		if after[reason]-before[reason] > most {
			t.Errorf("%s: drops are not flat: %s, want no more than %d", d.Name, reason, most)
		}
	}
}
