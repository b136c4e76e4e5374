//go:build linux

package host

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// directRoutes are as package direct makes them, but for their source address, with which the kernel would remove
// them on its own when that goes; and beside them, one of another network's daemon and one of another
// program's.
const directRoutes = `ip route add 10.244.7.0/24 via 192.0.2.7 proto 218
	ip route add 10.244.8.0/24 via 192.0.2.8 proto 218`

const otherRoutes = `ip route add 10.99.1.0/24 via 192.0.2.9 proto 218
	ip route add 10.100.1.0/24 via 192.0.2.9 proto static`

func countDirect(t *testing.T) int {
	return strings.Count(run(t, "ip route show proto 218"), "10.244.7.0/24 via 192.0.2.7")
}

func TestUndoRemovesDirectRoutes(t *testing.T) {
	for _, wanted := range []bool{true, false} {
		t.Run(fmt.Sprintf("wanted %v", wanted), func(t *testing.T) {
			newHost(t)
			run(t, otherRoutes)
			f := openTestTUN(t, "muslin0")
			before := snapshot(t)
			c := config(t.TempDir())
			c.DirectRoutes = wanted
			s, err := Setup(c)
			if err != nil {
				t.Fatal(err)
			}
			run(t, directRoutes)
			if err := s.Undo(); err != nil {
				t.Fatal(err)
			}
			if !wanted { // then they are not this daemon's
				run(t, "ip route del 10.244.7.0/24 && ip route del 10.244.8.0/24")
			}
			wantSame(t, before)
			f.Close()
		})
	}
}

// The next daemon leaves those of a killed one as they are, if it wants some too.
func TestSetupTakesOverDirectRoutes(t *testing.T) {
	for _, wanted := range []bool{true, false} {
		t.Run(fmt.Sprintf("wanted %v", wanted), func(t *testing.T) {
			newHost(t)
			before := snapshot(t)
			c := config(t.TempDir())
			c.DirectRoutes = true
			killed(t, c)
			run(t, directRoutes)
			f := openTestTUN(t, "muslin0")
			c.DirectRoutes = wanted
			s, err := Setup(c)
			if err != nil {
				t.Fatal(err)
			}
			if n := countDirect(t); (n == 1) != wanted {
				t.Errorf("wanted %v: %d direct routes", wanted, n)
			}
			if err := s.Undo(); err != nil {
				t.Fatal(err)
			}
			f.Close()
			run(t, "ip link del muslin0")
			wantSame(t, before)
		})
	}
}

func TestCleanupRemovesDirectRoutes(t *testing.T) {
	newHost(t)
	before := snapshot(t)
	c := config(t.TempDir())
	c.DirectRoutes = true
	killed(t, c)
	run(t, directRoutes)
	did, err := Cleanup(c.StateDir, nil)
	if err != nil {
		t.Fatal(err)
	}
	contains(t, strings.Join(did, "\n"), "removed 2 direct routes to peers")
	wantSame(t, before)
}

// Without a journal nothing but its routes tells which TUN device is ours. Direct routes lead to the underlay's
// interface, which may be a TUN device of a VPN's.
func TestCleanupLeavesTheUnderlay(t *testing.T) {
	newHost(t)
	run(t, `ip tuntap add dev vpn0 mode tun && ip addr add 198.51.100.1/24 dev vpn0
		ip route add 10.244.7.0/24 via 198.51.100.7 dev vpn0 proto 218 onlink || true`)
	if _, err := Cleanup(t.TempDir()+"/never", nil); err != nil {
		t.Fatal(err)
	}
	contains(t, run(t, "ip link show vpn0"), "vpn0")
}

// Run leaves direct routes to package direct, and is not woken by their coming and going.
func TestRunLeavesDirectRoutes(t *testing.T) {
	newHost(t)
	openTestTUN(t, "muslin0")
	c := config(t.TempDir())
	c.DirectRoutes, c.Resync = true, 100*time.Millisecond
	s, err := Setup(c)
	if err != nil {
		t.Fatal(err)
	}
	run(t, directRoutes)
	err = runWhile(t, s, func(in func(string) string) {
		in("ip route del 10.244.8.0/24")
		time.Sleep(time.Second)
	})
	if err != nil {
		t.Errorf("Run() = %v", err)
	}
	if out := run(t, "ip route show proto 218"); !strings.Contains(out, "10.244.7.0/24") || strings.Contains(out, "10.244.8.0/24") {
		t.Errorf("routes\n%s", out)
	}
	if err := s.Undo(); err != nil {
		t.Fatal(err)
	}
}

func TestStrictReversePath(t *testing.T) {
	newHost(t)
	for _, c := range []struct {
		all, own string
		strict   bool
	}{{"0", "0", false}, {"0", "1", true}, {"1", "0", true}, {"1", "2", false}, {"2", "1", false}, {"1", "1", true}} {
		run(t, "sysctl -qw net.ipv4.conf.all.rp_filter="+c.all+" net.ipv4.conf.eth0.rp_filter="+c.own)
		if got := StrictReversePath("eth0"); (got == "net/ipv4/conf/eth0/rp_filter") != c.strict || got == "" == c.strict {
			t.Errorf("all %s, eth0 %s: %q", c.all, c.own, got)
		}
	}
}

// hostGateway is a set-up without a TUN device.
func hostGateway(stateDir string) SetupConfig {
	c := config(stateDir)
	c.TUN, c.DirectRoutes = "", true
	return c
}

func TestSetupWithoutTUN(t *testing.T) {
	newHost(t)
	before := snapshot(t)
	c := hostGateway(t.TempDir())
	c.Resync = 100 * time.Millisecond
	s, err := Setup(c)
	if err != nil {
		t.Fatal(err)
	}
	run(t, directRoutes)
	err = runWhile(t, s, func(in func(string) string) {
		for _, d := range []struct{ damage, look, want string }{
			{"ip route del blackhole 10.244.5.0/24", "ip route show proto 218", "blackhole"},
			{"sysctl -qw net.ipv4.ip_forward=0", "sysctl -n net.ipv4.ip_forward", "1"},
			{"iptables -t nat -F MUSLIN-POSTRTG", "iptables-save | grep -c -- '-A.*MUSLIN'", "10"},
		} {
			in(d.damage)
			eventuallyIn(t, in, d.look, d.want)
		}
	})
	if err != nil {
		t.Errorf("Run() = %v", err)
	}
	if out := run(t, "ip route show 10.244.0.0/16; ip tuntap"); out != "" {
		t.Errorf("there is %s", out)
	}
	// Killed, and set up again by the next: routes stay.
	again, err := Setup(c)
	if err != nil {
		t.Fatal(err)
	}
	if countDirect(t) != 1 {
		t.Error("a direct route is gone")
	}
	if err := errors.Join(again.Restore(), again.Undo()); err != nil {
		t.Fatal(err)
	}
	wantSame(t, before)
}

// From a network with a TUN device to one without, and back, each time after a kill.
func TestSetupWithoutTUNAfterOneWith(t *testing.T) {
	newHost(t)
	before := snapshot(t)
	c := config(t.TempDir())
	c.DirectRoutes = true
	killed(t, c)
	run(t, directRoutes)
	if _, err := Setup(hostGateway(c.StateDir)); err != nil {
		t.Fatal(err)
	}
	if out := run(t, "ip tuntap; ip route show 10.244.0.0/16"); out != "" {
		t.Errorf("still there: %s", out)
	}
	run(t, "ip tuntap add dev muslin0 mode tun")
	s, err := Setup(c)
	if err != nil {
		t.Fatal(err)
	}
	contains(t, run(t, "ip route show 10.244.0.0/16"), "dev muslin0")
	if err := s.Undo(); err != nil {
		t.Fatal(err)
	}
	run(t, "ip tuntap del dev muslin0 mode tun")
	wantSame(t, before)
}

// hostGateway6 is that of IPv6 alone, and direct6 the routes that package direct then makes, beside one of another program's.
func hostGateway6(stateDir string) SetupConfig {
	c := only6(config6(stateDir))
	c.TUN, c.DirectRoutes = "", true
	return c
}

const direct6 = `ip -6 route add 2001:db8:42:7::/64 via 2001:db8:1::7 dev eth0 proto 218
	ip -6 route add 2001:db8:42:8::/64 via 2001:db8:1::8 dev eth0 proto 218`

const other6 = `ip -6 route add 2001:db8:43:1::/64 via 2001:db8:1::9 dev eth0 proto static`

func countDirect6(t *testing.T) int {
	return strings.Count(run(t, "ip -6 route show proto 218"), " via 2001:db8:1::")
}

// A set-up of IPv6 without a TUN device is put right while it runs, taken over by the next, and undone. That of IPv4 beside it
// has a state directory of its own, and neither touches the other's.
func TestSetupWithoutTUN6(t *testing.T) {
	newHost6(t)
	run(t, other6)
	before := snapshot(t)
	dir := t.TempDir()
	four, err := Setup(hostGateway(dir))
	if err != nil {
		t.Fatal(err)
	}
	c := hostGateway6(dir + "/ipv6")
	c.Resync = 100 * time.Millisecond
	six, err := Setup(c)
	if err != nil {
		t.Fatal(err)
	}
	run(t, directRoutes+"\n"+direct6)
	contains(t, run(t, "ip -6 route show default"), "via fe80::1 dev eth0 proto ra") // forwarding did not take it
	err = runWhile(t, six, func(in func(string) string) {
		for _, d := range []struct{ damage, look, want string }{
			{"ip -6 route del blackhole 2001:db8:42:5::/64 metric 1000000", "ip -6 route show type blackhole proto 218", "2001:db8:42:5::/64 dev lo metric 1000000"},
			{"sysctl -qw net.ipv6.conf.all.forwarding=0", "sysctl -n net.ipv6.conf.all.forwarding", "1"},
			{"ip6tables -t nat -F MUSLIN-POSTRTG", "ip6tables-save | grep -c -- '-A.*MUSLIN'", "10"},
		} {
			in(d.damage)
			eventuallyIn(t, in, d.look, d.want)
		}
	})
	if err != nil {
		t.Errorf("Run() = %v", err)
	}
	if out := run(t, "ip -6 route show 2001:db8:42::/56; ip tuntap"); out != "" {
		t.Errorf("there is %s", out)
	}

	again, err := Setup(c) // after a kill
	if err != nil {
		t.Fatal(err)
	}
	if n, n6 := countDirect(t), countDirect6(t); n != 1 || n6 != 2 {
		t.Errorf("%d and %d direct routes", n, n6)
	}
	if err := errors.Join(again.Restore(), again.Undo()); err != nil {
		t.Fatal(err)
	}
	if n, n6 := countDirect(t), countDirect6(t); n != 1 || n6 != 0 {
		t.Errorf("IPv6 undone: %d and %d direct routes", n, n6)
	}
	if err := four.Undo(); err != nil {
		t.Fatal(err)
	}
	wantSame(t, before)
}

func TestCleanupRemovesDirectRoutes6(t *testing.T) {
	newHost6(t)
	run(t, other6+"\n"+otherRoutes)
	before := snapshot(t)
	c := hostGateway6(t.TempDir())
	if Journaled(c.StateDir) {
		t.Error("a journal before the set-up")
	}
	if _, err := Setup(c); err != nil {
		t.Fatal(err)
	}
	run(t, direct6)
	if !Journaled(c.StateDir) {
		t.Error("no journal")
	}
	did, err := Cleanup(c.StateDir, nil)
	if err != nil {
		t.Fatal(err)
	}
	contains(t, strings.Join(did, "\n"), "removed 2 direct routes to peers", "removed blackhole route 2001:db8:42:5::/64")
	wantSame(t, before)
}
