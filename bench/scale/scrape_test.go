//go:build linux

package main

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// The limits of a scrape among manyNodes: what Prometheus gives it by default is 10 s, every minute or quarter of one.
const (
	mostScrape    = 100 * time.Millisecond // with --metrics-peers as it is by default
	mostScrapeAll = time.Second            // with all peers
)

// What a scrape takes: time, the daemon's processor time, bytes; with series of 100 peers and of all.
//
//	h1: etcd ── switch ── h2: the daemon
func TestScrape(t *testing.T) {
	b := newBed(t, 2, "vxlan")
	b.fill(t)
	h := b.lab.Host(2)
	for _, c := range []struct {
		peers int
		most  time.Duration
	}{{100, mostScrape}, {2 * manyNodes, mostScrapeAll}} {
		m := b.start(t, h, "--metrics", "9469", "--metrics-peers", fmt.Sprint(c.peers))
		if err := m.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		labtest.WaitPeers(t, m, manyNodes)
		scrape(t, h)
		const scrapes = 40
		before := labtest.Must(m.CPU())(t)
		var took []time.Duration
		size := 0
		for range scrapes {
			began := time.Now()
			size = scrape(t, h)
			took = append(took, time.Since(began))
		}
		cpu := (labtest.Must(m.CPU())(t) - before) / scrapes
		slices.Sort(took)
		what := fmt.Sprintf("scrape among 10,000 peers, --metrics-peers %d", c.peers)
		figures.within(t, what+", p50", percentile(took, 50), c.most)
		figures.add(t, "the same, longest of 40", milliseconds(percentile(took, 100)), "ms")
		figures.add(t, "processor time of the daemon for each, all that it does beside included", milliseconds(cpu), "ms")
		figures.add(t, "bytes of each", float64(size)/1e6, "MB")
		memory := labtest.Must(m.Memory())(t)
		figures.add(t, "resident memory after 40", megabytes(memory.Resident), "MB")
		stop(t, m)
	}
}

// scrape is how many bytes it has.
func scrape(t *testing.T, h *lab.Host) int {
	t.Helper()
	resp := labtest.Must(labtest.HTTPClient(h.Node).Get("http://127.0.0.1:9469/metrics"))(t)
	defer resp.Body.Close()
	body := labtest.Must(io.ReadAll(resp.Body))(t)
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	return len(body)
}
