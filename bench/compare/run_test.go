//go:build linux

package compare

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"muslin/bench/lab"
)

// broken is a system that cannot be set up.
type broken struct{ err error }

func (b broken) Entry() Entry                                    { return Entry{Name: "broken"} }
func (b broken) Setup(context.Context, *lab.Lab) (Joined, error) { return Joined{}, b.err }

// The whole harness, with plain routing and the kernel's VXLAN: one round of one second of one measure.
func TestRun(t *testing.T) {
	lab.RequireRoot(t)
	lab.RequireTool(t, "ip", "bridge", "iperf3", "sockperf", "ethtool")
	systems, err := Select(Programs{}, []string{"plain", Baseline})
	if err != nil {
		t.Fatal(err)
	}
	measures, err := SelectMeasures([]string{"tcp-1"})
	if err != nil {
		t.Fatal(err)
	}
	var steps, news []string
	results, err := Run(t.Context(), Plan{
		Systems:  append(systems, broken{fmt.Errorf("%w: no such program", ErrMissing)}),
		Measures: measures,
		Settings: Settings{Rounds: 1, Seconds: 1, FixedPPS: 1000},
		Progress: func(p Progress) {
			if p.News {
				news = append(news, p.Text)
			} else {
				steps = append(steps, p.Text)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"plain", Baseline} {
		for _, figure := range []string{"tcp-1", "cpu-machine"} {
			if s, ok := results.Summary(name, figure); !ok || s.Rounds != 1 || s.Median <= 0 {
				t.Errorf("%s of %s: %+v, %v", figure, name, s, ok)
			}
		}
	}
	if s, ok := results.Summary(Baseline, figureCPUDaemons); ok {
		t.Errorf("the kernel has no daemons, yet they used %+v", s)
	}
	if e := results.System("plain"); e.MTU != 1500 {
		t.Errorf("%+v, want MTU 1500", e)
	}
	if e := results.System(Baseline); e.MTU != 1450 {
		t.Errorf("%+v, want MTU 1450", e)
	}
	if e := results.System("broken"); !e.Missing || !strings.Contains(e.NotMeasured, "no such program") || len(news) != 1 {
		t.Errorf("%+v, and of note were %q", e, news)
	}
	if len(results.Failures) != 0 || len(results.Broken()) != 0 {
		t.Errorf("failures %+v, broken %v", results.Failures, results.Broken())
	}
	if !slices.Contains(steps, "round 1 of 1: tcp-1 of kernel-vxlan") {
		t.Errorf("steps %q", steps)
	}
	if m := results.Machine; m.Kernel == "" || m.Cores == 0 || !strings.HasPrefix(m.Iperf3, "iperf 3") || !strings.Contains(m.Sockperf, "version") {
		t.Errorf("machine %+v", m)
	}
}

// A run that is cut off gives no results and leaves nothing behind.
func TestRunIsCutOff(t *testing.T) {
	lab.RequireRoot(t)
	lab.RequireTool(t, "ip", "bridge", "iperf3", "sockperf", "ethtool")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	enough := errors.New("enough")
	var l *lab.Lab
	results, err := Run(ctx, Plan{
		Systems:  []System{seen{plain{}, &l}},
		Measures: Measures()[:1],
		Settings: Settings{Rounds: 1, Seconds: 1000, FixedPPS: 1},
		Progress: func(p Progress) {
			if strings.HasPrefix(p.Text, "round 1") {
				cancel(enough)
			}
		},
	})
	if !errors.Is(err, enough) || results != nil {
		t.Errorf("%v, %v; want no results", results, err)
	}
	if l == nil || len(l.Leftovers()) > 0 {
		t.Errorf("left behind: %v", l.Leftovers())
	}
}

// seen tells which lab a system was set up in.
type seen struct {
	System
	lab **lab.Lab
}

func (s seen) Setup(ctx context.Context, l *lab.Lab) (Joined, error) {
	*s.lab = l
	return s.System.Setup(ctx, l)
}
