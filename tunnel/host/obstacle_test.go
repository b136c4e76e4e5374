//go:build linux

package host

import (
	"fmt"
	"slices"
	"strings"
	"testing"
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
			c.Outer = Outer{Iface: "eth0", Port: 8472}
			found, err := c.obstacles()
			if err != nil {
				t.Fatal(err)
			}
			var said []string
			for _, o := range found {
				said = append(said, o.sentence(c))
			}
			if len(said) != len(w.words) {
				t.Fatalf("said %q, want %d sentences; the rules:\n%s", said, len(w.words), run(t, "nft --debug=netlink list ruleset"))
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
