//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/tunnel/kernel"
)

// Sizes in bytes of the files that a bad underlay carries: through losses so long that of its runs, of some
// forty datagrams each, some are sure to be lost.
var (
	lossyFile     = lab.Modest(int64(64 << 20))
	reorderedFile = lab.Modest(int64(16 << 20))
)

// One in a hundred of what the underlay carries is lost, both ways: whole runs of datagrams, as a card that
// cuts them would lose them at its queue, then single datagrams.
//
//	p1a ── cni0 ─ h1 (muslin, nft) ── br0 ── h2 (muslin, nft) ─ cni0 ── p2a
func TestLoss(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "nft", "ethtool")
	l := newLab(t, 2)
	leases := []leased{leaseOf(l.Host(1)), leaseOf(l.Host(2))}
	startBoth(t, l, "vxlan", leases, [2][]string{})
	for _, h := range l.Hosts() {
		for _, command := range []string{
			"add table ip t",
			"add counter ip t lost",
			"add chain ip t in { type filter hook input priority 0; }",
			"add rule ip t in udp dport 8472 numgen random mod 100 < 1 counter name lost drop",
		} {
			runIn(t, h.Node, "nft", command)
		}
	}
	for _, cut := range []string{"runs", "datagrams"} {
		t.Run(cut, func(t *testing.T) {
			for _, h := range l.Hosts() {
				if cut == "runs" && !must(h.HasOffload(t.Context(), "eth0", "tx-udp-segmentation"))(t) {
					t.Log("this kernel's veth devices take no runs: it cuts them before, and single datagrams are lost once more")
					continue
				}
				got := must(h.SetOffloads(t.Context(), "eth0", map[string]bool{"tx-udp-segmentation": cut == "runs"}))(t)
				if got["tx-udp-segmentation"] != (cut == "runs") {
					t.Fatalf("tx-udp-segmentation of eth0 is %v", got["tx-udp-segmentation"])
				}
			}
			before := []int{lost(t, l.Host(1)), lost(t, l.Host(2))}
			copyBothWays(t, l.Host(1).Pods()[0], l.Host(2).Pods()[0], lossyFile)
			toFirst, toSecond := lost(t, l.Host(1))-before[0], lost(t, l.Host(2))-before[1]
			t.Logf("%d lost on their way to h1, %d to h2", toFirst, toSecond)
			if toFirst+toSecond == 0 {
				t.Error("nothing was lost: this test shows nothing")
			}
		})
	}
}

// lost reads the nft counter of that name.
func lost(t *testing.T, h *lab.Host) int {
	t.Helper()
	out := must(h.Output(t.Context(), "nft", "-j", "list", "counters"))(t)
	var list struct {
		NFTables []struct {
			Counter struct{ Packets int }
		}
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("output of nft: %v: %s", err, out)
	}
	n := 0
	for _, e := range list.NFTables {
		n += e.Counter.Packets
	}
	return n
}

// An underlay that overtakes: each node takes h3 for the other one, where every datagram goes through a relay
// that holds some of them back until others have passed, loses a few and sends a few twice.
//
//	p1a ── cni0 ─ h1 (muslin) ─┬─ br0 ─┬─ h2 (muslin) ─ cni0 ── p2a
//	                           └─ h3 (relay)
func TestReordering(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"vxlan", "udp"} {
		t.Run(backend, func(t *testing.T) {
			l := newLab(t, 3)
			leaveIll(l, "the third node is a socket of the test")
			var ends [2]netip.AddrPort
			for i := range ends {
				leases := []leased{leaseOf(l.Host(1)), leaseOf(l.Host(2))}
				leases[1-i].public = l.Host(3).Addr
				m := startStatic(t, l.Host(i+1), backend, leases)
				addPod(t, m, "a")
				ends[i] = netip.AddrPortFrom(l.Host(i+1).Addr, status(t, m).Node.Port)
			}
			conn := listenUDP(t, l.Host(3).Node, netip.AddrPortFrom(l.Host(3).Addr, ends[0].Port()))
			r := relay{conn: conn, ends: ends, random: rand.New(rand.NewPCG(1, 2))}
			var relaying sync.WaitGroup
			relaying.Go(func() {
				if err := r.run(); err != nil {
					t.Error("relay:", err)
				}
			})
			copyBothWays(t, l.Host(1).Pods()[0], l.Host(2).Pods()[0], reorderedFile)
			conn.Close()
			relaying.Wait()
			if r.overtaken < lab.Modest(100) || r.lost < 1 || r.doubled < 1 {
				t.Errorf("%d overtaken, %d lost, %d doubled: this test shows nothing", r.overtaken, r.lost, r.doubled)
			}
			t.Logf("of %d datagrams %d overtaken, %d lost, %d doubled", r.passed, r.overtaken, r.lost, r.doubled)
		})
	}
}

// relay passes datagrams from each of two ends to the other, badly.
type relay struct {
	conn   *net.UDPConn
	ends   [2]netip.AddrPort // where the daemons listen
	random *rand.Rand
	held   []heldBack

	passed, overtaken, lost, doubled int
}

// heldBack is a datagram that waits until some others have passed.
type heldBack struct {
	datagram []byte
	to       netip.AddrPort
	others   int
}

// relayPatience is for how long at most a datagram is held back when no others come.
const relayPatience = 2 * time.Millisecond

// run relays until conn is closed.
func (r *relay) run() error {
	buf := make([]byte, 1<<16)
	for {
		if err := r.conn.SetReadDeadline(time.Now().Add(relayPatience)); err != nil {
			return ignoreClosed(err)
		}
		n, from, err := r.conn.ReadFromUDPAddrPort(buf)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			err = r.release(1 << 20)
		} else if err == nil {
			err = r.relay(buf[:n], from.Addr().Unmap())
		}
		if err != nil {
			return ignoreClosed(err)
		}
	}
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (r *relay) relay(datagram []byte, from netip.Addr) error {
	to := r.ends[0]
	if from == to.Addr() {
		to = r.ends[1]
	}
	r.passed++
	switch n := r.random.IntN(1000); {
	case n < 2:
		r.lost++
		return nil
	case n < 32:
		r.overtaken++
		r.held = append(r.held, heldBack{slices.Clone(datagram), to, 1 + r.random.IntN(20)})
		return nil
	case n < 34:
		r.doubled++
		r.held = append(r.held, heldBack{slices.Clone(datagram), to, 1})
	}
	if _, err := r.conn.WriteToUDPAddrPort(datagram, to); err != nil {
		return err
	}
	return r.release(1)
}

// release sends what has waited long enough, after passed more datagrams.
func (r *relay) release(passed int) error {
	waiting := r.held[:0]
	for _, h := range r.held {
		if h.others -= passed; h.others > 0 {
			waiting = append(waiting, h)
			continue
		}
		if _, err := r.conn.WriteToUDPAddrPort(h.datagram, h.to); err != nil {
			return err
		}
	}
	r.held = waiting
	return nil
}

// The way to the peer has a smaller MTU than the interface, from one moment to the next, while a file and
// probes are under way: the kernel refuses runs (EMSGSIZE, or EINVAL on older ones) that it took before.
// Nothing may be lost, and the operator is told once.
//
//	p1a ── cni0 ─ h1 (muslin; route to h2 with MTU 1400) ── br0 ── h2 (muslin) ─ cni0 ── p2a
func TestRunsRefusedWhileRunning(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	leases := []leased{leaseOf(l.Host(1)), leaseOf(l.Host(2))}
	daemons := startBoth(t, l, "vxlan", leases, [2][]string{})
	a, b := l.Host(1).Pods()[0], l.Host(2).Pods()[0]
	runs := !lacks(kernel.UDPGSO) // otherwise there is nothing to refuse, and yet nothing may be lost
	if f := feature(t, daemons[0], "udp-gso"); f.On != runs || strings.Contains(f.Reason, "limited") {
		t.Fatalf("udp-gso at the start: %+v", f)
	}
	p := startProbe(t, a, b)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	copied := make(chan error, 1)
	tick := time.NewTicker(lab.Patience(time.Millisecond))
	defer tick.Stop()
	go func() {
		copied <- streamTCP(a, b, endless{rand.NewChaCha8([32]byte{3}), ctx, tick}, lab.Patience(time.Minute))
	}()
	eventually(t, 10*time.Second, func() error {
		if n := status(t, daemons[0]).Peers[0].TxBytes; n < uint64(lab.Modest(4<<20)) {
			return fmt.Errorf("%d bytes sent", n)
		}
		return nil
	})
	runIn(t, l.Host(1).Node, "ip", "route", "add", l.Host(2).Addr.String()+"/32", "dev", "eth0", "mtu", "1400")
	refused := 0
	if runs {
		eventually(t, 10*time.Second, func() error {
			f := feature(t, daemons[0], "udp-gso")
			var off, limited int
			if _, err := fmt.Sscanf(f.Reason, "off for %d and limited for %d of 16", &off, &limited); err != nil || !f.On {
				return fmt.Errorf("udp-gso after a refusal: %+v, want it off or limited for one source port", f)
			}
			refused = off + limited
			return nil
		})
	}
	sent := status(t, daemons[0]).Peers[0].TxBytes
	eventually(t, 10*time.Second, func() error { // and on it goes
		if n := status(t, daemons[0]).Peers[0].TxBytes - sent; n < uint64(lab.Modest(4<<20)) {
			return fmt.Errorf("%d bytes sent after the refusal", n)
		}
		return nil
	})
	stop()
	if err := <-copied; err != nil {
		t.Error(err)
	}
	p.expectNoLoss(t)
	warnings := 0
	for line := range strings.Lines(daemons[0].Output()) {
		if strings.Contains(line, "level=WARN") && strings.Contains(line, "udp-gso") {
			warnings++
		}
	}
	if want := map[bool]int{true: 1}[runs]; warnings != want || refused != want {
		t.Errorf("%d warnings of udp-gso in the log and %d source ports affected by one flow, want %d and %d", warnings, refused, want, want)
	}
	expectAllArrived(t, daemons[0], daemons[1])
	expectAllArrived(t, daemons[1], daemons[0])
	for _, m := range daemons {
		expectNoDrops(t, m)
	}
	copyBothWays(t, a, b, lab.Modest(int64(16<<20)))
}

// endless gives random bytes until the context ends: some now and then, each time enough for a run of
// datagrams, but never so many that a queue on their way could be full.
type endless struct {
	random io.Reader
	ctx    context.Context
	tick   *time.Ticker
}

func (e endless) Read(p []byte) (int, error) {
	select {
	case <-e.ctx.Done():
		return 0, io.EOF
	case <-e.tick.C:
		return e.random.Read(p)
	}
}

// expectAllArrived wants every packet that one daemon sent to be accepted by its peer: also what TCP would have
// made good.
func expectAllArrived(t *testing.T, from, to *lab.Muslin) {
	t.Helper()
	eventually(t, 5*time.Second, func() error {
		sent, arrived := status(t, from).Peers[0], status(t, to).Peers[0]
		if sent.TxPackets != arrived.RxPackets || sent.TxBytes != arrived.RxBytes {
			return fmt.Errorf("%s sent %d packets, %d bytes; %s received %d packets, %d bytes", from.Name, sent.TxPackets, sent.TxBytes, to.Name, arrived.RxPackets, arrived.RxBytes)
		}
		return nil
	})
}

// featureState is what status shows of a feature.
type featureState struct {
	On     bool
	Reason string
}

func feature(t *testing.T, m *lab.Muslin, name string) featureState {
	t.Helper()
	for _, f := range status(t, m).Features {
		if f.Name == name {
			return featureState{f.On, f.Reason}
		}
	}
	t.Fatalf("status of %s does not show %s", m.Name, name)
	return featureState{}
}
