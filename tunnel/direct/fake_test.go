package direct

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"muslin/tunnel/fib"
	"muslin/tunnel/way"
)

// fakeKernel is a routing table in memory. What is not in hops is reached on eth0 without a gateway.
type fakeKernel struct {
	mu      sync.Mutex
	iface   int
	hops    map[netip.Addr]way.Hop
	routes  []Route
	foreign map[netip.Prefix]bool // where another program's route is
	deaf    bool                  // no events
	fail    error                 // of every question

	changed                       func(Change)
	asked, listed, added, removed int
}

func newFakeKernel() *fakeKernel {
	return &fakeKernel{iface: 2, hops: make(map[netip.Addr]way.Hop), foreign: make(map[netip.Prefix]bool)}
}

func (k *fakeKernel) Iface() (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.iface, k.fail
}

func (k *fakeKernel) Hops(to []netip.Addr) ([]way.Hop, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked += len(to)
	hops := make([]way.Hop, len(to))
	for i, addr := range to {
		hops[i] = way.Hop{Iface: "eth0"}
		if h, ok := k.hops[addr]; ok {
			hops[i] = h
		}
	}
	return hops, k.fail
}

func (k *fakeKernel) Routes() ([]Route, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.listed++
	return slices.Clone(k.routes), k.fail
}

func (k *fakeKernel) Add(r Route) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.foreign[r.Subnet] || slices.ContainsFunc(k.routes, func(o Route) bool { return o.Subnet == r.Subnet }) {
		return errors.New("another program's route is there")
	}
	if r.Iface != k.iface || !r.Via.IsValid() {
		return fmt.Errorf("bad route %+v", r)
	}
	k.added++
	k.routes = append(k.routes, r)
	return nil
}

func (k *fakeKernel) Remove(r Route) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.removed++
	k.routes = slices.DeleteFunc(k.routes, func(o Route) bool { return o == r })
	return nil
}

func (k *fakeKernel) Watch(changed func(Change)) (func(), error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.deaf {
		return nil, errors.New("no events here")
	}
	k.changed = changed
	return func() {}, nil
}

// change changes something, of which the kernel tells.
func (k *fakeKernel) change(c Change, f func()) {
	k.mu.Lock()
	f()
	tell := k.changed
	k.mu.Unlock()
	if tell != nil {
		tell(c)
	}
}

// table is "subnet via PublicIP" of each route, sorted.
func (k *fakeKernel) table() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []string
	for _, r := range k.routes {
		all = append(all, fmt.Sprintf("%s via %s", r.Subnet, r.Via))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// counts are the questions and changes since the last call.
func (k *fakeKernel) counts() (asked, listed, added, removed int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	defer func() { k.asked, k.listed, k.added, k.removed = 0, 0, 0, 0 }()
	return k.asked, k.listed, k.added, k.removed
}

// scene is a Router that runs on a fakeKernel in a bubble of its own time.
type scene struct {
	*testing.T
	kernel *fakeKernel
	router *Router
	log    text
	peers  map[string]*fib.Peer
}

// text is what was logged.
type text struct {
	mu sync.Mutex
	b  strings.Builder
}

func (x *text) Write(b []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.b.Write(b)
}

func (x *text) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.b.String()
}

// resync is longer than what a test waits for, unless it waits for it.
const resync = time.Minute

func inBubble(t *testing.T, prepare func(*fakeKernel), test func(s *scene)) {
	t.Helper()
	inBubbleWith(t, Config{Routing: true}, prepare, test)
}

func inBubbleWith(t *testing.T, cfg Config, prepare func(*fakeKernel), test func(s *scene)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &scene{T: t, kernel: newFakeKernel(), peers: make(map[string]*fib.Peer)}
		if prepare != nil {
			prepare(s.kernel)
		}
		if !cfg.Subnet.IsValid() {
			cfg.Subnet = netip.MustParsePrefix("10.244.1.0/24")
		}
		cfg.Kernel, cfg.Iface, cfg.Resync = s.kernel, "eth0", resync
		cfg.Logger = slog.New(slog.NewTextHandler(&s.log, nil))
		s.router = New(cfg)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.router.Run(ctx) }()
		synctest.Wait()
		test(s)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
}

// set makes the peers those that the pairs of subnet and PublicIP say, and returns when the router has seen them.
// Unchanged pairs stay the same peers, as in a table of package lease.
func (s *scene) set(pairs ...string) {
	var peers []*fib.Peer
	for i := 0; i < len(pairs); i += 2 {
		key := pairs[i] + " " + pairs[i+1]
		if s.peers[key] == nil {
			s.peers[key] = &fib.Peer{Subnet: netip.MustParsePrefix(pairs[i]), PublicIP: netip.MustParseAddr(pairs[i+1]), Backend: "vxlan"}
		}
		peers = append(peers, s.peers[key])
	}
	s.router.SetTable(fib.New(peers))
	synctest.Wait()
}

func (s *scene) want(table string) {
	s.Helper()
	if got := s.kernel.table(); got != table {
		s.Errorf("routes %q, want %q", got, table)
	}
}

func (s *scene) wantRule(subnet, publicIP string, rule way.Rule) {
	s.Helper()
	got := s.router.Choice(s.peers[subnet+" "+publicIP])
	if got.Rule != rule || (got.Way == way.Direct) != (rule == way.RuleOnLink) {
		s.Errorf("%s: %+v, want %s", subnet, got, rule)
	}
}

// after waits for a time and then until the router is idle.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
