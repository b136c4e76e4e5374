//go:build linux

package link

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// client is the side that measures.
type client struct {
	token   string
	session string
	inside  Inside
}

func newClient(token string, inside Inside) *client {
	return &client{token: token, session: rand.Text(), inside: inside}
}

// ErrRefused says that a server answered and did not want us.
var ErrRefused = errors.New("the other side refuses")

// conn is a job's connection. Its ctx closes it.
type conn struct {
	*net.TCPConn
	accept
	stop func() bool
}

func (c *conn) Close() error {
	c.stop()
	return c.TCPConn.Close()
}

// abort closes without waiting for what is still to be sent.
func (c *conn) abort() {
	_ = c.SetLinger(0)
	c.Close()
}

// open connects for a job and shows the token. Deadlines are unset on the connection that it returns.
func (c *client) open(ctx context.Context, to netip.AddrPort, req request) (*conn, error) {
	req.Session = c.session
	var tcp net.Conn
	if err := c.inside.do(func() (err error) {
		tcp, err = (&net.Dialer{Timeout: handshakeTime}).DialContext(ctx, "tcp4", to.String())
		return err
	}); err != nil {
		return nil, explainDial(to, err)
	}
	job := &conn{TCPConn: tcp.(*net.TCPConn), stop: context.AfterFunc(ctx, func() { tcp.Close() })}
	if err := c.introduce(job, req); err != nil {
		job.Close()
		return nil, err
	}
	return job, nil
}

func (c *client) introduce(job *conn, req request) error {
	if err := job.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return err
	}
	peer := job.RemoteAddr()
	var hello greeting
	if err := readFrame(job, &hello); err != nil || len(hello.Nonce) != nonceLen {
		return fmt.Errorf("%s is not `muslin bench link --serve`, or it has just ended: %w", peer, greetingError(err))
	}
	if hello.Protocol != protocol {
		return fmt.Errorf("%s speaks %.40q, this side %q: use the same version of muslin on both nodes", peer, hello.Protocol, protocol)
	}
	if err := writeRequest(job, c.token, hello.Nonce, req); err != nil {
		return fmt.Errorf("ask %s: %w", peer, err)
	}
	if err := readFrame(job, &job.accept); err != nil {
		return fmt.Errorf("ask %s: %w", peer, err)
	}
	if job.Error != "" {
		return fmt.Errorf("%w (%s): %s", ErrRefused, peer, job.Error)
	}
	return job.SetDeadline(time.Time{})
}

func greetingError(err error) error {
	var syntax *json.SyntaxError
	switch {
	case err == nil, errors.As(err, &syntax):
		return errors.New("its greeting is no such thing")
	case errors.Is(err, io.EOF):
		return errors.New("it hung up")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("it said nothing for %v", handshakeTime)
	}
	return err
}

func explainDial(to netip.AddrPort, err error) error {
	var late net.Error
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("nothing listens on %s: run `muslin bench link --serve` on that node", to)
	case errors.As(err, &late) && late.Timeout():
		return fmt.Errorf("no answer from %s: packets are lost on the way there or back, or a firewall closes TCP port %d", to, to.Port())
	}
	return fmt.Errorf("connect to %s: %w", to, err)
}

// order has the server obey, within the time that a datagram job has.
func (c *conn) order(o order) (answer, error) {
	var a answer
	if err := writeFrame(c, o); err != nil {
		return a, err
	}
	if err := readFrame(c, &a); err != nil {
		return a, err
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

// packets is a UDP job from the client's side.
type packets struct {
	ctl *conn
	udp *net.UDPConn
	mtu int           // the smaller one of both sides' interfaces
	rtt time.Duration // of the first datagram that was answered
	buf []byte
}

const (
	greetTries = 6
	greetWait  = 250 * time.Millisecond
)

// openPackets asks for a UDP job and makes sure that datagrams come and go.
func (c *client) openPackets(ctx context.Context, to netip.AddrPort, each time.Duration) (*packets, error) {
	req := request{Job: jobPacket, Millis: each.Milliseconds()}
	ctl, err := c.open(ctx, to, req)
	if err != nil {
		return nil, err
	}
	p := &packets{ctl: ctl, mtu: ctl.MTU, buf: make([]byte, maxPacket)}
	if err := p.begin(ctx, c, to, req.lasts()); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *packets) begin(ctx context.Context, c *client, to netip.AddrPort, limit time.Duration) error {
	if len(p.ctl.Cookie) != cookieLen {
		return fmt.Errorf("a cookie of %d bytes: want %d", len(p.ctl.Cookie), cookieLen)
	}
	if err := p.ctl.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if err := c.inside.do(func() error {
		udp, err := new(net.Dialer).DialContext(ctx, "udp4", to.String())
		if err != nil {
			return err
		}
		p.udp = udp.(*net.UDPConn)
		return prepareUDP(p.udp)
	}); err != nil {
		return fmt.Errorf("UDP to %s: %w", to, err)
	}
	// The TCP connection's closing tells of ctx; this lets a blocked read know as well.
	stop := context.AfterFunc(ctx, func() { p.udp.Close() })
	closeCtl := p.ctl.stop
	p.ctl.stop = func() bool { stop(); return closeCtl() }
	if own := c.inside.interfaceMTU(localAddr(p.ctl)); own != 0 && (p.mtu == 0 || own < p.mtu) {
		p.mtu = own
	}
	for range greetTries {
		before := time.Now()
		came, err := p.ask(kindEcho, 0, minPacket, greetWait)
		if err != nil {
			return err
		}
		if came {
			p.rtt = time.Since(before)
			return nil
		}
	}
	return fmt.Errorf("TCP port %d answers, but UDP port %d does not: a firewall closes it", to.Port(), to.Port())
}

func (p *packets) close() {
	p.ctl.Close()
	if p.udp != nil {
		p.udp.Close()
	}
}

// ask sends a datagram of size bytes (with its headers) and waits for the answer to it or to an earlier one
// of the same kind and number.
func (p *packets) ask(kind byte, seq uint32, size int, wait time.Duration) (bool, error) {
	b := p.buf[:size-outerLen]
	putHeader(b, p.ctl.Cookie, kind, seq)
	if err := p.udp.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return false, err
	}
	_, err := p.udp.Write(b)
	if errors.Is(err, unix.EMSGSIZE) { // of this datagram, or a router's word about one before it
		_, err = p.udp.Write(b)
	}
	if errors.Is(err, unix.EMSGSIZE) {
		return false, nil // longer than our interface's MTU
	}
	if err != nil {
		return false, p.sendError(err)
	}
	return p.await(kind, seq)
}

// await reads until the datagram comes or the read deadline passes.
func (p *packets) await(kind byte, seq uint32) (bool, error) {
	for {
		n, err := p.udp.Read(p.buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return false, nil
		case errors.Is(err, unix.EMSGSIZE):
			continue // a router's word about a probe: the probe's silence says the same
		case err != nil:
			return false, p.sendError(err)
		}
		cookie, k, s, ok := header(p.buf[:n])
		if ok && k == kind && s == seq && string(cookie) == string(p.ctl.Cookie) {
			return true, nil
		}
	}
}

func (p *packets) sendError(err error) error {
	if errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("UDP port %d is closed there: `muslin bench link --serve` has ended, or a firewall answers for it", p.udp.RemoteAddr().(*net.UDPAddr).Port)
	}
	return err
}

func localAddr(c *conn) netip.Addr {
	return c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
}
