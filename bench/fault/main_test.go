//go:build linux

package fault

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
	"muslin/bench/probe"
)

func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }

// scene is two nodes with a pod each and probes both ways, and an etcd cluster on hosts of its own:
//
//	h1 h2 h3 (etcd) ── br0 ─┬─ h4 (muslin) ── p4a ─┐
//	                        └─ h5 (muslin) ── p5a ─┘ 1,000 datagrams a second each way
type scene struct {
	*testing.T
	lab     *lab.Lab
	cluster *cluster
	nodes   []*lab.Muslin
	pods    []*lab.Pod
	probes  []*probe.Probe
}

// newScene starts it all, with more hosts from h6 on that are left alone, and waits until packets flow.
func newScene(t *testing.T, more int, options clusterOptions, flags ...string) *scene {
	t.Helper()
	t.Parallel()
	l := labtest.NewLab(t, members+2+more)
	s := &scene{T: t, lab: l, cluster: startCluster(t, l, options)}
	s.cluster.config(t, labtest.VXLANConfig)
	s.join(l.Host(members+1), flags...)
	s.join(l.Host(members+2), flags...)
	for _, m := range s.nodes {
		labtest.WaitPeers(t, m, 1)
		labtest.WaitHealthy(t, m, true)
	}
	s.probe(0, 1)
	s.probe(1, 0)
	return s
}

// join starts one more node, with a pod.
func (s *scene) join(h *lab.Host, flags ...string) {
	s.Helper()
	m := labtest.StartMuslin(s.T, h, append(s.cluster.flags(), flags...)...)
	s.nodes = append(s.nodes, m)
	s.pods = append(s.pods, labtest.AddPod(s.T, m, "a"))
}

// probe sends from one node's pod to another's until the probes are stopped.
func (s *scene) probe(from, to int) {
	s.Helper()
	s.probes = append(s.probes, labtest.StartProbe(s.T, s.pods[from], s.pods[to]))
}

// stop ends the probes, once more has arrived on each, and returns what became of it.
func (s *scene) stop() []probe.Result {
	s.Helper()
	var all []probe.Result
	for _, p := range s.probes {
		labtest.WaitReceived(s.T, p, 100)
	}
	sent, lost := 0, 0
	for _, p := range s.probes {
		r := p.Stop()
		s.Log(r)
		if r.Err != nil {
			s.Error(r.Err)
		}
		if r.Duplicated != 0 || r.Reordered != 0 {
			s.Errorf("duplicated or reordered: %v", r)
		}
		all = append(all, r)
		sent, lost = sent+r.Sent, lost+r.Lost
	}
	s.probes = nil
	s.Logf("of %d datagrams %d were lost", sent, lost)
	return all
}

// untouched ends the probes, and wants every datagram to have arrived once and in order.
func (s *scene) untouched() {
	s.Helper()
	for _, r := range s.stop() {
		if r.Lost != 0 {
			s.Errorf("lost packets: %v", r)
		}
	}
}

// marker is a lease of no node, by which a test sees whether a daemon follows the store.
var marker = netip.MustParsePrefix("10.244.255.0/24")

// peersRight waits until the nodes know each other and follow the store: a lease that is written now becomes a
// peer of each. What that took from since on must be no more than limit.
func (s *scene) peersRight(since time.Time, limit time.Duration) {
	s.Helper()
	key := labtest.Prefix + labtest.LeaseKey(marker)
	value := `{"PublicIP":"198.18.0.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:99"}}`
	s.cluster.eventually(s.T, "put", key, value)
	for i := range s.nodes {
		s.eventually(i, since, limit, func(st *lab.Status) error {
			if _, ok := st.Peer(marker); !ok || !st.Store.Healthy {
				return fmt.Errorf("%s: healthy %t, %d peers, %s", s.nodes[i].Name, st.Store.Healthy, len(st.Peers), st.Store.LastError)
			}
			return s.knowsOthers(i, st)
		})
	}
	s.Logf("the peers were right after %v", time.Since(since).Round(100*time.Millisecond))
	s.cluster.eventually(s.T, "del", key)
	for i := range s.nodes {
		s.eventually(i, time.Now(), limit, func(st *lab.Status) error {
			if _, ok := st.Peer(marker); ok {
				return fmt.Errorf("%s does not see that a lease was deleted", s.nodes[i].Name)
			}
			return s.knowsOthers(i, st)
		})
	}
}

// knowsOthers says which of the other nodes the status of node i has not, or not as it is.
func (s *scene) knowsOthers(i int, st *lab.Status) error {
	for j, m := range s.nodes {
		other, err := m.Status(s.Context())
		if err != nil {
			return err
		}
		p, ok := st.Peer(other.Node.Subnet)
		if i != j && (!ok || p.PublicIP != other.Node.PublicIP || p.VtepMAC != other.Node.VtepMAC) {
			return fmt.Errorf("%s has peers %+v, and not %+v", s.nodes[i].Name, st.Peers, other.Node)
		}
	}
	return nil
}

// eventually asks node i until check returns nil, at most until limit after since.
func (s *scene) eventually(i int, since time.Time, limit time.Duration, check func(*lab.Status) error) {
	s.Helper()
	labtest.Eventually(s.T, limit-time.Since(since), func() error {
		st, err := s.nodes[i].Status(s.Context())
		if err != nil {
			return err
		}
		return check(st)
	})
}

// warned waits until the status of node i has a warning with all of these words.
func (s *scene) warned(i int, limit time.Duration, words ...string) {
	s.Helper()
	s.eventually(i, time.Now(), limit, func(st *lab.Status) error {
		for _, warning := range st.Warnings {
			if hasAll(warning, words) {
				return nil
			}
		}
		return fmt.Errorf("%q is not in the warnings of %s: %q", words, s.nodes[i].Name, st.Warnings)
	})
}

func hasAll(text string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(text, w) {
			return false
		}
	}
	return true
}

// quiet waits until no node has a warning.
func (s *scene) quiet(limit time.Duration) {
	s.Helper()
	for i := range s.nodes {
		s.eventually(i, time.Now(), limit, func(st *lab.Status) error {
			if len(st.Warnings) != 0 {
				return fmt.Errorf("%s warns: %q", s.nodes[i].Name, st.Warnings)
			}
			return nil
		})
	}
}

// logged wants words in the log of node i.
func (s *scene) logged(i int, words ...string) {
	s.Helper()
	labtest.ExpectWords(s.T, s.nodes[i].Output(), words...)
}

// run runs a command in a node's namespace.
func (s *scene) run(n *lab.Node, args ...string) string {
	s.Helper()
	return labtest.Must(n.Run(s.Context(), args...))(s.T)
}
