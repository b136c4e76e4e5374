package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"muslin/cmd/muslin/control"
	"muslin/tunnel/fib"
	"muslin/tunnel/host"
	"muslin/tunnel/way"
)

// exampleQuestion is about an address of a peer that is reached directly, and the kernel does so.
func exampleQuestion() routeQuestion {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	return routeQuestion{
		to: addr("10.244.2.7"), network: prefix("10.244.0.0/16"), subnet: prefix("10.244.1.0/24"),
		tun: "muslin0", underlay: "eth0", mtu: 1450, outerMTU: 1500, port: 8472,
		peer:       &fib.Peer{Subnet: prefix("10.244.2.0/24"), PublicIP: addr("192.0.2.2")},
		peerStatus: &control.PeerStatus{Subnet: "10.244.2.0/24", PublicIP: "192.0.2.2"},
		choice:     way.Choose(way.Facts{DirectRouting: true, PublicIP: addr("192.0.2.2"), Underlay: "eth0", Hop: way.Hop{Iface: "eth0"}}),
		kernel:     host.KernelRoute{Device: "eth0", Gateway: addr("192.0.2.2"), Source: addr("10.244.1.0"), MTU: 1500},
	}
}

func TestRouteAnswer(t *testing.T) {
	addr := netip.MustParseAddr
	down := time.Now().Add(-3 * time.Minute)
	encapsulated := way.Choose(way.Facts{DirectRouting: true, PublicIP: addr("192.0.2.2"), Underlay: "eth0", Hop: way.Hop{Iface: "eth0", Gateway: addr("192.0.2.254")}})
	tun := host.KernelRoute{Device: "muslin0", Source: addr("10.244.1.0"), MTU: 1450}
	six := func(q *routeQuestion) {
		q.to, q.network, q.subnet = addr("fd00:244:0:2::7"), netip.MustParsePrefix("fd00:244::/48"), netip.MustParsePrefix("fd00:244:0:1::/64")
		q.tun, q.mtu = "muslin0-v6", 1430
		q.peer = &fib.Peer{Subnet: netip.MustParsePrefix("fd00:244:0:2::/64"), PublicIP: addr("2001:db8::2")}
		q.peerStatus = &control.PeerStatus{Subnet: "fd00:244:0:2::/64", PublicIP: "2001:db8::2"}
		q.choice = way.Choose(way.Facts{DirectRouting: true, PublicIP: addr("2001:db8::2"), Underlay: "eth0", Hop: way.Hop{Iface: "eth0"}})
		q.kernel = host.KernelRoute{Device: "eth0", Gateway: addr("2001:db8::2"), Source: addr("fd00:244:0:1::"), MTU: 1500}
	}
	away6 := func(q *routeQuestion) {
		q.choice = way.Choose(way.Facts{DirectRouting: true, PublicIP: addr("2001:db8::2"), Underlay: "eth0", Hop: way.Hop{Iface: "eth0", Gateway: addr("fe80::1")}})
	}
	for name, c := range map[string]struct {
		change         func(*routeQuestion)
		way, rule      string
		device, hop    string
		mtu            int
		text           []string // of what is printed
		surprise, none bool     // a note; no way
	}{
		"direct": {func(*routeQuestion) {}, "direct", "on-link", "eth0", "192.0.2.2", 1500,
			[]string{"10.244.2.7: direct\n", "without a gateway on eth0 (on-link)", "10.244.2.0/24 at 192.0.2.2, not known", "eth0 via 192.0.2.2, MTU 1500", "eth0 via 192.0.2.2, from 10.244.1.0, MTU 1500"}, false, false},
		"direct, but the kernel has no route": {func(q *routeQuestion) { q.kernel = tun }, "direct", "on-link", "eth0", "192.0.2.2", 1500,
			[]string{"the kernel does not do so: the direct route is missing, and the packet is encapsulated"}, true, false},
		"direct, but a longer route": {func(q *routeQuestion) { q.kernel.Gateway = addr("192.0.2.9") }, "direct", "on-link", "eth0", "192.0.2.2", 1500,
			[]string{"the kernel does not do so: it sends by eth0 via 192.0.2.9, by another program's route"}, true, false},
		"encapsulated": {func(q *routeQuestion) { q.choice, q.kernel = encapsulated, tun }, "encapsulated", "gateway", "muslin0", "192.0.2.2:8472", 1450,
			[]string{"the gateway 192.0.2.254 (gateway)", "muslin0 in datagrams to 192.0.2.2:8472, MTU 1450"}, false, false},
		"a foreign route": {func(q *routeQuestion) {
			q.choice, q.kernel = encapsulated, host.KernelRoute{Device: "eth1", Gateway: addr("198.51.100.9"), MTU: 1500}
		}, "encapsulated", "gateway", "muslin0", "192.0.2.2:8472", 1450,
			[]string{"it sends by eth1 via 198.51.100.9, by another program's route", "`ip route get 10.244.2.7`"}, true, false},
		"a foreign blackhole": {func(q *routeQuestion) {
			q.choice, q.kernel, q.kernelErr = encapsulated, host.KernelRoute{}, errors.New("route to 10.244.2.7: invalid argument")
		}, "encapsulated", "gateway", "muslin0", "192.0.2.2:8472", 1450,
			[]string{"the kernel does not do so: route to 10.244.2.7: invalid argument"}, true, false},
		"a peer that is down": {func(q *routeQuestion) { q.peerStatus.DownSince = &down }, "direct", "on-link", "eth0", "192.0.2.2", 1500,
			[]string{"DOWN for 3m0s", "the peer does not answer"}, true, false},
		"IPv6, direct": {six, "direct", "on-link", "eth0", "2001:db8::2", 1500,
			[]string{"fd00:244:0:2::7: direct\n", "2001:db8::2 is reached without a gateway on eth0", "fd00:244:0:2::/64 at 2001:db8::2", "eth0 via 2001:db8::2, MTU 1500"}, false, false},
		"IPv6, direct, but a route of a lower metric": {func(q *routeQuestion) { six(q); q.kernel.Gateway = addr("fe80::9") }, "direct", "on-link", "eth0", "2001:db8::2", 1500,
			[]string{"it sends by eth0 via fe80::9, by another program's route or rule that comes first (`ip route get fd00:244:0:2::7`, `ip -6 rule`)"}, true, false},
		"IPv6, encapsulated": {func(q *routeQuestion) { six(q); away6(q); q.kernel = host.KernelRoute{Device: "muslin0-v6", MTU: 1430} }, "encapsulated", "gateway", "muslin0-v6", "[2001:db8::2]:8472", 1430,
			[]string{"the gateway fe80::1 (gateway)", "muslin0-v6 in datagrams to [2001:db8::2]:8472, MTU 1430"}, false, false},
		"IPv6, down": {func(q *routeQuestion) {
			six(q)
			yes := true
			q.peerStatus.DownSince, q.peerStatus.OtherUp = &down, &yes
		}, "direct", "on-link", "eth0", "2001:db8::2", 1500,
			[]string{"DOWN for 3m0s, up by IPv4", "the peer does not answer"}, true, false},
		"a container here": {func(q *routeQuestion) {
			q.to, q.peer, q.kernel = addr("10.244.1.7"), nil, host.KernelRoute{Device: "cni0", Source: addr("10.244.1.1"), MTU: 1450}
		}, "local", "own-subnet", "cni0", "", 1450, []string{"10.244.1.7: local\n", "subnet     10.244.1.0/24", "leaves by  cni0, MTU 1450"}, false, false},
		"this host": {func(q *routeQuestion) {
			q.to, q.peer, q.kernel = addr("10.244.1.0"), nil, host.KernelRoute{Device: "lo", Local: true, MTU: 65536}
		}, "local", "own-subnet", "lo", "", 65536, []string{"an address of this host itself"}, true, false},
		"no bridge": {func(q *routeQuestion) { q.to, q.peer, q.kernel = addr("10.244.1.7"), nil, tun },
			"local", "own-subnet", "", "", 0, []string{"no bridge or route for it"}, true, false},
		"our subnet led away": {func(q *routeQuestion) {
			q.to, q.peer, q.kernel = addr("10.244.1.7"), nil, host.KernelRoute{Device: "eth0", Gateway: addr("192.0.2.9"), MTU: 1500}
		}, "local", "own-subnet", "eth0", "192.0.2.9", 1500, []string{"it sends by eth0 via 192.0.2.9"}, true, false},
		"no peer": {func(q *routeQuestion) { q.to, q.peer, q.kernel = addr("10.244.9.9"), nil, tun },
			"none", "no-peer", "", "", 0, []string{"no node of the overlay has a lease for it"}, false, true},
		"host-gw, left out": {func(q *routeQuestion) {
			q.tun, q.choice = "", way.Choose(way.Facts{DirectRouting: true, NoTunnel: true, PublicIP: addr("192.0.2.2"), Underlay: "eth0", Hop: way.Hop{Iface: "eth0", Gateway: addr("192.0.2.254")}})
		}, "none", "gateway", "", "", 0, []string{"10.244.2.7: none", "the gateway 192.0.2.254", "10.244.2.0/24 at 192.0.2.2"}, false, true},
		"host-gw, no peer": {func(q *routeQuestion) {
			q.to, q.tun, q.peer, q.kernel = addr("10.244.9.9"), "", nil, host.KernelRoute{Device: "eth0", Gateway: addr("192.0.2.254"), MTU: 1500}
		}, "none", "no-peer", "", "", 0, []string{"no node of the overlay has a lease for it (no-peer)"}, false, true},
		"outside": {func(q *routeQuestion) {
			q.to, q.peer, q.kernel = addr("8.8.8.8"), nil, host.KernelRoute{Device: "eth0", Gateway: addr("192.0.2.254"), MTU: 1500}
		}, "none", "outside-network", "", "", 0, []string{"it does not lie in the overlay 10.244.0.0/16", "kernel   eth0 via 192.0.2.254"}, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			q := exampleQuestion()
			c.change(&q)
			if q.peer == nil {
				q.peerStatus, q.choice = nil, way.Choice{}
			}
			a := q.answer()
			if a.Way != c.way || a.Rule != c.rule || a.Device != c.device || a.NextHop != c.hop || a.MTU != c.mtu || (len(a.Notes) > 0) != c.surprise || a.Found() == c.none {
				t.Errorf("%+v", a)
			}
			var b bytes.Buffer
			if err := a.Print(&b, time.Now()); err != nil {
				t.Fatal(err)
			}
			for _, want := range c.text {
				if !strings.Contains(b.String(), want) {
					t.Errorf("no %q in\n%s", want, b.String())
				}
			}
		})
	}
}

// A peer's subnet inside our own is the peer's; ours inside a peer's is ours.
func TestRouteAnswerNested(t *testing.T) {
	q := exampleQuestion()
	q.to = netip.MustParseAddr("10.244.1.200")
	q.peer = &fib.Peer{Subnet: netip.MustParsePrefix("10.244.1.192/26"), PublicIP: netip.MustParseAddr("192.0.2.2")}
	if a := q.answer(); a.Way != "direct" {
		t.Errorf("%+v", a)
	}
	q.peer.Subnet = netip.MustParsePrefix("10.244.0.0/22")
	if a := q.answer(); a.Way != "local" {
		t.Errorf("%+v", a)
	}
}

func TestRouteOverTheControlSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "muslin.sock")
	l, err := listenControl(path)
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{}
	d.view.waiting("waiting for etcd")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- serveHTTP(ctx, l, controlHandler(func(selection) *control.Status { return nil }, func(control.Peers) {}, d.serveRoute, http.NotFound))
	}()
	_, err = control.AskRoute(t.Context(), path, "", netip.MustParseAddr("10.244.2.7"))
	if err == nil || !strings.Contains(err.Error(), "does not carry packets yet (waiting for etcd)") {
		t.Errorf("a daemon that starts: %v", err)
	}
	var a control.RouteAnswer
	if err := control.Ask(t.Context(), path, control.RoutePath+"?to=10.0.0", &a); err == nil || !strings.Contains(err.Error(), "is not an address") {
		t.Errorf("a bad address: %v", err)
	}
	if err := control.Ask(t.Context(), path, "/v1/nothing", &a); err == nil || !strings.Contains(err.Error(), "another version") {
		t.Errorf("an unknown question: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Others script against this shape.
func TestRouteShape(t *testing.T) {
	q := exampleQuestion()
	data, err := json.Marshal(q.answer())
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if have := strings.Join(keys(got), " "); have != "address device kernel mtu mtu_rule next_hop notes peer reason rule subnet way" {
		t.Errorf("an answer has %s", have)
	}
	if have := strings.Join(keys(got["kernel"]), " "); have != "device error gateway mtu source" {
		t.Errorf("the kernel's has %s", have)
	}
	if _, ok := got["notes"].([]any); !ok {
		t.Error("notes is no list")
	}
	var back control.RouteAnswer
	if err := json.Unmarshal(data, &back); err != nil || !reflect.DeepEqual(&back, q.answer()) {
		t.Errorf("%+v, %v", back, err)
	}
}
