//go:build linux

package doctor

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// scene is a healthy network, with a pod on each node:
//
//	h1 (etcd) ── br0 ─┬─ h2 (muslin) ── p2a
//	                  ├─ h3 (muslin) ── p3a
//	                  └─ …
type scene struct {
	*testing.T
	lab   *lab.Lab
	etcd  *labtest.Etcd
	nodes []*lab.Muslin // on h2, h3, …
	pods  []*lab.Pod    // one on each
}

// newScene starts so many nodes, each with these flags, and waits until they know each other. config is the network's; empty:
// flannel's defaults.
func newScene(t *testing.T, nodes int, config string, flags ...string) *scene {
	t.Helper()
	t.Parallel()
	s := &scene{T: t, lab: labtest.NewLab(t, nodes+1)}
	s.etcd = labtest.StartEtcd(t, s.lab.Host(1))
	if config == "" {
		config = labtest.VXLANConfig
	}
	s.etcd.Config(t, config)
	for i := range nodes {
		s.join(s.lab.Host(i+2), flags...)
	}
	for _, m := range s.nodes {
		labtest.WaitPeers(t, m, nodes-1)
	}
	return s
}

// join starts a daemon and a pod on a host.
func (s *scene) join(h *lab.Host, flags ...string) *lab.Muslin {
	s.Helper()
	m := labtest.StartMuslin(s.T, h, append([]string{"--etcd-endpoints", labtest.Endpoint(s.lab.Host(1))}, flags...)...)
	s.nodes = append(s.nodes, m)
	s.pods = append(s.pods, labtest.AddPod(s.T, m, "a"))
	return m
}

// run runs a command on a node's host.
func run(t *testing.T, n *lab.Node, command ...string) string {
	t.Helper()
	return labtest.Must(n.Run(t.Context(), command...))(t)
}

// sh runs a shell's command line there.
func sh(t *testing.T, n *lab.Node, line string) string {
	t.Helper()
	return run(t, n, "sh", "-ec", line)
}

// report is what the command says with --output json. It is declared here a second time on purpose, as lab.Status is.
type report struct {
	Findings []struct {
		ID         string `json:"id"`
		Severity   string `json:"severity"`
		Summary    string `json:"summary"`
		Evidence   string `json:"evidence"`
		Fix        string `json:"fix"`
		Confidence string `json:"confidence"`
		Node       string `json:"node"`
		Net        string `json:"net"`
	} `json:"findings"`
	Checked   []string `json:"checked"`
	Unchecked []struct{ Check, Reason string }
	TookMS    int64 `json:"took_ms"`

	exit int
	raw  string
}

// examine runs the doctor where the daemon is, or was, told nothing but the flags given.
func examine(t *testing.T, m *lab.Muslin, flags ...string) *report {
	t.Helper()
	return examineUnder(t, m, nil, flags...)
}

// examineUnder is examine with a command in front.
func examineUnder(t *testing.T, m *lab.Muslin, wrap []string, flags ...string) *report {
	t.Helper()
	command := slices.Concat(wrap, []string{m.Bin, "doctor", "--output", "json", "--control", m.Control}, flags)
	began := time.Now()
	out, failed := m.Host.Output(t.Context(), command...)
	took := time.Since(began)
	r := &report{raw: out}
	if exit := new(lab.ExitError); errors.As(failed, &exit) {
		r.exit = exit.Status
	} else if failed != nil {
		t.Fatal(failed)
	}
	if err := json.Unmarshal([]byte(out), r); err != nil {
		t.Fatalf("doctor on %s: %v in %q; %v", m.Host.Name, err, out, failed)
	}
	if took > 15*time.Second {
		t.Errorf("the doctor took %v, want 15 s at most", took)
	}
	if want := r.wantExit(); r.exit != want && !(r.exit == 3 && len(r.Findings) == 0) {
		t.Errorf("exit status %d, want %d: %s", r.exit, want, out)
	}
	return r
}

// wantExit is the exit status that the findings ask for.
func (r *report) wantExit() int {
	want := 0
	for _, f := range r.Findings {
		if f.Severity == "broken" {
			return 2
		}
		want = 1
	}
	return want
}

// here are the flags that say where a daemon has its things, for one that does not run.
func here(m *lab.Muslin, etcd *labtest.Etcd) []string {
	return []string{"--state-dir", m.StateDir, "--subnet-file", m.SubnetFile, "--iface", "eth0", "--etcd-endpoints", labtest.Endpoint(etcd.Host)}
}

// first wants the first finding to be this one, about this node (empty: any), with the words in what is said of it. It returns
// the finding's fix.
func (r *report) first(t *testing.T, id, node string, words ...string) (fix string) {
	t.Helper()
	if len(r.Findings) == 0 {
		t.Errorf("nothing was found, want %s first: %s", id, r.raw)
		return ""
	}
	f := r.Findings[0]
	if f.ID != id || node != "" && f.Node != node {
		t.Errorf("the first finding is %s of %s, want %s of %s: %s", f.ID, f.Node, id, node, r.raw)
		return ""
	}
	if f.Summary == "" || f.Evidence == "" || f.Fix == "" || f.Confidence == "" || f.Node == "" {
		t.Errorf("%s says too little: %+v", id, f)
	}
	labtest.ExpectWords(t, strings.Join([]string{f.Summary, f.Evidence, f.Fix}, "\n"), words...)
	t.Logf("%s [%s, %s]: %s | %s | %s (%d findings, %d ms)", f.ID, f.Severity, f.Confidence, f.Summary, f.Evidence, f.Fix, len(r.Findings), r.TookMS)
	return f.Fix
}

// well wants nothing found, and all checked that matters.
func (r *report) well(t *testing.T) {
	t.Helper()
	if len(r.Findings) != 0 || r.exit != 0 {
		t.Errorf("exit status %d, want nothing found: %s", r.exit, r.raw)
	}
}

// fault is one that is injected into a scene, and taken back.
type fault struct {
	id     string // of the first finding
	name   string // beside it; empty: none
	inject func(t *testing.T, s *scene)
	mend   func(t *testing.T, s *scene) // nil: the finding's fix, in a shell there
	node   int                          // of the scene, on which the doctor is asked
	about  string                       // address of the node that the finding is about; empty: the one on which the doctor is asked
	words  []string                     // of the finding
	flags  []string                     // of the doctor

	far      string // of the first finding at the scene's second node, asked at the same time; empty: it is not asked
	farAbout string // whom that is about; empty: the second node
}

// faults injects one after the other, each into a network that is well.
func (s *scene) faults(all []fault) {
	for _, f := range all {
		s.Run(strings.TrimSuffix(f.id+", "+f.name, ", "), func(t *testing.T) {
			m := s.nodes[f.node]
			about := f.about
			if about == "" {
				about = m.Host.Addr.String()
			}
			f.inject(t, s)
			var far sync.WaitGroup
			if f.far != "" {
				other := s.nodes[1]
				far.Go(func() { examine(t, other).first(t, f.far, cmp.Or(f.farAbout, other.Host.Addr.String())) })
			}
			fix := examine(t, m, f.flags...).first(t, f.id, about, f.words...)
			far.Wait()
			if f.mend == nil {
				sh(t, m.Host.Node, fix)
			} else {
				f.mend(t, s)
			}
			s.wellAgain(t, m)
		})
	}
}

// wellAgain waits until the doctor finds nothing any more.
func (s *scene) wellAgain(t *testing.T, m *lab.Muslin) {
	t.Helper()
	labtest.Eventually(t, 10*time.Second, func() error {
		if r := examine(t, m); len(r.Findings) > 0 {
			return fmt.Errorf("still found: %s", r.raw)
		}
		return nil
	})
}

// on are commands of a shell on the host of one of the scene's nodes, counted from 0.
func on(node int, line string) func(*testing.T, *scene) {
	return func(t *testing.T, s *scene) {
		t.Helper()
		sh(t, s.nodes[node].Host.Node, line)
	}
}
