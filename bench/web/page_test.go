//go:build linux

package web

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/performance"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"muslin/bench/labtest"
	"muslin/cmd/muslin/control"
)

// What changes while one looks on: states are said, figures are not.
func TestNews(t *testing.T) {
	f := newFake(24)
	f.busy = true
	url, stop := f.serve(t, "127.0.0.1:0", "")
	b := open(t, 1280, 900, url)
	b.live()
	b.wait(5*time.Second, "#verdict", "All 24 peers are up")
	b.wait(5*time.Second, "#figures", "b/s")
	if title := eval[string](b, "document.title"); title != "muslin 192.0.2.1" {
		t.Errorf("the title is %q", title)
	}
	before := b.text("#figures")
	labtest.Eventually(t, 5*time.Second, func() error {
		if b.text("#figures") == before {
			return errors.New("the figures stay as they are")
		}
		return nil
	})
	if said := b.text("#live"); said != "" {
		t.Errorf("while nothing but figures changed it was said: %q", said)
	}

	f.down(true, 3)
	b.wait(5*time.Second, "#live", "10.1.5.0/24 at 192.0.2.5 is down")
	b.wait(time.Second, "#verdict", "1 of 24 peers is down")
	b.wait(time.Second, "#log", "10.1.5.0/24 at 192.0.2.5 is down")
	if first := b.text(".table tbody tr"); !strings.HasPrefix(first, "10.1.5.0/24") || !strings.Contains(first, "down") {
		t.Errorf("the table begins with %q", first)
	}
	if got := eval[string](b, `document.getElementById('peer-10.1.5.0/24').getAttribute('aria-label')`); got != "10.1.5.0/24 at 192.0.2.5, down" {
		t.Errorf("in the picture it is %q", got)
	}
	shapes := eval[[]string](b, `['peer-10.1.5.0/24', 'peer-10.1.6.0/24'].map((id) => document.getElementById(id).getAttribute('d'))`)
	lines := eval[[]string](b, `[...document.querySelectorAll('.map .link.down, .map .link.up')].slice(-2).map((l) => getComputedStyle(l).strokeDasharray)`)
	if shapes[0] == shapes[1] || lines[0] == lines[1] {
		t.Errorf("down and up look alike without colours: %q, %q", shapes, lines)
	}
	f.down(false, 3)
	f.change(func(s *control.Status) { // of the time while it was down
		loss := 0.2
		s.Peers[3].Loss = &loss
	})
	b.wait(5*time.Second, "#live", "10.1.5.0/24 at 192.0.2.5 is up again")
	b.wait(time.Second, "#verdict", "All 24 peers are up")
	f.down(true, 0, 1, 2, 3, 4, 5)
	b.wait(5*time.Second, "#live", "6 peers are down: 10.1.2.0/24 at 192.0.2.2", "and 3 more")
	f.down(false, 0, 1, 2, 3, 4, 5)
	f.change(func(s *control.Status) {
		loss := 0.5
		s.Peers[7].Loss = &loss
		s.Peers = append(s.Peers[:20], s.Peers[21:]...)
		s.Drops["ecn"] = 5
		s.Warnings = []string{"something <b>new</b>"}
	})
	b.wait(5*time.Second, "#live", "10.1.9.0/24 at 192.0.2.9 loses packets", "10.1.22.0/24 at 192.0.2.22 has left")
	b.wait(time.Second, "#drops", "ecn", "congestion mark")
	b.wait(time.Second, "#warnings-list", "something <b>new</b>")

	// What doctor found, and how long ago.
	f.mu.Lock()
	f.findings = filepath.Join(t.TempDir(), "doctor.json")
	f.mu.Unlock()
	write := func(age time.Duration) {
		t.Helper()
		report := fmt.Sprintf(`{"time":%q,"findings":[{"id":"ip-forward","severity":"broken","summary":"this host does not forward","evidence":"0","fix":"sysctl -w net.ipv4.ip_forward=1","confidence":"certain","node":"192.0.2.1"}]}`,
			time.Now().Add(-age).Format(time.RFC3339))
		if err := os.WriteFile(f.findings, []byte(report), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(5 * time.Minute)
	b.wait(5*time.Second, "#warnings-list li", "doctor, 5 min ago: this host does not forward")
	write(2 * time.Hour)
	b.wait(5*time.Second, "#doctor", "Asked 2 h ago: ask again", "broken: this host does not forward", "sysctl -w")

	// The server goes away, and another one comes.
	b.expect("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION_RESET", "interrupted")
	stop()
	b.wait(10*time.Second, "#connection", "no connection")
	b.wait(time.Second, "#live", "The connection to the daemon is lost")
	f.down(true, 9)
	f.serve(t, strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/"), "")
	b.wait(15*time.Second, "#live", "The connection to the daemon is back", "10.1.11.0/24 at 192.0.2.11 is down")
	b.live()
}

// Many peers: the first picture, what an update takes, how it scrolls, and finding one.
func TestManyPeers(t *testing.T) {
	for _, c := range []struct {
		peers       int
		first, each time.Duration // at most
	}{{500, 5 * time.Second, 400 * time.Millisecond}, {5000, 10 * time.Second, 700 * time.Millisecond}} {
		t.Run(fmt.Sprint(c.peers), func(t *testing.T) { testManyPeers(t, c.peers, c.first, c.each) })
	}
}

func testManyPeers(t *testing.T, peers int, mostFirst, mostEach time.Duration) {
	f := newFake(peers)
	f.busy = true
	url, _ := f.serve(t, "127.0.0.1:0", "")
	began := time.Now()
	b := open(t, 1280, 900, url)
	rows := func() int { return eval[int](b, `document.querySelectorAll('.table tbody tr[data-subnet]').length`) }
	labtest.Eventually(t, 15*time.Second, func() error {
		if n := rows(); n < 20 {
			return fmt.Errorf("%d rows", n)
		}
		return nil
	})
	first := time.Since(began)
	if n := rows(); n > 60 {
		t.Errorf("%d rows in the page, of which some twenty are seen", n)
	}
	if n := eval[string](b, `document.querySelector('.table table').getAttribute('aria-rowcount')`); n != fmt.Sprint(peers+1) {
		t.Errorf("the table says that it has %s rows", n)
	}
	call(b, performance.Enable, performance.EnableParams{})
	metric := func(name string) float64 {
		for _, m := range call(b, performance.GetMetrics, cdp.Empty{}).Metrics {
			if m.Name == name {
				return m.Value
			}
		}
		t.Fatalf("no metric %s", name)
		return 0
	}
	time.Sleep(time.Second)
	const updates = 4
	tasks := metric("TaskDuration")
	time.Sleep(updates * time.Second)
	each := time.Duration((metric("TaskDuration") - tasks) / updates * float64(time.Second))
	heap, nodes := metric("JSHeapUsedSize"), metric("Nodes")
	frames := eval[[]float64](b, scrolling)
	t.Logf("%d peers with traffic: rows and picture after %v, %v of processor time for an update; scrolling, a frame takes %.0f ms, the longest %.0f ms; heap %.1f MiB, %.0f nodes",
		peers, first.Round(time.Millisecond), each.Round(time.Millisecond), frames[0], frames[1], heap/(1<<20), nodes)
	if first > mostFirst || each > mostEach || frames[0] > 150 {
		t.Error("that is too slow to be used")
	}
	eval[bool](b, `document.querySelector('.table').scrollTop = 0, document.querySelector('.table').scrollIntoView(), true`)
	labtest.Eventually(t, 10*time.Second, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		fresh := 0
		for _, at := range f.watched {
			if time.Since(at) < 3*time.Second {
				fresh++
			}
		}
		if _, all := f.watched[""]; all || fresh < 10 || fresh > 60 {
			return fmt.Errorf("%d peers are said to be on the screen, all: %v", fresh, all)
		}
		return nil
	})

	// By the keyboard to the last row and back.
	eval[bool](b, `document.querySelector('.table thead th.subnet button').click(), document.querySelector('.table tbody button[tabindex="0"]').focus(), true`)
	last := f.networks[""].Peers[peers-1].Subnet
	at := func() string { return eval[string](b, "document.activeElement.textContent") }
	for _, step := range []struct{ key, to string }{{kb.End, last}, {kb.ArrowDown, last}, {kb.ArrowUp, f.networks[""].Peers[peers-2].Subnet}, {kb.Home, "10.1.2.0/24"}, {kb.PageDown, "10.1.17.0/24"}} {
		b.keys(step.key)
		if got := at(); got != step.to {
			t.Errorf("a key leads to %q, want %q", got, step.to)
		}
		if !eval[bool](b, `((r, v) => r.top >= v.top && r.bottom <= v.bottom)(document.activeElement.getBoundingClientRect(), document.querySelector('.table').getBoundingClientRect())`) {
			t.Errorf("one does not see %q, which has the focus", at())
		}
	}
	// What has the focus scrolls away: the arrow keys go on from there.
	eval[bool](b, `document.querySelector('.table').scrollTop = 5000, true`)
	time.Sleep(1500 * time.Millisecond)
	b.keys(kb.ArrowDown)
	if got := at(); got != "10.1.18.0/24" {
		t.Errorf("after it was scrolled away the next one is %q", got)
	}

	// The part of the table that is there is as good for a screen reader, and for a small screen, as a whole one.
	b.expect("TrustedHTML", "TrustedScript", "axe", "inline style", "Content Security Policy") // what axe does to the page
	for _, width := range []int64{320, 1280} {
		b.do(chromedp.EmulateViewport(width, 900))
		time.Sleep(200 * time.Millisecond)
		b.axe(fmt.Sprintf("%d peers, %d pixels", peers, width))
		if heights := eval[[]float64](b, `[...new Set([...document.querySelectorAll('.table tbody tr[data-subnet]')].map((r) => Math.round(r.getBoundingClientRect().height)))]`); len(heights) != 1 ||
			eval[bool](b, "document.scrollingElement.scrollWidth > innerWidth") {
			t.Errorf("at %d pixels rows are %v pixels high, or the page is wider than the window", width, heights)
		}
	}
	b.do(chromedp.SendKeys("#words", "10.2.77. encaps"))
	b.wait(3*time.Second, "#shown", fmt.Sprintf("1 of %s peers", words(peers)))
	b.wait(time.Second, ".table tbody", "10.2.77.0/24")
	if n := eval[int](b, `document.querySelectorAll('.map .nodes .node').length + document.querySelectorAll('.table tbody tr').length`); n != 2 {
		t.Errorf("%d shapes and rows for one peer that was found", n)
	}
	b.do(chromedp.SendKeys("#words", "x"))
	b.wait(3*time.Second, ".none", "No peer is like that")
	eval[bool](b, `document.getElementById('words').value = '', document.getElementById('words').dispatchEvent(new Event('input'))`)
	f.down(true, 17, 400)
	b.wait(5*time.Second, "#verdict", fmt.Sprintf("2 of %s peers are down", words(peers)))
	eval[bool](b, `document.querySelector('.states input[value=down]').click(), true`)
	b.wait(3*time.Second, "#shown", fmt.Sprintf("2 of %s peers", words(peers)))
	if rows := eval[int](b, `document.querySelectorAll('.table tbody tr.down').length`); rows != 2 {
		t.Errorf("%d rows of peers that are down", rows)
	}
	// The picture, by its cursor: any peer is there when one comes to it.
	eval[bool](b, `document.querySelector('.states input[value=all]').click(), document.querySelector('.map').focus(), true`)
	b.keys(kb.ArrowRight, kb.ArrowRight, kb.ArrowLeft, kb.ArrowLeft, kb.ArrowLeft, kb.End)
	if got := eval[string](b, `((m) => document.getElementById(m.getAttribute('aria-activedescendant'))?.getAttribute('aria-label') ?? 'nothing')(document.querySelector('.map'))`); !strings.HasPrefix(got, last) {
		t.Errorf("the picture's cursor is at %q, want %q", got, last)
	}
}

// words is a number as the page writes it.
func words(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}

// scrolling scrolls the table for 40 frames, and says how long one took on average, and the longest, in ms.
const scrolling = `new Promise((done) => {
  const table = document.querySelector('.table'), frames = [];
  table.scrollIntoView();
  let last = performance.now();
  const step = () => {
    const now = performance.now();
    frames.push(now - last);
    last = now;
    table.scrollTop += 400;
    if (frames.length <= 40) requestAnimationFrame(step);
    else done([frames.slice(1).reduce((a, b) => a + b) / 40, Math.max(...frames.slice(1))]);
  };
  requestAnimationFrame(step);
})`

// Everything is reached and worked by the keyboard alone, and one sees where one is.
func TestKeyboard(t *testing.T) {
	f := newFake(30)
	f.add("green", 5)
	f.networks["blue"] = f.networks[""]
	delete(f.networks, "")
	url, _ := f.serve(t, "127.0.0.1:0", "")
	b := open(t, 1280, 900, url)
	b.live()
	b.wait(5*time.Second, "#networks", "blue", "green")

	const where = `((e) => e.id || e.className.baseVal || e.textContent.trim().replace(/\s+/g, ' ') || e.value || e.tagName)(document.activeElement)`
	const seen = `((e) => [e, e.closest('label')].some((x) => x && getComputedStyle(x).outlineStyle !== 'none' && parseFloat(getComputedStyle(x).outlineWidth) >= 2))(document.activeElement)`
	var stops []string
	for range 60 {
		b.keys(kb.Tab)
		if eval[bool](b, "document.activeElement === document.body") {
			break
		}
		at := eval[string](b, where)
		if len(stops) > 0 && at == stops[0] {
			break
		}
		stops = append(stops, at)
		if !eval[bool](b, seen) {
			t.Errorf("one does not see that %q has the focus", at)
		}
	}
	want := []string{"Skip to what matters", "Skip to the table of peers", "blue", "green", "words", "all", "map", "Subnet", "Public IP", "State", "Way", "Round trip", "Loss", "Path MTU", "Received", "Sent", "Last heard", "10.1.2.0/24"}
	got := slices.Clone(stops)
	for i, s := range got {
		if s == "details" { // a box that scrolls is a stop
			got = slices.Delete(got, i, i+1)
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("Tab stops at %q\nwant %q", got, want)
	}

	focus := func(selector string) {
		t.Helper()
		eval[bool](b, fmt.Sprintf("document.querySelector(%q).focus(), true", selector))
	}
	// The picture: one stop, with a cursor in it.
	focus(".map")
	b.keys(kb.ArrowRight, kb.ArrowRight, kb.ArrowDown)
	if at := eval[string](b, `document.querySelector('.map').getAttribute('aria-activedescendant')`); at != "peer-10.1.4.0/24" {
		t.Errorf("after three arrows the cursor is at %q", at)
	}
	if !eval[bool](b, `getComputedStyle(document.querySelector('.map .cursor')).visibility === 'visible'`) {
		t.Error("one does not see the cursor")
	}
	b.keys(kb.Enter)
	b.wait(time.Second, "#details-title", "10.1.4.0/24")
	if hash := eval[string](b, "decodeURIComponent(location.hash)"); hash != "#/blue/10.1.4.0/24" {
		t.Errorf("the address ends in %q", hash)
	}
	b.keys(kb.End, kb.Enter)
	b.wait(time.Second, "#details-title", "10.1.31.0/24")
	b.keys(kb.Home, kb.Enter)
	b.wait(time.Second, "#details-title", "This node")

	// The table: one row is a stop, arrows move.
	focus(".table tbody button")
	b.keys(kb.ArrowDown, kb.ArrowDown, kb.Enter)
	b.wait(time.Second, "#details-title", "10.1.4.0/24")
	b.keys(kb.End)
	if at := eval[string](b, where); at != "10.1.31.0/24" {
		t.Errorf("End leads to %q", at)
	}
	focus(".table thead th.rtt button")
	b.keys(kb.Enter)
	b.wait(time.Second, ".table tbody tr", "10.1.31.0/24")
	if sort := eval[string](b, `document.querySelector('.table th.rtt').getAttribute('aria-sort')`); sort != "descending" {
		t.Errorf("aria-sort is %q", sort)
	}

	// The states, the words, and the networks.
	focus(".states input:checked")
	b.keys(kb.ArrowRight)
	b.wait(time.Second, "#shown", "0 of 30 peers")
	b.keys(kb.ArrowLeft)
	focus("#words")
	b.keys("1", "0", ".", "1", ".", "5", ".")
	b.wait(time.Second, "#shown", "1 of 30 peers")
	focus("#networks button:nth-child(2)")
	b.keys(kb.Enter)
	b.wait(time.Second, "#shown", "1 of 5 peers")

	// What is chosen is in the address.
	b.do(chromedp.Navigate(url+"#/green/10.1.3.0/24"), chromedp.Reload())
	b.live()
	b.wait(5*time.Second, "#details-title", "10.1.3.0/24")
}

// axe-core has nothing to say, in the dark and in the light, wide and narrow, and nothing is cut off at 320 pixels.
func TestAccessible(t *testing.T) {
	f := newFake(30)
	f.add("", 30)
	f.busy = true
	f.down(true, 1, 2)
	f.change(func(s *control.Status) {
		loss := 0.3
		s.Peers[5].Loss = &loss
		s.Peers[6].PathMTU, s.Peers[6].PathMTUState, s.Peers[6].PathMTUBy = 1300, "smaller", "icmp"
		s.Skipped = map[string]int{"value": 2}
	})
	url, _ := f.serve(t, "127.0.0.1:0", "")
	b := open(t, 1280, 900, url)
	b.expect("TrustedHTML", "TrustedScript", "axe", "inline style", "Content Security Policy") // what axe does to the page
	for _, scheme := range []string{"dark", "light"} {
		call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
			{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}}})
		for _, width := range []int64{1280, 320} {
			b.do(chromedp.EmulateViewport(width, 900), chromedp.Navigate(url+"#/"), chromedp.Reload())
			b.live()
			b.wait(5*time.Second, "#verdict", "2 of 30")
			b.axe(fmt.Sprintf("%s, %d pixels", scheme, width))
			if scrolls := eval[[]string](b, `[...document.querySelectorAll('main *')].filter((e) => !e.closest('.quiet') && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80))`); len(scrolls) > 0 ||
				eval[bool](b, "document.scrollingElement.scrollWidth > innerWidth") {
				t.Errorf("at %d pixels the page is wider than the window: %q", width, scrolls)
			}
			eval[bool](b, `document.querySelector('.table tbody button').click(), true`)
			b.wait(2*time.Second, "#details", "Down for")
			b.axe(fmt.Sprintf("%s, %d pixels, a peer's details", scheme, width))
		}
	}
	if moves := eval[string](b, `getComputedStyle(document.querySelector('.map .link')).transitionDuration`); moves != "0s" {
		t.Errorf("with reduced motion a link still moves for %s", moves)
	}
}

// The token is asked for once.
func TestLogin(t *testing.T) {
	const token = "an-open-secret-of-thirty-two-letters"
	url, _ := newFake(3).serve(t, "127.0.0.1:0", token)
	b := open(t, 800, 700, url)
	b.expect("401")
	b.axe("the form")
	b.keys("w", "r", "o", "n", "g", kb.Enter)
	b.wait(5*time.Second, "[role=alert]", "That is not the token.")
	b.do(chromedp.SendKeys("#token", token+kb.Enter))
	b.live()
	b.wait(5*time.Second, "#verdict", "All 3 peers are up")
	if cookie := eval[string](b, "document.cookie"); cookie != "" {
		t.Errorf("a script can read the cookie: %q", cookie)
	}
	b.do(chromedp.Reload())
	b.live()
}
