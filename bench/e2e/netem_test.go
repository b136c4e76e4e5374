//go:build linux

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
)

// requireNetem skips the test where the kernel has no sch_netem (tc-netem(8)), and fails it where MUSLIN_NETEM
// says that it must be there.
func requireNetem(t *testing.T, n *lab.Node) {
	t.Helper()
	lab.RequireTool(t, "tc")
	out, err := n.Run(t.Context(), "tc", "qdisc", "add", "dev", "lo", "root", "netem")
	switch {
	case err == nil:
		runIn(t, n, "tc", "qdisc", "del", "dev", "lo", "root")
	case os.Getenv("MUSLIN_NETEM") != "":
		t.Fatalf("no netem: %v (with MUSLIN_NETEM set this is a failure)", err)
	case strings.Contains(out, "qdisc kind is unknown"):
		t.Skip("this kernel has no sch_netem: `make vm` boots one that has")
	default:
		t.Fatal(err)
	}
}

// trouble is what netem does to everything that leaves a host, and how a probe shows that it did.
type trouble struct {
	name  string
	netem string
	shows func(p *probe, got uint64) bool
	keeps bool // every datagram
}

var troubles = []trouble{
	{"loss", "loss 2%", func(p *probe, got uint64) bool { return got < p.sent }, false},
	{"delay", "delay 20ms 5ms", nil, true},
	{"reordering", "delay 10ms reorder 25% 50%", func(p *probe, _ uint64) bool { return p.overtaken > 0 }, true},
	{"duplication", "duplicate 10%", func(p *probe, _ uint64) bool { return p.doubled > 0 }, true},
	{"corruption", "corrupt 2%", func(p *probe, got uint64) bool { return got < p.sent }, false},
}

// netemFile is the size in bytes of the files that go both ways through each trouble.
var netemFile = lab.Modest(int64(16 << 20))

// netemProbes is how many datagrams a probe sends at least: so many that the rarest trouble meets some.
const netemProbes = 400

// The kernel's own network emulator between two daemons, on both ways:
//
//	p1a ── cni0 ─ h1 (muslin) ─ eth0, netem ── br0 ── eth0, netem ─ h2 (muslin) ─ cni0 ── p2a
//
// Files come through unharmed, no daemon drops anything but what netem spoilt, and only what it took is missing.
func TestNetem(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"vxlan", "udp"} {
		t.Run(backend, func(t *testing.T) {
			l := newLab(t, 2)
			requireNetem(t, l.Host(1).Node)
			leases := []leased{leaseOf(l.Host(1)), leaseOf(l.Host(2))}
			daemons := startBoth(t, l, backend, leases, [2][]string{})
			for _, c := range troubles {
				t.Run(c.name, func(t *testing.T) { testNetem(t, l, c) })
			}
			for _, m := range daemons {
				for reason, n := range status(t, m).Drops {
					if n != 0 && reason != "tun-overflow" && reason != "outer-checksum" { // which is what corruption comes to
						t.Errorf("%s dropped %d packets: %s", m.Name, n, reason)
					}
				}
			}
		})
	}
}

func testNetem(t *testing.T, l *lab.Lab, c trouble) {
	a, b := l.Host(1).Pods()[0], l.Host(2).Pods()[0]
	for _, h := range l.Hosts() {
		runIn(t, h.Node, append(strings.Fields("tc qdisc replace dev eth0 root netem limit 100000"), strings.Fields(c.netem)...)...)
	}
	p := startProbe(t, a, b)
	eventually(t, time.Minute, func() error {
		if got := p.got.Load(); got < netemProbes {
			return fmt.Errorf("%d of %d probes arrived", got, netemProbes)
		}
		return nil
	})
	p.end(t)
	got := p.got.Load()
	t.Logf("of %d datagrams %d arrived, %d overtaken, %d twice", p.sent, got, p.overtaken, p.doubled)
	if c.shows != nil && !c.shows(p, got) {
		t.Error("netem did nothing: this test shows nothing")
	}
	if c.keeps && got != p.sent {
		t.Errorf("%d of %d datagrams arrived, and netem took none", got, p.sent)
	}
	if c.name == "delay" {
		r := must(a.Ping(t.Context(), b.Addr, lab.PingOptions{Count: 20}))(t)
		if r.Received != r.Sent || r.Average < 30*time.Millisecond {
			t.Errorf("ping through a delay of 20 ms each way: %+v", r)
		}
	}
	copyBothWays(t, a, b, netemFile)
}
