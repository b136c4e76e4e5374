package direct

import (
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"muslin/tunnel/fib"
	"muslin/tunnel/netnstest"
	"muslin/tunnel/way"
)

const protocol = 218

// newHost moves the test's thread into a namespace of its own, which is a host with an underlay:
//
//	eth0 192.0.2.1/24 ── (its peer, up)
//	default via 192.0.2.254 dev eth0
//	muslin0, a dummy, with the overlay's route: 10.244.0.0/16 src 10.244.1.0
func newHost(t testing.TB) *Table {
	t.Helper()
	netnstest.Enter(t)
	sh(t, `ip link set lo up
		ip link add eth0 type veth peer name eth0p && ip link set eth0p up
		ip addr add 192.0.2.1/24 dev eth0 && ip link set eth0 up && ip route add default via 192.0.2.254
		ip tuntap add muslin0 mode tun && ip addr add 10.244.1.0/32 dev muslin0 && ip link set muslin0 up
		ip route add 10.244.0.0/16 dev muslin0 src 10.244.1.0 proto 218`)
	table, err := Open(TableConfig{Protocol: protocol, Network: prefix("10.244.0.0/16"), Iface: "eth0", Source: addr("10.244.1.0")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	return table
}

func sh(t testing.TB, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

func route(t *testing.T, table *Table, subnet, via string) Route {
	t.Helper()
	iface, err := table.Iface()
	if err != nil || iface == 0 {
		t.Fatalf("interface %d, %v", iface, err)
	}
	return Route{Subnet: prefix(subnet), Via: addr(via), Iface: iface}
}

func TestHops(t *testing.T) {
	table := newHost(t)
	sh(t, `ip link add eth1 type veth peer name eth1p && ip link set eth1p up && ip addr add 198.51.100.1/24 dev eth1 && ip link set eth1 up
		ip route add unreachable 203.0.113.1; ip route add blackhole 203.0.113.2; ip route add prohibit 203.0.113.3
		ip route add 203.0.113.4/32 via inet6 fe80::1 dev eth0
		ip route add 203.0.113.5/32 dev eth0`)
	for _, c := range []struct {
		to   string
		want way.Hop
	}{
		{"192.0.2.2", way.Hop{Iface: "eth0"}},
		{"203.0.113.5", way.Hop{Iface: "eth0"}},
		{"8.8.8.8", way.Hop{Iface: "eth0", Gateway: addr("192.0.2.254")}},
		{"203.0.113.4", way.Hop{Iface: "eth0", Gateway: addr("fe80::1")}},
		{"198.51.100.2", way.Hop{Iface: "eth1"}},
		{"192.0.2.1", way.Hop{Iface: "lo"}},
		{"203.0.113.1", way.Hop{Err: "no route to host"}},
		{"203.0.113.2", way.Hop{Err: "invalid argument"}},
		{"203.0.113.3", way.Hop{Err: "permission denied"}},
	} {
		got, err := table.Hops([]netip.Addr{addr(c.to)})
		if err != nil || got[0] != c.want {
			t.Errorf("%s: %+v, %v; want %+v", c.to, got, err, c.want)
		}
	}
	sh(t, "ip route del default")
	if got, err := table.Hops([]netip.Addr{addr("8.8.8.8"), addr("192.0.2.2")}); err != nil ||
		got[0] != (way.Hop{Err: "network is unreachable"}) || got[1] != (way.Hop{Iface: "eth0"}) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestTable(t *testing.T) {
	table := newHost(t)
	// Routes that look like ours and are not: another protocol, a blackhole, without a gateway, outside the network.
	sh(t, `ip route add 10.244.7.0/24 via 192.0.2.7 proto static
		ip route add blackhole 10.244.1.0/24 metric 1000000 proto 218
		ip route add 10.244.8.0/24 dev eth0 proto 218
		ip route add 10.245.1.0/24 via 192.0.2.7 proto 218
		ip route add 10.244.9.0/24 via 192.0.2.7 proto 218 table 77`)
	before := sh(t, "ip route show table all")
	a, b := route(t, table, "10.244.2.0/24", "192.0.2.2"), route(t, table, "10.244.3.0/24", "192.0.2.3")
	for _, r := range []Route{a, b} {
		if err := table.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	got, err := table.Routes()
	if err != nil || len(got) != 2 || !slices.Contains(got, a) || !slices.Contains(got, b) {
		t.Errorf("%v, %v", got, err)
	}
	if out := sh(t, "ip route show 10.244.2.0/24"); !strings.Contains(out, "via 192.0.2.2 dev eth0 proto 218 src 10.244.1.0") {
		t.Errorf("route %s", out)
	}
	if out := sh(t, "ip route get 10.244.2.5; ip route get 10.244.4.5"); !strings.Contains(out, "10.244.2.5 via 192.0.2.2 dev eth0 src 10.244.1.0") || !strings.Contains(out, "10.244.4.5 dev muslin0") {
		t.Errorf("ways %s", out)
	}

	// Never in place of another: ours, or a foreign one.
	for _, r := range []Route{{a.Subnet, addr("192.0.2.9"), a.Iface, false}, {prefix("10.244.7.0/24"), addr("192.0.2.9"), a.Iface, false}} {
		if err := table.Add(r); err == nil || !strings.Contains(err.Error(), "another program's route is there (`ip route show "+r.Subnet.String()+"`)") {
			t.Errorf("%v: %v", r, err)
		}
	}
	// A neighbour that is none.
	if err := table.Add(Route{prefix("10.244.5.0/24"), addr("203.0.113.5"), a.Iface, false}); err == nil {
		t.Error("a route through a gateway that is not on the link was taken")
	}
	// Nor is another one removed.
	for _, r := range []Route{{a.Subnet, addr("192.0.2.9"), a.Iface, false}, {prefix("10.244.7.0/24"), addr("192.0.2.7"), a.Iface, false}, {a.Subnet, a.Via, 999, false}} {
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
	if after := sh(t, "ip route show table all"); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	sh(t, "ip link del eth0")
	if iface, err := table.Iface(); iface != 0 || err != nil {
		t.Errorf("interface %d, %v; want none", iface, err)
	}
	if err := table.Remove(a); err != nil {
		t.Error(err)
	}
}

func TestWatch(t *testing.T) {
	table := newHost(t)
	changes := make(chan Change, 1000)
	stop, err := table.Watch(func(c Change) { changes <- c })
	if err != nil {
		t.Fatal(err)
	}
	sh(t, "ip route add 10.244.2.0/24 via 192.0.2.2 proto 218")
	for _, c := range []struct {
		do   string
		want Change
	}{
		{"ip route del 10.244.2.0/24 via 192.0.2.2 proto 218", Routes},
		{"ip route add 203.0.113.0/24 via 192.0.2.2", Underlay},
		{"ip route del 203.0.113.0/24", Underlay},
		{"ip rule add from 192.0.2.1 table 77", Routes | Underlay},
		{"ip addr add 192.0.2.11/32 dev eth0", Routes | Underlay},
		{"ip link set eth0 down", Routes | Underlay},
	} {
		for calm := false; !calm; { // a new link tells of itself for a while
			select {
			case <-changes:
			case <-time.After(200 * time.Millisecond):
				calm = true
			}
		}
		sh(t, c.do)
		var got Change
		for end := time.After(20 * time.Second); got&c.want != c.want; {
			select {
			case now := <-changes:
				got |= now
				continue
			case <-end:
				t.Errorf("%s: %b, want %b", c.do, got, c.want)
			}
			break
		}
	}
	stop()
	for len(changes) > 0 {
		<-changes
	}
	sh(t, "ip link set eth0 up")
	if len(changes) > 0 {
		t.Errorf("%d changes after the end", len(changes))
	}
}

// Which messages mean what; those of struct rtmsg begin family, dst_len, src_len, tos, table, protocol.
func TestChangeBy(t *testing.T) {
	table := &Table{cfg: TableConfig{Protocol: protocol}}
	route := func(in, by byte) []byte { return []byte{unix.AF_INET, 24, 0, 0, in, by, 0, 1, 0, 0, 0, 0} }
	for _, c := range []struct {
		kind uint16
		data []byte
		want Change
	}{
		{unix.RTM_NEWROUTE, route(unix.RT_TABLE_MAIN, protocol), 0}, // our own doing
		{unix.RTM_DELROUTE, route(unix.RT_TABLE_MAIN, protocol), Routes},
		{unix.RTM_NEWROUTE, route(unix.RT_TABLE_MAIN, unix.RTPROT_STATIC), Underlay},
		{unix.RTM_DELROUTE, route(77, unix.RTPROT_STATIC), Underlay},
		{unix.RTM_NEWROUTE, route(unix.RT_TABLE_LOCAL, unix.RTPROT_KERNEL), 0}, // comes with an address
		{unix.RTM_NEWROUTE, []byte{unix.AF_INET}, 0},
		{unix.RTM_DELADDR, nil, Routes | Underlay},
		{unix.RTM_NEWLINK, nil, Routes | Underlay},
		{unix.RTM_NEWRULE, nil, Routes | Underlay},
		{unix.RTM_NEWNEIGH, nil, 0},
	} {
		m := &syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: c.kind}, Data: c.data}
		if got := table.changeBy(m); got != c.want {
			t.Errorf("message %d %v: %b, want %b", c.kind, c.data, got, c.want)
		}
	}
}

// What looks cost among 10,000 neighbours, on the kernel's own routing table.
func BenchmarkTenThousandPeers(b *testing.B) {
	newHost(b)
	sh(b, "ip addr add 10.64.0.1/16 dev eth0")
	table, err := Open(TableConfig{Protocol: protocol, Network: prefix("10.128.0.0/9"), Iface: "eth0", Source: addr("10.244.1.0")})
	if err != nil {
		b.Fatal(err)
	}
	defer table.Close()
	var peers []*fib.Peer
	for i := range 10_000 {
		peers = append(peers, &fib.Peer{
			Subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(128 + i/250), byte(i % 250), 0}), 24),
			PublicIP: netip.AddrFrom4([4]byte{10, 64, byte(1 + i/250), byte(1 + i%250)}),
		})
	}
	r := New(Config{Kernel: table, Iface: "eth0", Subnet: prefix("10.244.1.0/24"), Resync: time.Minute, Routing: true})
	all := fib.New(peers)
	one := all.With([]*fib.Peer{{Subnet: peers[5000].Subnet, PublicIP: addr("10.64.99.99")}}, nil)
	look := func(t *fib.Table, c Change) {
		r.SetTable(t)
		if did, err := r.update(t, c); err != nil || len(did.refused) > 0 {
			b.Fatal(err, len(did.refused))
		}
	}
	b.Run("install", func(b *testing.B) {
		for b.Loop() {
			look(fib.New(nil), Routes)
			look(all, Routes|Underlay)
		}
	})
	if n := r.count(); n != 10_000 {
		b.Fatalf("%d routes", n)
	}
	b.Run("whole look", func(b *testing.B) {
		for b.Loop() {
			look(all, Routes|Underlay)
		}
	})
	b.Run("a route of ours went", func(b *testing.B) {
		for b.Loop() {
			look(all, Routes)
		}
	})
	b.Run("a peer moves", func(b *testing.B) {
		for b.Loop() {
			look(one, 0)
			look(all, 0)
		}
	})
}
