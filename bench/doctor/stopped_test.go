//go:build linux

package doctor

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// A daemon that is stopped by a signal, one that has ended, and one that cannot start; the doctor is told what it could learn
// of a daemon that runs.
//
//	h1 (etcd) ── br0 ─┬─ h2 (muslin) ── p2a
//	                  └─ h3 (muslin) ── p3a
func TestDaemon(t *testing.T) {
	lab.RequireTool(t, "setpriv")
	s := newScene(t, 2, "")
	m := s.nodes[0]
	h := m.Host
	node := labtest.Status(t, m).Node
	flags := here(m, s.etcd)

	daemon := pidOf(t, m)
	if err := syscall.Kill(daemon, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	examine(t, m).first(t, "daemon-wedged", "", fmt.Sprintf("kill -CONT %d", daemon), "signal")
	if err := syscall.Kill(daemon, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s.wellAgain(t, m)

	// Who may not ask the daemon is told so, and nothing is made of what only the daemon could explain.
	asNobody := []string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"}
	if r := examineUnder(t, &lab.Muslin{Host: h, Bin: forEverybody(t, m.Bin), Control: m.Control}, asNobody, flags...); r.exit != 3 || len(r.Findings) != 0 {
		t.Errorf("as a user without rights, exit status %d, want 3 and no finding: %s", r.exit, r.raw)
	}

	other := otherVersion(t, m.Bin)
	r := examine(t, &lab.Muslin{Host: h, Bin: other, Control: m.Control})
	r.first(t, "version-skew", h.Addr.String(), "--replace", r.version())

	if err := m.Stop(); err != nil {
		t.Fatal(err)
	}
	examine(t, m, flags...).first(t, "daemon-stopped", h.Addr.String(), m.Control, "systemctl start muslin")

	// What no daemon can start with comes before that.
	noTUN := []string{"sh", "-c", `mount -t tmpfs none /dev/net && exec "$@"`, "sh"}
	examineUnder(t, m, noTUN, flags...).first(t, "tun-device-missing", h.Addr.String(), "/dev/net/tun", "modprobe tun")
	noRights := []string{"setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"}
	examineUnder(t, m, noRights, flags...).first(t, "capability-missing", h.Addr.String(), "CAP_NET_ADMIN", "--cap-add=NET_ADMIN")

	held := labtest.ListenUDP(t, h.Node, netip.AddrPortFrom(h.Addr, node.Port), 1<<16)
	examine(t, m, flags...).first(t, "udp-port-held", h.Addr.String(), "8472", fmt.Sprint(os.Getpid()))
	held.Close()

	sh(t, h.Node, "ip link add flannel.1 type vxlan id 1 dev eth0 dstport 8472 nolearning; ip link set flannel.1 up")
	examine(t, m, flags...).first(t, "vxlan-port-held", h.Addr.String(), "flannel.1", "8472", "ip link del flannel.1")
	sh(t, h.Node, "ip link del flannel.1; ip link add other7 type vxlan id 7 dev eth0 dstport 8472; ip link set other7 up")
	examine(t, m, flags...).first(t, "vxlan-port-held", h.Addr.String(), "other7", "VNI 7")
	sh(t, h.Node, "ip link del other7")

	sh(t, h.Node, fmt.Sprintf("ip link add br-0123456789ab type bridge; ip addr add %s/24 dev br-0123456789ab; ip link set br-0123456789ab up", node.Subnet.Masked().Addr().Next()))
	examine(t, m, flags...).first(t, "daemon-stopped", h.Addr.String()) // its own pods' bridge
	sh(t, h.Node, "ip addr add 10.244.254.1/24 dev br-0123456789ab")
	examine(t, m, flags...).first(t, "subnet-overlap-docker", h.Addr.String(), "10.244.254.0/24", "no daemon can start")
	sh(t, h.Node, "ip link del br-0123456789ab")

	labtest.StartMuslin(t, h, "--etcd-endpoints", labtest.Endpoint(s.lab.Host(1)))
	s.wellAgain(t, m)
	if _, err := os.Stat(filepath.Join(m.StateDir, "doctor.json")); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(filepath.Join(m.StateDir, "doctor.json")); err == nil && info.Mode().Perm() != 0o600 {
		t.Errorf("doctor.json has mode %v, want 0600", info.Mode())
	}
}

// version is the command's.
func (r *report) version() string {
	_, rest, _ := strings.Cut(r.raw, `"version": "`)
	version, _, _ := strings.Cut(rest, `"`)
	return version
}

// pidOf is the daemon's process.
func pidOf(t *testing.T, m *lab.Muslin) int {
	t.Helper()
	return labtest.Status(t, m).Process.PID
}

// otherVersion is a copy of the binary that says that it is of another version, of as many letters.
func otherVersion(t *testing.T, bin string) string {
	t.Helper()
	out := labtest.Must(exec.Command(bin, "version").Output())(t)
	version := []byte(strings.Fields(string(out))[1])
	content := labtest.Must(os.ReadFile(bin))(t)
	if len(version) < 5 || !bytes.Contains(content, version) {
		t.Fatalf("version %q is not to be found in %s", version, bin)
	}
	path := filepath.Join(t.TempDir(), "muslin")
	if err := os.WriteFile(path, bytes.ReplaceAll(content, version, bytes.Repeat([]byte("x"), len(version))), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// forEverybody copies the program to where every user may start it.
func forEverybody(t *testing.T, bin string) string {
	t.Helper()
	dir := labtest.Must(os.MkdirTemp("", "muslin"))(t)
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "muslin")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, labtest.Must(os.ReadFile(bin))(t), 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

// An offload that the kernel has and that spoils packets: here what is written to a TUN device in one long piece comes to
// nothing. And a receive buffer that is small and runs over:
//
//	h1 (etcd) ── br0 ─┬─ h2 (muslin, with a buffer that cannot be made larger) ── p2a
//	                  └─ h3 (muslin) ── p3a
func TestKernelRefuses(t *testing.T) {
	s := newScene(t, 1, "")
	h3, m3 := s.nodes[0].Host, s.nodes[0]
	examineUnder(t, m3, swallowing(60_000)).first(t, "offload-broken", h3.Addr.String(), "tun-tcp-gro", "self-test", "--features=-tun-tcp-gro")
	examine(t, m3).well(t)

	l := s.lab
	h := l.Host(1)
	m := labtest.Must(h.LaunchMuslinUnder(refusing(unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, unix.EPERM), labtest.Bin, "--etcd-endpoints", labtest.Endpoint(h)))(t)
	if err := m.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	pod := labtest.AddPod(t, m, "a")
	labtest.WaitPeers(t, m, 1)
	labtest.WaitPeers(t, m3, 1)
	examine(t, m).well(t) // small, but nothing is lost
	pid := pidOf(t, m)
	// It stands still while the other node sends more than fits.
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	flood(t, s.pods[0], netip.AddrPortFrom(pod.Addr, 9), 12_000)
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, 40*time.Second, func() error {
		if n := labtest.Status(t, m).Drops["socket-overflow"]; n < 100 {
			return fmt.Errorf("%d datagrams were lost, want hundreds", n)
		}
		return nil
	})
	examine(t, m).first(t, "socket-buffer", h.Addr.String(), "receive-buffer", "net.core.rmem_max")
}

// flood sends so many datagrams of a kilobyte.
func flood(t *testing.T, from *lab.Pod, to netip.AddrPort, n int) {
	t.Helper()
	conn := labtest.ListenUDP(t, from.Node, netip.AddrPortFrom(from.Addr, 0), 1<<16)
	for i := range n {
		if _, err := conn.WriteToUDPAddrPort(make([]byte, 1000), to); err != nil {
			t.Fatal(err)
		}
		if i%50 == 0 { // or the sender's own queue runs over
			time.Sleep(time.Millisecond)
		}
	}
}

// The table of connections is full. Its limit is the machine's, and its contents a network namespace's: the limit is lowered
// for a moment to what one host here has filled, which is more than any other has.
//
//	h1 (etcd) ── br0 ─┬─ h2 (muslin) ── p2a
//	                  └─ h3 (muslin) ── p3a
func TestConntrack(t *testing.T) {
	lab.RequireTool(t, "nft")
	const limit = "/proc/sys/net/netfilter/nf_conntrack_max"
	before := strings.TrimSpace(string(labtest.Must(os.ReadFile(limit))(t)))
	s := newScene(t, 1, "")
	m := s.nodes[0]
	sh(t, m.Host.Node, "nft 'table inet theirs { chain leaving { type filter hook output priority 0; ct state established accept; }; }'")
	const n = 6000
	for port := range n {
		conn := labtest.ListenUDP(t, m.Host.Node, netip.AddrPortFrom(m.Host.Addr, 0), 1<<12)
		if _, err := conn.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(s.lab.Host(1).Addr, uint16(20000+port))); err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	count, err := strconv.Atoi(labtest.Must(m.Host.ReadSysctl("net/netfilter/nf_conntrack_count"))(t))
	if err != nil || count < n/2 {
		t.Fatalf("%d connections are tracked, %v; want %d", count, err, n)
	}
	examine(t, m).well(t)
	t.Cleanup(func() { _ = os.WriteFile(limit, []byte(before), 0o644) })
	if err := os.WriteFile(limit, fmt.Append(nil, count), 0o644); err != nil {
		t.Fatal(err)
	}
	r := examine(t, m)
	if err := os.WriteFile(limit, []byte(before), 0o644); err != nil {
		t.Fatal(err)
	}
	r.first(t, "conntrack-full", m.Host.Addr.String(), "nf_conntrack_max", "sysctl -w net.netfilter.nf_conntrack_max=")
}
