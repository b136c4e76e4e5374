//go:build linux

package link

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// udpFrom opens a UDP socket at an address.
func udpFrom(t *testing.T, addr string) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// exchange sends a datagram and returns the answer, or "" where none has come by the time that the server
// answers the witness, whose datagram it gets after this one.
func exchange(t *testing.T, conn *net.UDPConn, to netip.AddrPort, datagram []byte, witness *packets) string {
	t.Helper()
	if _, err := conn.WriteToUDPAddrPort(datagram, to); err != nil {
		t.Fatal(err)
	}
	if came, err := witness.ask(kindEcho, 77, minPacket, 20*time.Second); !came || err != nil {
		t.Fatalf("the witness: %v, %v", came, err)
	}
	// On loopback, what the server wrote before is here by now.
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, maxPacket)
	n, _, err := conn.ReadFromUDPAddrPort(buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// The server answers UDP only to an authenticated client, and with no more than it got.
func TestUDPAnswers(t *testing.T) {
	s := serve(t, nil)
	c := newClient(testToken, nil)
	to := s.Addrs()[0]
	witness, err := c.openPackets(t.Context(), to, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer witness.close()
	datagram := func(cookie string, kind byte, size int) []byte {
		b := make([]byte, size)
		putHeader(b, []byte(cookie), kind, 5)
		return b
	}
	own := string(witness.ctl.Cookie)
	other := strings.Repeat("x", cookieLen)
	for name, c := range map[string]struct {
		from     string
		datagram []byte
		want     int // bytes
	}{
		"empty":                         {"127.0.0.1", nil, 0},
		"a byte":                        {"127.0.0.1", []byte("e"), 0},
		"cut off":                       {"127.0.0.1", datagram(own, kindEcho, headerLen)[:headerLen-1], 0},
		"no cookie":                     {"127.0.0.1", datagram(other, kindEcho, 100), 0},
		"no cookie, probe":              {"127.0.0.1", datagram(other, kindProbe, 100), 0},
		"cookie from another address":   {"127.0.0.3", datagram(own, kindEcho, 100), 0},
		"probe from another address":    {"127.0.0.3", datagram(own, kindProbe, 1400), 0},
		"another server's address":      {"127.0.0.2", datagram(own, kindEcho, 100), 0},
		"unknown kind":                  {"127.0.0.1", datagram(own, 'x', 100), 0},
		"counted":                       {"127.0.0.1", datagram(own, kindCount, 100), 0},
		"echo":                          {"127.0.0.1", datagram(own, kindEcho, 100), 100},
		"the least echo":                {"127.0.0.1", datagram(own, kindEcho, headerLen), headerLen},
		"probe, answered by its header": {"127.0.0.1", datagram(own, kindProbe, 1400), headerLen},
	} {
		t.Run(name, func(t *testing.T) {
			got := exchange(t, udpFrom(t, c.from), to, c.datagram, witness)
			if len(got) != c.want || !strings.HasPrefix(string(c.datagram), got) {
				t.Errorf("answered by %d bytes %q, want %d", len(got), got, c.want)
			}
		})
	}
	// A cookie belongs to its job: it ends with it, and is good for no other door.
	job, err := c.openPackets(t.Context(), to, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	ended := datagram(string(job.ctl.Cookie), kindEcho, 100)
	conn := udpFrom(t, "127.0.0.1")
	if got := exchange(t, conn, to, ended, witness); got != string(ended) {
		t.Errorf("%q, want an answer", got)
	}
	if err := job.ctl.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	expectClosed(t, job.ctl, 0)
	job.close()
	if got := exchange(t, conn, to, ended, witness); got != "" {
		t.Errorf("%q after the job's end, want no answer", got)
	}
	elsewhere, err := c.openPackets(t.Context(), s.Addrs()[1], time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.close()
	if got := exchange(t, conn, s.Addrs()[1], datagram(own, kindEcho, 100), elsewhere); got != "" {
		t.Errorf("%q through another door, want no answer", got)
	}
}

// What a client may order has limits, and an order that is none does not end the job.
func TestOrdersBeyondLimits(t *testing.T) {
	s := serve(t, func(s *Server) { s.cfg.Rate = 10e6 })
	c := newClient(testToken, nil)
	silent := open(t, c, s.Addrs()[0], jobPacket)
	good := order{Do: orderSend, Size: 100, Count: 10, PerSecond: 1000}
	if _, err := silent.order(good); err == nil || !strings.Contains(err.Error(), "datagram") {
		t.Errorf("a stream to a client that sent no datagram yet: %v", err)
	}
	p, err := c.openPackets(t.Context(), s.Addrs()[0], time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	for _, o := range []order{
		{},
		{Do: "unknown"},
		{Do: orderCount},
		{Do: orderCount, Count: -1},
		{Do: orderCount, Count: maxPacketRate + 1},
		{Do: orderProbe, Size: minPacket - 1},
		{Do: orderProbe, Size: maxPacket + 1},
		{Do: orderProbe, Size: -1},
		{Do: orderSend, Size: 100, Count: 10},
		{Do: orderSend, Size: 100, PerSecond: 10},
		{Do: orderSend, Size: 100, PerSecond: 10, Count: -10},
		{Do: orderSend, Size: 100, PerSecond: 10, Count: 11},                // more than a second's
		{Do: orderSend, Size: 100, PerSecond: maxPacketRate + 1, Count: 10}, // too fast
		{Do: orderSend, Size: usualMTU + 1, PerSecond: 10, Count: 10},
		{Do: orderSend, Size: minPacket - 1, PerSecond: 10, Count: 10},
		{Do: orderSend, Size: 1300, PerSecond: 1000, Count: 10}, // more than the server's limit
	} {
		if a, err := p.ctl.order(o); err == nil {
			t.Errorf("%+v: obeyed with %+v", o, a)
		}
	}
	if a, err := p.ctl.order(good); err != nil || a.Sent != 10 {
		t.Errorf("after all that: %+v, %v", a, err)
	}
}
