//go:build linux

package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"muslin/tunnel/gso"
)

// What the self-test sends, and what it expects of it. All of this is written to be seen to be right, and
// shares nothing with the data path but the virtio header: IPv4 without options, one way to do a thing.

const (
	ipLen  = 20
	tcpLen = 20
	udpLen = 8

	ipProto     = 9 // where things lie in an IPv4 header
	ipChecksum  = 10
	tcpSequence = 4 // in a TCP header
	tcpFlags    = 13
	tcpChecksum = 16
	udpLength   = 4 // in a UDP header
	udpChecksum = 6

	flagFIN = 0x01
	flagPSH = 0x08
	flagACK = 0x10
)

// flow is where packets come from and go to.
type flow struct {
	proto    byte // TCP or UDP
	src, dst endpoint
	ttl      byte
	fragment bool // may be fragmented: DF is not set
}

// packet makes a whole packet with right checksums, of any length.
func (f flow) packet(payload []byte) []byte {
	p := make([]byte, ipLen, ipLen+tcpLen+len(payload))
	p[0] = 4<<4 | ipLen/4
	binary.BigEndian.PutUint16(p[4:], 0x1234) // identification
	if !f.fragment {
		p[6] = 0x40 // DF
	}
	p[8], p[ipProto] = f.ttl, f.proto
	copy(p[12:], f.src.Addr[:])
	copy(p[16:], f.dst.Addr[:])
	p = binary.BigEndian.AppendUint16(p, uint16(f.src.Port))
	p = binary.BigEndian.AppendUint16(p, uint16(f.dst.Port))
	if f.proto == unix.IPPROTO_TCP {
		p = binary.BigEndian.AppendUint32(p, 0xfffff000) // a sequence number that soon begins again at 0
		p = binary.BigEndian.AppendUint32(p, 0x01020304) // acknowledged
		p = append(p, tcpLen/4<<4, flagACK|flagPSH)
		p = binary.BigEndian.AppendUint16(p, 0x0500) // window
		p = append(p, 0, 0, 0, 0)                    // checksum, urgent
	} else {
		p = append(p, 0, 0, 0, 0) // length, checksum
	}
	p = append(p, payload...)
	finish(p)
	return p
}

// finish sets the lengths and checksums of a packet of flow.packet's shape.
func finish(p []byte) {
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	binary.BigEndian.PutUint16(p[ipChecksum:], 0)
	binary.BigEndian.PutUint16(p[ipChecksum:], ^sum(p[:ipLen]))
	transport := p[ipLen:]
	if p[ipProto] == unix.IPPROTO_UDP {
		binary.BigEndian.PutUint16(transport[udpLength:], uint16(len(transport)))
	}
	at := checksumOffset(p)
	binary.BigEndian.PutUint16(transport[at:], 0)
	check := ^sum(pseudoHeader(p), transport)
	if check == 0 && p[ipProto] == unix.IPPROTO_UDP {
		check = 0xffff // RFC 768
	}
	binary.BigEndian.PutUint16(transport[at:], check)
}

// pseudoHeader is what goes into the checksum beside the packet (RFC 9293, section 3.1; RFC 768).
func pseudoHeader(p []byte) []byte {
	b := bytes.Clone(p[12:20])
	b = append(b, 0, p[ipProto])
	return binary.BigEndian.AppendUint16(b, uint16(len(p)-ipLen))
}

func checksumOffset(p []byte) int {
	if p[ipProto] == unix.IPPROTO_UDP {
		return udpChecksum
	}
	return tcpChecksum
}

// sum adds up 16-bit words, carries brought around (RFC 1071). Only the last part may be of odd length.
func sum(parts ...[]byte) uint16 {
	var total uint32
	for _, b := range parts {
		for i, c := range b {
			if i%2 == 0 {
				total += uint32(c) << 8
			} else {
				total += uint32(c)
			}
			total = total>>16 + total&0xffff
		}
	}
	return uint16(total)
}

// leaveChecksum turns a packet into one whose checksum is left to the kernel, and with a size into a
// superpacket.
func leaveChecksum(p []byte, size int) gso.Info {
	at := checksumOffset(p)
	binary.BigEndian.PutUint16(p[ipLen+at:], sum(pseudoHeader(p)))
	info := gso.Info{NeedsCsum: true, CsumStart: ipLen, CsumOffset: uint16(at)}
	if size > 0 {
		info.Kind, info.Size, info.HeaderLen = gso.TCPv4, uint16(size), uint16(headersLen(p))
		if p[ipProto] == unix.IPPROTO_UDP {
			info.Kind = gso.UDP
		}
	}
	return info
}

func headersLen(p []byte) int {
	if p[ipProto] == unix.IPPROTO_UDP {
		return ipLen + udpLen
	}
	return ipLen + tcpLen
}

// cut is what a packet becomes when its payload is cut into pieces of size: TCP segments with PSH and FIN on
// the last one only, or UDP datagrams.
func cut(p []byte, size int) [][]byte {
	headers, payload := p[:headersLen(p)], p[headersLen(p):]
	id := binary.BigEndian.Uint16(p[4:])
	var all [][]byte
	for at := 0; at < len(payload); at += size {
		end := min(at+size, len(payload))
		s := append(bytes.Clone(headers), payload[at:end]...)
		binary.BigEndian.PutUint16(s[4:], id+uint16(len(all)))
		if transport := s[ipLen:]; p[ipProto] == unix.IPPROTO_TCP {
			sequence := binary.BigEndian.Uint32(transport[tcpSequence:])
			binary.BigEndian.PutUint32(transport[tcpSequence:], sequence+uint32(at))
			if end < len(payload) {
				transport[tcpFlags] &^= flagFIN | flagPSH
			}
		}
		finish(s)
		all = append(all, s)
	}
	return all
}

// shape is how long a superpacket is.
type shape struct {
	length int // of the payload
	size   int // of each segment's payload but the last
}

// shapes are what real traffic has: a long superpacket, kept in pages, with a shorter segment at its end,
// which Linux 6.6.44 refused; and two equal segments, which were what 7.0 mangled.
var shapes = []shape{{45*1400 + 333, 1400}, {2 * 1400, 1400}}

func (s shape) String() string {
	return fmt.Sprintf("%d segments", (s.length+s.size-1)/s.size)
}

// payload counts, so that no two places look alike.
func (s shape) payload() []byte {
	b := make([]byte, 0, s.length+4)
	for i := uint32(1); len(b) < s.length; i++ {
		b = binary.BigEndian.AppendUint32(b, i*2654435761) // odd, so that no value comes twice
	}
	return b[:s.length]
}

// pieces is the payload cut into datagrams.
func (s shape) pieces(payload []byte) [][]byte {
	var all [][]byte
	for at := 0; at < len(payload); at += s.size {
		all = append(all, payload[at:min(at+s.size, len(payload))])
	}
	return all
}

// regular reports whether p has the shape of flow.packet's, whatever it says: IPv4 without options that
// carries TCP without options, or UDP, and is as long as it says.
func regular(p []byte) bool {
	if len(p) < ipLen+udpLen || p[0] != 4<<4|ipLen/4 || int(binary.BigEndian.Uint16(p[2:])) != len(p) {
		return false
	}
	switch p[ipProto] {
	case unix.IPPROTO_UDP:
		return true
	case unix.IPPROTO_TCP:
		return len(p) >= ipLen+tcpLen && p[ipLen+12]>>4 == tcpLen/4
	}
	return false
}

// complete does what a NIC would: it finishes the checksum that info says is left undone.
func complete(p []byte, info gso.Info) {
	at := int(info.CsumStart) + int(info.CsumOffset)
	if !info.NeedsCsum || at+2 > len(p) {
		return
	}
	check := ^sum(p[info.CsumStart:])
	if check == 0 && p[ipProto] == unix.IPPROTO_UDP {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(p[at:], check)
}

// comparePackets says how got differs from want. The identification is not compared: it means nothing in a
// packet that cannot be fragmented (RFC 6864), and in any other the kernel chooses it.
func comparePackets(want, got [][]byte) error {
	blank := func(packets [][]byte) (blanked [][]byte, wrong int) {
		wrong = -1
		for i, p := range packets {
			p = bytes.Clone(p)
			if len(p) >= ipLen {
				if sum(p[:ipLen]) != 0xffff && wrong < 0 {
					wrong = i
				}
				clear(p[4:6])
				clear(p[ipChecksum : ipChecksum+2])
			}
			blanked = append(blanked, p)
		}
		return blanked, wrong
	}
	blankWant, _ := blank(want)
	blankGot, wrong := blank(got)
	if err := compare(blankWant, blankGot); err != nil {
		return err
	}
	if wrong >= 0 {
		return fmt.Errorf("segment %d of %d has a wrong IP checksum", wrong+1, len(got))
	}
	return nil
}

// compare says how got differs from want.
func compare(want, got [][]byte) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d segments came of %d", len(got), len(want))
	}
	for i, w := range want {
		g := got[i]
		for at := range min(len(w), len(g)) {
			if w[at] != g[at] {
				return fmt.Errorf("segment %d of %d differs at byte %d", i+1, len(want), at)
			}
		}
		if len(g) != len(w) {
			return fmt.Errorf("segment %d of %d has %d bytes instead of %d", i+1, len(want), len(g), len(w))
		}
	}
	return nil
}
