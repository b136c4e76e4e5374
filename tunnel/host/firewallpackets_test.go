//go:build linux

package host

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// overlayAddrs are addresses of one family: of hosts near and far, and of pods here and on another node.
type overlayAddrs struct {
	wan, world, group   string // this host's on wan0, one in the world, one of multicast
	base                string // of this node's subnet, which is the TUN's
	pod, marked, remote string
	packet              func(src, dst string) []byte
	commands            string // that give the devices their addresses
	config              func(SetupConfig) SetupConfig
}

var families = map[string]overlayAddrs{
	"IPv4": {
		wan: "192.0.2.2", world: "198.51.100.9", group: "239.1.1.1", base: "10.244.5.0", pod: "10.244.5.7", marked: "10.244.5.8", remote: "10.244.9.7", packet: udpPacket,
		commands: "ip addr add 192.0.2.2/24 dev wan0; ip route add default dev wan0; ip addr add 10.244.5.1/24 dev pods; sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.wan0.rp_filter=0 net.ipv4.conf.pods.rp_filter=0",
		config:   func(c SetupConfig) SetupConfig { return c },
	},
	"IPv6": {
		wan: "2001:db8:1::2", world: "2001:db8:9::9", group: "ff0e::1", base: "2001:db8:42:5::", pod: "2001:db8:42:5::7", marked: "2001:db8:42:5::8", remote: "2001:db8:42:9::7", packet: udpPacket6,
		commands: "ip addr add 2001:db8:1::2/64 dev wan0 nodad; ip -6 route add default dev wan0; ip addr add 2001:db8:42:5::1/64 dev pods nodad",
		config:   only6,
	},
}

// What the rules are for, by packets: which pass and with whose address, in flannel's order of rules. Whoever is asked
// for is forwarded although the policy is to drop; nftables cannot overrule another table's, so not there.
//
//	muslin0 ─┐
//	pods ────┴ host ─ wan0
func TestPacketsMeetTheRules(t *testing.T) {
	for _, tool := range []string{"iptables-nft", "iptables-legacy", "nftables"} {
		for family, a := range families {
			t.Run(tool+" "+family, func(t *testing.T) {
				newNamespace(t)
				devices := make(map[string]*os.File)
				for _, name := range []string{"muslin0", "wan0", "pods"} {
					devices[name] = openTestTUN(t, name)
				}
				run(t, "ip link set wan0 up; ip link set pods up; "+a.commands)
				// kube-proxy's mark on what one of the pods sends; by nft, whoever has our rules.
				run(t, "nft add table inet marks; nft 'add chain inet marks m { type filter hook prerouting priority -150; }'; nft add rule inet marks m "+
					map[string]string{"IPv4": "ip", "IPv6": "ip6"}[family]+" saddr "+a.marked+" meta mark set 0x4001")
				if tool != "nftables" {
					run(t, tool+" -P FORWARD DROP; "+map[string]string{"iptables-nft": "ip6tables-nft", "iptables-legacy": "ip6tables-legacy"}[tool]+" -P FORWARD DROP")
					t.Setenv("PATH", programs(t, map[string]string{"iptables": tool, "ip6tables": "ip6" + tool[2:]})+":"+os.Getenv("PATH"))
				}
				c := a.config(config6(t.TempDir()))
				c.UseNFTables, c.Outer.Iface = tool == "nftables", "wan0"
				s, err := Setup(c)
				if err != nil {
					t.Fatal(err)
				}
				const random = true // the source port
				flow := func(what, in, src, dst, out, wantSrc string, random bool) {
					t.Helper()
					if in == "" {
						sendFrom(t, src, dst)
					} else if _, err := devices[in].Write(a.packet(src, dst)); err != nil {
						t.Fatal(err)
					}
					gotSrc, gotDst, port := nextFlow(t, devices[out])
					if gotSrc != wantSrc || gotDst != dst || (port != 5000) != random {
						t.Errorf("%s, %s to %s: left by %s as %s port %d to %s, want %s, port drawn: %v", what, src, dst, out, gotSrc, port, gotDst, wantSrc, random)
					}
				}
				flow("marked", "pods", a.marked, a.world, "wan0", a.marked, !random)
				flow("pod to cluster", "pods", a.pod, a.remote, "muslin0", a.pod, !random)
				flow("cluster to pod", "muslin0", a.remote, a.pod, "pods", a.remote, !random)
				flow("from elsewhere to a pod", "wan0", a.world, a.pod, "pods", a.world, !random)
				flow("cluster to a group", "", a.base, a.group, "wan0", a.base, !random)
				flow("cluster to elsewhere, by this host", "", a.base, a.world, "wan0", a.wan, random)
				flow("a remote pod to elsewhere", "muslin0", a.remote, a.world, "wan0", a.wan, random)
				flow("a pod to elsewhere", "pods", next(a.marked), a.world, "wan0", a.wan, random)
				flow("from elsewhere to a remote pod", "wan0", next(a.world), a.remote, "muslin0", a.base, random)

				// Gone, and put back.
				program := map[string]string{"IPv4": "iptables", "IPv6": "ip6tables"}[family]
				damage := program + " -F FORWARD && " + program + " -t nat -F"
				if tool == "nftables" {
					damage = "nft flush table " + map[string]string{"IPv4": "ip", "IPv6": "ip6"}[family] + " muslin"
				}
				run(t, damage)
				if did, err := s.convergeFirewall(); err != nil || len(did) == 0 {
					t.Errorf("did %v, %v", did, err)
				}
				flow("a pod to elsewhere, again", "pods", next(next(a.marked)), a.world, "wan0", a.wan, random)
				if err := s.Undo(); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

func next(addr string) string { return netip.MustParseAddr(addr).Next().String() }

// sendFrom sends an empty datagram of this host's, from port 5000 to 5000.
func sendFrom(t *testing.T, src, dst string) {
	t.Helper()
	// A group is sent to by the device that has the source address, unless told otherwise.
	out := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if cerr := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), "wan0") }); cerr != nil {
			return cerr
		}
		return err
	}}
	conn, err := out.ListenPacket(t.Context(), "udp", net.JoinHostPort(src, "5000"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.WriteTo(nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(dst), 5000))); err != nil {
		t.Fatal(err)
	}
}

// nextFlow is the next datagram to port 5000 that leaves by a device. The kernel's own chatter is skipped.
func nextFlow(t *testing.T, f *os.File) (src, dst string, port uint16) {
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
		p := buf[:n]
		protocol, source, length, head := 9, 12, 4, 20
		if p[0]>>4 == 6 {
			protocol, source, length, head = 6, 8, 16, 40
		}
		if n >= head+8 && p[protocol] == 17 && binary.BigEndian.Uint16(p[head+2:]) == 5000 {
			return net.IP(p[source:][:length]).String(), net.IP(p[source+length:][:length]).String(), binary.BigEndian.Uint16(p[head:])
		}
	}
}
