//go:build linux

package systemd

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// `muslin rescue --stop-flannel` stops flanneld by its service, so that it does not come back, and `--undo` starts that again; the rescue
// itself runs as docs/rescue.md has it started, outliving who did. The flanneld is a sleep of that name: what it is to
// others is that name, its cgroup and what is set up around it.
//
//	p1a ── h1 (systemd, flannel) ── br0 ── h2 (flannel)     h3 (etcd)
func TestRescueStopsFlannel(t *testing.T) {
	t.Parallel()
	l := labtest.NewLab(t, 3)
	etcd := labtest.StartEtcd(t, l.Host(3))
	etcd.Config(t, labtest.VXLANConfig)
	var nodes []*lab.KernelVXLAN
	for i := range 2 {
		v := must(l.Host(i+1).SetupKernelVXLAN(t.Context(), 1, 8472, netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i+1))))(t)
		etcd.Do(t, "put", labtest.Prefix+labtest.LeaseKey(v.Subnet), v.LeaseValue(1))
		labtest.Must(v.Host.AddPod(t.Context(), "a", v.PodNetwork()))(t)
		nodes = append(nodes, v)
	}
	for i, v := range nodes {
		peer := nodes[1-i]
		if err := v.AddPeer(t.Context(), peer.Subnet, peer.MAC, peer.Host.Addr); err != nil {
			t.Fatal(err)
		}
	}
	h := l.Host(1)
	o := &overlay{systemd: startSystemd(t, h), from: h.Pods()[0], to: l.Host(2).Pods()[0]}
	expectPing(t, o)
	o.systemd.addFlannel(t, nodes[0])
	snapshot := func() string { // a device that is set up again has its routes in another place of the list
		lines := strings.Split(must(h.Snapshot(t.Context()))(t), "\n")
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
	before := snapshot()

	o.systemd.do(t, "systemctl", "start", "flanneld")
	etcdFlag := "--etcd-endpoints=" + labtest.Endpoint(l.Host(3))
	labtest.ExpectWords(t, o.systemd.do(t, "/usr/local/bin/muslin", "rescue", "--dry-run", "--stop-flannel", etcdFlag), "flanneld.service", "systemctl stop flanneld.service")
	o.systemd.do(t, "systemd-run", "--unit", "muslin-rescue", "/usr/local/bin/muslin", "rescue", "--yes", "--stop-flannel", etcdFlag)
	labtest.WaitPeers(t, o.systemd.m, 1)
	expectPing(t, o)
	// The unit restarts whatever ends by itself, after a tenth of a second.
	time.Sleep(300 * time.Millisecond)
	if state := o.systemd.state(t, "flanneld"); state != "inactive" {
		t.Errorf("flanneld is %s", state)
	}
	labtest.ExpectWords(t, o.systemd.do(t, "/usr/local/bin/muslin", "rescue", "--undo", "--yes"), "systemctl start flanneld.service", "flannel has its data path again")
	labtest.Eventually(t, 5*time.Second, func() error {
		if state := o.systemd.state(t, "flanneld"); state != "active" {
			return fmt.Errorf("flanneld is %s", state)
		}
		if state := o.systemd.state(t, "muslin-rescue"); state != "inactive" {
			return fmt.Errorf("the rescue is %s", state)
		}
		return nil
	})
	expectPing(t, o)
	labtest.Eventually(t, 5*time.Second, func() error { // an IPv6 address is tentative at first
		if after := snapshot(); after != before {
			return fmt.Errorf("the host is\n%s\nand was\n%s", after, before)
		}
		return nil
	})
	for _, path := range []string{"/var/lib/muslin/rescue.json", "/var/lib/muslin/.rescue.json.new"} {
		if _, err := os.Stat(o.systemd.root + path); !os.IsNotExist(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// addFlannel installs a flanneld that does nothing, as a service that is always started again, and its subnet file.
func (m *manager) addFlannel(t *testing.T, v *lab.KernelVXLAN) {
	t.Helper()
	sleep := must(os.ReadFile(must(filepath.EvalSymlinks("/bin/sleep"))(t)))(t)
	gateway := v.PodNetwork().Gateway
	for path, content := range map[string]string{
		"/opt/flanneld":                        string(sleep),
		"/etc/systemd/system/flanneld.service": "[Service]\nExecStart=/opt/flanneld infinity\nRestart=always\nRestartSec=100ms\n",
		"/run/flannel/subnet.env":              fmt.Sprintf("FLANNEL_NETWORK=%s\nFLANNEL_SUBNET=%s\nFLANNEL_MTU=%d\nFLANNEL_IPMASQ=false\n", labtest.Network, gateway, v.MTU),
	} {
		if err := os.MkdirAll(filepath.Dir(m.root+path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(m.root+path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.do(t, "systemctl", "daemon-reload")
}

// state is a unit's, as systemctl says it.
func (m *manager) state(t *testing.T, unit string) string {
	t.Helper()
	return strings.TrimSpace(m.do(t, "systemctl", "show", "--value", "--property", "ActiveState", unit))
}
