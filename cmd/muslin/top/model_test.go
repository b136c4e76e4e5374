package top

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"muslin/cmd/muslin/control"
)

var update = flag.Bool("update", false, "write testdata anew")

func TestMain(m *testing.M) {
	time.Local = time.UTC
	os.Exit(m.Run())
}

// driver sends messages to a model, as bubbletea does, and looks at its screen.
type driver struct {
	*testing.T
	*model
	fake *fake
}

func drive(t *testing.T, f *fake, width, height int, o Options) *driver {
	t.Helper()
	if o.Interval == 0 {
		o.Interval = time.Second
	}
	f.now = began
	m, err := newModel(t.Context(), f, o, false)
	if err != nil {
		t.Fatal(err)
	}
	d := &driver{t, m, f}
	d.send(tea.WindowSizeMsg{Width: width, Height: height})
	d.second()
	return d
}

// send also carries out the commands that come of a message, but those that wait.
func (d *driver) send(msg tea.Msg) {
	d.Helper()
	_, cmd := d.Update(msg)
	if _, waits := msg.(tick); !waits && cmd != nil {
		if msg := cmd(); msg != nil {
			d.send(d.stamp(msg))
		}
	}
}

// stamp has an answer come at the fake's time.
func (d *driver) stamp(msg tea.Msg) tea.Msg {
	if a, ok := msg.(answer); ok {
		a.sample.at = d.fake.now
		if a.took > 0 {
			a.took = d.fake.took
		}
		return a
	}
	return msg
}

// second lets one pass: a tick, and an answer if one was asked for.
func (d *driver) second() {
	d.Helper()
	d.fake.set(func(f *fake) { f.now = f.now.Add(time.Second) })
	before := d.asked
	d.now = d.fake.now
	look := d.look()
	d.send(tick(d.fake.now))
	if d.asked > before {
		a := ask(d.ctx, d.source, d.network, look)
		a.number = d.asked
		d.send(d.stamp(a))
	}
}

var special = map[string]rune{"down": tea.KeyDown, "up": tea.KeyUp, "left": tea.KeyLeft, "right": tea.KeyRight, "pgdown": tea.KeyPgDown, "end": tea.KeyEnd,
	"home": tea.KeyHome, "enter": tea.KeyEnter, "esc": tea.KeyEscape, "tab": tea.KeyTab, "backspace": tea.KeyBackspace}

// keys presses them, one after the other: names of special ones, or what is typed.
func (d *driver) keys(names ...string) {
	d.Helper()
	for _, name := range names {
		if code, ok := special[name]; ok {
			d.send(tea.KeyPressMsg{Code: code})
			continue
		}
		for _, r := range name {
			d.send(tea.KeyPressMsg{Code: r, Text: string(r)})
		}
	}
}

// screen is what is seen, without looks. No line is too long, and no more are there than there is room for.
func (d *driver) screen() string {
	d.Helper()
	lines := strings.Split(ansi.Strip(d.View().Content), "\n")
	if len(lines) > d.height {
		d.Errorf("%d lines on a screen of %d", len(lines), d.height)
	}
	for i, line := range lines {
		if wide(line) > d.width {
			d.Errorf("line %d is %d wide, on a screen of %d: %q", i, wide(line), d.width, line)
		}
		lines[i] = strings.TrimRight(line, " ")
	}
	return strings.Join(lines, "\n") + "\n"
}

func (d *driver) wants(words ...string) {
	d.Helper()
	screen := d.screen()
	for _, word := range words {
		if !strings.Contains(screen, word) {
			d.Errorf("no %q in\n%s", word, screen)
		}
	}
}

func (d *driver) wantsNot(words ...string) {
	d.Helper()
	screen := d.screen()
	for _, word := range words {
		if strings.Contains(screen, word) {
			d.Errorf("%q in\n%s", word, screen)
		}
	}
}

// rows are the first words of the table's lines.
func (d *driver) rows() []string {
	d.Helper()
	var rows []string
	lines := strings.Split(d.screen(), "\n")
	for i := len(d.header()) + 1; i < len(lines)-2; i++ {
		if fields := strings.Fields(lines[i]); len(fields) > 0 {
			rows = append(rows, fields[0])
		}
	}
	return rows
}

func (d *driver) wantRows(want ...string) {
	d.Helper()
	if got := d.rows(); len(got) < len(want) || strings.Join(got[:len(want)], " ") != strings.Join(want, " ") {
		d.Errorf("rows %q, want %q first", got, want)
	}
}

// The screens, to be read: go test ./cmd/muslin/top -update writes them anew.
func TestScreens(t *testing.T) {
	seven := func() *fake { return &fake{peers: 7, warnings: []string{"something is odd", "and more"}} }
	for name, do := range map[string]func(t *testing.T) *driver{
		"peers-80x24":    func(t *testing.T) *driver { return drive(t, seven(), 80, 24, Options{}) },
		"peers-200x16":   func(t *testing.T) *driver { return drive(t, seven(), 200, 16, Options{}) },
		"peers-40x10":    func(t *testing.T) *driver { return drive(t, seven(), 40, 10, Options{}) },
		"peers-20x5":     func(t *testing.T) *driver { return drive(t, seven(), 20, 5, Options{}) },
		"drops-80x24":    func(t *testing.T) *driver { d := drive(t, seven(), 80, 24, Options{}); d.keys("2"); return d },
		"queues-80x24":   func(t *testing.T) *driver { d := drive(t, seven(), 80, 24, Options{}); d.keys("3"); return d },
		"queues-140x12":  func(t *testing.T) *driver { d := drive(t, seven(), 140, 12, Options{}); d.keys("3"); return d },
		"features-80x24": func(t *testing.T) *driver { d := drive(t, seven(), 80, 24, Options{}); d.keys("4"); return d },
		"node-80x24":     func(t *testing.T) *driver { d := drive(t, seven(), 80, 24, Options{}); d.keys("5"); return d },
		"help-80x24":     func(t *testing.T) *driver { d := drive(t, seven(), 80, 24, Options{}); d.keys("?"); return d },
		"details-80x24":  func(t *testing.T) *driver { d := drive(t, seven(), 80, 24, Options{}); d.keys("enter"); return d },
		"no-answer-80x24": func(t *testing.T) *driver {
			d := drive(t, seven(), 80, 24, Options{})
			d.second()
			d.fake.fails = errors.New("no daemon behind /run/muslin/muslin.sock: start one with \"muslin run\", or say where its socket is with --control")
			d.second()
			d.second()
			return d
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := do(t)
			d.second()
			got := d.screen()
			file := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want, err := os.ReadFile(file); err != nil || got != string(want) {
				t.Errorf("%v; the screen is\n%s", err, got)
			}
		})
	}
}

// Each column sorts, and the other way round; the one that is sorted by is seen however narrow the terminal is.
func TestSort(t *testing.T) {
	d := drive(t, &fake{peers: 12}, 60, 24, Options{Sort: "peer"})
	d.second()
	d.wantRows("10.245.1.0/24", "10.245.2.0/24", "10.245.3.0/24")
	d.keys("r")
	d.wantRows("10.245.12.0/24", "10.245.11.0/24")
	d.keys("r")
	for name, want := range map[string][2]string{ // the first, and the last
		"public-ip": {"10.245.1.0/24", "10.245.12.0/24"}, "state": {"10.245.7.0/24", "10.245.1.0/24"}, "rtt": {"10.245.12.0/24", "10.245.7.0/24"},
		"loss": {"10.245.7.0/24", "10.245.11.0/24"}, "tx": {"10.245.12.0/24", "10.245.1.0/24"}, "rx": {"10.245.12.0/24", "10.245.1.0/24"},
		"tx-packets": {"10.245.12.0/24", "10.245.1.0/24"}, "rx-packets": {"10.245.12.0/24", "10.245.1.0/24"}, "way": {"10.245.12.0/24", "10.245.1.0/24"},
		"mtu": {"10.245.9.0/24", "10.245.11.0/24"}, "heard": {"10.245.1.0/24", "10.245.11.0/24"}, "down-since": {"10.245.7.0/24", "10.245.1.0/24"},
		"backend": {"10.245.12.0/24", "10.245.1.0/24"}, "tx-total": {"10.245.12.0/24", "10.245.1.0/24"}, "rx-total": {"10.245.12.0/24", "10.245.1.0/24"},
		"peer": {"10.245.1.0/24", "10.245.12.0/24"},
	} {
		for range d.tables[panePeers].columns {
			if d.tables[panePeers].columns[d.tables[panePeers].by].name == name {
				break
			}
			d.keys("right")
		}
		by := d.tables[panePeers].columns[d.tables[panePeers].by]
		if by.name != name {
			t.Fatalf("the keys do not reach %s", name)
		}
		arrow := "▲"
		if by.desc {
			arrow = "▼"
		}
		d.wants(by.title + arrow)
		if rows := d.rows(); rows[0] != want[0] || rows[len(rows)-1] != want[1] {
			t.Errorf("by %s: %q, want %s first and %s last", name, rows, want[0], want[1])
		}
		d.keys("r")
		d.wants(by.title + strings.Trim("▲▼", arrow))
		d.keys("r")
	}
	if len(Columns()) != 16 {
		t.Errorf("%d columns: is each in the table above?", len(Columns()))
	}
}

func TestFilter(t *testing.T) {
	d := drive(t, &fake{peers: 300}, 100, 24, Options{})
	d.keys("/", "DOWN")
	d.wants("/DOWN_", "type what")
	d.keys("enter")
	d.wants("/DOWN  42 of 300", "10.245.7.0/24")
	d.wantsNot("10.245.1.0/24")
	d.keys("/", " 10.245.14.")
	d.wantRows("10.245.14.0/24")
	d.wants("1 of 300")
	d.keys("backspace", "backspace", "backspace", "enter")
	d.send(tea.PasteMsg{Content: "not typing"})
	d.wants("/DOWN 10.245.  36 of 300")
	d.keys("esc")
	d.wantsNot("/DOWN")
	d.keys("/", "10.245.3.77", "enter") // an address finds who holds it
	d.wantRows("10.245.3.0/24")
	d.wants("1 of 300")
	d.keys("/")
	d.send(tea.KeyPressMsg{Code: 'u', Mod: tea.ModCtrl})
	d.send(tea.PasteMsg{Content: "nobody\x1b[2J"})
	d.keys("enter")
	d.wants(`nothing has "nobody?[2J" in it`)
	d.keys("2")
	d.keys("/")
	d.send(tea.KeyPressMsg{Code: 'u', Mod: tea.ModCtrl})
	d.keys("queue was full", "enter")
	d.wants("tun-overflow", "1 of 2")
	d.keys("esc", "4", "/", "OFF", "enter")
	d.wantRows("udp-gso")

	if o := drive(t, &fake{peers: 300}, 100, 24, Options{Filter: "unknown"}); true {
		o.wants("/unknown  24 of 300")
	}
}

// What one sees while paused stays, and afterwards the rates are over all that time.
func TestPause(t *testing.T) {
	d := drive(t, &fake{peers: 3}, 80, 24, Options{})
	d.second()
	d.wants("04:12:02", "24.0k")
	d.keys("p")
	asked := d.asked
	for range 5 {
		d.second()
	}
	d.wants("PAUSED at 04:12:02")
	if d.asked != asked {
		t.Error("asked while it is paused")
	}
	d.keys("p")
	d.wants("04:12:07", "24.0k")
	d.wantsNot("PAUSED")
	if d.picture.over != 5*time.Second {
		t.Errorf("rates over %v", d.picture.over)
	}
}

// A daemon that goes and comes again, as another process: no rates are made of two that have nothing to do with each other.
func TestRestart(t *testing.T) {
	d := drive(t, &fake{peers: 3}, 80, 24, Options{})
	d.wants("rates with the next look")
	d.second()
	d.fake.fails = errors.New("no daemon there")
	d.second()
	d.second()
	d.wants("NO ANSWER since 04:12:03: no daemon there", "What stands here is of 04:12:02", "24.0k")
	d.fake.fails, d.fake.pid = nil, 1
	d.second()
	d.wantsNot("NO ANSWER", "24.0k")
	d.wants("another process since 04:12:05", "rates with the next look")
	d.second()
	d.wants("24.0k")
	d.fake.fails = fmt.Errorf("ask the daemon: %w", context.DeadlineExceeded)
	d.second()
	d.wants("takes the question and does not")
	for range 10 {
		d.second()
	}
	d.fake.fails = nil
	d.second()
	d.wantsNot("another process")
	if d.picture.over != 12*time.Second {
		t.Errorf("rates over %v, though it is the same daemon", d.picture.over)
	}
}

// There may be nobody from the start, and one that takes long is not asked again meanwhile.
func TestNobody(t *testing.T) {
	f := &fake{peers: 3, fails: errors.New("no daemon there")}
	d := drive(t, f, 80, 24, Options{})
	d.keys("down", "right", "enter", "2", "3", "5", "1", "r", "G")
	d.wants("NO ANSWER since 04:12:01: no daemon there", "q quit")
	d.fake.fails = nil
	d.second()
	d.wants("3 peers")

	asked := d.asked
	d.Update(tick(d.fake.now.Add(time.Second))) // is asked, and does not answer
	for i := range 8 {
		d.Update(tick(d.fake.now.Add(time.Duration(2+i) * time.Second)))
	}
	if d.asked != asked+1 {
		t.Errorf("asked %d times while it did not answer", d.asked-asked)
	}
	d.wants("of 04:12:02, 9s ago")
	d.send(answer{number: asked, sample: sample{at: d.fake.now, status: f.status(d.fake.now, 99)}})
	d.wantsNot("99 peers") // to a question that was overtaken
}

// Of many peers those on the screen are asked for at each look, all as seldom as that takes a small part of the time; and it is
// noticed that others are there.
func TestManyPeers(t *testing.T) {
	f := &fake{peers: 300, took: 200 * time.Millisecond}
	d := drive(t, f, 100, 24, Options{Sort: "peer"})
	d.second()
	d.wants("300 peers", "10.245.1.0/24")
	asked := func(n int) (all, some int) {
		t.Helper()
		f.looks = nil
		for range n {
			d.second()
		}
		for _, l := range f.looks {
			if l.Peers.All {
				all++
			} else if len(l.Peers.Subnets) > 0 && len(l.Peers.Subnets) <= 24 {
				some++
			}
			if l.Watch.All || len(l.Watch.Subnets) == 0 || len(l.Watch.Subnets) > 24 {
				t.Errorf("watched %+v", l.Watch)
			}
		}
		return all, some
	}
	if all, some := asked(20); all != 2 || some != 18 {
		t.Errorf("in 20 seconds all were asked for %d times, some %d times; want 2 and 18", all, some)
	}
	// Each row and the sums are of the last second, or of the time since all were asked for.
	sum := 0.0
	for i, p := range d.picture.peers {
		if !p.known || p.txPackets != float64(i+1) {
			t.Errorf("%s: %v packets a second, known %t, want %d", p.Subnet, p.txPackets, p.known, i+1)
		}
		sum += p.txPackets
	}
	if d.picture.total.txPackets != sum {
		t.Errorf("%v packets a second in all, want %v", d.picture.total.txPackets, sum)
	}
	if row := d.picture.peers[0]; !row.seen.Equal(f.now) {
		t.Errorf("what is on the screen was seen at %v, and it is %v", row.seen, f.now)
	}
	d.keys("G")
	d.second()
	d.wants(d.picture.peers[299].Subnet)
	if !d.picture.peers[299].seen.Equal(f.now) && !d.picture.peers[0].seen.Equal(f.now) {
		t.Error("after the last row was gone to it is not asked for")
	}
	f.set(func(f *fake) { f.peers = 301 })
	d.second()
	d.wants("301 peers")
	f.set(func(f *fake) { f.pid++ })
	d.second()
	d.wants("another process since")
	if d.picture.at.IsZero() || len(d.picture.peers) != 301 {
		t.Errorf("%d peers of another process", len(d.picture.peers))
	}
	d.keys("2")
	f.looks = nil
	d.second()
	d.second()
	if l := f.looks[len(f.looks)-1]; l.Peers.All || len(l.Peers.Subnets) > 0 || l.Watch.All || len(l.Watch.Subnets) > 0 {
		t.Errorf("on another pane it asks for %+v", l)
	}

	f = &fake{peers: 300, took: 200 * time.Millisecond, old: true}
	d = drive(t, f, 100, 24, Options{Sort: "peer"})
	d.second()
	d.second()
	d.wants("300 peers, 42 DOWN")
	for _, p := range d.picture.peers {
		if !p.known || !p.seen.Equal(f.now) {
			t.Fatalf("%s: of an older daemon, which has all peers each time: known %t, seen %v", p.Subnet, p.known, p.seen)
		}
	}
}

func TestNetworks(t *testing.T) {
	f := &fake{networks: map[string]int{"blue": 3, "green": 5}}
	d := drive(t, f, 80, 24, Options{})
	d.second()
	d.wants("network blue (1 of 2, n: next)", "3 peers")
	d.keys("n")
	d.wants("network green (2 of 2, n: next)", "5 peers", "rates with the next look")
	d.second()
	d.wants("40.0k")
	d.keys("n")
	d.wants("network blue")

	d = drive(t, f, 80, 24, Options{Network: "green"})
	d.wants("network green", "5 peers")
	d.keys("n")
	d.wants("network blue (1 of 2, n: next)", "3 peers")
	d = drive(t, &fake{peers: 2}, 80, 24, Options{}) // of one there is no next
	d.keys("n")
	d.wants("2 peers")
	d.wantsNot("network", "NO ANSWER")
}

// What others wrote into the store does nothing to the terminal.
func TestControlCharacters(t *testing.T) {
	f := &fake{peers: 1, warnings: []string{"a\x1b]0;title\x07b\u009bc\xff"}}
	d := drive(t, f, 80, 24, Options{})
	for _, keys := range []string{"1", "5"} {
		d.keys(keys)
		if raw := d.View().Content; strings.ContainsAny(raw, "\x07\u009b") || strings.Contains(raw, "\x1b]") || strings.Contains(raw, "\xff") {
			t.Errorf("%q", raw)
		}
		d.wants("a?]0;title?b?c?")
	}
}

func TestColours(t *testing.T) {
	for _, colour := range []bool{true, false} {
		f := &fake{peers: 7}
		d := drive(t, f, 80, 24, Options{})
		d.model.styles = newStyles(colour)
		d.keys("down") // away from the one that is down
		content := d.View().Content
		down := content[strings.Index(content, "10.245.7.0")-8:][:8]
		if strings.HasSuffix(down, "\x1b[1;31m") != colour {
			t.Errorf("colour %t: %q in front of one that is down", colour, down)
		}
		if coloured := strings.Contains(content, "[31") || strings.Contains(content, ";3") || strings.Contains(content, "[9"); coloured != colour {
			t.Errorf("colour %t: %q", colour, content)
		}
	}
}

// Of many peers only those that are seen are made into text, wherever one scrolls.
func TestScroll(t *testing.T) {
	d := drive(t, &fake{peers: 1000}, 80, 24, Options{Sort: "peer"})
	drawn := 0
	peers := d.tables[panePeers]
	cell := peers.columns[0].cell
	peers.columns[0].cell = func(i int) string { drawn++; return cell(i) }
	d.wantRows("10.245.1.0/24", "10.245.2.0/24")
	room := d.height - len(d.header()) - 2
	drawn = 0
	d.View()
	if drawn != room {
		t.Errorf("%d rows were drawn on a screen with room for %d", drawn, room)
	}
	d.keys("pgdown")
	d.keys("pgdown")
	if _, row := peers.cursor, d.rows(); row[len(row)-1] != fmt.Sprintf("10.245.%d.0/24", 1+2*room) {
		t.Errorf("two pages of %d on: %q", room, row)
	}
	d.keys("end")
	if rows := d.rows(); rows[len(rows)-1] != "10.248.232.0/24" || len(rows) != room {
		t.Errorf("at the end: %q", rows)
	}
	d.keys("g")
	d.wantRows("10.245.1.0/24")
	d.keys("G")
	d.fake.peers = 3 // they go
	d.second()
	d.wantRows("10.245.1.0/24", "10.245.2.0/24", "10.245.3.0/24")
	d.keys("enter")
	d.wants("10.245.3.0/24 at 192.0.2.4", "DirectRouting is off")
	d.fake.peers = 2
	d.second()
	d.wants("is a peer no more")
	d.keys("esc")
	d.wantRows("10.245.1.0/24", "10.245.2.0/24")
}

// Any size will do, and everything is to be reached in it.
func TestSizes(t *testing.T) {
	for _, size := range [][2]int{{1, 1}, {10, 3}, {20, 6}, {33, 9}, {79, 23}, {300, 100}} {
		d := drive(t, &fake{peers: 50, warnings: []string{"w"}}, size[0], size[1], Options{})
		for _, key := range []string{"1", "2", "3", "4", "5", "?", "down", "esc", "1", "enter", "down", "esc", "2", "enter", "esc", "4", "enter", "esc", "1", "/", "x", "esc", "end", "G", "pgup", "left", "left", "r"} {
			d.keys(key)
			d.screen()
			d.second()
			d.screen()
		}
		d.send(tea.WindowSizeMsg{Width: 80, Height: 24})
		d.wants("50 peers")
	}
}

func TestQuit(t *testing.T) {
	for _, key := range []tea.KeyPressMsg{{Code: 'q', Text: "q"}, {Code: 'c', Mod: tea.ModCtrl}} {
		for _, first := range []string{"", "?", "/", "p", "enter"} {
			d := drive(t, &fake{peers: 3}, 80, 24, Options{})
			if first != "" {
				d.keys(first)
			}
			_, cmd := d.Update(key)
			if typed := first == "/" && key.Text == "q"; typed != (cmd == nil) {
				t.Errorf("%s after %q: ends %t", key, first, cmd != nil)
			} else if cmd != nil {
				if _, quits := cmd().(tea.QuitMsg); !quits {
					t.Errorf("%s after %q does not end it", key, first)
				}
			}
		}
	}
}

func TestOptions(t *testing.T) {
	if err := (&Options{Interval: time.Second, Sort: "rtt"}).Check(); err != nil {
		t.Error(err)
	}
	for want, o := range map[string]Options{"want one of peer, public-ip, state": {Interval: time.Second, Sort: "speed"}, "want 100ms or more": {Interval: time.Millisecond}} {
		if err := o.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := Run(t.Context(), &fake{}, Options{Interval: time.Second}, null, null); !errors.Is(err, ErrNoTerminal) || !strings.Contains(err.Error(), "--once") {
		t.Errorf("no terminal: %v", err)
	}
	t.Setenv("TERM", "dumb")
	if err := Run(t.Context(), &fake{}, Options{Interval: time.Second}, null, null); !errors.Is(err, ErrNoTerminal) || !strings.HasPrefix(err.Error(), "TERM=dumb") {
		t.Errorf("a terminal that cannot move its cursor: %v", err)
	}
}

func TestFormats(t *testing.T) {
	for n, want := range map[float64]string{0: "0", 0.04: "0.0", 1: "1.0", 9.94: "9.9", 9.96: "10", 12.4: "12", 999: "999", 999.6: "1.00k", 1234: "1.23k", 12345: "12.3k",
		99_960: "100k", 1.5e6: "1.50M", 25e9: "25.0G", 1e21: "1000E"} {
		if got := si(n); got != want {
			t.Errorf("%v: %q, want %q", n, got, want)
		}
	}
	for bytes, want := range map[float64]string{0: "0 b/s", 1: "8.0 b/s", 125: "1.00 kb/s", 1.25e8: "1.00 Gb/s"} {
		if got := bitText(bytes); got != want {
			t.Errorf("%v B/s: %q, want %q", bytes, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Second: "0s", 59*time.Second + 999*time.Millisecond: "59s", 61 * time.Minute: "1h", 47 * time.Hour: "47h", 72 * time.Hour: "3d"} {
		if got := short(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
	for _, c := range []struct {
		s     string
		cells int
		right bool
		want  string
	}{{"abc", 5, false, "abc  "}, {"abc", 5, true, "  abc"}, {"abcdef", 4, false, "abc…"}, {"µs…", 4, true, " µs…"}, {"日本語", 5, false, "日本…"}, {"abc", 0, false, ""}} {
		if got := fit(c.s, c.cells, c.right); got != c.want {
			t.Errorf("%q in %d: %q, want %q", c.s, c.cells, got, c.want)
		}
	}
}

func TestHistograms(t *testing.T) {
	was, is := histogram(100, 250), histogram(300, 850)
	if got := since(was, is); got.Count != 200 || got.Sum != 600 || got.Counts[0] != 100 || got.Mean() != 3 {
		t.Errorf("%+v", got)
	}
	if got := since(is, was); got.Count != was.Count { // of a daemon that was started anew
		t.Errorf("%+v", got)
	}
	if got := since(control.Histogram{}, is); got.Count != is.Count {
		t.Errorf("%+v", got)
	}
	for share, want := range map[float64]string{0.5: "1", 0.51: "8", 1: "8"} {
		if got := quantile(is, share); got != want {
			t.Errorf("%v: %q, want %q", share, got, want)
		}
	}
	is.Counts[1], is.Counts[2] = 200, 200
	if got := quantile(is, 0.99); got != ">64" {
		t.Errorf("%q", got)
	}
	if got := quantile(control.Histogram{}, 0.99); got != "" {
		t.Errorf("%q", got)
	}
}

// What changed of the peers between two looks; direct packets are not counted.
func TestRates(t *testing.T) {
	f := &fake{}
	a, b := f.status(began, 4), f.status(began.Add(10*time.Second), 4)
	a.Peers = append(a.Peers[:1], a.Peers[2:]...) // the second came meanwhile
	a.Peers[1].TxPackets = 1 << 40                // the third's lease went and came, and its counters are new
	b.Peers[3].Way, b.Peers[3].TxPackets, b.Peers[3].TxBytes, b.Peers[3].RxPackets, b.Peers[3].RxBytes = "direct", 0, 0, 0, 0
	a.Counts, b.Counts = control.PeerCounts{}, control.PeerCounts{} // as an older daemon has it
	p := newPicture(newPicture(nil, sample{at: began, status: a}), sample{at: began.Add(10 * time.Second), status: b})
	for i, want := range []bool{true, false, false, false} {
		if p.peers[i].known != want {
			t.Errorf("peer %d: rates known %t, want %t", i, p.peers[i].known, want)
		}
	}
	if got, want := p.peers[0].traffic, (traffic{1, 1000, 0.5, 500}); got != want || p.total != want || p.dropRate != 12 || p.direct != 1 {
		t.Errorf("%+v, in all %+v, %v drops, want %+v", got, p.total, p.dropRate, want)
	}
}

// What stands at the top where there is nothing to be known.
func TestNothingKnown(t *testing.T) {
	f := new(fake)
	s := f.status(began, 2)
	for i := range s.Peers {
		s.Peers[i].Way, s.Peers[i].TxPackets, s.Peers[i].RxPackets, s.Peers[i].TxBytes, s.Peers[i].RxBytes = "direct", 0, 0, 0, 0
	}
	s.Counts = control.PeerCounts{Total: 2, Up: 2, Ways: map[string]int{"direct": 2}}
	p := newPicture(newPicture(nil, sample{at: began, status: s}), sample{at: began.Add(time.Second), status: s})
	if got, want := trafficLine(p, 80), "2 peers, 2 direct  what goes directly is not counted  dropped 0/s"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	s = &control.Status{State: "waiting for etcd"}
	if got, want := strings.Join(nodeLines(newPicture(nil, sample{at: began, status: s}), began), "\n"), "- on -\nthe network's config is not known yet  store not watched yet"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// BenchmarkFrame is a frame while one scrolls, BenchmarkLook what an answer costs.
func BenchmarkFrame(b *testing.B) {
	for _, peers := range []int{10, 1000, 10_000} {
		b.Run(fmt.Sprint(peers), func(b *testing.B) {
			m := benchmarked(b, peers)
			for i := 0; b.Loop(); i++ {
				m.tables[panePeers].move(1)
				if i%peers == peers-1 {
					m.tables[panePeers].move(-peers)
				}
				m.View()
			}
		})
	}
}

func BenchmarkLook(b *testing.B) {
	for _, peers := range []int{1000, 10_000} {
		b.Run(fmt.Sprint(peers), func(b *testing.B) {
			m := benchmarked(b, peers)
			f := new(fake)
			looks := []*control.Status{f.status(began.Add(time.Second), peers), f.status(began.Add(2*time.Second), peers)}
			for i := 0; b.Loop(); i++ {
				m.take(answer{number: m.asked, sample: sample{at: began.Add(time.Duration(i) * time.Second), status: looks[i%2]}})
			}
		})
	}
}

func benchmarked(b *testing.B, peers int) *model {
	f := new(fake)
	m, err := newModel(b.Context(), f, Options{Interval: time.Second}, true)
	if err != nil {
		b.Fatal(err)
	}
	m.width, m.height = 200, 60
	for i := range 2 {
		at := began.Add(time.Duration(i) * time.Second)
		m.take(answer{number: m.asked, sample: sample{at: at, status: f.status(at, peers)}})
	}
	return m
}
