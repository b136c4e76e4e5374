package compare

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// percentiles of the latency that are reported.
var percentiles = []string{"p50", "p99", "p99.9"}

// sockperfLine is "sockperf: ---> percentile 99.900 =  111.851", in microseconds, one way: half the round trip.
var sockperfLine = regexp.MustCompile(`(?m)^sockperf: ---> percentile ([0-9.]+) = +([0-9.]+)$`)

// parsePingPong reads the text that `sockperf ping-pong` prints. It exits with status 0 also where nobody
// answered, which it says in the text.
func parsePingPong(out string) (map[string]float64, error) {
	values := make(map[string]float64)
	for _, m := range sockperfLine.FindAllStringSubmatch(out, -1) {
		percentile, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			return nil, fmt.Errorf("output of sockperf: %w", err)
		}
		value, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return nil, fmt.Errorf("output of sockperf: %w", err)
		}
		values["p"+strconv.FormatFloat(percentile, 'f', -1, 64)] = value
	}
	wanted := make(map[string]float64)
	for _, p := range percentiles {
		v, ok := values[p]
		if !ok {
			lines := strings.Split(strings.TrimSpace(out), "\n")
			return nil, fmt.Errorf("sockperf gave no %s: %s", p, lines[len(lines)-1])
		}
		wanted[p] = v
	}
	return wanted, nil
}
