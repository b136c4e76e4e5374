package compare

import "time"

// fakeResults are two systems and a rival over three rounds, in figures that are easy to divide.
func fakeResults() *Results {
	r := &Results{
		Schema:   Schema,
		Started:  time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
		Ended:    time.Date(2026, 3, 1, 12, 10, 0, 0, time.UTC),
		Machine:  Machine{CPU: "A CPU", Cores: 2, Kernel: "6.18.1", Arch: "amd64", TCP: "cubic", Go: "go1.26", Muslin: "v1", Iperf3: "iperf 3.12", Sockperf: "sockperf 3.7"},
		Settings: Settings{Rounds: 3, Seconds: 1, FixedPPS: 20000, MTU: 1500},
		Systems: []Entry{
			{Name: Baseline, About: "kernel VXLAN", MTU: 1450},
			{Name: "muslin-vxlan", About: "muslin", Version: "v1", MTU: 1450},
			{Name: "muslin-vxlan:none", About: "muslin without", Rung: true, Version: "v1", MTU: 1450, Notes: []string{"off: everything"}},
			{Name: "nebula", About: "nebula", Rival: true, Missing: true, NotMeasured: "not installed: nebula\nand more"},
		},
		Figures: []Figure{
			{Name: "tcp-1", Measure: "tcp-1", Title: "TCP, 1 stream", Unit: "Gb/s"},
			{Name: "cpu-machine", Measure: "tcp-1", Title: "CPU", Unit: "s/GB", Lower: true},
			{Name: "udp-64", Measure: "udp-64", Title: "UDP", Unit: "kpps"},
			{Name: "udp-64-loss", Measure: "udp-64", Title: "lost", Unit: "%", Lower: true},
			{Name: "tcp-latency-p50", Measure: "tcp-latency", Title: "p50", Unit: "µs", Lower: true},
		},
	}
	add := func(figure, system string, values ...float64) {
		for i, v := range values {
			r.Samples = append(r.Samples, Sample{Round: i + 1, System: system, Figure: figure, Value: v})
		}
	}
	// The machine slows down to a fifth, and each round's ratio says what the medians' does not.
	add("tcp-1", Baseline, 10, 4, 2)
	add("tcp-1", "muslin-vxlan", 5, 3, 1.8)
	add("tcp-1", "muslin-vxlan:none", 1, 0.375, 0.45)
	add("cpu-machine", Baseline, 1, 1, 1)
	add("udp-64", Baseline, 100, 80, 90)
	add("udp-64", "muslin-vxlan", 150, 160) // failed in the third
	add("udp-64-loss", Baseline, 0, 0, 50)
	add("udp-64-loss", "muslin-vxlan", 0, 25)
	add("tcp-latency-p50", Baseline, 30, 30, 30)
	add("tcp-latency-p50", "muslin-vxlan", 45, 60, 42)
	r.Failures = []Failure{{Round: 3, System: "muslin-vxlan", Measure: "udp-64", Error: "iperf3: no answer"}}
	return r
}
