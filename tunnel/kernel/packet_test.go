//go:build linux

package kernel

import (
	"bytes"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"muslin/tunnel/gso"
)

func testFlow(proto byte) flow {
	return flow{proto: proto, ttl: 7,
		src: endpoint{Addr: inPeer, Port: 1111}, dst: endpoint{Addr: outPeer, Port: 2222}}
}

// decode takes a packet apart with somebody else's decoder, and puts it together again with its lengths and
// checksums made anew: it must come to the same bytes.
func decode(t *testing.T, p []byte) (ip *layers.IPv4, transport gopacket.TransportLayer, payload []byte) {
	t.Helper()
	all := gopacket.NewPacket(p, layers.LayerTypeIPv4, gopacket.Default)
	if e := all.ErrorLayer(); e != nil {
		t.Fatal(e.Error())
	}
	ip = all.NetworkLayer().(*layers.IPv4)
	transport = all.TransportLayer()
	switch l := transport.(type) {
	case *layers.TCP:
		l.SetNetworkLayerForChecksum(ip)
	case *layers.UDP:
		l.SetNetworkLayerForChecksum(ip)
	}
	payload = transport.LayerPayload()
	buf := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, options, ip, transport.(gopacket.SerializableLayer), gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(buf.Bytes(), p) {
		t.Fatalf("the packet is\n%x\nwhich should be\n%x", p, buf.Bytes())
	}
	return ip, transport, payload
}

func TestCut(t *testing.T) {
	for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		for _, s := range append(shapes, shape{1, 1}, shape{7, 3}) {
			payload := s.payload()
			p := testFlow(proto).packet(payload)
			decode(t, p)
			var joined []byte
			segments := cut(p, s.size)
			for i, segment := range segments {
				ip, transport, part := decode(t, segment)
				if ip.TTL != 7 || ip.Id != 0x1234+uint16(i) || ip.Flags != layers.IPv4DontFragment {
					t.Errorf("%v, segment %d: %+v", s, i, ip)
				}
				last := i == len(segments)-1
				if l, ok := transport.(*layers.TCP); ok && (l.Seq != 0xfffff000+uint32(i*s.size) || l.PSH != last || !l.ACK) {
					t.Errorf("%v, segment %d: %+v", s, i, l)
				}
				if !last && len(part) != s.size {
					t.Errorf("%v, segment %d has %d bytes", s, i, len(part))
				}
				joined = append(joined, part...)
			}
			if !bytes.Equal(joined, payload) {
				t.Errorf("%v: the segments do not make up the payload", s)
			}
		}
	}
}

func TestPayloadHasNoTwin(t *testing.T) {
	seen := make(map[string]bool)
	payload := shapes[0].payload()
	for at := 0; at+4 <= len(payload); at += 4 {
		word := string(payload[at : at+4])
		if seen[word] {
			t.Fatalf("the word at %d was there before", at)
		}
		seen[word] = true
	}
}

// What is left to the kernel and then finished is what it was.
func TestLeaveAndComplete(t *testing.T) {
	for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		whole := testFlow(proto).packet([]byte("an odd one."))
		p := bytes.Clone(whole)
		info := leaveChecksum(p, 4)
		if bytes.Equal(p, whole) || !info.NeedsCsum || info.Size != 4 || info.Kind == gso.None {
			t.Errorf("nothing was left: %+v", info)
		}
		complete(p, info)
		if !bytes.Equal(p, whole) {
			t.Errorf("finished it is\n%x\ninstead of\n%x", p, whole)
		}
	}
}

func TestCompleteOutside(t *testing.T) {
	p := testFlow(unix.IPPROTO_UDP).packet([]byte("x"))
	want := bytes.Clone(p)
	complete(p, gso.Info{NeedsCsum: true, CsumStart: uint16(len(p)) - 1, CsumOffset: 0})
	complete(p, gso.Info{NeedsCsum: true, CsumStart: 0xffff, CsumOffset: 0xffff})
	if !bytes.Equal(p, want) {
		t.Error("a checksum outside the packet changed it")
	}
}

func TestRegular(t *testing.T) {
	udp, tcp := testFlow(unix.IPPROTO_UDP).packet([]byte("u")), testFlow(unix.IPPROTO_TCP).packet(nil)
	if !regular(udp) || !regular(tcp) {
		t.Fatal("our own packets are not regular")
	}
	with := func(p []byte, at int, b byte) []byte {
		p = bytes.Clone(p)
		p[at] = b
		return p
	}
	for name, p := range map[string][]byte{
		"empty":             nil,
		"header cut off":    udp[:27],
		"IPv6":              with(udp, 0, 0x65),
		"IP options":        with(udp, 0, 0x46),
		"longer than it is": with(udp, 3, byte(len(udp)+1)),
		"ICMP":              with(udp, 9, 1),
		"TCP options":       with(tcp, 32, 6<<4),
		"TCP cut off":       with(tcp[:39], 3, 39),
	} {
		if regular(p) {
			t.Errorf("%s: regular", name)
		}
	}
}

func TestComparePackets(t *testing.T) {
	segments := func() [][]byte { return cut(testFlow(unix.IPPROTO_TCP).packet([]byte("abcdefgh")), 3) }
	for _, c := range []struct {
		name   string
		change func(p [][]byte) [][]byte
		want   string
	}{
		{"nothing", func(p [][]byte) [][]byte { return p }, ""},
		{"another identification", func(p [][]byte) [][]byte { p[1][5] ^= 0xff; finish(p[1]); return p }, ""},
		{"payload", func(p [][]byte) [][]byte { p[1][41]++; return p }, "segment 2 of 3 differs at byte 41"},
		{"transport checksum", func(p [][]byte) [][]byte { p[2][36]++; return p }, "segment 3 of 3 differs at byte 36"},
		{"IP checksum", func(p [][]byte) [][]byte { p[2][10]++; return p }, "segment 3 of 3 has a wrong IP checksum"},
		{"identification, but not its checksum", func(p [][]byte) [][]byte { p[0][4]++; return p }, "segment 1 of 3 has a wrong IP checksum"},
		{"one shorter", func(p [][]byte) [][]byte { p[0] = p[0][:42]; return p }, "segment 1 of 3 has 42 bytes instead of 43"},
		{"one longer", func(p [][]byte) [][]byte { p[2] = append(p[2], 0); return p }, "segment 3 of 3 has 43 bytes instead of 42"},
		{"one lost", func(p [][]byte) [][]byte { return p[1:] }, "2 segments came of 3"},
		{"one too many", func(p [][]byte) [][]byte { return append(p, p[0]) }, "4 segments came of 3"},
		{"order", func(p [][]byte) [][]byte { p[0], p[1] = p[1], p[0]; return p }, "segment 1 of 3 differs at byte 27"},
	} {
		err := comparePackets(segments(), c.change(segments()))
		if got := errorText(err); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
