package tunnel

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"testing"

	"github.com/google/gopacket/layers"

	"muslin/tunnel/fib"
	"muslin/tunnel/racetest"
)

const testPath = 1350

// What is too long for the way to one peer and may not be cut is answered with that way's MTU; to the other it goes on.
func TestPathMTUIsAnswered(t *testing.T) {
	for _, family := range families {
		for _, name := range framingNames {
			x := newBenchOf(t, family[0], name, 1)
			x.b.Counters.PathMTU.Store(testPath)
			from, to, other := x.addr("10.1.0.5"), x.addr("10.2.0.5"), x.addr("10.3.0.5")
			headers := 40
			if x.six {
				headers = 60
			}
			tcp := func(to string, bytes int) []byte {
				return tcpPacket(t, from, to, 1, numbered(bytes-headers), setDF)
			}
			answered := func(p []byte, mtu int) {
				t.Helper()
				replies := x.dev.takeReplies()
				if len(replies) != 1 {
					t.Fatalf("%d answers, drops %v", len(replies), x.Drops())
				}
				if x.six {
					checkICMP6(t, replies[0], 2, 0, mtu, p)
				} else {
					checkICMP(t, replies[0], icmpFragNeeded, mtu, p)
				}
			}
			if sent := x.sendPlain(t, tcp(to, testPath), tcp(other, testMTU)); len(sent) != 2 || len(x.Drops()) != 0 {
				t.Errorf("%d datagrams of packets as long as the ways take, drops %v", len(sent), x.Drops())
			}
			long := tcp(to, testPath+1)
			if sent := x.sendPlain(t, long); len(sent) != 0 || x.Drops()["too-big"] != 1 {
				t.Errorf("%d datagrams, drops %v", len(sent), x.Drops())
			}
			answered(long, testPath)
			super := superpacket(tcpPacket(t, from, to, 1, numbered(3*1400), setDF), testPath-headers+1)
			if sent := x.send(t, super); len(sent) != 0 || x.Drops()["too-big"] != 5 {
				t.Errorf("%d datagrams of a superpacket, drops %v", len(sent), x.Drops())
			}
			answered(super.p, testPath)
			if sent := x.send(t, superpacket(tcpPacket(t, from, to, 1, numbered(3*1400), setDF), testPath-headers)); len(sent) != 4 {
				t.Errorf("%d datagrams of a superpacket that fits", len(sent))
			}
			// The overlay's MTU counts where it is the smaller.
			x.SetMTU(1300)
			short := tcp(to, 1301)
			x.sendPlain(t, short)
			answered(short, 1300)
		}
	}
}

// The first packet that could be too long asks for the path to be looked at, and only such a one.
func TestPathMTUIsAskedFor(t *testing.T) {
	for _, family := range families {
		x := newBenchOf(t, family[0], "vxlan", 1)
		from, to := x.addr("10.1.0.5"), x.addr("10.2.0.5")
		expect := func(want int32) {
			t.Helper()
			if got := x.b.Counters.PathMTU.Load(); got != want || x.c.Counters.PathMTU.Load() != 0 {
				t.Errorf("PathMTU %d, want %d; of the other %d", got, want, x.c.Counters.PathMTU.Load())
			}
		}
		x.sendPlain(t, sized(t, from, to, x.least))
		expect(0)
		x.sendPlain(t, sized(t, from, to, x.least+1))
		expect(fib.PathAny)
		x.b.Counters.PathMTU.Store(testPath)
		x.sendPlain(t, sized(t, from, to, x.least+2))
		expect(testPath)
		if len(x.Drops()) != 0 {
			t.Errorf("drops %v", x.Drops())
		}
	}
}

// What may be cut is, and is the same once it is put together: packets, fragments, the segments of superpackets, with
// options and without.
func TestPathMTUFragments(t *testing.T) {
	option := func(kind uint8, data ...byte) layers.IPv4Option {
		return layers.IPv4Option{OptionType: kind, OptionLength: uint8(2 + len(data)), OptionData: data}
	}
	options := func(ip *layers.IPv4) {
		ip.Options = []layers.IPv4Option{option(7, 4, 0, 0, 0, 0), option(0x94, 0, 0), {OptionType: 1}} // record route, router alert
	}
	payload := string(numbered(1400))
	for _, c := range []struct {
		name string
		path int
		all  []inner
		want int // fragments
	}{
		{"one byte", testPath, plain(udpPacket(t, "10.1.0.5", "10.2.0.5", payload[:testPath-28+1])), 2},
		{"nothing", testPath, plain(udpPacket(t, "10.1.0.5", "10.2.0.5", payload[:testPath-28])), 1},
		{"many", 552, plain(udpPacket(t, "10.1.0.5", "10.2.0.5", payload)), 3},
		{"options", 552, plain(udpPacket(t, "10.1.0.5", "10.2.0.5", payload, options)), 3},
		{"a first fragment", testPath, plain(udpPacket(t, "10.1.0.5", "10.2.0.5", payload, func(ip *layers.IPv4) { ip.Flags = layers.IPv4MoreFragments })), 2},
		{"a later fragment", testPath, plain(udpPacket(t, "10.1.0.5", "10.2.0.5", payload, func(ip *layers.IPv4) { ip.FragOffset = 170 })), 2},
		{"without its checksum", testPath, []inner{unfinished(udpPacket(t, "10.1.0.5", "10.2.0.5", payload))}, 2},
		{"a superpacket of UDP", testPath, []inner{superpacket(udpPacket(t, "10.1.0.5", "10.2.0.5", payload+payload+payload), 1400)}, 6},
		{"a superpacket of TCP", testPath, []inner{superpacket(tcpPacket(t, "10.1.0.5", "10.2.0.5", 1, []byte(payload+payload+payload)), 1400)}, 6},
	} {
		x := newBench(t, "vxlan")
		x.b.Counters.PathMTU.Store(int32(c.path))
		sent := x.unframedAll(x.send(t, c.all...))
		if len(sent) != c.want || len(x.Drops()) != 0 {
			t.Errorf("%s: %d datagrams, want %d, drops %v", c.name, len(sent), c.want, x.Drops())
			continue
		}
		for i, p := range sent {
			if len(p) > c.path || !soundHeader(p) {
				t.Errorf("%s: fragment %d of %d bytes, sound %v", c.name, i, len(p), soundHeader(p))
			}
			if i > 0 && c.name == "options" && (p[20] != 1 || p[26] != 1 || p[27] != 0x94) {
				t.Errorf("options of fragment %d: % x", i, p[20:40])
			}
		}
		var want [][]byte
		if c.all[0].info.Size != 0 {
			want = cut(c.all[0].p, c.all[0].info)
		} else {
			want = [][]byte{c.all[0].p}
			if c.all[0].info.NeedsCsum {
				want = [][]byte{udpPacket(t, "10.1.0.5", "10.2.0.5", payload)}
			}
		}
		if got := reassembled(sent); !slices.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("%s: put together it is\n%x\nwant\n%x", c.name, got, want)
		}
	}
}

// reassembled puts fragments of IPv4 packets together, by identification, however far they reach: the slow and obvious way.
func reassembled(fragments [][]byte) (packets [][]byte) {
	byID := make(map[string][][]byte)
	var ids []string
	offset := func(p []byte) int { return (int(p[6]&0x1f)<<8 | int(p[7])) * 8 }
	for _, p := range fragments {
		id := fmt.Sprint(p[4:6])
		if byID[id] == nil {
			ids = append(ids, id)
		}
		byID[id] = append(byID[id], p)
	}
	for _, id := range ids {
		parts := byID[id]
		slices.SortFunc(parts, func(a, b []byte) int { return cmp.Compare(offset(a), offset(b)) })
		whole := bytes.Clone(parts[0])
		for _, p := range parts[1:] {
			if offset(p) != offset(whole)+len(whole)-headerLen(whole) {
				return nil // a gap
			}
			whole = append(whole, p[headerLen(p):]...)
		}
		last := parts[len(parts)-1]
		whole[2], whole[3] = byte(len(whole)>>8), byte(len(whole))
		whole[6] = whole[6]&^0x20 | last[6]&0x20
		mend(whole, false)
		packets = append(packets, whole)
	}
	return packets
}

// Many fragments in one batch, more than there is room for: all arrive, and none is overwritten before it is written.
func TestPathMTUFragmentsFillUp(t *testing.T) {
	x := newBench(t, "vxlan")
	x.b.Counters.PathMTU.Store(552)
	var all []inner
	var want [][]byte
	for i := range BatchSize {
		p := udpPacket(t, "10.1.0.5", "10.2.0.5", string(numbered(1200+i)), func(ip *layers.IPv4) { ip.Id = uint16(i) })
		all, want = append(all, inner{p: p}), append(want, p)
	}
	got := reassembled(x.unframedAll(x.send(t, all...)))
	if !slices.EqualFunc(got, want, bytes.Equal) {
		t.Errorf("%d packets put together, want %d, not all as they were; drops %v", len(got), len(want), x.Drops())
	}
}

func TestFragmentsDoNotAllocate(t *testing.T) {
	if racetest.Enabled {
		t.Skip("the race detector allocates")
	}
	l := smallLoad(t, newBench(t, "vxlan"), 1400, 0)
	v, _, und := steady(t, nodeA, "vxlan", l)
	for _, p := range v.Table().Peers() {
		p.Counters.PathMTU.Store(testPath)
	}
	const runs = 50
	if n := testing.AllocsPerRun(runs, func() { must(t, v.out[0].batch()) }); n != 0 || und.sent != (runs+1)*2*l.sent {
		t.Errorf("%v allocations a batch, %d datagrams sent, want %d", n, und.sent, (runs+1)*2*l.sent)
	}
}
