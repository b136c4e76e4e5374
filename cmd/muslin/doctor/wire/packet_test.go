package wire

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"muslin/encap"
)

// outer is a UDP datagram with its IP header and checksum.
func outer(from, to netip.AddrPort, payload []byte) []byte {
	udp := make([]byte, udpLen, udpLen+len(payload))
	binary.BigEndian.PutUint16(udp, from.Port())
	binary.BigEndian.PutUint16(udp[2:], to.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(udpLen+len(payload)))
	udp = append(udp, payload...)
	p := make([]byte, ipLen(to.Addr().Is6()))
	addresses := p[8:]
	if to.Addr().Is6() {
		p[0], p[6] = 6<<4, protoUDP
		binary.BigEndian.PutUint16(p[4:], uint16(len(udp)))
	} else {
		addresses = p[12:]
		p[0], p[9] = 4<<4|5, protoUDP
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)+len(udp)))
	}
	n := copy(addresses, from.Addr().AsSlice())
	copy(addresses[n:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(udp[6:], ^encap.Sum(udp, pseudoSum(addresses, protoUDP, len(udp))))
	return append(p, udp...)
}

func TestParse(t *testing.T) {
	vni, err := encap.NewVNI(7)
	if err != nil {
		t.Fatal(err)
	}
	a, b := encap.MAC{2, 0, 0, 0, 0, 1}, encap.MAC{2, 0, 0, 0, 0, 2}
	for _, c := range []struct{ from, to, base, peer string }{
		{"192.0.2.1:5000", "192.0.2.2:8472", "10.244.1.0", "10.244.2.0"},
		{"[2001:db8::1]:5000", "[2001:db8::2]:8472", "fd00:1::", "fd00:2::"},
	} {
		from, to := netip.MustParseAddrPort(c.from), netip.MustParseAddrPort(c.to)
		own, peer := VTEP{netip.MustParseAddr(c.base), a}, VTEP{netip.MustParseAddr(c.peer), b}
		want := Sighting{Src: from.Addr(), Dst: to.Addr(), SrcPort: 5000, DstPort: 8472, VXLAN: true, VNI: 7, InnerSrc: a, InnerDst: b,
			From: own.Base, To: peer.Base, Request: true, EchoID: 11, EchoN: 12}
		p := outer(from, to, Datagram(true, vni, own, peer, 11, 12))
		if got, ok := parse(p, false); !ok || got != want {
			t.Errorf("%+v, %t, want %+v", got, ok, want)
		}
		spoilt := append([]byte(nil), p...)
		spoilt[len(spoilt)-1]++
		if got, ok := parse(spoilt, false); !ok || !got.BadChecksum {
			t.Errorf("a spoilt one: %+v, %t", got, ok)
		}
		if got, _ := parse(spoilt, true); got.BadChecksum {
			t.Error("a checksum that is not filled in yet counts as wrong")
		}
		if got, _ := parse(spoilt[:len(spoilt)-1], false); got.BadChecksum {
			t.Error("a checksum of what was cut counts as wrong")
		}
		want.VXLAN, want.VNI, want.InnerSrc, want.InnerDst = false, 0, encap.MAC{}, encap.MAC{}
		if got, ok := parse(outer(from, to, Datagram(false, vni, own, peer, 11, 12)), false); !ok || got != want {
			t.Errorf("of udp: %+v, %t, want %+v", got, ok, want)
		}
		for n := range p { // however short, and whatever its bytes
			parse(p[:n], false)
			odd := append([]byte(nil), p...)
			odd[n] ^= 0xff
			parse(odd, false)
		}
		// A bare echo request is none of ours, its reply may be.
		echo := appendEcho(nil, own.Base, peer.Base, 3, 4, 0)
		if _, ok := parse(echo, false); ok || len(echo) != SmallEcho(own.Base) {
			t.Error("an echo request of the underlay was taken, or has another length")
		}
		echo[ipLen(own.Base.Is6())] = map[bool]byte{false: echoReply4, true: echoReply6}[own.Base.Is6()]
		if got, ok := parse(echo, false); !ok || !got.Reply || got.EchoID != 3 || got.EchoN != 4 || got.SrcPort != 0 {
			t.Errorf("an echo reply: %+v, %t", got, ok)
		}
	}
}

// A datagram without checksums, what its host says of the closed port, and whether it was damaged on the way there.
func TestUnchecked(t *testing.T) {
	vni, err := encap.NewVNI(7)
	if err != nil {
		t.Fatal(err)
	}
	own, peer := VTEP{netip.MustParseAddr("10.244.1.0"), encap.MAC{2, 1}}, VTEP{netip.MustParseAddr("10.244.2.0"), encap.MAC{2, 2}}
	asked := Unchecked(true, vni, own, peer, 11, 33434)[encap.VXLANHeadroom:]
	if bare := Unchecked(false, vni, own, peer, 11, 33434); string(bare) != string(asked) {
		t.Error("of udp it is another packet")
	}
	if encap.Sum(asked[:ipv4Len], 0) != 0xffff || binary.BigEndian.Uint16(asked[ipv4Len+6:]) != 0 {
		t.Errorf("% x: want a right IP checksum and none of UDP's", asked)
	}
	for _, spoilt := range []bool{false, true} {
		quote := append([]byte(nil), asked...)
		if spoilt {
			quote[len(quote)-3] ^= 0x10
		}
		answer := make([]byte, ipv4Len+icmpLen)
		answer[0], answer[9] = 4<<4|5, protoICMP
		copy(answer[12:], peer.Base.AsSlice())
		copy(answer[16:], own.Base.AsSlice())
		answer[ipv4Len], answer[ipv4Len+1] = unreachable4, 3
		answer = append(answer, quote...)
		binary.BigEndian.PutUint16(answer[2:], uint16(len(answer)))
		got, ok := parse(outer(netip.MustParseAddrPort("192.0.2.2:5000"), netip.MustParseAddrPort("192.0.2.1:8472"), answer), false)
		if !ok || !got.Closed || got.Spoilt != spoilt || got.EchoID != 11 || got.EchoN != 33434 || got.Refused.By.IsValid() {
			t.Errorf("spoilt %t: %+v, %t", spoilt, got, ok)
		}
		bare, ok := parse(answer, false)
		if want := netip.MustParseAddrPort("10.244.2.0:33434"); !ok || bare.Refused != (Refusal{By: peer.Base, Type: unreachable4, Code: 3}) || bare.About != want {
			t.Errorf("an ICMP error of the underlay: %+v, %t; want about %s", bare, ok, want)
		}
		for n := range answer {
			parse(answer[:n], false)
		}
	}
}

// Of what is quoted, only what Misshapen sends is taken.
func TestIsMisshapen(t *testing.T) {
	four, six := netip.MustParseAddrPort("192.0.2.1:8472"), netip.MustParseAddrPort("[2001:db8::1]:8472")
	good4, good6 := outer(four, four, make([]byte, 32)), outer(six, six, make([]byte, 32))
	bad4, bad6 := append([]byte(nil), good4...), append([]byte(nil), good6...)
	clear(bad4[ipv4Len+4 : ipv4Len+6])
	clear(bad6[ipv6Len+6 : ipv6Len+8])
	for name, c := range map[string]struct {
		quote []byte
		six   bool
		want  bool
	}{
		"of IPv4": {good4, false, false}, "without a length": {bad4, false, true},
		"of IPv6": {good6[ipv6Len:], true, false}, "without a checksum": {bad6[ipv6Len:], true, true},
		"cut": {bad4[:ipv4Len+7], false, false}, "nothing": {nil, true, false},
	} {
		if got := isMisshapen(c.quote, c.six); got != c.want {
			t.Errorf("%s: %t, want %t", name, got, c.want)
		}
	}
}

// RFC 826: a request, and who answers.
func TestARP(t *testing.T) {
	l := Link{MAC: encap.MAC{2, 0, 0, 0, 0, 1}}
	target := netip.MustParseAddr("192.0.2.7")
	p := appendARP(nil, l, target)
	if want := "\x00\x01\x08\x00\x06\x04\x00\x01\x02\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xc0\x00\x02\x07"; string(p) != want {
		t.Errorf("% x, want % x", p, want)
	}
	if _, _, ok := parseARP(p); ok {
		t.Error("a request was taken for a reply")
	}
	l.Addr = target
	p = appendARP(nil, l, netip.MustParseAddr("192.0.2.8"))
	p[7] = arpReply
	if who, mac, ok := parseARP(p); !ok || who != target || mac != l.MAC {
		t.Errorf("%s has %s, %t", mac, who, ok)
	}
	if _, _, ok := parseARP(p[:arpLen-1]); ok {
		t.Error("one that is cut was taken")
	}
}

// What an ICMP error says, by RFC 792, RFC 1812 and RFC 4443.
func TestRefusal(t *testing.T) {
	four, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, c := range []struct {
		r                               Refusal
		port, prohibited, away, tooLong bool
	}{
		{r: Refusal{By: four, Type: 3, Code: 3}, port: true},
		{r: Refusal{By: six, Type: 1, Code: 4}, port: true},
		{r: Refusal{By: four, Type: 3, Code: 13}, prohibited: true},
		{r: Refusal{By: four, Type: 3, Code: 10}, prohibited: true},
		{r: Refusal{By: six, Type: 1, Code: 1}, prohibited: true},
		{r: Refusal{By: four, Type: 3, Code: 1}, away: true},
		{r: Refusal{By: six, Type: 1, Code: 3}, away: true},
		{r: Refusal{By: four, Type: 3, Code: 4}, tooLong: true},
		{r: Refusal{By: six, Type: 2}, tooLong: true},
		{r: Refusal{By: four, Type: 11}},
	} {
		if r := &c.r; r.Port() != c.port || r.Prohibited() != c.prohibited || r.Unreachable() != c.away || r.TooBig() != c.tooLong || r.String() == "" {
			t.Errorf("%s: port %t, prohibited %t, unreachable %t, too big %t", r, r.Port(), r.Prohibited(), r.Unreachable(), r.TooBig())
		}
	}
	var none *Refusal
	if none.Port() || none.Prohibited() || none.Unreachable() || none.TooBig() {
		t.Error("no ICMP error says something")
	}
}
