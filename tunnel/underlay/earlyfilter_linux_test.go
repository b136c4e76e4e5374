package underlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"muslin/tunnel"
	"muslin/tunnel/fib"
	"muslin/tunnel/kernel"
	"muslin/tunnel/waiter"
)

// loopbackHost is an address of 127.0.0.0/8, all of which the loopback interface has.
func loopbackHost(n uint32) netip.Addr { return address(127<<24 | n) }

// boundSocket is a socket bound to an address.
func boundSocket(t testing.TB, from netip.Addr) int {
	t.Helper()
	domain := unix.AF_INET
	if from.Is6() {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(from, 0))); err != nil {
		t.Fatal(err)
	}
	return fd
}

// passes sends from each address and returns those whose datagrams came through. The last must be one that
// does: what comes after all others ends the wait.
func passes(t testing.TB, c *Conn, last netip.Addr, from ...netip.Addr) (through []netip.Addr) {
	t.Helper()
	to := boundTo(t, c.queues[0].listener)
	for _, a := range append(slices.Clone(from), last) {
		fd := boundSocket(t, a)
		sendPlain(t, fd, to, []byte("datagram"))
	}
	watchdog := time.AfterFunc(20*time.Second, func() { c.Close() })
	defer watchdog.Stop()
	buf := make([]byte, 100)
	for {
		ds := []tunnel.Datagram{{Buf: buf}}
		if _, err := c.queues[0].Receive(ds); err != nil {
			t.Fatalf("nothing came from %v: %v", last, err)
		}
		if ds[0].Addr.Addr() == last {
			return through
		}
		through = append(through, ds[0].Addr.Addr())
	}
}

// The kernel lets in what comes from the peers, and counts the rest, as the check in the VTEP would: the same
// datagrams, with the filter and without.
func TestEarlyFilterAgainstCheck(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for round := range 8 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			quietLoopback(t)
			c, open := open(t, "auto", nil), open(t, "-early-filter", nil)
			last := loopbackHost(1)
			peers := []netip.Addr{last}
			for range rng.IntN(300) {
				peers = append(peers, loopbackHost(2+rng.Uint32N(1000)))
			}
			table := tableOf(peers...)
			var from []netip.Addr
			for range 100 {
				from = append(from, loopbackHost(2+rng.Uint32N(1000)))
			}
			c.SetPeers(table, func() {})
			open.SetPeers(table, func() {})
			got := passes(t, c, last, from...)
			want := slices.DeleteFunc(passes(t, open, last, from...), func(a netip.Addr) bool { return !table.KnowsOuter(a) })
			if !slices.Equal(got, want) {
				t.Errorf("through the filter came\n%v, the check lets in\n%v", got, want)
			}
			if refused := c.Losses(); refused != (tunnel.Losses{Refused: uint64(len(from) - len(got))}) {
				t.Errorf("%d of %d came through, and the losses are %+v", len(got), len(from), refused)
			}
			if lost := open.Losses(); lost != (tunnel.Losses{}) {
				t.Errorf("losses without a filter: %+v", lost)
			}
		})
	}
}

// A peer is let in before its table is used, and one that is gone is kept out only after.
func TestEarlyFilterOrder(t *testing.T) {
	c := open(t, "auto", nil)
	a, b, last := loopbackHost(2), loopbackHost(3), loopbackHost(1)
	want := func(when string, want ...netip.Addr) {
		t.Helper()
		if got := passes(t, c, last, a, b); !slices.Equal(got, want) {
			t.Errorf("%s %v come through, want %v", when, got, want)
		}
	}
	want("at first")
	c.SetPeers(tableOf(last, a), func() { want("before the first table is used", a) })
	want("with the first table", a)
	c.SetPeers(tableOf(last, b), func() { want("before the second table is used", a, b) })
	want("with the second table", a, b)
	c.filter.narrow()
	want("made narrow", b)
}

// Until there are peers nobody comes in.
func TestEarlyFilterShutAtFirst(t *testing.T) {
	quietLoopback(t)
	cfg := config(t, "auto", nil)
	c, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	plain, _ := plainSocket(t)
	sendPlain(t, plain, boundTo(t, c.queues[0].listener), []byte("early"))
	if got := c.Losses(); got != (tunnel.Losses{Refused: 1}) {
		t.Errorf("losses %+v, want one refused", got)
	}
}

// More peers than a filter has room for, in address ranges of every kind, and in a kernel whose limit is small:
// the filter is coarser, and no peer is refused.
func TestEarlyFilterOfManyPeers(t *testing.T) {
	for _, kind := range []string{"side by side", "scattered", "every second"} {
		t.Run(kind, func(t *testing.T) {
			c := open(t, "auto", nil)
			rng := rand.New(rand.NewPCG(9, 10))
			addrs := []netip.Addr{loopbackHost(1)}
			for i := range uint32(10000) {
				n := 2 + i
				switch kind {
				case "scattered":
					n = 2 + rng.Uint32N(1<<24-4)
				case "every second":
					n = 2 + 2*i
				}
				addrs = append(addrs, loopbackHost(n))
			}
			c.SetPeers(tableOf(addrs...), func() {})
			f := featureOf(t, c)
			t.Log(f.Reason)
			if !f.On {
				t.Fatalf("%+v", f)
			}
			var from []netip.Addr
			for range 50 {
				from = append(from, addrs[1+rng.IntN(10000)])
			}
			if got := passes(t, c, addrs[0], from...); !slices.Equal(got, from) {
				t.Errorf("of %v\n%v came through", from, got)
			}
		})
	}
}

func featureOf(t testing.TB, c *Conn) kernel.Feature {
	t.Helper()
	all := c.Features()
	i := slices.IndexFunc(all, func(f kernel.Feature) bool { return f.Name == kernel.EarlyFilter })
	if i < 0 {
		t.Fatalf("no %s among %v", kernel.EarlyFilter, all)
	}
	return all[i]
}

// However small a limit the kernel has (net.core.optmem_max), a filter is found that fits, and every peer passes.
func TestEarlyFilterInLittleMemory(t *testing.T) {
	for _, limit := range []int{20480, 2048, 512} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			n := newNamespace(t)
			if out := n.Sh(t, fmt.Sprintf("ip link set lo up; sysctl -qw net.core.optmem_max=%d 2>&1 || echo missing", limit)); strings.Contains(out, "missing") {
				t.Skipf("this kernel has no net.core.optmem_max for each network namespace: %s", out)
			}
			c := n.open(t, "auto", func(cfg *Config) { cfg.Queues, cfg.Port = 2, 8472 })
			var addrs []netip.Addr
			for i := range uint32(3000) {
				addrs = append(addrs, loopbackHost(1+i*i))
			}
			for round := range 3 { // a filter also gets in beside the one that it replaces
				n.Do(t, func() error { befriend(c, addrs[:1000*(round+1)]...); return nil })
				if f := featureOf(t, c); !f.On {
					t.Fatalf("%+v", f)
				}
			}
			t.Logf("%d ranges in %d bytes", len(c.filter.open), limit)
			if limit == 20480 && len(c.filter.open) < 300 {
				t.Errorf("only %d ranges", len(c.filter.open))
			}
			for _, a := range addrs {
				if !c.filter.open.contains(number4(a)) {
					t.Fatalf("%v is refused", a)
				}
			}
		})
	}
}

// A kernel that takes no filter any more is asked to take the old one off, so that no peer is refused.
func TestEarlyFilterGivesUp(t *testing.T) {
	log := &logbook{}
	c := open(t, "auto", func(cfg *Config) { cfg.Logger = slog.New(slog.NewTextHandler(log, nil)) })
	locked := c.queues[0].listener
	c.filter.attachFilter = func(int, []bpf.Instruction) error { return unix.EPERM }
	stranger, last := loopbackHost(9), loopbackHost(1)
	befriend(c, last, loopbackHost(5))
	if f := featureOf(t, c); f.On || !strings.Contains(f.Reason, "operation not permitted") {
		t.Errorf("%+v, want it off with its reason", f)
	}
	log.check(t, kernel.EarlyFilter, 1)
	if got := passes(t, c, last, stranger); len(got) != 1 {
		t.Errorf("without a filter %v came through", got)
	}
	befriend(c, last)
	if _, ok := locked.drops(false); !ok {
		t.Error("the socket is gone")
	}
}

// Where even the coarsest filter is too large, there is none, and everybody passes.
func TestEarlyFilterFindsNoMemory(t *testing.T) {
	for _, peers := range [][]netip.Addr{{loopbackHost(5)}, {loopbackHost(5), loopbackHost(9), loopbackHost(100)}} {
		c := open(t, "auto", nil)
		c.filter.attachFilter = func(int, []bpf.Instruction) error { return unix.ENOMEM }
		befriend(c, append(peers, loopbackHost(1))...)
		if f := featureOf(t, c); f.On || !strings.Contains(f.Reason, "cannot allocate memory") {
			t.Errorf("%+v, want it off with its reason", f)
		}
		if got := passes(t, c, loopbackHost(1), loopbackHost(77)); len(got) != 1 {
			t.Errorf("without a filter %v came through", got)
		}
	}
}

// A second socket that gets no filter leaves none on the first, which would let nobody in for good.
func TestEarlyFilterOfSomeSockets(t *testing.T) {
	c := open(t, "auto", func(cfg *Config) { cfg.Queues, cfg.Port = 2, freePort(t) })
	first := c.queues[0].listener
	if err := first.with(func(fd int) error { return attachFilter(fd, filterProgram(nil, source4)) }); err != nil {
		t.Fatal(err)
	}
	e := newEarlyFilter(kernel.Features{}, false, slog.New(slog.DiscardHandler))
	e.sockets = c.filter.sockets
	e.attachFilter = func(int, []bpf.Instruction) error { return unix.EPERM }
	if err := c.queues[1].listener.with(func(fd int) error { e.shut(fd); return nil }); err != nil {
		t.Fatal(err)
	}
	e.opened()
	if err := first.with(func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("taking a filter off the first socket gives %v: it still had one", err)
	}
}

// Every filter that a churn of peers asks for is within the bounds: however the addresses come, at most so many
// filters are made in the time between two narrow ones.
func TestEarlyFilterUnderChurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEarlyFilter(kernel.Features{}, false, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = e.run(ctx) }()
		rng := rand.New(rand.NewPCG(11, 12))
		var peers []netip.Addr
		const seconds, tables = 20, 200 // the lease side makes a table every 5 ms at most
		for range seconds * tables {
			for range 5 { // changes
				peers = append(peers, address(rng.Uint32()))
			}
			peers = peers[max(0, len(peers)-500):]
			table := tableOf(peers...)
			used := false
			e.setPeers(nil, table, func() {
				used = true
				for _, a := range outerAddrs(table, false) {
					if !e.open.contains(a) {
						t.Fatalf("the filter refuses %v", address(a))
					}
				}
			})
			if !used {
				t.Fatal("the table was not used")
			}
			time.Sleep(time.Second / tables)
		}
		synctest.Wait()
		const most = seconds/2*(4+8+8+1+1) + 22
		if e.attached > most {
			t.Errorf("%d filters in %d s, want at most %d", e.attached, seconds, most)
		}
		time.Sleep(2 * narrowEvery)
		synctest.Wait()
		if want := spansOf(outerAddrs(tableOf(peers...), false)); !slices.Equal(e.open, want) {
			t.Errorf("after the churn the filter has %d ranges, want %d", len(e.open), len(want))
		}
	})
}

// Leases that are only renewed make no filter.
func TestEarlyFilterLeavesTheSameAlone(t *testing.T) {
	e := newEarlyFilter(kernel.Features{}, false, slog.New(slog.DiscardHandler))
	table := tableOf(loopbackHost(1), loopbackHost(7))
	for range 10 {
		e.setPeers(nil, table, func() {})
		e.narrow()
	}
	if e.attached != 1 {
		t.Errorf("%d filters for the same peers", e.attached)
	}
}

// Another process has taken over the sockets: their filter is its, until we go on.
func TestEarlyFilterOfAdoptedSockets(t *testing.T) {
	c := open(t, "auto", func(cfg *Config) { cfg.Port = freePort(t) })
	last, old, young := loopbackHost(1), loopbackHost(2), loopbackHost(3)
	befriend(c, last, old)
	successor := func(features string) *Conn {
		given, err := c.Sockets()
		if err != nil {
			t.Fatal(err)
		}
		defer given.Close()
		cfg := config(t, features, nil)
		cfg.Port, cfg.Adopt = c.cfg.Port, given
		next, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { next.Close() })
		return next
	}
	want := func(when string, want ...netip.Addr) {
		t.Helper()
		if got := passes(t, c, last, old, young); !slices.Equal(got, want) {
			t.Errorf("%s %v come through, want %v", when, got, want)
		}
	}
	next := successor("auto")
	want("with the filter of before", old)
	if err := c.Pause(); err != nil {
		t.Fatal(err)
	}
	befriend(next, last, young)
	next.filter.narrow()
	befriend(c, last, old)
	c.filter.narrow()
	if err := c.each((*waiter.File).Resume); err != nil { // to receive what the other let in
		t.Fatal(err)
	}
	want("while the other one has the sockets", young)
	if err := c.Resume(); err != nil {
		t.Fatal(err)
	}
	want("after it gave them back", old)
	without := successor("-early-filter")
	want("with one that wants no filter", old, young)
	c.filter.attach(spansOf([]uint32{number4(last)})) // before it has heard that it is to pause
	if err := without.Resume(); err != nil {
		t.Fatal(err)
	}
	want("when that one goes on", old, young)
}

// What a change of one lease costs among 10,000.
func BenchmarkEarlyFilter(b *testing.B) {
	var addrs []netip.Addr
	for i := range uint32(10000) {
		addrs = append(addrs, loopbackHost(1+i*7))
	}
	table := tableOf(addrs...)
	peer := *table.Peers()[5000]
	changed := table.With([]*fib.Peer{&peer}, nil)
	c := open(b, "auto", nil)
	b.Run("nothing new", func(b *testing.B) {
		for b.Loop() {
			c.SetPeers(table, func() {})
			c.SetPeers(changed, func() {})
		}
	})
	b.Run("narrow", func(b *testing.B) {
		for b.Loop() {
			c.filter.open = nil
			c.filter.narrow()
		}
	})
}
