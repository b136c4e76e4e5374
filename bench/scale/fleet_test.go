//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"muslin/bench/crowd"
	"muslin/bench/lab"
	"muslin/bench/labtest"
)

const (
	fleetSize      = 500
	fleetProcesses = 4
	fleetFlips     = 200
	fleetPause     = 100 * time.Millisecond // between two flips
	fleetChanges   = 20                     // a second, while etcd's load is measured
	loadTime       = 15 * time.Second

	// behindProxies is how many watches etcd may have left of the daemons' where there are proxies. A proxy
	// joins equal watches; one that begins at another revision goes by itself for a while.
	behindProxies = fleetSize / 10
)

// 500 daemons, each with a connection and a watch of its own, under one etcd: directly, and through one and
// through two of etcd's own gRPC proxies, which join equal watches into one.
//
//	h1: etcd ── switch ── h2: four processes of 125 daemons' lease sides each
//	            switch ── h3, h4: etcd grpc-proxy
func TestFiveHundredDaemons(t *testing.T) {
	for _, proxies := range []int{0, 1, 2} {
		name := []string{"directly", "through one proxy", "through two proxies"}[proxies]
		t.Run(name, func(t *testing.T) {
			b := newBed(t, 4, "vxlan")
			b.fleet(t, "500 daemons "+name, proxies)
		})
	}
}

func (b *bed) fleet(t *testing.T, name string, proxies int) {
	endpoints := []string{labtest.Endpoint(b.lab.Host(1))}
	var through []*lab.Proc
	if proxies > 0 {
		endpoints = nil
	}
	for i := range proxies {
		h := b.lab.Host(3 + i)
		through = append(through, b.startProxy(t, h))
		endpoints = append(endpoints, fmt.Sprintf("http://%s:%d", h.Addr, proxyPort))
	}
	began, sent, used := time.Now(), transmitted(t, b.lab.Host(1)), b.used(t)
	b.putFlag(t, 0)
	fleet := b.startFleet(t, endpoints)
	t.Logf("all stand after %v: etcd used %v of processor time and sent %d packets",
		time.Since(began).Round(time.Millisecond), b.used(t)-used, transmitted(t, b.lab.Host(1))-sent)
	acknowledged := b.flipFlag(t, fleetFlips)
	judgeLags(t, name, acknowledged, waitSightings(t, fleet, fleetFlips))

	// Others change their leases, beyond the subnets that the daemons have taken.
	b.crowd = labtest.Must(crowd.New(crowd.Config{Client: b.client, Nodes: 100, Subnets: netip.MustParsePrefix("10.100.0.0/24")}))(t)
	if err := b.crowd.Fill(t.Context()); err != nil {
		t.Fatal(err)
	}
	end := b.churn(t, fleetChanges)
	load := b.measureLoad(t, through)
	time.Sleep(loadTime)
	load.end(t, name)
	end()
	var resident int64
	for _, p := range fleet {
		resident += labtest.Must(p.Memory())(t).Resident
	}
	figures.add(t, name+": memory of one daemon's lease side", megabytes(resident)/fleetSize, "MB")
}

const proxyPort = 23790 // etcd's own choice for its proxy

func (b *bed) startProxy(t *testing.T, h *lab.Host) *lab.Proc {
	t.Helper()
	addr := fmt.Sprintf("%s:%d", h.Addr, proxyPort)
	p := labtest.Must(h.Start("grpc-proxy", nil, "etcd", "grpc-proxy", "start",
		"--endpoints", labtest.Endpoint(b.lab.Host(1)), "--listen-addr", addr, "--advertise-client-url", addr, "--data-dir", h.Dir+"/proxy"))(t)
	if err := h.WaitListen(t.Context(), p, "tcp", proxyPort); err != nil {
		t.Fatal(err)
	}
	return p
}

// startFleet starts all processes and waits until every daemon watches.
func (b *bed) startFleet(t *testing.T, endpoints []string) []*lab.Proc {
	t.Helper()
	self := labtest.Must(os.Executable())(t)
	var fleet []*lab.Proc
	each := fleetSize / fleetProcesses
	for i := range fleetProcesses {
		fleet = append(fleet, labtest.Must(b.lab.Host(2).Start(fmt.Sprintf("fleet%d", i), []string{asCommand + "=1"},
			self, "fleet", "--etcd-endpoints", strings.Join(endpoints, ","), "--canary", canarySubnet.String(),
			"--count", strconv.Itoa(each), "--first", strconv.Itoa(i*each)))(t))
	}
	ctx, cancel := context.WithTimeout(t.Context(), lab.Patience(2*time.Minute))
	defer cancel()
	for _, p := range fleet {
		if err := p.WaitOutput(ctx, standing); err != nil {
			t.Fatal(err)
		}
	}
	return fleet
}

// flagIP is the canary's PublicIP after so many changes.
func flagIP(n int) netip.Addr { return netip.AddrFrom4([4]byte{172, 31, byte(n >> 8), byte(n)}) }

func (b *bed) putFlag(t *testing.T, n int) time.Time {
	t.Helper()
	if _, err := b.client.Put(t.Context(), labtest.Prefix+labtest.LeaseKey(canarySubnet), crowd.Value(flagIP(n), 1, "02:ca:00:00:00:01")); err != nil {
		t.Fatal(err)
	}
	return time.Now()
}

// flipFlag changes the lease so many times, and returns when etcd acknowledged each.
func (b *bed) flipFlag(t *testing.T, times int) map[netip.Addr]time.Time {
	t.Helper()
	acknowledged := make(map[netip.Addr]time.Time)
	for n := 1; n <= times; n++ {
		acknowledged[flagIP(n)] = b.putFlag(t, n)
		time.Sleep(fleetPause)
	}
	return acknowledged
}

// waitSightings reads what the fleet has seen, once all of it has seen the last change.
func waitSightings(t *testing.T, fleet []*lab.Proc, last int) []sighting {
	t.Helper()
	var all []sighting
	labtest.Eventually(t, 30*time.Second, func() error {
		all = all[:0]
		saw := 0
		for _, p := range fleet {
			if !p.Running() {
				t.Fatalf("%s has ended: %s", p.Name, p.Output())
			}
			lines := bufio.NewScanner(bytes.NewReader([]byte(p.Output())))
			for lines.Scan() {
				var s sighting
				if json.Unmarshal(lines.Bytes(), &s) != nil {
					continue // "standing", or a line that is not whole yet
				}
				all = append(all, s)
				if s.PublicIP == flagIP(last) {
					saw++
				}
			}
		}
		if saw != fleetSize {
			return fmt.Errorf("%d of %d daemons have seen change %d", saw, fleetSize, last)
		}
		return nil
	})
	return all
}

// judgeLags looks at each change: when the last daemon had it.
func judgeLags(t *testing.T, name string, acknowledged map[netip.Addr]time.Time, sightings []sighting) {
	t.Helper()
	var each []time.Duration
	latest := make(map[netip.Addr]time.Duration)
	for _, s := range sightings {
		if at, ok := acknowledged[s.PublicIP]; ok {
			lag := max(0, time.Unix(0, s.At).Sub(at))
			each = append(each, lag)
			latest[s.PublicIP] = max(latest[s.PublicIP], lag)
		}
	}
	// A daemon may skip a change that the next one overtook; nearly all see nearly all.
	if len(each) < fleetSize*len(acknowledged)*9/10 {
		t.Errorf("%d sightings of %d changes by %d daemons", len(each), len(acknowledged), fleetSize)
	}
	var all []time.Duration
	for _, lag := range latest {
		all = append(all, lag)
	}
	figures.add(t, name+": a change in one table, p50", milliseconds(percentile(each, 50)), "ms")
	figures.add(t, name+": a change in one table, p99", milliseconds(percentile(each, 99)), "ms")
	figures.add(t, name+": a change in all tables, p50", milliseconds(percentile(all, 50)), "ms")
	figures.add(t, name+": a change in all tables, p99", milliseconds(percentile(all, 99)), "ms")
}

// load is a measurement of etcd under way.
type load struct {
	b       *bed
	proxies []*lab.Proc
	began   time.Time
	used    time.Duration
	behind  time.Duration // used by all proxies
	sent    int
	bytes   int
}

// used is etcd's processor time.
func (b *bed) used(t *testing.T) time.Duration {
	t.Helper()
	return labtest.Must(b.etcd.Proc.CPU())(t)
}

func (b *bed) measureLoad(t *testing.T, proxies []*lab.Proc) *load {
	t.Helper()
	l := &load{b: b, proxies: proxies, began: time.Now(), used: b.used(t), sent: transmitted(t, b.lab.Host(1)), bytes: sentBytes(t, b.lab.Host(1))}
	for _, p := range proxies {
		l.behind += labtest.Must(p.CPU())(t)
	}
	return l
}

// end notes what etcd did since measureLoad.
func (l *load) end(t *testing.T, name string) {
	t.Helper()
	over := time.Since(l.began)
	share := func(used time.Duration) float64 { return 100 * float64(used) / float64(over) }
	figures.add(t, name+": etcd's processor time", share(l.b.used(t)-l.used), "% of a core")
	figures.add(t, name+": etcd's memory", megabytes(labtest.Must(l.b.etcd.Proc.Memory())(t).Resident), "MB")
	figures.add(t, name+": sent by etcd", float64(sentBytes(t, l.b.lab.Host(1))-l.bytes)/1e3/over.Seconds(), "kB/s")
	metrics := l.b.metrics(t)
	most := float64(fleetSize) // one of each daemon
	if l.proxies != nil {
		most = behindProxies
	}
	figures.limit(t, name+": watches at etcd", metrics["etcd_debugging_mvcc_watcher_total"], most, "")
	figures.limit(t, name+": watch streams at etcd", metrics["etcd_debugging_mvcc_watch_stream_total"], most, "")
	var behind time.Duration
	for _, p := range l.proxies {
		behind += labtest.Must(p.CPU())(t)
		figures.add(t, name+": a proxy's memory", megabytes(labtest.Must(p.Memory())(t).Resident), "MB")
	}
	if l.proxies != nil {
		figures.add(t, name+": the proxies' processor time", share(behind-l.behind), "% of a core")
	}
}

// sentBytes is how much the host's eth0 has sent.
func sentBytes(t *testing.T, h *lab.Host) int { return deviceCounter(t, h, 8) }

// metrics are etcd's own, those without labels.
func (b *bed) metrics(t *testing.T) map[string]float64 {
	t.Helper()
	client := http.Client{Timeout: lab.Patience(5 * time.Second), Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
			return conn, b.lab.Host(1).Do(func() error {
				conn, err = new(net.Dialer).DialContext(ctx, network, addr)
				return err
			})
		},
	}}
	answer := labtest.Must(client.Get(labtest.Endpoint(b.lab.Host(1)) + "/metrics"))(t)
	defer answer.Body.Close()
	text := labtest.Must(io.ReadAll(answer.Body))(t)
	values := make(map[string]float64)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] != "#" {
			if v, err := strconv.ParseFloat(f[1], 64); err == nil {
				values[f[0]] = v
			}
		}
	}
	return values
}
