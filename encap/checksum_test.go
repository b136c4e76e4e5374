package encap

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// slowSum is Sum as RFC 1071 says it: add 16-bit words, an odd byte being the upper half of one, and
// bring the carries back around.
func slowSum(b []byte, initial uint16) uint16 {
	sum := uint32(initial)
	for i, v := range b {
		if i%2 == 0 {
			sum += uint32(v) << 8
		} else {
			sum += uint32(v)
		}
		if sum > 0xffff {
			sum -= 0xffff
		}
	}
	return uint16(sum)
}

// sumsTo checks Sum of b on every path that this processor has.
func sumsTo(t *testing.T, b []byte, initial, want uint16) {
	t.Helper()
	if got := Sum(b, initial); got != want {
		t.Fatalf("Sum(%d bytes: %x, %#x) = %#x, want %#x", len(b), b[:min(len(b), 600)], initial, got, want)
	}
	withoutWide(t, func() {
		if got := Sum(b, initial); got != want {
			t.Fatalf("without sumWide: Sum(%d bytes: %x, %#x) = %#x, want %#x", len(b), b[:min(len(b), 600)], initial, got, want)
		}
	})
}

// sumData is n bytes of each kind that a sum may go wrong with. What lies behind a part of it is not 0, so
// that reading past its end shows.
func sumData(n int) map[string][]byte {
	random := make([]byte, n)
	rand.NewChaCha8([32]byte{1, 2}).Read(random)
	return map[string][]byte{
		"random": random,
		"zeros":  make([]byte, n),
		"ones":   bytes.Repeat([]byte{0xff}, n),
		"carry":  bytes.Repeat([]byte{0xff, 0xfe, 0, 1}, n/4+1)[:n],
	}
}

func TestSumAgainstTwin(t *testing.T) {
	const longest = 2*wideMin + 5*64 // twice through every loop
	rng := rand.New(rand.NewPCG(1, 2))
	for _, data := range sumData(longest + 32) {
		for align := range 32 {
			for n := range longest {
				b := data[align : align+n]
				initial := []uint16{0, 1, 0x8000, 0xfffe, 0xffff, uint16(rng.Uint32())}[rng.IntN(6)]
				sumsTo(t, b, initial, slowSum(b, initial))
			}
		}
	}
	sumsTo(t, nil, 0, 0)
}

// Packets of all sizes, and more than a packet: no lane may run over.
func TestSumOfLong(t *testing.T) {
	for _, data := range sumData(1<<20 + 7) {
		for _, n := range []int{1400, 1447, 1448, 1500, 8960, 32768, 65000, 65535, 65536, 65549, len(data)} {
			for _, initial := range []uint16{0, 0xfffe} {
				b := data[len(data)-n:]
				sumsTo(t, b, initial, slowSum(b, initial))
			}
		}
	}
}

// Of the two ways to write zero Sum gives 0 for zeros alone: callers compare with 0xffff.
func TestSumOfZero(t *testing.T) {
	for n := range 400 {
		sumsTo(t, make([]byte, n), 0, 0)
		sumsTo(t, make([]byte, n), 0xffff, 0xffff)
		if n >= 2 {
			b := make([]byte, n)
			b[0], b[1] = 0xff, 0xff
			sumsTo(t, b, 0, 0xffff)
			b[n-1] ^= 0x80
			initial := ^slowSum(b, 0)
			sumsTo(t, b, initial, 0xffff)
		}
	}
}

// The example of RFC 1071, section 3.
func TestSumOfRFC1071(t *testing.T) {
	b := []byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}
	if got := Sum(b, 0); got != 0xddf2 {
		t.Errorf("Sum = %#x, want 0xddf2", got)
	}
}

func FuzzSum(f *testing.F) {
	f.Add([]byte{}, uint16(0), uint8(0), uint8(0))
	f.Add([]byte{1}, uint16(0xffff), uint8(1), uint8(200))
	f.Add(bytes.Repeat([]byte{0xff}, 67), uint16(0xffff), uint8(3), uint8(0))
	f.Add(bytes.Repeat([]byte{0xff, 0xfe, 0, 1}, 65), uint16(1), uint8(33), uint8(3))
	// The data comes times over, so that it gets long enough for every path.
	f.Fuzz(func(t *testing.T, data []byte, initial uint16, skip, times uint8) {
		data = bytes.Repeat(data, int(times)+1)
		b := data[min(int(skip), len(data)):]
		sumsTo(t, b, initial, slowSum(b, initial))
	})
}

// checksumAt is where the transport checksum of p is.
func checksumAt(p []byte) int {
	at := int(p[0]&15) * 4
	if p[9] == protoTCP {
		return at + 16
	}
	return at + 6
}

// leavePartial puts the pseudo-header's sum where the checksum is, as the kernel does for a NIC that
// finishes it.
func leavePartial(p []byte) {
	transport := len(p) - int(p[0]&15)*4
	pseudo := append(bytes.Clone(p[12:20]), 0, p[9], byte(transport>>8), byte(transport))
	binary.BigEndian.PutUint16(p[checksumAt(p):], slowSum(pseudo, 0))
}

func TestCompletePartial(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	completed := 0
	for i := range 400 {
		payload := make([]byte, rng.IntN(80))
		for j := range payload {
			payload[j] = byte(rng.Uint32())
		}
		ip := header(layers.IPProtocolTCP)
		ip.SrcIP[3], ip.TOS = byte(i), uint8(i)
		if i%5 == 0 {
			ip.Options = []layers.IPv4Option{{OptionType: 1}, {OptionType: 1}}
		}
		var transport gopacket.SerializableLayer = &layers.TCP{SrcPort: 4000, DstPort: layers.TCPPort(i), Seq: rng.Uint32(), SYN: true}
		if i%2 == 0 {
			ip.Protocol = layers.IPProtocolUDP
			transport = &layers.UDP{SrcPort: 4000, DstPort: layers.UDPPort(i)}
		}
		want := serialize(t, ip, transport, gopacket.Payload(payload))

		p := bytes.Clone(want)
		leavePartial(p)
		if bytes.Equal(p, want) {
			continue // correct by chance
		}
		h := parse(t, p)
		if !CompletePartial(p, &h) {
			t.Fatalf("packet %d: not taken for one with a partial checksum: %x", i, p)
		}
		if !bytes.Equal(p, want) {
			t.Fatalf("packet %d: completed to\n%x, gopacket has\n%x", i, p, want)
		}
		if CompletePartial(p, &h) || !bytes.Equal(p, want) {
			t.Fatalf("packet %d: a correct checksum was changed", i)
		}
		completed++
	}
	if completed < 390 {
		t.Errorf("only %d of 400 packets were put to the test", completed)
	}
}

// payloadSo finds the two last payload bytes with which a UDP packet's correct checksum is want.
func payloadSo(t *testing.T, want uint16) []byte {
	t.Helper()
	make := func(last uint16) []byte {
		return serialize(t, header(layers.IPProtocolUDP), &layers.UDP{SrcPort: 4000, DstPort: 53},
			gopacket.Payload(binary.BigEndian.AppendUint16([]byte("data"), last)))
	}
	for last := range 1 << 16 {
		if p := make(uint16(last)); binary.BigEndian.Uint16(p[26:]) == want {
			return p
		}
	}
	t.Fatalf("no payload has checksum %#x", want)
	return nil
}

func TestCompletePartialEdges(t *testing.T) {
	udp := func(edit func(*layers.IPv4)) []byte {
		ip := header(layers.IPProtocolUDP)
		edit(ip)
		return serialize(t, ip, &layers.UDP{SrcPort: 4000, DstPort: 53}, gopacket.Payload("payload"))
	}
	partial := func(p []byte) []byte { leavePartial(p); return p }
	plain := func(*layers.IPv4) {}
	noSum := udp(plain)
	copy(noSum[26:28], []byte{0, 0})
	wrong := udp(plain)
	wrong[26] ^= 0x55

	for _, c := range []struct {
		name string
		p    []byte
	}{
		{"UDP without a checksum", noSum},
		{"a checksum that is just wrong", wrong},
		{"first fragment", partial(udp(func(l *layers.IPv4) { l.Flags = layers.IPv4MoreFragments }))},
		{"later fragment", partial(udp(func(l *layers.IPv4) { l.FragOffset = 8 }))},
		{"ICMP", serialize(t, header(layers.IPProtocolICMPv4), gopacket.Payload("12345678"))},
		{"TCP cut before its checksum", serialize(t, header(layers.IPProtocolTCP), gopacket.Payload("0123456789abcdefX"))},
		{"UDP cut before its checksum", serialize(t, header(layers.IPProtocolUDP), gopacket.Payload("0123456"))},
		{"UDP of no bytes", serialize(t, header(layers.IPProtocolUDP))},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := bytes.Clone(c.p)
			h := parse(t, c.p)
			if CompletePartial(c.p, &h) {
				t.Error("taken for a partial checksum")
			}
			if !bytes.Equal(c.p, before) {
				t.Errorf("changed\n%x to\n%x", before, c.p)
			}
		})
	}

	t.Run("UDP whose checksum comes to 0", func(t *testing.T) {
		p := payloadSo(t, 0)
		want := bytes.Clone(p)
		want[26], want[27] = 0xff, 0xff // RFC 768: gopacket leaves it at 0, "no checksum"
		leavePartial(p)
		h := parse(t, p)
		if !CompletePartial(p, &h) || !bytes.Equal(p, want) {
			t.Errorf("completed to\n%x, want\n%x", p, want)
		}
	})
	t.Run("correct and partial at once", func(t *testing.T) {
		p := payloadSo(t, 0)
		leavePartial(p)
		pseudo := binary.BigEndian.Uint16(p[26:])
		p = payloadSo(t, pseudo)
		want := bytes.Clone(p)
		h := parse(t, p)
		if CompletePartial(p, &h); !bytes.Equal(p, want) {
			t.Errorf("changed a correct checksum %#x to %x", pseudo, p[26:28])
		}
	})
}
