package doctor

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"muslin/cmd/muslin/doctor/wire"
	"muslin/cmd/muslin/neighbour"
	"muslin/encap"
	"muslin/lease"
)

// try asks one peer in every way at once, and then goes on as long as there is more to learn.
func (p *Patient) try(ctx context.Context, e *evidence, id, number uint16, seen func() map[wire.Sighting]int, more func(*evidence) bool) {
	e.route = p.routeTo(e.peer.outer)
	if e.route.err != nil {
		return
	}
	var all sync.WaitGroup
	all.Go(func() {
		if echoes, err := wire.OpenEchoes(e.peer.six, netip.Addr{}); err == nil {
			defer echoes.Close()
			e.host = echoes.Ask(ctx, askTries, askEvery, []wire.Question{{To: e.peer.outer}})[0]
		}
	})
	all.Go(func() {
		e.alive = wire.Alive(ctx, netip.AddrPortFrom(e.peer.outer, 22), 1200*time.Millisecond)
	})
	var datagrams [][]byte
	from := e.own.outer
	if !e.local {
		from = netip.Addr{}
	}
	if p.vxlanOrUDP() && e.peer.node.Backend == p.Local.Backend {
		vxlan := p.Local.Backend == lease.BackendVXLAN
		datagrams = e.datagrams(vxlan, id, number)
		all.Go(func() { e.made = knock(ctx, from, netip.AddrPortFrom(e.peer.outer, e.port), 3, datagrams) })
		if !e.peer.six {
			all.Go(func() { e.sendUnchecked(ctx, from, vxlan, id, number) })
		}
	} else {
		if e.port != 0 && p.Local.Backend == lease.BackendWireGuard { // which reads none of it, and answers nothing
			all.Go(func() { e.made = knock(ctx, from, netip.AddrPortFrom(e.peer.outer, e.port), 3, nil) })
		}
		all.Go(func() { e.closed = knock(ctx, netip.Addr{}, netip.AddrPortFrom(e.peer.outer, unlikelyPort()), 1, nil) })
	}
	all.Go(func() { e.muslin = p.answersByOther(ctx, e.peer) })
	onLink := e.route
	all.Go(func() { p.ask(ctx, &onLink, e.peer.outer) })
	all.Wait()
	e.route = onLink
	e.route.lookUp(readNeighbours(), e.peer.outer)
	e.heed(seen())
	if e.made.Refused.Port() && e.made.Refused.By == e.peer.outer {
		e.misshapen, _ = wire.Misshapen(ctx, netip.AddrPortFrom(from, e.port), netip.AddrPortFrom(e.peer.outer, e.port), whileMisshapen)
	}
	if datagrams != nil && e.misshapen == nil {
		e.knockElsewhere(ctx, from)
	}
	for more(e) {
		if datagrams != nil {
			k := knock(ctx, from, netip.AddrPortFrom(e.peer.outer, e.port), 1, datagrams[:1])
			e.made.Sent += k.Sent
			e.made.Err = k.Err
			if k.Refused != nil {
				e.made.Refused = k.Refused
			}
			e.heed(seen())
		}
		pause(ctx, 550*time.Millisecond)
	}
}

// answersByOther reports whether the node answers what muslin's nodes answer each other, by its other address family: then it
// runs muslin, and asks us as we ask it.
func (p *Patient) answersByOther(ctx context.Context, h half) bool {
	own, ok := p.ownHalf(!h.six)
	if !ok || !p.Running() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond) // an answer comes at once, or what is left takes the time
	defer cancel()
	for _, other := range h.node.halves() {
		if other.six != h.six && other.status != nil && other.status.Up != nil && *other.status.Up {
			return neighbour.Ask(ctx, own.base(), other.base(), neighbour.AboutPath, new(neighbour.About)) == nil
		}
	}
	return false
}

// everybody is the MAC that every Ethernet interface takes.
var everybody = encap.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Which of the datagrams made by hand it is: the echo's number, beside that of the suspect.
const (
	madeAsLeased = iota // as packets of the overlay are
	madeToAny           // to the inner MAC of everybody: a kernel's device takes it whatever its MAC is, muslin does not
	madeBare            // in the name of this host's underlay address: a kernel's device takes it, and answers past the overlay
	kindsMade
)

func (e *evidence) datagrams(vxlan bool, id, number uint16) [][]byte {
	own, peer := wire.VTEP{Base: e.own.base(), MAC: e.own.mac}, wire.VTEP{Base: e.peer.base(), MAC: e.peer.mac}
	n := number * kindsMade
	vni := e.own.node.VNI
	out := [][]byte{wire.Datagram(vxlan, vni, own, peer, id, n+madeAsLeased)}
	if vxlan {
		any := wire.VTEP{Base: peer.Base, MAC: everybody}
		bare := wire.VTEP{Base: e.own.outer, MAC: own.MAC}
		out = append(out, wire.Datagram(vxlan, vni, own, any, id, n+madeToAny), wire.Datagram(vxlan, vni, bare, peer, id, n+madeBare))
	}
	return out
}

// sendUnchecked sends what a host that damages it does not keep from being answered.
func (e *evidence) sendUnchecked(ctx context.Context, from netip.Addr, vxlan bool, id, number uint16) {
	door, err := wire.OpenDoor(from, netip.AddrPortFrom(e.peer.outer, e.port))
	if err != nil {
		return
	}
	defer door.Close()
	payload := wire.Unchecked(vxlan, e.own.node.VNI, wire.VTEP{Base: e.own.base(), MAC: e.own.mac}, wire.VTEP{Base: e.peer.base(), MAC: e.peer.mac}, id, uncheckedPort(number))
	for range 2 {
		if door.SendUnchecked(payload) != nil || !pause(ctx, 600*time.Millisecond) {
			return
		}
	}
}

// uncheckedPort is where nobody listens, by the suspect.
func uncheckedPort(number uint16) uint16 { return firstUnlikely + number }

// firstUnlikely and those behind it are ports where traceroute(8) expects nobody.
const firstUnlikely = 33434

func unlikelyPort() uint16 { return firstUnlikely + uint16(rand.IntN(90)) }

// heed takes note of what was said of datagrams to the port, be they of others' here: a host tells an address of closed ports once
// a second, after six at once (icmp_ratelimit; icmp(7)), and what goes over the overlay uses those up.
func (e *evidence) heed(seen map[wire.Sighting]int) {
	for s := range seen {
		if e.made.Refused == nil && !s.Out && s.About == netip.AddrPortFrom(e.peer.outer, e.port) && s.Refused.By.IsValid() {
			r := s.Refused
			e.made.Refused = &r
		}
	}
}

// refusedApart is how far apart refusals are that a host says for certain, and whileMisshapen how long it takes to hear of one beside
// all else that is refused.
const (
	refusedApart   = 1100 * time.Millisecond
	whileMisshapen = 1800 * time.Millisecond
)

// knockElsewhere sends datagrams, none of the overlay's, to ports that the overlay's may be: where the port is refused, one after the
// other.
func (e *evidence) knockElsewhere(ctx context.Context, from netip.Addr) {
	apart, times := time.Duration(0), 1
	if e.made.Refused.Port() {
		apart, times = refusedApart, 3
	}
	ports := []uint16{unlikelyPort(), 8472, 4789}
	if e.own.node.Backend == lease.BackendUDP {
		ports = []uint16{unlikelyPort(), 8285}
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	for i, port := range ports {
		if port == e.port {
			continue
		}
		if !pause(ctx, apart) {
			break
		}
		all.Go(func() {
			k := knock(ctx, from, netip.AddrPortFrom(e.peer.outer, port), times, nil)
			mu.Lock()
			defer mu.Unlock()
			if i == 0 {
				e.closed = k
			} else {
				e.knocks[port] = k
			}
		})
	}
	all.Wait()
}

// knock sends datagrams to a port, so many times, until it is refused.
func knock(ctx context.Context, from netip.Addr, to netip.AddrPort, times int, datagrams [][]byte) wire.Knock {
	door, err := wire.OpenDoor(from, to)
	if err != nil {
		return wire.Knock{Err: err}
	}
	defer door.Close()
	if datagrams == nil {
		datagrams = [][]byte{make([]byte, 32)}
	}
	for range times {
		for _, d := range datagrams {
			door.Send(d)
		}
		goesOn := pause(ctx, 450*time.Millisecond)
		if r := door.Result(); r.Refused != nil {
			return r
		}
		if !goesOn {
			break
		}
	}
	return door.Result()
}

// routeTo asks the kernel.
func (p *Patient) routeTo(to netip.Addr) routed {
	routes, err := netlink.RouteGet(net.IP(to.AsSlice()))
	if err != nil || len(routes) == 0 {
		return routed{err: fmt.Errorf("ip route get %s: %w", to, err)}
	}
	var r routed
	r.gateway, _ = netip.AddrFromSlice(routes[0].Gw)
	r.gateway = r.gateway.Unmap()
	for _, l := range p.Host.Links {
		if l.Index == routes[0].LinkIndex {
			r.device, r.index = l.Name, l.Index
			r.overlay = l.Name == p.Local.TUN || l.Name == p.Local.TUN6
		}
	}
	return r
}

// readNeighbours are the kernel's, of both families; empty where they are not to be had.
func readNeighbours() map[netip.Addr][]netlink.Neigh {
	out := make(map[netip.Addr][]netlink.Neigh)
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all, err := netlink.NeighList(0, family)
		if err != nil {
			continue
		}
		for _, n := range all {
			a, _ := netip.AddrFromSlice(n.IP)
			out[a.Unmap()] = append(out[a.Unmap()], n)
		}
	}
	return out
}

// ask asks on the link who has an address of IPv4, since the kernel believes in a neighbour for a while that is gone.
func (p *Patient) ask(ctx context.Context, r *routed, to netip.Addr) {
	link, ok := p.linkTo(r.device)
	if !ok || !to.Is4() || r.gateway.IsValid() {
		return
	}
	holders, err := wire.WhoHas(ctx, link, []netip.Addr{to}, 600*time.Millisecond)
	if err != nil || ctx.Err() != nil {
		return
	}
	if macs := holders[to]; len(macs) > 0 {
		r.found = macs[0]
	} else {
		r.failed = true
	}
}

// linkTo is a device as a link on which neighbours can be asked for; not ok: it is no Ethernet.
func (p *Patient) linkTo(device string) (wire.Link, bool) {
	dev := p.Host.Link(device)
	if dev == nil {
		return wire.Link{}, false
	}
	mac, err := encap.ParseMAC(dev.MAC)
	if err != nil || mac == (encap.MAC{}) {
		return wire.Link{}, false
	}
	own, _ := p.ownHalf(false)
	at := p.addressOn(dev.Name, own.outer)
	return wire.Link{Index: dev.Index, MAC: mac, Addr: at}, at.IsValid()
}

// lookUp looks whether the kernel has found a host on the link, once it was asked for.
func (r *routed) lookUp(neighbours map[netip.Addr][]netlink.Neigh, to netip.Addr) {
	if r.gateway.IsValid() {
		return
	}
	for _, n := range neighbours[to] {
		switch {
		case len(n.HardwareAddr) == 6 && (n.State&netlink.NUD_PERMANENT != 0 || n.State&netlink.NUD_REACHABLE != 0 && !r.failed):
			r.found, r.failed = encap.MAC(n.HardwareAddr), false
		case n.State&netlink.NUD_NOARP != 0: // nobody is asked there
			r.failed = false
		case n.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) != 0 && r.found == (encap.MAC{}):
			r.failed = true
		}
	}
}
