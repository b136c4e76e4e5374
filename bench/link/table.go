//go:build linux

package link

import "fmt"

// Table is the result for people: a heading, and for each measure what the overlay gave, the underlay, and
// the one divided by the other.
func (r *Result) Table() [][]string {
	table := [][]string{{"", "OVERLAY", "UNDERLAY", "OVERLAY ÷ UNDERLAY"}}
	for _, row := range r.rows() {
		ratio := ""
		if row.Ratio != nil {
			ratio = fmt.Sprintf("%.2f", *row.Ratio)
		}
		title := row.Title
		if o := row.Overlay; o != nil && o.Latency != nil {
			title += ", p50 / p99 / p99.9"
		}
		table = append(table, []string{title, row.Overlay.text(), row.Underlay.text(), ratio})
	}
	return table
}

// text is the outcome in a few words. What went wrong is told in the result's sentences.
func (o *Outcome) text() string {
	switch {
	case o == nil:
		return "-"
	case o.Error != "":
		return "FAILED"
	case o.Throughput != nil:
		return bitsText(o.BitsPerSecond)
	case o.Latency != nil:
		return fmt.Sprintf("%s / %s / %s µs", microsText(&o.P50), microsText(o.P99), microsText(o.P999))
	case o.Loss != nil:
		return fmt.Sprintf("%s of %d", percentText(o.Share), o.Sent)
	case o.Largest != nil && o.Expected == 0:
		return fmt.Sprintf("%d bytes", o.Found)
	case o.Largest != nil:
		return fmt.Sprintf("%d bytes (MTU %d)", o.Found, o.Expected)
	}
	return "-"
}

func bitsText(rate float64) string {
	unit := 0
	for ; rate >= 1000 && unit < 3; unit++ {
		rate /= 1000
	}
	digits := 2
	for top := 10.0; rate >= top && digits > 0; top *= 10 {
		digits--
	}
	return fmt.Sprintf("%.*f %sb/s", digits, rate, []string{"", "k", "M", "G"}[unit])
}

func microsText(us *float64) string {
	if us == nil {
		return "-"
	}
	return fmt.Sprintf("%.0f", *us)
}

// percentText keeps a small share apart from none.
func percentText(share float64) string {
	if share > 0 && share < 0.001 {
		return fmt.Sprintf("%.3f %%", 100*share)
	}
	return fmt.Sprintf("%.1f %%", 100*share)
}
