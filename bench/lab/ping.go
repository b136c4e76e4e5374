//go:build linux

package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Ping is made here rather than by ping(8), which gives up on the last answer after twice the longest
// round trip so far: on a busy machine it reports losses where there were none.

// PingOptions say what Ping sends. The zero value of each field but Count is usable.
type PingOptions struct {
	Count        int
	Size         int  // of the IP packet in bytes; 0 means 84, ping(8)'s default
	DontFragment bool // of IPv4: set DF, and do not send what is longer than the known path MTU
}

// PingResult is what came of it.
type PingResult struct {
	Sent, Received int
	Average        time.Duration // of the round trips; 0 if none came back
}

const (
	pingEvery   = 10 * time.Millisecond
	pingTimeout = 2 * time.Second // after the last request
	pingHeaders = 20 + 8          // IPv4, ICMP

	icmpEchoReply   = 0 // RFC 792
	icmpEchoRequest = 8

	ping6Headers = 40 + 8 // IPv6, ICMPv6

	icmp6EchoReply   = 129 // RFC 4443
	icmp6EchoRequest = 128
)

// Ping sends echo requests every 10 ms and waits two seconds (before Patience) for the last answer. Losses, and packets
// that the node's own kernel refused for their size or want of a route, are not an error: look at
// Received.
func (n *Node) Ping(ctx context.Context, to netip.Addr, o PingOptions) (PingResult, error) {
	if o.Size == 0 {
		o.Size = 84
	}
	r, err := n.ping(ctx, to, o)
	if err != nil {
		return r, fmt.Errorf("ping %s from %s: %w", to, n.Name, err)
	}
	return r, nil
}

func (n *Node) ping(ctx context.Context, to netip.Addr, o PingOptions) (PingResult, error) {
	var conn *net.IPConn
	network, six := "ip4:icmp", to.Is6()
	if six {
		network = "ip6:ipv6-icmp"
	}
	if err := n.Do(func() (err error) {
		conn, err = net.ListenIP(network, nil)
		return err
	}); err != nil {
		return PingResult{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	discover := unix.IP_PMTUDISC_DONT
	if o.DontFragment {
		discover = unix.IP_PMTUDISC_DO
	}
	headers, request, reply := ping6Headers, byte(icmp6EchoRequest), byte(icmp6EchoReply)
	if !six {
		headers, request, reply = pingHeaders, icmpEchoRequest, icmpEchoReply
		if err := setDiscover(conn, discover); err != nil {
			return PingResult{}, err
		}
	}
	p := pinger{request: request, reply: reply, conn: conn, to: &net.IPAddr{IP: to.AsSlice()}, id: uint16(rand.Uint32()), size: o.Size - headers, sent: make([]time.Time, o.Count)}
	err := p.run()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return p.result, err
}

func setDiscover(conn *net.IPConn, value int) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, value)
	}); err != nil {
		return err
	}
	return os.NewSyscallError("set IP_MTU_DISCOVER", failed)
}

type pinger struct {
	request, reply byte // ICMP types

	conn   *net.IPConn
	to     *net.IPAddr
	id     uint16
	size   int         // of the payload
	sent   []time.Time // by sequence number; zero when not sent or answered already
	total  time.Duration
	result PingResult
}

func (p *pinger) run() error {
	next, end := time.Now(), time.Time{}
	for p.result.Received < len(p.sent) {
		now := time.Now()
		if p.result.Sent < len(p.sent) && !now.Before(next) {
			p.send(now)
			next, end = now.Add(pingEvery), now.Add(Patience(pingTimeout))
			continue
		}
		deadline := next
		if p.result.Sent == len(p.sent) {
			deadline = end
			if now.After(end) {
				break
			}
		}
		if err := p.receive(deadline); err != nil {
			return err
		}
	}
	if p.result.Received > 0 {
		p.result.Average = p.total / time.Duration(p.result.Received)
	}
	return nil
}

// send sends the next request. A refusal by the kernel counts as a loss.
func (p *pinger) send(now time.Time) {
	b := make([]byte, 8+p.size)
	b[0] = p.request
	binary.BigEndian.PutUint16(b[4:], p.id)
	binary.BigEndian.PutUint16(b[6:], uint16(p.result.Sent))
	for i := range b[8:] {
		b[8+i] = byte(i)
	}
	binary.BigEndian.PutUint16(b[2:], checksum(b)) // of IPv6 the kernel makes it anew (RFC 3542, section 3.1)
	if _, err := p.conn.WriteToIP(b, p.to); err == nil {
		p.sent[p.result.Sent] = now
	}
	p.result.Sent++
}

// receive takes one packet, if one comes before the deadline.
func (p *pinger) receive(deadline time.Time) error {
	if err := p.conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	b := make([]byte, 1<<16)
	n, from, err := p.conn.ReadFromIP(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if err != nil {
		return err
	}
	now := time.Now()
	if n != 8+p.size || b[0] != p.reply || binary.BigEndian.Uint16(b[4:]) != p.id || !from.IP.Equal(p.to.IP) {
		return nil // somebody else's
	}
	seq := int(binary.BigEndian.Uint16(b[6:]))
	if seq >= len(p.sent) || p.sent[seq].IsZero() {
		return nil // a duplicate
	}
	p.total += now.Sub(p.sent[seq])
	p.sent[seq] = time.Time{}
	p.result.Received++
	return nil
}

// checksum is the Internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for i, v := range b {
		sum += uint32(v) << (8 * (1 - i%2))
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
