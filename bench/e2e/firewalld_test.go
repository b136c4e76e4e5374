//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// firewalldEnv names a directory into which Debian's packages firewalld, python3-firewall and python3-nftables were
// unpacked (`make deps-firewalld`): installed, the first would start, and be the firewall of this machine.
const firewalldEnv = "MUSLIN_FIREWALLD"

// busConfig is a system bus for nobody but firewalld and its client.
const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path=%s</listen>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
  </policy>
</busconfig>
`

// firewalld is one in a host of the lab, with its default zone and a bus of its own.
type firewalld struct {
	host      *lab.Host
	root, dir string
}

func newFirewalld(t *testing.T, h *lab.Host) *firewalld {
	t.Helper()
	root := os.Getenv(firewalldEnv)
	switch {
	case root == "" && os.Getenv("CI") != "":
		t.Fatalf("%s is not set (with CI set this is a failure): run `make deps-firewalld test-e2e`, or set it to none", firewalldEnv)
	case root == "" || root == "none":
		t.Skipf("no firewalld: run `make deps-firewalld test-e2e`")
	}
	lab.RequireTool(t, "dbus-daemon", "nft")
	f := &firewalld{host: h, root: root, dir: filepath.Join(h.Dir, "firewalld")}
	if err := os.MkdirAll(f.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(f.dir, "etc"), os.DirFS(filepath.Join(root, "etc/firewalld"))); err != nil {
		t.Fatal(err)
	}
	client := "#!/bin/sh\nexec /usr/bin/python3 " + filepath.Join(root, "usr/bin/firewall-cmd") + " \"$@\"\n"
	for name, content := range map[string]string{"bus.conf": fmt.Sprintf(busConfig, f.dir+"/bus"), "firewall-cmd": client} {
		if err := os.WriteFile(filepath.Join(f.dir, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func (f *firewalld) env() []string {
	return []string{
		"DBUS_SYSTEM_BUS_ADDRESS=unix:path=" + f.dir + "/bus", "PATH=" + f.dir + ":" + os.Getenv("PATH"),
		"PYTHONPATH=" + f.root + "/usr/lib/python3/dist-packages", "PYTHONDONTWRITEBYTECODE=1",
	}
}

// sh runs a command line with firewall-cmd in its PATH.
func (f *firewalld) sh(t *testing.T, line string) (string, error) {
	t.Helper()
	return f.host.Run(t.Context(), append(append([]string{"env"}, f.env()...), "sh", "-c", line)...)
}

func (f *firewalld) start(t *testing.T) {
	t.Helper()
	must(f.host.Start("dbus", nil, "dbus-daemon", "--config-file="+f.dir+"/bus.conf", "--nofork", "--nopidfile"))(t)
	eventually(t, 10*time.Second, func() error {
		_, err := os.Stat(f.dir + "/bus")
		return err
	})
	daemon := must(f.host.Start("firewalld", f.env(), "sh", "-c", `mount -t tmpfs none /run && exec "$@"`, "sh", "/usr/bin/python3", f.root+"/usr/sbin/firewalld", "--nofork", "--nopid",
		"--system-config", f.dir+"/etc", "--default-config", f.root+"/usr/lib/firewalld", "--log-file", f.dir+"/log"))(t)
	eventually(t, 20*time.Second, func() error {
		out, err := f.sh(t, "firewall-cmd --state")
		if err != nil {
			return fmt.Errorf("%w: %s; its log: %s", err, out, daemon.Output())
		}
		return nil
	})
}

// rules are firewalld's own.
func (f *firewalld) rules(t *testing.T) string {
	t.Helper()
	return must(f.host.Output(t.Context(), "nft", "--stateless", "list", "table", "inet", "firewalld"))(t)
}

// firewalld's default zone rejects what is forwarded, in a table and a chain where no rule of muslin's counts, and the
// overlay's UDP port, too. muslin changes nothing there, and says what would.
//
//	p1a ── cni0 ─ h1 (muslin, embedded etcd) ── br0 ── h2 (muslin, firewalld) ─ cni0 ── p2a
func TestFirewalld(t *testing.T) {
	t.Parallel()
	for _, first := range []bool{true, false} {
		name := "firewalld after muslin"
		if first {
			name = "firewalld before muslin"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testFirewalld(t, first)
		})
	}
}

func testFirewalld(t *testing.T, first bool) {
	l := newLab(t, 2)
	h1, h2 := l.Host(1), l.Host(2)
	f := newFirewalld(t, h2)
	if first {
		f.start(t)
	}
	m1 := startMuslin(t, h1, "--embedded-etcd", "--network", network, "--backend", "vxlan")
	m2 := startMuslin(t, h2, "--etcd-endpoints", endpoint(h1), "--ip-masq")
	waitPeers(t, m1, 1)
	a, b := addPod(t, m1, "a"), addPod(t, m2, "a")
	if !first {
		expectPassing(t, a, b)
		f.start(t)
	}
	theirs := f.rules(t)

	// Rejected, and the sender is told; what arrives from h1 does not even reach muslin.
	out, err := b.Run(t.Context(), "ping", "-n", "-c", "1", "-W", "1", a.Addr.String())
	if err == nil || !strings.Contains(out, "Packet filtered") {
		t.Errorf("ping through firewalld: %v, %s; want a rejection", err, out)
	}
	expectNoAnswer(t, a.Node, b.Addr)
	var commands []string
	eventually(t, 10*time.Second, func() error {
		commands = nil
		for _, w := range status(t, m2).Warnings {
			if strings.HasPrefix(w, "firewalld (nftables table inet firewalld, chain filter_") {
				commands = append(commands, regexp.MustCompile(`run "(.*)"`).FindStringSubmatch(w)[1])
			}
		}
		if len(commands) != 3 {
			return fmt.Errorf("warnings %q, want three about firewalld", status(t, m2).Warnings)
		}
		return nil
	})
	said := must(m2.Command(t.Context(), "status"))(t) + m2.Output()
	for _, words := range []string{
		"chain filter_FORWARD, by filter_FWD_public) rejects packets from this node's containers to other nodes'",
		"chain filter_FORWARD, by filter_FWD_public) rejects packets from other nodes to this one's containers",
		"chain filter_INPUT, by filter_IN_public) rejects the other nodes' datagrams to UDP port 8472",
	} {
		if n := strings.Count(said, words); n != 2 {
			t.Errorf("%q is said %d times in status and log, want once each:\n%s", words, n, said)
		}
	}
	if warnings := status(t, m1).Warnings; strings.Contains(strings.Join(warnings, ""), "firewall") {
		t.Errorf("h1, which has none, warns of firewalld: %q", warnings)
	}
	if now := f.rules(t); now != theirs {
		t.Errorf("firewalld's rules were changed:\n%s\nbefore:\n%s", now, theirs)
	}

	if id := firstFinding(t, m2); id != "firewalld-reject" {
		t.Errorf("the doctor's first finding is %q, want firewalld-reject", id)
	}

	// The commands as they stand there.
	for _, command := range commands {
		if out, err := f.sh(t, command); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
	}
	eventually(t, 10*time.Second, func() error {
		if warnings := strings.Join(status(t, m2).Warnings, "\n"); strings.Contains(warnings, "firewalld") {
			return fmt.Errorf("warnings: %s", warnings)
		}
		return nil
	})
	// firewalld has emptied iptables' chains, ours among them, at each reload.
	eventually(t, 10*time.Second, func() error {
		out, err := h2.Run(t.Context(), "iptables", "-t", "nat", "-S")
		if err == nil && strings.Count(out, "MUSLIN-POSTRTG") != 8 {
			err = fmt.Errorf("nat: %s", out)
		}
		return err
	})
	expectPassing(t, a, b)
	expectWell(t, l)
	expectWords(t, m2.Output(), "no other owner's firewall chain drops the overlay's packets any more")

	theirs = f.rules(t)
	m2.Kill()
	runIn(t, h2.Node, labtest.Bin, "cleanup", "--control", m2.Control, "--state-dir", m2.StateDir)
	if now := f.rules(t); now != theirs {
		t.Errorf("cleanup changed firewalld's rules:\n%s\nbefore:\n%s", now, theirs)
	}
	if out := must(h2.Run(t.Context(), "nft", "list", "ruleset"))(t); strings.Contains(strings.ToLower(out), "muslin") {
		t.Errorf("left: %s", out)
	}
}
