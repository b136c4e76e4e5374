package tunnel

import (
	"math/bits"
	"sync/atomic"
)

// Direction is which way a worker carries.
type Direction uint8

const (
	Outbound Direction = iota // TUN to UDP
	Inbound                   // UDP to TUN
)

// String is "outbound" or "inbound".
func (d Direction) String() string {
	if d == Inbound {
		return "inbound"
	}
	return "outbound"
}

// QueueStats is what one worker has carried. A piece is what the kernel hands over, or takes, in one: a packet or, with
// the TUN device, a superpacket; a datagram or, with the socket, several of one length (UDP_GRO, UDP_SEGMENT).
type QueueStats struct {
	Queue     int
	Direction Direction
	IPv6      bool // it carries IPv6, not IPv4

	Bytes  uint64 // of inner IP packets written; those that the kernel refused included (see Drops)
	Batch  Sizes  // pieces read in one go
	Read   Sizes  // packets in each piece read, from the TUN device or from the socket
	Write  Sizes  // packets in each piece written, to the other side
	InHand uint64 // number of the batch that the worker carries now, as its batches are counted; 0: it waits for one
}

// SizeBounds are the upper bounds of the counts in Sizes, but for the last count, which has none.
var SizeBounds = [...]int{1, 2, 4, 8, 16, 32, 64, 128}

const numSizes = len(SizeBounds) + 1

// Sizes is a histogram of sizes, each 1 at least.
type Sizes struct {
	Counts [numSizes]uint64 // how many had at most SizeBounds[i]; not cumulative
	Sum    uint64           // of all sizes
}

// Total is how many there were.
func (s *Sizes) Total() (n uint64) {
	for _, count := range s.Counts {
		n += count
	}
	return n
}

// Larger is how many were larger than 1.
func (s *Sizes) Larger() uint64 { return s.Total() - s.Counts[0] }

// sizeIndex is a size's place in Sizes.Counts: SizeBounds are the powers of two.
func sizeIndex(n int) int { return min(bits.Len(uint(n-1)), numSizes-1) }

// sizes are the counters of a Sizes: one writer, any number of readers. What a batch has goes in with settle, so that it costs
// an addition for each count that it has, mostly one.
type sizes struct {
	counts [numSizes]atomic.Uint64
	excess atomic.Uint64 // the sum, less 1 for each size

	fresh [numSizes]uint32 // the writer's, since settle
	more  int
}

func (s *sizes) note(n int) {
	s.fresh[sizeIndex(n)]++
	s.more += n - 1
}

// noteOnes is note(1) so many times.
func (s *sizes) noteOnes(n int) { s.fresh[0] += uint32(n) }

func (s *sizes) settle() {
	for i := range s.fresh {
		if n := s.fresh[i]; n != 0 {
			s.counts[i].Add(uint64(n))
			s.fresh[i] = 0
		}
	}
	if s.more != 0 {
		s.excess.Add(uint64(s.more))
		s.more = 0
	}
}

// load gives no number that is smaller than one it gave before.
func (s *sizes) load() (all Sizes) {
	for i := range s.counts {
		all.Counts[i] = s.counts[i].Load()
		all.Sum += all.Counts[i]
	}
	all.Sum += s.excess.Load()
	return all
}

// workerStats are one worker's.
type workerStats struct {
	batch [numSizes]atomic.Uint64
	done  atomic.Uint64 // batches
	bytes atomic.Uint64
	read  sizes
	write sizes
}

// begin is called with the pieces that were read, one at least.
func (w *workerStats) begin(pieces int) {
	w.batch[sizeIndex(pieces)].Add(1)
	w.read.noteOnes(pieces)
}

// several says that one of the pieces that were read holds so many packets.
func (w *workerStats) several(packets int) {
	if packets > 1 {
		w.read.fresh[0]--
		w.read.note(packets)
	}
}

// wrote ends a write, of pieces that write was told of.
func (w *workerStats) wrote(bytes int) {
	w.write.settle()
	w.bytes.Add(uint64(bytes))
}

// end ends the batch.
func (w *workerStats) end() {
	w.read.settle()
	w.done.Add(1)
}

func (w *workerStats) load() QueueStats {
	done := w.done.Load()
	s := QueueStats{Bytes: w.bytes.Load(), Read: w.read.load(), Write: w.write.load()}
	for i := range w.batch {
		s.Batch.Counts[i] = w.batch[i].Load()
	}
	s.Batch.Sum = s.Read.Total()
	if begun := s.Batch.Total(); begun > done {
		s.InHand = begun
	}
	return s
}

// Queues is what each worker has carried: of each queue the outbound one, then the inbound one.
func (v *VTEP) Queues() (all []QueueStats) {
	for i := range v.out {
		out, in := v.out[i].stats.load(), v.in[i].stats.load()
		out.Direction, in.Direction = Outbound, Inbound
		for _, s := range []QueueStats{out, in} {
			s.Queue, s.IPv6 = i, v.six
			all = append(all, s)
		}
	}
	return all
}
