//go:build linux

package e2e

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"muslin/bench/lab"
	"muslin/encap"
	"muslin/tunnel"
	"muslin/tunnel/fib"
	"muslin/tunnel/kernel"
	"muslin/tunnel/tun"
	"muslin/tunnel/underlay"
)

const (
	gcSize    = 1400 // bytes of payload in a datagram
	gcSeconds = 3
	gcRounds  = 7

	// gcNoise is the share of the datagrams that a run may drop for other reasons. A pause long enough to drop
	// anything would drop as much in a few collections, and there are some twenty in a run.
	gcNoise = 0.002
)

var (
	gcRate    = lab.Modest(1_000_000_000) // bits of payload per second
	gcSlowest = gcRate / 16               // for a machine that does much else, or is slow

	// gcBallast is how much there is for the collector to look through, in bytes: far more than a daemon with
	// ten thousand peers has.
	gcBallast = lab.Modest(200 << 20)

	// gcPause is how much of gcRate the queue of a TUN device holds: 500 packets (TUN_READQ_SIZE, the default
	// txqueuelen).
	gcPause = 500 * gcSize * 8 * time.Second / time.Duration(gcRate)
)

// Go's garbage collector does not make the daemon drop packets at 1 Gb/s. Both VTEPs are in this process, where
// collections can be had back to back:
//
//	p1a ── cni0 ─ h1 (VTEP of the test) ── br0 ── h2 (VTEP of the test) ─ cni0 ── p2a
//
// Where the machine has not enough processors for the rate, or for it and a collector that is never done, half
// of it is tried, and so on: what the collector's share of the processors costs is no matter of its pauses. These
// are held against the full rate in any case.
func TestGarbageCollection(t *testing.T) {
	lab.RequireTool(t, "iperf3")
	goFirst(t)
	l := newLab(t, 2)
	ends := newEnds(t, l)
	ballast := newBallast()
	defer runtime.KeepAlive(ballast)
	for round := range gcRounds {
		rate := max(gcRate>>round, gcSlowest)
		plain := ends.measure(t, "without collections", rate)
		if plain.share() > gcNoise {
			continue
		}
		stop := collect()
		defer stop() // should measure end the test
		busy := ends.measure(t, "with collections", rate)
		pauses := stop()
		if len(pauses) < 5 {
			t.Fatalf("only %d collections: this test shows nothing", len(pauses))
		}
		half, p99 := pauses[len(pauses)/2], pauses[len(pauses)*99/100]
		t.Logf("%d collections, pauses p50 %v, p99 %v, longest %v", len(pauses), half, p99, pauses[len(pauses)-1])
		if half > gcPause {
			t.Errorf("half of the pauses last %v and more: the TUN device's queue holds %v of %.2f Gb/s", half, gcPause, float64(gcRate)/1e9)
		}
		if busy.share() <= plain.share()+gcNoise {
			return
		}
	}
	t.Error("the VTEPs drop packets at any rate, or because of collections")
}

// goFirst gives this process, and those that it starts, precedence over whatever else the machine does.
func goFirst(t *testing.T) {
	t.Helper()
	set := func(nice int) {
		threads := must(os.ReadDir("/proc/self/task"))(t)
		for _, thread := range threads {
			id := must(strconv.Atoi(thread.Name()))(t)
			if err := unix.Setpriority(unix.PRIO_PROCESS, id, nice); err != nil && !errors.Is(err, unix.ESRCH) {
				t.Fatal("setpriority:", err)
			}
		}
		// Where the kernel groups processes by session, only the group's own value counts (sched(7)). Processes
		// that no session has grouped, such as a container's first, are in the root group: it has no value, and
		// the kernel refuses with EINVAL.
		err := os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(nice)), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EINVAL) {
			t.Fatal(err)
		}
	}
	before := must(unix.Getpriority(unix.PRIO_PROCESS, 0))(t)
	set(-15)
	t.Cleanup(func() { set(20 - before) }) // the system call returns 20 less the nice value
}

// ends are the two VTEPs.
type ends struct {
	lab   *lab.Lab
	vteps [2]*tunnel.VTEP
}

func newEnds(t *testing.T, l *lab.Lab) *ends {
	t.Helper()
	features, _ := kernel.Examine(t.Context(), kernel.Features{})
	before := runtime.GOMAXPROCS(runtime.NumCPU() + 2) // as the daemon does
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	e := &ends{lab: l}
	leases := []leased{leaseOf(l.Host(1)), leaseOf(l.Host(2))}
	for i, h := range l.Hosts() {
		own, other := leases[i], leases[1-i]
		var dev *tun.Device
		var conn *underlay.Conn
		if err := h.Do(func() (err error) {
			log := slog.New(slog.DiscardHandler)
			if dev, err = tun.Open(tun.Config{Name: "muslin0", Queues: 1, Features: features, Logger: log}); err != nil {
				return err
			}
			conn, err = underlay.Open(underlay.Config{
				Local: h.Addr, Port: 8472, Queues: 1, Features: features, MaxSegments: kernel.UDPMaxSegments(), Logger: log})
			return err
		}); err != nil {
			t.Fatal(err)
		}
		framing := encap.NewVXLAN(must(encap.NewVNI(1))(t), must(encap.ParseMAC(own.mac))(t))
		mtu := encap.OuterMTU(lab.DefaultMTU).Inner(framing)
		v := must(tunnel.New(tunnel.Config{
			Device: dev, Underlay: conn, Framing: framing, Network: netip.MustParsePrefix(network), Subnet: own.subnet,
			Port: 8472, MTU: mtu, Jumbo: 16 << 10,
		}))(t)
		v.SetTable(fib.New([]*fib.Peer{{Subnet: other.subnet, PublicIP: other.public, Backend: "vxlan", MAC: must(encap.ParseMAC(other.mac))(t)}}))
		e.vteps[i] = v
		runVTEP(t, v)

		runIn(t, h.Node, "ip", "addr", "add", own.subnet.Addr().String()+"/32", "dev", "muslin0")
		runIn(t, h.Node, "ip", "link", "set", "muslin0", "mtu", strconv.Itoa(int(mtu)), "up")
		runIn(t, h.Node, "ip", "route", "add", network, "dev", "muslin0")
		if err := h.Sysctl("net/ipv4/ip_forward", "1"); err != nil {
			t.Fatal(err)
		}
		must(h.AddPod(t.Context(), "a", lab.PodNetwork{Gateway: netip.PrefixFrom(own.subnet.Addr().Next(), 24), MTU: int(mtu)}))(t)
	}
	expectPing(t, l.Host(1).Pods()[0].Node, l.Host(2).Pods()[0].Addr, 5)
	return e
}

// runVTEP runs a VTEP until the test ends, which must be without an error.
func runVTEP(t *testing.T, v *tunnel.VTEP) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// gcRun is what became of a run's datagrams.
type gcRun struct {
	sent    int64
	dropped int64 // by the VTEPs, for any reason, and at their queues
}

func (r gcRun) share() float64 { return float64(r.dropped) / float64(r.sent) }

func (e *ends) measure(t *testing.T, what string, rate int) gcRun {
	t.Helper()
	before := e.drops(t)
	a, b := e.lab.Host(1).Pods()[0], e.lab.Host(2).Pods()[0]
	flow, err := lab.IperfUDP(t.Context(), a.Node, b.Node, b.Addr, gcSeconds*rate/8/gcSize, gcSize, rate)
	if err != nil {
		t.Fatal(err)
	}
	after := e.drops(t)
	r := gcRun{sent: flow.Packets}
	for reason, n := range after {
		after[reason] = n - before[reason]
		r.dropped += int64(after[reason])
	}
	maps.DeleteFunc(after, func(_ string, n uint64) bool { return n == 0 })
	t.Logf("%s: %.2f Gb/s, %d datagrams, %d of them lost on the whole way; the VTEPs dropped %v", what, flow.BitsPerSecond/1e9, flow.Packets, flow.Lost, after)
	return r
}

// drops of both VTEPs together. They are read in the hosts' namespaces, where some of the counters are.
func (e *ends) drops(t *testing.T) map[string]uint64 {
	t.Helper()
	all := make(map[string]uint64)
	for i, h := range e.lab.Hosts() {
		if err := h.Do(func() error {
			for reason, n := range e.vteps[i].Drops() {
				all[reason] += n
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// newBallast makes pointers that a collection has to follow.
func newBallast() [][]*byte {
	const chunk = 1 << 17 // pointers
	ballast := make([][]*byte, gcBallast/8/chunk)
	for i := range ballast {
		ballast[i] = make([]*byte, chunk)
		content := make([]byte, chunk)
		for j := range ballast[i] {
			ballast[i][j] = &content[j]
		}
	}
	return ballast
}

// collect collects garbage over and over until stop, which returns how long the world stood still each time,
// the shortest first.
func collect() (stop func() []time.Duration) {
	var before debug.GCStats
	debug.ReadGCStats(&before)
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			default:
				runtime.GC()
			}
		}
	}()
	return sync.OnceValue(func() []time.Duration {
		close(quit)
		<-done
		var after debug.GCStats
		debug.ReadGCStats(&after) // the latest pauses come first
		pauses := slices.Clone(after.Pause[:min(int(after.NumGC-before.NumGC), len(after.Pause))])
		slices.Sort(pauses)
		return pauses
	})
}
