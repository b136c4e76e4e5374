package wireguard

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"muslin/lease"
	"muslin/tunnel"
	"muslin/tunnel/fib"
	"muslin/tunnel/racetest"
)

const testMTU = 1420

// end is a node on loopback: 10.0.N.0/24. Its workers stand in for the VTEP's: out has what comes from its TUN device,
// and in what goes there.
type end struct {
	*Underlay
	number byte
	out    chan []tunnel.Message
	sent   chan error
	in     chan []byte

	mu    sync.Mutex
	pause chan struct{} // closed while the TUN device is paused

	closing sync.Once
}

func (e *end) drive() {
	queue := e.Queues()[0]
	e.Drive(tunnel.Workers{
		Outbound: func() error {
			e.mu.Lock()
			paused := e.pause
			e.mu.Unlock()
			select {
			case ms, ok := <-e.out:
				if !ok {
					return os.ErrClosed
				}
				e.sent <- queue.Send(ms)
				return nil
			case <-paused:
				return os.ErrDeadlineExceeded
			}
		},
		Inbound: func(ds []tunnel.Datagram) {
			for _, d := range ds {
				e.in <- bytes.Clone(d.Buf)
			}
		},
	})
}

// Pause is a VTEP's: first the TUN device.
func (e *end) Pause() error {
	e.mu.Lock()
	select {
	case <-e.pause:
	default:
		close(e.pause)
	}
	e.mu.Unlock()
	return e.Underlay.Pause()
}

func (e *end) Resume() error {
	e.mu.Lock()
	e.pause = make(chan struct{})
	e.mu.Unlock()
	return e.Underlay.Resume()
}

func (e *end) Close() error {
	e.closing.Do(func() { close(e.out) })
	return e.Underlay.Close()
}

func open(t *testing.T, number byte, change func(*Config)) *end {
	t.Helper()
	key, _, err := LoadKey(t.TempDir() + "/key")
	if err != nil {
		t.Fatal(err)
	}
	return openWith(t, number, key, change)
}

func openWith(t *testing.T, number byte, key PrivateKey, change func(*Config)) *end {
	t.Helper()
	cfg := Config{Key: key, Port: 45000 + uint16(number), MTU: testMTU, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
	if change != nil {
		change(&cfg)
	}
	u, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	e := &end{
		Underlay: u, number: number, out: make(chan []tunnel.Message), sent: make(chan error), in: make(chan []byte, 4096),
		pause: make(chan struct{}),
	}
	if cfg.Paused {
		close(e.pause)
	}
	e.drive()
	t.Cleanup(func() { e.Close() })
	return e
}

func (e *end) peer() *fib.Peer {
	return &fib.Peer{
		Subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, e.number, 0}), 24),
		PublicIP: netip.AddrFrom4([4]byte{127, 0, 0, 1}), Backend: lease.BackendWireGuard,
		Key: e.cfg.Key.Public(), Port: 45000 + uint16(e.number), Counters: new(fib.Counters)}
}

// meet makes each the other's peer.
func meet(ends ...*end) {
	for _, e := range ends {
		var peers []*fib.Peer
		for _, o := range ends {
			if o != e {
				peers = append(peers, o.peer())
			}
		}
		e.SetPeers(fib.New(peers), func() {})
	}
}

// packet is one of n bytes from one node's subnet to another's.
func packet(from, to byte, n int, id uint32) []byte {
	p := make([]byte, n)
	p[0], p[8], p[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(p[2:], uint16(n))
	copy(p[12:], []byte{10, 0, from, 7})
	copy(p[16:], []byte{10, 0, to, 7})
	binary.BigEndian.PutUint32(p[20:], id)
	for i := 24; i < n; i++ {
		p[i] = byte(i) ^ byte(id)
	}
	return p
}

// message has packets of one length, in pieces of odd lengths.
func message(packets ...[]byte) tunnel.Message {
	whole := bytes.Join(packets, nil)
	m := tunnel.Message{Len: len(whole), Size: len(packets[0]), Segments: len(packets)}
	for n := 1; len(whole) > 0; n = n*3 + 1 {
		n = min(n, len(whole))
		m.Bufs = append(m.Bufs, whole[:n])
		whole = whole[n:]
	}
	return m
}

func (e *end) send(t *testing.T, packets ...[]byte) {
	t.Helper()
	e.sendAll(t, message(packets...))
}

func (e *end) sendAll(t *testing.T, ms ...tunnel.Message) {
	t.Helper()
	e.out <- ms
	if err := <-e.sent; err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, came <-chan []byte, packets ...[]byte) {
	t.Helper()
	for i, p := range packets {
		select {
		case got := <-came:
			if !bytes.Equal(got, p) {
				t.Fatalf("packet %d: %d bytes % x, want %d bytes % x", i, len(got), got[:24], len(p), p[:24])
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("packet %d of %d did not come", i, len(packets))
		}
	}
}

func TestPacketsCross(t *testing.T) {
	a, b := open(t, 1, nil), open(t, 2, nil)
	meet(a, b)
	fromA, fromB := b.in, a.in
	a.send(t, packet(1, 2, testMTU, 0))
	want(t, fromA, packet(1, 2, testMTU, 0))
	b.send(t, packet(2, 1, 28, 0))
	want(t, fromB, packet(2, 1, 28, 0))
	var all [][]byte
	for id := range uint32(500) {
		all = append(all, packet(1, 2, 100+int(id), id))
		a.send(t, all[id])
	}
	want(t, fromA, all...)
	var run [][]byte
	for id := range uint32(300) { // more than the engine takes at once
		run = append(run, packet(1, 2, 120, id))
	}
	run = append(run, packet(1, 2, 61, 300)) // the last one is shorter
	a.sendAll(t, message(run...), message(packet(1, 2, 99, 301)))
	want(t, fromA, append(run, packet(1, 2, 99, 301))...)

	sessions, err := a.Sessions()
	s := sessions[b.cfg.Key.Public().String()]
	if err != nil || len(sessions) != 1 || s.Endpoint != "127.0.0.1:45002" || time.Since(s.Handshake) > time.Minute {
		t.Errorf("%+v, %v", sessions, err)
	}
}

// soon is when the engine takes the next handshake of a peer: until then it counts as a flood.
const soon = 30 * time.Millisecond

// A node that is paused loses its session, and makes another at once when it goes on; so does a new process with its key.
func TestGoesOnAfterPause(t *testing.T) {
	key := func() PrivateKey {
		k, _, err := LoadKey(t.TempDir() + "/key")
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	small, great := key(), key()
	if compareKeys(small.Public(), great.Public()) > 0 {
		small, great = great, small
	}
	t.Run("greets first", func(t *testing.T) { testGoesOn(t, great, small) })
	t.Run("is greeted", func(t *testing.T) { testGoesOn(t, small, great) })
}

func testGoesOn(t *testing.T, ofA, ofB PrivateKey) {
	a, b := openWith(t, 1, ofA, nil), openWith(t, 2, ofB, nil)
	meet(a, b)
	came := b.in
	a.send(t, packet(1, 2, 100, 0))
	want(t, came, packet(1, 2, 100, 0))
	if err := b.Pause(); err != nil {
		t.Fatal(err)
	}
	successor := openWith(t, 2, b.cfg.Key, func(c *Config) { c.Paused = true })
	meet(a, successor)
	for range 2 { // again changes nothing
		if err := successor.Pause(); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(soon)
	go successor.Run(t.Context())
	begun := time.Now()
	if err := successor.Resume(); err != nil {
		t.Fatal(err)
	}
	came = successor.in
	for id := uint32(1); ; id++ {
		a.send(t, packet(1, 2, 100, id))
		select {
		case <-came:
			t.Logf("heard after %v", time.Since(begun))
			return
		case <-time.After(5 * time.Millisecond):
		}
		if time.Since(begun) > 5*time.Second {
			t.Fatal("the successor hears nothing")
		}
	}
}

// While a node is paused nothing leaves its TUN device and nobody waits for it, neither who sends to it nor its own end.
func TestPausedDoesNotBlock(t *testing.T) {
	a, b := open(t, 1, nil), open(t, 2, nil)
	meet(a, b)
	a.send(t, packet(1, 2, 100, 0))
	want(t, b.in, packet(1, 2, 100, 0))
	b.send(t, packet(2, 1, 100, 0))
	want(t, a.in, packet(2, 1, 100, 0))
	if err := a.Pause(); err != nil {
		t.Fatal(err)
	}
	b.send(t, packet(2, 1, 100, 1)) // is lost
	select {
	case a.out <- []tunnel.Message{message(packet(1, 2, 100, 1))}:
		t.Error("a packet left the TUN device")
	case <-time.After(soon):
	}
	if err := a.Resume(); err != nil {
		t.Fatal(err)
	}
	a.send(t, packet(1, 2, 100, 2))
	want(t, b.in, packet(1, 2, 100, 2))
	if len(a.in) != 0 {
		t.Error("a packet came in while paused")
	}

	// Closed while somebody sends, and again.
	for range 100 {
		b.send(t, packet(2, 1, 1000, 3))
	}
	ended := make(chan error, 1)
	go func() { ended <- errors.Join(a.Close(), a.Close()) }()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Close waits")
	}
	if err := a.Queues()[0].Send([]tunnel.Message{message(packet(1, 2, 100, 4))}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Send after Close: %v", err)
	}
	a.SetMTU(1300) // of a closed one changes nothing
}

func TestPortTaken(t *testing.T) {
	a := open(t, 1, nil)
	_, err := Open(Config{Key: a.cfg.Key, Port: a.cfg.Port, MTU: testMTU, Logger: a.cfg.Logger})
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("%v", err)
	}
}

// A node that goes on while another process still has its port does so when that is gone.
func TestResumeWaitsForItsPort(t *testing.T) {
	a, b := open(t, 1, nil), open(t, 2, nil)
	meet(a, b)
	if err := b.Pause(); err != nil {
		t.Fatal(err)
	}
	hung := openWith(t, 2, b.cfg.Key, nil)
	if err := b.Resume(); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("%v", err)
	}
	time.Sleep(2 * upRetry)
	if err := hung.Close(); err != nil {
		t.Fatal(err)
	}
	for begun, id := time.Now(), uint32(0); len(b.in) == 0; id++ {
		a.send(t, packet(1, 2, 100, id))
		time.Sleep(10 * time.Millisecond)
		if time.Since(begun) > 20*time.Second {
			t.Fatal("it hears nothing")
		}
	}

	// Paused meanwhile it stays so.
	if err := b.Pause(); err != nil {
		t.Fatal(err)
	}
	hung = openWith(t, 2, b.cfg.Key, nil)
	if err := b.Resume(); err == nil {
		t.Error("two have the port")
	}
	if err := b.Pause(); err != nil {
		t.Fatal(err)
	}
	hung.Close()
	time.Sleep(2 * upRetry)
	openWith(t, 2, b.cfg.Key, nil) // has the port
}

// The engine's peers are the table's: by key, with what is behind it, where the lease says.
func TestPeersFollowTheTable(t *testing.T) {
	var log bytes.Buffer
	u := open(t, 1, func(c *Config) {
		c.PSK, c.Keepalive = lease.PresharedKey{1}, 25*time.Second
		c.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	key := func(n byte) fib.PublicKey { return fib.PublicKey{n, 31: 1} }
	peer := func(subnet, publicIP string, k fib.PublicKey, port uint16) *fib.Peer {
		return &fib.Peer{Subnet: netip.MustParsePrefix(subnet), PublicIP: netip.MustParseAddr(publicIP), Key: k, Port: port, Counters: new(fib.Counters)}
	}
	check := func(what string, peers []*fib.Peer, want ...string) {
		t.Helper()
		used := false
		u.SetPeers(fib.New(peers), func() { used = true })
		text, err := u.dev.IpcGet()
		if err != nil || !used {
			t.Fatal(err, used)
		}
		var got []string
		for _, block := range strings.Split(text, "public_key=")[1:] {
			line := block[:2]
			for _, field := range []string{"endpoint", "allowed_ip"} {
				for _, l := range strings.Split(block, "\n") {
					if value, ok := strings.CutPrefix(l, field+"="); ok {
						line += " " + value
					}
				}
			}
			if !strings.Contains(block, "persistent_keepalive_interval=25\n") || !strings.Contains(block, "preshared_key=01000000") {
				t.Errorf("%s: %s", what, block)
			}
			got = append(got, line)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	two := peer("10.0.2.0/24", "192.0.2.2", key(2), 4500)
	check("one", []*fib.Peer{two}, "02 192.0.2.2:4500 10.0.2.0/24")
	check("two, one of them without a port", []*fib.Peer{two, peer("10.0.3.0/24", "192.0.2.3", key(3), 0)},
		"02 192.0.2.2:4500 10.0.2.0/24", "03 192.0.2.3:45001 10.0.3.0/24")
	check("a new key", []*fib.Peer{peer("10.0.2.0/24", "192.0.2.2", key(4), 4500)}, "04 192.0.2.2:4500 10.0.2.0/24")
	check("another address", []*fib.Peer{peer("10.0.2.0/24", "192.0.2.9", key(4), 4500)}, "04 192.0.2.9:4500 10.0.2.0/24")
	check("two subnets of one host", []*fib.Peer{peer("10.0.2.0/24", "192.0.2.9", key(4), 4500), peer("10.0.5.0/24", "192.0.2.9", key(4), 4500)},
		"04 192.0.2.9:4500 10.0.2.0/24 10.0.5.0/24")
	check("the subnet is another's", []*fib.Peer{peer("10.0.2.0/24", "192.0.2.7", key(7), 4500), peer("10.0.5.0/24", "192.0.2.9", key(4), 4500)},
		"04 192.0.2.9:4500 10.0.5.0/24", "07 192.0.2.7:4500 10.0.2.0/24")
	if u.Shared() != "" || log.Len() != 0 {
		t.Errorf("%q\n%s", u.Shared(), log.String())
	}
	clones := []*fib.Peer{peer("10.0.2.0/24", "192.0.2.7", key(7), 4500), peer("10.0.5.0/24", "192.0.2.9", key(7), 4500)}
	for range 2 {
		check("two hosts with one key", clones, "07 192.0.2.7:4500 10.0.2.0/24")
	}
	if s := u.Shared(); !strings.Contains(s, "192.0.2.7 and 192.0.2.9") || strings.Count(log.String(), "two peers have one WireGuard key") != 1 {
		t.Errorf("%q\n%s", s, log.String())
	}
	check("nobody", nil)
	if u.Shared() != "" {
		t.Error(u.Shared())
	}
}

func TestSessionsAreRead(t *testing.T) {
	one := strings.Repeat("01", 32)
	got := parseSessions("private_key=00\nlisten_port=1\npublic_key=" + one + "\nendpoint=192.0.2.1:51820\nlast_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\nrx_bytes=7\npublic_key=zz\nendpoint=x\npublic_key=" +
		strings.Repeat("02", 32) + "\nlast_handshake_time_sec=0\nlast_handshake_time_nsec=0\n\n")
	if len(got) != 2 || got["AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="] != (Session{Endpoint: "192.0.2.1:51820", Handshake: time.Unix(1700000000, 5)}) ||
		!got["AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="].Handshake.IsZero() {
		t.Errorf("%+v", got)
	}
}

// Neither way costs an allocation in the pipe, also where a batch has more packets than the engine takes at once.
func TestPipeDoesNotAllocate(t *testing.T) {
	if racetest.Enabled {
		t.Skip("the race detector allocates")
	}
	var p pipe
	p.init(testMTU)
	defer p.end()
	var run [][]byte
	for id := range uint32(300) {
		run = append(run, packet(1, 2, 1000, id))
	}
	last := packet(1, 2, 77, 300)
	all := append(slices.Clone(run), last)
	ms := []tunnel.Message{message(run...), message(last)}
	received := 0
	p.workers = tunnel.Workers{
		Outbound: func() error { return p.Send(ms) },
		Inbound:  func(ds []tunnel.Datagram) { received += len(ds) },
	}
	close(p.driven)
	bufs, sizes := make([][]byte, 128), make([]int, 128)
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	if n := testing.AllocsPerRun(100, func() {
		for at := 0; at < len(all); {
			n, err := p.Read(bufs, sizes, 16)
			if err != nil {
				t.Fatal(err)
			}
			for i := range n {
				if !bytes.Equal(bufs[i][16:16+sizes[i]], all[at]) {
					t.Fatalf("packet %d is another", at)
				}
				at++
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations for each batch out", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		if n, err := p.Write(run[:100], 0); n != 100 || err != nil {
			t.Fatal(n, err)
		}
	}); n != 0 || received != 101*100 {
		t.Errorf("%v allocations for each batch in, %d packets", n, received)
	}
}
