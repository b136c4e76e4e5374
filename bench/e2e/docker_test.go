//go:build linux

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// dockerCommands are what dockerd gives to iptables at its start and changes something with, in its order, as recorded
// from Debian's docker.io 20.10.24+dfsg1 with Debian's iptables 1.8.9; nft and legacy variants get the same. %s is the
// subnet of docker0. What it asks before (-C) is left out. The policy it sets only where it had to switch forwarding on;
// here it does so after muslin, too, as a dockerd that was there before and is started again would find it.
const dockerCommands = `-t nat -N DOCKER
-t filter -N DOCKER
-t filter -N DOCKER-ISOLATION-STAGE-1
-t filter -N DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-t filter -P FORWARD DROP
-t filter -N DOCKER-USER
-A DOCKER-USER -j RETURN
-I FORWARD -j DOCKER-USER
-t nat -I POSTROUTING -s %s ! -o docker0 -j MASQUERADE
-t nat -I DOCKER -i docker0 -j RETURN
-I FORWARD -i docker0 -o docker0 -j ACCEPT
-I FORWARD -i docker0 ! -o docker0 -j ACCEPT
-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-t nat -A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER ! --dst 127.0.0.0/8
-I FORWARD -o docker0 -j DOCKER
-I FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-I FORWARD -j DOCKER-ISOLATION-STAGE-1
-t filter -I DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-t filter -I DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-D FORWARD -j DOCKER-USER
-I FORWARD -j DOCKER-USER`

// dockerdEnv names a dockerd to run in the place of the recorded commands, its helpers beside it in the PATH.
const dockerdEnv = "MUSLIN_DOCKERD"

// dockerMounts gives a dockerd what `ip netns exec` hides, which is the cgroups, and hides the machine's /run.
const dockerMounts = `mount -t tmpfs none /run && if grep -q cgroup2 /proc/filesystems && ! grep -q '^devices.*1$' /proc/cgroups
then mount -t cgroup2 none /sys/fs/cgroup
else mount -t tmpfs none /sys/fs/cgroup && for c in $(awk '$4 == 1 { print $1 }' /proc/cgroups)
  do mkdir /sys/fs/cgroup/$c && mount -t cgroup -o $c none /sys/fs/cgroup/$c || rmdir /sys/fs/cgroup/$c; done
fi && exec "$@"`

// withIPTables puts a variant of iptables in the place of iptables.
func withIPTables(variant string) []string {
	return []string{"sh", "-c", `mount -t tmpfs -o mode=755 none /mnt && ln -s "$(command -v ` + variant + `)" /mnt/iptables && export PATH="/mnt:$PATH" && exec "$@"`, "sh"}
}

// dockerHost is a host on which Docker is.
type dockerHost struct {
	*lab.Host
	wrap []string // with its iptables
}

func (d *dockerHost) in(t *testing.T, command ...string) string {
	t.Helper()
	return must(d.Output(t.Context(), append(slices.Clone(d.wrap), command...)...))(t)
}

// start starts Docker, on a docker0 that may be there already.
func (d *dockerHost) start(t *testing.T, bridge netip.Prefix, flags ...string) {
	t.Helper()
	if bin := os.Getenv(dockerdEnv); bin != "" {
		d.startReal(t, bin, flags...)
		return
	}
	if _, err := d.Run(t.Context(), "ip", "link", "show", "docker0"); err != nil {
		runIn(t, d.Node, "ip", "link", "add", "docker0", "type", "bridge")
		runIn(t, d.Node, "ip", "addr", "add", bridge.String(), "dev", "docker0")
		runIn(t, d.Node, "ip", "link", "set", "docker0", "up")
	}
	var script strings.Builder
	script.WriteString("set -e\n")
	for line := range strings.Lines(dockerCommands) {
		line = strings.TrimSpace(line)
		if strings.Contains(line, "MASQUERADE") {
			if slices.Contains(flags, "--ip-masq=false") {
				continue
			}
			line = fmt.Sprintf(line, bridge.Masked())
		}
		fmt.Fprintf(&script, "iptables --wait %s\n", line)
	}
	d.in(t, "sh", "-c", script.String())
}

func (d *dockerHost) startReal(t *testing.T, bin string, flags ...string) {
	t.Helper()
	dir := filepath.Join(d.Dir, "docker")
	args := append([]string{bin, "--data-root", dir + "/data", "--exec-root", dir + "/exec", "--pidfile", dir + "/pid", "--host", "unix://" + dir + "/sock"}, flags...)
	p := must(d.Start("dockerd", nil, slices.Concat(d.wrap, []string{"sh", "-c", dockerMounts, "sh"}, args)...))(t)
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
	})
	eventually(t, 30*time.Second, func() error {
		if _, err := os.Stat(dir + "/sock"); err != nil || !strings.Contains(p.Output(), "API listen") {
			return fmt.Errorf("dockerd is not ready: %s", p.Output())
		}
		return nil
	})
}

// rules are all that iptables lists but ours.
func (d *dockerHost) rules(t *testing.T) (theirs string, ours int) {
	t.Helper()
	var kept []string
	for _, table := range []string{"filter", "nat"} {
		for line := range strings.Lines(d.in(t, "iptables", "-t", table, "-S")) {
			if strings.Contains(line, "MUSLIN-") {
				ours++
				continue
			}
			kept = append(kept, table+" "+line)
		}
	}
	return strings.Join(kept, ""), ours
}

// Docker on h2, whose FORWARD policy is DROP. Before muslin its bridge is another one than the pods', as where CNI makes
// containers; after muslin the pods are on docker0, in the node's subnet.
//
//	p1a ── cni0 ─ h1 (muslin, embedded etcd) ── br0 ── h2 (muslin, Docker) ─ cni0 or docker0 ── p2a
func TestDocker(t *testing.T) {
	t.Parallel()
	for _, variant := range []string{"iptables", "iptables-legacy"} {
		for _, first := range []bool{true, false} {
			name := variant + ", Docker after muslin"
			if first {
				name = variant + ", Docker before muslin"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				lab.RequireTool(t, variant)
				testDocker(t, variant, first)
			})
		}
	}
}

func testDocker(t *testing.T, variant string, first bool) {
	l := newLab(t, 2)
	h1 := l.Host(1)
	h2 := &dockerHost{Host: l.Host(2), wrap: withIPTables(variant)}
	own := netip.MustParsePrefix("172.17.0.1/16")
	start := func() { h2.start(t, own) }
	if first {
		start()
	}
	m1 := startMuslin(t, h1, "--embedded-etcd", "--network", network, "--backend", "vxlan", "--ip-masq")
	flags := []string{"--etcd-endpoints", endpoint(h1), "--ip-masq", "--iptables-resync", "1"}
	m2 := must(h2.LaunchMuslinUnder(h2.wrap, labtest.Bin, flags...))(t)
	if err := m2.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitPeers(t, m1, 1)
	a, b := addPod(t, m1, "a"), addPod(t, m2, "a")
	if !first {
		expectPassing(t, a, b)
		for _, c := range []string{"link set cni0 down", "link set cni0 name docker0", "link set docker0 up"} {
			runIn(t, h2.Node, append([]string{"ip"}, strings.Fields(c)...)...)
		}
		bridge := must(m2.PodNetwork())(t).Gateway
		start = func() {
			h2.start(t, bridge, "--bip="+bridge.String(), fmt.Sprintf("--mtu=%d", must(m2.PodNetwork())(t).MTU), "--ip-masq=false")
		}
		start()
	}
	dockers, ours := h2.rules(t)
	expectWords(t, dockers, "-A FORWARD -j DOCKER-USER")
	if first || os.Getenv(dockerdEnv) == "" { // where forwarding was on before it, dockerd leaves the policy alone
		expectWords(t, dockers, "-P FORWARD DROP")
	}
	if ours != 2*2+8 {
		t.Errorf("%d rules and chains of ours, want 12", ours)
	}
	expectPassing(t, a, b)

	// Docker's rules go, too; its policy stays. Then it comes back, and is in front again.
	h2.in(t, "iptables", "-F", "FORWARD")
	eventuallyPings(t, a.Node, b.Addr)
	expectPassing(t, a, b)
	if os.Getenv(dockerdEnv) == "" {
		var again strings.Builder
		for line := range strings.Lines(dockers) {
			if rule, ok := strings.CutPrefix(strings.TrimSpace(line), "filter -A FORWARD "); ok {
				fmt.Fprintf(&again, "iptables -I FORWARD %d %s\n", 1+strings.Count(again.String(), "\n"), rule)
			}
		}
		h2.in(t, "sh", "-ec", again.String())
		expectPassing(t, a, b)
		if now, _ := h2.rules(t); now != dockers {
			t.Errorf("Docker's rules are not as they were:\n%s\nbefore:\n%s", now, dockers)
		}
	}
	if warnings := strings.Join(status(t, m2).Warnings, "\n"); strings.Contains(warnings, "FORWARD") {
		t.Errorf("warnings: %s", warnings)
	}

	dockers, _ = h2.rules(t)
	m2.Kill()
	out := h2.in(t, labtest.Bin, "cleanup", "--control", m2.Control, "--state-dir", m2.StateDir)
	expectWords(t, out, "removed the iptables rules")
	if !first || os.Getenv(dockerdEnv) != "" {
		// Docker found forwarding on, or has switched it on itself.
		if on := must(h2.ReadSysctl("net/ipv4/ip_forward"))(t); on != "1" {
			t.Errorf("ip_forward is %s after cleanup, and Docker relies on it:\n%s", on, out)
		}
	}
	if now, ours := h2.rules(t); now != dockers || ours != 0 {
		t.Errorf("after cleanup %d rules of ours, and these:\n%s\nbefore:\n%s", ours, now, dockers)
	}
}

// expectPassing wants packets between two pods with their addresses as they are, and b's to h1 with its host's.
func expectPassing(t *testing.T, a, b *lab.Pod) {
	t.Helper()
	expectPing(t, a.Node, b.Addr, 2)
	expectPing(t, b.Node, a.Addr, 2)
	for _, way := range []struct {
		from     *lab.Pod
		to       *lab.Node
		at, want netip.Addr
	}{
		{a, b.Node, b.Addr, a.Addr},
		{b, a.Node, a.Addr, b.Addr},
		{b, a.Host.Node, a.Host.Addr, b.Host.Addr},
	} {
		if got := sourceSeen(t, way.from.Node, way.to, way.at); got != way.want {
			t.Errorf("from %s to %s: the source is %v, want %v", way.from.Name, way.at, got, way.want)
		}
	}
}

// sourceSeen sends datagrams until one arrives, and returns the source that it has there; the zero value: none did.
func sourceSeen(t *testing.T, from, to *lab.Node, at netip.Addr) netip.Addr {
	t.Helper()
	in := listenUDP(t, to, netip.AddrPortFrom(at, 0))
	defer in.Close()
	var out net.Conn
	if err := from.Do(func() (err error) {
		out, err = net.Dial("udp4", in.LocalAddr().String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	for range 5 {
		if _, err := out.Write([]byte("who am I?")); err != nil {
			continue // what an ICMP error said of the last one
		}
		if err := in.SetReadDeadline(time.Now().Add(lab.Patience(500 * time.Millisecond))); err != nil {
			t.Fatal(err)
		}
		if _, source, err := in.ReadFromUDPAddrPort(make([]byte, 100)); err == nil {
			return source.Addr()
		}
	}
	return netip.Addr{}
}
