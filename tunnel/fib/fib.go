// Package fib is the table from inner prefix to peer that both directions of the data path read.
//
// A Table is immutable once built: the lease side makes a new one for every change (With) and hands it over
// behind an atomic pointer (tunnel.VTEP.SetTable), so a change never stalls a packet. The new one shares
// with the old one whatever the change does not touch. The room touches memory only.
package fib

import (
	"iter"
	"net/netip"
	"sync/atomic"

	"muslin/encap"
)

// Peer is another node of the overlay, as its lease describes it, in one address family: a node of both is two peers.
// Immutable after it is put into a Table, but for what Counters points to.
type Peer struct {
	Subnet   netip.Prefix // inner prefix that the peer holds, masked
	PublicIP netip.Addr   // outer address, source and destination of its datagrams
	Backend  string       // its type, as leased
	MAC      encap.MAC    // VtepMAC; zero for all but vxlan
	Key      PublicKey    // of WireGuard; zero for all but wireguard
	Port     uint16       // its UDP port, of WireGuard; 0: as ours
	Counters *Counters    // survives a change of the lease; never nil in a Table
	Other    netip.Prefix // not for the data path: what the same lease holds of the other family; zero: nothing, or we do not carry that
}

// Counters is the traffic exchanged with one peer: packets, bytes of inner IP packets, and the time of
// the last datagram accepted from it. The data path adds, anyone may read. Beside it is when the peer answered
// last when it was asked (package pulse): of one that is reached directly that is all that is heard.
type Counters struct {
	TxPackets, TxBytes atomic.Uint64
	RxPackets, RxBytes atomic.Uint64
	LastRx             atomic.Int64 // Unix nanoseconds, 0: never. The same for all of a batch.
	Answered           atomic.Int64 // likewise

	// PathMTU is how long an inner packet to the peer may be, bytes, beside what the VTEP's MTU says: package pathmtu
	// sets it. 0 says that nothing was sent yet, or not since the path was looked at, that could be too long. The data
	// path then puts PathAny in its place with the first such packet, which asks for the path to be looked at.
	PathMTU atomic.Int32
}

// PathAny is a Counters.PathMTU that no packet is longer than.
const PathAny = 1 << 16

// Table answers the two questions of the data path: which peer holds this inner address, and does this
// outer address belong to a peer at all. It holds peers of both address families, which have nothing to do with
// each other.
type Table struct {
	four  family[uint32]
	six   family[wide]
	peers []*Peer // sorted by Subnet
}

// family is what there is of one IP version, whose addresses are numbers of type K.
type family[K comparable] struct {
	inner []length[K]      // the longest prefix first
	outer index[K, uint32] // by PublicIP: how many peers have it
}

// length holds the peers whose subnets have one prefix length. Leases of one network mostly all do.
type length[K comparable] struct {
	mask K
	bits int // of the mask
	index[K, *Peer]
}

// New builds a table. Of two peers with the same subnet the later one counts.
func New(peers []*Peer) *Table {
	four, six := 0, 0
	for _, p := range peers {
		switch {
		case p.PublicIP.Is4():
			four++
		case isIPv6(p.PublicIP):
			six++
		}
	}
	t := new(Table)
	t.four.outer = newIndex[uint32, uint32](four)
	t.six.outer = newIndex[wide, uint32](six)
	return t.With(peers, nil)
}

// Lookup returns the peer whose subnet holds the inner address, or nil.
func (t *Table) Lookup(inner netip.Addr) *Peer {
	if !inner.Is4() {
		return t.lookup6(inner)
	}
	n := number4(inner)
	for i := range t.four.inner {
		l := &t.four.inner[i]
		key := n & l.mask
		if p := l.get(key, hash4(key)); p != nil {
			return p
		}
	}
	return nil
}

func (t *Table) lookup6(inner netip.Addr) *Peer {
	if !isIPv6(inner) {
		return nil
	}
	n := number6(inner)
	for i := range t.six.inner {
		l := &t.six.inner[i]
		key := n.and(l.mask)
		if p := l.get(key, hash6(key)); p != nil {
			return p
		}
	}
	return nil
}

// KnowsOuter reports whether any peer has this PublicIP.
func (t *Table) KnowsOuter(outer netip.Addr) bool {
	if outer.Is4() {
		n := number4(outer)
		return t.four.outer.get(n, hash4(n)) != 0
	}
	if !isIPv6(outer) {
		return false
	}
	n := number6(outer)
	return t.six.outer.get(n, hash6(n)) != 0
}

// Peers is the table's content, sorted by Subnet: those of IPv4 first. Not to be changed.
func (t *Table) Peers() []*Peer { return t.peers }

// OuterSince yields each PublicIP of t, of either family, but for most of those that before has, too. With nil it
// yields all. Between a table and the one that With made of it that takes the time of the change, not of the table.
func (t *Table) OuterSince(before *Table) iter.Seq[netip.Addr] {
	if before == nil {
		before = new(Table)
	}
	return func(yield func(netip.Addr) bool) {
		for n := range t.four.outer.since(&before.four.outer) {
			if !yield(address4(n)) {
				return
			}
		}
		for n := range t.six.outer.since(&before.six.outer) {
			if !yield(address6(n)) {
				return
			}
		}
	}
}
