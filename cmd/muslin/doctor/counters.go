package doctor

import (
	"context"
	"maps"
	"time"

	"github.com/vishvananda/netlink"

	"muslin/cmd/muslin/control"
	"muslin/tunnel/host"
)

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
