//go:build linux

package host

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"muslin/encap"
)

// config6 is config for both families. The host of these tests has beside IPv4 (see config)
//
//	eth0  2001:db8:1::2/64, accept_ra 1, default route by a router advertisement
//	pods  2001:db8:42:5::1/64 (the pods' bridge), 2001:db8:42:5::/64 being the leased subnet
//	muslin0  2001:db8:42:5::/128, 2001:db8:42::/56
func config6(stateDir string) SetupConfig {
	c := config(stateDir)
	c.Address6, c.Network6, c.Subnet6 = prefix("2001:db8:42:5::/128"), prefix("2001:db8:42::/56"), prefix("2001:db8:42:5::/64")
	c.Outer.Iface = "eth0"
	return c
}

// only6 leaves IPv6 alone.
func only6(c SetupConfig) SetupConfig {
	c.Address, c.Network, c.Subnet = netip.Prefix{}, netip.Prefix{}, netip.Prefix{}
	return c
}

func newHost6(t *testing.T) {
	newHost(t)
	run(t, "sysctl -qw net.ipv6.conf.all.forwarding=0 net.ipv6.conf.eth0.accept_ra=1 net.ipv6.conf.pods.accept_ra=1")
	run(t, "ip addr add 2001:db8:1::2/64 dev eth0; ip addr add 2001:db8:42:5::1/64 dev pods; ip -6 route add default via fe80::1 dev eth0 proto ra metric 1024")
	run(t, "ip6tables -N HERS && ip6tables -A FORWARD -j HERS && ip6tables -t nat -A POSTROUTING -s fd17::/64 -j MASQUERADE")
	eventually(t, "no tentative address", func() bool { return !strings.Contains(run(t, "ip addr"), "tentative") })
	awaitLocal(t, "local 2001:db8:1::2 dev eth0")
	awaitLocal(t, "local 2001:db8:42:5::1 dev pods")
}

// awaitLocal waits until a route is in the local table. The kernel sees to those of an IPv6 address a moment after it was given, from
// a queue of its own (addrconf_dad_work in net/ipv6/addrconf.c).
func awaitLocal(t *testing.T, route string) {
	t.Helper()
	eventually(t, route, func() bool { return strings.Contains(run(t, "ip -6 route show table local"), route) })
}

func checkSetUp6(t *testing.T) {
	t.Helper()
	contains(t, run(t, "ip link show muslin0"), "mtu 1450", "qlen 1000", "UP")
	if got := run(t, "ip -6 -o addr show muslin0"); !strings.Contains(got, "inet6 2001:db8:42:5::/128") || strings.Count(got, "inet6") != 1 || strings.Contains(got, "tentative") {
		t.Errorf("addresses of the TUN: %s", got)
	}
	if got, want := strings.TrimSpace(run(t, "ip -6 route show proto 218 | sed 's/ pref medium//; s/ linkdown//; s/ *$//' | sort")),
		"2001:db8:42::/56 dev muslin0 src 2001:db8:42:5:: metric 1024\nblackhole 2001:db8:42:5::/64 dev lo metric 1000000"; got != want {
		t.Errorf("routes\n%s\nwant\n%s", got, want)
	}
	contains(t, run(t, "ip -6 route show default"), "via fe80::1 dev eth0 proto ra") // forwarding did not take it
	for path, want := range map[string]string{
		ip6Forward:                                      "1",
		sysctlRoot + "/ipv6/conf/eth0/accept_ra":        "2",
		sysctlRoot + "/ipv6/conf/pods/accept_ra":        "1",
		sysctlRoot + "/ipv6/conf/muslin0/disable_ipv6":  "0",
		sysctlRoot + "/ipv6/conf/muslin0/accept_ra":     "0",
		sysctlRoot + "/ipv6/conf/muslin0/addr_gen_mode": "1",
	} {
		if got, err := readSysctl(path); err != nil || got != want {
			t.Errorf("%s = %q, %v, want %s", path, got, err, want)
		}
	}
	contains(t, run(t, "ip route get 2001:db8:42:9::9"), "dev muslin0", "src 2001:db8:42:5:: ")
	contains(t, run(t, "ip route get 2001:db8:42:5::9"), "dev pods")
	contains(t, run(t, "ip route get 2001:db8:9::9"), "dev eth0")
}

func TestSetupOfBothFamiliesAndUndo(t *testing.T) {
	for _, tool := range bothTools {
		t.Run(tool.name, func(t *testing.T) {
			newHost6(t)
			run(t, "sysctl -qw net.ipv6.conf.default.disable_ipv6=1") // which the TUN would start with
			openTestTUN(t, "muslin0")
			before := snapshot(t)
			c := config6(t.TempDir())
			c.UseNFTables = tool.nft
			s, err := Setup(c)
			if err != nil {
				t.Fatal(err)
			}
			checkSetUp4(t, "0")
			checkSetUp6(t)
			for _, f := range s.Features() {
				if !f.On || f.Reason != tool.name {
					t.Errorf("feature %+v", f)
				}
			}
			during := changed(before, snapshot(t))
			for _, k := range []string{"link", "addr", "route", "nft", ipForward, ip6Forward, sysctlRoot + "/ipv6/conf/eth0/forwarding", sysctlRoot + "/ipv6/conf/default/forwarding"} {
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
			if left, err := os.ReadDir(c.StateDir); err != nil || len(left) != 0 {
				t.Errorf("state directory holds %v, %v", left, err)
			}
		})
	}
}

// In a network of IPv6 alone nothing is done about IPv4.
func TestSetupOfIPv6Alone(t *testing.T) {
	for _, tool := range bothTools {
		t.Run(tool.name, func(t *testing.T) {
			newHost6(t)
			openTestTUN(t, "muslin0")
			before := snapshot(t)
			c := only6(config6(t.TempDir()))
			c.UseNFTables = tool.nft
			s, err := Setup(c)
			if err != nil {
				t.Fatal(err)
			}
			checkSetUp6(t)
			if got, _ := readSysctl(ipForward); got != "0" {
				t.Errorf("ip_forward = %s", got)
			}
			if got := run(t, "ip -4 addr show muslin0; ip -4 route show proto 218; iptables-save | grep MUSLIN || true; nft list tables | grep 'ip muslin' || true"); got != "" {
				t.Errorf("of IPv4 there is %s", got)
			}
			if did, err := s.converge(); err != nil || len(did) != 0 {
				t.Errorf("converge: %q, %v", did, err)
			}
			if err := s.Undo(); err != nil {
				t.Fatal(err)
			}
			wantSame(t, before)
		})
	}
}

func TestRunPutsIPv6Back(t *testing.T) {
	newHost6(t)
	openTestTUN(t, "muslin0")
	before := snapshot(t)
	c := config6(t.TempDir())
	c.Resync = time.Hour // events alone…
	s, err := Setup(c)
	if err != nil {
		t.Fatal(err)
	}
	err = runWhile(t, s, func(in func(string) string) {
		for _, d := range []struct{ damage, look, want string }{
			{"ip -6 route del 2001:db8:42::/56", "ip -6 route show 2001:db8:42::/56", "dev muslin0"},
			{"ip -6 route del blackhole 2001:db8:42:5::/64 metric 1000000", "ip -6 route show proto 218", "blackhole"},
			{"ip -6 addr del 2001:db8:42:5::/128 dev muslin0", "ip addr show muslin0; ip -6 route", "2001:db8:42:5::/128"},
			{"ip link set muslin0 down", "ip link show muslin0; ip -6 route", "2001:db8:42::/56 dev muslin0"},
		} {
			in(d.damage)
			eventuallyIn(t, in, d.look, d.want)
		}
	})
	if err != nil {
		t.Errorf("Run() = %v", err)
	}
	s.config.Resync = 100 * time.Millisecond // …and the period
	err = runWhile(t, s, func(in func(string) string) {
		in("sysctl -qw net.ipv6.conf.all.forwarding=0; ip6tables -F MUSLIN-FWD")
		eventuallyIn(t, in, "sysctl -n net.ipv6.conf.all.forwarding", "1")
		eventuallyIn(t, in, "ip6tables-save | grep -c -- '-A.*MUSLIN'", "10")
	})
	if err != nil {
		t.Errorf("Run() = %v", err)
	}
	checkSetUp6(t)
	if err := s.Undo(); err != nil {
		t.Fatal(err)
	}
	wantSame(t, before)
}

func TestCleanupOfBothFamiliesAfterKill(t *testing.T) {
	for _, tool := range bothTools {
		for _, journal := range []bool{true, false} {
			name := tool.name
			if !journal {
				name += " without a journal"
			}
			t.Run(name, func(t *testing.T) {
				newHost6(t)
				before := snapshot(t)
				c := config6(t.TempDir())
				c.UseNFTables = tool.nft
				killed(t, c)
				dir := c.StateDir
				if !journal {
					dir = filepath.Join(dir, "another")
				}
				did, err := Cleanup(dir, nil)
				if err != nil {
					t.Fatal(err)
				}
				contains(t, strings.Join(did, "\n"), "removed the "+tool.name+" rules of IPv6", "blackhole route 2001:db8:42:5::/64", "deleted the TUN device muslin0")
				if journal {
					contains(t, strings.Join(did, "\n"), ip6Forward+" back to 0", "eth0/accept_ra back to 1")
					wantSame(t, before)
					return
				}
				for _, k := range changed(before, snapshot(t)) {
					if !strings.HasPrefix(k, sysctlRoot) && k != "route" { // routers' anycast routes stay while the host forwards
						t.Errorf("%s is not as before", k)
					}
				}
				if left := run(t, "ip -6 route show proto 218"); left != "" {
					t.Errorf("left %s", left)
				}
			})
		}
	}
}

// A daemon takes over from one that was killed, with the other families: what that switched off is on, and the
// host is as before in the end.
func TestSetupTakesOverOtherFamilies(t *testing.T) {
	for name, c := range map[string]struct {
		first, second func(SetupConfig) SetupConfig
		check         func(*testing.T)
	}{
		"IPv6 comes": {func(c SetupConfig) SetupConfig { d := config(c.StateDir); return d }, func(c SetupConfig) SetupConfig { return c },
			func(t *testing.T) { checkSetUp4(t, "0"); checkSetUp6(t) }},
		"IPv6 goes": {func(c SetupConfig) SetupConfig { return c }, func(c SetupConfig) SetupConfig { return config(c.StateDir) },
			func(t *testing.T) {
				if got := run(t, "ip -6 addr show muslin0; ip -6 route show proto 218; ip6tables-save | grep MUSLIN || true"); got != "" {
					t.Errorf("of IPv6 there is %s", got)
				}
			}},
		"IPv4 goes": {func(c SetupConfig) SetupConfig { return c }, only6,
			func(t *testing.T) {
				checkSetUp6(t)
				if got := run(t, "ip -4 addr show muslin0; ip -4 route show proto 218; iptables-save | grep MUSLIN || true"); got != "" {
					t.Errorf("of IPv4 there is %s", got)
				}
			}},
		"nothing changes": {func(c SetupConfig) SetupConfig { return c }, func(c SetupConfig) SetupConfig { return c },
			func(t *testing.T) { checkSetUp4(t, "0"); checkSetUp6(t) }},
	} {
		t.Run(name, func(t *testing.T) {
			newHost6(t)
			before := snapshot(t)
			cfg := config6(t.TempDir())
			killed(t, c.first(cfg))
			f := openTestTUN(t, "muslin0")
			s, err := Setup(c.second(cfg))
			if err != nil {
				t.Fatal(err)
			}
			c.check(t)
			if err := s.Undo(); err != nil {
				t.Fatal(err)
			}
			f.Close()
			run(t, "ip link del muslin0")
			wantSame(t, before)
		})
	}
}

// A node with a TUN for each family has two set-ups. What becomes of one is nothing to the other: here that of IPv6
// starts on another TUN than the killed daemon had, so that it clears away what that left.
func TestTwoSetUps(t *testing.T) {
	for _, tool := range bothTools {
		t.Run(tool.name, func(t *testing.T) {
			newHost6(t)
			before := snapshot(t)
			four, six := config(t.TempDir()), only6(config6(t.TempDir()))
			six.TUN, six.MTU = "muslin6", 1430
			four.UseNFTables, six.UseNFTables = tool.nft, tool.nft
			killed(t, four)
			killed(t, six)
			run(t, "ip link del muslin6; ip tuntap add dev muslin6 mode tun")

			f4 := openTestTUN(t, "muslin0")
			s4, err := Setup(four)
			if err != nil {
				t.Fatal(err)
			}
			f6 := openTestTUN(t, "muslin6")
			s6, err := Setup(six)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range []*State{s4, s6} {
				if did, err := s.converge(); err != nil || len(did) != 0 {
					t.Errorf("the set-up of %s had to change %q, %v", s.config.TUN, did, err)
				}
				if did, err := s.convergeFirewall(); err != nil || len(did) != 0 {
					t.Errorf("the set-up of %s had to put in %q, %v", s.config.TUN, did, err)
				}
			}
			checkSetUp(t, "0")
			contains(t, run(t, "ip link show muslin6"), "mtu 1430", "UP")
			contains(t, run(t, "ip route get 2001:db8:42:9::9"), "dev muslin6", "src 2001:db8:42:5:: ")
			contains(t, run(t, "ip -6 addr show muslin6"), "2001:db8:42:5::/128")

			if err := s4.Undo(); err != nil {
				t.Fatal(err)
			}
			if did, err := s6.converge(); err != nil || len(did) != 0 {
				t.Errorf("after the other's end: changed %q, %v", did, err)
			}
			contains(t, run(t, "ip route get 2001:db8:42:9::9"), "dev muslin6")
			if err := s6.Undo(); err != nil {
				t.Fatal(err)
			}
			f4.Close()
			f6.Close()
			run(t, "ip link del muslin0; ip link del muslin6")
			wantSame(t, before)
		})
	}
}

func TestSetupRefusesIPv6(t *testing.T) {
	newHost6(t)
	openTestTUN(t, "muslin0")
	before := snapshot(t)
	for _, c := range []struct {
		name  string
		spoil func(*SetupConfig)
		words []string
	}{
		{"small MTU", func(c *SetupConfig) { c.MTU = 1279 }, []string{"1279", "1280", "EnableIPv6"}},
		{"IPv4 network", func(c *SetupConfig) { c.Network6 = c.Network }, []string{"Network6", "IPv6"}},
		{"no subnet", func(c *SetupConfig) { c.Subnet6 = netip.Prefix{} }, []string{"Subnet6", "IPv6"}},
		{"another's route", func(*SetupConfig) { run(t, "ip -6 route add 2001:db8:42::/56 dev eth0") }, []string{"route 2001:db8:42::/56", "ip -6 route show 2001:db8:42::/56"}},
	} {
		cfg := config6(t.TempDir())
		c.spoil(&cfg)
		if s, err := Setup(cfg); err == nil {
			t.Errorf("%s: no error", c.name)
			s.Undo()
		} else {
			contains(t, err.Error(), c.words...)
		}
	}
	run(t, "ip -6 route del 2001:db8:42::/56 dev eth0")
	wantSame(t, before)
	s, err := Setup(config6(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetMTU(encap.InnerMTU(1200)); err == nil || !strings.Contains(err.Error(), "1280") {
		t.Errorf("SetMTU(1200) = %v", err)
	}
	if err := s.SetMTU(1280); err != nil {
		t.Errorf("SetMTU(1280) = %v", err)
	}
	if err := s.Undo(); err != nil {
		t.Fatal(err)
	}
	wantSame(t, before)
}

func TestIPv6Conflicts(t *testing.T) {
	newHost6(t)
	plan := Plan{Network6: prefix("2001:db8:42::/56")}
	var overlap *RouteOverlapError
	if err := CheckConflicts(plan); !errors.As(err, &overlap) {
		t.Fatalf("the pods' bridge: %v", err)
	}
	contains(t, overlap.Error(), "2001:db8:42:5::/64 on pods", "ip -6 route show", "IPv6Network")
	plan.Previous6 = prefix("2001:db8:42:5::/64")
	if err := CheckConflicts(plan); err != nil {
		t.Errorf("the bridge of our own subnet: %v", err)
	}
	run(t, "ip -6 route add 2001:db8::/32 via fe80::1 dev eth0") // a site's
	if err := CheckConflicts(plan); err != nil {
		t.Errorf("a wider route by a router: %v", err)
	}
	run(t, "ip addr add 2001:db8:42:7::1/128 dev eth0")
	if err := CheckConflicts(plan); !errors.As(err, &overlap) || overlap.Routes[0].Device != "eth0" {
		t.Errorf("an address inside: %v", err)
	}
	if err := CheckConflicts(Plan{Network: prefix("10.244.0.0/16"), Previous: prefix("10.244.5.0/24")}); err != nil {
		t.Errorf("of IPv4: %v", err)
	}
	held, err := net.ListenPacket("udp6", "[2001:db8:1::2]:8472")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	var taken *PortTakenError
	if err := CheckPort(netip.MustParseAddrPort("[2001:db8:1::2]:8472")); !errors.As(err, &taken) || taken.Owner.PID != os.Getpid() {
		t.Errorf("a port that we hold ourselves: %v", err)
	}
	if err := CheckPort(netip.MustParseAddrPort("[2001:db8:1::2]:8473")); err != nil {
		t.Error(err)
	}
}

func TestRouteToIPv6(t *testing.T) {
	newHost6(t)
	got, err := RouteTo(netip.MustParseAddr("2001:db8:9::9"))
	if err != nil || got.Device != "eth0" || got.Gateway != netip.MustParseAddr("fe80::1") || got.Source != netip.MustParseAddr("2001:db8:1::2") || got.Local {
		t.Errorf("%+v, %v", got, err)
	}
}
