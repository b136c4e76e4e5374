//go:build linux

package web

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"muslin/bench/labtest"
	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/web"
	"muslin/tunnel/kernel"
)

// chromium is the browser of all tests; each has a profile and a tab of its own.
var chromium context.Context

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flags := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath("/usr/bin/chromium"), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true))
	ctx, stop := chromedp.NewExecAllocator(context.Background(), flags...)
	defer stop()
	ctx, end := chromedp.NewContext(ctx)
	defer end()
	if err := chromedp.Do(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "start chromium (make deps-web):", err)
		return 1
	}
	chromium = ctx
	return labtest.Main(m)
}

// tab is a page in the browser. What goes wrong in it by itself is kept.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	problems []string // console errors, exceptions, violations of the policy
	requests []string
	expected []string // parts of problems that the test itself makes
}

func open(t *testing.T, width, height int64, url string) *tab {
	t.Helper()
	ctx, end := chromedp.NewContext(chromium, chromedp.WithNewBrowserContext())
	t.Cleanup(end)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	t.Cleanup(cancel)
	b := &tab{t: t, ctx: ctx}
	if err := chromedp.Listen(ctx, b.take); err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(ctx, network.Enable, network.EnableParams{}); err != nil {
		t.Fatal(err)
	}
	b.do(chromedp.EmulateViewport(width, height), chromedp.Navigate(url))
	t.Cleanup(func() { b.expectNoProblems(url) })
	return b
}

func (b *tab) take(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *cdplog.EventEntryAdded:
		if e.Entry.Level == cdplog.EntryLevelError || e.Entry.Level == cdplog.EntryLevelWarning {
			b.problems = append(b.problems, e.Entry.Text+" "+e.Entry.URL)
		}
	case *runtime.EventExceptionThrown:
		b.problems = append(b.problems, fmt.Sprint(e.ExceptionDetails.Text, e.ExceptionDetails.Exception.Description))
	case *runtime.EventConsoleAPICalled:
		b.problems = append(b.problems, fmt.Sprint("console: ", e.Args))
	case *network.EventRequestWillBeSent:
		b.requests = append(b.requests, e.Request.URL)
	}
}

// expect names problems that the test makes on purpose.
func (b *tab) expect(parts ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expected = append(b.expected, parts...)
}

// expectNoProblems wants a page that was quiet, and asked nobody but its own server.
func (b *tab) expectNoProblems(url string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
next:
	for _, p := range b.problems {
		for _, part := range b.expected {
			if strings.Contains(p, part) {
				continue next
			}
		}
		b.t.Errorf("the page had a problem: %s", p)
	}
	server := strings.Join(strings.SplitN(url, "/", 4)[:3], "/") + "/"
	for _, r := range b.requests {
		if !strings.HasPrefix(r, server) {
			b.t.Errorf("the page asked elsewhere: %s", r)
		}
	}
	if len(b.requests) < 5 {
		b.t.Errorf("only %d requests were seen: %q", len(b.requests), b.requests)
	}
}

func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.t.Fatal(err)
	}
}

func (b *tab) keys(keys ...string) {
	b.t.Helper()
	for _, k := range keys {
		b.do(chromedp.KeyEvent(k))
	}
}

// eval is the value of a JavaScript expression.
func eval[T any](b *tab, js string) T {
	b.t.Helper()
	v, err := tryEval[T](b, js)
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

// tryEval fails, among others, while the tab goes from one page to the next.
func tryEval[T any](b *tab, js string) (T, error) {
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](js, chromedp.EvalAwaitPromise))
	if err != nil {
		err = fmt.Errorf("%s: %w", js, err)
	}
	return v, err
}

func call[P, R any](b *tab, c cdp.Command[P, R], params P) R {
	b.t.Helper()
	r, err := chromedp.Call(b.ctx, c, params)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

func (b *tab) text(selector string) string {
	b.t.Helper()
	return eval[string](b, textOf(selector))
}

func textOf(selector string) string {
	return fmt.Sprintf("(document.querySelector(%q) ?? {textContent: 'there is none'}).textContent.replace(/\\s+/g, ' ').trim()", selector)
}

// wait waits until an element's text has all the words.
func (b *tab) wait(limit time.Duration, selector string, words ...string) {
	b.t.Helper()
	labtest.Eventually(b.t, limit, func() error {
		text, err := tryEval[string](b, textOf(selector))
		if err != nil {
			return err
		}
		for _, w := range words {
			if !strings.Contains(text, w) {
				return fmt.Errorf("%s reads %q, want %q", selector, text, w)
			}
		}
		return nil
	})
}

// live waits until the page has had its first view.
func (b *tab) live() {
	b.t.Helper()
	b.wait(10*time.Second, "#connection", "live")
}

// fake is a daemon that a test makes up.
type fake struct {
	mu       sync.Mutex
	start    time.Time
	networks map[string]*control.Status
	busy     bool   // peers have traffic
	findings string // file
	seconds  uint64
	watched  map[string]time.Time // subnets that a page said it has on the screen, and when last; "": all
}

// newFake has a network without a name, with so many peers, all of them up.
func newFake(peers int) *fake {
	f := &fake{start: time.Now(), networks: make(map[string]*control.Status), watched: make(map[string]time.Time)}
	f.add("", peers)
	return f
}

func (f *fake) add(name string, peers int) {
	vni, expires := uint32(1), f.start.Add(22*time.Hour)
	s := &control.Status{Version: "v1.2.3", State: control.StateRunning, Since: &f.start, Kernel: "6.1.0", Skipped: map[string]int{}, Drops: map[string]uint64{"no-route": 12}}
	s.Node = control.NodeStatus{PublicIP: "192.0.2.1", Iface: "eth0", Subnet: "10.1.0.0/24", Network: "10.0.0.0/8", MTU: 1450, Backend: "vxlan", VNI: &vni, Port: 8472,
		VtepMAC: "02:00:00:00:00:01", TUN: "muslin0", LeaseExpires: &expires}
	s.Store = control.StoreStatus{Kind: "etcd", Endpoints: []string{"http://192.0.2.9:2379"}, Healthy: true, Revision: 7}
	s.Features = []kernel.Feature{{Name: "udp-gso", On: true, Reason: "works, by self-test"}, {Name: "tun-uso", Reason: "needs Linux 6.2"}}
	sizes := control.Histogram{Bounds: []int{1, 2, 4, 8, 16, 32, 64, 128}, Counts: []uint64{5, 7, 9, 9, 9, 10, 10, 10}, Count: 10, Sum: 40}
	s.Queues = []control.QueueStatus{{Direction: "outbound", Family: "ipv4", Batches: 10, Packets: 40, BatchSizes: sizes, ReadSegments: sizes, WriteSegments: sizes}}
	s.Warnings = []string{"the receive buffer is small"}
	yes := true
	for i := range peers {
		rtt, loss := int64(200+i), 0.0
		s.Peers = append(s.Peers, control.PeerStatus{Subnet: fmt.Sprintf("10.1.%d.0/24", i+2), PublicIP: fmt.Sprintf("192.0.2.%d", i+2), Backend: "vxlan", VtepMAC: "02:00:00:00:00:02",
			Up: &yes, RTT: &rtt, Loss: &loss, Way: "encapsulated", WayReason: "its backend is vxlan", PathMTUState: "full"})
		if i >= 250 {
			block, n := (i-250)/250, (i-250)%250
			s.Peers[i].Subnet, s.Peers[i].PublicIP = fmt.Sprintf("10.%d.%d.0/24", 2+block, n), fmt.Sprintf("198.51.%d.%d", 100+block, n)
		}
	}
	s.Counts.Total = peers
	f.networks[name] = s
}

// change changes peers of the only network.
func (f *fake) change(change func(s *control.Status)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f.networks[""])
}

// down has peers go down, or come back.
func (f *fake) down(down bool, numbers ...int) {
	f.change(func(s *control.Status) {
		now, up := time.Now(), !down
		for _, i := range numbers {
			s.Peers[i].Up, s.Peers[i].DownSince = &up, nil
			if down {
				s.Peers[i].DownSince = &now
			}
		}
	})
}

func (f *fake) view() *control.Networks {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seconds++
	n := &control.Networks{Version: "v1.2.3"}
	for name, s := range f.networks {
		now := time.Now()
		for i := range s.Peers {
			if p := &s.Peers[i]; f.busy && *p.Up {
				p.RxBytes += uint64(1000 * (i + 1))
				p.TxBytes += uint64(500 * (i + 1) * int(f.seconds%3))
				p.RxPackets++
				p.TxPackets++
				p.LastRx = &now
			}
		}
		c := *s
		c.Peers, c.Drops = append([]control.PeerStatus{}, s.Peers...), maps.Clone(s.Drops)
		n.Networks = append(n.Networks, control.NetworkStatus{Name: name, State: c.State, Status: &c})
	}
	return n
}

func (f *fake) watch(_ string, peers control.Peers) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if peers.All {
		f.watched[""] = time.Now()
	}
	for _, p := range peers.Subnets {
		f.watched[p.String()] = time.Now()
	}
}

// serve serves the fake's page until the test ends, or stop is called, at addr or wherever there is room.
func (f *fake) serve(t *testing.T, addr, token string) (url string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := web.New(web.Config{Networks: f.view, Watch: f.watch, Findings: func(string) []string { return []string{f.findings} }, Addr: netip.MustParseAddrPort(l.Addr().String()), Token: token, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return "http://" + l.Addr().String() + "/", stop
}

// axe runs axe-core over the page and wants no violation.
func (b *tab) axe(what string) {
	b.t.Helper()
	if !eval[bool](b, "typeof axe === 'object'") {
		source, err := os.ReadFile("testdata/axe.min.js")
		if err != nil {
			b.t.Fatal(err)
		}
		eval[bool](b, string(source)+"\n;true")
	}
	var out struct {
		Passes     int
		Violations []struct {
			ID, Help string
			Nodes    []struct {
				HTML           string
				FailureSummary string
			}
		}
	}
	text := eval[string](b, `axe.run().then((r) => JSON.stringify({Passes: r.passes.length, Violations: r.violations}))`)
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		b.t.Fatal(err)
	}
	if out.Passes < 5 {
		b.t.Errorf("%s: only %d rules apply: is that the page?", what, out.Passes)
	}
	for _, v := range out.Violations {
		for i, n := range v.Nodes {
			if i < 3 {
				b.t.Errorf("%s: %s: %s\n%s\n%s", what, v.ID, v.Help, n.HTML, n.FailureSummary)
			}
		}
	}
}
