package gso

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// sum is what a packet has in its checksum field.
type sum uint8

const (
	right sum = iota
	wrong
	absent  // 0, which for UDP says that there is none
	undone  // the pseudo-header's sum
	garbage // something, where it does not count
)

// spec is a packet in words. Fields of another protocol than its own count for nothing.
type spec struct {
	v6, udp      bool
	src, dst     byte // the addresses' last bytes
	sport, dport uint16
	tos, ttl     byte
	label        uint32 // IPv6 flow label
	id           uint16
	flags        layers.IPv4Flag
	offset       uint16 // fragment offset in units of 8 bytes
	ipOptions    int    // words of IPv4 options
	seq, ack     uint32
	tcp          byte // flags
	reserved     byte // lower half of the data offset's byte
	window       uint16
	urgent       uint16
	options      []byte // of TCP, in whole words
	payload      []byte
	sum          sum
}

// oneTCP and oneUDP are packets as an ordinary flow has them.
func oneTCP(payload int) spec {
	return spec{src: 7, dst: 5, sport: 40000, dport: 80, ttl: 63, id: 100, flags: layers.IPv4DontFragment, seq: 0xffffff00, ack: 77,
		tcp: tcpACK, window: 512, options: []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}, payload: random(payload)}
}

func oneUDP(payload int) spec {
	return spec{udp: true, src: 7, dst: 5, sport: 5000, dport: 53, ttl: 63, id: 100, flags: layers.IPv4DontFragment, payload: random(payload)}
}

func (s spec) with(f func(*spec)) spec { f(&s); return s }

// after is the packet that follows s in its flow, with so much payload.
func (s spec) after(payload int) spec {
	s.seq += uint32(len(s.payload))
	s.id++
	s.payload = random(payload)
	return s
}

// both runs f as a subtest over IPv4 and over IPv6.
func both(t *testing.T, f func(t *testing.T, v6 func(*spec))) {
	t.Run("IPv4", func(t *testing.T) { f(t, func(s *spec) { s.v6 = false }) })
	t.Run("IPv6", func(t *testing.T) { f(t, func(s *spec) { s.v6 = true }) })
}

func (s spec) network() gopacket.NetworkLayer {
	proto := layers.IPProtocolTCP
	if s.udp {
		proto = layers.IPProtocolUDP
	}
	if s.v6 {
		return &layers.IPv6{Version: 6, TrafficClass: s.tos, FlowLabel: s.label, NextHeader: proto, HopLimit: s.ttl,
			SrcIP: net.IP{0xfd, 15: s.src}, DstIP: net.IP{0xfd, 1: 1, 15: s.dst}}
	}
	ip := &layers.IPv4{Version: 4, TOS: s.tos, Id: s.id, Flags: s.flags, FragOffset: s.offset, TTL: s.ttl, Protocol: proto,
		SrcIP: net.IP{10, 2, 0, s.src}, DstIP: net.IP{10, 1, 0, s.dst}}
	for range s.ipOptions * 4 {
		ip.Options = append(ip.Options, layers.IPv4Option{OptionType: 1})
	}
	return ip
}

// build makes the packet with gopacket.
func (s spec) build(t testing.TB) []byte {
	t.Helper()
	ip := s.network()
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	var err error
	if s.udp {
		udp := &layers.UDP{SrcPort: layers.UDPPort(s.sport), DstPort: layers.UDPPort(s.dport)}
		must(t, udp.SetNetworkLayerForChecksum(ip))
		err = gopacket.SerializeLayers(buf, opts, ip.(gopacket.SerializableLayer), udp, gopacket.Payload(s.payload))
	} else {
		tcp := &layers.TCP{SrcPort: layers.TCPPort(s.sport), DstPort: layers.TCPPort(s.dport), Seq: s.seq, Ack: s.ack, Window: s.window, Urgent: s.urgent}
		setFlags(tcp, s.tcp)
		for range s.options {
			tcp.Options = append(tcp.Options, layers.TCPOption{OptionType: layers.TCPOptionKindNop}) // filled in below
		}
		must(t, tcp.SetNetworkLayerForChecksum(ip))
		err = gopacket.SerializeLayers(buf, opts, ip.(gopacket.SerializableLayer), tcp, gopacket.Payload(s.payload))
	}
	must(t, err)
	p := bytes.Clone(buf.Bytes())
	transport := transportOf(p)
	at := transport + tcpCsumOffset
	if s.udp {
		at = transport + udpCsumOffset
		if binary.BigEndian.Uint16(p[at:]) == 0 {
			p[at], p[at+1] = 0xff, 0xff // RFC 768; gopacket leaves 0
		}
	} else {
		copy(p[transport+tcpMinLen:], s.options)
		p[transport+12] |= s.reserved
		binary.BigEndian.PutUint16(p[at:], 0)
		binary.BigEndian.PutUint16(p[at:], ^slowSum(p[transport:], slowPseudo(p)))
	}
	switch s.sum {
	case wrong:
		p[at] ^= 0x5a
	case absent:
		p[at], p[at+1] = 0, 0
	case undone:
		binary.BigEndian.PutUint16(p[at:], slowPseudo(p))
	case garbage:
		p[at], p[at+1] = 0xde, 0xad
	}
	return p
}

func setFlags(tcp *layers.TCP, flags byte) {
	for i, f := range []*bool{&tcp.FIN, &tcp.SYN, &tcp.RST, &tcp.PSH, &tcp.ACK, &tcp.URG, &tcp.ECE, &tcp.CWR} {
		*f = flags>>i&1 != 0
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// transportOf is where the transport header begins in a packet without extension headers.
func transportOf(p []byte) int {
	if p[0]>>4 == 6 {
		return ipv6Len
	}
	return int(p[0]&15) * 4
}

// slowSum adds 16-bit words and brings each carry around at once (RFC 1071).
func slowSum(b []byte, initial uint16) uint16 {
	s := uint32(initial)
	for i, v := range b {
		if i%2 == 0 {
			s += uint32(v) << 8
		} else {
			s += uint32(v)
		}
		if s > 0xffff {
			s -= 0xffff
		}
	}
	return uint16(s)
}

// slowPseudo sums the pseudo-header as the RFCs draw it.
func slowPseudo(p []byte) uint16 {
	var pseudo []byte
	n := len(p) - transportOf(p)
	if p[0]>>4 == 6 {
		pseudo = append(pseudo, p[8:40]...)
		pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(n))
		pseudo = append(pseudo, 0, 0, 0, p[6])
	} else {
		pseudo = append(pseudo, p[12:20]...)
		pseudo = append(pseudo, 0, p[9])
		pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(n))
	}
	return slowSum(pseudo, 0)
}

// random is n bytes that are the same in each run, and others for each n.
func random(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// partialInfo is the Info of a packet whose checksum is undone.
func (s spec) partialInfo() Info {
	info := Info{NeedsCsum: true, CsumStart: ipv4MinLen + uint16(s.ipOptions)*4, CsumOffset: tcpCsumOffset}
	if s.v6 {
		info.CsumStart = ipv6Len
	}
	if s.udp {
		info.CsumOffset = udpCsumOffset
	}
	return info
}

// superInfo is the Info of a superpacket with segments of size bytes.
func (s spec) superInfo(size int) Info {
	info := s.partialInfo()
	info.Size = uint16(size)
	switch {
	case s.udp:
		info.Kind, info.HeaderLen = UDP, info.CsumStart+udpLen
	case s.v6:
		info.Kind, info.HeaderLen = TCPv6, info.CsumStart+tcpMinLen+uint16(len(s.options))
	default:
		info.Kind, info.HeaderLen = TCPv4, info.CsumStart+tcpMinLen+uint16(len(s.options))
	}
	return info
}

// extend puts an extension header of 8 bytes behind the IPv6 header of p.
func extend(p []byte, kind byte) []byte {
	q := bytes.Clone(p[:ipv6Len])
	q = append(q, p[6], 0, 0, 0, 0, 0, 0, 0)
	q = append(q, p[ipv6Len:]...)
	q[6] = kind
	binary.BigEndian.PutUint16(q[4:], uint16(len(q)-ipv6Len))
	return q
}

func edit(p []byte, at int, v byte) []byte { p[at] = v; return p }
