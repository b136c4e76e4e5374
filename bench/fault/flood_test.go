//go:build linux

package fault

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"muslin/bench/hostile"
	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// floodLab is two nodes with a stream between their pods, and a third host that floods the one which receives it:
//
//	p1a (iperf3 -s) ── cni0 ─ h1 (muslin) ─┬─ br0 ─┬─ h2 (muslin) ─ cni0 ── p2a (iperf3 -c)
//	                                       └───────┴─ h3: frames with any source, as fast as they go
//
// On h1 an nftables rule counts the flood's datagrams where they arrive, or drops them there.
type floodLab struct {
	victim   *lab.Muslin // on h1
	from, to *lab.Pod
	host     *lab.Host // h1
	flooder  *lab.Host // h3
	peer     netip.Addr
	port     uint16           // of the overlay
	vtep     net.HardwareAddr // the victim's VtepMAC
	src, dst net.HardwareAddr // of h3 and h1
}

func newFloodLab(t *testing.T, flags ...string) *floodLab {
	t.Helper()
	for _, tool := range []string{"iperf3", "nft"} {
		lab.RequireTool(t, tool)
	}
	l := labtest.NewLab(t, 3)
	flags = append(flags, "--embedded-etcd", "--network", labtest.Network, "--backend", "vxlan")
	victim := labtest.StartMuslin(t, l.Host(1), flags...)
	other := labtest.StartMuslin(t, l.Host(2), "--etcd-endpoints", fmt.Sprintf("http://%s:2379", l.Host(1).Addr))
	labtest.WaitPeers(t, victim, 1)
	labtest.WaitPeers(t, other, 1)
	node := labtest.Status(t, victim).Node
	return &floodLab{
		victim: victim, host: l.Host(1), flooder: l.Host(3), peer: l.Host(2).Addr, port: node.Port,
		from: labtest.AddPod(t, other, "a"), to: labtest.AddPod(t, victim, "a"),
		vtep: labtest.Must(net.ParseMAC(node.VtepMAC))(t),
		src:  labtest.HardwareAddr(t, l.Host(3)), dst: labtest.HardwareAddr(t, l.Host(1)),
	}
}

// strangers are frames of every kind, good ones among them, whose sources are no peer's.
func (f *floodLab) strangers() [][]byte {
	rng := rand.New(rand.NewPCG(1, 2))
	var sources []netip.AddrPort
	for range 1000 {
		// The documentation's networks (RFC 5737), the hosts' own, and 10.0.0.0/8.
		networks := [][3]byte{{198, 51, 100}, {203, 0, 113}, {198, 18, 0}, {10, byte(rng.IntN(256)), byte(rng.IntN(256))}}
		n := networks[rng.IntN(len(networks))]
		addr := netip.AddrFrom4([4]byte{n[0], n[1], n[2], byte(100 + rng.IntN(150))})
		sources = append(sources, netip.AddrPortFrom(addr, uint16(1024+rng.IntN(60000))))
	}
	return f.frames(sources, func(hostile.Case) bool { return true })
}

// forged are frames of every bad kind, whose source is the peer's.
func (f *floodLab) forged() [][]byte {
	var sources []netip.AddrPort
	for i := range 1000 {
		sources = append(sources, netip.AddrPortFrom(f.peer, uint16(20000+i)))
	}
	return f.frames(sources, func(c hostile.Case) bool { return c.Drop != "" && c.Drop != "unknown-source" && c.ECN == 0 })
}

// frames is one for each source, of the kinds that are wanted in turn.
func (f *floodLab) frames(sources []netip.AddrPort, want func(hostile.Case) bool) (frames [][]byte) {
	to := netip.AddrPortFrom(f.host.Addr, f.port)
	inner := hostile.Inner(f.from.Addr, f.to.Addr)
	cases := hostile.InVXLAN(f.vtep, inner, hostile.InnerUDP(f.from.Addr, f.to.Addr, 0, 40))
	cases = slices.DeleteFunc(cases, func(c hostile.Case) bool {
		return len(c.Datagram) > 1400 || !want(c) // a frame is never longer than the MTU
	})
	for i, source := range sources {
		frames = append(frames, hostile.Ethernet(f.dst, f.src, hostile.UDP(source, to, cases[i%len(cases)].Datagram)))
	}
	return frames
}

// fence is what the host's firewall does with the flood: "drop", or only count what arrives.
func (f *floodLab) fence(t *testing.T, verdict string) {
	t.Helper()
	rules := fmt.Sprintf(`table ip flood; delete table ip flood; table ip flood {
		chain in { type filter hook prerouting priority raw; ether saddr %s udp dport %d counter %s; }; }`, f.src, f.port, verdict)
	if out, err := f.host.Run(t.Context(), "nft", rules); err != nil {
		t.Fatal(out, err)
	}
}

var nftCounter = regexp.MustCompile(`counter packets (\d+)`)

// arrived is how many of the flood's datagrams have met the fence.
func (f *floodLab) arrived(t *testing.T) uint64 {
	t.Helper()
	out := labtest.Must(f.host.Output(t.Context(), "nft", "list", "table", "ip", "flood"))(t)
	m := nftCounter.FindStringSubmatch(out)
	if m == nil {
		t.Fatal(out)
	}
	return labtest.Must(strconv.ParseUint(m[1], 10, 64))(t)
}

var residentSet = regexp.MustCompile(`VmRSS:\s+(\d+) kB`)

// memory is the victim's resident set, in KiB.
func (f *floodLab) memory(t *testing.T) int {
	t.Helper()
	data := labtest.Must(os.ReadFile(fmt.Sprintf("/proc/%d/status", f.victim.PID())))(t)
	return labtest.Must(strconv.Atoi(string(residentSet.FindSubmatch(data)[1])))(t)
}

// floodRound is what one stream saw.
type floodRound struct {
	gbps          float64
	sent, arrived uint64            // of the flood
	drops         map[string]uint64 // by the victim, meanwhile
}

// stream measures a stream beside a flood of frames, or beside none.
func (f *floodLab) stream(t *testing.T, frames [][]byte, verdict string) (r floodRound) {
	t.Helper()
	const seconds = 3
	f.fence(t, verdict)
	before := labtest.Status(t, f.victim).Drops
	stop := f.start(t, frames)
	flow, err := lab.IperfTCP(t.Context(), f.from.Node, f.to.Node, f.to.Addr, seconds)
	r.sent = stop()
	if err != nil {
		t.Fatal(err)
	}
	r.gbps = flow.BitsPerSecond / 1e9
	labtest.Eventually(t, 5*time.Second, func() error { // veth hands over before sendmmsg returns, or soon after
		if r.arrived = f.arrived(t); r.arrived != r.sent {
			return fmt.Errorf("%d datagrams sent and %d arrived", r.sent, r.arrived)
		}
		return nil
	})
	r.drops = map[string]uint64{}
	for reason, n := range labtest.Status(t, f.victim).Drops {
		if n -= before[reason]; n > 0 {
			r.drops[reason] = n
		}
	}
	return r
}

// start begins a flood; stop ends it and says how many frames were sent.
func (f *floodLab) start(t *testing.T, frames [][]byte) (stop func() uint64) {
	t.Helper()
	if frames == nil {
		return func() uint64 { return 0 }
	}
	var flood *hostile.Flood
	if err := f.flooder.Do(func() (err error) { flood, err = hostile.OpenFlood("eth0", frames); return err }); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- flood.Run(ctx) }()
	return func() uint64 {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		flood.Close()
		return flood.Sent()
	}
}

// cost is the processor time that the daemon spends on a datagram of a flood, with nothing else to do.
func (f *floodLab) cost(t *testing.T, frames [][]byte) time.Duration {
	t.Helper()
	f.fence(t, "")
	before := labtest.Must(f.victim.CPU())(t)
	stop := f.start(t, frames)
	time.Sleep(2 * time.Second) // of flood
	sent := stop()
	return (labtest.Must(f.victim.CPU())(t) - before) / time.Duration(max(sent, 1))
}

func total(drops map[string]uint64) (n uint64) {
	for _, d := range drops {
		n += d
	}
	return n
}

func median(all []float64) float64 {
	slices.Sort(all)
	return all[len(all)/2]
}

// A stream beside a flood at full rate, from unknown sources and in a peer's name, with the early filter and
// without. The flooder is one more busy process on the machine's processors, so each flood is also measured with the
// host's firewall dropping it where it arrives: what the stream loses then, the machine loses to sending and
// receiving frames, whoever gets them.
func TestFlood(t *testing.T) {
	t.Run("filtered", func(t *testing.T) {
		rates := testFlood(t)
		if kept := rates[besideStrangers] / rates[alone]; kept < 0.5 {
			t.Errorf("the stream keeps %.2f of its rate beside a flood of strangers, want 0.5", kept)
		}
	})
	t.Run("not filtered", func(t *testing.T) { testFlood(t, "--features=-early-filter") })
}

// The phases of a round.
const (
	alone = iota
	strangersFenced
	besideStrangers
	forgedFenced
	besideForged
	phases
)

// testFlood returns the stream's median rate in each phase.
func testFlood(t *testing.T, flags ...string) (rates [phases]float64) {
	const rounds = 3
	f := newFloodLab(t, flags...)
	strangers, forged := f.strangers(), f.forged()
	plan := [phases]struct {
		name    string
		frames  [][]byte
		verdict string
	}{
		alone:           {"no flood", nil, ""},
		strangersFenced: {"strangers, dropped by nftables", strangers, "drop"},
		besideStrangers: {"strangers", strangers, ""},
		forgedFenced:    {"forged, dropped by nftables", forged, "drop"},
		besideForged:    {"forged", forged, ""},
	}
	f.stream(t, strangers, "") // until the daemon has the memory that it works with
	memory := f.memory(t)
	var all [phases][]float64
	for range rounds {
		for i, p := range plan {
			r := f.stream(t, p.frames, p.verdict)
			all[i] = append(all[i], r.gbps)
			t.Logf("%-31s %5.2f Gb/s beside %7d datagrams; %d KiB", p.name, r.gbps, r.arrived, f.memory(t))
			f.checkCounts(t, i, r)
		}
	}
	if grown := f.memory(t) - memory; grown > 16<<10 {
		t.Errorf("the daemon has grown by %d KiB", grown)
	}
	if !f.victim.Running() {
		t.Error("the daemon ended")
	}
	t.Logf("a stranger's datagram costs the daemon %v, a forged one %v", f.cost(t, strangers), f.cost(t, forged))
	for i, p := range plan {
		rates[i] = median(all[i])
		t.Logf("%-31s %5.2f Gb/s, %.2f of no flood", p.name, rates[i], rates[i]/rates[alone])
	}
	return rates
}

// checkCounts wants each datagram that arrived to be counted once. An overflow, if there is one, may have taken some
// of the stream, too.
func (f *floodLab) checkCounts(t *testing.T, phase int, r floodRound) {
	t.Helper()
	if phase != alone && r.arrived < 10_000 {
		t.Errorf("%d datagrams are no flood", r.arrived)
	}
	if phase != besideStrangers && phase != besideForged {
		return
	}
	counted := total(r.drops) - r.drops["tun-overflow"]
	overflow := r.drops["socket-overflow"]
	if counted < r.arrived || counted > r.arrived+overflow {
		t.Errorf("%d datagrams arrived, and %d are counted: %v", r.arrived, counted, r.drops)
	}
	if stranger := r.drops["unknown-source"]; phase == besideStrangers && stranger+overflow < r.arrived {
		t.Errorf("of %d datagrams of strangers %d are counted as unknown-source: %v", r.arrived, stranger, r.drops)
	}
	if phase == besideForged && len(r.drops) < 14 {
		t.Errorf("every kind was sent, and counted are %v", r.drops)
	}
}
