package fib

import (
	"iter"
	"math/bits"
	"slices"
)

// index finds values by a number, of 32 bits or of 128: a hash table with open addressing, at most half full. A
// find costs one cache miss, mostly, where a trie costs one for each of its levels; what leads to the pages is
// small and stays in the cache. The hash of a key is given along with it: a call through a type parameter would
// cost as much as the find.
//
// The slots lie in pages, which an index shares with the one that it was made from: a change copies the
// page that it falls on. The zero index is empty, and may be read alone.
type index[K, V comparable] struct {
	pages []*page[K, V] // a power of two of them
	shift int           // leaves as many upper bits of a hash as number the slots
	used  int           // slots with a value
}

type slot[K, V comparable] struct {
	value V // zero: empty
	key   K
}

// pageSlots is how many slots make a page: of pointers and keys 4 KiB, or 6 where the keys are of 128 bits.
const (
	pageBits  = 8
	pageSlots = 1 << pageBits
)

type page[K, V comparable] [pageSlots]slot[K, V]

// newIndex has room for n values.
func newIndex[K, V comparable](n int) index[K, V] {
	width := max(pageBits, bits.Len(uint(n))+1) // 2^width is more than 2n
	x := index[K, V]{pages: make([]*page[K, V], 1<<(width-pageBits)), shift: 64 - width}
	for i := range x.pages {
		x.pages[i] = new(page[K, V])
	}
	return x
}

func (x *index[K, V]) size() int { return len(x.pages) * pageSlots }

// at is a slot, for reading.
func (x *index[K, V]) at(i int) *slot[K, V] { return &x.pages[i>>pageBits][i&(pageSlots-1)] }

// home is where the search for a key with this hash begins.
func (x *index[K, V]) home(hash uint64) int { return int(hash >> x.shift) }

// get returns the value with this key, or zero. Not for the zero index.
func (x *index[K, V]) get(key K, hash uint64) V {
	var empty V
	i := x.home(hash)
	for {
		s := x.at(i)
		if s.key == key || s.value == empty {
			return s.value
		}
		i = (i + 1) & (x.size() - 1)
	}
}

// since yields each key but for those on pages that x shares with before.
func (x *index[K, V]) since(before *index[K, V]) iter.Seq[K] {
	var empty V
	return func(yield func(K) bool) {
		for n, p := range x.pages {
			if len(before.pages) == len(x.pages) && before.pages[n] == p {
				continue
			}
			for _, s := range p {
				if s.value != empty && !yield(s.key) {
					return
				}
			}
		}
	}
}

// edit is an index that is being made from another one, whose pages it leaves as they are.
type edit[K, V comparable] struct {
	index[K, V]
	hash   func(K) uint64
	shared []*page[K, V] // the other's: a page that is still in its place is not ours to write
}

// edited begins an edit of x, whose keys have this hash.
func (x index[K, V]) edited(hash func(K) uint64) edit[K, V] {
	shared := x.pages
	x.pages = slices.Clone(x.pages)
	return edit[K, V]{x, hash, shared}
}

func (e *edit[K, V]) write(i int, s slot[K, V]) {
	n := i >> pageBits
	if n < len(e.shared) && e.shared[n] == e.pages[n] {
		p := *e.pages[n]
		e.pages[n] = &p
	}
	e.pages[n][i&(pageSlots-1)] = s
}

// find is the slot of a key, or the empty one where it would be.
func (e *edit[K, V]) find(key K) int {
	var empty V
	i := e.home(e.hash(key))
	for s := e.at(i); s.key != key && s.value != empty; s = e.at(i) {
		i = (i + 1) & (e.size() - 1)
	}
	return i
}

// put adds a value, which is not zero, or replaces the one with the same key.
func (e *edit[K, V]) put(key K, v V) {
	var empty V
	if (e.used+1)*2 > e.size() {
		e.resize(e.used + 1)
	}
	i := e.find(key)
	if e.at(i).value == empty {
		e.used++
	}
	e.write(i, slot[K, V]{v, key})
}

// remove takes the value with this key away, if there is one, and closes the gap: of those behind it each
// that the gap now parts from its home moves into it (Knuth, section 6.4, algorithm R).
func (e *edit[K, V]) remove(key K) {
	var empty V
	gap := e.find(key)
	if e.at(gap).value == empty {
		return
	}
	mask := e.size() - 1
	for i := (gap + 1) & mask; e.at(i).value != empty; i = (i + 1) & mask {
		if s := *e.at(i); (i-e.home(e.hash(s.key)))&mask >= (i-gap)&mask {
			e.write(gap, s)
			gap = i
		}
	}
	e.write(gap, slot[K, V]{})
	if e.used--; e.size() > pageSlots && e.used*16 < e.size() {
		e.resize(e.used * 2)
	}
}

// resize moves everything into an index that has room for n values.
func (e *edit[K, V]) resize(n int) {
	var empty V
	old := e.index
	e.index, e.shared = newIndex[K, V](n), nil
	for _, p := range old.pages {
		for _, s := range p {
			if s.value != empty {
				e.put(s.key, s.value)
			}
		}
	}
}
