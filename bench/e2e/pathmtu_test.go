//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// A hop that takes less than every node's interface, on the way to two of them, one of which is set up by hand as flannel
// does it:
//
//	p1a ── cni0 ─ h1 (muslin) ─┐                                       ┌─ h2 (muslin) ─ cni0 ── p2a
//	                          br0 ── h4 (router) ── 1400 ── h5 (router)┤
//	p3a ── cni0 ─ h3 (muslin) ─┘                                       └─ h6 (flannel.1) ─ cni0 ── p6a
//
// The routers either answer by ICMP, and fragment what may be fragmented, or drop what is longer without a word, and
// fragments as well.
func TestPathMTU(t *testing.T) {
	lab.RequireTool(t, "nft", "tcpdump", "etcdctl", "bridge", "ethtool")
	for _, answers := range []bool{true, false} {
		name := "silent"
		if answers {
			name = "answers"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testPathMTU(t, answers)
		})
	}
}

const (
	hopMTU     = 1400
	hopInner   = hopMTU - 50
	wholeInner = lab.DefaultMTU - 50
)

func testPathMTU(t *testing.T, answers bool) {
	l := newLab(t, 6)
	h := newHop(t, l, answers)
	ctx := t.Context()
	every := []string{"--path-mtu-interval", "5s"}
	m1 := startMuslin(t, l.Host(1), append(every, "--embedded-etcd", "--network", network)...)
	join := append(every, "--etcd-endpoints", endpoint(l.Host(1)))
	m2, m3 := startMuslin(t, l.Host(2), join...), startMuslin(t, l.Host(3), join...)
	a, b, c := addPod(t, m1, "a"), addPod(t, m2, "a"), addPod(t, m3, "a")
	subnet := netip.MustParsePrefix("10.244.250.0/24")
	for _, m := range []*lab.Muslin{m1, m2, m3} {
		if status(t, m).Node.Subnet.Masked() == subnet {
			subnet = netip.MustParsePrefix("10.244.254.0/24")
		}
	}
	v := must(l.Host(6).SetupKernelVXLAN(ctx, 1, 8472, subnet))(t)
	for _, m := range []*lab.Muslin{m1, m2, m3} {
		n := status(t, m).Node
		if err := v.AddPeer(ctx, n.Subnet, n.VtepMAC, n.PublicIP); err != nil {
			t.Fatal(err)
		}
	}
	k := must(l.Host(6).AddPod(ctx, "a", v.PodNetwork()))(t)
	labtest.EtcdOn(l.Host(1)).Do(t, "put", v.LeaseKey(prefix), v.LeaseValue(1))
	for _, m := range []*lab.Muslin{m1, m2, m3} {
		waitPeers(t, m, 3)
	}
	dir := t.TempDir()
	told := startCapture(t, a.Node, dir, "eth0", "icmp[icmptype] == icmp-unreach and icmp[icmpcode] == 4")
	whole := startCapture(t, l.Host(3).Node, dir, "eth0", fmt.Sprintf("udp and dst port 8472 and src host %s and greater %d", l.Host(1).Addr, lab.DefaultMTU+14))

	// TCP, to each of the two behind the hop, with no packet sent before that could have shown it.
	for _, to := range []*lab.Pod{b, k} {
		began := time.Now()
		copyTCP(t, a, to, 1<<20)
		t.Logf("1 MiB to %s took %v", to.Name, time.Since(began).Round(time.Millisecond))
		if took := time.Since(began); took > lab.Patience(10*time.Second) {
			t.Errorf("1 MiB to %s took %v", to.Name, took)
		}
	}
	copyTCP(t, b, a, 1<<20)
	by := "probe"
	if answers {
		by = "icmp"
	}
	for _, peer := range []*lab.Host{l.Host(2), l.Host(6)} {
		eventually(t, 3*time.Second, func() error {
			return isPath(t, m1, peer.Addr, pathStatus{State: "smaller", MTU: hopInner, By: by})
		})
	}
	copyTCP(t, a, b, 1<<20)
	if r := route(t, m1, b.Addr.String()); r.MTU != hopInner || r.MTURule != "path-mtu" {
		t.Errorf("route: %+v", r)
	}
	if out := must(m1.Command(ctx, "status"))(t); !strings.Contains(out, fmt.Sprintf("MTU %d (%s) for ", hopInner, by)) {
		t.Errorf("status does not show the path's MTU:\n%s", out)
	}

	// The pod was told, by its gateway to the overlay.
	if out := must(a.Run(ctx, "ip", "route", "get", b.Addr.String()))(t); !strings.Contains(out, fmt.Sprintf("mtu %d", hopInner)) {
		t.Errorf("the pod has not learnt the MTU: %s", out)
	}
	errs, err := told.packets()
	if err != nil || len(errs) == 0 {
		t.Fatal("the pod got no ICMP error", err)
	}
	for _, p := range errs {
		icmp, _ := gopacket.NewPacket(p, layers.LayerTypeEthernet, gopacket.Default).Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
		if icmp == nil || icmp.Seq != hopInner {
			t.Errorf("the pod got %+v, want an MTU of %d", icmp, hopInner)
		}
	}

	// What may be fragmented gets through at any size, from a pod that has not learnt anything; what may not, up to the MTU.
	for _, to := range []*lab.Pod{b, k} {
		runIn(t, a.Node, "ip", "route", "flush", "cache")
		if to == b || answers { // what the kernel's device answers at that size goes into the black hole
			expectPings(t, a.Node, to.Addr, lab.PingOptions{Count: 3, Size: wholeInner})
			expectPings(t, a.Node, to.Addr, lab.PingOptions{Count: 3, Size: 4000})
		}
		expectPings(t, a.Node, to.Addr, lab.PingOptions{Count: 3, Size: hopInner, DontFragment: true})
	}

	// The one that is not behind the hop gets its packets whole.
	expectPings(t, a.Node, c.Addr, lab.PingOptions{Count: 3, Size: wholeInner, DontFragment: true})
	copyTCP(t, a, c, 1<<20)
	if all, err := whole.packets(); err != nil || len(all) < 100 {
		t.Errorf("%d datagrams of %d bytes to the peer before the hop, %v", len(all), lab.DefaultMTU, err)
	}
	if r := route(t, m1, c.Addr.String()); r.MTU != wholeInner || r.MTURule != "overlay" {
		t.Errorf("route: %+v", r)
	}

	// With --clamp-mss both ends are told in the handshake.
	if err := m1.Stop(); err != nil {
		t.Fatal(err)
	}
	m1 = startMuslin(t, l.Host(1), append(every, "--embedded-etcd", "--network", network, "--clamp-mss")...)
	waitPeers(t, m1, 3)
	eventually(t, 15*time.Second, func() error {
		runIn(t, a.Node, "ip", "route", "flush", "cache")
		if _, err := a.Ping(ctx, b.Addr, lab.PingOptions{Count: 1, Size: wholeInner}); err != nil {
			return err
		}
		return isPath(t, m1, l.Host(2).Addr, pathStatus{State: "smaller", MTU: hopInner, By: by})
	})
	const syn = "tcp[tcpflags] & tcp-syn != 0"
	clamped := []*capture{startCapture(t, a.Node, t.TempDir(), "eth0", syn+" and src host "+b.Addr.String()), startCapture(t, b.Node, t.TempDir(), "eth0", syn+" and src host "+a.Addr.String())}
	copyTCP(t, a, b, 1<<20)
	copyTCP(t, b, a, 1<<20)
	for _, captured := range clamped {
		for _, p := range captured.wait(t, 2) {
			expectMSS(t, p, hopInner-40)
		}
	}

	// A hop that becomes wider is noticed, as the pod does when it forgets.
	h.widen(t)
	eventually(t, 20*time.Second, func() error {
		runIn(t, a.Node, "ip", "route", "flush", "cache")
		_, err := a.Ping(ctx, b.Addr, lab.PingOptions{Count: 1, Size: wholeInner})
		if err == nil {
			err = isPath(t, m1, l.Host(2).Addr, pathStatus{State: "full"})
		}
		return err
	})
	for _, n := range []*lab.Node{a.Node, b.Node} {
		runIn(t, n, "ip", "route", "flush", "cache")
	}
	expectPings(t, a.Node, b.Addr, lab.PingOptions{Count: 3, Size: wholeInner, DontFragment: true})
}

// pathStatus is what status says of the path to a peer.
type pathStatus struct {
	State string `json:"path_mtu_state"`
	MTU   int    `json:"path_mtu"`
	By    string `json:"path_mtu_by"`
}

func isPath(t *testing.T, m *lab.Muslin, peer netip.Addr, want pathStatus) error {
	t.Helper()
	var s struct {
		Peers []struct {
			PublicIP netip.Addr `json:"public_ip"`
			pathStatus
		} `json:"peers"`
	}
	if err := json.Unmarshal([]byte(must(m.Command(t.Context(), "status", "--output", "json"))(t)), &s); err != nil {
		return err
	}
	for _, p := range s.Peers {
		if p.PublicIP == peer && p.pathStatus == want {
			return nil
		}
	}
	return fmt.Errorf("the path to %s: %+v, want %+v", peer, s.Peers, want)
}

// expectMSS checks a captured SYN, its checksum included. Without an offload that would fill that in it is there.
func expectMSS(t *testing.T, frame []byte, most uint16) {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	tcp, _ := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
	if tcp == nil || p.NetworkLayer() == nil {
		t.Fatalf("not TCP: %v", p)
	}
	for _, o := range tcp.Options {
		if o.OptionType == layers.TCPOptionKindMSS {
			if got := uint16(o.OptionData[0])<<8 | uint16(o.OptionData[1]); got != most {
				t.Errorf("MSS %d, want %d, in %v", got, most, p)
			}
			return
		}
	}
	t.Errorf("no MSS in %v", p)
}

// hop is the two routers in the middle.
type hop struct {
	routers []*lab.Host
	answers bool
}

// newHop puts hosts 2 and 6 behind hosts 4 and 5, by the addresses that they have, with offloads on the underlay off: what
// passes the hop is single datagrams. TCP between the hosts has a small MSS, since it is not what is tested.
func newHop(t *testing.T, l *lab.Lab, answers bool) *hop {
	t.Helper()
	near, far := l.Host(4), l.Host(5)
	h := &hop{routers: []*lab.Host{near, far}, answers: answers}
	run := func(n *lab.Node, commands ...string) {
		t.Helper()
		for _, c := range commands {
			runIn(t, n, strings.Fields(c)...)
		}
	}
	mtu := lab.DefaultMTU
	if answers {
		mtu = hopMTU
	}
	run(near.Node,
		fmt.Sprintf("ip link add mid mtu %d type veth peer name mid mtu %d netns %s", mtu, mtu, far.NetNS),
		"ip addr add 198.19.1.1/30 dev mid", "ip link set mid up")
	run(far.Node, "ip link del eth0")
	run(far.Node, "ip addr add 198.19.1.2/30 dev mid", "ip link set mid up",
		"ip route add 198.18.0.0/24 via 198.19.1.1", "ip addr add 198.19.2.1/32 dev lo")
	for _, behind := range []*lab.Host{l.Host(2), l.Host(6)} {
		run(l.Switch(), "ip link set "+behind.Name+" nomaster netns "+far.NetNS)
		run(far.Node, "ip link set "+behind.Name+" up", fmt.Sprintf("ip route add %s dev %s", behind.Addr, behind.Name))
		run(behind.Node, "ip addr flush dev eth0", fmt.Sprintf("ip addr add %s/32 dev eth0", behind.Addr),
			"ip route add 198.19.2.1 dev eth0", "ip route add 198.18.0.0/24 via 198.19.2.1 advmss 1200")
		run(near.Node, fmt.Sprintf("ip route add %s via 198.19.1.2", behind.Addr))
		for _, other := range []*lab.Host{l.Host(1), l.Host(3)} {
			run(other.Node, fmt.Sprintf("ip route add %s via %s advmss 1200", behind.Addr, near.Addr))
		}
	}
	for _, host := range []int{1, 2, 3, 6} {
		run(l.Host(host).Node, "ethtool -K eth0 tx-udp-segmentation off tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off")
	}
	for _, r := range h.routers {
		if err := r.Sysctl("net/ipv4/ip_forward", "1"); err != nil {
			t.Fatal(err)
		}
		if !answers {
			rules := fmt.Sprintf("table inet hop { chain forward { type filter hook forward priority 0; meta length > %d drop; ip frag-off & 0x3fff != 0 drop; icmp type destination-unreachable drop; }; }", hopMTU)
			run(r.Node, "nft -f "+writeRules(t, rules))
		}
	}
	return h
}

func writeRules(t *testing.T, rules string) string {
	t.Helper()
	file := t.TempDir() + "/rules"
	if err := os.WriteFile(file, []byte(rules), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// widen has the hop take what everyone does.
func (h *hop) widen(t *testing.T) {
	t.Helper()
	for _, r := range h.routers {
		if h.answers {
			runIn(t, r.Node, "ip", "link", "set", "mid", "mtu", fmt.Sprint(lab.DefaultMTU))
		} else {
			runIn(t, r.Node, "nft", "delete", "table", "inet", "hop")
		}
	}
}
