//go:build linux

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// Two muslin nodes and one that is set up by hand as flannel's host-gw does it, which is a route for each peer and
// nothing else:
//
//	p1a ── cni0 ─ h1 (muslin, embedded etcd) ─┐         ┌─ h3 (kernel) ─ cni0 ── p3a
//	p2a ── cni0 ─ h2 (muslin) ────────────────┴── br0 ──┘
func TestHostGateway(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "etcdctl")
	l := newLab(t, 3)
	withRouter(t, l)
	ctx := t.Context()
	h1, h2, h3 := l.Host(1), l.Host(2), l.Host(3)
	before := snapshot(t, h2.Node)
	m1 := startMuslin(t, h1, "--embedded-etcd", "--network", network, "--backend", "host-gw")
	m2 := startMuslin(t, h2, "--etcd-endpoints", endpoint(h1))
	s1, s2 := status(t, m1), status(t, m2)
	subnet := netip.MustParsePrefix("10.244.250.0/24")
	if subnet == s1.Node.Subnet || subnet == s2.Node.Subnet {
		subnet = netip.MustParsePrefix("10.244.251.0/24")
	}
	store := labtest.EtcdOn(h1)
	store.Do(t, "put", prefix+leaseKey(subnet), fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null,"BackendType":"host-gw"}`, h3.Addr))
	if got, want := store.Get(t, leaseKey(s1.Node.Subnet)), fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null,"BackendType":"host-gw"}`, h1.Addr); got != want {
		t.Errorf("our lease is %s, want %s", got, want)
	}
	for _, s := range []*lab.Status{s1, s2} {
		runIn(t, h3.Node, "ip", "route", "add", s.Node.Subnet.String(), "via", s.Node.PublicIP.String())
	}
	if err := h3.Sysctl("net/ipv4/ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*lab.Muslin{m1, m2} {
		waitPeers(t, m, 2)
	}
	a, b := addPod(t, m1, "a"), addPod(t, m2, "a")
	c := must(h3.AddPod(ctx, "a", lab.PodNetwork{Gateway: netip.PrefixFrom(subnet.Addr().Next(), 24), MTU: 1500}))(t)

	whole := lab.PingOptions{Count: 3, Size: 1500, DontFragment: true}
	for _, way := range [][2]*lab.Pod{{a, b}, {b, a}, {a, c}, {c, a}, {b, c}} {
		eventuallyPings(t, way[0].Node, way[1].Addr)
		expectPings(t, way[0].Node, way[1].Addr, whole)
	}
	copyTCP(t, a, b, bigFile())
	copyTCP(t, c, a, bigFile())
	if s := status(t, m1); s.Node.MTU != 1500 || s.Node.TUN != "" || s.Node.Port != 0 || s.Node.Backend != "host-gw" || len(s.Warnings) > 1 {
		t.Errorf("status: %+v, %q", s.Node, s.Warnings)
	}
	if n := must(m1.PodNetwork())(t); n.MTU != 1500 {
		t.Errorf("subnet file: %+v", n)
	}
	if out := must(h2.Run(ctx, "ip", "-d", "tuntap"))(t); strings.TrimSpace(out) != "" {
		t.Errorf("TUN devices: %s", out)
	}
	if out := must(h2.Run(ctx, "cat", "/proc/net/udp"))(t); strings.Count(out, "\n") != 1 {
		t.Errorf("UDP sockets: %s", out)
	}
	if r := route(t, m2, c.Addr.String()); r.Way != "direct" || r.Device != "eth0" || r.NextHop != h3.Addr.String() || r.MTU != 1500 || len(r.Notes) != 0 {
		t.Errorf("%+v", r)
	}

	// A peer off the link is left out and named; the others stay.
	away(t, h2, h3)
	eventually(t, 10*time.Second, func() error {
		p, _ := status(t, m2).Peer(subnet)
		if p.Way != "none" || p.WayRule != "gateway" {
			return fmt.Errorf("%+v", p)
		}
		return nil
	})
	expectWords(t, strings.Join(status(t, m2).Warnings, "\n"), "a peer is left out: "+subnet.String(), "through the gateway")
	expectWords(t, m2.Output(), "a peer is left out: host-gw reaches neighbours only")
	if r := route(t, m2, c.Addr.String()); r.Way != "none" || r.Rule != "gateway" {
		t.Errorf("%+v", r)
	}
	expectPing(t, b.Node, a.Addr, 3)
	back(t, h2, h3)
	eventuallyPings(t, b.Node, c.Addr)

	expectWell(t, l)

	// Replaced, and killed and started again, without a packet lost.
	probe := labtest.StartProbe(t, a, b)
	flags := []string{"--etcd-endpoints", endpoint(h1)}
	old := m2
	m2 = launchMuslin(t, h2, append([]string{"--replace"}, flags...)...)
	expectExit(t, old.Proc, 0)
	waitPeers(t, m2, 2)
	m2.Kill()
	m2 = startMuslin(t, h2, flags...)
	waitPeers(t, m2, 2)
	labtest.WaitReceived(t, probe, 100)
	if r := probe.Stop(); r.Err != nil || r.Lost != 0 || r.Duplicated != 0 {
		t.Errorf("%s, %v", r, r.Err)
	}
	if got := status(t, m2).Node.Subnet; got != s2.Node.Subnet {
		t.Errorf("subnet %s, was %s", got, s2.Node.Subnet)
	}

	m2.Kill()
	out := must(h2.Run(ctx, labtest.Bin, "cleanup", "--control", m2.Control, "--state-dir", m2.StateDir))(t)
	expectWords(t, out, "removed 2 direct routes to peers")
	if out := must(h2.Run(ctx, "ip", "route", "show", "proto", "218"))(t); out != "" {
		t.Errorf("routes left: %s", out)
	}
	m2 = startMuslin(t, h2, flags...)
	waitPeers(t, m2, 2)
	if err := m2.Stop(); err != nil {
		t.Error(err)
	}
	runIn(t, h2.Node, "ip", "link", "del", "cni0")
	runIn(t, h2.Node, "ip", "link", "del", "veth-a")
	expectAsBefore(t, h2.Node, before)
}

// eventuallyPings waits for the first answer: routes follow leases in a moment.
func eventuallyPings(t *testing.T, from *lab.Node, to netip.Addr) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		r, err := from.Ping(t.Context(), to, lab.PingOptions{Count: 1})
		if err == nil && r.Received == 0 {
			err = fmt.Errorf("no answer from %s to %s", to, from.Name)
		}
		return err
	})
}

// Behind NAT peers' routes would lead nowhere.
func TestHostGatewayRefusesNAT(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	m := launchMuslin(t, l.Host(1), "--embedded-etcd", "--network", network, "--backend", "host-gw", "--public-ip", "203.0.113.7")
	out := expectExit(t, m.Proc, 1)
	expectWords(t, out, "host-gw: the PublicIP 203.0.113.7 is not the address 198.18.0.1 that eth0 has", "--public-ip")
}
