package neighbour

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"muslin/tunnel/fib"
)

// Two nodes on the loopback network: each is the base of a /32 there.
var (
	here  = netip.MustParseAddr("127.77.0.1")
	there = netip.MustParseAddr("127.77.0.2")
	other = netip.MustParseAddr("127.77.0.3")
)

func tableOf(bases ...netip.Addr) *fib.Table {
	var peers []*fib.Peer
	for _, b := range bases {
		bits := 24
		if b.IsLoopback() {
			bits = 32
		}
		p := &fib.Peer{Subnet: netip.PrefixFrom(b, bits), PublicIP: netip.MustParseAddr("192.0.2.1"), Counters: new(fib.Counters)}
		if b.Is6() {
			p.PublicIP = netip.MustParseAddr("2001:db8::1")
		}
		peers = append(peers, p)
	}
	return fib.New(peers)
}

// serve runs a server at there that takes here for its peer.
func serve(t *testing.T, change func(*Config)) {
	t.Helper()
	table := tableOf(here)
	cfg := Config{
		Peer:  table.Lookup,
		About: func(asker *fib.Peer) *About { return &About{Version: "v", You: &Peer{Subnet: asker.Subnet.String()}} },
		Peers: func() []PeerState { return nil },
	}
	if change != nil {
		change(&cfg)
	}
	l, err := Listen(t.Context(), there, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- NewServer(cfg).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

func TestAsk(t *testing.T) {
	serve(t, nil)
	var a About
	if err := Ask(t.Context(), here, there, AboutPath, &a); err != nil || a.Version != "v" || a.You == nil || a.You.Subnet != "127.77.0.1/32" {
		t.Errorf("about: %+v, %v", a, err)
	}
	var p Peers
	if err := Ask(t.Context(), here, there, PeersPath, &p); err != nil || p.Peers == nil || len(p.Peers) != 0 {
		t.Errorf("peers: %+v, %v", p, err)
	}
	for what, err := range map[string]error{
		"a question that is not known": Ask(t.Context(), here, there, "/v1/nothing", &a),
		"by no peer":                   Ask(t.Context(), other, there, AboutPath, &a),
		"of nobody":                    Ask(t.Context(), here, other, AboutPath, &a),
	} {
		if !errors.Is(err, ErrNobody) {
			t.Errorf("%s: %v, want %v", what, err, ErrNobody)
		}
	}
}

// A connection that the kernel takes, and no daemon answers on, says that the way is in order.
func TestAskLate(t *testing.T) {
	l, err := Listen(t.Context(), there, "") // which nobody accepts from
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := Ask(ctx, here, there, AboutPath, new(About)); !errors.Is(err, ErrLate) || errors.Is(err, ErrSilent) {
		t.Errorf("%v, want %v", err, ErrLate)
	}
}

func TestAdmits(t *testing.T) {
	g := newGuard(nil, tableOf(netip.MustParseAddr("10.1.1.0"), netip.MustParseAddr("fd00::")).Lookup)
	for from, want := range map[string]bool{
		"10.1.1.0:1023":    true,
		"10.1.1.0:1024":    false,
		"10.1.1.1:900":     false, // in the peer's subnet: its bridge, or a pod
		"10.1.2.0:900":     false,
		"[fd00::]:900":     true,
		"[fd00::]:4000":    false,
		"[fd00::1]:900":    false,
		"192.0.2.1:900":    false, // its PublicIP
		"[2001:db8::1]:80": false,
	} {
		if got := g.admits(netip.MustParseAddrPort(from)); got != want {
			t.Errorf("%s: %v", from, got)
		}
	}
}

func TestGuardLimits(t *testing.T) {
	now := time.Now()
	g := newGuard(nil, nil)
	for i := range perPeer {
		if !g.enter(here, now) {
			t.Fatalf("connection %d at once is refused", i)
		}
	}
	if g.enter(here, now) {
		t.Error("a peer has one connection more than it may")
	}
	if !g.enter(there, now) {
		t.Error("another peer has none for that")
	}
	g.leave(here)
	if !g.enter(here, now) {
		t.Error("one that has ended counts on")
	}

	g = newGuard(nil, nil)
	n := 0
	for ; g.enter(here, now) && n <= peerBurst; n++ {
		g.leave(here)
	}
	if n != peerBurst {
		t.Errorf("%d connections at a time, want %d", n, peerBurst)
	}
	if later := now.Add(time.Second / peerRate); !g.enter(here, later) {
		t.Error("none after a while either")
	}

	g = newGuard(nil, nil)
	g.total = rate.NewLimiter(rate.Inf, 0)
	a := netip.MustParseAddr("10.0.0.0")
	for range 2 * maxRemembered {
		if !g.enter(a, now) {
			t.Fatal(a, "is refused")
		}
		g.leave(a)
		a, now = a.Next(), now.Add(time.Second/peerRate/1000)
	}
	if len(g.by) > maxRemembered {
		t.Errorf("%d peers are remembered, at most %d should be", len(g.by), maxRemembered)
	}
}

// A lease that is gone while a connection is open is one no more.
func TestPeerGone(t *testing.T) {
	var gone atomic.Bool
	table := tableOf(here)
	serve(t, func(cfg *Config) {
		cfg.Peer = func(a netip.Addr) *fib.Peer {
			if gone.Swap(true) {
				return nil
			}
			return table.Lookup(a)
		}
	})
	err := Ask(t.Context(), here, there, AboutPath, new(About))
	if err == nil || !strings.Contains(err.Error(), "no peer of this node") {
		t.Errorf("%v", err)
	}
}

func TestMorePeers(t *testing.T) {
	p := limited(make([]PeerState, MaxPeers+7))
	if len(p.Peers) != MaxPeers || p.More != 7 {
		t.Errorf("%d and %d more", len(p.Peers), p.More)
	}
}

// A question that is larger than any is not read to its end.
func TestLargeQuestion(t *testing.T) {
	serve(t, nil)
	c, err := dial(t.Context(), here, there)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	go c.Write([]byte("GET " + AboutPath + " HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 10*maxHeader) + "\r\n\r\n"))
	answer := make([]byte, 100)
	n, err := c.Read(answer)
	if want := http.StatusText(http.StatusRequestHeaderFieldsTooLarge); !strings.Contains(string(answer[:n]), want) && !isReset(err) {
		t.Errorf("%q, %v, want %q", answer[:n], err, want)
	}
}

func isReset(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && !op.Timeout()
}
