// Package overlay says who holds what in a network, by what its daemon on this host knows: which node an address belongs to,
// and which node a word on a command line means.
package overlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"muslin/cmd/muslin/control"
)

// Network is one that the daemon behind a control socket runs.
type Network struct {
	Name   string // empty where the process has but one
	Socket string // that answers for it
	*control.Status
}

// Ask finds the network that the words are about: addresses in it, or its peers. Without words, or where the process runs
// but one, that is the one that is named, or there.
func Ask(ctx context.Context, socket, name string, words ...string) (*Network, error) {
	s, err := control.AskNetwork(ctx, socket, name)
	if err == nil {
		return (&Network{name, socket, s}).running()
	}
	if !errors.Is(err, control.ErrSeveral) || len(words) == 0 {
		return nil, err
	}
	var all control.Networks
	if failed := control.Ask(ctx, socket, control.NetworksPath, &all); failed != nil {
		return nil, failed
	}
	var found []*Network
	for _, one := range all.Networks {
		if one.Status == nil {
			continue
		}
		n := &Network{one.Name, socket, one.Status}
		for _, word := range words {
			if _, err := n.Find(word); err == nil {
				found = append(found, n)
				break
			}
		}
	}
	if len(found) == 1 {
		return found[0].running()
	}
	return nil, err
}

func (n *Network) running() (*Network, error) {
	if n.State != control.StateRunning {
		return nil, fmt.Errorf("the daemon behind %s does not carry packets yet (%s): try again when `muslin status` says %s", n.Socket, n.State, control.StateRunning)
	}
	return n, nil
}

// Place is who holds an address.
type Place struct {
	Addr netip.Addr
	Own  bool                // this node
	Peer *control.PeerStatus // nil: no peer
	Node bool                // it is the node's own address in the overlay, or stands for the node
}

// lookUpFor is how long a name is looked up: where the network is broken its servers may not answer.
const lookUpFor = 2 * time.Second

// Resolve is what a word on a command line may mean to Find: itself, or if it is a name, the addresses that this host knows for it.
func Resolve(ctx context.Context, word string) ([]string, error) {
	if _, err := netip.ParsePrefix(word); err == nil {
		return []string{word}, nil
	}
	if _, err := netip.ParseAddr(word); err == nil {
		return []string{word}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookUpFor)
	defer cancel()
	all, err := net.DefaultResolver.LookupNetIP(ctx, "ip", word)
	if err != nil {
		return nil, fmt.Errorf("%q is neither an address nor a subnet, nor a name that this host knows (%w): give one such as 10.244.3.7 or 10.244.3.0/24, or a peer's PublicIP", word, err)
	}
	words := make([]string, 0, len(all))
	for _, a := range all {
		words = append(words, a.Unmap().String())
	}
	return words, nil
}

// FindAny is Find for the first of several words that means something.
func (n *Network) FindAny(words []string) (place Place, err error) {
	for _, word := range words {
		if place, err = n.Find(word); err == nil {
			return place, nil
		}
	}
	return place, err
}

// Find is what a word means: an address in the overlay, or a peer's subnet or PublicIP, which stands for the peer's own
// address there.
func (n *Network) Find(word string) (Place, error) {
	if p, err := netip.ParsePrefix(word); err == nil {
		for i := range n.Peers {
			if n.Peers[i].Subnet == p.Masked().String() {
				return n.node(&n.Peers[i]), nil
			}
		}
		if own := n.Subnet(p.Addr().Is6()); own == p.Masked() && n.Own(p.Addr().Is6()).IsValid() {
			return n.At(own.Addr()), nil
		}
		return Place{}, fmt.Errorf("no peer has the subnet %s: `muslin status` lists those that there are", p.Masked())
	}
	a, err := netip.ParseAddr(word)
	if err != nil || a.Zone() != "" {
		return Place{}, fmt.Errorf("%q is neither an address nor a subnet: give one such as 10.244.3.7 or 10.244.3.0/24, or a peer's PublicIP", word)
	}
	a = a.Unmap()
	if n.Contains(a) {
		return n.At(a), nil
	}
	for i := range n.Peers {
		if n.Peers[i].PublicIP == a.String() {
			return n.node(&n.Peers[i]), nil
		}
	}
	if own := n.Own(a.Is6()); own.IsValid() && (a.String() == n.Node.PublicIP || a.String() == n.Node.PublicIPv6) {
		return n.At(own), nil
	}
	return Place{}, fmt.Errorf("%s does not lie in the overlay %s, and is no peer's PublicIP: `muslin status` lists the peers", a, n.Networks())
}

// Networks is the overlay, of one family or both, for a person.
func (n *Network) Networks() string {
	return strings.TrimPrefix(strings.TrimSuffix(n.Node.Network+" and "+n.Node.Network6, " and "), " and ")
}

// Contains reports whether an address lies in the network.
func (n *Network) Contains(a netip.Addr) bool {
	for _, text := range []string{n.Node.Network, n.Node.Network6} {
		if p, err := netip.ParsePrefix(text); err == nil && p.Contains(a) {
			return true
		}
	}
	return false
}

// At is who holds an address of the network.
func (n *Network) At(a netip.Addr) Place {
	place := Place{Addr: a}
	bits := -1
	if own := n.Subnet(a.Is6()); own.Contains(a) {
		place.Own, place.Node, bits = true, a == own.Addr(), own.Bits()
	}
	for i := range n.Peers {
		p, err := netip.ParsePrefix(n.Peers[i].Subnet)
		if err == nil && p.Contains(a) && p.Bits() > bits {
			place = Place{Addr: a, Peer: &n.Peers[i], Node: a == p.Addr()}
			bits = p.Bits()
		}
	}
	return place
}

// Subnet is this node's own, of a family; invalid: it has none.
func (n *Network) Subnet(six bool) netip.Prefix {
	text := n.Node.Subnet
	if six {
		text = n.Node.Subnet6
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}
	}
	return p.Masked()
}

// Own is this node's address in the overlay; invalid: it has none, as with host-gw.
func (n *Network) Own(six bool) netip.Addr {
	if n.Node.TUN == "" && n.Node.TUN6 == "" {
		return netip.Addr{}
	}
	return n.Subnet(six).Addr()
}

// node is a peer by its own address: the base of its subnet. With host-gw no node has that, and the pods' bridge, where
// there are pods, has the next one.
func (n *Network) node(p *control.PeerStatus) Place {
	subnet, _ := netip.ParsePrefix(p.Subnet)
	a := subnet.Addr()
	if !n.Own(a.Is6()).IsValid() {
		a = a.Next()
	}
	return Place{Addr: a, Peer: p, Node: true}
}

// NodeOf is a peer's own address.
func (n *Network) NodeOf(p *control.PeerStatus) netip.Addr { return n.node(p).Addr }

// Asked are the addresses at which a peer can be asked (package neighbour), with ours to ask from: in its own family, and if
// it has another one, there.
func (n *Network) Asked(p *control.PeerStatus) (all []Question) {
	for _, text := range []string{p.Subnet, p.OtherSubnet} {
		subnet, err := netip.ParsePrefix(text)
		if err != nil {
			continue
		}
		if from := n.Own(subnet.Addr().Is6()); from.IsValid() {
			all = append(all, Question{from, subnet.Addr()})
		}
	}
	return all
}

// Question is from whom to whom one may be asked.
type Question struct{ From, To netip.Addr }
