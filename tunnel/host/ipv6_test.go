//go:build linux

package host

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
	c.Underlay = "eth0"
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

// The host forwards already, and the bridge has its anycast route for our address. A connection from elsewhere finds
// us nevertheless: that is what the route is in the way of.
func TestSetupBesideAnycastRoute(t *testing.T) {
	const anycast = "anycast 2001:db8:42:5:: dev pods"
	for _, how := range []string{"undo", "cleanup"} {
		newHost6(t)
		run(t, "sysctl -qw net.ipv6.conf.all.forwarding=1")
		contains(t, run(t, "ip -6 route show table local"), anycast)
		before := snapshot(t)
		c := only6(config6(t.TempDir()))
		c.ForwardRules, c.IPMasq = false, false
		s := killed(t, c)
		if text := run(t, "ip -6 route show table local"); strings.Contains(text, anycast) {
			t.Errorf("the anycast route is still there:\n%s", text)
		}
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

// advertise sends a router advertisement (RFC 4861, section 4.2) out of an interface, with a lifetime in seconds.
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
	l, err := link(iface)
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
	if err != nil {
		t.Fatalf("router advertisement on %s: %v", iface, err)
	}
}

const (
	wantFilter6 = `-A FORWARD -j HERS
-A FORWARD -m comment --comment "muslin forward" -j MUSLIN-FWD
-A MUSLIN-FWD -s 2001:db8:42::/56 -j ACCEPT
-A MUSLIN-FWD -d 2001:db8:42::/56 -j ACCEPT`
	wantNAT6 = `-A POSTROUTING -s fd17::/64 -j MASQUERADE
-A POSTROUTING -m comment --comment "muslin masquerade" -j MUSLIN-POSTRTG
-A MUSLIN-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN
-A MUSLIN-POSTRTG -s 2001:db8:42:5::/64 -d 2001:db8:42::/56 -j RETURN
-A MUSLIN-POSTRTG -s 2001:db8:42::/56 -d 2001:db8:42:5::/64 -j RETURN
-A MUSLIN-POSTRTG ! -s 2001:db8:42::/56 -d 2001:db8:42:5::/64 -j RETURN
-A MUSLIN-POSTRTG -s 2001:db8:42::/56 ! -d ff00::/8 -j MASQUERADE --random-fully
-A MUSLIN-POSTRTG ! -s 2001:db8:42::/56 -d 2001:db8:42::/56 -j MASQUERADE --random-fully`
	wantTable6 = `table ip6 muslin {
chain MUSLIN-FWD {
type filter hook forward priority filter; policy accept;
ip6 saddr 2001:db8:42::/56 accept
ip6 daddr 2001:db8:42::/56 accept
}
chain MUSLIN-POSTRTG {
type nat hook postrouting priority srcnat; policy accept;
meta mark & 0x00004000 == 0x00004000 return
ip6 saddr 2001:db8:42:5::/64 ip6 daddr 2001:db8:42::/56 return
ip6 saddr 2001:db8:42::/56 ip6 daddr 2001:db8:42:5::/64 return
ip6 saddr != 2001:db8:42::/56 ip6 daddr 2001:db8:42:5::/64 return
ip6 saddr 2001:db8:42::/56 ip6 daddr != ff00::/8 masquerade fully-random
ip6 saddr != 2001:db8:42::/56 ip6 daddr 2001:db8:42::/56 masquerade fully-random
}
}`
)

// flannel's rules for IPv6 are those for IPv4, but for the multicast addresses.
func TestRulesOfBothFamilies(t *testing.T) {
	check := func(command, want string) {
		t.Helper()
		var got []string
		for line := range strings.Lines(run(t, command+" | sed 's/counter packets [0-9]* bytes [0-9]* //'")) {
			if line = strings.TrimSpace(line); line != "" {
				got = append(got, line)
			}
		}
		if text := strings.Join(got, "\n"); text != want {
			t.Errorf("%s:\n%s\nwant\n%s", command, text, want)
		}
	}
	for _, tool := range []struct {
		nft    bool
		damage string
		check  func()
	}{
		{false, "ip6tables -F MUSLIN-FWD; ip6tables -t nat -D POSTROUTING 2", func() {
			check("iptables-save -t filter | grep -- '^-A'", wantFilter)
			check("ip6tables-save -t filter | grep -- '^-A'", wantFilter6)
			check("ip6tables-save -t nat | grep -- '^-A'", wantNAT6)
		}},
		{true, "nft delete table ip6 muslin", func() {
			check("nft list table ip muslin", wantTable)
			check("nft list table ip6 muslin", wantTable6)
		}},
	} {
		newHost6(t)
		openTestTUN(t, "muslin0")
		c := config6(t.TempDir())
		c.UseNFTables = tool.nft
		s, err := Setup(c)
		if err != nil {
			t.Fatal(err)
		}
		tool.check()
		run(t, tool.damage)
		if did, err := s.convergeFirewall(); err != nil || len(did) != 1 {
			t.Errorf("after %q: did %v, %v", tool.damage, did, err)
		}
		tool.check()
		if did, err := s.convergeFirewall(); err != nil || len(did) != 0 {
			t.Errorf("once more: did %v, %v", did, err)
		}
		if err := s.Undo(); err != nil {
			t.Fatal(err)
		}
	}
}

// The same as TestPacketsAreForwardedAndMasqueraded for IPv6.
//
//	TUN 2001:db8:42:9::7 ──► muslin0 ─ host ─ wan0 2001:db8:1::2 ──► wan TUN 2001:db8:9::9
func TestIPv6IsForwardedAndMasqueraded(t *testing.T) {
	for _, tool := range bothTools {
		t.Run(tool.name, func(t *testing.T) {
			newNamespace(t)
			inner, world := openTestTUN(t, "muslin0"), openTestTUN(t, "wan0")
			run(t, "ip link set wan0 up; ip addr add 2001:db8:1::2/64 dev wan0 nodad; ip -6 route add default dev wan0")
			if !tool.nft { // nftables cannot overrule another table's drop
				run(t, "ip6tables -P FORWARD DROP")
			}
			c := only6(config6(t.TempDir()))
			c.UseNFTables, c.Underlay = tool.nft, "wan0"
			s, err := Setup(c)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := inner.Write(udpPacket6("2001:db8:42:9::7", "2001:db8:9::9")); err != nil {
				t.Fatal(err)
			}
			if src, dst := nextUDP6(t, world); src != "2001:db8:1::2" || dst != "2001:db8:9::9" {
				t.Errorf("out to the world: %s to %s, want this host's address as source", src, dst)
			}
			if _, err := world.Write(udpPacket6("2001:db8:42:5::7", "2001:db8:42:9::7")); err != nil {
				t.Fatal(err)
			}
			if src, dst := nextUDP6(t, inner); src != "2001:db8:42:5::7" || dst != "2001:db8:42:9::7" {
				t.Errorf("between pods: %s to %s, want the source as it was", src, dst)
			}
			if err := s.Undo(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// udpPacket6 is an IPv6 packet with an empty UDP datagram of port 5000 to 5000 (RFC 8200, section 3; the checksum is
// that of section 8.1).
func udpPacket6(src, dst string) []byte {
	p := make([]byte, 48)
	p[0], p[5], p[6], p[7] = 0x60, 8, 17, 64
	copy(p[8:], net.ParseIP(src))
	copy(p[24:], net.ParseIP(dst))
	binary.BigEndian.PutUint16(p[40:], 5000)
	binary.BigEndian.PutUint16(p[42:], 5000)
	binary.BigEndian.PutUint16(p[44:], 8)
	sum := uint32(8 + 17) // length and next header of the pseudo-header
	for i := 8; i < 48; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum>>16 > 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(p[46:], ^uint16(sum))
	return p
}

// nextUDP6 skips what is not such a datagram: the kernel's own chatter.
func nextUDP6(t *testing.T, f *os.File) (src, dst string) {
	t.Helper()
	if err := f.SetReadDeadline(deadline()); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2000)
	for {
		n, err := f.Read(buf)
		if err != nil {
			t.Fatalf("read the TUN: %v", err)
		}
		if p := buf[:n]; n >= 48 && p[0]>>4 == 6 && p[6] == 17 && binary.BigEndian.Uint16(p[42:]) == 5000 {
			return net.IP(p[8:24]).String(), net.IP(p[24:40]).String()
		}
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
