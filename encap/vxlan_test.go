package encap

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

var (
	ourMAC  = MAC{0x02, 0, 0, 0, 0, 0x01}
	peerMAC = MAC{0x02, 0, 0, 0, 0, 0x02}
)

// The parts of a good datagram from peerMAC to ourMAC in network 42. Each row of the table of malformed
// datagrams replaces one of them.
const (
	goodFlags = "08 000000 "                   // I flag; 24 reserved bits
	goodVNI   = "00002a 00 "                   // VNI 42; 8 reserved bits
	goodMACs  = "020000000001 020000000002 "   // inner destination: ours; inner source: the peer's
	goodType  = "0800 "                        // IPv4
	goodFrame = goodFlags + goodVNI + goodMACs // all but the EtherType

	goodIP = "45 00 001c " + // version 4, IHL 5; TOS; total length 28
		"1234 0000 " + // identification; flags and fragment offset
		"40 01 549f " + // TTL 64; ICMP; header checksum
		"0a010005 0a020007 " // 10.1.0.5 to 10.2.0.7
	goodICMP = "08 00 f7ff 0000 0000 " // echo request
)

// badChecksum is what examine says of a header that VerifyHeader refuses; encap has no fault for it.
const badChecksum Fault = 0xff

// examine takes a datagram through the same checks, in the same order, as the data path.
func examine(f Framing, datagram []byte) Fault {
	p, fault := f.Decode(datagram)
	if fault != FaultNone {
		return fault
	}
	var h Header
	if f.Family() == IPv6 {
		return ParseIPv6(p, f.MinPayload(), &h)
	}
	if fault := ParseIPv4(p, f.MinPayload(), &h); fault != FaultNone {
		return fault
	}
	if !VerifyHeader(p, &h) {
		return badChecksum
	}
	return FaultNone
}

type malformed struct {
	name string
	hex  string
	want Fault
}

// innerFaults are the ways in which an inner packet can be wrong in any framing.
var innerFaults = []malformed{
	{"good", goodIP + goodICMP, FaultNone},
	{"good with options", "46 00 0020 1234 0000 40 01 519a 0a010005 0a020007 01010100 " + goodICMP, FaultNone},
	{"version 0", "05 00 001c 1234 0000 40 01 949f 0a010005 0a020007 " + goodICMP, FaultIPVersion},
	{"version 5", "55 00 001c 1234 0000 40 01 449f 0a010005 0a020007 " + goodICMP, FaultIPVersion},
	{"version 15", "f5 00 001c 1234 0000 40 01 a49e 0a010005 0a020007 " + goodICMP, FaultIPVersion},
	{"IHL 0", "40 00 001c 1234 0000 40 01 599f 0a010005 0a020007 " + goodICMP, FaultIPHeader},
	{"IHL 4", "44 00 001c 1234 0000 40 01 559f 0a010005 0a020007 " + goodICMP, FaultIPHeader},
	{"IHL past the end", "48 00 001c 1234 0000 40 01 519f 0a010005 0a020007 " + goodICMP, FaultIPHeader},
	{"total length inside the header", "45 00 0013 1234 0000 40 01 54a8 0a010005 0a020007 " + goodICMP, FaultIPLength},
	{"total length 0", "45 00 0000 1234 0000 40 01 54bb 0a010005 0a020007 " + goodICMP, FaultIPLength},
	{"total length inside the options", "46 00 0017 1234 0000 40 01 51a3 0a010005 0a020007 01010100 " + goodICMP, FaultIPLength},
	{"total length one too long", "45 00 001d 1234 0000 40 01 549e 0a010005 0a020007 " + goodICMP, FaultIPLength},
	{"total length 65535", "45 00 ffff 1234 0000 40 01 54bb 0a010005 0a020007 " + goodICMP, FaultIPLength},
	{"checksum off by one", "45 00 001c 1234 0000 40 01 54a0 0a010005 0a020007 " + goodICMP, badChecksum},
	{"checksum zero", "45 00 001c 1234 0000 40 01 0000 0a010005 0a020007 " + goodICMP, badChecksum},
}

// zeros is n bytes of padding.
func zeros(n int) string { return string(bytes.Repeat([]byte("00"), n)) }

var vxlanFaults = []malformed{
	{"empty", "", FaultShort},
	{"VXLAN header only", goodFlags + goodVNI, FaultShort},
	{"no room for an IP header", goodFrame + goodType + "45 00 0013 1234 0000 40 01 54a8 0a010005 0a0200", FaultShort},
	{"I flag clear", "00 000000 " + goodVNI + goodMACs + goodType + goodIP + goodICMP, FaultFlags},
	{"reserved flag set", "88 000000 " + goodVNI + goodMACs + goodType + goodIP + goodICMP, FaultFlags},
	{"GPE: the P flag", "0c 000003 " + goodVNI + goodMACs + goodType + goodIP + goodICMP, FaultFlags},
	{"GBP: a group policy", "88 000064 " + goodVNI + goodMACs + goodType + goodIP + goodICMP, FaultFlags},
	{"reserved 24 bits", "08 000001 " + goodVNI + goodMACs + goodType + goodIP + goodICMP, FaultFlags},
	{"reserved byte behind the VNI", goodFlags + "00002a 01 " + goodMACs + goodType + goodIP + goodICMP, FaultFlags},
	{"another VNI", goodFlags + "00002b 00 " + goodMACs + goodType + goodIP + goodICMP, FaultVNI},
	{"VNI's top byte", goodFlags + "01002a 00 " + goodMACs + goodType + goodIP + goodICMP, FaultVNI},
	{"another destination MAC", goodFlags + goodVNI + "020000000003 020000000002 " + goodType + goodIP + goodICMP, FaultMAC},
	{"broadcast destination MAC", goodFlags + goodVNI + "ffffffffffff 020000000002 " + goodType + goodIP + goodICMP, FaultMAC},
	{"our own source MAC", goodFlags + goodVNI + "020000000001 020000000001 " + goodType + goodIP + goodICMP, FaultOwnMAC},
	{"802.1Q tag", goodFrame + "8100 0064 0800 " + goodIP + goodICMP, FaultVLAN},
	{"802.1ad tag", goodFrame + "88a8 0064 0800 " + goodIP + goodICMP, FaultVLAN},
	{"ARP request", goodFrame + "0806 0001 0800 06 04 0001 020000000002 0a010000 000000000000 0a020000", FaultARP},
	{"LLDP", goodFrame + "88cc " + goodIP + goodICMP, FaultNotIP},
	{"802.3 length", goodFrame + "001c " + goodIP + goodICMP, FaultNotIP},
	{"IPv6 EtherType", goodFrame + "86dd 60000000 0000 3b 40" + zeros(32), FaultIPv6},
	{"IPv6 behind IPv4's EtherType", goodFrame + goodType + "60000000 0000 3b 40" + zeros(32), FaultIPv6},
	{"padded to a minimal frame", goodFrame + goodType + goodIP + goodICMP + zeros(46-28), FaultNone},
	{"padded past a minimal frame", goodFrame + goodType + goodIP + goodICMP + zeros(47-28), FaultIPLength},
}

var udpFaults = []malformed{
	{"empty", "", FaultShort},
	{"19 bytes", "45 00 0013 1234 0000 40 01 54a8 0a010005 0a0200", FaultShort},
	{"IPv6", "60000000 0000 3b 40" + zeros(32), FaultIPv6},
	{"one byte of padding", goodIP + goodICMP + "00", FaultIPLength},
}

func TestMalformed(t *testing.T) {
	vxlan := vxlanFaults
	for _, row := range innerFaults {
		vxlan = append(vxlan, malformed{"inner: " + row.name, goodFrame + goodType + row.hex, row.want})
	}
	// A shorter inner packet may be padded over VXLAN, so a total length that is too short must be short
	// of the header there; the rows of innerFaults are. A longer packet must be exact in both framings.
	long := "45 00 0050 1234 0000 40 01 546b 0a010005 0a020007 " + zeros(61)
	vxlan = append(vxlan, malformed{"long, total length one too short", goodFrame + goodType + long, FaultIPLength})
	udp := append(append([]malformed(nil), udpFaults...), innerFaults...)
	udp = append(udp, malformed{"long, total length one too short", long, FaultIPLength})

	all := func(from, to Fault) (faults []Fault) {
		for f := from; f <= to; f++ {
			faults = append(faults, f)
		}
		return faults
	}
	for _, framing := range []struct {
		f     Framing
		rows  []malformed
		reach []Fault
	}{
		{NewVXLAN(mustVNI(t, 42), ourMAC), vxlan, append(all(FaultNone, FaultIPv6), FaultIPVersion, FaultIPHeader, FaultIPLength, badChecksum)},
		{UDP{}, udp, []Fault{FaultNone, FaultShort, FaultIPv6, FaultIPVersion, FaultIPHeader, FaultIPLength, badChecksum}},
		{NewVXLAN6(mustVNI(t, 42), ourMAC), vxlanFaults6(), append(all(FaultNone, FaultNotIP), FaultIPv4, FaultIPVersion, FaultIPLength)},
		{UDP{Inner: IPv6}, append(udpFaults6, innerFaults6...), []Fault{FaultNone, FaultShort, FaultIPv4, FaultIPVersion, FaultIPLength}},
	} {
		reached := map[Fault]bool{}
		for _, row := range framing.rows {
			t.Run(fmt.Sprintf("%s/%v/%s", framing.f.Name(), framing.f.Family(), row.name), func(t *testing.T) {
				d := unhex(t, row.hex)
				before := bytes.Clone(d)
				if got := examine(framing.f, d); got != row.want {
					t.Errorf("fault %d, want %d, of %x", got, row.want, d)
				}
				if !bytes.Equal(d, before) {
					t.Error("checking a datagram changed it")
				}
				if p, fault := framing.f.Decode(d); fault != FaultNone && p != nil {
					t.Errorf("Decode returns %x together with fault %d", p, fault)
				}
				reached[row.want] = true
			})
		}
		for _, fault := range framing.reach {
			if !reached[fault] {
				t.Errorf("%s: no row reaches fault %d", framing.f.Name(), fault)
			}
		}
		if len(reached) != len(framing.reach) {
			t.Errorf("%s: %d faults reached, but %d listed", framing.f.Name(), len(reached), len(framing.reach))
		}
	}
}

// Every truncation of a good datagram is refused; none panics.
func TestTruncated(t *testing.T) {
	inner := tcpPacket(t, 1000, 2000)
	sender := NewVXLAN(mustVNI(t, 42), peerMAC)
	full := append(make([]byte, VXLANHeadroom), inner...)
	sender.Encode(full, ourMAC)
	inner6 := tcpPacket6(t, 1000, 2000)
	full6 := append(make([]byte, VXLANHeadroom), inner6...)
	sender.Encode(full6, ourMAC)
	for _, c := range []struct {
		f Framing
		d []byte
	}{
		{NewVXLAN(mustVNI(t, 42), ourMAC), full}, {UDP{}, inner},
		{NewVXLAN6(mustVNI(t, 42), ourMAC), full6}, {UDP{Inner: IPv6}, inner6},
	} {
		if got := examine(c.f, c.d); got != FaultNone {
			t.Fatalf("%s: the whole datagram has fault %d", c.f.Name(), got)
		}
		for n := range len(c.d) {
			if got := examine(c.f, c.d[:n:n]); got != FaultShort && got != FaultIPLength {
				t.Errorf("%s cut to %d bytes: fault %d, want short or length", c.f.Name(), n, got)
			}
		}
	}
}

func TestEncodeAgainstGopacket(t *testing.T) {
	v6 := &layers.IPv6{Version: 6, NextHeader: layers.IPProtocolUDP, HopLimit: 64, SrcIP: net.ParseIP("fd00::1"), DstIP: net.ParseIP("fd00::2")}
	udp := &layers.UDP{SrcPort: 5000, DstPort: 5001}
	for _, c := range []struct {
		name  string
		vni   uint32
		ether layers.EthernetType
		inner []gopacket.SerializableLayer
	}{
		{"IPv4 UDP", 1, layers.EthernetTypeIPv4, []gopacket.SerializableLayer{header(layers.IPProtocolUDP), udp, gopacket.Payload("hello: more than the 46 bytes below which gopacket pads")}},
		{"all bits of the VNI", 1<<24 - 1, layers.EthernetTypeIPv4, []gopacket.SerializableLayer{header(layers.IPProtocolUDP), udp, gopacket.Payload("exactly the 18 bytes")}},
		{"VNI 0", 0, layers.EthernetTypeIPv4, []gopacket.SerializableLayer{header(layers.IPProtocolUDP), udp, gopacket.Payload(bytes.Repeat([]byte("long"), 300))}},
		{"IPv6 UDP", 42, layers.EthernetTypeIPv6, []gopacket.SerializableLayer{v6, udp, gopacket.Payload("hello: more than the 46 bytes below which gopacket pads")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := serialize(t, append([]gopacket.SerializableLayer{
				&layers.VXLAN{ValidIDFlag: true, VNI: c.vni},
				&layers.Ethernet{SrcMAC: ourMAC[:], DstMAC: peerMAC[:], EthernetType: c.ether},
			}, c.inner...)...)
			inner := serialize(t, c.inner...)

			// The headroom starts out dirty: Encode must write every byte of it.
			got := append(bytes.Repeat([]byte{0xa5}, VXLANHeadroom), inner...)
			NewVXLAN(mustVNI(t, c.vni), ourMAC).Encode(got, peerMAC)
			if !bytes.Equal(got, want) {
				t.Fatalf("Encode gives\n%x, gopacket\n%x", got, want)
			}

			decoded := gopacket.NewPacket(got, layers.LayerTypeVXLAN, gopacket.Default)
			if failure := decoded.ErrorLayer(); failure != nil {
				t.Fatalf("gopacket decodes what Encode wrote: %v", failure.Error())
			}
			vx := decoded.Layer(layers.LayerTypeVXLAN).(*layers.VXLAN)
			eth := decoded.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
			if vx.VNI != c.vni || !vx.ValidIDFlag || vx.GBPExtension {
				t.Errorf("gopacket reads VXLAN header %+v, want VNI %d", vx, c.vni)
			}
			if MAC(eth.SrcMAC) != ourMAC || MAC(eth.DstMAC) != peerMAC || !bytes.Equal(eth.Payload, inner) {
				t.Errorf("gopacket reads frame %v to %v with %x", eth.SrcMAC, eth.DstMAC, eth.Payload)
			}
		})
	}
}

func TestUDPFramingIsBare(t *testing.T) {
	p := tcpPacket(t, 1, 2)
	before := bytes.Clone(p)
	UDP{}.Encode(p, peerMAC)
	if !bytes.Equal(p, before) {
		t.Error("Encode of the udp framing changed the packet")
	}
	got, fault := UDP{}.Decode(p)
	if fault != FaultNone || !bytes.Equal(got, before) {
		t.Errorf("Decode = %x, fault %d", got, fault)
	}
}

func FuzzVXLAN(f *testing.F) {
	inner := tcpPacket(f, 80, 4096)
	good := append(make([]byte, VXLANHeadroom), inner...)
	NewVXLAN(mustVNI(f, 42), peerMAC).Encode(good, ourMAC)
	f.Add(uint32(42), ourMAC[:], inner, good)
	f.Add(uint32(1<<24-1), peerMAC[:], []byte{0x60}, good[:40])
	f.Add(uint32(0), []byte{}, []byte{}, []byte{})
	for _, row := range vxlanFaults {
		f.Add(uint32(7), ourMAC[:], inner, unhex(f, row.hex))
	}
	f.Fuzz(func(t *testing.T, number uint32, dstBytes, inner, arbitrary []byte) {
		vni := mustVNI(t, number&0xffffff)
		var dst MAC
		copy(dst[:], dstBytes)

		d := append(bytes.Repeat([]byte{0xa5}, VXLANHeadroom), inner...)
		NewVXLAN(vni, peerMAC).Encode(d, dst)
		want := FaultNone
		switch {
		case len(inner) < 20:
			want = FaultShort
		case dst == peerMAC:
			want = FaultOwnMAC
		case inner[0]>>4 == 6:
			want = FaultIPv6
		}
		got, fault := NewVXLAN(vni, dst).Decode(d)
		if want == FaultIPv6 && len(inner) >= ipv6Len {
			got6, fault6 := NewVXLAN6(vni, dst).Decode(d)
			if fault6 != FaultNone || !bytes.Equal(got6, inner) {
				t.Fatalf("IPv6, Decode of what Encode wrote: %x, fault %d", got6, fault6)
			}
		}
		if fault != want {
			t.Fatalf("Decode of what Encode wrote: fault %d, want %d", fault, want)
		}
		if fault == FaultNone && !bytes.Equal(got, inner) {
			t.Fatalf("Decode of what Encode wrote: %x, want %x", got, inner)
		}

		for _, f := range []*VXLAN{NewVXLAN(mustVNI(t, 42), ourMAC), NewVXLAN6(mustVNI(t, 42), ourMAC)} {
			p, fault := f.Decode(arbitrary)
			if fault != FaultNone {
				if p != nil {
					t.Fatalf("Decode returns %x together with fault %d", p, fault)
				}
				continue
			}
			if (p[0]>>4 == 6) != (f.Family() == IPv6) {
				continue // EtherType and version contradict each other: ParseIPv4's to refuse, or ParseIPv6's
			}
			again := append(make([]byte, VXLANHeadroom), p...)
			NewVXLAN(mustVNI(t, 42), MAC(arbitrary[14:20])).Encode(again, MAC(arbitrary[8:14]))
			if !bytes.Equal(again, arbitrary) {
				t.Fatalf("accepted %x, which Encode writes as %x", arbitrary, again)
			}
		}
	})
}

func FuzzUDP(f *testing.F) {
	for _, row := range slices.Concat(udpFaults, innerFaults, udpFaults6, innerFaults6) {
		f.Add(unhex(f, row.hex))
	}
	f.Fuzz(func(t *testing.T, d []byte) {
		for family, want := range []bool{
			IPv4: len(d) >= 20 && d[0]>>4 == 4,
			IPv6: len(d) >= 40 && d[0]>>4 == 6,
		} {
			p, fault := UDP{Inner: Family(family)}.Decode(d)
			if (fault == FaultNone) != want {
				t.Fatalf("%v: Decode(%x): fault %d", Family(family), d, fault)
			}
			if fault == FaultNone && !bytes.Equal(p, d) {
				t.Fatalf("%v: Decode(%x) = %x", Family(family), d, p)
			}
		}
	})
}
