//go:build linux

package host

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The host forwards already, and the bridge has its anycast route for our address. A connection from elsewhere finds
// us nevertheless: that is what the route is in the way of.
func TestSetupBesideAnycastRoute(t *testing.T) {
	const anycast = "anycast 2001:db8:42:5:: dev pods"
	for _, how := range []string{"undo", "cleanup"} {
		newHost6(t)
		run(t, "sysctl -qw net.ipv6.conf.all.forwarding=1")
		awaitLocal(t, anycast)
		before := snapshot(t)
		c := only6(config6(t.TempDir()))
		c.ForwardRules, c.IPMasq = false, false
		s := killed(t, c)
		if text := run(t, "ip -6 route show table local"); strings.Contains(text, anycast) {
			t.Errorf("the anycast route is still there:\n%s", text)
		}
		awaitLocal(t, "local 2001:db8:42:5:: dev muslin0")
		contains(t, run(t, "ip route get 2001:db8:42:5::"), "local 2001:db8:42:5::")
		if did, err := s.converge(); err != nil || len(did) != 0 {
			t.Errorf("converge: %q, %v", did, err)
		}
		l, err := net.Listen("tcp6", "[2001:db8:42:5::]:5000")
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.DialTimeout("tcp6", "[2001:db8:42:5::]:5000", 20*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		l.Close()
		// A bridge that comes later stands behind us.
		run(t, "ip addr del 2001:db8:42:5::1/64 dev pods; ip addr add 2001:db8:42:5::1/64 dev pods nodad")
		awaitLocal(t, anycast)
		if did, err := s.converge(); err != nil || len(did) != 0 {
			t.Errorf("converge with a bridge that came later: %q, %v", did, err)
		}
		run(t, "ip -6 route del "+anycast+" table local")
		if how == "undo" {
			err = s.Undo()
			run(t, "ip link del muslin0")
		} else {
			_, err = Cleanup(c.StateDir, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		after := snapshot(t)
		for _, k := range changed(before, after) {
			lines := func(s string) []string { return slices.Sorted(slices.Values(strings.Split(s, "\n"))) }
			// The bridge's address was taken away and came back: it stands elsewhere in the lists.
			if k != "addr" && !slices.Equal(lines(before[k]), lines(after[k])) {
				t.Errorf("%s: %s is not as before\n--- before\n%s\n--- after\n%s", how, k, before[k], after[k])
			}
		}
	}
}

// What another decided stays: interfaces that forwarded while the host did not, and forwarding that was on before,
// with the accept_ra that its owner chose.
func TestUndoLeavesOthersIPv6Decisions(t *testing.T) {
	for _, before := range []string{
		"net.ipv6.conf.pods.forwarding=1",
		"net.ipv6.conf.eth0.forwarding=1", // where router advertisements did not count anyway
		"net.ipv6.conf.eth0.accept_ra=0",
		"net.ipv6.conf.eth0.accept_ra=2",
		"net.ipv6.conf.all.forwarding=1",
	} {
		t.Run(before, func(t *testing.T) {
			newHost6(t)
			openTestTUN(t, "muslin0")
			run(t, "sysctl -qw "+before)
			was := snapshot(t)
			acceptRA, _ := readSysctl(sysctlRoot + "/ipv6/conf/eth0/accept_ra")
			s, err := Setup(config6(t.TempDir()))
			if err != nil {
				t.Fatal(err)
			}
			name, value, _ := strings.Cut(before, "=")
			if strings.Contains(name, "accept_ra") || strings.Contains(name, "all.") || strings.Contains(name, "eth0.forwarding") {
				if got, _ := readSysctl(sysctlRoot + "/ipv6/conf/eth0/accept_ra"); got != acceptRA {
					t.Errorf("accept_ra = %s, was %s", got, acceptRA)
				}
			}
			if got := strings.TrimSpace(run(t, "sysctl -n "+name)); got != value && got != "1" {
				t.Errorf("%s = %s", name, got)
			}
			if err := s.Undo(); err != nil {
				t.Fatal(err)
			}
			wantSame(t, was)
		})
	}
}

// Router advertisements go on counting on the underlay, and on another interface that lives by them; elsewhere
// the kernel no longer minds them. The router is this test, at the other end of each wire.
func TestRouterAdvertisementsGoOnCounting(t *testing.T) {
	newHost6(t)
	veth(t, "eth1")
	veth(t, "eth2")
	run(t, "sysctl -qw net.ipv6.conf.eth1.accept_ra=1 net.ipv6.conf.eth2.accept_ra=1; ip -6 route del default")
	openTestTUN(t, "muslin0")
	learnt := func(iface string) bool {
		return strings.Contains(run(t, "ip -6 route show default"), "dev "+iface+" proto ra")
	}
	eventually(t, "a router before", func() bool { advertise(t, "eth1p", 1800); return learnt("eth1") })
	s, err := Setup(config6(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	if !learnt("eth1") {
		t.Error("the route that was there by a router advertisement is gone")
	}
	for _, iface := range []string{"eth0", "eth1"} {
		eventually(t, "the router of "+iface+" is gone", func() bool { advertise(t, iface+"p", 0); return !learnt(iface) })
		eventually(t, "a router of "+iface, func() bool {
			advertise(t, "eth2p", 1800)
			advertise(t, iface+"p", 1800)
			return learnt(iface)
		})
	}
	if learnt("eth2") {
		t.Error("a router is minded on eth2, which forwards and is not the underlay: this test proves nothing")
	}
	if err := s.Undo(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a router afterwards", func() bool { advertise(t, "eth2p", 1800); return learnt("eth2") })
}

// advertise sends a router advertisement (RFC 4861, section 4.2) out of an interface, with a lifetime in seconds, or none yet.
//
//	0     type 134   code 0   checksum (the kernel's)
//	4     hop limit  flags    router lifetime
//	8     reachable time
//	12    retransmission timer
func advertise(t *testing.T, iface string, lifetime uint16) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	l, err := LinkNamed(iface)
	if err != nil || l == nil {
		t.Fatalf("%s: %v", iface, err)
	}
	message := make([]byte, 16)
	message[0], message[4] = 134, 64
	binary.BigEndian.PutUint16(message[6:], lifetime)
	to := &unix.SockaddrInet6{ZoneId: uint32(l.Attrs().Index), Addr: netip.MustParseAddr("ff02::1").As16()}
	err = errors.Join(unix.BindToDevice(fd, iface),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255),
		unix.Sendto(fd, message, 0, to))
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) { // this end has no address yet: the kernel gives it from a queue
		t.Fatalf("router advertisement on %s: %v", iface, err)
	}
}

// A host that would lose its routers by forwarding does not forward: the switch that keeps them comes first, and
// has to work. One that only serves comfort need not.
func TestSwitchesThatMustWork(t *testing.T) {
	newHost6(t)
	openTestTUN(t, "muslin0")
	missing := sysctlRoot + "/ipv6/conf/eth0/no_such_thing"
	for _, c := range []struct {
		path, set string
		fatal     bool
	}{
		{missing + "/accept_ra", "2", true},
		{missing + "/accept_ra", "0", false},
		{missing + "/rp_filter", "2", false},
		{missing, "1", false},
	} {
		s := &State{config: config6(t.TempDir()), log: orDiscard(nil), journal: &journal{Sysctls: []sysctl{{Path: c.path, Set: c.set}, {Path: ip6Forward, Was: "0", Set: "1"}}}}
		run(t, "sysctl -qw net.ipv6.conf.all.forwarding=0")
		_, err := s.convergeSysctls(nil)
		now, _ := readSysctl(ip6Forward)
		if (err != nil) != c.fatal || (now == "1") == c.fatal {
			t.Errorf("%s = %s cannot be set: error %v, forwarding %s", c.path, c.set, err, now)
		}
		if c.fatal {
			contains(t, err.Error(), "router advertisements", c.path)
		}
	}
}
