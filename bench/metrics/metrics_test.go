//go:build linux

package metrics

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }

const (
	port           = 9469 // of /metrics
	prometheusPort = 9090
	docs           = "../../docs"
)

// promtool checks the rules, and runs their tests.
func TestRules(t *testing.T) {
	lab.RequireTool(t, "promtool")
	for _, args := range [][]string{{"check", "rules", "muslin.rules.yml"}, {"test", "rules", "muslin.rules.test.yml"}} {
		cmd := exec.CommandContext(t.Context(), "promtool", args...)
		cmd.Dir = filepath.Join(docs, "prometheus")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
		}
	}
}

// A Prometheus scrapes two processes with two networks each, with the rules of the docs. Everything that the dashboard and the rules
// ask for is there, and counts what was sent; no alert fires until there is reason for one.
//
//	      h1 ── prometheus
//	blue  │ p1 ── muslin (vxlan) ───────┐
//	green │       muslin (wireguard) ───┤
//	      h2                           br0
//	blue  │ p2 ── muslin (vxlan) ───────┤
//	green │       muslin (wireguard) ───┘
func TestPrometheus(t *testing.T) {
	lab.RequireTool(t, "promtool", "prometheus", "etcd", "etcdctl", "iperf3")
	l := labtest.NewLab(t, 2)
	labtest.StartEtcd(t, l.Host(1))
	nodes := []*node{start(t, l.Host(1)), start(t, l.Host(2))}
	for _, n := range nodes {
		n.addPods(t)
	}
	p := startPrometheus(t, nodes)

	a, b := nodes[0], nodes[1]
	peer := must(b.of("blue").PodNetwork())(t).Gateway.Masked().String()
	counted := counters(t, a, peer)
	const pings = 50
	for _, size := range []int{84, 1450} {
		if got := must(a.pod["blue"].Ping(t.Context(), b.pod["blue"].Addr, lab.PingOptions{Count: pings, Size: size, DontFragment: true}))(t); got.Received != pings {
			t.Fatalf("%d of %d pings answered", got.Received, pings)
		}
	}
	must(a.pod["green"].Ping(t.Context(), b.pod["green"].Addr, lab.PingOptions{Count: 3}))(t)
	must(a.pod["blue"].Ping(t.Context(), netip.MustParseAddr("10.1.0.9"), lab.PingOptions{Count: 7}))(t) // nobody's

	t.Run("counters", func(t *testing.T) { checkCounters(t, a, peer, counted, pings) })
	t.Run("coalescing", func(t *testing.T) { checkCoalescing(t, a, b) })
	t.Run("format", func(t *testing.T) {
		for _, n := range nodes {
			checkFormat(t, n.scrape(t))
		}
	})
	t.Run("names", func(t *testing.T) { checkNames(t, a) })
	t.Run("dashboard", func(t *testing.T) { checkDashboard(t, p, a) })
	t.Run("alert", func(t *testing.T) { checkAlert(t, p, a, b) })
}

// node is a process with two networks.
type node struct {
	*lab.Muslin
	pod map[string]*lab.Pod
}

func must[V any](v V, err error) func(t *testing.T) V { return labtest.Must(v, err) }

// start starts one and waits until it is ready.
func start(t *testing.T, h *lab.Host) *node {
	t.Helper()
	n := &node{Muslin: h.Muslin(labtest.Bin), pod: make(map[string]*lab.Pod)}
	file := filepath.Join(h.Dir, "networks.yaml")
	networks := fmt.Sprintf(`networks:
  blue: {network: 10.1.0.0/16, subnet-file: %[1]s/blue.env}
  green: {network: 10.2.0.0/16, backend: wireguard, wireguard: userspace, subnet-file: %[1]s/green.env}
`, h.Dir)
	if err := os.WriteFile(file, []byte(networks), 0o644); err != nil {
		t.Fatal(err)
	}
	n.Proc = must(h.Start("muslin", nil, labtest.Bin, "run", "--config", file, "--iface", "eth0", "--etcd-endpoints", labtest.Endpoint(h.Lab().Host(1)),
		"--state-dir", n.StateDir, "--control", n.Control, "--healthz-port", "8081", "--metrics", fmt.Sprintf("%s:%d", h.Addr, port)))(t)
	if err := n.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n
}

// of is one of its networks.
func (n *node) of(network string) *lab.Muslin {
	m := *n.Muslin
	m.Control, m.SubnetFile = filepath.Join(filepath.Dir(n.Control), network+".sock"), filepath.Join(n.Host.Dir, network+".env")
	return &m
}

// addPods waits for the peers, and adds a pod to each network.
func (n *node) addPods(t *testing.T) {
	t.Helper()
	for _, network := range []string{"blue", "green"} {
		labtest.WaitPeers(t, n.of(network), 1)
		n.pod[network] = must(n.Host.AddPodOn(t.Context(), "br-"+network, network, must(n.of(network).PodNetwork())(t)))(t)
	}
}

// get asks from within a host's namespace.
func get(t *testing.T, h *lab.Host, address string) string {
	t.Helper()
	resp := must(labtest.HTTPClient(h.Node).Get(address))(t)
	defer resp.Body.Close()
	body := must(io.ReadAll(resp.Body))(t)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s: %s", address, resp.Status, body)
	}
	return string(body)
}

func (n *node) scrape(t *testing.T) string {
	t.Helper()
	return get(t, n.Host, fmt.Sprintf("http://%s:%d/metrics", n.Host.Addr, port))
}

// samples are the values of a scrape, by name and labels as they stand there.
func samples(t *testing.T, scrape string) map[string]float64 {
	t.Helper()
	all := make(map[string]float64)
	for line := range strings.Lines(scrape) {
		line = strings.TrimSpace(line)
		if i := strings.LastIndex(line, " "); i > 0 && !strings.HasPrefix(line, "#") {
			all[line[:i]] = must(strconv.ParseFloat(line[i+1:], 64))(t)
		}
	}
	return all
}

// counters are some of a node's, of its network blue.
func counters(t *testing.T, n *node, peer string) map[string]float64 {
	t.Helper()
	all := samples(t, n.scrape(t))
	out := make(map[string]float64)
	for short, name := range map[string]string{
		"sent":       fmt.Sprintf(`muslin_peer_transmit_packets_total{network="blue",peer=%q}`, peer),
		"sent bytes": fmt.Sprintf(`muslin_peer_transmit_bytes_total{network="blue",peer=%q}`, peer),
		"received":   fmt.Sprintf(`muslin_peer_receive_packets_total{network="blue",peer=%q}`, peer),
		"out":        `muslin_queue_packets_total{direction="outbound",family="ipv4",network="blue",queue="0"}`,
		"out bytes":  `muslin_queue_bytes_total{direction="outbound",family="ipv4",network="blue",queue="0"}`,
		"in":         `muslin_queue_packets_total{direction="inbound",family="ipv4",network="blue",queue="0"}`,
		"no route":   `muslin_dropped_packets_total{direction="outbound",network="blue",reason="no-route"}`,
		"read":       `muslin_read_piece_packets_sum{direction="outbound",family="ipv4",network="blue"}`,
		"green no":   `muslin_dropped_packets_total{direction="outbound",network="green",reason="no-route"}`,
	} {
		value, ok := all[name]
		if !ok {
			t.Fatalf("no %s in\n%s", name, n.scrape(t))
		}
		out[short] = value
	}
	return out
}

// checkCounters: they moved by what was sent, and by the daemon's own probes, which are few.
func checkCounters(t *testing.T, n *node, peer string, before map[string]float64, pings float64) {
	after := counters(t, n, peer)
	for short, want := range map[string]float64{
		"sent": 2 * pings, "sent bytes": pings * (84 + 1450), "received": 2 * pings, "out": 2 * pings, "out bytes": pings * (84 + 1450), "in": 2 * pings,
		"no route": 7, "read": 2*pings + 7, "green no": 0,
	} {
		probes := 20.0
		switch {
		case strings.HasSuffix(short, "no") || short == "no route":
			probes = 0
		case strings.HasSuffix(short, "bytes"):
			probes *= 1450
		}
		if grown := after[short] - before[short]; grown < want || grown > want+probes {
			t.Errorf("%s: %v more, want %v, and at most %v of the daemon's own", short, grown, want, probes)
		}
	}
	// The status says the same.
	s := labtest.Status(t, n.of("blue"))
	for _, p := range s.Peers {
		if grown := float64(p.TxPackets) - after["sent"]; p.Subnet.String() == peer && (grown < 0 || grown > 3) {
			t.Errorf("status has %d packets sent, the scrape before it %v", p.TxPackets, after["sent"])
		}
	}
}

// checkCoalescing: a TCP stream goes over in pieces of many packets each, where the kernel's offloads are on.
func checkCoalescing(t *testing.T, a, b *node) {
	if _, err := lab.IperfTCP(t.Context(), a.pod["blue"].Node, b.pod["blue"].Node, b.pod["blue"].Addr, 1); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		n                          *node
		feature, family, direction string
	}{
		{a, "tun-tso", "read_piece_packets", "outbound"},
		{a, "udp-gso", "write_piece_packets", "outbound"},
		{b, "udp-gro", "read_piece_packets", "inbound"},
		{b, "tun-tcp-gro", "write_piece_packets", "inbound"},
	} {
		all := samples(t, c.n.scrape(t))
		of := func(suffix, le string) float64 {
			return all[fmt.Sprintf(`muslin_%s_%s{direction=%q,family="ipv4",network="blue"%s}`, c.family, suffix, c.direction, le)]
		}
		mean, one, count := of("sum", "")/of("count", ""), of("bucket", `,le="1"`), of("count", "")
		on := all[fmt.Sprintf(`muslin_feature_on{feature=%q,network="blue"}`, c.feature)] == 1
		t.Logf("%s, %s %s: %.1f packets a piece, %.0f of %.0f pieces hold one", c.feature, c.family, c.direction, mean, one, count)
		if on && (mean < 2 || one >= count) || !on && mean != 1 {
			t.Errorf("%s on %v: %.2f packets a piece", c.feature, on, mean)
		}
		if of("bucket", `,le="+Inf"`) != count {
			t.Errorf("%s %s: the buckets do not add up", c.family, c.direction)
		}
	}
}

// checkFormat is what promtool says of a scrape.
func checkFormat(t *testing.T, scrape string) {
	cmd := exec.CommandContext(t.Context(), "promtool", "check", "metrics")
	cmd.Stdin = strings.NewReader(scrape)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

// checkNames: whatever the dashboard and the rules ask for is in a scrape of this node.
func checkNames(t *testing.T, n *node) {
	var wanted []string
	for _, file := range []string{"grafana/muslin.json", "prometheus/muslin.rules.yml"} {
		text := string(must(os.ReadFile(filepath.Join(docs, file)))(t))
		for _, name := range regexp.MustCompile(`\b(muslin|process|go)_[a-z0-9_]+`).FindAllString(text, -1) {
			if !slices.Contains(wanted, name) {
				wanted = append(wanted, name)
			}
		}
	}
	if len(wanted) < 40 {
		t.Fatalf("only %d names: %q", len(wanted), wanted)
	}
	labtest.Eventually(t, 30*time.Second, func() error { // a path is looked at, and loss known, after a while
		n.watch(t)
		have := make(map[string]bool)
		for name := range samples(t, n.scrape(t)) {
			name, _, _ = strings.Cut(name, "{")
			have[name] = true
		}
		var missing []string
		for _, name := range wanted {
			if !have[name] {
				missing = append(missing, name)
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("not in a scrape: %q", missing)
		}
		return nil
	})
}

// watch looks on, so that the peers are measured more often: nobody waits a minute then for what is lost.
func (n *node) watch(t *testing.T) {
	t.Helper()
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", n.Control)
		},
	}}
	must(client.Get("http://muslin/v1/status?net=blue&watch=1"))(t).Body.Close()
}

// prometheus is one that scrapes often.
type prometheus struct{ host *lab.Host }

// startPrometheus gives it the rules of the docs, with 5 seconds where they say minutes.
func startPrometheus(t *testing.T, nodes []*node) prometheus {
	t.Helper()
	p := prometheus{nodes[0].Host}
	rules := string(must(os.ReadFile(filepath.Join(docs, "prometheus/muslin.rules.yml")))(t))
	rules = regexp.MustCompile(`\[\d+[mh]\]`).ReplaceAllString(rules, "[5s]")
	rules = regexp.MustCompile(`(?m)^        for: \d+m$`).ReplaceAllString(rules, "        for: 1s")
	var targets []string
	for _, n := range nodes {
		targets = append(targets, fmt.Sprintf("%q", fmt.Sprintf("%s:%d", n.Host.Addr, port)))
	}
	config := fmt.Sprintf(`global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}
rule_files: [muslin.rules.yml]
scrape_configs:
  - job_name: muslin
    static_configs: [{targets: [%s]}]
`, strings.Join(targets, ", "))
	for name, content := range map[string]string{"muslin.rules.yml": rules, "prometheus.yml": config} {
		if err := os.WriteFile(filepath.Join(p.host.Dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	must(p.host.Start("prometheus", nil, "prometheus", "--config.file", filepath.Join(p.host.Dir, "prometheus.yml"), "--storage.tsdb.path", filepath.Join(p.host.Dir, "prometheus"),
		"--web.listen-address", fmt.Sprintf("%s:%d", p.host.Addr, prometheusPort), "--log.level", "warn"))(t)
	return p
}

// ask has an endpoint of its API answered.
func (p prometheus) ask(t *testing.T, path string, query url.Values, into any) {
	t.Helper()
	var answer struct {
		Status string          `json:"status"`
		Data   json.RawMessage `json:"data"`
	}
	text := get(t, p.host, fmt.Sprintf("http://%s:%d/api/v1/%s?%s", p.host.Addr, prometheusPort, path, query.Encode()))
	if err := json.Unmarshal([]byte(text), &answer); err != nil || answer.Status != "success" {
		t.Fatalf("%s: %v: %s", path, err, text)
	}
	if err := json.Unmarshal(answer.Data, into); err != nil {
		t.Fatal(err)
	}
}

// query is how many series an expression has now.
func (p prometheus) query(t *testing.T, expr string) int {
	t.Helper()
	var data struct {
		Result []json.RawMessage `json:"result"`
	}
	p.ask(t, "query", url.Values{"query": {expr}}, &data)
	return len(data.Result)
}

// checkDashboard: each question that it asks is understood, and answered where this lab has something to answer.
func checkDashboard(t *testing.T, p prometheus, n *node) {
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(must(os.ReadFile(filepath.Join(docs, "grafana/muslin.json")))(t), &dashboard); err != nil {
		t.Fatal(err)
	}
	wanted := make(map[string]string) // title by expression
	variables := strings.NewReplacer("$instance", ".*", "$network", ".*", "$__rate_interval", "5s")
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			wanted[variables.Replace(target.Expr)] = panel.Title
		}
	}
	if len(wanted) < 40 {
		t.Fatalf("only %d questions", len(wanted))
	}
	// Of these there is nothing in a network that is well; nor of drops, longer than five seconds after the last.
	silent := []string{"Loss", "Down", "Paths that take less than the overlay", "Leases that make no peer", "Drops by reason"}
	labtest.Eventually(t, 20*time.Second, func() error {
		// While something is carried.
		if _, err := n.pod["blue"].Ping(t.Context(), must(n.of("blue").PodNetwork())(t).Gateway.Addr(), lab.PingOptions{Count: 1}); err != nil {
			return err
		}
		for _, expr := range slices.Sorted(maps.Keys(wanted)) {
			if p.query(t, expr) == 0 && !slices.Contains(silent, wanted[expr]) {
				return fmt.Errorf("%s: no answer to %s", wanted[expr], expr)
			}
		}
		return nil
	})
}

// firing are the alerts that fire, by name, with the instance.
func (p prometheus) firing(t *testing.T) (all []string) {
	t.Helper()
	var data struct {
		Alerts []struct {
			State       string
			Labels      map[string]string
			Annotations map[string]string
		}
	}
	p.ask(t, "alerts", nil, &data)
	for _, a := range data.Alerts {
		if a.State == "firing" {
			all = append(all, fmt.Sprintf("%s %s %s: %s", a.Labels["alertname"], a.Labels["instance"], a.Labels["network"], a.Annotations["summary"]))
		}
	}
	slices.Sort(all)
	return all
}

// checkAlert: nothing fires while all is well. Then a peer sends with another VNI.
func checkAlert(t *testing.T, p prometheus, a, b *node) {
	if all := p.firing(t); len(all) > 0 {
		t.Errorf("all is well, and these fire: %q", all)
	}
	want := fmt.Sprintf("MuslinNodesDisagree %s:%d blue: ", a.Host.Addr, port)
	conn := labtest.ListenUDP(t, b.Host.Node, netip.AddrPortFrom(b.Host.Addr, 0), 1<<16)
	foreign := make([]byte, 8+14+20)
	foreign[0], foreign[6] = 8, 99 // VXLAN's flags, and a VNI that nobody has here
	labtest.Eventually(t, 20*time.Second, func() error {
		for range 20 {
			must(conn.WriteToUDPAddrPort(foreign, netip.AddrPortFrom(a.Host.Addr, 8472)))(t)
		}
		all := p.firing(t)
		for _, alert := range all {
			if strings.HasPrefix(alert, want) && strings.HasSuffix(alert, "datagrams/s are refused, vxlan-vni") {
				return nil
			}
		}
		return fmt.Errorf("these alerts fire: %q, want one with %q", all, want)
	})
}
