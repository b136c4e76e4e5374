//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"os"
	"sync"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// newLab is labtest's, and has the doctor examine every daemon that runs at the end of the test, when all is to be well again:
// it finds nothing.
func newLab(t *testing.T, hosts int) *lab.Lab {
	t.Helper()
	l := labtest.NewLab(t, hosts)
	t.Cleanup(func() { // before the lab's own, which ends it
		if _, ill := leftIll.Load(l); !ill && !t.Failed() && allRun(l) {
			expectWell(t, l)
		}
	})
	return l
}

// allRun reports whether on each host the daemon that was launched last still runs: a node that was stopped is rightly found.
func allRun(l *lab.Lab) bool {
	runs := make(map[*lab.Host]bool)
	for _, m := range l.Daemons() {
		runs[m.Host] = m.Running()
	}
	for _, r := range runs {
		if !r {
			return false
		}
	}
	return true
}

// leftIll are the labs that a test leaves otherwise than well.
var leftIll sync.Map

// leaveIll says that the doctor would rightly find something at the end of this test, and why.
func leaveIll(l *lab.Lab, why string) { leftIll.Store(l, why) }

// expectWell wants the doctor to find nothing, on every host with a daemon that carries packets.
func expectWell(t *testing.T, l *lab.Lab) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), lab.Patience(20*time.Second))
	defer cancel()
	var all sync.WaitGroup
	for _, m := range l.Daemons() {
		if _, err := os.Stat(m.Control); err != nil || !m.Running() {
			continue
		}
		all.Go(func() {
			if out, err := m.Host.Run(ctx, m.Bin, "doctor", "--control", m.Control); err != nil {
				t.Errorf("the doctor on %s, of a network that is well: %v\n%s", m.Host.Name, err, out)
			}
		})
	}
	all.Wait()
}

// firstFinding is the ID of what the doctor names first; empty: it finds nothing.
func firstFinding(t *testing.T, m *lab.Muslin) string {
	t.Helper()
	out, err := m.Host.Output(t.Context(), m.Bin, "doctor", "--output", "json", "--control", m.Control)
	var report struct {
		Findings []struct {
			ID string `json:"id"`
		} `json:"findings"`
	}
	if jsonErr := json.Unmarshal([]byte(out), &report); jsonErr != nil {
		t.Fatalf("%v, %v: %s", err, jsonErr, out)
	}
	if len(report.Findings) == 0 {
		return ""
	}
	return report.Findings[0].ID
}
