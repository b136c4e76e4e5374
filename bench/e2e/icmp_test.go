//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
)

// What a router answers when something raises the TUN's MTU. The daemon sets it right again, so it is
// raised over and over:
//
//	p1a ── cni0 ─ h1 (muslin, embedded etcd) ── br0 ── h2 (muslin) ── cni0 ── p2a
//	               └ muslin0, MTU 9000 most of the time
func TestTooBig(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "ping") // which prints the ICMP errors it gets
	for backend, mtu := range map[string]int{"vxlan": 1450, "udp": 1472} {
		t.Run(backend, func(t *testing.T) {
			l := newLab(t, 2)
			leaveIll(l, "pods have a larger MTU than the overlay")
			daemons := join(t, l, backend)
			a, b := l.Host(1).Pods()[0], l.Host(2).Pods()[0]
			h := l.Host(1)
			for _, link := range []string{"veth-a", "cni0"} {
				runIn(t, h.Node, "ip", "link", "set", link, "mtu", "9000")
			}
			runIn(t, a.Node, "ip", "link", "set", "eth0", "mtu", "9000")
			raise := must(h.Start("raise-mtu", nil, "sh", "-c", "while ip link set muslin0 mtu 9000; do :; done"))(t)
			size := strconv.Itoa(mtu + 1 - 28) // IPv4 header 20, ICMP header 8
			from := fmt.Sprintf("From %s icmp_seq=", status(t, daemons[0]).Node.Subnet.Masked().Addr())
			eventually(t, 10*time.Second, func() error {
				// Between two raises the host's own kernel answers, from another address; then again,
				// after the pod has forgotten it.
				runIn(t, a.Node, "ip", "route", "flush", "cache")
				out, err := a.Run(t.Context(), "ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", size, b.Addr.String())
				if err == nil || !strings.Contains(out, from) {
					return fmt.Errorf("ping of %d bytes: want an answer %q: %s", mtu+1, from, out)
				}
				expectWords(t, out, fmt.Sprintf("Frag needed and DF set (mtu = %d)", mtu))
				return nil
			})
			raise.Kill()
			if got := status(t, daemons[0]).Drops["too-big"]; got == 0 {
				t.Error("no packet was counted as too-big")
			}
			eventually(t, 10*time.Second, func() error {
				out, err := h.Run(t.Context(), "cat", "/sys/class/net/muslin0/mtu")
				if err == nil && out != fmt.Sprintln(mtu) {
					err = fmt.Errorf("MTU of muslin0 is %s, want %d again", out, mtu)
				}
				return err
			})
			// The pod's kernel has learned: what fits passes, and TCP gets through.
			expectPings(t, a.Node, b.Addr, lab.PingOptions{Count: 2, Size: mtu, DontFragment: true})
			copyTCP(t, a, b, 1<<20)
		})
	}
}

// No lease holds the destination:
//
//	p1a ── cni0 ─ h1 (muslin, embedded etcd) ── br0
func TestNoRoute(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "ping", "nstat")
	l := newLab(t, 1)
	m := join(t, l, "vxlan")[0]
	a := l.Host(1).Pods()[0]
	const nobody = "10.244.0.9" // in the first subnet, which nobody gets
	out, err := a.Run(t.Context(), "ping", "-n", "-c", "1", "-W", "2", nobody)
	if err == nil {
		t.Errorf("ping was answered: %s", out)
	}
	expectWords(t, out, "Destination Net Unreachable", "From "+status(t, m).Node.Subnet.Masked().Addr().String())

	const flood = 2000
	conn := listenUDP(t, a.Node, netip.AddrPortFrom(a.Addr, 0))
	before := unreachables(t, a.Node)
	for range flood {
		if _, err := conn.WriteToUDPAddrPort([]byte("anybody?"), netip.AddrPortFrom(netip.MustParseAddr(nobody), 9)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 10*time.Second, func() error {
		drops := status(t, m).Drops
		if got := drops["no-route"] + drops["tun-overflow"]; got != 1+flood || drops["no-route"] < flood/4 { // a busy machine's daemon is late
			return fmt.Errorf("no-route and tun-overflow counted %d times, want %d: %v", got, 1+flood, drops)
		}
		return nil
	})
	if n := unreachables(t, a.Node) - before; n < 1 || n > flood/4 {
		t.Errorf("%d ICMP errors for %d packets, want some, but a limited rate", n, flood)
	}
}

// unreachables is how many "destination unreachable" messages a node has received.
func unreachables(t *testing.T, n *lab.Node) int {
	t.Helper()
	out := must(n.Output(t.Context(), "nstat", "-asz", "--json", "IcmpInDestUnreachs"))(t)
	var counters struct {
		Kernel struct{ IcmpInDestUnreachs int }
	}
	if err := json.Unmarshal([]byte(out), &counters); err != nil {
		t.Fatalf("output of nstat: %v: %s", err, out)
	}
	return counters.Kernel.IcmpInDestUnreachs
}
