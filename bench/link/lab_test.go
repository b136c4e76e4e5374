//go:build linux

package link

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
)

// Two hosts, joined by the kernel's own VXLAN as flannel sets it up:
//
//	198.18.0.1, flannel.1 10.244.1.0 ─ h1 (client) ── br0 ── h2 (server) ─ flannel.1 10.244.2.0, 198.18.0.2
type labLink struct {
	l   *lab.Lab
	cfg Config
}

const (
	labVNI  = 1
	labPort = 8472
)

func newLabLink(t *testing.T) *labLink {
	t.Helper()
	lab.RequireRoot(t)
	lab.RequireTool(t, "ip", "bridge", "nft")
	ctx := t.Context()
	l, err := lab.New(ctx, lab.Config{Hosts: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	var ends []*lab.KernelVXLAN
	for _, h := range l.Hosts() {
		v, err := h.SetupKernelVXLAN(ctx, labVNI, labPort, netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", h.Number)))
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, v)
	}
	for i, v := range ends {
		peer := ends[1-i]
		if err := v.AddPeer(ctx, peer.Subnet, peer.MAC, peer.Host.Addr); err != nil {
			t.Fatal(err)
		}
	}
	at := func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, DefaultPort) }
	k := &labLink{l: l, cfg: Config{
		Token: testToken, Overlay: at(ends[1].Subnet.Addr()), Underlay: at(l.Host(2).Addr),
		Each: 200 * time.Millisecond, Streams: 1, Inside: l.Host(1).Do,
	}}
	s, err := Listen(ServerConfig{Addrs: []netip.AddrPort{k.cfg.Overlay, k.cfg.Underlay}, Token: testToken, Inside: l.Host(2).Do})
	if err != nil {
		t.Fatal(err)
	}
	runServer(t, s)
	return k
}

// nft gives a host rules, in a chain that sees each packet that comes in.
func (k *labLink) nft(t *testing.T, h *lab.Host, rules ...string) {
	t.Helper()
	commands := append([]string{"add table ip t", "add chain ip t in { type filter hook prerouting priority -300; }"}, rules...)
	for _, c := range commands {
		if _, err := h.Run(t.Context(), "nft", c); err != nil {
			t.Fatal(err)
		}
	}
}

func (k *labLink) measure(t *testing.T) *Result {
	t.Helper()
	r, err := Measure(t.Context(), k.cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range r.Table() {
		t.Logf("%q", line)
	}
	t.Logf("failures %q\nboth %q\nnotes %q", r.Failures, r.Both, r.Notes)
	return r
}

// expectFailures wants exactly the measures with these titles to fail over the overlay alone.
func expectFailures(t *testing.T, r *Result, titles ...string) {
	t.Helper()
	for _, title := range titles {
		if !strings.Contains("\n"+strings.Join(r.Failures, "\n"), "\n"+title+": ") {
			t.Errorf("%q is not among the failures %q", title, r.Failures)
		}
	}
	if len(r.Failures) != len(titles) {
		t.Errorf("failures %q, want %q", r.Failures, titles)
	}
}

func largest(found, expected int) Largest { return Largest{Found: found, Expected: expected} }

func expectLargest(t *testing.T, r *Result, name string, overlay, underlay Largest) {
	t.Helper()
	row := r.Measures[name]
	if row.Overlay.Largest == nil || *row.Overlay.Largest != overlay || row.Underlay.Largest == nil || *row.Underlay.Largest != underlay {
		t.Errorf("%s: %+v, %+v; want %+v, %+v", name, row.Overlay.Largest, row.Underlay.Largest, overlay, underlay)
	}
}

func TestLab(t *testing.T) {
	t.Parallel()
	k := newLabLink(t)
	k.cfg.Streams = 2
	r := k.measure(t)
	expectFailures(t, r)
	if len(r.Both)+len(r.Notes) > 0 || r.Overlay.Local != "10.244.1.0" || r.Underlay.Local != "198.18.0.1" {
		t.Errorf("both %q, notes %q, from %s and %s", r.Both, r.Notes, r.Overlay.Local, r.Underlay.Local)
	}
	expectLargest(t, r, "largest_to_peer", largest(1450, 1450), largest(1500, 1500))
	expectLargest(t, r, "largest_from_peer", largest(1450, 1450), largest(1500, 1500))
	if len(r.Measures) != len(measures) {
		t.Errorf("%d measures, want %d", len(r.Measures), len(measures))
	}
}

// A link in the middle that takes less than the nodes' MTU and says nothing, as a tunnel of a provider
// does: 1400 bytes pass the switch, the overlay's share of which is 1350. A bridge lets 4 bytes more through
// than a port's MTU says, for a VLAN tag (is_skb_forwardable).
func TestLabSmallerLink(t *testing.T) {
	t.Parallel()
	k := newLabLink(t)
	for _, port := range []string{"h1", "h2"} {
		if _, err := k.l.Switch().Run(t.Context(), "ip", "link", "set", port, "mtu", "1396"); err != nil {
			t.Fatal(err)
		}
	}
	r := k.measure(t)
	expectLargest(t, r, "largest_to_peer", largest(1350, 1450), largest(1400, 1500))
	expectLargest(t, r, "largest_from_peer", largest(1350, 1450), largest(1400, 1500))
	if len(r.Both) < 2 {
		t.Errorf("both %q, want the largest packets at least", r.Both)
	}
}

// Only the overlay, and only towards the peer, loses what is long: no TCP stream gets through that way.
func TestLabOverlayLosesLongPackets(t *testing.T) {
	t.Parallel()
	k := newLabLink(t)
	k.nft(t, k.l.Host(2), fmt.Sprintf("add rule ip t in udp dport %d meta length > 1300 drop", labPort))
	r := k.measure(t)
	expectFailures(t, r, "TCP to the peer", "largest packet to the peer")
	expectLargest(t, r, "largest_to_peer", largest(1250, 1450), largest(1500, 1500))
	expectLargest(t, r, "largest_from_peer", largest(1450, 1450), largest(1500, 1500))
	if len(r.Both) > 0 {
		t.Errorf("both %q", r.Both)
	}
}

// The overlay loses every second datagram of the measure from the peer.
func TestLabOverlayLosesSome(t *testing.T) {
	t.Parallel()
	k := newLabLink(t)
	// The outer packet of the loss measure, 50 bytes longer.
	k.nft(t, k.l.Host(1), fmt.Sprintf("add rule ip t in udp dport %d meta length %d numgen inc mod 2 0 drop", labPort, lossBytes+50))
	r := k.measure(t)
	expectFailures(t, r, "UDP loss from the peer")
	if l := r.Measures["udp_loss_from_peer"].Overlay.Loss; l == nil || l.Share != 0.5 || l.Sent != 200 || l.Reordered != 0 {
		t.Errorf("%+v, want half of 200 lost", l)
	}
}

// A firewall that lets the overlay's TCP through, but not its UDP.
func TestLabOverlayWithoutUDP(t *testing.T) {
	t.Parallel()
	k := newLabLink(t)
	k.nft(t, k.l.Host(2), fmt.Sprintf("add rule ip t in ip daddr %s udp dport %d drop", k.cfg.Overlay.Addr(), DefaultPort))
	r := k.measure(t)
	expectFailures(t, r, "UDP round trip", "UDP loss to the peer", "UDP loss from the peer", "largest packet to the peer", "largest packet from the peer")
	if !strings.Contains(strings.Join(r.Failures, "\n"), "firewall") {
		t.Errorf("%q", r.Failures)
	}
}

// The overlay is gone: said at once, and nothing is loaded.
func TestLabNoOverlay(t *testing.T) {
	t.Parallel()
	k := newLabLink(t)
	k.nft(t, k.l.Host(2), fmt.Sprintf("add rule ip t in udp dport %d drop", labPort))
	r := k.measure(t)
	if len(r.Failures) != 1 || !strings.Contains(r.Failures[0], "does not reach") || !strings.Contains(r.Failures[0], "firewall") || len(r.Measures) > 0 {
		t.Errorf("%+v", r)
	}
}
