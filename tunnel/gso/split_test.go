package gso

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"muslin/encap"
)

// superpacket is a TCP packet from gopacket, with options and a right checksum.
func superpacket(t testing.TB, payload []byte, edit ...func(*layers.IPv4, *layers.TCP)) []byte {
	t.Helper()
	ip := &layers.IPv4{
		Version: 4, TTL: 61, Id: 65534, TOS: 0x02, Flags: layers.IPv4DontFragment, Protocol: layers.IPProtocolTCP,
		SrcIP: netip.MustParseAddr("10.2.0.7").AsSlice(), DstIP: netip.MustParseAddr("10.1.0.5").AsSlice(),
	}
	tcp := &layers.TCP{
		SrcPort: 40000, DstPort: 80, Seq: 0xfffffff0, Ack: 77, Window: 512, ACK: true, PSH: true, FIN: true, CWR: true,
		Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindNop}, {OptionType: layers.TCPOptionKindNop},
			{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: []byte{1, 2, 3, 4, 5, 6, 7, 8}}},
	}
	for _, f := range edit {
		f(ip, tcp)
	}
	if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, tcp, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

func parse(t testing.TB, p []byte) encap.IPv4 {
	t.Helper()
	var h encap.IPv4
	if fault := encap.ParseIPv4(p, 0, &h); fault != encap.FaultNone {
		t.Fatalf("fault %d", fault)
	}
	return h
}

// leavePartial puts the pseudo-header's sum into the checksum, as for a NIC.
func leavePartial(t testing.TB, p []byte) {
	h := parse(t, p)
	binary.BigEndian.PutUint16(p[h.HeaderLen+16:], encap.PseudoSum(p, &h))
}

func split(t testing.TB, p []byte, mtu int) [][]byte {
	t.Helper()
	h := parse(t, p)
	s, ok := SplitTCP(p, &h, mtu)
	if !ok {
		return nil
	}
	var all [][]byte
	for s.More() {
		buf := make([]byte, mtu)
		all = append(all, buf[:s.Next(buf)])
	}
	return all
}

// checkSegments holds segments of p against what gopacket reads in them.
func checkSegments(t testing.TB, p []byte, segments [][]byte, mtu int) {
	t.Helper()
	whole := gopacket.NewPacket(p, layers.LayerTypeIPv4, gopacket.Default)
	ip0 := whole.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	tcp0 := whole.Layer(layers.LayerTypeTCP).(*layers.TCP)
	var payload []byte
	for i, b := range segments {
		last := i == len(segments)-1
		if len(b) > mtu || !last && len(b) != mtu {
			t.Fatalf("segment %d has %d bytes at MTU %d", i, len(b), mtu)
		}
		pkt := gopacket.NewPacket(b, layers.LayerTypeIPv4, gopacket.Default)
		ip, tcp := pkt.Layer(layers.LayerTypeIPv4).(*layers.IPv4), pkt.Layer(layers.LayerTypeTCP).(*layers.TCP)
		if int(ip.Length) != len(b) || ip.Id != ip0.Id+uint16(i) || ip.TTL != ip0.TTL || ip.TOS != ip0.TOS || ip.Flags != ip0.Flags {
			t.Fatalf("segment %d: IP header %+v", i, ip)
		}
		if tcp.Seq != tcp0.Seq+uint32(len(payload)) || tcp.Ack != tcp0.Ack || tcp.Window != tcp0.Window || !bytes.Equal(tcp.Contents[20:], tcp0.Contents[20:]) {
			t.Fatalf("segment %d: TCP header %+v", i, tcp)
		}
		if tcp.CWR != (tcp0.CWR && i == 0) || tcp.PSH != (tcp0.PSH && last) || tcp.FIN != (tcp0.FIN && last) || tcp.ACK != tcp0.ACK {
			t.Fatalf("segment %d of %d: flags of %+v", i, len(segments), tcp)
		}
		headers := int(ip.IHL)*4 + int(tcp.DataOffset)*4
		if got := remake(t, ip, tcp, b[headers:]); !bytes.Equal(got, b) {
			t.Fatalf("segment %d is\n%x, gopacket makes\n%x", i, b[:headers], got[:headers])
		}
		payload = append(payload, b[headers:]...)
	}
	if want := p[int(ip0.IHL)*4+int(tcp0.DataOffset)*4:]; !bytes.Equal(payload, want) {
		t.Fatalf("%d bytes of payload came out, %d went in, or others", len(payload), len(want))
	}
}

// remake serializes a decoded packet again, with checksums of gopacket's own.
func remake(t testing.TB, ip *layers.IPv4, tcp *layers.TCP, payload []byte) []byte {
	t.Helper()
	if err := tcp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, tcp, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func TestSplitTCP(t *testing.T) {
	const mtu, headers = 1450, 20 + 32
	for _, n := range []int{mtu - headers + 1, 2 * (mtu - headers), 2*(mtu-headers) + 1, 7777, 65535 - headers} {
		for name, partial := range map[string]bool{"checksum left to the NIC": true, "checksum filled in": false} {
			p := superpacket(t, random(n))
			if partial {
				leavePartial(t, p)
			}
			segments := split(t, p, mtu)
			if want := (n + mtu - headers - 1) / (mtu - headers); len(segments) != want {
				t.Fatalf("%d bytes, %s: %d segments, want %d", n, name, len(segments), want)
			}
			checkSegments(t, p, segments, mtu)
		}
	}
}

func TestNoSplit(t *testing.T) {
	const mtu = 1450
	big := random(4000)
	for name, p := range map[string][]byte{
		"fits": superpacket(t, random(mtu-52)),
		"UDP": superpacket(t, big, func(ip *layers.IPv4, _ *layers.TCP) {
			ip.Protocol = layers.IPProtocolUDP
		}),
		"first fragment": superpacket(t, big, func(ip *layers.IPv4, _ *layers.TCP) { ip.Flags = layers.IPv4MoreFragments }),
		"later fragment": superpacket(t, big, func(ip *layers.IPv4, _ *layers.TCP) { ip.FragOffset = 100 }),
		"wrong checksum": corrupt(t, superpacket(t, big)),
		"data offset below 5": edit(superpacket(t, big), func(p []byte) {
			p[20+12] = 4 << 4
		}),
	} {
		if segments := split(t, p, mtu); segments != nil {
			t.Errorf("%s: cut into %d", name, len(segments))
		}
	}
	headersOnly := superpacket(t, nil)
	h := parse(t, headersOnly)
	if _, ok := SplitTCP(headersOnly, &h, 40); ok {
		t.Error("headers longer than the MTU were cut")
	}
}

func edit(p []byte, f func([]byte)) []byte { f(p); return p }

func corrupt(t testing.TB, p []byte) []byte {
	return edit(p, func(p []byte) { p[len(p)-1] ^= 0x40 })
}

func TestSplitNoAllocation(t *testing.T) {
	p, buf := superpacket(t, random(60000)), make([]byte, 1450)
	h := parse(t, p)
	if n := testing.AllocsPerRun(20, func() {
		s, ok := SplitTCP(p, &h, len(buf))
		if !ok {
			t.Fatal("not cut")
		}
		for s.More() {
			s.Next(buf)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzSplitTCP: whatever comes is left alone, or cut into sound segments that carry the same bytes.
func FuzzSplitTCP(f *testing.F) {
	p := superpacket(f, random(3000))
	f.Add(p, 1450)
	q := bytes.Clone(p)
	leavePartial(f, q)
	f.Add(q, 600)
	f.Add(superpacket(f, random(100)), 68)
	f.Fuzz(func(t *testing.T, p []byte, mtu int) {
		var h encap.IPv4
		if mtu < 68 || mtu > 65535 || encap.ParseIPv4(p, 0, &h) != encap.FaultNone {
			return
		}
		s, ok := SplitTCP(p, &h, mtu)
		if !ok {
			return
		}
		var payload []byte
		headers := s.headers
		buf := make([]byte, mtu)
		for s.More() {
			b := buf[:s.Next(buf)]
			var sh encap.IPv4
			if fault := encap.ParseIPv4(b, 0, &sh); fault != encap.FaultNone || !encap.VerifyHeader(b, &sh) {
				t.Fatalf("fault %d in segment %x", fault, b)
			}
			if encap.Sum(b[sh.HeaderLen:], encap.PseudoSum(b, &sh)) != 0xffff {
				t.Fatalf("checksum wrong in segment %x", b)
			}
			payload = append(payload, b[headers:]...)
		}
		if !bytes.Equal(payload, p[headers:h.TotalLen]) {
			t.Fatal("payload changed")
		}
	})
}

func BenchmarkSplit64K(b *testing.B) {
	p, buf := superpacket(b, random(65000)), make([]byte, 1450)
	h := parse(b, p)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		s, _ := SplitTCP(p, &h, len(buf))
		for s.More() {
			s.Next(buf)
		}
	}
}
