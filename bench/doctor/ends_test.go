//go:build linux

package doctor

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// Faults between nodes of one address family, seen from both ends at once: nobody can be asked by another way.
//
//	h1 (etcd) ── br0 ─┬─ h2 (muslin)
//	                  ├─ h3 (muslin)
//	                  └─ h4 (flannel.1)
func TestBothEnds(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "nft", "bridge", "etcdctl", "ethtool")
	s := &scene{T: t, lab: labtest.NewLab(t, 4)}
	s.etcd = labtest.StartEtcd(t, s.lab.Host(1))
	s.etcd.Config(t, labtest.VXLANConfig)
	s.join(s.lab.Host(2))
	s.join(s.lab.Host(3))
	h1, h2, h3, h4 := s.lab.Host(1), s.lab.Host(2), s.lab.Host(3), s.lab.Host(4)
	flannel := labtest.Must(h4.SetupKernelVXLAN(t.Context(), 1, 8472, netip.MustParsePrefix("10.244.200.0/24")))(t)
	for _, m := range s.nodes {
		n := labtest.Status(t, m).Node
		if err := flannel.AddPeer(t.Context(), n.Subnet, n.VtepMAC, n.PublicIP); err != nil {
			t.Fatal(err)
		}
	}
	s.etcd.Do(t, "put", flannel.LeaseKey(labtest.Prefix), flannel.LeaseValue(1))
	for _, m := range s.nodes {
		labtest.WaitPeers(t, m, 2)
	}
	s.wellAgain(t, s.nodes[0])
	about3, about4 := h3.Addr.String(), h4.Addr.String()
	port := func(state string) func(*testing.T, *scene) {
		return func(t *testing.T, s *scene) { t.Helper(); run(t, s.lab.Switch(), "ip", "link", "set", h3.Name, state) }
	}
	const refuse = "udp dport 8472 reject with icmp type port-unreachable" // what iptables does with REJECT
	twin := onHost(h1, "ip addr add "+about3+"/32 dev eth0")
	noTwin := both(onHost(h1, "ip addr del "+about3+"/32 dev eth0"), onHost(h2, "ip neigh flush dev eth0"))
	wins := func(t *testing.T, _ *scene) {
		t.Helper()
		sh(t, h2.Node, fmt.Sprintf("ip neigh replace %s lladdr %s dev eth0 nud reachable", about3, labtest.HardwareAddr(t, h1)))
	}
	s.faults([]fault{
		{id: "udp-filtered-at-peer", name: "refused", about: about4, inject: filter(h4.Node, "input", refuse), mend: unfilter(h4.Node), words: []string{"refuses"}, far: "udp-filtered-at-peer", farAbout: about4},
		{id: "udp-filtered-at-peer", name: "muslin", about: about3, inject: filter(h3.Node, "input", refuse), mend: unfilter(h3.Node), words: []string{"refuses"}, far: "udp-filtered-here"},
		{id: "udp-filtered-at-peer", name: "on the way", about: about3, inject: onSwitch("ip daddr " + about3 + " udp dport 8472 drop"), mend: unSwitch, words: []string{"what it sends arrives"}},
		{id: "checksum-corruption", name: "there", about: about3, inject: both(onHost(h2, "ethtool -K eth0 tx off"), onSwitch("ip saddr "+h2.Addr.String()+" ip daddr "+about3+" "+damage)), mend: both(unSwitch, onHost(h2, "ethtool -K eth0 tx on")),
			words: []string{"on the way to " + about3, "something else than was sent"}, far: "checksum-corruption", farAbout: h2.Addr.String()},
		{id: "lease-dead-node", name: "off", about: about3, inject: port("down"), mend: port("up"), words: []string{"nobody on the link"}, far: "underlay-down"},
		{id: "public-ip-duplicate", name: "two hosts", about: about3, inject: twin, mend: noTwin, words: []string{"answers alone"}, far: "public-ip-duplicate"},
		{id: "public-ip-duplicate", name: "the other one is reached", about: about3, inject: both(twin, wins), mend: noTwin, words: []string{"answers alone"}, far: "public-ip-duplicate"},
	})
}

// With wireguard nothing of the overlay can be made by hand, and a filter is told all the same.
//
//	h1 (etcd) ── br0 ─┬─ h2 (muslin) ── p2a
//	                  └─ h3 (muslin) ── p3a
func TestEncryptedFiltered(t *testing.T) {
	lab.RequireTool(t, "nft")
	s := newScene(t, 2, `{"Network":"`+labtest.Network+`","Backend":{"Type":"wireguard"}}`)
	h2, h3 := s.lab.Host(2), s.lab.Host(3)
	s.wellAgain(t, s.nodes[0])
	s.faults([]fault{
		{id: "udp-filtered-at-peer", about: h3.Addr.String(), inject: filter(h3.Node, "input", "udp dport 51820 reject"), mend: unfilter(h3.Node), words: []string{"refuses"}, far: "udp-filtered-here"},
		{id: "udp-filtered-here", inject: filter(h2.Node, "output", "udp dport 51820 drop"), mend: unfilter(h2.Node), words: []string{"what leaves"}},
	})
}

// A node behind a router, which filters, takes less, or translates addresses:
//
//	h1 (etcd), h2 (muslin) ── br0 ── sw, 198.18.0.254 | 10.99.0.254 ── br1 ─┬─ h3 (muslin, 10.99.0.3)
//	                                                                         └─ h4 (10.99.0.4, muslin in the end)
func TestRouter(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "nft", "etcdctl")
	s := &scene{T: t, lab: labtest.NewLab(t, 4)}
	h1, h2, router := s.lab.Host(1), s.lab.Host(2), s.lab.Switch()
	sh(t, router, "ip link add br1 type bridge forward_delay 0; ip link set br1 up; ip addr add 198.18.0.254/24 dev br0; ip addr add 10.99.0.254/24 dev br1; sysctl -qw net.ipv4.ip_forward=1")
	for _, h := range s.lab.Hosts()[2:] {
		sh(t, router, "ip link set "+h.Name+" master br1")
		sh(t, h.Node, fmt.Sprintf("ip addr flush dev eth0; ip addr add 10.99.0.%d/24 dev eth0; ip route add default via 10.99.0.254", h.Number))
	}
	for _, h := range []*lab.Host{h1, h2} {
		sh(t, h.Node, "ip route add default via 198.18.0.254")
	}
	s.etcd = labtest.StartEtcd(t, h1)
	s.etcd.Config(t, labtest.VXLANConfig)
	s.join(h2)
	flags := []string{"--etcd-endpoints", labtest.Endpoint(h1), "--public-ip"}
	s.nodes = append(s.nodes, labtest.StartMuslin(t, s.lab.Host(3), append(flags, "10.99.0.3")...))
	for _, m := range s.nodes {
		labtest.WaitPeers(t, m, 1)
		s.wellAgain(t, m)
	}
	on := func(table string) func(*testing.T, *scene) {
		return func(t *testing.T, _ *scene) { t.Helper(); sh(t, router, "nft '"+table+"'") }
	}
	off := func(table string) func(*testing.T, *scene) {
		return func(t *testing.T, _ *scene) { t.Helper(); sh(t, router, "nft delete table "+table) }
	}
	nat := func(of string) string {
		return `table ip nat { chain c { type nat hook postrouting priority 100; oifname "br0" ip saddr ` + of + ` masquerade; }; }`
	}
	const about3, public = "10.99.0.3", "198.18.0.254"
	s.faults([]fault{
		{id: "udp-filtered-on-path", about: about3, inject: filter(router, "forward", "udp dport 8472 reject with icmp type port-unreachable"), mend: unfilter(router), words: []string{public}, far: "udp-filtered-on-path", farAbout: h2.Addr.String()},
		{id: "mtu-black-hole", about: about3, inject: filter(router, "forward", "ip daddr 10.99.0.3 meta length > 1364 drop"), mend: unfilter(router), words: []string{"1314 bytes are answered"}},
		{id: "public-ip-nat", about: about3, inject: on(nat(about3)), mend: off("ip nat"), words: []string{"behind NAT", public}},
		{id: "public-ip-nat", name: "and not reached", about: about3, inject: both(on(nat(about3)), filter(router, "forward", `iifname "br0" ct state new reject with icmp type net-unreachable`)), mend: both(off("ip nat"), unfilter(router)), words: []string{"behind NAT", public}},
	})

	// One whose PublicIP is the router's, which hands nothing on; and then it does.
	on(nat("10.99.0.4"))(t, s)
	sh(t, router, "sysctl -qw net.netfilter.nf_conntrack_udp_timeout=1") // or what the router once did with a flow it goes on to do
	labtest.StartMuslin(t, s.lab.Host(4), append(flags, public)...)
	labtest.WaitPeers(t, s.nodes[0], 2)
	labtest.Eventually(t, 15*time.Second, func() error {
		for _, p := range labtest.Status(t, s.nodes[0]).Peers {
			if p.PublicIP.String() == public && p.RxPackets > 0 {
				return nil
			}
		}
		return errors.New("it is not heard")
	})
	examine(t, s.nodes[0]).first(t, "public-ip-nat", public, "hand UDP 8472 on")
	on("table ip onward { chain c { type nat hook prerouting priority -100; ip daddr "+public+" udp dport 8472 dnat to 10.99.0.4; }; }")(t, s)
	s.wellAgain(t, s.nodes[0])
}
