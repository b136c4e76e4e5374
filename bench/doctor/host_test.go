//go:build linux

package doctor

import (
	"fmt"
	"testing"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// What can be wrong with a host whose daemon runs, one after the other in one network:
//
//	h1 (etcd) ── br0 ─┬─ h2 (muslin) ── p2a
//	                  └─ h3 (muslin) ── p3a
func TestHost(t *testing.T) {
	lab.RequireTool(t, "nft", "iptables")
	s := newScene(t, 2, "")
	examine(t, s.nodes[0]).well(t)
	h2, h3 := s.nodes[0].Host, s.nodes[1].Host
	peer := labtest.Status(t, s.nodes[1]).Node.Subnet
	own := labtest.Status(t, s.nodes[0]).Node.Subnet
	inPeer := peer.Masked().Addr().Next().Next()
	s.faults([]fault{
		{
			id: "ip-forward", inject: on(0, "sysctl -w net.ipv4.ip_forward=0"),
			words: []string{"net.ipv4.ip_forward = 0", "sysctl -w net.ipv4.ip_forward=1"},
		},
		{
			id: "ip-forward", name: "of the bridge alone", inject: on(0, "sysctl -w net.ipv4.conf.cni0.forwarding=0"),
			words: []string{"net.ipv4.conf.cni0.forwarding = 0"},
		},
		{
			id: "forward-drop", name: "a policy before ours", inject: on(0, "nft 'table inet theirs { chain passing { type filter hook forward priority 0; policy drop; }; }'"),
			words: []string{"table inet theirs, chain passing", "drops", labtest.Network},
		},
		{
			id: "forward-drop", name: "a rule of iptables", inject: on(0, "iptables -I FORWARD -j REJECT"), mend: on(0, "iptables -D FORWARD -j REJECT"),
			words: []string{"chain FORWARD", "rejects", "iptables -I FORWARD -s " + labtest.Network + " -j ACCEPT"},
		},
		{
			id: "forward-drop", name: "from the pods' bridge", inject: on(0, "iptables -I FORWARD -i cni0 -j DROP"), words: []string{"chain FORWARD", "from this node's containers"},
		},
		{
			id: "forward-drop", name: "of one peer, before the route", inject: on(0, fmt.Sprintf("iptables -F FORWARD; iptables -t raw -I PREROUTING -d %s -j DROP", peer)),
			mend: on(0, "iptables -t raw -F"), words: []string{"chain PREROUTING", "of " + peer.String()},
		},
		{
			id: "forward-drop", name: "all but ICMP", inject: on(0, "iptables -N theirs; iptables -I FORWARD -j theirs; iptables -A theirs -p icmp -j ACCEPT; iptables -A theirs -j REJECT"),
			mend: on(0, "iptables -D FORWARD -j theirs; iptables -F theirs; iptables -X theirs"), words: []string{"chain FORWARD, by theirs", "TCP packets"},
		},
		{
			id: "route-wrong", name: "for containers alone", inject: on(0, fmt.Sprintf("ip route add default via %s table 78; ip rule add iif cni0 lookup 78 pref 100", s.lab.Host(1).Addr)),
			words: []string{"iif cni0", "ip rule del pref 100"},
		},
		{
			id: "foreign-key", inject: func(t *testing.T, s *scene) { s.etcd.Do(t, "put", labtest.Prefix+"/subnets/junk", "1") },
			mend:  func(t *testing.T, s *scene) { s.etcd.Do(t, "del", labtest.Prefix+"/subnets/junk") },
			words: []string{"muslin leases release --etcd-endpoints=" + labtest.Endpoint(s.lab.Host(1)) + " 'junk'"},
		},
		{
			id: "underlay-renamed", inject: on(0, "ip link set eth0 name lan0 || { ip link set eth0 down; ip link set eth0 name lan0; ip link set lan0 up; }"), words: []string{"lan0", "ip link set lan0 name eth0"},
		},
		{
			id: "underlay-route-missing", inject: on(0, fmt.Sprintf("ip addr del %s/24 dev eth0; ip addr add %[1]s/32 dev eth0", h2.Addr)),
			mend: on(0, fmt.Sprintf("ip addr del %s/32 dev eth0; ip addr add %[1]s/24 dev eth0", h2.Addr)), words: []string{"no route to any", h2.Addr.String() + "/32"},
		},
		{
			id: "route-wrong", name: "blackhole", inject: on(0, fmt.Sprintf("ip route add blackhole %s", peer)),
			words: []string{"blackhole route " + peer.String(), "ip route del " + peer.String()},
		},
		{
			id: "route-wrong", name: "by a gateway", inject: on(0, fmt.Sprintf("ip route add %s via %s", peer, s.lab.Host(1).Addr)),
			words: []string{"via 198.18.0.1", "ip route del " + peer.String()},
		},
		{
			id: "route-wrong", name: "a part of it", inject: on(0, fmt.Sprintf("ip route add %s/32 via %s", inPeer.Next().Next().Next(), s.lab.Host(1).Addr)),
			words: []string{"via 198.18.0.1", "ip route del " + inPeer.Next().Next().Next().String()},
		},
		{
			id: "route-wrong", name: "by a rule", inject: on(0, fmt.Sprintf("ip route add default via %s table 77; ip rule add to %s lookup 77 pref 100", s.lab.Host(1).Addr, peer)),
			words: []string{"ip rule del pref 100"},
		},
		{
			id: "subnet-overlap-route", inject: on(0, fmt.Sprintf("ip link add dummy7 type veth peer name dummy8; ip link set dummy8 up; ip addr add %s/24 dev dummy7; ip link set dummy7 up", inPeer)), mend: on(0, "ip link del dummy7"),
			words: []string{"dummy7", peer.Masked().String(), labtest.Network},
		},
		{
			id: "subnet-overlap-docker", inject: on(0, fmt.Sprintf("ip link add docker0 type bridge; ip addr add %s/24 dev docker0; ip link set docker0 up", inPeer)), mend: on(0, "ip link del docker0"),
			words: []string{"docker0", "daemon.json", peer.Masked().String()},
		},
		{
			id: "bridge-mtu", inject: on(0, "ip link set veth-a mtu 1500; ip link set cni0 mtu 1500"),
			words: []string{"cni0 1500", "1450", "ip link set cni0 mtu 1450"},
		},
		{
			id: "rp-filter", name: "on the underlay", inject: on(0, fmt.Sprintf("ip link add dummy7 type veth peer name dummy8; ip link set dummy8 up; ip link set dummy7 up; ip addr add 198.18.7.1/24 dev dummy7; ip route add %s dev dummy7; sysctl -w net.ipv4.conf.eth0.rp_filter=1", h3.Addr)),
			mend:  on(0, "ip link del dummy7; sysctl -w net.ipv4.conf.eth0.rp_filter=0"),
			words: []string{"eth0", h3.Addr.String(), "sysctl -w net/ipv4/conf/eth0/rp_filter=2"},
		},
		{
			id: "etcd-unreachable", name: "by a rule of its own", inject: on(0, "nft 'table inet alsotheirs { chain leaving { type filter hook output priority 0; tcp dport 2379 drop; }; }'"),
			words: []string{"a firewall rule of this host", "nft delete rule inet alsotheirs leaving handle"},
		},
		{
			id: "underlay-down", inject: on(0, "ip link set eth0 down"), words: []string{"eth0", "ip link set eth0 up"},
		},
		{
			id: "underlay-down", name: "no link", inject: func(t *testing.T, s *scene) { run(t, s.lab.Switch(), "ip", "link", "set", h2.Name, "down") },
			mend: func(t *testing.T, s *scene) { run(t, s.lab.Switch(), "ip", "link", "set", h2.Name, "up") }, words: []string{"eth0", "NO-CARRIER"},
		},
		{
			id: "underlay-address-changed", inject: on(0, fmt.Sprintf("ip addr add 198.18.0.77/16 dev eth0; ip addr del %s/24 dev eth0", h2.Addr)),
			mend: on(0, fmt.Sprintf("ip addr add %s/24 dev eth0; ip addr del 198.18.0.77/16 dev eth0", h2.Addr)), words: []string{h2.Addr.String(), "198.18.0.77", "systemctl restart muslin"},
		},
	})

	// The last, as the daemon keeps such a peer for a while.
	s.etcd.Do(t, "put", labtest.Prefix+"/subnets/"+fmt.Sprintf("%s-25", own.Masked().Addr()),
		`{"PublicIP":"198.18.0.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:99"}}`)
	examine(t, s.nodes[0]).first(t, "subnet-overlap-lease", h2.Addr.String(), "198.18.0.99", "muslin leases release", fmt.Sprintf("%s-25", own.Masked().Addr()))
}
