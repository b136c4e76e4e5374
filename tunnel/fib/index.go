package fib

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
)

// index finds values by a number of 32 bits: a hash table with open addressing, at most half full. A find
// costs one cache miss, mostly, where a trie costs one for each of its levels; what leads to the pages is
// small and stays in the cache.
//
// The slots lie in pages, which an index shares with the one that it was made from: a change copies the
// page that it falls on. The zero index is empty, and may be read alone.
type index[V comparable] struct {
	pages []*page[V] // a power of two of them
	shift int        // leaves as many upper bits of a hash as number the slots
	used  int        // slots with a value
}

type slot[V comparable] struct {
	value V // zero: empty
	key   uint32
}

// pageSlots is how many slots make a page: 4 KiB of pointers and keys.
const (
	pageBits  = 8
	pageSlots = 1 << pageBits
)

type page[V comparable] [pageSlots]slot[V]

// newIndex has room for n values.
func newIndex[V comparable](n int) index[V] {
	width := max(pageBits, bits.Len(uint(n))+1) // 2^width is more than 2n
	x := index[V]{pages: make([]*page[V], 1<<(width-pageBits)), shift: 64 - width}
	for i := range x.pages {
		x.pages[i] = new(page[V])
	}
	return x
}

func (x *index[V]) size() int { return len(x.pages) * pageSlots }

// at is a slot, for reading.
func (x *index[V]) at(i int) *slot[V] { return &x.pages[i>>pageBits][i&(pageSlots-1)] }

// home is where the search for a key begins: Fibonacci hashing (Knuth, The Art of Computer Programming,
// volume 3, section 6.4) spreads keys that lie side by side, or apart by a power of two, evenly.
func (x *index[V]) home(key uint32) int {
	return int(uint64(key) * 0x9e3779b97f4a7c15 >> x.shift)
}

// get returns the value with this key, or zero. Not for the zero index.
func (x *index[V]) get(key uint32) V {
	var empty V
	i := x.home(key)
	for {
		s := x.at(i)
		if s.key == key || s.value == empty {
			return s.value
		}
		i = (i + 1) & (x.size() - 1)
	}
}

// edit is an index that is being made from another one, whose pages it leaves as they are.
type edit[V comparable] struct {
	index[V]
	shared []*page[V] // the other's: a page that is still in its place is not ours to write
}

// edited begins an edit of x.
func (x index[V]) edited() edit[V] {
	shared := x.pages
	x.pages = slices.Clone(x.pages)
	return edit[V]{x, shared}
}

func (e *edit[V]) write(i int, s slot[V]) {
	n := i >> pageBits
	if n < len(e.shared) && e.shared[n] == e.pages[n] {
		p := *e.pages[n]
		e.pages[n] = &p
	}
	e.pages[n][i&(pageSlots-1)] = s
}

// find is the slot of a key, or the empty one where it would be.
func (e *edit[V]) find(key uint32) int {
	var empty V
	i := e.home(key)
	for s := e.at(i); s.key != key && s.value != empty; s = e.at(i) {
		i = (i + 1) & (e.size() - 1)
	}
	return i
}

// put adds a value, which is not zero, or replaces the one with the same key.
func (e *edit[V]) put(key uint32, v V) {
	var empty V
	if (e.used+1)*2 > e.size() {
		e.resize(e.used + 1)
	}
	i := e.find(key)
	if e.at(i).value == empty {
		e.used++
	}
	e.write(i, slot[V]{v, key})
}

// remove takes the value with this key away, if there is one, and closes the gap: of those behind it each
// that the gap now parts from its home moves into it (Knuth, section 6.4, algorithm R).
func (e *edit[V]) remove(key uint32) {
	var empty V
	gap := e.find(key)
	if e.at(gap).value == empty {
		return
	}
	mask := e.size() - 1
	for i := (gap + 1) & mask; e.at(i).value != empty; i = (i + 1) & mask {
		if s := *e.at(i); (i-e.home(s.key))&mask >= (i-gap)&mask {
			e.write(gap, s)
			gap = i
		}
	}
	e.write(gap, slot[V]{})
	if e.used--; e.size() > pageSlots && e.used*16 < e.size() {
		e.resize(e.used * 2)
	}
}

// resize moves everything into an index that has room for n values.
func (e *edit[V]) resize(n int) {
	var empty V
	old := e.index
	e.index, e.shared = newIndex[V](n), nil
	for _, p := range old.pages {
		for _, s := range p {
			if s.value != empty {
				e.put(s.key, s.value)
			}
		}
	}
}

// number is an IPv4 address as a number, the first byte uppermost.
func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

// address is the IPv4 address of a number.
func address(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}
