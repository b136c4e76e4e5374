package wire

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"muslin/encap"
)

// Question is an echo request that the kernel routes, sent until it is answered, some times at most.
type Question struct {
	To   netip.Addr
	Size int // of the IP packet, in bytes; 0: SmallEcho. It is sent with DF, whatever the kernel knows of the path
}

// Answer is what came of it.
type Answer struct {
	Sent, Got int
	Damaged   int           // answers whose checksum is wrong; of IPv6 the kernel keeps those
	From      netip.Addr    // who answered: of IPv6 it may be another address of the node
	RTT       time.Duration // of the first answer
	Refused   *Refusal      // the last ICMP error
	Err       error         // of the last send: the kernel refused it
}

// Echoes is a raw ICMP socket of one address family.
type Echoes struct {
	conn *net.IPConn
	raw  syscall.RawConn
	six  bool
	id   uint16
	seq  uint16
	buf  [1 << 11]byte // what is longer is cut
}

// OpenEchoes opens one. What leaves is marked as from local, if that is valid; otherwise by the route.
func OpenEchoes(six bool, local netip.Addr) (*Echoes, error) {
	network := "ip4:icmp"
	if six {
		network = "ip6:ipv6-icmp"
	}
	var laddr *net.IPAddr
	if local.IsValid() {
		laddr = &net.IPAddr{IP: local.AsSlice()}
	}
	conn, err := net.ListenIP(network, laddr)
	if err != nil {
		return nil, fmt.Errorf("open raw ICMP socket: %w: it takes CAP_NET_RAW: run this as root", err)
	}
	e := &Echoes{conn: conn, six: six, id: uint16(rand.Uint32()), seq: uint16(rand.Uint32())}
	if e.raw, err = conn.SyscallConn(); err == nil {
		err = e.set()
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open raw ICMP socket: %w", err)
	}
	return e, nil
}

func (e *Echoes) set() error {
	var failed error
	return errors.Join(e.raw.Control(func(fd uintptr) { failed = setProbing(int(fd), e.six, e.filter) }), failed)
}

// filter lets in echo replies and what the error queue is made of (raw(7)): the kernel gives a raw socket no error that its
// filter keeps away.
func (e *Echoes) filter(fd int) error {
	if e.six {
		var f unix.ICMPv6Filter // RFC 3542, section 3.2: a bit keeps a type away
		for i := range f.Data {
			f.Data[i] = ^uint32(0)
		}
		f.Data[echoReply6/32] &^= 1 << (echoReply6 % 32)
		return os.NewSyscallError("set ICMPV6_FILTER", unix.SetsockoptICMPv6Filter(fd, unix.SOL_ICMPV6, unix.ICMPV6_FILTER, &f))
	}
	const solRaw, icmpFilter = 255, 1 // linux/socket.h, linux/icmp.h
	return os.NewSyscallError("set ICMP_FILTER", unix.SetsockoptInt(fd, solRaw, icmpFilter, ^(1<<echoReply4)))
}

// setProbing has a socket send with DF, up to the interface's MTU, whatever the kernel knows of the path, and keep ICMP
// errors with who sent them.
func setProbing(fd int, six bool, more func(fd int) error) error {
	level, discover, probe, errs := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE, unix.IP_RECVERR
	if six {
		level, discover, probe, errs = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE, unix.IPV6_RECVERR
	}
	if err := unix.SetsockoptInt(fd, level, discover, probe); err != nil {
		return os.NewSyscallError("set MTU_DISCOVER", err)
	}
	if err := unix.SetsockoptInt(fd, level, errs, 1); err != nil {
		return os.NewSyscallError("set RECVERR", err)
	}
	if more == nil {
		return nil
	}
	return more(fd)
}

// Close closes the socket.
func (e *Echoes) Close() error { return e.conn.Close() }

// ID is what its requests have as identifier.
func (e *Echoes) ID() uint16 { return e.id }

// burst is how many requests leave within a millisecond: a thousand peers are asked within half a second.
const burst = 2

// Ask sends all questions, and those that are not answered within every again, so many times at most. It returns when each
// is answered or every has passed since the last try, or ctx ends. The answers stand in the questions' order.
func (e *Echoes) Ask(ctx context.Context, tries int, every time.Duration, questions []Question) []Answer {
	answers := make([]Answer, len(questions))
	first := e.seq
	e.seq += uint16(tries * len(questions)) // number of try t of question i: first + t·len + i
	sent := make([]time.Time, tries*len(questions))
	var buf []byte
	open := len(questions)
	asked := 0
	for try := range tries {
		for i, q := range questions {
			a := &answers[i]
			if a.Got > 0 || ctx.Err() != nil {
				continue
			}
			if asked++; asked%burst == 0 {
				time.Sleep(time.Millisecond)
			}
			n := try*len(questions) + i
			buf = e.request(buf[:0], q, first+uint16(n))
			sent[n] = time.Now()
			a.Sent++
			a.Err = e.send(buf, q.To)
		}
		until := time.Now().Add(every)
		for open > 0 && ctx.Err() == nil {
			from, n, damaged, more := e.receive(ctx, until)
			e.errors(func(r *Refusal, n uint16) {
				if i := int(n - first); i >= 0 && i < len(sent) {
					answers[i%len(questions)].Refused = r
				}
			})
			if !more {
				break
			}
			if i := int(n - first); i < len(sent) {
				a := &answers[i%len(questions)]
				if damaged {
					a.Damaged++
				} else if a.Got++; a.Got == 1 {
					a.RTT, a.From = time.Since(sent[i]), from
					open--
				}
			}
		}
		if open == 0 || ctx.Err() != nil {
			break
		}
	}
	return answers
}

// request is an ICMP message: the kernel writes the IP header, and ICMPv6's checksum.
func (e *Echoes) request(buf []byte, q Question, n uint16) []byte {
	size := q.Size
	if size == 0 {
		size = SmallEcho(q.To)
	}
	buf = append(buf, make([]byte, max(icmpLen, size-ipLen(e.six)))...)
	buf[0] = echoRequest4
	if e.six {
		buf[0] = echoRequest6
	}
	binary.BigEndian.PutUint16(buf[4:], e.id)
	binary.BigEndian.PutUint16(buf[6:], n)
	binary.BigEndian.PutUint16(buf[2:], ^encap.Sum(buf, 0))
	return buf
}

// send reports what the kernel says to this packet: an error about an earlier one comes once, and is in the error queue too.
func (e *Echoes) send(packet []byte, to netip.Addr) error {
	var err error
	for range 3 {
		if _, err = e.conn.WriteToIP(packet, &net.IPAddr{IP: to.AsSlice()}); err == nil {
			return nil
		}
	}
	return err
}

// receive takes the next reply to one of ours; more is false when until has come.
func (e *Echoes) receive(ctx context.Context, until time.Time) (from netip.Addr, n uint16, damaged, more bool) {
	buf := e.buf[:]
	for {
		if d, ok := ctx.Deadline(); ok && d.Before(until) {
			until = d
		}
		if e.conn.SetReadDeadline(until) != nil {
			return netip.Addr{}, 0, false, false
		}
		got, addr, err := e.conn.ReadFromIP(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, net.ErrClosed):
			return netip.Addr{}, 0, false, false
		case err != nil:
			if !time.Now().Before(until) {
				return netip.Addr{}, 0, false, false
			}
			continue // an ICMP error about one of ours: it is in the error queue
		case got < icmpLen || binary.BigEndian.Uint16(buf[4:]) != e.id:
			continue
		}
		from, _ := netip.AddrFromSlice(addr.IP)
		damaged := !e.six && got < len(buf) && encap.Sum(buf[:got], 0) != 0xffff
		return from.Unmap(), binary.BigEndian.Uint16(buf[6:]), damaged, true
	}
}

// errors hands over what the error queue holds: the ICMP error, and the number of the request that it quotes.
func (e *Echoes) errors(each func(r *Refusal, n uint16)) {
	var quote [256]byte
	var oob [512]byte
	for {
		var n, oobn int
		var failed error
		if err := e.raw.Control(func(fd uintptr) {
			n, oobn, _, _, failed = unix.Recvmsg(int(fd), quote[:], oob[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		}); err != nil || failed != nil {
			return
		}
		r := parseError(oob[:oobn])
		c := quote[:n]
		if !e.six && n > 0 && c[0]>>4 == 4 { // a raw socket of IPv4 gets the header that it did not write
			c = c[min(n, int(c[0]&15)*4):]
		}
		if r != nil && len(c) >= icmpLen && binary.BigEndian.Uint16(c[4:]) == e.id {
			each(r, binary.BigEndian.Uint16(c[6:]))
		}
	}
}
