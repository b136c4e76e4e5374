package compare

import (
	"fmt"
	"strconv"
	"strings"
)

// Benchstat is the samples in Go's benchmark format, one line for each measurement, so that `go tool benchstat
// old.txt new.txt` compares two runs and `go tool benchstat -col /system results.txt` the systems of one.
func (r *Results) Benchstat() string {
	var b strings.Builder
	fmt.Fprintf(&b, "goos: linux\ngoarch: %s\npkg: muslin/bench/compare\ncpu: %s\nkernel: %s\n", r.Machine.Arch, r.Machine.CPU, r.Machine.Kernel)
	direction := map[string]string{} // by unit
	for _, f := range r.Figures {
		unit := benchUnit(f)
		if direction[unit] == "" {
			direction[unit] = "higher"
			if f.Lower {
				direction[unit] = "lower"
			}
			fmt.Fprintf(&b, "Unit %s better=%s\n", unit, direction[unit])
		}
	}
	b.WriteByte('\n')
	figures := make(map[string]Figure)
	for _, f := range r.Figures {
		figures[f.Name] = f
	}
	var last string // what the open line is about
	for _, s := range r.Samples {
		f := figures[s.Figure]
		about := fmt.Sprintf("%d %s %s", s.Round, s.System, f.Measure)
		if about != last {
			if last != "" {
				b.WriteByte('\n')
			}
			fmt.Fprintf(&b, "Benchmark%s/system=%s 1", benchName(f.Measure), s.System)
			last = about
		}
		fmt.Fprintf(&b, " %s %s", strconv.FormatFloat(s.Value, 'g', -1, 64), benchUnit(f))
	}
	b.WriteByte('\n')
	return b.String()
}

// benchName makes "TCP1Back" of "tcp-1-back".
func benchName(measure string) string {
	var b strings.Builder
	for _, word := range strings.Split(measure, "-") {
		switch word {
		case "tcp", "udp":
			b.WriteString(strings.ToUpper(word))
		default:
			b.WriteString(strings.ToUpper(word[:1]) + word[1:])
		}
	}
	return b.String()
}

// benchUnit tells the figures of one measurement apart: "Gb/s", "loss-%", "p99-us", "cpu-machine-s/GB".
func benchUnit(f Figure) string {
	unit := strings.ReplaceAll(f.Unit, "µ", "u")
	if f.Name == f.Measure {
		return unit
	}
	return strings.TrimPrefix(f.Name, f.Measure+"-") + "-" + unit
}
