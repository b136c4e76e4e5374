//go:build linux

package host

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

var anyVXLANPort = netip.MustParseAddrPort("0.0.0.0:8472")

func TestNoConflict(t *testing.T) {
	newNamespace(t)
	veth(t, "eth0", "192.0.2.2/24")
	run(t, "ip route add default via 192.0.2.1")
	p := Plan{TUN: "muslin0", Network: prefix("10.244.0.0/16"), Listen: anyVXLANPort, VXLAN: true, VNI: 1}
	if err := CheckConflicts(p); err != nil {
		t.Errorf("CheckConflicts() = %v", err)
	}
}

func TestVXLANConflict(t *testing.T) {
	for _, c := range []struct {
		name   string
		device string // arguments of ip link add
		up     bool
		vxlan  bool
		words  []string // none: no conflict
	}{
		{"ours, up", "flannel.1 type vxlan id 1 dstport 8472", true, true, []string{"flannel.1", "VNI 1", "up", "ip link del flannel.1", "8472"}},
		{"ours, down", "flannel.1 type vxlan id 1 dstport 8472", false, true, []string{"flannel.1", "down", "ip link del flannel.1"}},
		{"other VNI, up", "vx7 type vxlan id 7 dstport 8472", true, true, []string{"vx7", "VNI 7", "owns UDP port 8472", "ip link del vx7"}},
		{"other VNI, down", "vx7 type vxlan id 7 dstport 8472", false, true, nil},
		{"every VNI, up", "vx type vxlan external dstport 8472", true, true, []string{"every VNI", "owns UDP port 8472"}},
		{"other port", "vx4789 type vxlan id 1 dstport 4789", true, true, nil},
		{"udp backend on its port", "flannel.1 type vxlan id 1 dstport 8472", true, false, []string{"flannel.1"}},
		{"udp backend, device down", "flannel.1 type vxlan id 1 dstport 8472", false, false, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			newNamespace(t)
			veth(t, "eth0", "192.0.2.2/24")
			run(t, "ip link add "+c.device+" dev eth0 2>/dev/null || ip link add "+c.device)
			if c.up {
				run(t, "ip link set $(ip -o link show type vxlan | sed 's/^[0-9]*: //;s/:.*//') up")
			}
			err := CheckConflicts(Plan{Listen: anyVXLANPort, VXLAN: c.vxlan, VNI: 1})
			if c.words == nil {
				if err != nil {
					t.Fatalf("CheckConflicts() = %v, want none", err)
				}
				return
			}
			var want *VXLANDeviceError
			if !errors.As(err, &want) {
				t.Fatalf("CheckConflicts() = %v, want a VXLANDeviceError", err)
			}
			if port := new(PortTakenError); errors.As(err, &port) {
				t.Errorf("the same thing is said twice: %v", err)
			}
			if want.Up != c.up {
				t.Errorf("Up = %v", want.Up)
			}
			contains(t, err.Error(), c.words...)
		})
	}
}

func TestPortTaken(t *testing.T) {
	newNamespace(t)
	veth(t, "eth0", "192.0.2.2/24", "192.0.2.3/24")
	self := strconv.Itoa(os.Getpid())
	for _, c := range []struct {
		name, network, held, wanted string
		taken                       bool
	}{
		{"same address", "udp4", "192.0.2.2:8285", "192.0.2.2:8285", true},
		{"wildcard holds", "udp4", "0.0.0.0:8285", "192.0.2.2:8285", true},
		{"wildcard wanted", "udp4", "192.0.2.2:8285", "0.0.0.0:8285", true},
		{"dual stack holds", "udp", "[::]:8285", "192.0.2.2:8285", true},
		{"other address", "udp4", "192.0.2.3:8285", "192.0.2.2:8285", false},
		{"other port", "udp4", "192.0.2.2:8286", "192.0.2.2:8285", false},
	} {
		held, err := net.ListenPacket(c.network, c.held)
		if err != nil {
			t.Fatal(err)
		}
		wanted := netip.MustParseAddrPort(c.wanted)
		owner, found := PortOwner(wanted)
		err = CheckPort(wanted)
		held.Close()
		if found != c.taken || (err != nil) != c.taken {
			t.Errorf("%s: found %v, error %v, want taken %v", c.name, found, err, c.taken)
			continue
		}
		if !c.taken {
			continue
		}
		var want *PortTakenError
		if !errors.As(err, &want) || !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("%s: %v, want a PortTakenError", c.name, err)
			continue
		}
		if owner.PID != os.Getpid() || owner.Command == "" || want.Owner != owner {
			t.Errorf("%s: owner %+v, in the error %+v", c.name, owner, want.Owner)
		}
		contains(t, err.Error(), c.wanted, "process "+self, owner.Command, "stop it", "Backend.Port")
	}
	if _, found := PortOwner(netip.MustParseAddrPort("192.0.2.2:8285")); found {
		t.Error("an owner is left")
	}
	if err := CheckPort(netip.MustParseAddrPort("192.0.2.77:8285")); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("an address of nobody: %v", err)
	}
}

func TestPortOfKernelDevice(t *testing.T) {
	newNamespace(t)
	run(t, "ip link add vx7 type vxlan id 7 dstport 8472 dev lo && ip link set vx7 up")
	err := CheckPort(anyVXLANPort)
	var want *PortTakenError
	if !errors.As(err, &want) {
		t.Fatalf("CheckPort() = %v, want a PortTakenError", err)
	}
	if want.Owner.Device != "vx7" || want.Owner.Kind != "vxlan" || want.Owner.PID != 0 {
		t.Errorf("owner %+v", want.Owner)
	}
	contains(t, err.Error(), "the kernel's vxlan device vx7", "ip link del vx7")
}

func TestTUNTaken(t *testing.T) {
	self := strconv.Itoa(os.Getpid())
	for _, c := range []struct {
		name  string
		make  func(t *testing.T)
		pid   int
		kind  string
		words []string
	}{
		{"held by a process", func(t *testing.T) { openTestTUN(t, "muslin0") }, os.Getpid(), "tun", []string{"process " + self, "--tun-name"}},
		{"left behind", func(t *testing.T) { run(t, "ip tuntap add dev muslin0 mode tun") }, 0, "tun", []string{"muslin cleanup", "--tun-name"}},
		{"a bridge", func(t *testing.T) { run(t, "ip link add muslin0 type bridge") }, 0, "bridge", []string{"bridge", "ip link del muslin0", "--tun-name"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			newNamespace(t)
			c.make(t)
			err := CheckConflicts(Plan{TUN: "muslin0"})
			var want *TUNTakenError
			if !errors.As(err, &want) {
				t.Fatalf("CheckConflicts() = %v, want a TUNTakenError", err)
			}
			if want.PID != c.pid || want.Type != c.kind {
				t.Errorf("%+v, want process %d, type %s", want, c.pid, c.kind)
			}
			contains(t, err.Error(), c.words...)
			if err := CheckConflicts(Plan{TUN: "muslin1"}); err != nil {
				t.Errorf("another name: %v", err)
			}
		})
	}
}

// A TUN of the same name in another namespace belongs to somebody else.
func TestTUNHolderElsewhere(t *testing.T) {
	newNamespace(t)
	pid := holdTUN(t, "muslin0", true)
	run(t, "ip tuntap add dev muslin0 mode tun")
	if got, ok := tunHolder("muslin0"); ok {
		t.Errorf("process %d is said to hold a device that nobody holds", got)
	}
	run(t, "ip link del muslin0")
	here := holdTUN(t, "muslin0", false)
	if got, ok := tunHolder("muslin0"); !ok || got != here {
		t.Errorf("holder is %d, %v, want %d; %d holds one elsewhere", got, ok, here, pid)
	}
}

func TestRouteOverlap(t *testing.T) {
	for _, c := range []struct {
		name     string
		commands string
		previous string
		words    []string // none: no conflict
	}{
		{"connected network inside", "ip addr add 10.244.7.1/24 dev eth1", "", []string{"route 10.244.7.0/24 on eth1", "10.244.0.0/16", "another Network"}},
		{"connected network around", "ip addr add 10.1.2.3/8 dev eth1", "", []string{"route 10.0.0.0/8 on eth1"}},
		{"route through a gateway", "ip route add 10.244.128.0/17 via 192.0.2.1", "", []string{"route 10.244.128.0/17 via 192.0.2.1 on eth0"}},
		{"the whole overlay elsewhere", "ip route add 10.244.0.0/16 dev eth1", "", []string{"route 10.244.0.0/16 on eth1"}},
		{"blackhole", "ip route add blackhole 10.244.0.0/16", "", []string{"route 10.244.0.0/16;"}},
		{"address without a route", "ip addr add 10.244.7.1/24 dev eth1 noprefixroute", "", []string{"address 10.244.7.1/24 on eth1"}},
		{"many", "for i in 1 2 3 4 5; do ip route add 10.244.$i.0/24 dev eth1; done", "", []string{"and 2 more"}},
		{"pod bridge of another subnet", "ip link add cni0 type bridge; ip addr add 10.244.3.1/24 dev cni0; ip link set cni0 up", "10.244.5.0/24", []string{"10.244.3.0/24 on cni0"}},
		{"gateway inside our subnet", "ip route add 10.244.5.0/25 via 192.0.2.1", "10.244.5.0/24", []string{"10.244.5.0/25 via 192.0.2.1"}},

		{"nothing", "true", "", nil},
		{"a site's wider route by way of a router", "ip route add 10.0.0.0/8 via 192.0.2.1", "", nil},
		{"other networks", "ip addr add 10.245.0.1/24 dev eth1", "", nil},
		{"default route on a device", "ip route add default dev eth1 metric 9", "", nil},
		{"our own of last time", "ip route add 10.244.0.0/16 dev eth1 proto 218; ip route add blackhole 10.244.5.0/24 metric 1000000 proto 218", "", nil},
		{"pod bridge of our subnet", "ip link add cni0 type bridge; ip addr add 10.244.5.1/24 dev cni0; ip link set cni0 up", "10.244.5.0/24", nil},
		{"routes to our own pods", "ip route add 10.244.5.9/32 dev eth1", "10.244.5.0/24", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			newNamespace(t)
			veth(t, "eth0", "192.0.2.2/24")
			veth(t, "eth1")
			run(t, "ip route add default via 192.0.2.1; "+c.commands)
			p := Plan{TUN: "muslin0", Network: prefix("10.244.0.0/16")}
			if c.previous != "" {
				p.Previous = prefix(c.previous)
			}
			err := CheckConflicts(p)
			if c.words == nil {
				if err != nil {
					t.Fatalf("CheckConflicts() = %v, want none", err)
				}
				return
			}
			var want *RouteOverlapError
			if !errors.As(err, &want) {
				t.Fatalf("CheckConflicts() = %v, want a RouteOverlapError", err)
			}
			contains(t, err.Error(), c.words...)
		})
	}
}

func TestAllConflictsAtOnce(t *testing.T) {
	newNamespace(t)
	veth(t, "eth0", "10.244.0.5/16")
	run(t, "ip link add muslin0 type bridge; ip link add flannel.1 type vxlan id 1 dstport 8472 dev eth0")
	err := CheckConflicts(Plan{TUN: "muslin0", Network: prefix("10.244.0.0/16"), Listen: anyVXLANPort, VXLAN: true, VNI: 1})
	var device *VXLANDeviceError
	var tun *TUNTakenError
	var route *RouteOverlapError
	if !errors.As(err, &device) || !errors.As(err, &tun) || !errors.As(err, &route) {
		t.Errorf("CheckConflicts() = %v, want all three", err)
	}
}

func TestParseProcAddr(t *testing.T) {
	for in, want := range map[string]string{
		"0100007F:2118":                         "127.0.0.1:8472",
		"00000000:0035":                         "0.0.0.0:53",
		"00000000000000000000000000000000:2118": "[::]:8472",
		"0000000000000000FFFF00000100007F:0035": "[::ffff:127.0.0.1]:53",
		"":                                      "",
		"0100007F":                              "",
		"0100007G:2118":                         "",
		"010000:2118":                           "",
		"0100007F0100007F:2118":                 "",
		"0100007F:12118":                        "",
	} {
		got, ok := parseProcAddr(in)
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("parseProcAddr(%q) = %v, %v, want %q", in, got, ok, want)
		}
	}
}
