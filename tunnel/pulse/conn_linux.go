package pulse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"muslin/encap"
)

const (
	icmpEchoReply     = 0 // RFC 792
	icmpEchoRequest   = 8
	icmpv6EchoRequest = 128 // RFC 4443
	icmpv6EchoReply   = 129

	// icmpFilter and its level are of linux/icmp.h and linux/socket.h; since Linux 2.4. A bit that is set in the
	// value keeps that type of message away.
	icmpFilter = 1
	solRaw     = 255
)

// socket is a raw ICMP socket.
type socket struct {
	conn    *net.IPConn
	request byte // types
	reply   byte
}

// Open opens a raw socket that gets echo replies and nothing else. It takes CAP_NET_RAW, which may be given up
// afterwards.
func Open() (Conn, error) {
	return open("ip4:icmp", &socket{request: icmpEchoRequest, reply: icmpEchoReply}, func(fd int) error {
		return os.NewSyscallError("set ICMP_FILTER", unix.SetsockoptInt(fd, solRaw, icmpFilter, ^(1<<icmpEchoReply)))
	})
}

// Open6 is Open for ICMPv6.
func Open6() (Conn, error) {
	return open("ip6:ipv6-icmp", &socket{request: icmpv6EchoRequest, reply: icmpv6EchoReply}, func(fd int) error {
		var f unix.ICMPv6Filter // linux/icmpv6.h: a bit that is set keeps that type away, as with the other
		for i := range f.Data {
			f.Data[i] = ^uint32(0)
		}
		f.Data[icmpv6EchoReply/32] &^= 1 << (icmpv6EchoReply % 32)
		return os.NewSyscallError("set ICMPV6_FILTER", unix.SetsockoptICMPv6Filter(fd, unix.SOL_ICMPV6, unix.ICMPV6_FILTER, &f))
	})
}

func open(network string, s *socket, filter func(fd int) error) (Conn, error) {
	var err error
	s.conn, err = net.ListenIP(network, nil)
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("open raw ICMP socket (%s): %w: it takes CAP_NET_RAW", network, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open raw ICMP socket (%s): %w", network, err)
	}
	raw, err := s.conn.SyscallConn()
	if err == nil {
		var failed error
		err = raw.Control(func(fd uintptr) {
			failed = errors.Join(filter(int(fd)),
				os.NewSyscallError("set SO_TIMESTAMP", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMP, 1)))
		})
		err = errors.Join(err, failed)
	}
	if err != nil {
		s.conn.Close()
		return nil, fmt.Errorf("open raw ICMP socket (%s): %w", network, err)
	}
	return s, nil
}

// Send implements Conn. The kernel chooses the source by the route: it is the base of our subnet.
func (s *socket) Send(to netip.Addr, id, seq uint16) error {
	_, err := s.conn.WriteToIP(echoRequest(s.request, id, seq), &net.IPAddr{IP: to.AsSlice()})
	return err
}

// Receive implements Conn.
func (s *socket) Receive() (Reply, error) {
	buf := make([]byte, ipv4HeaderMost+echoHeader) // what is longer is cut
	control := make([]byte, unix.CmsgSpace(int(unsafe.Sizeof(unix.Timeval{}))))
	for {
		n, controls, _, addr, err := s.conn.ReadMsgIP(buf, control)
		if err != nil {
			return Reply{}, err
		}
		echo := buf[:n]
		if s.reply == icmpEchoReply && n > 0 { // raw(7): the kernel hands over the header of IPv4, and not of IPv6
			echo = echo[min(n, 4*int(echo[0]&0xf)):]
		}
		if from, ok := netip.AddrFromSlice(addr.IP); ok && len(echo) >= echoHeader && echo[0] == s.reply {
			return Reply{from.Unmap(), binary.BigEndian.Uint16(echo[4:]), binary.BigEndian.Uint16(echo[6:]), timestamp(control[:controls])}, nil
		}
	}
}

// timestamp is when the kernel got a packet (SO_TIMESTAMP in socket(7), since Linux 2.2), by its wall clock; zero: it does not say.
func timestamp(control []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return time.Time{}
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMP && len(m.Data) >= int(unsafe.Sizeof(unix.Timeval{})) {
			tv := (*unix.Timeval)(unsafe.Pointer(&m.Data[0])) // the kernel's own layout, and aligned as it is
			return time.Unix(tv.Unix())
		}
	}
	return time.Time{}
}

// Close implements Conn.
func (s *socket) Close() error { return s.conn.Close() }

// Sizes in bytes. The payload is ping(8)'s, so that nothing on the way takes offence at the packet.
const (
	echoHeader  = 8
	echoPayload = 56

	ipv4HeaderMost = 15 * 4 // RFC 791: IHL has four bits
)

// echoRequest is an echo request, of ICMP or ICMPv6. The kernel writes ICMPv6's checksum, which is over the addresses, too
// (rawv6_push_pending_frames in net/ipv6/raw.c).
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|  Type = 8/128 |    Code = 0   |           Checksum            |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|           Identifier          |        Sequence Number        |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|     Data ...                                                     (RFC 792, RFC 4443)
func echoRequest(kind byte, id, seq uint16) []byte {
	b := make([]byte, echoHeader+echoPayload)
	b[0] = kind
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], seq)
	binary.BigEndian.PutUint16(b[2:], ^encap.Sum(b, 0))
	return b
}
