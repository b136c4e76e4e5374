//go:build linux

package doctor

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

const dualConfig = `{"Network":"` + labtest.Network + `","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan"}}`

// flannelNode is a node set up as flannel sets it up, of both families: flannel.1 and flannel-v6.1.
type flannelNode struct {
	*lab.KernelVXLAN
	subnet6 netip.Prefix
	mac6    string
}

// mesh is a scene of two nodes with muslin and one as flannel makes it, in both families:
//
//	h1 (etcd) ── br0 ─┬─ h2 (muslin)
//	                  ├─ h3 (muslin)
//	                  └─ h4 (flannel.1, flannel-v6.1)
type mesh struct {
	*scene
	flannel *flannelNode
}

func addr6(h *lab.Host) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("fd99::%d", h.Number)) }

func newMesh(t *testing.T) *mesh {
	t.Helper()
	t.Parallel()
	lab.RequireTool(t, "nft", "bridge", "etcdctl", "ethtool")
	s := &scene{T: t, lab: labtest.NewLab(t, 4)}
	for _, h := range s.lab.Hosts() {
		run(t, h.Node, "ip", "addr", "add", addr6(h).String()+"/64", "dev", "eth0", "nodad")
	}
	s.etcd = labtest.StartEtcd(t, s.lab.Host(1))
	s.etcd.Config(t, dualConfig)
	s.join(s.lab.Host(2))
	s.join(s.lab.Host(3))
	m := &mesh{scene: s, flannel: startFlannel(t, s, s.lab.Host(4))}
	m.putLease(t)
	for _, n := range s.nodes {
		labtest.WaitPeers(t, n, 4)
	}
	return m
}

// startFlannel makes the devices, and the entries for the scene's nodes.
func startFlannel(t *testing.T, s *scene, h *lab.Host) *flannelNode {
	t.Helper()
	f := &flannelNode{subnet6: netip.MustParsePrefix("fd00:244:0:c8::/64")}
	f.KernelVXLAN = labtest.Must(h.SetupKernelVXLAN(t.Context(), 1, 8472, netip.MustParsePrefix("10.244.200.0/24")))(t)
	f.six(t, s)
	for _, m := range s.nodes {
		n := labtest.Status(t, m).Node
		if err := f.AddPeer(t.Context(), n.Subnet, n.VtepMAC, n.PublicIP); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// six makes flannel-v6.1, and the entries of IPv6.
func (f *flannelNode) six(t *testing.T, s *scene) {
	t.Helper()
	h := f.Host
	sh(t, h.Node, fmt.Sprintf(`ip link add flannel-v6.1 type vxlan id 1 dev eth0 local %s dstport 8472 nolearning
		ip addr add %s/128 dev flannel-v6.1 nodad
		ip link set flannel-v6.1 up mtu 1430
		ip link set flannel.1 mtu 1430
		sysctl -qw net.ipv6.conf.all.forwarding=1`, addr6(h), f.subnet6.Addr()))
	f.mac6 = strings.TrimSpace(sh(t, h.Node, "cat /sys/class/net/flannel-v6.1/address"))
	for _, m := range s.nodes {
		n := labtest.Status(t, m).Node
		subnet6 := netip.MustParsePrefix(n.Subnet6)
		sh(t, h.Node, fmt.Sprintf(`ip neigh replace %[1]s lladdr %[2]s nud permanent dev flannel-v6.1
			bridge fdb replace %[2]s dst %[3]s dev flannel-v6.1 self permanent
			ip -6 route replace %[4]s via %[1]s dev flannel-v6.1 onlink`, subnet6.Addr(), n.VtepMAC6, n.PublicIPv6, subnet6))
	}
}

// key is that of the flannel node's lease.
func (f *flannelNode) key() string {
	return labtest.Prefix + "/subnets/10.244.200.0-24&fd00:244:0:c8::-64"
}

// lease is its value, with other words in place of some.
func (f *flannelNode) lease(instead ...string) string {
	value := fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":%q,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":%q},"BackendV6Data":{"VNI":1,"VtepMAC":%q}}`,
		f.Host.Addr, addr6(f.Host), f.MAC, f.mac6)
	return strings.NewReplacer(instead...).Replace(value)
}

func (m *mesh) putLease(t *testing.T, instead ...string) {
	t.Helper()
	m.etcd.Do(t, "put", m.flannel.key(), m.flannel.lease(instead...))
}

// filter has a host drop what a rule of nft says, and unfilter no more.
func filter(n *lab.Node, hook, rule string) func(*testing.T, *scene) {
	return func(t *testing.T, _ *scene) {
		t.Helper()
		sh(t, n, fmt.Sprintf("nft 'table inet fault { chain c { type filter hook %s priority 0; %s; }; }'", hook, rule))
	}
}

func unfilter(n *lab.Node) func(*testing.T, *scene) {
	return func(t *testing.T, _ *scene) { t.Helper(); sh(t, n, "nft delete table inet fault") }
}

// damage is a rule that spoils a byte of an inner packet, and no checksum follows.
const damage = "udp dport 8472 @th,480,8 set 0xff"

// Faults of the way between two nodes, seen from one that runs muslin.
func TestPath(t *testing.T) {
	m := newMesh(t)
	h2, h3, h4 := m.lab.Host(2), m.lab.Host(3), m.lab.Host(4)
	examine(t, m.nodes[0]).well(t)
	const four = "meta nfproto ipv4 udp dport 8472 "
	m.faults([]fault{
		{id: "udp-filtered-here", name: "in", inject: filter(h2.Node, "input", "udp dport 8472 drop"), mend: unfilter(h2.Node), words: []string{"nft delete rule inet fault c handle"}},
		{id: "udp-filtered-here", name: "out", inject: filter(h2.Node, "output", "udp dport 8472 drop"), mend: unfilter(h2.Node), words: []string{"leaves", "nft delete rule"}},
		{id: "udp-filtered-at-peer", name: "muslin", about: h3.Addr.String(), inject: filter(h3.Node, "input", four+"drop"), mend: unfilter(h3.Node), words: []string{"what it sends arrives"}},
		{id: "udp-filtered-at-peer", name: "flannel", about: h4.Addr.String(), inject: filter(h4.Node, "input", four+"drop"), mend: unfilter(h4.Node)},
		{id: "udp-filtered-at-peer", name: "IPv6, refused", about: h4.Addr.String(), inject: filter(h4.Node, "input", "meta nfproto ipv6 udp dport 8472 reject with icmpv6 type admin-prohibited"), mend: unfilter(h4.Node), words: []string{"fd99::4 refuses"}},
		{id: "udp-filtered-at-peer", name: "IPv6, as if closed", about: h4.Addr.String(), inject: filter(h4.Node, "input", "meta nfproto ipv6 udp dport 8472 reject with icmpv6 type port-unreachable"), mend: unfilter(h4.Node), words: []string{"fd99::4 refuses", "ip6tables"}},
		{id: "udp-filtered-one-way", about: h4.Addr.String(), inject: filter(h4.Node, "output", four+"drop"), mend: unfilter(h4.Node), words: []string{"OUTPUT"}},
		{id: "udp-filtered-one-way", name: "muslin", about: h3.Addr.String(), inject: filter(h3.Node, "output", four+"drop"), mend: unfilter(h3.Node), words: []string{"OUTPUT"}},
		{id: "public-ip-nat", about: h3.Addr.String(), words: []string{"behind NAT", "198.18.0.203"}, mend: onHost(h3, "nft delete table ip fault; ip addr del 198.18.0.203/24 dev eth0"),
			inject: onHost(h3, "ip addr add 198.18.0.203/24 dev eth0; nft 'table ip fault { chain c { type nat hook postrouting priority 100; udp dport 8472 snat to 198.18.0.203; }; }'")},
		{id: "checksum-corruption", about: h4.Addr.String(), words: []string{"wrong UDP checksum"}, inject: both(onHost(h4, "ethtool -K eth0 tx off"), onSwitch("ip saddr "+h4.Addr.String()+" "+damage)), mend: both(unSwitch, onHost(h4, "ethtool -K eth0 tx on"))},
		{id: "checksum-corruption", name: "inside", about: h4.Addr.String(), words: []string{"wrong ICMP checksum"}, inject: onSwitch("ip saddr " + h4.Addr.String() + " " + damage), mend: unSwitch},
		{id: "mtu-black-hole", about: h3.Addr.String(), words: []string{"1314 bytes are answered"}, inject: onSwitch("ip daddr " + h3.Addr.String() + " meta length > 1364 drop"), mend: unSwitch},
	})
}

// both injects one after the other.
func both(all ...func(*testing.T, *scene)) func(*testing.T, *scene) {
	return func(t *testing.T, s *scene) {
		t.Helper()
		for _, one := range all {
			one(t, s)
		}
	}
}

// onHost runs a shell's command line.
func onHost(h *lab.Host, line string) func(*testing.T, *scene) {
	return func(t *testing.T, _ *scene) { t.Helper(); sh(t, h.Node, line) }
}

// onSwitch is a hop between the hosts that drops what a rule says.
func onSwitch(rule string) func(*testing.T, *scene) {
	return func(t *testing.T, s *scene) {
		t.Helper()
		sh(t, s.lab.Switch(), "nft 'table bridge fault { chain c { type filter hook forward priority 0; "+rule+"; }; }'")
	}
}

func unSwitch(t *testing.T, s *scene) {
	t.Helper()
	sh(t, s.lab.Switch(), "nft delete table bridge fault")
}

// put writes a lease by hand, and del takes it away.
func put(key, value string) func(*testing.T, *scene) {
	return func(t *testing.T, s *scene) {
		t.Helper()
		s.etcd.Do(t, "put", labtest.Prefix+"/subnets/"+key, value)
		labtest.WaitPeers(t, s.nodes[0], 5)
	}
}

func del(key string) func(*testing.T, *scene) {
	return func(t *testing.T, s *scene) { t.Helper(); s.etcd.Do(t, "del", labtest.Prefix+"/subnets/"+key) }
}

// Leases that are not what their nodes are, seen from a node that runs muslin.
func TestLeases(t *testing.T) {
	m := newMesh(t)
	h4 := m.lab.Host(4)
	examine(t, m.nodes[0]).well(t)
	about4 := h4.Addr.String()
	as := func(instead ...string) func(*testing.T, *scene) {
		return func(t *testing.T, _ *scene) { t.Helper(); m.putLease(t, instead...) }
	}
	asItIs := as()
	const other, key = `{"PublicIP":"%s","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"%s"}}`, "10.244.210.0-24"
	device := func(vni, port int) string {
		return fmt.Sprintf("mac=$(cat /sys/class/net/flannel.1/address); ip link del flannel.1; ip link add flannel.1 address $mac type vxlan id %d dev eth0 local %s dstport %d nolearning; ip addr add 10.244.200.0/32 dev flannel.1; ip link set flannel.1 mtu 1430 up", vni, h4.Addr, port)
	}
	entries := func(t *testing.T, _ *scene) {
		t.Helper()
		for _, n := range m.nodes {
			node := labtest.Status(t, n).Node
			if err := m.flannel.AddPeer(t.Context(), node.Subnet, node.VtepMAC, node.PublicIP); err != nil {
				t.Fatal(err)
			}
		}
	}
	mac3 := labtest.Status(t, m.nodes[1]).Node.VtepMAC
	m.faults([]fault{
		{id: "vni-mismatch", name: "lease", about: about4, inject: as(`"VNI":1`, `"VNI":2`), mend: asItIs, words: []string{"VNI 2", "muslin config get"}},
		{id: "vni-mismatch", name: "wire", about: about4, inject: both(onHost(h4, device(2, 8472)), entries, pingOut(h4)), mend: both(onHost(h4, device(1, 8472)), entries), words: []string{"VNI 2"}},
		{id: "port-mismatch", about: about4, inject: both(onHost(h4, "ip link del flannel-v6.1; "+device(1, 4789)), entries), mend: both(onHost(h4, device(1, 8472)), entries, m.sixAgain), words: []string{"4789"}},
		{id: "backend-mismatch", about: about4, inject: as(`"vxlan"`, `"host-gw"`), mend: asItIs, words: []string{"host-gw"}},
		{id: "vtep-mac-wrong", about: about4, inject: as(m.flannel.MAC, "02:00:00:00:00:09"), mend: asItIs, words: []string{"02:00:00:00:00:09"}},
		{id: "vtep-mac-duplicate", inject: as(m.flannel.MAC, mac3), mend: asItIs, words: []string{mac3}, about: about4},
		{id: "public-ip-duplicate", about: about4, inject: put(key, fmt.Sprintf(other, h4.Addr, "02:00:00:00:00:09")), mend: del(key), words: []string{"2 leases", key}},
		{id: "public-ip-unreachable", name: "no route", about: "203.0.113.9", inject: put(key, fmt.Sprintf(other, "203.0.113.9", "02:00:00:00:00:09")), mend: del(key), words: []string{"no route"}},
		{id: "lease-dead-node", name: "off", about: "198.18.0.77", inject: put(key, fmt.Sprintf(other, "198.18.0.77", "02:00:00:00:00:09")), mend: del(key), words: []string{"muslin leases release", key}},
		{id: "lease-dead-node", name: "nobody listens", about: m.lab.Host(1).Addr.String(), inject: put(key, fmt.Sprintf(other, m.lab.Host(1).Addr, "02:00:00:00:00:09")), mend: del(key)},
		{id: "lease-stale", about: about4, inject: both(put(key, fmt.Sprintf(other, h4.Addr, m.flannel.MAC)), asItIs), mend: del(key), words: []string{"muslin leases release ", "'" + key}},
		{id: "lease-expired", about: about4, inject: both(func(t *testing.T, s *scene) { s.etcd.Do(t, "del", m.flannel.key()) }, pingOut(h4)), mend: asItIs, words: []string{"lives and has no lease"}},
	})
}

// sixAgain makes flannel-v6.1 again.
func (m *mesh) sixAgain(t *testing.T, s *scene) {
	t.Helper()
	m.flannel.six(t, s)
	m.putLease(t)
}

// pingOut has a host send over the overlay, so that its datagrams are seen.
func pingOut(h *lab.Host) func(*testing.T, *scene) {
	return func(t *testing.T, s *scene) {
		t.Helper()
		to := labtest.Status(t, s.nodes[0]).Node.Subnet.Masked().Addr()
		p := labtest.Must(h.Start("ping", nil, "ping", "-i", "0.3", "-I", "10.244.200.0", to.String()))(t)
		t.Cleanup(func() { _ = p.Stop() })
	}
}

// A node that has flannel only, and one whose muslin was stopped.
func TestWithoutDaemon(t *testing.T) {
	m := newMesh(t)
	h3, h4 := m.lab.Host(3), m.lab.Host(4)
	flannel := h4.Muslin(labtest.Bin)
	flags := here(flannel, m.etcd)
	write := func(subnet string) func(*testing.T, *scene) {
		return onHost(h4, fmt.Sprintf("printf 'FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=%s\nFLANNEL_IPV6_NETWORK=fd00:244::/48\nFLANNEL_IPV6_SUBNET=fd00:244:0:c8::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n' > %s", subnet, flannel.SubnetFile))
	}
	write("10.244.200.1/24")(t, m.scene)
	well := func(t *testing.T) {
		t.Helper()
		labtest.Eventually(t, 10*time.Second, func() error {
			if r := examine(t, flannel, flags...); len(r.Findings) > 0 {
				return errors.New(r.raw)
			}
			return nil
		})
	}
	well(t)
	base3, mac3 := labtest.Status(t, m.nodes[1]).Node.Subnet.Masked().Addr().String(), labtest.Status(t, m.nodes[1]).Node.VtepMAC
	own, about3 := h4.Addr.String(), h3.Addr.String()
	for _, f := range []fault{
		{id: "udp-filtered-here", name: "in", about: own, inject: filter(h4.Node, "input", "udp dport 8472 drop"), mend: unfilter(h4.Node), words: []string{"nft delete rule"}},
		{id: "udp-filtered-here", name: "out", about: own, inject: filter(h4.Node, "output", "udp dport 8472 drop"), mend: unfilter(h4.Node)},
		{id: "udp-filtered-at-peer", about: about3, inject: filter(h3.Node, "input", "meta nfproto ipv4 udp dport 8472 drop"), mend: unfilter(h3.Node)},
		{id: "lease-stale", name: "neighbour", about: own, inject: onHost(h4, "ip neigh replace "+base3+" lladdr 02:00:00:00:00:09 nud permanent dev flannel.1"), mend: onHost(h4, "ip neigh replace "+base3+" lladdr "+mac3+" nud permanent dev flannel.1"), words: []string{"02:00:00:00:00:09", "restart flanneld"}},
		{id: "lease-stale", name: "forwarding", about: own, inject: onHost(h4, "bridge fdb replace "+mac3+" dst 198.18.0.99 dev flannel.1 self permanent"), mend: onHost(h4, "bridge fdb replace "+mac3+" dst "+about3+" dev flannel.1 self permanent"), words: []string{"198.18.0.99"}},
		{id: "lease-expired", about: own, inject: func(t *testing.T, s *scene) { s.etcd.Do(t, "del", m.flannel.key()) }, mend: func(t *testing.T, _ *scene) { m.putLease(t) }},
		{id: "vtep-mac-wrong", about: own, inject: func(t *testing.T, _ *scene) { m.putLease(t, m.flannel.MAC, "02:00:00:00:00:09") }, mend: func(t *testing.T, _ *scene) { m.putLease(t) }, words: []string{"flannel.1"}},
		{id: "mtu-black-hole", about: about3, inject: onSwitch("ip daddr " + about3 + " meta length > 1364 drop"), mend: unSwitch},
		{id: "vni-mismatch", about: own, inject: func(t *testing.T, s *scene) {
			s.etcd.Config(t, strings.Replace(dualConfig, `"vxlan"`, `"vxlan","VNI":2`, 1))
		}, mend: func(t *testing.T, s *scene) { s.etcd.Config(t, dualConfig) }, words: []string{"VNI 1", "config says 2"}},
		{id: "port-mismatch", about: own, inject: func(t *testing.T, s *scene) {
			s.etcd.Config(t, strings.Replace(dualConfig, `"vxlan"`, `"vxlan","Port":4789`, 1))
		}, mend: func(t *testing.T, s *scene) { s.etcd.Config(t, dualConfig) }, words: []string{"4789"}},
	} {
		t.Run(strings.TrimSuffix(f.id+", "+f.name, ", "), func(t *testing.T) {
			f.inject(t, m.scene)
			examine(t, flannel, flags...).first(t, f.id, f.about, f.words...)
			f.mend(t, m.scene)
			well(t)
		})
	}

	// Of a peer whose daemon was stopped the leases stay.
	t.Run("lease-dead-node", func(t *testing.T) {
		if err := m.nodes[1].Stop(); err != nil {
			t.Fatal(err)
		}
		examine(t, m.nodes[0]).first(t, "lease-dead-node", about3, "nobody listens")
		for _, f := range examine(t, m.nodes[1], here(m.nodes[1], m.etcd)...).Findings {
			if f.Node != about3 { // of itself it has something to say
				t.Errorf("where muslin was stopped, the others are well, and it finds %+v", f)
			}
		}
	})
}
