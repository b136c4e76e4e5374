package pulse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

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
		err = raw.Control(func(fd uintptr) { failed = filter(int(fd)) })
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
func (s *socket) Receive() (from netip.Addr, id, seq uint16, err error) {
	buf := make([]byte, echoHeader+echoPayload) // what is longer is cut
	for {
		n, addr, err := s.conn.ReadFromIP(buf)
		if err != nil {
			return netip.Addr{}, 0, 0, err
		}
		if from, ok := netip.AddrFromSlice(addr.IP); ok && n >= echoHeader && buf[0] == s.reply {
			return from.Unmap(), binary.BigEndian.Uint16(buf[4:]), binary.BigEndian.Uint16(buf[6:]), nil
		}
	}
}

// Close implements Conn.
func (s *socket) Close() error { return s.conn.Close() }

// Sizes in bytes. The payload is ping(8)'s, so that nothing on the way takes offence at the packet.
const (
	echoHeader  = 8
	echoPayload = 56
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
