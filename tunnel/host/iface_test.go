//go:build linux

package host

import (
	"errors"
	"net/netip"
	"strings"
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

// The host of this test:
//
//	eth0  192.0.2.2/24, 2001:db8:1::2/64 and another that is deprecated   default routes of both
//	eth1  198.51.100.2/24, fd00::2/64 and 2001:db8:2::2/64, of which the kernel names the newer one first
//	eth2  203.0.113.2/24, link-local only
//	eth3  2001:db8:3::2/64
func TestChooseInterfaceWithIPv6(t *testing.T) {
	newNamespace(t)
	veth(t, "eth0", "192.0.2.2/24", "'2001:db8:1::f/64' preferred_lft 0", "2001:db8:1::2/64")
	veth(t, "eth1", "198.51.100.2/24", "2001:db8:2::2/64", "fd00::2/64")
	veth(t, "eth2", "203.0.113.2/24")
	veth(t, "eth3", "2001:db8:3::2/64")
	run(t, "ip route add default via 192.0.2.1; ip -6 route add default via fe80::1 dev eth0; ip -6 route add 2001:db8:ff::/48 via fe80::1 dev eth1")
	eventually(t, "no tentative address", func() bool { return !strings.Contains(run(t, "ip addr"), "tentative") })
	ip := netip.MustParseAddr
	both, six := InterfaceOptions{Families: BothFamilies}, InterfaceOptions{Families: IPv6}
	with := func(o InterfaceOptions, change func(*InterfaceOptions)) InterfaceOptions { change(&o); return o }
	for _, c := range []struct {
		name                    string
		opts                    InterfaceOptions
		wantName, addr, addr6   string
		wantPublic, wantPublic6 string
	}{
		{"default routes", both, "eth0", "192.0.2.2", "2001:db8:1::2", "192.0.2.2", "2001:db8:1::2"},
		{"name", with(both, func(o *InterfaceOptions) { o.Iface = []string{"eth1"} }), "eth1", "198.51.100.2", "fd00::2", "198.51.100.2", "fd00::2"},
		{"public address of it", with(both, func(o *InterfaceOptions) { o.Iface = []string{"eth1"}; o.PublicIPv6 = ip("2001:db8:2::2") }), "eth1", "198.51.100.2", "2001:db8:2::2", "198.51.100.2", "2001:db8:2::2"},
		{"public addresses of a gateway", with(both, func(o *InterfaceOptions) { o.PublicIP = ip("100.64.0.1"); o.PublicIPv6 = ip("2001:db8:99::1") }), "eth0", "192.0.2.2", "2001:db8:1::2", "100.64.0.1", "2001:db8:99::1"},
		{"public address of IPv4 of an interface", with(both, func(o *InterfaceOptions) { o.PublicIP = ip("198.51.100.2") }), "eth1", "198.51.100.2", "fd00::2", "198.51.100.2", "fd00::2"},
		{"IPv6: default route", six, "eth0", "", "2001:db8:1::2", "", "2001:db8:1::2"},
		{"IPv6: name", with(six, func(o *InterfaceOptions) { o.Iface = []string{"eth3"} }), "eth3", "", "2001:db8:3::2", "", "2001:db8:3::2"},
		{"IPv6: address", with(six, func(o *InterfaceOptions) { o.Iface = []string{"fd00::2"} }), "eth1", "", "fd00::2", "", "fd00::2"},
		{"IPv6: expression", with(six, func(o *InterfaceOptions) { o.IfaceRegex = []string{"^2001:db8:3:"} }), "eth3", "", "2001:db8:3::2", "", "2001:db8:3::2"},
		{"IPv6: can-reach", with(six, func(o *InterfaceOptions) { o.CanReach = ip("2001:db8:ff::1") }), "eth1", "", "2001:db8:2::2", "", "2001:db8:2::2"},
		{"IPv6: public address", with(six, func(o *InterfaceOptions) { o.PublicIPv6 = ip("2001:db8:3::2") }), "eth3", "", "2001:db8:3::2", "", "2001:db8:3::2"},
		{"IPv4 alone", InterfaceOptions{PublicIPv6: ip("fd00::2")}, "eth0", "192.0.2.2", "", "192.0.2.2", ""},
	} {
		got, err := ChooseInterface(c.opts)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		text := func(a netip.Addr) string {
			if !a.IsValid() {
				return ""
			}
			return a.String()
		}
		if got.Name != c.wantName || text(got.Addr) != c.addr || text(got.Addr6) != c.addr6 || text(got.PublicIP) != c.wantPublic || text(got.PublicIPv6) != c.wantPublic6 {
			t.Errorf("%s: got %+v", c.name, got)
		}
	}
	for _, c := range []struct {
		name   string
		before string
		opts   InterfaceOptions
		words  []string
	}{
		{"link-local only", "true", with(both, func(o *InterfaceOptions) { o.Iface = []string{"eth2"} }), []string{"eth2 (203.0.113.2) has no usable IPv6 address", "eth1 (fd00::2, 2001:db8:2::2)", "--iface"}},
		{"no IPv4", "true", with(both, func(o *InterfaceOptions) { o.Iface = []string{"eth3"} }), []string{`"eth3" has no IPv4 address`}},
		{"IPv6: link-local only", "true", with(six, func(o *InterfaceOptions) { o.Iface = []string{"eth2"} }), []string{`"eth2" has no IPv6 address`, "eth2 (no IPv6 address)"}},
		{"public address of another interface", "true", with(both, func(o *InterfaceOptions) { o.PublicIPv6 = ip("fd00::2") }), []string{"fd00::2 is the address of eth1", "eth0", "--iface"}},
		{"default routes part", "ip -6 route del default; ip -6 route add default via fe80::1 dev eth1", both, []string{"IPv4 leaves by eth0, that of IPv6 by eth1", "--iface"}},
		{"IPv6: no default route", "ip -6 route del default", six, []string{"no default route"}},
	} {
		run(t, c.before)
		_, err := ChooseInterface(c.opts)
		var no *NoInterfaceError
		if !errors.As(err, &no) {
			t.Errorf("%s: %v, want a NoInterfaceError", c.name, err)
			continue
		}
		contains(t, err.Error(), c.words...)
	}
	if got, err := ChooseInterface(both); err != nil || got.Addr6 != ip("2001:db8:1::2") {
		t.Errorf("without a default route of IPv6: %+v, %v", got, err)
	}
}
