package tunnel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// traffic makes packets of random flows.
type traffic struct {
	rand  *rand.Rand
	flows []*trafficFlow
	blob  []byte // payloads are parts of it
}

type trafficFlow struct {
	src, dst     string
	sport, dport uint16
	tcp, df      bool
	size         int // payload of a full packet
	timestamps   bool
	id           uint16
	seq          uint32
	sent         uint32
}

// newTraffic makes flows from hosts of one node to those of others.
func newTraffic(seed uint64, flows int, source node, others ...node) *traffic {
	full := 1398 // so that with all headers it is as long as the MTU
	if source.six() {
		full = 1378
	}
	tr := &traffic{rand: rand.New(rand.NewPCG(seed, 0)), blob: numbered(200_000)}
	for i := range flows {
		f := &trafficFlow{
			src: fmt.Sprintf(source.hosts(), 5+i), dst: fmt.Sprintf(others[tr.rand.IntN(len(others))].hosts(), 5+tr.rand.IntN(3)),
			sport: uint16(1024 + tr.rand.IntN(60000)), dport: uint16(i), tcp: tr.rand.IntN(2) == 0, df: tr.rand.IntN(2) == 0,
			size: []int{1, 17, 500, full, full}[tr.rand.IntN(5)], timestamps: tr.rand.IntN(2) == 0,
			id: uint16(tr.rand.Uint32()), seq: tr.rand.Uint32(),
		}
		tr.flows = append(tr.flows, f)
	}
	return tr
}

// batch is up to n packets, of one flow mostly where their sender has much to say.
func (tr *traffic) batch(t testing.TB, n int) (all []inner) {
	f := tr.flows[0]
	for range 1 + tr.rand.IntN(n) {
		if tr.rand.IntN(3) == 0 {
			f = tr.flows[tr.rand.IntN(len(tr.flows))]
		}
		all = append(all, tr.next(t, f))
	}
	return all
}

// next is the flow's next packet: full, shorter, a superpacket, a fragment, with a checksum or without.
func (tr *traffic) next(t testing.TB, f *trafficFlow) inner {
	t.Helper()
	length, super := f.size, false
	switch tr.rand.IntN(8) {
	case 0:
		length = tr.rand.IntN(f.size + 1)
	case 1, 2:
		most := min(60, 64000/f.size)
		length, super = f.size*(1+tr.rand.IntN(most)), true
		if tr.rand.IntN(2) == 0 {
			length += tr.rand.IntN(f.size)
		}
	}
	from := tr.rand.IntN(len(tr.blob) - length)
	payload := bytes.Clone(tr.blob[from : from+length])
	f.sent++
	if length >= 4 {
		binary.BigEndian.PutUint32(payload, f.sent)
	}

	ip := ipLayer(f.src, f.dst, layers.IPProtocolUDP)
	ip.Id, ip.TOS = f.id, 0
	if tr.rand.IntN(20) == 0 {
		ip.TOS = uint8(tr.rand.IntN(4))
	}
	if f.df {
		ip.Flags = layers.IPv4DontFragment
	}
	f.id += uint16((length + f.size) / f.size)
	if f.tcp {
		return tr.tcp(t, f, ip, payload, super)
	}
	if tr.rand.IntN(30) == 0 {
		part := payload[:min(len(payload), 1000)&^7]
		offset := uint16(tr.rand.IntN(3))
		if len(ip.SrcIP) == 16 {
			ip.Protocol = layers.IPProtocolIPv6Fragment
			header := binary.BigEndian.AppendUint16([]byte{17, 0}, offset<<3|1)
			return inner{p: onIP(t, ip, gopacket.Payload(append(append(header, 0, 0, 0, byte(f.sent)), part...)))}
		}
		ip.Flags, ip.FragOffset = layers.IPv4MoreFragments, offset
		return inner{p: serialize(t, ip, gopacket.Payload(part))}
	}
	p := onIP(t, ip, &layers.UDP{SrcPort: layers.UDPPort(f.sport), DstPort: layers.UDPPort(f.dport)}, gopacket.Payload(payload))
	switch {
	case super:
		return superpacket(p, f.size)
	case tr.rand.IntN(10) == 0:
		return unfinished(p)
	case tr.rand.IntN(20) == 0:
		clear(p[headerLen(p)+6:][:2]) // none
	}
	return inner{p: p}
}

func (tr *traffic) tcp(t testing.TB, f *trafficFlow, ip *layers.IPv4, payload []byte, super bool) inner {
	t.Helper()
	ip.Protocol = layers.IPProtocolTCP
	tcp := &layers.TCP{
		SrcPort: layers.TCPPort(f.sport), DstPort: layers.TCPPort(f.dport), Seq: f.seq, Ack: f.sent / 16, Window: 100,
		ACK: true, PSH: tr.rand.IntN(6) == 0, FIN: tr.rand.IntN(30) == 0, CWR: tr.rand.IntN(30) == 0, ECE: tr.rand.IntN(30) == 0,
	}
	f.seq += uint32(len(payload))
	if f.timestamps {
		tcp.Options = []layers.TCPOption{
			{OptionType: layers.TCPOptionKindNop}, {OptionType: layers.TCPOptionKindNop},
			{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: []byte{0, 0, 0, byte(f.sent / 8), 0, 0, 0, 1}},
		}
	}
	p := onIP(t, ip, tcp, gopacket.Payload(payload))
	switch {
	case super:
		return superpacket(p, f.size)
	case tr.rand.IntN(10) == 0:
		return unfinished(p)
	}
	return inner{p: p}
}

// setting is how much both ends of a way join.
type setting struct {
	segments int
	tcp, udp bool
	gro      float64
	perRead  int
}

func (s setting) String() string {
	return fmt.Sprintf("segments %d, joins %v %v, gro %v, reads %d", s.segments, s.tcp, s.udp, s.gro, s.perRead)
}

func (s setting) apply(x *bench) {
	x.limitSegments(s.segments)
	x.dev.perRead = s.perRead
	x.dev.tcp.Store(s.tcp)
	x.dev.udp.Store(s.udp)
}

// nothingJoined is the slow twin of every other.
var nothingJoined = setting{segments: 1}

var settings = []setting{
	nothingJoined,
	{segments: 1, tcp: true, udp: true, gro: 0.9, perRead: 1},
	{segments: 64, tcp: true, perRead: 1},
	{segments: 127, udp: true, gro: 0.5, perRead: 3},
	{segments: 127, tcp: true, udp: true, gro: 1},
	{segments: 2, tcp: true, udp: true, gro: 0.9, perRead: 2},
}

// Whatever is sent, and however much is joined on the way, each flow arrives as it was sent, nothing lost or
// doubled, in order; and joining changes nothing that the receiver sees.
func TestEachFlowArrivesInOrder(t *testing.T) {
	for _, nodes := range families {
		for _, name := range framingNames {
			t.Run(fmt.Sprintf("%s/IPv6 %v", name, nodes[0].six()), func(t *testing.T) { eachFlowArrivesInOrder(t, nodes, name) })
		}
	}
}

func eachFlowArrivesInOrder(t *testing.T, nodes [3]node, name string) {
	for seed := range uint64(6) {
		// One input for all settings.
		tr := newTraffic(seed, 1+int(seed*5), nodes[0], nodes[1], nodes[2])
		var batches [][]inner
		for range 4 {
			batches = append(batches, tr.batch(t, BatchSize+20))
		}
		want := cutAll(slices.Concat(batches...))
		a, b, c := newBenchOf(t, nodes[0], name, 1), newBenchOf(t, nodes[1], name, 1), newBenchOf(t, nodes[2], name, 1)
		var slow map[flow][]int // what reached B with nothing joined
		for _, s := range settings {
			t.Run(fmt.Sprintf("seed %d/%v", seed, s), func(t *testing.T) {
				for _, x := range []*bench{a, b, c} {
					x.renewPeers()
					s.apply(x)
				}
				n := newNetwork(seed, b, c)
				n.gro = s.gro
				for _, packets := range batches {
					n.send(t, a, packets...)
				}
				atB := b.dev.takeWritten()
				checkFlows(t, slices.Concat(atB, c.dev.takeWritten()), want)
				checkCounts(t, a, b, c, want)
				if lengths := flowLengths(atB); s == nothingJoined {
					slow = lengths
				} else if !reflect.DeepEqual(lengths, slow) {
					t.Errorf("other packets than with nothing joined")
				}
			})
		}
	}
}

// flowLengths is the lengths of each flow's packets.
func flowLengths(packets [][]byte) map[flow][]int {
	all := map[flow][]int{}
	for _, p := range packets {
		all[flowOf(p)] = append(all[flowOf(p)], len(p))
	}
	return all
}

// checkCounts holds the peers' counters against the packets that a sent to b and c.
func checkCounts(t *testing.T, a, b, c *bench, want [][]byte) {
	t.Helper()
	bytes := 0
	for _, p := range want {
		bytes += len(p)
	}
	tx, rx := a.b.Counters.TxPackets.Load()+a.c.Counters.TxPackets.Load(), b.a.Counters.RxPackets.Load()+c.a.Counters.RxPackets.Load()
	if tx != uint64(len(want)) || rx != tx {
		t.Errorf("%d packets counted as sent and %d as received, want %d", tx, rx, len(want))
	}
	tx, rx = a.b.Counters.TxBytes.Load()+a.c.Counters.TxBytes.Load(), b.a.Counters.RxBytes.Load()+c.a.Counters.RxBytes.Load()
	if tx != uint64(bytes) || rx != tx {
		t.Errorf("%d bytes counted as sent and %d as received, want %d", tx, rx, bytes)
	}
	for _, x := range []*bench{a, b, c} {
		if d := x.Drops(); len(d) != 0 {
			t.Errorf("drops %v", d)
		}
	}
}

// An underlay that loses, doubles and reorders: each end writes just what reached it, each flow in the order
// in which it did, and no packet is made of parts of two.
func TestDisorderIsPassedOn(t *testing.T) {
	for seed := range uint64(20) {
		name, nodes := framingNames[seed%2], families[seed/2%2]
		t.Run(fmt.Sprintf("%s/IPv6 %v/seed %d", name, nodes[0].six(), seed), func(t *testing.T) {
			tr := newTraffic(seed, 4, nodes[0], nodes[1])
			a, b := newBenchOf(t, nodes[0], name, 1), newBenchOf(t, nodes[1], name, 1)
			n := newNetwork(seed, b)
			n.gro, n.loss, n.twice, n.overtaken = 0.9, 0.05, 0.02, 0.1
			var sent [][]byte
			for range 10 {
				packets := tr.batch(t, BatchSize)
				sent = append(sent, cutAll(packets)...)
				n.send(t, a, packets...)
			}
			got := b.dev.takeWritten()
			checkFlows(t, got, n.carried[nodes[1].public])
			known := map[string]bool{}
			for _, p := range sent {
				known[string(normal(t, p))] = true
			}
			for _, p := range got {
				if !known[string(normal(t, p))] {
					t.Fatalf("delivered a packet that nobody sent: %x", p)
				}
			}
			if len(got) == len(sent) {
				t.Error("nothing was lost: no test")
			}
			if d := b.Drops(); len(d) != 0 {
				t.Errorf("drops %v", d)
			}
		})
	}
}

// The cutter that the tests trust agrees with gopacket, segment by segment.
func TestCutIsSound(t *testing.T) {
	for _, nodes := range families {
		cutIsSound(t, newTraffic(1, 12, nodes[0], nodes[1]))
	}
}

func cutIsSound(t *testing.T, tr *traffic) {
	segments := 0
	for range 60 {
		for _, i := range tr.batch(t, 4) {
			for _, p := range cut(i.p, i.info) {
				if isSix(p) {
					if p[6] == 6 || p[6] == 17 && binary.BigEndian.Uint16(p[46:]) != 0 {
						checkSound6(t, p)
						segments++
					}
				} else if p[6]&0x3f|p[7] == 0 && (p[9] == 6 || binary.BigEndian.Uint16(p[26:]) != 0) {
					checkSound(t, p)
					segments++
				}
			}
		}
	}
	if segments < 500 {
		t.Errorf("%d segments only", segments)
	}
}

// The flows of a network's ends keep apart: what B and C send to A at once does not mix.
func TestTwoSenders(t *testing.T) {
	a := newBench(t, "vxlan")
	b, c := newBenchOf(t, nodeB, "vxlan", 1), newBenchOf(t, nodeC, "vxlan", 1)
	var ds []Datagram
	var want [][]byte
	for seed := range uint64(4) {
		fromB := newTraffic(seed, 3, nodeB, nodeA).batch(t, 20)
		fromC := newTraffic(seed, 3, nodeC, nodeA).batch(t, 20)
		want = slices.Concat(want, cutAll(fromB), cutAll(fromC))
		always := func() bool { return true }
		ds = slices.Concat(ds, received(nodeB, b.send(t, fromB...), always), received(nodeC, c.send(t, fromC...), always))
	}
	checkFlows(t, a.receive(t, ds...), want)
	var got [2]uint64
	for i, p := range []netip.Addr{nodeB.public, nodeC.public} {
		for _, peer := range a.Table().Peers() {
			if peer.PublicIP == p {
				got[i] = peer.Counters.RxPackets.Load()
			}
		}
	}
	if got[0] != b.a.Counters.TxPackets.Load() || got[1] != c.a.Counters.TxPackets.Load() {
		t.Errorf("%v packets counted from B and C, which sent %d and %d", got, b.a.Counters.TxPackets.Load(), c.a.Counters.TxPackets.Load())
	}
}
