package sight

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/bpf"

	"muslin/tunnel"
)

var (
	a4, b4 = netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("10.244.2.7")
	a6, b6 = netip.MustParseAddr("fd00:1::2"), netip.MustParseAddr("fd00:2::7")
)

// build is an IP packet with a transport header.
func build(src, dst netip.Addr, proto byte, rest []byte) []byte {
	if src.Is6() {
		p := make([]byte, 40, 40+len(rest))
		p[0], p[6] = 0x60, proto
		binary.BigEndian.PutUint16(p[4:], uint16(len(rest)))
		copy(p[8:], src.AsSlice())
		copy(p[24:], dst.AsSlice())
		return append(p, rest...)
	}
	p := make([]byte, 20, 20+len(rest))
	p[0], p[9] = 0x45, proto
	binary.BigEndian.PutUint16(p[2:], uint16(20+len(rest)))
	copy(p[12:], src.AsSlice())
	copy(p[16:], dst.AsSlice())
	return append(p, rest...)
}

func echo(kind byte, id uint16) []byte { return []byte{kind, 0, 0, 0, byte(id >> 8), byte(id), 0, 1} }

func ends(src, dst uint16, flags byte) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, src)
	binary.BigEndian.PutUint16(b[2:], dst)
	b[13] = flags
	return b
}

func icmpError(kind, code byte, about []byte) []byte {
	return append([]byte{kind, code, 0, 0, 0, 0, 0, 0}, about...)
}

func TestMatch(t *testing.T) {
	ping := Packet{Src: a4, Dst: b4, Proto: ICMP, ID: 7}
	ping6 := Packet{Src: a6, Dst: b6, Proto: ICMP, ID: 7}
	syn := Packet{Src: a4, Dst: b4, Proto: TCP, SrcPort: 1000, DstPort: 80}
	udp := Packet{Src: a4, Dst: b4, Proto: UDP, SrcPort: 1000, DstPort: 53}
	stranger := netip.MustParseAddr("192.0.2.9")
	for _, c := range []struct {
		name string
		p    Packet
		b    []byte
		what string
		says string
	}{
		{"the request", ping, build(a4, b4, 1, echo(8, 7)), Itself, ""},
		{"with another source", ping, build(stranger, b4, 1, echo(8, 7)), Itself, ""},
		{"another one's", ping, build(a4, b4, 1, echo(8, 8)), "", ""},
		{"to another one", ping, build(a4, stranger, 1, echo(8, 7)), "", ""},
		{"the reply", ping, build(b4, a4, 1, echo(0, 7)), Answer, "echo reply"},
		{"a reply to another one", ping, build(b4, a4, 1, echo(0, 8)), "", ""},
		{"a router's error", ping, build(stranger, a4, 1, icmpError(3, 1, build(a4, b4, 1, echo(8, 7)))), Error, "host unreachable"},
		{"an error about another one", ping, build(stranger, a4, 1, icmpError(3, 1, build(a4, b4, 1, echo(8, 8)))), "", ""},
		{"IPv6", ping6, build(a6, b6, 58, echo(128, 7)), Itself, ""},
		{"IPv6's reply", ping6, build(b6, a6, 58, echo(129, 7)), Answer, "echo reply"},
		{"IPv6's error", ping6, build(b6, a6, 58, icmpError(2, 0, build(a6, b6, 58, echo(128, 7)))), Error, "packet too big"},
		{"a SYN", syn, build(a4, b4, 6, ends(1000, 80, flagSYN)), Itself, ""},
		{"a SYN/ACK", syn, build(b4, a4, 6, ends(80, 1000, flagSYN|flagACK)), Answer, "SYN/ACK"},
		{"an RST", syn, build(b4, a4, 6, ends(80, 1000, flagRST|flagACK)), Answer, "RST"},
		{"another port", syn, build(a4, b4, 6, ends(1000, 81, flagSYN)), "", ""},
		{"another protocol", syn, build(a4, b4, 17, ends(1000, 80, 0)), "", ""},
		{"a datagram", udp, build(a4, b4, 17, ends(1000, 53, 0)), Itself, ""},
		{"its answer", udp, build(b4, a4, 17, ends(53, 1000, 0)), Answer, "datagram"},
		{"nobody listens", udp, build(b4, a4, 1, icmpError(3, 3, build(a4, b4, 17, ends(1000, 53, 0)))), Error, "port unreachable"},
	} {
		s, ok := c.p.match(c.b)
		if ok != (c.what != "") || s.What != c.what || s.Says != c.says {
			t.Errorf("%s: %q %q", c.name, s.What, s.Says)
		}
		if n := run(t, []Packet{ping6, c.p}, c.b); ok && n == 0 {
			t.Errorf("%s: the filter does not take it", c.name)
		} else if c.what == "" && c.b[9] != 1 && n != 0 {
			t.Errorf("%s: the filter takes it", c.name)
		}
		for cut := range c.b {
			c.p.match(c.b[:cut]) // does not panic
		}
	}
}

func run(t *testing.T, packets []Packet, b []byte) int {
	t.Helper()
	raw, err := assemble(packets)
	if err != nil {
		t.Fatal(err)
	}
	var code []bpf.Instruction
	for _, r := range raw {
		code = append(code, bpf.RawInstruction{Op: r.Code, Jt: r.Jt, Jf: r.Jf, K: r.K}.Disassemble())
	}
	vm, err := bpf.NewVM(code)
	if err != nil {
		t.Fatal(err)
	}
	n, err := vm.Run(b)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// What match takes, the filter takes, whatever the packet.
func TestFilterTwin(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	addresses := [][]netip.Addr{{a4, b4, netip.MustParseAddr("10.244.2.8")}, {a6, b6, netip.MustParseAddr("fd00:2::8")}}
	taken, passed := 0, 0
	for range 20000 {
		six := r.IntN(2)
		pick := func() netip.Addr { return addresses[six][r.IntN(3)] }
		p := Packet{Src: addresses[six][0], Dst: addresses[six][1], Proto: []string{ICMP, TCP, UDP}[r.IntN(3)], ID: 1, SrcPort: 1, DstPort: 2}
		transport := func() []byte {
			b := make([]byte, 20)
			copy(b, []byte{[]byte{0, 8, 128, 129, 3, 11, 1}[r.IntN(7)], byte(r.IntN(3)), 0, byte(r.IntN(3)), 0, byte(r.IntN(3))})
			if r.IntN(2) == 0 {
				binary.BigEndian.PutUint16(b, uint16(r.IntN(3)))
			}
			return b
		}
		proto := []byte{1, 58, 6, 17}[r.IntN(4)]
		b := build(pick(), pick(), proto, transport())
		if r.IntN(3) == 0 {
			b = build(pick(), pick(), []byte{1, 58}[six], icmpError([]byte{3, 11, 1}[r.IntN(3)], 1, b))
		}
		if _, ok := p.match(b); ok {
			taken++
			if run(t, []Packet{p}, b) == 0 {
				t.Fatalf("%+v: %x", p, b)
			}
		} else if run(t, []Packet{p}, b) != 0 {
			passed++
		}
	}
	if taken < 100 || passed > 12000 {
		t.Errorf("%d were taken, %d passed for nothing: the test shows little", taken, passed)
	}
}

func TestWatcher(t *testing.T) {
	var told tunnel.Observer
	stopped := 0
	w := New(Config{Paths: func() []DataPath {
		return []DataPath{{Headroom: 8, Observe: func(o tunnel.Observer, _ tunnel.Points) func() {
			told = o
			return func() { stopped++ }
		}}}
	}})
	p := Packet{Src: a4, Dst: b4, Proto: ICMP, ID: 7}
	id, err := w.Arm("me", p, time.Second, nil)
	if err != nil {
		t.Fatal(err)
	}
	request := build(a4, b4, 1, echo(8, 7))
	told.Observe(&tunnel.Seen{Point: tunnel.PointInner, Bufs: [][]byte{request}, Len: len(request)})
	framed := append(make([]byte, 8), request...)
	peer := netip.MustParseAddrPort("192.0.2.2:8472")
	told.Observe(&tunnel.Seen{Point: tunnel.PointDrop, Inbound: true, Outer: true, Bufs: [][]byte{framed[:11], framed[11:]}, Len: len(framed), Src: peer, Reason: tunnel.DropVNI})
	told.Observe(&tunnel.Seen{Point: tunnel.PointOuter, Inbound: true, Outer: true, Bufs: [][]byte{framed[:8]}, Len: 8})
	r, err := w.Seen("me", id, false)
	if err != nil || len(r.Sightings) != 2 || r.Sightings[0].Point != Inner || r.Sightings[1].Point != Drop || r.Sightings[1].Reason != "vxlan-vni" ||
		r.Sightings[1].OuterSrc != peer.String() || !r.DataPath || r.Devices {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := w.Seen("you", id, true); err == nil {
		t.Error("somebody else is told of it")
	}
	for range 2 * MaxSightings {
		told.Observe(&tunnel.Seen{Point: tunnel.PointInner, Bufs: [][]byte{request}, Len: len(request)})
	}
	if r, _ := w.Seen("me", id, false); len(r.Sightings) != MaxSightings || r.More != MaxSightings+2 {
		t.Errorf("%d are kept, and %d more", len(r.Sightings), r.More)
	}
	for range maxArmed - 1 {
		if _, err := w.Arm("me", p, time.Second, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Arm("me", p, time.Second, nil); err == nil {
		t.Error("one more than the most is looked for")
	}
	if _, err := w.Seen("me", id, true); err != nil || stopped != 1 {
		t.Errorf("%d have ended, %v", stopped, err)
	}
	if w.prune(time.Now().Add(2*time.Second)) || stopped != maxArmed {
		t.Errorf("%d of %d have ended in time", stopped, maxArmed)
	}
	if _, err := w.Seen("me", id, false); err != nil {
		t.Error("what was seen is forgotten at once:", err)
	}
	w.prune(time.Now().Add(time.Second + keepFor + time.Second))
	if _, err := w.Seen("me", id, false); err == nil {
		t.Error("it is never forgotten")
	}
	for _, bad := range []Packet{{}, {Src: a4, Dst: b6, Proto: ICMP}, {Src: a4, Dst: b4, Proto: "sctp"}} {
		if _, err := w.Arm("me", bad, time.Second, nil); err == nil {
			t.Errorf("%+v is looked for", bad)
		}
	}
	if _, err := w.Arm("me", p, time.Minute, nil); err == nil {
		t.Error("a watch of a minute is armed")
	}
}

// A peer is told of its own packets alone.
func TestBetween(t *testing.T) {
	outer := netip.MustParseAddr("192.0.2.2")
	subnet := netip.MustParsePrefix("10.244.1.0/24")
	for name, c := range map[string]struct {
		s    Sighting
		want bool
	}{
		"its packet":                 {Sighting{What: Itself, src: a4, dst: b4}, true},
		"another one's":              {Sighting{What: Itself, src: netip.MustParseAddr("10.244.9.1"), dst: b4}, false},
		"in its datagram":            {Sighting{What: Itself, src: netip.MustParseAddr("10.244.9.1"), dst: b4, outer: outer, Inbound: true}, true},
		"the answer to it":           {Sighting{What: Answer, src: b4, dst: a4}, true},
		"the answer to another one":  {Sighting{What: Answer, src: b4, dst: netip.MustParseAddr("10.244.9.1")}, false},
		"an error to it":             {Sighting{What: Error, src: outer, dst: a4}, true},
		"an error to another one":    {Sighting{What: Error, src: a4, dst: outer}, false},
		"sent in a datagram from us": {Sighting{What: Answer, src: b4, dst: outer, outer: outer}, false},
	} {
		if got := c.s.Between(outer, subnet, netip.Prefix{}); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
