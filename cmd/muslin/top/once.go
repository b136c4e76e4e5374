package top

import (
	"context"
	"fmt"
	"io"
	"time"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/text"
)

// Report is what `muslin top --once --output json` prints. Others script against it: fields are added, never renamed or
// removed (docs/top.md). Rates are of the time between two looks, in a second; null: not known, as of a peer that came
// meanwhile, or that packets reach directly.
type Report struct {
	Version  string              `json:"version"`
	State    string              `json:"state"`
	Since    *time.Time          `json:"since"`
	At       time.Time           `json:"at"`               // of the second look
	Interval float64             `json:"interval_seconds"` // between the two
	Node     control.NodeStatus  `json:"node"`
	Store    control.StoreStatus `json:"store"`
	Warnings []string            `json:"warnings"`
	Total    Rates               `json:"total"` // of all peers
	Peers    []PeerReport        `json:"peers"` // sorted
	Drops    []DropReport        `json:"drops"` // sorted by rate
	Queues   []QueueReport       `json:"queues"`
}

// PeerReport is a peer as the status has it, and its rates.
type PeerReport struct {
	control.PeerStatus
	Rates
}

// Rates are those of a peer's inner packets, and their bytes.
type Rates struct {
	TxPackets *float64 `json:"tx_packets_per_second"`
	TxBytes   *float64 `json:"tx_bytes_per_second"`
	RxPackets *float64 `json:"rx_packets_per_second"`
	RxBytes   *float64 `json:"rx_bytes_per_second"`
}

// DropReport is what was dropped for one reason.
type DropReport struct {
	Reason  string  `json:"reason"`
	Packets uint64  `json:"packets"`
	Rate    float64 `json:"packets_per_second"`
}

// QueueReport is a worker's rates, and how large its batches and pieces were between the two looks; 0: there were none.
type QueueReport struct {
	Queue     int     `json:"queue"`
	Direction string  `json:"direction"`
	Family    string  `json:"family"`
	Packets   float64 `json:"packets_per_second"`
	Bytes     float64 `json:"bytes_per_second"`
	Batches   float64 `json:"batches_per_second"`
	Super     float64 `json:"superpackets_per_second"`
	Joined    float64 `json:"joined_per_second"`
	PerBatch  float64 `json:"pieces_per_batch"`
	PerRead   float64 `json:"packets_per_read"`
	PerWrite  float64 `json:"packets_per_write"`
}

func (t traffic) rates(known bool) Rates {
	if !known {
		return Rates{}
	}
	return Rates{&t.txPackets, &t.txBytes, &t.rxPackets, &t.rxBytes}
}

// Once looks twice, an interval apart.
func Once(ctx context.Context, source Source, o Options) (*Look, error) {
	m, err := newModel(ctx, source, o, false)
	if err != nil {
		return nil, err
	}
	var last *picture
	for {
		began := time.Now()
		status, err := source.Status(ctx, o.Network, control.Look{Peers: control.AllPeers, Watch: control.AllPeers})
		if err != nil {
			return nil, err
		}
		is := sample{at: began.Add(time.Since(began) / 2), status: status}
		if m.picture = newPicture(last, is); m.picture.over > 0 {
			break
		}
		last = m.picture // the first, or of a daemon that was started anew meanwhile
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("ended before the second look, which comes %v after the first (--interval)", o.Interval)
		case <-time.After(o.Interval):
		}
	}
	for _, t := range m.tables {
		if t != nil {
			t.arrange(nil)
		}
	}
	m.tables[panePeers].arrange(words(o.Filter))
	return &Look{m}, nil
}

// Look is what Once has seen.
type Look struct{ m *model }

// Report is it for a script.
func (l *Look) Report() *Report {
	p := l.m.picture
	r := &Report{Version: p.Version, State: p.State, Since: p.Since, At: p.at.UTC(), Interval: p.over.Seconds(), Node: p.Node, Store: p.Store,
		Warnings: p.Warnings, Total: p.total.rates(true), Peers: []PeerReport{}, Drops: []DropReport{}, Queues: []QueueReport{}}
	for _, i := range l.m.tables[panePeers].order {
		row := p.peers[i]
		r.Peers = append(r.Peers, PeerReport{*row.PeerStatus, row.rates(row.known)})
	}
	for _, i := range l.m.tables[paneDrops].order {
		d := p.drops[i]
		r.Drops = append(r.Drops, DropReport{d.reason, d.total, d.rate})
	}
	for _, q := range p.queues {
		r.Queues = append(r.Queues, QueueReport{q.Queue, q.Direction, q.Family, q.packets, q.bytes, q.batches, q.superpackets, q.joined,
			q.batchSizes.Mean(), q.readSegments.Mean(), q.writeSegments.Mean()})
	}
	return r
}

// Print writes it for a person.
func (l *Look) Print(w io.Writer) error {
	p := l.m.picture
	out := text.NewPrinter(w)
	out.Line("muslin %s: %s, in %v until %s", p.Version, p.State, p.over.Round(time.Millisecond), p.at.Local().Format(time.TimeOnly))
	for _, warning := range p.Warnings {
		out.Line("WARNING: %s", clean(warning))
	}
	for _, line := range append(nodeLines(p, p.at), trafficLine(p, 1<<10)) {
		out.Line("%s", clean(line))
	}
	if err := out.Finish(); err != nil {
		return err
	}
	for _, t := range []pane{panePeers, paneDrops, paneQueues} {
		if err := l.m.tables[t].print(w, paneNames[t]); err != nil {
			return err
		}
	}
	return nil
}

// print writes all rows, with every column.
func (t *table) print(w io.Writer, name string) error {
	out := text.NewPrinter(w)
	if len(t.order) == 0 {
		out.Line("\n%s: none", name)
		return out.Finish()
	}
	out.Line("")
	line := ""
	for _, c := range t.columns {
		line += "\t" + c.title
	}
	out.Line("%s", line[1:])
	for _, i := range t.order {
		line = ""
		for _, c := range t.columns {
			line += "\t" + clean(c.cell(i))
		}
		out.Line("%s", line[1:])
	}
	return out.Finish()
}
