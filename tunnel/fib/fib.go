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

// Peer is another node of the overlay, as its lease describes it. Immutable after it is put into a
// Table, but for what Counters points to.
type Peer struct {
	Subnet   netip.Prefix // inner prefix that the peer holds, masked
	PublicIP netip.Addr   // outer address, source and destination of its datagrams
	Backend  string       // its type, as leased
	MAC      encap.MAC    // VtepMAC; zero for all but vxlan
	Key      PublicKey    // of WireGuard; zero for all but wireguard
	Port     uint16       // its UDP port, of WireGuard; 0: as ours
	Counters *Counters    // survives a change of the lease; never nil in a Table
}

// Counters is the traffic exchanged with one peer: packets, bytes of inner IP packets, and the time of
// the last datagram accepted from it. The data path adds, anyone may read. Beside it is when the peer answered
// last when it was asked (package pulse): of one that is reached directly that is all that is heard.
type Counters struct {
	TxPackets, TxBytes atomic.Uint64
	RxPackets, RxBytes atomic.Uint64
	LastRx             atomic.Int64 // Unix nanoseconds, 0: never. The same for all of a batch.
	Answered           atomic.Int64 // likewise
}

// Table answers the two questions of the data path: which peer holds this inner address, and does this
// outer address belong to a peer at all. It knows IPv4 alone, as the overlay does.
type Table struct {
	inner []length      // the longest prefix first
	outer index[uint32] // by PublicIP: how many peers have it
	peers []*Peer       // sorted by Subnet
}

// length holds the peers whose subnets have one prefix length. Leases of one network mostly all do.
type length struct {
	mask uint32
	index[*Peer]
}

// New builds a table. Of two peers with the same subnet the later one counts.
func New(peers []*Peer) *Table {
	t := &Table{outer: newIndex[uint32](len(peers))}
	return t.With(peers, nil)
}

// Lookup returns the peer whose subnet holds the inner address, or nil.
func (t *Table) Lookup(inner netip.Addr) *Peer {
	if !inner.Is4() {
		return nil
	}
	n := number(inner)
	for i := range t.inner {
		l := &t.inner[i]
		if p := l.get(n & l.mask); p != nil {
			return p
		}
	}
	return nil
}

// KnowsOuter reports whether any peer has this PublicIP.
func (t *Table) KnowsOuter(outer netip.Addr) bool {
	return outer.Is4() && t.outer.get(number(outer)) != 0
}

// Peers is the table's content, sorted by Subnet. Not to be changed.
func (t *Table) Peers() []*Peer { return t.peers }

// OuterSince yields each PublicIP of t, of IPv4, but for most of those that before has, too. With nil it yields
// all. Between a table and the one that With made of it that takes the time of the change, not of the table.
func (t *Table) OuterSince(before *Table) iter.Seq[netip.Addr] {
	var known []*page[uint32]
	if before != nil && len(before.outer.pages) == len(t.outer.pages) {
		known = before.outer.pages
	}
	return func(yield func(netip.Addr) bool) {
		for n, p := range t.outer.pages {
			if known != nil && known[n] == p {
				continue
			}
			for _, s := range p {
				if s.value != 0 && !yield(address(s.key)) {
					return
				}
			}
		}
	}
}
