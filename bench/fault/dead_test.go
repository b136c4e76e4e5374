//go:build linux

package fault

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// down waits until node i sees the holder of a subnet as down, and returns since when.
func (s *scene) down(i int, subnet netip.Prefix) (since time.Time) {
	s.Helper()
	s.eventually(i, time.Now(), 30*time.Second, func(st *lab.Status) error {
		p, ok := st.Peer(subnet)
		if !ok || p.Up == nil || *p.Up || p.DownSince == nil {
			return fmt.Errorf("%s is not down but %+v", subnet, p)
		}
		since = *p.DownSince
		return nil
	})
	return since
}

// up waits until node i sees the holder of a subnet as up.
func (s *scene) up(i int, subnet netip.Prefix) {
	s.Helper()
	s.eventually(i, time.Now(), 30*time.Second, func(st *lab.Status) error {
		if p, ok := st.Peer(subnet); !ok || p.Up == nil || !*p.Up || p.DownSince != nil {
			return fmt.Errorf("%s is not up but %+v", subnet, p)
		}
		return nil
	})
}

// A daemon is killed, and a node of the kernel's VXLAN loses its device. Both are shown as down, since when they were
// heard last; what concerns neither goes on; their leases stay.
func TestDeadNodes(t *testing.T) {
	s := newScene(t, 2, clusterOptions{})
	dead := s.nodes[1]
	subnet := labtest.Status(t, dead).Node.Subnet
	s.join(s.lab.Host(6))
	s.probe(0, 2)
	s.probe(2, 0)
	kernel := labtest.Must(s.lab.Host(7).SetupKernelVXLAN(t.Context(), 1, 8472, netip.MustParsePrefix("10.244.250.0/24")))(t)
	for _, m := range s.nodes {
		n := labtest.Status(t, m).Node
		if err := kernel.AddPeer(t.Context(), n.Subnet, n.VtepMAC, n.PublicIP); err != nil {
			t.Fatal(err)
		}
	}
	s.cluster.do(t, "put", kernel.LeaseKey(labtest.Prefix), kernel.LeaseValue(1))
	s.up(0, kernel.Subnet) // nothing but the daemon's own question goes there
	s.up(0, subnet)
	before := s.cluster.leases(t)

	died := time.Now()
	dead.Kill()
	s.run(kernel.Host.Node, "ip", "link", "set", kernel.Device, "down")
	if since := s.down(0, subnet); since.Before(died.Add(-time.Second)) || since.After(died.Add(time.Second)) {
		t.Errorf("the node is down since %v, and it was killed at %v", since, died)
	}
	t.Logf("shown as down after %v", time.Since(died).Round(100*time.Millisecond))
	// It was not heard of for up to ten seconds before it was asked for the last time.
	if since := s.down(0, kernel.Subnet); since.Before(died.Add(-15*time.Second)) || since.After(died.Add(time.Second)) {
		t.Errorf("the kernel's node is down since %v, and its device since %v", since, died)
	}
	text := labtest.Must(s.nodes[0].Command(t.Context(), "status"))(t)
	labtest.ExpectWords(t, text, "3 peers, 2 DOWN", "DOWN for")
	s.eventually(0, time.Now(), 20*time.Second, func(*lab.Status) error {
		if !hasAll(s.nodes[0].Output(), []string{"peers do not answer in the overlay", kernel.Subnet.String()}) {
			return fmt.Errorf("the log says nothing of %s", kernel.Subnet)
		}
		return nil
	})
	if after := s.cluster.leases(t); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("leases %v, want %v: they are not ours to delete", after, before)
	}

	back := time.Now()
	s.nodes[1] = labtest.StartMuslin(t, dead.Host, s.cluster.flags()...)
	s.up(0, subnet)
	t.Logf("up again %v after the start of its daemon", time.Since(back).Round(100*time.Millisecond))
	s.run(kernel.Host.Node, "ip", "link", "set", kernel.Device, "up")
	for _, m := range s.nodes { // the kernel forgot them with the link
		n := labtest.Status(t, m).Node
		if err := kernel.AddPeer(t.Context(), n.Subnet, n.VtepMAC, n.PublicIP); err != nil {
			t.Fatal(err)
		}
	}
	s.up(0, kernel.Subnet)
	for i, r := range s.stop() {
		if concerned := i < 2; r.Lost > 0 != concerned { // the first two are to and from the node that was killed
			t.Errorf("probe %d: %v", i, r)
		}
	}
}
