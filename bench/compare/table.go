package compare

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// section is one table of the report.
type section struct {
	title   string
	columns []column
}

type column struct{ heading, figure string }

var sections = []section{
	{"TCP throughput, Gb/s", []column{{"1 stream", "tcp-1"}, {"back", "tcp-1-back"}, {"4 streams", "tcp-4"}, {"back", "tcp-4-back"}}},
	{"UDP at full rate, thousand packets a second received, and loss in %", []column{{"64 B", "udp-64"}, {"lost", "udp-64-loss"}, {"1400 B", "udp-1400"}, {"lost", "udp-1400-loss"}}},
	{"UDP at a fixed rate, thousand packets a second received, and loss in %", []column{{"64 B", "udp-64-fixed"}, {"lost", "udp-64-fixed-loss"}, {"1400 B", "udp-1400-fixed"}, {"lost", "udp-1400-fixed-loss"}}},
	{"TCP ping-pong, one way, µs", []column{{"p50", "tcp-latency-p50"}, {"p99", "tcp-latency-p99"}, {"p99.9", "tcp-latency-p99.9"}}},
	{"UDP ping-pong, one way, µs", []column{{"p50", "udp-latency-p50"}, {"p99", "udp-latency-p99"}, {"p99.9", "udp-latency-p99.9"}}},
	{"processor time for TCP, 1 stream, in seconds a gigabyte", []column{{"machine", figureCPU}, {"daemons", figureCPUDaemons}}},
}

// ladderColumns are shown of muslin with features switched off.
var ladderColumns = []column{{"TCP, Gb/s", figureTCP1}, {"UDP 64 B, kpps", figureUDP64}, {"latency p50, µs", figureLatency}, {"machine, s/GB", figureCPU}}

// tooBusy is how busy, in percent, a machine may be with all systems idle before the reader is warned.
const tooBusy = 5

// WriteReport prints everything for people.
func (r *Results) WriteReport(w io.Writer) error {
	fmt.Fprintf(w, "%s\n%d rounds of %d s each, %s to %s\n", r.Machine, r.Settings.Rounds, r.Settings.Seconds,
		r.Started.Format(time.DateTime), r.Ended.Format("15:04:05 MST"))
	if r.Machine.IdleCPU > tooBusy {
		fmt.Fprintf(w, "WARNING: the machine was %.0f %% busy before anything was measured: with other work on it the figures mean little\n", r.Machine.IdleCPU)
	}
	fmt.Fprintf(w, "Each cell: median (lowest–highest), ÷ %s of the same round\n", Baseline)
	systems := slices.DeleteFunc(slices.Clone(r.Systems), func(e Entry) bool { return e.NotMeasured != "" })
	for _, s := range sections {
		if err := r.writeSection(w, s, systems, Baseline); err != nil {
			return err
		}
	}
	for _, full := range []string{"muslin-vxlan", "muslin-udp"} {
		ladder := slices.DeleteFunc(slices.Clone(systems), func(e Entry) bool {
			return e.Name != full && !strings.HasPrefix(e.Name, full+":")
		})
		if len(ladder) < 2 {
			continue
		}
		if err := r.writeSection(w, section{"The ladder: " + full + " without each feature; ÷ " + full, ladderColumns}, ladder, full); err != nil {
			return err
		}
	}
	return r.writeRemarks(w)
}

// writeSection prints the figures that were measured, if any. Rungs are only shown in the ladder's own section,
// which is the one that is not compared with the baseline, unless nothing but them is there.
func (r *Results) writeSection(w io.Writer, s section, systems []Entry, against string) error {
	var figures []Figure
	heading := ""
	for _, c := range s.columns {
		i := slices.IndexFunc(r.Figures, func(f Figure) bool { return f.Name == c.figure })
		if i < 0 {
			continue
		}
		figures = append(figures, r.Figures[i])
		heading += "\t" + c.heading + "\t"
		if comparable(r.Figures[i]) {
			heading += "\t"
		}
	}
	var rows []string
	for _, e := range systems {
		if e.Rung && against == Baseline {
			continue
		}
		row, any := e.Name, false
		for _, f := range figures {
			cells, ok := r.cells(f, e.Name, against)
			row, any = row+"\t"+cells, any || ok
		}
		if any {
			rows = append(rows, row)
		}
	}
	if len(rows) == 0 {
		return nil
	}
	fmt.Fprintf(w, "\n%s\n", s.title)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, strings.TrimRight(heading, "\t"))
	for _, row := range rows {
		fmt.Fprintln(table, row)
	}
	return table.Flush()
}

// comparable reports whether a ratio of the figure means anything: a loss may be zero.
func comparable(f Figure) bool { return f.Unit != "%" && f.Name != figureCPUDaemons }

// cells are the figure's median, spread and ratio, divided by tabs. It reports false where there is no figure.
func (r *Results) cells(f Figure, system, against string) (string, bool) {
	median, spread, ratio := "-", "", ""
	s, ok := r.Summary(system, f.Name)
	if ok {
		median = Number(s.Median)
		if s.Rounds > 1 {
			spread = "(" + spreadOf(s) + ")"
		}
	}
	if !comparable(f) {
		return median + "\t" + spread, ok
	}
	if q, ok := r.Ratio(f.Name, system, against); ok {
		ratio = "×" + Number(q.Median)
	}
	return median + "\t" + spread + "\t" + ratio, ok
}

// writeRemarks prints what the tables do not show: versions, what was not measured, what failed.
func (r *Results) writeRemarks(w io.Writer) error {
	fmt.Fprintln(w, "\nSystems")
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, e := range r.Systems {
		if e.NotMeasured != "" {
			fmt.Fprintf(table, "  %s\t%s; not measured: %s\n", e.Name, e.About, firstLine(e.NotMeasured))
			continue
		}
		parts := append([]string{e.About}, e.Version, fmt.Sprintf("pods' MTU %d", e.MTU))
		parts = slices.DeleteFunc(append(parts, e.Notes...), func(s string) bool { return s == "" })
		fmt.Fprintf(table, "  %s\t%s\n", e.Name, strings.Join(parts, "; "))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, f := range r.Failures {
		fmt.Fprintf(w, "failed in round %d: %s of %s: %s\n", f.Round, f.Measure, f.System, f.Error)
	}
	return nil
}

// Number shows three significant digits, and no more than two decimals.
func Number(v float64) string {
	switch {
	case v >= 99.95 || v == 0:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 9.995:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

func spreadOf(s Summary) string { return Number(s.Low) + "–" + Number(s.High) }

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

func appendNew(list []string, items ...string) []string {
	for _, item := range items {
		if !slices.Contains(list, item) {
			list = append(list, item)
		}
	}
	return list
}
