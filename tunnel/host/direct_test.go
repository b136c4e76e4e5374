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
