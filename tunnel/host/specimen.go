//go:build linux

package host

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tri is the answer of a rule that is asked about a packet of which not everything is known.
type tri int

const (
	no tri = iota
	maybe
	yes
)

func (t tri) not() tri { return yes - t }

// and is yes where both are.
func (t tri) and(o tri) tri { return min(t, o) }

// value is what is known of some bytes: those bits that are set in mask. A device's name or index may be unknown but
// for what it is not.
type value struct {
	bits, mask []byte
	not        [][]byte
}

func known(b []byte) value { return value{bits: b, mask: bytes.Repeat([]byte{0xff}, len(b))} }

func unknown(n int) value { return value{bits: make([]byte, n), mask: make([]byte, n)} }

func knownU32(n uint32) value { return known(binary.NativeEndian.AppendUint32(nil, n)) }

// inPrefix is an address of which the network is known.
func inPrefix(p netip.Prefix) value {
	mask := net.CIDRMask(p.Bits(), p.Addr().BitLen())
	return value{bits: p.Masked().Addr().AsSlice(), mask: mask}
}

// equals compares the beginning of the value, as nft does for names with a wildcard.
func (v value) equals(data []byte) tri {
	if len(data) > len(v.bits) {
		return maybe
	}
	answer := yes
	for i, want := range data {
		if (v.bits[i]^want)&v.mask[i] != 0 {
			return no
		}
		if v.mask[i] != 0xff {
			answer = maybe
		}
	}
	for _, other := range v.not {
		if answer == maybe && bytes.Equal(other, data) {
			return no
		}
	}
	return answer
}

// bounds are the lowest and the highest that the value can be.
func (v value) bounds() (low, high []byte) {
	low, high = make([]byte, len(v.bits)), make([]byte, len(v.bits))
	for i, b := range v.bits {
		low[i], high[i] = b&v.mask[i], b|^v.mask[i]
	}
	return low, high
}

// within compares with what lies between two numbers in network byte order, both included.
func (v value) within(from, to []byte) tri {
	low, high := v.bounds()
	switch {
	case len(from) != len(low) || len(to) != len(low):
		return maybe
	case bytes.Compare(low, from) >= 0 && bytes.Compare(high, to) <= 0:
		return yes
	case bytes.Compare(high, from) < 0 || bytes.Compare(low, to) > 0:
		return no
	}
	return maybe
}

func (v value) compare(op expr.CmpOp, data []byte) tri {
	least, most := make([]byte, len(data)), bytes.Repeat([]byte{0xff}, len(data))
	switch op {
	case expr.CmpOpEq:
		return v.equals(data)
	case expr.CmpOpNeq:
		return v.equals(data).not()
	case expr.CmpOpLte:
		return v.within(least, data)
	case expr.CmpOpGte:
		return v.within(data, most)
	case expr.CmpOpLt:
		return v.within(data, most).not()
	case expr.CmpOpGt:
		return v.within(least, data).not()
	}
	return maybe
}

// masked is (v & mask) ^ xor.
func (v value) masked(mask, xor []byte) value {
	if len(mask) != len(v.bits) || len(xor) != len(v.bits) {
		return unknown(len(mask))
	}
	out := unknown(len(mask))
	for i := range mask {
		out.bits[i] = v.bits[i]&mask[i] ^ xor[i]
		out.mask[i] = v.mask[i] | ^mask[i]
	}
	return out
}

// specimen is a packet as a rule sees it: the first of a flow.
type specimen struct {
	what    string // for a sentence
	six     bool   // of IPv6
	outer   bool   // a datagram of the underlay
	early   bool   // connection tracking has not seen it yet
	header  value  // the IP header, without options
	ports   value  // what follows it, as far as it is known
	in, out device
}

// device is one that a packet comes from or goes to. Without a name, it is none of the others.
type device struct {
	name   string
	others []string
}

// ifname is a device's name as nftables has it.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func (d device) value(size int, of func(string) []byte) value {
	if d.name != "" {
		if b := of(d.name); b != nil {
			return known(b)
		}
		return unknown(size)
	}
	v := unknown(size)
	for _, name := range d.others {
		if b := of(name); b != nil {
			v.not = append(v.not, b)
		}
	}
	return v
}

func (d device) names() value { return d.value(unix.IFNAMSIZ, ifname) }

func (d device) index() value {
	return d.value(4, func(name string) []byte {
		l, err := LinkNamed(name)
		if err != nil || l == nil {
			return nil
		}
		return binary.NativeEndian.AppendUint32(nil, uint32(l.Attrs().Index))
	})
}

// headerFields says what a header has where, in bytes.
type headerFields struct {
	length, protocol uint32
	addressField
}

const udpHeaderLen = 8 // RFC 768

var (
	header4 = headerFields{20, 9, fields4} // RFC 791, 3.1
	header6 = headerFields{40, 6, fields6} // RFC 8200, 3
)

func (s *specimen) fields() headerFields {
	if s.six {
		return header6
	}
	return header4
}

// ipPacket is one of which nothing is known but the addresses' networks; without them, not those either.
func ipPacket(six bool, src, dst netip.Prefix) specimen {
	s := specimen{six: six, ports: unknown(udpHeaderLen)}
	f := s.fields()
	s.header = unknown(int(f.length))
	for at, network := range map[uint32]netip.Prefix{f.source: src, f.destination: dst} {
		if network.IsValid() {
			v := inPrefix(network)
			copy(s.header.bits[at:], v.bits)
			copy(s.header.mask[at:], v.mask)
		}
	}
	return s
}

// specimens are the packets that have to get through this host: by the hook that they meet.
func (c SetupConfig) specimens() (forward, input []specimen) {
	outside := device{others: []string{"lo"}} // a bridge or a pod's device
	overlay := device{name: c.TUN}
	for _, name := range []string{c.TUN, c.Outer.Iface} {
		if name != "" {
			outside.others = append(outside.others, name)
		}
	}
	if c.Pods != "" {
		outside = device{name: c.Pods}
	}
	if c.TUN == "" {
		overlay = device{name: c.Outer.Iface}
	}
	for _, h := range c.halves() {
		six := h.network.Addr().Is6()
		out, in := ipPacket(six, h.subnet, h.network), ipPacket(six, h.network, h.subnet)
		out.what, out.in, out.out = "packets from this node's containers to other nodes'", outside, overlay
		in.what, in.in, in.out = "packets from other nodes to this one's containers", overlay, outside
		forward = append(forward, out, in)
	}
	if c.Outer.Port == 0 {
		return forward, nil
	}
	datagram := ipPacket(c.Outer.IPv6, netip.Prefix{}, netip.Prefix{})
	datagram.in, datagram.outer = device{name: c.Outer.Iface}, true
	protocol := datagram.fields().protocol
	datagram.header.bits[protocol], datagram.header.mask[protocol] = unix.IPPROTO_UDP, 0xff
	port := known(binary.BigEndian.AppendUint16(nil, c.Outer.Port))
	copy(datagram.ports.bits[2:], port.bits)
	copy(datagram.ports.mask[2:], port.mask)
	return forward, []specimen{datagram}
}

// ofTCP is the packet as one of TCP, which a host may drop that lets others pass.
func (s specimen) ofTCP() specimen {
	protocol := s.fields().protocol
	s.header = value{bits: bytes.Clone(s.header.bits), mask: bytes.Clone(s.header.mask)}
	s.header.bits[protocol], s.header.mask[protocol] = unix.IPPROTO_TCP, 0xff
	s.what = "TCP " + s.what
	return s
}

// arriving are the packets as they are before it is known where they go.
func arriving(all []specimen, early bool) []specimen {
	var out []specimen
	for _, s := range all {
		s.out, s.early = device{}, early
		out = append(out, s)
	}
	return out
}

// leaving are the packets as they are when it does not matter any more where they came from.
func leaving(all []specimen) []specimen {
	var out []specimen
	for _, s := range all {
		s.in = device{}
		out = append(out, s)
	}
	return out
}

// part is what is known of some bytes of the packet.
func (s *specimen) part(base expr.PayloadBase, offset, size uint32) value {
	from := value{}
	switch base {
	case expr.PayloadBaseNetworkHeader:
		from = s.header
	case expr.PayloadBaseTransportHeader:
		from = s.ports
	}
	if end := uint64(offset) + uint64(size); end <= uint64(len(from.bits)) {
		return value{bits: from.bits[offset:end], mask: from.mask[offset:end]}
	}
	return unknown(int(size))
}

func (s *specimen) meta(key expr.MetaKey) value {
	switch key {
	case expr.MetaKeyIIFNAME:
		return s.in.names()
	case expr.MetaKeyOIFNAME:
		return s.out.names()
	case expr.MetaKeyIIF:
		return s.in.index()
	case expr.MetaKeyOIF:
		return s.out.index()
	case expr.MetaKeyNFPROTO:
		if s.six {
			return known([]byte{unix.NFPROTO_IPV6})
		}
		return known([]byte{unix.NFPROTO_IPV4})
	case expr.MetaKeyPROTOCOL:
		if s.six {
			return known(binary.BigEndian.AppendUint16(nil, unix.ETH_P_IPV6))
		}
		return known(binary.BigEndian.AppendUint16(nil, unix.ETH_P_IP))
	case expr.MetaKeyL4PROTO:
		return s.part(expr.PayloadBaseNetworkHeader, s.fields().protocol, 1)
	}
	return unknown(unix.IFNAMSIZ)
}

// What conntrack says of a new flow that nobody translates: linux/netfilter/nf_conntrack_common.h,
// NF_CT_STATE_BIT(IP_CT_NEW), IPS_SRC_NAT and IPS_DST_NAT.
const (
	ctStateNew  = 1 << 3
	ctStatusNAT = 1<<4 | 1<<5
)

func (s *specimen) conntrack(key expr.CtKey) value {
	if s.early {
		return unknown(unix.IFNAMSIZ)
	}
	switch key {
	case expr.CtKeySTATE:
		return knownU32(ctStateNew)
	case expr.CtKeySTATUS:
		return value{bits: make([]byte, 4), mask: binary.NativeEndian.AppendUint32(nil, ctStatusNAT)}
	case expr.CtKeyDIRECTION:
		return known([]byte{0})
	}
	return unknown(unix.IFNAMSIZ)
}
