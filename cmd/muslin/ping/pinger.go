package ping

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Echo is what came of one request.
type Echo struct {
	Seq  int           `json:"seq"` // from 1
	Size int           `json:"size"`
	From string        `json:"from"` // who answered, or sent the error; empty: nobody
	TTL  int           `json:"ttl"`
	RTT  time.Duration `json:"-"`
	US   float64       `json:"rtt_us"` // microseconds; 0: no answer
	Why  string        `json:"why"`    // there was none; empty: it was answered
	MTU  int           `json:"mtu"`    // that an ICMP error gave; 0: none did
}

func (e *Echo) answered() bool { return e.Why == "" }

// pinger sends requests of one family from one address, and tells the answers apart.
type pinger struct {
	sock *socket
	from netip.Addr

	mu      sync.Mutex
	seq     uint16
	waiting map[uint16]chan reply
	again   int // answers that nobody waited for: duplicates, and late ones

	ended chan struct{}
}

func newPinger(from netip.Addr, six bool) (*pinger, error) {
	sock, err := open(from, six)
	if err != nil {
		return nil, err
	}
	p := &pinger{sock: sock, from: from, waiting: make(map[uint16]chan reply), ended: make(chan struct{})}
	go p.receive()
	return p, nil
}

func (p *pinger) close() {
	p.sock.close()
	<-p.ended
}

func (p *pinger) receive() {
	defer close(p.ended)
	buf := make([]byte, 1<<16)
	for {
		r, err := p.sock.receive(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an error that the kernel had for this socket, such as a route that is gone
		}
		p.mu.Lock()
		if c := p.waiting[r.seq]; c != nil {
			delete(p.waiting, r.seq)
			c <- r // has room
		} else if r.why == "" {
			p.again++
		}
		p.mu.Unlock()
	}
}

// echo sends one request and waits for the answer, so long at most.
func (p *pinger) echo(ctx context.Context, to netip.Addr, size int, limit time.Duration) Echo {
	c := make(chan reply, 1)
	p.mu.Lock()
	p.seq++
	seq := p.seq
	p.waiting[seq] = c
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.waiting, seq)
		p.mu.Unlock()
	}()
	e := Echo{Size: size}
	sent := time.Now()
	if err := p.sock.send(to, seq, size); err != nil {
		e.Why = explainSend(err)
		return e
	}
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case r := <-c:
		e.From, e.TTL, e.Why, e.MTU = r.from.String(), r.ttl, r.why, r.mtu
		if e.RTT = r.at.Sub(sent); e.Why == "" {
			e.US = float64(e.RTT) / float64(time.Microsecond)
		}
	case <-late.C:
		e.Why = fmt.Sprintf("no answer within %v", limit)
	case <-ctx.Done():
		e.Why = stopped
	}
	return e
}

// stopped is Echo.Why of a request that nobody waited for any longer.
const stopped = "stopped"

func explainSend(err error) string {
	switch {
	case errors.Is(err, unix.EMSGSIZE):
		return "longer than this host's device takes"
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return "this host has no route to it"
	case errors.Is(err, unix.EPERM):
		return "this host's firewall refuses it (OUTPUT)"
	}
	return err.Error()
}

// Alive reports whether an address answers one of two pings, of this host's own; nil: they cannot be sent.
func Alive(ctx context.Context, to netip.Addr, limit time.Duration) *bool {
	p, err := newPinger(netip.Addr{}, to.Is6())
	if err != nil {
		return nil
	}
	defer p.close()
	alive := false
	for range 2 {
		e := p.echo(ctx, to, DefaultSize, limit/2)
		alive = alive || e.answered()
	}
	return &alive
}
