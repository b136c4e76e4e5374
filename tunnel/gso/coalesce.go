package gso

import (
	"bytes"
	"encoding/binary"

	"muslin/encap"
)

const (
	maxRunLen = 65535 // bytes: what an IP header's length field holds

	// MaxUDPSegments is UDP_MAX_SEGMENTS before Linux 6.9 (128 since): what the kernel cuts a UDP superpacket into.
	MaxUDPSegments = 64

	// maxBufs leaves room for a virtio_net_hdr in the iovec of one writev (IOV_MAX is 1,024).
	maxBufs = 1023
)

// Coalescer joins packets of a flow that follow one another into runs, as a NIC's receive offload or Linux's
// GRO does (inet_gro_receive, tcp_gro_receive, udp_gro_receive), so that the kernel's path is walked once for
// many packets. What it may join is what a cut at the segment size gives back as it was, except the IPv4
// identification of packets that must not be fragmented, which nobody may rely on (RFC 6864, section 4.1).
//
// A packet joins only the last run of its flow, so that none overtakes another. It does where
//   - it has neither IPv4 options nor IPv6 extension headers, and is no fragment;
//   - its checksum is there and right, and so is that of the first packet: damage is never hidden;
//   - it has the addresses, ports, TOS or traffic class and flow label, TTL, DF of the first, and without DF
//     the identification that follows the last one's;
//   - TCP: sequence number, acknowledgement, window, options are those that go on from the last; flags are ACK
//     and perhaps ECE, the same on all; PSH ends the run and stays on it;
//   - it has a payload, not longer than the first's; a shorter one ends the run.
//
// One worker uses it.
type Coalescer struct {
	TCP, UDP bool // which are joined; may be changed after each Reset

	flows   flowTable
	bufs    [][]byte // one a packet: all of it where it is the first of its run, its payload where not
	next    []int32  // one a packet: the packet behind it in its run
	open    []series // one a run
	base    uint64   // the number of open[0]
	runs    []Run    // what Runs returned
	ordered [][]byte // bufs of runs whose packets do not lie one behind the other in bufs
}

// series is a run on its way.
type series struct {
	layout
	first, last int32 // in bufs
	count       int   // packets
	payload     int   // bytes in all
	size        int   // bytes of payload in the first
	seq         uint32
	id          uint16
	addresses   uint16 // the pseudo-header's sum without the length, once checked
	open        bool   // another packet may join
	checked     bool   // the first packet's checksum is right
	push        bool   // the last packet has PSH
	info        Info   // as given to Add
}

// NewCoalescer returns a Coalescer that joins both and has room for so many packets between two Resets. It
// allocates here and never again.
func NewCoalescer(packets int) *Coalescer {
	return &Coalescer{
		TCP: true, UDP: true,
		flows:   newFlowTable(packets),
		bufs:    make([][]byte, 0, packets),
		next:    make([]int32, packets),
		open:    make([]series, 0, packets),
		base:    1,
		runs:    make([]Run, 0, packets),
		ordered: make([][]byte, 0, packets),
	}
}

// Add takes the IP packet p (whole, exactly its length, IP header verified by the caller) for the next Runs.
// p is borrowed until Reset and may be written to. It reports false, and takes nothing, when there is no room.
//
// info is the zero value for a plain packet, whose checksum is complete. A superpacket and a packet whose
// checksum is left undone are passed on as they are, in order.
func (c *Coalescer) Add(p []byte, info Info) bool {
	if len(c.bufs) == cap(c.bufs) {
		return false
	}
	var k candidate
	is := k.read(p, c.flows.seed)
	if is <= lone && !c.joins(k.udp) {
		is = foreign
	}
	if is >= opaque {
		if is == opaque {
			c.flows.forget(c.base + uint64(len(c.open)))
		}
		c.start(p, info)
		return true
	}
	if is == joinable && (info.Kind != None || info.NeedsCsum) {
		is = lone
	}
	l := c.flows.find(k.hash)
	known := c.flows.knows(l)
	if is == joinable && known {
		s := &c.open[l.run-c.base]
		if first := c.bufs[s.first]; s.open && s.goesOn(first, p, &k) && s.check(first) && s.sound(p) {
			c.extend(s, p, &k)
			return true
		}
	}
	begins := is == joinable && !k.push
	if begins || known {
		*l = place{run: c.base + uint64(len(c.open)), tag: uint32(k.hash >> 32)}
	}
	s := c.start(p, info)
	if begins {
		s.begin(p, &k)
	}
	return true
}

func (c *Coalescer) joins(udp bool) bool {
	if udp {
		return c.UDP
	}
	return c.TCP
}

// start makes a run of p that no other joins.
func (c *Coalescer) start(p []byte, info Info) *series {
	i, n := int32(len(c.bufs)), len(c.open)
	c.bufs = append(c.bufs, p)
	c.open = c.open[:n+1]
	s := &c.open[n]
	s.first, s.last, s.count, s.open, s.info = i, i, 1, false, info
	return s
}

// begin lets others join s, which p started.
func (s *series) begin(p []byte, k *candidate) {
	s.layout, s.size, s.payload = k.layout, k.payload, k.payload
	s.open, s.checked = true, false
	if !k.udp {
		s.seq = binary.BigEndian.Uint32(p[k.transport+4:]) + uint32(k.payload)
	}
	if !k.v6 {
		s.id = binary.BigEndian.Uint16(p[4:])
	}
}

// extend appends p, which goes on from s and is sound.
func (c *Coalescer) extend(s *series, p []byte, k *candidate) {
	i := int32(len(c.bufs))
	c.bufs = append(c.bufs, p[k.headers:])
	c.next[s.last] = i
	s.last = i
	s.count++
	s.payload += k.payload
	s.seq += uint32(k.payload)
	s.id++ // which is p's, or with DF nobody asks
	s.push = k.push
	s.open = !k.push && k.payload == s.size
}

// goesOn reports whether p's headers are those of the packet that follows s, whose first packet is first.
func (s *series) goesOn(first, p []byte, k *candidate) bool {
	if s.layout != k.layout || k.payload > s.size || s.headers+s.payload+k.payload > maxRunLen {
		return false
	}
	if s.v6 {
		if !sameIPv6(first, p) {
			return false
		}
	} else if !sameIPv4(first, p) || !s.idGoesOn(p) {
		return false
	}
	a, b := first[s.transport:s.headers], p[s.transport:s.headers]
	if s.udp {
		return s.count < MaxUDPSegments && le.Uint32(a) == le.Uint32(b)
	}
	return s.count < maxBufs && binary.BigEndian.Uint32(b[4:]) == s.seq && sameTCP(a, b)
}

// idGoesOn reports whether p's identification follows s's, or need not.
func (s *series) idGoesOn(p []byte) bool {
	return p[6]&(ipv4DF>>8) != 0 || binary.BigEndian.Uint16(p[4:]) == s.id+1
}

var le = binary.LittleEndian // any order would do for a comparison; in this one the masks below are written

// sameIPv4 compares all of two headers without options but lengths, identifications and checksums.
func sameIPv4(first, p []byte) bool {
	a, b := (*[ipv4MinLen]byte)(first), (*[ipv4MinLen]byte)(p)
	differ := (le.Uint64(a[0:]) ^ le.Uint64(b[0:])) & 0xffff_0000_0000_ffff
	differ |= (le.Uint64(a[8:]) ^ le.Uint64(b[8:])) & 0xffff_ffff_0000_ffff
	differ |= uint64(le.Uint32(a[16:]) ^ le.Uint32(b[16:]))
	return differ == 0
}

// sameIPv6 compares all of two headers but lengths.
func sameIPv6(first, p []byte) bool {
	a, b := (*[ipv6Len]byte)(first), (*[ipv6Len]byte)(p)
	differ := (le.Uint64(a[0:]) ^ le.Uint64(b[0:])) & 0xffff_0000_ffff_ffff
	differ |= le.Uint64(a[8:]) ^ le.Uint64(b[8:])
	differ |= le.Uint64(a[16:]) ^ le.Uint64(b[16:])
	differ |= le.Uint64(a[24:]) ^ le.Uint64(b[24:])
	differ |= le.Uint64(a[32:]) ^ le.Uint64(b[32:])
	return differ == 0
}

// sameTCP compares all of two headers of one length but sequence numbers, checksums and PSH.
func sameTCP(first, p []byte) bool {
	a, b := (*[tcpMinLen]byte)(first), (*[tcpMinLen]byte)(p)
	differ := le.Uint32(a[0:]) ^ le.Uint32(b[0:])
	differ |= le.Uint32(a[8:]) ^ le.Uint32(b[8:])
	differ |= (le.Uint32(a[12:]) ^ le.Uint32(b[12:])) &^ (tcpPSH << 8)
	differ |= uint32(le.Uint16(a[18:]) ^ le.Uint16(b[18:]))
	return differ == 0 && bytes.Equal(first[tcpMinLen:], p[tcpMinLen:])
}

// check reports whether the first packet's checksum is right. Only a packet that another joins is looked at:
// one alone is passed on as it came, right or wrong.
func (s *series) check(first []byte) bool {
	if !s.checked {
		s.addresses = s.addressSum(first)
		s.checked = s.sound(first)
	}
	return s.checked
}

// sound reports whether the checksum of p, a packet with s's addresses, is right.
func (s *series) sound(p []byte) bool {
	t := p[s.transport:]
	return encap.Sum(t, fold(uint64(s.addresses)+uint64(len(t)))) == 0xffff
}

// Runs finishes the headers and returns everything added, the packets of one flow in the order of Add. It is
// good until Reset.
func (c *Coalescer) Runs() []Run {
	c.runs, c.ordered = c.runs[:0], c.ordered[:0]
	for i := range c.open {
		s := &c.open[i]
		first, end := int(s.first), int(s.last)+1
		p := c.bufs[first]
		r := Run{Info: s.info, Bufs: c.bufs[first:end:end], Segments: s.count, Len: len(p)}
		if s.count > 1 {
			if end-first != s.count {
				r.Bufs = c.gather(s)
			}
			r.Len = s.headers + s.payload
			r.Info = s.finish(p)
		} else {
			r.Segments = s.info.Segments(len(p)) // a superpacket already, perhaps
		}
		c.runs = append(c.runs, r)
	}
	return c.runs
}

// gather lays the bytes of a run whose packets came between others one behind the other.
func (c *Coalescer) gather(s *series) [][]byte {
	from := len(c.ordered)
	for i := s.first; ; i = c.next[i] {
		c.ordered = append(c.ordered, c.bufs[i])
		if i == s.last {
			return c.ordered[from:len(c.ordered):len(c.ordered)]
		}
	}
}

// finish makes first's headers those of the superpacket.
func (s *series) finish(first []byte) Info {
	n := s.headers + s.payload
	if s.v6 {
		binary.BigEndian.PutUint16(first[4:], uint16(n-ipv6Len))
	} else {
		binary.BigEndian.PutUint16(first[2:], uint16(n))
		binary.BigEndian.PutUint16(first[10:], 0)
		binary.BigEndian.PutUint16(first[10:], ^encap.Sum(first[:ipv4MinLen], 0))
	}
	n -= s.transport
	t := first[s.transport:]
	if s.udp {
		binary.BigEndian.PutUint16(t[4:], uint16(n))
	} else if s.push {
		t[13] |= tcpPSH
	}
	binary.BigEndian.PutUint16(t[s.csumOffset():], fold(uint64(s.addresses)+uint64(n)))
	return s.superpacket(first, s.size)
}

// Reset gives back what Add borrowed and makes room again.
func (c *Coalescer) Reset() {
	c.base += uint64(len(c.open))
	c.flows.forget(c.base)
	c.open, c.bufs, c.runs = c.open[:0], c.bufs[:0], c.runs[:0]
}
