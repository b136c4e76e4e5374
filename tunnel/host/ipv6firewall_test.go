//go:build linux

package host

import (
	"encoding/binary"
	"net"
	"strings"
	"testing"
)

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
