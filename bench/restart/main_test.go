//go:build linux

package restart

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
	"muslin/bench/probe"
)

func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }

// scene is two nodes with a pod each, and probes both ways. The daemon that is replaced, killed or booted anew
// is the first one's.
//
//	h1 (muslin, etcd) ─ eth0 ─┐          ┌─ eth0 ─ h2 (muslin)
//	  └─ cni0 ─ p1a           └─ switch ─┘            └─ cni0 ─ p2a
type scene struct {
	*testing.T
	lab    *lab.Lab
	flags  []string      // of the first node's daemon
	etcd   *labtest.Etcd // nil: embedded in the first daemon
	nodes  [2]*lab.Muslin
	pods   [2]*lab.Pod
	probes []*probe.Probe
}

// newScene starts both nodes, on an etcd of its own or, with embedded, on the first daemon's.
func newScene(t *testing.T, embedded bool, flags ...string) *scene {
	t.Helper()
	l := labtest.NewLab(t, 2)
	s := &scene{T: t, lab: l, flags: flags}
	store := []string{"--etcd-endpoints", labtest.Endpoint(l.Host(1))}
	own := store
	if embedded {
		own = []string{"--embedded-etcd", "--network", labtest.Network}
	} else {
		s.etcd = labtest.StartEtcd(t, l.Host(1))
		s.etcd.Config(t, labtest.VXLANConfig)
	}
	s.flags = append(own, flags...)
	for i, flags := range [][]string{s.flags, store} {
		s.nodes[i] = labtest.StartMuslin(t, l.Host(i+1), flags...)
		s.pods[i] = labtest.AddPod(t, s.nodes[i], "a")
	}
	for _, m := range s.nodes {
		labtest.WaitPeers(t, m, 1)
	}
	return s
}

// probe begins to send both ways, and waits until both get through.
func (s *scene) probe() {
	s.Helper()
	s.probeAt(probe.DefaultRate)
}

// probeAt does so with so many datagrams a second each way.
func (s *scene) probeAt(rate int) {
	s.Helper()
	for i := range s.pods {
		s.probes = append(s.probes, labtest.StartProbeAt(s.T, rate, s.pods[i], s.pods[1-i]))
	}
}

// stop ends the probes, and returns what they saw.
func (s *scene) stop() (all [2]probe.Result) {
	s.Helper()
	for i, p := range s.probes {
		all[i] = p.Stop()
		s.Logf("from h%d: %s", i+1, all[i])
		if all[i].Err != nil {
			s.Error(all[i].Err)
		}
	}
	s.probes = nil
	return all
}

// stopUnharmed ends the probes, and wants nothing lost, doubled or overtaken.
func (s *scene) stopUnharmed() {
	s.Helper()
	for _, r := range s.stop() {
		if r.Lost != 0 || r.Duplicated != 0 || r.Reordered != 0 {
			s.Errorf("%s", r)
		}
	}
}

// replace starts bin in the first daemon's place, and waits until that one has left and the new one answers.
func (s *scene) replace(bin string, flags ...string) {
	s.Helper()
	old := s.nodes[0]
	began := time.Now()
	next := s.launchSuccessor(bin, flags...)
	labtest.ExpectExit(s.T, old.Proc, 0)
	s.nodes[0] = next
	labtest.Eventually(s.T, 5*time.Second, func() error {
		_, err := next.Status(s.Context())
		return err
	})
	s.Logf("replaced within %v", time.Since(began).Round(time.Millisecond))
}

// launchSuccessor starts bin to take the first daemon's place, with its flags and more, and does not wait.
func (s *scene) launchSuccessor(bin string, flags ...string) *lab.Muslin {
	s.Helper()
	return labtest.Must(s.lab.Host(1).LaunchMuslin(bin, slices.Concat([]string{"--replace"}, s.flags, flags)...))(s.T)
}

// lockHolder is who has the state directory, as its lock's file says.
func (s *scene) lockHolder() string {
	s.Helper()
	content, err := os.ReadFile(filepath.Join(s.nodes[0].StateDir, "lock"))
	if err != nil {
		s.Fatal(err)
	}
	return string(content)
}

func (s *scene) expectLockHolder(p *lab.Proc) {
	s.Helper()
	if got, want := s.lockHolder(), fmt.Sprintln(p.PID()); got != want {
		s.Errorf("the state directory is locked by %s, want %s", got, want)
	}
}

// snapshot is the first host once its new interfaces are at rest: an IPv6 address is tentative for a while.
func (s *scene) snapshot() (shot string) {
	s.Helper()
	labtest.Eventually(s.T, 10*time.Second, func() (err error) {
		shot, err = s.lab.Host(1).Snapshot(s.Context())
		if err == nil && strings.Contains(shot, "tentative") {
			err = errors.New("an address is tentative")
		}
		return err
	})
	return shot
}
