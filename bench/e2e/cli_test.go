//go:build linux

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"muslin/bench/labtest"
)

// The commands that talk to the store, on a real etcd server:
//
//	h1 (etcd, muslin; the commands) ── br0 ── h2 (muslin)
func TestStoreCommands(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	h := l.Host(1)
	store := startEtcd(t, h)
	run := func(args ...string) string {
		t.Helper()
		return must(h.Run(t.Context(), append([]string{labtest.Bin}, args...)...))(t)
	}
	refused := func(args ...string) string {
		t.Helper()
		out, err := h.Run(t.Context(), append([]string{labtest.Bin}, args...)...)
		if err == nil {
			t.Errorf("`muslin %s` did not fail: %s", strings.Join(args, " "), out)
		}
		return out
	}

	// config: nothing there, a bad one, a good one, a change without an answer, a change.
	expectWords(t, refused("config", "get"), "config set")
	expectWords(t, refused("config", "set", "--yes", `{"Network":"10.244.0.0/16","SubnetLen":17}`), "SubnetLen", "17")
	expectWords(t, refused("config", "validate", `{"Network":"10.244.0.0/16","Bakend":{"Type":"vxlan","VNI":-1}`), "JSON")
	expectWords(t, run("config", "validate", `{"Network":"10.244.0.0/16","Bakend":{"Type":"vxlan"}}`), "Bakend", "Backend")
	if got := store.Get(t, "/config"); got != "" {
		t.Errorf("a refused config was written: %s", got)
	}
	file := filepath.Join(h.Dir, "net-conf.json")
	if err := os.WriteFile(file, []byte(vxlanConfig), 0o644); err != nil {
		t.Fatal(err)
	}
	run("config", "set", "--yes", file)
	expectWords(t, run("config", "get"), network, "vxlan")
	changed := `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":7}}`
	out, err := h.Run(t.Context(), "sh", "-c", `echo no | "$@"`, "sh", labtest.Bin, "config", "set", changed)
	if err == nil {
		t.Errorf("a change that was not confirmed succeeded: %s", out)
	}
	expectWords(t, out, "VNI", "7")
	if strings.Contains(store.Get(t, "/config"), "VNI") {
		t.Error("a change that was not confirmed was made")
	}

	// leases: list them, reserve one, release one.
	flags := []string{"--etcd-endpoints", endpoint(h)}
	m1, m2 := startMuslin(t, h, flags...), startMuslin(t, l.Host(2), flags...)
	waitPeers(t, m1, 1)
	first, second := status(t, m1).Node.Subnet.String(), status(t, m2).Node.Subnet.String()
	expectWords(t, run("leases", "list"), strings.Replace(first, "/", "-", 1), strings.Replace(second, "/", "-", 1), "198.18.0.2")
	run("leases", "reserve", "--yes", second)
	var leases []struct {
		Subnet   string
		Reserved bool
	}
	if err := json.Unmarshal([]byte(must(h.Output(t.Context(), labtest.Bin, "leases", "list", "--output", "json"))(t)), &leases); err != nil {
		t.Fatal(err)
	}
	reserved := make(map[string]bool)
	for _, lease := range leases {
		reserved[lease.Subnet] = lease.Reserved
	}
	if len(leases) != 2 || !reserved[second] || reserved[first] {
		t.Errorf("leases %+v, want %s reserved, %s not", leases, second, first)
	}
	if err := m2.Stop(); err != nil {
		t.Error(err)
	}
	m2 = startMuslin(t, l.Host(2), flags...)
	if node := status(t, m2).Node; node.Subnet.String() != second || node.LeaseExpires != "" {
		t.Errorf("after a restart subnet %v expires %q, want the reserved %s that does not", node.Subnet, node.LeaseExpires, second)
	}
	if err := m2.Stop(); err != nil {
		t.Error(err)
	}
	run("leases", "release", "--yes", second)
	if keys := store.Subnets(t); len(keys) != 1 {
		t.Errorf("leases after the release: %v, want one", keys)
	}
	waitPeers(t, m1, 0)

	// What is saved while the store lives serves when it is gone.
	saved := must(h.Output(t.Context(), labtest.Bin, "leases", "list", "--output", "peers-file"))(t)
	peers := filepath.Join(h.Dir, "peers.json")
	if err := os.WriteFile(peers, []byte(saved), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := m1.Stop(); err != nil {
		t.Error(err)
	}
	store.Proc.Kill()
	m1 = startMuslin(t, h, "--peers-file", peers, "--network", network)
	if got := status(t, m1).Node.Subnet.String(); got != first {
		t.Errorf("subnet from the saved leases %s, want %s", got, first)
	}
	expectWords(t, refused("leases", "list"), "etcd")
}

// Flags from the environment, muslin's before flannel's:
//
//	h1 (muslin, embedded etcd) ── br0
func TestEnvironment(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	h := l.Host(1)
	env := []string{
		"MUSLIN_EMBEDDED_ETCD=true", "MUSLIN_NETWORK=10.99.0.0/16", "FLANNELD_NETWORK=10.98.0.0/16",
		"FLANNELD_BACKEND=udp", "MUSLIN_TUN_NAME=overridden", "MUSLIN_LOG_FORMAT=json",
	}
	m := h.Muslin(labtest.Bin)
	m.Proc = must(h.Start("muslin", env, append(h.MuslinArgs(labtest.Bin), "--tun-name", "over0")...))(t)
	if err := m.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	node := status(t, m).Node
	if node.TUN != "over0" || node.Backend != "udp" || !strings.HasPrefix(node.Subnet.String(), "10.99.") {
		t.Errorf("node %+v; want TUN over0, udp, a subnet of 10.99.0.0/16", node)
	}
	for line := range lines(m.Output()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("not a JSON log line: %s", line)
		}
	}
}
