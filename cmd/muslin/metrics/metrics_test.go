package metrics

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"muslin/cmd/muslin/control"
	"muslin/lease"
	"muslin/tunnel"
	"muslin/tunnel/kernel"
	"muslin/tunnel/racetest"
)

var at = time.Unix(1_700_000_000, 250_000_000).UTC()

func histogram(sum uint64, counts ...uint64) control.Histogram {
	bounds := []int{1, 2, 4}
	return control.Histogram{Bounds: bounds, Counts: counts[:3], Count: counts[3], Sum: sum}
}

// example is a node that has everything to tell that there is.
func example() *control.Status {
	yes, no := true, false
	rtt, loss := int64(1500), 0.25
	queue := func(n int, direction string) control.QueueStatus {
		return control.QueueStatus{Queue: n, Direction: direction, Family: "ipv4", Packets: 100, Bytes: 9000,
			BatchSizes: histogram(10, 1, 2, 3, 3), ReadSegments: histogram(20, 0, 1, 1, 2), WriteSegments: histogram(30, 4, 5, 6, 7)}
	}
	s := &control.Status{
		Version: "v1", State: control.StateRunning, Since: &at, Kernel: "6.1",
		Node: control.NodeStatus{PublicIP: "192.0.2.1", Iface: "eth0", Subnet: "10.244.1.0/24", MTU: 1450, Backend: "vxlan", TUN: "muslin0",
			LeaseExpires: &at, PublicKey: "key"},
		Store: control.StoreStatus{Kind: "etcd", Healthy: true, Revision: 7},
		Peers: []control.PeerStatus{
			{Subnet: "10.244.2.0/24", PublicIP: "192.0.2.2", Backend: "vxlan", Way: "encapsulated", TxPackets: 1, TxBytes: 2, RxPackets: 3, RxBytes: 4,
				LastRx: &at, Up: &yes, RTT: &rtt, Loss: &loss, PathMTUState: "smaller", PathMTU: 1300, LastHandshake: &at},
			{Subnet: "10.244.3.0/24", PublicIP: "192.0.2.3", Backend: "vxlan", Way: "direct", Up: &no, PathMTUState: "full"},
			{Subnet: "10.244.4.0/24", PublicIP: "192.0.2.4", Backend: "vxlan", Way: "encapsulated"},
		},
		Drops: map[string]uint64{"no-route": 5}, Skipped: map[string]int{"foreign-key": 2}, Completed: 6,
		Counts:   control.PeerCounts{Total: 3, Up: 1, Down: 1, Unknown: 1, Ways: map[string]int{"encapsulated": 2, "direct": 1}},
		Queues:   []control.QueueStatus{queue(0, "outbound"), queue(0, "inbound"), queue(1, "outbound"), queue(1, "inbound")},
		Features: []kernel.Feature{{Name: "udp-gso", On: true}, {Name: "udp-gro"}},
		Warnings: []string{"a", "b"},
	}
	s.Queues[2].StuckSince = &at
	return s
}

// gather is what a scrape has, in Prometheus' text format without comments, one line each: NAME{LABELS} VALUE. It fails for what
// breaks the format's rules.
func gather(t *testing.T, cfg Config) map[string]string {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(newCollector(cfg))
	if _, err := r.Gather(); err != nil {
		t.Fatal(err)
	}
	cfg.Logger = slog.New(slog.DiscardHandler)
	w := httptest.NewRecorder()
	Handler(cfg).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	body, err := io.ReadAll(w.Result().Body)
	if err != nil || w.Code != 200 {
		t.Fatal(w.Code, err)
	}
	all := make(map[string]string)
	for line := range strings.Lines(string(body)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "} "); ok && !strings.HasPrefix(line, "#") {
			all[name+"}"] = value
		} else if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && !strings.HasPrefix(line, "#") {
			all[name] = value
		}
	}
	return all
}

func one(s *control.Status) func(Choose) *control.Networks {
	return several(&control.Networks{Version: "v1", Kernel: "6.1", Networks: []control.NetworkStatus{{State: s.State, Status: s}}})
}

// several answer with the peers that are chosen of each network that runs, as the daemon does.
func several(all *control.Networks) func(Choose) *control.Networks {
	return func(choose Choose) *control.Networks {
		out := *all
		out.Networks = slices.Clone(all.Networks)
		for i := range out.Networks {
			n := &out.Networks[i]
			s := *n.Status
			if s.Peers = nil; s.State == control.StateRunning {
				var peers []Traffic
				for _, p := range n.Status.Peers {
					peers = append(peers, Traffic{netip.MustParsePrefix(p.Subnet), p.TxBytes + p.RxBytes})
				}
				for _, i := range choose(n.Name, peers) {
					s.Peers = append(s.Peers, n.Status.Peers[i])
				}
			}
			n.Status = &s
		}
		return &out
	}
}

func TestScrape(t *testing.T) {
	got := gather(t, Config{Status: one(example()), Peers: 2})
	for line, want := range map[string]string{
		`muslin_build_info{kernel="6.1",version="v1"}`: "1",
		`muslin_node_info{backend="vxlan",iface="eth0",public_ip="192.0.2.1",public_ipv6="",subnet="10.244.1.0/24",subnet_ipv6="",tun="muslin0"}`: "1",
		`muslin_running`:                                   "1",
		`muslin_running_since_timestamp_seconds`:           "1.70000000025e+09",
		`muslin_warnings`:                                  "2",
		`muslin_mtu_bytes`:                                 "1450",
		`muslin_stuck_workers`:                             "1",
		`muslin_feature_on{feature="udp-gso"}`:             "1",
		`muslin_feature_on{feature="udp-gro"}`:             "0",
		`muslin_lease_expiry_timestamp_seconds`:            "1.70000000025e+09",
		`muslin_store_info{kind="etcd"}`:                   "1",
		`muslin_store_healthy`:                             "1",
		`muslin_store_revision`:                            "7",
		`muslin_skipped_leases{reason="foreign-key"}`:      "2",
		`muslin_skipped_leases{reason="bad-value"}`:        "0",
		`muslin_unfinished_checksum_packets_total`:         "6",
		`muslin_peers{state="up"}`:                         "1",
		`muslin_peers{state="down"}`:                       "1",
		`muslin_peers{state="unknown"}`:                    "1",
		`muslin_peers_by_way{way="encapsulated"}`:          "2",
		`muslin_peers_by_way{way="direct"}`:                "1",
		`muslin_peers_by_way{way="none"}`:                  "0",
		`muslin_peers_without_series`:                      "1",
		`muslin_peer_up{peer="10.244.2.0/24"}`:             "1",
		`muslin_peer_up{peer="10.244.3.0/24"}`:             "0",
		`muslin_peer_path_mtu_bytes{peer="10.244.2.0/24"}`: "1300",
		`muslin_peer_path_mtu_bytes{peer="10.244.3.0/24"}`: "1450",

		`muslin_peer_round_trip_seconds{peer="10.244.2.0/24"}`:                                            "0.0015",
		`muslin_peer_loss_ratio{peer="10.244.2.0/24"}`:                                                    "0.25",
		`muslin_peer_info{backend="vxlan",peer="10.244.2.0/24",public_ip="192.0.2.2",way="encapsulated"}`: "1",
		`muslin_peer_transmit_packets_total{peer="10.244.2.0/24"}`:                                        "1",
		`muslin_peer_transmit_bytes_total{peer="10.244.2.0/24"}`:                                          "2",
		`muslin_peer_receive_packets_total{peer="10.244.2.0/24"}`:                                         "3",
		`muslin_peer_receive_bytes_total{peer="10.244.2.0/24"}`:                                           "4",
		`muslin_peer_last_receive_timestamp_seconds{peer="10.244.2.0/24"}`:                                "1.70000000025e+09",
		`muslin_peer_last_handshake_timestamp_seconds{peer="10.244.2.0/24"}`:                              "1.70000000025e+09",

		`muslin_queue_packets_total{direction="outbound",family="ipv4",queue="1"}`: "100",
		`muslin_queue_bytes_total{direction="inbound",family="ipv4",queue="0"}`:    "9000",
		// Over both queues.
		`muslin_batch_pieces_bucket{direction="outbound",family="ipv4",le="1"}`:       "2",
		`muslin_batch_pieces_bucket{direction="outbound",family="ipv4",le="4"}`:       "6",
		`muslin_batch_pieces_bucket{direction="outbound",family="ipv4",le="+Inf"}`:    "6",
		`muslin_batch_pieces_sum{direction="outbound",family="ipv4"}`:                 "20",
		`muslin_read_piece_packets_bucket{direction="inbound",family="ipv4",le="1"}`:  "0",
		`muslin_read_piece_packets_count{direction="inbound",family="ipv4"}`:          "4",
		`muslin_write_piece_packets_bucket{direction="inbound",family="ipv4",le="2"}`: "10",
		`muslin_write_piece_packets_sum{direction="inbound",family="ipv4"}`:           "60",
	} {
		if got[line] != want {
			t.Errorf("%s is %q, want %s", line, got[line], want)
		}
	}
	for _, r := range tunnel.Reasons() {
		want := map[bool]string{true: "5", false: "0"}[r == tunnel.DropNoRoute]
		if line := fmt.Sprintf(`muslin_dropped_packets_total{direction=%q,reason=%q}`, r.Direction(), r); got[line] != want {
			t.Errorf("%s is %q, want %s", line, got[line], want)
		}
	}
	for line := range got {
		for _, not := range []string{"10.244.4.0", "key=", "password", "network=", "config_last"} {
			if strings.Contains(line, not) {
				t.Errorf("there is %s", line)
			}
		}
	}
	if got["go_goroutines"] == "" || got["process_open_fds"] == "" {
		t.Error("nothing of the runtime, or of the process")
	}
}

// TestScrapeStarting: of what is not known yet there is nothing, or a 0 where that is what is known.
func TestScrapeStarting(t *testing.T) {
	s := &control.Status{Version: "v1", State: "waiting for etcd"}
	got := gather(t, Config{Status: one(s), Peers: 100})
	if got["muslin_running"] != "0" || got[`muslin_dropped_packets_total{direction="inbound",reason="ecn"}`] != "0" || got[`muslin_peers{state="up"}`] != "0" {
		t.Errorf("got %v", got)
	}
	for line := range got {
		for _, not := range []string{"since", "mtu", "expiry", "store_healthy", "store_info", "peer_"} {
			if strings.HasPrefix(line, "muslin_") && strings.Contains(line, not) {
				t.Errorf("there is %s", line)
			}
		}
	}
}

func TestScrapeNetworks(t *testing.T) {
	all := &control.Networks{Version: "v1", Config: "networks.yaml", Loaded: at, Error: "line 3", Networks: []control.NetworkStatus{
		{Name: "blue", State: control.StateRunning, Status: example()},
		{Name: "green", State: control.StateFailed, Status: &control.Status{State: control.StateFailed}},
	}}
	got := gather(t, Config{Status: several(all), Several: true, Peers: 1})
	for line, want := range map[string]string{
		`muslin_running{network="blue"}`:                                            "1",
		`muslin_running{network="green"}`:                                           "0",
		`muslin_peers_without_series{network="blue"}`:                               "2",
		`muslin_peers_without_series{network="green"}`:                              "0",
		`muslin_peer_transmit_bytes_total{network="blue",peer="10.244.2.0/24"}`:     "2",
		`muslin_batch_pieces_sum{direction="inbound",family="ipv4",network="blue"}`: "20",
		`muslin_config_last_reload_successful`:                                      "0",
		`muslin_config_last_reload_success_timestamp_seconds`:                       "1.70000000025e+09",
	} {
		if got[line] != want {
			t.Errorf("%s is %q, want %s", line, got[line], want)
		}
	}
}

// TestFamilies: each is handed over by something, with its labels, and there is none beside them.
func TestFamilies(t *testing.T) {
	all := &control.Networks{Version: "v1", Config: "networks.yaml", Networks: []control.NetworkStatus{{Name: "blue", Status: example()}}}
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(newCollector(Config{Status: several(all), Peers: 10}))
	gathered, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, f := range gathered {
		got[f.GetName()] = true
	}
	for _, f := range Families() {
		if !got[f.Name] {
			t.Errorf("%s is never there", f.Name)
		}
		delete(got, f.Name)
		if !strings.HasSuffix(f.Help, ".") {
			t.Errorf("%s: help %q", f.Name, f.Help)
		}
	}
	if len(got) > 0 {
		t.Errorf("not in the table: %v", slices.Collect(maps.Keys(got)))
	}
	if len(lease.SkipReasons()) < 10 {
		t.Error("no reasons for skipped leases")
	}
}

// peersOf are n peers; bytes says how much each has exchanged, 0 for the others.
func peersOf(n int, bytes map[int]uint64) (all []Traffic) {
	for i := range n {
		all = append(all, Traffic{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i / 256), byte(i), 0}), 24), bytes[i]})
	}
	return all
}

// TestChoices: who has series, over the time.
func TestChoices(t *testing.T) {
	c := &choices{most: 3}
	now := at
	bytes := map[int]uint64{}
	expect := func(what string, n int, want ...int) {
		t.Helper()
		if got := c.choose("", now, peersOf(n, bytes)); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	expect("as many as there is room for", 3, 0, 1, 2)
	bytes[5] = 1000
	expect("more than that: those that were there stay", 8, 0, 1, 2)
	now = now.Add(firstReview - time.Second)
	expect("until it is time to look", 8, 0, 1, 2)
	now = now.Add(time.Second)
	expect("one with traffic comes in, and of the others stays who was there", 8, 0, 1, 5)
	for i := range 7 { // all but the first: the later ones most
		bytes[1+i] += uint64(100 * (1 + i))
	}
	now = now.Add(firstReview)
	expect("not yet", 8, 0, 1, 5)
	now = now.Add(firstReview)
	expect("0 has no traffic, and 1 the least of seven", 8, 5, 6, 7)
	for i := range 4 {
		bytes[1+i] += 5000
	}
	bytes[6]++
	now = now.Add(longestReview)
	expect("5 and 7 have had none, and 6 is among the six with the most", 8, 1, 2, 6)
	now = now.Add(longestReview)
	expect("nobody has had any", 8, 1, 2, 6)
	if got := c.choose("", now, slices.Delete(peersOf(8, bytes), 2, 3)); !slices.Equal(got, []int{0, 1, 5}) {
		t.Errorf("2 is gone: %v", got)
	}
	if got := c.choose("other", now, peersOf(2, nil)); len(got) != 2 {
		t.Errorf("another network: %v", got)
	}
	c.keep([]string{"other"})
	if len(c.chosen) != 1 {
		t.Errorf("kept %v", c.chosen)
	}
	if got := (&choices{}).choose("", now, peersOf(2, nil)); got != nil {
		t.Errorf("none wanted: %v", got)
	}
}

// TestChoicesAreStable: with 1,000 peers of which hundreds have traffic by turns, a day's scrapes change the choice 29 times at
// most, and those with the most traffic are in it.
func TestChoicesAreStable(t *testing.T) {
	c := &choices{most: 20}
	bytes := map[int]uint64{}
	var last []int
	changes := 0
	now := at
	for scrape := range racetest.Rounds(24*60, 4*60) {
		for i := range 300 {
			bytes[(i*7+scrape*13)%1000] += 1000
		}
		for i := range 5 {
			bytes[900+i] += 1_000_000
		}
		got := c.choose("", now, peersOf(1000, bytes))
		if len(got) != 20 {
			t.Fatalf("scrape %d: %d peers", scrape, len(got))
		}
		if !slices.Equal(got, last) {
			changes++
		}
		last, now = got, now.Add(time.Minute)
	}
	if changes > 30 {
		t.Errorf("%d changes", changes)
	}
	for i := range 5 {
		if !slices.Contains(last, 900+i) {
			t.Errorf("peer %d has the most traffic, and no series: %v", 900+i, last)
		}
	}
}

// BenchmarkScrape is a scrape without the status, of 10,000 peers.
func BenchmarkScrape(b *testing.B) {
	for _, most := range []int{0, 100, 10_000} {
		b.Run(fmt.Sprintf("peers=%d", most), func(b *testing.B) {
			s := example()
			all := peersOf(10_000, map[int]uint64{3: 5})
			status := func(choose Choose) *control.Networks {
				out := *s
				out.Peers = nil
				for _, i := range choose("", all) {
					out.Peers = append(out.Peers, control.PeerStatus{Subnet: all[i].Subnet.String(), TxBytes: all[i].Bytes})
				}
				return &control.Networks{Networks: []control.NetworkStatus{{State: s.State, Status: &out}}}
			}
			h := Handler(Config{Status: status, Peers: most, Logger: slog.New(slog.DiscardHandler)})
			b.ReportAllocs()
			for b.Loop() {
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/metrics", nil))
			}
		})
	}
}
