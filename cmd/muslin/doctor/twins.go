package doctor

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"muslin/cmd/muslin/doctor/wire"
	"muslin/encap"
	"muslin/lease"
	"muslin/tunnel/host"
)

// mostLooked is how many peers' addresses are asked for on the link, besides this node's own.
const mostLooked = 32

// answersIn is more than a host on the link takes, and little enough that who is well need not wait for it.
const answersIn = 100 * time.Millisecond

// checkTwins asks on the underlay's link who has this node's PublicIP, and those of peers that are on it, of IPv4: an address
// that two hosts have works by turns.
func checkTwins(ctx context.Context, p *Patient) []Finding {
	own, ok := p.ownHalf(false)
	link, asks := p.linkTo(p.Local.Iface)
	if !ok || !asks {
		return nil
	}
	dev := p.Host.Link(p.Local.Iface)
	var all sync.WaitGroup
	var found, peers []Finding
	var failed error
	if p.ownAddress(own.outer) {
		all.Go(func() { found, failed = p.ownTwin(ctx, wire.Link{Index: link.Index, MAC: link.MAC}, own.outer, dev) })
	}
	all.Go(func() { peers = p.peersTwins(ctx, link, own) })
	all.Wait()
	if failed != nil {
		p.CannotTell("public-ips", failed)
	}
	return append(found, peers...)
}

// addressOn is this node's PublicIP if the device has it, or else another address of the device's.
func (p *Patient) addressOn(device string, public netip.Addr) netip.Addr {
	var at netip.Addr
	for _, a := range p.Host.Addresses {
		if a.Link == device && a.Prefix.Addr().Is4() && (!at.IsValid() || a.Prefix.Addr() == public) {
			at = a.Prefix.Addr()
		}
	}
	return at
}

// ownTwin asks as RFC 5227 has it (section 2.1.1), so that nobody's memory of who has the address changes. This host's other
// interfaces on the link may answer, too.
func (p *Patient) ownTwin(ctx context.Context, link wire.Link, public netip.Addr, dev *host.Link) ([]Finding, error) {
	others := slices.Collect(maps.Keys(p.onLink(link.Index, 4)))
	holders, err := wire.WhoHas(ctx, link, append([]netip.Addr{public}, others...), answersIn)
	if err != nil {
		return nil, err
	}
	strange := slices.DeleteFunc(holders[public], func(mac encap.MAC) bool {
		answersFor := 0
		for _, a := range others {
			if slices.Contains(holders[a], mac) {
				answersFor++
			}
		}
		return answersFor > 1 || // a router that answers for everybody
			slices.ContainsFunc(p.Host.Links, func(l host.Link) bool { return strings.EqualFold(l.MAC, mac.String()) })
	})
	if len(strange) == 0 {
		return nil, nil
	}
	f := broken("public-ip-duplicate", fmt.Sprintf("another host on the link has this node's PublicIP %s, too: what is sent to it goes to the one or the other", public),
		fmt.Sprintf("%s answers on %s for %s, which is this host's (%s)", strange[0], dev.Name, public, dev.MAC),
		fmt.Sprintf("give one of the two another address; the other one: arping -I %s %s, and the switch's table of %s", dev.Name, public, strange[0]))
	f.Confidence = Likely // a router may answer for others
	f.Explains = slices.Concat(consequences, []string{"daemon-stopped", "daemon-waiting", "etcd-unreachable", "vtep-mac-duplicate*", "public-ip-duplicate", "peer-silent*"})
	return []Finding{f}, nil
}

// onLink are peers that are reached on a link without a router, by their PublicIP, so many at most.
func (p *Patient) onLink(link, most int) map[netip.Addr]half {
	there := make(map[netip.Addr]half)
	peers, down := p.sample()
	for _, h := range slices.Concat(peers, down) {
		if r := p.routeTo(h.outer); h.six || len(there) >= most || r.err != nil || r.gateway.IsValid() || r.index != link {
			continue
		}
		if there[h.outer].node == nil {
			there[h.outer] = h
		}
	}
	return there
}

// peersTwins asks as the kernel does. A host with two interfaces on the link may answer by both, and a router for others
// (proxy ARP): two are two hosts if the one takes what is sent to the overlay, and the other does not.
func (p *Patient) peersTwins(ctx context.Context, link wire.Link, own half) []Finding {
	asked := p.onLink(link.Index, mostLooked)
	addrs := slices.SortedFunc(maps.Keys(asked), netip.Addr.Compare)
	if len(addrs) == 0 {
		return nil
	}
	holders, err := wire.WhoHas(ctx, link, addrs, answersIn)
	if err != nil {
		p.CannotTell("public-ips", err)
		return nil
	}
	of := make(map[encap.MAC]int)
	for _, macs := range holders {
		for _, mac := range macs {
			of[mac]++
		}
	}
	var found []Finding
	for _, a := range addrs {
		macs := slices.DeleteFunc(holders[a], func(mac encap.MAC) bool { return of[mac] > 1 })
		if len(macs) < 2 {
			continue
		}
		if f := p.twins(ctx, link, own, asked[a], macs); f != nil {
			found = append(found, *f)
		}
	}
	return found
}

// twins sends to the overlay's port at each of the MACs, and judges by who answers.
func (p *Patient) twins(ctx context.Context, link wire.Link, own, peer half, macs []encap.MAC) *Finding {
	names := make([]string, len(macs))
	for i, mac := range macs {
		names[i] = mac.String()
	}
	f := broken("public-ip-duplicate", fmt.Sprintf("%d hosts on the link have the PublicIP %s: packets for that node go to the one or the other", len(macs), peer.outer),
		fmt.Sprintf("%s all answer on %s for %s", strings.Join(names, " and "), p.Local.Iface, peer.outer),
		fmt.Sprintf("give one of them another address; which host is which: ip neigh there, and the switch's table of MACs (%s)", strings.Join(names, ", ")))
	f.Node, f.Explains = peer.node.Name(), slices.Concat(ofPeer, []string{"mtu-black-hole", "checksum-corruption", "udp-filtered-on-path"})
	f.Confidence = Likely
	if !p.vxlanOrUDP() || peer.node.Backend != p.Local.Backend || !p.carries() {
		if peer.status == nil || peer.status.DownSince == nil {
			return nil // it answers, and it may be one host by two interfaces
		}
		return &f
	}
	id := uint16(rand.Uint32())
	watch, err := wire.OpenWatch(wire.WatchConfig{Port: p.Local.Port, Hosts: []netip.Addr{peer.outer}, ID: id})
	if err != nil {
		return nil
	}
	defer watch.Close()
	to := netip.AddrPortFrom(peer.outer, peer.node.Port)
	for range 2 {
		for i, mac := range macs {
			datagram := wire.Datagram(p.Local.Backend == lease.BackendVXLAN, own.node.VNI, wire.VTEP{Base: own.base(), MAC: own.mac}, wire.VTEP{Base: peer.base(), MAC: peer.mac}, id, uint16(i))
			_ = link.SendTo(mac, netip.AddrPortFrom(own.outer, p.Local.Port), to, datagram)
		}
		if !pause(ctx, 400*time.Millisecond) {
			return nil
		}
	}
	answered := make([]string, 0, len(macs))
	for i := range macs {
		for s := range watch.Seen() {
			if !s.Out && s.Reply && s.EchoID == id && s.EchoN == uint16(i) {
				answered = append(answered, names[i])
				break
			}
		}
	}
	switch len(answered) {
	case len(macs):
		return nil // one host
	case 0:
		f.Evidence += "; none of them answers over the overlay"
	default:
		f.Confidence = Certain
		f.Evidence += fmt.Sprintf("; over the overlay %s answers alone", strings.Join(answered, " and "))
	}
	return &f
}
