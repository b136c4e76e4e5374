//go:build linux

package e2e

import (
	"os"
	"testing"

	"muslin/bench/lab"
)

// bigFile is the size of a big file in bytes: 1 GiB where MUSLIN_LONG is set, otherwise such that the whole
// suite stays quick.
func bigFile() int64 {
	if os.Getenv("MUSLIN_LONG") != "" {
		return lab.Modest(int64(1 << 30))
	}
	return lab.Modest(int64(64 << 20))
}

// Big files both ways, one after the other, for each backend between two daemons, and between a daemon and the
// kernel's VXLAN device:
//
//	p1a ── cni0 ─ h1 (muslin) ─┬─ br0 ─┬─ h2 (muslin) ─ cni0 ── p2a
//	                           └───────┴─ flannel.1 ─ h3 ─ cni0 ── p3a (vxlan)
func TestBigFiles(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"vxlan", "udp"} {
		t.Run(backend, func(t *testing.T) {
			l := newLab(t, 3)
			leases := []leased{leaseOf(l.Host(1)), leaseOf(l.Host(2))}
			others := l.Hosts()[1:2]
			if backend == "vxlan" {
				leases = append(leases, kernelPeer(t, l.Host(3), leases...))
				others = l.Hosts()[1:]
			}
			daemons := startBoth(t, l, backend, leases, [2][]string{})
			a := l.Host(1).Pods()[0]
			for _, h := range others {
				for _, way := range [][2]*lab.Pod{{a, h.Pods()[0]}, {h.Pods()[0], a}} {
					copyTCP(t, way[0], way[1], bigFile())
				}
			}
			for _, m := range daemons {
				expectNoDrops(t, m)
			}
		})
	}
}
