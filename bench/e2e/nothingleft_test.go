//go:build linux

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// leftRow is a daemon that changes in its host whatever it can.
type leftRow struct {
	name    string
	backend string // as the network's config has it
	lease   string // what a peer's has beside the addresses
	flags   []string
	tool    string // "nftables", or a program
	one     string // the family that is left out: "4" or "6"
	direct  bool   // a route leads to each peer's address
}

func leftRows() []leftRow {
	const (
		vxlan = `,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"1a:2b:3c:4d:5e:6f"},"BackendV6Data":{"VNI":1,"VtepMAC":"1a:2b:3c:4d:5e:60"}`
		key   = `{"PublicKey":"aGVyZSBhcmUgdGhlIDMyIGJ5dGVzIG9mIGEga2V5Li4=","Port":51820}`
	)
	var rows []leftRow
	for _, tool := range []string{"iptables-nft", "nftables"} {
		rows = append(rows,
			leftRow{name: "vxlan", backend: `{"Type":"vxlan"}`, lease: vxlan, tool: tool},
			leftRow{name: "vxlan with DirectRouting", backend: `{"Type":"vxlan","DirectRouting":true}`, lease: vxlan, tool: tool, direct: true},
			leftRow{name: "udp", backend: `{"Type":"udp"}`, tool: tool},
			leftRow{name: "host-gw", backend: `{"Type":"host-gw"}`, lease: `,"BackendType":"host-gw"`, tool: tool, direct: true},
			leftRow{name: "wireguard", backend: `{"Type":"wireguard"}`, lease: `,"BackendType":"wireguard","BackendData":` + key + `,"BackendV6Data":` + strings.Replace(key, "51820", "51821", 1), flags: []string{"--wireguard=userspace"}, tool: tool})
	}
	return append(rows,
		leftRow{name: "vxlan", backend: `{"Type":"vxlan"}`, lease: vxlan, tool: "iptables-legacy"},
		leftRow{name: "vxlan, IPv4 alone", backend: `{"Type":"vxlan"}`, lease: vxlan, tool: "iptables-nft", one: "6"},
		leftRow{name: "vxlan, IPv6 alone", backend: `{"Type":"vxlan"}`, lease: vxlan, tool: "nftables", one: "4"})
}

// Nothing of what a daemon changed is left after `muslin cleanup` when it was killed, nor after SIGTERM: of links,
// addresses, routes, rules, switches and firewall rules. Each host has a network of its own in the one store, with
// a peer that is h1's address.
//
//	h1 (etcd) ── br0 ── h2 … (muslin)
func TestNothingIsLeft(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "nft", "iptables-nft", "iptables-legacy", "ip6tables-legacy", "etcdctl")
	rows := leftRows()
	l := newLab(t, 1+len(rows))
	underlay6(t, l)
	store := startEtcd(t, l.Host(1))
	t.Run("rows", func(t *testing.T) {
		for i, row := range rows {
			t.Run(strings.ReplaceAll(row.name, ", ", "_")+" "+row.tool, func(t *testing.T) {
				t.Parallel()
				row.run(t, store, l.Host(2+i))
			})
		}
	})
}

func (r *leftRow) run(t *testing.T, store *labtest.Etcd, h *lab.Host) {
	const peer4, peer6 = "10.244.250.0-24", "fd00:244:0:fa::-64"
	etcdPrefix := fmt.Sprintf("/left/%d", h.Number)
	config := fmt.Sprintf(`{"Network":%q,"EnableIPv4":%t,"EnableIPv6":%t,"IPv6Network":%q,"EnableNFTables":%t,"Backend":%s}`,
		network, r.one != "4", r.one != "6", network6, r.tool == "nftables", r.backend)
	store.Do(t, "put", etcdPrefix+"/config", config)
	key, peers := peer4+"&"+peer6, 2
	switch r.one {
	case "4":
		key, peers = "0.0.0.0-0&"+peer6, 1
	case "6":
		key, peers = peer4, 1
	}
	store.Do(t, "put", etcdPrefix+"/subnets/"+key, fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":%q%s}`, store.Host.Addr, hostAddr6(store.Host), r.lease))

	var wrap []string
	if r.tool != "nftables" {
		wrap = []string{"sh", "-c", `mount -t tmpfs -o mode=755 none /mnt && ln -s "$(command -v ` + r.tool + `)" /mnt/iptables && ln -s "$(command -v ` +
			strings.Replace(r.tool, "iptables", "ip6tables", 1) + `)" /mnt/ip6tables && export PATH="/mnt:$PATH" && exec "$@"`, "sh"}
	}
	flags := append([]string{"--etcd-endpoints", endpoint(store.Host), "--etcd-prefix", etcdPrefix, "--ip-masq", "--ip-blackhole-route"}, r.flags...)
	before := snapshot(t, h.Node)
	start := func() *lab.Muslin {
		m := must(h.LaunchMuslinUnder(wrap, labtest.Bin, flags...))(t)
		if err := m.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		return m
	}

	m := start()
	waitPeers(t, m, peers)
	now := r.whole(t, h)
	for _, warning := range status(t, m).Warnings {
		if strings.Contains(warning, "firewall") {
			t.Errorf("warning: %s", warning)
		}
	}
	m.Kill()
	if left := snapshot(t, h.Node); left == before {
		t.Error("a killed daemon left nothing: the rest of this shows nothing")
	}
	cleanup := slices.Concat(wrap, []string{labtest.Bin, "cleanup", "--control", m.Control, "--state-dir", m.StateDir})
	out := must(h.Run(t.Context(), cleanup...))(t)
	expectWords(t, out, "removed the", "set /proc/sys/net/ipv")
	expectAsBefore(t, h.Node, before)

	m = start()
	if again := r.whole(t, h); again != now {
		t.Errorf("the second daemon made it otherwise: without\n%sand with\n%s", without(now, again), without(again, now))
	}
	if err := m.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	expectExit(t, m.Proc, 0)
	expectAsBefore(t, h.Node, before)
}

// whole waits until a running daemon has everything in place, and is the host's rules then.
func (r *leftRow) whole(t *testing.T, h *lab.Host) (rules string) {
	t.Helper()
	eventually(t, lab.Patience(10*time.Second), func() error {
		all := snapshot(t, h.Node)
		var words []string
		for _, f := range []struct{ one, network, peer, forward string }{
			{"4", network, "10.244.250.0/24", "net/ipv4/ip_forward = 1"},
			{"6", network6, "fd00:244:0:fa::/64", "net/ipv6/conf/all/forwarding = 1"},
		} {
			if f.one == r.one {
				continue
			}
			words = append(words, f.network, f.forward, "blackhole")
			if r.direct {
				words = append(words, f.peer+" via ")
			}
		}
		var lines []string // nft lists tables in the order of their making
		for line := range strings.Lines(all) {
			if strings.Contains(line, "MUSLIN") || strings.Contains(line, "masquerade") {
				lines = append(lines, line)
			}
		}
		slices.Sort(lines)
		rules = strings.Join(lines, "")
		for _, word := range words {
			if !strings.Contains(all, word) {
				return fmt.Errorf("%q is missing in\n%s", word, all)
			}
		}
		return nil
	})
	return rules
}
