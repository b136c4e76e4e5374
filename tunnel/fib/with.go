package fib

import (
	"net/netip"
	"slices"
)

// With is a table like t but for some peers: those in set come in, each in place of the one with its
// subnet if there is one, and those that hold the gone subnets go. Of two in set with the same subnet the
// later one counts; one that is in set does not go. t stays as it is. The peers in set are kept.
func (t *Table) With(set []*Peer, gone []netip.Prefix) *Table {
	m := merge{
		peers: make([]*Peer, 0, len(t.peers)+len(set)),
		four:  editFamily(&t.four, hash4),
		six:   editFamily(&t.six, hash6),
	}
	rest := t.peers
	for _, c := range sortChanges(set, gone) {
		at, found := slices.BinarySearchFunc(rest, c.subnet, func(p *Peer, subnet netip.Prefix) int { return p.Subnet.Compare(subnet) })
		m.peers = append(m.peers, rest[:at]...)
		rest = rest[at:]
		var old *Peer
		if found {
			old, rest = rest[0], rest[1:]
		}
		m.change(old, c.peer)
	}
	m.peers = append(m.peers, rest...)
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
	peers []*Peer
	four  familyEdit[uint32]
	six   familyEdit[wide]
}

// change puts one peer in the place of another one with the same subnet. Either may be nil.
func (m *merge) change(old, p *Peer) {
	if p != nil {
		if p.Counters == nil {
			p.Counters = new(Counters)
		}
		m.peers = append(m.peers, p)
		m.count(p.PublicIP, 1)
		m.hold(p.Subnet, p)
	}
	if old != nil {
		m.count(old.PublicIP, -1)
		if p == nil {
			m.hold(old.Subnet, nil)
		}
	}
}

// hold notes who holds a subnet from now on; nil is nobody.
func (m *merge) hold(subnet netip.Prefix, p *Peer) {
	switch a := subnet.Addr(); {
	case a.Is4():
		m.four.hold(number4(a), subnet.Bits(), p)
	case isIPv6(a):
		m.six.hold(number6(a), subnet.Bits(), p)
	}
}

// count notes that one peer more has a PublicIP, or one less.
func (m *merge) count(publicIP netip.Addr, by int32) {
	switch {
	case publicIP.Is4():
		m.four.count(number4(publicIP), by)
	case isIPv6(publicIP):
		m.six.count(number6(publicIP), by)
	}
}

func (m *merge) finish() *Table {
	return &Table{four: m.four.finish(mask4), six: m.six.finish(mask6), peers: m.peers}
}

// familyEdit is a family that is being made from another one.
type familyEdit[K comparable] struct {
	hash    func(K) uint64
	outer   edit[K, uint32]
	lengths [129]lengthEdit[K] // by the bits of a prefix, of which IPv6 has up to 128
}

// lengthEdit is the index of one prefix length: as it was, and once something in it changes, as it will be.
type lengthEdit[K comparable] struct {
	from index[K, *Peer]
	to   *edit[K, *Peer]
}

func editFamily[K comparable](f *family[K], hash func(K) uint64) familyEdit[K] {
	e := familyEdit[K]{hash: hash, outer: f.outer.edited(hash)}
	for _, l := range f.inner {
		e.lengths[l.bits].from = l.index
	}
	return e
}

func (e *familyEdit[K]) hold(key K, bits int, p *Peer) {
	l := &e.lengths[bits]
	if l.to == nil {
		if l.from.pages == nil {
			l.from = newIndex[K, *Peer](0)
		}
		to := l.from.edited(e.hash)
		l.to = &to
	}
	if p != nil {
		l.to.put(key, p)
	} else {
		l.to.remove(key)
	}
}

func (e *familyEdit[K]) count(key K, by int32) {
	if n := e.outer.get(key, e.hash(key)) + uint32(by); n > 0 {
		e.outer.put(key, n)
	} else {
		e.outer.remove(key)
	}
}

func (e *familyEdit[K]) finish(mask func(bits int) K) family[K] {
	f := family[K]{outer: e.outer.index}
	for bits := len(e.lengths) - 1; bits >= 0; bits-- {
		x := e.lengths[bits].from
		if to := e.lengths[bits].to; to != nil {
			x = to.index
		}
		if x.used > 0 {
			f.inner = append(f.inner, length[K]{mask(bits), bits, x})
		}
	}
	return f
}
