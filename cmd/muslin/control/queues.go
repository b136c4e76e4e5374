package control

import (
	"time"

	"muslin/cmd/muslin/text"
)

// QueueStatus is what one worker has carried: each queue has one for each direction. A piece is what the kernel hands over, or
// takes, in one: of the TUN device a packet or a superpacket, of the socket a datagram or several of one length.
type QueueStatus struct {
	Queue        int    `json:"queue"`
	Direction    string `json:"direction"` // "outbound" or "inbound"
	Family       string `json:"family"`    // "ipv4" or "ipv6"
	Batches      uint64 `json:"batches"`
	Packets      uint64 `json:"packets"`      // inner ones written, those that the kernel refused included
	Bytes        uint64 `json:"bytes"`        // of them
	Superpackets uint64 `json:"superpackets"` // pieces of the TUN device that held several packets
	Joined       uint64 `json:"joined"`       // pieces of the socket that held several datagrams

	StuckSince *time.Time `json:"stuck_since"` // it has had one batch in hand from then on, which takes microseconds; null: it goes on

	BatchSizes    Histogram `json:"batch_sizes"`    // pieces read in one go
	ReadSegments  Histogram `json:"read_segments"`  // packets in each piece read: outbound from the TUN device, inbound from the socket
	WriteSegments Histogram `json:"write_segments"` // packets in each piece written
}

// Histogram is how many of something had which size.
type Histogram struct {
	Bounds []int    `json:"bounds"` // always the same
	Counts []uint64 `json:"counts"` // how many had a bound's size at most
	Count  uint64   `json:"count"`  // how many in all
	Sum    uint64   `json:"sum"`    // of all sizes
}

// Mean is 0 of none.
func (h *Histogram) Mean() float64 {
	if h.Count == 0 {
		return 0
	}
	return float64(h.Sum) / float64(h.Count)
}

// Add adds another one's sizes. A zero h takes its bounds.
func (h *Histogram) Add(o *Histogram) {
	if h.Bounds == nil {
		h.Bounds, h.Counts = o.Bounds, make([]uint64, len(o.Bounds))
	}
	for i, n := range o.Counts {
		h.Counts[i] += n
	}
	h.Count, h.Sum = h.Count+o.Count, h.Sum+o.Sum
}

// printQueues leaves out those that carried nothing, of which an overlay of one peer has many.
func printQueues(p *text.Printer, all []QueueStatus) {
	if len(all) == 0 {
		return
	}
	p.Line("\nqueues, and how much the kernel takes or gives in one piece on average")
	p.Line("  QUEUE\tDIRECTION\tFAMILY\tPACKETS\tBYTES\tBATCHES\tPIECES A BATCH\tPACKETS A PIECE, READ\tWRITTEN")
	idle := 0
	for _, q := range all {
		if q.Batches == 0 {
			idle++
			continue
		}
		p.Line("  %d\t%s\t%s\t%d\t%s\t%d\t%.1f\t%.1f\t%.1f", q.Queue, q.Direction, q.Family, q.Packets, text.Bytes(q.Bytes), q.Batches,
			q.BatchSizes.Mean(), q.ReadSegments.Mean(), q.WriteSegments.Mean())
	}
	if idle > 0 {
		p.Line("  and %d that had nothing to carry", idle)
	}
}
