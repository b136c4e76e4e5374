//go:build linux

package host

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"muslin/tunnel/netnstest"
)

// holderEnv makes the test binary a process that holds the TUN of that name until its input ends.
const holderEnv = "MUSLIN_TEST_HOLD_TUN"

func TestMain(m *testing.M) {
	if name := os.Getenv(holderEnv); name != "" {
		os.Exit(beHolder(name))
	}
	os.Exit(m.Run())
}

func beHolder(name string) int {
	f, err := attachTUN(name)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer f.Close()
	fmt.Println("held")
	io.Copy(io.Discard, os.Stdin)
	return 0
}

// holdTUN starts another process that holds a TUN of that name, in this namespace or in one of its own,
// until the test ends.
func holdTUN(t *testing.T, name string, elsewhere bool) (pid int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), holderEnv+"="+name)
	if elsewhere {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	return cmd.Process.Pid
}

// newNamespace moves the test's goroutine and its thread into a fresh network namespace, which ends with
// the test.
func newNamespace(t *testing.T) {
	t.Helper()
	netnstest.Enter(t)
	// Without duplicate address detection an interface is at rest as soon as it is up.
	run(t, "ip link set lo up; sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.default.router_solicitations=0")
}

// run executes a shell command in the thread's namespace and returns what it printed.
func run(t *testing.T, command string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", command).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// veth makes an interface with a peer, up, with the addresses.
func veth(t *testing.T, name string, addrs ...string) {
	t.Helper()
	run(t, "ip link add "+name+" type veth peer name "+name+"p && ip link set "+name+" up && ip link set "+name+"p up")
	for _, a := range addrs {
		run(t, "ip addr add "+a+" dev "+name)
	}
}

// openTestTUN attaches to a TUN of that name, making it when there is none.
func openTestTUN(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := attachTUN(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func attachTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	r, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	// The runtime watches the file only from the attachment on: before, a TUN cannot be polled.
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, r); err != nil {
		return nil, fmt.Errorf("TUNSETIFF %q: %w", name, err)
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun"), nil
}

// snapshot is everything in the namespace that Setup could change, as text.
func snapshot(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{
		// An anycast route has the metric 0 only from the kernel itself (anycast.go).
		// The queue discipline's name follows from having been up once, and a carrier comes a moment after its link: neither is anybody's
		// setting.
		"link":      run(t, "ip -d link | sed 's/qdisc [a-z_]*//; s/ state [A-Z]*//; s/NO-CARRIER,//'"),
		"addr":      run(t, "ip addr | sed 's/qdisc [a-z_]*//; s/ state [A-Z]*//; s/NO-CARRIER,//'"),
		"route":     run(t, "ip route show table all | sed 's/^\\(anycast .* metric\\) 1024/\\1 0/'"),
		"iptables":  run(t, "iptables-save 2>/dev/null | grep -v '^#' | sed 's/\\[[0-9:]*\\]//'"),
		"ip6tables": run(t, "ip6tables-save 2>/dev/null | grep -v '^#' | sed 's/\\[[0-9:]*\\]//'"),
		"nft":       run(t, "nft list ruleset 2>/dev/null"),
	}
	for _, pattern := range []string{"ipv4/ip_forward", "ipv4/conf/*/*", "ipv6/conf/*/*"} {
		paths, err := filepath.Glob(sysctlRoot + "/" + pattern)
		if err != nil || len(paths) == 0 {
			t.Fatalf("no switches match %s: %v", pattern, err)
		}
		for _, p := range paths {
			if v, err := readSysctl(p); err == nil && filepath.Base(p) != "stable_secret" {
				out[p] = v
			}
		}
	}
	return out
}

// changed lists the keys that differ.
func changed(a, b map[string]string) []string {
	var out []string
	for k := range a {
		if v, ok := b[k]; !ok || v != a[k] {
			out = append(out, k)
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}

func wantSame(t *testing.T, before map[string]string) {
	t.Helper()
	after := snapshot(t)
	for _, k := range changed(before, after) {
		t.Errorf("%s is not as before\n--- before\n%s\n--- after\n%s", k, before[k], after[k])
	}
}

func contains(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q is missing in:\n%s", w, text)
		}
	}
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// deadline is far enough for a busy machine and near enough for a hanging test.
func deadline() time.Time { return time.Now().Add(20 * time.Second) }

// eventually waits until ok, looking often.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := deadline(); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// sameNamespace returns run for another goroutine: its commands enter this thread's namespace, and what
// they print comes back even when they fail.
func sameNamespace(t *testing.T) func(string) string {
	t.Helper()
	path := fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
	return func(command string) string {
		out, _ := exec.Command("nsenter", "--net="+path, "sh", "-c", command).CombinedOutput()
		return string(out)
	}
}
