package pathmtu

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// Probes as gopacket decodes them, and writes them again with checksums of its own.
func TestProbe(t *testing.T) {
	const nonce = 0x0123456789abcdef
	for _, c := range []struct {
		from, to string
		first    gopacket.LayerType
	}{
		{"10.1.0.0", "10.2.0.0", layers.LayerTypeIPv4},
		{"fd00:1::", "fd00:2::", layers.LayerTypeIPv6},
	} {
		from, to := netip.MustParseAddr(c.from), netip.MustParseAddr(c.to)
		for _, size := range []int{526, 1279, 1350, 1450, 8950} {
			buf := appendProbe([]byte("framing"), from, to, 7, 9, nonce, size)
			p, ok := bytes.CutPrefix(buf, []byte("framing"))
			if !ok || len(p) != size {
				t.Fatalf("%d bytes of a probe of %d", len(p), size)
			}
			decoded := gopacket.NewPacket(p, c.first, gopacket.Default)
			net := decoded.NetworkLayer()
			if net == nil || net.NetworkFlow().Src().String() != c.from || net.NetworkFlow().Dst().String() != c.to {
				t.Fatalf("%v", decoded)
			}
			again := gopacket.NewSerializeBuffer()
			opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
			var err error
			if ip, ok := net.(*layers.IPv6); ok {
				icmp := decoded.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
				if icmp.TypeCode != layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoRequest, 0) {
					t.Errorf("%v", icmp.TypeCode)
				}
				whole := &layers.ICMPv6{TypeCode: icmp.TypeCode}
				_ = whole.SetNetworkLayerForChecksum(ip)
				err = gopacket.SerializeLayers(again, opts, ip, whole, gopacket.Payload(icmp.Payload))
			} else {
				icmp := decoded.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
				if icmp.TypeCode != layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0) || icmp.Id != 7 || icmp.Seq != 9 {
					t.Errorf("%+v", icmp)
				}
				err = gopacket.SerializeLayers(again, opts, net.(*layers.IPv4), icmp, gopacket.Payload(icmp.Payload))
			}
			if err != nil || !bytes.Equal(again.Bytes(), p) {
				t.Errorf("%s, %d bytes: gopacket writes otherwise: %v", c.from, size, err)
			}

			// Its answer, and what a router quotes of it.
			six := from.Is6()
			answer := bytes.Clone(p[ipLen(six):])
			answer[0] = echoReply4
			if six {
				answer[0] = echoReply6
			}
			if got, ok := parseReply(answer, six); !ok || got != nonce {
				t.Errorf("%s: the answer has %x, %v", c.from, got, ok)
			}
			if _, ok := parseReply(p[ipLen(six):], six); ok {
				t.Errorf("%s: a request is an answer", c.from)
			}
			least := len("framing") + ipLen(six) + icmpLen + nonceLen
			if got, ok := parseQuote(buf[:least], len("framing"), six); !ok || got != nonce {
				t.Errorf("%s: the quote has %x, %v", c.from, got, ok)
			}
			if _, ok := parseQuote(buf[:least-1], len("framing"), six); ok {
				t.Errorf("%s: a quote that ends in the number is taken", c.from)
			}
			if _, ok := parseQuote(buf, len("framing"), !six); ok {
				t.Errorf("%s: a quote of the other family is taken", c.from)
			}
		}
	}
}

// No bytes make parsing panic, and what is taken says what stands there.
func FuzzParse(f *testing.F) {
	for _, base := range []string{"10.1.0.0", "fd00:1::"} {
		a := netip.MustParseAddr(base)
		f.Add(appendProbe(make([]byte, 22), a, a, 1, 2, 3, 100), uint8(22))
		f.Add(appendProbe(nil, a, a, 1, 2, 3, 100), uint8(0))
	}
	f.Fuzz(func(t *testing.T, p []byte, headroom uint8) {
		for _, six := range []bool{false, true} {
			if nonce, ok := parseQuote(p, int(headroom), six); ok && !bytes.Equal(p[int(headroom)+ipLen(six)+icmpLen:][:nonceLen], []byte{
				byte(nonce >> 56), byte(nonce >> 48), byte(nonce >> 40), byte(nonce >> 32), byte(nonce >> 24), byte(nonce >> 16), byte(nonce >> 8), byte(nonce)}) {
				t.Errorf("%x", nonce)
			}
			_, _ = parseReply(p, six)
		}
	})
}
