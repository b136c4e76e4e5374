//go:build linux

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
)

// bin is the muslin binary under test.
var bin string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if _, err := lab.Sweep(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if bin = os.Getenv("MUSLIN_BIN"); bin != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "muslin-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // some tests run the binary as nobody
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	bin = filepath.Join(dir, "muslin")
	build := exec.Command("go", "build", "-o", bin, "muslin/cmd/muslin")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the binary under test: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// newLab builds a lab that ends with the test. Of a failed test it prints the daemons' logs.
func newLab(t *testing.T, hosts int) *lab.Lab {
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

// must returns v, or ends the test.
func must[V any](v V, err error) func(t *testing.T) V {
	return func(t *testing.T) V {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func startMuslin(t *testing.T, h *lab.Host, flags ...string) *lab.Muslin {
	t.Helper()
	return must(h.StartMuslin(t.Context(), bin, flags...))(t)
}

func launchMuslin(t *testing.T, h *lab.Host, flags ...string) *lab.Muslin {
	t.Helper()
	return must(h.LaunchMuslin(bin, flags...))(t)
}

func addPod(t *testing.T, m *lab.Muslin, name string) *lab.Pod {
	t.Helper()
	return must(m.AddPod(t.Context(), name))(t)
}

func status(t *testing.T, m *lab.Muslin) *lab.Status {
	t.Helper()
	return must(m.Status(t.Context()))(t)
}

// eventually waits until done returns nil, and ends the test with its last error after limit, which is one for a
// machine as people have it.
func eventually(t *testing.T, limit time.Duration, done func() error) {
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

// waitPeers waits until the daemon knows exactly this many peers.
func waitPeers(t *testing.T, m *lab.Muslin, want int) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		s, err := m.Status(t.Context())
		if err == nil && len(s.Peers) != want {
			err = fmt.Errorf("%s has %d peers, want %d", m.Name, len(s.Peers), want)
		}
		return err
	})
}

// join starts daemons on all hosts, the first with the embedded etcd, and a pod on each host.
func join(t *testing.T, l *lab.Lab, backend string, flags ...string) []*lab.Muslin {
	t.Helper()
	var daemons []*lab.Muslin
	for _, h := range l.Hosts() {
		own := []string{"--etcd-endpoints", endpoint(l.Host(1))}
		if h.Number == 1 {
			own = []string{"--embedded-etcd", "--network", network, "--backend", backend}
		}
		m := startMuslin(t, h, append(own, flags...)...)
		addPod(t, m, "a")
		daemons = append(daemons, m)
	}
	for _, m := range daemons {
		waitPeers(t, m, len(daemons)-1)
	}
	return daemons
}

// network is the overlay in most tests.
const network = "10.244.0.0/16"

// endpoint is where a host's etcd, embedded or not, serves.
func endpoint(h *lab.Host) string { return fmt.Sprintf("http://%s:2379", h.Addr) }

// expectPing pings n times and wants every answer.
func expectPing(t *testing.T, from *lab.Node, to netip.Addr, n int) {
	t.Helper()
	expectPings(t, from, to, lab.PingOptions{Count: n})
}

// expectPings wants every answer to what the options say.
func expectPings(t *testing.T, from *lab.Node, to netip.Addr, o lab.PingOptions) {
	t.Helper()
	r, err := from.Ping(t.Context(), to, o)
	if err != nil || r.Sent != o.Count || r.Received != o.Count {
		t.Errorf("ping %+v from %s to %s: %+v, %v", o, from.Name, to, r, err)
	}
}

// expectNoAnswer wants no answer to a ping.
func expectNoAnswer(t *testing.T, from *lab.Node, to netip.Addr) {
	t.Helper()
	if r, err := from.Ping(t.Context(), to, lab.PingOptions{Count: 1}); err != nil || r.Received != 0 {
		t.Errorf("ping from %s to %s: %+v, %v; want no answer", from.Name, to, r, err)
	}
}

// expectNoDrops wants a daemon that never dropped a packet. A full TUN queue under a TCP stream is no
// fault: it is how TCP finds its rate.
func expectNoDrops(t *testing.T, m *lab.Muslin) {
	t.Helper()
	for reason, n := range status(t, m).Drops {
		if n != 0 && reason != "tun-overflow" {
			t.Errorf("%s dropped %d packets: %s", m.Name, n, reason)
		}
	}
}

// expectExit waits for a daemon to end, and returns its log.
func expectExit(t *testing.T, p *lab.Proc, want int) string {
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

// expectWords wants every word in the text, regardless of case.
func expectWords(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(strings.ToLower(text), strings.ToLower(w)) {
			t.Errorf("%q is missing in:\n%s", w, text)
		}
	}
}

func snapshot(t *testing.T, n *lab.Node) string {
	t.Helper()
	return must(n.Snapshot(t.Context()))(t)
}

// expectAsBefore wants a host that looks as it did before. Links go a moment after their process.
func expectAsBefore(t *testing.T, n *lab.Node, before string) {
	t.Helper()
	eventually(t, 3*time.Second, func() error {
		if after := snapshot(t, n); after != before {
			return fmt.Errorf("host %s changed. Before:\n%s\nafter:\n%s", n.Name, before, after)
		}
		return nil
	})
}
