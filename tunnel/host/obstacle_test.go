//go:build linux

package host

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Rulesets of others, and what is said of them: nothing where the overlay's packets may pass.
func TestObstacles(t *testing.T) {
	const (
		out  = "from this node's containers to other nodes'"
		in   = "from other nodes to this one's containers"
		port = "UDP port 8472"
	)
	forward := func(rules string) string {
		return "table inet theirs { chain passing { type filter hook forward priority 10; " + rules + "; }; }"
	}
	input := func(rules string) string {
		return "table ip theirs { chain arriving { type filter hook input priority 0; " + rules + "; }; }"
	}
	const fwd, inp = "table inet theirs, chain passing", "table ip theirs, chain arriving"
	for _, w := range []struct {
		name  string
		nft   string
		sh    string   // in place of it
		six   bool     // the overlay is of IPv6
		pods  string   // SetupConfig.Pods
		peers []string // that are asked for one by one
		words []string // of each sentence, in any order; parted by | within one
	}{
		{name: "nothing"},
		{name: "accept", nft: forward("policy accept; tcp dport 80 drop; ip saddr 10.0.0.0/8 counter")},
		{name: "policy drop", nft: forward("policy drop"), words: []string{fwd + "|drops|" + out, fwd + "|drops|" + in}},
		{name: "reject at the end", nft: forward("reject with icmpx type admin-prohibited"), words: []string{"rejects|" + out, "rejects|" + in}},
		{name: "accepted by the network", nft: forward("policy drop; ip saddr 10.244.0.0/16 accept; ip daddr 10.244.0.0/16 accept")},
		{name: "accepted by a wider one", nft: forward("policy drop; ip saddr 10.0.0.0/8 accept")},
		{name: "accepted by a set", nft: forward("policy drop; ip saddr { 10.0.0.0/8, 192.168.0.0/16 } accept")},
		{name: "others accepted", nft: forward("policy drop; ip saddr { 10.245.0.0-10.250.0.0, 192.168.0.0/16 } accept; ip daddr 172.16.0.0/12 accept"), words: []string{out, in}},
		{name: "one way", nft: forward(`policy drop; oifname "muslin0" accept`), words: []string{in}},
		{name: "perhaps by the subnet", nft: forward("policy drop; ip saddr 10.244.5.0/24 ip daddr 10.244.0.0/16 accept; ip saddr & 255.255.255.0 == 10.244.9.0 accept")},
		{name: "the other way by the device", nft: forward(`policy drop; iifname "muslin0" accept`), words: []string{out}},
		{name: "devices by number", nft: forward(`policy drop; iif "lo" accept; oif "muslin0" accept`), words: []string{in}},
		{name: "other devices", nft: forward(`policy drop; iifname "eth0" accept; oifname { "lo", "eth0" } accept`), words: []string{out, in}},
		{name: "a device that may be ours", nft: forward(`policy drop; iifname "cni0" accept; oifname "cni0" accept`)},
		{name: "a wildcard", nft: forward(`policy drop; iifname "mus*" accept; oifname "mus*" accept`)},
		{name: "answers only", nft: forward("policy drop; ct state established,related accept; ct state { established, related } accept; ct status dnat accept; ct state invalid drop"), words: []string{out, in}},
		{name: "by a map", nft: forward("policy drop; ct state vmap { established : accept, related : accept, invalid : drop }"), words: []string{out, in}},
		{name: "accepted by a map", nft: forward("policy drop; ct state vmap { established : accept, new : accept }")},
		{name: "perhaps by a map", nft: forward("policy drop; meta mark vmap { 1 : accept, 2 : drop }")},
		{name: "perhaps by a mark", nft: forward("policy drop; meta mark & 0xff == 0x1 accept")},
		{name: "perhaps by a protocol", nft: forward("policy drop; meta l4proto tcp accept")},
		{name: "perhaps by a rate", nft: forward("limit rate 10/second accept; drop")},
		{name: "ICMP passes, TCP not", nft: forward("policy drop; icmp type echo-request accept; udp dport 53 accept"), words: []string{"drops TCP packets " + out, "drops TCP packets " + in}},
		{name: "perhaps TCP", nft: forward("policy drop; tcp dport 80 accept; tcp sport 80 accept")},
		{name: "before the route is known", nft: "table ip theirs { chain early { type filter hook prerouting priority -300; ip saddr 10.244.5.0/24 drop; udp dport 8472 drop; }; }", words: []string{"chain early|drops|" + out, "chain early|drops|" + port}},
		{name: "by connection tracking before it is there", nft: "table ip theirs { chain early { type filter hook prerouting priority -300; ct state new drop; }; chain late { type filter hook prerouting priority -150; ct state invalid drop; }; }"},
		{name: "at the end", nft: `table inet theirs { chain leaving { type filter hook postrouting priority 0; oifname "muslin0" drop; }; }`, words: []string{"chain leaving|drops|" + out + "|nft insert rule inet theirs leaving ip saddr 10.244.0.0/16 accept"}},
		{name: "from the pods' bridge", pods: "cni0", nft: forward(`iifname "cni0" drop`), words: []string{out}},
		{name: "to the pods' bridge", pods: "cni0", sh: "iptables -A FORWARD -o cni0 -j DROP", words: []string{in}},
		{name: "of one peer", peers: []string{"10.244.7.0/24", "10.244.8.0/24"}, nft: forward("ip daddr 10.244.7.0/24 drop"), words: []string{out + ", of 10.244.7.0/24,|nft insert rule inet theirs passing ip saddr 10.244.7.0/24 accept"}},
		{name: "of all, and so of one", peers: []string{"10.244.7.0/24"}, nft: forward("policy drop"), words: []string{out, in}},
		{name: "not IPv4", nft: forward("policy drop; meta nfproto ipv6 accept"), words: []string{out, in}},
		{name: "IPv6 only", nft: "table ip6 theirs { chain passing { type filter hook forward priority 0; policy drop; }; }"},
		{name: "another hook", nft: "table ip theirs { chain leaving { type filter hook output priority 0; policy drop; }; }"},
		{
			name:  "down below",
			nft:   "table inet theirs { chain z { counter jump y; reject; }; chain y { return; }; chain passing { type filter hook forward priority 0; policy accept; log prefix \"x\" goto z; }; }",
			words: []string{"chain passing, by z|rejects|" + out, "chain passing, by z|rejects|" + in},
		},
		{name: "a way back up", nft: "table inet theirs { chain z { ip saddr 10.1.0.0/16 drop; }; chain passing { type filter hook forward priority 0; policy accept; jump z; }; }"},
		{name: "closed port", nft: input(`policy drop; iif "lo" accept; ct state established,related accept; tcp dport { 22, 80-90 } accept; ip protocol icmp accept`), words: []string{inp + "|drops|" + port}},
		{name: "open port", nft: input(`policy drop; tcp dport 22 accept; udp dport 8472 accept`)},
		{name: "open among others", nft: input(`policy drop; udp dport { 53, 8000-9000 } accept`)},
		{name: "open below", nft: input(`policy drop; udp dport != 1-1023 accept`)},
		{name: "other ports", nft: input(`policy drop; udp dport 8473 accept; udp dport < 8472 accept; meta l4proto { tcp, icmp } accept`), words: []string{port}},
		{name: "open on another device", nft: input(`policy drop; iifname "eth1" accept`), words: []string{port}},
		{name: "open on ours", nft: input(`policy drop; iifname "eth0" accept`)},
		{name: "open to some", nft: input(`policy drop; ip saddr 198.18.0.0/24 accept`)},

		{name: "iptables, policy", sh: "iptables -P FORWARD DROP; iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; iptables -A FORWARD -i eth0 -o eth1 -j ACCEPT", words: []string{"table ip filter, chain FORWARD|drops|" + out, in}},
		{name: "iptables, reject", sh: "iptables -A FORWARD -m comment --comment hers -j REJECT --reject-with icmp-host-prohibited", words: []string{"rejects|" + out, "rejects|" + in}},
		{name: "iptables, ours before it", sh: "iptables -P FORWARD DROP; iptables -N MUSLIN-FWD; iptables -A MUSLIN-FWD -s 10.244.0.0/16 -j ACCEPT; iptables -A MUSLIN-FWD -d 10.244.0.0/16 -j ACCEPT; iptables -A FORWARD -m comment --comment 'muslin forward' -j MUSLIN-FWD"},
		{name: "iptables, by another way", sh: "iptables -P FORWARD DROP; iptables -A FORWARD -m mark --mark 7 -j ACCEPT; iptables -A FORWARD -j NFQUEUE"},
		{name: "Docker, allowed by its owner", sh: "iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -A DOCKER-USER -j RETURN; iptables -A FORWARD -j DOCKER-USER; iptables -I DOCKER-USER -s 10.244.0.0/16 -j ACCEPT; iptables -I DOCKER-USER -d 10.244.0.0/16 -j ACCEPT"},
		{name: "iptables, its command", sh: "iptables -P FORWARD DROP", words: []string{
			`run "iptables -I FORWARD -s 10.244.0.0/16 -j ACCEPT && iptables -I FORWARD -d 10.244.0.0/16 -j ACCEPT"|` + in, out}},
		{name: "Docker's chain, that nobody asks", sh: "iptables -P FORWARD DROP; iptables -N DOCKER-USER", words: []string{`run "iptables -I FORWARD -s |` + in, out}},
		{name: "Docker, its command", sh: "iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -I FORWARD -j DOCKER-USER", words: []string{
			`run "iptables -I DOCKER-USER -s 10.244.0.0/16 -j ACCEPT && |` + in, out}},
		{name: "iptables, another table", sh: "iptables -t mangle -A FORWARD -j DROP", words: []string{`"iptables -t mangle -I FORWARD -s |` + in, out}},

		{name: "IPv6, policy drop", six: true, nft: forward("policy drop"), words: []string{fwd + "|drops|nft insert rule inet theirs passing ip6 saddr 2001:db8:42::/56 accept|" + out, fwd + "|drops|" + in}},
		{name: "IPv6, ip6 table", six: true, nft: "table ip6 theirs { chain passing { type filter hook forward priority 0; policy drop; }; }", words: []string{"table ip6 theirs|" + out, "table ip6 theirs|" + in}},
		{name: "IPv6, only IPv4 dropped", six: true, nft: "table ip theirs { chain passing { type filter hook forward priority 0; policy drop; }; }"},
		{name: "IPv6, by family", six: true, nft: forward("meta nfproto ipv6 accept; drop")},
		{name: "IPv6, not its family", six: true, nft: forward("policy drop; meta protocol ip accept; ip6 saddr 2001:db8:43::/56 accept"), words: []string{out, in}},
		{name: "IPv6, accepted by the network", six: true, nft: forward("policy drop; ip6 saddr 2001:db8:42::/56 accept; ip6 daddr 2001:db8:42::/56 accept")},
		{name: "IPv6, accepted by a set", six: true, nft: forward("policy drop; ip6 saddr { 2001:db8::/32, fd00::/8 } accept")},
		{name: "IPv6, closed port", six: true, nft: "table inet theirs { chain arriving { type filter hook input priority 0; policy drop; meta l4proto ipv6-icmp accept; ip6 nexthdr tcp accept; udp dport 53 accept; }; }", words: []string{port}},
		{name: "IPv6, open port", six: true, nft: "table inet theirs { chain arriving { type filter hook input priority 0; policy drop; meta l4proto { tcp, udp } th dport 8472 accept; }; }"},
		{name: "IPv6, iptables", six: true, sh: "ip6tables -P FORWARD DROP; ip6tables -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT; ip6tables -A INPUT -p udp --dport 53 -j ACCEPT; ip6tables -A INPUT -j REJECT; iptables -P FORWARD DROP", words: []string{
			`run "ip6tables -I FORWARD -s 2001:db8:42::/56 -j ACCEPT && ip6tables -I FORWARD -d 2001:db8:42::/56 -j ACCEPT"|` + in, out,
			`rejects|run "ip6tables -I INPUT -p udp --dport 8472 -j ACCEPT"|` + port}},
		{name: "IPv6, iptables, ours before it", six: true, sh: "ip6tables -P FORWARD DROP; ip6tables -A FORWARD -s 2001:db8:42::/56 -j ACCEPT; ip6tables -A FORWARD -d 2001:db8:42::/56 -j ACCEPT; ip6tables -P INPUT DROP; ip6tables -A INPUT -p udp --dport 8472 -j ACCEPT"},

		{name: "legacy, unused", sh: "iptables-legacy -L -n; ip6tables-legacy -L -n"},
		{name: "legacy, policy", sh: "iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; iptables-legacy -A FORWARD -i eth0 -o eth1 -j ACCEPT", words: []string{
			`(iptables-legacy table filter, chain FORWARD) drops|run "iptables-legacy -I FORWARD -s 10.244.0.0/16 -j ACCEPT && iptables-legacy -I FORWARD -d 10.244.0.0/16 -j ACCEPT"|` + out, in}},
		{name: "legacy, reject", sh: "iptables-legacy -A FORWARD -m comment --comment hers -j REJECT", words: []string{"rejects|" + out, "rejects|" + in}},
		{name: "legacy, accepted by the network", sh: "iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD -s 10.0.0.0/8 -j ACCEPT"},
		{name: "legacy, all others accepted", sh: "iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD ! -s 10.244.0.0/16 -j ACCEPT; iptables-legacy -A FORWARD ! -d 10.0.0.0/8 -j ACCEPT", words: []string{out, in}},
		{name: "legacy, one way", sh: "iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD -o muslin0 -j ACCEPT; iptables-legacy -A FORWARD -i eth0 -j ACCEPT", words: []string{in}},
		{name: "legacy, a wildcard", sh: "iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD -i mus+ -j ACCEPT; iptables-legacy -A FORWARD -o mus+ -j ACCEPT"},
		{name: "legacy, not by the device", sh: "iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD ! -i muslin0 -j ACCEPT", words: []string{in}},
		{name: "legacy, ours before it", sh: "iptables-legacy -P FORWARD DROP; iptables-legacy -N MUSLIN-FWD; iptables-legacy -A MUSLIN-FWD -s 10.244.0.0/16 -j ACCEPT; iptables-legacy -A MUSLIN-FWD -d 10.244.0.0/16 -j ACCEPT; iptables-legacy -A FORWARD -m comment --comment 'muslin forward' -j MUSLIN-FWD"},
		{name: "legacy, down below", sh: "iptables-legacy -N a; iptables-legacy -N b; iptables-legacy -A b -j RETURN; iptables-legacy -A a -j b; iptables-legacy -A a; iptables-legacy -A a -j DROP; iptables-legacy -A FORWARD -p tcp -j ACCEPT; iptables-legacy -I FORWARD -g a", words: []string{"chain FORWARD, by a|" + out, in}},
		{name: "legacy, a way back up", sh: "iptables-legacy -P FORWARD DROP; iptables-legacy -N a; iptables-legacy -A a -s 10.1.0.0/16 -j DROP; iptables-legacy -A FORWARD -j a; iptables-legacy -A FORWARD -j ACCEPT"},
		{name: "legacy, perhaps", sh: "iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD -m mark --mark 7 -j ACCEPT; iptables-legacy -P INPUT DROP; iptables-legacy -A INPUT -f -j ACCEPT"},
		{name: "legacy, perhaps by a protocol", sh: "iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD -p tcp -j ACCEPT"},
		{name: "legacy, Docker", sh: "iptables-legacy -P FORWARD DROP; iptables-legacy -N DOCKER-USER; iptables-legacy -A DOCKER-USER -j RETURN; iptables-legacy -A FORWARD -j DOCKER-USER", words: []string{`"iptables-legacy -I DOCKER-USER -s |` + in, out}},
		{name: "legacy, another table", sh: "iptables-legacy -t mangle -P FORWARD DROP; iptables-legacy -t nat -A POSTROUTING -s 10.244.0.0/16 -j RETURN", words: []string{`table mangle|"iptables-legacy -t mangle -I FORWARD -s |` + in, out}},
		{name: "legacy, closed port", sh: "iptables-legacy -A INPUT -p udp --dport 53 -j ACCEPT; iptables-legacy -A INPUT ! -p udp -j ACCEPT; iptables-legacy -A INPUT -j DROP", words: []string{`iptables-legacy -I INPUT -p udp --dport 8472 -j ACCEPT|` + port}},
		{name: "legacy, open port", sh: "iptables-legacy -P INPUT DROP; iptables-legacy -A INPUT -i eth0 -p udp --dport 8000:9000 -j ACCEPT"},
		{name: "legacy, of IPv6 only", sh: "ip6tables-legacy -P FORWARD DROP; ip6tables-legacy -P INPUT DROP"},
		{name: "legacy, IPv6", six: true, sh: "iptables-legacy -P FORWARD DROP; ip6tables-legacy -P FORWARD DROP; ip6tables-legacy -A FORWARD -s 2001:db8:43::/56 -o eth1 -j ACCEPT; ip6tables-legacy -A INPUT -p ipv6-icmp -j ACCEPT; ip6tables-legacy -A INPUT -p udp -m udp ! --dport 1:9000 -j ACCEPT; ip6tables-legacy -A INPUT -m conntrack --ctstate NEW -j DROP", words: []string{
			`(ip6tables-legacy table filter, chain FORWARD) drops|run "ip6tables-legacy -I FORWARD -s 2001:db8:42::/56 -j ACCEPT && |` + out, in, `"ip6tables-legacy -I INPUT -p udp --dport 8472 -j ACCEPT"|` + port}},
		{name: "legacy, IPv6, accepted", six: true, sh: "ip6tables-legacy -P FORWARD DROP; ip6tables-legacy -A FORWARD -s 2001:db8::/32 -d 2001:db8::/32 -j ACCEPT; ip6tables-legacy -P INPUT DROP; ip6tables-legacy -A INPUT -i eth+ -p udp --dport 8472 -j ACCEPT"},

		{name: "iptables, closed port", sh: "iptables -A INPUT -p udp --dport 53 -j ACCEPT; iptables -A INPUT -p udp -m multiport --dports 1,2 -j LOG; iptables -A INPUT -j DROP", words: []string{"table ip filter, chain INPUT|" + port}},
		{name: "iptables, open port", sh: "iptables -A INPUT -p udp --dport 8472 -j ACCEPT; iptables -A INPUT -j DROP"},
	} {
		t.Run(w.name, func(t *testing.T) {
			newNamespace(t)
			openTestTUN(t, "muslin0")
			veth(t, "eth0", "198.18.0.1/24")
			sh := w.sh
			if sh == "" && w.nft != "" {
				sh = fmt.Sprintf("nft -f - <<'END'\n%s\nEND", w.nft)
			}
			run(t, sh)
			c := config(t.TempDir())
			if w.six {
				c = only6(config6(t.TempDir()))
			}
			c.Outer = Outer{Iface: "eth0", Port: 8472, IPv6: w.six}
			c.Pods = w.pods
			var peers []netip.Prefix
			for _, peer := range w.peers {
				peers = append(peers, netip.MustParsePrefix(peer))
			}
			found, err := c.obstacles(peers...)
			if err != nil {
				t.Fatal(err)
			}
			var said []string
			for _, o := range found {
				said = append(said, o.sentence(c))
			}
			if len(said) != len(w.words) {
				t.Fatalf("said %q, want %d sentences; the rules:\n%s", said, len(w.words), run(t, "nft --debug=netlink list ruleset; iptables-legacy-save; ip6tables-legacy-save"))
			}
			for _, words := range w.words {
				if !slices.ContainsFunc(said, func(s string) bool {
					return !slices.ContainsFunc(strings.Split(words, "|"), func(word string) bool { return !strings.Contains(s, word) })
				}) {
					t.Errorf("%q: not in one of %q", words, said)
				}
			}
		})
	}
}

// A kernel without nf_tables has obstacles in iptables-legacy all the same.
func TestObstaclesWithoutNFTables(t *testing.T) {
	newNamespace(t)
	openTestTUN(t, "muslin0")
	run(t, "iptables-legacy -P FORWARD DROP")
	onKernelWithout(t, lacksNFTables, func() {
		if found, err := config(t.TempDir()).obstacles(); err != nil || len(found) != 2 {
			t.Errorf("found %+v, %v; want two", found, err)
		}
		if rules, err := forwarders(false); err != nil || len(rules) != 1 {
			t.Errorf("others' rules %v, %v; want those of one chain", rules, err)
		}
	})
	for _, err := range []error{unix.EINVAL, unix.EOPNOTSUPP} { // as nfnetlink says it
		if !isWithoutNFTables(fmt.Errorf("list nftables chains: %w", err)) {
			t.Errorf("%v says that there are nftables", err)
		}
	}
}
