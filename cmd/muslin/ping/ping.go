// Package ping asks another node, or a pod there, for ICMP echoes over the overlay: how long they take, how many are lost,
// how large they may be, and which way they go and come. Whatever answers an echo can be asked: a flannel node as well.
package ping

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"time"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/neighbour"
	"muslin/cmd/muslin/overlay"
	"muslin/tunnel/way"
)

// Options are the command's flags.
type Options struct {
	Count    int // 0: until ctx ends
	Interval time.Duration
	Timeout  time.Duration // for an answer
	Size     int           // bytes, of the IP packet
	Sweep    bool
}

// DefaultSize is ping(8)'s packet of IPv4, bytes.
const DefaultSize = 84

// MaxSize is the largest IP packet.
const MaxSize = 65535

// Report is what came of it.
type Report struct {
	Address string `json:"address"`
	From    string `json:"from"`
	Holder  string `json:"holder"` // "peer", "this-node", or "nobody"
	Subnet  string `json:"subnet"` // of the peer
	Size    int    `json:"size"`   // bytes, of the IP packets
	Stats
	Echoes []Echo `json:"echoes"`
	There  Way    `json:"there"` // this node's way to it
	Back   Way    `json:"back"`  // the peer's way to this node, as it says itself
	Sweep  *Sweep `json:"sweep"` // null: not asked for
}

// Way is one direction's.
type Way struct {
	Known   bool     `json:"known"`
	Why     string   `json:"why"` // it is not known
	Way     string   `json:"way"` // as in `muslin route`
	Reason  string   `json:"reason"`
	NextHop string   `json:"next_hop"` // where a packet, or its datagram, is sent
	Device  string   `json:"device"`
	MTU     int      `json:"mtu"` // bytes, inner: what the daemon there believes that this way takes
	MTURule string   `json:"mtu_rule"`
	Up      *bool    `json:"up"` // what that node says of the other one; null: it does not know
	Notes   []string `json:"notes"`
}

// Ping pings a place. It tells of each echo on w, if that is not nil, and returns the report also when ctx ends.
func Ping(ctx context.Context, n *overlay.Network, to overlay.Place, o Options, w io.Writer) (*Report, error) {
	six := to.Addr.Is6()
	from := n.Own(six)
	p, err := newPinger(from, six)
	if err != nil {
		return nil, err
	}
	defer p.close()
	size := o.Size
	if size == 0 {
		size = DefaultSize + headersOf(to.Addr) - headers4
	}
	if size < headersOf(to.Addr) {
		return nil, fmt.Errorf("--size %d: a packet has %d bytes at least", size, headersOf(to.Addr))
	}
	r := &Report{Address: to.Addr.String(), Size: size, Holder: "nobody", Echoes: []Echo{}}
	switch {
	case to.Own:
		r.Holder = "this-node"
	case to.Peer != nil:
		r.Holder, r.Subnet = "peer", to.Peer.Subnet
	}
	route, err := control.AskRoute(ctx, n.Socket, n.Name, to.Addr)
	if err != nil {
		return nil, err
	}
	r.There = there(route)
	if r.From = from.String(); !from.IsValid() {
		r.From = route.Kernel.Source
	}
	if w != nil {
		r.begin(w, to)
	}
	var back sync.WaitGroup
	defer back.Wait()
	back.Go(func() { r.Back = wayBack(ctx, n, to) })
	r.Echoes = loop(ctx, p, to.Addr, size, o, w)
	p.mu.Lock()
	again := p.again
	p.mu.Unlock()
	r.Stats = summarize(r.Echoes, again)
	if o.Sweep && ctx.Err() == nil {
		r.Sweep = p.sweepBoth(ctx, n, to, max(route.MTU, route.Kernel.MTU), o.Timeout)
	}
	back.Wait()
	if w != nil {
		r.end(w)
	}
	return r, nil
}

// loop sends requests at the interval; each is waited for by itself.
func loop(ctx context.Context, p *pinger, to netip.Addr, size int, o Options, w io.Writer) []Echo {
	var mu sync.Mutex
	var all []Echo
	var wait sync.WaitGroup
	for seq := 1; o.Count == 0 || seq <= o.Count; seq++ {
		mu.Lock()
		all = append(all, Echo{Seq: seq, Size: size, Why: stopped})
		mu.Unlock()
		wait.Go(func() {
			e := p.echo(ctx, to, size, o.Timeout)
			e.Seq = seq
			mu.Lock()
			defer mu.Unlock()
			all[seq-1] = e
			if w != nil && e.Why != stopped {
				e.print(w)
			}
		})
		if seq == o.Count || !sleep(ctx.Done(), o.Interval) {
			break
		}
	}
	wait.Wait()
	return all
}

// there is this node's way.
func there(a *control.RouteAnswer) Way {
	w := Way{Known: true, Way: a.Way, Reason: a.Reason, NextHop: a.NextHop, Device: a.Device, MTU: a.MTU, MTURule: a.MTURule, Notes: a.Notes}
	if a.Peer != nil {
		w.Up = a.Peer.Up
	}
	return w
}

// wayBack is the peer's way to this node, if it tells.
func wayBack(ctx context.Context, n *overlay.Network, to overlay.Place) Way {
	switch {
	case to.Own:
		return Way{Why: "it is this node itself", Notes: []string{}}
	case to.Peer == nil:
		return Way{Why: "nobody holds the address", Notes: []string{}}
	}
	about, err := AskAbout(ctx, n, to.Peer)
	if err != nil {
		return Way{Why: err.Error(), Notes: []string{}}
	}
	w := Way{Known: true, Notes: []string{}, MTU: about.MTU, MTURule: control.MTUOverlay}
	you := about.You
	if you == nil {
		return Way{Why: "the peer has no lease of this node", Notes: []string{}}
	}
	w.Way, w.Reason, w.NextHop, w.Up = you.Way, you.WayReason, you.PublicIP, you.Up
	if to, err := netip.ParseAddr(you.PublicIP); err == nil && you.Way == string(way.Encapsulated) {
		port := about.Port
		if to.Is6() {
			port = about.Port6
		}
		w.NextHop = netip.AddrPortFrom(to, port).String()
	}
	if you.Endpoint != "" {
		w.NextHop = you.Endpoint
	}
	if you.PathMTU != 0 {
		w.MTU, w.MTURule = you.PathMTU, control.MTUPath
	}
	return w
}

// ErrHostGateway is why a node cannot be asked.
var ErrHostGateway = errors.New("with host-gw a node has no address of its own in the overlay to be asked at")

// AskAbout asks a peer what it says of itself and of us, by the one family or the other.
func AskAbout(ctx context.Context, n *overlay.Network, p *control.PeerStatus) (*neighbour.About, error) {
	err := ErrHostGateway
	for _, q := range n.Asked(p) {
		var about neighbour.About
		if err = neighbour.Ask(ctx, q.From, q.To, neighbour.AboutPath, &about); err == nil {
			return &about, nil
		}
	}
	return nil, err
}

// Answered reports whether every request was.
func (r *Report) Answered() bool { return r.Sent > 0 && r.Received == r.Sent }
