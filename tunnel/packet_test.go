package tunnel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"muslin/tunnel/gso"
)

// Packets come from gopacket, which is also what they are checked with.

// inner is an inner packet as a TUN device hands it over.
type inner struct {
	p    []byte
	info gso.Info
}

func plain(packets ...[]byte) (all []inner) {
	for _, p := range packets {
		all = append(all, inner{p: p})
	}
	return all
}

func serialize(t testing.TB, all ...gopacket.SerializableLayer) []byte {
	t.Helper()
	for i, l := range all {
		if l, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			if err := l.SetNetworkLayerForChecksum(all[i-1].(gopacket.NetworkLayer)); err != nil {
				t.Fatal(err)
			}
		}
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

func ipLayer(src, dst string, protocol layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{
		Version: 4, TTL: 64, Id: 77, Protocol: protocol,
		SrcIP: netip.MustParseAddr(src).AsSlice(), DstIP: netip.MustParseAddr(dst).AsSlice(),
	}
}

// ipLayer6 is the layer of IPv6 that stands for ip, whose addresses are of IPv6.
func ipLayer6(ip *layers.IPv4) *layers.IPv6 {
	return &layers.IPv6{
		Version: 6, HopLimit: ip.TTL, NextHeader: ip.Protocol, TrafficClass: ip.TOS, FlowLabel: 0x12345,
		SrcIP: ip.SrcIP, DstIP: ip.DstIP,
	}
}

// onIP is a packet of either family, as the addresses of ip are.
func onIP(t testing.TB, ip *layers.IPv4, behind ...gopacket.SerializableLayer) []byte {
	t.Helper()
	if len(ip.SrcIP) == 16 {
		return serialize(t, append([]gopacket.SerializableLayer{ipLayer6(ip)}, behind...)...)
	}
	return serialize(t, append([]gopacket.SerializableLayer{ip}, behind...)...)
}

// udpPacket is a UDP packet with that payload. Of IPv6 edit may change what IPv4 has, too.
func udpPacket(t testing.TB, src, dst, payload string, edit ...func(*layers.IPv4)) []byte {
	t.Helper()
	ip := ipLayer(src, dst, layers.IPProtocolUDP)
	for _, f := range edit {
		f(ip)
	}
	return onIP(t, ip, &layers.UDP{SrcPort: 4000, DstPort: 5000}, gopacket.Payload(payload))
}

// sized is a UDP packet of just that many bytes, headers included.
func sized(t testing.TB, src, dst string, bytes int) []byte {
	t.Helper()
	headers := 28
	if netip.MustParseAddr(src).Is6() {
		headers = 48
	}
	p := udpPacket(t, src, dst, string(make([]byte, bytes-headers)))
	if len(p) != bytes {
		t.Fatalf("made a packet of %d bytes, wanted %d", len(p), bytes)
	}
	return p
}

// tcpPacket is a TCP packet with an ACK, which edit may change.
func tcpPacket(t testing.TB, src, dst string, seq uint32, payload []byte, edit ...func(*layers.IPv4, *layers.TCP)) []byte {
	t.Helper()
	ip := ipLayer(src, dst, layers.IPProtocolTCP)
	tcp := &layers.TCP{SrcPort: 4000, DstPort: 5000, Seq: seq, Ack: 99, ACK: true, Window: 100}
	for _, f := range edit {
		f(ip, tcp)
	}
	return onIP(t, ip, tcp, gopacket.Payload(payload))
}

// setDF lets packets with any identification be joined.
func setDF(ip *layers.IPv4, _ *layers.TCP) { ip.Flags = layers.IPv4DontFragment }

// superpacket is p, whole and sound, as a sender hands it over that leaves it to a NIC to segment.
func superpacket(p []byte, size int) inner {
	p = bytes.Clone(p)
	info := infoOf(p, size)
	binary.BigEndian.PutUint16(p[info.CsumStart+info.CsumOffset:], pseudoSum(p))
	return inner{p, info}
}

// unfinished is p as a sender hands it over that leaves its checksum to a NIC.
func unfinished(p []byte) inner {
	super := superpacket(p, 0)
	return inner{super.p, gso.Info{NeedsCsum: true, CsumStart: super.info.CsumStart, CsumOffset: super.info.CsumOffset}}
}

// numbered is a payload of just that many bytes of which no two parts are alike.
func numbered(length int) []byte {
	b := make([]byte, length+4)
	for i := 0; i < length; i += 4 {
		binary.BigEndian.PutUint32(b[i:], uint32(i)*2654435761)
	}
	return b[:length]
}

func ipv6Packet(t testing.TB) []byte {
	t.Helper()
	return serialize(t, &layers.IPv6{
		Version: 6, NextHeader: layers.IPProtocolUDP, HopLimit: 64,
		SrcIP: netip.MustParseAddr("fd00::1").AsSlice(), DstIP: netip.MustParseAddr("fd00::2").AsSlice(),
	}, &layers.UDP{SrcPort: 4000, DstPort: 5000}, gopacket.Payload("six"))
}

func setECN(codepoint uint8) func(*layers.IPv4) {
	return func(l *layers.IPv4) { l.TOS = 0x48 | codepoint }
}

// checkSound fails when gopacket finds p's headers at fault, or writes it otherwise: lengths, checksums.
func checkSound(t testing.TB, p []byte) (*layers.IPv4, gopacket.Packet) {
	t.Helper()
	decoded := gopacket.NewPacket(p, layers.LayerTypeIPv4, gopacket.Default)
	ip, ok := decoded.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	if !ok {
		t.Fatalf("not an IPv4 packet: %x", p)
	}
	if int(ip.Length) != len(p) {
		t.Errorf("total length %d in a packet of %d bytes", ip.Length, len(p))
	}
	written := *ip
	all := []gopacket.SerializableLayer{&written}
	switch transport := decoded.TransportLayer().(type) {
	case *layers.TCP:
		l := *transport
		l.Padding = nil // as many as the options need come anew
		all = append(all, &l, gopacket.Payload(transport.Payload))
	case *layers.UDP:
		l := *transport
		all = append(all, &l, gopacket.Payload(transport.Payload))
	default:
		all = append(all, gopacket.Payload(ip.Payload))
	}
	if again := serialize(t, all...); !bytes.Equal(again, p) {
		t.Errorf("gopacket writes otherwise:\n%x\n%x", again, p)
	}
	return ip, decoded
}

// checkSound6 is checkSound for IPv6.
func checkSound6(t testing.TB, p []byte) (*layers.IPv6, gopacket.Packet) {
	t.Helper()
	decoded := gopacket.NewPacket(p, layers.LayerTypeIPv6, gopacket.Default)
	ip, ok := decoded.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
	if !ok {
		t.Fatalf("not an IPv6 packet: %x", p)
	}
	if 40+int(ip.Length) != len(p) {
		t.Errorf("payload length %d in a packet of %d bytes", ip.Length, len(p))
	}
	written := *ip
	all := []gopacket.SerializableLayer{&written}
	switch transport := decoded.TransportLayer().(type) {
	case *layers.TCP:
		l := *transport
		l.Padding = nil
		all = append(all, &l, gopacket.Payload(transport.Payload))
	case *layers.UDP:
		l := *transport
		all = append(all, &l, gopacket.Payload(transport.Payload))
	default:
		if icmp, ok := decoded.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); ok {
			all = append(all, &layers.ICMPv6{TypeCode: icmp.TypeCode}, gopacket.Payload(icmp.Payload))
		} else {
			all = append(all, gopacket.Payload(ip.Payload))
		}
	}
	if again := serialize(t, all...); !bytes.Equal(again, p) {
		t.Errorf("gopacket writes otherwise:\n%x\n%x", again, p)
	}
	return ip, decoded
}

// What follows is the slow, obvious twin of what the kernel and package gso do.

// slowSum is the one's complement sum of 16-bit words.
func slowSum(b []byte, sum uint32) uint16 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	sum = sum>>16 + sum&0xffff
	return uint16(sum>>16 + sum)
}

func isSix(p []byte) bool { return p[0]>>4 == 6 }

// protocolOf is the transport, of IPv6 without extension headers.
func protocolOf(p []byte) byte {
	if isSix(p) {
		return p[6]
	}
	return p[9]
}

// pseudoSum is the sum over the pseudo-header of a whole packet.
func pseudoSum(p []byte) uint16 {
	addresses := p[12:min(20, len(p))]
	if isSix(p) {
		addresses = p[8:40]
	}
	return slowSum(addresses, uint32(protocolOf(p))+uint32(len(p)-headerLen(p)))
}

func headerLen(p []byte) int {
	if isSix(p) {
		return 40
	}
	return int(p[0]&15) * 4
}

// soundHeader reports whether the IP header states the packet's length, and has a right checksum where there is one.
func soundHeader(p []byte) bool {
	if len(p) >= 40 && isSix(p) {
		return 40+int(binary.BigEndian.Uint16(p[4:])) == len(p)
	}
	return len(p) >= 20 && int(binary.BigEndian.Uint16(p[2:])) == len(p) && slowSum(p[:headerLen(p)], 0) == 0xffff
}

// infoOf is the Info of a superpacket p with segments of size bytes.
func infoOf(p []byte, size int) gso.Info {
	transport := headerLen(p)
	i := gso.Info{NeedsCsum: true, Size: uint16(size), CsumStart: uint16(transport)}
	switch protocolOf(p) {
	case 6:
		i.Kind, i.CsumOffset, i.HeaderLen = gso.TCPv4, 16, uint16(transport+int(p[transport+12]>>4)*4)
		if isSix(p) {
			i.Kind = gso.TCPv6
		}
		i.ECN = p[transport+13]&0x80 != 0
	case 17:
		i.Kind, i.CsumOffset, i.HeaderLen = gso.UDP, 6, uint16(transport+8)
	default:
		panic(fmt.Sprintf("no superpacket of protocol %d", protocolOf(p)))
	}
	return i
}

// mend puts right checksums into a packet; in the transport header just where transport says so.
func mend(p []byte, transport bool) {
	at := headerLen(p)
	if !isSix(p) {
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], ^slowSum(p[:at], 0))
	}
	if !transport {
		return
	}
	field := p[at+int(infoOf(p, 0).CsumOffset):]
	field[0], field[1] = 0, 0
	sum := ^slowSum(p[at:], uint32(pseudoSum(p)))
	if sum == 0 && protocolOf(p) == 17 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(field, sum)
}

// cut returns the packets that p stands for, in copies.
func cut(p []byte, info gso.Info) (all [][]byte) {
	p = bytes.Clone(p)
	if info.Kind == gso.None {
		if info.NeedsCsum {
			mend(p, true)
		}
		return append(all, p)
	}
	at := headerLen(p)
	header := int(infoOf(p, 0).HeaderLen)
	payload := p[header:]
	for i := 0; i == 0 || len(payload) > 0; i++ {
		n := min(int(info.Size), len(payload))
		s := append(bytes.Clone(p[:header]), payload[:n]...)
		payload = payload[n:]
		if isSix(s) {
			binary.BigEndian.PutUint16(s[4:], uint16(len(s)-40))
		} else {
			binary.BigEndian.PutUint16(s[2:], uint16(len(s)))
			binary.BigEndian.PutUint16(s[4:], binary.BigEndian.Uint16(p[4:])+uint16(i))
		}
		if protocolOf(s) == 17 {
			binary.BigEndian.PutUint16(s[at+4:], uint16(len(s)-at))
		} else {
			binary.BigEndian.PutUint32(s[at+4:], binary.BigEndian.Uint32(p[at+4:])+uint32(i*int(info.Size)))
			if i > 0 {
				s[at+13] &^= 0x80 // CWR is for the first
			}
			if len(payload) > 0 {
				s[at+13] &^= 0x09 // FIN, PSH for the last
			}
		}
		mend(s, true)
		all = append(all, s)
	}
	return all
}

func cutAll(all []inner) (packets [][]byte) {
	for _, i := range all {
		packets = append(packets, cut(i.p, i.info)...)
	}
	return packets
}

// flow is what keeps its order. Fragments have one of their own.
type flow struct {
	src, dst     netip.Addr
	protocol     byte
	sport, dport uint16 // TCP and UDP, but for fragments
}

func flowOf(p []byte) flow {
	if isSix(p) {
		f := flow{src: netip.AddrFrom16([16]byte(p[8:])), dst: netip.AddrFrom16([16]byte(p[24:])), protocol: p[6]}
		if len(p) >= 44 && (p[6] == 6 || p[6] == 17) {
			f.sport, f.dport = binary.BigEndian.Uint16(p[40:]), binary.BigEndian.Uint16(p[42:])
		}
		return f
	}
	f := flow{src: netip.AddrFrom4([4]byte(p[12:])), dst: netip.AddrFrom4([4]byte(p[16:])), protocol: p[9]}
	if at := headerLen(p); binary.BigEndian.Uint16(p[6:])&0x3fff == 0 && len(p) >= at+4 && (p[9] == 6 || p[9] == 17) {
		f.sport, f.dport = binary.BigEndian.Uint16(p[at:]), binary.BigEndian.Uint16(p[at+2:])
	}
	return f
}

// normal is p without what joining and cutting may change: the identification of a packet that must not
// be fragmented (RFC 6864, section 4.1), and with it the header's checksum.
func normal(t testing.TB, p []byte) []byte {
	t.Helper()
	if !soundHeader(p) {
		t.Fatalf("header at fault in %x", p)
	}
	if isSix(p) || p[6]&0x40 == 0 {
		return p
	}
	p = bytes.Clone(p)
	p[4], p[5] = 0, 0
	mend(p, false)
	return p
}

// byFlow sorts packets into flows.
func byFlow(t testing.TB, packets [][]byte) map[flow][][]byte {
	t.Helper()
	flows := map[flow][][]byte{}
	for _, p := range packets {
		f := flowOf(p)
		flows[f] = append(flows[f], normal(t, p))
	}
	return flows
}

// checkFlows fails unless every flow of want came as it was: nothing lost, nothing doubled, in order.
func checkFlows(t testing.TB, got, want [][]byte) {
	t.Helper()
	came, sent := byFlow(t, got), byFlow(t, want)
	for f, packets := range sent {
		for i, p := range packets {
			switch {
			case i >= len(came[f]):
				t.Fatalf("%+v: %d packets came, want %d", f, len(came[f]), len(packets))
			case !bytes.Equal(came[f][i], p):
				t.Fatalf("%+v: packet %d came as\n%.64x, want\n%.64x", f, i, came[f][i], p)
			}
		}
		if n := len(came[f]); n > len(packets) {
			t.Fatalf("%+v: %d packets came, want %d", f, n, len(packets))
		}
		delete(came, f)
	}
	for f, packets := range came {
		t.Fatalf("%+v: %d packets came of a flow that was not sent", f, len(packets))
	}
}
