//go:build linux

package e2e

import (
	"net/netip"
	"testing"
	"time"

	"muslin/bench/lab"
)

// mixed is a network of both families, with two nodes of muslin's and one that is set up as flannel does it, and a pod on each:
//
//	p1a ── cni0 ─ h1 (muslin, etcd) ─┐         ┌─ h3 (flannel.1, flannel-v6.1) ─ cni0 ── p3a
//	p2a ── cni0 ─ h2 (muslin) ───────┴── br0 ──┘
type mixed struct {
	*lab.Lab
	m1, m2     *lab.Muslin
	flannel    *kernel6 // of h3
	a, b, c    *lab.Pod
	a6, b6, c6 *lab.Pod // the same by their IPv6 addresses
}

// newMixed waits until every node reaches every pod.
func newMixed(t *testing.T) *mixed {
	t.Helper()
	lab.RequireTool(t, "bridge", "etcdctl", "ping")
	x := &mixed{Lab: newLab(t, 3)}
	underlay6(t, x.Lab)
	h1, h2, h3 := x.Host(1), x.Host(2), x.Host(3)
	startEtcd(t, h1).Config(t, dualConfig)
	flags := []string{"--etcd-endpoints", endpoint(h1)}
	x.m1, x.m2 = startMuslin(t, h1, flags...), startMuslin(t, h2, flags...)
	daemons := []*lab.Muslin{x.m1, x.m2}
	x.flannel = startKernel6(t, h3, unleased(t, daemons...), netip.MustParsePrefix("fd00:244:0:c8::/64"), daemons)
	x.flannel.put(t, x.Lab)
	waitPeers(t, x.m1, 4)
	waitPeers(t, x.m2, 4)
	x.a, x.b = addPod(t, x.m1, "a"), addPod(t, x.m2, "a")
	x.c = must(h3.AddPod(t.Context(), "a", lab.PodNetwork{Gateway: x.flannel.PodNetwork().Gateway, MTU: dualMTU}))(t)
	x.a6 = pod6(t, x.a, netip.MustParsePrefix(status(t, x.m1).Node.Subnet6))
	x.b6 = pod6(t, x.b, netip.MustParsePrefix(status(t, x.m2).Node.Subnet6))
	x.c6 = pod6(t, x.c, x.flannel.subnet6)
	eventuallyPings(t, x.a.Node, x.b.Addr)
	eventuallyPings(t, x.a.Node, x.c.Addr)
	eventuallyPings(t, x.b.Node, x.c.Addr) // or else h2 does not know yet whether h3 is up
	for _, way := range [][2]*lab.Pod{{x.a6, x.b6}, {x.a6, x.c6}, {x.b6, x.c6}} {
		eventually(t, 10*time.Second, func() error { return ping6(t, way[0], way[1].Addr, 1280) })
	}
	return x
}
