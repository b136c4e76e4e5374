//go:build linux

package link

// tally counts numbered datagrams as they arrive.
type tally struct {
	Received   int `json:"received"`   // different numbers
	Duplicated int `json:"duplicated"` // arrivals of a number that had arrived
	Reordered  int `json:"reordered"`  // first arrivals after a higher number
}

// counter is a tally in the making.
type counter struct {
	tally
	seen    []uint64 // a bit for each number
	count   uint32
	highest int64
}

func newCounter(count int) *counter {
	return &counter{seen: make([]uint64, (count+63)/64), count: uint32(count), highest: -1}
}

// add takes an arrival. Numbers that were not announced are not counted.
func (c *counter) add(seq uint32) {
	if seq >= c.count {
		return
	}
	word, bit := &c.seen[seq/64], uint64(1)<<(seq%64)
	if *word&bit != 0 {
		c.Duplicated++
		return
	}
	*word |= bit
	c.Received++
	if int64(seq) < c.highest {
		c.Reordered++
	}
	c.highest = max(c.highest, int64(seq))
}
