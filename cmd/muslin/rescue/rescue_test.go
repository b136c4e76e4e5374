package rescue

import (
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

	"muslin/encap"
	"muslin/tunnel/host"
	"muslin/tunnel/netnstest"
)

func run(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

const subnetText = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"

// node is a network namespace with flannel's vxlan device and one peer, and its journal.
func node(t *testing.T) (*Journal, Peers) {
	t.Helper()
	netnstest.Enter(t)
	run(t, `ip link set lo up
ip link add eth0 type veth peer name far; ip link set far up; ip addr add 192.0.2.1/24 dev eth0; ip link set eth0 up
ip link add flannel.1 txqueuelen 0 mtu 1450 address 02:00:00:00:00:01 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 nolearning
ip addr add 10.244.1.0/32 dev flannel.1; ip link set flannel.1 up
ip neigh add 10.244.2.0 lladdr 02:00:00:00:00:02 nud permanent dev flannel.1
bridge fdb add 02:00:00:00:00:02 dst 192.0.2.2 dev flannel.1 self permanent
ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink`)
	file := t.TempDir() + "/subnet.env"
	if err := os.WriteFile(file, []byte(subnetText), 0o644); err != nil {
		t.Fatal(err)
	}
	j := NewJournal(t.TempDir())
	j.Backend, j.Network, j.Subnet = "vxlan", netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("10.244.1.0/24")
	j.SubnetFile, j.SubnetText = file, subnetText
	var err error
	if j.Devices, err = FindDevices(); err != nil {
		t.Fatal(err)
	}
	if len(j.Devices) != 1 {
		t.Fatalf("devices: %+v", j.Devices)
	}
	if err := j.Save(); err != nil {
		t.Fatal(err)
	}
	return j, Peers{{Subnet: netip.MustParsePrefix("10.244.2.0/24"), PublicIP: netip.MustParseAddr("192.0.2.2"), MAC: encap.MAC{2, 0, 0, 0, 0, 2}}}
}

// state is what flannel has in the namespace.
func state(t *testing.T) string {
	t.Helper()
	return run(t, `ip -d link show flannel.1 | sed 's/^[0-9]*: //'; ip addr show flannel.1 | grep 'inet '
ip -4 route show table all | grep -v ' eth0'; ip neigh show dev flannel.1 nud permanent; bridge fdb show dev flannel.1 | sort`)
}

func TestJournal(t *testing.T) {
	j, _ := node(t)
	again, err := Read(strings.TrimSuffix(j.Path(), "/"+journalName))
	if err != nil {
		t.Fatal(err)
	}
	if d := again.Devices[0]; d.Name != "flannel.1" || !d.Found || !d.Up || d.VNI != 1 || d.Port != 8472 || d.MAC != "02:00:00:00:00:01" || d.MTU != 1450 ||
		d.Under != "eth0" || d.Local.String() != "192.0.2.1" || d.Learning || len(d.Routes) != 1 || len(d.Neighbours) != 1 || len(d.Forwarding) != 1 || !slices.Equal(d.Routes, j.Devices[0].Routes) {
		t.Errorf("%+v", d)
	}
	if again.Rebooted() || again.Here() != nil {
		t.Errorf("rebooted %v, here %v", again.Rebooted(), again.Here())
	}
	if mac, kept := again.MAC(false); !kept || mac.String() != "02:00:00:00:00:01" {
		t.Errorf("MAC %s, %v", mac, kept)
	}
	again.NewMAC = true
	if _, kept := again.MAC(false); kept {
		t.Error("flannel's MAC is kept though another is wanted")
	}
	again.Boot, again.NetNS = "another", "another"
	if err := again.Here(); !again.Rebooted() || err == nil || !strings.Contains(err.Error(), "ip netns exec") {
		t.Errorf("rebooted %v, here %v", again.Rebooted(), err)
	}
	if err := j.Remove(); err != nil {
		t.Fatal(err)
	}
	if gone, err := Read(strings.TrimSuffix(j.Path(), "/"+journalName)); gone != nil || err != nil {
		t.Errorf("%v, %v", gone, err)
	}
	for _, bad := range []string{"", "{", `{"version":99}`} {
		if err := os.WriteFile(j.Path(), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(strings.TrimSuffix(j.Path(), "/"+journalName)); err == nil || !strings.Contains(err.Error(), j.Path()) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// What is taken is given back, whichever of it is done twice, and whatever was done to the subnet file.
func TestTakeAndGive(t *testing.T) {
	for _, c := range []struct {
		name         string
		whole, known bool
	}{{"as found", false, false}, {"whole, of peers", true, true}, {"whole, of what there was", true, false}} {
		t.Run(c.name, func(t *testing.T) {
			j, peers := node(t)
			if !c.known {
				peers = nil
			}
			before, log := state(t), slog.New(slog.DiscardHandler)
			for range 2 {
				if err := takeAll(j, log); err != nil {
					t.Fatal(err)
				}
			}
			taken := state(t)
			for _, word := range []string{"state DOWN", "10.244.1.0/32", "02:00:00:00:00:02 dst 192.0.2.2", "blackhole 10.244.0.0/16"} {
				if !strings.Contains(taken, word) {
					t.Errorf("%q is missing:\n%s", word, taken)
				}
			}
			if strings.Contains(taken, "10.244.2.0/24") {
				t.Errorf("the route is there:\n%s", taken)
			}
			if err := os.WriteFile(j.SubnetFile, []byte("FLANNEL_MTU=1\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := j.Give(c.whole, peers, log); err != nil {
					t.Fatal(err)
				}
			}
			if after := state(t); after != before {
				t.Errorf("it is\n%s\nand was\n%s", after, before)
			}
			if text, err := os.ReadFile(j.SubnetFile); string(text) != subnetText {
				t.Errorf("the subnet file is %q, %v", text, err)
			}
		})
	}
}

// A device that is gone comes back when everything is given back whole, and not otherwise.
func TestGiveDeletedDevice(t *testing.T) {
	j, peers := node(t)
	before, log := state(t), slog.New(slog.DiscardHandler)
	run(t, "ip link del flannel.1")
	d := &j.Devices[0]
	*d = Device{Name: d.Name, VNI: 1, Port: 8472, MTU: 1450, Under: "eth0", Local: d.Local, Keep: d.MAC}
	if err := j.Give(false, nil, log); err != nil {
		t.Fatal(err)
	}
	if all, err := FindDevices(); len(all) != 0 || err != nil {
		t.Errorf("as found: %+v, %v", all, err)
	}
	made, err := j.Prepare()
	if err != nil || !slices.Equal(made, []string{"flannel.1"}) {
		t.Fatalf("%v, %v", made, err)
	}
	if made, err := j.Prepare(); err != nil || made != nil {
		t.Errorf("a second time: %v, %v", made, err)
	}
	if err := j.Give(true, peers, log); err != nil {
		t.Fatal(err)
	}
	if after := state(t); after != before {
		t.Errorf("it is\n%s\nand was\n%s", after, before)
	}

	d.Under = "nowhere"
	run(t, "ip link del flannel.1")
	if _, err := j.Prepare(); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("without an interface below: %v", err)
	}
	run(t, "ip link add flannel.1 type bridge")
	if _, err := j.Prepare(); err == nil || !strings.Contains(err.Error(), "ip link del flannel.1") {
		t.Errorf("with another device of that name: %v", err)
	}
}

func TestWrong(t *testing.T) {
	for _, c := range []struct {
		name, script, word string
	}{
		{"nothing", "true", ""},
		{"down", "ip link set flannel.1 down", "flannel.1 is down"},
		{"gone", "ip link del flannel.1", "flannel.1 is not there"},
		{"no route", "ip route del 10.244.2.0/24", "no route to 10.244.2.0/24"},
		{"no neighbour", "ip neigh del 10.244.2.0 dev flannel.1", "does not know the MAC of 10.244.2.0"},
		{"wrong neighbour", "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:09 nud permanent dev flannel.1", "does not know the MAC of 10.244.2.0"},
		{"no forwarding entry", "bridge fdb del 02:00:00:00:00:02 dst 192.0.2.2 dev flannel.1", "no forwarding entry for 02:00:00:00:00:02"},
		{"forwarded elsewhere", "bridge fdb replace 02:00:00:00:00:02 dst 192.0.2.9 dev flannel.1 self permanent", "no forwarding entry for 02:00:00:00:00:02"},
		{"no address", "ip addr del 10.244.1.0/32 dev flannel.1", "lacks the address 10.244.1.0"},
		{"another MAC", "ip link set flannel.1 address 02:00:00:00:00:0a", "has the MAC 02:00:00:00:00:0a, and the peers know this node by 02:00:00:00:00:01"},
	} {
		t.Run(c.name, func(t *testing.T) {
			j, peers := node(t)
			keep := j.Devices[0].MAC
			run(t, c.script)
			found, err := FindDevices()
			if err != nil {
				t.Fatal(err)
			}
			if len(found) == 0 {
				found = []Device{{Name: "flannel.1"}}
			}
			found[0].Keep = keep
			j.Devices = found
			wrong := (&Plan{Journal: j, Peers: peers}).Wrong()
			if c.word == "" && len(wrong) > 0 || c.word != "" && (len(wrong) == 0 || !strings.Contains(wrong[0], c.word)) {
				t.Errorf("wrong: %q, want %q", wrong, c.word)
			}
		})
	}
}

// The kernel's tables know a peer while they say which MAC has the base of its subnet, and which host has the MAC.
func TestKernelKnowsPeers(t *testing.T) {
	j, want := node(t)
	subnet := want[0].Subnet
	for _, c := range []struct {
		name, script string
		known, lost  bool
	}{
		{"whole", "true", true, false},
		{"no neighbour", "ip neigh del 10.244.2.0 dev flannel.1", false, true},
		{"nothing but the forwarding entry", "ip route del 10.244.2.0/24", false, false},
		{"no route", "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:02 nud permanent dev flannel.1", true, false},
		{"no forwarding entry", "bridge fdb del 02:00:00:00:00:02 dst 192.0.2.2 dev flannel.1", false, false},
		{"a route alone", "ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink", false, true},
	} {
		run(t, c.script)
		found, err := FindDevices()
		if err != nil {
			t.Fatal(err)
		}
		got, lost := found[0].Peers(j.Network, 24)
		if c.known != slices.Equal(got, want) || !c.known && len(got) > 0 || c.lost != slices.Equal(lost, []netip.Prefix{subnet}) || !c.lost && len(lost) > 0 {
			t.Errorf("%s: %+v, lost %v", c.name, got, lost)
		}
	}
}

// A flanneld that is started meanwhile finds its device, with the MAC that the peers know; as it was found it is not.
func TestStandIn(t *testing.T) {
	for name, script := range map[string]string{"gone": "ip link del flannel.1", "another MAC": "ip link set flannel.1 address 02:00:00:00:00:0a"} {
		t.Run(name, func(t *testing.T) {
			j, _ := node(t)
			keep := j.Devices[0].MAC
			run(t, script)
			if name == "gone" {
				j.Devices[0].Found, j.Devices[0].Up, j.Devices[0].MAC = false, false, ""
			} else {
				j.Devices[0].MAC = "02:00:00:00:00:0a"
			}
			before, log := run(t, "ip -d link"), slog.New(slog.DiscardHandler)
			if err := errors.Join(takeAll(j, log), j.StandIn(), j.StandIn()); err != nil {
				t.Fatal(err)
			}
			if now := run(t, "ip link show flannel.1"); !strings.Contains(now, keep) || strings.Contains(now, "UP") {
				t.Errorf("it stands in as\n%s", now)
			}
			if err := j.Give(false, nil, log); err != nil {
				t.Fatal(err)
			}
			if now := run(t, "ip -d link"); now != before {
				t.Errorf("it is\n%s\nand was\n%s", now, before)
			}
		})
	}
}

// What a rescue that was killed before it had a journal has left is swept away.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	j := NewJournal(dir)
	kept := filepath.Join(dir, "vtep-mac")
	for _, path := range []string{unfinished(j.Path()), Copy(dir, "etcd-keyfile"), kept} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Sweep(dir); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(dir + "/*"); !slices.Equal(left, []string{kept}) {
		t.Errorf("%q", left)
	}
}

// Direct routes are flannel's when they lead by way of a host outside the overlay, and are not ours.
func TestFindDirect(t *testing.T) {
	j, _ := node(t)
	run(t, `ip route add 10.244.7.0/24 via 192.0.2.7; ip route add 10.244.8.0/24 via 192.0.2.8 proto 218; ip route add 10.0.0.0/8 via 192.0.2.9`)
	found, err := FindDirect(j.Network)
	if err != nil || len(found) != 1 || found[0].Prefix.String() != "10.244.7.0/24" || found[0].Device != "eth0" {
		t.Fatalf("%+v, %v", found, err)
	}
	before, log := run(t, "ip route"), slog.New(slog.DiscardHandler)
	j.Direct = found
	if err := takeAll(j, log); err != nil {
		t.Fatal(err)
	}
	if now := run(t, "ip route"); strings.Contains(now, "10.244.7.0/24") || !strings.Contains(now, "10.244.8.0/24") {
		t.Errorf("taken:\n%s", now)
	}
	if err := j.Give(true, nil, log); err != nil {
		t.Fatal(err)
	}
	if now := run(t, "ip route"); now != before {
		t.Errorf("it is\n%s\nand was\n%s", now, before)
	}
}

func TestFlag(t *testing.T) {
	p := Process{Args: strings.Fields("/opt/flanneld -etcd-endpoints=http://a:1,http://b:2 --iface eth0 --iface eth1 --ip-masq --v=4 --public-ip 192.0.2.1 --kube-subnet-mgr=false"),
		env: []string{"FLANNELD_ETCD_PREFIX=/here", "FLANNELD_IFACE=eth9", "FLANNELD_SUBNET_FILE="}}
	for name, want := range map[string]string{
		"etcd-endpoints": "http://a:1,http://b:2", "iface": "eth0 eth1", "ip-masq": "true", "public-ip": "192.0.2.1", "kube-subnet-mgr": "false", "subnet-file": "", "etcd-prefix": "/here",
	} {
		if got := strings.Join(p.Flag(name), " "); got != want {
			t.Errorf("--%s: %q, want %q", name, got, want)
		}
	}
}

// A service is found by its cgroup, of either version; and a container.
func TestCgroups(t *testing.T) {
	const id = "0123456789ab0123456789ab0123456789ab0123456789ab0123456789abcdef"
	for group, want := range map[string]string{
		"0::/system.slice/docker-" + id + ".scope":                                                                   "docker 0123456789ab",
		"12:memory:/docker/" + id + "\n1:name=systemd:/docker/" + id:                                                 "docker 0123456789ab",
		"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7f.slice/cri-containerd-" + id + ".scope": "containerd 0123456789ab",
		"4:cpu:/kubepods/besteffort/pod0c2e6a0c-0000-4000-8000-000000000000/" + id:                                   "0123456789ab",
		"0::/machine.slice/libpod-" + id + ".scope":                                                                  "podman 0123456789ab",
		"0::/system.slice/flanneld.service":                                                                          "",
		"0::/user.slice/user-0.slice/session-1.scope":                                                                "",
	} {
		if got := containerOf(group); got != want {
			t.Errorf("%s: %q, want %q", group, got, want)
		}
	}
	for group, want := range map[string]string{
		"0::/system.slice/flanneld.service\n":                                           "flanneld.service",
		"11:devices:/system.slice\n1:name=systemd:/system.slice/kube-flannel.service\n": "kube-flannel.service",
		"4:cpu:/system.slice/flanneld.service\n1:name=systemd:/user.slice/a.scope\n":    "",
		"0::/system.slice/docker-" + id + ".scope\n":                                    "",
		"0::/system.slice/docker.service\n":                                             "",
	} {
		if got := serviceIn(group); got != want {
			t.Errorf("%s: %q, want %q", group, got, want)
		}
	}
}

// A password is written down nowhere.
func TestKnown(t *testing.T) {
	p := Process{Args: []string{"flanneld", "--etcd-password", "secret", "-etcd-password=secret", "--iface", "eth0"}}
	if got := strings.Join(p.Known().Args, " "); strings.Contains(got, "secret") || !strings.Contains(got, "--iface eth0") {
		t.Error(got)
	}
	if !slices.Contains(p.Args, "secret") {
		t.Error("it is gone from the process, too")
	}
}

// A flanneld is found by its name, in this network namespace only, and stopped.
func TestFindAndStop(t *testing.T) {
	netnstest.Enter(t)
	path := t.TempDir() + "/flanneld"
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	run(t, "cp "+sleep+" "+path)
	cmd := exec.Command(path, "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var found []Process
	for len(found) == 0 { // between fork and exec it has our name
		found = FindFlanneld()
	}
	if len(found) != 1 || found[0].PID != cmd.Process.Pid || !slices.Equal(found[0].Args, []string{path, "60"}) {
		t.Fatalf("%+v", found)
	}
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil { // as one that hangs
		t.Fatal(err)
	}
	if err := found[0].Stop(t.Context()); err != nil {
		t.Error(err)
	}
	<-ended
	if left := FindFlanneld(); len(left) != 0 {
		t.Errorf("%+v", left)
	}
}

// Another vxlan device keeps the port when flannel's goes down.
func TestPortHolder(t *testing.T) {
	j, _ := node(t)
	if name, err := j.PortHolder(8472); name != "" || err != nil {
		t.Errorf("%q, %v", name, err)
	}
	run(t, "ip link add other type vxlan id 7 dev eth0 dstport 8472")
	if name, err := j.PortHolder(8472); name != "" || err != nil {
		t.Errorf("down: %q, %v", name, err)
	}
	run(t, "ip link set other up")
	if name, err := j.PortHolder(8472); name != "other" || err != nil {
		t.Errorf("up: %q, %v", name, err)
	}
	if err := takeAll(j, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if err := host.CheckConflicts(host.Plan{Listen: netip.MustParseAddrPort("0.0.0.0:8472"), VXLAN: true, VNI: 1, Taken: j.Names()}); err == nil || !strings.Contains(err.Error(), "other") {
		t.Errorf("%v", err)
	}
	run(t, "ip link del other")
	if err := host.CheckConflicts(host.Plan{Listen: netip.MustParseAddrPort("0.0.0.0:8472"), VXLAN: true, VNI: 1, Taken: j.Names()}); err != nil {
		t.Error(err)
	}
}

// takeAll takes every part, as the daemon does one after the other. Done again it does what is left, which is nothing most of
// the time.
func takeAll(j *Journal, log *slog.Logger) error {
	err := j.Guard()
	for _, six := range []bool{false, true} {
		if err == nil {
			err = j.TakeDevice(six, log)
		}
	}
	if err != nil {
		return err
	}
	return j.TakeDirect()
}
