//go:build linux

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/ipv4"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// mostCost is how much dearer a packet may be among many peers than among few, as a ratio.
const mostCost = 1.3

// rounds are interleaved: few peers, many peers, few peers…
const rounds = 3

// The same two daemons, with one peer each and with 10,000: what gets through between their pods, how long it
// takes there and back, and what a packet costs that goes to any of all peers.
//
//	h1: etcd ── switch ── h2: daemon, pod ── switch ── h3: daemon, pod
func TestPacketsAmongTenThousandPeers(t *testing.T) {
	lab.RequireTool(t, "iperf3", "sockperf")
	b := newBed(t, 3, "vxlan")
	var daemons []*lab.Muslin
	var pods []*lab.Pod
	for _, h := range b.lab.Hosts()[1:] {
		// What goes to the crowd ends at host 1, which forwards nothing.
		labtest.Must(h.Run(t.Context(), "ip", "route", "add", "172.16.0.0/12", "via", b.lab.Host(1).Addr.String()))(t)
		m := b.start(t, h)
		if err := m.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		daemons, pods = append(daemons, m), append(pods, labtest.AddPod(t, m, "a"))
	}
	few, many := make(samples), make(samples)
	for range rounds {
		labtest.WaitPeers(t, daemons[0], 1)
		few.measure(t, pods[0], pods[1])
		b.fill(t)
		for _, m := range daemons {
			labtest.WaitPeers(t, m, manyNodes+1)
		}
		many.measure(t, pods[0], pods[1])
		few[packetCost] = append(few[packetCost], b.scatter(t, daemons[0], 10))
		many[packetCost] = append(many[packetCost], b.scatter(t, daemons[0], manyNodes))
		if err := b.crowd.Clear(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ratio := func(what, name string, over, under samples) {
		figures.limit(t, what, median(over[name])/median(under[name]), mostCost, "")
	}
	t.Logf("few: %v", few)
	t.Logf("many: %v", many)
	ratio("TCP, with 1 peer ÷ with 10,001", tcpRate, few, many)
	ratio("UDP 64 B received, with 1 peer ÷ with 10,001", udpRate, few, many)
	ratio("round trip, with 10,001 peers ÷ with 1", roundTrip, many, few)
	ratio("processor time of a packet to any of 10,000 peers ÷ of 10", packetCost, many, few)
}

// samples are values by what was measured.
type samples map[string][]float64

const (
	tcpRate    = "TCP, Gb/s"
	udpRate    = "UDP 64 B, thousand a second"
	roundTrip  = "half a round trip, µs"
	packetCost = "processor time of a scattered packet, µs"
)

// measure goes from pod to pod, some seconds for each figure.
func (s samples) measure(t *testing.T, from, to *lab.Pod) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lab.Patience(time.Minute))
	defer cancel()
	tcp := labtest.Must(lab.IperfTCP(ctx, from.Node, to.Node, to.Addr, 3))(t)
	s[tcpRate] = append(s[tcpRate], tcp.BitsPerSecond/1e9)
	udp := labtest.Must(lab.Iperf(ctx, from.Node, to.Node, to.Addr, nil, "-u", "-b", "0", "-l", "64", "-t", "3"))(t)
	s[udpRate] = append(s[udpRate], float64(udp.Received)/udp.Seconds/1e3)
	s[roundTrip] = append(s[roundTrip], pingPong(ctx, t, from, to))
}

// sockperfMedian is "sockperf: ---> percentile 50.000 =   38.851": half a round trip, in µs.
var sockperfMedian = regexp.MustCompile(`(?m)^sockperf: ---> percentile 50\.000 = +([0-9.]+)$`)

func pingPong(ctx context.Context, t *testing.T, from, to *lab.Pod) float64 {
	t.Helper()
	flags := []string{"-i", to.Addr.String(), "-p", "11111", "--tcp"}
	server := labtest.Must(to.Start("sockperf", nil, append([]string{"sockperf", "server"}, flags...)...))(t)
	defer server.Kill()
	if err := to.WaitListen(ctx, server, "tcp", 11111); err != nil {
		t.Fatal(err)
	}
	out := labtest.Must(from.Run(ctx, append([]string{"sockperf", "ping-pong", "-t", "3"}, flags...)...))(t)
	m := sockperfMedian.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("sockperf gave no median:\n%s", out)
	}
	return labtest.Must(strconv.ParseFloat(m[1], 64))(t)
}

// scatter sends packets from the daemon's host to nodes of the crowd at random, as fast as one thread can, and
// returns the daemon's processor time for one, in µs.
func (b *bed) scatter(t *testing.T, m *lab.Muslin, nodes int) float64 {
	t.Helper()
	conn := listen(t, m.Host, netip.AddrPort{})
	defer conn.Close()
	rng := rand.New(rand.NewPCG(1, uint64(nodes)))
	batch := make([]ipv4.Message, 64)
	payload := make([]byte, 64)
	to := make([]*net.UDPAddr, nodes)
	for i := range to {
		to[i] = net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.crowd.Subnet(i).Addr().Next(), 9))
	}
	for i := range batch {
		batch[i].Buffers = [][]byte{payload}
	}
	sent, used := transmitted(t, m.Host), labtest.Must(m.CPU())(t)
	writer := ipv4.NewPacketConn(conn)
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		for i := range batch {
			batch[i].Addr = to[rng.IntN(nodes)]
		}
		if _, err := writer.WriteBatch(batch, 0); err != nil {
			t.Fatal(err)
		}
	}
	sent, used = transmitted(t, m.Host)-sent, labtest.Must(m.CPU())(t)-used
	t.Logf("to %d nodes at random: %d datagrams in 3 seconds", nodes, sent)
	return used.Seconds() * 1e6 / float64(sent)
}

// transmitted is how many packets the host's eth0 has sent.
func transmitted(t *testing.T, h *lab.Host) int {
	t.Helper()
	return deviceCounter(t, h, 9)
}

// deviceCounter is a field of eth0's in /proc/net/dev, counted from 0: eight of what was received, then bytes
// and packets sent.
func deviceCounter(t *testing.T, h *lab.Host, field int) int {
	t.Helper()
	var n int
	if err := h.Do(func() error {
		content, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		_, line, _ := strings.Cut(string(content), "eth0:")
		fields := strings.Fields(line)
		if len(fields) <= field {
			return fmt.Errorf("no eth0 in /proc/net/dev of %s", h.Name)
		}
		n, err = strconv.Atoi(fields[field])
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}
