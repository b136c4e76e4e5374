//go:build linux

package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"muslin/bench/lab"
)

// figures is the table that the run ends with.
var figures table

type table struct {
	mu   sync.Mutex
	rows []string
}

// add notes a figure that has no limit.
func (f *table) add(t *testing.T, what string, got float64, unit string) {
	t.Helper()
	f.row(t, what, fmt.Sprintf("%s %s", digits(got), unit))
}

// limit notes a figure, and fails the test if it is beyond its limit.
func (f *table) limit(t *testing.T, what string, got, most float64, unit string) {
	t.Helper()
	verdict := "met"
	if math.IsNaN(got) || got > most {
		verdict = "MISSED"
		t.Errorf("%s: %s %s, more than %s", what, digits(got), unit, digits(most))
	}
	f.row(t, what, fmt.Sprintf("%s %s\t≤ %s\t%s", digits(got), unit, digits(most), verdict))
}

// within is limit for a time, which a slow machine stretches.
func (f *table) within(t *testing.T, what string, got, most time.Duration) {
	t.Helper()
	f.limit(t, what, milliseconds(got), milliseconds(lab.Patience(most)), "ms")
}

func (f *table) row(t *testing.T, what, rest string) {
	t.Helper()
	t.Logf("%s: %s", what, strings.ReplaceAll(rest, "\t", "  "))
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rows = append(f.rows, what+"\t"+rest)
}

func (f *table) print(w io.Writer) error {
	if len(f.rows) == 0 {
		return nil
	}
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tab, "\nFIGURE\tMEASURED\tLIMIT\tVERDICT")
	for _, row := range f.rows {
		fmt.Fprintln(tab, row)
	}
	return tab.Flush()
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func megabytes(bytes int64) float64 { return float64(bytes) / 1e6 }

// digits shows three significant ones, or all before the point.
func digits(v float64) string {
	switch a := math.Abs(v); {
	case v == math.Trunc(v) || a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// percentile of values, of which there is at least one: the least of them that p percent do not exceed.
func percentile(values []time.Duration, p float64) time.Duration {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(0, int(math.Ceil(p/100*float64(len(sorted))))-1)]
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	half := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[half]
	}
	return (sorted[half-1] + sorted[half]) / 2
}
