package tun

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"muslin/tunnel/gso"
)

// spec is a TCP or UDP packet from somebody behind muslin0 to somebody behind other0, or the other way, or to
// the host.
type spec struct {
	v6, udp  bool
	from, to string // the last two parts of the address: "9.2" is 10.9.0.2 or fd09::2
	sport    uint16
	ttl      byte
	id       uint16
	seq      uint32
	cwr      bool // TCP: CWR and ECE are set
	payload  []byte
}

// to port 5000, as every one goes.
func oneTCP(payload int) spec {
	return spec{from: "9.2", to: "8.2", sport: 4000, ttl: 64, id: 100, seq: 0xffffff00, payload: random(payload)}
}

func oneUDP(payload int) spec {
	return spec{udp: true, from: "9.2", to: "8.2", sport: 4000, ttl: 64, id: 100, payload: random(payload)}
}

func (s spec) with(f func(*spec)) spec { f(&s); return s }

// forwarded is the packet as the next hop gets it.
func (s spec) forwarded() spec { s.ttl--; return s }

// random is n bytes that are the same in each run, and others for each n.
func random(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func (s spec) address(short string) net.IP {
	if s.v6 {
		return net.IP{0xfd, short[0] - '0', 15: short[2] - '0'}
	}
	return net.IP{10, short[0] - '0', 0, short[2] - '0'}
}

// build makes the packet with gopacket: last says that the payload ends here, so that PSH is set.
func (s spec) build(t testing.TB, last bool) []byte {
	t.Helper()
	proto := layers.IPProtocolTCP
	if s.udp {
		proto = layers.IPProtocolUDP
	}
	var ip gopacket.NetworkLayer = &layers.IPv4{Version: 4, TTL: s.ttl, Id: s.id, Flags: layers.IPv4DontFragment, Protocol: proto, SrcIP: s.address(s.from), DstIP: s.address(s.to)}
	if s.v6 {
		ip = &layers.IPv6{Version: 6, HopLimit: s.ttl, NextHeader: proto, SrcIP: s.address(s.from), DstIP: s.address(s.to)}
	}
	if s.udp {
		udp := &layers.UDP{SrcPort: layers.UDPPort(s.sport), DstPort: 5000}
		must(t, udp.SetNetworkLayerForChecksum(ip))
		return serialize(t, ip.(gopacket.SerializableLayer), udp, gopacket.Payload(s.payload))
	}
	tcp := &layers.TCP{SrcPort: layers.TCPPort(s.sport), DstPort: 5000, Seq: s.seq, Ack: 1, ACK: true, PSH: last, CWR: s.cwr, ECE: s.cwr, Window: 1000}
	must(t, tcp.SetNetworkLayerForChecksum(ip))
	return serialize(t, ip.(gopacket.SerializableLayer), tcp, gopacket.Payload(s.payload))
}

// segments are what a NIC would cut the packet into.
func (s spec) segments(t testing.TB, size int) (all [][]byte) {
	t.Helper()
	chunks := slices.Collect(slices.Chunk(s.payload, size))
	for i, chunk := range chunks {
		one := s
		one.payload, one.id, one.cwr = chunk, s.id+uint16(i), s.cwr && i == 0
		one.seq += uint32(i * size)
		p := one.build(t, i == len(chunks)-1)
		if s.cwr && i > 0 { // ECE stays
			p[s.transport()+13] |= 0x40
			finish(p, s.transport(), 16)
		}
		all = append(all, p)
	}
	return all
}

func (s spec) transport() int {
	if s.v6 {
		return 40
	}
	return 20
}

func (s spec) csumOffset() int {
	if s.udp {
		return 6
	}
	return 16
}

func (s spec) headers() int {
	if s.udp {
		return s.transport() + 8
	}
	return s.transport() + 20
}

// undone is the packet with a checksum that is left to a NIC.
func (s spec) undone(t testing.TB) ([]byte, gso.Info) {
	t.Helper()
	p := s.build(t, true)
	at := s.transport() + s.csumOffset()
	binary.BigEndian.PutUint16(p[at:], pseudo(p, s.transport()))
	return p, gso.Info{NeedsCsum: true, CsumStart: uint16(s.transport()), CsumOffset: uint16(s.csumOffset())}
}

// super is the packet as one superpacket.
func (s spec) super(t testing.TB, size int) ([]byte, gso.Info) {
	t.Helper()
	p, info := s.undone(t)
	info.HeaderLen, info.Size, info.ECN = uint16(s.headers()), uint16(size), s.cwr
	switch {
	case s.udp:
		info.Kind = gso.UDP
	case s.v6:
		info.Kind = gso.TCPv6
	default:
		info.Kind = gso.TCPv4
	}
	return p, info
}

// run is the superpacket as it is written: the first segment with all headers, then the others' payloads.
func (s spec) run(t testing.TB, size int) gso.Run {
	t.Helper()
	p, info := s.super(t, size)
	r := gso.Run{Info: info, Len: len(p), Segments: 1}
	cut := min(s.headers()+size, len(p))
	r.Bufs = append(r.Bufs, p[:cut])
	for rest := range slices.Chunk(p[cut:], size) {
		r.Bufs = append(r.Bufs, rest)
		r.Segments++
	}
	return r
}

// pseudo sums the pseudo-header as the RFCs draw it.
func pseudo(p []byte, transport int) uint16 {
	b := make([]byte, 0, 40)
	if p[0]>>4 == 6 {
		b = append(b, p[8:40]...)
		b = append(b, 0, p[6])
	} else {
		b = append(b, p[12:20]...)
		b = append(b, 0, p[9])
	}
	return slowSum(binary.BigEndian.AppendUint16(b, uint16(len(p)-transport)))
}

func slowSum(b []byte) uint16 {
	sum := uint32(0)
	for i, v := range b {
		sum += uint32(v) << (8 * (1 - i%2))
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// finish sets the checksum.
func finish(p []byte, transport, offset int) {
	binary.BigEndian.PutUint16(p[transport+offset:], 0)
	sum := slowSum(binary.BigEndian.AppendUint16(bytes.Clone(append(p[transport:], make([]byte, len(p)%2)...)), pseudo(p, transport)))
	binary.BigEndian.PutUint16(p[transport+offset:], ^sum)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func serialize(t testing.TB, all ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...))
	return bytes.Clone(buf.Bytes())
}

// echo is somebody's ping to the host.
func echo(t testing.TB, seq uint16) []byte {
	return serialize(t,
		&layers.IPv4{Version: 4, TTL: 64, Id: seq + 1, Protocol: layers.IPProtocolICMPv4, SrcIP: net.IP{10, 9, 0, 2}, DstIP: net.IP{10, 9, 0, 1}},
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0), Id: 7, Seq: seq},
		gopacket.Payload("are you there?"))
}

func checkReply(t testing.TB, p []byte, seq uint16) {
	t.Helper()
	decoded := gopacket.NewPacket(p, layers.LayerTypeIPv4, gopacket.Default)
	icmp, ok := decoded.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
	if !ok {
		t.Fatalf("no ICMP in %x", p)
	}
	ip := decoded.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	if icmp.TypeCode.Type() != layers.ICMPv4TypeEchoReply || icmp.Seq != seq || string(icmp.Payload) != "are you there?" || !ip.DstIP.Equal(net.IP{10, 9, 0, 2}) {
		t.Errorf("reply %d is %v of seq %d to %v with %q", seq, icmp.TypeCode, icmp.Seq, ip.DstIP, icmp.Payload)
	}
}

// runs are plain packets on their way to Write.
func runs(packets ...[]byte) (all []gso.Run) {
	for _, p := range packets {
		all = append(all, gso.Run{Bufs: [][]byte{p}, Segments: 1, Len: len(p)})
	}
	return all
}

// difference says where two packets differ.
func difference(got, want []byte) string {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Sprintf("%d bytes, differ at byte %d from %d wanted:\n%x\n%x", len(got), i, len(want), got[:min(len(got), 100)], want[:min(len(want), 100)])
		}
	}
	return fmt.Sprintf("%d bytes, want %d", len(got), len(want))
}
