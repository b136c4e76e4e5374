package gso

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/google/gopacket/layers"
)

// item is one Add: a packet, what stands in front of it, and the packet in words where it has a flow.
type item struct {
	p    []byte
	info Info
	spec spec
	as   standing // opaque and foreign are what the twin goes by; the rest it finds out
}

func (s spec) item(t testing.TB) item {
	i := item{p: s.build(t), spec: s}
	if s.flags&layers.IPv4MoreFragments != 0 || s.offset > 0 || s.ipOptions > 0 {
		i.as = opaque
	}
	return i
}

func items(t testing.TB, specs ...spec) (all []item) {
	for _, s := range specs {
		all = append(all, s.item(t))
	}
	return all
}

// group is a run as the twin sees it.
type group struct {
	items  []item
	closed bool
	flow   bool // its packets have a spec
}

func (g *group) first() spec { return g.items[0].spec }
func (g *group) last() spec  { return g.items[len(g.items)-1].spec }

func (g *group) bytes() int {
	n := 0
	for i, it := range g.items {
		if n += len(it.spec.payload); i == 0 {
			n = len(it.p)
		}
	}
	return n
}

func sameFlow(a, b spec) bool {
	return a.v6 == b.v6 && a.udp == b.udp && a.src == b.src && a.dst == b.dst && a.sport == b.sport && a.dport == b.dport
}

// mayStand says what must be so of a packet that stands in a run with others.
func mayStand(i item) bool {
	s := i.spec
	return i.info == Info{} && len(s.payload) > 0 && s.flags&layers.IPv4EvilBit == 0 && (s.v6 || s.ipOptions == 0) &&
		(s.udp && s.sum != absent || !s.udp && s.reserved == 0 && slices.Contains([]byte{tcpACK, tcpACK | tcpPSH, tcpACK | tcpECE, tcpACK | tcpECE | tcpPSH}, s.tcp))
}

// rules say when a packet does not go on from a group that is of its flow and open.
var rules = []struct {
	name   string
	broken func(g *group, i item) bool
}{
	{"TOS or traffic class", func(g *group, i item) bool { return i.spec.tos != g.first().tos }},
	{"TTL or hop limit", func(g *group, i item) bool { return i.spec.ttl != g.first().ttl }},
	{"flow label", func(g *group, i item) bool { return i.spec.v6 && i.spec.label != g.first().label }},
	{"DF", func(g *group, i item) bool { return !i.spec.v6 && i.spec.flags != g.first().flags }},
	{"identification", func(g *group, i item) bool {
		return !i.spec.v6 && i.spec.flags&layers.IPv4DontFragment == 0 && i.spec.id != g.last().id+1
	}},
	{"sequence number", func(g *group, i item) bool {
		return !i.spec.udp && i.spec.seq != g.last().seq+uint32(len(g.last().payload))
	}},
	{"acknowledgement", func(g *group, i item) bool { return !i.spec.udp && i.spec.ack != g.first().ack }},
	{"window", func(g *group, i item) bool { return !i.spec.udp && i.spec.window != g.first().window }},
	{"urgent pointer", func(g *group, i item) bool { return !i.spec.udp && i.spec.urgent != g.first().urgent }},
	{"flags", func(g *group, i item) bool { return !i.spec.udp && (i.spec.tcp^g.first().tcp)&^tcpPSH != 0 }},
	{"options", func(g *group, i item) bool { return !i.spec.udp && !bytes.Equal(i.spec.options, g.first().options) }},
	{"longer than the first", func(g *group, i item) bool { return len(i.spec.payload) > len(g.first().payload) }},
	{"total length", func(g *group, i item) bool { return g.bytes()+len(i.spec.payload) > 65535 }},
	{"UDP segments", func(g *group, i item) bool { return i.spec.udp && len(g.items) == 64 }},
	{"iovec", func(g *group, i item) bool { return len(g.items) == 1023 }},
}

// twin is the slow way to coalesce: over packets in words, with a search back through all groups.
func twin(all []item, tcp, udp bool) []*group {
	var groups []*group
	for _, it := range all {
		g := &group{items: []item{it}, closed: true, flow: it.as < opaque}
		if it.as == foreign || it.as < opaque && (it.spec.udp && !udp || !it.spec.udp && !tcp) {
			groups = append(groups, g)
			continue
		}
		if it.as == opaque {
			for _, o := range groups {
				o.closed = true
			}
			groups = append(groups, g)
			continue
		}
		if !appended(groups, it, g) {
			groups = append(groups, g)
		}
	}
	return groups
}

// appended puts the packet to the last group of its flow, or says how g, the group that it begins, stands.
func appended(groups []*group, it item, g *group) bool {
	stands := mayStand(it)
	g.closed = !stands || !it.spec.udp && it.spec.tcp&tcpPSH != 0
	for _, last := range slices.Backward(groups) {
		if !last.flow || !sameFlow(last.first(), it.spec) {
			continue
		}
		fits := stands && !last.closed
		for _, r := range rules {
			fits = fits && !r.broken(last, it)
		}
		if fits && last.first().sum == right && it.spec.sum == right {
			last.items = append(last.items, it)
			last.closed = len(it.spec.payload) < len(last.first().payload) || !it.spec.udp && it.spec.tcp&tcpPSH != 0
			return true
		}
		last.closed = true
		break
	}
	return false
}

// want is the run that the group should have come out as.
func (g *group) want(t testing.TB) (p []byte, info Info) {
	if len(g.items) == 1 {
		return g.items[0].p, g.items[0].info
	}
	whole := g.first()
	whole.payload = nil
	for _, it := range g.items {
		whole.payload = append(whole.payload, it.spec.payload...)
	}
	whole.tcp |= g.last().tcp & tcpPSH
	whole.sum = undone
	return whole.build(t), whole.superInfo(len(g.first().payload))
}

// coalesce adds all to c, with as many rounds as c has need of, and hands each round's runs to f.
func coalesce(c *Coalescer, all []item, f func(round []item, runs []Run)) {
	for len(all) > 0 {
		n := 0
		for n < len(all) && c.Add(bytes.Clone(all[n].p), all[n].info) {
			n++
		}
		f(all[:n], c.Runs())
		c.Reset()
		all = all[n:]
	}
}

// checkAgainstTwin coalesces all and holds every run, byte for byte, against the twin's, and what a cut makes
// of the runs against what went in.
func checkAgainstTwin(t testing.TB, c *Coalescer, all []item) {
	t.Helper()
	coalesce(c, all, func(round []item, runs []Run) {
		if len(round) == 0 {
			t.Fatal("an empty coalescer had no room")
		}
		groups := twin(round, c.TCP, c.UDP)
		for i := range min(len(runs), len(groups)) {
			checkRun(t, i, runs[i], groups[i])
		}
		if len(runs) != len(groups) {
			t.Fatalf("%d runs, the twin has %d", len(runs), len(groups))
		}
		checkIdentity(t, round, runs)
	})
}

func checkRun(t testing.TB, i int, r Run, g *group) {
	t.Helper()
	if r.Segments != len(g.items) && r.Info.Kind == None || len(r.Bufs) != len(g.items) {
		t.Fatalf("run %d: %d segments in %d buffers, the twin has %d", i, r.Segments, len(r.Bufs), len(g.items))
	}
	p, info := g.want(t)
	got := bytes.Join(r.Bufs, nil)
	if r.Info != info {
		t.Fatalf("run %d of %d packets: %+v, want %+v", i, len(g.items), r.Info, info)
	}
	if r.Len != len(got) || !bytes.Equal(got, p) {
		t.Fatalf("run %d of %d packets, said to be %d bytes, is\n%x, want\n%x", i, len(g.items), r.Len, head(got), head(p))
	}
}

func head(p []byte) []byte { return p[:min(len(p), 100)] }

// checkIdentity cuts the runs and looks for every packet of the round in its flow's order, bytes and all; the
// identification of an IPv4 packet with DF alone may be another.
func checkIdentity(t testing.TB, round []item, runs []Run) {
	t.Helper()
	var out []item
	for i := range runs {
		whole := bytes.Join(runs[i].Bufs, nil)
		if len(runs[i].Bufs) == 1 { // one packet, perhaps a superpacket already
			out = append(out, item{p: whole, info: runs[i].Info})
			continue
		}
		for _, p := range cut(t, whole, runs[i].Info) {
			out = append(out, item{p: p})
		}
	}
	if len(out) != len(round) {
		t.Fatalf("%d packets came out, %d went in", len(out), len(round))
	}
	// Of any flow the packets in and those out are the same list. Where a packet's flow cannot be read, that
	// goes for everything: nothing passes it on either side.
	in, from := byFlow(round), 0
	for i, it := range round {
		if it.as != opaque {
			continue
		}
		if !bytes.Equal(out[i].p, it.p) {
			t.Fatalf("packet %d closes every run, and another stands in its place", i)
		}
		compareFlows(t, byFlow(round[from:i]), byFlow(out[from:i]))
		from = i + 1
	}
	compareFlows(t, in, byFlow(out))
}

func compareFlows(t testing.TB, in, out map[string][]item) {
	t.Helper()
	for flow, want := range in {
		got := out[flow]
		if len(got) != len(want) {
			t.Fatalf("flow %x: %d packets came out, %d went in", flow, len(got), len(want))
		}
		for i := range want {
			if w, g := anyID(want[i].p), anyID(got[i].p); got[i].info != want[i].info || !bytes.Equal(g, w) {
				t.Fatalf("flow %x, packet %d came out as\n%x, went in as\n%x", flow, i, head(g), head(w))
			}
		}
	}
}

// byFlow sorts packets by addresses, protocol, and the four bytes where ports would be.
func byFlow(all []item) map[string][]item {
	flows := map[string][]item{}
	for _, it := range all {
		p := it.p
		at, key := transportOf(p), ""
		if p[0]>>4 == 6 {
			key = string(p[6:7]) + string(p[8:40])
		} else {
			key = string(p[9:10]) + string(p[12:20])
		}
		key += string(p[at:min(at+4, len(p))])
		flows[key] = append(flows[key], it)
	}
	return flows
}

// anyID takes the identification and its share of the checksum out of an IPv4 packet with DF.
func anyID(p []byte) []byte {
	if p[0]>>4 == 4 && p[6]&0x40 != 0 {
		p = bytes.Clone(p)
		p[4], p[5] = 0, 0
		n := transportOf(p)
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], ^slowSum(p[:n], 0))
	}
	return p
}

// cut makes segments of a superpacket, as a list of whole packets.
func cut(t testing.TB, p []byte, info Info) (all [][]byte) {
	t.Helper()
	var s Splitter
	if !s.Reset(p, info) {
		t.Fatalf("a run with %+v is not taken for a superpacket: %x", info, head(p))
	}
	hdr := make([]byte, s.HeaderLen())
	for {
		payload, ok := s.Next(hdr)
		if !ok {
			break
		}
		all = append(all, append(bytes.Clone(hdr), payload...))
	}
	if len(all) != s.Segments() {
		t.Fatalf("%d segments, %d were promised", len(all), s.Segments())
	}
	return all
}
