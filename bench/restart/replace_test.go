//go:build linux

package restart

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// Replacements in a row lose nothing, double nothing and change no order, whatever the daemon runs with.
func TestReplace(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		embedded bool
		flags    []string
	}{
		{"one queue", false, nil},
		{"several queues", false, []string{"--queues=3"}},
		{"one packet a call", false, []string{"--features=none"}},
		{"without virtio headers, NAPI", false, []string{"--features=-tun-vnet"}},
		{"masquerade and a blackhole route", false, []string{"--ip-masq", "--ip-blackhole-route"}},
		{"embedded etcd", true, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, c.embedded, c.flags...)
			before := labtest.Status(t, s.nodes[0])
			key := leaseOf(t, s)
			s.probe()
			for range 3 {
				s.replace(labtest.Bin)
				s.expectLockHolder(s.nodes[0].Proc)
			}
			s.stopUnharmed()
			after := labtest.Status(t, s.nodes[0])
			if after.Node.Subnet != before.Node.Subnet || after.Node.VtepMAC != before.Node.VtepMAC || after.Node.LeaseExpires != before.Node.LeaseExpires {
				t.Errorf("node %+v, was %+v", after.Node, before.Node)
			}
			// The store is used as before, and nobody wrote the lease.
			labtest.WaitHealthy(t, s.nodes[0], true)
			labtest.WaitHealthy(t, s.nodes[1], true)
			if now := leaseOf(t, s); now != key {
				t.Errorf("the lease in etcd is now\n%s, was\n%s", now, key)
			}
			s.expectEndsWell()
		})
	}
}

// leaseOf is the first node's lease as etcd has it, with its revision and version.
func leaseOf(t *testing.T, s *scene) string {
	t.Helper()
	subnet := labtest.Status(t, s.nodes[0]).Node.Subnet
	out := labtest.EtcdOn(s.lab.Host(1)).Do(t, "get", "-w", "fields", labtest.Prefix+labtest.LeaseKey(subnet))
	var lines []string
	for line := range strings.Lines(out) {
		for _, field := range []string{`"Value"`, `"ModRevision"`, `"Version"`, `"Lease"`} {
			if strings.HasPrefix(line, field) {
				lines = append(lines, line)
			}
		}
	}
	if len(lines) != 4 {
		t.Fatalf("lease of %s: %s", subnet, out)
	}
	return strings.Join(lines, "")
}

// Without an etcd there is nothing to hand over but the packets.
func TestReplaceWithPeersFile(t *testing.T) {
	t.Parallel()
	s := newScene(t, false)
	file := filepath.Join(s.lab.Host(1).Dir, "peers.json")
	list := labtest.Must(s.lab.Host(1).Output(t.Context(), labtest.Bin, "leases", "list", "--output", "peers-file", "--etcd-endpoints", labtest.Endpoint(s.lab.Host(1))))(t)
	if err := os.WriteFile(file, []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	s.probe()
	// From etcd to the file, as when etcd is gone for good; then from file to file.
	s.flags = []string{"--peers-file", file, "--network", labtest.Network}
	s.replace(labtest.Bin)
	s.replace(labtest.Bin)
	s.stopUnharmed()
	if kind := labtest.Status(t, s.nodes[0]).Store.Endpoints; len(kind) != 1 || kind[0] != file {
		t.Errorf("the store is %v, want the file", kind)
	}
	s.expectEndsWell()
}

// A TCP stream does not notice. At its full rate the lab itself reorders segments now and then, with or without
// replacements; a slower one has nothing to recover from. (A tail loss probe, which Linux sends after a pause of
// some milliseconds, is no recovery.) Not beside other tests, as it takes all of the machine.
func TestReplaceUnderTCP(t *testing.T) {
	lab.RequireTool(t, "iperf3")
	for name, flags := range map[string][]string{
		"paced":     {"-t", "4", "-b", "200M"},
		"full rate": {"-t", "4"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, false)
			for _, reverse := range []bool{false, true} {
				if reverse {
					flags = append(flags, "-R")
				}
				replaced := 0
				flow, err := lab.Iperf(t.Context(), s.pods[0].Node, s.pods[1].Node, s.pods[1].Addr, func(run func() error) error {
					done := make(chan error, 1)
					go func() { done <- run() }()
					for {
						select {
						case err := <-done:
							return err
						case <-time.After(300 * time.Millisecond):
							s.replace(labtest.Bin)
							replaced++
						}
					}
				}, flags...)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("reverse %v: %.2f Gb/s over %d replacements, %d segments sent again", reverse, flow.BitsPerSecond/1e9, replaced, flow.Retransmits)
				if replaced < 4 {
					t.Errorf("%d replacements", replaced)
				}
				if flow.BitsPerSecond < 190e6 {
					t.Errorf("%.0f Mb/s", flow.BitsPerSecond/1e6)
				}
				for i, pod := range s.pods {
					if n := recoveries(t, pod); name == "paced" && n != 0 {
						t.Errorf("pod %d had to recover %d segments", i+1, n)
					}
				}
			}
		})
	}
}

// recoveries is how many segments this node's TCP has sent again because it took them for lost.
func recoveries(t *testing.T, pod *lab.Pod) (n int) {
	t.Helper()
	var names []string
	for line := range strings.Lines(labtest.Must(pod.Output(t.Context(), "cat", "/proc/net/netstat"))(t)) {
		fields := strings.Fields(line)
		if fields[0] != "TcpExt:" {
			continue
		}
		if names == nil { // the first line names the fields of the second
			names = fields
			continue
		}
		for i, name := range names {
			switch name {
			case "TCPTimeouts", "TCPFastRetrans", "TCPSlowStartRetrans":
				count, err := strconv.Atoi(fields[i])
				if err != nil {
					t.Fatal(err)
				}
				n += count
			}
		}
	}
	if names == nil {
		t.Fatal("no TcpExt in /proc/net/netstat")
	}
	return n
}

// buildVersion is a binary of another version.
func buildVersion(t *testing.T, version string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "muslin-"+version)
	build := exec.Command("go", "build", "-ldflags", "-X main.version="+version, "-o", bin, "muslin/cmd/muslin")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build version %s: %v\n%s", version, err, out)
	}
	return bin
}

// An upgrade, and the way back.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	bin := buildVersion(t, "v9.9.9-next")
	s := newScene(t, false)
	before := labtest.Status(t, s.nodes[0]).Version
	s.probe()
	s.replace(bin)
	if v := labtest.Status(t, s.nodes[0]).Version; v != "v9.9.9-next" {
		t.Errorf("version %s runs", v)
	}
	s.replace(labtest.Bin)
	if v := labtest.Status(t, s.nodes[0]).Version; v != before {
		t.Errorf("version %s runs, want %s", v, before)
	}
	s.stopUnharmed()
	s.expectEndsWell()
}

func TestReplaceNobody(t *testing.T) {
	t.Parallel()
	s := newScene(t, false)
	if err := s.nodes[0].Stop(); err != nil {
		t.Fatal(err)
	}
	for _, killed := range []bool{false, true} {
		m := labtest.StartMuslin(t, s.lab.Host(1), append([]string{"--replace"}, s.flags...)...)
		labtest.ExpectWords(t, m.Output(), "nobody is there to be replaced")
		labtest.WaitPeers(t, m, 1)
		s.nodes[0] = m
		s.probe()
		s.stopUnharmed()
		if !killed {
			m.Kill() // and leaves its socket
		}
	}
	s.expectEndsWell()
}

// A new daemon that is not like the running one says so and ends; nobody notices.
func TestReplaceRefused(t *testing.T) {
	t.Parallel()
	s := newScene(t, false)
	config := filepath.Join(s.lab.Host(1).Dir, "other.json")
	if err := os.WriteFile(config, []byte(`{"Network":"10.99.0.0/16","Backend":{"Type":"vxlan"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	before := s.snapshot()
	pid := s.lockHolder()
	s.probe()
	for _, c := range []struct {
		flags []string
		words []string
	}{
		{[]string{"--queues=2"}, []string{"--queues 2", "has 1", "without --replace"}},
		{[]string{"--features=-tun-vnet"}, []string{"another mode", "tun-vnet", "without --replace"}},
		{[]string{"--features=none"}, []string{"another mode", "without --replace"}},
		{[]string{"--tun-name=other0"}, []string{"--tun-name is muslin0", "other0"}},
		{[]string{"--public-ip=198.51.100.7"}, []string{"this node was", "198.18.0.1"}},
		{[]string{"--state-dir", filepath.Join(s.lab.Host(1).Dir, "elsewhere")}, []string{"works with another state directory", "--state-dir"}},
		{[]string{"--embedded-etcd"}, []string{"--embedded-etcd is false", "true"}},
		{[]string{"--net-config-path", config}, []string{"another network"}},
		{[]string{"--etcd-prefix=/other"}, []string{"/coreos.com/network"}},
		{[]string{"--no-such-flag"}, []string{"unknown flag"}},
	} {
		p := labtest.Must(s.lab.Host(1).Start("refused", nil, append(append(s.lab.Host(1).MuslinArgs(labtest.Bin), "--replace"), append(s.flags, c.flags...)...)...))(t)
		out := labtest.ExpectExit(t, p, 1)
		last := lastLine(out)
		labtest.ExpectWords(t, last, append(c.words, "muslin:")...)
		if !s.nodes[0].Running() || s.lockHolder() != pid {
			t.Fatalf("%v: the old daemon is gone", c.flags)
		}
	}
	s.stopUnharmed()
	if after := s.snapshot(); after != before {
		t.Errorf("the host changed. Before:\n%s\nafter:\n%s", before, after)
	}
	s.probe()
	s.replace(labtest.Bin)
	s.stopUnharmed()
	s.expectEndsWell()
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// expectEndsWell ends the first daemon in good order, and wants nothing of it left but what is meant to stay.
func (s *scene) expectEndsWell() {
	s.Helper()
	if err := s.nodes[0].Stop(); err != nil {
		s.Fatal(err)
	}
	labtest.ExpectExit(s.T, s.nodes[0].Proc, 0)
	s.expectNothingLeft()
}

// expectNothingLeft wants the first host without a trace of a daemon: its pods' bridge is not the daemon's.
func (s *scene) expectNothingLeft() {
	s.Helper()
	labtest.Eventually(s.T, 3*time.Second, func() error {
		shot, err := s.lab.Host(1).Snapshot(context.Background())
		if err != nil {
			return err
		}
		for _, trace := range []string{"muslin0", "other0", "MUSLIN", "table ip muslin", "proto 218", "ip_forward\n1"} {
			if strings.Contains(shot, trace) {
				return fmt.Errorf("%q is left in:\n%s", trace, shot)
			}
		}
		if _, err := os.Stat(s.nodes[0].Control); err == nil {
			return fmt.Errorf("the control socket %s is left", s.nodes[0].Control)
		}
		if _, err := os.Stat(filepath.Join(s.nodes[0].StateDir, "host-changes.json")); err == nil {
			return fmt.Errorf("the journal is left")
		}
		return nil
	})
}
