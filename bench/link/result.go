//go:build linux

package link

import (
	"fmt"
	"time"
)

// Result is what Measure found. `muslin bench link --output json` prints it: others script against it, so
// fields are added, never renamed or removed (docs/bench-link.md).
type Result struct {
	Started  time.Time       `json:"started"`
	Seconds  float64         `json:"seconds"`              // of each measure
	Streams  int             `json:"streams"`              // of the measures with several
	Rate     int64           `json:"rate_bits_per_second"` // limit, the stricter one of both sides; 0 is none
	Overlay  Path            `json:"overlay"`
	Underlay Path            `json:"underlay"`
	Measures map[string]*Row `json:"measures"` // by name; those that were made

	// Failures are what did not work over the overlay and did over the underlay; Both what did not work
	// over either; Notes the rest that is worth a word. Each is a sentence that begins with the title.
	Failures []string `json:"failures"`
	Both     []string `json:"both_failed"`
	Notes    []string `json:"notes"`
}

// Path is one of the two ways to the peer.
type Path struct {
	Address string `json:"address"` // of the server, with the port
	Local   string `json:"local"`   // our address on it; empty while it is not reached
	Error   string `json:"error"`   // why nothing was measured over it
}

// Row is one measure over both paths. A path over which nothing was measured is null.
type Row struct {
	Title    string   `json:"title"` // for people
	Overlay  *Outcome `json:"overlay"`
	Underlay *Outcome `json:"underlay"`
	Ratio    *float64 `json:"overlay_to_underlay"` // of bits per second, or of the round trips' p50
}

// Outcome is one measure over one path: why it failed, and of the others the one that fits the measure.
type Outcome struct {
	Error string `json:"error"`
	*Throughput
	*Latency
	*Loss
	*Largest
}

// MaxLoss is the share of datagrams whose loss counts as not working.
const MaxLoss = 0.05

// trouble says what is wrong with the outcome, or nothing.
func (o *Outcome) trouble() string {
	switch {
	case o.Error != "":
		return o.Error
	case o.Loss != nil && o.Loss.Share > MaxLoss:
		return fmt.Sprintf("%.1f %% of %d packets were lost", 100*o.Loss.Share, o.Sent)
	case o.Largest != nil && o.Found < o.Expected:
		return fmt.Sprintf("packets of up to %d bytes pass, although the MTU is %d", o.Found, o.Expected)
	}
	return ""
}

// rows are the measures that were made, in order.
func (r *Result) rows() []*Row {
	var rows []*Row
	for _, m := range measures {
		if row := r.Measures[m.name]; row != nil {
			rows = append(rows, row)
		}
	}
	return rows
}

// figure is what the ratio is made of, or 0.
func (o *Outcome) figure() float64 {
	switch {
	case o.Error != "":
		return 0
	case o.Throughput != nil:
		return o.BitsPerSecond
	case o.Latency != nil:
		return o.P50
	}
	return 0
}

// judge fills in the ratios and the sentences.
func (r *Result) judge() {
	r.Failures, r.Both, r.Notes = []string{}, []string{}, []string{}
	r.judgePaths()
	for _, row := range r.rows() {
		over, under := "", ""
		if row.Overlay != nil {
			over = row.Overlay.trouble()
		}
		if row.Underlay != nil {
			under = row.Underlay.trouble()
		}
		switch {
		case over != "" && under != "":
			r.Both = append(r.Both, fmt.Sprintf("%s: over the overlay, %s; over the underlay, %s", row.Title, over, under))
		case over != "":
			r.Failures = append(r.Failures, row.Title+": "+over)
		case under != "":
			r.Notes = append(r.Notes, fmt.Sprintf("%s: over the underlay, %s", row.Title, under))
		}
		if row.Overlay == nil || row.Underlay == nil {
			continue
		}
		if u := row.Underlay.figure(); u > 0 && row.Overlay.figure() > 0 {
			ratio := row.Overlay.figure() / u
			row.Ratio = &ratio
		}
	}
}

func (r *Result) judgePaths() {
	switch over, under := r.Overlay.Error, r.Underlay.Error; {
	case over != "" && under != "":
		r.Both = append(r.Both, fmt.Sprintf("nothing was measured: over the overlay, %s; over the underlay, %s", over, under))
	case over != "":
		r.Failures = append(r.Failures, "the overlay does not reach the peer: "+over)
	case under != "":
		r.Notes = append(r.Notes, "the underlay was not measured: "+under)
	}
}
