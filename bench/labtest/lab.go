//go:build linux

package labtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/probe"
)

// Network is the overlay in most tests.
const Network = "10.244.0.0/16"

// VXLANConfig is the config of a network with flannel's defaults.
const VXLANConfig = `{"Network":"` + Network + `","Backend":{"Type":"vxlan"}}`

// NewLab builds a lab that ends with the test. Of a failed test it prints the daemons' logs.
func NewLab(t *testing.T, hosts int) *lab.Lab {
	t.Helper()
	lab.RequireRoot(t)
	lab.RequireTool(t, "ip")
	l, err := lab.New(t.Context(), lab.Config{Hosts: hosts})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			printLogs(t, l)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func printLogs(t *testing.T, l *lab.Lab) {
	logs, _ := filepath.Glob(filepath.Join(l.Dir(), "*-muslin.log"))
	for _, path := range logs {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Log(err)
		}
		t.Logf("%s:\n%s", filepath.Base(path), content)
	}
}

// Must returns v, or ends the test: Must(f())(t).
func Must[V any](v V, err error) func(t *testing.T) V {
	return func(t *testing.T) V {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// StartMuslin starts a daemon and waits until it is ready.
func StartMuslin(t *testing.T, h *lab.Host, flags ...string) *lab.Muslin {
	t.Helper()
	return Must(h.StartMuslin(t.Context(), Bin, flags...))(t)
}

// LaunchMuslin starts a daemon and does not wait.
func LaunchMuslin(t *testing.T, h *lab.Host, flags ...string) *lab.Muslin {
	t.Helper()
	return Must(h.LaunchMuslin(Bin, flags...))(t)
}

// AddPod adds a pod in the daemon's subnet.
func AddPod(t *testing.T, m *lab.Muslin, name string) *lab.Pod {
	t.Helper()
	return Must(m.AddPod(t.Context(), name))(t)
}

// Status asks the daemon.
func Status(t *testing.T, m *lab.Muslin) *lab.Status {
	t.Helper()
	return Must(m.Status(t.Context()))(t)
}

// Eventually waits until done returns nil, and ends the test with its last error after limit.
func Eventually(t *testing.T, limit time.Duration, done func() error) {
	t.Helper()
	limit = lab.Patience(limit)
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		err := done()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %v", limit, err)
		}
	}
}

// WaitPeers waits until the daemon knows exactly this many peers.
func WaitPeers(t *testing.T, m *lab.Muslin, want int) {
	t.Helper()
	Eventually(t, 30*time.Second, func() error { // one that was heard a moment ago outlives its lease
		s, err := m.Status(t.Context())
		if err == nil && len(s.Peers) != want {
			err = fmt.Errorf("%s has %d peers, want %d", m.Host.Name, len(s.Peers), want)
		}
		return err
	})
}

// WaitHealthy waits until the daemon's store is, or is not, in order.
func WaitHealthy(t *testing.T, m *lab.Muslin, want bool) {
	t.Helper()
	Eventually(t, 30*time.Second, func() error {
		s, err := m.Status(t.Context())
		if err == nil && s.Store.Healthy != want {
			err = fmt.Errorf("store of %s healthy: %t, want %t", m.Host.Name, s.Store.Healthy, want)
		}
		return err
	})
}

// StartProbe sends 1,000 datagrams a second from pod to pod, once 100 have got through.
func StartProbe(t *testing.T, from, to *lab.Pod) *probe.Probe {
	t.Helper()
	return StartProbeAt(t, probe.DefaultRate, from, to)
}

// StartProbeAt sends so many a second.
func StartProbeAt(t *testing.T, rate int, from, to *lab.Pod) *probe.Probe {
	t.Helper()
	p := Must(probe.Start(t.Context(), probe.Config{From: from.Node, To: to.Node, Addr: to.Addr, Rate: rate}))(t)
	WaitReceived(t, p, 100)
	return p
}

// WaitReceived waits until n more datagrams of a probe have arrived.
func WaitReceived(t *testing.T, p *probe.Probe, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lab.Patience(20*time.Second))
	defer cancel()
	if err := p.WaitReceived(ctx, n); err != nil {
		t.Fatal(err)
	}
}

// ExpectExit waits for a daemon to end, and returns its log.
func ExpectExit(t *testing.T, p *lab.Proc, want int) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lab.Patience(20*time.Second))
	defer cancel()
	got, err := p.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("%s ended with status %d, want %d; its log:\n%s", p.Name, got, want, p.Output())
	}
	return p.Output()
}

// ExpectWords wants every word in the text, regardless of case.
func ExpectWords(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(strings.ToLower(text), strings.ToLower(w)) {
			t.Errorf("%q is missing in:\n%s", w, text)
		}
	}
}
