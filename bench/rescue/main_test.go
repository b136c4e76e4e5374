//go:build linux

package rescue

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"muslin/bench/lab"
	"muslin/bench/labtest"
	"muslin/bench/probe"
)

func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }

// promised is how long a rescue or its undoing may take from the command to the first packet.
const promised = 2 * time.Second

// flannelNode is a host whose data path is flannel's.
type flannelNode struct {
	host    *lab.Host
	subnet  netip.Prefix
	subnet6 netip.Prefix // with both families
	pod     *lab.Pod
	pod6    *lab.Pod         // the same by its IPv6 address
	file    string           // its subnet file
	kernel  *lab.KernelVXLAN // nil: flanneld set it up, or it has none
	mac6    string           // of flannel-v6.1
	daemon  *lab.Proc        // flanneld; nil: there is none
}

// The kinds of networks.
const (
	vxlan    = "vxlan"
	direct   = "vxlan with DirectRouting"
	hostGW   = "host-gw"
	dual     = "vxlan of both families"
	udp      = "udp"
	wg       = "wireguard"
	network6 = "fd00:244::/48"
)

var configs = map[string]string{
	vxlan:  labtest.VXLANConfig,
	direct: `{"Network":"` + labtest.Network + `","Backend":{"Type":"vxlan","DirectRouting":true}}`,
	hostGW: `{"Network":"` + labtest.Network + `","Backend":{"Type":"host-gw"}}`,
	dual:   `{"Network":"` + labtest.Network + `","EnableIPv6":true,"IPv6Network":"` + network6 + `","Backend":{"Type":"vxlan"}}`,
	udp:    `{"Network":"` + labtest.Network + `","Backend":{"Type":"udp"}}`,
	wg:     `{"Network":"` + labtest.Network + `","Backend":{"Type":"wireguard"}}`,
}

// scene is two flannel nodes with a pod each, and a host with etcd and nothing else. The first node is the one that breaks.
//
//	h1 (flannel) ─ eth0 ─┐           ┌─ eth0 ─ h2 (flannel)     h3 (etcd)
//	  └─ cni0 ─ p1a      └─ switch ──┴──────────────────────────┘
type scene struct {
	*testing.T
	kind  string
	lab   *lab.Lab
	etcd  *labtest.Etcd
	nodes [2]*flannelNode
	flags []string // of rescue, beside the lab's
}

// flanneld is the program of a real one; empty: nodes are set up by hand.
func flanneld() string { return os.Getenv("MUSLIN_FLANNELD") }

// newScene has flannel on both nodes, set up by hand or by a flanneld.
func newScene(t *testing.T, kind, program string) *scene {
	t.Helper()
	lab.RequireTool(t, "bridge", "etcd", "etcdctl")
	l := labtest.NewLab(t, 3)
	s := &scene{T: t, kind: kind, lab: l, etcd: labtest.StartEtcd(t, l.Host(3)), flags: []string{"--etcd-endpoints", labtest.Endpoint(l.Host(3))}}
	s.etcd.Config(t, configs[kind])
	for i := range s.nodes {
		h := l.Host(i + 1)
		s.nodes[i] = &flannelNode{host: h, file: filepath.Join(h.Dir, "subnet.env")}
		if kind == dual {
			labtest.Must(h.Run(t.Context(), "ip", "addr", "add", addr6(h)+"/64", "dev", "eth0", "nodad"))(t)
		}
		for _, path := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
			if err := h.Sysctl(path, "1"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if program == "" {
		s.byHand()
	} else {
		s.byFlanneld(program)
	}
	for _, n := range s.nodes {
		network := labtest.Must(lab.ParseSubnetEnv(string(labtest.Must(os.ReadFile(n.file))(t))))(t)
		n.pod = labtest.Must(n.host.AddPod(t.Context(), "a", network))(t)
		if kind == dual {
			n.addPod6(s)
		}
	}
	s.waitPing()
	return s
}

func addr6(h *lab.Host) string { return fmt.Sprintf("fd99::%d", h.Number) }

// addPod6 gives the pod an IPv6 address, too.
func (n *flannelNode) addPod6(s *scene) {
	s.Helper()
	gateway := n.subnet6.Addr().Next()
	pod6 := *n.pod
	pod6.Addr = gateway.Next()
	n.pod6 = &pod6
	labtest.Must(n.host.Run(s.Context(), "ip", "addr", "add", gateway.String()+"/64", "dev", "cni0", "nodad"))(s.T)
	labtest.Must(n.pod.Run(s.Context(), "ip", "addr", "add", pod6.Addr.String()+"/64", "dev", "eth0", "nodad"))(s.T)
	labtest.Must(n.pod.Run(s.Context(), "ip", "-6", "route", "add", "default", "via", gateway.String()))(s.T)
}

// byHand types what flannel does: devices, entries, leases and subnet files.
func (s *scene) byHand() {
	s.Helper()
	for i, n := range s.nodes {
		n.subnet = netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i+1))
		mtu := lab.DefaultMTU
		if s.kind != hostGW && s.kind != wg {
			n.addDevice(s)
			mtu = n.kernel.MTU
		}
		env := fmt.Sprintf("FLANNEL_NETWORK=%s\nFLANNEL_SUBNET=%s/24\n", labtest.Network, n.subnet.Addr().Next())
		if s.kind == dual {
			n.subnet6 = netip.MustParsePrefix(fmt.Sprintf("fd00:244:0:%d::/64", i+1))
			n.addDevice6(s)
			env += fmt.Sprintf("FLANNEL_IPV6_NETWORK=%s\nFLANNEL_IPV6_SUBNET=%s/64\n", network6, n.subnet6.Addr().Next())
		}
		env += fmt.Sprintf("FLANNEL_MTU=%d\nFLANNEL_IPMASQ=false\n", mtu)
		s.putLease(n)
		if err := os.WriteFile(n.file, []byte(env), 0o644); err != nil {
			s.Fatal(err)
		}
	}
	s.nodes[0].addPeer(s, s.nodes[1])
	s.nodes[1].addPeer(s, s.nodes[0])
}

// addDevice makes flannel.1.
func (n *flannelNode) addDevice(s *scene) {
	s.Helper()
	n.kernel = labtest.Must(n.host.SetupKernelVXLAN(s.Context(), 1, 8472, n.subnet))(s.T)
	// As flannel's own request for the device has it.
	labtest.Must(n.host.Run(s.Context(), "ip", "link", "set", n.kernel.Device, "txqueuelen", "0"))(s.T)
	labtest.Must(n.host.Run(s.Context(), "sysctl", "-q", "-w", "net.ipv6.conf.flannel/1.accept_ra=0"))(s.T)
}

// addDevice6 makes flannel-v6.1.
func (n *flannelNode) addDevice6(s *scene) {
	s.Helper()
	for _, command := range []string{
		"ip link add flannel-v6.1 mtu 1450 txqueuelen 0 type vxlan id 1 dev eth0 local " + addr6(n.host) + " dstport 8472 nolearning",
		"sysctl -q -w net.ipv6.conf.flannel-v6/1.accept_ra=0",
		"ip addr add " + n.subnet6.Addr().String() + "/128 dev flannel-v6.1",
		"ip link set flannel-v6.1 up",
	} {
		labtest.Must(n.host.Run(s.Context(), strings.Fields(command)...))(s.T)
	}
	n.mac6 = strings.TrimSpace(labtest.Must(n.host.Output(s.Context(), "cat", "/sys/class/net/flannel-v6.1/address"))(s.T))
}

// addPeer adds what flannel adds for a peer's lease.
func (n *flannelNode) addPeer(s *scene, peer *flannelNode) {
	s.Helper()
	var err error
	switch s.kind {
	case hostGW, direct:
		_, err = n.host.Run(s.Context(), "ip", "route", "replace", peer.subnet.String(), "via", peer.host.Addr.String(), "dev", "eth0")
	case wg:
	default:
		err = n.kernel.AddPeer(s.Context(), peer.subnet, peer.kernel.MAC, peer.host.Addr)
	}
	if err != nil {
		s.Fatal(err)
	}
	if s.kind != dual {
		return
	}
	for _, command := range []string{
		fmt.Sprintf("ip neigh replace %s lladdr %s nud permanent dev flannel-v6.1", peer.subnet6.Addr(), peer.mac6),
		fmt.Sprintf("bridge fdb replace %s dst %s dev flannel-v6.1 self permanent", peer.mac6, addr6(peer.host)),
		fmt.Sprintf("ip -6 route replace %s via %s dev flannel-v6.1 onlink", peer.subnet6, peer.subnet6.Addr()),
	} {
		labtest.Must(n.host.Run(s.Context(), strings.Fields(command)...))(s.T)
	}
}

// key is the lease's, below the prefix.
func (n *flannelNode) key() string {
	if n.subnet6.IsValid() {
		return labtest.LeaseKey(n.subnet) + "&" + strings.TrimPrefix(labtest.LeaseKey(n.subnet6), "/subnets/")
	}
	return labtest.LeaseKey(n.subnet)
}

// putLease writes a lease that lives a day, as flannel does.
func (s *scene) putLease(n *flannelNode) {
	s.Helper()
	value := fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null,"BackendType":%q}`, n.host.Addr, strings.Fields(s.kind)[0])
	switch {
	case s.kind == dual:
		value = fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":%q,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":%q},"BackendV6Data":{"VNI":1,"VtepMAC":%q}}`,
			n.host.Addr, addr6(n.host), n.kernel.MAC, n.mac6)
	case s.kind == wg:
		value = fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"AbCdEfGhIjKlMnOpQrStUvWxYz0123456789AbCdEfA=","Port":51820}}`, n.host.Addr)
	case n.kernel != nil:
		value = n.kernel.LeaseValue(1)
	}
	grant := strings.Fields(s.etcd.Do(s.T, "lease", "grant", "86400"))
	s.etcd.Do(s.T, "put", "--lease", grant[1], labtest.Prefix+n.key(), value)
}

// byFlanneld starts one on each node.
func (s *scene) byFlanneld(program string) {
	s.Helper()
	for _, n := range s.nodes {
		n.start(s, program)
		content := string(labtest.Must(os.ReadFile(n.file))(s.T))
		network := labtest.Must(lab.ParseSubnetEnv(content))(s.T)
		n.subnet = network.Gateway.Masked()
		if _, after, ok := strings.Cut(content, "FLANNEL_IPV6_SUBNET="); ok {
			n.subnet6 = netip.MustParsePrefix(strings.Fields(after)[0]).Masked()
		}
	}
}

// start starts flanneld, and waits until it has written its subnet file.
func (n *flannelNode) start(s *scene, program string) {
	s.Helper()
	os.Remove(n.file)
	n.launch(s, program)
	labtest.Eventually(s.T, 10*time.Second, func() error {
		if !n.daemon.Running() {
			s.Fatalf("flanneld ended:\n%s", n.daemon.Output())
		}
		_, err := os.Stat(n.file)
		return err
	})
}

func (n *flannelNode) launch(s *scene, program string) {
	s.Helper()
	n.daemon = labtest.Must(n.host.Start("flanneld", nil, program, "--etcd-endpoints", labtest.Endpoint(s.lab.Host(3)), "--iface", "eth0", "--subnet-file", n.file))(s.T)
}

// waitPing waits until the pods reach each other.
func (s *scene) waitPing() {
	s.Helper()
	if s.kind == wg {
		return
	}
	labtest.Eventually(s.T, 10*time.Second, func() error {
		r, err := s.nodes[0].pod.Ping(s.Context(), s.nodes[1].pod.Addr, lab.PingOptions{Count: 1})
		if err == nil && r.Received == 0 {
			err = errors.New("no answer")
		}
		return err
	})
}

// command is muslin with a subcommand and its flags on the first node, as in "rescue --undo".
func (s *scene) command(args ...string) []string {
	h := s.lab.Host(1)
	m := h.Muslin(labtest.Bin)
	own := []string{"--state-dir", m.StateDir, "--control", m.Control}
	if args[0] == "rescue" || args[0] == "run" {
		own = slices.Concat(own, []string{"--subnet-file", s.nodes[0].file}, s.flags)
	}
	return slices.Concat([]string{labtest.Bin}, args, own)
}

// launch starts the rescue's daemon, or another one, and does not wait.
func (s *scene) launch(args ...string) *lab.Muslin {
	s.Helper()
	m := s.lab.Host(1).Muslin(labtest.Bin)
	m.Proc = labtest.Must(s.lab.Host(1).Start("muslin", nil, append(s.command(args...), "--healthz-port", "8081")...))(s.T)
	return m
}

// rescue starts it and waits until it is ready.
func (s *scene) rescue(args ...string) *lab.Muslin {
	s.Helper()
	m := s.launch(append([]string{"rescue", "--yes"}, args...)...)
	if err := m.WaitReady(s.Context()); err != nil {
		s.Fatal(err)
	}
	return m
}

// undo gives everything back.
func (s *scene) undo() string {
	s.Helper()
	return labtest.Must(s.lab.Host(1).Run(s.Context(), s.command("rescue", "--undo", "--yes")...))(s.T)
}

// doctor wants a finding to be the doctor's first on the first node, with words in its summary or fix; empty: there is none.
func (s *scene) doctor(want string, words ...string) {
	s.Helper()
	h := s.lab.Host(1)
	m := h.Muslin(labtest.Bin)
	args := slices.Concat([]string{labtest.Bin, "doctor", "--output", "json", "--control", m.Control, "--state-dir", m.StateDir, "--subnet-file", s.nodes[0].file}, s.flags)
	out, err := h.Output(s.Context(), args...)
	var report struct {
		Findings []struct{ ID, Summary, Fix string }
	}
	if jsonErr := json.Unmarshal([]byte(out), &report); jsonErr != nil {
		s.Fatalf("%v, %v: %s", jsonErr, err, out)
	}
	first := ""
	if len(report.Findings) > 0 {
		first = report.Findings[0].ID
		labtest.ExpectWords(s.T, report.Findings[0].Summary+"\n"+report.Findings[0].Fix, words...)
	}
	if first != want {
		s.Errorf("the doctor's first finding is %q, want %q: %s", first, want, out)
	}
}

// snapshot is the first host with what its devices forward to, at rest.
func (s *scene) snapshot() (shot string) {
	s.Helper()
	h := s.lab.Host(1)
	labtest.Eventually(s.T, 10*time.Second, func() (err error) {
		if shot, err = h.Snapshot(s.Context()); err != nil {
			return err
		}
		if strings.Contains(shot, "tentative") {
			return errors.New("an address is tentative")
		}
		for _, args := range [][]string{{"bridge", "fdb", "show"}, {"ip", "neigh", "show", "nud", "permanent"}} {
			out, err := h.Output(s.Context(), args...)
			if err != nil {
				return err
			}
			lines := strings.Split(out, "\n")
			slices.Sort(lines)
			shot += fmt.Sprintf("# %v\n%s\n", args, strings.Join(lines, "\n"))
		}
		return nil
	})
	return shot
}

// numbers are the kernel's for links, which one that is made anew does not get back.
var numbers = regexp.MustCompile(`(?m)^\d+: `)

// anycast is the kernel's own route for the bridge, whose metric 0 nobody but the kernel can give.
var anycast = regexp.MustCompile(`(?m)^(anycast .*) metric \d+.*$`)

// expectSame wants the host as it was; of links that were made again, all but their numbers.
func (s *scene) expectSame(before string, anew bool) {
	s.Helper()
	plain := func(shot string) map[string]bool {
		shot = anycast.ReplaceAllString(shot, "$1")
		if anew {
			shot = numbers.ReplaceAllString(shot, "")
		}
		all := make(map[string]bool)
		for line := range strings.Lines(shot) {
			all[line] = true
		}
		return all
	}
	was, is := plain(before), plain(s.snapshot())
	for line := range was {
		if !is[line] {
			s.Errorf("gone: %s", line)
		}
	}
	for line := range is {
		if !was[line] {
			s.Errorf("come: %s", line)
		}
	}
}

// traffic is what must survive: a probe and a TCP stream each way.
type traffic struct {
	s       *scene
	probes  [2]*probe.Probe
	streams [2]*stream
	moments []moment
}

func (s *scene) traffic() *traffic {
	s.Helper()
	t := &traffic{s: s}
	for i := range s.nodes {
		from, to := s.nodes[i].pod, s.nodes[1-i].pod
		t.streams[i] = startStream(s.T, from, to)
		if s.kind == dual {
			from, to = s.nodes[i].pod6, s.nodes[1-i].pod6
		}
		t.probes[i] = labtest.StartProbe(s.T, from, to)
	}
	return t
}

// wait waits until n more datagrams have come, each way.
func (t *traffic) wait(n int) {
	t.s.Helper()
	for _, p := range t.probes {
		labtest.WaitReceived(t.s.T, p, n)
	}
}

// moment is when a command was given.
type moment struct {
	what string
	at   time.Time
}

// mark notes that a command is given now.
func (t *traffic) mark(what string) { t.moments = append(t.moments, moment{what, time.Now()}) }

// end ends it, and wants whole streams, and the packets back soon after each command.
func (t *traffic) end() {
	t.s.Helper()
	for i, p := range t.probes {
		r := p.Stop()
		if r.Err != nil || r.Duplicated != 0 {
			t.s.Errorf("from h%d: %s", i+1, r)
		}
		for n, m := range t.moments {
			took, lost := time.Duration(0), 0
			for _, g := range r.Gaps {
				if g.End().After(m.at) && (n == len(t.moments)-1 || g.Start.Before(t.moments[n+1].at)) {
					took, lost = g.End().Sub(m.at), lost+g.Count
				}
			}
			t.s.Logf("%s: from h%d the first packet %v after the command, %d lost", m.what, i+1, took.Round(time.Millisecond), lost)
			if took > promised && lab.Steady() {
				t.s.Errorf("%s: from h%d the first packet came %v after the command, want %v at most", m.what, i+1, took, promised)
			}
		}
	}
	for i, st := range t.streams {
		n, pause, err := st.end()
		if err != nil {
			t.s.Errorf("the TCP stream from h%d: %v", i+1, err)
		}
		t.s.Logf("TCP from h%d: %d kB, longest pause %v", i+1, n>>10, pause.Round(time.Millisecond))
	}
}

// stream is one TCP connection, through which some hundred kilobytes a second go.
type stream struct {
	group   errgroup.Group
	stop    atomic.Bool
	arrived int64
	pause   time.Duration
}

func startStream(t *testing.T, from, to *lab.Pod) *stream {
	t.Helper()
	var listener *net.TCPListener
	if err := to.Do(func() (err error) {
		listener, err = net.ListenTCP("tcp", &net.TCPAddr{IP: to.Addr.AsSlice()})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	var out net.Conn
	if err := from.Do(func() (err error) {
		out, err = net.DialTimeout("tcp", listener.Addr().String(), lab.Patience(5*time.Second))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	in := labtest.Must(listener.AcceptTCP())(t)
	t.Cleanup(func() { in.Close() })
	s := new(stream)
	s.group.Go(func() error {
		chunk := make([]byte, 1000)
		for n := byte(0); !s.stop.Load(); n++ {
			for i := range chunk {
				chunk[i] = n
			}
			if _, err := out.Write(chunk); err != nil {
				return err
			}
			time.Sleep(2 * time.Millisecond)
		}
		return out.(*net.TCPConn).CloseWrite()
	})
	s.group.Go(func() error {
		chunk := make([]byte, 1000)
		for n, last := byte(0), time.Now(); ; n++ {
			_, err := io.ReadFull(in, chunk)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if chunk[0] != n || chunk[999] != n {
				return fmt.Errorf("chunk %d is another's", s.arrived/1000)
			}
			s.arrived += 1000
			s.pause = max(s.pause, time.Since(last))
			last = time.Now()
		}
	})
	return s
}

// end returns how much has come, and after which pause at most.
func (s *stream) end() (int64, time.Duration, error) {
	s.stop.Store(true)
	err := s.group.Wait()
	return s.arrived, s.pause, err
}
