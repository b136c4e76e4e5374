//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
	probes "muslin/bench/probe"
	"muslin/cmd/muslin/control"
)

const (
	network6   = "fd00:244::/48"
	dualConfig = `{"Network":"` + network + `","EnableIPv6":true,"IPv6Network":"` + network6 + `","Backend":{"Type":"vxlan"}}`
	dualMTU    = 1500 - 70
)

// underlay6 gives every host an IPv6 address on the switch, fd99::N.
func underlay6(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, h := range l.Hosts() {
		runIn(t, h.Node, "ip", "addr", "add", hostAddr6(h).String()+"/64", "dev", "eth0", "nodad")
	}
}

func hostAddr6(h *lab.Host) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd99::%d", h.Number))
}

// pod6 gives a pod an address of its host's IPv6 subnet as well, behind the bridge's, and returns it by that address.
func pod6(t *testing.T, p *lab.Pod, subnet netip.Prefix) *lab.Pod {
	t.Helper()
	return pod6On(t, p, "cni0", subnet)
}

func pod6On(t *testing.T, p *lab.Pod, bridge string, subnet netip.Prefix) *lab.Pod {
	t.Helper()
	gateway := subnet.Addr().Next()
	addr := gateway.Next()
	runIn(t, p.Host.Node, "ip", "addr", "add", fmt.Sprintf("%s/%d", gateway, subnet.Bits()), "dev", bridge, "nodad")
	runIn(t, p.Node, "ip", "addr", "add", fmt.Sprintf("%s/%d", addr, subnet.Bits()), "dev", "eth0", "nodad")
	runIn(t, p.Node, "ip", "-6", "route", "add", "default", "via", gateway.String())
	six := *p
	six.Addr = addr
	return &six
}

func ping6(t *testing.T, from *lab.Pod, to netip.Addr, size int) error {
	t.Helper()
	out, err := from.Run(t.Context(), "ping", "-6", "-c", "3", "-i", "0.2", "-W", fmt.Sprint(lab.Patience(2*time.Second).Seconds()), "-M", "do", "-s", fmt.Sprint(size-48), to.String())
	if err == nil && !strings.Contains(out, " 0% packet loss") {
		err = fmt.Errorf("%s", out)
	}
	return err
}

// kernel6 is the IPv6 half of a node that is set up as flannel sets it up: flannel-v6.1 beside flannel.1.
type kernel6 struct {
	*lab.KernelVXLAN
	subnet6 netip.Prefix
	mac6    string
}

func startKernel6(t *testing.T, h *lab.Host, subnet, subnet6 netip.Prefix, daemons []*lab.Muslin) *kernel6 {
	t.Helper()
	v := must(h.SetupKernelVXLAN(t.Context(), 1, 8472, subnet))(t)
	mac6 := addKernel6(t, h, subnet6)
	for _, m := range daemons {
		n := status(t, m).Node
		if err := v.AddPeer(t.Context(), n.Subnet, n.VtepMAC, n.PublicIP); err != nil {
			t.Fatal(err)
		}
		addKernelPeer6(t, h, netip.MustParsePrefix(n.Subnet6), n.VtepMAC6, netip.MustParseAddr(n.PublicIPv6))
	}
	return &kernel6{v, subnet6, mac6}
}

// addKernel6 makes the device of IPv6, and returns its MAC.
func addKernel6(t *testing.T, h *lab.Host, subnet6 netip.Prefix) string {
	t.Helper()
	for _, command := range []string{
		fmt.Sprintf("ip link add flannel-v6.1 type vxlan id 1 dev eth0 local %s dstport 8472 nolearning", hostAddr6(h)),
		fmt.Sprintf("ip addr add %s/128 dev flannel-v6.1 nodad", subnet6.Addr()),
		fmt.Sprintf("ip link set flannel-v6.1 up mtu %d", dualMTU),
	} {
		runIn(t, h.Node, strings.Fields(command)...)
	}
	if err := h.Sysctl("net/ipv6/conf/all/forwarding", "1"); err != nil {
		t.Fatal(err)
	}
	var links []struct {
		Address string `json:"address"`
	}
	if err := json.Unmarshal([]byte(must(h.Run(t.Context(), "ip", "-json", "link", "show", "flannel-v6.1"))(t)), &links); err != nil || len(links) != 1 {
		t.Fatal(links, err)
	}
	return links[0].Address
}

// addKernelPeer6 is AddPeer for it.
func addKernelPeer6(t *testing.T, h *lab.Host, subnet netip.Prefix, mac string, publicIP netip.Addr) {
	t.Helper()
	for _, command := range []string{
		fmt.Sprintf("ip neigh add %s lladdr %s nud permanent dev flannel-v6.1", subnet.Addr(), mac),
		fmt.Sprintf("bridge fdb add %s dst %s dev flannel-v6.1 self permanent", mac, publicIP),
		fmt.Sprintf("ip -6 route add %s via %s dev flannel-v6.1 onlink", subnet, subnet.Addr()),
	} {
		runIn(t, h.Node, strings.Fields(command)...)
	}
}

// put writes its lease, as flannel does.
func (k *kernel6) put(t *testing.T, l *lab.Lab) {
	t.Helper()
	value := fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":%q,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":%q},"BackendV6Data":{"VNI":1,"VtepMAC":%q}}`,
		k.Host.Addr, hostAddr6(k.Host), k.MAC, k.mac6)
	labtest.EtcdOn(l.Host(1)).Do(t, "put", prefix+dualKey(k.Subnet, k.subnet6), value)
}

func dualKey(subnet, subnet6 netip.Prefix) string {
	return fmt.Sprintf("%s&%s-%d", leaseKey(subnet), subnet6.Addr(), subnet6.Bits())
}

// testDualStack is the row of TestMatrix for a network of both families, and more: two muslin nodes and one with the
// kernel's VXLAN devices as flannel makes them.
//
//	p1a ── cni0 ─ h1 (muslin) ─┐         ┌─ h3 (flannel.1, flannel-v6.1) ─ cni0 ── p3a
//	p2a ── cni0 ─ h2 (muslin) ─┴── br0 ──┘
func testDualStack(t *testing.T, m *matrix, row string) {
	lab.RequireTool(t, "bridge", "ping")
	l := newLab(t, 3)
	underlay6(t, l)
	h1, h2, h3 := l.Host(1), l.Host(2), l.Host(3)
	store := startEtcd(t, h1)
	store.Config(t, dualConfig)
	before := snapshot(t, h2.Node)
	flags := []string{"--etcd-endpoints", endpoint(h1)}
	m1, m2 := startMuslin(t, h1, flags...), startMuslin(t, h2, flags...)
	waitPeers(t, m1, 2) // one of each family
	waitPeers(t, m2, 2)
	n1, n2 := status(t, m1).Node, status(t, m2).Node
	own6, far6 := netip.MustParsePrefix(n1.Subnet6), netip.MustParsePrefix(n2.Subnet6)
	want := fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":%q,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":%q},"BackendV6Data":{"VNI":1,"VtepMAC":%q}}`,
		h1.Addr, hostAddr6(h1), n1.VtepMAC, n1.VtepMAC6)
	if got := store.Get(t, dualKey(n1.Subnet, own6)); got != want {
		t.Errorf("our lease is %s, want %s", got, want)
	}
	file := string(must(os.ReadFile(m1.SubnetFile))(t))
	expectWords(t, file, "FLANNEL_IPV6_NETWORK="+network6, fmt.Sprintf("FLANNEL_IPV6_SUBNET=%s/64", own6.Addr().Next()), fmt.Sprintf("FLANNEL_MTU=%d", dualMTU))
	if n1.TUN6 != "muslin0-v6" || n1.PublicIPv6 != hostAddr6(h1).String() || n1.MTU != dualMTU {
		t.Errorf("%+v", n1)
	}

	k := startKernel6(t, h3, unleased(t, m1, m2), netip.MustParsePrefix("fd00:244:0:c8::/64"), []*lab.Muslin{m1, m2})
	k.put(t, l)
	waitPeers(t, m1, 4)
	waitPeers(t, m2, 4)
	a, b := addPod(t, m1, "a"), addPod(t, m2, "a")
	c := must(h3.AddPod(t.Context(), "a", lab.PodNetwork{Gateway: netip.PrefixFrom(k.Subnet.Addr().Next(), 24), MTU: dualMTU}))(t)
	a6, b6, c6 := pod6(t, a, own6), pod6(t, b, far6), pod6(t, c, k.subnet6)
	for _, way := range [][4]*lab.Pod{{a, b, a6, b6}, {b, a, b6, a6}, {a, c, a6, c6}, {c, b, c6, b6}} {
		eventuallyPings(t, way[0].Node, way[1].Addr)
		eventually(t, lab.Patience(10*time.Second), func() error { return ping6(t, way[2], way[3].Addr, 1280) })
		if err := ping6(t, way[2], way[3].Addr, dualMTU); err != nil {
			t.Error(err)
		}
		copyTCP(t, way[0], way[1], bigFile()/4)
		copyTCP(t, way[2], way[3], bigFile())
	}
	expectMeasured(t, m1)
	v6 := &matrixRow{way: "encapsulated"}
	v6.checkWire(t, h1, a6, b6, h2, route(t, m1, b6.Addr.String()))
	m.note(row, "muslin ↔ muslin", !t.Failed())
	v6.checkWire(t, h1, a6, c6, h3, route(t, m1, c6.Addr.String()))
	m.note(row, "muslin ↔ kernel VXLAN of both families", !t.Failed())

	// What is too long is answered, and what nobody has.
	if err := ping6(t, a6, b6.Addr, dualMTU+1); err == nil {
		t.Error("a packet above the MTU arrived whole")
	}
	nobody := netip.MustParseAddr("fd00:244:0:dead::1")
	out, _ := a6.Run(t.Context(), "ping", "-6", "-c", "1", "-W", "2", nobody.String())
	expectWords(t, out, "Destination unreachable: No route")
	if r := route(t, m1, c6.Addr.String()); r.Way != "encapsulated" || r.Device != "muslin0-v6" || r.NextHop != fmt.Sprintf("[%s]:8472", hostAddr6(h3)) || r.MTU != dualMTU || len(r.Notes) != 0 {
		t.Errorf("%+v", r)
	}
	if r := route(t, m1, nobody.String()); r.Way != "none" || r.Device != "" {
		t.Errorf("%+v", r)
	}
	k.sendOtherFamily(t, m1, a.Addr)
	for reason, n := range status(t, m1).Drops {
		if slices.Contains(ipv6Drops, reason) {
			continue
		}
		if reason != "tun-overflow" && reason != "link-local" && reason != "no-route" && n != 0 {
			t.Errorf("%d packets dropped as %s", n, reason)
		}
	}

	// Replaced under traffic, killed and cleaned up, and stopped.
	under := []interface{ Stop() probes.Result }{labtest.StartProbe(t, a, b), labtest.StartProbe(t, a6, b6), labtest.StartProbe(t, b6, a6)}
	old := m2
	m2 = launchMuslin(t, h2, append([]string{"--replace"}, flags...)...)
	expectExit(t, old.Proc, 0)
	waitPeers(t, m2, 4)
	time.Sleep(lab.Patience(500 * time.Millisecond))
	for _, p := range under {
		if r := p.Stop(); r.Err != nil || r.Lost != 0 || r.Duplicated != 0 || r.Received == 0 {
			t.Errorf("%s, %v", r, r.Err)
		}
	}
	m2.Kill()
	m2 = startMuslin(t, h2, flags...)
	eventually(t, lab.Patience(10*time.Second), func() error { return ping6(t, a6, b6.Addr, 1280) })
	if got := status(t, m2).Node; got.Subnet6 != n2.Subnet6 || got.VtepMAC6 != n2.VtepMAC6 || got.Subnet != n2.Subnet {
		t.Errorf("after a restart: %+v, was %+v", got, n2)
	}
	m2.Kill()
	runIn(t, h2.Node, "ip", "link", "del", "cni0")
	runIn(t, h2.Node, "ip", "link", "del", "veth-a")
	must(h2.Run(t.Context(), labtest.Bin, "cleanup", "--control", m2.Control, "--state-dir", m2.StateDir))(t)
	expectAsBefore(t, h2.Node, before)
	m2 = startMuslin(t, h2, flags...)
	waitPeers(t, m2, 4)
	if err := m2.Stop(); err != nil {
		t.Error(err)
	}
	expectAsBefore(t, h2.Node, before)
}

// expectMeasured wants the round trip to every peer to be what ping has of it, or less: nothing else is under way.
func expectMeasured(t *testing.T, m *lab.Muslin) {
	t.Helper()
	var s *control.Status
	eventually(t, 15*time.Second, func() (err error) {
		if s, err = control.Watch(t.Context(), m.Control, "", control.Look{Peers: control.AllPeers, Watch: control.AllPeers}); err != nil {
			return err
		}
		for _, p := range s.Peers {
			if p.RTT == nil || p.Loss == nil || *p.Loss != 0 {
				return fmt.Errorf("of %s: round trip %v µs, loss %v", p.Subnet, p.RTT, p.Loss)
			}
		}
		return nil
	})
	for _, p := range s.Peers {
		to := netip.MustParsePrefix(p.Subnet).Addr()
		ping := must(m.Host.Ping(t.Context(), to, lab.PingOptions{Count: 20}))(t)
		got := time.Duration(*p.RTT) * time.Microsecond
		t.Logf("%s: %v, ping %v", to, got, ping.Average)
		if ping.Received != ping.Sent || got > max(5*ping.Average, lab.Patience(10*time.Millisecond)) || got < ping.Average/20 {
			t.Errorf("round trip to %s %v, by ping %+v", to, got, ping)
		}
	}
}

// sendOtherFamily has the daemon meet IPv4 where IPv6 is carried: from its own host, and from this peer. What the kernel says
// to the link by itself it has met before.
func (k *kernel6) sendOtherFamily(t *testing.T, m *lab.Muslin, pod netip.Addr) {
	t.Helper()
	count := func(reason string, want uint64) {
		t.Helper()
		eventually(t, lab.Patience(5*time.Second), func() error {
			if n := status(t, m).Drops[reason]; n < want || reason != "link-local" && n != want {
				return fmt.Errorf("%d packets dropped as %s, want %d", n, reason, want)
			}
			return nil
		})
	}
	count("link-local", 1)

	stray := netip.MustParseAddrPort("203.0.113.9:9")
	runIn(t, m.Host.Node, "ip", "route", "add", stray.Addr().String(), "dev", "muslin0-v6")
	out := listenUDP(t, m.Host.Node, netip.AddrPort{})
	for range 3 {
		if _, err := out.WriteToUDPAddrPort([]byte("stray"), stray); err != nil {
			t.Fatal(err)
		}
	}
	count("ipv4", 3)
	runIn(t, m.Host.Node, "ip", "route", "del", stray.Addr().String(), "dev", "muslin0-v6")

	n := status(t, m).Node
	dst, err := net.ParseMAC(n.VtepMAC6)
	src, err2 := net.ParseMAC(k.mac6)
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	inner := innerUDP(t, netip.AddrPortFrom(k.Subnet.Addr().Next(), 9), netip.AddrPortFrom(pod, 9), []byte("of the other family"))
	datagram := slices.Concat([]byte{8, 0, 0, 0, 0, 0, 1, 0}, dst, src, []byte{0x08, 0x00}, inner)
	conn := listenUDP(t, k.Host.Node, netip.AddrPortFrom(hostAddr6(k.Host), 0))
	for range 3 {
		if _, err := conn.WriteToUDPAddrPort(datagram, netip.MustParseAddrPort(fmt.Sprintf("[%s]:8472", n.PublicIPv6))); err != nil {
			t.Fatal(err)
		}
	}
	count("inner-ipv4", 3)
}

// testSixAlone is the row of TestMatrix for an overlay of IPv6 alone, which flannel cannot keep in etcd. Pods have IPv4
// addresses that lead nowhere. The hosts are as in testDualStack.
func testSixAlone(t *testing.T, m *matrix, row string) {
	l := newLab(t, 3)
	underlay6(t, l)
	h1, h2, h3 := l.Host(1), l.Host(2), l.Host(3)
	store := startEtcd(t, h1)
	store.Config(t, `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"`+network6+`","Backend":{"Type":"vxlan"}}`)
	before := snapshot(t, h2.Node)
	flags := []string{"--etcd-endpoints", endpoint(h1)}
	m1, m2 := startMuslin(t, h1, flags...), startMuslin(t, h2, flags...)
	waitPeers(t, m1, 1)
	waitPeers(t, m2, 1)
	s1, s2 := must(m1.Command(t.Context(), "status", "--output", "json"))(t), must(m2.Command(t.Context(), "status", "--output", "json"))(t)
	n1, n2 := sixOf(t, s1), sixOf(t, s2)
	none := netip.Prefix{}
	want := fmt.Sprintf(`{"PublicIP":"0.0.0.0","PublicIPv6":%q,"BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":%q}}`, hostAddr6(h1), n1.MAC)
	if got := store.Get(t, "/subnets/0.0.0.0-0&"+strings.ReplaceAll(n1.Subnet.String(), "/", "-")); got != want || n1.Subnet == none {
		t.Errorf("our lease is %s, want %s", got, want)
	}
	if file := string(must(os.ReadFile(m1.SubnetFile))(t)); strings.Contains(file, "FLANNEL_SUBNET") || !strings.Contains(file, "FLANNEL_IPV6_SUBNET="+n1.Subnet.Addr().Next().String()+"/64") {
		t.Errorf("subnet file:\n%s", file)
	}
	pod := func(h *lab.Host, subnet netip.Prefix) *lab.Pod {
		p := must(h.AddPod(t.Context(), "a", lab.PodNetwork{Gateway: netip.MustParsePrefix(fmt.Sprintf("10.250.%d.1/24", h.Number)), MTU: dualMTU}))(t)
		return pod6(t, p, subnet)
	}
	a, b := pod(h1, n1.Subnet), pod(h2, n2.Subnet)
	v6 := &matrixRow{way: "encapsulated"}
	check := func(far *lab.Host, to *lab.Pod) {
		t.Helper()
		eventually(t, lab.Patience(10*time.Second), func() error { return ping6(t, a, to.Addr, 1280) })
		for _, way := range [][2]*lab.Pod{{a, to}, {to, a}} {
			if err := ping6(t, way[0], way[1].Addr, dualMTU); err != nil {
				t.Error(err)
			}
			copyTCP(t, way[0], way[1], bigFile()/4)
		}
		v6.checkWire(t, h1, a, to, far, route(t, m1, to.Addr.String()))
	}
	check(h2, b)
	m.note(row, "muslin ↔ muslin", !t.Failed())

	subnet := netip.MustParsePrefix("fd00:244:0:c8::/64")
	mac := addKernel6(t, h3, subnet)
	for _, n := range []sixNode{n1, n2} {
		addKernelPeer6(t, h3, n.Subnet, n.MAC, n.PublicIP)
	}
	store.Do(t, "put", prefix+"/subnets/0.0.0.0-0&fd00:244:0:c8::-64", fmt.Sprintf(`{"PublicIP":"0.0.0.0","PublicIPv6":%q,"BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":%q}}`, hostAddr6(h3), mac))
	waitPeers(t, m1, 2)
	check(h3, pod(h3, subnet))
	m.note(row, "muslin ↔ kernel VXLAN", !t.Failed())

	m2.Kill()
	m2 = startMuslin(t, h2, flags...)
	if got := sixOf(t, must(m2.Command(t.Context(), "status", "--output", "json"))(t)); got != n2 {
		t.Errorf("after a restart: %+v, was %+v", got, n2)
	}
	eventually(t, lab.Patience(10*time.Second), func() error { return ping6(t, a, b.Addr, 1280) })
	if err := m2.Stop(); err != nil {
		t.Error(err)
	}
	runIn(t, h2.Node, "ip", "link", "del", "cni0")
	runIn(t, h2.Node, "ip", "link", "del", "veth-a")
	expectAsBefore(t, h2.Node, before)
}

// sixNode is what status says of a node of IPv6 alone.
type sixNode struct {
	Subnet   netip.Prefix `json:"subnet_ipv6"`
	PublicIP netip.Addr   `json:"public_ipv6"`
	MAC      string       `json:"vtep_mac_ipv6"`
	TUN      string       `json:"tun_ipv6"`
	Empty    string       `json:"subnet"`
}

func sixOf(t *testing.T, text string) sixNode {
	t.Helper()
	var s struct {
		Node sixNode `json:"node"`
	}
	if err := json.Unmarshal([]byte(text), &s); err != nil || s.Node.Empty != "" || s.Node.TUN != "muslin0" {
		t.Fatal(err, s, text)
	}
	return s.Node
}
