//go:build linux

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// refusal is a host in which the daemon must not start:
//
//	h1 (muslin) ── br0
type refusal struct {
	name  string
	tools []string
	setup func(t *testing.T, h *lab.Host) // what stands in the way
	flags func(h *lab.Host) []string
	wrap  []string // command in front of `muslin run`
	bare  bool     // without the lab's --iface
	words []string // of the sentence
}

func flags(f ...string) func(*lab.Host) []string { return func(*lab.Host) []string { return f } }

var embedded = flags("--embedded-etcd", "--network", network)

// ipCommand is a setup of one or more commands on the host.
func ipCommand(commands ...[]string) func(*testing.T, *lab.Host) {
	return func(t *testing.T, h *lab.Host) {
		t.Helper()
		for _, c := range commands {
			runIn(t, h.Node, c...)
		}
	}
}

func runIn(t *testing.T, n *lab.Node, command ...string) {
	t.Helper()
	if _, err := n.Run(t.Context(), command...); err != nil {
		t.Fatal(err)
	}
}

// withConfig starts a real etcd with the network's config.
func withConfig(config string) func(*testing.T, *lab.Host) {
	return func(t *testing.T, h *lab.Host) {
		t.Helper()
		startEtcd(t, h).Config(t, config)
	}
}

var refusals = []refusal{
	{
		name: "no CAP_NET_ADMIN", tools: []string{"setpriv"},
		wrap: []string{"setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"}, flags: embedded,
		words: []string{"CAP_NET_ADMIN", "root"},
	},
	{
		name: "not root", tools: []string{"setpriv"},
		wrap: []string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"}, flags: embedded,
		words: []string{"CAP_NET_ADMIN", "root"},
	},
	{
		name: "no /dev/net/tun",
		wrap: []string{"sh", "-c", `mount -t tmpfs none /dev/net && exec "$@"`, "sh"}, flags: embedded,
		words: []string{"/dev/net/tun", "modprobe tun"},
	},
	{
		name: "port taken by a process",
		setup: func(t *testing.T, h *lab.Host) {
			listenUDP(t, h.Node, netip.AddrPortFrom(h.Addr, 8472))
		},
		flags: embedded,
		words: []string{"8472", filepath.Base(os.Args[0])[:8], fmt.Sprint(os.Getpid())},
	},
	{
		name:  "kernel vxlan device with our VNI and port",
		setup: ipCommand([]string{"ip", "link", "add", "flannel.1", "type", "vxlan", "id", "1", "dev", "eth0", "dstport", "8472", "nolearning"}, []string{"ip", "link", "set", "flannel.1", "up"}),
		flags: embedded,
		words: []string{"flannel.1", "8472", "ip link del"},
	},
	{
		name:  "kernel vxlan device with another VNI on our port",
		setup: ipCommand([]string{"ip", "link", "add", "other7", "type", "vxlan", "id", "7", "dev", "eth0", "dstport", "8472"}, []string{"ip", "link", "set", "other7", "up"}),
		flags: embedded,
		words: []string{"other7", "8472"},
	},
	{
		name:  "TUN name taken by a TUN device",
		setup: ipCommand([]string{"ip", "tuntap", "add", "dev", "muslin0", "mode", "tun"}),
		flags: embedded,
		words: []string{"muslin0", "--tun-name"},
	},
	{
		name:  "TUN name taken by another link",
		setup: ipCommand([]string{"ip", "link", "add", "muslin0", "type", "bridge"}),
		flags: embedded,
		words: []string{"muslin0", "bridge", "--tun-name"},
	},
	{
		name:  "overlapping route",
		setup: ipCommand([]string{"ip", "route", "add", "10.244.3.0/24", "dev", "eth0"}),
		flags: embedded,
		words: []string{"10.244.3.0/24", "eth0", network},
	},
	{
		name:  "overlapping address",
		setup: ipCommand([]string{"ip", "addr", "add", "10.244.9.9/24", "dev", "eth0"}),
		flags: embedded,
		words: []string{"10.244.9.0/24", "eth0", network},
	},
	{
		name: "subnets exhausted", tools: []string{"etcd"},
		setup: func(t *testing.T, h *lab.Host) {
			e := startEtcd(t, h)
			e.Config(t, `{"Network":"10.244.0.0/28","SubnetLen":30,"Backend":{"Type":"vxlan"}}`)
			for i, subnet := range []string{"10.244.0.4-30", "10.244.0.8-30", "10.244.0.12-30"} {
				e.Do(t, "put", prefix+"/subnets/"+subnet, fmt.Sprintf(`{"PublicIP":"198.18.0.%d","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:0%d"}}`, 101+i, i))
			}
		},
		flags: flags(),
		words: []string{"3", "198.18.0.101", "198.18.0.102", "198.18.0.103", "10.244.0.0/28"},
	},
	{
		name: "wrong etcd password", tools: []string{"etcd"},
		setup: func(t *testing.T, h *lab.Host) {
			e := startEtcd(t, h)
			e.Config(t, vxlanConfig)
			e.Do(t, "user", "add", "root:secret")
			e.Do(t, "user", "grant-role", "root", "root")
			e.Do(t, "auth", "enable")
		},
		flags: flags("--etcd-username", "root", "--etcd-password", "wrong"),
		words: []string{"etcd", "password"},
	},
	{
		name: "etcd with an untrusted CA", tools: []string{"etcd"},
		setup: func(t *testing.T, h *lab.Host) { startTLSEtcd(t, h) },
		flags: flags("--etcd-endpoints", "https://127.0.0.1:2379"),
		words: []string{"certificate", "--etcd-cafile"},
	},
	{
		name:  "CA file is not there",
		flags: flags("--etcd-endpoints", "https://127.0.0.1:2379", "--etcd-cafile", "/nowhere/ca.pem"),
		words: []string{"/nowhere/ca.pem"},
	},
	{
		name:  "subnet file cannot be written",
		flags: flags("--embedded-etcd", "--network", network, "--subnet-file", "/proc/no/subnet.env"),
		words: []string{"/proc/no", "--subnet-file"},
	},
	{
		name:  "disk full for the embedded etcd",
		wrap:  []string{"sh", "-c", `mount -t tmpfs -o size=1m none /mnt && exec "$@"`, "sh"},
		flags: flags("--embedded-etcd", "--network", network, "--state-dir", "/mnt"),
		words: []string{"/mnt", "space", "--state-dir"},
	},
	{
		name:  "disk full",
		wrap:  []string{"sh", "-c", `mount -t tmpfs -o size=4k none /mnt && mkdir /mnt/state && echo > /mnt/full && exec "$@"`, "sh"},
		flags: flags("--embedded-etcd", "--network", network, "--state-dir", "/mnt/state"),
		words: []string{"/mnt/state", "no space", "make room", "another --state-dir"},
	},
	{
		name: "another network than the store's", tools: []string{"etcd"},
		setup: withConfig(vxlanConfig),
		flags: flags("--network", "10.99.0.0/16"),
		words: []string{"10.99.0.0/16", network, "config set"},
	},
	{
		name: "another backend than the store's", tools: []string{"etcd"},
		setup: withConfig(vxlanConfig),
		flags: flags("--network", network, "--backend", "udp"),
		words: []string{"udp", "vxlan", "config set"},
	},
	{
		name: "backend that this version lacks", tools: []string{"etcd"},
		setup: withConfig(`{"Network":"` + network + `","Backend":{"Type":"ipip"}}`),
		flags: flags(),
		words: []string{"ipip", "vxlan, udp, host-gw and wireguard"},
	},
	{
		name: "IPv6 network on a host without an address of it", tools: []string{"etcd"},
		setup: withConfig(`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"vxlan"}}`),
		flags: flags(),
		words: []string{"IPv6"},
	},
	{
		name: "VNI of 25 bits", tools: []string{"etcd"},
		setup: withConfig(`{"Network":"` + network + `","Backend":{"Type":"vxlan","VNI":16777216}}`),
		flags: flags(),
		words: []string{"VNI", "16777216"},
	},
	{
		name: "config is not JSON", tools: []string{"etcd"},
		setup: withConfig("hello"),
		flags: flags(),
		words: []string{"config"},
	},
	{
		name: "no such interface", bare: true,
		flags: flags("--embedded-etcd", "--network", network, "--iface", "nope0"),
		words: []string{"nope0", "eth0", "198.18.0.1", "--iface"},
	},
	{
		name: "no default route", bare: true,
		flags: embedded,
		words: []string{"default route", "eth0", "--iface"},
	},
	{
		name:  "interface leaves no MTU",
		setup: ipCommand([]string{"ip", "link", "set", "eth0", "mtu", "100"}),
		flags: embedded,
		words: []string{"MTU", "eth0"},
	},
	{
		name:  "unknown flag",
		flags: flags("--embeded-etcd"),
		words: []string{"--embeded-etcd", "--help"},
	},
	{
		name: "several bad values at once",
		flags: flags("--network", "10.244.0.0/40", "--log-level", "loud", "--source-check", "perhaps", "--healthz-port", "70000",
			"--subnet-lease-renew-margin", "0", "--public-ip", "fd00::1", "--tun-name", "a-name-that-is-too-long"),
		words: []string{"10.244.0.0/40", "loud", "perhaps", "70000", "--subnet-lease-renew-margin", "fd00::1", "a-name-that-is-too-long"},
	},
	{
		name:  "network with host bits",
		flags: flags("--embedded-etcd", "--network", "10.244.1.5/16"),
		words: []string{"10.244.1.5/16", "10.244.0.0/16"},
	},
	{
		name:  "IPv6 network by flag",
		flags: flags("--embedded-etcd", "--network", "fd00::/48"),
		words: []string{"fd00::/48", "IPv4"},
	},
	{
		name:  "port beyond 65535",
		flags: flags("--embedded-etcd", "--network", network, "--backend", `{"Type":"vxlan","Port":70000}`),
		words: []string{"70000", "Port"},
	},
	{
		name: "peers file without our address",
		setup: func(t *testing.T, h *lab.Host) {
			peers := `{"10.244.12.0-24": {"PublicIP":"198.18.0.77","PublicIPv6":null}}`
			if err := os.WriteFile(h.Dir+"/peers.json", []byte(peers), 0o644); err != nil {
				t.Fatal(err)
			}
		},
		flags: func(h *lab.Host) []string {
			return []string{"--peers-file", h.Dir + "/peers.json", "--network", network, "--backend", "udp"}
		},
		words: []string{"peers.json", "198.18.0.1"},
	},
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	for _, r := range refusals {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			if r.tools != nil {
				lab.RequireTool(t, r.tools...)
			}
			l := newLab(t, 1)
			h := l.Host(1)
			if r.setup != nil {
				r.setup(t, h)
			}
			before := snapshot(t, h.Node)
			m := launchRefused(t, h, &r)
			log := expectExit(t, m, 1)
			expectWords(t, log, r.words...)
			if t.Failed() {
				return
			}
			t.Log(lastLine(log))
			expectAsBefore(t, h.Node, before)
			for _, file := range []string{"subnet.env", "muslin.sock"} {
				if _, err := os.Stat(filepath.Join(h.Dir, file)); !os.IsNotExist(err) {
					t.Errorf("%s after a refusal: %v", file, err)
				}
			}
		})
	}
}

// launchRefused is lab's LaunchMuslin with the refusal's changes to the command.
func launchRefused(t *testing.T, h *lab.Host, r *refusal) *lab.Proc {
	t.Helper()
	command := h.MuslinArgs(labtest.Bin)
	if i := slices.Index(command, "--iface"); r.bare {
		command = slices.Delete(command, i, i+2)
	}
	return must(h.Start("muslin", nil, slices.Concat(r.wrap, command, r.flags(h))...))(t)
}

func lastLine(s string) string {
	last := ""
	for line := range lines(s) {
		last = line
	}
	return last
}

// No etcd answers: not a refusal, but a daemon that keeps trying and says so.
//
//	h1 (muslin) ── br0
func TestWaitsForEtcd(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	h := l.Host(1)
	before := snapshot(t, h.Node)
	m := launchMuslin(t, h, "--etcd-endpoints", "http://127.0.0.1:1")
	if err := m.WaitOutput(t.Context(), "waiting for etcd"); err != nil {
		t.Fatal(err)
	}
	expectWords(t, m.Output(), "waiting for etcd", "trying again", "refused")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if code, err := m.Wait(ctx); err == nil {
		t.Errorf("the daemon ended with status %d instead of waiting", code)
	}
	if code, err := h.Run(t.Context(), labtest.Bin, "status", "--control", m.Control); err != nil {
		t.Errorf("status of a waiting daemon: %v", err)
	} else {
		expectWords(t, code, "waiting for etcd")
	}
	if err := m.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	expectExit(t, m.Proc, 0)
	expectAsBefore(t, h.Node, before)
}

// A second daemon on one host, and two hosts with one public address:
//
//	h1 (etcd, muslin, muslin again) ── br0 ── h2 (muslin, h1's public address)
func TestTwoOfOneKind(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	store := startEtcd(t, l.Host(1))
	store.Config(t, vxlanConfig)
	first := startMuslin(t, l.Host(1), "--public-ip", "203.0.113.5")
	node := status(t, first).Node

	again := must(l.Host(1).Start("muslin-again", nil, l.Host(1).MuslinArgs(labtest.Bin)...))(t)
	expectWords(t, expectExit(t, again, 1), first.Control, "--control")

	second := launchMuslin(t, l.Host(2), "--etcd-endpoints", endpoint(l.Host(1)), "--public-ip", "203.0.113.5")
	expectWords(t, expectExit(t, second.Proc, 1), "203.0.113.5", "--public-ip")
	want := fmt.Sprintf(`{"PublicIP":"203.0.113.5","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":%q}}`, node.VtepMAC)
	eventually(t, 10*time.Second, func() error {
		if got := store.Get(t, leaseKey(node.Subnet)); got != want {
			return fmt.Errorf("the first host's lease is %s, want %s", got, want)
		}
		return nil
	})
	if !first.Running() {
		t.Error("the first host's daemon ended")
	}
}
