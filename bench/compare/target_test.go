package compare

import (
	"strings"
	"testing"
)

func TestVerdict(t *testing.T) {
	more := Target{Must: 0.65, Aim: 0.85}
	less := Target{Must: 1.55, Aim: 1.35, AtMost: true}
	for _, c := range []struct {
		target Target
		ratio  float64
		want   Verdict
	}{
		{more, 0.64, Failed}, {more, 0.65, Met}, {more, 0.84, Met}, {more, 0.85, Reached}, {more, 3, Reached},
		{less, 1.56, Failed}, {less, 1.55, Met}, {less, 1.36, Met}, {less, 1.35, Reached}, {less, 0.2, Reached},
	} {
		if got := c.target.verdict(c.ratio); got != c.want {
			t.Errorf("%+v with %v: %v, want %v", c.target, c.ratio, got, c.want)
		}
	}
}

func TestJudge(t *testing.T) {
	r := fakeResults()
	r.Systems = append(r.Systems, Entry{Name: "broken", NotMeasured: "the device is not there"})
	for name, c := range map[string]struct {
		target  Target
		verdict Verdict
		reason  string
	}{
		"reached":           {Target{Figure: "tcp-1", System: "muslin-vxlan", Against: Baseline, Must: 0.6, Aim: 0.7}, Reached, ""},
		"met":               {Target{Figure: "tcp-1", System: "muslin-vxlan", Against: Baseline, Must: 0.6, Aim: 0.8}, Met, ""},
		"failed":            {Target{Figure: "tcp-latency-p50", System: "muslin-vxlan", Against: Baseline, Must: 1.4, Aim: 1, AtMost: true}, Failed, ""},
		"not asked":         {Target{Figure: "tcp-1", System: "plain", Against: Baseline}, NotAsked, "plain was not asked for"},
		"figure not asked":  {Target{Figure: "tcp-4", System: "muslin-vxlan:none", Against: Baseline}, NotAsked, "tcp-4 was not asked for"},
		"not installed":     {Target{Figure: "tcp-1", System: "muslin-vxlan", Against: "nebula"}, Unmeasured, "not installed"},
		"could not be":      {Target{Figure: "tcp-1", System: "muslin-vxlan", Against: "broken"}, Failed, "the device is not there"},
		"failed throughout": {Target{Figure: "cpu-machine", System: "muslin-vxlan", Against: Baseline}, Failed, "no answer"},
	} {
		got := r.Judge([]Target{c.target})[0]
		if got.Verdict != c.verdict || !strings.Contains(got.Reason, c.reason) {
			t.Errorf("%s: %v (%s), want %v (%s)", name, got.Verdict, got.Reason, c.verdict, c.reason)
		}
	}
}

func TestWriteVerdicts(t *testing.T) {
	r := fakeResults()
	good := Target{Title: "good", Figure: "tcp-1", System: "muslin-vxlan", Against: Baseline, Must: 0.6, Aim: 0.8}
	slow := Target{Title: "slow", Figure: "tcp-latency-p50", System: "muslin-vxlan", Against: Baseline, Must: 1.4, Aim: 1.2, AtMost: true}
	away := Target{Title: "away", Figure: "tcp-1", System: "muslin-vxlan", Against: "nebula", Must: 1, Aim: 2}
	hidden := Target{Title: "hidden", Figure: "tcp-1", System: "plain", Against: Baseline}
	for _, c := range []struct {
		targets []Target
		ok      bool
		want    string
	}{
		{[]Target{good, away, hidden}, true, `
TARGET  MUST  AIM   MEASURED  SPREAD     VERDICT
good    0.60  0.80  0.75      0.50–0.90  met
away    1.00  2.00  -         -          not measured: not installed: nebula`},
		{[]Target{slow, good}, false, `
TARGET  MUST    AIM     MEASURED  SPREAD     VERDICT
slow    ≤ 1.40  ≤ 1.20  1.50      1.40–2.00  FAILED
good    0.60    0.80    0.75      0.50–0.90  met`},
		{[]Target{hidden}, true, ""},
	} {
		var b strings.Builder
		ok, err := WriteVerdicts(&b, r.Judge(c.targets))
		if err != nil || ok != c.ok || strings.TrimSpace(b.String()) != strings.TrimSpace(c.want) {
			t.Errorf("ok %v, %v; want %v and%s\ngot\n%s", ok, err, c.ok, c.want, b.String())
		}
	}
}

// Whoever changes a target changes it here too, knowing that it is a promise.
func TestTargetsAreConsistent(t *testing.T) {
	for _, target := range Targets {
		if target.AtMost != (target.Aim < target.Must) {
			t.Errorf("%s: must %v and aim %v contradict each other", target.Title, target.Must, target.Aim)
		}
		if target.System == target.Against {
			t.Errorf("%s compares a system with itself", target.Title)
		}
	}
}
