package neighbour

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"muslin/tunnel/fib"
)

// What one peer, and all of them together, may ask.
const (
	perPeer    = 4 // connections at once
	perServer  = 32
	peerRate   = 10 // connections a second, in the long run
	peerBurst  = 30
	totalRate  = 100
	totalBurst = 300

	maxRemembered = 4096 // peers with a rate of their own
)

// reserved is the first port that anybody may have: below it takes CAP_NET_BIND_SERVICE.
const reserved = 1024

// guard takes connections of peers alone, and not too many of them. It is a net.Listener.
type guard struct {
	net.Listener
	peer func(netip.Addr) *fib.Peer

	mu    sync.Mutex
	total *rate.Limiter
	open  int
	by    map[netip.Addr]*visitor
}

// visitor is a peer that has asked.
type visitor struct {
	rate *rate.Limiter
	open int
}

func newGuard(l net.Listener, peer func(netip.Addr) *fib.Peer) *guard {
	return &guard{Listener: l, peer: peer, total: rate.NewLimiter(totalRate, totalBurst), by: make(map[netip.Addr]*visitor)}
}

// Accept implements net.Listener. A connection of anybody else is closed without a word.
func (g *guard) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := addrPort(c.RemoteAddr())
		if g.admits(from) && g.enter(from.Addr(), time.Now()) {
			return &guarded{Conn: c, leave: sync.OnceFunc(func() { g.leave(from.Addr()) })}, nil
		}
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // a reset, at once
		}
		c.Close()
	}
}

// admits reports whether an address is a peer's own, and whoever sends from it root there.
func (g *guard) admits(from netip.AddrPort) bool {
	p := g.peer(from.Addr())
	return p != nil && p.Subnet.Addr() == from.Addr() && from.Port() < reserved
}

func (g *guard) enter(from netip.Addr, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	v := g.by[from]
	if v == nil {
		if len(g.by) >= maxRemembered {
			g.forget(now)
		}
		if len(g.by) >= maxRemembered {
			return false
		}
		v = &visitor{rate: rate.NewLimiter(peerRate, peerBurst)}
		g.by[from] = v
	}
	if v.open >= perPeer || g.open >= perServer || !v.rate.AllowN(now, 1) || !g.total.AllowN(now, 1) {
		return false
	}
	v.open++
	g.open++
	return true
}

// forget drops the peers that have been away for long enough to have their whole burst again.
func (g *guard) forget(now time.Time) {
	for from, v := range g.by {
		if v.open == 0 && v.rate.TokensAt(now) >= peerBurst {
			delete(g.by, from)
		}
	}
}

func (g *guard) leave(from netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open--
	g.by[from].open--
}

// guarded is a connection that counts until it is closed.
type guarded struct {
	net.Conn
	leave func()
}

func (c *guarded) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		p := t.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}
