//go:build linux

package fault

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// deleteLease deletes the lease of node i by hand, and waits until it is there again, as it was.
func (s *scene) deleteLease(i int) {
	s.Helper()
	subnet := labtest.Status(s.T, s.nodes[i]).Node.Subnet
	before := s.cluster.lease(s.T, subnet)
	if before == "" {
		s.Fatalf("%s has no lease for %s", s.nodes[i].Name, subnet)
	}
	began := time.Now()
	s.cluster.do(s.T, "del", labtest.Prefix+labtest.LeaseKey(subnet))
	labtest.Eventually(s.T, 5*time.Second, func() error {
		if now := s.cluster.lease(s.T, subnet); now != before {
			return fmt.Errorf("lease %s is %q, want %q", subnet, now, before)
		}
		return nil
	})
	s.Logf("%s: there again %v after it was deleted", subnet, time.Since(began).Round(10*time.Millisecond))
}

// Somebody deletes the lease of a node that is alive.
func TestLeaseDeletedByHand(t *testing.T) {
	s := newScene(t, 0, clusterOptions{})
	for range 3 {
		s.deleteLease(0)
		s.deleteLease(1)
	}
	s.peersRight(time.Now(), 5*time.Second)
	s.quiet(10 * time.Second)
	for i := range s.nodes {
		s.logged(i, "our lease was deleted from the store", "we hold our subnet again")
	}
	s.untouched()
}

// The whole prefix is deleted, the network's config too.
func TestPrefixDeleted(t *testing.T) {
	s := newScene(t, 0, clusterOptions{})
	config := s.cluster.do(t, "get", "--print-value-only", labtest.Prefix+"/config")
	before := s.cluster.leases(t)
	s.cluster.do(t, "del", "--prefix", labtest.Prefix)
	began := time.Now()
	labtest.Eventually(t, 5*time.Second, func() error {
		if now := s.cluster.leases(t); strings.Join(now, " ") != strings.Join(before, " ") {
			return fmt.Errorf("leases %q, want %q", now, before)
		}
		return nil
	})
	t.Logf("the leases were there again after %v", time.Since(began).Round(10*time.Millisecond))
	s.peersRight(time.Now(), 5*time.Second)
	s.cluster.config(t, strings.TrimSpace(config))
	s.quiet(10 * time.Second)
	for i := range s.nodes {
		s.logged(i, "leases vanished from the store together with ours", "our lease was deleted from the store")
	}
	s.untouched()
}

// overwrite writes over the lease of node 0, and waits until it is as it was.
func (s *scene) overwrite(value string) {
	s.Helper()
	subnet := labtest.Status(s.T, s.nodes[0]).Node.Subnet
	before := s.cluster.lease(s.T, subnet)
	if value == before {
		s.Fatalf("lease %s is %s already", subnet, before)
	}
	began := time.Now()
	s.cluster.do(s.T, "put", labtest.Prefix+labtest.LeaseKey(subnet), value)
	labtest.Eventually(s.T, 5*time.Second, func() error {
		if now := s.cluster.lease(s.T, subnet); now != before {
			return fmt.Errorf("lease %q, want %q", now, before)
		}
		return nil
	})
	s.Logf("written back after %v", time.Since(began).Round(10*time.Millisecond))
}

// Somebody writes over the lease of a node, in its own name but with another MAC, as a cloned host or a flanneld
// beside the daemon would.
//
// Peers that take that up before the daemon has written its own back send with the wrong MAC. What is sent to the
// node in those milliseconds is lost, and nothing else is. A second time within five minutes the daemon waits for
// a second, lest two that never yield write at full speed.
func TestLeaseOverwritten(t *testing.T) {
	s := newScene(t, 0, clusterOptions{})
	node := labtest.Status(t, s.nodes[0]).Node
	before := s.cluster.lease(t, node.Subnet)
	s.overwrite(strings.Replace(before, node.VtepMAC, "0a:00:00:00:00:77", 1))
	s.warned(0, 5*time.Second, "two hosts have PublicIP", "0a:00:00:00:00:77", "--public-ip")
	s.logged(0, "two hosts have PublicIP")
	s.peersRight(time.Now(), 5*time.Second)
	all := s.stop()
	if from := all[0]; from.Lost != 0 {
		t.Errorf("from the node: %v", from)
	}
	if to := all[1]; to.Lost > 500 || len(to.Gaps) > 1 {
		t.Errorf("to the node: %v", to)
	}
}

// Somebody writes what is no lease over the lease of a node, twice.
func TestLeaseMadeNonsense(t *testing.T) {
	s := newScene(t, 0, clusterOptions{})
	s.overwrite("nonsense")
	s.overwrite("{}")
	s.warned(0, 5*time.Second, "what is not a lease")
	s.logged(0, "what is not a lease")
	s.logged(1, "a lease cannot be read, but its node is alive")
	s.peersRight(time.Now(), 5*time.Second)
	s.untouched()
}

// Another node's lease is written over ours: the subnet is that node's now. The daemon ends and says so: its pods'
// addresses are another's, and every packet that it carried on would be a wrong one. Started again, it takes
// another subnet, as soon as the store has told it that the one that it remembers is gone.
func TestLeaseGivenToAnotherNode(t *testing.T) {
	s := newScene(t, 0, clusterOptions{})
	node := labtest.Status(t, s.nodes[0]).Node
	value := `{"PublicIP":"198.18.0.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:99"}}`
	s.cluster.do(t, "put", labtest.Prefix+labtest.LeaseKey(node.Subnet), value)
	given := time.Now()
	log := labtest.ExpectExit(t, s.nodes[0].Proc, 1)
	labtest.ExpectWords(t, log, "another node holds our subnet", "198.18.0.99", "Restart to acquire another subnet")
	t.Logf("ended after %v", time.Since(given).Round(10*time.Millisecond))
	s.eventually(1, given, 5*time.Second, func(st *lab.Status) error {
		if p, ok := st.Peer(node.Subnet); !ok || p.PublicIP.String() != "198.18.0.99" {
			return fmt.Errorf("%s has not noticed: %+v", s.nodes[1].Name, st.Peers)
		}
		return nil
	})
	if got := s.cluster.lease(t, node.Subnet); got != value {
		t.Errorf("the other node's lease was touched: %s", got)
	}
	s.nodes[0] = labtest.StartMuslin(t, s.nodes[0].Host, s.cluster.flags()...)
	s.eventually(0, time.Now(), 5*time.Second, func(st *lab.Status) error {
		if !st.Node.Subnet.IsValid() || st.Node.Subnet == node.Subnet {
			return fmt.Errorf("started again it has %s, and %s is another node's", st.Node.Subnet, node.Subnet)
		}
		return nil
	})
	s.peersRight(time.Now(), 5*time.Second)
	for _, p := range s.probes {
		if r := p.Stop(); r.Received == 0 || r.Lost == 0 {
			t.Errorf("the pod kept an address that is not its node's any more, and yet: %v", r)
		}
	}
}
