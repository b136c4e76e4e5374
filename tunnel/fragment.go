package tunnel

import (
	"encoding/binary"

	"muslin/encap"
)

// maxHeaders has room for an IPv4 and a TCP header with all their options, bytes.
const maxHeaders = 60 + 60

// fragment adds a datagram for each fragment of an IPv4 packet (RFC 791, section 3.2): headers are its IP header, ipLen
// bytes, and what there is of a transport header; payload is the rest. No fragment is longer than longest, which leaves
// room for more than the headers. payload is borrowed as add borrows it, headers are not. The error is Send's.
func (o *outbound) fragment(to *destination, headers, payload []byte, ipLen, longest int) error {
	var room [maxHeaders]byte // headers may lie in heads, which send gives free
	headers = room[:copy(room[:], headers)]
	head := o.v.cfg.Framing.Headroom()
	most := (longest - ipLen) &^ 7
	offset := binary.BigEndian.Uint16(headers[6:])
	last := offset&moreFragments == 0
	offset &= fragmentOffset

	for {
		data := len(headers) - ipLen + min(len(payload), most-(len(headers)-ipLen))
		piece := payload[: data-(len(headers)-ipLen) : data-(len(headers)-ipLen)]
		payload = payload[len(piece):]

		length := head + len(headers)
		if len(o.heads)-o.headed < length || o.msgs.full() {
			if err := o.send(); err != nil {
				return err
			}
		}
		front := o.heads[o.headed : o.headed+length]
		o.headed += length
		ip := front[head:]
		copy(ip, headers)
		field := offset
		if len(payload) > 0 || !last {
			field |= moreFragments
		}
		binary.BigEndian.PutUint16(ip[2:], uint16(ipLen+data))
		binary.BigEndian.PutUint16(ip[6:], field)
		binary.BigEndian.PutUint16(ip[10:], 0)
		binary.BigEndian.PutUint16(ip[10:], ^encap.Sum(ip[:ipLen], 0))
		o.v.cfg.Framing.Encode(front, to.peer.MAC)
		o.msgs.add(to, front, piece)
		if len(payload) == 0 {
			return nil
		}
		offset += uint16(data / 8)
		headers = headers[:ipLen]
		firstOnly(headers)
	}
}

// The bits of an IPv4 header's fragment word. DF is not set where there is something to cut.
const (
	moreFragments  = 0x2000
	fragmentOffset = 0x1fff
)

// firstOnly overwrites the options of an IPv4 header that only a packet's first fragment has (RFC 791, section 3.1: those
// without the copied flag) by ones that mean nothing.
func firstOnly(ip []byte) {
	const end, nop, copied = 0, 1, 0x80
	for at := 20; at < len(ip) && ip[at] != end; {
		if ip[at] == nop {
			at++
			continue
		}
		if at+1 >= len(ip) || ip[at+1] < 2 || at+int(ip[at+1]) > len(ip) {
			return // no options at all
		}
		length := int(ip[at+1])
		if ip[at]&copied == 0 {
			for i := range length {
				ip[at+i] = nop
			}
		}
		at += length
	}
}
