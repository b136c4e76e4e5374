package fib

import (
	"math/bits"
	"net/netip"
	"slices"
)

// With is a table like t but for some peers: those in set come in, each in place of the one with its
// subnet if there is one, and those that hold the gone subnets go. Of two in set with the same subnet the
// later one counts; one that is in set does not go. t stays as it is. The peers in set are kept.
func (t *Table) With(set []*Peer, gone []netip.Prefix) *Table {
	m := merge{table: Table{outer: t.outer, peers: make([]*Peer, 0, len(t.peers)+len(set))}, outer: t.outer.edited()}
	for _, l := range t.inner {
		m.lengths[bits.OnesCount32(l.mask)] = lengthEdit{from: l.index}
	}
	rest := t.peers
	for _, c := range sortChanges(set, gone) {
		at, found := slices.BinarySearchFunc(rest, c.subnet, func(p *Peer, subnet netip.Prefix) int { return p.Subnet.Compare(subnet) })
		m.table.peers = append(m.table.peers, rest[:at]...)
		rest = rest[at:]
		var old *Peer
		if found {
			old, rest = rest[0], rest[1:]
		}
		m.change(old, c.peer)
	}
	m.table.peers = append(m.table.peers, rest...)
	return m.finish()
}

// change is what becomes of a subnet: peer nil means that nobody holds it any more.
type change struct {
	subnet netip.Prefix
	peer   *Peer
}

// sortChanges orders the changes by subnet, one for each.
func sortChanges(set []*Peer, gone []netip.Prefix) []change {
	changes := make([]change, 0, len(gone)+len(set))
	for _, subnet := range gone {
		changes = append(changes, change{subnet: subnet})
	}
	for _, p := range set {
		changes = append(changes, change{p.Subnet, p})
	}
	bySubnet := func(a, b change) int { return a.subnet.Compare(b.subnet) }
	slices.SortStableFunc(changes, bySubnet)
	last := changes[:0]
	for i, c := range changes {
		if i+1 == len(changes) || bySubnet(c, changes[i+1]) != 0 {
			last = append(last, c)
		}
	}
	return last
}

// merge is a table that is being made.
type merge struct {
	table   Table
	outer   edit[uint32]
	lengths [33]lengthEdit
}

// lengthEdit is the index of one prefix length: as it was, and once something in it changes, as it will be.
type lengthEdit struct {
	from index[*Peer]
	to   *edit[*Peer]
}

func (m *merge) length(subnet netip.Prefix) *edit[*Peer] {
	l := &m.lengths[subnet.Bits()]
	if l.to == nil {
		if l.from.pages == nil {
			l.from = newIndex[*Peer](0)
		}
		e := l.from.edited()
		l.to = &e
	}
	return l.to
}

// change puts one peer in the place of another one with the same subnet. Either may be nil.
func (m *merge) change(old, p *Peer) {
	if p != nil {
		if p.Counters == nil {
			p.Counters = new(Counters)
		}
		m.table.peers = append(m.table.peers, p)
		m.count(p.PublicIP, 1)
		if p.Subnet.Addr().Is4() {
			m.length(p.Subnet).put(number(p.Subnet.Addr()), p)
		}
	}
	if old != nil {
		m.count(old.PublicIP, -1)
		if p == nil && old.Subnet.Addr().Is4() {
			m.length(old.Subnet).remove(number(old.Subnet.Addr()))
		}
	}
}

// count notes that one peer more has a PublicIP, or one less.
func (m *merge) count(publicIP netip.Addr, by int32) {
	if !publicIP.Is4() {
		return
	}
	key := number(publicIP)
	if n := m.outer.get(key) + uint32(by); n > 0 {
		m.outer.put(key, n)
	} else {
		m.outer.remove(key)
	}
}

func (m *merge) finish() *Table {
	t := &m.table
	t.outer = m.outer.index
	for n := 32; n >= 0; n-- {
		x := m.lengths[n].from
		if to := m.lengths[n].to; to != nil {
			x = to.index
		}
		if x.used > 0 {
			t.inner = append(t.inner, length{^uint32(0) << (32 - n), x})
		}
	}
	return t
}
