//go:build linux

package link

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// ServerConfig says what Listen listens on and whom it lets in.
type ServerConfig struct {
	Addrs  []netip.AddrPort // IPv4; on each both TCP and UDP. Port 0 takes one that is free
	Token  string           // what the client must show (NewToken)
	Rate   int64            // bits per second that a client gets at most, each way; 0 is no limit
	Notify func(string)     // is told what the client does, by one goroutine at a time; nil is allowed
	Inside Inside
}

// Server is the side that was asked: it does what an authenticated client wants, within limits.
type Server struct {
	cfg      ServerConfig
	doors    []*door
	pace     *pacer        // of all streams together
	patience time.Duration // with a connection that has not shown the token

	mu        sync.Mutex
	done      chan struct{}         // closed when Run ends
	conns     map[net.Conn]struct{} // all that are open
	pending   []net.Conn            // those that have not shown the token, the oldest first
	refused   int
	session   string     // of the client that measures
	client    netip.Addr // its address
	active    int        // its connections
	lastEnded time.Time  // when it had one last
	jobs      []*packetJob

	notify sync.Mutex
	said   string // last
}

// door is one address of the server.
type door struct {
	addr netip.AddrPort
	mtu  int // of its interface
	tcp  *net.TCPListener
	udp  *net.UDPConn
}

func (d *door) close() {
	d.tcp.Close()
	if d.udp != nil {
		d.udp.Close()
	}
}

// Listen opens the sockets. Run must follow, which closes them.
func Listen(cfg ServerConfig) (*Server, error) {
	s := &Server{cfg: cfg, pace: &pacer{rate: cfg.Rate}, patience: handshakeTime, done: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	for _, addr := range cfg.Addrs {
		d, err := cfg.Inside.openDoor(addr)
		if err != nil {
			s.closeDoors()
			return nil, fmt.Errorf("listen on %s: %w", addr, err)
		}
		s.doors = append(s.doors, d)
	}
	return s, nil
}

func (in Inside) openDoor(addr netip.AddrPort) (*door, error) {
	d := new(door)
	err := in.do(func() (err error) {
		if d.tcp, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(addr)); err != nil {
			return err
		}
		d.addr = d.tcp.Addr().(*net.TCPAddr).AddrPort()
		if d.udp, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(d.addr)); err == nil {
			err = prepareUDP(d.udp)
		}
		if err != nil {
			d.close()
		}
		return err
	})
	d.mtu = in.interfaceMTU(addr.Addr())
	return d, err
}

func (s *Server) closeDoors() {
	for _, d := range s.doors {
		d.close()
	}
}

// Addrs are the addresses that it listens on, in the order of the config.
func (s *Server) Addrs() []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, d := range s.doors {
		addrs = append(addrs, d.addr)
	}
	return addrs
}

// Refused counts the connections that did not show the token.
func (s *Server) Refused() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused
}

// tell says what a job does; once for all streams of a measure.
func (s *Server) tell(d *door, remote netip.Addr, job string) {
	if s.cfg.Notify == nil {
		return
	}
	words := fmt.Sprintf("%s %s %s", remote, jobWords[job], d.addr.Addr())
	s.notify.Lock()
	defer s.notify.Unlock()
	if words != s.said {
		s.said = words
		s.cfg.Notify(words)
	}
}

// Run serves until ctx ends, which is no error, or a socket fails. All is closed when it returns.
func (s *Server) Run(ctx context.Context) error {
	failed, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var running sync.WaitGroup
	for _, d := range s.doors {
		running.Go(func() { cancel(s.acceptAll(d, &running)) })
		running.Go(func() { cancel(s.readAll(d)) })
	}
	<-failed.Done()
	s.mu.Lock()
	close(s.done)
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	s.closeDoors()
	running.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return context.Cause(failed)
}

// acceptAll returns the listener's error.
func (s *Server) acceptAll(d *door, running *sync.WaitGroup) error {
	for {
		conn, err := d.tcp.AcceptTCP()
		if err != nil {
			return fmt.Errorf("accept on %s: %w", d.addr, err)
		}
		if !s.enter(conn) {
			conn.Close()
			continue
		}
		running.Go(func() {
			defer s.leave(conn)
			s.serve(d, conn)
		})
	}
}

// enter takes a new connection in. Where too many wait that have not shown the token, the oldest of them
// goes: one that has it needs a single round trip to show it, and is not kept out by those that have not.
func (s *Server) enter(conn *net.TCPConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.done:
		return false
	default:
	}
	s.conns[conn] = struct{}{}
	s.pending = append(s.pending, conn)
	if len(s.pending) > maxPending {
		s.pending[0].Close()
		s.pending = slices.Delete(s.pending, 0, 1)
	}
	return true
}

func (s *Server) leave(conn *net.TCPConn) {
	conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
	s.forgetPending(conn)
}

func (s *Server) forgetPending(conn net.Conn) {
	s.pending = slices.DeleteFunc(s.pending, func(c net.Conn) bool { return c == conn })
}

// serve is one connection from its greeting to its end. What goes wrong is the client's to notice.
func (s *Server) serve(d *door, conn *net.TCPConn) {
	req, err := s.handshake(conn)
	if err != nil {
		s.mu.Lock()
		s.refused++
		s.mu.Unlock()
		if errors.Is(err, errToken) {
			_ = writeFrame(conn, accept{Error: err.Error()})
		}
		return
	}
	remote := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	err = req.check()
	if err == nil {
		err = s.admitSoon(req, remote)
	}
	if err != nil {
		_ = writeFrame(conn, accept{Error: err.Error()})
		return
	}
	defer s.dismiss(req)
	if err := conn.SetDeadline(time.Now().Add(req.lasts())); err != nil {
		return
	}
	s.tell(d, remote, req.Job)
	s.work(d, conn, req, remote)
}

func (s *Server) handshake(conn *net.TCPConn) (request, error) {
	nonce := make([]byte, nonceLen)
	rand.Read(nonce) // never fails
	if err := conn.SetDeadline(time.Now().Add(s.patience)); err != nil {
		return request{}, err
	}
	if err := writeFrame(conn, greeting{Protocol: protocol, Nonce: nonce}); err != nil {
		return request{}, err
	}
	req, err := readRequest(conn, s.cfg.Token, nonce)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetPending(conn)
	return req, err
}

// leaving is how long a client that has had its last answer may still be under way out.
const leaving = time.Second

// admitSoon is admit, and asks again for a moment when another client is there: the next one may come before
// the last one's connections have ended here.
func (s *Server) admitSoon(req request, remote netip.Addr) error {
	deadline := time.Now().Add(leaving)
	for {
		err := s.admit(req, remote)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-s.done:
			return err
		}
	}
}

// admit lets one client in at a time.
func (s *Server) admit(req request, remote netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if req.Session != s.session {
		if s.active > 0 || s.session != "" && time.Since(s.lastEnded) < sessionHold {
			return fmt.Errorf("busy: %s measures at this moment; try again when it has ended", s.client)
		}
		s.session, s.client = req.Session, remote
	}
	if s.active == maxConns {
		return fmt.Errorf("more than %d connections", maxConns)
	}
	s.active++
	return nil
}

func (s *Server) dismiss(req request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active--
	s.lastEnded = time.Now()
	if req.Job == jobBye {
		s.session = ""
	}
}

// work does the job.
func (s *Server) work(d *door, conn *net.TCPConn, req request, remote netip.Addr) {
	ok := accept{MTU: d.mtu, Rate: s.cfg.Rate}
	if req.Job == jobPacket {
		job := s.newPacketJob(d, remote, req)
		defer s.endPacketJob(job)
		ok.Cookie = job.cookie
		if writeFrame(conn, ok) == nil {
			job.obey(conn)
		}
		return
	}
	if writeFrame(conn, ok) != nil {
		return
	}
	switch req.Job {
	case jobSend:
		t, err := receiveStream(conn, req.each(), s.pace, s.done)
		r := report{Bytes: t.Bytes, Seconds: t.Seconds}
		if err != nil {
			r.Error = err.Error()
		}
		if writeFrame(conn, r) == nil {
			discard(conn, streamSlack)
		}
	case jobFetch:
		var start [1]byte
		if _, err := conn.Read(start[:]); err == nil {
			s.sendLimited(conn, req.each(), req.Rate)
		}
	case jobEcho:
		echo(conn, s.pace, s.done)
	}
}

// sendLimited streams to the client at the server's limit, which all streams share, or the client's own.
func (s *Server) sendLimited(conn *net.TCPConn, d time.Duration, rate int64) {
	p := s.pace
	if rate > 0 && (p.rate == 0 || rate < p.rate) {
		p = &pacer{rate: rate}
	}
	sendStream(conn, d, p, s.done)
}
