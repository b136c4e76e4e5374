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
	icmpEchoReply   = 0 // RFC 792
	icmpEchoRequest = 8

	// icmpFilter and its level are of linux/icmp.h and linux/socket.h; since Linux 2.4. A bit that is set in the
	// value keeps that type of message away.
	icmpFilter = 1
	solRaw     = 255
)

// socket is a raw ICMP socket.
type socket struct{ conn *net.IPConn }

// Open opens a raw socket that gets echo replies and nothing else. It takes CAP_NET_RAW, which may be given up
// afterwards.
func Open() (Conn, error) {
	conn, err := net.ListenIP("ip4:icmp", nil)
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("open raw ICMP socket: %w: it takes CAP_NET_RAW", err)
	}
	if err != nil {
		return nil, fmt.Errorf("open raw ICMP socket: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		var failed error
		err = raw.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), solRaw, icmpFilter, ^(1 << icmpEchoReply))
		})
		err = errors.Join(err, os.NewSyscallError("set ICMP_FILTER", failed))
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open raw ICMP socket: %w", err)
	}
	return &socket{conn}, nil
}

// Send implements Conn. The kernel chooses the source by the route: it is the base of our subnet.
func (s *socket) Send(to netip.Addr, id, seq uint16) error {
	_, err := s.conn.WriteToIP(echoRequest(id, seq), &net.IPAddr{IP: to.AsSlice()})
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
		if from, ok := netip.AddrFromSlice(addr.IP); ok && n >= echoHeader && buf[0] == icmpEchoReply {
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

// echoRequest is an echo request:
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|    Type = 8   |    Code = 0   |           Checksum            |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|           Identifier          |        Sequence Number        |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|     Data ...                                                     (RFC 792)
func echoRequest(id, seq uint16) []byte {
	b := make([]byte, echoHeader+echoPayload)
	b[0] = icmpEchoRequest
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], seq)
	binary.BigEndian.PutUint16(b[2:], ^encap.Sum(b, 0))
	return b
}
