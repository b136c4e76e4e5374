//go:build linux

package e2e

import (
	"os"
	"testing"

	"muslin/bench/lab"
)

// maxLost is the share of UDP datagrams that may be lost on a machine that does much else at the same time:
// iperf3's own socket holds only some ninety. What the overlay drops is asked for apart from it.
const maxLost = 0.5

// Three hosts, every pod to every other:
//
//	p1a ── cni0 ─ h1 (muslin, embedded etcd) ──┐
//	p2a ── cni0 ─ h2 (muslin) ────────────── br0
//	p3a ── cni0 ─ h3 (muslin) ─────────────────┘
func TestAllPairs(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "iperf3")
	for _, backend := range []string{"vxlan", "udp"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 3)
			daemons := join(t, l, backend)
			ctx := t.Context()
			for _, from := range daemons {
				for _, to := range daemons {
					if from == to {
						continue
					}
					a, b := from.Host.Pods()[0], to.Host.Pods()[0]
					expectPing(t, a.Node, b.Addr, 5)
					expectPings(t, a.Node, b.Addr, lab.PingOptions{Count: 3, Size: status(t, from).Node.MTU, DontFragment: true})
					expectPing(t, from.Host.Node, b.Addr, 2)                            // from the host itself
					expectPing(t, a.Node, status(t, to).Node.Subnet.Masked().Addr(), 2) // the peer's TUN address
					udp, err := lab.IperfUDP(ctx, a.Node, b.Node, b.Addr, 400, 1000, lab.Modest(10_000_000))
					if err != nil || udp.Packets != 400 || udp.Lost > maxLost*400 {
						t.Errorf("UDP: %+v, %v; want 400 datagrams", udp, err)
					}
					tcp, err := lab.IperfTCP(ctx, a.Node, b.Node, b.Addr, 1)
					if err != nil || tcp.BitsPerSecond < lab.Modest(10e6) {
						t.Errorf("TCP: %+v, %v", tcp, err)
					}
					t.Logf("%s to %s: TCP %.2f Gb/s", a.Name, b.Name, tcp.BitsPerSecond/1e9)
				}
			}
			for _, m := range daemons {
				expectNoDrops(t, m)
			}
		})
	}
}

// One TCP stream between two pods, with nothing else on the machine:
//
//	p1a ── cni0 ─ h1 (muslin, embedded etcd) ── br0 ── h2 (muslin) ─ cni0 ── p2a
//
// Timing on a machine that others use lies, so it runs only where MUSLIN_BENCH is set.
func TestThroughputFloor(t *testing.T) {
	if os.Getenv("MUSLIN_BENCH") == "" {
		t.Skip("a measurement: set MUSLIN_BENCH=1 on a machine that does nothing else")
	}
	lab.RequireTool(t, "iperf3")
	const runs = 3
	floor := lab.Modest(0.8e9) // bits per second; the best run counts, as disturbance only takes away
	for _, backend := range []string{"vxlan", "udp"} {
		t.Run(backend, func(t *testing.T) {
			l := newLab(t, 2)
			daemons := join(t, l, backend)
			a, b := daemons[0].Host.Pods()[0], daemons[1].Host.Pods()[0]
			best := 0.0
			for range runs {
				flow, err := lab.IperfTCP(t.Context(), a.Node, b.Node, b.Addr, 3)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%s: %.2f Gb/s", backend, flow.BitsPerSecond/1e9)
				best = max(best, flow.BitsPerSecond)
			}
			if best < floor {
				t.Errorf("%s: best of %d runs %.2f Gb/s, want at least %.1f", backend, runs, best/1e9, floor/1e9)
			}
		})
	}
}
