//go:build linux

package rescue

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// breakage is a way in which flannel's data path breaks: commands on the first node.
type breakage struct {
	name     string
	commands []string
	anew     bool // the device is another one afterwards
}

func (s *scene) breakIt(b breakage) {
	s.Helper()
	for _, c := range b.commands {
		labtest.Must(s.lab.Host(1).Run(s.Context(), "sh", "-ec", c))(s.T)
	}
	if len(b.commands) > 0 {
		time.Sleep(200 * time.Millisecond) // a while in which it is broken
	}
}

// noForwarding deletes every permanent forwarding entry that leads to another host.
const noForwarding = `bridge fdb show dev flannel.1 | while read mac dst host rest; do [ $dst != dst ] || bridge fdb del $mac dev flannel.1 dst $host; done`

// A node is broken, rescued and given back to flannel, in each of several ways, one after the other and all under traffic.
func TestRescueAndUndo(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind   string
		breaks []breakage
	}{
		{vxlan, []breakage{
			{name: "nothing is wrong"},
			{name: "device down", commands: []string{"ip link set flannel.1 down"}},
			{name: "no routes", commands: []string{"ip route flush dev flannel.1"}},
			{name: "no neighbours", commands: []string{"ip neigh flush dev flannel.1 nud permanent"}},
			{name: "no forwarding entries", commands: []string{noForwarding}},
			{name: "no device", commands: []string{"ip link del flannel.1"}, anew: true},
		}},
		{dual, []breakage{
			{name: "both down", commands: []string{"ip link set flannel.1 down", "ip link set flannel-v6.1 down"}},
			{name: "no devices", commands: []string{"ip link del flannel.1", "ip link del flannel-v6.1"}, anew: true},
		}},
		{direct, []breakage{
			{name: "nothing is wrong"},
			{name: "no routes", commands: []string{"ip route flush root 10.244.0.0/16 via 198.18.0.2"}},
		}},
		{hostGW, []breakage{
			{name: "no routes", commands: []string{"ip route flush root 10.244.0.0/16 via 198.18.0.2"}},
		}},
	} {
		t.Run(c.kind, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, c.kind, flanneld())
			before := s.snapshot()
			for _, b := range c.breaks {
				ok := t.Run(b.name, func(t *testing.T) {
					s := *s
					s.T = t
					s.rescueAndUndo(b, before)
				})
				if !ok {
					return
				}
				if b.anew {
					before = s.snapshot()
				}
			}
		})
	}
}

func (s *scene) rescueAndUndo(b breakage, before string) {
	s.Helper()
	file := string(labtest.Must(os.ReadFile(s.nodes[0].file))(s.T))
	value := s.etcd.Get(s.T, s.nodes[0].key())
	traffic := s.traffic()
	s.breakIt(b)

	traffic.mark("rescue")
	m := s.rescue()
	traffic.wait(200)
	st := labtest.Status(s.T, m)
	peers := 1
	if s.kind == dual {
		peers = 2
	}
	if len(st.Peers) != peers || !strings.Contains(strings.Join(st.Warnings, " "), "rescue --undo") {
		s.Errorf("status: %d peers, warnings %q", len(st.Peers), st.Warnings)
	}
	time.Sleep(100 * time.Millisecond)

	traffic.mark("undo")
	s.undo()
	traffic.wait(200)
	labtest.ExpectExit(s.T, m.Proc, 0)
	traffic.end()
	s.expectSame(before, b.anew)
	if now := string(labtest.Must(os.ReadFile(s.nodes[0].file))(s.T)); now != file {
		s.Errorf("the subnet file is\n%s, was\n%s", now, file)
	}
	if now := s.etcd.Get(s.T, s.nodes[0].key()); now != value {
		s.Errorf("the lease is %s, was %s", now, value)
	}
}

// A daemon that is killed leaves a journal: another one goes on, or --undo gives everything back without it.
func TestKilled(t *testing.T) {
	t.Parallel()
	s := newScene(t, vxlan, flanneld())
	before, mac := s.snapshot(), s.etcd.Get(t, s.nodes[0].key())
	traffic := s.traffic()
	m := s.rescue()
	m.Kill()
	labtest.ExpectWords(t, labtest.Must(s.lab.Host(1).Run(t.Context(), s.command("cleanup")...))(t), "rescue --undo", "muslin0")
	// Neither carries now, and nothing that is meant for the overlay leaves by the default route.
	labtest.ExpectWords(t, labtest.Must(s.lab.Host(1).Output(t.Context(), "ip", "route"))(t), "blackhole 10.244.0.0/16")

	m = s.launch("run") // goes on
	if err := m.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	traffic.wait(100)
	if now := s.etcd.Get(t, s.nodes[0].key()); now != mac {
		t.Errorf("the lease is %s, was %s", now, mac)
	}
	next := s.launch("run", "--replace")
	labtest.ExpectExit(t, m.Proc, 0)
	traffic.wait(100)
	next.Kill()

	m = s.rescue()
	labtest.ExpectWords(t, m.Output(), "under way")
	traffic.wait(100)
	m.Kill()
	traffic.mark("undo")
	s.undo()
	traffic.wait(100)
	traffic.end()
	s.expectSame(before, false)
	labtest.ExpectWords(t, labtest.Must(s.lab.Host(1).Run(t.Context(), s.command("rescue", "--undo")...))(t), "nothing to undo")
}

// Whenever it is interrupted, everything is as it was found.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	s := newScene(t, vxlan, flanneld())
	for _, broken := range []breakage{{name: "nothing"}, {name: "no routes", commands: []string{"ip route flush dev flannel.1"}}} {
		s.breakIt(broken)
		before := s.snapshot()
		for after := 20 * time.Millisecond; after < 400*time.Millisecond; after += 35 * time.Millisecond {
			m := s.launch("rescue", "--yes")
			time.Sleep(after)
			if err := m.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			if _, err := m.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(filepath.Join(m.StateDir, "rescue.json")); !os.IsNotExist(err) {
				t.Errorf("interrupted after %v: the journal is there: %v\n%s", after, err, m.Output())
			}
			s.expectSame(before, false)
			if t.Failed() {
				t.Fatalf("interrupted after %v:\n%s", after, m.Output())
			}
		}
		s.runOrUndo(broken.commands != nil)
		if broken.commands == nil {
			s.killAnywhere(before)
		}
	}
}

// runOrUndo has the rescue end well once, so that what an interrupted one may have spoilt is seen.
func (s *scene) runOrUndo(mend bool) {
	s.Helper()
	if !mend {
		return
	}
	s.rescue()
	s.waitPing()
	s.undo()
	s.waitPing()
}

// killAnywhere kills rescue and --undo with SIGKILL at every moment: --undo then gives back, and nothing is left.
func (s *scene) killAnywhere(before string) {
	s.Helper()
	expect := func(what string, after time.Duration, log string) {
		s.Helper()
		s.undo()
		s.expectSame(before, false)
		left, _ := filepath.Glob(s.lab.Host(1).Muslin("").StateDir + "/*rescue*")
		hidden, _ := filepath.Glob(s.lab.Host(1).Muslin("").StateDir + "/.rescue*")
		if left = append(left, hidden...); len(left) > 0 {
			s.Errorf("left: %q", left)
		}
		if s.Failed() {
			s.Fatalf("%s killed after %v:\n%s", what, after, log)
		}
	}
	for after := 60 * time.Millisecond; after < 240*time.Millisecond; after += 20 * time.Millisecond {
		m := s.launch("rescue", "--yes")
		time.Sleep(after)
		m.Kill()
		expect("rescue", after, m.Output())
	}
	for after := 10 * time.Millisecond; after < 70*time.Millisecond; after += 15 * time.Millisecond {
		m := s.rescue()
		undo := labtest.Must(s.lab.Host(1).Start("undo", nil, s.command("rescue", "--undo", "--yes")...))(s.T)
		time.Sleep(after)
		undo.Kill()
		expect("undo", after, undo.Output())
		labtest.ExpectExit(s.T, m.Proc, 0)
	}
}

// While etcd is down, the kernel's tables say who the peers are; when it is back, the lease is still the node's.
func TestWithoutEtcd(t *testing.T) {
	t.Parallel()
	s := newScene(t, vxlan, flanneld())
	value := s.etcd.Get(t, s.nodes[0].key())
	before := s.snapshot()
	s.etcd.Proc.Kill()
	traffic := s.traffic()
	s.breakIt(breakage{commands: []string{"ip route flush dev flannel.1"}}) // neighbour and forwarding entry tell the peer still
	traffic.mark("rescue without etcd")
	m := s.rescue()
	labtest.ExpectWords(t, m.Output(), "as the kernel of this host has them")
	traffic.wait(200)
	s.etcd.Start(t)
	labtest.WaitHealthy(t, m, true)
	if now := s.etcd.Get(t, s.nodes[0].key()); now != value {
		t.Errorf("the lease is %s, was %s", now, value)
	}
	s.etcd.Proc.Kill()
	traffic.mark("undo without etcd")
	s.undo()
	traffic.wait(200)
	traffic.end()
	s.expectSame(before, false)
}

// With the device gone as well, what was saved of the leases says all that is needed; and undo needs none of the flags again.
func TestPeersFile(t *testing.T) {
	t.Parallel()
	s := newScene(t, vxlan, flanneld())
	before := s.snapshot()
	h := s.lab.Host(1)
	file := filepath.Join(h.Dir, "peers.json")
	saved := labtest.Must(h.Output(t.Context(), labtest.Bin, "leases", "list", "--output", "peers-file", "--etcd-endpoints", labtest.Endpoint(s.lab.Host(3))))(t)
	if err := os.WriteFile(file, []byte(saved), 0o600); err != nil {
		t.Fatal(err)
	}
	s.etcd.Proc.Kill()
	s.breakIt(breakage{commands: []string{"ip link del flannel.1"}})
	out, err := h.Run(t.Context(), s.command("rescue", "--yes", "--iface", "eth0")...)
	if err == nil {
		t.Error("it knows what nobody says")
	}
	labtest.ExpectWords(t, out, "etcd", "which is gone", "--peers-file")

	s.flags = []string{"--peers-file", file, "--network", labtest.Network, "--iface", "eth0"}
	m := s.rescue()
	s.waitPing()
	m.Kill()
	s.flags = nil
	if err := s.launch("run").WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.waitPing()
	labtest.ExpectWords(t, s.undo(), "flannel has its data path again")
	s.waitPing()
	s.expectSame(before, true)
}

// A MAC of muslin's own is published, and flannel's comes back.
func TestNewMAC(t *testing.T) {
	t.Parallel()
	s := newScene(t, vxlan, "")
	before, value := s.snapshot(), s.etcd.Get(t, s.nodes[0].key())
	m := s.rescue("--new-mac")
	now := s.etcd.Get(t, s.nodes[0].key())
	mac := labtest.Status(t, m).Node.VtepMAC
	if mac == s.nodes[0].kernel.MAC || !strings.Contains(now, mac) {
		t.Errorf("the MAC is %s, was %s; the lease is %s", mac, s.nodes[0].kernel.MAC, now)
	}
	learn := func(mac string) { // as the other node's flanneld does
		old := s.nodes[0].kernel.MAC
		s.nodes[0].kernel.MAC = mac
		s.nodes[1].addPeer(s, s.nodes[0])
		s.nodes[0].kernel.MAC = old
		s.waitPing()
	}
	learn(mac)
	s.undo()
	learn(s.nodes[0].kernel.MAC)
	if now := s.etcd.Get(t, s.nodes[0].key()); now != value {
		t.Errorf("the lease is %s, was %s", now, value)
	}
	s.expectSame(before, false)

	m = s.rescue("--new-mac") // and by an orderly end
	if err := m.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	labtest.ExpectExit(t, m.Proc, 0)
	if now := s.etcd.Get(t, s.nodes[0].key()); now != value {
		t.Errorf("the lease is %s, was %s", now, value)
	}
	s.expectSame(before, false)
}

// Nodes come and go while muslin carries: what is given back is for those that there are.
func TestPeersChange(t *testing.T) {
	t.Parallel()
	s := newScene(t, vxlan, "")
	gone := s.etcd // a lease that will be gone
	gone.Do(t, "put", labtest.Prefix+"/subnets/10.244.9.0-24", `{"PublicIP":"198.18.0.9","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:09"}}`)
	if err := s.nodes[0].kernel.AddPeer(t.Context(), netip.MustParsePrefix("10.244.9.0/24"), "0a:00:00:00:00:09", netip.MustParseAddr("198.18.0.9")); err != nil {
		t.Fatal(err)
	}
	s.rescue()
	s.etcd.Do(t, "del", labtest.Prefix+"/subnets/10.244.9.0-24")
	third := &flannelNode{host: s.lab.Host(3), subnet: netip.MustParsePrefix("10.244.3.0/24")}
	third.addDevice(s)
	third.addPeer(s, s.nodes[0])
	s.putLease(third)
	third.pod = labtest.Must(third.host.AddPod(t.Context(), "a", third.kernel.PodNetwork()))(t)
	reach := func() {
		labtest.Eventually(t, 5*time.Second, func() error {
			r, err := s.nodes[0].pod.Ping(t.Context(), third.pod.Addr, lab.PingOptions{Count: 1})
			if err == nil && r.Received == 0 {
				err = fmt.Errorf("no answer")
			}
			return err
		})
	}
	reach()
	s.undo()
	reach()
	s.waitPing()
	shot := s.snapshot()
	for _, word := range []string{"10.244.9.0", "0a:00:00:00:00:09"} {
		if strings.Contains(shot, word) {
			t.Errorf("%s is there still", word)
		}
	}
}

// After a boot there is nothing to give back, and --undo says so. Before that, the doctor has nothing to say of flannel, of a
// rescue under way, nor of its peer, and names a rescue that was killed as that.
func TestRebooted(t *testing.T) {
	t.Parallel()
	s := newScene(t, vxlan, "")
	s.doctor("")
	h := s.lab.Host(1)
	labtest.Must(h.Run(t.Context(), "ip", "link", "set", "flannel.1", "down"))(t)
	s.doctor("flannel-device", "flannel.1 is down", "muslin rescue")
	m := s.rescue()
	s.doctor("")
	m.Kill()
	s.doctor("daemon-stopped", "took over from flannel", "muslin rescue --undo")
	path := filepath.Join(m.StateDir, "rescue.json")
	var journal map[string]any
	if err := json.Unmarshal(labtest.Must(os.ReadFile(path))(t), &journal); err != nil {
		t.Fatal(err)
	}
	journal["boot"] = "another"
	if err := os.WriteFile(path, labtest.Must(json.Marshal(journal))(t), 0o600); err != nil {
		t.Fatal(err)
	}
	labtest.ExpectWords(t, s.undo(), "the host was started again", "flanneld makes its device")
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the journal: %v", err)
	}
}

// What is refused leaves the host as it is.
func TestRefused(t *testing.T) {
	t.Parallel()
	s := newScene(t, vxlan, "")
	h := s.lab.Host(1)
	before := s.snapshot()
	for _, c := range []struct {
		name  string
		setup string // on the host, and what undoes it
		undo  string
		args  []string
		words []string
	}{
		{name: "nobody can be asked", args: []string{}, words: []string{"there is no terminal", "--yes"}},
		{name: "several networks", args: []string{"--config", "x.yaml"}, words: []string{"--config", "the one network"}},
		{name: "replace", args: []string{"--replace"}, words: []string{"--replace"}},
		{name: "embedded etcd", args: []string{"--embedded-etcd"}, words: []string{"--embedded-etcd", "--peers-file"}},
		{name: "not flannel's node", args: []string{"--public-ip", "198.18.0.77", "--subnet-file", "/nowhere/subnet.env"}, words: []string{"no flannel node", "198.18.0.77", "--subnet-file"}},
		{name: "another device has the port", setup: "ip link add other7 type vxlan id 7 dev eth0 dstport 8472; ip link set other7 up", undo: "ip link del other7",
			args: []string{"--yes"}, words: []string{"other7", "8472", "ip link set other7 down"}},
		{name: "another network's config", args: []string{"--yes", "--etcd-prefix", "/nowhere"}, words: []string{"no config", "/nowhere", "--etcd-prefix"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.setup != "" {
				labtest.Must(h.Run(t.Context(), "sh", "-ec", c.setup))(t)
			}
			out, err := h.Run(t.Context(), append(s.command("rescue"), c.args...)...)
			if err == nil {
				t.Errorf("it ended well:\n%s", out)
			}
			labtest.ExpectWords(t, out, c.words...)
			if c.undo != "" {
				labtest.Must(h.Run(t.Context(), "sh", "-ec", c.undo))(t)
			}
		})
	}
	s.expectSame(before, false)

	out := labtest.Must(h.Run(t.Context(), s.command("rescue", "--dry-run")...))(t)
	labtest.ExpectWords(t, out, "muslin will", "  1. write down", "set flannel.1 down", "8472", "the same VtepMAC", "rescue --undo")
	s.expectSame(before, false)
	if _, err := os.Stat(h.Muslin("").StateDir + "/rescue.json"); !os.IsNotExist(err) {
		t.Errorf("a dry run left a journal: %v", err)
	}

	// At a terminal it asks.
	lab.RequireTool(t, "script")
	ask := func(answer string) (string, error) {
		return h.Run(t.Context(), "sh", "-c", fmt.Sprintf("echo %s | timeout 10 script -qec '%s' /dev/null", answer, strings.Join(s.command("rescue"), " ")))
	}
	out, err := ask("n")
	if err == nil {
		t.Error("a no is no error")
	}
	labtest.ExpectWords(t, out, "Do that? [y/N]", "nothing was changed")
	s.expectSame(before, false)
	out, err = h.Run(t.Context(), "sh", "-c", fmt.Sprintf("(sleep 1; printf '\\003'; sleep 1) | timeout 10 script -qec '%s' /dev/null", strings.Join(s.command("rescue"), " ")))
	if err == nil || strings.Contains(out, "no answer") {
		t.Errorf("Ctrl-C is no answer: %v\n%s", err, out)
	}
	labtest.ExpectWords(t, out, "Do that? [y/N]", "nothing was changed")
	s.expectSame(before, false)

	m := s.rescue()
	out, err = h.Run(t.Context(), s.command("rescue", "--yes")...)
	if err == nil {
		t.Error("two of them")
	}
	labtest.ExpectWords(t, out, "a muslin daemon runs", "--undo")
	out = labtest.Must(h.Run(t.Context(), s.command("rescue", "--undo", "--dry-run")...))(t)
	labtest.ExpectWords(t, out, "have the daemon end", "set flannel.1 up", "for the 1 peer that there are")
	if !m.Running() {
		t.Error("a dry run ended the daemon")
	}
	s.undo()
	s.expectSame(before, false)

	// A subnet file that is missing comes from --undo, and not from Ctrl-C; one of another subnet is mended.
	file := labtest.Must(os.ReadFile(s.nodes[0].file))(t)
	os.Remove(s.nodes[0].file)
	m = s.rescue()
	if err := m.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	labtest.ExpectExit(t, m.Proc, 0)
	if _, err := os.Stat(s.nodes[0].file); !os.IsNotExist(err) {
		t.Errorf("a subnet file was left: %v", err)
	}
	for _, text := range []string{"", strings.ReplaceAll(string(file), "10.244.1.1", "10.244.7.1")} {
		if text != "" {
			if err := os.WriteFile(s.nodes[0].file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		m = s.rescue()
		if stale := strings.Contains(m.Output(), "of another time"); stale != (text != "") {
			t.Errorf("said that the file is stale: %v", stale)
		}
		s.undo()
		if now := labtest.Must(os.ReadFile(s.nodes[0].file))(t); string(now) != string(file) {
			t.Errorf("the subnet file is\n%s, was\n%s", now, file)
		}
		os.Remove(s.nodes[0].file)
	}

	// The subnet is another's: by the file, and by etcd.
	if err := os.WriteFile(s.nodes[0].file, file, 0o644); err != nil {
		t.Fatal(err)
	}
	value := s.etcd.Get(t, s.nodes[0].key())
	s.etcd.Do(t, "del", labtest.Prefix+s.nodes[0].key())
	out = labtest.Must(h.Run(t.Context(), s.command("rescue", "--dry-run")...))(t)
	labtest.ExpectWords(t, out, "wrong: etcd has no lease of this node", "take a lease for 10.244.1.0/24 again")
	s.etcd.Do(t, "put", labtest.Prefix+s.nodes[0].key(), strings.NewReplacer(h.Addr.String(), "198.18.0.77", s.nodes[0].kernel.MAC, "02:00:00:00:00:77").Replace(value))
	if out, err = h.Run(t.Context(), append([]string{"timeout", "10"}, s.command("rescue", "--yes")...)...); err == nil {
		t.Error("it took another node's subnet")
	}
	labtest.ExpectWords(t, out, "198.18.0.77", "--public-ip")
	s.expectSame(before, false)
}

// With wireguard there is nothing that a rescue could take over.
func TestWireGuardRefused(t *testing.T) {
	t.Parallel()
	s := newScene(t, wg, "")
	out, err := s.lab.Host(1).Run(t.Context(), s.command("rescue", "--yes")...)
	if err == nil {
		t.Error("it ended well")
	}
	labtest.ExpectWords(t, out, "wireguard", "docs/flannel.md")
}

// Real flannelds, beside which muslin carries, or which it was told to stop.
func TestFlanneld(t *testing.T) {
	t.Parallel()
	program := flanneld()
	if program == "" {
		t.Skip("MUSLIN_FLANNELD names no flanneld: make test-rescue builds one")
	}
	t.Run("started again meanwhile, its device spoilt", func(t *testing.T) {
		s := newScene(t, vxlan, program)
		value := s.etcd.Get(t, s.nodes[0].key())
		for _, b := range []breakage{{name: "gone", commands: []string{"ip link del flannel.1"}}, {name: "another MAC", commands: []string{"ip link set flannel.1 address 02:00:00:00:00:aa"}}} {
			s.breakIt(b)
			m := s.rescue("--iface", "eth0")
			s.waitPing()
			s.nodes[0].daemon.Kill()
			s.nodes[0].launch(s, program)
			labtest.ExpectExit(t, s.nodes[0].daemon, 1)
			if now := s.etcd.Get(t, s.nodes[0].key()); now != value || strings.Contains(m.Output(), "overwritten") {
				t.Errorf("%s: the lease is %s, was %s", b.name, now, value)
			}
			s.waitPing()
			s.undo()
			s.nodes[0].start(s, program)
			s.waitPing()
			if now := s.etcd.Get(t, s.nodes[0].key()); now != value {
				t.Errorf("%s, and given back: the lease is %s, was %s", b.name, now, value)
			}
		}
	})
	t.Run("started again meanwhile", func(t *testing.T) {
		t.Parallel()
		s := newScene(t, vxlan, program)
		before, value := s.snapshot(), s.etcd.Get(t, s.nodes[0].key())
		traffic := s.traffic()
		m := s.rescue("--iface", "eth0")
		labtest.ExpectWords(t, m.Output(), "flanneld (process", "is left alone")
		s.nodes[0].daemon.Kill()
		s.nodes[0].launch(s, program) // finds its device, and cannot set it up
		traffic.mark("a flanneld that is started again")
		labtest.ExpectExit(t, s.nodes[0].daemon, 1)
		labtest.ExpectWords(t, s.nodes[0].daemon.Output(), "address already in use")
		traffic.wait(1000)
		traffic.mark("undo")
		s.undo()
		s.nodes[0].start(s, program)
		traffic.wait(200)
		traffic.end()
		s.expectSame(before, false)
		if now := s.etcd.Get(t, s.nodes[0].key()); now != value {
			t.Errorf("the lease is %s, was %s", now, value)
		}
	})
	t.Run("what it was told is taken over", func(t *testing.T) {
		t.Parallel()
		s := newScene(t, vxlan, program)
		s.flags = nil
		command := slices.DeleteFunc(s.command("rescue", "--dry-run"), func(a string) bool { return a == "--subnet-file" || a == s.nodes[0].file })
		out := labtest.Must(s.lab.Host(1).Run(t.Context(), command...))(t)
		labtest.ExpectWords(t, out, "--etcd-endpoints "+labtest.Endpoint(s.lab.Host(3)), "--iface eth0", "--subnet-file "+s.nodes[0].file, "nothing is wrong")

		// Of two networks one has to be named. A flanneld may be told by its environment.
		s.etcd.Do(t, "put", "/other/config", `{"Network":"10.99.0.0/16","Backend":{"Type":"vxlan","VNI":2,"Port":8473}}`)
		h := s.lab.Host(1)
		second := filepath.Join(h.Dir, "second.env")
		other := labtest.Must(h.Start("flanneld-other", []string{"FLANNELD_ETCD_PREFIX=/other", "FLANNELD_SUBNET_FILE=" + second},
			program, "--etcd-endpoints", labtest.Endpoint(s.lab.Host(3)), "--iface", "eth0"))(t)
		labtest.Eventually(t, 10*time.Second, func() error { _, err := os.Stat(second); return err })
		out, err := h.Run(t.Context(), command...)
		if err == nil {
			t.Error("it chose one")
		}
		labtest.ExpectWords(t, out, "several flannelds", "--etcd-prefix /other", "--subnet-file "+second)
		out = labtest.Must(h.Run(t.Context(), append(command, "--etcd-prefix", "/other")...))(t)
		labtest.ExpectWords(t, out, "flannel.2: up, VNI 2", fmt.Sprintf("flanneld (process %d) runs, and is left alone", other.PID()), fmt.Sprintf("flanneld (process %d) runs for another network", s.nodes[0].daemon.PID()))
	})
	t.Run("stopped, with udp", func(t *testing.T) {
		t.Parallel()
		s := newScene(t, udp, program)
		out, err := s.lab.Host(1).Run(t.Context(), s.command("rescue", "--yes")...)
		if err == nil {
			t.Error("it took over from a flanneld that runs")
		}
		labtest.ExpectWords(t, out, "--stop-flannel")
		traffic := s.traffic()
		traffic.mark("rescue")
		m := s.rescue("--stop-flannel")
		traffic.wait(200)
		labtest.ExpectExit(t, s.nodes[0].daemon, 0)
		labtest.ExpectWords(t, s.undo(), "start it again", program)
		labtest.ExpectExit(t, m.Proc, 0)
		traffic.mark("flanneld started again")
		s.nodes[0].start(s, program)
		traffic.wait(200)
		traffic.end()
	})
}
