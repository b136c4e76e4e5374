//go:build linux

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }

// What this suite shares with the others, by the names that it has here.
var (
	startMuslin  = labtest.StartMuslin
	launchMuslin = labtest.LaunchMuslin
	addPod       = labtest.AddPod
	status       = labtest.Status
	eventually   = labtest.Eventually
	waitPeers    = labtest.WaitPeers
	waitHealthy  = labtest.WaitHealthy
	expectExit   = labtest.ExpectExit
	expectWords  = labtest.ExpectWords
	endpoint     = labtest.Endpoint
	startEtcd    = labtest.StartEtcd
	startTLSEtcd = labtest.StartTLSEtcd
	leaseKey     = labtest.LeaseKey
)

const (
	network     = labtest.Network
	prefix      = labtest.Prefix
	vxlanConfig = labtest.VXLANConfig
)

// must returns v, or ends the test.
func must[V any](v V, err error) func(t *testing.T) V { return labtest.Must(v, err) }

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
// fault: it is how TCP finds its rate. So is a full queue of the underlay's interface where the machine is emulated.
func expectNoDrops(t *testing.T, m *lab.Muslin) {
	t.Helper()
	for reason, n := range status(t, m).Drops {
		if n != 0 && reason != "tun-overflow" && (reason != "send-buffer-full" || lab.Steady()) {
			t.Errorf("%s dropped %d packets: %s", m.Name, n, reason)
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
		after := snapshot(t, n)
		if after == before {
			return nil
		}
		return fmt.Errorf("host %s changed. Gone:\n%scome:\n%s", n.Name, without(before, after), without(after, before))
	})
}

// without are the lines of one text that another has not.
func without(one, other string) string {
	has := make(map[string]bool)
	for line := range strings.Lines(other) {
		has[line] = true
	}
	var b strings.Builder
	for line := range strings.Lines(one) {
		if !has[line] {
			b.WriteString(line)
		}
	}
	return b.String()
}
