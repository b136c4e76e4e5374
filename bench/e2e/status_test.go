//go:build linux

package e2e

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// The shape of `muslin status --output json`: what scripts rely on.
//
//	p1a ── h1 (muslin, embedded etcd) ── br0 ── h2 (muslin) ── p2a
func TestStatusShape(t *testing.T) {
	t.Parallel()
	want := map[string]map[string]string{ // JSON type of each key
		"node": {
			"public_ip": "string", "iface": "string", "subnet": "string", "mtu": "number", "backend": "string", "vni": "number",
			"port": "number", "vtep_mac": "string", "tun": "string", "lease_expires": "string",
		},
		"store": {"endpoints": "array", "healthy": "bool", "revision": "number"},
		"peers": {
			"subnet": "string", "public_ip": "string", "backend": "string", "vtep_mac": "string", "tx_packets": "number",
			"tx_bytes": "number", "rx_packets": "number", "rx_bytes": "number", "last_rx": "string",
			"up": "bool", "down_since": "null",
		},
		"features": {"name": "string", "on": "bool", "reason": "string"},
	}
	l := newLab(t, 2)
	daemons := join(t, l, "vxlan")
	expectPing(t, l.Host(1).Pods()[0].Node, l.Host(2).Pods()[0].Addr, 5)
	expectNoAnswer(t, l.Host(1).Pods()[0].Node, netip.MustParseAddr("10.244.0.9")) // a drop to show
	for i, m := range daemons {
		out := must(m.Host.Output(t.Context(), labtest.Bin, "status", "--output", "json", "--control", m.Control))(t)
		var all map[string]any
		if err := json.Unmarshal([]byte(out), &all); err != nil {
			t.Fatal(err)
		}
		if v, ok := all["version"].(string); !ok || v == "" {
			t.Errorf("version is %v", all["version"])
		}
		for part, keys := range want {
			object, ok := all[part].(map[string]any)
			if list, isList := all[part].([]any); isList && len(list) > 0 {
				object, ok = list[0].(map[string]any)
			}
			if !ok {
				t.Errorf("%s is %v", part, all[part])
			}
			for key, typ := range keys {
				if got := jsonType(object[key]); got != typ {
					t.Errorf("%s.%s is %v (%s), want a %s", part, key, object[key], got, typ)
				}
			}
		}
		drops, ok := all["drops"].(map[string]any)
		if !ok || i == 0 && drops["no-route"] != 1.0 {
			t.Errorf("drops are %v, want an object with no-route 1", all["drops"])
		}
		checkStatusValues(t, out, i, l.Host(i+1).Addr, l.Host(2-i).Addr)
	}
	text := must(daemons[0].Command(t.Context(), "status"))(t)
	expectWords(t, text, "no-route", "198.18.0.2", "eth0", "healthy")
}

func checkStatusValues(t *testing.T, out string, i int, own, other netip.Addr) {
	t.Helper()
	var s struct {
		Node struct {
			PublicIP     netip.Addr   `json:"public_ip"`
			Subnet       netip.Prefix `json:"subnet"`
			LeaseExpires time.Time    `json:"lease_expires"`
			MTU, Port    int
			VNI          int
			TUN          string
		}
		Peers []struct {
			PublicIP  netip.Addr `json:"public_ip"`
			TxPackets int        `json:"tx_packets"`
			TxBytes   int        `json:"tx_bytes"`
			RxPackets int        `json:"rx_packets"`
			RxBytes   int        `json:"rx_bytes"`
			LastRx    time.Time  `json:"last_rx"`
		}
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatal(err)
	}
	n := s.Node
	if n.PublicIP != own || n.MTU != 1450 || n.Port != 8472 || n.VNI != 1 || n.TUN != "muslin0" || !n.Subnet.IsValid() {
		t.Errorf("node %d: %+v", i+1, n)
	}
	if left := time.Until(n.LeaseExpires); left < 23*time.Hour || left > 24*time.Hour {
		t.Errorf("lease of node %d expires in %v, want a little less than 24 h", i+1, left)
	}
	if len(s.Peers) != 1 {
		t.Fatalf("%d peers, want 1", len(s.Peers))
	}
	p := s.Peers[0]
	// Five pings of 84 bytes, and on a slow machine the daemons' own when they have not heard of each other for long.
	most := 5
	if !lab.Steady() {
		most = 15
	}
	pings := p.TxPackets
	if p.PublicIP != other || pings < 5 || pings > most || p.RxPackets != pings || p.TxBytes != 84*pings || p.RxBytes != 84*pings || time.Since(p.LastRx) > time.Minute {
		t.Errorf("peer of node %d: %+v; want 5 packets, 420 bytes each way", i+1, p)
	}
}

func jsonType(v any) string {
	switch v.(type) {
	case string:
		return "string"
	case float64:
		return "number"
	case bool:
		return "bool"
	case []any:
		return "array"
	case map[string]any:
		return "object"
	}
	return "null"
}

// Every command has help with an example, and the root names every command.
func TestHelp(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	help := func(args ...string) string {
		return must(l.Host(1).Output(t.Context(), append(append([]string{labtest.Bin}, args...), "--help")...))(t)
	}
	root := help()
	commands := map[string][]string{
		"run": nil, "status": nil, "doctor": nil, "route": nil, "demo": nil, "cleanup": nil, "version": nil, "completion": nil,
		"leases": {"list", "reserve", "release"}, "config": {"get", "set", "validate"},
	}
	for _, name := range slices.Sorted(maps.Keys(commands)) {
		expectWords(t, root, "\n  "+name+" ")
		for _, sub := range commands[name] {
			if text := help(name, sub); !strings.Contains(text, "Examples:") {
				t.Errorf("`muslin %s %s --help` has no example:\n%s", name, sub, text)
			}
		}
		if name == "completion" || commands[name] != nil {
			continue
		}
		if text := help(name); !strings.Contains(text, "Examples:") {
			t.Errorf("`muslin %s --help` has no example:\n%s", name, text)
		}
	}
	for _, flag := range []string{
		"embedded-etcd", "network", "backend", "etcd-endpoints", "etcd-prefix", "etcd-username", "etcd-password", "etcd-cafile",
		"etcd-certfile", "etcd-keyfile", "iface", "iface-regex", "iface-can-reach", "public-ip", "subnet-file", "state-dir", "control",
		"tun-name", "peers-file", "net-config-path", "source-check", "log-level", "log-format", "healthz-ip", "healthz-port", "ip-masq",
		"iptables-forward-rules", "subnet-lease-renew-margin",
	} {
		if !strings.Contains(help("run"), "--"+flag+" ") {
			t.Errorf("`muslin run --help` does not know --%s", flag)
		}
	}
}
