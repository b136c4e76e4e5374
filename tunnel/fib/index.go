package fib

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// index finds peers by a number of 32 bits: a hash table with open addressing, at most half full, that is
// only ever filled. A find costs one cache miss, mostly, where a trie costs one for each of its levels.
type index struct {
	slots []slot // a power of two of them
	shift int    // leaves as many upper bits of a hash as number the slots
}

type slot struct {
	peer *Peer // nil: empty
	key  uint32
}

// newIndex has room for n peers.
func newIndex(n int) index {
	width := bits.Len(uint(max(n, 1))) + 1 // 2^width is more than 2n
	return index{slots: make([]slot, 1<<width), shift: 64 - width}
}

// home is where the search for a key begins: Fibonacci hashing (Knuth, The Art of Computer Programming,
// volume 3, section 6.4) spreads keys that lie side by side, or apart by a power of two, evenly.
func (x *index) home(key uint32) int {
	return int(uint64(key) * 0x9e3779b97f4a7c15 >> x.shift)
}

// put adds a peer, or replaces the one with the same key.
func (x *index) put(key uint32, p *Peer) {
	at := x.home(key)
	for x.slots[at].peer != nil && x.slots[at].key != key {
		at = (at + 1) & (len(x.slots) - 1)
	}
	x.slots[at] = slot{p, key}
}

// get returns the peer with this key, or nil.
func (x *index) get(key uint32) *Peer {
	at := x.home(key)
	for {
		s := &x.slots[at]
		if s.key == key || s.peer == nil {
			return s.peer
		}
		at = (at + 1) & (len(x.slots) - 1)
	}
}

// number is an IPv4 address as a number, the first byte uppermost.
func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}
