//go:build linux

package restart

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
	"muslin/bench/probe"
	"muslin/tunnel/handover"
)

// call asks the first daemon for its place, as a new process that is this test.
func (s *scene) call() *handover.Successor {
	s.Helper()
	c, err := handover.Call(s.Context(), s.nodes[0].Control, handover.Hello{Version: "stub"}, handover.DefaultLimits)
	if err != nil {
		s.Fatal(err)
	}
	return c
}

// Whatever a successor does, and whenever, the daemon goes on, nothing is lost, and the next successor works.
func TestSuccessorFails(t *testing.T) {
	t.Parallel()
	broken := errors.New("the stub ends here")
	// at runs do when the daemon has handed over a part, and reports a failure.
	at := func(part string, do func(c *handover.Successor)) func(s *scene) {
		return func(s *scene) {
			c := s.call()
			err := c.Take(s.Context(), func(given string, _ json.RawMessage) error {
				if given != part {
					return nil
				}
				do(c)
				return broken
			})
			if err == nil {
				s.Error("the stub has the daemon's place")
			}
		}
	}
	dies := func(c *handover.Successor) { c.Close() }
	says := func(*handover.Successor) {}
	hangs := func(*handover.Successor) { time.Sleep(2 * handover.DefaultLimits.Packets) }
	for _, c := range []struct {
		name     string
		embedded bool
		fail     func(s *scene)
	}{
		{"dies with the offer", false, func(s *scene) { s.call().Close() }},
		{"is not ready", false, func(s *scene) { s.call().Fail(broken) }},
		{"hangs with the offer", false, func(s *scene) {
			c := s.call()
			defer c.Close()
			_, err := handover.Call(s.Context(), s.nodes[0].Control, handover.Hello{}, handover.DefaultLimits)
			if err == nil {
				s.Fatal("two successors at once")
			}
			labtest.ExpectWords(s.T, err.Error(), "another process is about to replace it")
			time.Sleep(time.Second)
		}},
		{"dies with the packets", false, at(handover.Packets, dies)},
		{"cannot carry the packets", false, at(handover.Packets, says)},
		{"hangs with the packets", false, at(handover.Packets, hangs)},
		{"cannot start the store", true, at(handover.Store, says)},
		{"dies with the store", true, at(handover.Store, dies)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, c.embedded)
			before, pid := s.snapshot(), s.lockHolder()
			// The stub carries nothing while it has the packets, for as long as the embedded etcd takes to stop: they wait in
			// the device's queue, which holds 1,000.
			rate := probe.DefaultRate
			if c.embedded {
				rate /= 5
			}
			s.probeAt(rate)
			c.fail(s)
			labtest.Eventually(t, 10*time.Second, func() error {
				// The daemon has taken everything back when it lets another one ask.
				next, err := handover.Call(t.Context(), s.nodes[0].Control, handover.Hello{Version: "stub"}, handover.DefaultLimits)
				if err == nil {
					next.Close()
				}
				return err
			})
			for _, p := range s.probes {
				labtest.WaitReceived(t, p, 100)
			}
			s.stopUnharmed()
			if after := s.snapshot(); after != before || s.lockHolder() != pid {
				t.Errorf("the host changed. Before:\n%s\nafter:\n%s", before, after)
			}
			labtest.WaitHealthy(t, s.nodes[0], true)
			labtest.WaitHealthy(t, s.nodes[1], true)
			s.probe()
			s.replace(labtest.Bin)
			s.stopUnharmed()
			s.expectEndsWell()
		})
	}
}

// The new process is killed at any moment of a replacement. Either the old one still carries packets, and none
// was lost; or the new one had its place, and the next start takes up what it left.
func TestSuccessorKilled(t *testing.T) {
	t.Parallel()
	s := newScene(t, false)
	kept := 0
	for i := range 20 {
		s.probe()
		old := s.nodes[0]
		next := s.launchSuccessor(labtest.Bin)
		time.Sleep(lab.Patience(time.Duration(i) * 20 * time.Millisecond)) // a replacement takes some 150 to 300 ms
		next.Kill()
		if s.survives(old) {
			kept++
			for _, p := range s.probes {
				labtest.WaitReceived(t, p, 50)
			}
			s.stopUnharmed()
			continue
		}
		s.stop()
		s.nodes[0] = labtest.StartMuslin(t, s.lab.Host(1), s.flags...)
		labtest.WaitPeers(t, s.nodes[0], 1)
	}
	t.Logf("the old daemon was kept in %d of 20 cases", kept)
	if kept == 0 || kept == 20 {
		t.Error("the moments of the kills are not those of a replacement")
	}
	s.expectEndsWell()
}

// survives waits until a daemon is either surely there to stay or gone.
func (s *scene) survives(m *lab.Muslin) bool {
	s.Helper()
	deadline := time.Now().Add(lab.Patience(2 * handover.DefaultLimits.Packets))
	for time.Now().Before(deadline) {
		if !m.Running() {
			return false
		}
		time.Sleep(10 * time.Millisecond)
	}
	return true
}

// The old process is killed at any moment of a replacement. The new one has all descriptors from early on, so
// that packets wait for it rather than get lost: but for the batch that the dead one had in hand.
func TestPredecessorKilled(t *testing.T) {
	t.Parallel()
	s := newScene(t, false)
	took := 0
	for i := range 20 {
		s.probe()
		old := s.nodes[0]
		next := s.launchSuccessor(labtest.Bin)
		time.Sleep(lab.Patience(time.Duration(i) * 20 * time.Millisecond))
		old.Kill()
		s.nodes[0] = next
		labtest.Eventually(t, 10*time.Second, func() error {
			if !next.Running() {
				t.Fatalf("the new daemon ended; its log:\n%s", next.Output())
			}
			_, err := next.Status(t.Context())
			return err
		})
		for _, p := range s.probes {
			labtest.WaitReceived(t, p, 50)
		}
		lost := 0
		for _, r := range s.stop() {
			lost += r.Lost
		}
		if lost == 0 {
			took++
		}
		labtest.WaitPeers(t, next, 1)
	}
	t.Logf("nothing was lost in %d of 20 cases", took)
	if took < 5 {
		t.Error("the new daemon did not take over from a dead one")
	}
	s.expectEndsWell()
}
