//go:build linux

package restart

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// recovery is how long a node may take from the start of its process to its first packet.
const recovery = 500 * time.Millisecond

// kill ends the first daemon by SIGKILL, and wants its device and route there still: nothing that is meant for
// the overlay goes elsewhere meanwhile.
func (s *scene) kill() {
	s.Helper()
	h := s.lab.Host(1)
	s.nodes[0].Kill()
	time.Sleep(lab.Patience(200 * time.Millisecond)) // a while in which packets are dropped
	route := labtest.Must(h.Run(s.Context(), "ip", "route", "get", s.pods[1].Addr.String()))(s.T)
	labtest.ExpectWords(s.T, route, "dev muslin0")
}

// restart starts the first daemon again, and returns when its process began.
func (s *scene) restart(flags ...string) time.Time {
	s.Helper()
	began := time.Now()
	s.nodes[0] = labtest.LaunchMuslin(s.T, s.lab.Host(1), append(s.flags, flags...)...)
	for _, p := range s.probes {
		labtest.WaitReceived(s.T, p, 200)
	}
	return began
}

// stopRecovered ends the probes, and returns how long after the start of the process the packets were back.
func (s *scene) stopRecovered(began time.Time) (slowest time.Duration) {
	s.Helper()
	for i, r := range s.stop() {
		if len(r.Gaps) == 0 {
			s.Errorf("from h%d: nothing was lost, so nothing was killed", i+1)
			continue
		}
		took := r.Gaps[len(r.Gaps)-1].End().Sub(began)
		s.Logf("from h%d: first packet %v after the start, %d lost in all", i+1, took.Round(time.Millisecond), r.Lost)
		slowest = max(slowest, took)
		if r.Duplicated != 0 || r.Reordered != 0 {
			s.Errorf("%s", r)
		}
	}
	return slowest
}

// expectRecovery kills the first daemon again, a few times, if it was not back soon enough: a machine that has other work
// is late with everything, though hardly three times.
func (s *scene) expectRecovery(took time.Duration, flags ...string) {
	s.Helper()
	for range 2 {
		if took <= recovery || !lab.Steady() {
			return
		}
		s.probe()
		s.kill()
		took = min(took, s.stopRecovered(s.restart(flags...)))
	}
	if took > recovery {
		s.Errorf("first packet %v after the start, want %v at most", took, recovery)
	}
}

func (s *scene) tunIndex() string {
	s.Helper()
	return labtest.Must(s.lab.Host(1).Output(s.Context(), "cat", "/sys/class/net/muslin0/ifindex"))(s.T)
}

// After kill -9 the same node is back at once, on the same device, whatever else is the matter.
func TestKilled(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		embedded bool
		flags    []string
		break_   func(s *scene)
		again    []string // more flags at the next start
		sameTUN  bool
	}{
		{"etcd answers", false, nil, func(*scene) {}, nil, true},
		{"several queues", false, []string{"--queues=2"}, func(*scene) {}, nil, true},
		{"one packet a call", false, []string{"--features=none"}, func(*scene) {}, nil, true},
		{"embedded etcd", true, nil, func(*scene) {}, nil, true},
		{"etcd is away", false, nil, func(s *scene) { s.etcd.Proc.Kill() }, nil, true},
		{"other features", false, nil, func(*scene) {}, []string{"--features=-tun-vnet"}, true},
		{"other queues", false, nil, func(*scene) {}, []string{"--queues=2"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, c.embedded, c.flags...)
			before := labtest.Status(t, s.nodes[0])
			s.waitRemembered()
			index := s.tunIndex()
			s.probe()
			c.break_(s)
			s.kill()
			took := s.stopRecovered(s.restart(c.again...))
			if same := s.tunIndex() == index; same != c.sameTUN {
				t.Errorf("the TUN device is the same: %v", same)
			}
			after := labtest.Status(t, s.nodes[0])
			if after.Node.Subnet != before.Node.Subnet || after.Node.VtepMAC != before.Node.VtepMAC {
				t.Errorf("node %+v, was %+v", after.Node, before.Node)
			}
			s.expectRecovery(took, c.again...)
			if s.etcd != nil && !s.etcd.Proc.Running() {
				s.etcd.Start(t)
			}
			labtest.WaitHealthy(t, s.nodes[0], true)
			s.expectEndsWell()
		})
	}
}

// waitRemembered waits until the first daemon has written down what it knows of its peer.
func (s *scene) waitRemembered() {
	s.Helper()
	peer := labtest.Status(s.T, s.nodes[1]).Node.PublicIP.String()
	labtest.Eventually(s.T, 15*time.Second, func() error {
		content, err := os.ReadFile(s.memory())
		if err == nil && !strings.Contains(string(content), peer) {
			err = fmt.Errorf("%s is not in %s", peer, content)
		}
		return err
	})
}

func (s *scene) memory() string { return filepath.Join(s.nodes[0].StateDir, "network.json") }

// A route that leads to a device without a carrier is not passed over even where the host wants that.
func TestKilledWhereDeadLinksAreIgnored(t *testing.T) {
	t.Parallel()
	l := labtest.NewLab(t, 1)
	h := l.Host(1)
	if err := h.Sysctl("net/ipv4/conf/default/ignore_routes_with_linkdown", "1"); err != nil {
		t.Fatal(err)
	}
	labtest.Must(h.Run(t.Context(), "ip", "route", "add", "default", "dev", "eth0"))(t)
	m := labtest.StartMuslin(t, h, "--embedded-etcd", "--network", labtest.Network)
	m.Kill()
	labtest.Eventually(t, 5*time.Second, func() error {
		link, err := h.Run(t.Context(), "ip", "link", "show", "muslin0")
		if err == nil && !strings.Contains(link, "NO-CARRIER") {
			err = fmt.Errorf("a carrier: %s", link)
		}
		return err
	})
	labtest.ExpectWords(t, labtest.Must(h.Run(t.Context(), "ip", "route", "get", "10.244.9.9"))(t), "dev muslin0")
}

// What was remembered and is no longer true is dropped as soon as etcd says so.
func TestKilledAndOutdated(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(s *scene, subnet string)
		same   bool // the subnet afterwards
	}{
		"the subnet is another node's": {func(s *scene, subnet string) {
			s.etcd.Do(s.T, "put", labtest.Prefix+"/subnets/"+strings.ReplaceAll(subnet, "/", "-"),
				`{"PublicIP":"198.18.0.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"be:e3:93:3d:62:d0"}}`)
		}, false},
		"the lease was released": {func(s *scene, subnet string) {
			s.etcd.Do(s.T, "del", labtest.Prefix+"/subnets/"+strings.ReplaceAll(subnet, "/", "-"))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, false)
			before := labtest.Status(t, s.nodes[0]).Node.Subnet
			s.waitRemembered()
			s.nodes[0].Kill()
			c.change(s, before.String())
			m := labtest.StartMuslin(t, s.lab.Host(1), s.flags...)
			s.nodes[0] = m
			labtest.Eventually(t, 10*time.Second, func() error {
				now, err := m.Status(t.Context())
				if err == nil && (now.Node.Subnet == before) != c.same {
					err = fmt.Errorf("subnet %s, was %s", now.Node.Subnet, before)
				}
				if err == nil && !now.Store.Healthy {
					err = fmt.Errorf("the store is not healthy")
				}
				return err
			})
			s.expectEndsWell()
		})
	}
}

func TestCleanupAfterKill(t *testing.T) {
	t.Parallel()
	s := newScene(t, false, "--ip-masq", "--ip-blackhole-route")
	s.nodes[0].Kill()
	out := labtest.Must(s.cleanup())(t)
	labtest.ExpectWords(t, out, "deleted the TUN device muslin0", "iptables rules", "ip_forward back to 0", "control socket")
	s.expectNothingLeft()
	labtest.ExpectWords(t, labtest.Must(s.cleanup())(t), "nothing to clean up")
}

func (s *scene) cleanup() (string, error) {
	m := s.nodes[0]
	return s.lab.Host(1).Run(s.Context(), m.Bin, "cleanup", "--control", m.Control, "--state-dir", m.StateDir)
}

// A boot takes everything but the disk: the device, the rules, the switches, and what is in /run.
func TestReboot(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]func(s *scene, subnet string){
		"the lease is there": func(*scene, string) {},
		"the lease has expired": func(s *scene, subnet string) {
			s.etcd.Do(s.T, "del", labtest.Prefix+"/subnets/"+strings.ReplaceAll(subnet, "/", "-"))
			s.expireMemory()
		},
		"etcd is away": func(s *scene, _ string) { s.etcd.Proc.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, false)
			before := labtest.Status(t, s.nodes[0])
			s.waitRemembered()
			s.probe()
			s.nodes[0].Kill()
			s.boot()
			away(s, before.Node.Subnet.String())
			began := s.restart()
			for i, r := range s.stop() {
				t.Logf("from h%d: first packet %v after the start", i+1, r.Gaps[len(r.Gaps)-1].End().Sub(began).Round(time.Millisecond))
			}
			after := labtest.Status(t, s.nodes[0])
			if after.Node.Subnet != before.Node.Subnet || after.Node.VtepMAC != before.Node.VtepMAC {
				t.Errorf("node %+v, was %+v", after.Node, before.Node)
			}
			if !s.etcd.Proc.Running() {
				s.etcd.Start(t)
			}
			labtest.WaitHealthy(t, s.nodes[0], true)
			s.expectEndsWell()
		})
	}
}

// boot takes from the first host what a boot would, and makes its journal one of the boot before.
func (s *scene) boot() {
	s.Helper()
	h, m := s.lab.Host(1), s.nodes[0]
	for _, args := range [][]string{
		{"ip", "link", "del", "muslin0"},
		{"nft", "flush", "ruleset"},
		{"sysctl", "-qw", "net.ipv4.ip_forward=0"},
		{"rm", m.Control, m.SubnetFile},
	} {
		labtest.Must(h.Run(s.Context(), args...))(s.T)
	}
	s.edit(filepath.Join(m.StateDir, "host-changes.json"), func(journal map[string]any) {
		journal["boot"] = "0b0e2a5c-0000-0000-0000-000000000000"
	})
}

// expireMemory makes what the first daemon remembers a day older.
func (s *scene) expireMemory() {
	s.Helper()
	s.edit(s.memory(), func(memory map[string]any) {
		memory["lease"].(map[string]any)["expires"] = time.Now().Add(-time.Hour).UTC()
	})
}

func (s *scene) edit(path string, change func(map[string]any)) {
	s.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		s.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(content, &v); err != nil {
		s.Fatal(err)
	}
	change(v)
	if content, err = json.Marshal(v); err != nil {
		s.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		s.Fatal(err)
	}
}

// Whatever is killed, and whenever, the next start carries packets, and cleanup removes all that is left: in the
// middle of a start, of an end, of a replacement, of a cleanup.
func TestKilledAtAnyMoment(t *testing.T) {
	t.Parallel()
	l := labtest.NewLab(t, 2)
	h := l.Host(1)
	labtest.StartEtcd(t, l.Host(2)).Config(t, labtest.VXLANConfig)
	flags := []string{"--etcd-endpoints", labtest.Endpoint(l.Host(2)), "--ip-masq", "--ip-blackhole-route"}
	peer := labtest.StartMuslin(t, l.Host(2), flags...)
	pod := labtest.AddPod(t, peer, "a")
	m := h.Muslin(labtest.Bin)
	s := &scene{T: t, lab: l, flags: flags, nodes: [2]*lab.Muslin{m, peer}}
	before := s.snapshot()
	cleanup := []string{m.Bin, "cleanup", "--control", m.Control, "--state-dir", m.StateDir}
	victims := []struct {
		name string
		do   func(after time.Duration)
	}{
		{"start", func(after time.Duration) {
			p := labtest.LaunchMuslin(t, h, flags...)
			time.Sleep(after)
			p.Kill()
		}},
		{"end", func(after time.Duration) {
			p := labtest.StartMuslin(t, h, flags...)
			if err := p.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			time.Sleep(after / 4)
			p.Kill()
		}},
		{"replacement", func(after time.Duration) {
			old := labtest.StartMuslin(t, h, flags...)
			p := labtest.LaunchMuslin(t, h, append([]string{"--replace"}, flags...)...)
			time.Sleep(after)
			p.Kill()
			old.Kill()
		}},
		{"cleanup", func(after time.Duration) {
			labtest.StartMuslin(t, h, flags...).Kill()
			p := labtest.Must(h.Start("cleanup", nil, cleanup...))(t)
			time.Sleep(after / 4)
			p.Kill()
		}},
	}
	for i := range 20 {
		v := victims[i%len(victims)]
		after := lab.Patience(time.Duration(i/len(victims)) * 50 * time.Millisecond)
		t.Logf("%d: %s, killed after %v", i, v.name, after)
		v.do(after)
		// Every other time the host is cleaned first, and else the start has to cope.
		if i/len(victims)%2 == 0 {
			labtest.Must(h.Run(t.Context(), cleanup...))(t)
			s.expectAsBefore(before)
		}
		again := labtest.StartMuslin(t, h, flags...)
		labtest.WaitPeers(t, again, 1)
		if r, err := h.Ping(t.Context(), pod.Addr, lab.PingOptions{Count: 3}); err != nil || r.Received != 3 {
			t.Fatalf("after the restart: %+v, %v", r, err)
		}
		if i%2 == 0 {
			if err := again.Stop(); err != nil {
				t.Fatal(err)
			}
		} else {
			again.Kill()
			labtest.Must(h.Run(t.Context(), cleanup...))(t)
		}
		s.expectAsBefore(before)
	}
}

// expectAsBefore wants the first host as it was, and no file of a daemon but those that are to stay.
func (s *scene) expectAsBefore(before string) {
	s.Helper()
	labtest.Eventually(s.T, 3*time.Second, func() error {
		after, err := s.lab.Host(1).Snapshot(s.Context())
		if err == nil && after != before {
			err = fmt.Errorf("the host changed. Before:\n%s\nafter:\n%s", before, after)
		}
		return err
	})
	m := s.nodes[0]
	for _, path := range []string{m.Control, filepath.Join(m.StateDir, "host-changes.json"), filepath.Join(m.StateDir, "host-changes.json.new")} {
		if _, err := os.Lstat(path); err == nil {
			s.Errorf("%s is left", path)
		}
	}
}
