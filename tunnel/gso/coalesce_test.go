package gso

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/gopacket/layers"
)

// row is a stream and the number of packets in each run that comes of it.
type row struct {
	name string
	in   []item
	want []int
}

func flag(f byte) func(*spec) { return func(s *spec) { s.tcp |= f } }
func bad(how sum) func(*spec) { return func(s *spec) { s.sum = how } }
func evil(s *spec)            { s.flags |= layers.IPv4EvilBit }
func noDF(s *spec)            { s.flags &^= layers.IPv4DontFragment }

// changed is a row for each thing that must be equal: it is another in the second of three packets and in the
// third, which go on together.
func changed(t testing.TB, a spec, things map[string]func(*spec)) (rows []row) {
	for name, f := range things {
		b := a.after(100).with(f)
		rows = append(rows, row{"another " + name, items(t, a, b, b.after(100)), []int{1, 2}})
	}
	return rows
}

// never is a row for each thing that a packet in a run must not have, in the second of three packets.
func never(t testing.TB, a spec, things map[string]func(*spec)) (rows []row) {
	b := a.after(100)
	for name, f := range things {
		rows = append(rows,
			row{name + " in the middle", items(t, a, b.with(f), b.after(100)), []int{1, 1, 1}},
			row{name + " at the start", items(t, a.with(f), b, b.after(100)), []int{1, 2}},
			row{name + " at the end", items(t, a, b, b.after(100).with(f)), []int{2, 1}},
			row{name + " on all", items(t, a.with(f), b.with(f), b.after(100).with(f)), []int{1, 1, 1}})
	}
	return rows
}

// commonRows hold for TCP and UDP, of either IP version.
func commonRows(t testing.TB, a spec) []row {
	b := a.after(100)
	c := b.after(100)
	other := func(s *spec) { s.sport++ }
	ping := item{p: icmp(a.v6), as: foreign}
	left := b.with(bad(undone)).item(t)
	left.info = b.partialInfo()
	whole := a.with(func(s *spec) { s.payload, s.sum = random(300), undone }).item(t)
	whole.info = a.superInfo(100)
	next := a.after(300)
	next.payload = random(100)
	next.seq = a.seq + 300

	kept, size := b.item(t), b.item(t) // their checksums are right, whatever their Infos say
	kept.info, size.info = left.info, Info{Kind: whole.info.Kind, Size: 100}

	rows := []row{
		{"one", items(t, a), []int{1}},
		{"three in order", items(t, a, b, c), []int{3}},
		{"a shorter one ends the run", items(t, a, a.after(60), a.after(60).after(60)), []int{2, 1}},
		{"a longer one begins one", items(t, a, a.after(101), a.after(101).after(101)), []int{1, 2}},
		{"two flows by turns", items(t, a, a.with(other), b, b.with(other), c, c.with(other)), []int{3, 3}},
		{"ICMP between", append(items(t, a), ping, b.item(t)), []int{2, 1}},
		{"a checksum left undone, and said so", []item{a.item(t), left, c.item(t)}, []int{1, 1, 1}},
		{"a checksum said to be undone, that is there", []item{a.item(t), kept, c.item(t)}, []int{1, 1, 1}},
		{"a superpacket of one segment", []item{a.item(t), size, c.item(t)}, []int{1, 1, 1}},
		{"a superpacket", []item{whole, next.item(t), next.after(100).item(t)}, []int{1, 2}},
		{"a superpacket behind", []item{a.item(t), whole}, []int{1, 1}},
		{"the first wrong", items(t, a.with(bad(wrong)), b, c), []int{1, 2}},
		{"the second wrong", items(t, a, b.with(bad(wrong)), c), []int{1, 1, 1}},
		{"the third wrong", items(t, a, b, c.with(bad(wrong))), []int{2, 1}},
		{"one alone, and wrong", items(t, a.with(bad(wrong))), []int{1}},
		{"a checksum undone, and not said so", items(t, a, b.with(bad(undone)), c), []int{1, 1, 1}},
	}
	rows = append(rows, changed(t, a, map[string]func(*spec){
		"source":           func(s *spec) { s.src++ },
		"destination":      func(s *spec) { s.dst++ },
		"source port":      func(s *spec) { s.sport++ },
		"destination port": func(s *spec) { s.dport++ },
		"DSCP":             func(s *spec) { s.tos = 0x28 },
		"ECN":              func(s *spec) { s.tos = 3 },
		"TTL":              func(s *spec) { s.ttl-- },
	})...)
	rows = append(rows, row{"no payload in the middle", items(t, a, a.after(0), b), []int{1, 1, 1}})
	if a.v6 {
		return append(rows, append(changed(t, a, map[string]func(*spec){"flow label": func(s *spec) { s.label = 0xabcde }}),
			row{"an extension header", []item{a.item(t), {p: extend(b.build(t), 60), as: opaque}, c.item(t)}, []int{1, 1, 1}},
			row{"a fragment", []item{a.item(t), {p: extend(b.build(t), 44), as: opaque}, c.item(t)}, []int{1, 1, 1}})...)
	}
	elsewhere := func(s *spec) { s.src, s.dst = 99, 98 }
	more := func(s *spec) { s.flags |= layers.IPv4MoreFragments; s.flags &^= layers.IPv4DontFragment }
	later := func(s *spec) { s.offset = 9 }
	a0, b0 := a.with(noDF), b.with(noDF)
	return append(rows,
		row{"DF, any identification", items(t, a, b.with(func(s *spec) { s.id = 7 }), c.with(func(s *spec) { s.id = 7 })), []int{3}},
		row{"no DF, identifications in order", items(t, a0, b0, b0.after(100)), []int{3}},
		row{"no DF, identifications over the end", items(t, a0.with(func(s *spec) { s.id = 65535 }), b0.with(func(s *spec) { s.id = 0 })), []int{2}},
		row{"no DF, the same identification", items(t, a0, b0.with(func(s *spec) { s.id = a0.id })), []int{1, 1}},
		row{"no DF, a gap in identifications", items(t, a0, b0.with(func(s *spec) { s.id++ }), b0.after(100).with(func(s *spec) { s.id++ })), []int{1, 2}},
		row{"DF gone", items(t, a, b0, b0.after(100)), []int{1, 2}},
		row{"DF come", items(t, a0, b, c), []int{1, 2}},
		row{"the reserved bit on one", items(t, a, b.with(evil), c), []int{1, 1, 1}},
		row{"the reserved bit on all", items(t, a.with(evil), b.with(evil), c.with(evil)), []int{1, 1, 1}},
		row{"IP options on all", items(t, a.with(func(s *spec) { s.ipOptions = 1 }), b.with(func(s *spec) { s.ipOptions = 1 })), []int{1, 1}},
		row{"IP options on one", items(t, a, b.with(func(s *spec) { s.ipOptions = 1 }), c), []int{1, 1, 1}},
		row{"a first fragment", items(t, a, b.with(more), c), []int{1, 1, 1}},
		row{"a later fragment, of another address", items(t, a, b.with(later).with(elsewhere), b), []int{1, 1, 1}},
	)
}

func tcpRows(t testing.TB, a spec) []row {
	b := a.after(100)
	c := b.after(100)
	ack := a.after(0)
	rows := []row{
		{"a gap", items(t, a, c, c.after(100)), []int{1, 2}},
		{"one again", items(t, a, a, b), []int{1, 2}},
		{"out of order", items(t, a, c, b), []int{1, 1, 1}},
		{"PSH on the first", items(t, a.with(flag(tcpPSH)), b, c), []int{1, 2}},
		{"PSH on the second", items(t, a, b.with(flag(tcpPSH)), c), []int{2, 1}},
		{"PSH on the third, shorter", items(t, a, b, b.after(9).with(flag(tcpPSH)), b.after(9).after(9)), []int{3, 1}},
		{"PSH on the first of all and its run", items(t, a, b.with(func(s *spec) { s.ack++ }).with(flag(tcpPSH)), c), []int{1, 1, 1}},
		{"ECE on all", items(t, a.with(flag(tcpECE)), b.with(flag(tcpECE)), c.with(flag(tcpECE))), []int{3}},
		{"ECE on one", items(t, a, b.with(flag(tcpECE)), c), []int{1, 1, 1}},
		{"an acknowledgement ends the run", items(t, a, ack, ack.after(0), b), []int{1, 1, 1, 1}},
		{"an acknowledgement of another flow", items(t, a, ack.with(func(s *spec) { s.sport++ }), b), []int{2, 1}},
		{"no options", items(t, a.with(bare), b.with(bare), c.with(bare)), []int{3}},
		{"another number of options", items(t, a, b.with(bare), c.with(bare)), []int{1, 2}},
		{"no ACK", items(t, a.with(noACK), b.with(noACK)), []int{1, 1}},
	}
	rows = append(rows, changed(t, a, map[string]func(*spec){
		"acknowledgement": func(s *spec) { s.ack++ },
		"window":          func(s *spec) { s.window-- },
		"urgent pointer":  func(s *spec) { s.urgent = 1 },
		"option":          func(s *spec) { s.options = slices.Concat(s.options[:11], []byte{9}) },
		"early option":    func(s *spec) { s.options = slices.Concat([]byte{0}, s.options[1:]) },
	})...)
	return append(rows, never(t, a, map[string]func(*spec){
		"FIN": flag(tcpFIN), "SYN": flag(2), "RST": flag(4), "URG": flag(0x20), "CWR": flag(tcpCWR),
		"a reserved bit": func(s *spec) { s.reserved = 1 },
	})...)
}

func bare(s *spec)  { s.options = nil }
func noACK(s *spec) { s.tcp &^= tcpACK }

func udpRows(t testing.TB, a spec) []row {
	return append(never(t, a, map[string]func(*spec){"no checksum": bad(absent)}),
		row{"64 and no more", items(t, follow(oneUDP(3).with(func(s *spec) { s.v6 = a.v6 }), 130, 3)...), []int{64, 64, 2}})
}

// icmp is an echo request, as far as anybody looks.
func icmp(v6 bool) []byte {
	if v6 {
		return append([]byte{0x60, 0, 0, 0, 0, 8, 58, 64, 0xfd, 23: 7, 24: 0xfd, 39: 5}, 128, 0, 0, 0, 0, 1, 0, 1)
	}
	return append([]byte{0x45, 0, 0, 28, 0, 1, 0, 0, 64, 1, 0, 0, 10, 2, 0, 7, 10, 1, 0, 5}, 8, 0, 0, 0, 0, 1, 0, 1)
}

func TestCoalesceRules(t *testing.T) {
	both(t, func(t *testing.T, v6 func(*spec)) {
		for name, a := range map[string]spec{"TCP": oneTCP(100).with(v6), "UDP": oneUDP(100).with(v6)} {
			t.Run(name, func(t *testing.T) {
				rows := commonRows(t, a)
				if a.udp {
					rows = append(rows, udpRows(t, a)...)
				} else {
					rows = append(rows, tcpRows(t, a)...)
				}
				for _, r := range rows {
					t.Run(r.name, func(t *testing.T) {
						c := NewCoalescer(200)
						coalesce(c, r.in, func(_ []item, runs []Run) {
							if got := bufsOf(runs); !slices.Equal(got, r.want) {
								t.Fatalf("runs of %v packets, want %v", got, r.want)
							}
						})
						checkAgainstTwin(t, c, r.in)
					})
				}
			})
		}
	})
}

func bufsOf(runs []Run) (n []int) {
	for _, r := range runs {
		n = append(n, len(r.Bufs))
	}
	return n
}

// TestCoalesceSwitches: what is switched off is passed on packet by packet, the rest is joined.
func TestCoalesceSwitches(t *testing.T) {
	in := slices.Concat(items(t, follow(oneTCP(100), 3, 100)...), items(t, follow(oneUDP(100), 3, 100)...))
	c := NewCoalescer(10)
	for _, s := range []struct {
		tcp, udp bool
		want     []int
	}{
		{true, true, []int{3, 3}}, {true, false, []int{3, 1, 1, 1}}, {false, true, []int{1, 1, 1, 3}}, {false, false, []int{1, 1, 1, 1, 1, 1}},
	} {
		c.TCP, c.UDP = s.tcp, s.udp
		coalesce(c, in, func(_ []item, runs []Run) {
			if got := bufsOf(runs); !slices.Equal(got, s.want) {
				t.Errorf("TCP %v, UDP %v: runs of %v packets, want %v", s.tcp, s.udp, got, s.want)
			}
		})
		checkAgainstTwin(t, c, in)
	}
}

// TestCoalesceLimits: a run grows to 65,535 bytes and not to 65,536, and to no more buffers than writev takes.
func TestCoalesceLimits(t *testing.T) {
	both(t, func(t *testing.T, v6 func(*spec)) {
		headers := transportOf(oneTCP(0).with(v6).build(t)) + 32
		full := 65535 - headers
		for _, last := range []int{full % 1000, full%1000 + 1} {
			stream := follow(oneTCP(1000).with(v6), full/1000, 1000)
			stream = append(stream, stream[len(stream)-1].after(1000).with(func(s *spec) { s.payload = random(last) }))
			want := []int{len(stream)}
			if last > full%1000 {
				want = []int{len(stream) - 1, 1}
			}
			c := NewCoalescer(100)
			coalesce(c, items(t, stream...), func(_ []item, runs []Run) {
				if got := bufsOf(runs); !slices.Equal(got, want) {
					t.Errorf("runs of %v packets, want %v", got, want)
				}
			})
			checkAgainstTwin(t, c, items(t, stream...))
		}
		checkAgainstTwin(t, NewCoalescer(3000), items(t, follow(oneTCP(1).with(v6), 2100, 1)...))
	})
}

// TestCoalesceRoom: a full coalescer takes nothing, and has room again after Reset.
func TestCoalesceRoom(t *testing.T) {
	in := items(t, follow(oneTCP(100), 8, 100)...)
	c := NewCoalescer(3)
	for round := range 3 {
		for i, it := range in[:4] {
			if got, want := c.Add(bytes.Clone(it.p), Info{}), i < 3; got != want {
				t.Fatalf("round %d, packet %d: taken %v", round, i, got)
			}
		}
		if got := bufsOf(c.Runs()); !slices.Equal(got, []int{3}) {
			t.Fatalf("round %d: runs of %v packets", round, got)
		}
		c.Reset()
	}
	if len(c.Runs()) != 0 {
		t.Error("runs after Reset")
	}
	if NewCoalescer(0).Add(in[0].p, Info{}) {
		t.Error("one without room took a packet")
	}
}

// TestCoalesceSegments: a superpacket that is passed on counts for as many packets as it will be.
func TestCoalesceSegments(t *testing.T) {
	for _, n := range []int{1, 100, 101, 250} {
		s := oneTCP(n).with(bad(undone))
		c := NewCoalescer(1)
		c.Add(s.build(t), s.superInfo(100))
		if r := c.Runs()[0]; r.Segments != (n+99)/100 || r.Info != s.superInfo(100) {
			t.Errorf("%d bytes in segments of 100: %+v", n, r)
		}
	}
}

// TestCoalesceManyFlows: with as many flows as packets by turns, every flow has its run.
func TestCoalesceManyFlows(t *testing.T) {
	for _, flows := range []int{16, 17, 63, 64, 100} {
		var in []item
		for turn := range 3 {
			for i := range flows {
				s := oneTCP(10).with(func(s *spec) { s.sport += uint16(i); s.v6 = i%2 == 0 })
				for range turn {
					s = s.after(10)
				}
				in = append(in, s.item(t))
			}
		}
		c := NewCoalescer(len(in))
		coalesce(c, in, func(_ []item, runs []Run) {
			if len(runs) != flows {
				t.Errorf("%d flows by turns: %d runs", flows, len(runs))
			}
		})
		checkAgainstTwin(t, c, in)
	}
}

func TestCoalesceNoAllocation(t *testing.T) {
	var in []item
	for i := range 40 {
		in = append(in, items(t, follow(oneTCP(100).with(func(s *spec) { s.sport = uint16(i % 7); s.v6 = i%2 == 0 }), 3, 100)...)...)
		in = append(in, items(t, follow(oneUDP(100), 3, 100)...)...)
	}
	c := NewCoalescer(len(in))
	fresh := make([][]byte, len(in))
	for i := range in {
		fresh[i] = bytes.Clone(in[i].p)
	}
	if n := testing.AllocsPerRun(20, func() {
		for i, p := range fresh {
			copy(p, in[i].p)
			if !c.Add(p, in[i].info) {
				t.Fatal("no room")
			}
		}
		if runs := c.Runs(); len(runs) < 2 || len(runs) == len(in) {
			t.Fatal("nothing to see")
		}
		c.Reset()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
