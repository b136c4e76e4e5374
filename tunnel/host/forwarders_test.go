//go:build linux

package host

import (
	"strings"
	"testing"
)

// Forwarding is switched off again unless somebody else has come to rely on it, as far as that can be seen.
func TestForwardingOfOthers(t *testing.T) {
	for i, w := range []struct {
		name         string
		before, then string
		four, six    string // which stay on, and the chain that is named; "": it goes off
	}{
		{name: "nobody", then: "true"},
		{name: "a rule in FORWARD", then: "iptables -A FORWARD -i br0 -j ACCEPT", four: "nftables table ip filter, chain FORWARD"},
		{name: "one that was there", before: "iptables -A FORWARD -i br0 -j ACCEPT; iptables -t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE", then: "true"},
		{name: "one more", before: "iptables -A FORWARD -i br0 -j ACCEPT", then: "iptables -I FORWARD -o br0 -j ACCEPT", four: "chain FORWARD"},
		{name: "one that went", before: "iptables -A FORWARD -i br0 -j ACCEPT", then: "iptables -D FORWARD -i br0 -j ACCEPT"},
		{name: "a policy alone", then: "iptables -P FORWARD DROP"},
		{name: "other hooks", then: "iptables -A INPUT -p tcp -j ACCEPT; iptables -t nat -A PREROUTING -j RETURN; iptables -t mangle -A POSTROUTING -j RETURN"},
		{name: "masquerade", then: "iptables -t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE", four: "nftables table ip nat, chain POSTROUTING"},
		{name: "for both families", then: "nft add table inet router; nft 'add chain inet router f { type filter hook forward priority 0; }'; nft add rule inet router f accept", four: "table inet router, chain f", six: "table inet router, chain f"},
		{name: "IPv6 only", then: "ip6tables -A FORWARD -i br0 -j ACCEPT", six: "nftables table ip6 filter, chain FORWARD"},
		{name: "legacy", then: "iptables-legacy -A FORWARD -i br0 -j ACCEPT", four: "iptables-legacy table filter, chain FORWARD"},
		{name: "legacy, NAT of IPv6", then: "iptables-legacy -L; ip6tables-legacy -t nat -A POSTROUTING -j MASQUERADE", six: "ip6tables-legacy table nat, chain POSTROUTING"},
		{name: "legacy, nothing", then: "iptables-legacy -L; ip6tables-legacy -t nat -L; iptables-legacy -P FORWARD DROP"},
	} {
		t.Run(w.name, func(t *testing.T) {
			newNamespace(t)
			openTestTUN(t, "muslin0")
			veth(t, "eth0", "198.18.0.1/24")
			run(t, "sysctl -qw net.ipv6.conf.eth0.accept_ra=1; "+w.before)
			c := config6(t.TempDir())
			c.UseNFTables, c.Outer.Iface = i%2 == 0, "eth0"
			if _, err := Setup(c); err != nil {
				t.Fatal(err)
			}
			// Killed, taken over: what was there before the first daemon counts.
			run(t, w.then)
			s, err := Setup(c)
			if err != nil {
				t.Fatal(err)
			}
			did, err := Cleanup(c.StateDir, nil)
			if err != nil {
				t.Fatal(err)
			}
			said := strings.Join(did, "\n")
			for _, f := range []struct{ path, stays string }{{ipForward, w.four}, {ip6Forward, w.six}} {
				want := "0"
				if f.stays != "" {
					want = "1"
					contains(t, said, "left "+f.path+" at 1", f.stays, "`sysctl -w net.ipv")
				}
				if got, err := readSysctl(f.path); err != nil || got != want {
					t.Errorf("%s is %s, %v; want %s. Said:\n%s", f.path, got, err, want, said)
				}
			}
			want := "1"
			if w.six != "" {
				want = "2"
			}
			if got, err := readSysctl(sysctlRoot + "/ipv6/conf/eth0/accept_ra"); err != nil || got != want {
				t.Errorf("accept_ra is %s, %v; want %s", got, err, want)
			}
			if err := s.Undo(); err != nil {
				t.Error(err)
			}
		})
	}
}
