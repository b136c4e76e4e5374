package doctor

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/doctor/wire"
	"muslin/encap"
	"muslin/lease"
)

// What follows from what was seen of a peer that does not answer; each row is one that the labs of bench/doctor do not have, or
// that looks like another.
func TestJudge(t *testing.T) {
	us, them, router := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.254")
	mac := encap.MAC{2, 0, 0, 0, 0, 2}
	vni, err := encap.NewVNI(1)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(by netip.Addr, code byte) *wire.Refusal { return &wire.Refusal{By: by, Type: 3, Code: code} }
	for name, c := range map[string]struct {
		of   func(e *evidence)
		want string
		is   Severity
		word string
	}{
		"output rule":       {func(e *evidence) { e.made.Err = os.NewSyscallError("sendto", unix.EPERM) }, "udp-filtered-here", Broken, "drops what leaves"},
		"tc on the way out": {func(e *evidence) { e.left = 0 }, "udp-filtered-here", Broken, "lets it out at no interface"},
		"router's filter":   {func(e *evidence) { e.made.Refused = refused(router, 13) }, "udp-filtered-on-path", Broken, router.String()},
		"peer's reject":     {func(e *evidence) { e.made.Refused = refused(them, 13) }, "udp-filtered-at-peer", Broken, "refuses"},
		"nobody there":      {func(e *evidence) { e.made.Refused, e.closed.Refused = refused(them, 3), refused(them, 3) }, "lease-dead-node", Broken, "nobody listens"},
		"another port": {func(e *evidence) {
			e.made.Refused, e.closed.Refused = refused(them, 3), refused(them, 3)
			e.knocks = map[uint16]wire.Knock{4789: {Sent: 1}, 8285: {Sent: 1, Refused: refused(them, 3)}}
		}, "port-mismatch", Broken, "at 4789"},
		"own reject":                 {func(e *evidence) { e.made.Refused = refused(us, 13) }, "udp-filtered-here", Broken, "this host itself"},
		"peer's reject as if closed": {func(e *evidence) { e.made.Refused, e.misshapen = refused(them, 3), refused(them, 3) }, "udp-filtered-at-peer", Broken, "no UDP would read"},
		"peer's reject as if away":   {func(e *evidence) { e.made.Refused = refused(them, 1) }, "udp-filtered-at-peer", Broken, "refuses"},
		"router's, as if closed":     {func(e *evidence) { e.made.Refused = refused(router, 3) }, "udp-filtered-on-path", Broken, router.String()},
		"router's, as if away":       {func(e *evidence) { e.made.Refused = refused(router, 1) }, "udp-filtered-on-path", Broken, router.String()},
		"closed, and it sends":       {func(e *evidence) { e.made.Refused, e.counted.rx = refused(them, 3), 1 }, "public-ip-nat", Broken, "hands on nothing"},
		"heard, and never answers":   {func(e *evidence) { e.oneSided, e.heard = true, time.Now() }, "udp-filtered-at-peer", Broken, "while what it sends arrives"},
		"damaged on the way there":   {func(e *evidence) { e.unchecked = true }, "checksum-corruption", Broken, "damaged on the way to"},
		"damaged, as it quotes":      {func(e *evidence) { e.unchecked, e.spoilt = true, true }, "checksum-corruption", Broken, "something else than was sent"},
		"the peer's doctor at work": {func(e *evidence) {
			e.seen = []sighting{
				{wire.Sighting{Src: them, DstPort: 8472, VXLAN: true, VNI: 1, InnerSrc: mac, InnerDst: everybody, From: e.peer.base(), Request: true}, 1},
				{wire.Sighting{Src: them, DstPort: 33440}, 1},
			}
			e.counted.rx = 1
		}, "udp-filtered-at-peer", Broken, "while what it sends arrives"},
		"we are private, and never heard it": {func(e *evidence) {
			e.own.outer, e.route.gateway, e.deaf = netip.MustParseAddr("10.99.0.2"), router, time.Minute
		}, "public-ip-nat", Broken, "or UDP 8472 is filtered"},
		"we are private, and it was heard": {func(e *evidence) {
			e.own.outer, e.route.gateway, e.deaf, e.heard = netip.MustParseAddr("10.99.0.2"), router, time.Minute, time.Now().Add(-time.Hour)
		}, "udp-filtered-at-peer", Broken, "nothing of it came"},
		"no way, says a router":     {func(e *evidence) { e.host = wire.Answer{Sent: 3, Refused: refused(router, 1)} }, "public-ip-unreachable", Broken, router.String()},
		"nobody on the link":        {func(e *evidence) { e.host.Got, e.route.failed, e.left = 0, true, 0 }, "lease-dead-node", Warning, "nobody on the link"},
		"silent, heard before":      {func(e *evidence) { e.host.Got, e.heard = 0, time.Now().Add(-time.Hour) }, "lease-dead-node", Warning, "gone silent"},
		"silent, with new lease":    {func(e *evidence) { e.host.Got, e.age, e.route.gateway = 0, time.Minute, router }, "public-ip-unreachable", Broken, "so it lives"},
		"on the link, all filtered": {func(e *evidence) { e.host.Got, e.route.found = 0, mac }, "udp-filtered-at-peer", Broken, "has the address"},
		"silence":                   {func(*evidence) {}, "udp-filtered-at-peer", Broken, "nothing of it came"},
		"we are behind NAT":         {func(e *evidence) { e.local, e.counted.rx = false, 2 }, "public-ip-nat", Broken, "no address of this host"},
		"route into the overlay":    {func(e *evidence) { e.route.overlay, e.route.device = true, "muslin0" }, "public-ip-unreachable", Broken, "overlay itself"},
		"any MAC is taken":          {func(e *evidence) { e.anyMAC = true }, "vtep-mac-wrong", Broken, "not its VTEP's"},
		"our own MAC": {func(e *evidence) {
			e.seen = []sighting{{wire.Sighting{Src: them, DstPort: 8472, VXLAN: true, VNI: 1, InnerSrc: e.own.mac, InnerDst: e.own.mac, From: e.peer.base()}, 1}}
		}, "vtep-mac-duplicate", Broken, "this node's VTEP MAC"},
		"our old MAC": {func(e *evidence) {
			e.seen = []sighting{{wire.Sighting{Src: them, DstPort: 8472, VXLAN: true, VNI: 1, InnerSrc: mac, InnerDst: encap.MAC{2, 9}, From: e.peer.base()}, 1}}
		}, "lease-stale", Broken, "old lease of this node"},
		"dropped by the daemon, and counted": {func(e *evidence) {
			e.seen = []sighting{{wire.Sighting{Src: them, DstPort: 8472, VXLAN: true, VNI: 1, InnerSrc: mac, InnerDst: e.own.mac, From: e.peer.base()}, 1}}
			e.counted.drops = map[string]uint64{"inner-source": 1}
		}, "udp-filtered-at-peer", Broken, "while what it sends arrives"},
		"answered, and a daemon carries": {func(e *evidence) { e.answer, e.counted.rx = true, 1 }, "peer-silent", Broken, "by the host's routes are not"},
		"answered, and nothing carries":  {func(e *evidence) { e.answer, e.carried = true, false }, "", "", ""},
	} {
		own := &Node{PublicIP: us, Subnet: netip.MustParsePrefix("10.244.1.0/24"), Backend: lease.BackendVXLAN, VNI: vni, MAC: encap.MAC{2, 0, 0, 0, 0, 1}, Port: 8472, Iface: "eth0"}
		peer := &Node{PublicIP: them, Subnet: netip.MustParsePrefix("10.244.2.0/24"), Backend: lease.BackendVXLAN, VNI: vni, MAC: mac, Port: 8472, Lease: &lease.Lease{Key: "10.244.2.0-24"}}
		e := &evidence{own: own.halves()[0], peer: peer.halves()[0], port: 8472, local: true, carried: true, waited: time.Second, left: 9,
			made: wire.Knock{Sent: 9}, host: wire.Answer{Sent: 1, Got: 1}, counted: counted{known: true}, route: routed{device: "eth0"}}
		c.of(e)
		f := e.judge()
		if f == nil {
			if c.want != "" {
				t.Errorf("%s: nothing, want %s", name, c.want)
			}
			continue
		}
		if text := f.Summary + "; " + f.Evidence; f.ID != c.want || f.Severity != c.is || !strings.Contains(text, c.word) || f.Fix == "" {
			t.Errorf("%s: %s (%s) %s; fix: %s; want %s with %q", name, f.ID, f.Severity, text, f.Fix, c.want, c.word)
		}
	}
}

// One host that nobody reaches is not many that are filtered.
func TestAllOfUs(t *testing.T) {
	p := &Patient{Local: Node{PublicIP: netip.MustParseAddr("192.0.2.1"), Port: 8472}}
	at := func(node string) said {
		return said{Finding: Finding{ID: "udp-filtered-at-peer", Confidence: Likely, Node: node}}
	}
	if got := p.allOfUs([]said{at("192.0.2.2"), at("192.0.2.3")}, 0); len(got) != 1 || got[0].ID != "udp-filtered-here" || got[0].Node != "192.0.2.1" {
		t.Errorf("two silent, none answers: %+v", got)
	}
	for _, c := range []struct {
		found     []said
		answering int
	}{
		{[]said{at("192.0.2.2"), at("192.0.2.3")}, 1},
		{[]said{at("192.0.2.2"), at("192.0.2.2")}, 0}, // both families of one
		{[]said{at("192.0.2.2"), {Finding: Finding{ID: "lease-dead-node", Node: "192.0.2.3"}}}, 0},
	} {
		if got := p.allOfUs(c.found, c.answering); len(got) != len(c.found) || got[0].ID != "udp-filtered-at-peer" {
			t.Errorf("%+v, %d answer: %+v", c.found, c.answering, got)
		}
	}
}

// A finding of one speaks for those that are silent as it is, if it is the same with all of them that were looked into.
func TestSpread(t *testing.T) {
	p := &Patient{}
	var silent []half
	for i := range 40 {
		at := netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
		silent = append(silent, half{node: &Node{PublicIP: at}, outer: at})
	}
	if got := p.triage(t.Context(), silent[:mostSuspect]); len(got) != mostSuspect || len(got[0].alike) > 0 {
		t.Errorf("few: %d are looked into, want each", len(got))
	}
	got := choose(silent, slices.Concat(slices.Repeat([]string{"off"}, 30), slices.Repeat([]string{"mute"}, 10)))
	if len(got) != mostSuspect || len(got[0].alike) != 22 || len(got[1].alike) != 2 || got[0].silence != "off" || got[1].silence != "mute" {
		t.Fatalf("%d are looked into: %+v", len(got), got[:2])
	}
	findings := func(last string) []said {
		var suspects []*evidence
		var found []said
		for i, c := range got {
			e := &evidence{peer: c.half, silence: c.silence, alike: c.alike, judged: &said{Finding: Finding{ID: c.silence, Node: c.node.Name()}}}
			if i == len(got)-1 {
				e.judged.ID = last
			}
			suspects = append(suspects, e)
		}
		spread(suspects)
		for _, e := range suspects {
			found = append(found, *e.judged)
		}
		return grouped(found)
	}
	if all := findings("mute"); len(all) != 2 || !strings.Contains(all[0].Summary, "with 30 nodes") || !strings.Contains(all[1].Summary, "with 10 nodes") {
		t.Errorf("all alike: %+v", all)
	}
	if all := findings("other"); len(all) != 3 || !strings.Contains(all[0].Summary, "with 30 nodes") || !strings.Contains(all[1].Summary, "with 7 nodes") {
		t.Errorf("one is another: %+v", all)
	}
}

// Of ten thousand peers, of which five hundred are down, no more are asked than may be, and some that live.
func TestSample(t *testing.T) {
	down, up := time.Now(), true
	p := &Patient{Local: Node{Subnet: netip.MustParsePrefix("10.200.0.0/24"), PublicIP: netip.MustParseAddr("192.0.2.1"), Backend: lease.BackendUDP}}
	for i := range 10_000 {
		n := Node{PublicIP: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i)}), 24), Backend: lease.BackendUDP,
			Lease: &lease.Lease{Revision: int64(i + 1)}, Peer: &control.PeerStatus{Up: &up}}
		if i < 500 {
			n.Peer = &control.PeerStatus{DownSince: &down}
		}
		p.Peers = append(p.Peers, n)
	}
	began := time.Now()
	asked, more := p.sample()
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v", took)
	}
	ill := 0
	for _, h := range asked {
		if h.status.DownSince != nil {
			ill++
		}
	}
	if len(asked) != mostAsked || ill != mostAsked/2 || len(more) != 500-ill {
		t.Errorf("%d are asked, %d of them down, and %d more; want %d, %d and %d", len(asked), ill, len(more), mostAsked, mostAsked/2, 500-mostAsked/2)
	}
}

// What may drop a peer's datagrams here, and what cannot.
func TestMayDropIn(t *testing.T) {
	for rules, want := range map[string]bool{
		"":                                      false,
		"tcp dport 22 drop":                     false,
		"udp dport 53 drop":                     false,
		"ct state invalid drop":                 false,
		`iifname "lo" ip saddr 10.0.0.0/8 drop`: false,
		"udp dport 8472 drop":                   true,
		"ip saddr 192.0.2.2 drop":               true,
		"meta l4proto udp reject":               true,
		"jump strict":                           true,
		"ip saddr vmap { 192.0.2.0/24 : goto strict }": true,
		"jump loose": false,
	} {
		ruleset := `table inet f {
	set s {
		type ipv4_addr
		elements = { 192.0.2.1 }
	}
	chain in {
		type filter hook input priority filter; policy accept;
		` + rules + `
	}
	chain strict {
		udp dport 8472 counter packets 0 bytes 0 drop
	}
	chain loose {
		counter packets 0 bytes 0
	}
	chain passing {
		type filter hook forward priority filter; policy drop;
		drop
	}
}
table ip g {
	chain strict {
		accept
	}
}
`
		if got := mayDropIn(ruleset, 8472); got != want {
			t.Errorf("%q: %t, want %t", rules, got, want)
		}
	}
	if !mayDropIn("table ip f {\n\tchain in {\n\t\ttype filter hook prerouting priority raw; policy drop;\n\t}\n}\n", 8472) {
		t.Error("a policy to drop lets in")
	}
}

func TestRulesOfFirewall(t *testing.T) {
	const ruleset = `table inet own {
	chain in { # handle 1
		type filter hook input priority filter; policy drop;
		udp dport 8472 counter packets 3 bytes 400 drop # handle 5
		udp dport 84720 drop # handle 6
		udp dport 8472 accept # handle 7
	}
	chain out { # handle 2
		type filter hook output priority filter; policy accept;
		udp dport 8472 reject # handle 8
	}
}`
	in, out := nftRules(ruleset, "input", 8472), nftRules(ruleset, "output", 8472)
	if len(in) != 2 || !strings.Contains(in[0], "policy drop") || !strings.Contains(in[1], "(nft delete rule inet own in handle 5)") {
		t.Errorf("in: %q", in)
	}
	if len(out) != 1 || !strings.Contains(out[0], "handle 8") {
		t.Errorf("out: %q", out)
	}
	const dump = `*filter
:INPUT DROP [0:0]
:OUTPUT ACCEPT [0:0]
[7:300] -A INPUT -p udp -m udp --dport 8472 -j DROP
-A INPUT -p udp -m udp --dport 8472 -j ACCEPT
COMMIT`
	if got := iptablesRules("iptables-save", dump, "INPUT", 8472); len(got) != 2 || !strings.Contains(got[0], "policy of INPUT") || !strings.Contains(got[1], "-j DROP") {
		t.Errorf("iptables: %q", got)
	}
}
