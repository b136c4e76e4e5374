//go:build linux

package doctor

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

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
	sh(t, h.Node, fmt.Sprintf(`ip link add flannel-v6.1 type vxlan id 1 dev eth0 local %s dstport 8472 nolearning
		ip addr add %s/128 dev flannel-v6.1 nodad
		ip link set flannel-v6.1 up mtu 1430
		ip link set flannel.1 mtu 1430
		sysctl -qw net.ipv6.conf.all.forwarding=1`, addr6(h), f.subnet6.Addr()))
	f.mac6 = strings.TrimSpace(sh(t, h.Node, "cat /sys/class/net/flannel-v6.1/address"))
	for _, m := range s.nodes {
		n := labtest.Status(t, m).Node
		if err := f.AddPeer(t.Context(), n.Subnet, n.VtepMAC, n.PublicIP); err != nil {
			t.Fatal(err)
		}
		subnet6 := netip.MustParsePrefix(n.Subnet6)
		sh(t, h.Node, fmt.Sprintf(`ip neigh replace %[1]s lladdr %[2]s nud permanent dev flannel-v6.1
			bridge fdb replace %[2]s dst %[3]s dev flannel-v6.1 self permanent
			ip -6 route replace %[4]s via %[1]s dev flannel-v6.1 onlink`, subnet6.Addr(), n.VtepMAC6, n.PublicIPv6, subnet6))
	}
	return f
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

// Faults of the way between two nodes, seen from one that runs muslin.
func TestPath(t *testing.T) {
	m := newMesh(t)
	h2, h3, h4 := m.lab.Host(2), m.lab.Host(3), m.lab.Host(4)
	examine(t, m.nodes[0]).well(t)
	const port = "udp dport 8472"
	m.faults([]fault{
		{id: "udp-filtered-here", name: "in", inject: filter(h2.Node, "input", port+" drop"), mend: unfilter(h2.Node), words: []string{"nft delete rule inet fault c handle"}},
		{id: "udp-filtered-here", name: "out", inject: filter(h2.Node, "output", port+" drop"), mend: unfilter(h2.Node), words: []string{"leaves", "nft delete rule"}},
		{id: "udp-filtered-at-peer", name: "muslin", about: h3.Addr.String(), inject: filter(h3.Node, "input", "meta nfproto ipv4 "+port+" drop"), mend: unfilter(h3.Node), words: []string{"what it sends arrives"}},
		{id: "udp-filtered-at-peer", name: "flannel", about: h4.Addr.String(), inject: filter(h4.Node, "input", "meta nfproto ipv4 "+port+" drop"), mend: unfilter(h4.Node)},
		{id: "udp-filtered-at-peer", name: "IPv6, refused", about: addr6(h4).String(), inject: filter(h4.Node, "input", "meta nfproto ipv6 "+port+" reject with icmpv6 type admin-prohibited"), mend: unfilter(h4.Node), words: []string{"refuses"}},
		{id: "udp-filtered-one-way", about: h4.Addr.String(), inject: filter(h4.Node, "output", "meta nfproto ipv4 "+port+" drop"), mend: unfilter(h4.Node), words: []string{"OUTPUT"}},
	})
}
