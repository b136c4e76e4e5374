//go:build linux

package e2e

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// linkResult is `muslin bench link --output json`, as a script reads it (docs/bench-link.md). It is declared
// here a second time on purpose: a renamed key is caught.
type linkResult struct {
	Overlay, Underlay struct {
		Address, Local, Error string
	}
	Measures map[string]struct {
		Overlay, Underlay linkOutcome
		Ratio             float64 `json:"overlay_to_underlay"`
	}
	Failures   []string
	BothFailed []string `json:"both_failed"`
	Notes      []string
}

type linkOutcome struct {
	Error         string
	BitsPerSecond float64 `json:"bits_per_second"`
	P50           float64 `json:"p50_us"`
	Sent          int
	Received      int
	Found         int `json:"found_bytes"`
	Expected      int `json:"expected_bytes"`
}

// linkServer permits measuring to a host, and returns the arguments that it says to type on the other one:
// of the command for a node with a daemon, and of the one for a node without.
func linkServer(t *testing.T, h *lab.Host, flags ...string) (server *lab.Proc, withDaemon, without []string) {
	t.Helper()
	p := must(h.Start("bench-link", nil, append([]string{labtest.Bin, "bench", "link", "--serve"}, flags...)...))(t)
	if err := p.WaitOutput(t.Context(), "Ctrl-C"); err != nil {
		t.Fatal(err)
	}
	var commands [][]string
	for line := range strings.Lines(p.Output()) {
		if args, ok := strings.CutPrefix(line, "  muslin "); ok {
			commands = append(commands, strings.Fields(args))
		}
	}
	if len(commands) != 2 {
		t.Fatalf("want two commands in:\n%s", p.Output())
	}
	return p, commands[0], commands[1]
}

// quickly makes a measure of a few tenths of a second, without asking, for a program to read.
func quickly(args []string) []string {
	return append([]string{labtest.Bin}, append(args, "--yes", "--seconds", "0.3", "--streams", "2", "--output", "json")...)
}

func readLink(t *testing.T, out string) *linkResult {
	t.Helper()
	var r linkResult
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v in:\n%s", err, out)
	}
	return &r
}

// expectLink wants everything measured over both paths, and the largest packet as long as the MTUs say. On an
// emulated machine round trips are shorter than its clock's ticks, and measure 0.
func expectLink(t *testing.T, r *linkResult, overlayMTU, underlayMTU int) {
	t.Helper()
	if len(r.Measures) != 10 || len(r.Failures)+len(r.BothFailed)+len(r.Notes) != 0 {
		t.Errorf("%d measures, want 10; failures %q, both %q, notes %q", len(r.Measures), r.Failures, r.BothFailed, r.Notes)
	}
	for name, m := range r.Measures {
		for _, o := range []linkOutcome{m.Overlay, m.Underlay} {
			measured := o.BitsPerSecond+o.P50+float64(o.Received)+float64(o.Found) > 0
			if coarse := !lab.Steady() && strings.HasSuffix(name, "_round_trip"); o.Error != "" || !measured && !coarse {
				t.Errorf("%s: %+v", name, o)
			}
		}
		if strings.HasPrefix(name, "tcp_") && m.Ratio <= 0 && (lab.Steady() || name != "tcp_round_trip") {
			t.Errorf("%s: ratio %v", name, m.Ratio)
		}
	}
	for _, name := range []string{"largest_to_peer", "largest_from_peer"} {
		m := r.Measures[name]
		if m.Overlay.Found != overlayMTU || m.Overlay.Expected != overlayMTU || m.Underlay.Found != underlayMTU || m.Underlay.Expected != underlayMTU {
			t.Errorf("%s: %+v, want %d and %d", name, m, overlayMTU, underlayMTU)
		}
	}
}

// expectRefusal wants a command to fail with status 1 and these words.
func expectRefusal(t *testing.T, h *lab.Host, args []string, words ...string) {
	t.Helper()
	out, err := h.Run(t.Context(), args...)
	var exit *lab.ExitError
	if !errors.As(err, &exit) || exit.Status != 1 {
		t.Errorf("%v: %v, want exit status 1", args, err)
	}
	expectWords(t, out, words...)
}

// What the overlay costs between two hosts:
//
//	h1 (muslin, embedded etcd; measures) ── br0 ── h2 (muslin; serves)
func TestBenchLink(t *testing.T) {
	t.Parallel()
	for backend, mtu := range map[string]int{"vxlan": 1450, "udp": 1472} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 2)
			daemons := join(t, l, backend)
			_, command, _ := linkServer(t, l.Host(2), "--control", daemons[1].Control)
			r := readLink(t, must(l.Host(1).Output(t.Context(), quickly(append(command, "--control", daemons[0].Control))...))(t))
			expectLink(t, r, mtu, 1500)
			if own := status(t, daemons[0]).Node.Subnet.Masked().Addr(); r.Overlay.Local != own.String() || r.Underlay.Local != l.Host(1).Addr.String() {
				t.Errorf("measured from %s and %s", r.Overlay.Local, r.Underlay.Local)
			}
			tcp := r.Measures["tcp_to_peer"]
			t.Logf("TCP to the peer: %.2f over %.2f Gb/s", tcp.Overlay.BitsPerSecond/1e9, tcp.Underlay.BitsPerSecond/1e9)
		})
	}
}

// What the command says where it does not measure, and once the overlay is broken. The topology is that of
// TestBenchLink.
func TestBenchLinkRefuses(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "nft")
	l := newLab(t, 2)
	daemons := join(t, l, "vxlan")
	here, there := l.Host(1), l.Host(2)
	server, command, _ := linkServer(t, there, "--control", daemons[1].Control)
	token := command[len(command)-1]
	peer := func(name, token string, flags ...string) []string {
		return append([]string{labtest.Bin, "bench", "link", name, "--token", token, "--control", daemons[0].Control, "--seconds", "0.1", "--streams", "1"}, flags...)
	}
	expectRefusal(t, here, peer(there.Addr.String(), "wrong", "--yes"), "token is wrong")
	expectRefusal(t, here, peer(there.Addr.String(), token), "--yes") // there is no terminal
	expectRefusal(t, here, peer("10.9.9.9", token, "--yes"), "no peer 10.9.9.9")
	expectRefusal(t, here, peer(here.Addr.String(), token, "--yes"), "this node itself")

	out := must(here.Run(t.Context(), peer(there.Addr.String(), token, "--yes")...))(t)
	expectWords(t, out, "OVERLAY ÷ UNDERLAY", "largest packet to the peer", "1450 bytes (MTU 1450)", "b/s", "µs")

	for _, c := range []string{
		"add table ip t", "add chain ip t in { type filter hook prerouting priority -300; }", "add rule ip t in udp dport 8472 drop",
	} {
		must(there.Run(t.Context(), "nft", c))(t)
	}
	expectRefusal(t, here, peer(there.Addr.String(), token, "--yes"), "the overlay does not reach the peer", status(t, daemons[1]).Node.Subnet.Masked().Addr().String())
	must(there.Run(t.Context(), "nft", "delete table ip t"))(t)

	if err := server.Stop(); err != nil {
		t.Error(err)
	}
	expectWords(t, expectExit(t, server, 0), "exchanges UDP packets", "without the token were refused", "ended")
	expectRefusal(t, here, peer(there.Addr.String(), token, "--yes"), "bench link --serve")
	expectRefusal(t, there, []string{labtest.Bin, "bench", "link", "--serve", "--control", "/nowhere"}, "no daemon", "--overlay-addr")
}

// The peer is a host with the kernel's VXLAN and no daemon, as a flannel node is:
//
//	h1 (muslin, embedded etcd; measures) ── br0 ── flannel.1 ─ h2 (serves)
func TestBenchLinkKernelPeer(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "bridge", "etcdctl")
	l := newLab(t, 2)
	ctx := t.Context()
	m := startMuslin(t, l.Host(1), "--embedded-etcd", "--network", network)
	node := status(t, m).Node
	subnet := netip.MustParsePrefix("10.244.250.0/24")
	if subnet == node.Subnet.Masked() {
		subnet = netip.MustParsePrefix("10.244.251.0/24")
	}
	v := must(l.Host(2).SetupKernelVXLAN(ctx, 1, 8472, subnet))(t)
	if err := v.AddPeer(ctx, node.Subnet, node.VtepMAC, node.PublicIP); err != nil {
		t.Fatal(err)
	}
	store := labtest.EtcdOn(l.Host(1))
	store.Do(t, "put", v.LeaseKey(prefix), v.LeaseValue(1))
	waitPeers(t, m, 1)

	// Neither side has to ask a daemon.
	_, _, command := linkServer(t, l.Host(2), "--overlay-addr", subnet.Addr().String(), "--underlay-addr", l.Host(2).Addr.String(), "--port", "7999", "--for", "5m")
	r := readLink(t, must(l.Host(1).Output(ctx, quickly(command)...))(t))
	expectLink(t, r, 1450, 1500)
}

// The permission ends by itself.
func TestBenchLinkServeEnds(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	addr := l.Host(1).Addr.String()
	server, _, _ := linkServer(t, l.Host(1), "--overlay-addr", "127.0.0.1", "--underlay-addr", addr, "--for", "100ms")
	expectWords(t, expectExit(t, server, 0), "ended")
}
