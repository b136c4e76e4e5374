//go:build linux

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"muslin/bench/lab"
)

// terminal is a real one, tmux's, with a shell in it. What is on its screen is what tmux made of the bytes.
type terminal struct {
	t      *testing.T
	host   *lab.Host
	socket string
}

func openTerminal(t *testing.T, h *lab.Host, columns, lines int) *terminal {
	t.Helper()
	lab.RequireTool(t, "tmux", "stty")
	w := &terminal{t, h, filepath.Join(h.Dir, "tmux.sock")}
	env := []string{"LC_ALL=C.UTF-8", "SHELL=/bin/sh", "ENV=", "PS1=$ ", "NO_COLOR="}
	server := must(h.Start("tmux", env, "tmux", "-u", "-D", "-S", w.socket, "-f", os.DevNull))(t)
	t.Cleanup(func() { // with the terminal gone, its programs get SIGHUP
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	eventually(t, 5*time.Second, func() error {
		_, err := w.tmux("new-session", "-d", "-x", strconv.Itoa(columns), "-y", strconv.Itoa(lines), "sh")
		return err
	})
	w.types("echo before")
	w.shows("before\n")
	return w
}

func (w *terminal) tmux(args ...string) (string, error) {
	return w.host.Run(w.t.Context(), append([]string{"tmux", "-u", "-S", w.socket}, args...)...)
}

// keys are tmux's names, or what is typed.
func (w *terminal) keys(keys ...string) {
	w.t.Helper()
	for _, k := range keys {
		must(w.tmux("send-keys", k))(w.t)
	}
}

// types a line.
func (w *terminal) types(line string) {
	w.t.Helper()
	must(w.tmux("send-keys", "-l", line))(w.t)
	w.keys("Enter")
}

// screen is its text, with escape sequences or without.
func (w *terminal) screen(flags ...string) string {
	w.t.Helper()
	return must(w.tmux(append([]string{"capture-pane", "-p"}, flags...)...))(w.t)
}

// waits until the screen is as it should be, and returns it.
func (w *terminal) waits(limit time.Duration, is func(screen string) error) (screen string) {
	w.t.Helper()
	eventually(w.t, limit, func() error {
		screen = w.screen()
		if err := is(screen); err != nil {
			return fmt.Errorf("%w, on the screen:\n%s", err, screen)
		}
		return nil
	})
	return screen
}

func (w *terminal) shows(words ...string) string {
	w.t.Helper()
	return w.waits(5*time.Second, func(screen string) error {
		for _, word := range words {
			if !strings.Contains(screen, word) {
				return fmt.Errorf("no %q", word)
			}
		}
		return nil
	})
}

// showsState waits until a peer's begins so.
func (w *terminal) showsState(subnet, state string) {
	w.t.Helper()
	w.waits(15*time.Second, func(screen string) error {
		row, err := peerRow(screen, subnet)
		if err == nil && !strings.HasPrefix(row[3], state) {
			err = fmt.Errorf("%q is not %s", row, state)
		}
		return err
	})
}

// expectAsItWas wants the shell back, on a terminal that is set as before: settings are stty's of then.
func (w *terminal) expectAsItWas(settings string) {
	w.t.Helper()
	w.types("echo it ended with $?; stty -g")
	screen := w.shows("before\n", "it ended with 0\n", settings)
	if strings.Contains(screen, "PUBLIC IP") {
		w.t.Errorf("it is still on the screen:\n%s", screen)
	}
	if flags := must(w.tmux("display-message", "-p", "#{alternate_on} #{cursor_flag} #{mouse_any_flag} #{keypad_cursor_flag}"))(w.t); strings.TrimSpace(flags) != "0 1 0 0" {
		w.t.Errorf("alternate screen, cursor, mouse, cursor keys: %s", flags)
	}
	w.types("clear; echo before")
	w.shows("before\n")
}

// settings are the terminal's, as stty writes them for itself.
func (w *terminal) settings() string {
	w.t.Helper()
	w.types("stty -g")
	screen := w.waits(30*time.Second, func(screen string) error {
		if !sttySettings.MatchString(screen) {
			return errors.New("no settings yet")
		}
		return nil
	})
	return sttySettings.FindString(screen)
}

var sttySettings = regexp.MustCompile(`(?m)^[0-9a-f]+(:[0-9a-f]+){10,}`)

// topRow are the cells of a peer's row at 100 columns: PEER, PUBLIC IP, STATE, RTT with its unit, LOSS with its, TX b/s, RX b/s, TX p/s, RX p/s.
var topRow = regexp.MustCompile(`(?m)^(\S+/24) +(\S+) +(up|unknown|DOWN \S+) +(-|\S+ ms) +(-|\S+ %) +(\S+) +(\S+) +(\S+) +(\S+)`)

func peerRow(screen, subnet string) ([]string, error) {
	for _, row := range topRow.FindAllStringSubmatch(screen, -1) {
		if row[1] == subnet {
			return row, nil
		}
	}
	return nil, fmt.Errorf("no row of %s", subnet)
}

// siNumber reads a number with a prefix: 12.3k.
func siNumber(s string) float64 {
	factor := 1.0
	if i := strings.IndexAny(s, "kMG"); i > 0 {
		factor, s = math.Pow(1000, float64(1+strings.IndexByte("kMG", s[i]))), s[:i]
	}
	n, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return math.NaN()
	}
	return n * factor
}

// iperfRate is what iperf3 sends, in bits of UDP payload a second, and iperfSize the payload of its datagrams.
const (
	iperfRate = 20e6
	iperfSize = 1000
)

// tolerance is how far what is seen in one look may be from what iperf3 measured in all.
func tolerance() float64 {
	if lab.Steady() {
		return 0.2
	}
	return 0.4
}

// `muslin top` in a terminal, with traffic that iperf3 makes and measures:
//
//	p1a ── cni0 ─ h1 (muslin, etcd) ─┐         ┌─ h3 (muslin), killed
//	p2a ── cni0 ─ h2 (muslin, top) ──┴── br0 ──┘
func TestTop(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "iperf3", "nft")
	l := newLab(t, 3)
	daemons := join(t, l, "vxlan")
	h1, h2 := l.Host(1), l.Host(2)
	m2 := daemons[1]
	one, three := status(t, daemons[0]).Node.Subnet.String(), status(t, daemons[2]).Node.Subnet.String()
	w := openTerminal(t, h2, 100, 24)
	settings := w.settings()
	top := fmt.Sprintf("%s top --control %s --interval 500ms", m2.Bin, m2.Control)
	w.types(top)
	w.shows(one, three, "2 peers", "vxlan VNI 1 port 8472", " 1 peers  2 drops", "q quit")

	w.showsState(three, "up")

	// Rates, beside what iperf3 measures; the third host dies meanwhile.
	daemons[2].Kill()
	var seen []float64
	var busy string
	from, to := h2.Pods()[0], h1.Pods()[0]
	flow := must(lab.Iperf(t.Context(), from.Node, to.Node, to.Addr, func(run func() error) error {
		done := make(chan error, 1)
		go func() { done <- run() }()
		for {
			select {
			case err := <-done:
				return err
			case <-time.After(200 * time.Millisecond):
				busy = w.screen()
				if row, err := peerRow(busy, one); err == nil {
					seen = append(seen, siNumber(row[6]))
				}
			}
		}
	}, "-u", "-l", strconv.Itoa(iperfSize), "-b", strconv.Itoa(iperfRate), "-t", "4"))(t)
	near := 0
	want := flow.BitsPerSecond * (iperfSize + 28) / iperfSize // with the headers of IP and UDP
	for _, rate := range seen {
		if math.Abs(rate-want) < tolerance()*want {
			near++
		}
	}
	t.Logf("iperf3 measured %.3g b/s, so %.3g of IP; seen were %.3g, at last:\n%s", flow.BitsPerSecond, want, seen, busy)
	if near < len(seen)/3 || near < 5 {
		t.Errorf("only %d of %d rates that were seen are near %.3g b/s: %.3g", near, len(seen), want, seen)
	}

	// Sort and filter, and what else there is to see.
	w.shows("STATE▼")
	w.keys("Left", "Left")
	w.shows("PEER▲")
	w.keys("r")
	screen := w.shows("PEER▼")
	if first, second := strings.Index(screen, max(one, three)), strings.Index(screen, min(one, three)); first > second && len(one) == len(three) {
		t.Errorf("not sorted from the last peer on:\n%s", screen)
	}
	w.keys("/")
	must(w.tmux("send-keys", "-l", to.Addr.String()))(t)
	w.keys("Enter")
	if screen := w.shows("1 of 2", one); strings.Contains(screen, three) {
		t.Errorf("the filter lets through what does not hold %s:\n%s", to.Addr, screen)
	}
	w.keys("Enter")
	w.shows("encapsulated:", "round trip", "esc back")
	w.keys("Escape")
	w.waits(5*time.Second, func(screen string) error {
		if strings.Contains(screen, "round trip") {
			return errors.New("still the details")
		}
		return nil
	})
	w.keys("2", "3")
	w.shows("DIRECTION", "outbound", "inbound")
	w.keys("4")
	w.shows("source-ports")
	w.keys("?")
	w.shows("left right, < >")
	w.keys("?", "1", "Escape")
	w.shows(one, three)

	// Of the requests to the first host each fourth is lost, and the third is found to be down.
	runIn(t, h1.Node, "nft", "add table inet lossy; add chain inet lossy in { type filter hook input priority 0; }; add rule inet lossy in udp dport 8472 numgen inc mod 4 0 drop")
	w.keys("Right", "Right")
	w.shows("STATE▼")
	screen = w.waits(25*time.Second, func(screen string) error {
		row, err := peerRow(screen, three)
		if err != nil || !strings.HasPrefix(row[3], "DOWN ") || row[4] != "-" || row[5] == "0 %" {
			return fmt.Errorf("%q is not DOWN, %w", row, err)
		}
		if row, err = peerRow(screen, one); err != nil || row[3] != "up" || !strings.HasSuffix(row[4], " ms") || row[5] == "0 %" || row[5] == "100 %" {
			return fmt.Errorf("%q is not up with some loss, %w", row, err)
		}
		if strings.Index(screen, three) > strings.Index(screen, one) {
			return errors.New("what is down does not come first")
		}
		return nil
	})
	t.Logf("with loss:\n%s", screen)
	runIn(t, h1.Node, "nft", "delete table inet lossy")
	w.keys("Down") // from the row that is down: it is red then
	w.waits(5*time.Second, func(string) error {
		if screen := w.screen("-e"); !regexp.MustCompile(`\x1b\[[0-9;]*31m` + regexp.QuoteMeta(three)).MatchString(screen) {
			return fmt.Errorf("what is down is not red: %q", screen)
		}
		return nil
	})

	// Without its daemon it goes on, and finds the next one.
	m2.Kill()
	w.shows("NO ANSWER since", "no daemon behind", "What stands here is of", one)
	startMuslin(t, h2, "--etcd-endpoints", endpoint(h1))
	w.waits(10*time.Second, func(screen string) error {
		if strings.Contains(screen, "NO ANSWER") || !strings.Contains(screen, "another process since") {
			return errors.New("it does not see the daemon")
		}
		_, err := peerRow(screen, one)
		return err
	})

	// Narrow and wide, by a resize.
	must(w.tmux("resize-window", "-x", "60", "-y", "15"))(t)
	w.waits(5*time.Second, func(screen string) error {
		if strings.Contains(screen, "PUBLIC IP") || !strings.Contains(screen, one) {
			return errors.New("not as it is at 60 columns")
		}
		return nil
	})
	must(w.tmux("resize-window", "-x", "180", "-y", "24"))(t)
	w.shows("PATH MTU", "DOWN SINCE")

	// However it ends, the terminal is as it was.
	w.keys("q")
	w.expectAsItWas(settings)
	w.types("NO_COLOR=1 " + top)
	w.showsState(three, "DOWN ")
	if screen := w.screen("-e"); regexp.MustCompile(`\x1b\[([0-9;]*;)?([34][0-8]|9[0-7])[;m]`).MatchString(screen) {
		t.Errorf("coloured with NO_COLOR: %q", screen)
	}
	w.keys("C-c")
	w.expectAsItWas(settings)
	w.types("sh -c 'echo $$ >" + h2.Dir + "/top.pid; exec " + top + "'")
	w.showsState(three, "DOWN ")
	pid := must(strconv.Atoi(strings.TrimSpace(string(must(os.ReadFile(h2.Dir + "/top.pid"))(t)))))(t)
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	w.expectAsItWas(settings)

	testTopOnce(t, m2, from, to, one, three)
}

// testTopOnce has iperf3 send while it looks once, as text and as JSON.
func testTopOnce(t *testing.T, m *lab.Muslin, from, to *lab.Pod, one, three string) {
	ctx := t.Context()
	var text, out string
	flow := must(lab.Iperf(ctx, from.Node, to.Node, to.Addr, func(run func() error) error {
		done := make(chan error, 1)
		go func() { done <- run() }()
		time.Sleep(500 * time.Millisecond)
		text = must(m.Command(ctx, "top", "--once", "--sort", "peer"))(t)
		out = must(m.Host.Output(ctx, m.Bin, "top", "--once", "--output", "json", "--filter", to.Addr.String(), "--control", m.Control))(t)
		return <-done
	}, "-u", "-l", strconv.Itoa(iperfSize), "-b", strconv.Itoa(iperfRate), "-t", "3"))(t)
	want := flow.BitsPerSecond * (iperfSize + 28) / iperfSize
	near := func(what string, rate float64) {
		if math.IsNaN(rate) || math.Abs(rate-want) > tolerance()*want {
			t.Errorf("%s: %.3g b/s, iperf3 sent %.3g", what, rate, want)
		}
	}
	row, err := peerRow(text, one)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	near("text", siNumber(row[6]))
	t.Logf("once:\n%s", text)
	if row, err := peerRow(text, three); err != nil || !strings.HasPrefix(row[3], "DOWN ") {
		t.Errorf("%q, %v", row, err)
	}
	var r struct {
		Interval float64 `json:"interval_seconds"`
		Total    struct {
			TxBytes float64 `json:"tx_bytes_per_second"`
		}
		Peers []struct {
			Subnet    string
			TxBytes   float64 `json:"tx_bytes_per_second"`
			TxPackets float64 `json:"tx_packets_per_second"`
			Sent      uint64  `json:"tx_packets"`
		}
		Queues []struct {
			Direction string
			Bytes     float64 `json:"bytes_per_second"`
			PerBatch  float64 `json:"pieces_per_batch"`
		}
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil || len(r.Peers) != 1 || r.Peers[0].Subnet != one {
		t.Fatalf("%v in %s", err, out)
	}
	p := r.Peers[0]
	near("JSON", 8*p.TxBytes)
	near("JSON, by packets", 8*(iperfSize+28)*p.TxPackets)
	near("JSON, in all", 8*r.Total.TxBytes)
	if math.Abs(r.Interval-1) > 0.5 || p.Sent == 0 || len(r.Queues) == 0 || r.Queues[0].Direction != "outbound" || r.Queues[0].PerBatch < 1 {
		t.Errorf("%+v", r)
	}
	if out, err := m.Command(ctx, "top"); err == nil || !strings.Contains(out, "muslin top --once") {
		t.Errorf("without a terminal: %v\n%s", err, out)
	}
}
