//go:build linux

package e2e

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// routeAnswer is `muslin route --output json`, declared a second time on purpose.
type routeAnswer struct {
	Way     string `json:"way"`
	Rule    string `json:"rule"`
	Subnet  string `json:"subnet"`
	Device  string `json:"device"`
	NextHop string `json:"next_hop"`
	MTU     int    `json:"mtu"`
	MTURule string `json:"mtu_rule"`
	Kernel  struct {
		Device string `json:"device"`
		Source string `json:"source"`
	} `json:"kernel"`
	Notes []string `json:"notes"`
}

func route(t *testing.T, m *lab.Muslin, to string) routeAnswer {
	t.Helper()
	// A status of 1 where there is no way.
	out, _ := m.Host.Output(t.Context(), labtest.Bin, "route", to, "--output", "json", "--control", m.Control)
	var a routeAnswer
	if err := json.Unmarshal([]byte(out), &a); err != nil {
		t.Fatalf("route to %s: %v in %s", to, err, out)
	}
	return a
}

// Every kind of address, asked for in a network with direct routes, and in the end of a path with a gateway.
func TestRouteCommand(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	withRouter(t, l)
	daemons := join(t, l, directBackend)
	m, h1, h2 := daemons[0], l.Host(1), l.Host(2)
	waitWay(t, m, "direct", "on-link")
	far, near := h2.Pods()[0].Addr.String(), h1.Pods()[0].Addr.String()
	base := status(t, m).Node.Subnet.Addr().String()

	if a := route(t, m, far); a.Way != "direct" || a.Rule != "on-link" || a.Device != "eth0" || a.NextHop != h2.Addr.String() || a.MTU != 1500 ||
		a.Kernel.Device != "eth0" || a.Kernel.Source != base || len(a.Notes) != 0 {
		t.Errorf("directly: %+v", a)
	}
	if a := route(t, m, near); a.Way != "local" || a.Device != "cni0" || len(a.Notes) != 0 {
		t.Errorf("own pod: %+v", a)
	}
	if _, err := (question{h1.Node, netip.AddrPortFrom(netip.MustParseAddr(base), 0), 255, status(t, daemons[1]).Node.Subnet.Addr()}).ask("/v1/about"); err != nil {
		t.Errorf("asked directly: %v", err)
	}
	text := must(m.Command(t.Context(), "route", far))(t)
	expectWords(t, text, far+": direct", "without a gateway on eth0 (on-link)", "leaves by  eth0 via "+h2.Addr.String()+", MTU 1500")
	for to, words := range map[string]string{
		"10.244.0.9":   "no node of the overlay has a lease for it",
		"198.18.0.2":   "does not lie in the overlay",
		"fe80::1":      "does not lie in the overlay",
		"not-an-adres": "is not an address",
	} {
		out, err := m.Command(t.Context(), "route", to)
		if err == nil {
			t.Errorf("route to %s has status 0", to)
		}
		expectWords(t, out, words)
	}

	// Another program's route to the very address.
	runIn(t, h1.Node, "ip", "route", "add", far+"/32", "via", router.String(), "dev", "eth0")
	if a := route(t, m, far); a.Way != "direct" || !strings.Contains(strings.Join(a.Notes, " "), "the kernel does not do so: it sends by eth0 via "+router.String()) {
		t.Errorf("with a foreign route: %+v", a)
	}
	runIn(t, h1.Node, "ip", "route", "del", far+"/32")

	away(t, h1, h2)
	waitWay(t, m, "encapsulated", "gateway")
	if a := route(t, m, far); a.Way != "encapsulated" || a.Rule != "gateway" || a.Device != "muslin0" || a.NextHop != h2.Addr.String()+":8472" || a.MTU != 1450 ||
		a.Kernel.Device != "muslin0" || len(a.Notes) != 0 {
		t.Errorf("encapsulated: %+v", a)
	}
}
