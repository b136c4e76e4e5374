//go:build linux

package systemd

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// overlay is two nodes, the first of them under systemd, and a pod on each.
type overlay struct {
	systemd  *manager
	other    *lab.Muslin
	from, to *lab.Pod // on the first node, on the second
}

func newOverlay(t *testing.T) *overlay {
	t.Helper()
	l := labtest.NewLab(t, 2)
	o := &overlay{other: labtest.StartMuslin(t, l.Host(2), "--embedded-etcd", "--network", labtest.Network)}
	o.systemd = startSystemd(t, l.Host(1), "MUSLIN_IFACE=eth0", "MUSLIN_METRICS=9469", "MUSLIN_ETCD_ENDPOINTS="+labtest.Endpoint(l.Host(2)))
	if out, err := o.systemd.run(t.Context(), "timeout", "20", "systemctl", "start", "muslin"); err != nil {
		status, _ := o.systemd.run(t.Context(), "systemctl", "status", "--no-pager", "--full", "muslin")
		t.Fatalf("systemctl start: %v\n%s\n%s", err, out, status)
	}
	labtest.WaitPeers(t, o.systemd.m, 1)
	labtest.WaitPeers(t, o.other, 1)
	o.from, o.to = labtest.AddPod(t, o.systemd.m, "a"), labtest.AddPod(t, o.other, "a")
	return o
}

// expectPing wants the pods to reach each other.
func expectPing(t *testing.T, o *overlay) {
	t.Helper()
	if r, err := o.from.Ping(t.Context(), o.to.Addr, lab.PingOptions{Count: 3}); err != nil || r.Received != 3 {
		t.Errorf("ping: %+v, %v", r, err)
	}
}

// The daemon as the unit starts it carries packets, has nothing but CAP_NET_ADMIN, and leaves nothing when it is
// stopped.
//
//	p1a ── h1 (systemd, muslin) ── br0 ── h2 (muslin) ── p2a
func TestService(t *testing.T) {
	t.Parallel()
	o := newOverlay(t)
	h := o.systemd.host
	expectPing(t, o)
	p := labtest.Status(t, o.systemd.m).Privileges
	if p.UID == 0 || !p.NoNewPrivs || len(p.Capabilities) != 1 || p.Capabilities[0].Name != "CAP_NET_ADMIN" {
		t.Errorf("privileges %+v, want CAP_NET_ADMIN alone, of a user that is not root", p)
	}
	labtest.ExpectWords(t, must(h.Run(t.Context(), "iptables", "-S"))(t), "MUSLIN-FWD")
	for path, want := range map[string]string{"ipv4/ip_forward": "1", "ipv4/conf/muslin0/accept_local": "1", "ipv6/conf/muslin0/disable_ipv6": "1"} {
		if got := must(h.ReadSysctl("net/" + path))(t); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
	o.systemd.do(t, "systemctl", "stop", "muslin")
	if got := o.systemd.show(t, "Result"); got != "success" {
		t.Errorf("stopped with result %s", got)
	}
	if out := must(h.Run(t.Context(), "iptables", "-S"))(t); strings.Contains(out, "MUSLIN") {
		t.Errorf("rules after the stop:\n%s", out)
	}
	if out := must(h.Run(t.Context(), "ip", "link"))(t); strings.Contains(out, "muslin0") {
		t.Errorf("links after the stop:\n%s", out)
	}
	if got := must(h.ReadSysctl("net/ipv4/ip_forward"))(t); got != "0" {
		t.Errorf("ip_forward after the stop is %s", got)
	}
}

// A daemon that cannot start says why, is not started again and again in a hurry, and starts once it can.
//
//	h1 (systemd, muslin)
func TestRefusedStart(t *testing.T) {
	t.Parallel()
	m := startSystemd(t, labtest.NewLab(t, 1).Host(1), "MUSLIN_IFACE=eth7", "MUSLIN_EMBEDDED_ETCD=true", "MUSLIN_NETWORK="+labtest.Network)
	m.do(t, "systemctl", "start", "--no-block", "muslin")
	labtest.Eventually(t, 10*time.Second, func() error {
		if text := m.show(t, "StatusText"); !strings.Contains(text, "eth7") {
			return fmt.Errorf("status %q, want the reason", text)
		}
		return nil
	})
	if n := m.show(t, "NRestarts"); n != "0" {
		t.Errorf("started again %s times within the pause", n)
	}
	settings := strings.ReplaceAll(m.do(t, "cat", "/etc/muslin.env"), "eth7", "eth0")
	if err := os.WriteFile(m.root+"/etc/muslin.env", []byte(settings), 0o644); err != nil {
		t.Fatal(err)
	}
	labtest.Eventually(t, 20*time.Second, func() error {
		if state := m.show(t, "ActiveState"); state != "active" {
			return fmt.Errorf("%s; it said:\n%s", state, m.log())
		}
		return nil
	})
	if n := m.show(t, "NRestarts"); n != "1" {
		t.Errorf("started again %s times, want once", n)
	}
}
