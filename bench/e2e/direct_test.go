//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
	numbered "muslin/bench/probe" // this package has a probe of its own
)

const directBackend = `{"Type":"vxlan","DirectRouting":true}`

// router is the switch's own address, through which hosts may reach each other.
var router = netip.MustParseAddr("198.18.0.254")

// withRouter makes the switch a router as well, for hosts that are told to use it:
//
//	h1 198.18.0.1 ── br0 198.18.0.254 ── 198.18.0.2 h2
func withRouter(t *testing.T, l *lab.Lab) {
	t.Helper()
	sw := l.Switch()
	runIn(t, sw, "ip", "addr", "add", router.String()+"/24", "dev", "br0")
	for path, value := range map[string]string{
		"net/ipv4/ip_forward": "1",
		// It would tell the hosts that they are neighbours.
		"net/ipv4/conf/all/send_redirects": "0",
		"net/ipv4/conf/br0/send_redirects": "0",
	} {
		if err := sw.Sysctl(path, value); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range l.Hosts() {
		looseReversePath(t, h)
	}
}

func looseReversePath(t *testing.T, h *lab.Host) {
	t.Helper()
	for _, iface := range []string{"all", "default", "eth0"} {
		if err := h.Sysctl("net/ipv4/conf/"+iface+"/rp_filter", "0"); err != nil {
			t.Fatal(err)
		}
	}
}

// away has the host reach another one through the router, and back brings it onto the link again.
func away(t *testing.T, h, other *lab.Host) {
	t.Helper()
	runIn(t, h.Node, "ip", "route", "add", other.Addr.String()+"/32", "via", router.String(), "dev", "eth0")
}

func back(t *testing.T, h, other *lab.Host) {
	t.Helper()
	runIn(t, h.Node, "ip", "route", "del", other.Addr.String()+"/32")
}

// waitWay waits until the daemon's only peer is reached so, by that rule, and the kernel has it so.
func waitWay(t *testing.T, m *lab.Muslin, way, rule string) lab.PeerStatus {
	t.Helper()
	var peer lab.PeerStatus
	eventually(t, 10*time.Second, func() error {
		s, err := m.Status(t.Context())
		if err != nil {
			return err
		}
		if len(s.Peers) != 1 || s.Peers[0].Way != way || s.Peers[0].WayRule != rule {
			return fmt.Errorf("%s has the peers %+v, want one that is %s by the rule %s", m.Name, s.Peers, way, rule)
		}
		peer = s.Peers[0]
		device := "dev muslin0 "
		if way == "direct" {
			device = fmt.Sprintf("via %s dev eth0 ", peer.PublicIP)
		}
		got, err := m.Host.Run(t.Context(), "ip", "route", "get", peer.Subnet.Addr().Next().String())
		if err == nil && !strings.Contains(got, device) {
			err = fmt.Errorf("the kernel on %s sends by %s, want %s", m.Name, got, device)
		}
		return err
	})
	return peer
}

// A path between two nodes gets a gateway and loses it again, on one side and then on the other. No packet is lost
// over it. Not beside other tests: a machine that has no time loses packets of its own.
func TestDirectRoutingChangesWay(t *testing.T) {
	lab.RequireTool(t, "iperf3")
	l := newLab(t, 2)
	withRouter(t, l)
	daemons := join(t, l, directBackend)
	h1, h2 := l.Host(1), l.Host(2)
	a, b := h1.Pods()[0], h2.Pods()[0]
	change := func() {
		away(t, h1, h2)
		waitWay(t, daemons[0], "encapsulated", "gateway")
		waitWay(t, daemons[1], "direct", "on-link") // answers come by the other way
		away(t, h2, h1)
		waitWay(t, daemons[1], "encapsulated", "gateway")
		back(t, h1, h2)
		waitWay(t, daemons[0], "direct", "on-link")
		back(t, h2, h1)
		waitWay(t, daemons[1], "direct", "on-link")
	}
	for _, m := range daemons {
		waitWay(t, m, "direct", "on-link")
	}
	whole := lab.PingOptions{Count: 3, Size: status(t, daemons[0]).Node.MTU, DontFragment: true}
	expectPings(t, a.Node, b.Addr, whole)
	expectPings(t, b.Node, a.Addr, whole)
	expectPing(t, h1.Node, b.Addr, 3) // from the base of h1's subnet
	if s := status(t, daemons[0]); s.Peers[0].TxPackets != 0 {
		t.Errorf("%d packets were encapsulated", s.Peers[0].TxPackets)
	}

	var probes []*numbered.Probe
	for _, way := range [][2]*lab.Pod{{a, b}, {b, a}} {
		probes = append(probes, labtest.StartProbe(t, way[0], way[1]))
	}
	for range 10 {
		change()
	}
	for _, p := range probes {
		labtest.WaitReceived(t, p, 100)
	}
	for _, p := range probes {
		r := p.Stop()
		t.Logf("%s", r)
		if r.Err != nil || r.Lost != 0 || r.Duplicated != 0 {
			t.Errorf("%s, %v", r, r.Err)
		}
	}

	// The same under a TCP stream.
	changes := 0
	flow, err := lab.Iperf(t.Context(), a.Node, b.Node, b.Addr, func(run func() error) error {
		done := make(chan error, 1)
		go func() { done <- run() }()
		for {
			select {
			case err := <-done:
				return err
			default:
				change()
				changes++
			}
		}
	}, "-t", "5", "-b", fmt.Sprint(lab.Modest(100_000_000)))
	again, needless, timeouts := sentAgain(t, a.Node)
	t.Logf("TCP: %.0f Mb/s over %d rounds of changes, %d segments sent again, %d of them needlessly, after %d timeouts", flow.BitsPerSecond/1e6, changes, again, needless, timeouts)
	if err != nil || flow.BitsPerSecond < 0.5*lab.Modest(100e6) || changes == 0 {
		t.Errorf("%+v, %v", flow, err)
	}
	if again > needless && timeouts == 0 && lab.Steady() {
		t.Errorf("%d segments were lost", again-needless)
	}
	for _, m := range daemons {
		expectNoDrops(t, m)
	}
}

// sentAgain is how many segments the node's TCP has sent again, and of how many the receiver said that they had come
// before (DSACK, RFC 2883): it sends one when acknowledgements are late for a moment, whatever the network does. When
// the machine stands still for long it sends many, and does not hear of each: then there are timeouts.
func sentAgain(t *testing.T, n *lab.Node) (again, needless, timeouts int) {
	t.Helper()
	values := make(map[string]int)
	var names []string
	for line := range strings.Lines(must(n.Run(t.Context(), "cat", "/proc/net/snmp", "/proc/net/netstat"))(t)) {
		f := strings.Fields(line) // a line of names, and then one of values
		if len(f) != len(names) || f[0] != names[0] {
			names = f
			continue
		}
		for i, name := range names[1:] {
			values[f[0]+name], _ = strconv.Atoi(f[i+1])
		}
		names = nil
	}
	needless, known := values["TcpExt:TCPDSACKRecvSegs"]
	if !known {
		needless = values["TcpExt:TCPDSACKRecv"]
	}
	return values["Tcp:RetransSegs"], needless, values["TcpExt:TCPTimeouts"]
}

// muslin and a flannel node with DirectRouting, each the other's only peer, in all four ways that packets and
// answers may take:
//
//	p1a ── cni0 ─ h1 (muslin, embedded etcd) ── br0 ── flannel.1 or eth0 ─ h2 ─ cni0 ── p2a
func TestDirectRoutingBesideFlannel(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "iperf3", "bridge", "etcdctl")
	l := newLab(t, 2)
	withRouter(t, l)
	ctx := t.Context()
	h1, h2 := l.Host(1), l.Host(2)
	m := startMuslin(t, h1, "--embedded-etcd", "--network", network, "--backend", directBackend)
	a := addPod(t, m, "a")
	node := status(t, m).Node
	subnet := netip.MustParsePrefix("10.244.250.0/24")
	if subnet == node.Subnet.Masked() {
		subnet = netip.MustParsePrefix("10.244.251.0/24")
	}
	v := must(h2.SetupKernelVXLAN(ctx, 1, 8472, subnet))(t)
	b := must(h2.AddPod(ctx, "a", v.PodNetwork()))(t)
	labtest.EtcdOn(h1).Do(t, "put", v.LeaseKey(prefix), v.LeaseValue(1))
	waitPeers(t, m, 1)

	for _, c := range []struct{ muslin, flannel string }{
		{"direct", "direct"}, {"encapsulated", "direct"}, {"encapsulated", "encapsulated"}, {"direct", "encapsulated"},
	} {
		t.Run(c.muslin+" there, "+c.flannel+" back", func(t *testing.T) {
			if c.flannel == "direct" {
				err := v.AddDirectPeer(ctx, node.Subnet, node.PublicIP)
				if err != nil {
					t.Fatal(err)
				}
			} else if err := v.AddPeer(ctx, node.Subnet, node.VtepMAC, node.PublicIP); err != nil {
				t.Fatal(err)
			}
			if c.muslin == "direct" {
				waitWay(t, m, "direct", "on-link")
			} else {
				away(t, h1, h2)
				defer back(t, h1, h2)
				waitWay(t, m, "encapsulated", "gateway")
			}
			before := status(t, m).Peers[0]
			seen := captureWith(t, m, "", "icmp and host "+a.Addr.String()) // whichever way they go and come
			whole := lab.PingOptions{Count: 3, Size: v.MTU, DontFragment: true}
			expectPings(t, a.Node, b.Addr, whole)
			expectPings(t, b.Node, a.Addr, whole)
			expectWords(t, seen.interrupt(t), "12 packets captured, 0 lost", "[peer "+h2.Addr.String()+"]")
			expectPing(t, h1.Node, b.Addr, 3)
			expectPing(t, a.Node, subnet.Addr(), 3) // flannel.1's own address
			copyTCP(t, a, b, bigFile())
			copyTCP(t, b, a, bigFile())
			after := status(t, m).Peers[0]
			if sent := after.TxPackets - before.TxPackets; (sent == 0) != (c.muslin == "direct") {
				t.Errorf("%d packets were encapsulated", sent)
			}
			if got := after.RxPackets - before.RxPackets; (got == 0) != (c.flannel == "direct") {
				t.Errorf("%d packets came encapsulated", got)
			}
		})
	}
	expectNoDrops(t, m)
}

// What becomes of the routes when a daemon is stopped, killed, replaced; when somebody removes one, or puts another
// in its place; when the underlay's interface goes down.
func TestDirectRoutesStay(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	h1, h2 := l.Host(1), l.Host(2)
	looseReversePath(t, h1)
	looseReversePath(t, h2)
	// The first host's daemon is the one that ends in all these ways, so the store is the second one's.
	other := startMuslin(t, h2, "--embedded-etcd", "--network", network, "--backend", directBackend)
	flags := []string{"--etcd-endpoints", endpoint(h2)}
	before := snapshot(t, h1.Node)
	m := startMuslin(t, h1, flags...)
	peer := waitWay(t, m, "direct", "on-link")
	waitWay(t, other, "direct", "on-link")
	ours := func() string { return must(h1.Run(t.Context(), "ip", "route", "show", peer.Subnet.String()))(t) }
	want := fmt.Sprintf("%s via %s dev eth0 proto 218 src %s ", peer.Subnet, h2.Addr, status(t, m).Node.Subnet.Addr())
	if got := strings.TrimSpace(ours()) + " "; got != want {
		t.Fatalf("route %q, want %q", got, want)
	}

	t.Run("removed", func(t *testing.T) {
		runIn(t, h1.Node, "ip", "route", "del", peer.Subnet.String())
		waitWay(t, m, "direct", "on-link")
		eventually(t, 10*time.Second, func() error {
			if got := strings.TrimSpace(ours()) + " "; got != want {
				return fmt.Errorf("route %q, want %q", got, want)
			}
			return nil
		})
	})
	t.Run("another program's", func(t *testing.T) {
		runIn(t, h1.Node, "ip", "route", "replace", peer.Subnet.String(), "dev", "muslin0", "proto", "static")
		now := waitWay(t, m, "encapsulated", "route-refused")
		if !strings.Contains(now.WayReason, "another program's route is there") {
			t.Errorf("reason: %s", now.WayReason)
		}
		expectPing(t, h1.Node, peer.Subnet.Addr(), 3)
		s := status(t, m)
		if !strings.Contains(strings.Join(s.Warnings, "\n"), "a peer stays encapsulated: "+peer.Subnet.String()) {
			t.Errorf("warnings: %q", s.Warnings)
		}
		time.Sleep(6 * time.Second) // longer than the period of --iptables-resync
		if got := ours(); !strings.Contains(got, "dev muslin0 proto static") {
			t.Errorf("the route is now %s", got)
		}
		if n := strings.Count(m.Output(), "a direct route cannot be installed"); n != 1 {
			t.Errorf("said %d times in the log", n)
		}
		runIn(t, h1.Node, "ip", "route", "del", peer.Subnet.String(), "proto", "static")
		waitWay(t, m, "direct", "on-link")
	})
	t.Run("link down and up", func(t *testing.T) {
		runIn(t, h1.Node, "ip", "link", "set", "eth0", "down")
		waitWay(t, m, "encapsulated", "unreachable")
		runIn(t, h1.Node, "ip", "link", "set", "eth0", "up")
		waitWay(t, m, "direct", "on-link")
	})
	// From here on nobody removes the route or adds it again, as the kernel's own word shows.
	unharmed := func(t *testing.T, f func()) {
		monitor := must(h1.Start("monitor", nil, "ip", "-o", "monitor", "route"))(t)
		time.Sleep(lab.Patience(200 * time.Millisecond)) // until it listens
		f()
		time.Sleep(lab.Patience(200 * time.Millisecond))
		if err := monitor.Stop(); err != nil {
			t.Log(err)
		}
		for line := range strings.Lines(monitor.Output()) {
			if strings.Contains(line, peer.Subnet.String()) {
				t.Errorf("the kernel tells: %s", line)
			}
		}
		if got := strings.TrimSpace(ours()) + " "; got != want {
			t.Errorf("route %q, want %q", got, want)
		}
	}
	t.Run("replaced", func(t *testing.T) {
		unharmed(t, func() {
			old := m
			m = launchMuslin(t, h1, append([]string{"--replace"}, flags...)...)
			expectExit(t, old.Proc, 0)
			waitWay(t, m, "direct", "on-link")
			expectPing(t, h1.Node, peer.Subnet.Addr(), 3)
		})
	})
	t.Run("killed and started", func(t *testing.T) {
		unharmed(t, func() {
			m.Kill()
			expectPing(t, h1.Node, peer.Subnet.Addr(), 3) // without a daemon
			m = startMuslin(t, h1, flags...)
			waitWay(t, m, "direct", "on-link")
		})
	})
	t.Run("stopped", func(t *testing.T) {
		if err := m.Stop(); err != nil {
			t.Error(err)
		}
		expectAsBefore(t, h1.Node, before)
	})
	t.Run("killed and cleaned up", func(t *testing.T) {
		m = startMuslin(t, h1, flags...)
		waitWay(t, m, "direct", "on-link")
		m.Kill()
		out := must(h1.Run(t.Context(), labtest.Bin, "cleanup", "--control", m.Control, "--state-dir", m.StateDir))(t)
		expectWords(t, out, "removed 1 direct routes to peers")
		expectAsBefore(t, h1.Node, before)
	})
	t.Run("killed and no longer wanted", func(t *testing.T) {
		m = startMuslin(t, h1, flags...)
		waitWay(t, m, "direct", "on-link")
		m.Kill()
		labtest.EtcdOn(h2).Config(t, vxlanConfig)
		m = startMuslin(t, h1, flags...)
		waitWay(t, m, "encapsulated", "direct-routing-off")
		if got := ours(); got != "" {
			t.Errorf("still there: %s", got)
		}
		expectPing(t, h1.Node, peer.Subnet.Addr(), 3)
		if got := firstFinding(t, other); got != "config-changed" {
			t.Errorf("the doctor on the node that has the old config finds %q first", got)
		}
		leaveIll(l, "the other node goes on with the config as it was")
	})
}

// A strict rp_filter is told of, and where the ways of both directions are the same it does no harm.
func TestDirectRoutingUnderStrictReversePath(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	for _, h := range l.Hosts() {
		looseReversePath(t, h)
	}
	h1 := l.Host(1)
	if err := errors.Join(h1.Sysctl("net/ipv4/conf/all/rp_filter", "1"), h1.Sysctl("net/ipv4/conf/eth0/rp_filter", "1")); err != nil {
		t.Fatal(err)
	}
	daemons := join(t, l, directBackend)
	for _, m := range daemons {
		waitWay(t, m, "direct", "on-link")
	}
	expectPing(t, h1.Pods()[0].Node, l.Host(2).Pods()[0].Addr, 3)
	expectPing(t, l.Host(2).Pods()[0].Node, h1.Pods()[0].Addr, 3)
	const warning = "sysctl -w net/ipv4/conf/eth0/rp_filter=2"
	for i, m := range daemons {
		said := strings.Contains(strings.Join(status(t, m).Warnings, "\n"), warning)
		if logged := strings.Contains(m.Output(), "rp_filter of eth0 is strict"); said != (i == 0) || logged != (i == 0) {
			t.Errorf("%s: in the status %v, in the log %v", m.Name, said, logged)
		}
	}
	runIn(t, h1.Node, "sysctl", "-w", "net/ipv4/conf/eth0/rp_filter=2")
	if w := status(t, daemons[0]).Warnings; len(w) != 0 {
		t.Errorf("still warned of: %q", w)
	}
}

// The lease of a peer that is reached directly is deleted by mistake. Its node takes it again, and no packet is lost
// meanwhile: it had answered when it was asked whether it is alive.
func TestDirectPeerOutlivesItsLease(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "etcdctl")
	l := newLab(t, 2)
	for _, h := range l.Hosts() {
		looseReversePath(t, h)
	}
	daemons := join(t, l, directBackend)
	for _, m := range daemons {
		waitWay(t, m, "direct", "on-link")
	}
	a, b := l.Host(1).Pods()[0], l.Host(2).Pods()[0]
	eventually(t, 30*time.Second, func() error {
		if up := status(t, daemons[0]).Peers[0].Up; up == nil || !*up {
			return errors.New("the peer was not asked yet")
		}
		return nil
	})
	p := labtest.StartProbe(t, a, b)
	key := leaseKey(status(t, daemons[1]).Node.Subnet)
	store := labtest.EtcdOn(l.Host(1))
	for range 5 {
		store.Do(t, "del", prefix+key)
		eventually(t, 10*time.Second, func() error {
			if store.Get(t, key) == "" {
				return fmt.Errorf("%s was not taken again", key)
			}
			return nil
		})
	}
	labtest.WaitReceived(t, p, 100)
	if r := p.Stop(); r.Err != nil || r.Lost != 0 {
		t.Errorf("%s, %v", r, r.Err)
	}
}
