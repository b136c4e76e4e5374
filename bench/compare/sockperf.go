//go:build linux

package compare

import (
	"context"
	"strconv"
)

// pingPong sends a small message there and back, one at a time, and notes half the time that each takes.
type pingPong struct{ proto string }

const sockperfPort = 11111 // sockperf's own default

func (p pingPong) run(ctx context.Context, b bed) (map[string]float64, error) {
	flags := []string{"-i", b.to.Addr.String(), "-p", strconv.Itoa(sockperfPort)}
	if p.proto == "tcp" {
		flags = append(flags, "--tcp")
	}
	server, err := b.to.Start("sockperf", nil, append([]string{"sockperf", "server"}, flags...)...)
	if err != nil {
		return nil, err
	}
	defer server.Kill()
	if err := b.to.WaitListen(ctx, server, p.proto, sockperfPort); err != nil {
		return nil, err
	}
	out, err := b.from.Run(ctx, append([]string{"sockperf", "ping-pong", "-t", strconv.Itoa(b.settings.Seconds)}, flags...)...)
	if err != nil {
		return nil, err
	}
	latencies, err := parsePingPong(out)
	if err != nil {
		return nil, err
	}
	values := make(map[string]float64)
	for percentile, v := range latencies {
		values[p.proto+"-latency-"+percentile] = v
	}
	return values, nil
}
