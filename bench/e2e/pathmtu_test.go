//go:build linux

package e2e

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sync/errgroup"

	"muslin/bench/lab"
)

// A hop that takes less than every node's interface, in both address families, on the way to two of them, one of which is
// set up by hand as flannel does it:
//
//	p1a ── cni0 ─ h1 (muslin) ─┐                                       ┌─ h2 (muslin) ─ cni0 ── p2a
//	                          br0 ── h4 (router) ── 1400 ── h5 (router)┤
//	p3a ── cni0 ─ h3 (muslin) ─┘                                       └─ h6 (flannel.1, flannel-v6.1) ─ cni0 ── p6a
//
// The routers either answer by ICMP, and fragment what may be fragmented, or drop what is longer without a word, and
// fragments as well.
func TestPathMTU(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "nft", "tcpdump", "etcdctl", "bridge", "ethtool", "ping")
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
	wholeInner = dualMTU
)

// pathFamily is the lab as one address family sees it.
type pathFamily struct {
	ip         string // the option for ip
	a, b, c, k *lab.Pod
	far        []netip.Addr // the underlay's, of b's and k's hosts
	from, to   netip.Addr   // of a's and c's
	overhead   int          // of vxlan, bytes
	headers    int          // of TCP and what is below it
	tooBig     string       // the capture's filter for ICMP that says so, and for SYN
	syn        string
	told       *capture // such ICMP to a
	whole      *capture // datagrams from a's to c's host as long as there are
}

func (f *pathFamily) hop() int { return hopMTU - f.overhead }

func testPathMTU(t *testing.T, answers bool) {
	l := newLab(t, 6)
	h := newHop(t, l, answers)
	ctx := t.Context()
	config := t.TempDir() + "/net-conf.json"
	if err := os.WriteFile(config, []byte(dualConfig), 0o644); err != nil {
		t.Fatal(err)
	}
	every := []string{"--path-mtu-interval", "5s"}
	m1 := startMuslin(t, l.Host(1), append(every, "--embedded-etcd", "--net-config-path", config)...)
	join := append(every, "--etcd-endpoints", endpoint(l.Host(1)))
	m2, m3 := startMuslin(t, l.Host(2), join...), startMuslin(t, l.Host(3), join...)
	daemons := []*lab.Muslin{m1, m2, m3}
	v := startKernel6(t, l.Host(6), unleased(t, daemons...), netip.MustParsePrefix("fd00:244:0:c8::/64"), daemons)
	v.put(t, l)
	four := &pathFamily{
		ip: "-4", a: addPod(t, m1, "a"), b: addPod(t, m2, "a"), c: addPod(t, m3, "a"),
		far: []netip.Addr{l.Host(2).Addr, l.Host(6).Addr}, from: l.Host(1).Addr, to: l.Host(3).Addr,
		overhead: 50, headers: 20 + 20,
		tooBig: "icmp[icmptype] == icmp-unreach and icmp[icmpcode] == 4",
		syn:    "tcp[tcpflags] & tcp-syn != 0",
	}
	four.k = must(l.Host(6).AddPod(ctx, "a", lab.PodNetwork{Gateway: v.PodNetwork().Gateway, MTU: dualMTU}))(t)
	six := &pathFamily{
		ip: "-6", a: pod6(t, four.a, halvesOf(t, m1).Subnet6), b: pod6(t, four.b, halvesOf(t, m2).Subnet6),
		c: pod6(t, four.c, halvesOf(t, m3).Subnet6), k: pod6(t, four.k, v.subnet6),
		far: []netip.Addr{hostAddr6(l.Host(2)), hostAddr6(l.Host(6))}, from: hostAddr6(l.Host(1)), to: hostAddr6(l.Host(3)),
		overhead: 70, headers: 40 + 20,
		tooBig: "icmp6 and ip6[40] == 2",
		syn:    "ip6 proto 6 and ip6[53] & 2 != 0",
	}
	for _, m := range daemons {
		waitPeers(t, m, 6)
	}
	by := "probe"
	if answers {
		by = "icmp"
	}
	families := []*pathFamily{four, six}
	for _, f := range families {
		dir := t.TempDir()
		f.told = startCapture(t, f.a.Node, dir, "eth0", f.tooBig)
		f.whole = startCapture(t, l.Host(3).Node, dir, "eth0", fmt.Sprintf("udp and dst port 8472 and src host %s and greater %d", f.from, wholeInner+f.overhead+14))
	}

	// TCP, to each of the two behind the hop and back, with no packet sent before that could have shown it.
	var g errgroup.Group
	for _, f := range families {
		for _, way := range [][2]*lab.Pod{{f.a, f.b}, {f.a, f.k}, {f.b, f.a}} {
			g.Go(func() error {
				began := time.Now()
				err := tryCopyTCP(way[0], way[1], 1<<20)
				took := time.Since(began).Round(time.Millisecond)
				t.Logf("1 MiB from %s to %s, %s, took %v", way[0].Name, way[1].Name, way[1].Addr, took)
				if err == nil && took > lab.Patience(10*time.Second) {
					err = errors.New("too long")
				}
				if err != nil {
					err = fmt.Errorf("1 MiB from %s to %s, %s, in %v: %w", way[0].Name, way[1].Name, way[1].Addr, took, err)
				}
				return err
			})
		}
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	for _, f := range families {
		f.expectFound(t, m1, by)
	}

	// What may be fragmented gets through at any size, from a pod that has not learnt anything; what may not, up to the MTU.
	for _, to := range []*lab.Pod{four.b, four.k} {
		four.unlearn(t)
		if to == four.b || answers { // what the kernel's device answers at that size goes into the black hole
			expectPings(t, four.a.Node, to.Addr, lab.PingOptions{Count: 3, Size: wholeInner})
			expectPings(t, four.a.Node, to.Addr, lab.PingOptions{Count: 3, Size: 4000})
		}
		expectPings(t, four.a.Node, to.Addr, lab.PingOptions{Count: 3, Size: four.hop(), DontFragment: true})
	}
	// Of IPv6 nothing may, but by the pod itself.
	for _, to := range []*lab.Pod{six.b, six.k} {
		expectPings(t, six.a.Node, to.Addr, lab.PingOptions{Count: 3, Size: six.hop()})
	}
	for _, f := range families {
		f.expectWhole(t, m1)
	}

	// With --clamp-mss both ends are told in the handshake.
	if err := m1.Stop(); err != nil {
		t.Fatal(err)
	}
	m1 = startMuslin(t, l.Host(1), append(every, "--embedded-etcd", "--net-config-path", config, "--clamp-mss")...)
	waitPeers(t, m1, 6)
	eventually(t, 15*time.Second, func() error {
		var errs []error
		for _, f := range families {
			f.sendLong(t)
			errs = append(errs, isPath(t, m1, f.far[0], pathStatus{State: "smaller", MTU: f.hop(), By: by}))
		}
		return errors.Join(errs...)
	})
	for _, f := range families {
		clamped := []*capture{startCapture(t, f.a.Node, t.TempDir(), "eth0", f.syn+" and src host "+f.b.Addr.String()), startCapture(t, f.b.Node, t.TempDir(), "eth0", f.syn+" and src host "+f.a.Addr.String())}
		copyTCP(t, f.a, f.b, 1<<20)
		copyTCP(t, f.b, f.a, 1<<20)
		for _, captured := range clamped {
			for _, p := range captured.wait(t, 2) {
				expectMSS(t, p, uint16(f.hop()-f.headers))
			}
		}
	}

	// A hop that becomes wider is noticed, as the pod does when it forgets.
	h.widen(t)
	eventually(t, 20*time.Second, func() error {
		var errs []error
		for _, f := range families {
			f.sendLong(t)
			errs = append(errs, isPath(t, m1, f.far[0], pathStatus{State: "full"}))
		}
		return errors.Join(errs...)
	})
	four.unlearn(t)
	six.unlearn(t)
	expectPings(t, four.a.Node, four.b.Addr, lab.PingOptions{Count: 3, Size: wholeInner, DontFragment: true})
	if err := ping6(t, six.a, six.b.Addr, wholeInner); err != nil {
		t.Error(err)
	}
}

// expectFound wants the hop known: to the daemon, whoever asks it, and to the pod.
func (f *pathFamily) expectFound(t *testing.T, m1 *lab.Muslin, by string) {
	t.Helper()
	for _, peer := range f.far {
		eventually(t, 3*time.Second, func() error {
			return isPath(t, m1, peer, pathStatus{State: "smaller", MTU: f.hop(), By: by})
		})
	}
	f.unlearn(t) // b's answer to a connection says what b has learnt
	copyTCP(t, f.a, f.b, 1<<20)
	if r := route(t, m1, f.b.Addr.String()); r.MTU != f.hop() || r.MTURule != "path-mtu" {
		t.Errorf("route: %+v", r)
	}
	if out := must(m1.Command(t.Context(), "status"))(t); !strings.Contains(out, fmt.Sprintf("MTU %d (%s) for ", f.hop(), by)) {
		t.Errorf("status does not show the path's MTU:\n%s", out)
	}

	// The pod was told, by its gateway to the overlay.
	if out := must(f.a.Run(t.Context(), "ip", "route", "get", f.b.Addr.String()))(t); !strings.Contains(out, fmt.Sprintf("mtu %d", f.hop())) {
		t.Errorf("the pod has not learnt the MTU: %s", out)
	}
	for _, p := range f.told.atLeast(t, 1) {
		if got := toldMTU(p); got != f.hop() {
			t.Errorf("the pod got an MTU of %d, want %d", got, f.hop())
		}
	}
}

// toldMTU is what ICMP fragmentation needed or packet too big says, 0 where it is neither.
func toldMTU(frame []byte) int {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	if icmp, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
		return int(icmp.Seq)
	}
	if icmp, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); ok && icmp.TypeCode.Type() == layers.ICMPv6TypePacketTooBig && len(icmp.Payload) >= 4 {
		return int(binary.BigEndian.Uint32(icmp.Payload))
	}
	return 0
}

// expectWhole wants packets whole to the one that is not behind the hop.
func (f *pathFamily) expectWhole(t *testing.T, m1 *lab.Muslin) {
	t.Helper()
	if f.c.Addr.Is6() {
		if err := ping6(t, f.a, f.c.Addr, wholeInner); err != nil {
			t.Error(err)
		}
	} else {
		expectPings(t, f.a.Node, f.c.Addr, lab.PingOptions{Count: 3, Size: wholeInner, DontFragment: true})
	}
	copyTCP(t, f.a, f.c, 1<<20)
	f.whole.atLeast(t, 100)
	if r := route(t, m1, f.c.Addr.String()); r.MTU != wholeInner || r.MTURule != "overlay" {
		t.Errorf("route: %+v", r)
	}
}

// sendLong sends b a packet as long as the pod's device takes, whatever the pod has learnt.
func (f *pathFamily) sendLong(t *testing.T) {
	t.Helper()
	f.unlearn(t)
	if err := f.a.Do(func() error {
		conn, err := net.Dial("udp", netip.AddrPortFrom(f.b.Addr, 9).String())
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write(make([]byte, wholeInner-(f.headers-20)-8))
		return err
	}); err != nil {
		t.Error(err)
	}
}

// unlearn has the two pods forget the path's MTU.
func (f *pathFamily) unlearn(t *testing.T) {
	t.Helper()
	for _, p := range []*lab.Pod{f.a, f.b} {
		runIn(t, p.Node, "ip", f.ip, "route", "flush", "cache")
	}
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

// expectMSS checks a captured SYN, its checksum included: where it has come over the wire no offload is left to fill it in.
func expectMSS(t *testing.T, frame []byte, most uint16) {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	tcp, _ := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
	if tcp == nil || p.NetworkLayer() == nil {
		t.Fatalf("not TCP: %v", p)
	}
	sum := tcp.Checksum
	if err := tcp.SetNetworkLayerForChecksum(p.NetworkLayer()); err != nil {
		t.Fatal(err)
	}
	if err := gopacket.SerializeLayers(gopacket.NewSerializeBuffer(), gopacket.SerializeOptions{ComputeChecksums: true}, tcp, gopacket.Payload(tcp.Payload)); err != nil {
		t.Fatal(err)
	}
	if tcp.Checksum != sum {
		t.Errorf("checksum %04x, want %04x, in %v", sum, tcp.Checksum, p)
	}
	for _, o := range tcp.Options {
		if o.OptionType == layers.TCPOptionKindMSS {
			if got := binary.BigEndian.Uint16(o.OptionData); got != most {
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

// newHop puts hosts 2 and 6 behind hosts 4 and 5, by the addresses of both families that they have, with offloads on the underlay off: what
// passes the hop is single datagrams. TCP between the hosts has a small MSS, since it is not what is tested.
func newHop(t *testing.T, l *lab.Lab, answers bool) *hop {
	t.Helper()
	near, far := l.Host(4), l.Host(5)
	h := &hop{routers: []*lab.Host{near, far}, answers: answers}
	underlay6(t, l)
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
		"ip addr add 198.19.1.1/30 dev mid", "ip addr add fd99:1::1/64 dev mid nodad", "ip link set mid up")
	run(far.Node, "ip link del eth0")
	run(far.Node, "ip addr add 198.19.1.2/30 dev mid", "ip addr add fd99:1::2/64 dev mid nodad", "ip link set mid up",
		"ip route add 198.18.0.0/24 via 198.19.1.1", "ip route add fd99::/64 via fd99:1::1", "ip addr add 198.19.2.1/32 dev lo")
	for _, behind := range []*lab.Host{l.Host(2), l.Host(6)} {
		run(l.Switch(), "ip link set "+behind.Name+" nomaster netns "+far.NetNS)
		behind6 := hostAddr6(behind)
		run(far.Node, "ip link set "+behind.Name+" up", fmt.Sprintf("ip route add %s dev %s", behind.Addr, behind.Name),
			"ip addr add fe80::1/64 dev "+behind.Name+" nodad", fmt.Sprintf("ip route add %s dev %s", behind6, behind.Name))
		run(behind.Node, "ip -4 addr flush dev eth0", fmt.Sprintf("ip addr add %s/32 dev eth0", behind.Addr),
			"ip route add 198.19.2.1 dev eth0", "ip route add 198.18.0.0/24 via 198.19.2.1 advmss 1200",
			fmt.Sprintf("ip addr del %s/64 dev eth0", behind6), fmt.Sprintf("ip addr add %s/128 dev eth0 nodad", behind6),
			"ip route add fd99::/64 via fe80::1 dev eth0")
		run(near.Node, fmt.Sprintf("ip route add %s via 198.19.1.2", behind.Addr), fmt.Sprintf("ip route add %s via fd99:1::2", behind6))
		for _, other := range []*lab.Host{l.Host(1), l.Host(3)} {
			run(other.Node, fmt.Sprintf("ip route add %s via %s advmss 1200", behind.Addr, near.Addr), fmt.Sprintf("ip route add %s via %s", behind6, hostAddr6(near)))
		}
	}
	for _, host := range []int{1, 2, 3, 6} {
		run(l.Host(host).Node, "ethtool -K eth0 tx-udp-segmentation off tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off")
	}
	for _, r := range h.routers {
		for _, forward := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
			if err := r.Sysctl(forward, "1"); err != nil {
				t.Fatal(err)
			}
		}
		if !answers {
			rules := fmt.Sprintf("table inet hop { chain forward { type filter hook forward priority 0; meta length > %d drop; ip frag-off & 0x3fff != 0 drop; exthdr frag exists drop; icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; }; }", hopMTU)
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
