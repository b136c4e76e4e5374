package tunnel

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"muslin/encap"
)

// checkICMP has gopacket decode an ICMP error about packet, which 10.1.0.5 sent.
func checkICMP(t *testing.T, message []byte, code icmpCode, mtu int, packet []byte) {
	t.Helper()
	ip, decoded := checkSound(t, message)
	if ip.SrcIP.String() != nodeA.subnet.Addr().String() || ip.DstIP.String() != "10.1.0.5" {
		t.Errorf("from %v to %v, want from the subnet's base %v to the sender", ip.SrcIP, ip.DstIP, nodeA.subnet.Addr())
	}
	if ip.Protocol != layers.IPProtocolICMPv4 || ip.TTL == 0 || len(message) > 576 {
		t.Errorf("protocol %v, TTL %d, %d bytes", ip.Protocol, ip.TTL, len(message))
	}
	icmp, ok := decoded.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
	if !ok {
		t.Fatalf("gopacket finds no ICMP in %x", message)
	}
	if icmp.TypeCode != layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, uint8(code)) {
		t.Errorf("%v, want destination unreachable, code %d", icmp.TypeCode, code)
	}
	if icmp.Id != 0 || int(icmp.Seq) != mtu { // RFC 1191: unused, and next-hop MTU
		t.Errorf("unused field %d and MTU %d, want 0 and %d", icmp.Id, icmp.Seq, mtu)
	}
	if want := packet[:min(len(packet), 576-28)]; !bytes.Equal(icmp.Payload, want) {
		t.Errorf("quotes %d bytes, want the packet's first %d", len(icmp.Payload), len(want))
	}
	again := serialize(t, &layers.ICMPv4{TypeCode: icmp.TypeCode, Id: icmp.Id, Seq: icmp.Seq}, gopacket.Payload(icmp.Payload))
	if !bytes.Equal(again, message[20:]) {
		t.Error("gopacket writes the same message otherwise: checksum?")
	}
}

func TestICMPAnswers(t *testing.T) {
	for _, c := range []struct {
		name, dst string
		code      icmpCode
	}{
		{"no route", "10.9.0.1", icmpNetUnreachable},
		{"no such pod", "10.1.0.99", icmpHostUnreachable},
	} {
		x := newBench(t, "vxlan") // one sender for all, so one buffer that every message leaves dirty
		for _, length := range []int{1400, 28, 29, 547, 548, 549} {
			p := sized(t, "10.1.0.5", c.dst, length)
			x.sendPlain(t, p)
			written := x.dev.takeReplies()
			if len(written) != 1 {
				t.Fatalf("%s, %d bytes: %d answers", c.name, length, len(written))
			}
			checkICMP(t, written[0], c.code, 0, p)
		}
	}
}

// What a router must not answer, and what it must.
func TestICMPIsSilentAbout(t *testing.T) {
	icmp := func(kind, code uint8) []byte {
		return serialize(t, ipLayer("10.1.0.5", "10.9.0.1", layers.IPProtocolICMPv4),
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, code)}, gopacket.Payload("quoted packet"))
	}
	fragment := func(flags layers.IPv4Flag, offset uint16) []byte {
		ip := ipLayer("10.1.0.5", "10.9.0.1", layers.IPProtocolUDP)
		ip.Flags, ip.FragOffset = flags, offset
		return serialize(t, ip, gopacket.Payload("0123456789abcdef"))
	}
	for _, c := range []struct {
		name   string
		p      []byte
		answer bool
	}{
		{"echo request", icmp(8, 0), true},
		{"echo reply", icmp(0, 0), true},
		{"timestamp", icmp(13, 0), true},
		{"destination unreachable", icmp(3, 1), false},
		{"redirect", icmp(5, 0), false},
		{"time exceeded", icmp(11, 0), false},
		{"parameter problem", icmp(12, 0), false},
		{"source quench", icmp(4, 0), false},
		{"an ICMP type that nobody knows", icmp(200, 0), false},
		{"ICMP without a type", serialize(t, ipLayer("10.1.0.5", "10.9.0.1", layers.IPProtocolICMPv4)), false},
		{"first fragment", fragment(layers.IPv4MoreFragments, 0), true},
		{"middle fragment", fragment(layers.IPv4MoreFragments, 8), false},
		{"last fragment", fragment(0, 8), false},
		{"to a multicast group", udpPacket(t, "10.1.0.5", "239.1.1.1", "x"), false},
		{"to everybody", udpPacket(t, "10.1.0.5", "255.255.255.255", "x"), false},
		{"from everybody", udpPacket(t, "255.255.255.255", "10.9.0.1", "x"), false},
		{"from a multicast group", udpPacket(t, "224.0.0.1", "10.9.0.1", "x"), false},
		{"from nobody", udpPacket(t, "0.0.0.0", "10.9.0.1", "x"), false},
		{"from loopback", udpPacket(t, "127.0.0.1", "10.9.0.1", "x"), false},
	} {
		x := newBench(t, "udp")
		x.sendPlain(t, c.p)
		if written := x.dev.takeReplies(); (len(written) == 1) != c.answer || len(written) > 1 {
			t.Errorf("%s: %d answers, want one: %v", c.name, len(written), c.answer)
		}
		if n := x.Drops()["no-route"]; n != 1 {
			t.Errorf("%s: counted %d times, answered or not", c.name, n)
		}
	}
}

func TestICMPRateLimit(t *testing.T) {
	x := newBench(t, "udp")
	now := time.Unix(1_000_000, 0)
	x.out[0].icmp.init(nodeA.subnet.Addr(), func() time.Time { return now })
	p := udpPacket(t, "10.1.0.5", "10.9.0.1", "x")
	answers := func(packets int) (n int) {
		for range packets {
			x.sendPlain(t, p)
			n += len(x.dev.takeReplies())
		}
		return n
	}
	if n := answers(50); n != icmpBurst {
		t.Errorf("%d answers at once, want %d", n, icmpBurst)
	}
	now = now.Add(9 * time.Millisecond)
	if n := answers(5); n != 0 {
		t.Errorf("%d answers after 9 ms, want none", n)
	}
	now = now.Add(time.Millisecond)
	if n := answers(5); n != 1 {
		t.Errorf("%d answers after 10 ms, want one", n)
	}
	now = now.Add(time.Hour)
	if n := answers(50); n != icmpBurst {
		t.Errorf("%d answers at once after an hour, want %d", n, icmpBurst)
	}
	sent := 0
	for range 200 { // two seconds, five packets every 10 ms
		now = now.Add(10 * time.Millisecond)
		sent += answers(5)
	}
	if sent < 199 || sent > 201 {
		t.Errorf("%d answers in two seconds, want %d", sent, 2*icmpRate)
	}
	if n := x.Drops()["no-route"]; n != 50+5+5+50+1000 {
		t.Errorf("%d packets counted: the limit must not reach the counters", n)
	}
}

// What is not answered uses none of the rate.
func TestICMPSilenceIsFree(t *testing.T) {
	var s icmpSender
	s.init(nodeA.subnet.Addr(), func() time.Time { return time.Unix(1, 0) })
	silent := udpPacket(t, "0.0.0.0", "10.9.0.1", "x")
	var h encap.Header
	encap.ParseIPv4(silent, 0, &h)
	for range 100 {
		if s.build(silent, &h, icmpNetUnreachable, 0) != nil {
			t.Fatal("answered")
		}
	}
	p := udpPacket(t, "10.1.0.5", "10.9.0.1", "x")
	encap.ParseIPv4(p, 0, &h)
	if s.build(p, &h, icmpNetUnreachable, 0) == nil {
		t.Error("no answer left")
	}
}
