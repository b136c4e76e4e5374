package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/text"
	"muslin/tunnel"
	"muslin/tunnel/fib"
	"muslin/tunnel/kernel"
	"muslin/tunnel/pulse"
	"muslin/tunnel/way"
)

func exampleStatus(now time.Time) *control.Status {
	vni, expires, last, long := uint32(1), now.Add(23*time.Hour), now.Add(-3*time.Second), now.Add(-7*time.Minute)
	yes, no := true, false
	rtt, loss := int64(423), 0.25
	return &control.Status{
		Version: "v1", State: "running", Kernel: "6.1.0",
		Node: control.NodeStatus{PublicIP: "192.0.2.1", Iface: "eth0", Subnet: "10.244.1.0/24", Network: "10.244.0.0/16", MTU: 1450,
			Backend: "vxlan", VNI: &vni, Port: 8472, VtepMAC: "02:00:00:00:00:01", TUN: "muslin0", LeaseExpires: &expires},
		Store: control.StoreStatus{Kind: "etcd", Endpoints: []string{"http://192.0.2.9:2379"}, Healthy: true, Revision: 7},
		Peers: []control.PeerStatus{{Subnet: "10.244.2.0/24", PublicIP: "192.0.2.2", Backend: "vxlan", VtepMAC: "02:00:00:00:00:02",
			TxPackets: 5, TxBytes: 2048, RxPackets: 6, RxBytes: 100, LastRx: &last, Up: &yes, RTT: &rtt, Loss: &loss, Way: "encapsulated", WayRule: "gateway", WayReason: "why"},
			{Subnet: "10.244.3.0/24", PublicIP: "192.0.2.3", Backend: "vxlan", Up: &no, DownSince: &long},
			{Subnet: "10.244.4.0/24", PublicIP: "192.0.2.4", Backend: "vxlan", Way: "direct", WayRule: "on-link"}},
		Drops:   map[string]uint64{"no-route": 3},
		Skipped: map[string]int{"foreign-key": 1},
		Queues: []control.QueueStatus{
			{Direction: "outbound", Family: "ipv4", Batches: 10, Packets: 120, Bytes: 3 << 20, Superpackets: 5, Joined: 4,
				BatchSizes: exampleHistogram(10, 25), ReadSegments: exampleHistogram(25, 120), WriteSegments: exampleHistogram(20, 120)},
			{Direction: "inbound", Family: "ipv4", BatchSizes: exampleHistogram(0, 0), ReadSegments: exampleHistogram(0, 0), WriteSegments: exampleHistogram(0, 0)}},
		Features: []kernel.Feature{{Name: "recvmmsg", On: true, Reason: "up to 64 datagrams a call"}},
		Warnings: []string{"something is odd"},
		About:    []control.About{control.AboutConfig},

		Privileges: control.PrivilegeStatus{UID: 65534, NoNewPrivs: true, Capabilities: []control.CapabilityStatus{
			{Name: "CAP_NET_ADMIN", Reason: "routes"}, {Name: "CAP_NET_RAW", Reason: "iptables"}}},
	}
}

// exampleHistogram is one of so many sizes, each 2 at most.
func exampleHistogram(count, sum uint64) control.Histogram {
	return control.Histogram{Bounds: []int{1, 2}, Counts: []uint64{count / 2, count}, Count: count, Sum: sum}
}

// keys lists an object's keys, sorted.
func keys(v any) []string { return slices.Sorted(maps.Keys(v.(map[string]any))) }

// Others script against this shape: a change here is a change of an interface.
func TestStatusShape(t *testing.T) {
	for name, status := range map[string]*control.Status{"running": exampleStatus(time.Now()), "starting": (&daemon{}).status()} {
		t.Run(name, func(t *testing.T) {
			data, err := json.Marshal(status)
			if err != nil {
				t.Fatal(err)
			}
			var got map[string]any
			if err := json.Unmarshal(data, &got); err != nil {
				t.Fatal(err)
			}
			want := map[string]string{
				"":      "checksums_completed drops features kernel node peer_counts peers privileges process queues since skipped state store version warnings warnings_about",
				"node":  "backend iface lease_expires mtu network network_ipv6 port port_ipv6 public_ip public_ipv6 public_key subnet subnet_ipv6 tun tun_ipv6 vni vtep_mac vtep_mac_ipv6",
				"store": "endpoints healthy kind last_error revision",

				"privileges": "capabilities error no_new_privs uid",
				"process":    "descriptors goroutines pid resident_bytes started",

				"peer_counts": "down rx_bytes rx_packets total tx_bytes tx_packets unknown up ways",
			}
			for field, names := range want {
				object := any(got)
				if field != "" {
					object = got[field]
				}
				if have := strings.Join(keys(object), " "); have != names {
					t.Errorf("%q has %s, want %s", field, have, names)
				}
			}
			for _, list := range []string{"peers", "queues", "features", "warnings", "warnings_about"} {
				if _, ok := got[list].([]any); !ok {
					t.Errorf("%s is %T, want a list, also when empty", list, got[list])
				}
			}
			for _, object := range []string{"drops", "skipped"} {
				if _, ok := got[object].(map[string]any); !ok {
					t.Errorf("%s is %T, want an object, also when empty", object, got[object])
				}
			}
			if _, ok := got["privileges"].(map[string]any)["capabilities"].([]any); !ok {
				t.Error("privileges.capabilities is no list")
			}
			if name == "running" {
				if have := strings.Join(keys(got["peers"].([]any)[0]), " "); have != "backend down_since endpoint last_handshake last_rx loss other_subnet other_up path_mtu path_mtu_by path_mtu_since path_mtu_state public_ip public_key rtt_us rx_bytes rx_packets subnet tx_bytes tx_packets up vtep_mac way way_reason way_rule" {
					t.Errorf("a peer has %s", have)
				}
				if have := strings.Join(keys(got["features"].([]any)[0]), " "); have != "name on reason" {
					t.Errorf("a feature has %s", have)
				}
			}
		})
	}
}

func TestStatusText(t *testing.T) {
	now := time.Now()
	var b bytes.Buffer
	if err := exampleStatus(now).Print(&b, now, 0); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"WARNING: something is odd", "10.244.1.0/24 of 10.244.0.0/16", "VNI 1 port 8472", "expires in 23h0m0s",
		"3 peers, 1 direct, 1 DOWN", "192.0.2.2", "up, 0.42 ms, 25 % lost", "DOWN for 7m0s", "not known", "2.0 KiB", "3s ago", "no-route", "no lease holds the destination", "foreign-key", "recvmmsg", "3.0 MiB", "2.5 ", "4.8 ", "6.0\n", "and 1 that had nothing to carry", "65534 with CAP_NET_ADMIN, CAP_NET_RAW"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

// A node of IPv6 alone, of both, and one whose families differ.
func TestStatusTextIPv6(t *testing.T) {
	now := time.Now()
	yes, no, long := true, false, now.Add(-7*time.Minute)
	s := exampleStatus(now)
	s.Node.PublicIPv6, s.Node.Subnet6, s.Node.Network6, s.Node.VtepMAC6 = "2001:db8::1", "fd00:244:0:1::/64", "fd00:244::/48", "02:00:00:00:00:06"
	s.Peers = []control.PeerStatus{
		{Subnet: "10.244.3.0/24", PublicIP: "192.0.2.3", Up: &yes, OtherSubnet: "fd00:244:0:3::/64", OtherUp: &no},
		{Subnet: "fd00:244:0:3::/64", PublicIP: "2001:db8::3", Up: &no, DownSince: &long, OtherSubnet: "10.244.3.0/24", OtherUp: &yes},
		{Subnet: "fd00:244:0:4::/64", PublicIP: "2001:db8::4", Up: &no, DownSince: &long, OtherSubnet: "10.244.4.0/24", OtherUp: &no},
	}
	text := func() string {
		var b bytes.Buffer
		if err := s.Print(&b, now, 0); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	for _, want := range []string{"192.0.2.1 on eth0", "10.244.1.0/24 of 10.244.0.0/16", "2001:db8::1 on eth0", "fd00:244:0:1::/64 of fd00:244::/48",
		"MAC 02:00:00:00:00:01 and 02:00:00:00:00:06", "3 peers, 2 DOWN", "DOWN for 7m0s, up by IPv4", "2001:db8::4             DOWN for 7m0s  "} {
		if !strings.Contains(strings.Join(strings.Fields(text()), " "), strings.Join(strings.Fields(want), " ")) {
			t.Errorf("no %q in\n%s", want, text())
		}
	}
	s.Node.PublicIP, s.Node.Subnet, s.Node.Network, s.Node.VtepMAC = "", "", "", ""
	if got := text(); strings.Contains(got, "- on eth0") || !strings.Contains(got, "MAC 02:00:00:00:00:06") || !strings.Contains(got, "expires in") || strings.Contains(got, "none yet") {
		t.Errorf("of IPv6 alone:\n%s", got)
	}
}

// What is said of all peers together.
func TestCrowd(t *testing.T) {
	peer := func(subnet, publicIP, other string, h pulse.Health, c way.Choice) glance {
		p := &fib.Peer{Subnet: netip.MustParsePrefix(subnet), PublicIP: netip.MustParseAddr(publicIP), Counters: new(fib.Counters)}
		if other != "" {
			p.Other = netip.MustParsePrefix(other)
		}
		p.Counters.TxBytes.Store(10)
		p.Counters.RxPackets.Store(3)
		return glance{p, h, c}
	}
	encapsulated, down := way.Choice{Way: way.Encapsulated}, pulse.Health{State: pulse.Down, Since: time.Now()}
	refused := way.Choice{Way: way.Encapsulated, Rule: way.RuleRefused}
	c := crowd{counts: newStatus().Counts}
	for _, one := range []struct {
		g       glance
		otherUp bool
	}{
		{peer("10.244.3.0/24", "192.0.2.3", "fd00:244:0:3::/64", pulse.Health{State: pulse.Up}, way.Choice{Way: way.Direct}), false},
		{peer("10.244.4.0/24", "192.0.2.4", "", pulse.Health{}, refused), false},
		{peer("fd00:244:0:3::/64", "2001:db8::3", "10.244.3.0/24", down, encapsulated), true},
		{peer("fd00:244:0:4::/64", "2001:db8::4", "10.244.4.0/24", down, encapsulated), false},
	} {
		c.add(one.g, one.otherUp)
		c.addTraffic(one.g.Peer, sessions{})
	}
	if want := (control.PeerCounts{Total: 4, Up: 1, Down: 2, Unknown: 1, Ways: map[string]int{"direct": 1, "encapsulated": 3}, TxBytes: 40, RxPackets: 12}); !reflect.DeepEqual(c.counts, want) {
		t.Errorf("counted %+v, want %+v", c.counts, want)
	}
	if got, want := c.halfDown(), "fd00:244:0:3::/64 at 2001:db8::3 does not answer, while 10.244.3.0/24 of the same node does: look for what drops IPv6 between the two nodes (a firewall, or a path without it)"; got != want {
		t.Errorf("warned of %q, want %q", got, want)
	}
	if got := c.refused(); !strings.HasPrefix(got, "a peer stays encapsulated: 10.244.4.0/24: ") {
		t.Errorf("warned of %q", got)
	}
	c.add(peer("fd00:244:0:5::/64", "2001:db8::5", "10.244.5.0/24", down, way.Choice{Way: way.None}), true)
	if got := c.halfDown(); !strings.HasSuffix(got, "; 1 more nodes answer by one family only") {
		t.Errorf("warned of %q", got)
	}
	if got := c.refused(); !strings.HasPrefix(got, "each of 2 peers is left out, such as 10.244.4.0/24: ") {
		t.Errorf("warned of %q", got)
	}
	if none := new(crowd); none.halfDown() != "" || none.refused() != "" {
		t.Errorf("of nobody: %q %q", none.halfDown(), none.refused())
	}
}

// Of ten thousand peers a question for one, or for none, has that.
func TestStatusOfSome(t *testing.T) {
	peers := []*fib.Peer{
		{Subnet: netip.MustParsePrefix("10.244.2.0/24"), PublicIP: netip.MustParseAddr("192.0.2.2"), Counters: new(fib.Counters)},
		{Subnet: netip.MustParsePrefix("10.244.3.0/24"), PublicIP: netip.MustParseAddr("192.0.2.3"), Counters: new(fib.Counters)},
	}
	table := fib.New(peers)
	var watched []control.Peers
	h := controlHandler(func(w selection) *control.Status {
		s := newStatus()
		all := table.Peers()
		if w != nil {
			all = w(table, nil)
		}
		for _, p := range all {
			s.Peers = append(s.Peers, control.PeerStatus{Subnet: p.Subnet.String()})
		}
		return s
	}, func(p control.Peers) { watched = append(watched, p) }, http.NotFound, http.NotFound)
	for query, want := range map[string]string{
		"": "10.244.2.0/24 10.244.3.0/24", "?peers=none": "", "?peers=10.244.3.0/24,10.244.9.0/24": "10.244.3.0/24", "?peers=10.244.0.0/16": "",
		"?peers=none&watch=1": "", "?peers=none&watch=10.244.3.0/24": "",
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, control.StatusPath+query, nil))
		var s control.Status
		if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil {
			t.Fatal(query, err)
		}
		var got []string
		for _, p := range s.Peers {
			got = append(got, p.Subnet)
		}
		watch := watched[len(watched)-1]
		if all := strings.Join(got, " "); all != want || watch.All != strings.HasSuffix(query, "watch=1") || (len(watch.Subnets) == 1) != strings.Contains(query, "watch=10.") {
			t.Errorf("%q: %q, want %q; watched %+v", query, all, want, watch)
		}
	}
	for _, query := range []string{"?peers=some", "?peers=10.244.3.0", "?watch=10.244.3.0/24,x"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, control.StatusPath+query, nil))
		if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "subnets with commas between") {
			t.Errorf("%q: %d %s", query, w.Code, w.Body)
		}
	}
}

func TestBytesText(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 5 << 30: "5.0 GiB"} {
		if got := text.Bytes(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestQualityText(t *testing.T) {
	for us, want := range map[int64]string{1: "0.00 ms", 423: "0.42 ms", 9_994: "9.99 ms", 12_345: "12.3 ms", 250_400: "250 ms"} {
		if got := text.Millis(us); got != want {
			t.Errorf("%d µs: %q, want %q", us, got, want)
		}
	}
	for share, want := range map[float64]string{0: "0 %", 0.001: "<1 %", 0.5: "50 %", 0.999: ">99 %", 1: "100 %"} {
		if got := text.Percent(share); got != want {
			t.Errorf("%v: %q, want %q", share, got, want)
		}
	}
}

// Who looks on has the peers measured more often, who asks but once has not.
func TestWatching(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, conn := new(daemon), new(countingConn)
		peer := &fib.Peer{Subnet: netip.MustParsePrefix("10.244.2.0/24"), PublicIP: netip.MustParseAddr("192.0.2.2"), Counters: new(fib.Counters)}
		table := fib.New([]*fib.Peer{peer})
		prober := pulse.New(pulse.Config{Conn: conn, Table: func() *fib.Table { return table }})
		d.view.set(func(v *viewState) { v.prober = prober })
		h := controlHandler(func(selection) *control.Status { return &control.Status{} }, d.watch, http.NotFound, http.NotFound)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		conn.closed = ctx.Done()
		go func() { ended <- prober.Run(ctx) }()
		for query, want := range map[string]int{"": 1, "?watch=1": 9, "?peers=none&watch=10.244.2.0/24": 9, "?watch=10.244.3.0/24": 1} {
			before := conn.sent.Load()
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, control.StatusPath+query, nil))
			time.Sleep(10 * time.Second)
			if n := int(conn.sent.Load() - before); n < want-1 || n > want+1 {
				t.Errorf("%q: %d requests in 10 s, want %d", query, n, want)
			}
			time.Sleep(time.Minute)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// countingConn sends to nobody.
type countingConn struct {
	sent   atomic.Int64
	closed <-chan struct{}
}

func (c *countingConn) Send(netip.Addr, uint16, uint16) error { c.sent.Add(1); return nil }

func (c *countingConn) Receive() (pulse.Reply, error) {
	<-c.closed
	return pulse.Reply{}, net.ErrClosed
}

func (c *countingConn) Close() error { return nil }

func TestControlSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "muslin.sock")
	if _, err := control.AskStatus(t.Context(), path); err == nil || !strings.Contains(err.Error(), "muslin run") {
		t.Errorf("no daemon: %v", err)
	}
	l, err := listenControl(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket %v, %v; want mode 0600", info, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	want := exampleStatus(time.Now().UTC().Truncate(time.Second))
	done := make(chan error, 1)
	go func() {
		done <- serveHTTP(ctx, l, controlHandler(func(selection) *control.Status { return want }, func(control.Peers) {}, http.NotFound, http.NotFound))
	}()
	got, err := control.AskStatus(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, err := listenControl(path); err == nil || !strings.Contains(err.Error(), "another muslin daemon") {
		t.Errorf("second daemon: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("server: %v", err)
	}
}

// A file of another kind under that name stays.
func TestControlSocketIsAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenControl(path); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("%v", err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "x" {
		t.Errorf("the file is now %q, %v", data, err)
	}
}

func TestLockState(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	lock, err := lockState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockState(dir); !errors.Is(err, errStateInUse) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("second: %v", err)
	}
	lock.Close()
	again, err := lockState(dir)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

// A socket that a killed daemon left is no obstacle.
func TestControlSocketStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "muslin.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	l, err := listenControl(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

// Of many peers a person sees those that were heard of last, in the table's order.
func TestStatusOfManyPeers(t *testing.T) {
	now := time.Now()
	var s control.Status
	for i := range 1000 {
		p := control.PeerStatus{Subnet: "10.0." + strconv.Itoa(i) + ".0/24"}
		if i%100 == 7 {
			last := now.Add(-time.Duration(i) * time.Second)
			p.LastRx = &last
		}
		s.Peers = append(s.Peers, p)
	}
	for most, want := range map[int]string{
		3:  "10.0.7.0/24 10.0.107.0/24 10.0.207.0/24",
		12: "10.0.0.0/24 10.0.1.0/24 10.0.7.0/24 10.0.107.0/24 10.0.207.0/24 10.0.307.0/24 10.0.407.0/24 10.0.507.0/24 10.0.607.0/24 10.0.707.0/24 10.0.807.0/24 10.0.907.0/24",
	} {
		var b bytes.Buffer
		if err := s.Print(&b, now, most); err != nil {
			t.Fatal(err)
		}
		var got []string
		for line := range strings.Lines(b.String()) {
			if f := strings.Fields(line); len(f) > 0 && strings.HasPrefix(f[0], "10.0.") {
				got = append(got, f[0])
			}
		}
		if strings.Join(got, " ") != want || !strings.Contains(b.String(), "\n1000 peers\n") || !strings.Contains(b.String(), "and "+strconv.Itoa(1000-most)+" more") {
			t.Errorf("--peers %d:\n%s", most, b.String())
		}
	}
	var b bytes.Buffer
	if err := s.Print(&b, now, 0); err != nil || strings.Count(b.String(), "10.0.") != 1000 {
		t.Errorf("--peers 0 lists %d peers, %v", strings.Count(b.String(), "10.0."), err)
	}
}

func TestProcessStatus(t *testing.T) {
	before := processStatus()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	stop := make(chan struct{})
	defer close(stop)
	go func() { <-stop }()
	after := processStatus()
	if after.PID != os.Getpid() || after.Descriptors != before.Descriptors+2 || after.Goroutines <= before.Goroutines || after.Resident < 1<<20 || after.Resident > 1<<32 {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

// dyingControl is the socket of a daemon that was killed: it may take one more connection before its end closes it.
func dyingControl(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "muslin.sock")
	dying, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	dying.SetUnlinkOnClose(false)
	time.AfterFunc(100*time.Millisecond, func() { dying.Close() })
	return path
}

func TestDyingControl(t *testing.T) {
	l, err := listenControl(dyingControl(t))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	path := dyingControl(t)
	if removed, err := removeDeadControl(path, dialControl(path)); err != nil || !removed {
		t.Errorf("removed: %t, %v", removed, err)
	}
}

// TestQueueStatus: of what a worker counts, the packets are those written, and superpackets those of the TUN device, whichever way.
func TestQueueStatus(t *testing.T) {
	q := tunnel.QueueStats{Queue: 3, Direction: tunnel.Outbound, Bytes: 999,
		Batch: tunnel.Sizes{Counts: [9]uint64{1, 0, 1}, Sum: 5},
		Read:  tunnel.Sizes{Counts: [9]uint64{3, 0, 0, 0, 2}, Sum: 23},
		Write: tunnel.Sizes{Counts: [9]uint64{3, 0, 0, 0, 0, 0, 0, 0, 1}, Sum: 203}}
	got := queueStatus(&q)
	bounds := []int{1, 2, 4, 8, 16, 32, 64, 128}
	want := control.QueueStatus{Queue: 3, Direction: "outbound", Family: "ipv4", Batches: 2, Packets: 203, Bytes: 999, Superpackets: 2, Joined: 1,
		BatchSizes:    control.Histogram{Bounds: bounds, Counts: []uint64{1, 1, 2, 2, 2, 2, 2, 2}, Count: 2, Sum: 5},
		ReadSegments:  control.Histogram{Bounds: bounds, Counts: []uint64{3, 3, 3, 3, 5, 5, 5, 5}, Count: 5, Sum: 23},
		WriteSegments: control.Histogram{Bounds: bounds, Counts: []uint64{3, 3, 3, 3, 3, 3, 3, 3}, Count: 4, Sum: 203}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	q.Direction, q.IPv6 = tunnel.Inbound, true
	if got := queueStatus(&q); got.Superpackets != 1 || got.Joined != 2 || got.Direction != "inbound" || got.Family != "ipv6" {
		t.Errorf("inbound: %+v", got)
	}
}
