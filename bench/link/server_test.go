//go:build linux

package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

const testToken = "the-token-of-these-tests"

// serve runs a server on loopback until the test ends. change may be nil.
func serve(t *testing.T, change func(*Server)) *Server {
	t.Helper()
	s, err := Listen(ServerConfig{
		Addrs: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort("127.0.0.2:0")},
		Token: testToken,
	})
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(s)
	}
	runServer(t, s)
	return s
}

// runServer runs a server until the test ends.
func runServer(t *testing.T, s *Server) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error("the server:", err)
		}
	})
}

// dial connects without saying anything.
func dial(t *testing.T, to netip.AddrPort) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp4", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// open opens a job's connection that works.
func open(t *testing.T, c *client, to netip.AddrPort, job string) *conn {
	t.Helper()
	conn, err := c.open(t.Context(), to, request{Job: job, Millis: 1000})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// expectClosed wants the server to hang up, having said at most the given number of bytes.
func expectClosed(t *testing.T, conn net.Conn, most int) string {
	t.Helper()
	said, err := io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the server does not hang up")
	}
	if len(said) > most {
		t.Errorf("the server said %d bytes: %q", len(said), said)
	}
	return string(said)
}

// greetingLen is at least the length of a greeting.
const greetingLen = 100

// Who has no token gets the greeting and is cut off.
func TestStrangersGetNothing(t *testing.T) {
	s := serve(t, func(s *Server) { s.patience = 300 * time.Millisecond })
	for name, say := range map[string]string{
		"nothing":         "",
		"HTTP":            "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"half a frame":    "\x00\x40abc",
		"a huge frame":    "\xff\xff" + strings.Repeat("x", 1000),
		"an empty frame":  "\x00\x00",
		"JSON, unsigned":  "\x00\x26" + `{"session":"aaaaaaaaaaaaaaaa","job":"se`,
		"zeros":           strings.Repeat("\x00", 500),
		"a forged header": "\x00\x22" + strings.Repeat("m", macLen) + "{}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := dial(t, s.Addrs()[0])
			if _, err := io.WriteString(conn, say); err != nil {
				t.Fatal(err)
			}
			said := expectClosed(t, conn, greetingLen+len(errToken.Error())+50)
			if strings.Contains(said, "cookie") || strings.Contains(said, "mtu\":6") {
				t.Errorf("the server said %q", said)
			}
		})
	}
}

// One that says nothing, or a byte now and then, is cut off when its time is over.
func TestSlowStrangers(t *testing.T) {
	s := serve(t, func(s *Server) { s.patience = 300 * time.Millisecond })
	conn := dial(t, s.Addrs()[0])
	go func() {
		for {
			if _, err := conn.Write([]byte{1}); err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	start := time.Now()
	expectClosed(t, conn, 2*greetingLen)
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("cut off after %v", took)
	}
}

func TestWrongToken(t *testing.T) {
	s := serve(t, nil)
	for _, token := range []string{"", "x", testToken + "x", testToken[1:], strings.ToUpper(testToken)} {
		_, err := newClient(token, nil).open(t.Context(), s.Addrs()[0], request{Job: jobHello, Millis: 1000})
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "token") {
			t.Errorf("token %q: %v", token, err)
		}
	}
	if s.Refused() != 5 {
		t.Errorf("%d refused, want 5", s.Refused())
	}
}

// Connections without a token, however many, do not keep out the one that has it.
func TestCrowdOfStrangers(t *testing.T) {
	s := serve(t, nil)
	var crowd []net.Conn
	for range 10 * maxPending {
		crowd = append(crowd, dial(t, s.Addrs()[0]))
	}
	open(t, newClient(testToken, nil), s.Addrs()[0], jobHello)
	// All but the last ones are cut off at once, not after their five seconds.
	expectClosed(t, crowd[0], greetingLen)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pending) > maxPending {
		t.Errorf("%d connections wait to show the token, want %d at most", len(s.pending), maxPending)
	}
}

func TestOneClientAtATime(t *testing.T) {
	s := serve(t, nil)
	first, second := newClient(testToken, nil), newClient(testToken, nil)
	hello := request{Job: jobHello, Millis: 1000}
	working := open(t, first, s.Addrs()[0], jobEcho)
	open(t, first, s.Addrs()[1], jobEcho) // its second connection
	if _, err := second.open(t.Context(), s.Addrs()[1], hello); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "busy") {
		t.Errorf("a second client: %v", err)
	}
	// The first is not disturbed.
	if l, err := pingTCP(working, MinEach); err != nil {
		t.Errorf("%+v, %v", l, err)
	}
	// The server stays with the first one between its connections, until it says goodbye.
	third := serve(t, nil).Addrs()[0]
	open(t, first, third, jobHello).Close()
	if _, err := second.open(t.Context(), third, hello); !errors.Is(err, ErrRefused) {
		t.Errorf("a second client between two connections: %v", err)
	}
	bye := open(t, first, third, jobBye)
	expectClosed(t, bye, 0) // then the server has let go
	open(t, second, third, jobHello)
}

func TestConnectionLimit(t *testing.T) {
	s := serve(t, nil)
	c := newClient(testToken, nil)
	for range maxConns {
		open(t, c, s.Addrs()[0], jobEcho)
	}
	if _, err := c.open(t.Context(), s.Addrs()[0], request{Job: jobEcho, Millis: 1000}); !errors.Is(err, ErrRefused) {
		t.Errorf("one more than %d connections: %v", maxConns, err)
	}
}

func TestRequestsBeyondLimits(t *testing.T) {
	s := serve(t, nil)
	for _, r := range []request{
		{Job: "unknown", Millis: 1000},
		{Job: jobSend, Millis: 3600000},
		{Job: jobFetch, Millis: 0},
	} {
		if _, err := newClient(testToken, nil).open(t.Context(), s.Addrs()[0], r); !errors.Is(err, ErrRefused) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

// The server's limit holds for a client that does not heed it.
func TestServerRate(t *testing.T) {
	const rate, each = 8e6, 500 * time.Millisecond
	s := serve(t, func(s *Server) {
		s.cfg.Rate = rate
		s.pace.rate = rate
	})
	c := newClient(testToken, nil)
	for _, job := range []string{jobSend, jobFetch, jobEcho} {
		t.Run(job, func(t *testing.T) {
			conn := open(t, c, s.Addrs()[0], job)
			if conn.Rate != rate {
				t.Errorf("the server says its limit is %d", conn.Rate)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				sendStream(conn, each, &pacer{}, nil)
			}()
			var got Throughput
			if job == jobSend {
				var r report
				if err := readFrame(conn, &r); err != nil || r.Error != "" {
					t.Errorf("%+v, %v", r, err)
				} else {
					got.BitsPerSecond = float64(r.Bytes) * 8 / r.Seconds
				}
			} else {
				var err error
				if got, err = receiveStream(conn, each, &pacer{}, nil); err != nil {
					t.Error(err)
				}
			}
			conn.abort()
			<-done
			if got.BitsPerSecond > 1.25*rate || got.BitsPerSecond == 0 {
				t.Errorf("%.1f Mb/s, want at most %.1f", got.BitsPerSecond/1e6, rate/1e6)
			}
		})
	}
}

// The end of its time ends everything that the server does.
func TestServerEnds(t *testing.T) {
	s, err := Listen(ServerConfig{Addrs: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, Token: testToken})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	c := newClient(testToken, nil)
	stranger := dial(t, s.Addrs()[0])
	fetch := open(t, c, s.Addrs()[0], jobFetch)
	fetch.Write([]byte{0})
	if _, err := fetch.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	p, err := c.openPackets(t.Context(), s.Addrs()[0], MaxEach)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	sent := make(chan error, 1)
	go func() {
		_, err := p.ctl.order(order{Do: orderSend, Size: 100, Count: 60, PerSecond: 1})
		sent <- err
	}()
	if _, err := p.udp.Read(p.buf); err != nil { // the first of a minute
		t.Fatal(err)
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the server does not end")
	}
	if err := <-sent; err == nil {
		t.Error("the order was carried out")
	}
	io.Copy(io.Discard, fetch)
	expectClosed(t, stranger, greetingLen)
	if conn, err := net.Dial("tcp4", s.Addrs()[0].String()); err == nil {
		conn.Close()
		t.Error("somebody still listens")
	}
}

func TestListenFails(t *testing.T) {
	s := serve(t, nil)
	taken := s.Addrs()[1]
	if _, err := Listen(ServerConfig{Addrs: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0"), taken}}); err == nil || !strings.Contains(err.Error(), taken.String()) {
		t.Errorf("%v; want an error that names %s", err, taken)
	}
	foreign := netip.MustParseAddrPort("192.0.2.1:0")
	if _, err := Listen(ServerConfig{Addrs: []netip.AddrPort{foreign}}); err == nil {
		t.Error("listens on an address that is not here")
	}
}

func TestNotify(t *testing.T) {
	var said []string
	s := serve(t, func(s *Server) { s.cfg.Notify = func(words string) { said = append(said, words) } })
	c := newClient(testToken, nil)
	for _, job := range []string{jobHello, jobEcho, jobEcho, jobBye} {
		conn := open(t, c, s.Addrs()[0], job)
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		expectClosed(t, conn, 0)
	}
	want := "[127.0.0.1 reaches 127.0.0.1 127.0.0.1 exchanges TCP messages with 127.0.0.1 127.0.0.1 has ended with 127.0.0.1]"
	s.notify.Lock()
	defer s.notify.Unlock()
	if fmt.Sprint(said) != want {
		t.Errorf("%s, want %s", said, want)
	}
}
