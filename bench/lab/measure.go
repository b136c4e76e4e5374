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
	Seconds       float64 // that the receiver measured for
	Retransmits   int64   // TCP: segments that the sender sent again

	// UDP only. What was still under way when the receiver ended is in Packets alone.
	Packets, Received, Lost int64
}

// IperfTCP sends one TCP stream from one node to another, for whole seconds.
func IperfTCP(ctx context.Context, from, to *Node, addr netip.Addr, seconds int, flags ...string) (Flow, error) {
	return iperf(ctx, from, to, addr, append([]string{"-t", strconv.Itoa(seconds)}, flags...))
}

// IperfUDP sends count UDP datagrams with size bytes of payload at the given rate.
func IperfUDP(ctx context.Context, from, to *Node, addr netip.Addr, count, size, bitsPerSecond int) (Flow, error) {
	return iperf(ctx, from, to, addr, []string{"-u", "-k", strconv.Itoa(count), "-l", strconv.Itoa(size), "-b", strconv.Itoa(bitsPerSecond)})
}

// Iperf runs iperf3 with flags of the caller's choice, which give its length with -t or -k. With -R the flow
// goes from to to from. around, unless nil, is called with the client's run as its argument, once the server
// listens: for what is to be measured beside it.
func Iperf(ctx context.Context, from, to *Node, addr netip.Addr, around func(run func() error) error, flags ...string) (Flow, error) {
	flow, err := tryIperf(ctx, from, to, addr, around, flags)
	if err != nil {
		return Flow{}, fmt.Errorf("iperf3 from %s to %s: %w", from.Name, to.Name, err)
	}
	return flow, nil
}

// iperfTimeout is beyond any run that a test asks for, before Patience.
const iperfTimeout = 30 * time.Second

func iperf(ctx context.Context, from, to *Node, addr netip.Addr, flags []string) (Flow, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, Patience(iperfTimeout), errors.New("iperf3 did not end in time"))
	defer cancel()
	return Iperf(ctx, from, to, addr, nil, flags...)
}

func tryIperf(ctx context.Context, from, to *Node, addr netip.Addr, around func(func() error) error, flags []string) (Flow, error) {
	server, err := to.Start("iperf3-from-"+from.Name, nil, "iperf3", "-s", "-1", "-B", addr.String(), "--forceflush")
	if err != nil {
		return Flow{}, err
	}
	defer server.Kill()
	if err := to.WaitListen(ctx, server, "tcp", 5201); err != nil {
		return Flow{}, err
	}
	var out string
	run := func() (err error) {
		out, err = from.Output(ctx, append([]string{"iperf3", "-J", "-c", addr.String(), "--connect-timeout", strconv.FormatInt(Patience(5*time.Second).Milliseconds(), 10)}, flags...)...)
		return err
	}
	if around != nil {
		err = around(run)
	} else {
		err = run()
	}
	flow, parseErr := parseIperf([]byte(out))
	if err != nil { // the reason is in the JSON, if anywhere
		return Flow{}, errors.Join(err, parseErr)
	}
	return flow, parseErr
}

// iperfSum is a total in iperf3's JSON. The packets are there for UDP only.
type iperfSum struct {
	Bytes         int64   `json:"bytes"`
	BitsPerSecond float64 `json:"bits_per_second"`
	Seconds       float64 `json:"seconds"`
	LostPackets   int64   `json:"lost_packets"`
	Packets       int64   `json:"packets"`
}

// parseIperf reads iperf3's JSON. iperf3 reports some failures in the JSON with exit status 0. Its versions
// before 3.10 have no sum_received for UDP, but the receiver's figures in sum.
func parseIperf(out []byte) (Flow, error) {
	var result struct {
		Error string `json:"error"`
		End   struct {
			Sum     iperfSum `json:"sum"`
			SumSent struct {
				Retransmits int64 `json:"retransmits"`
			} `json:"sum_sent"`
			SumReceived *iperfSum `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal(out, &result); err != nil {
		return Flow{}, fmt.Errorf("output of iperf3: %w", err)
	}
	if result.Error != "" {
		return Flow{}, errors.New(result.Error)
	}
	sum, received := result.End.Sum, result.End.SumReceived
	if received == nil {
		received = &sum
	}
	return Flow{
		BitsPerSecond: received.BitsPerSecond,
		Bytes:         received.Bytes,
		Seconds:       received.Seconds,
		Retransmits:   result.End.SumSent.Retransmits,
		Packets:       sum.Packets,
		Received:      received.Packets - received.LostPackets,
		Lost:          sum.LostPackets,
	}, nil
}

// WaitListen waits until something listens on a port of the node, network "tcp" or "udp", without connecting
// to it: a one-shot server would take that for its client. server is who is to listen: that it ends before it
// does is an error.
func (n *Node) WaitListen(ctx context.Context, server *Proc, network string, port int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, Patience(5*time.Second), fmt.Errorf("nothing listens on %s port %d of %s", network, port, n.Name))
	defer cancel()
	for {
		listens, err := n.listens(network, port)
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
