//go:build linux

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"
)

// Flow is one iperf3 run as the receiver saw it.
type Flow struct {
	BitsPerSecond float64
	Bytes         int64
	Packets, Lost int64 // UDP only
}

// IperfTCP sends one TCP stream from one node to another, for whole seconds.
func IperfTCP(ctx context.Context, from, to *Node, addr netip.Addr, seconds int, flags ...string) (Flow, error) {
	return iperf(ctx, from, to, addr, append([]string{"-t", strconv.Itoa(seconds)}, flags...))
}

// IperfUDP sends count UDP datagrams with size bytes of payload at the given rate.
func IperfUDP(ctx context.Context, from, to *Node, addr netip.Addr, count, size, bitsPerSecond int) (Flow, error) {
	return iperf(ctx, from, to, addr, []string{"-u", "-k", strconv.Itoa(count), "-l", strconv.Itoa(size), "-b", strconv.Itoa(bitsPerSecond)})
}

// iperfTimeout is beyond any run that a test asks for.
const iperfTimeout = 30 * time.Second

func iperf(ctx context.Context, from, to *Node, addr netip.Addr, flags []string) (Flow, error) {
	flow, err := tryIperf(ctx, from, to, addr, flags)
	if err != nil {
		return Flow{}, fmt.Errorf("iperf3 from %s to %s: %w", from.Name, to.Name, err)
	}
	return flow, nil
}

func tryIperf(ctx context.Context, from, to *Node, addr netip.Addr, flags []string) (Flow, error) {
	server, err := to.Start("iperf3-from-"+from.Name, nil, "iperf3", "-s", "-1", "-B", addr.String(), "--forceflush")
	if err != nil {
		return Flow{}, err
	}
	defer server.Kill()
	if err := to.waitListen(ctx, server, 5201); err != nil {
		return Flow{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, iperfTimeout, errors.New("iperf3 did not end in time"))
	defer cancel()
	args := append([]string{"iperf3", "-J", "-c", addr.String(), "--connect-timeout", "5000"}, flags...)
	out, err := from.Output(ctx, args...)
	flow, parseErr := parseIperf([]byte(out))
	if err != nil { // the reason is in the JSON, if anywhere
		return Flow{}, errors.Join(err, parseErr)
	}
	return flow, parseErr
}

// parseIperf reads iperf3's JSON. iperf3 reports some failures in the JSON with exit status 0.
func parseIperf(out []byte) (Flow, error) {
	var result struct {
		Error string `json:"error"`
		End   struct {
			Sum struct {
				LostPackets int64 `json:"lost_packets"`
				Packets     int64 `json:"packets"`
			} `json:"sum"`
			SumReceived struct {
				Bytes         int64   `json:"bytes"`
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal(out, &result); err != nil {
		return Flow{}, fmt.Errorf("output of iperf3: %w", err)
	}
	if result.Error != "" {
		return Flow{}, errors.New(result.Error)
	}
	return Flow{
		BitsPerSecond: result.End.SumReceived.BitsPerSecond,
		Bytes:         result.End.SumReceived.Bytes,
		Packets:       result.End.Sum.Packets,
		Lost:          result.End.Sum.LostPackets,
	}, nil
}

// waitListen waits until something listens on a TCP port of the node, without connecting to it: a
// one-shot server would take that for its client.
func (n *Node) waitListen(ctx context.Context, server *Proc, port int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Second, fmt.Errorf("nothing listens on port %d of %s", port, n.Name))
	defer cancel()
	for {
		listens, err := n.listens(port)
		if err != nil || listens {
			return err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-server.Done():
			return fmt.Errorf("%s ended with status %d: %s", server.Name, server.exitStatus(), server.Output())
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
