//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// What is said about a node by HTTP: metrics that move by what is sent, readiness with its reasons, and profiles for the node itself
// alone; also when another process takes the daemon's place, and when etcd is gone. A real Prometheus reads them in bench/metrics.
//
//	p1a ── h1 (muslin, etcd) ── br0 ── h2 (muslin) ── p2a
func TestMetrics(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	leaveIll(l, "its etcd ends")
	h1, h2 := l.Host(1), l.Host(2)
	store := startEtcd(t, h1)
	store.Config(t, vxlanConfig)
	flags := []string{"--etcd-endpoints", endpoint(h1), "--metrics", "0.0.0.0:9469", "--pprof"}
	m1, m2 := startMuslin(t, h1, flags...), startMuslin(t, h2, flags...)
	waitPeers(t, m1, 1)
	waitPeers(t, m2, 1)
	p1, p2 := addPod(t, m1, "a"), addPod(t, m2, "a")
	peer := status(t, m2).Node.Subnet.Masked().String()
	metrics := func(h *lab.Host) map[string]float64 {
		return scrape(t, h1.Node, netip.AddrPortFrom(h.Addr, 9469)) // of h2 from h1
	}
	sent := fmt.Sprintf(`muslin_peer_transmit_packets_total{peer=%q}`, peer)
	before := metrics(h1)
	expectPing(t, p1.Node, p2.Addr, 20)
	expectNoAnswer(t, p1.Node, netip.MustParseAddr("10.244.0.9"))
	after := metrics(h1)
	for name, want := range map[string]float64{
		sent: 20,
		`muslin_queue_packets_total{direction="outbound",family="ipv4",queue="0"}`: 20,
		`muslin_queue_packets_total{direction="inbound",family="ipv4",queue="0"}`:  20,
		`muslin_dropped_packets_total{direction="outbound",reason="no-route"}`:     1,
		`muslin_dropped_packets_total{direction="inbound",reason="vxlan-vni"}`:     0,
	} {
		if _, ok := after[name]; !ok || after[name]-before[name] < want || after[name]-before[name] > want+15 {
			t.Errorf("%s: %v, then %v; want %v more", name, before[name], after[name], want)
		}
	}
	if other := metrics(h2); other[`muslin_running`] != 1 || other[`process_open_fds`] == 0 || other[`muslin_peers{state="up"}`] != 1 {
		t.Errorf("of h2: running %v, files %v, peers up %v", other[`muslin_running`], other[`process_open_fds`], other[`muslin_peers{state="up"}`])
	}

	if code, _ := ask(t, h1.Node, netip.AddrPortFrom(h2.Addr, 9469), "/debug/pprof/heap", ""); code != http.StatusForbidden {
		t.Errorf("h2's profiles for h1: status %d", code)
	}
	local := netip.MustParseAddrPort("127.0.0.1:9469")
	if code, text := ask(t, h2.Node, local, "/debug/pprof/goroutine?debug=1", ""); code != http.StatusOK || !strings.Contains(text, "tunnel.(*outbound).batch") {
		t.Errorf("h2's profiles for itself: status %d: %.300s", code, text)
	}

	since := after[`muslin_running_since_timestamp_seconds`]
	launchMuslin(t, h1, append([]string{"--replace"}, flags...)...)
	eventually(t, 20*time.Second, func() error {
		if now := metrics(h1)[`muslin_running_since_timestamp_seconds`]; now <= since {
			return fmt.Errorf("the daemon that answers runs since %v", now)
		}
		return nil
	})
	expectExit(t, m1.Proc, 0)

	ready := func(h *lab.Host, accept string) (int, string) {
		return ask(t, h.Node, netip.MustParseAddrPort("127.0.0.1:8081"), "/readyz", accept)
	}
	if code, text := ready(h1, ""); code != http.StatusOK || text != "ready\n" {
		t.Errorf("ready: %d %q", code, text)
	}
	leaveIll(l, "etcd is gone")
	if err := store.Proc.Stop(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error { // it carries packets, and says what is wrong all the same
		code, text := ready(h1, "")
		if code != http.StatusOK {
			t.Fatalf("without etcd: %d %s", code, text)
		}
		if !strings.HasPrefix(text, "ready\nnote   store: ") || !strings.Contains(text, "does not make the node unready") {
			return fmt.Errorf("without etcd: %s", text)
		}
		return nil
	})
	var answer struct {
		OK     bool
		Checks []struct {
			Name        string
			OK, Decides bool
		}
	}
	if _, text := ready(h1, "application/json"); json.Unmarshal([]byte(text), &answer) != nil || !answer.OK || len(answer.Checks) != 3 ||
		answer.Checks[2].Name != "store" || answer.Checks[2].OK || answer.Checks[2].Decides {
		t.Errorf("as JSON: %s", text)
	}
	if got := metrics(h1)[`muslin_store_healthy`]; got != 0 {
		t.Errorf("without etcd the store is healthy: %v", got)
	}
	expectPing(t, p1.Node, p2.Addr, 5)

	// One that starts says what it waits for.
	if err := m2.Stop(); err != nil {
		t.Fatal(err)
	}
	launchMuslin(t, h2, append(flags, "--state-dir", h2.Dir+"/fresh")...)
	eventually(t, 20*time.Second, func() error {
		if code, text, err := tryAsk(t, h2.Node, netip.MustParseAddrPort("127.0.0.1:8081"), "/readyz", ""); err != nil || code != 503 || !strings.Contains(text, "start: no packets are carried yet: waiting for etcd at "+endpoint(h1)) {
			return fmt.Errorf("status %d: %s (%v)", code, text, err)
		}
		return nil
	})
	if code, text := ask(t, h2.Node, netip.MustParseAddrPort("127.0.0.1:8081"), "/healthz", ""); code != http.StatusOK || text != "ok\n" {
		t.Errorf("healthz of one that waits: %d %q", code, text)
	}
	if got := scrape(t, h2.Node, local)[`muslin_running`]; got != 0 {
		t.Errorf("one that waits runs: %v", got)
	}
}

// ask has a question answered that is asked in a node.
func ask(t *testing.T, n *lab.Node, at netip.AddrPort, path, accept string) (status int, text string) {
	t.Helper()
	status, text, err := tryAsk(t, n, at, path, accept)
	if err != nil {
		t.Fatal(err)
	}
	return status, text
}

func tryAsk(t *testing.T, n *lab.Node, at netip.AddrPort, path, accept string) (status int, text string, err error) {
	t.Helper()
	req := must(http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+at.String()+path, nil))(t)
	req.Header.Set("Accept", accept)
	resp, err := labtest.HTTPClient(n).Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// scrape is the values of a scrape, by name and labels as they stand there.
func scrape(t *testing.T, n *lab.Node, at netip.AddrPort) map[string]float64 {
	t.Helper()
	code, text := ask(t, n, at, "/metrics", "")
	if code != http.StatusOK {
		t.Fatalf("%s: %d %s", at, code, text)
	}
	all := make(map[string]float64)
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if i := strings.LastIndex(line, " "); i > 0 && !strings.HasPrefix(line, "#") {
			all[line[:i]] = must(strconv.ParseFloat(line[i+1:], 64))(t)
		}
	}
	return all
}
