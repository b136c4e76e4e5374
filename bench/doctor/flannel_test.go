//go:build linux

package doctor

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// A node that has flannel alone, as flanneld leaves it: the doctor finds nothing, and then what is done to it.
//
//	h1 (etcd) ── br0 ─┬─ h2 (kernel VXLAN) ── p2a
//	                  └─ h3 (kernel VXLAN) ── p3a
func TestFlannelAlone(t *testing.T) {
	t.Parallel()
	l := labtest.NewLab(t, 3)
	e := labtest.StartEtcd(t, l.Host(1))
	e.Config(t, labtest.VXLANConfig)
	var nodes []*lab.KernelVXLAN
	for i, h := range l.Hosts()[1:] {
		v := labtest.Must(h.SetupKernelVXLAN(t.Context(), 1, 8472, netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i+2))))(t)
		labtest.Must(h.AddPod(t.Context(), "a", v.PodNetwork()))(t)
		e.Do(t, "put", v.LeaseKey(labtest.Prefix), v.LeaseValue(1))
		nodes = append(nodes, v)
	}
	for i, v := range nodes {
		other := nodes[1-i]
		if err := v.AddPeer(t.Context(), other.Subnet, other.MAC, other.Host.Addr); err != nil {
			t.Fatal(err)
		}
	}
	h, peer := nodes[0].Host, nodes[1].Subnet
	m := h.Muslin(labtest.Bin)
	env := fmt.Sprintf("FLANNEL_NETWORK=%s\nFLANNEL_SUBNET=%s\nFLANNEL_MTU=%d\nFLANNEL_IPMASQ=false\n", labtest.Network, nodes[0].PodNetwork().Gateway, nodes[0].MTU)
	if err := os.WriteFile(m.SubnetFile, []byte(env), 0o644); err != nil {
		t.Fatal(err)
	}
	flags := []string{"--subnet-file", m.SubnetFile, "--etcd-endpoints", labtest.Endpoint(l.Host(1)), "--state-dir", m.StateDir}
	ill := func(id, inject, mend string, words ...string) {
		t.Helper()
		sh(t, h.Node, inject)
		examine(t, m, flags...).first(t, id, h.Addr.String(), words...)
		sh(t, h.Node, mend)
		examine(t, m, flags...).well(t)
	}
	examine(t, m, flags...).well(t)
	base := peer.Addr().String()
	ill("route-missing", "ip route del "+peer.String(), fmt.Sprintf("ip route add %s via %s dev flannel.1 onlink", peer, base), peer.String(), "ip route replace "+peer.String(), "flannel.1")
	ill("route-wrong", fmt.Sprintf("ip route add blackhole %s/25", base), fmt.Sprintf("ip route del blackhole %s/25", base), "blackhole", base)
	ill("ip-forward", "sysctl -w net.ipv4.ip_forward=0", "sysctl -w net.ipv4.ip_forward=1", "net.ipv4.ip_forward")
	ill("forward-drop", "nft 'table ip theirs { chain passing { type filter hook forward priority 0; policy drop; }; }'", "nft delete table ip theirs", "table ip theirs")
	ill("bridge-mtu", "ip link set cni0 mtu 1500", "ip link set cni0 mtu 1450", "cni0 1500")
	ill("underlay-address-changed", fmt.Sprintf("ip addr add 198.18.0.77/16 dev eth0; ip addr del %s/24 dev eth0", h.Addr),
		fmt.Sprintf("ip addr add %s/24 dev eth0; ip addr del 198.18.0.77/16 dev eth0; ip route replace %s via %s dev flannel.1 onlink", h.Addr, peer, base), h.Addr.String(), "flannel.1", "flanneld")

	// Nothing is there but what flannel said of itself, and a muslin that was never started.
	sh(t, h.Node, "ip link del flannel.1; ip link del cni0")
	examine(t, m, flags...).first(t, "daemon-stopped", h.Addr.String(), m.Control, "flannel's", "muslin rescue")
}

// The kernel's check of senders where peers are reached directly, what --fix does about it, and what the text says:
//
//	h1 (etcd) ── br0 ─┬─ h2 (muslin) ── p2a
//	                  └─ h3 (muslin) ── p3a
func TestDirectAndFix(t *testing.T) {
	s := newScene(t, 2, `{"Network":"`+labtest.Network+`","Backend":{"Type":"vxlan","DirectRouting":true}}`, "--iptables-forward-rules=false")
	m := s.nodes[0]
	h := m.Host
	text := run(t, h.Node, m.Bin, "doctor", "--control", m.Control)
	labtest.ExpectWords(t, text, "All is well", "1 peer:", "forwarding", "store", "routes")
	if n := len(strings.Split(strings.TrimSpace(text), "\n")); n != 1 {
		t.Errorf("the text of a healthy network has %d lines, want 1:\n%s", n, text)
	}
	sh(t, h.Node, "iptables -P FORWARD DROP")
	examine(t, m).first(t, "forward-drop", h.Addr.String(), "chain FORWARD", "drops", "iptables -I FORWARD")
	sh(t, h.Node, "iptables -P FORWARD ACCEPT; sysctl -w net.ipv4.conf.eth0.rp_filter=1")
	examine(t, m).first(t, "rp-filter", h.Addr.String(), "net/ipv4/conf/eth0/rp_filter", "DirectRouting")

	sh(t, h.Node, "sysctl -w net.ipv4.ip_forward=0")
	out, err := h.Run(t.Context(), "sh", "-c", `echo n | "$@"`, "sh", m.Bin, "doctor", "--control", m.Control, "--fix")
	labtest.ExpectWords(t, out, "BROKEN   ip-forward", "WARNING  rp-filter", "; seen: net.ipv4.ip_forward = 0", "; fix: sysctl -w net.ipv4.ip_forward=1", "Set net.ipv4.ip_forward to 1? [y/N]")
	if exit, ok := err.(*lab.ExitError); !ok || exit.Status != 2 {
		t.Errorf("a declined --fix: %v, want exit status 2", err)
	}
	examine(t, m).first(t, "ip-forward", h.Addr.String())
	if out, err := h.Run(t.Context(), m.Bin, "doctor", "--control", m.Control, "--fix", "--yes"); err != nil {
		t.Errorf("--fix --yes: %v: %s", err, out)
	}
	examine(t, m).well(t)
	if value, err := h.ReadSysctl("net/ipv4/conf/eth0/rp_filter"); err != nil || value != "2" {
		t.Errorf("rp_filter is %s, %v; want 2", value, err)
	}

	out, err = h.Run(t.Context(), m.Bin, "doctor", "--control", m.Control, "--output", "yaml")
	if exit, ok := err.(*lab.ExitError); !ok || exit.Status != 3 {
		t.Errorf("--output yaml: %v, %s; want exit status 3", err, out)
	}
}
