package ping

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"muslin/encap"
)

// Bytes in front of an echo's payload.
const (
	icmpHeader = 8
	headers4   = 20 + icmpHeader
	headers6   = 40 + icmpHeader
)

// headersOf is how long a packet is without payload.
func headersOf(a netip.Addr) int {
	if a.Is6() {
		return headers6
	}
	return headers4
}

// Types and codes (RFC 792, RFC 1191, RFC 4443).
const (
	echoReply, echoRequest               = 0, 8
	unreachable, timeExceeded            = 3, 11
	fragNeeded                           = 4 // code
	echoRequest6, echoReply6             = 128, 129
	unreachable6, tooBig6, timeExceeded6 = 1, 2, 3
)

// socket sends echo requests with DF and gets the answers, and the ICMP errors about them.
type socket struct {
	six  bool
	id   uint16
	conn *net.IPConn
	four *ipv4.PacketConn
	v6   *ipv6.PacketConn
}

// open opens one that sends from an address; invalid: the kernel chooses.
func open(from netip.Addr, six bool) (*socket, error) {
	s := &socket{six: six, id: uint16(rand.Uint32())}
	network := "ip4:icmp"
	if six {
		network = "ip6:ipv6-icmp"
	}
	var local *net.IPAddr
	if from.IsValid() {
		local = &net.IPAddr{IP: from.AsSlice()}
	}
	var err error
	s.conn, err = net.ListenIP(network, local)
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("open a raw ICMP socket: %w: run this as root (it takes CAP_NET_RAW)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("open a raw ICMP socket: %w", err)
	}
	if err := s.prepare(); err != nil {
		s.conn.Close()
		return nil, fmt.Errorf("prepare the raw ICMP socket: %w", err)
	}
	return s, nil
}

func (s *socket) prepare() error {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if s.six {
		s.v6 = ipv6.NewPacketConn(s.conn)
		var f ipv6.ICMPFilter
		f.SetAll(true)
		for _, t := range []ipv6.ICMPType{ipv6.ICMPTypeEchoReply, ipv6.ICMPTypeDestinationUnreachable, ipv6.ICMPTypePacketTooBig, ipv6.ICMPTypeTimeExceeded} {
			f.Accept(t)
		}
		err = raw.Control(func(fd uintptr) {
			failed = errors.Join(
				os.NewSyscallError("set IPV6_MTU_DISCOVER", unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)),
				os.NewSyscallError("set IPV6_DONTFRAG", unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_DONTFRAG, 1)))
		})
		return errors.Join(err, failed, s.v6.SetICMPFilter(&f), s.v6.SetControlMessage(ipv6.FlagHopLimit, true))
	}
	s.four = ipv4.NewPacketConn(s.conn)
	var f ipv4.ICMPFilter
	f.SetAll(true)
	for _, t := range []ipv4.ICMPType{ipv4.ICMPTypeEchoReply, ipv4.ICMPTypeDestinationUnreachable, ipv4.ICMPTypeTimeExceeded} {
		f.Accept(t)
	}
	// PROBE sets DF and looks at no path MTU that the kernel knows: it is what we want to find (ip(7)).
	err = raw.Control(func(fd uintptr) {
		failed = os.NewSyscallError("set IP_MTU_DISCOVER", unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE))
	})
	return errors.Join(err, failed, s.four.SetICMPFilter(&f), s.four.SetControlMessage(ipv4.FlagTTL, true))
}

func (s *socket) close() { s.conn.Close() }

// send sends a request whose packet has size bytes.
func (s *socket) send(to netip.Addr, seq uint16, size int) error {
	b := make([]byte, size-headersOf(to)+icmpHeader)
	b[0] = echoRequest
	if s.six {
		b[0] = echoRequest6
	}
	binary.BigEndian.PutUint16(b[4:], s.id)
	binary.BigEndian.PutUint16(b[6:], seq)
	for i := icmpHeader; i < len(b); i++ {
		b[i] = byte(i)
	}
	if !s.six { // of which the kernel writes ICMPv6's
		binary.BigEndian.PutUint16(b[2:], ^encap.Sum(b, 0))
	}
	_, err := s.conn.WriteToIP(b, &net.IPAddr{IP: to.AsSlice()})
	return err
}

// reply is an answer to a request, or an ICMP error about it.
type reply struct {
	seq  uint16
	to   netip.Addr // whom the request went to, where it is an error
	from netip.Addr
	at   time.Time
	ttl  int
	size int    // bytes of the packet
	why  string // of an error; empty: it is an answer
	mtu  int    // of an error that says so
}

// receive waits for the next one of ours.
func (s *socket) receive(buf []byte) (reply, error) {
	for {
		var n, ttl int
		var addr net.Addr
		var err error
		if s.six {
			var cm *ipv6.ControlMessage
			if n, cm, addr, err = s.v6.ReadFrom(buf); cm != nil {
				ttl = cm.HopLimit
			}
		} else {
			var cm *ipv4.ControlMessage
			if n, cm, addr, err = s.four.ReadFrom(buf); cm != nil {
				ttl = cm.TTL
			}
		}
		if err != nil {
			return reply{}, err
		}
		r := reply{at: time.Now(), ttl: ttl}
		if ip, ok := addr.(*net.IPAddr); ok {
			from, _ := netip.AddrFromSlice(ip.IP)
			r.from = from.Unmap()
		}
		if s.parse(buf[:n], &r) {
			return r, nil
		}
	}
}

// parse reads an ICMP message; false: it is not about our requests.
func (s *socket) parse(b []byte, r *reply) bool {
	if len(b) < icmpHeader {
		return false
	}
	kind, code := b[0], b[1]
	switch {
	case !s.six && kind == echoReply, s.six && kind == echoReply6:
		r.seq, r.size = binary.BigEndian.Uint16(b[6:]), len(b)-icmpHeader+headers4
		if s.six {
			r.size += headers6 - headers4
		}
		return binary.BigEndian.Uint16(b[4:]) == s.id
	case s.six:
		r.why = explain6(kind, code)
		if kind == tooBig6 {
			r.mtu = int(binary.BigEndian.Uint32(b[4:]))
		}
	default:
		r.why = explain4(kind, code)
		if kind == unreachable && code == fragNeeded {
			r.mtu = int(binary.BigEndian.Uint16(b[6:]))
		}
	}
	return s.quoted(b[icmpHeader:], r)
}

// quoted reads the beginning of the packet that an error is about.
func (s *socket) quoted(b []byte, r *reply) bool {
	if s.six {
		if len(b) < headers6 || b[6] != unix.IPPROTO_ICMPV6 || b[40] != echoRequest6 {
			return false
		}
		r.to = netip.AddrFrom16([16]byte(b[24:40]))
		b = b[40:]
	} else {
		head := 0
		if len(b) >= 20 {
			head = int(b[0]&15) * 4
		}
		if head < 20 || len(b) < head+icmpHeader || b[9] != unix.IPPROTO_ICMP || b[head] != echoRequest {
			return false
		}
		r.to = netip.AddrFrom4([4]byte(b[16:20]))
		b = b[head:]
	}
	r.seq = binary.BigEndian.Uint16(b[6:])
	return binary.BigEndian.Uint16(b[4:]) == s.id
}

func explain4(kind, code byte) string {
	if kind == timeExceeded {
		return "time to live exceeded: a loop"
	}
	switch code {
	case 0:
		return "net unreachable"
	case 1:
		return "host unreachable"
	case 2:
		return "protocol unreachable"
	case 3:
		return "port unreachable"
	case fragNeeded:
		return "too long"
	case 9, 10, 13:
		return "forbidden by a firewall"
	}
	return fmt.Sprintf("unreachable (code %d)", code)
}

func explain6(kind, code byte) string {
	switch {
	case kind == tooBig6:
		return "too long"
	case kind == timeExceeded6:
		return "hop limit exceeded: a loop"
	case code == 0:
		return "no route"
	case code == 1, code == 5, code == 6:
		return "forbidden by a firewall"
	case code == 3:
		return "address unreachable"
	case code == 4:
		return "port unreachable"
	}
	return fmt.Sprintf("unreachable (code %d)", code)
}
