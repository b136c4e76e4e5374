//go:build linux

package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// Twenty daemons at once, and one too many, on a real etcd server; the network has twenty subnets:
//
//	h1 (etcd, muslin) ─┬─ br0 ─┬─ h2 (muslin) … h20 (muslin)
//	                   └───────┴─ h21 (muslin: refused)
func TestTwentyAtOnce(t *testing.T) {
	t.Parallel()
	const n = 20
	l := newLab(t, n+1)
	store := startEtcd(t, l.Host(1))
	store.Config(t, `{"Network":"10.244.0.0/16","SubnetMin":"10.244.1.0","SubnetMax":"10.244.20.0","Backend":{"Type":"vxlan"}}`)
	flags := []string{"--etcd-endpoints", endpoint(l.Host(1))}
	var daemons []*lab.Muslin
	for _, h := range l.Hosts()[:n] {
		daemons = append(daemons, launchMuslin(t, h, flags...))
	}
	holders := make(map[string]string)
	for _, m := range daemons {
		if err := m.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		subnet := status(t, m).Node.Subnet.String()
		if other := holders[subnet]; other != "" {
			t.Errorf("%s and %s both have %s", other, m.Name, subnet)
		}
		holders[subnet] = m.Name
	}
	if keys := store.Subnets(t); len(keys) != n || len(holders) != n {
		t.Errorf("%d leases in etcd for %d subnets: %v", len(keys), len(holders), keys)
	}
	waitPeers(t, daemons[0], n-1)

	tooMany := launchMuslin(t, l.Host(n+1), flags...)
	expectWords(t, expectExit(t, tooMany.Proc, 1), "20 of them", "10.244.0.0/16", "198.18.0.", "and 10 more", "leases release")
	if keys := store.Subnets(t); len(keys) != n {
		t.Errorf("the refused daemon left %d leases: %v", len(keys), keys)
	}
}

// A node is the same node after a restart, even without its subnet file:
//
//	h1 (etcd, muslin) ── br0
func TestSubnetAndMACOverRestart(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	store := startEtcd(t, l.Host(1))
	store.Config(t, vxlanConfig)
	m := startMuslin(t, l.Host(1))
	before := status(t, m).Node
	value := store.Get(t, leaseKey(before.Subnet))
	want := fmt.Sprintf(`{"PublicIP":"198.18.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":%q}}`, before.VtepMAC)
	if value != want {
		t.Errorf("lease in etcd %s, want flannel's form %s", value, want)
	}
	for range 2 {
		if err := m.Stop(); err != nil {
			t.Fatal(err)
		}
		if got := store.Get(t, leaseKey(before.Subnet)); got != want {
			t.Errorf("lease of a stopped node %q, want %s", got, want)
		}
		if err := os.Remove(m.SubnetFile); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		m = startMuslin(t, l.Host(1))
		if after := status(t, m).Node; after.Subnet != before.Subnet || after.VtepMAC != before.VtepMAC {
			t.Errorf("after a restart %v %s, want %v %s", after.Subnet, after.VtepMAC, before.Subnet, before.VtepMAC)
		}
	}
	if keys := store.Subnets(t); len(keys) != 1 {
		t.Errorf("leases %v, want one", keys)
	}
	content := must(os.ReadFile(m.SubnetFile))(t)
	gateway := strings.Replace(before.Subnet.String(), ".0/", ".1/", 1)
	wantFile := "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=" + gateway + "\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
	if string(content) != wantFile {
		t.Errorf("subnet file:\n%swant:\n%s", content, wantFile)
	}
	info := must(os.Stat(m.SubnetFile))(t)
	if info.Mode() != 0o644 {
		t.Errorf("subnet file has mode %v, want 0644", info.Mode())
	}
}

// The config, and before it etcd itself, appear after the daemon:
//
//	h1 (muslin, later etcd) ── br0
func TestConfigAppearsLate(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	m := launchMuslin(t, l.Host(1))
	if err := m.WaitOutput(t.Context(), "waiting for etcd"); err != nil {
		t.Fatal(err)
	}
	expectWords(t, m.Output(), "--etcd-endpoints", "--embedded-etcd")
	store := startEtcd(t, l.Host(1))
	if err := m.WaitOutput(t.Context(), "config set"); err != nil { // what to do about it
		t.Fatal(err)
	}
	if _, err := os.Stat(m.SubnetFile); !os.IsNotExist(err) {
		t.Errorf("subnet file before there is a config: %v", err)
	}
	if keys := store.Subnets(t); len(keys) != 0 {
		t.Errorf("leases before there is a config: %v", keys)
	}
	store.Config(t, vxlanConfig)
	if err := m.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Stop(); err != nil {
		t.Error(err)
	}
}

// A node comes and goes while two others talk:
//
//	p1a ── h1 (etcd, muslin) ── br0 ── h2 (muslin) ── p2a     probes flow all the time
//	                             └──── h3 (muslin) ── p3a     comes, and goes
func TestNodeComesAndGoes(t *testing.T) {
	t.Parallel()
	l := newLab(t, 3)
	store := startEtcd(t, l.Host(1))
	store.Config(t, vxlanConfig)
	flags := []string{"--etcd-endpoints", endpoint(l.Host(1))}
	m1, m2 := startMuslin(t, l.Host(1), flags...), startMuslin(t, l.Host(2), flags...)
	a, b := addPod(t, m1, "a"), addPod(t, m2, "a")
	waitPeers(t, m1, 1)
	waitPeers(t, m2, 1)
	expectPing(t, a.Node, b.Addr, 2)

	there, back := startProbe(t, a, b), startProbe(t, b, a)
	there.waitReceived(t, 50)
	m3 := startMuslin(t, l.Host(3), flags...)
	c := addPod(t, m3, "a")
	waitPeers(t, m1, 2)
	waitPeers(t, m2, 2)
	waitPeers(t, m3, 2)
	expectPing(t, c.Node, a.Addr, 3)
	expectPing(t, b.Node, c.Addr, 3)
	subnet := status(t, m3).Node.Subnet
	if err := m3.Stop(); err != nil {
		t.Error(err)
	}
	store.Do(t, "del", prefix+leaseKey(subnet)) // as its expiry would after a day
	waitPeers(t, m1, 1)
	waitPeers(t, m2, 1)
	there.waitReceived(t, 50)
	back.waitReceived(t, 50)
	there.expectNoLoss(t)
	back.expectNoLoss(t)
	expectNoAnswer(t, a.Node, c.Addr) // it went
}

// etcd dies and comes back while two nodes talk:
//
//	h1 (etcd) ── br0 ─┬─ h2 (muslin) ── p2a    probes flow all the time
//	                  ├─ h3 (muslin) ── p3a
//	                  └─ h4 (muslin, started after the outage)
func TestEtcdOutage(t *testing.T) {
	t.Parallel()
	l := newLab(t, 4)
	store := startEtcd(t, l.Host(1))
	store.Config(t, vxlanConfig)
	flags := []string{"--etcd-endpoints", endpoint(l.Host(1))}
	m2, m3 := startMuslin(t, l.Host(2), flags...), startMuslin(t, l.Host(3), flags...)
	a, b := addPod(t, m2, "a"), addPod(t, m3, "a")
	waitPeers(t, m2, 1)
	waitPeers(t, m3, 1)
	there, back := startProbe(t, a, b), startProbe(t, b, a)
	there.waitReceived(t, 50)

	store.Proc.Kill()
	waitHealthy(t, m2, false)
	waitHealthy(t, m3, false)
	there.waitReceived(t, 100)
	if n := len(status(t, m2).Peers); n != 1 {
		t.Errorf("%d peers during the outage, want the last known one", n)
	}
	store.Start(t)
	waitHealthy(t, m2, true)
	waitHealthy(t, m3, true)
	m4 := startMuslin(t, l.Host(4), flags...) // the watch must see it
	waitPeers(t, m2, 2)
	waitPeers(t, m4, 2)
	there.waitReceived(t, 50)
	back.waitReceived(t, 50)
	there.expectNoLoss(t)
	back.expectNoLoss(t)
}

// Keys and values that are no leases, before the daemon and while it runs:
//
//	p1a ── h1 (etcd, muslin) ── br0 ── h2 (muslin) ── p2a
func TestGarbageInTheStore(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	leaveIll(l, "leases of nodes that are not there lie in the store")
	store := startEtcd(t, l.Host(1))
	store.Config(t, vxlanConfig)
	garbage := map[string]string{
		"/subnets/hello":              "foreign",
		"/subnets/10.244.77.0-24":     "not JSON",
		"/subnets/10.244.78.0-24":     `{"PublicIP":null,"PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:01"}}`,
		"/subnets/10.244.79.0-24":     `{"PublicIP":"198.18.0.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":33554432,"VtepMAC":"aa:bb:cc:dd:ee:02"}}`,
		"/subnets/10.244.80.0-24":     `{"PublicIP":"198.18.0.98","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"nonsense"}}`,
		"/subnets/10.244.81.0-24":     `{"PublicIP":"198.18.0.97","PublicIPv6":null,"BackendType":"host-gw"}`,
		"/subnets/10.244.82.0-24/sub": "foreign as well",
	}
	half := 0
	for key, value := range garbage {
		if half++; half <= len(garbage)/2 {
			store.Do(t, "put", prefix+key, value)
		}
	}
	flags := []string{"--etcd-endpoints", endpoint(l.Host(1))}
	m1, m2 := startMuslin(t, l.Host(1), flags...), startMuslin(t, l.Host(2), flags...)
	a, b := addPod(t, m1, "a"), addPod(t, m2, "a")
	waitPeers(t, m1, 1)
	for key, value := range garbage {
		store.Do(t, "put", prefix+key, value)
	}
	waitPeers(t, m1, 1)
	waitPeers(t, m2, 1)
	expectPing(t, a.Node, b.Addr, 3)
	for key, value := range garbage {
		if got := store.Get(t, key); got != value {
			t.Errorf("%s was changed to %q", key, got)
		}
	}
	keys := store.Subnets(t)
	for _, m := range []*lab.Muslin{m1, m2} {
		key := prefix + leaseKey(status(t, m).Node.Subnet)
		if !slices.Contains(keys, key) {
			t.Errorf("lease %s is missing in %v", key, keys)
		}
	}
	if len(keys) != len(garbage)+2 {
		t.Errorf("%d keys under the leases, want the garbage and two leases: %v", len(keys), keys)
	}
}

// Two hosts with no etcd at all:
//
//	p1a ── h1 (muslin) ── br0 ── h2 (muslin) ── p2a
func TestPeersFile(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ backend, first, second string }{
		{"vxlan", `"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:01"}`, `"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:02"}`},
		{"udp", "", ""},
	} {
		t.Run(c.backend, func(t *testing.T) {
			l := newLab(t, 2)
			comma := ","
			if c.first == "" {
				comma = ""
			}
			peers := fmt.Sprintf(`{
  "10.244.11.0-24": {"PublicIP":"198.18.0.1","PublicIPv6":null%s%s},
  "10.244.12.0-24": {"PublicIP":"198.18.0.2","PublicIPv6":null%s%s}
}`, comma, c.first, comma, c.second)
			var pods []*lab.Pod
			for _, h := range l.Hosts() {
				path := h.Dir + "/peers.json"
				if err := os.WriteFile(path, []byte(peers), 0o644); err != nil {
					t.Fatal(err)
				}
				m := startMuslin(t, h, "--peers-file", path, "--network", network, "--backend", c.backend)
				pods = append(pods, addPod(t, m, "a"))
				if want := fmt.Sprintf("10.244.1%d.0/24", h.Number); status(t, m).Node.Subnet.String() != want {
					t.Errorf("subnet %v, want %s", status(t, m).Node.Subnet, want)
				}
				waitPeers(t, m, 1)
			}
			expectPing(t, pods[0].Node, pods[1].Addr, 3)
			expectPing(t, pods[1].Node, pods[0].Addr, 3)
		})
	}
}

// Ending in good order and in bad:
//
//	h1 (etcd, muslin) ── br0
func TestStop(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	h := l.Host(1)
	store := startEtcd(t, h)
	store.Config(t, vxlanConfig)
	before := snapshot(t, h.Node)
	flags := []string{"--ip-masq", "--ip-blackhole-route"} // all that it can change
	var subnet fmt.Stringer
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		m := startMuslin(t, h, flags...)
		if snapshot(t, h.Node) == before {
			t.Fatal("the snapshot does not see a running daemon")
		}
		subnet = status(t, m).Node.Subnet
		// Which asks a daemon with one network for nothing that it could do.
		if err := m.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if err := m.WaitOutput(t.Context(), "nothing to read again without --config"); err != nil {
			t.Fatal(err)
		}
		if err := m.Signal(sig); err != nil {
			t.Fatal(err)
		}
		expectExit(t, m.Proc, 0)
		expectAsBefore(t, h.Node, before)
		if store.Get(t, leaseKey(subnet)) == "" {
			t.Errorf("no lease after %v", sig)
		}
		if _, err := os.Stat(m.Control); !os.IsNotExist(err) {
			t.Errorf("control socket after %v: %v", sig, err)
		}
	}

	m := startMuslin(t, h, flags...)
	if out, err := h.Run(t.Context(), labtest.Bin, "cleanup", "--control", m.Control, "--state-dir", m.StateDir); err == nil {
		t.Errorf("cleanup beside a running daemon: %s", out)
	}
	m.Kill()
	if snapshot(t, h.Node) == before {
		t.Error("a killed daemon left nothing: the rest of this test shows nothing")
	}
	for range 2 {
		out, err := h.Run(t.Context(), labtest.Bin, "cleanup", "--control", m.Control, "--state-dir", m.StateDir)
		if err != nil {
			t.Error(err)
		}
		t.Logf("cleanup: %s", out)
		expectAsBefore(t, h.Node, before)
	}
	// Killed again, and started without a cleanup in between.
	m = startMuslin(t, h, flags...)
	m.Kill()
	m = startMuslin(t, h, flags...)
	if got := status(t, m).Node.Subnet; got.String() != subnet.String() {
		t.Errorf("subnet %v after kills, want %v", got, subnet)
	}
	if err := m.Stop(); err != nil {
		t.Error(err)
	}
	expectAsBefore(t, h.Node, before)
}
