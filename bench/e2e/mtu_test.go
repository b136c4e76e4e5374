//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
)

// The underlay's MTU changes under two running daemons:
//
//	p1a ── cni0 ─ h1 (muslin) ── eth0, MTU 1500 → 1400 → 1500 ── br0 ── h2 (muslin) ─ cni0 ── p2a
func TestUnderlayMTUIsFollowed(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	daemons := join(t, l, "vxlan")
	a, b := daemons[0].Host.Pods()[0], daemons[1].Host.Pods()[0]
	for _, mtu := range []int{1400, 1500} {
		for _, m := range daemons {
			if _, err := m.Host.Run(t.Context(), "ip", "link", "set", "eth0", "mtu", fmt.Sprint(mtu)); err != nil {
				t.Fatal(err)
			}
		}
		want := mtu - 50 // VXLAN over IPv4
		for _, m := range daemons {
			eventually(t, 15*time.Second, func() error { return hasMTU(t, m, want) })
		}
		for _, n := range []*lab.Node{a.Node, b.Node} { // the path MTU that they learnt before, and keep for minutes
			if _, err := n.Run(t.Context(), "ip", "route", "flush", "cache"); err != nil {
				t.Fatal(err)
			}
		}
		expectPings(t, a.Node, b.Addr, lab.PingOptions{Count: 3, Size: want, DontFragment: true})
		flow, err := lab.IperfTCP(t.Context(), a.Node, b.Node, b.Addr, 1) // the pods kept their MTU
		if err != nil || flow.BitsPerSecond < lab.Modest(10e6) {
			t.Errorf("TCP with an underlay MTU of %d: %+v, %v", mtu, flow, err)
		}
	}
}

func hasMTU(t *testing.T, m *lab.Muslin, want int) error {
	if got := status(t, m).Node.MTU; got != want {
		return fmt.Errorf("status has MTU %d, want %d", got, want)
	}
	link, err := m.Host.Run(t.Context(), "ip", "link", "show", "muslin0")
	if err != nil || !strings.Contains(link, fmt.Sprintf("mtu %d ", want)) {
		return errors.Join(err, fmt.Errorf("TUN device: %s, want MTU %d", link, want))
	}
	file, err := os.ReadFile(m.SubnetFile)
	if err != nil || !strings.Contains(string(file), fmt.Sprintf("FLANNEL_MTU=%d\n", want)) {
		return errors.Join(err, fmt.Errorf("subnet file: %s, want MTU %d", file, want))
	}
	return nil
}
