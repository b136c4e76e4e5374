package top

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"muslin/cmd/muslin/control"
	"muslin/tunnel/way"
)

// sample is what a daemon said, and when it was asked.
type sample struct {
	at     time.Time
	status *control.Status
	seen   []time.Time // each peer; nil: all at once
}

// traffic is a peer's, in packets and bytes of inner IP a second.
type traffic struct{ txPackets, txBytes, rxPackets, rxBytes float64 }

func (t *traffic) add(o traffic) {
	t.txPackets += o.txPackets
	t.txBytes += o.txBytes
	t.rxPackets += o.rxPackets
	t.rxBytes += o.rxBytes
}

// peer is a row: what the daemon says, and how fast that grows.
type peer struct {
	*control.PeerStatus
	traffic
	known bool      // the rates are
	seen  time.Time // when it was so
}

// drop is what was dropped for one reason.
type drop struct {
	reason string
	total  uint64
	rate   float64 // packets a second
}

// queue is a worker's row: what it has carried in all, and what in a second. The histograms are of the time between two
// looks, or of all as long as there was but one.
type queue struct {
	*control.QueueStatus
	packets, bytes, batches, superpackets, joined float64

	batchSizes, readSegments, writeSegments control.Histogram
}

// picture is what there is to see at a time: a status, and the rates since the one before it.
type picture struct {
	*control.Status
	at    time.Time
	over  time.Duration // of the rates but the peers', each of which has its own; 0: there is nothing to compare with yet
	peers []peer        // in the order of Status.Peers
	drops []drop        // by name

	queues []queue // in the order of Status.Queues

	total    traffic
	dropRate float64
	down     int
	direct   int
	peerWide int // cells, of the longest subnet and PublicIP
	addrWide int
}

// same says whether two samples are of one and the same process that counts on.
func same(a, b *control.Status) bool {
	return a.Process.PID == b.Process.PID && (a.Since == nil) == (b.Since == nil) && (a.Since == nil || a.Since.Equal(*b.Since))
}

// newPicture compares a sample with the picture before, which may be nil or of another process: then no rates are known.
func newPicture(before *picture, now sample) *picture {
	p := &picture{Status: now.status, at: now.at}
	if before != nil && same(before.Status, now.status) && now.at.After(before.at) {
		p.over = now.at.Sub(before.at)
	}
	p.comparePeers(before, now.seen)
	p.count(before)
	p.compareDrops(before)
	p.compareQueues(before)
	return p
}

// rate is how fast a counter grew, a second.
func (p *picture) rate(was, is uint64) float64 { return rate(was, is, p.over) }

func rate(was, is uint64, over time.Duration) float64 {
	if over <= 0 || is < was {
		return 0
	}
	return float64(is-was) / over.Seconds()
}

// comparePeers takes when each was seen; nil: all of them now.
func (p *picture) comparePeers(before *picture, seen []time.Time) {
	var was func(i int) *peer
	if p.over > 0 {
		was = lookup(before.peers, p.Status.Peers)
	}
	p.peers = make([]peer, len(p.Status.Peers))
	for i := range p.peers {
		is := &p.Status.Peers[i]
		row := peer{PeerStatus: is, seen: p.at}
		if seen != nil {
			row.seen = seen[i]
		}
		if was != nil {
			row.compare(was(i))
		}
		p.peers[i] = row
		p.peerWide, p.addrWide = max(p.peerWide, len(is.Subnet)), max(p.addrWide, len(is.PublicIP))
	}
}

// compare finds the rates since it was another row; nil: it was none.
func (p *peer) compare(was *peer) {
	switch {
	case was == nil || was.TxPackets > p.TxPackets || was.RxPackets > p.RxPackets:
		return
	case was.seen.Equal(p.seen):
		p.traffic, p.known = was.traffic, was.known
		return
	}
	over := p.seen.Sub(was.seen)
	p.traffic = traffic{rate(was.TxPackets, p.TxPackets, over), rate(was.TxBytes, p.TxBytes, over), rate(was.RxPackets, p.RxPackets, over), rate(was.RxBytes, p.RxBytes, over)}
	p.known = p.Way != string(way.Direct) || p.traffic != traffic{} // what goes directly is not counted
}

// count is what stands of all peers at the top. A peer that has gone took its packets out of the sums: until the next look it is
// as it was then.
func (p *picture) count(before *picture) {
	if p.Counts.Total == 0 { // there is none, or the daemon is of a version that does not count them
		for i := range p.peers {
			row := &p.peers[i]
			p.total.add(row.traffic)
			if row.DownSince != nil {
				p.down++
			}
			if row.Way == string(way.Direct) {
				p.direct++
			}
		}
		return
	}
	is := &p.Counts
	p.down, p.direct = is.Down, is.Ways[string(way.Direct)]
	if p.over == 0 {
		return
	}
	was := &before.Counts
	if is.TxPackets < was.TxPackets || is.RxPackets < was.RxPackets || is.TxBytes < was.TxBytes || is.RxBytes < was.RxBytes {
		p.total = before.total
		return
	}
	p.total = traffic{p.rate(was.TxPackets, is.TxPackets), p.rate(was.TxBytes, is.TxBytes), p.rate(was.RxPackets, is.RxPackets), p.rate(was.RxBytes, is.RxBytes)}
}

// lookup finds each of the peers that are in the rows that were. Most often they are the same.
func lookup(were []peer, are []control.PeerStatus) func(i int) *peer {
	type key struct{ subnet, publicIP string }
	var index map[key]int
	return func(i int) *peer {
		k := key{are[i].Subnet, are[i].PublicIP}
		if i < len(were) && were[i].Subnet == k.subnet && were[i].PublicIP == k.publicIP {
			return &were[i]
		}
		if index == nil {
			index = make(map[key]int, len(were))
			for i := range were {
				index[key{were[i].Subnet, were[i].PublicIP}] = i
			}
		}
		if i, ok := index[k]; ok {
			return &were[i]
		}
		return nil
	}
}

func (p *picture) compareDrops(before *picture) {
	for _, reason := range slices.Sorted(maps.Keys(p.Drops)) {
		d := drop{reason: reason, total: p.Drops[reason]}
		if p.over > 0 {
			d.rate = p.rate(before.Drops[reason], d.total)
			p.dropRate += d.rate
		}
		p.drops = append(p.drops, d)
	}
}

func (p *picture) compareQueues(before *picture) {
	p.queues = make([]queue, len(p.Status.Queues))
	for i := range p.queues {
		is := &p.Status.Queues[i]
		p.queues[i] = queue{QueueStatus: is, batchSizes: is.BatchSizes, readSegments: is.ReadSegments, writeSegments: is.WriteSegments}
		if p.over == 0 {
			continue
		}
		at := slices.IndexFunc(before.Status.Queues, func(o control.QueueStatus) bool {
			return o.Queue == is.Queue && o.Direction == is.Direction && o.Family == is.Family
		})
		if at < 0 {
			continue
		}
		was := &before.Status.Queues[at]
		p.queues[i] = queue{is, p.rate(was.Packets, is.Packets), p.rate(was.Bytes, is.Bytes), p.rate(was.Batches, is.Batches),
			p.rate(was.Superpackets, is.Superpackets), p.rate(was.Joined, is.Joined),
			since(was.BatchSizes, is.BatchSizes), since(was.ReadSegments, is.ReadSegments), since(was.WriteSegments, is.WriteSegments)}
	}
}

// since is what came to a histogram since it was another one. Both have the same bounds, or it is wholly new.
func since(was, is control.Histogram) control.Histogram {
	if is.Count < was.Count || len(is.Counts) != len(was.Counts) || len(is.Bounds) != len(is.Counts) {
		return is
	}
	out := control.Histogram{Bounds: is.Bounds, Count: is.Count - was.Count, Sum: is.Sum - was.Sum}
	for i, n := range is.Counts {
		out.Counts = append(out.Counts, n-min(n, was.Counts[i]))
	}
	return out
}

// quantile is the bound that a share of all keep to: "32", or ">64" where it is above the last; empty of none.
func quantile(h control.Histogram, share float64) string {
	if h.Count == 0 || len(h.Bounds) == 0 || len(h.Bounds) != len(h.Counts) {
		return ""
	}
	for i, n := range h.Counts {
		if float64(n) >= share*float64(h.Count) {
			return fmt.Sprint(h.Bounds[i])
		}
	}
	return fmt.Sprintf(">%d", h.Bounds[len(h.Bounds)-1])
}

// compareTimes has no time last.
func compareTimes(a, b *time.Time) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return 1
	case b == nil:
		return -1
	}
	return a.Compare(*b)
}

// compareAges has the latest first, and no time last.
func compareAges(a, b *time.Time) int {
	if a != nil && b != nil {
		return b.Compare(*a)
	}
	return compareTimes(a, b)
}

// compareKnown compares numbers that may not be known: such are less than all.
func compareKnown[N int64 | float64](a, b *N) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return -1
	case b == nil:
		return 1
	}
	return cmp.Compare(*a, *b)
}
