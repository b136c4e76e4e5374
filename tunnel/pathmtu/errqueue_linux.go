package pathmtu

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Of linux/errqueue.h: where an error comes from.
const (
	originICMP  = 2
	originICMP6 = 3
)

const (
	icmpUnreachable, icmpFragNeeded = 3, 4 // RFC 792: type and code
	icmp6TooBig                     = 2    // RFC 4443, section 3.2
)

// parseExtendedError reads the control messages that come with a message of the error queue (ip(7), IP_RECVERR; ipv6(7),
// IPV6_RECVERR), and returns the MTU that a router names in "fragmentation needed" or "packet too big": 0 where it names
// none. ok is false for every other error.
//
//	struct sock_extended_err {
//		__u32 ee_errno;
//		__u8  ee_origin;
//		__u8  ee_type;
//		__u8  ee_code;
//		__u8  ee_pad;
//		__u32 ee_info;	the MTU
//		__u32 ee_data;
//	};
func parseExtendedError(oob []byte, six bool) (mtu int, ok bool) {
	const size = 16
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0, false
	}
	for _, m := range messages {
		e := m.Data
		if len(e) < size {
			continue
		}
		origin, kind, code := e[4], e[5], e[6]
		var right bool
		if six {
			right = m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR && origin == originICMP6 && kind == icmp6TooBig
		} else {
			right = m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR && origin == originICMP && kind == icmpUnreachable && code == icmpFragNeeded
		}
		if right {
			return int(min(binary.NativeEndian.Uint32(e[8:]), 1<<16)), true
		}
	}
	return 0, false
}
