package main

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"muslin/cmd/muslin/control"
	"muslin/lease"
	"muslin/tunnel/fib"
	"muslin/tunnel/pulse"
	"muslin/tunnel/way"
	"muslin/tunnel/wireguard"
)

// What status says of the peers, for a daemon that runs. There may be ten thousand, of which few are asked for: the others are
// counted, which takes a fiftieth of what it does to describe them and to send that.

// selection picks the peers that a status has, from a table; nil: all. traffic is the bytes exchanged with one.
type selection func(t *fib.Table, traffic func(*fib.Peer) uint64) []*fib.Peer

// those wants peers by name.
func those(asked control.Peers) selection {
	if asked.All {
		return nil
	}
	return func(t *fib.Table, _ func(*fib.Peer) uint64) (all []*fib.Peer) {
		for _, subnet := range asked.Subnets {
			if p := t.Lookup(subnet.Addr()); p != nil && p.Subnet == subnet {
				all = append(all, p)
			}
		}
		return all
	}
}

// glance is what is found out about each peer.
type glance struct {
	*fib.Peer
	health pulse.Health
	choice way.Choice
}

func (v *viewState) glance(p *fib.Peer) glance {
	return glance{p, v.prober.Health(p), v.choice(p)}
}

// up is nil where it is not known.
func up(h pulse.Health) *bool {
	if h.State == pulse.Unknown {
		return nil
	}
	is := h.State == pulse.Up
	return &is
}

// fillPeers adds those that are wanted, in the table's order, and the counts of all.
func (v *viewState) fillPeers(s *control.Status, which selection) *crowd {
	t := v.table()
	sessions, err := v.sessions()
	if err != nil {
		s.Warn(control.AboutSessions, err.Error())
	}
	has := make(map[*fib.Peer]bool)
	if which != nil {
		for _, p := range which(t, sessions.bytes) {
			has[p] = true
		}
	}
	c := &crowd{counts: s.Counts}
	for _, p := range t.Peers() {
		g := v.glance(p)
		c.add(g, g.health.State == pulse.Down && v.isOtherUp(t, p))
		c.addTraffic(p, sessions)
		if which == nil || has[p] {
			s.Peers = append(s.Peers, v.peerStatus(t, g))
		}
	}
	sessions.fill(s.Peers)
	s.Counts = c.counts
	return c
}

// other is the same node's peer of the other family; nil: there is none.
func other(t *fib.Table, p *fib.Peer) *fib.Peer {
	if !p.Other.IsValid() {
		return nil
	}
	if o := t.Lookup(p.Other.Addr()); o != nil && o.Subnet == p.Other {
		return o
	}
	return nil
}

func (v *viewState) isOtherUp(t *fib.Table, p *fib.Peer) bool {
	o := other(t, p)
	return o != nil && v.prober.Health(o).State == pulse.Up
}

// peerStatus is without what WireGuard knows (sessions.fill).
func (v *viewState) peerStatus(t *fib.Table, g glance) control.PeerStatus {
	c := g.Counters
	peer := control.PeerStatus{
		Subnet: g.Subnet.String(), PublicIP: g.PublicIP.String(), Backend: g.Backend,
		TxPackets: c.TxPackets.Load(), TxBytes: c.TxBytes.Load(),
		RxPackets: c.RxPackets.Load(), RxBytes: c.RxBytes.Load(),
		Up:  up(g.health),
		Way: string(g.choice.Way), WayRule: string(g.choice.Rule), WayReason: g.choice.Reason(),
		PublicKey: g.Key.String(),
	}
	if g.Backend == lease.BackendVXLAN {
		peer.VtepMAC = g.MAC.String()
	}
	if g.health.State == pulse.Down {
		since := g.health.Since.UTC()
		peer.DownSince = &since
	}
	if o := other(t, g.Peer); o != nil {
		peer.OtherSubnet, peer.OtherUp = o.Subnet.String(), up(v.prober.Health(o))
	}
	fillQuality(&peer, v.prober.Quality(g.Peer))
	fillPath(&peer, v.path(g.Peer))
	if last := c.LastRx.Load(); last != 0 {
		t := time.Unix(0, last).UTC()
		peer.LastRx = &t
	}
	return peer
}

func fillQuality(p *control.PeerStatus, q pulse.Quality) {
	if q.RTT > 0 {
		us := max(1, q.RTT.Round(time.Microsecond).Microseconds())
		p.RTT = &us
	}
	if q.Asked > 0 {
		p.Loss = &q.Loss
	}
}

// watch has the peers that somebody looks at measured more often for a while.
func (d *daemon) watch(asked control.Peers) {
	if prober := d.view.get().prober; prober != nil && (asked.All || len(asked.Subnets) > 0) {
		prober.Watch(asked.Subnets...)
	}
}

// crowd is what is said of all peers together.
type crowd struct {
	counts control.PeerCounts

	half  some // that answer by the other family only
	away  some // whose direct routes the kernel does not take
	stays string
	about control.About
}

// some are so many, and what is said of the first.
type some struct {
	n     int
	first string
}

func (s *some) add(format string, args ...any) {
	if s.n++; s.n == 1 {
		s.first = fmt.Sprintf(format, args...)
	}
}

// add counts a peer; otherUp says that it is down, and its node up by the other family.
func (c *crowd) add(g glance, otherUp bool) {
	c.counts.Total++
	c.counts.Ways[string(g.choice.Way)]++
	switch g.health.State {
	case pulse.Up:
		c.counts.Up++
	case pulse.Down:
		c.counts.Down++
	default:
		c.counts.Unknown++
	}
	if otherUp {
		family := "IPv4"
		if g.Subnet.Addr().Is6() {
			family = "IPv6"
		}
		c.half.add("%s at %s does not answer, while %s of the same node does: look for what drops %s between the two nodes (a firewall, or a path without it)",
			g.Subnet, g.PublicIP, g.Other, family)
	}
	switch {
	case g.choice.Way == way.None:
		c.about, c.stays = control.AboutLeftOut, "is left out"
	case g.choice.Rule == way.RuleRefused:
		c.about, c.stays = control.AboutEncapsulate, "stays encapsulated"
	default:
		return
	}
	c.away.add("%s: %s", g.Subnet, g.choice.Reason())
}

func (c *crowd) addTraffic(p *fib.Peer, s sessions) {
	c.counts.TxPackets += p.Counters.TxPackets.Load()
	c.counts.RxPackets += p.Counters.RxPackets.Load()
	tx, rx := s.traffic(p)
	c.counts.TxBytes, c.counts.RxBytes = c.counts.TxBytes+tx, c.counts.RxBytes+rx
}

// halfDown is a sentence about nodes that answer by one address family only; empty: there are none. Such a node is alive, so it
// is the path.
func (c *crowd) halfDown() string {
	if c.half.n > 1 {
		return fmt.Sprintf("%s; %d more nodes answer by one family only", c.half.first, c.half.n-1)
	}
	return c.half.first
}

// refused is a sentence about peers whose direct routes the kernel does not take, and that are encapsulated or, with host-gw, not
// reached at all; empty: there are none.
func (c *crowd) refused() string {
	switch c.away.n {
	case 0:
		return ""
	case 1:
		return "a peer " + c.stays + ": " + c.away.first
	}
	return fmt.Sprintf("each of %d peers %s, such as %s", c.away.n, c.stays, c.away.first)
}

// sessions are what WireGuard knows of the peers, by their keys as text, of IPv4 and of IPv6; nil: there are none. A node has one
// key for both families.
type sessions struct{ four, six map[string]wireguard.Session }

// sessions may have some of them with an error.
func (v *viewState) sessions() (s sessions, failed error) {
	for i, n := range v.node.all() {
		all, err := parts(v.carrier)[i].sessions()
		failed = errors.Join(failed, err)
		if n.six {
			s.six = all
		} else {
			s.four = all
		}
	}
	return s, failed
}

func (s sessions) of(subnet netip.Addr, key string) (wireguard.Session, bool) {
	all := s.four
	if subnet.Is6() {
		all = s.six
	}
	one, ok := all[key]
	return one, ok
}

// traffic is the bytes sent to a peer and received from it: of the kernel's WireGuard, whose packets nobody counts, as that says.
func (s sessions) traffic(p *fib.Peer) (tx, rx uint64) {
	if !p.Key.IsZero() {
		if one, _ := s.of(p.Subnet.Addr(), p.Key.String()); one.TxBytes|one.RxBytes != 0 {
			return one.TxBytes, one.RxBytes
		}
	}
	return p.Counters.TxBytes.Load(), p.Counters.RxBytes.Load()
}

func (s sessions) bytes(p *fib.Peer) uint64 {
	tx, rx := s.traffic(p)
	return tx + rx
}

// fill adds what is known of the peers.
func (s sessions) fill(peers []control.PeerStatus) {
	if s.four == nil && s.six == nil {
		return
	}
	for i := range peers {
		p := &peers[i]
		subnet, err := netip.ParsePrefix(p.Subnet)
		if err != nil {
			continue // it is of a fib.Peer
		}
		session, ok := s.of(subnet.Addr(), p.PublicKey)
		if !ok {
			continue
		}
		p.Endpoint = session.Endpoint
		if session.RxBytes|session.TxBytes != 0 {
			p.RxBytes, p.TxBytes = session.RxBytes, session.TxBytes
		}
		if !session.Handshake.IsZero() {
			t := session.Handshake.UTC()
			p.LastHandshake = &t
		}
	}
}
