//go:build linux

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
	probes "muslin/bench/probe"
)

// matrixRow6 is a backend in a network of both address families, and then of IPv6 alone.
type matrixRow6 struct {
	name     string
	backend  string // of the network's config
	tag      string // that a lease has beside its addresses
	way      string // `muslin route`'s
	port     int    // of datagrams; 0: there are none
	overhead int    // bytes, of IPv6
	pods     int    // their MTU
	flags    []string
	with     string                                                                             // a node that is not muslin's; empty: there is none to be had without flannel's program
	join     func(t *testing.T, h *lab.Host, own halves6, peers []halves6) (both, alone string) // sets it up; what its lease has behind its addresses
	then     func(*testing.T, *pair6)                                                           // with the muslin nodes of both families
}

// halves6 is what a node has: its subnets and addresses, and the MACs of its VTEPs. Without IPv4, Subnet is invalid.
type halves6 struct {
	Subnet, Subnet6 netip.Prefix
	Addr, Addr6     netip.Addr
	MAC, MAC6       string
}

// pair6 is two muslin nodes with a pod each, by both its addresses.
type pair6 struct {
	row    *matrixRow6
	m1     *lab.Muslin
	n2     halves6
	h1, h2 *lab.Host
	a, b   *lab.Pod
	a6, b6 *lab.Pod
}

func halvesOf(t *testing.T, m *lab.Muslin) halves6 {
	t.Helper()
	n := status(t, m).Node
	return halves6{n.Subnet, netip.MustParsePrefix(n.Subnet6), n.PublicIP, netip.MustParseAddr(n.PublicIPv6), n.VtepMAC, n.VtepMAC6}
}

var matrixRows6 = []*matrixRow6{
	{name: "udp", backend: `{"Type":"udp"}`, way: "encapsulated", port: 8285, overhead: 48, pods: 1500 - 48, then: oneFamilyDown},
	{name: "host-gw", backend: `{"Type":"host-gw"}`, tag: `,"BackendType":"host-gw"`, way: "direct", pods: 1500, flags: []string{"--ip-blackhole-route"},
		with: "routes", join: joinRoutes6, then: oneFamilyAway("none")},
	{name: "vxlan with DirectRouting", backend: directBackend, way: "direct", port: 8472, pods: dualMTU,
		with: "kernel VXLAN and routes", join: joinDirect6, then: oneFamilyAway("encapsulated")},
}

// run is the row in one lab, whose hosts are as in TestMatrix:
//
//	p1a ── cni0 ─ h1 (muslin, etcd) ─┐         ┌─ h3 (as flannel's node) ─ cni0 ── p3a
//	p2a ── cni0 ─ h2 (muslin) ───────┴── br0 ──┘
//
// The network of IPv6 alone comes second. Its nodes have the subnets that they had in the first, and so the pods stay.
func (row *matrixRow6) run(t *testing.T, m *matrix) {
	const alone = "/alone"
	both, six := row.name+", IPv4 and IPv6", row.name+", IPv6 alone"
	l := newLab(t, 3)
	withRouter(t, l)
	withRouter6(t, l)
	h1, h2, h3 := l.Host(1), l.Host(2), l.Host(3)
	store := startEtcd(t, h1)
	config := `"EnableIPv6":true,"IPv6Network":"` + network6 + `","Backend":` + row.backend + `}`
	store.Config(t, `{"Network":"`+network+`",`+config)
	store.Do(t, "put", alone+"/config", `{"EnableIPv4":false,`+config)
	before := snapshot(t, h2.Node)
	flags := append(row.flags, "--etcd-endpoints", endpoint(h1))
	m1, m2 := startMuslin(t, h1, flags...), startMuslin(t, h2, flags...)
	waitPeers(t, m1, 2)
	waitPeers(t, m2, 2)
	n1, n2 := halvesOf(t, m1), halvesOf(t, m2)
	want := fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":%q%s`, h1.Addr, hostAddr6(h1), row.tag)
	if got := store.Get(t, dualKey(n1.Subnet, n1.Subnet6)); !strings.HasPrefix(got, want) {
		t.Errorf("our lease is %s, want %s…", got, want)
	}
	p := &pair6{row: row, m1: m1, n2: n2, h1: h1, h2: h2, a: addPod(t, m1, "a"), b: addPod(t, m2, "a")}
	p.a6, p.b6 = pod6(t, p.a, n1.Subnet6), pod6(t, p.b, n2.Subnet6)
	four := &matrixRow{name: row.name, flags: row.flags, way: row.way, overhead: row.mtuLess(), pods: row.pods}
	four.check(t, m1, p.a, p.b, h2)
	row.check(t, m1, p.a6, p.b6, h2)
	m.note(both, "muslin ↔ muslin", !t.Failed())

	var c6 *lab.Pod
	var lease string
	if row.join != nil {
		n3 := halves6{Subnet: unleased(t, m1, m2), Subnet6: netip.MustParsePrefix("fd00:244:0:c8::/64"), Addr: h3.Addr, Addr6: hostAddr6(h3)}
		var inBoth string
		inBoth, lease = row.join(t, h3, n3, []halves6{n1, n2})
		store.Do(t, "put", prefix+dualKey(n3.Subnet, n3.Subnet6), fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":%q%s}`, n3.Addr, n3.Addr6, inBoth))
		c := must(h3.AddPod(t.Context(), "a", lab.PodNetwork{Gateway: netip.PrefixFrom(n3.Subnet.Addr().Next(), 24), MTU: row.pods}))(t)
		c6 = pod6(t, c, n3.Subnet6)
		waitPeers(t, m1, 4)
		four.check(t, m1, p.a, c, h3)
		row.check(t, m1, p.a6, c6, h3)
		m.note(both, "muslin ↔ "+row.with, !t.Failed())
	}

	row.then(t, p)
	if row.port != 0 { // of peers that are reached directly nothing is heard: they are asked
		eventually(t, 40*time.Second, func() error {
			for _, peer := range status(t, m1).Peers {
				if peer.Up == nil || !*peer.Up {
					return fmt.Errorf("%+v", peer)
				}
			}
			return nil
		})
	}

	expectWell(t, l)

	// Replaced under traffic of both families; then stopped, and killed: its next start clears away what was there of two.
	under := []*probes.Probe{labtest.StartProbe(t, p.a, p.b), labtest.StartProbe(t, p.a6, p.b6), labtest.StartProbe(t, p.b6, p.a6)}
	old := m2
	m2 = launchMuslin(t, h2, append([]string{"--replace"}, flags...)...)
	expectExit(t, old.Proc, 0)
	waitPeers(t, m2, 2*row.peers())
	for _, u := range under {
		labtest.WaitReceived(t, u, 100)
		if r := u.Stop(); r.Err != nil || r.Lost != 0 || r.Duplicated != 0 {
			t.Errorf("%s, %v", r, r.Err)
		}
	}
	if err := m1.Stop(); err != nil {
		t.Error(err)
	}
	m2.Kill()
	flags = append(flags, "--etcd-prefix", alone)
	m1, m2 = startMuslin(t, h1, flags...), startMuslin(t, h2, flags...)
	waitPeers(t, m1, 1)
	waitPeers(t, m2, 1)
	if got := halvesOf(t, m1); got.Subnet6 != n1.Subnet6 || got.Subnet.IsValid() || got.Addr.IsValid() {
		t.Fatalf("alone: %+v, was %+v", got, n1)
	}
	want = fmt.Sprintf(`{"PublicIP":"0.0.0.0","PublicIPv6":%q%s`, hostAddr6(h1), row.tag)
	if got := store.Do(t, "get", "--print-value-only", fmt.Sprintf("%s/subnets/0.0.0.0-0&%s-64", alone, n1.Subnet6.Addr())); !strings.HasPrefix(got, want) {
		t.Errorf("our lease is %s, want %s…", got, want)
	}
	row.check(t, m1, p.a6, p.b6, h2)
	m.note(six, "muslin ↔ muslin", !t.Failed())
	if row.join != nil {
		store.Do(t, "put", alone+"/subnets/0.0.0.0-0&fd00:244:0:c8::-64", fmt.Sprintf(`{"PublicIP":"0.0.0.0","PublicIPv6":%q%s}`, hostAddr6(h3), lease))
		waitPeers(t, m1, 2)
		row.check(t, m1, p.a6, c6, h3)
		m.note(six, "muslin ↔ "+row.with, !t.Failed())
	}
	expectWell(t, l)
	m2.Kill()
	must(h2.Run(t.Context(), labtest.Bin, "cleanup", "--control", m2.Control, "--state-dir", m2.StateDir))(t)
	runIn(t, h2.Node, "ip", "link", "del", "cni0")
	runIn(t, h2.Node, "ip", "link", "del", "veth-a")
	expectAsBefore(t, h2.Node, before)
}

// peers is how many other nodes there are.
func (row *matrixRow6) peers() int {
	if row.join == nil {
		return 1
	}
	return 2
}

// mtuLess is how much less the way takes than the underlay.
func (row *matrixRow6) mtuLess() int {
	if row.way == "direct" {
		return 0
	}
	return row.overhead
}

// check is matrixRow's for IPv6.
func (row *matrixRow6) check(t *testing.T, m *lab.Muslin, from, to *lab.Pod, far *lab.Host) {
	t.Helper()
	eventually(t, lab.Patience(10*time.Second), func() error { return ping6(t, from, to.Addr, 1280) })
	for _, way := range [][2]*lab.Pod{{from, to}, {to, from}} {
		for _, size := range []int{56, row.pods} {
			if err := ping6(t, way[0], way[1].Addr, size); err != nil {
				t.Error(err)
			}
		}
		copyTCP(t, way[0], way[1], bigFile()/4)
	}
	said := route(t, m, to.Addr.String())
	hop := hostAddr6(far).String()
	if row.way == "encapsulated" {
		hop = fmt.Sprintf("[%s]:%d", hop, row.port)
	}
	if said.Way != row.way || said.MTU != 1500-row.mtuLess() || said.NextHop != hop || len(said.Notes) != 0 {
		t.Errorf("route: %+v; want %s to %s with MTU %d", said, row.way, hop, 1500-row.mtuLess())
	}
	(&matrixRow{}).checkWire(t, m.Host, from, to, far, said)
}

// withRouter6 is underlay6, and withRouter for it.
func withRouter6(t *testing.T, l *lab.Lab) {
	t.Helper()
	underlay6(t, l)
	runIn(t, l.Switch(), "ip", "addr", "add", router6+"/64", "dev", "br0", "nodad")
	if err := l.Switch().Sysctl("net/ipv6/conf/all/forwarding", "1"); err != nil {
		t.Fatal(err)
	}
}

const router6 = "fd99::fe"

// way is how one of the peer's families is reached.
func (p *pair6) way(t *testing.T, subnet netip.Prefix, way, rule string) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		if got, _ := status(t, p.m1).Peer(subnet.Masked()); got.Way != way || got.WayRule != rule {
			return fmt.Errorf("%s: %+v, want %s by %s", subnet, got, way, rule)
		}
		return nil
	})
}

// oneFamilyAway has the path of IPv6 get a gateway while that of IPv4 stays on the link: each family decides by itself. It is
// reached as is said then, and again directly when the gateway is gone.
func oneFamilyAway(instead string) func(*testing.T, *pair6) {
	return func(t *testing.T, p *pair6) {
		far := p.n2.Addr6.String()
		p.way(t, p.n2.Subnet6, "direct", "on-link")
		runIn(t, p.h1.Node, "ip", "-6", "route", "add", far+"/128", "via", router6, "dev", "eth0")
		p.way(t, p.n2.Subnet6, instead, "gateway")
		p.way(t, p.n2.Subnet, "direct", "on-link")
		expectPing(t, p.a.Node, p.b.Addr, 2)
		if instead == "none" {
			expectWords(t, strings.Join(status(t, p.m1).Warnings, "\n"), "a peer is left out: "+p.n2.Subnet6.String(), "through the gateway "+router6)
			if r := route(t, p.m1, p.b6.Addr.String()); r.Way != "none" || r.Rule != "gateway" {
				t.Errorf("%+v", r)
			}
			if out := must(p.h1.Run(t.Context(), "ip", "-6", "route", "show", "type", "blackhole"))(t); !strings.Contains(out, "fd00:244:") || !strings.Contains(out, "metric 1000000") {
				t.Errorf("blackhole routes: %s", out)
			}
		} else {
			encapsulated := *p.row
			encapsulated.way, encapsulated.overhead = instead, 1500-dualMTU
			encapsulated.check(t, p.m1, p.a6, p.b6, p.h2)
		}
		// A foreign route where ours would be is named, and stays.
		static := p.n2.Subnet6.String()
		runIn(t, p.h1.Node, "ip", "-6", "route", "add", "unreachable", static, "proto", "static")
		runIn(t, p.h1.Node, "ip", "-6", "route", "del", far+"/128")
		p.way(t, p.n2.Subnet6, instead, "route-refused")
		expectWords(t, strings.Join(status(t, p.m1).Warnings, "\n"), "another program's route is there (`ip -6 route show "+static+"`)")
		runIn(t, p.h1.Node, "ip", "-6", "route", "del", "unreachable", static, "proto", "static")
		p.way(t, p.n2.Subnet6, "direct", "on-link")
		eventually(t, lab.Patience(10*time.Second), func() error { return ping6(t, p.a6, p.b6.Addr, 1280) })
	}
}

// oneFamilyDown cuts the path of IPv6: the peer of IPv6 is down, that of IPv4 is up, and status says both of each.
func oneFamilyDown(t *testing.T, p *pair6) {
	near, far := hostAddr6(p.h1).String(), p.n2.Addr6.String()
	cut := func(do string) { // both ways: who is heard is up
		runIn(t, p.h1.Node, "ip", "-6", "route", do, "unreachable", far)
		runIn(t, p.h2.Node, "ip", "-6", "route", do, "unreachable", near)
	}
	cut("add")
	state := func(subnet netip.Prefix, up bool) func() error {
		return func() error {
			got, _ := status(t, p.m1).Peer(subnet.Masked())
			if got.Up == nil || *got.Up != up || (got.DownSince == nil) != up || got.OtherUp == nil {
				return fmt.Errorf("%s: %+v, want up %t", subnet, got, up)
			}
			return nil
		}
	}
	eventually(t, 60*time.Second, state(p.n2.Subnet6, false))
	eventually(t, 30*time.Second, state(p.n2.Subnet, true))
	six, _ := status(t, p.m1).Peer(p.n2.Subnet6.Masked())
	if four, _ := status(t, p.m1).Peer(p.n2.Subnet.Masked()); four.OtherSubnet != six.Subnet.String() || six.OtherSubnet != four.Subnet.String() || *four.OtherUp || !*six.OtherUp {
		t.Errorf("%+v, %+v", four, six)
	}
	text := must(p.m1.Command(t.Context(), "status"))(t)
	expectWords(t, text, "2 peers, 1 DOWN", ", up by IPv4", far+" does not answer, while", "look for what drops IPv6")
	if notes := strings.Join(route(t, p.m1, p.b6.Addr.String()).Notes, "\n"); !strings.Contains(notes, "the peer does not answer") {
		t.Errorf("route: %q", notes)
	}
	cut("del")
	eventually(t, lab.Patience(10*time.Second), func() error { return ping6(t, p.b6, p.a6.Addr, 56) }) // who is heard is up at once
	eventually(t, 30*time.Second, state(p.n2.Subnet6, true))
}

// joinRoutes6 makes a host what flannel's host-gw makes of it: a route for each half of a peer, and nothing else.
func joinRoutes6(t *testing.T, h *lab.Host, _ halves6, peers []halves6) (both, alone string) {
	for _, p := range peers {
		runIn(t, h.Node, "ip", "route", "add", p.Subnet.String(), "via", p.Addr.String())
		runIn(t, h.Node, "ip", "-6", "route", "add", p.Subnet6.String(), "via", p.Addr6.String(), "dev", "eth0")
	}
	for _, path := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := h.Sysctl(path, "1"); err != nil {
			t.Fatal(err)
		}
	}
	return `,"BackendType":"host-gw"`, `,"BackendType":"host-gw"`
}

// joinDirect6 makes a host what flannel's vxlan with DirectRouting makes of it among neighbours: its devices, and a route for
// each half of a peer.
func joinDirect6(t *testing.T, h *lab.Host, own halves6, peers []halves6) (both, alone string) {
	v := must(h.SetupKernelVXLAN(t.Context(), 1, 8472, own.Subnet))(t)
	mac6 := addKernel6(t, h, own.Subnet6)
	for _, p := range peers {
		if err := v.AddDirectPeer(t.Context(), p.Subnet, p.Addr); err != nil {
			t.Fatal(err)
		}
		runIn(t, h.Node, "ip", "-6", "route", "add", p.Subnet6.String(), "via", p.Addr6.String())
	}
	six := fmt.Sprintf(`,"BackendV6Data":{"VNI":1,"VtepMAC":%q}`, mac6)
	return fmt.Sprintf(`,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":%q}`, v.MAC) + six, `,"BackendType":"vxlan"` + six
}
