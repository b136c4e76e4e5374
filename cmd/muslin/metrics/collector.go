// Package metrics serves what `muslin status` shows to Prometheus. It keeps no counter: each scrape asks for the status and says
// the same in another language. Peers are many, so only some have series of their own (peers.go).
package metrics

import (
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"muslin/cmd/muslin/control"
	"muslin/lease"
	"muslin/tunnel"
	"muslin/tunnel/pathmtu"
	"muslin/tunnel/way"
)

// Config says what is served.
type Config struct {
	// Status is asked at each scrape. Of a process that runs one network, that has no name. Each network that runs is to have
	// the peers that Choose picks.
	Status func(Choose) *control.Networks

	Several bool // the process may run several networks, which have names
	Peers   int  // how many peers of a network have series of their own at most
	Logger  *slog.Logger
}

// most scrapes at a time: a Prometheus, its twin, and somebody who looks.
const most = 4

// Handler answers a scrape.
func Handler(cfg Config) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(newCollector(cfg), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError, // what is right stays visible
		MaxRequestsInFlight: most,
	})
}

type collector struct {
	cfg     Config
	descs   map[*Family]*prometheus.Desc
	choices choices
}

func newCollector(cfg Config) *collector {
	return &collector{cfg: cfg, descs: descs(cfg.Several), choices: choices{most: cfg.Peers}}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	now := time.Now()
	s := c.cfg.Status(func(network string, peers []Traffic) []int { return c.choices.choose(network, now, peers) })
	e := &emitter{c: c, to: to}
	e.value(buildInfo, 1, s.Version, s.Kernel)
	if s.Config != "" {
		e.is(fileTaken, s.Error == "")
		e.time(fileLoaded, &s.Loaded)
	}
	var names []string
	for i := range s.Networks {
		n := &s.Networks[i]
		names = append(names, n.Name)
		e.labels = nil
		if c.cfg.Several {
			e.labels = []string{n.Name}
		}
		e.network(n.Status)
		e.value(peersBeyond, float64(n.Status.Counts.Total-len(n.Status.Peers)))
		for i := range n.Status.Peers {
			e.peer(&n.Status.Peers[i], n.Status.Node.MTU)
		}
	}
	c.choices.keep(names)
}

// emitter hands over metrics of one network, or of the process.
type emitter struct {
	c      *collector
	to     chan<- prometheus.Metric
	labels []string // in front of a network's
}

func (e *emitter) all(f *Family, labels []string) []string {
	if f.process {
		return labels
	}
	return slices.Concat(e.labels, labels)
}

func (e *emitter) value(f *Family, v float64, labels ...string) {
	kind := prometheus.GaugeValue
	if f.Kind == Counter {
		kind = prometheus.CounterValue
	}
	e.to <- prometheus.MustNewConstMetric(e.c.descs[f], kind, v, e.all(f, labels)...)
}

func (e *emitter) count(f *Family, n uint64, labels ...string) { e.value(f, float64(n), labels...) }

func (e *emitter) is(f *Family, yes bool, labels ...string) {
	if yes {
		e.value(f, 1, labels...)
	} else {
		e.value(f, 0, labels...)
	}
}

// time hands over nothing where there is no time.
func (e *emitter) time(f *Family, t *time.Time, labels ...string) {
	if t != nil {
		e.value(f, float64(t.UnixMilli())/1000, labels...)
	}
}

func (e *emitter) network(s *control.Status) {
	n := &s.Node
	e.value(nodeInfo, 1, n.Backend, n.Iface, n.PublicIP, n.PublicIPv6, n.Subnet, n.Subnet6, n.TUN)
	e.is(running, s.State == control.StateRunning)
	e.time(since, s.Since)
	e.count(warnings, uint64(len(s.Warnings)))
	if n.MTU > 0 {
		e.value(mtu, float64(n.MTU))
	}
	for _, f := range s.Features {
		e.is(featureOn, f.On, f.Name)
	}
	e.time(leaseExpiry, n.LeaseExpires)
	if s.Store.Kind != "" {
		e.value(storeInfo, 1, s.Store.Kind)
	}
	if s.State == control.StateRunning {
		e.is(storeHealthy, s.Store.Healthy)
		e.value(storeSeen, float64(s.Store.Revision))
	}
	for _, reason := range lease.SkipReasons() {
		e.value(skipped, float64(s.Skipped[reason]), reason)
	}
	for _, r := range tunnel.Reasons() {
		e.count(dropped, s.Drops[r.String()], r.Direction().String(), r.String())
	}
	e.count(completed, s.Completed)
	e.queues(s.Queues)
	e.peers(&s.Counts)
}

// side is what the histograms are told apart by: over all queues, of which a machine may have sixteen.
type side struct{ family, direction string }

func (e *emitter) queues(all []control.QueueStatus) {
	stuck := 0
	var sides []side
	sums := make(map[side]*[3]control.Histogram)
	for i := range all {
		q := &all[i]
		e.count(queuePackets, q.Packets, q.Family, q.Direction, strconv.Itoa(q.Queue))
		e.count(queueBytes, q.Bytes, q.Family, q.Direction, strconv.Itoa(q.Queue))
		if q.StuckSince != nil {
			stuck++
		}
		k := side{q.Family, q.Direction}
		if sums[k] == nil {
			sums[k] = new([3]control.Histogram)
			sides = append(sides, k)
		}
		for i, h := range []*control.Histogram{&q.BatchSizes, &q.ReadSegments, &q.WriteSegments} {
			sums[k][i].Add(h)
		}
	}
	e.value(stuckWorkers, float64(stuck))
	for _, k := range sides {
		for i, f := range []*Family{batchPieces, readPackets, writePackets} {
			e.histogram(f, &sums[k][i], k.family, k.direction)
		}
	}
}

func (e *emitter) histogram(f *Family, h *control.Histogram, labels ...string) {
	buckets := make(map[float64]uint64, len(h.Bounds))
	for i, bound := range h.Bounds {
		buckets[float64(bound)] = h.Counts[i]
	}
	e.to <- prometheus.MustNewConstHistogram(e.c.descs[f], h.Count, float64(h.Sum), buckets, e.all(f, labels)...)
}

func (e *emitter) peers(n *control.PeerCounts) {
	e.value(peers, float64(n.Up), "up")
	e.value(peers, float64(n.Down), "down")
	e.value(peers, float64(n.Unknown), "unknown")
	for _, w := range []way.Way{way.Encapsulated, way.Direct, way.Encrypted, way.None} {
		e.value(peersByWay, float64(n.Ways[string(w)]), string(w))
	}
}

func (e *emitter) peer(p *control.PeerStatus, mtu int) {
	e.value(peerInfo, 1, p.Subnet, p.PublicIP, p.Backend, p.Way)
	if p.Up != nil {
		e.is(peerUp, *p.Up, p.Subnet)
	}
	e.count(peerTxPackets, p.TxPackets, p.Subnet)
	e.count(peerTxBytes, p.TxBytes, p.Subnet)
	e.count(peerRxPackets, p.RxPackets, p.Subnet)
	e.count(peerRxBytes, p.RxBytes, p.Subnet)
	e.time(peerLastRx, p.LastRx, p.Subnet)
	if p.RTT != nil {
		e.value(peerRTT, float64(*p.RTT)/1e6, p.Subnet)
	}
	if p.Loss != nil {
		e.value(peerLoss, *p.Loss, p.Subnet)
	}
	switch p.PathMTUState {
	case string(pathmtu.Full):
		e.value(peerPathMTU, float64(mtu), p.Subnet)
	case string(pathmtu.Smaller):
		e.value(peerPathMTU, float64(p.PathMTU), p.Subnet)
	}
	e.time(peerHandshake, p.LastHandshake, p.Subnet)
}
