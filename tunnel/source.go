package tunnel

import (
	"net/netip"
	"time"

	"muslin/tunnel/fib"
)

// tally counts what one peer after the other has sent, so that a run of packets costs its counters one
// addition.
type tally struct {
	peer           *fib.Peer
	packets, bytes uint64
	fresh          []*fib.Peer // heard of since the last settle
}

// count takes packets from peer, which is nil with SourceCheckOff and an inner source that nobody leases.
func (t *tally) count(peer *fib.Peer, packets, bytes int) {
	if peer != t.peer {
		t.settlePeer()
		t.peer = peer
	}
	t.packets += uint64(packets)
	t.bytes += uint64(bytes)
}

func (t *tally) settlePeer() {
	if t.peer != nil && t.packets > 0 {
		t.peer.Counters.RxPackets.Add(t.packets)
		t.peer.Counters.RxBytes.Add(t.bytes)
		if len(t.fresh) == 0 || t.fresh[len(t.fresh)-1] != t.peer {
			t.fresh = append(t.fresh, t.peer)
		}
	}
	t.peer, t.packets, t.bytes = nil, 0, 0
}

// settle ends a batch, which arrived at now.
func (t *tally) settle(now time.Time) {
	t.settlePeer()
	for _, peer := range t.fresh {
		peer.Counters.LastRx.Store(now.UnixNano())
	}
	t.fresh = t.fresh[:0]
}

// sourceCache remembers what the table said of the last source, which the next packet mostly shares.
type sourceCache struct {
	table     *fib.Table
	innerAddr netip.Addr
	innerPeer *fib.Peer
	outerAddr netip.Addr
	outerIs   bool
}

// renew begins a batch.
func (c *sourceCache) renew(table *fib.Table) {
	if table != c.table {
		*c = sourceCache{table: table}
	}
}

func (c *sourceCache) inner(src netip.Addr) *fib.Peer {
	if src != c.innerAddr {
		c.innerAddr, c.innerPeer = src, c.table.Lookup(src)
	}
	return c.innerPeer
}

func (c *sourceCache) outer(src netip.Addr) bool {
	if src != c.outerAddr {
		c.outerAddr, c.outerIs = src, c.table.KnowsOuter(src)
	}
	return c.outerIs
}
