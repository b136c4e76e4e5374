//go:build linux

package compare

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Measure is one run of iperf3 or sockperf between the pods. It gives one figure or several.
type Measure struct {
	Name    string
	Figures []Figure
	// Ladder is whether muslin with features switched off is measured too unless more is asked for: the
	// ladder has many rungs.
	Ladder bool
	IPv4   bool // its program knows no IPv6
	run    runner
}

// Measures lists everything that can be measured, in the order in which it is done.
func Measures() []Measure {
	all := []Measure{
		{Name: "tcp-1", run: tcpRun{streams: 1, cpu: true}.run, Ladder: true, Figures: []Figure{
			{Name: figureTCP1, Title: "TCP, 1 stream", Unit: "Gb/s"},
			{Name: figureCPU, Title: "CPU, whole machine", Unit: "s/GB", Lower: true},
			{Name: figureCPUDaemons, Title: "CPU, both daemons", Unit: "s/GB", Lower: true},
		}},
		{Name: "tcp-1-back", run: tcpRun{streams: 1, back: true}.run, Figures: []Figure{{Name: "tcp-1-back", Title: "TCP, 1 stream back", Unit: "Gb/s"}}},
		{Name: "tcp-4", run: tcpRun{streams: 4}.run, Figures: []Figure{{Name: figureTCP4, Title: "TCP, 4 streams", Unit: "Gb/s"}}},
		{Name: "tcp-4-back", run: tcpRun{streams: 4, back: true}.run, Figures: []Figure{{Name: "tcp-4-back", Title: "TCP, 4 streams back", Unit: "Gb/s"}}},
	}
	for _, size := range []int{64, 1400} {
		name := fmt.Sprintf("udp-%d", size)
		all = append(all, Measure{Name: name, run: udpRun{size: size}.run, Ladder: size == 64, Figures: []Figure{
			{Name: name, Title: fmt.Sprintf("UDP %d B received", size), Unit: "kpps"},
			{Name: name + "-loss", Title: "of which lost", Unit: "%", Lower: true},
		}})
	}
	for _, size := range []int{64, 1400} {
		name := fmt.Sprintf("udp-%d-fixed", size)
		all = append(all, Measure{Name: name, run: udpRun{size: size, fixed: true}.run, Figures: []Figure{
			{Name: name, Title: fmt.Sprintf("UDP %d B received", size), Unit: "kpps"},
			{Name: name + "-loss", Title: "of which lost", Unit: "%", Lower: true},
		}})
	}
	for _, proto := range []string{"tcp", "udp"} {
		m := Measure{Name: proto + "-latency", run: pingPong{proto}.run, Ladder: proto == "tcp", IPv4: true}
		for _, p := range percentiles {
			m.Figures = append(m.Figures, Figure{
				Name: m.Name + "-" + p, Title: strings.ToUpper(proto) + " " + p, Unit: "µs", Lower: true,
			})
		}
		all = append(all, m)
	}
	for i := range all {
		for j := range all[i].Figures {
			all[i].Figures[j].Measure = all[i].Name
		}
	}
	return all
}

// SelectMeasures returns the measures whose names match one of the patterns (as of path.Match), in the order
// of Measures.
func SelectMeasures(patterns []string) ([]Measure, error) {
	all := Measures()
	var names []string
	for _, m := range all {
		names = append(names, m.Name)
	}
	wanted, unknown, err := match(patterns, names)
	if err != nil {
		return nil, err
	}
	if len(unknown) > 0 {
		return nil, fmt.Errorf("no measure is called %s: there are %s", strings.Join(unknown, ", "), strings.Join(names, ", "))
	}
	return slices.DeleteFunc(all, func(m Measure) bool { return !wanted[m.Name] }), nil
}

// match finds the names that match a pattern, and the patterns that match none.
func match(patterns, names []string) (matched map[string]bool, unmatched []string, err error) {
	matched = make(map[string]bool)
	for _, p := range patterns {
		found := false
		for _, name := range names {
			ok, err := path.Match(p, name)
			if err != nil {
				return nil, nil, fmt.Errorf("pattern %q: %w", p, err)
			}
			if ok {
				found, matched[name] = true, true
			}
		}
		if !found {
			unmatched = append(unmatched, p)
		}
	}
	return matched, unmatched, nil
}
