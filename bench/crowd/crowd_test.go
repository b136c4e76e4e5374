//go:build linux

package crowd

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"muslin/bench/lab"
	"muslin/lease"
)

// startEtcd starts a real etcd and returns a client of it.
func startEtcd(t *testing.T) *clientv3.Client {
	t.Helper()
	lab.RequireTool(t, "etcd")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + l.Addr().String()
	l.Close()
	cmd := exec.Command("etcd", "--name", "test", "--data-dir", t.TempDir(), "--unsafe-no-fsync", "--logger", "zap", "--log-level", "error",
		"--listen-client-urls", url, "--advertise-client-urls", url,
		"--listen-peer-urls", "http://127.0.0.1:0", "--initial-advertise-peer-urls", "http://127.0.0.1:0", "--initial-cluster", "test=http://127.0.0.1:0")
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), lab.Patience(20*time.Second))
	defer cancel()
	if _, err := c.Get(ctx, "a", clientv3.WithSerializable()); err != nil {
		t.Fatalf("etcd does not answer: %v", err)
	}
	return c
}

// leases are those in the store, by key, read with muslin's own eyes.
func leases(t *testing.T, c *clientv3.Client) map[string]lease.Lease {
	t.Helper()
	r, err := c.Get(t.Context(), "/coreos.com/network/subnets/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]lease.Lease)
	for _, kv := range r.Kvs {
		key := strings.TrimPrefix(string(kv.Key), "/coreos.com/network/subnets/")
		l, err := lease.ParseLease(lease.Entry{Key: key, Value: kv.Value, Reserved: kv.Lease == 0})
		if err != nil || l.Reserved || l.Attrs.BackendType != "vxlan" {
			t.Fatalf("%s: %+v, %v", key, l, err)
		}
		if written, err := json.Marshal(l.Attrs); err != nil || string(written) != string(kv.Value) {
			t.Fatalf("%s: muslin would write %s, not %s", key, written, kv.Value)
		}
		found[key] = l
	}
	return found
}

func TestCrowd(t *testing.T) {
	client := startEtcd(t)
	whole, stop := context.WithTimeout(t.Context(), lab.Patience(time.Minute))
	defer stop()
	const n = 300
	c, err := New(Config{Client: client, Nodes: n})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Fill(whole); err != nil {
		t.Fatal(err)
	}
	before := leases(t, client)
	if len(before) != n {
		t.Fatalf("%d leases, want %d", len(before), n)
	}
	public := make(map[netip.Addr]bool)
	for i := range n {
		l, ok := before[lease.Key(c.Subnet(i))]
		if !ok || public[l.Attrs.PublicIP] {
			t.Fatalf("node %d has no lease, or another one's PublicIP: %+v", i, l)
		}
		public[l.Attrs.PublicIP] = true
	}

	ctx, cancel := context.WithTimeout(whole, 2*time.Second)
	defer cancel()
	churned, err := c.Churn(ctx, 200)
	if err != nil || churned.Changes < 200 || churned.Changes > 420 || int64(churned.Changes) != c.Changes() {
		t.Errorf("%v, %v", churned, err)
	}
	after := leases(t, client)
	same := 0
	for key, l := range before {
		if after[key].Attrs.Equal(l.Attrs) {
			same++
		}
	}
	if same == n || len(after) == n {
		t.Errorf("%d of %d leases are as they were, %d are there: want changes, and a few gone", same, n, len(after))
	}
	if err := c.Fill(whole); err != nil || len(leases(t, client)) != n {
		t.Errorf("filled again: %d leases, %v", len(leases(t, client)), err)
	}
	if err := c.Clear(whole); err != nil || len(leases(t, client)) != 0 {
		t.Errorf("cleared: %d leases, %v", len(leases(t, client)), err)
	}
}

func TestNewRefuses(t *testing.T) {
	for want, cfg := range map[string]Config{
		"give the number": {},
		"no room":         {Nodes: 300, PublicIPs: netip.MustParsePrefix("192.0.2.0/24")},
		"beyond the end":  {Nodes: 300, Subnets: netip.MustParsePrefix("255.255.0.0/24")},
		"host bits":       {Nodes: 1, Subnets: netip.MustParsePrefix("10.0.0.1/24")},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", cfg, err, want)
		}
	}
}
