package top

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/text"
	"muslin/tunnel"
	"muslin/tunnel/pathmtu"
)

// The tables. Their columns look at the model's picture, which is there whenever there are rows.

func (m *model) peerTable() *table {
	at := func(i int) *peer { return &m.picture.peers[i] }
	rate := func(name, title string, keep int, of func(*peer) float64, show func(float64) string) column {
		return column{name: name, title: title, right: true, keep: keep, desc: true, wide: func() int { return 7 },
			cell: func(i int) string {
				if !at(i).known {
					return "-"
				}
				return show(of(at(i)))
			},
			cmp: func(a, b int) int { return cmp.Compare(of(at(a)), of(at(b))) },
		}
	}
	number := func(name, title string, keep int, of func(*peer) uint64, show func(uint64) string) column {
		return column{name: name, title: title, right: true, keep: keep, desc: true, wide: func() int { return 10 },
			cell: func(i int) string { return show(of(at(i))) },
			cmp:  func(a, b int) int { return cmp.Compare(of(at(a)), of(at(b))) },
		}
	}
	return &table{
		rows: func() int { return len(m.picture.peers) },
		columns: []column{
			{name: "peer", title: "PEER", keep: 1, wide: func() int { return m.picture.peerWide },
				cell: func(i int) string { return at(i).Subnet }, cmp: cmp.Compare[int]},
			{name: "public-ip", title: "PUBLIC IP", keep: 6, wide: func() int { return m.picture.addrWide },
				cell: func(i int) string { return at(i).PublicIP },
				cmp:  func(a, b int) int { return compareAddrs(at(a).PublicIP, at(b).PublicIP) }},
			{name: "state", title: "STATE", keep: 2, desc: true, wide: func() int { return 8 },
				cell: func(i int) string { return at(i).state(m.picture.at) },
				cmp:  func(a, b int) int { return at(a).trouble() - at(b).trouble() }},
			{name: "rtt", title: "RTT", right: true, keep: 4, desc: true, wide: func() int { return 7 },
				cell: func(i int) string {
					if at(i).RTT == nil {
						return "-"
					}
					return text.Millis(*at(i).RTT)
				},
				cmp: func(a, b int) int { return compareKnown(at(a).RTT, at(b).RTT) }},
			{name: "loss", title: "LOSS", right: true, keep: 5, desc: true,
				cell: func(i int) string {
					if at(i).Loss == nil {
						return "-"
					}
					return text.Percent(*at(i).Loss)
				},
				cmp: func(a, b int) int { return compareKnown(at(a).Loss, at(b).Loss) }},
			rate("tx", "TX b/s", 3, func(p *peer) float64 { return p.txBytes }, bits),
			rate("rx", "RX b/s", 3, func(p *peer) float64 { return p.rxBytes }, bits),
			rate("tx-packets", "TX p/s", 7, func(p *peer) float64 { return p.txPackets }, si),
			rate("rx-packets", "RX p/s", 7, func(p *peer) float64 { return p.rxPackets }, si),
			{name: "way", title: "WAY", keep: 8, wide: func() int { return 12 },
				cell: func(i int) string { return at(i).Way }, cmp: func(a, b int) int { return cmp.Compare(at(a).Way, at(b).Way) }},
			{name: "mtu", title: "PATH MTU", right: true, keep: 9,
				cell: func(i int) string { return at(i).pathMTU(m.picture.Node.MTU) },
				cmp:  func(a, b int) int { return cmp.Compare(at(a).pathLimit(), at(b).pathLimit()) }},
			{name: "heard", title: "HEARD", right: true, keep: 10,
				cell: func(i int) string {
					if at(i).LastRx == nil {
						return "never"
					}
					return short(m.picture.at.Sub(*at(i).LastRx))
				},
				cmp: func(a, b int) int { return compareAges(at(a).LastRx, at(b).LastRx) }},
			{name: "down-since", title: "DOWN SINCE", right: true, keep: 11,
				cell: func(i int) string { return clock(m.picture.at, at(i).DownSince) },
				cmp:  func(a, b int) int { return compareTimes(at(a).DownSince, at(b).DownSince) }},
			{name: "backend", title: "BACKEND", keep: 14, wide: func() int { return 9 },
				cell: func(i int) string { return at(i).Backend }, cmp: func(a, b int) int { return cmp.Compare(at(a).Backend, at(b).Backend) }},
			number("tx-total", "SENT", 12, func(p *peer) uint64 { return p.TxBytes }, text.Bytes),
			number("rx-total", "RECEIVED", 13, func(p *peer) uint64 { return p.RxBytes }, text.Bytes),
		},
		matches: func(i int, words []string) bool { return at(i).matches(words) },
		then: func(a, b int) int {
			return cmp.Compare(at(b).txBytes+at(b).rxBytes, at(a).txBytes+at(a).rxBytes)
		},
		look: func(i int) look {
			switch p := at(i); {
			case p.DownSince != nil:
				return bad
			case p.Up == nil:
				return faint
			case p.Loss != nil && *p.Loss > 0, p.PathMTUState == string(pathmtu.Smaller), p.PathMTUState == string(pathmtu.Unknown):
				return odd
			}
			return normal
		},
		by: 2, // state: what is down first, then what is busiest
	}
}

// state is short: the table's other columns and the details say more.
func (p *peer) state(now time.Time) string {
	switch {
	case p.DownSince != nil:
		return "DOWN " + short(now.Sub(*p.DownSince))
	case p.Up == nil:
		return "unknown"
	}
	return "up"
}

// trouble is how much one is to be looked at.
func (p *peer) trouble() int {
	switch {
	case p.DownSince != nil:
		return 2
	case p.Up == nil:
		return 1
	}
	return 0
}

func (p *peer) pathMTU(overlay int) string {
	switch p.PathMTUState {
	case string(pathmtu.Full):
		return fmt.Sprint(overlay)
	case string(pathmtu.Smaller):
		return fmt.Sprintf("%d!", p.PathMTU)
	case string(pathmtu.Unknown):
		return "unknown"
	}
	return "-"
}

// pathLimit sorts the smaller ones first, the ones that are not limited last.
func (p *peer) pathLimit() int {
	switch p.PathMTUState {
	case string(pathmtu.Smaller):
		return p.PathMTU
	case string(pathmtu.Unknown):
		return 0
	case string(pathmtu.Full):
		return 1 << 16
	}
	return 1 << 17
}

// matches says whether each word is in what the row says; an address also finds the peer that holds it.
func (p *peer) matches(words []string) bool {
	var all string
	for _, word := range words {
		if addr, err := netip.ParseAddr(word); err == nil {
			if subnet, err := netip.ParsePrefix(p.Subnet); err == nil && subnet.Contains(addr) {
				continue
			}
		}
		if all == "" {
			state := "up"
			switch {
			case p.DownSince != nil:
				state = "down"
			case p.Up == nil:
				state = "unknown"
			}
			all = strings.ToLower(strings.Join([]string{p.Subnet, p.PublicIP, p.OtherSubnet, p.Backend, p.Way, p.WayRule, state, p.PathMTUState, p.VtepMAC, p.PublicKey, p.Endpoint}, " "))
		}
		if !strings.Contains(all, word) {
			return false
		}
	}
	return true
}

func compareAddrs(a, b string) int {
	x, errX := netip.ParseAddr(a)
	y, errY := netip.ParseAddr(b)
	if errX != nil || errY != nil {
		return cmp.Compare(a, b)
	}
	return x.Compare(y)
}

func (m *model) dropTable() *table {
	at := func(i int) *drop { return &m.picture.drops[i] }
	return &table{
		rows: func() int { return len(m.picture.drops) },
		columns: []column{
			{name: "reason", title: "REASON", keep: 1, wide: func() int { return 22 },
				cell: func(i int) string { return at(i).reason }, cmp: cmp.Compare[int]},
			{name: "rate", title: "DROPS/s", right: true, keep: 2, desc: true,
				cell: func(i int) string { return m.picture.rateText(at(i).rate) },
				cmp:  func(a, b int) int { return cmp.Compare(at(a).rate, at(b).rate) }},
			{name: "total", title: "IN ALL", right: true, keep: 3, desc: true, wide: func() int { return 12 },
				cell: func(i int) string { return fmt.Sprint(at(i).total) },
				cmp:  func(a, b int) int { return cmp.Compare(at(a).total, at(b).total) }},
			{name: "meaning", title: "MEANING", keep: 4, rest: true,
				cell: func(i int) string { return tunnel.ExplainDrop(at(i).reason) },
				cmp: func(a, b int) int {
					return cmp.Compare(tunnel.ExplainDrop(at(a).reason), tunnel.ExplainDrop(at(b).reason))
				}},
		},
		matches: func(i int, words []string) bool { return inAll(words, at(i).reason, tunnel.ExplainDrop(at(i).reason)) },
		then:    func(a, b int) int { return cmp.Compare(at(b).total, at(a).total) },
		look: func(i int) look {
			if at(i).rate > 0 {
				return odd
			}
			return normal
		},
		by: 1,
	}
}

func (m *model) queueTable() *table {
	at := func(i int) *queue { return &m.picture.queues[i] }
	rate := func(name, title string, keep int, of func(*queue) float64, show func(float64) string) column {
		return column{name: name, title: title, right: true, keep: keep, desc: true, wide: func() int { return 7 },
			cell: func(i int) string {
				if m.picture.over == 0 {
					return "-"
				}
				return show(of(at(i)))
			},
			cmp: func(a, b int) int { return cmp.Compare(of(at(a)), of(at(b))) },
		}
	}
	mean := func(name, title string, keep int, of func(*queue) *control.Histogram) column {
		return column{name: name, title: title, right: true, keep: keep, desc: true,
			cell: func(i int) string {
				if of(at(i)).Count == 0 {
					return "-"
				}
				return fmt.Sprintf("%.1f", of(at(i)).Mean())
			},
			cmp: func(a, b int) int { return cmp.Compare(of(at(a)).Mean(), of(at(b)).Mean()) },
		}
	}
	p99 := func(name, title string, keep int, of func(*queue) *control.Histogram) column {
		return column{name: name, title: title, right: true, keep: keep, desc: true,
			cell: func(i int) string { return text.Dash(quantile(*of(at(i)), 0.99)) },
			cmp: func(a, b int) int {
				x, y := quantile(*of(at(a)), 0.99), quantile(*of(at(b)), 0.99)
				return cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y)) // of whole numbers
			},
		}
	}
	batches := func(q *queue) *control.Histogram { return &q.batchSizes }
	read := func(q *queue) *control.Histogram { return &q.readSegments }
	written := func(q *queue) *control.Histogram { return &q.writeSegments }
	return &table{
		rows: func() int { return len(m.picture.queues) },
		columns: []column{
			{name: "queue", title: "QUEUE", right: true, keep: 1, cell: func(i int) string { return fmt.Sprint(at(i).Queue) }, cmp: cmp.Compare[int]},
			{name: "direction", title: "DIRECTION", keep: 1,
				cell: func(i int) string { return at(i).Direction },
				cmp:  func(a, b int) int { return -cmp.Compare(at(a).Direction, at(b).Direction) }},
			{name: "family", title: "FAMILY", keep: 5,
				cell: func(i int) string { return at(i).Family }, cmp: func(a, b int) int { return cmp.Compare(at(a).Family, at(b).Family) }},
			rate("packets", "PKT/s", 2, func(q *queue) float64 { return q.packets }, si),
			rate("bits", "b/s", 2, func(q *queue) float64 { return q.bytes }, bits),
			rate("batches", "BATCH/s", 3, func(q *queue) float64 { return q.batches }, si),
			mean("batch", "PER BATCH", 3, batches),
			p99("batch-p99", "p99", 6, batches),
			mean("read", "PKT/READ", 4, read),
			p99("read-p99", "p99", 7, read),
			mean("written", "PKT/WRITE", 4, written),
			p99("written-p99", "p99", 7, written),
			rate("superpackets", "SUPER/s", 8, func(q *queue) float64 { return q.superpackets }, si),
			rate("joined", "JOINED/s", 8, func(q *queue) float64 { return q.joined }, si),
			{name: "total", title: "IN ALL", right: true, keep: 9, desc: true, wide: func() int { return 10 },
				cell: func(i int) string { return text.Bytes(at(i).Bytes) }, cmp: func(a, b int) int { return cmp.Compare(at(a).Bytes, at(b).Bytes) }},
		},
		matches: func(i int, words []string) bool {
			return inAll(words, fmt.Sprint(at(i).Queue), at(i).Direction, at(i).Family)
		},
		look: func(i int) look {
			if m.picture.over > 0 && at(i).batches == 0 {
				return faint
			}
			return normal
		},
	}
}

func (m *model) featureTable() *table {
	onOff := func(i int) string { return text.OnOff(m.picture.Features[i].On) }
	return &table{
		rows: func() int { return len(m.picture.Features) },
		columns: []column{
			{name: "way", title: "FEATURE", keep: 1, wide: func() int { return 16 }, // in the order of the packet's way
				cell: func(i int) string { return m.picture.Features[i].Name }, cmp: cmp.Compare[int]},
			{name: "on", title: "ON", keep: 2, wide: func() int { return 3 }, cell: onOff,
				cmp: func(a, b int) int { return cmp.Compare(onOff(a), onOff(b)) }},
			{name: "reason", title: "WHY, OR WHAT WAS GIVEN", keep: 3, rest: true,
				cell: func(i int) string { return m.picture.Features[i].Reason },
				cmp:  func(a, b int) int { return cmp.Compare(m.picture.Features[a].Reason, m.picture.Features[b].Reason) }},
		},
		matches: func(i int, words []string) bool {
			return inAll(words, m.picture.Features[i].Name, onOff(i), m.picture.Features[i].Reason)
		},
		look: func(i int) look {
			if !m.picture.Features[i].On {
				return faint
			}
			return normal
		},
	}
}

// inAll says whether each of the words, which are in lower case, is in one of the texts.
func inAll(words []string, texts ...string) bool {
	all := strings.ToLower(strings.Join(texts, " "))
	for _, word := range words {
		if !strings.Contains(all, word) {
			return false
		}
	}
	return true
}

// rateText is a rate as far as it is known.
func (p *picture) rateText(perSecond float64) string {
	if p.over == 0 {
		return "-"
	}
	return si(perSecond)
}
