//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// pingReport is `muslin ping --output json`, declared a second time on purpose.
type pingReport struct {
	Address  string  `json:"address"`
	From     string  `json:"from"`
	Holder   string  `json:"holder"`
	Subnet   string  `json:"subnet"`
	Sent     int     `json:"sent"`
	Received int     `json:"received"`
	Loss     float64 `json:"loss"`
	Min      float64 `json:"rtt_min_us"`
	Avg      float64 `json:"rtt_avg_us"`
	Max      float64 `json:"rtt_max_us"`
	P99      float64 `json:"rtt_p99_us"`
	There    pingWay `json:"there"`
	Back     pingWay `json:"back"`
	Sweep    *struct {
		Tried   int    `json:"tried"`
		Largest int    `json:"largest"`
		Reached int    `json:"reached"`
		Why     string `json:"why"`
		MTU     int    `json:"mtu"`
		By      string `json:"by"`
	} `json:"sweep"`
}

type pingWay struct {
	Known   bool     `json:"known"`
	Why     string   `json:"why"`
	Way     string   `json:"way"`
	NextHop string   `json:"next_hop"`
	MTU     int      `json:"mtu"`
	Notes   []string `json:"notes"`
}

// muslinPing runs `muslin ping`; err is that it has another exit status than 0.
func muslinPing(t *testing.T, m *lab.Muslin, args ...string) (r pingReport, err error) {
	t.Helper()
	args = append([]string{m.Bin, "ping", "--control", m.Control, "--output", "json", "--interval", "20ms"}, args...)
	out, err := m.Host.Output(t.Context(), args...)
	if failed := json.Unmarshal([]byte(out), &r); failed != nil {
		t.Fatalf("%v: %v, %v in %s", args, err, failed, out)
	}
	return r, err
}

// Nodes and pods of both families are pinged, on a muslin node and on one that is set up as flannel does it.
func TestPing(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "tcpdump", "nft")
	x := newMixed(t)
	leaveIll(x.Lab, "a hop takes less than the interfaces say")
	h1, h2, h3, m1, v, b, c, b6, c6 := x.Host(1), x.Host(2), x.Host(3), x.m1, x.flannel, x.b, x.c, x.b6, x.c6
	n1, n2 := status(t, m1).Node, status(t, x.m2).Node
	base1, base2 := n1.Subnet.Addr(), n2.Subnet.Addr()
	base1v6 := netip.MustParsePrefix(n1.Subnet6).Addr().String()

	wire := startCapture(t, h2.Node, t.TempDir(), "muslin0", "icmp[icmptype] == icmp-echo and src host "+base1.String()+" and ip[2:2] == 300")
	for to, want := range map[string]pingReport{
		b.Addr.String():        {Address: b.Addr.String(), From: base1.String(), Subnet: n2.Subnet.String()},
		n2.Subnet.String():     {Address: base2.String(), From: base1.String(), Subnet: n2.Subnet.String()},
		h2.Addr.String():       {Address: base2.String(), From: base1.String(), Subnet: n2.Subnet.String()},
		h3.Addr.String():       {Address: v.Subnet.Addr().String(), From: base1.String(), Subnet: v.Subnet.String()},
		c.Addr.String():        {Address: c.Addr.String(), From: base1.String(), Subnet: v.Subnet.String()},
		b6.Addr.String():       {Address: b6.Addr.String(), From: base1v6, Subnet: n2.Subnet6},
		hostAddr6(h2).String(): {Address: netip.MustParsePrefix(n2.Subnet6).Addr().String(), From: base1v6, Subnet: n2.Subnet6},
		c6.Addr.String():       {Address: c6.Addr.String(), From: base1v6, Subnet: v.subnet6.String()},
		v.subnet6.String():     {Address: v.subnet6.Addr().String(), From: base1v6, Subnet: v.subnet6.String()},
	} {
		r, err := muslinPing(t, m1, to, "--count", "3", "--size", "300")
		if err != nil || r.Address != want.Address || r.From != want.From || r.Subnet != want.Subnet || r.Holder != "peer" || r.Sent != 3 || r.Received != 3 {
			t.Errorf("ping %s: %+v, %v; want %+v", to, r, err, want)
		}
		if r.Min <= 0 || r.Min > r.Avg || r.Avg > r.Max || r.P99 != r.Max {
			t.Errorf("ping %s: round trips %+v", to, r)
		}
		if r.There.Way != "encapsulated" || !strings.HasSuffix(r.There.NextHop, ":8472") || r.There.MTU != dualMTU || len(r.There.Notes) != 0 {
			t.Errorf("ping %s: there %+v", to, r.There)
		}
		if muslin := !strings.Contains(want.Subnet+h3.Addr.String(), v.subnet6.String()) && want.Subnet != v.Subnet.String(); r.Back.Known != muslin ||
			muslin && (r.Back.Way != "encapsulated" || r.Back.MTU != dualMTU) || !muslin && !strings.Contains(r.Back.Why, "flannel") {
			t.Errorf("ping %s: back %+v", to, r.Back)
		}
	}
	// tcpdump at the other end saw those for IPv4 of h2, unfragmented and with DF.
	eventually(t, lab.Patience(5*time.Second), func() error {
		frames, err := wire.packets()
		good := 0
		for _, f := range frames {
			ip, _ := gopacket.NewPacket(f, layers.LayerTypeIPv4, gopacket.NoCopy).NetworkLayer().(*layers.IPv4)
			if ip != nil && ip.Length == 300 && ip.Flags == layers.IPv4DontFragment {
				good++
			}
		}
		if err == nil && (good != 9 || len(frames) != 9) {
			err = fmt.Errorf("tcpdump saw %d requests as they should be, of %d, want 9", good, len(frames))
		}
		return err
	})

	expectPingMesh(t, m1, []string{n1.Subnet.String(), n2.Subnet.String(), v.Subnet.String()}, []string{n1.Subnet6, n2.Subnet6, v.subnet6.String()})
	expectPingStops(t, m1, b.Addr)

	// One way takes less, and says nothing of it. What the kernel has not cut yet is longer than any of its packets.
	runIn(t, h2.Node, "nft", "add table ip hole; add chain ip hole in { type filter hook prerouting priority -300; }; add rule ip hole in udp dport 8472 meta length 1351-1500 drop")
	r, err := muslinPing(t, m1, b.Addr.String(), "--count", "1", "--sweep", "--timeout", "150ms")
	if err != nil || r.Sweep == nil || r.Sweep.Largest != 1300 {
		t.Errorf("sweep over a path that takes 1300: %+v, %v", r.Sweep, err)
	}
	if r.Sweep != nil && r.Sweep.Reached != 1300 {
		t.Errorf("of packets to h2 it saw %d bytes, want 1300", r.Sweep.Reached)
	}
	runIn(t, h2.Node, "nft", "delete table ip hole")
	runIn(t, h1.Node, "nft", "add table ip hole; add chain ip hole in { type filter hook prerouting priority -300; }; add rule ip hole in ip saddr "+h2.Addr.String()+" udp dport 8472 meta length 1351-1500 drop")
	r, err = muslinPing(t, m1, b.Addr.String(), "--count", "1", "--sweep", "--timeout", "150ms")
	if err != nil || r.Sweep == nil || r.Sweep.Largest != 1300 || r.Sweep.Reached != dualMTU {
		t.Errorf("sweep over a path that takes 1300 back: %+v, %v", r.Sweep, err)
	}
	r, err = muslinPing(t, m1, c6.Addr.String(), "--count", "1", "--sweep", "--timeout", "150ms")
	if err != nil || r.Sweep == nil || r.Sweep.Largest != dualMTU || r.Sweep.Tried != dualMTU || r.Sweep.Why != "" {
		t.Errorf("sweep over a path that takes all: %+v, %v", r.Sweep, err)
	}

	// Every second one is lost.
	runIn(t, h3.Node, "nft", "add table ip loss; add chain ip loss in { type filter hook prerouting priority -300; }; add rule ip loss in ip saddr "+base1.String()+
		" icmp type echo-request meta length 97 numgen inc mod 2 == 0 drop")
	r, err = muslinPing(t, m1, v.Subnet.String(), "--count", "10", "--size", "97", "--timeout", "300ms")
	if err == nil || r.Sent != 10 || r.Received != 5 || r.Loss != 0.5 {
		t.Errorf("every second one is lost: %+v, %v", r, err)
	}
	runIn(t, h1.Node, "nft", "delete table ip hole")
	runIn(t, h3.Node, "nft", "delete table ip loss")
	for words, says := range map[string]string{
		"10.250.0.1":    "does not lie in the overlay",
		"10.9.0.0/24":   "no peer has the subnet",
		"nonsense":      "neither an address nor a subnet",
		"":              "whom?",
		"--all 1.2.3.4": "--all pings every peer",
	} {
		out, err := m1.Command(t.Context(), append([]string{"ping"}, strings.Fields(words)...)...)
		if err == nil {
			t.Errorf("ping %s has status 0", words)
		}
		expectWords(t, out, says)
	}
}

// expectPingMesh wants a matrix of three nodes in two families, of which the last tells nothing.
func expectPingMesh(t *testing.T, m *lab.Muslin, families ...[]string) {
	t.Helper()
	var mesh struct {
		Nodes []struct {
			Subnet string `json:"subnet"`
			Tells  bool   `json:"tells"`
			Why    string `json:"why"`
		} `json:"nodes"`
		Links []struct {
			From string `json:"from"`
			To   string `json:"to"`
			Up   *bool  `json:"up"`
		} `json:"links"`
	}
	out := must(m.Host.Output(t.Context(), m.Bin, "ping", "--all", "--count", "2", "--control", m.Control, "--output", "json"))(t)
	if err := json.Unmarshal([]byte(out), &mesh); err != nil {
		t.Fatal(err)
	}
	up := make(map[string]bool)
	for _, l := range mesh.Links {
		up[l.From+" "+l.To] = l.Up != nil && *l.Up
	}
	for _, f := range families {
		for _, from := range f[:2] {
			for _, to := range f {
				if from != to && !up[from+" "+to] {
					t.Errorf("from %s to %s is not up in %s", from, to, out)
				}
			}
		}
	}
	if len(mesh.Nodes) != 6 || len(mesh.Links) != 8 {
		t.Errorf("%d nodes and %d links, want 6 and 8: %s", len(mesh.Nodes), len(mesh.Links), out)
	}
	for _, n := range mesh.Nodes {
		flannel := n.Subnet == families[0][2] || n.Subnet == families[1][2]
		if n.Tells == flannel || flannel && !strings.Contains(n.Why, "flannel") {
			t.Errorf("node %+v", n)
		}
	}
	text := must(m.Command(t.Context(), "ping", "--all", "--count", "1"))(t)
	t.Log("\n" + text)
	for _, f := range families {
		expectWords(t, text, f[0]+" (this node)", "\n"+f[1], "no row of")
	}
}

// expectPingStops wants the summary after Ctrl-C, and status 0.
func expectPingStops(t *testing.T, m *lab.Muslin, to netip.Addr) {
	t.Helper()
	p := must(m.Host.Start("ping", nil, labtest.Bin, "ping", to.String(), "--count", "0", "--interval", "50ms", "--control", m.Control))(t)
	if err := p.WaitOutput(t.Context(), "seq 3"); err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	out := expectExit(t, p, 0)
	t.Log("\n" + out)
	expectWords(t, out, "from "+to.String()+": seq 1, ttl ", " answered, 0 % lost", "round trip: min ", "p99 ", "jitter ", "there: encapsulated in datagrams to ", "back: encapsulated")
}
