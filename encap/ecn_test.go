package encap

import (
	"bytes"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

const drop = 0xff

// mergedECN is RFC 6040, figure 4: rows are the inner codepoint, columns the outer.
var mergedECN = [4][4]uint8{
	NotECT: {NotECT: NotECT, ECT0: NotECT, ECT1: NotECT, CE: drop},
	ECT0:   {NotECT: ECT0, ECT0: ECT0, ECT1: ECT1, CE: CE},
	ECT1:   {NotECT: ECT1, ECT0: ECT1, ECT1: ECT1, CE: CE},
	CE:     {NotECT: CE, ECT0: CE, ECT1: CE, CE: CE},
}

func TestMergeECN(t *testing.T) {
	want := &mergedECN
	ip := header(layers.IPProtocolUDP)
	for inner := range uint8(4) {
		for outer := range uint8(4) {
			for id := 0; id < 1<<16; id += 97 { // many different header checksums
				ip.TOS, ip.Id = 0xb8|inner, uint16(id)
				p := serialize(t, ip, gopacket.Payload("payload"))
				before := bytes.Clone(p)
				h := parse(t, p)
				ok := MergeECN(p, &h, outer)
				if ok != (want[inner][outer] != drop) {
					t.Fatalf("inner %d, outer %d: MergeECN = %v", inner, outer, ok)
				}
				if !ok {
					if !bytes.Equal(p, before) {
						t.Fatalf("inner %d, outer %d: changed a packet that is dropped", inner, outer)
					}
					continue
				}
				if got := p[1]; got != 0xb8|want[inner][outer] || h.TOS != got {
					t.Fatalf("inner %d, outer %d: TOS %#x (parsed: %#x), want %#x", inner, outer, got, h.TOS, 0xb8|want[inner][outer])
				}
				if !VerifyHeader(p, &h) {
					t.Fatalf("inner %d, outer %d, id %d: header checksum wrong", inner, outer, id)
				}
				p[1] = before[1]
				copy(p[10:12], before[10:12])
				if !bytes.Equal(p, before) {
					t.Fatalf("inner %d, outer %d: more than TOS and checksum changed", inner, outer)
				}
			}
		}
	}
}

// IPv6's traffic class lies across two bytes, between the version and the flow label.
func TestMergeECN6(t *testing.T) {
	for inner := range uint8(4) {
		for outer := range uint8(4) {
			for _, class := range []uint8{0, 0x48, 0xb8, 0xfc} {
				for _, label := range []uint32{0, 1, 0x12345, 0xfffff} {
					ip := header6(layers.IPProtocolUDP)
					ip.TrafficClass, ip.FlowLabel = class|inner, label
					p := serialize(t, ip, gopacket.Payload("payload"))
					before := bytes.Clone(p)
					h := parse6(t, p)
					want := mergedECN[inner][outer]
					if ok := MergeECN(p, &h, outer); ok != (want != drop) {
						t.Fatalf("inner %d, outer %d: MergeECN = %v", inner, outer, ok)
					} else if !ok {
						if !bytes.Equal(p, before) {
							t.Fatalf("inner %d, outer %d: changed a packet that is dropped", inner, outer)
						}
						continue
					}
					ip.TrafficClass = class | want
					if made := serialize(t, ip, gopacket.Payload("payload")); !bytes.Equal(p, made) || h.TOS != ip.TrafficClass {
						t.Fatalf("inner %d, outer %d: %x (class parsed: %#x), gopacket writes %x", inner, outer, p, h.TOS, made)
					}
				}
			}
		}
	}
}

func TestOuterECN(t *testing.T) {
	for tos := range 256 {
		if got := OuterECN(uint8(tos)); got != uint8(tos)&3 {
			t.Errorf("OuterECN(%#x) = %d: want a copy of the codepoint, without DSCP", tos, got)
		}
	}
}
