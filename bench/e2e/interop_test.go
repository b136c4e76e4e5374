//go:build linux

package e2e

import (
	"net/netip"
	"testing"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// muslin and the kernel's VXLAN device, each the other's only peer:
//
//	p1a ── cni0 ─ h1 (muslin, embedded etcd) ── br0 ── flannel.1 ─ h2 ─ cni0 ── p2a
//
// The kernel host's lease is written into etcd by hand, as flannel writes it, and its device, neighbour,
// forwarding entry and route are flannel's. Its offloads stay at their defaults: over veth it then sends
// inner packets whose checksum nobody has filled in.
func TestKernelVXLANPeer(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "iperf3", "bridge", "etcdctl")
	for name, c := range map[string]struct {
		backend string
		vni     uint32
		port    int
	}{
		"defaults":      {backend: "vxlan", vni: 1, port: 8472},
		"other numbers": {backend: `{"Type":"vxlan","VNI":1234567,"Port":4789}`, vni: 1234567, port: 4789},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, 2)
			ctx := t.Context()
			m := startMuslin(t, l.Host(1), "--embedded-etcd", "--network", network, "--backend", c.backend)
			a := addPod(t, m, "a")
			node := status(t, m).Node

			subnet := netip.MustParsePrefix("10.244.250.0/24")
			if subnet == node.Subnet.Masked() {
				subnet = netip.MustParsePrefix("10.244.251.0/24")
			}
			v := must(l.Host(2).SetupKernelVXLAN(ctx, c.vni, c.port, subnet))(t)
			if v.MTU != node.MTU {
				t.Errorf("MTU: kernel %d, muslin %d", v.MTU, node.MTU)
			}
			if err := v.AddPeer(ctx, node.Subnet, node.VtepMAC, node.PublicIP); err != nil {
				t.Fatal(err)
			}
			b := must(l.Host(2).AddPod(ctx, "a", v.PodNetwork()))(t)
			store := labtest.EtcdOn(l.Host(1))
			store.Do(t, "put", v.LeaseKey(prefix), v.LeaseValue(c.vni))
			waitPeers(t, m, 1)

			whole := lab.PingOptions{Count: 3, Size: v.MTU, DontFragment: true}
			fragments := lab.PingOptions{Count: 3, Size: 8000}
			expectPing(t, a.Node, b.Addr, 10)
			expectPing(t, b.Node, a.Addr, 10)
			expectPings(t, a.Node, b.Addr, whole)
			expectPings(t, b.Node, a.Addr, whole)
			expectPing(t, a.Node, subnet.Addr(), 3) // flannel.1's own address
			expectPing(t, l.Host(2).Node, a.Addr, 3)
			expectPings(t, b.Node, a.Addr, fragments)
			expectPings(t, a.Node, b.Addr, fragments)
			for _, way := range [][2]*lab.Pod{{a, b}, {b, a}} {
				from, to := way[0], way[1]
				udp, err := lab.IperfUDP(ctx, from.Node, to.Node, to.Addr, 1000, 1400, lab.Modest(20_000_000))
				if err != nil || udp.Packets != 1000 || udp.Lost > maxLost*1000 {
					t.Errorf("UDP from %s: %+v, %v; want 1000 datagrams", from.Name, udp, err)
				}
				tcp, err := lab.IperfTCP(ctx, from.Node, to.Node, to.Addr, 1)
				if err != nil || tcp.BitsPerSecond < lab.Modest(50e6) {
					t.Errorf("TCP from %s: %+v, %v", from.Name, tcp, err)
				}
				t.Logf("from %s: TCP %.2f Gb/s", from.Name, tcp.BitsPerSecond/1e9)
				copyTCP(t, from, to, bigFile())
			}
			expectNoDrops(t, m)
		})
	}
}
