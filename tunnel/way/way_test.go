package way

import (
	"net/netip"
	"strings"
	"testing"
)

func TestChoose(t *testing.T) {
	addr := netip.MustParseAddr
	neighbour := Facts{DirectRouting: true, PublicIP: addr("192.0.2.2"), Underlay: "eth0", Hop: Hop{Iface: "eth0"}}
	for _, c := range []struct {
		rule   Rule
		way    Way
		change func(*Facts)
		says   string
	}{
		{RuleOnLink, Direct, func(*Facts) {}, "192.0.2.2 is reached without a gateway on eth0"},
		{RuleWireGuard, Encrypted, func(f *Facts) { f.Encrypted = true }, "wireguard"},
		{RuleOff, Encapsulated, func(f *Facts) { f.DirectRouting = false }, "does not ask"},
		{RuleUnknown, Encapsulated, func(f *Facts) { f.Hop = Hop{} }, "not asked yet"},
		{RuleUnreachable, Encapsulated, func(f *Facts) { f.Hop = Hop{Err: "network is unreachable"} }, "192.0.2.2: network is unreachable"},
		{RuleInterface, Encapsulated, func(f *Facts) { f.Hop.Iface = "wlan0" }, "by wlan0 and not by the underlay's eth0"},
		{RuleGateway, Encapsulated, func(f *Facts) { f.Hop.Gateway = addr("192.0.2.254") }, "through the gateway 192.0.2.254"},
		{RuleHolds, Encapsulated, func(f *Facts) { f.Holds = netip.MustParsePrefix("10.244.2.128/25") }, "10.244.2.128/25"},
		{RuleRefused, Encapsulated, func(f *Facts) { f.Refused = "file exists" }, "file exists"},
	} {
		f := neighbour
		c.change(&f)
		got := Choose(f)
		f.NoTunnel = true
		if without := Choose(f); c.way != Encrypted && (without.Rule != c.rule || without.Way != map[bool]Way{true: Direct, false: None}[c.way == Direct] || without.Reason() != got.Reason()) {
			t.Errorf("%s without a tunnel: %s by %s, %q", c.rule, without.Way, without.Rule, without.Reason())
		}
		if got.Rule != c.rule || got.Way != c.way || !strings.Contains(got.Reason(), c.says) {
			t.Errorf("%s: %s by %s, %q; want %s, %q", c.rule, got.Way, got.Rule, got.Reason(), c.way, c.says)
		}
	}
}

// The zero value of what is known leads through the tunnel, which always works.
func TestChooseNothing(t *testing.T) {
	if c := Choose(Facts{}); c.Way != Encapsulated || c.Rule != RuleOff {
		t.Errorf("%+v", c)
	}
}
