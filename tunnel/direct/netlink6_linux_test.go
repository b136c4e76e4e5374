package direct

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"muslin/tunnel/netnstest"
	"muslin/tunnel/way"
)

// newHost6 is newHost of IPv6, beside an IPv4 that nothing is asked about:
//
//	eth0 2001:db8::1/64 ── (its peer, up)
//	default via 2001:db8::fe dev eth0
//	muslin0-v6 with the overlay's route: fd00:244::/48 src fd00:244:0:1::
func newHost6(t testing.TB) *Table {
	t.Helper()
	netnstest.Enter(t)
	sh(t, `ip link set lo up
		ip link add eth0 type veth peer name eth0p && ip link set eth0p addrgenmode none && ip link set eth0p up && ip link set eth0 addrgenmode none
		ip addr add 2001:db8::1/64 dev eth0 nodad && ip addr add 192.0.2.1/24 dev eth0 && ip link set eth0 up
		ip -6 route add default via 2001:db8::fe
		ip tuntap add muslin0-v6 mode tun && ip link set muslin0-v6 up && ip addr add fd00:244:0:1::/128 dev muslin0-v6 nodad
		ip -6 route add fd00:244::/48 dev muslin0-v6 src fd00:244:0:1:: proto 218`)
	table, err := Open(TableConfig{Protocol: protocol, Network: prefix("fd00:244::/48"), Iface: "eth0", Source: addr("fd00:244:0:1::")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	return table
}

func TestHops6(t *testing.T) {
	table := newHost6(t)
	sh(t, `ip link add eth1 type veth peer name eth1p && ip link set eth1p up && ip addr add 2001:db8:1::1/64 dev eth1 nodad && ip link set eth1 up
		ip -6 route add unreachable 2001:db8:9::1; ip -6 route add blackhole 2001:db8:9::2; ip -6 route add prohibit 2001:db8:9::3
		ip -6 route add 2001:db8:9::4 via fe80::1 dev eth0
		ip -6 route add 2001:db8:9::5 dev eth0`)
	for _, c := range []struct {
		to   string
		want way.Hop
	}{
		{"2001:db8::2", way.Hop{Iface: "eth0"}},
		{"2001:db8:9::5", way.Hop{Iface: "eth0"}},
		{"2001:4860::1", way.Hop{Iface: "eth0", Gateway: addr("2001:db8::fe")}},
		{"2001:db8:9::4", way.Hop{Iface: "eth0", Gateway: addr("fe80::1")}},
		{"2001:db8:1::2", way.Hop{Iface: "eth1"}},
		{"2001:db8::1", way.Hop{Iface: "lo"}},
		{"2001:db8:9::1", way.Hop{Err: "no route to host"}},
		{"2001:db8:9::2", way.Hop{Err: "invalid argument"}},
		{"2001:db8:9::3", way.Hop{Err: "permission denied"}},
	} {
		got, err := table.Hops([]netip.Addr{addr(c.to)})
		if err != nil || got[0] != c.want {
			t.Errorf("%s: %+v, %v; want %+v", c.to, got, err, c.want)
		}
	}
	sh(t, "ip -6 route del default")
	if got, err := table.Hops([]netip.Addr{addr("2001:4860::1"), addr("2001:db8::2")}); err != nil ||
		got[0] != (way.Hop{Err: "network is unreachable"}) || got[1] != (way.Hop{Iface: "eth0"}) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestTable6(t *testing.T) {
	table := newHost6(t)
	// Routes that look like ours and are not: another protocol, a blackhole, another metric, without a gateway, through a
	// neighbour's link-local address (a PublicIPv6 is none), outside the network, of IPv4.
	sh(t, `ip -6 route add fd00:244:0:7::/64 via 2001:db8::7 proto static
		ip -6 route add blackhole fd00:244:0:1::/64 metric 1000000 proto 218
		ip -6 route add fd00:244:0:6::/64 via 2001:db8::6 metric 7 proto 218
		ip -6 route add fd00:244:0:8::/64 dev eth0 proto 218
		ip -6 route add fd00:245:0:1::/64 via 2001:db8::7 proto 218
		ip -6 route add fd00:244:0:9::/64 via 2001:db8::7 proto 218 table 77
		ip route add 10.244.7.0/24 via 192.0.2.7 proto 218`)
	all := func() string { return sh(t, "ip -6 route show table all; ip route show table all") }
	before := all()
	a, b := route(t, table, "fd00:244:0:2::/64", "2001:db8::2"), route(t, table, "fd00:244:0:3::/64", "2001:db8::3")
	for _, r := range []Route{a, b} {
		if err := table.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	got, err := table.Routes()
	if err != nil || len(got) != 2 || !slices.Contains(got, a) || !slices.Contains(got, b) {
		t.Errorf("%v, %v", got, err)
	}
	if out := sh(t, "ip -6 route show fd00:244:0:2::/64"); !strings.Contains(out, "via 2001:db8::2 dev eth0 proto 218 src fd00:244:0:1:: metric 1024") {
		t.Errorf("route %s", out)
	}
	if out := sh(t, "ip -6 route get fd00:244:0:2::5; ip -6 route get fd00:244:0:4::5"); !strings.Contains(out, "fd00:244:0:2::5 from :: via 2001:db8::2 dev eth0") || !strings.Contains(out, "fd00:244:0:4::5 from :: dev muslin0-v6") ||
		strings.Count(out, "src fd00:244:0:1::") != 2 {
		t.Errorf("ways %s", out)
	}

	// An address that goes is taken out of a route that has it for its source, which is noticed.
	sh(t, "ip addr del fd00:244:0:1::/128 dev muslin0-v6 && ip addr add fd00:244:0:1::/128 dev muslin0-v6 nodad")
	astray := a
	astray.Astray = true
	if got, err := table.Routes(); err != nil || !slices.Contains(got, astray) {
		t.Errorf("%v, %v, want %v in it", got, err, astray)
	}
	for _, r := range []Route{a, b} {
		if err := errors.Join(table.Remove(r), table.Add(r)); err != nil {
			t.Fatal(err)
		}
	}
	sh(t, "ip -6 route replace fd00:244::/48 dev muslin0-v6 src fd00:244:0:1:: proto 218")

	// Never in place of another, ours or a foreign one, nor beside it as a second next hop.
	for _, r := range []Route{{a.Subnet, addr("2001:db8::9"), a.Iface, false}, {prefix("fd00:244:0:7::/64"), addr("2001:db8::9"), a.Iface, false}} {
		if err := table.Add(r); err == nil || !strings.Contains(err.Error(), "another program's route is there (`ip -6 route show "+r.Subnet.String()+"`)") {
			t.Errorf("%v: %v", r, err)
		}
	}
	// A neighbour that is none.
	if err := table.Add(Route{prefix("fd00:244:0:5::/64"), addr("2001:db8:9::5"), a.Iface, false}); err == nil || !strings.Contains(err.Error(), "add route fd00:244:0:5::/64 via 2001:db8:9::5") {
		t.Errorf("a route through a gateway that is not on the link: %v", err)
	}
	for _, r := range []Route{{a.Subnet, addr("2001:db8::9"), a.Iface, false}, {prefix("fd00:244:0:7::/64"), addr("2001:db8::7"), a.Iface, false}, {a.Subnet, a.Via, 999, false}} {
		if err := table.Remove(r); err != nil {
			t.Errorf("remove %v: %v", r, err)
		}
	}
	if got, err := table.Routes(); err != nil || len(got) != 2 {
		t.Errorf("%v, %v", got, err)
	}
	for _, r := range []Route{a, b, a} {
		if err := table.Remove(r); err != nil {
			t.Error(err)
		}
	}
	if after := all(); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	sh(t, "ip link del eth0")
	if err := table.Remove(a); err != nil {
		t.Error(err)
	}
}

// What the kernel tells of IPv6, and that nothing is heard of IPv4 alone.
func TestWatch6(t *testing.T) {
	table := newHost6(t)
	changes := make(chan Change, 1000)
	stop, err := table.Watch(func(c Change) { changes <- c })
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	sh(t, "ip -6 route add fd00:244:0:2::/64 via 2001:db8::2 proto 218")
	for _, c := range []struct {
		do   string
		want Change
	}{
		{"ip -6 route del fd00:244:0:2::/64 via 2001:db8::2 proto 218", Routes},
		{"ip -6 route add 2001:db8:9::/64 via 2001:db8::2", Underlay},
		{"ip -6 rule add from 2001:db8::1 table 77", Routes | Underlay},
		{"ip addr add 2001:db8::11/128 dev eth0 nodad", Routes | Underlay},
		{"ip route add 203.0.113.0/24 via 192.0.2.2", 0},
		{"ip link set eth0 down", Routes | Underlay},
	} {
		for calm := false; !calm; {
			select {
			case <-changes:
			case <-time.After(200 * time.Millisecond):
				calm = true
			}
		}
		sh(t, c.do)
		limit := 20 * time.Second
		if c.want == 0 {
			limit = 300 * time.Millisecond
		}
		var got Change
		for end := time.After(limit); c.want == 0 || got&c.want != c.want; {
			select {
			case now := <-changes:
				got |= now
				continue
			case <-end:
			}
			break
		}
		if c.want == 0 && got != 0 || got&c.want != c.want {
			t.Errorf("%s: %b, want %b", c.do, got, c.want)
		}
	}
}
