//go:build linux

package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// Two networks in one process, of which one has lost its etcd; the doctor says of which it speaks, and is asked of the
// other alone.
//
//	h1 (etcd) ── br0 ── h2 (muslin: blue, green)
func TestSeveralNetworks(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "iptables")
	l := labtest.NewLab(t, 2)
	h := l.Host(2)
	labtest.StartEtcd(t, l.Host(1), "--listen-client-urls", "http://127.0.0.1:2379,http://198.18.0.1:2379,http://198.18.0.1:2479")
	m := h.Muslin(labtest.Bin)
	file := filepath.Join(h.Dir, "networks.yaml")
	content := "networks:\n"
	for name, settings := range map[string]string{"blue": "network: 10.1.0.0/16", "green": "network: 10.2.0.0/16, backend: {Type: vxlan, VNI: 2}, etcd-endpoints: http://198.18.0.1:2479"} {
		content += fmt.Sprintf("  %s: {subnet-file: %s/%s.env, etcd-prefix: /%s, %s}\n", name, h.Dir, name, name, settings)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	m.Proc = labtest.Must(h.Start("muslin", nil, labtest.Bin, "run", "--config", file, "--iface", "eth0", "--etcd-endpoints", "http://198.18.0.1:2379",
		"--state-dir", m.StateDir, "--control", m.Control, "--healthz-port", "8081"))(t)
	if err := m.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, 10*time.Second, func() error {
		if r := examine(t, m); len(r.Findings) > 0 || r.exit != 0 {
			return fmt.Errorf("found: %s", r.raw)
		}
		return nil
	})
	run(t, h.Node, "iptables", "-A", "OUTPUT", "-p", "tcp", "--dport", "2479", "-j", "DROP")
	r := examine(t, m)
	r.first(t, "etcd-unreachable", h.Addr.String(), "http://198.18.0.1:2479")
	if len(r.Findings) > 0 && r.Findings[0].Net != "green" {
		t.Errorf("it is about network %q, want green", r.Findings[0].Net)
	}
	examine(t, m, "--net", "green").first(t, "etcd-unreachable", h.Addr.String())
	examine(t, m, "--net", "blue").well(t)
	for _, name := range []string{"blue", "green"} {
		if _, err := os.Stat(filepath.Join(m.StateDir, name, "doctor.json")); err != nil {
			t.Error(err)
		}
	}
}
