// Package filter is tcpdump's filter language (pcap-filter(7)) for IP packets, without libpcap.
//
// An expression is compiled to functions rather than to BPF: what it is run on lies in this process, may be cut short, and
// its direction is known. It means what tcpdump makes of it on a link of type RAW, where a packet begins with its IP header;
// the tests hold it to that, with tcpdump's own compiler. What it does not know it refuses, and says so. The room touches
// bytes only, and /etc/services for names of ports.
package filter

import (
	"encoding/binary"
	"strings"
)

// Filter is a compiled expression. It may be used by several goroutines at once.
type Filter struct {
	text  string
	match test
	reach int
}

// Compile reads an expression. An empty one matches everything.
func Compile(expression string) (*Filter, error) {
	f := &Filter{text: strings.TrimSpace(expression), reach: maxHeaders}
	if f.text == "" {
		return f, nil
	}
	p, err := newParser(f.text)
	if err != nil {
		return nil, err
	}
	if f.match, err = p.parse(); err != nil {
		return nil, err
	}
	f.reach = max(f.reach, p.reach)
	return f, nil
}

// String is the expression.
func (f *Filter) String() string { return f.text }

// Reach is how many bytes of a packet it looks at, at most.
func (f *Filter) Reach() int { return f.reach }

// Packet is what a filter is asked about. Who asks often uses one again: it is on the heap.
type Packet struct {
	Bytes   []byte // from the IP header on; may be cut short
	Length  int    // bytes, of the whole packet
	Inbound bool

	bad bool // it was to be looked at where there is nothing: no match
}

// Match reports whether the expression is true of p. As in tcpdump it is false, whatever it says, when it looks at bytes
// that are not there.
func (f *Filter) Match(p *Packet) bool {
	if f.match == nil {
		return true
	}
	p.bad = false
	return f.match(p) && !p.bad
}

// Offsets, in bytes.
const (
	ip4Proto, ip4Src, ip4Dst = 9, 12, 16
	ip6Next, ip6Src, ip6Dst  = 6, 8, 24
	ip6Len                   = 40

	// maxHeaders has room for the longest IPv4 header outside, UDP's, VXLAN's and Ethernet's, and within them the longest
	// of IPv4 and the ports.
	maxHeaders = 60 + 8 + 8 + 14 + 60 + 4
)

// Protocols (IANA's numbers).
const (
	protoICMP     = 1
	protoIGMP     = 2
	protoTCP      = 6
	protoUDP      = 17
	protoESP      = 50
	protoAH       = 51
	protoFragment = 44
	protoICMP6    = 58
	protoPIM      = 103
	protoVRRP     = 112
	protoSCTP     = 132
)

// test is true of a packet, or not. After one that has set bad no other is asked.
type test func(v *Packet) bool

func and(a, b test) test {
	return func(v *Packet) bool { return a(v) && !v.bad && b(v) }
}

func or(a, b test) test {
	return func(v *Packet) bool { return a(v) || !v.bad && b(v) }
}

func not(a test) test {
	return func(v *Packet) bool { return !a(v) && !v.bad }
}

func never(*Packet) bool { return false }

// layer is where a packet is looked at: the outer one, or the one inside of a VXLAN datagram.
type layer int

const (
	outside layer = iota
	inside
)

// of is the packet at the layer.
func (l layer) of(v *Packet) []byte {
	if l == outside {
		return v.Bytes
	}
	const around = 8 + 8 + 14 // UDP, VXLAN, Ethernet
	at := headerLen(v.Bytes)
	if at == 0 || at+around > len(v.Bytes) {
		v.bad = true
		return nil
	}
	return v.Bytes[at+around:]
}

// headerLen is an IP header's length, without extension headers; 0: there is none.
func headerLen(b []byte) int {
	switch version(b) {
	case 4:
		return int(b[0]&0xf) * 4
	case 6:
		return ip6Len
	}
	return 0
}

func version(b []byte) byte {
	if len(b) == 0 {
		return 0
	}
	return b[0] >> 4
}

// is tests for a version of IP.
func (l layer) is(want byte) test {
	return func(v *Packet) bool {
		b := l.of(v)
		if v.bad || len(b) == 0 {
			v.bad = true
			return false
		}
		return b[0]>>4 == want
	}
}

// load is a number at a place; v.bad: there is none.
func load(v *Packet, b []byte, at uint32, size int) uint32 {
	if uint64(at)+uint64(size) > uint64(len(b)) {
		v.bad = true
		return 0
	}
	switch size {
	case 1:
		return uint32(b[at])
	case 2:
		return uint32(binary.BigEndian.Uint16(b[at:]))
	}
	return binary.BigEndian.Uint32(b[at:])
}

// proto tests for a protocol in IPv4 (four) or IPv6 (six), where a fragment header may come first.
func (l layer) proto(number uint32, four, six bool) test {
	return func(v *Packet) bool {
		b := l.of(v)
		if v.bad {
			return false
		}
		if len(b) == 0 {
			v.bad = true
			return false
		}
		switch {
		case b[0]>>4 == 4 && four:
			return load(v, b, ip4Proto, 1) == number
		case b[0]>>4 == 6 && six:
			next := load(v, b, ip6Next, 1)
			return next == number || !v.bad && next == protoFragment && load(v, b, ip6Len, 1) == number
		}
		return false
	}
}

// first is IPv4's first fragment, or a packet that is none.
func first(v *Packet, b []byte) bool { return load(v, b, 6, 2)&0x1fff == 0 }

// direction is which of two addresses or ports is looked at.
type direction int

const (
	either direction = iota
	both
	source
	destination
)

// of tests one, or both.
func (d direction) of(src, dst func(v *Packet, b []byte) bool) func(v *Packet, b []byte) bool {
	switch d {
	case source:
		return src
	case destination:
		return dst
	case both:
		return func(v *Packet, b []byte) bool { return src(v, b) && !v.bad && dst(v, b) }
	}
	return func(v *Packet, b []byte) bool { return src(v, b) || !v.bad && dst(v, b) }
}

// ports tests the ports of protocols, which IPv4's first fragments have, and IPv6 without extension headers.
func (l layer) ports(d direction, from, to uint32, protocols ...uint32) test {
	in := func(at uint32) func(v *Packet, b []byte) bool {
		return func(v *Packet, b []byte) bool {
			n := load(v, b, at, 2)
			return !v.bad && n >= from && n <= to
		}
	}
	match := d.of(in(0), in(2))
	return func(v *Packet) bool {
		b := l.of(v)
		if v.bad {
			return false
		}
		var proto, at uint32
		switch version(b) {
		case 4:
			proto = load(v, b, ip4Proto, 1)
			at = 4 * uint32(b[0]&0xf)
		case 6:
			proto, at = load(v, b, ip6Next, 1), ip6Len
		default:
			v.bad = len(b) == 0
			return false
		}
		known := false
		for _, p := range protocols {
			known = known || p == proto
		}
		if v.bad || !known || version(b) == 4 && !first(v, b) || v.bad {
			return false
		}
		if at > uint32(len(b)) {
			v.bad = true
			return false
		}
		return match(v, b[at:])
	}
}

// net4 tests for addresses of IPv4.
func (l layer) net4(d direction, addr, mask uint32) test {
	in := func(at uint32) func(v *Packet, b []byte) bool {
		return func(v *Packet, b []byte) bool { return mask == 0 || load(v, b, at, 4)&mask == addr && !v.bad }
	}
	match := d.of(in(ip4Src), in(ip4Dst))
	return and(l.is(4), func(v *Packet) bool { return match(v, l.of(v)) })
}

// net6 tests for addresses of IPv6 that have their first bits in common with addr.
func (l layer) net6(d direction, addr [16]byte, bits int) test {
	in := func(at uint32) func(v *Packet, b []byte) bool {
		return func(v *Packet, b []byte) bool {
			for i, left := uint32(0), bits; left > 0; i, left = i+4, left-32 {
				mask := ^uint32(0)
				if left < 32 {
					mask <<= 32 - left
				}
				if load(v, b, at+i, 4)&mask != binary.BigEndian.Uint32(addr[i:])&mask || v.bad {
					return false
				}
			}
			return true
		}
	}
	match := d.of(in(ip6Src), in(ip6Dst))
	return and(l.is(6), func(v *Packet) bool { return match(v, l.of(v)) })
}

// vxlan tests for a VXLAN datagram (RFC 7348), of one network if vni is not negative: to its port, or to the kernel's.
func (l layer) vxlan(vni int64) test {
	return func(v *Packet) bool {
		b := l.of(v)
		at := uint32(headerLen(b))
		if v.bad || at == 0 {
			return false
		}
		proto := uint32(ip4Proto)
		if version(b) == 6 {
			proto = ip6Next
		}
		if load(v, b, proto, 1) != protoUDP || v.bad || version(b) == 4 && !first(v, b) {
			return false
		}
		if load(v, b, at+8, 1)&0x08 == 0 || v.bad {
			return false
		}
		n := load(v, b, at+12, 4) >> 8
		return !v.bad && (vni < 0 || int64(n) == vni)
	}
}

// number is what an arithmetic expression comes to. It may set bad.
type number func(v *Packet) uint32

func constant(n uint32) number { return func(*Packet) uint32 { return n } }
