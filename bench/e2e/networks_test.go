//go:build linux

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"muslin/bench/hostile"
	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// severalNetworks is `muslin status --output json` of a process with several networks, declared a second time on purpose.
type severalNetworks struct {
	Config     string `json:"config"`
	Error      string `json:"config_error"`
	Privileges struct {
		NoNewPrivs   bool `json:"no_new_privs"`
		Capabilities []struct {
			Name string `json:"name"`
		} `json:"capabilities"`
	} `json:"privileges"`
	Networks []struct {
		Name    string      `json:"name"`
		Control string      `json:"control"`
		State   string      `json:"state"`
		Error   string      `json:"error"`
		Again   *time.Time  `json:"again"`
		Status  *lab.Status `json:"status"`
	} `json:"networks"`
}

// several is a process with several networks, on one host.
type several struct {
	*lab.Muslin // its Control is the process's
	file        string
	pods        map[string]*lab.Pod
}

// launchSeveral starts one with a file that has these networks, each a line of YAML.
func launchSeveral(t *testing.T, h *lab.Host, networks map[string]string) *several {
	t.Helper()
	s := &several{Muslin: h.Muslin(labtest.Bin), file: filepath.Join(h.Dir, "networks.yaml"), pods: make(map[string]*lab.Pod)}
	s.write(t, networks)
	s.launch(t)
	return s
}

// launch starts it with the file as it is, again if it has ended.
func (s *several) launch(t *testing.T) {
	t.Helper()
	h := s.Host
	s.Proc = must(h.Start("muslin", nil, labtest.Bin, "run", "--config", s.file, "--iface", "eth0", "--etcd-endpoints", endpoint(h.Lab().Host(1)),
		"--state-dir", s.StateDir, "--control", s.Control, "--healthz-port", "8081"))(t)
	s.Enlist()
}

func (s *several) write(t *testing.T, networks map[string]string) {
	t.Helper()
	var b strings.Builder
	b.WriteString("networks:\n")
	for name, settings := range networks {
		fmt.Fprintf(&b, "  %s: {subnet-file: %s, %s}\n", name, filepath.Join(s.Host.Dir, name+".env"), settings)
	}
	if err := os.WriteFile(s.file, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// reload has it read another file, and waits until it says that it has.
func (s *several) reload(t *testing.T, networks map[string]string, says string) {
	t.Helper()
	s.write(t, networks)
	s.hangUp(t, says)
}

func (s *several) hangUp(t *testing.T, says string) {
	t.Helper()
	before := strings.Count(s.Output(), says)
	if err := s.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		if strings.Count(s.Output(), says) == before {
			return fmt.Errorf("after SIGHUP %s does not say %q:\n%s", s.Name, says, s.Output())
		}
		return nil
	})
}

// network is one of them as a daemon of its own.
func (s *several) network(name string) *lab.Muslin {
	m := *s.Muslin
	m.Control, m.SubnetFile = filepath.Join(filepath.Dir(s.Control), name+".sock"), filepath.Join(s.Host.Dir, name+".env")
	return &m
}

// addPod adds a pod to a network, with a bridge of its own.
func (s *several) addPod(t *testing.T, name string) {
	t.Helper()
	network := must(s.network(name).PodNetwork())(t)
	s.pods[name] = must(s.Host.AddPodOn(t.Context(), "br-"+name, name, network))(t)
}

// takePodsAway deletes what the lab made in the host for pods.
func (s *several) takePodsAway(t *testing.T) {
	t.Helper()
	for name := range s.pods {
		for _, device := range []string{"br-" + name, "veth-" + name} {
			must(s.Host.Run(t.Context(), "ip", "link", "del", device))(t)
		}
	}
}

func (s *several) status(t *testing.T) severalNetworks {
	t.Helper()
	var all severalNetworks
	out := must(s.Host.Output(t.Context(), s.Bin, "status", "--output", "json", "--control", s.Control))(t)
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// apart counts the packets that the host has kept from going from one network to another.
func (s *several) apart(t *testing.T) int { return s.apartOf(t, "ip") }

func (s *several) apartOf(t *testing.T, family string) (packets int) {
	t.Helper()
	for line := range strings.Lines(must(s.Host.Run(t.Context(), "nft", "list", "table", family, "muslin_apart"))(t)) {
		if _, rest, ok := strings.Cut(line, "counter packets "); ok {
			var n int
			if _, err := fmt.Sscan(rest, &n); err != nil {
				t.Fatal(err)
			}
			packets += n
		}
	}
	return packets
}

// Three networks in one process on each of two hosts:
//
//	p1blue  ── br-blue  ─┐                   ┌─ br-blue  ── p2blue     10.1.0.0/16 and fd00:1::/48, vxlan VNI 1 port 8472
//	p1green ── br-green ─┼─ h1 ── br0 ── h2 ─┼─ br-green ── p2green    10.2.0.0/16 and fd00:2::/48, vxlan VNI 2 port 8473
//	p1red   ── br-red   ─┘  etcd             └─ br-red   ── p2red      10.3.0.0/16 udp
//
// Later gold (host-gw) comes, and pink (VNI 3 on port 8472).
func TestSeveralNetworks(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "iperf3", "nft", "tcpdump")
	l := newLab(t, 2)
	ctx := t.Context()
	underlay6(t, l)
	var before []string
	for _, h := range l.Hosts() {
		before = append(before, snapshot(t, h.Node))
	}
	startEtcd(t, l.Host(1))
	networks := map[string]string{
		"blue":  "net-config-path: " + bothFamilies(t, l, 1, `{"Type":"vxlan"}`),
		"green": "net-config-path: " + bothFamilies(t, l, 2, `{"Type":"vxlan","VNI":2,"Port":8473}`),
		"red":   "network: 10.3.0.0/16, backend: udp",
	}
	var both [2]*several
	for i := range both {
		both[i] = launchSeveral(t, l.Host(i+1), networks)
	}
	for _, s := range both {
		if err := s.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		for name := range networks {
			waitPeers(t, s.network(name), peersOf(name))
			s.addPod(t, name)
		}
	}
	one, two := both[0], both[1]

	// Each reaches its own, and nobody else's: by the pod's own host, by the other one, or at that.
	sniffed := startCapture(t, two.pods["green"].Node, t.TempDir(), "eth0", "src net not 10.2.0.0/16 and ip")
	var pings sync.WaitGroup
	for name := range networks {
		expectPing(t, one.pods[name].Node, two.pods[name].Addr, 3)
		for other := range networks {
			if other != name {
				pings.Go(func() { expectNoAnswer(t, one.pods[name].Node, one.pods[other].Addr) })
				pings.Go(func() { expectNoAnswer(t, one.pods[name].Node, two.pods[other].Addr) })
			}
		}
	}
	pings.Wait()
	if n := one.apart(t); n != 12 {
		t.Errorf("%d packets kept apart, want 12", n)
	}
	if got := must(sniffed.packets())(t); len(got) != 0 {
		t.Errorf("%d packets of other networks came to a pod of green", len(got))
	}
	expectApart6(t, one, two)
	expectNetworkHostile(t, one, two)
	expectCommands(t, one)
	expectCaptured(t, one, two)
	expectReloads(t, one, two, networks)

	// One leaves everything in its place, and the other is killed; both start again on that.
	if err := one.Signal(syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	expectExit(t, one.Proc, 75)
	two.Kill()
	for _, s := range both {
		if left := snapshot(t, s.Host.Node); !strings.Contains(left, "mu-blue") || !strings.Contains(left, "muslin_apart") {
			t.Errorf("host %s has nothing left of its networks: the rest of this test shows nothing:\n%s", s.Host.Name, left)
		}
		s.launch(t)
	}
	for _, s := range both {
		if err := s.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	base := func(s *several, name string) netip.Addr { return status(t, s.network(name)).Node.Subnet.Addr() }
	for name := range networks {
		expectPing(t, one.pods[name].Node, two.pods[name].Addr, 1)
		for other := range networks {
			q := question{one.Host.Node, netip.AddrPortFrom(base(one, other), 0), 255, base(two, name)}
			if said, err := q.ask("/v1/about"); (err == nil) != (other == name && name != "gold") { // which has no address there: host-gw
				t.Errorf("%s asked in %s: %s, %v", name, other, said, err)
			}
		}
	}
	eventually(t, 5*time.Second, func() error {
		var has []string
		p := one.status(t).Privileges
		for _, c := range p.Capabilities {
			has = append(has, c.Name)
		}
		if want := "[CAP_NET_ADMIN CAP_NET_BIND_SERVICE CAP_NET_RAW]"; !p.NoNewPrivs || fmt.Sprint(slices.Sorted(slices.Values(has))) != want {
			return fmt.Errorf("no_new_privs %v and %v, want %s", p.NoNewPrivs, has, want)
		}
		return nil
	})

	// One ends in good order, the other is killed.
	if err := one.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	expectExit(t, one.Proc, 0)
	one.takePodsAway(t)
	expectAsBefore(t, one.Host.Node, before[0])
	two.Kill()
	expectExit(t, two.Proc, 128+9)
	out := must(two.Host.Run(ctx, two.Bin, "cleanup", "--control", two.Control, "--state-dir", two.StateDir))(t)
	expectWords(t, out, "deleted the TUN device mu-blue", "deleted the TUN device mu-green", "rules that keep networks apart", "ip_forward back to 0")
	two.takePodsAway(t)
	expectAsBefore(t, two.Host.Node, before[1])
	for _, s := range both {
		if left, _ := filepath.Glob(filepath.Join(s.Host.Dir, "*.sock")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}

// peersOf is how many peers a node has in a network of two: one of each family.
func peersOf(name string) int {
	if name == "blue" || name == "green" {
		return 2
	}
	return 1
}

// bothFamilies is a file with the config of a network 10.N.0.0/16 and fd00:N::/48.
func bothFamilies(t *testing.T, l *lab.Lab, n int, backend string) string {
	t.Helper()
	path := filepath.Join(l.Dir(), fmt.Sprintf("net-%d.json", n))
	config := fmt.Sprintf(`{"Network":"10.%d.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:%d::/48","Backend":%s}`, n, n, backend)
	if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// expectApart6 wants of IPv6 what IPv4 has to do.
func expectApart6(t *testing.T, one, two *several) {
	t.Helper()
	pods := make(map[string]*lab.Pod)
	for i, s := range []*several{one, two} {
		for _, name := range []string{"blue", "green"} {
			subnet := netip.MustParsePrefix(status(t, s.network(name)).Node.Subnet6)
			pods[fmt.Sprint(name, i)] = pod6On(t, s.pods[name], "br-"+name, subnet)
		}
	}
	for _, name := range []string{"blue", "green"} {
		if err := ping6(t, pods[name+"0"], pods[name+"1"].Addr, 1000); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	to := netip.AddrPortFrom(pods["green0"].Addr, 7300)
	sink := listenUDP(t, pods["green0"].Node, to)
	defer sink.Close()
	from := listenUDP(t, pods["blue0"].Node, netip.AddrPortFrom(pods["blue0"].Addr, 0))
	defer from.Close()
	if _, err := from.WriteToUDPAddrPort([]byte("hello"), to); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, func() error {
		if n := one.apartOf(t, "ip6"); n != 1 {
			return fmt.Errorf("%d packets of IPv6 kept apart, want 1", n)
		}
		return nil
	})
	if err := sink.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, _, err := sink.ReadFromUDPAddrPort(make([]byte, 100)); err == nil {
		t.Errorf("%d bytes came from blue to green", n)
	}
}

// expectNetworkHostile has a peer of blue send to blue's VTEP what is for a pod of green, and what is of green's VNI: it
// is dropped and counted.
func expectNetworkHostile(t *testing.T, one, two *several) {
	t.Helper()
	node := status(t, one.network("blue")).Node
	own := must(net.ParseMAC(node.VtepMAC))(t)
	peer := listenUDP(t, two.Host.Node, netip.AddrPortFrom(two.Host.Addr, 0))
	defer peer.Close()
	drops := func() map[string]uint64 { return status(t, one.network("blue")).Drops }
	was := drops()
	inner := hostile.InnerUDP(two.pods["blue"].Addr, one.pods["green"].Addr, 0, 40)
	forged := hostile.InnerUDP(two.pods["green"].Addr, one.pods["blue"].Addr, 0, 40)
	fine := hostile.InnerUDP(two.pods["blue"].Addr, one.pods["blue"].Addr, 0, 40)
	for _, c := range []struct {
		inner []byte
		vni   uint32
	}{{inner, 1}, {forged, 1}, {fine, 2}} {
		if _, err := peer.WriteToUDPAddrPort(hostile.VXLAN{Flags: 8, VNI: c.vni, Dst: own, Src: net.HardwareAddr{2, 0, 0, 0, 0, 1}, EtherType: 0x0800, Inner: c.inner}.Bytes(), netip.AddrPortFrom(one.Host.Addr, node.Port)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 5*time.Second, func() error {
		now := drops()
		for _, reason := range []string{"inner-destination", "inner-source", "vxlan-vni"} {
			if now[reason] != was[reason]+1 {
				return fmt.Errorf("drops %v after %v: want one more %s", now, was, reason)
			}
		}
		return nil
	})
}

// expectCommands asks the process's own socket.
func expectCommands(t *testing.T, s *several) {
	t.Helper()
	ctx := t.Context()
	all := s.status(t)
	if len(all.Networks) != 3 || all.Error != "" || all.Config != s.file {
		t.Errorf("status: %+v", all)
	}
	for i, name := range []string{"blue", "green", "red"} {
		if n := all.Networks[i]; n.Name != name || n.State != "running" || n.Control != s.network(name).Control || n.Status.Node.TUN != "mu-"+name || len(n.Status.Peers) != peersOf(name) {
			t.Errorf("status of %s: %+v", name, n)
		}
	}
	expectWords(t, must(s.Command(ctx, "status"))(t), "3 of 3 networks running", "network red (--net red)", "10.3.0.0/16")
	green := must(s.Command(ctx, "status", "--net", "green"))(t)
	expectWords(t, green, "of 10.2.0.0/16", "VNI 2 port 8473")
	if strings.Contains(green, "10.1.0.0/16") {
		t.Errorf("status of green:\n%s", green)
	}
	expectWords(t, must(s.network("green").Command(ctx, "status"))(t), "of 10.2.0.0/16")
	expectWords(t, must(s.Command(ctx, "top", "--once", "--interval", "200ms", "--net", "green"))(t), "of 10.2.0.0/16", "VNI 2 port 8473", "outbound")
	expectWords(t, must(s.Command(ctx, "route", s.pods["red"].Addr.String()))(t), "local")
	for _, c := range []struct{ args, want string }{
		{"status --net purple", "there is no network purple: --net takes one of blue, green, red"},
		{"route 10.3.255.1 --net blue", "does not lie in the overlay 10.1.0.0/16"},
		{"top --once", "choose one with --net: blue, green, red"},
		{"route 192.0.2.1", "choose one with --net: blue, green, red"},
	} {
		out, err := s.Command(ctx, strings.Fields(c.args)...)
		if err == nil || !strings.Contains(out, c.want) {
			t.Errorf("%s: %v, %s; want %q", c.args, err, out, c.want)
		}
	}
	for _, args := range [][]string{
		{"run", "--config", s.file, "--replace"},
		{"run", "--replace", "--control", s.network("blue").Control, "--state-dir", filepath.Join(s.StateDir, "blue")},
		{"run", "--config", s.file, "--tun-name", "x"},
		{"cleanup", "--control", s.Control, "--state-dir", s.StateDir},
	} {
		out, err := s.Host.Run(ctx, append([]string{s.Bin}, args...)...)
		if status := new(lab.ExitError); !errors.As(err, &status) || status.Status != 1 {
			t.Errorf("%v: %v, %s; want it refused", args, err, out)
		}
	}
}

// expectCaptured wants a capture of one network, in both families, to have that network's packets alone; and a trace to find the
// network by its addresses.
func expectCaptured(t *testing.T, one, two *several) {
	t.Helper()
	seen := captureWith(t, one.Muslin, "", "--net", "green", "--point", "inner,outer", "icmp or icmp6 or udp")
	for _, name := range []string{"green", "blue", "red"} {
		expectPing(t, one.pods[name].Node, two.pods[name].Addr, 2)
	}
	text := seen.interrupt(t)
	from, to := one.pods["green"].Addr.String(), two.pods["green"].Addr.String()
	expectWords(t, text, "capturing inner, outer on mu-green", from+" > "+to+": icmp echo request", ".8473: vxlan 2: "+from+" > "+to+": icmp echo request")
	for _, other := range []string{"blue", "red"} {
		if strings.Contains(text, one.pods[other].Addr.String()+" ") {
			t.Errorf("a capture of green has packets of %s:\n%s", other, text)
		}
	}
	if out, err := one.Command(t.Context(), "capture", "--count", "1"); err == nil || !strings.Contains(out, "choose one with --net: blue, green, red") {
		t.Errorf("a capture of no network: %v, %s", err, out)
	}
	if r, err := muslinTrace(t, one.Muslin, from, to); err != nil || r.Answer != "echo reply" {
		t.Errorf("trace: %+v, %v", r, err)
	}
}

// expectReloads has both processes take other networks while packets and a stream of others flow: these notice nothing.
func expectReloads(t *testing.T, one, two *several, networks map[string]string) {
	t.Helper()
	ctx := t.Context()
	both := []*several{one, two}
	again := "read the file with the networks again"
	blue := labtest.StartProbe(t, one.pods["blue"], two.pods["blue"])
	stream := make(chan error, 1)
	go func() {
		a, b := one.pods["green"], two.pods["green"]
		flow, err := lab.IperfTCP(ctx, a.Node, b.Node, b.Addr, 3)
		if err == nil && flow.BitsPerSecond < lab.Modest(10e6) {
			err = fmt.Errorf("%+v", flow)
		}
		stream <- err
	}()

	// red goes, gold comes, and pink, which has the port of blue.
	delete(networks, "red")
	networks["pink"] = "network: 10.6.0.0/16, backend: {Type: vxlan, VNI: 3}"
	networks["gold"] = "network: 10.4.0.0/16, backend: host-gw"
	for _, s := range both {
		s.reload(t, networks, again)
	}
	for _, s := range both {
		if err := s.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"gold", "pink"} {
			waitPeers(t, s.network(name), 1)
			s.addPod(t, name)
		}
		for _, command := range [][]string{{"ip", "link", "show"}, {"iptables-save"}, {"nft", "list", "ruleset"}, {"ip", "route"}} {
			out := must(s.Host.Run(ctx, command...))(t)
			if strings.Contains(out, "mu-red") || strings.Contains(out, "FWD-red") || strings.Contains(out, "muslin-red") || strings.Contains(out, "10.3.0.0/16") {
				t.Errorf("red is still there in %v:\n%s", command, out)
			}
		}
		if value, err := s.Host.ReadSysctl("net/ipv4/ip_forward"); err != nil || value != "1" {
			t.Errorf("forwarding after a network went: %q, %v", value, err)
		}
	}
	expectPing(t, one.pods["gold"].Node, two.pods["gold"].Addr, 3)
	expectPing(t, one.pods["pink"].Node, two.pods["pink"].Addr, 3)
	was := one.apart(t)
	var pings sync.WaitGroup
	pings.Go(func() { expectNoAnswer(t, one.pods["gold"].Node, two.pods["blue"].Addr) })
	pings.Go(func() { expectNoAnswer(t, one.pods["green"].Node, one.pods["gold"].Addr) })
	pings.Go(func() { expectNoAnswer(t, one.pods["blue"].Node, two.pods["pink"].Addr) })
	pings.Wait()
	if now := one.apart(t); now != was+3 {
		t.Errorf("%d packets kept apart after the reload, want 3", now-was)
	}

	// A file that is wrong changes nothing.
	if err := os.WriteFile(one.file, []byte("networks:\n  blue: {ifcae: eth0}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	one.hangUp(t, "is wrong, and all stay as they are")
	if s := one.status(t); !strings.Contains(s.Error, one.file+":2: network blue: unknown setting") || len(s.Networks) != 4 {
		t.Errorf("status after a wrong file: %+v", s)
	}

	// One that cannot run does not keep the others from it; one that is changed starts again, alone.
	networks["gray"] = "network: 10.5.0.0/16, iface: eth9"
	networks["gold"] += ", ip-masq: true"
	one.reload(t, networks, "changed=[gold]")
	eventually(t, 5*time.Second, func() error {
		all := one.status(t)
		for _, n := range all.Networks {
			if failed := n.Name == "gray"; failed != (n.State == "failed") || failed != strings.Contains(n.Error, "eth9") || failed != (n.Again != nil) || !failed && n.State != "running" {
				return fmt.Errorf("network %s: %s %s %v", n.Name, n.State, n.Error, n.Again)
			}
		}
		if all.Error != "" {
			return errors.New(all.Error)
		}
		// Between two looks it may be starting again.
		for _, word := range []string{"4 of 5 networks running", "does not run, and starts again in"} {
			if text := must(one.Command(ctx, "status"))(t); !strings.Contains(text, word) {
				return fmt.Errorf("%q is missing in:\n%s", word, text)
			}
		}
		return nil
	})
	expectPing(t, one.pods["gold"].Node, two.pods["gold"].Addr, 1)
	delete(networks, "gray")
	delete(networks, "pink")
	one.reload(t, networks, "removed=\"[gray pink]\"")

	if err := <-stream; err != nil {
		t.Errorf("the stream in green: %v", err)
	}
	if r := blue.Stop(); r.Err != nil || r.Lost != 0 || r.Sent < 1000 {
		t.Errorf("the probe in blue: %v, %v", r, r.Err)
	} else {
		t.Logf("the probe in blue: %v", r)
	}
}
