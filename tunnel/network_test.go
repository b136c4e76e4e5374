package tunnel

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// network joins VTEPs through memory, one batch after the other. What it does to datagrams on the way, its
// fields say; each is a probability, from 0 to 1.
type network struct {
	rand      *rand.Rand
	gro       float64 // a datagram is joined to the one before it, where the kernel might (UDP_GRO)
	loss      float64
	twice     float64
	overtaken float64 // a datagram is overtaken by the one behind it
	ends      []*bench

	carried map[netip.Addr][][]byte // the inner packets that reached each end, in order
}

func newNetwork(seed uint64, ends ...*bench) *network {
	return &network{rand: rand.New(rand.NewPCG(seed, 1)), ends: ends, carried: map[netip.Addr][][]byte{}}
}

func (n *network) chance(p float64) bool { return n.rand.Float64() < p }

// send takes packets out of one end and into the others.
func (n *network) send(t testing.TB, from *bench, packets ...inner) {
	t.Helper()
	sent := n.disturb(from.send(t, packets...))
	for _, to := range n.ends {
		var mine []outer
		for _, d := range sent {
			if d.addr.Addr() == to.node.public {
				mine = append(mine, d)
				n.carried[to.node.public] = append(n.carried[to.node.public], from.unframed(d))
			}
		}
		if len(mine) == 0 {
			continue
		}
		to.und.pending = received(from.node, mine, func() bool { return n.chance(n.gro) })
		for len(to.und.pending) > 0 {
			if err := to.in[0].batch(); err != nil {
				t.Fatalf("inbound batch: %v", err)
			}
		}
		to.check(t)
	}
}

// disturb loses, doubles and reorders.
func (n *network) disturb(sent []outer) (ds []outer) {
	for _, d := range sent {
		if n.chance(n.loss) {
			continue
		}
		ds = append(ds, d)
		if n.chance(n.twice) {
			ds = append(ds, d)
		}
	}
	for i := 1; i < len(ds); i++ {
		if n.chance(n.overtaken) {
			ds[i-1], ds[i] = ds[i], ds[i-1]
		}
	}
	return ds
}

// received is what the kernel of the other end makes of datagrams that one node sent. With UDP_GRO it joins,
// of each source port, those of equal length and ECN, at most 64, and a shorter one behind them; join says
// whether it does so with the next.
func received(from node, sent []outer, join func() bool) (ds []Datagram) {
	open := map[uint8]int{} // by source port
	for _, o := range sent {
		if i, ok := open[o.port]; ok && ds[i].ECN == o.ecn && join() {
			d := &ds[i]
			size := d.Size
			if size == 0 {
				size = len(d.Buf)
			}
			if len(o.buf) <= size && len(d.Buf)+len(o.buf) <= MaxPayload && len(d.Buf) < 64*size {
				d.Buf, d.Size = append(d.Buf, o.buf...), size
				if len(o.buf) < size {
					delete(open, o.port)
				}
				continue
			}
		}
		open[o.port] = len(ds)
		addr := netip.AddrPortFrom(from.public, 40000+uint16(o.port))
		ds = append(ds, Datagram{Buf: slices.Clone(o.buf), Addr: addr, ECN: o.ecn})
	}
	return ds
}
