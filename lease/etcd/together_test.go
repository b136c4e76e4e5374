package etcd_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"muslin/encap"
	"muslin/lease"
	"muslin/lease/etcd"
	"muslin/tunnel/fib"
)

func attrs(t *testing.T, n int) lease.Attrs {
	t.Helper()
	v, err := encap.NewVNI(1)
	if err != nil {
		t.Fatal(err)
	}
	return lease.Attrs{PublicIP: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), BackendType: lease.BackendVXLAN, VNI: v, MAC: encap.LocalMAC([6]byte{0, 0, 0, 0, 0, byte(n)})}
}

func keeper(t *testing.T, s lease.Store, config string, n int) *lease.Keeper {
	t.Helper()
	c, err := lease.ParseConfig([]byte(config))
	if err != nil {
		t.Fatal(err)
	}
	k, err := lease.NewKeeper(lease.KeeperConfig{Store: s, Network: c, Attrs: attrs(t, n), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Twenty nodes for twenty subnets, so that every lost race must end well; and two hundred for a few more.
func TestNodesRaceForSubnets(t *testing.T) {
	for _, c := range []struct{ nodes, subnets int }{{20, 20}, {200, 220}} {
		t.Run(fmt.Sprintf("%d for %d", c.nodes, c.subnets), func(t *testing.T) { testRace(t, c.nodes, c.subnets) })
	}
}

func testRace(t *testing.T, nodes, subnets int) {
	server := startReal(t, "http")
	config := fmt.Sprintf(`{"Network":"10.244.0.0/16","SubnetMin":"10.244.1.0","SubnetMax":"10.244.%d.0","Backend":{"Type":"vxlan"}}`, subnets)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	start := make(chan struct{})
	got := make([]netip.Prefix, nodes)
	for i := range got {
		k := keeper(t, dial(t, etcd.Config{Endpoints: []string{server.url}}), config, i+1)
		g.Go(func() error {
			<-start
			l, err := k.Acquire(ctx)
			got[i] = l.Subnet
			return err
		})
	}
	close(start)
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	s := dial(t, etcd.Config{Endpoints: []string{server.url}})
	entries, _, err := s.List(t.Context())
	if err != nil || len(entries) != nodes {
		t.Fatalf("%d leases in etcd (%v), want %d", len(entries), err, nodes)
	}
	cfg, err := lease.ParseConfig([]byte(config))
	if err != nil {
		t.Fatal(err)
	}
	holders := make(map[netip.Prefix]lease.Attrs)
	for _, e := range entries {
		l, err := lease.ParseLease(e)
		if err != nil || !cfg.Fits(l.Subnet) {
			t.Errorf("lease %s: %v", e.Key, err)
		}
		holders[l.Subnet] = l.Attrs
	}
	for i, subnet := range got {
		if !holders[subnet].Equal(attrs(t, i+1)) {
			t.Errorf("node %d thinks that it has %s, which is held by %s", i+1, subnet, holders[subnet])
		}
	}
	// A lost race leaves no grant behind.
	raw := rawClient(t, server.url)
	if r, err := raw.Leases(t.Context()); err != nil || len(r.Leases) != nodes {
		t.Errorf("etcd has %d leases (%v), want %d", len(r.Leases), err, nodes)
	}
	if l, err := keeper(t, s, config, 7).Acquire(t.Context()); err != nil || l.Subnet != got[6] {
		t.Errorf("node 7 after a restart: %s, %v; want %s", l.Subnet, err, got[6])
	}
	for n := nodes + 1; n <= subnets; n++ {
		if _, err := keeper(t, s, config, n).Acquire(t.Context()); err != nil {
			t.Errorf("node %d: %v", n, err)
		}
	}
	_, err = keeper(t, s, config, subnets+1).Acquire(t.Context())
	if !errors.Is(err, lease.ErrExhausted) {
		t.Fatalf("node %d: %v", subnets+1, err)
	}
	for _, want := range []string{fmt.Sprintf("has %d of them", subnets), "10.244.1.0/24 by 192.0.2.", fmt.Sprintf("and %d more", subnets-10), "leases release"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}

// The same where each lease has a subnet of both families, which one key names together: no two nodes share either.
func TestNodesRaceForSubnetsOfBothFamilies(t *testing.T) {
	const nodes = 20
	server := startReal(t, "http")
	cfg, err := lease.ParseConfig([]byte(`{"Network":"10.244.0.0/16","SubnetMax":"10.244.20.0","EnableIPv6":true,"IPv6Network":"2001:db8:42::/56","IPv6SubnetMax":"2001:db8:42:14::","Backend":{"Type":"vxlan"}}`))
	if err != nil {
		t.Fatal(err)
	}
	both := func(n int) lease.Attrs {
		a := attrs(t, n)
		a.PublicIPv6 = netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", n))
		a.VNI6, a.MAC6 = a.VNI, encap.LocalMAC([6]byte{0, 0, 0, 0, 6, byte(n)})
		return a
	}
	keeperOf := func(s lease.Store, n int) *lease.Keeper {
		k, err := lease.NewKeeper(lease.KeeperConfig{Store: s, Network: cfg, Attrs: both(n), Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	start := make(chan struct{})
	got := make([]lease.Lease, nodes)
	for i := range got {
		k := keeperOf(dial(t, etcd.Config{Endpoints: []string{server.url}}), i+1)
		g.Go(func() error {
			<-start
			var err error
			got[i], err = k.Acquire(ctx)
			return err
		})
	}
	close(start)
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	s := dial(t, etcd.Config{Endpoints: []string{server.url}})
	entries, _, err := s.List(t.Context())
	if err != nil || len(entries) != nodes {
		t.Fatalf("%d leases in etcd (%v), want %d", len(entries), err, nodes)
	}
	held := make(map[netip.Prefix]bool)
	there := make(map[string]lease.Attrs)
	for _, e := range entries {
		l, err := lease.ParseLease(e)
		if err != nil || !cfg.FitsLease(l.Subnet, l.Subnet6) || held[l.Subnet] || held[l.Subnet6] {
			t.Errorf("lease %s: %v", e.Key, err)
		}
		held[l.Subnet], held[l.Subnet6] = true, true
		there[e.Key] = l.Attrs
	}
	for i, l := range got {
		if !there[l.Key].Equal(both(i + 1)) {
			t.Errorf("node %d thinks that it has %s, which is held by %s", i+1, l.Key, there[l.Key])
		}
	}
	raw := rawClient(t, server.url)
	r, err := raw.Leases(t.Context())
	if err != nil || len(r.Leases) != nodes {
		t.Errorf("etcd has %d leases (%v), want %d", len(r.Leases), err, nodes)
	}
	if l, err := keeperOf(s, 7).Acquire(t.Context()); err != nil || l.Key != got[6].Key {
		t.Errorf("node 7 after a restart: %s, %v; want %s", l.Key, err, got[6].Key)
	}
}

// Our own key, and its bytes, as flannel's nodes see them; and no key but that.
func TestWhatIsWritten(t *testing.T) {
	server := startReal(t, "http")
	k := keeper(t, dial(t, etcd.Config{Endpoints: []string{server.url}}), network, 1)
	l, err := k.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	raw := rawClient(t, server.url)
	r, err := raw.Get(t.Context(), "\x00", clientAll()...)
	if err != nil || len(r.Kvs) != 1 {
		t.Fatalf("keys: %v, %v", r, err)
	}
	kv := r.Kvs[0]
	want := `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}`
	if string(kv.Key) != "/coreos.com/network/subnets/"+l.Key || string(kv.Value) != want || kv.Lease == 0 {
		t.Errorf("%s = %s, lease %d", kv.Key, kv.Value, kv.Lease)
	}
}

// peers collects the newest table.
type peers struct {
	mu   sync.Mutex
	text string
}

func (p *peers) set(t *fib.Table) {
	var out []string
	for _, peer := range t.Peers() {
		out = append(out, peer.PublicIP.String())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text = strings.Join(out, " ")
}

func (p *peers) get() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text
}

// The server is killed and comes back, with its data and then without.
func TestServerGoesAndComesBack(t *testing.T) {
	t.Parallel()
	server := startReal(t, "http")
	var log logged
	// As with flannel's default endpoints, nobody listens at the first.
	s := dial(t, etcd.Config{Endpoints: []string{"http://" + freePort(t), server.url}, Timeout: 2 * time.Second, Logger: log.logger()})
	k := keeper(t, s, network, 1)
	own, err := k.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	put := func(n int, subnet string) {
		t.Helper()
		value, err := json.Marshal(attrs(t, n))
		if err != nil {
			t.Fatal(err)
		}
		other := dial(t, etcd.Config{Endpoints: []string{server.url}})
		eventually(t, "put "+subnet, func() bool {
			_, err := other.PutLease(t.Context(), subnet, value, lease.TTL, lease.Any)
			return err == nil
		})
	}
	put(2, "10.244.99.0-24")
	var got peers
	w := lease.NewWatcher(lease.WatcherConfig{
		Store: s, OnTable: got.set, Logger: log.logger(),
		Node: lease.Node{Subnet: own.Subnet, PublicIP: own.Attrs.PublicIP, Backend: lease.BackendVXLAN, VNI: own.Attrs.VNI},
	})
	ctx, cancel := context.WithCancel(t.Context())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.Run(ctx) })
	g.Go(func() error { return k.Run(ctx) })
	eventually(t, "the peer is seen", func() bool { return got.get() == "192.0.2.2" && w.Status().Healthy })

	for _, wiped := range []bool{false, true} {
		server.stop()
		eventually(t, "the outage is noticed", func() bool { return !w.Status().Healthy })
		t.Log(w.Status().LastError)
		if got.get() != "192.0.2.2" {
			t.Errorf("peers during the outage: %q", got.get())
		}
		if wiped {
			if err := os.RemoveAll(server.dir + "/member"); err != nil {
				t.Fatal(err)
			}
		}
		server.start()
		eventually(t, "the watch stands again", func() bool { return w.Status().Healthy })
		put(3, "10.244.98.0-24")
		// A store that was wiped has lost our lease together with the peer's, which outlives it.
		const want = "192.0.2.3 192.0.2.2"
		eventually(t, fmt.Sprintf("peers %q", want), func() bool { return got.get() == want })
		raw := rawClient(t, server.url)
		eventually(t, "our own lease is there", func() bool {
			r, err := raw.Get(t.Context(), "/coreos.com/network/subnets/"+own.Key)
			return err == nil && len(r.Kvs) == 1
		})
		if !wiped {
			// One peer less, so that the second round starts as the first did.
			if err := s.DeleteLease(t.Context(), "10.244.98.0-24", lease.Any); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the peer is gone", func() bool { return got.get() == "192.0.2.2" })
		}
	}
	cancel()
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if n := strings.Count(log.String(), "store trouble"); n < 2 || n > 4 {
		t.Errorf("%d lines about two outages:\n%s", n, log.String())
	}
}

// The server compacts while nobody watches.
func TestCompactionIsListedAgain(t *testing.T) {
	t.Parallel()
	server := startReal(t, "http")
	raw := rawClient(t, server.url)
	s := dial(t, etcd.Config{Endpoints: []string{server.url}})
	var got peers
	w := lease.NewWatcher(lease.WatcherConfig{
		Store: &compactor{Store: s, compact: func(revision int64) {
			for range 3 {
				if _, err := raw.Put(t.Context(), "/coreos.com/network/subnets/10.244.5.0-24", `{"PublicIP":"192.0.2.5","PublicIPv6":null}`); err != nil {
					t.Error(err)
				}
			}
			if _, err := raw.Compact(t.Context(), revision+3); err != nil {
				t.Error(err)
			}
		}},
		OnTable: got.set, Logger: slog.New(slog.DiscardHandler),
		Node: lease.Node{PublicIP: netip.MustParseAddr("192.0.2.1"), Backend: lease.BackendUDP},
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	eventually(t, "the peer is seen after the compaction", func() bool { return got.get() == "192.0.2.5" })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// compactor lets history pass and vanish between the first list and its watch.
type compactor struct {
	lease.Store
	once    sync.Once
	compact func(revision int64)
}

func (c *compactor) Watch(ctx context.Context, from int64, changed func([]lease.Event, int64)) error {
	c.once.Do(func() { c.compact(from - 1) })
	return c.Store.Watch(ctx, from, changed)
}
