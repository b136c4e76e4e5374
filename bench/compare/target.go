package compare

import (
	"fmt"
	"io"
	"math"
	"slices"
	"text/tabwriter"
)

// Target is a ratio that muslin is held to: a figure of one system divided by the same figure of another,
// median over the rounds.
type Target struct {
	Title           string
	Figure          string
	System, Against string
	Must, Aim       float64
	AtMost          bool // whether the ratio is to stay below Must and Aim, for figures where less is better
}

// Targets are the ratios that `make bench-check` asks for. A muslin on hosts whose network cards lack something
// is compared with the kernel on the same.
var Targets = []Target{
	{Title: "TCP, 1 stream ÷ kernel VXLAN with tunnel offload", Figure: figureTCP1, System: "muslin-vxlan", Against: Baseline, Must: 0.65, Aim: 0.85},
	{Title: "TCP, 4 streams ÷ the same", Figure: figureTCP4, System: "muslin-vxlan", Against: Baseline, Must: 0.45, Aim: 0.60},
	{Title: "TCP, 1 stream ÷ kernel VXLAN without tunnel offload", Figure: figureTCP1, System: "muslin-vxlan-notunnel", Against: "kernel-vxlan-notunnel", Must: 1.8, Aim: 2.5},
	{Title: "TCP, 1 stream, no UDP segmentation for either ÷ kernel VXLAN", Figure: figureTCP1, System: "muslin-vxlan-nouso", Against: "kernel-vxlan-nouso", Must: 0.75, Aim: 1.0},
	{Title: "UDP 64 B received ÷ kernel VXLAN", Figure: figureUDP64, System: "muslin-vxlan", Against: Baseline, Must: 1.3, Aim: 1.6},
	{Title: "one-way latency p50 (TCP) ÷ kernel VXLAN", Figure: figureLatency, System: "muslin-vxlan", Against: Baseline, Must: 1.55, Aim: 1.35, AtMost: true},
	{Title: "TCP, 1 stream ÷ flannel's udp backend", Figure: figureTCP1, System: "muslin-udp", Against: "flannel-udp", Must: 20, Aim: 28},
	{Title: "TCP, 1 stream, host-gw ÷ plain routing", Figure: figureTCP1, System: "muslin-host-gw", Against: "plain", Must: 0.97, Aim: 1.0},
	// Its pods have the MTU of vxlan, 1,450, and plain routing's 1,500.
	{Title: "TCP, 1 stream, DirectRouting ÷ plain routing", Figure: figureTCP1, System: "muslin-direct", Against: "plain", Must: 0.85, Aim: 0.95},
	// A packet over IPv6 has 40 bytes more of headers, and so the 97th part less of TCP.
	{Title: "TCP, 1 stream, vxlan over IPv6 ÷ over IPv4", Figure: figureTCP1, System: "muslin-vxlan6", Against: "muslin-vxlan", Must: 0.90, Aim: 0.97},
	{Title: "UDP 64 B received, vxlan over IPv6 ÷ over IPv4", Figure: figureUDP64, System: "muslin-vxlan6", Against: "muslin-vxlan", Must: 0.90, Aim: 0.97},
	{Title: "TCP, 1 stream, WireGuard over IPv6 ÷ over IPv4", Figure: figureTCP1, System: "muslin-wireguard6", Against: "muslin-wireguard", Must: 0.90, Aim: 0.97},
	{Title: "TCP, 1 stream, WireGuard ÷ wireguard-go", Figure: figureTCP1, System: "muslin-wireguard", Against: "wireguard-go", Must: 0.95, Aim: 1.0},
}

// Verdict is what became of a target.
type Verdict int

const (
	NotAsked   Verdict = iota // the run was not to measure what it needs
	Unmeasured                // because a program is not installed
	Failed                    // below must, or not measured although it could have been
	Met                       // must, but not aim
	Reached                   // aim
)

var verdicts = map[Verdict]string{NotAsked: "not asked for", Unmeasured: "not measured", Failed: "FAILED", Met: "met", Reached: "aim reached"}

func (v Verdict) String() string { return verdicts[v] }

// Judged is a target and what was measured.
type Judged struct {
	Target
	Ratio   Summary
	Verdict Verdict
	Reason  string // why it was not measured
}

// Judge holds the results against the targets.
func (r *Results) Judge(targets []Target) []Judged {
	var judged []Judged
	for _, t := range targets {
		j := Judged{Target: t}
		var ok bool
		if j.Ratio, ok = r.Ratio(t.Figure, t.System, t.Against); ok {
			j.Verdict = t.verdict(j.Ratio.Median)
		} else {
			j.Verdict, j.Reason = r.whyNot(t)
		}
		judged = append(judged, j)
	}
	return judged
}

func (t Target) verdict(ratio float64) Verdict {
	reaches := func(bound float64) bool {
		if t.AtMost {
			return ratio <= bound
		}
		return ratio >= bound
	}
	switch {
	case math.IsNaN(ratio) || !reaches(t.Must):
		return Failed
	case !reaches(t.Aim):
		return Met
	}
	return Reached
}

// whyNot finds the reason for a ratio that could not be made.
func (r *Results) whyNot(t Target) (Verdict, string) {
	for _, name := range []string{t.System, t.Against} {
		switch e := r.System(name); {
		case e == nil:
			return NotAsked, name + " was not asked for"
		case e.Missing:
			return Unmeasured, e.NotMeasured
		case e.NotMeasured != "":
			return Failed, name + ": " + e.NotMeasured
		}
	}
	for _, f := range r.Failures {
		if f.System == t.System || f.System == t.Against {
			return Failed, f.System + ": " + f.Error
		}
	}
	return NotAsked, t.Figure + " was not asked for"
}

// WriteVerdicts prints each target that the run was to measure, with what came of it, and reports whether none
// failed.
func WriteVerdicts(w io.Writer, judged []Judged) (ok bool, err error) {
	ok = true
	judged = slices.DeleteFunc(slices.Clone(judged), func(j Judged) bool { return j.Verdict == NotAsked })
	if len(judged) == 0 {
		return ok, nil
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TARGET\tMUST\tAIM\tMEASURED\tSPREAD\tVERDICT")
	for _, j := range judged {
		ok = ok && j.Verdict != Failed
		sign := ""
		if j.AtMost {
			sign = "≤ "
		}
		measured, spread, verdict := "-", "-", j.Verdict.String()
		if j.Ratio.Rounds > 0 {
			measured, spread = Number(j.Ratio.Median), spreadOf(j.Ratio)
		} else {
			verdict += ": " + firstLine(j.Reason)
		}
		fmt.Fprintf(table, "%s\t%s%s\t%s%s\t%s\t%s\t%s\n", j.Title, sign, Number(j.Must), sign, Number(j.Aim), measured, spread, verdict)
	}
	return ok, table.Flush()
}

// NeededFor lists the names of the systems and the measures that the targets need, each once.
func NeededFor(targets []Target, figures []Figure) (systems, measures []string) {
	for _, t := range targets {
		systems = appendNew(systems, t.System, t.Against)
		for _, f := range figures {
			if f.Name == t.Figure {
				measures = appendNew(measures, f.Measure)
			}
		}
	}
	return systems, measures
}
