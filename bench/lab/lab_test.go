//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// helperEnv makes this test binary build a lab, print its ID, and wait to be killed.
const helperEnv = "MUSLIN_LAB_TEST_OWNER"

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		owner()
	}
	os.Exit(m.Run())
}

func owner() {
	l, err := New(context.Background(), Config{Hosts: 1})
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	p, err := l.Host(1).Start("sleep", nil, "sleep", "1000")
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println(l.ID(), l.Dir(), p.PID())
	if os.Getenv(helperEnv) == "panic" {
		panic("as a test would")
	}
	select {}
}

func newLab(t *testing.T, cfg Config) *Lab {
	t.Helper()
	RequireRoot(t)
	l, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// h1 ── br0 ── h2, with a pod on each that no overlay joins.
func TestTopology(t *testing.T) {
	t.Parallel()
	l := newLab(t, Config{Hosts: 2, MTU: 1400, DefaultRoute: true})
	ctx := t.Context()
	r, err := l.Host(1).Ping(ctx, l.Host(2).Addr, PingOptions{Count: 3, Size: 1400, DontFragment: true})
	if err != nil || r.Received != 3 || r.Average == 0 {
		t.Errorf("ping of 1400 bytes between hosts: %+v, %v; want 3 answers", r, err)
	}
	if r, err := l.Host(1).Ping(ctx, l.Host(2).Addr, PingOptions{Count: 1, Size: 1401, DontFragment: true}); err != nil || r.Received != 0 {
		t.Errorf("ping of 1401 bytes between hosts: %+v, %v; want no answer", r, err)
	}
	if r, err := l.Host(1).Ping(ctx, l.Host(2).Addr, PingOptions{Count: 2, Size: 5000}); err != nil || r.Received != 2 {
		t.Errorf("ping in fragments: %+v, %v; want 2 answers", r, err)
	}
	if r, err := l.Host(1).Ping(ctx, netip.MustParseAddr("198.18.0.77"), PingOptions{Count: 2}); err != nil || r != (PingResult{Sent: 2}) {
		t.Errorf("ping of nobody: %+v, %v; want 2 sent, none back", r, err)
	}
	out, err := l.Host(1).Run(ctx, "ip", "route", "show", "default")
	if err != nil || !strings.Contains(out, "via 198.18.0.254 dev eth0") {
		t.Errorf("default route: %q, %v", out, err)
	}

	network := PodNetwork{Gateway: netip.MustParsePrefix("10.244.7.1/24"), MTU: 1350}
	for i, want := range []string{"10.244.7.2", "10.244.7.3"} {
		pod, err := l.Host(1).AddPod(ctx, string(rune('a'+i)), network)
		if err != nil {
			t.Fatal(err)
		}
		if pod.Addr.String() != want {
			t.Errorf("pod %d has %v, want %s", i, pod.Addr, want)
		}
		out, err := pod.Run(ctx, "ip", "link", "show", "eth0")
		if err != nil || !strings.Contains(out, "mtu 1350") {
			t.Errorf("pod's eth0: %q, %v; want MTU 1350", out, err)
		}
	}
	pods := l.Host(1).Pods()
	if r, err := pods[0].Ping(ctx, pods[1].Addr, PingOptions{Count: 2}); err != nil || r.Received != 2 {
		t.Errorf("ping between pods of one host: %+v, %v", r, err)
	}
	if r, err := pods[0].Ping(ctx, network.Gateway.Addr(), PingOptions{Count: 2}); err != nil || r.Received != 2 {
		t.Errorf("ping to the gateway: %+v, %v", r, err)
	}
	if value, err := l.Host(1).ReadSysctl("net/ipv4/ip_forward"); err != nil || value != "0" {
		t.Errorf("forwarding of a fresh host: %q, %v; want 0", value, err)
	}
}

// Two labs with the same addresses, side by side; then the kernel's VXLAN device on both hosts of the
// first, as flannel would have it:
//
//	p1a ── cni0 ─ h1 ─ flannel.1 ── br0 ── flannel.1 ─ h2 ─ cni0 ── p2a
func TestKernelVXLANBesideAnotherLab(t *testing.T) {
	t.Parallel()
	RequireTool(t, "bridge", "iperf3")
	other := newLab(t, Config{Hosts: 1})
	l := newLab(t, Config{Hosts: 2})
	ctx := t.Context()
	if other.ID() == l.ID() {
		t.Fatalf("two labs have the ID %s", l.ID())
	}
	var vxlans []*KernelVXLAN
	for i, h := range l.Hosts() {
		v, err := h.SetupKernelVXLAN(ctx, 1, 8472, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i + 1), 0}), 24))
		if err != nil {
			t.Fatal(err)
		}
		if v.MTU != 1450 {
			t.Errorf("MTU of %s: %d, want 1450", v.Device, v.MTU)
		}
		if _, err := h.AddPod(ctx, "a", v.PodNetwork()); err != nil {
			t.Fatal(err)
		}
		vxlans = append(vxlans, v)
	}
	for i, v := range vxlans {
		peer := vxlans[1-i]
		if err := v.AddPeer(ctx, peer.Subnet, peer.MAC, peer.Host.Addr); err != nil {
			t.Fatal(err)
		}
	}
	from, to := l.Host(1).Pods()[0], l.Host(2).Pods()[0]
	if r, err := from.Ping(ctx, to.Addr, PingOptions{Count: 5}); err != nil || r.Received != 5 {
		t.Errorf("ping over the kernel's VXLAN: %+v, %v", r, err)
	}
	tcp, err := IperfTCP(ctx, from.Node, to.Node, to.Addr, 1)
	if err != nil || tcp.Bytes == 0 {
		t.Errorf("TCP over the kernel's VXLAN: %+v, %v", tcp, err)
	}
	udp, err := IperfUDP(ctx, from.Node, to.Node, to.Addr, 1000, 1000, 20e6)
	// Some loss is the machine's: the socket of iperf3 holds only some ninety datagrams.
	if err != nil || udp.Packets != 1000 || udp.Lost > 500 {
		t.Errorf("UDP over the kernel's VXLAN: %+v, %v", udp, err)
	}
	want := `{"PublicIP":"198.18.0.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"` + vxlans[1].MAC + `"}}`
	if got := vxlans[1].LeaseValue(1); got != want {
		t.Errorf("lease value %s, want %s", got, want)
	}
	if got := vxlans[1].LeaseKey("/p"); got != "/p/subnets/10.244.2.0-24" {
		t.Errorf("lease key %s", got)
	}
}

func TestRunAndStart(t *testing.T) {
	t.Parallel()
	l := newLab(t, Config{Hosts: 1})
	ctx := t.Context()
	h := l.Host(1)

	_, err := h.Run(ctx, "sh", "-c", "echo oh dear >&2; exit 3")
	exit, ok := errors.AsType[*ExitError](err)
	if !ok || exit.Status != 3 || !strings.Contains(err.Error(), "oh dear") || !strings.Contains(err.Error(), "ip netns exec "+h.NetNS) {
		t.Errorf("failing command: %v; want its command line, status 3 and output", err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := h.Run(short, "sh", "-c", "sleep 100"); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 5*time.Second {
		t.Errorf("command past its deadline: %v after %v", err, time.Since(start))
	}

	p, err := h.Start("talker", []string{"WORD=hello"}, "sh", "-c", "trap 'exit 7' TERM; echo $WORD; while :; do sleep 0.01; done")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.WaitOutput(ctx, "hello"); err != nil {
		t.Error(err)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if status, err := p.Wait(ctx); err != nil || status != 7 {
		t.Errorf("exit status %d, %v; want 7", status, err)
	}
	if err := p.WaitOutput(ctx, "never said"); err == nil || !strings.Contains(err.Error(), "status 7") {
		t.Errorf("waiting for what an ended process does not say: %v", err)
	}
}

func TestDo(t *testing.T) {
	t.Parallel()
	l := newLab(t, Config{Hosts: 2})
	var server *net.UDPConn
	if err := l.Host(2).Do(func() (err error) {
		server, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(l.Host(2).Addr, 9000)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	var client net.Conn
	if err := l.Host(1).Do(func() (err error) {
		client, err = net.Dial("udp4", "198.18.0.2:9000")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	server.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, from, err := server.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != "hello" || from.Addr() != l.Host(1).Addr {
		t.Errorf("got %q from %v, %v", buf[:n], from, err)
	}
	here, there := readLink(t, "/proc/thread-self/ns/net"), ""
	for range 100 { // enough to meet the process's first thread
		if err := l.Host(1).Do(func() error { there = readLink(t, "/proc/thread-self/ns/net"); return nil }); err != nil {
			t.Fatal(err)
		}
		if here == there || readLink(t, "/proc/thread-self/ns/net") != here {
			t.Errorf("namespace of the test %s, inside Do %s", here, there)
		}
	}
}

func readLink(t *testing.T, path string) string {
	link, err := os.Readlink(path)
	if err != nil {
		t.Error(err)
	}
	return link
}

func TestSnapshot(t *testing.T) {
	t.Parallel()
	l := newLab(t, Config{Hosts: 1})
	h := l.Host(1)
	snapshot := func() string {
		s, err := h.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := snapshot()
	if again := snapshot(); again != before {
		t.Errorf("two snapshots of one state differ:\n%s\n%s", before, again)
	}
	changes := map[string][2]string{
		"link":   {"ip link add d0 type bridge", "ip link del d0"},
		"route":  {"ip route add 192.0.2.0/24 dev eth0 proto 218", "ip route del 192.0.2.0/24 dev eth0"},
		"sysctl": {"sysctl -qw net.ipv4.ip_forward=1", "sysctl -qw net.ipv4.ip_forward=0"},

		"interface's sysctl": {"sysctl -qw net.ipv6.conf.eth0.accept_ra=2", "sysctl -qw net.ipv6.conf.eth0.accept_ra=1"},
		"rule of IPv6":       {"ip -6 rule add pref 7 to fd77::/64 lookup 77", "ip -6 rule del pref 7"},
		"route in a table":   {"ip -6 route add fd77::/64 dev eth0 table 77", "ip -6 route del fd77::/64 dev eth0 table 77"},
	}
	if MissingTools("ip6tables-legacy") == nil {
		changes["legacy rule"] = [2]string{"ip6tables-legacy -A FORWARD -s fd77::1 -j ACCEPT", "ip6tables-legacy -D FORWARD -s fd77::1 -j ACCEPT"}
		changes["legacy policy"] = [2]string{"ip6tables-legacy -P FORWARD DROP", "ip6tables-legacy -P FORWARD ACCEPT"}
	}
	if MissingTools("nft", "iptables") == nil {
		changes["firewall rule"] = [2]string{"iptables -A FORWARD -s 192.0.2.1 -j ACCEPT", "iptables -D FORWARD -s 192.0.2.1 -j ACCEPT"}
		changes["firewall policy"] = [2]string{"iptables -P FORWARD DROP", "iptables -P FORWARD ACCEPT"}
		changes["firewall table"] = [2]string{"nft add table ip mine", "nft delete table ip mine"}
	}
	for name, change := range changes {
		if _, err := h.Run(t.Context(), strings.Fields(change[0])...); err != nil {
			t.Fatal(err)
		}
		if snapshot() == before {
			t.Errorf("%s: the snapshot did not notice `%s`", name, change[0])
		}
		if _, err := h.Run(t.Context(), strings.Fields(change[1])...); err != nil {
			t.Fatal(err)
		}
		if after := snapshot(); after != before {
			t.Errorf("%s: after `%s`:\n%s\nwant\n%s", name, change[1], after, before)
		}
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t, Config{Hosts: 2})
	if _, err := l.Host(1).AddPod(t.Context(), "a", PodNetwork{Gateway: netip.MustParsePrefix("10.1.1.1/24"), MTU: 1450}); err != nil {
		t.Fatal(err)
	}
	p, err := l.Host(2).Start("sleep", nil, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	// A daemon that left its process group and whose parent is gone.
	out, err := l.Host(2).Run(t.Context(), "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!")
	if err != nil {
		t.Fatal(err)
	}
	if left := l.Leftovers(); len(left) != 6 { // sw, h1, h2, p1a, directory, state file
		t.Errorf("an open lab consists of %v, want 6 things", left)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error("second Close:", err)
	}
	if left := l.Leftovers(); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if p.Running() {
		t.Error("the process still runs")
	}
	expectGone(t, strings.TrimSpace(out))
	if _, err := l.Host(1).Run(context.Background(), "true"); !errors.Is(err, ErrClosed) {
		t.Errorf("Run after Close: %v, want ErrClosed", err)
	}
	if _, err := l.Host(1).Start("late", nil, "true"); !errors.Is(err, ErrClosed) {
		t.Errorf("Start after Close: %v, want ErrClosed", err)
	}
}

func expectGone(t *testing.T, pid string) {
	t.Helper()
	if !poll(5*time.Second, func() bool {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		// An orphan that is dead but that nobody has waited for yet is gone as well.
		return errors.Is(err, os.ErrNotExist) || strings.Contains(string(stat), ") Z ")
	}) {
		t.Errorf("process %s is still there", pid)
	}
}

func TestNewGivesUpCleanly(t *testing.T) {
	t.Parallel()
	RequireRoot(t)
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Millisecond) // in the midst of 50 hosts
	defer cancel()
	l, err := New(ctx, Config{Hosts: 50, Dir: dir})
	if l != nil || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("New with a deadline that passes: %v, %v", l, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	id := strings.TrimSuffix(strings.Fields(err.Error())[2], ":")
	if left := (&Lab{id: id, dir: dir + "/gone"}).Leftovers(); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	for _, hosts := range []int{-1, 0, 201} {
		if _, err := New(t.Context(), Config{Hosts: hosts}); err == nil || !strings.Contains(err.Error(), "1 to 200") {
			t.Errorf("New with %d hosts: %v", hosts, err)
		}
	}
}

// However the owner ends, its guard cleans up.
func TestOwnerDies(t *testing.T) {
	t.Parallel()
	RequireRoot(t)
	for how, end := range map[string]func(*os.Process) error{
		"killed":  func(p *os.Process) error { return p.Kill() },
		"ctrl-c":  func(p *os.Process) error { return syscall.Kill(-p.Pid, syscall.SIGINT) },
		"hang up": func(p *os.Process) error { return syscall.Kill(-p.Pid, syscall.SIGHUP) },
		"panic":   func(*os.Process) error { return nil },
	} {
		t.Run(how, func(t *testing.T) {
			cmd, l, pid := startOwner(t, how)
			if err := end(cmd.Process); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // status is the signal's
			if !poll(10*time.Second, func() bool { return len(l.Leftovers()) == 0 }) {
				t.Errorf("left behind: %v", l.Leftovers())
			}
			expectGone(t, pid)
		})
	}
}

func startOwner(t *testing.T, how string) (*exec.Cmd, *Lab, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"="+how)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	var id, dir, pid string
	if _, err := fmt.Fscan(stdout, &id, &dir, &pid); err != nil || !strings.HasPrefix(filepath.Base(dir), "mlab-"+id) {
		t.Fatalf("owner said %q %q %q, %v", id, dir, pid, err)
	}
	return cmd, &Lab{id: id, dir: dir}, pid
}

// The guard is killed before the owner: Sweep has to do its work, but not before the owner is dead.
func TestSweep(t *testing.T) {
	t.Parallel()
	RequireRoot(t)
	cmd, l, pid := startOwner(t, "swept")
	guards := 0
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", cmd.Process.Pid))
	for _, task := range tasks {
		children, err := os.ReadFile(task)
		if err != nil {
			t.Fatal(err)
		}
		for child := range strings.FieldsSeq(string(children)) {
			line, _ := os.ReadFile("/proc/" + child + "/cmdline")
			if !strings.Contains(string(line), "muslin-lab-guard") {
				continue
			}
			guards++
			var n int
			fmt.Sscan(child, &n)
			if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	if guards != 1 {
		t.Fatalf("found %d guards, want 1", guards)
	}
	if swept, err := Sweep(); err != nil || strings.Contains(fmt.Sprint(swept), l.id) || len(l.Leftovers()) == 0 {
		t.Fatalf("Sweep with a living owner: %v, %v, left %v", swept, err, l.Leftovers())
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if len(l.Leftovers()) == 0 {
		t.Fatal("the lab went away without its guard: this test shows nothing")
	}
	if _, err := Sweep(); err != nil {
		t.Error(err)
	}
	if left := l.Leftovers(); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	expectGone(t, pid)
}

// A lab whose guard is dead is cleaned all the same when it is closed.
func TestCloseWithoutGuard(t *testing.T) {
	t.Parallel()
	RequireRoot(t)
	l, err := New(t.Context(), Config{Hosts: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.guard.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if left := l.Leftovers(); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
