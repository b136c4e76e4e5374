package top

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"muslin/cmd/muslin/control"
	"muslin/tunnel/kernel"
)

// began is when the fake daemon did.
var began = time.Date(2026, 11, 27, 4, 12, 0, 0, time.UTC)

// fake is a daemon that carries as much each second to each peer: to peer i i+1 packets of 1,000 bytes out, and half of that in.
// Each seventh is down, each fifth loses a tenth.
type fake struct {
	peers    int
	pid      int
	warnings []string

	mu       sync.Mutex
	networks map[string]int // peers of each; nil: there is but one network
	fails    error
	now      time.Time
	old      bool          // it knows nothing of questions for some peers
	took     time.Duration // to answer with all
	looks    []control.Look
}

func (f *fake) set(change func(f *fake)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// Status implements Source, at the fake's time.
func (f *fake) Status(_ context.Context, network string, look control.Look) (*control.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	peers := f.peers
	switch n, there := f.networks[network]; {
	case f.fails != nil:
		return nil, f.fails
	case f.networks != nil && network == "":
		return nil, fmt.Errorf("%w: choose", control.ErrSeveral)
	case f.networks != nil && !there:
		return nil, errors.New("there is no network " + network)
	case f.networks != nil:
		peers = n
	}
	f.looks = append(f.looks, look)
	s := f.status(f.now, peers)
	if f.old {
		s.Counts = control.PeerCounts{}
	} else if !look.Peers.All {
		s.Peers = slices.DeleteFunc(s.Peers, func(p control.PeerStatus) bool {
			return !slices.Contains(look.Peers.Subnets, netip.MustParsePrefix(p.Subnet))
		})
	}
	return s, nil
}

// Networks implements Source.
func (f *fake) Networks(context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.networks == nil {
		return nil, errors.New("there is one network")
	}
	return []string{"blue", "green"}, nil
}

// status is the daemon's at a time.
func (f *fake) status(now time.Time, peers int) *control.Status {
	vni, since, expires := uint32(1), began.Add(-time.Hour), began.Add(23*time.Hour)
	seconds := uint64(now.Sub(began) / time.Second)
	s := &control.Status{
		Version: "v0.1.0", State: control.StateRunning, Since: &since, Kernel: "6.18.44",
		Node: control.NodeStatus{PublicIP: "192.0.2.1", Iface: "eth0", Subnet: "10.244.0.0/24", Network: "10.244.0.0/16", MTU: 1450,
			Backend: "vxlan", VNI: &vni, Port: 8472, VtepMAC: "02:00:00:00:00:01", TUN: "muslin0", LeaseExpires: &expires},
		Store:   control.StoreStatus{Kind: "etcd", Endpoints: []string{"http://192.0.2.9:2379"}, Healthy: true, Revision: 7},
		Drops:   map[string]uint64{"no-route": 12 * seconds, "tun-overflow": 3},
		Skipped: map[string]int{"foreign-key": 1},
		Features: []kernel.Feature{{Name: "tun-drain", On: true, Reason: "one wake-up takes every packet that waits in the TUN device"},
			{Name: "udp-gso", On: false, Reason: "this kernel has it since Linux 4.18"}},
		Warnings: f.warnings,
		Counts:   control.PeerCounts{Ways: map[string]int{}},
		Process:  control.ProcessStatus{PID: 1000 + f.pid, Started: since, Resident: 20 << 20, Goroutines: 40, Descriptors: 30},
		Queues: []control.QueueStatus{
			{Queue: 0, Direction: "outbound", Family: "ipv4", Batches: 100 * seconds, Packets: 1000 * seconds, Bytes: 1_000_000 * seconds, Superpackets: 50 * seconds, Joined: 20 * seconds,
				BatchSizes: histogram(100*seconds, 250*seconds), ReadSegments: histogram(250*seconds, 1000*seconds), WriteSegments: histogram(500*seconds, 1000*seconds)},
			{Queue: 0, Direction: "inbound", Family: "ipv4"}},
	}
	for i := range peers {
		yes, no, n := true, false, uint64(i+1)
		p := control.PeerStatus{
			Subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(245 + (i+1)>>8), byte(i + 1), 0}), 24).String(),
			PublicIP: netip.AddrFrom4([4]byte{192, 0, byte(2 + (i+2)>>8), byte(i + 2)}).String(), Backend: "vxlan", VtepMAC: "02:00:00:00:00:02",
			TxPackets: n * seconds, TxBytes: 1000 * n * seconds, RxPackets: n * seconds / 2, RxBytes: 500 * n * seconds,
			Way: "encapsulated", WayRule: "direct-routing-off", WayReason: "DirectRouting is off", PathMTUState: "full", Up: &yes,
		}
		rtt, loss, last := 200+int64(i)%97*13, 0.0, now.Add(-time.Duration(i%30)*time.Second)
		if i%5 == 4 {
			loss = 0.1
		}
		p.RTT, p.Loss, p.LastRx = &rtt, &loss, &last
		switch {
		case i%7 == 6:
			since, all := began.Add(-time.Duration(i)*time.Minute), 1.0
			p.Up, p.DownSince, p.RTT, p.Loss, p.LastRx = &no, &since, nil, &all, &since
		case i%11 == 10:
			p.Up, p.RTT, p.Loss, p.LastRx, p.PathMTUState = nil, nil, nil, nil, ""
		case i%9 == 8:
			p.PathMTUState, p.PathMTU, p.PathMTUBy, p.PathMTUSince = "smaller", 1400, "icmp", &began
		}
		s.Peers = append(s.Peers, p)
		all := &s.Counts
		all.Total++
		all.Ways[p.Way]++
		switch {
		case p.Up == nil:
			all.Unknown++
		case *p.Up:
			all.Up++
		default:
			all.Down++
		}
		all.TxPackets, all.TxBytes, all.RxPackets, all.RxBytes = all.TxPackets+p.TxPackets, all.TxBytes+p.TxBytes, all.RxPackets+p.RxPackets, all.RxBytes+p.RxBytes
	}
	return s
}

// histogram has a half of 1 and the rest of 8 at most.
func histogram(count, sum uint64) control.Histogram {
	return control.Histogram{Bounds: []int{1, 8, 64}, Counts: []uint64{count / 2, count, count}, Count: count, Sum: sum}
}
