//go:build linux

package host

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// config is a host's Setup with everything on. The host of these tests:
//
//	eth0  192.0.2.2/24, default route via 192.0.2.1
//	pods  10.244.5.1/24 (the pods' bridge), 10.244.5.0/24 being the leased subnet
//	muslin0  10.244.5.0/32, 10.244.0.0/16
func config(stateDir string) SetupConfig {
	return SetupConfig{
		TUN: "muslin0", Address: prefix("10.244.5.0/32"), MTU: 1450,
		Network: prefix("10.244.0.0/16"), Subnet: prefix("10.244.5.0/24"),
		BlackholeRoute: true, ForwardRules: true, IPMasq: true, MasqRandomFully: true,
		StateDir: stateDir,
	}
}

// newHost makes that host, with the tables of iptables' nft variant in place: the first command of
// anybody makes them, and nobody ever takes them away.
func newHost(t *testing.T) {
	newNamespace(t)
	veth(t, "eth0", "192.0.2.2/24")
	veth(t, "pods", "10.244.5.1/24")
	run(t, "ip route add default via 192.0.2.1")
	run(t, "iptables -N HERS && iptables -A FORWARD -j HERS && iptables -t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE")
	eventually(t, "no tentative address", func() bool { return !strings.Contains(run(t, "ip addr"), "tentative") })
}

var bothTools = []struct {
	name string
	nft  bool
}{{"iptables", false}, {"nftables", true}}

func TestSetupAndUndo(t *testing.T) {
	for _, strict := range []string{"0", "1", "2"} {
		for _, tool := range bothTools {
			t.Run(tool.name+" rp_filter "+strict, func(t *testing.T) {
				newHost(t)
				run(t, "sysctl -qw net.ipv4.conf.all.rp_filter="+strict+" net.ipv4.conf.default.rp_filter=1")
				openTestTUN(t, "muslin0")
				before := snapshot(t)
				c := config(t.TempDir())
				c.UseNFTables = tool.nft

				s, err := Setup(c)
				if err != nil {
					t.Fatal(err)
				}
				checkSetUp(t, map[string]string{"0": "2", "1": "2", "2": "1"}[strict]) // the default is 1
				if _, err := os.Stat(journalPath(c.StateDir)); err != nil {
					t.Error(err)
				}
				for _, f := range s.Features() {
					if !f.On || f.Reason != tool.name {
						t.Errorf("feature %+v", f)
					}
				}
				// Everything there is to restore must have been changed, or the comparison below says little.
				during := changed(before, snapshot(t))
				for _, k := range []string{"link", "addr", "route", "nft", ipForward, sysctlRoot + "/ipv4/conf/eth0/forwarding"} {
					if !slices.Contains(during, k) {
						t.Errorf("Setup did not change %s", k)
					}
				}
				for range 2 {
					if err := s.Undo(); err != nil {
						t.Fatal(err)
					}
					wantSame(t, before)
				}
				left, err := os.ReadDir(c.StateDir)
				if err != nil || len(left) != 0 {
					t.Errorf("state directory holds %v, %v", left, err)
				}
			})
		}
	}
}

// Kernels before 5.14 have a broadcast route for the lowest address of the pods' subnet, which is ours. It is made
// by hand here, as those kernels make it, so that the newer one shows the same.
func TestSetupBesideBroadcastRoute(t *testing.T) {
	newHost(t)
	run(t, "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=1")
	const broadcast = "broadcast 10.244.5.0 dev pods"
	if !strings.Contains(run(t, "ip route show table local"), broadcast) {
		run(t, "ip route add table local proto kernel scope link src 10.244.5.1 "+broadcast)
	}
	openTestTUN(t, "muslin0")
	before := snapshot(t)
	s, err := Setup(config(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	checkSetUp(t, "2")
	contains(t, run(t, "ip route get 10.244.5.0"), "local 10.244.5.0")
	for range 2 { // it is not added again and again
		did, err := s.converge()
		if err != nil || len(did) != 0 {
			t.Errorf("converge: %q, %v", did, err)
		}
	}
	if err := s.Undo(); err != nil {
		t.Fatal(err)
	}
	wantSame(t, before)
}

func checkSetUp(t *testing.T, rpFilter string) {
	t.Helper()
	checkSetUp4(t, rpFilter)
	if got, err := readSysctl(sysctlRoot + "/ipv6/conf/muslin0/disable_ipv6"); err != nil || got != "1" {
		t.Errorf("disable_ipv6 of the TUN is %s, %v", got, err)
	}
	if v6 := run(t, "ip -6 addr show muslin0"); v6 != "" {
		t.Errorf("IPv6 on the TUN: %s", v6)
	}
}

func checkSetUp4(t *testing.T, rpFilter string) {
	t.Helper()
	contains(t, run(t, "ip link show muslin0"), "mtu 1450", "qlen 1000", "UP")
	contains(t, run(t, "ip -4 addr show muslin0"), "inet 10.244.5.0/32")
	if got, want := strings.TrimSpace(run(t, "ip route show proto 218 | sed 's/ *$//'")),
		"10.244.0.0/16 dev muslin0 scope link src 10.244.5.0\nblackhole 10.244.5.0/24 metric 1000000"; got != want {
		t.Errorf("routes\n%s\nwant\n%s", got, want)
	}
	for path, want := range map[string]string{
		ipForward: "1",
		sysctlRoot + "/ipv4/conf/muslin0/rp_filter":    rpFilter,
		sysctlRoot + "/ipv4/conf/muslin0/accept_local": "1",
	} {
		if got, err := readSysctl(path); err != nil || got != want {
			t.Errorf("%s = %q, %v, want %s", path, got, err, want)
		}
	}
	contains(t, run(t, "ip route get 10.244.9.9"), "dev muslin0", "src 10.244.5.0")
	contains(t, run(t, "ip route get 10.244.5.9"), "dev pods")
}

func TestUndoAfterTUNClosed(t *testing.T) {
	newHost(t)
	before := snapshot(t)
	f := openTestTUN(t, "muslin0")
	s, err := Setup(config(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := s.Undo(); err != nil {
		t.Fatal(err)
	}
	wantSame(t, before)
}

// What another decides meanwhile is not overruled: forwarding was on before, or is turned by hand.
func TestUndoLeavesOthersDecisions(t *testing.T) {
	newHost(t)
	openTestTUN(t, "muslin0")
	run(t, "sysctl -qw net.ipv4.ip_forward=1")
	s, err := Setup(config(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	run(t, "iptables -A FORWARD -s 203.0.113.0/24 -j DROP; ip route add 203.0.113.0/24 via 192.0.2.1")
	if err := s.Undo(); err != nil {
		t.Fatal(err)
	}
	if got, _ := readSysctl(ipForward); got != "1" {
		t.Errorf("ip_forward = %s: it was on before", got)
	}
	contains(t, run(t, "iptables-save"), "-A FORWARD -j HERS", "-A FORWARD -s 203.0.113.0/24 -j DROP", "-A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE")
	contains(t, run(t, "ip route"), "203.0.113.0/24 via 192.0.2.1")
}

// One interface forwarded already while the host did not: turning ip_forward back would turn it off.
func TestUndoKeepsForwardingOfOneInterface(t *testing.T) {
	newHost(t)
	openTestTUN(t, "muslin0")
	run(t, "sysctl -qw net.ipv4.conf.eth0.forwarding=1 net.ipv4.conf.all.accept_redirects=0")
	before := snapshot(t)
	s, err := Setup(config(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Undo(); err != nil {
		t.Fatal(err)
	}
	wantSame(t, before)
}

func TestSetupFails(t *testing.T) {
	newHost(t)
	openTestTUN(t, "muslin0")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "ip route add 10.244.0.0/16 dev eth0")
	before := snapshot(t)
	for _, c := range []struct {
		name  string
		spoil func(*SetupConfig)
		words []string
	}{
		{"no TUN", func(c *SetupConfig) { c.TUN = "muslin9" }, []string{"muslin9", "no such device"}},
		{"no state directory", func(c *SetupConfig) { c.StateDir = "" }, []string{"--state-dir"}},
		{"unwritable state directory", func(c *SetupConfig) { c.StateDir = file + "/x" }, []string{file, "--state-dir"}},
		{"IPv6 network", func(c *SetupConfig) { c.Network = prefix("fd00::/48") }, []string{"Network", "fd00::/48", "IPv4"}},
		{"no subnet", func(c *SetupConfig) { c.Subnet = netip.Prefix{} }, []string{"Subnet", "IPv4"}},
		{"bad MTU", func(c *SetupConfig) { c.MTU = 10 }, []string{"MTU", "muslin0"}},
		{"another's route", func(*SetupConfig) {}, []string{"route 10.244.0.0/16", "ip route show 10.244.0.0/16"}},
	} {
		cfg := config(t.TempDir())
		c.spoil(&cfg)
		s, err := Setup(cfg)
		if err == nil {
			t.Errorf("%s: no error", c.name)
			s.Undo()
			continue
		}
		contains(t, err.Error(), c.words...)
		wantSame(t, before)
	}
}

// A killed daemon leaves a host as Setup made it, and a journal. Its TUN goes with it, or not.
func TestCleanupAfterKill(t *testing.T) {
	for _, tool := range bothTools {
		for _, persistent := range []bool{false, true} {
			name := tool.name
			if persistent {
				name += ", persistent TUN"
			}
			t.Run(name, func(t *testing.T) {
				newHost(t)
				before := snapshot(t)
				if persistent {
					run(t, "ip tuntap add dev muslin0 mode tun")
				}
				f := openTestTUN(t, "muslin0")
				c := config(t.TempDir())
				c.UseNFTables = tool.nft
				if _, err := Setup(c); err != nil {
					t.Fatal(err)
				}
				f.Close()
				if len(changed(before, snapshot(t))) == 0 {
					t.Fatal("nothing is left to clean up")
				}
				var logged bytes.Buffer
				did, err := Cleanup(c.StateDir, slog.New(slog.NewTextHandler(&logged, nil)))
				if err != nil {
					t.Fatal(err)
				}
				wantSame(t, before)
				all := strings.Join(did, "\n")
				contains(t, all, "removed the "+tool.name+" rules", "blackhole route 10.244.5.0/24", "ip_forward back to 0")
				if persistent {
					contains(t, all, "deleted the TUN device muslin0")
				}
				contains(t, logged.String(), "ip_forward back to 0")

				did, err = Cleanup(c.StateDir, nil)
				if err != nil || len(did) != 0 {
					t.Errorf("once more: did %q, error %v", did, err)
				}
				wantSame(t, before)
			})
		}
	}
}

func TestCleanupWithoutJournal(t *testing.T) {
	newHost(t)
	before := snapshot(t)
	run(t, "ip route add 10.244.0.0/16 dev eth0 proto 218; nft add table ip muslin; iptables -N MUSLIN-FWD; iptables -A FORWARD -m comment --comment 'muslin forward' -j MUSLIN-FWD")
	did, err := Cleanup(t.TempDir()+"/never", nil)
	if err != nil || len(did) != 3 {
		t.Errorf("did %q, error %v, want three things", did, err)
	}
	wantSame(t, before)
}

// The TUN of a process that runs stays, be it one that /proc shows in this namespace or one that took the
// file descriptor elsewhere.
func TestCleanupLeavesHeldTUN(t *testing.T) {
	for _, c := range []struct {
		name string
		hold func(t *testing.T)
	}{
		{"here", func(t *testing.T) { holdTUN(t, "muslin0", false) }},
		{"elsewhere", func(t *testing.T) {
			f := openTestTUN(t, "muslin0")
			holder := exec.Command("cat")
			holder.ExtraFiles = []*os.File{f}
			holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
			in, err := holder.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := holder.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { in.Close(); holder.Wait() })
			f.Close()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			newHost(t)
			c.hold(t)
			cfg := config(t.TempDir())
			if _, err := Setup(cfg); err != nil {
				t.Fatal(err)
			}
			if _, err := Cleanup(cfg.StateDir, nil); err != nil {
				t.Fatal(err)
			}
			contains(t, run(t, "ip addr show muslin0"), "10.244.5.0/32")
		})
	}
}

func editJournal(t *testing.T, dir string, edit func(*journal)) {
	t.Helper()
	j, err := readJournal(dir)
	if err != nil || j == nil {
		t.Fatalf("journal %v, %v", j, err)
	}
	edit(j)
	if err := j.save(); err != nil {
		t.Fatal(err)
	}
}

// After a reboot the switches are what today's configuration says, whatever the journal remembers.
func TestCleanupAfterReboot(t *testing.T) {
	newHost(t)
	f := openTestTUN(t, "muslin0")
	c := config(t.TempDir())
	c.ForwardRules, c.IPMasq = false, false
	if _, err := Setup(c); err != nil {
		t.Fatal(err)
	}
	f.Close()
	editJournal(t, c.StateDir, func(j *journal) { j.Boot = "another" })
	if _, err := Cleanup(c.StateDir, nil); err != nil {
		t.Fatal(err)
	}
	if got, _ := readSysctl(ipForward); got != "1" {
		t.Errorf("ip_forward = %s, want it left alone", got)
	}
	if _, err := os.Stat(journalPath(c.StateDir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the journal is still there: %v", err)
	}
}

func TestCleanupInAnotherNamespace(t *testing.T) {
	newHost(t)
	openTestTUN(t, "muslin0")
	c := config(t.TempDir())
	s, err := Setup(c)
	if err != nil {
		t.Fatal(err)
	}
	editJournal(t, c.StateDir, func(j *journal) { j.NetNS = "net:[1]" })
	before := snapshot(t)
	_, err = Cleanup(c.StateDir, nil)
	if err == nil {
		t.Fatal("no error")
	}
	contains(t, err.Error(), "network namespace", "ip netns exec")
	wantSame(t, before)
	if err := s.Undo(); err != nil {
		t.Fatal(err)
	}

	// A container that starts again has a new namespace and its old state directory.
	if err := s.journal.save(); err != nil {
		t.Fatal(err)
	}
	editJournal(t, c.StateDir, func(j *journal) { j.NetNS = "net:[1]" })
	if s, err = Setup(c); err != nil {
		t.Fatalf("Setup with the journal of another namespace: %v", err)
	}
	if err := s.Undo(); err != nil {
		t.Fatal(err)
	}
}

func TestBadJournal(t *testing.T) {
	newNamespace(t)
	openTestTUN(t, "muslin0")
	for name, content := range map[string]string{
		"not JSON":    "{",
		"new version": `{"version":9}`,
		"empty":       "",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(journalPath(dir), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, cleanupErr := Cleanup(dir, nil)
		_, setupErr := Setup(config(dir))
		for _, err := range []error{cleanupErr, setupErr} {
			if err == nil {
				t.Errorf("%s: no error", name)
				continue
			}
			contains(t, err.Error(), journalPath(dir), "delete it")
		}
	}
}

// The next daemon starts where a killed one left off: the oldest value of a switch is what counts, and
// what the new lease does not need goes.
func TestSetupAfterKill(t *testing.T) {
	newHost(t)
	before := snapshot(t)
	dir := t.TempDir()
	f := openTestTUN(t, "muslin0")
	if _, err := Setup(config(dir)); err != nil {
		t.Fatal(err)
	}
	f.Close()

	f = openTestTUN(t, "muslin0")
	c := config(dir)
	c.Subnet, c.Address = prefix("10.244.6.0/24"), prefix("10.244.6.0/32")
	s, err := Setup(c)
	if err != nil {
		t.Fatal(err)
	}
	if r := run(t, "ip route show proto 218"); strings.Contains(r, "10.244.5.0") || !strings.Contains(r, "blackhole 10.244.6.0/24") {
		t.Errorf("routes:\n%s", r)
	}
	if err := s.Undo(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	wantSame(t, before)
}

// Whatever Setup does, the journal that says so is on disk before.
func TestJournalComesFirst(t *testing.T) {
	newHost(t)
	openTestTUN(t, "muslin0")
	l, err := netlink.LinkByName("muslin0")
	if err != nil {
		t.Fatal(err)
	}
	c := config(t.TempDir())
	j, err := c.plan(l)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.save(); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t)
	// Killed between the journal and the first change: undoing nothing is no error.
	if _, err := Cleanup(c.StateDir, nil); err != nil {
		t.Fatal(err)
	}
	wantSame(t, before)

	var fields map[string]any
	if err := j.save(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(journalPath(c.StateDir))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &fields); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"version", "boot", "netns", "tun", "address", "routes", "sysctls", "firewall"} {
		if v, ok := fields[k]; !ok || v == "" {
			t.Errorf("journal lacks %s", k)
		}
	}
}
