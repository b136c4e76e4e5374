package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/doctor/wire"
	"muslin/cmd/muslin/neighbour"
	"muslin/encap"
	"muslin/lease"
	"muslin/tunnel/host"
)

var pathChecks = []Check{
	{Name: "peers", Needs: NeedLocal | NeedPeers | NeedRoot, Essential: true, Run: checkPeers},
}

// checkPeers asks peers over the overlay, as packets go, and looks into those that do not answer; and asks those that do
// whether they answer large packets as well.
func checkPeers(ctx context.Context, p *Patient) []Finding {
	asked := p.sample()
	var found []said
	var silent []half
	if p.carries() {
		answers, err := p.askOverlay(ctx, asked)
		if err != nil {
			p.CannotTell("peers", err)
			return nil
		}
		for i, h := range asked {
			switch {
			case answers[i].small.Got == 0 && answers[i].small.Damaged > 0:
				found = append(found, p.damagedInside(h, answers[i].small.Damaged))
			case answers[i].small.Got == 0:
				silent = append(silent, h)
			case answers[i].large.Got == 0 && answers[i].size > 0:
				found = append(found, p.blackHole(ctx, h, answers[i].size)...)
			default:
				found = append(found, p.smallerPath(h)...)
			}
		}
	} else {
		silent = asked
	}
	answering := len(asked) - len(silent)
	if len(silent) > 0 || p.rumours() {
		more, err := p.lookInto(ctx, silent, answering)
		if err != nil {
			p.CannotTell("peers", err)
		}
		found = append(found, more...)
	}
	found = append(found, p.damaged()...)
	var out []Finding
	for _, f := range grouped(found) {
		f.explainByRules(ctx, p.Local.Port)
		out = append(out, f.Finding)
	}
	return out
}

// overlaid is what came of asking a peer over the overlay.
type overlaid struct {
	small, large wire.Answer
	size         int // of the large one; 0: none was sent
}

const (
	askTries = 3
	askEvery = 500 * time.Millisecond
)

// askOverlay sends each peer a small packet and one as large as the overlay takes.
func (p *Patient) askOverlay(ctx context.Context, peers []half) ([]overlaid, error) {
	out := make([]overlaid, len(peers))
	var all sync.WaitGroup
	var failed [2]error
	for i, six := range []bool{false, true} {
		var questions []wire.Question
		var into []*wire.Answer
		for k, h := range peers {
			if h.six != six {
				continue
			}
			questions = append(questions, wire.Question{To: h.answerer()})
			into = append(into, &out[k].small)
			if size := p.largest(h); size > 0 {
				out[k].size = size
				questions = append(questions, wire.Question{To: h.answerer(), Size: size})
				into = append(into, &out[k].large)
			}
		}
		if questions == nil {
			continue
		}
		all.Go(func() {
			echoes, err := wire.OpenEchoes(six, netip.Addr{})
			if err != nil {
				failed[i] = err
				return
			}
			defer echoes.Close()
			for k, a := range echoes.Ask(ctx, askTries, askEvery, questions) {
				*into[k] = a
			}
		})
	}
	all.Wait()
	return out, errors.Join(failed[:]...)
}

// largest is the size of the largest packet to a peer, in bytes; 0: it is not known.
func (p *Patient) largest(h half) int {
	mtu := p.Local.MTU
	if d := p.device(h.six); d != nil {
		mtu = d.MTU
	}
	if h.status != nil && h.status.PathMTU > 0 {
		mtu = h.status.PathMTU
	}
	return mtu
}

// blackHole is about a peer that answers small packets and no large ones.
func (p *Patient) blackHole(ctx context.Context, h half, size int) []said {
	passes, fails, err := p.search(ctx, h, size)
	if err != nil || passes == 0 || passes >= size {
		return nil // it was a loss of another kind
	}
	outer := ""
	if over := p.overhead(h); over > 0 && !h.direct() {
		outer = fmt.Sprintf(", or Backend.MTU to %d with muslin config set", passes+over)
	}
	fix := fmt.Sprintf("mend the hop that takes less, or let its ICMP errors through; until then on both nodes: muslin run --path-mtu-interval 10m, which finds it%s", outer)
	return []said{{Finding: Finding{ID: "mtu-black-hole", Severity: Broken, Confidence: Certain, Node: h.node.Name(),
		Summary:  fmt.Sprintf("large packets between here and %s vanish: a hop takes less than the interfaces say, and says nothing", h.outer),
		Evidence: fmt.Sprintf("of the overlay's packets those of up to %d bytes are answered, those of %d and more are not; its MTU is %d", passes, fails, size),
		Fix:      fix}}}
}

// overhead is what the overlay's framing adds; 0: it is not known.
func (p *Patient) overhead(h half) int {
	switch {
	case p.Local.Backend == lease.BackendVXLAN && h.six:
		return encap.Overhead(encap.NewVXLAN6(p.Local.VNI, h.mac))
	case p.Local.Backend == lease.BackendVXLAN:
		return encap.Overhead(encap.NewVXLAN(p.Local.VNI, h.mac))
	}
	return 0
}

// search finds the largest packet that a peer answers, to a few bytes, and the smallest that it does not.
func (p *Patient) search(ctx context.Context, h half, size int) (passes, fails int, err error) {
	echoes, err := wire.OpenEchoes(h.six, netip.Addr{})
	if err != nil {
		return 0, 0, err
	}
	defer echoes.Close()
	low, high := wire.SmallEcho(h.answerer()), size
	for range 2 {
		const steps = 24
		var questions []wire.Question
		for i := range steps {
			questions = append(questions, wire.Question{To: h.answerer(), Size: low + (high-low)*(i+1)/steps})
		}
		answers := echoes.Ask(ctx, askTries, askEvery/2, questions)
		passes, fails = low, high
		for i, a := range answers {
			if a.Got > 0 {
				passes = questions[i].Size
			}
		}
		for i := range slices.Backward(answers) {
			if n := questions[i].Size; answers[i].Got == 0 && n > passes {
				fails = n
			}
		}
		low, high = passes, fails
	}
	return passes, fails, nil
}

// smallerPath is about a path whose black hole the daemon has found: packets pass, and those of flannel's nodes into it do
// not.
func (p *Patient) smallerPath(h half) []said {
	s := h.status
	if s == nil || s.PathMTUState != "smaller" || s.PathMTUBy != "probe" {
		return nil
	}
	return []said{{Finding: Finding{ID: "mtu-black-hole", Severity: Warning, Confidence: Certain, Node: h.node.Name(),
		Summary:  fmt.Sprintf("a hop between here and %s takes less than the interfaces say, and says nothing; muslin keeps to what it takes, flannel's nodes do not", h.outer),
		Evidence: fmt.Sprintf("probes of more than %d bytes vanish, of an overlay's MTU of %d", s.PathMTU, p.Local.MTU),
		Fix:      fmt.Sprintf("mend that hop, or let its ICMP errors through; or set Backend.MTU to %d with muslin config set", s.PathMTU+p.overhead(h))}}}
}

// damagedInside is about a peer whose answers come, and are not what was sent: whoever damages them makes the outer checksum
// fit, or there is none.
func (p *Patient) damagedInside(h half, n int) said {
	return said{Finding: Finding{ID: "checksum-corruption", Severity: Broken, Confidence: Certain, Node: h.node.Name(),
		Summary:  fmt.Sprintf("packets between here and %s are damaged inside the overlay's datagrams", h.outer),
		Evidence: fmt.Sprintf("%d answers to echo requests came with a wrong ICMP checksum", n),
		Fix:      fmt.Sprintf("on both hosts: ethtool -K %s tx off rx off; with a kernel's vxlan device also ethtool -K DEVICE tx-checksum-ip-generic off; if that does not help, the NIC, cable or switch between the two", p.Local.Iface)}}
}

// suspicious are reasons of drops that somebody's datagrams in the interface may explain.
var suspicious = []string{"unknown-source", "vxlan-vni", "vxlan-mac", "vxlan-own-mac", "outer-checksum", "inner-source"}

// rumours reports whether the daemon has dropped what somebody who is no peer may have sent.
func (p *Patient) rumours() bool {
	return p.Running() && slices.ContainsFunc(suspicious, func(reason string) bool { return p.Status.Drops[reason] > 0 })
}

// damaged is about datagrams that the daemon's kernel dropped for their checksum, so many that it is no single one.
func (p *Patient) damaged() []said {
	if !p.Running() {
		return nil
	}
	var rx uint64
	for _, peer := range p.Status.Peers {
		rx += peer.RxPackets
	}
	n := p.Status.Drops["outer-checksum"]
	if n < 20 || n*1000 < rx {
		return nil
	}
	return []said{{Finding: Finding{ID: "checksum-corruption", Severity: Warning, Confidence: Likely,
		Summary:  "datagrams are damaged on their way to this node",
		Evidence: fmt.Sprintf("%d with a wrong UDP checksum were dropped, beside %d packets taken, since the daemon's start", n, rx),
		Fix:      fmt.Sprintf("ethtool -S %s | grep -i err here and on the peers; on a peer whose NIC is at fault ethtool -K eth0 tx off; else the cable or switch", p.Local.Iface)}}}
}

// How long silent peers are watched: what is asked is answered at once; a muslin that does not hear us asks by itself
// every 10 s (package pulse).
const (
	lookAtLeast = 1700 * time.Millisecond
	lookAtMost  = 10700 * time.Millisecond
	spare       = 2 * time.Second // before ctx ends
)

// lookInto looks into peers that do not answer, of how many others that do, and at who else sends here.
func (p *Patient) lookInto(ctx context.Context, silent []half, answering int) ([]said, error) {
	silent = slices.Clone(silent[:min(len(silent), mostSuspect)])
	slices.SortStableFunc(silent, func(a, b half) int { return a.outer.Compare(b.outer) }) // IPv4 first
	var suspects []*evidence
	id := uint16(rand.Uint32())
	for _, h := range silent {
		if e := p.suspect(h); e != nil {
			suspects = append(suspects, e)
		}
	}
	var hosts []netip.Addr
	for _, e := range suspects {
		hosts = append(hosts, e.peer.outer)
	}
	watch, err := wire.OpenWatch(wire.WatchConfig{Port: p.Local.Port, Hosts: hosts, ID: id})
	if err != nil {
		return nil, err
	}
	defer watch.Close()
	began := time.Now()
	before := p.count(ctx)
	var all sync.WaitGroup
	most := began.Add(lookAtMost)
	if d, ok := ctx.Deadline(); ok && d.Add(-spare).Before(most) {
		most = d.Add(-spare)
	}
	for i, e := range suspects {
		all.Go(func() {
			p.try(ctx, e, id, uint16(i), func(e *evidence) bool {
				return time.Now().Before(most) && ctx.Err() == nil && e.open(watch.Seen(), id, uint16(i))
			})
		})
	}
	if len(suspects) == 0 {
		all.Go(func() { pause(ctx, lookAtLeast) })
	}
	if p.carries() && !p.vxlanOrUDP() {
		all.Go(func() { _, _ = p.askOverlay(ctx, silent) })
	}
	all.Wait()
	seen := watch.Seen()
	after := p.count(ctx)
	var found []said
	for i, e := range suspects {
		e.waited = time.Since(began)
		e.counted = after.since(before, e.peer)
		e.take(seen, id, uint16(i))
		if f := e.judge(); f != nil {
			found = append(found, *f)
		}
	}
	found = p.allOfUs(found, answering)
	return append(found, p.strangers(seen, suspects)...), nil
}

// suspect begins an evidence; nil: nothing can be made of the peer.
func (p *Patient) suspect(h half) *evidence {
	own, ok := p.ownHalf(h.six)
	if !ok {
		return nil
	}
	e := &evidence{peer: h, own: own, port: h.node.Port, carried: p.carries(), local: p.ownAddress(own.outer), knocks: make(map[uint16]wire.Knock)}
	if s := h.status; s != nil && s.LastRx != nil {
		e.heard = *s.LastRx
	}
	if h.node.TTL != nil && *h.node.TTL > 0 {
		e.age = lease.TTL - *h.node.TTL
	}
	return e
}

// try asks one peer in every way at once, and then goes on as long as there is more to learn.
func (p *Patient) try(ctx context.Context, e *evidence, id, number uint16, more func(*evidence) bool) {
	e.route = p.routeTo(e)
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
		datagrams = e.datagrams(p.Local.Backend == lease.BackendVXLAN, id, number)
		all.Go(func() { e.made = knock(ctx, from, netip.AddrPortFrom(e.peer.outer, e.port), 3, datagrams) })
	} else {
		all.Go(func() { e.closed = knock(ctx, netip.Addr{}, netip.AddrPortFrom(e.peer.outer, unlikelyPort()), 1, nil) })
	}
	all.Go(func() { e.muslin = p.answersByOther(ctx, e.peer) })
	all.Wait()
	e.route.neighbour(e)
	for more(e) {
		if datagrams != nil {
			k := knock(ctx, from, netip.AddrPortFrom(e.peer.outer, e.port), 1, datagrams[:1])
			k.Sent += e.made.Sent
			e.made = k
		}
		pause(ctx, 550*time.Millisecond)
	}
	if datagrams != nil {
		e.knockElsewhere(ctx, from, datagrams[:1])
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
		any := wire.VTEP{Base: peer.Base, MAC: encap.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
		bare := wire.VTEP{Base: e.own.outer, MAC: own.MAC}
		out = append(out, wire.Datagram(vxlan, vni, own, any, id, n+madeToAny), wire.Datagram(vxlan, vni, bare, peer, id, n+madeBare))
	}
	return out
}

// unlikelyPort is one of those where traceroute(8) expects nobody.
func unlikelyPort() uint16 { return 33434 + uint16(rand.IntN(90)) }

// knockElsewhere sends datagrams to ports that the overlay's may be. A host tells an address of closed ports once a second,
// after six at once (icmp_ratelimit; icmp(7)), and what was asked over the overlay may have used those up: so where a port is
// refused, one is tried after the other.
func (e *evidence) knockElsewhere(ctx context.Context, from netip.Addr, datagrams [][]byte) {
	apart := time.Duration(0)
	if e.made.Refused.Port() {
		apart = 1100 * time.Millisecond
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	for i, port := range []uint16{unlikelyPort(), 8472, 4789, 8285} {
		if port == e.port {
			continue
		}
		if !pause(ctx, apart) {
			break
		}
		all.Go(func() {
			k := knock(ctx, from, netip.AddrPortFrom(e.peer.outer, port), 1, datagrams)
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

// pause reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
	return ctx.Err() == nil
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
func (p *Patient) routeTo(e *evidence) routed {
	routes, err := netlink.RouteGet(net.IP(e.peer.outer.AsSlice()))
	if err != nil || len(routes) == 0 {
		return routed{err: fmt.Errorf("ip route get %s: %w", e.peer.outer, err)}
	}
	var r routed
	r.gateway, _ = netip.AddrFromSlice(routes[0].Gw)
	r.gateway = r.gateway.Unmap()
	for _, l := range p.Host.Links {
		if l.Index == routes[0].LinkIndex {
			r.device = l.Name
			r.overlay = l.Name == p.Local.TUN || l.Name == p.Local.TUN6
		}
	}
	return r
}

// neighbour looks whether the kernel has found a host on the link, once it was asked for.
func (r *routed) neighbour(e *evidence) {
	family := unix.AF_INET
	if e.peer.six {
		family = unix.AF_INET6
	}
	all, err := netlink.NeighList(0, family)
	if err != nil || r.gateway.IsValid() {
		return
	}
	for _, n := range all {
		if a, _ := netip.AddrFromSlice(n.IP); a.Unmap() != e.peer.outer {
			continue
		}
		if n.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) != 0 {
			r.failed = true
		} else if len(n.HardwareAddr) == 6 && n.State&netlink.NUD_NOARP == 0 {
			r.found = encap.MAC(n.HardwareAddr)
		}
	}
}

// open reports whether more may be learnt of a suspect by waiting: a host that is there, whose port is silent, and that
// was not seen.
func (e *evidence) open(seen map[wire.Sighting]int, id, number uint16) bool {
	if e.route.err != nil || e.made.Refused != nil || e.made.Err != nil || e.host.Got == 0 && !e.alive && !e.closed.Refused.Port() && e.route.found == (encap.MAC{}) && !e.route.gateway.IsValid() {
		return false
	}
	for s := range seen {
		if !s.Out && (s.SrcPort != 0 && s.Src == e.peer.outer || e.inItsName(s) || s.SrcPort == 0 && s.Reply && s.EchoID == id && s.EchoN == number*kindsMade+madeBare) {
			return false
		}
	}
	return true
}

// inItsName reports whether a datagram is the peer's by what is in it, wherever it came from.
func (e *evidence) inItsName(s wire.Sighting) bool {
	return s.SrcPort != 0 && s.From.IsValid() && (e.peer.subnet.Contains(s.From) && s.VXLAN && s.VNI == e.own.node.VNI.Uint32() || s.VXLAN && e.peer.mac != (encap.MAC{}) && s.InnerSrc == e.peer.mac)
}

// take sorts what was seen of a suspect.
func (e *evidence) take(seen map[wire.Sighting]int, id, number uint16) {
	first := number * kindsMade
	for s, n := range seen {
		mine := s.EchoID == id && s.EchoN/kindsMade == number
		switch {
		case s.Out:
			if s.Dst == e.peer.outer && s.DstPort == e.port {
				e.left += n
			}
			continue
		case s.SrcPort == 0: // no UDP
			e.bare = e.bare || mine && s.Reply && s.EchoN == first+madeBare
			continue
		case s.Src != e.peer.outer && !e.inItsName(s):
			continue
		}
		e.seen = append(e.seen, sighting{s, n})
		e.answer = e.answer || mine && s.Reply && s.EchoN == first+madeAsLeased
		e.anyMAC = e.anyMAC || mine && s.Reply && s.EchoN == first+madeToAny
	}
	e.anyMAC = e.anyMAC && !e.answer
	// What says most first: an order that does not depend on a map's.
	slices.SortFunc(e.seen, func(a, b sighting) int { return b.n - a.n })
}

// counters are what this host counts of the overlay.
type counters struct {
	known bool
	peers map[string]uint64 // packets taken in, by the PublicIP
	all   uint64            // with a kernel's device: of all peers
	drops map[string]uint64
}

func (p *Patient) count(ctx context.Context) counters {
	c := counters{peers: make(map[string]uint64)}
	switch {
	case p.Running():
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		s, err := control.AskNetwork(ctx, p.Options.Control, p.Options.Net)
		if err != nil {
			return c
		}
		c.known, c.drops = true, maps.Clone(s.Drops)
		for _, peer := range s.Peers {
			c.peers[peer.PublicIP] += peer.RxPackets
		}
	case p.flannelCarries():
		for _, six := range []bool{false, true} {
			d := p.device(six)
			if d == nil {
				continue
			}
			if l, err := netlink.LinkByName(d.Name); err == nil && l.Attrs().Statistics != nil {
				c.known = true
				c.all += l.Attrs().Statistics.RxPackets
			}
		}
	}
	return c
}

// onTheWayIn are the reasons for drops of what came from the underlay.
var onTheWayIn = []string{"outer-checksum", "unknown-source", "oversized", "short", "vxlan-flags", "vxlan-vni", "vxlan-mac", "vxlan-own-mac", "vlan", "arp", "not-ip",
	"inner-ipv6", "inner-ipv4", "inner-version", "inner-header", "inner-length", "inner-checksum", "inner-source", "inner-destination", "ecn", "tun-write", "socket-overflow"}

// since is what came in between, of a peer.
func (c counters) since(before counters, h half) counted {
	out := counted{known: c.known && before.known, drops: make(map[string]uint64)}
	out.rx = c.peers[h.outer.String()] - before.peers[h.outer.String()] + c.all - before.all
	for _, reason := range onTheWayIn {
		if n := c.drops[reason] - before.drops[reason]; n > 0 {
			out.drops[reason] = n
		}
	}
	return out
}

// device is what carries the overlay's packets of a family; nil: there is none, or it is not known.
func (p *Patient) device(six bool) *host.Link {
	name := p.Local.TUN
	if six {
		name = p.Local.TUN6
	}
	return p.Host.Link(name)
}

// allOfUs: if all peers that were looked into are silent for the same reason, and none answers, then it is likelier that
// something is wrong before this node than there.
func (p *Patient) allOfUs(found []said, answering int) []said {
	nodes := make(map[string]bool)
	for _, f := range found {
		if f.ID != "udp-filtered-at-peer" || f.Confidence == Certain {
			return found
		}
		nodes[f.Node] = true
	}
	if answering > 0 || len(nodes) < 2 {
		return found
	}
	f := found[0]
	f.ID, f.Node, f.kind = "udp-filtered-here", p.Local.Name(), "before"
	f.Summary = fmt.Sprintf("UDP %d is dropped before this node (a security group, a firewall in front of it): none of %d peers is reached, though their hosts are", p.Local.Port, len(nodes))
	f.Evidence = "of all of them: " + f.Evidence
	f.Fix = fmt.Sprintf("let UDP %d in and out in front of this host", p.Local.Port)
	return []said{f}
}

// strangers are those who send datagrams of this overlay and have no lease.
func (p *Patient) strangers(seen map[wire.Sighting]int, suspects []*evidence) []said {
	four, six := p.Networks()
	var out []said
	for s, n := range seen {
		inNetwork := four.Contains(s.From) || six.Contains(s.From)
		if s.Out || s.DstPort != p.Local.Port || !s.VXLAN || s.VNI != p.Local.VNI.Uint32() || !inNetwork || p.leased(s) || p.Store.Err != nil ||
			slices.ContainsFunc(suspects, func(e *evidence) bool { return e.inItsName(s) || s.Src == e.peer.outer }) {
			continue
		}
		out = append(out, said{Finding: Finding{ID: "lease-expired", Severity: Broken, Confidence: Certain, Node: s.Src.String(),
			Summary:  fmt.Sprintf("%s sends into this overlay and has no lease (any more): what it sends is dropped, and nobody sends to it", s.Src),
			Evidence: fmt.Sprintf("%d datagrams of VNI %d from there, of %s, whose subnet nobody leases", n, s.VNI, s.From),
			Fix:      fmt.Sprintf("restart flanneld or muslin on %s, and see whether it reaches etcd", s.Src)}})
	}
	return out
}

// leased reports whether somebody's lease explains a datagram, by its outer or its inner source.
func (p *Patient) leased(s wire.Sighting) bool {
	nodes := append([]Node{p.Local}, p.Peers...)
	return slices.ContainsFunc(nodes, func(n Node) bool {
		return n.PublicIP == s.Src || n.PublicIPv6 == s.Src || n.Subnet.IsValid() && n.Subnet.Contains(s.From) || n.Subnet6.IsValid() && n.Subnet6.Contains(s.From)
	})
}
