package encap

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// agreesWithGopacket compares every field of h to what gopacket reads in the same bytes.
func agreesWithGopacket(t *testing.T, p []byte, h *Header) {
	t.Helper()
	var want layers.IPv4
	// gopacket looks into the options too, and may refuse one after it has read all the fields below.
	err := want.DecodeFromBytes(p, gopacket.NilDecodeFeedback)
	if err != nil && h.HeaderLen == 20 {
		t.Fatalf("accepted %x, which gopacket refuses: %v", p, err)
	}
	src, _ := netip.AddrFromSlice(want.SrcIP)
	dst, _ := netip.AddrFromSlice(want.DstIP)
	expected := Header{
		Src: src, Dst: dst,
		HeaderLen: int(want.IHL) * 4, TotalLen: int(want.Length),
		TOS: want.TOS, Protocol: uint8(want.Protocol),
		DF:    want.Flags&layers.IPv4DontFragment != 0,
		More:  want.Flags&layers.IPv4MoreFragments != 0,
		Later: want.FragOffset != 0,
	}
	if *h != expected {
		t.Fatalf("ParseIPv4(%x)\n = %+v, gopacket reads\n   %+v", p, *h, expected)
	}
}

func TestParseIPv4AgainstGopacket(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*layers.IPv4)
	}{
		{"plain", func(*layers.IPv4) {}},
		{"every TOS bit", func(l *layers.IPv4) { l.TOS = 0xff }},
		{"don't fragment", func(l *layers.IPv4) { l.Flags = layers.IPv4DontFragment }},
		{"first fragment", func(l *layers.IPv4) { l.Flags = layers.IPv4MoreFragments }},
		{"middle fragment", func(l *layers.IPv4) { l.Flags = layers.IPv4MoreFragments; l.FragOffset = 1 }},
		{"last fragment", func(l *layers.IPv4) { l.FragOffset = 0x1fff }},
		{"evil bit", func(l *layers.IPv4) { l.Flags = layers.IPv4EvilBit }},
		{"options", func(l *layers.IPv4) { l.Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}} }},
		{"other addresses", func(l *layers.IPv4) { l.SrcIP, l.DstIP = net.IP{255, 0, 1, 2}, net.IP{0, 0, 0, 0} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := header(layers.IPProtocolUDP)
			c.edit(l)
			p := serialize(t, l, gopacket.Payload("sixteen bytes ok"))
			// Every field starts out wrong: ParseIPv4 must assign all of them.
			h := Header{netip.IPv6Unspecified(), netip.IPv6Unspecified(), -1, -1, ^p[1], ^p[9], true, true, true}
			if fault := ParseIPv4(p, 0, &h); fault != FaultNone {
				t.Fatalf("fault %d", fault)
			}
			agreesWithGopacket(t, p, &h)
			if !VerifyHeader(p, &h) {
				t.Error("VerifyHeader refuses gopacket's checksum")
			}
			for bit := range h.HeaderLen * 8 {
				bad := bytes.Clone(p)
				bad[bit/8] ^= 1 << (bit % 8)
				if VerifyHeader(bad, &h) {
					t.Errorf("VerifyHeader misses a flip of bit %d", bit)
				}
			}
		})
	}
}

// Carries run to and fro in headers of words that are nearly all ones.
func TestVerifyHeaderAgainstTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	for range 20_000 {
		p := make([]byte, []int{20, 24, 60}[rng.IntN(3)])
		for at := 0; at < len(p); at += 2 {
			word := []uint16{0, 1, 0x8000, 0xfffe, 0xffff, 0xffff, uint16(rng.Uint32())}[rng.IntN(7)]
			binary.BigEndian.PutUint16(p[at:], word)
		}
		h := Header{HeaderLen: len(p), TotalLen: len(p)}
		if got, want := VerifyHeader(p, &h), slowSum(p, 0) == 0xffff; got != want {
			t.Fatalf("VerifyHeader(%x) = %v, want %v", p, got, want)
		}
		at := rng.IntN(len(p)/2) * 2
		binary.BigEndian.PutUint16(p[at:], 0)
		binary.BigEndian.PutUint16(p[at:], ^slowSum(p, 0))
		if !VerifyHeader(p, &h) {
			t.Fatalf("VerifyHeader(%x) = false, but its words add up to 0xffff", p)
		}
	}
}

func FuzzParseIPv4(f *testing.F) {
	for _, row := range innerFaults {
		f.Add(unhex(f, row.hex), 0)
		f.Add(unhex(f, row.hex), 46)
	}
	f.Add(tcpPacket(f, 1, 2), 0)
	f.Fuzz(func(t *testing.T, p []byte, pad int) {
		var h Header
		if ParseIPv4(p, pad, &h) != FaultNone {
			return
		}
		agreesWithGopacket(t, p, &h)
		if h.HeaderLen < 20 || h.TotalLen < h.HeaderLen || h.TotalLen > len(p) {
			t.Fatalf("accepted %x with lengths %d and %d of %d", p, h.HeaderLen, h.TotalLen, len(p))
		}
		if h.TotalLen < len(p) && len(p) > pad {
			t.Fatalf("accepted %d bytes behind the packet, past padding to %d", len(p)-h.TotalLen, pad)
		}
		// Whatever ParseIPv4 accepts, the rest of the data path must stand.
		p = p[:h.TotalLen:h.TotalLen]
		good := VerifyHeader(p, &h)
		hash := FlowHash(p, &h)
		for ecn := range uint8(4) {
			if MergeECN(p, &h, ecn) && VerifyHeader(p, &h) != good {
				t.Fatalf("MergeECN(%d) turned the header's checksum from %v into %v", ecn, good, !good)
			}
		}
		if FlowHash(p, &h) != hash {
			t.Fatal("the flow hash depends on ECN")
		}
	})
}

// hashOf is the flow hash of a packet that gopacket makes.
func hashOf(t testing.TB, all ...gopacket.SerializableLayer) uint32 {
	t.Helper()
	p := serialize(t, all...)
	h := parse(t, p)
	return FlowHash(p, &h)
}

func TestFlowHash(t *testing.T) {
	tcp := func(src, dst int, payload string, edit func(*layers.IPv4, *layers.TCP)) uint32 {
		ip, segment := header(layers.IPProtocolTCP), &layers.TCP{SrcPort: layers.TCPPort(src), DstPort: layers.TCPPort(dst)}
		edit(ip, segment)
		return hashOf(t, ip, segment, gopacket.Payload(payload))
	}
	same := func(*layers.IPv4, *layers.TCP) {}
	want := tcp(1000, 80, "payload", same)

	t.Run("one flow", func(t *testing.T) {
		for name, got := range map[string]uint32{
			"other payload": tcp(1000, 80, "another, longer payload", same),
			"other seq":     tcp(1000, 80, "payload", func(_ *layers.IPv4, s *layers.TCP) { s.Seq, s.ACK, s.FIN = 99, true, true }),
			"other TOS":     tcp(1000, 80, "payload", func(l *layers.IPv4, _ *layers.TCP) { l.TOS = 0xff }),
			"other id, TTL": tcp(1000, 80, "payload", func(l *layers.IPv4, _ *layers.TCP) { l.Id, l.TTL, l.Flags = 9, 3, layers.IPv4DontFragment }),
			"options": tcp(1000, 80, "payload", func(l *layers.IPv4, _ *layers.TCP) {
				l.Options = []layers.IPv4Option{{OptionType: 1}}
			}),
		} {
			if got != want {
				t.Errorf("%s: hash %#x, want the flow's %#x", name, got, want)
			}
		}
	})
	t.Run("other flows", func(t *testing.T) {
		for name, got := range map[string]uint32{
			"source port":      tcp(1001, 80, "payload", same),
			"destination port": tcp(1000, 81, "payload", same),
			"ports exchanged":  tcp(80, 1000, "payload", same),
			"source":           tcp(1000, 80, "payload", func(l *layers.IPv4, _ *layers.TCP) { l.SrcIP = net.IP{10, 1, 0, 6} }),
			"destination":      tcp(1000, 80, "payload", func(l *layers.IPv4, _ *layers.TCP) { l.DstIP = net.IP{10, 2, 0, 8} }),
			"protocol":         hashOf(t, header(layers.IPProtocolUDP), &layers.UDP{SrcPort: 1000, DstPort: 80}),
			"SCTP ports":       hashOf(t, header(layers.IPProtocolSCTP), gopacket.Payload{3, 232, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0}),
		} {
			if got == want {
				t.Errorf("a flow that differs in %s has the same 32-bit hash", name)
			}
		}
	})
	t.Run("SCTP ports count", func(t *testing.T) {
		a := hashOf(t, header(layers.IPProtocolSCTP), gopacket.Payload{3, 232, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0})
		b := hashOf(t, header(layers.IPProtocolSCTP), gopacket.Payload{3, 233, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0})
		if a == b {
			t.Error("two SCTP ports, one hash")
		}
	})
	t.Run("fragments of one datagram", func(t *testing.T) {
		fragment := func(flags layers.IPv4Flag, offset uint16, payload string) uint32 {
			l := header(layers.IPProtocolUDP)
			l.Flags, l.FragOffset = flags, offset
			return hashOf(t, l, gopacket.Payload(payload))
		}
		first := fragment(layers.IPv4MoreFragments, 0, "\x03\xe8\x00\x50\x00\x20\x00\x00first part")
		middle := fragment(layers.IPv4MoreFragments, 2, "something else..")
		last := fragment(0, 4, "and the end")
		if first != middle || first != last {
			t.Errorf("hashes %#x, %#x, %#x of one datagram's fragments", first, middle, last)
		}
	})
	t.Run("no room for ports", func(t *testing.T) {
		a := hashOf(t, header(layers.IPProtocolTCP), gopacket.Payload{1, 2, 3})
		b := hashOf(t, header(layers.IPProtocolTCP), gopacket.Payload{4, 5, 6})
		if a != b {
			t.Error("a TCP header of 3 bytes was taken for ports")
		}
	})
	t.Run("ICMP goes by addresses", func(t *testing.T) {
		a := hashOf(t, header(layers.IPProtocolICMPv4), gopacket.Payload{8, 0, 1, 2, 3, 4, 5, 6})
		b := hashOf(t, header(layers.IPProtocolICMPv4), gopacket.Payload{0, 0, 9, 9, 9, 9, 9, 9})
		if a != b {
			t.Error("ICMP messages between two hosts have different hashes")
		}
	})
}

func TestFlowHashSpreads(t *testing.T) {
	const flows, buckets = 1600, 16
	for name, edit := range map[string]func(p []byte, i int){
		"source ports":      func(p []byte, i int) { p[20], p[21] = byte((32768+i)>>8), byte(i) },
		"destination ports": func(p []byte, i int) { p[22], p[23] = byte((1024+i)>>8), byte(i) },
		"sources":           func(p []byte, i int) { p[14], p[15] = byte(i>>8), byte(i) },
		"destinations":      func(p []byte, i int) { p[18], p[19] = byte(i>>8), byte(i) },
	} {
		var count [buckets]int
		for i := range flows {
			p := tcpPacketFixed()
			edit(p, i)
			h := parse(t, p)
			count[FlowHash(p, &h)%buckets]++
		}
		// 100 a bucket on average, standard deviation below 10: five of them either way.
		for b, n := range count {
			if n < 50 || n > 150 {
				t.Errorf("sequential %s: %d of %d flows in bucket %d, want about %d (%v)", name, n, flows, b, flows/buckets, count)
			}
		}
	}
}

// tcpPacketFixed is a minimal TCP packet, without gopacket's cost.
func tcpPacketFixed() []byte {
	p := make([]byte, 40)
	p[0], p[3], p[8], p[9] = 0x45, 40, 64, protoTCP
	copy(p[12:], []byte{10, 1, 0, 5, 10, 2, 0, 7, 0x30, 0x39, 0, 80})
	return p
}
