//go:build linux

package host

import (
	"errors"
	"net/netip"
	"testing"
)

// The host of these tests:
//
//	eth0  192.0.2.2/24, 192.0.2.3/24, MTU 1500   default route via 192.0.2.1, metric 200
//	eth1  198.51.100.2/24, MTU 9000              203.0.113.0/24 via 198.51.100.1
//	eth2  no address
func threeInterfaces(t *testing.T) {
	newNamespace(t)
	veth(t, "eth0", "192.0.2.2/24", "192.0.2.3/24")
	veth(t, "eth1", "198.51.100.2/24")
	veth(t, "eth2")
	run(t, "ip link set eth1 mtu 9000; ip route add default via 192.0.2.1 metric 200; ip route add 203.0.113.0/24 via 198.51.100.1")
}

func TestChooseInterface(t *testing.T) {
	threeInterfaces(t)
	ip := netip.MustParseAddr
	for _, c := range []struct {
		name       string
		opts       InterfaceOptions
		wantName   string
		wantAddr   string
		wantPublic string // "" means wantAddr
	}{
		{"default route", InterfaceOptions{}, "eth0", "192.0.2.2", ""},
		{"name", InterfaceOptions{Iface: []string{"eth1"}}, "eth1", "198.51.100.2", ""},
		{"address", InterfaceOptions{Iface: []string{"192.0.2.3"}}, "eth0", "192.0.2.3", ""},
		{"second name", InterfaceOptions{Iface: []string{"bond0", "eth2", "eth1"}}, "eth1", "198.51.100.2", ""},
		{"names before expressions", InterfaceOptions{Iface: []string{"eth1"}, IfaceRegex: []string{"eth0"}}, "eth1", "198.51.100.2", ""},
		{"expression on a name", InterfaceOptions{IfaceRegex: []string{"^eth[1-9]$"}}, "eth1", "198.51.100.2", ""},
		{"expression on an address", InterfaceOptions{IfaceRegex: []string{`^192\.0\.2\.3$`}}, "eth0", "192.0.2.3", ""},
		{"expression after a miss", InterfaceOptions{Iface: []string{"bond0"}, IfaceRegex: []string{"nope", "198"}}, "eth1", "198.51.100.2", ""},
		{"names before can-reach", InterfaceOptions{Iface: []string{"eth0"}, CanReach: ip("203.0.113.9")}, "eth0", "192.0.2.2", ""},
		{"can-reach", InterfaceOptions{CanReach: ip("203.0.113.9")}, "eth1", "198.51.100.2", ""},
		{"can-reach by default", InterfaceOptions{CanReach: ip("8.8.8.8")}, "eth0", "192.0.2.2", ""},
		{"can-reach itself", InterfaceOptions{CanReach: ip("198.51.100.2")}, "eth1", "198.51.100.2", ""},
		{"public address of an interface", InterfaceOptions{PublicIP: ip("198.51.100.2")}, "eth1", "198.51.100.2", ""},
		{"public address of a gateway", InterfaceOptions{PublicIP: ip("100.64.0.1")}, "eth0", "192.0.2.2", "100.64.0.1"},
		{"name and public address", InterfaceOptions{Iface: []string{"eth1"}, PublicIP: ip("100.64.0.1")}, "eth1", "198.51.100.2", "100.64.0.1"},
	} {
		got, err := ChooseInterface(c.opts)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		public := c.wantPublic
		if public == "" {
			public = c.wantAddr
		}
		mtu := map[string]int{"eth0": 1500, "eth1": 9000}[c.wantName]
		if got.Name != c.wantName || got.Addr != ip(c.wantAddr) || got.PublicIP != ip(public) || got.MTU != mtu || got.Index == 0 {
			t.Errorf("%s: got %+v, want %s %s, public %s, MTU %d", c.name, got, c.wantName, c.wantAddr, public, mtu)
		}
	}
}

func TestChooseInterfaceRefuses(t *testing.T) {
	threeInterfaces(t)
	for _, c := range []struct {
		name   string
		before string
		opts   InterfaceOptions
		words  []string
	}{
		{"no such name", "true", InterfaceOptions{Iface: []string{"bond0"}}, []string{`no interface "bond0"`, "eth0 (192.0.2.2, 192.0.2.3)", "--iface"}},
		{"no such address", "true", InterfaceOptions{Iface: []string{"192.0.2.99"}}, []string{"no interface has the address 192.0.2.99", "eth1 (198.51.100.2)"}},
		{"no address", "true", InterfaceOptions{Iface: []string{"eth2"}}, []string{`"eth2" has no IPv4 address`}},
		{"no match", "true", InterfaceOptions{IfaceRegex: []string{"^wl"}}, []string{`matches "^wl"`, "--iface"}},
		{"no route to target", "ip route del default", InterfaceOptions{CanReach: netip.MustParseAddr("8.8.8.8")}, []string{"--iface-can-reach 8.8.8.8"}},
		{"no default route", "true", InterfaceOptions{}, []string{"no default route", "--iface", "eth0 (192.0.2.2"}},
		{"default route without address", "ip route add default dev eth2", InterfaceOptions{}, []string{"eth2", "no usable IPv4 address"}},
	} {
		run(t, c.before)
		_, err := ChooseInterface(c.opts)
		var want *NoInterfaceError
		if !errors.As(err, &want) {
			t.Errorf("%s: %v, want a NoInterfaceError", c.name, err)
			continue
		}
		contains(t, err.Error(), c.words...)
	}
	if _, err := ChooseInterface(InterfaceOptions{IfaceRegex: []string{"eth("}}); err == nil {
		t.Error("a bad expression was taken")
	} else {
		contains(t, err.Error(), "--iface-regex", "eth(")
	}
}
