package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"muslin/bench/link"
	"muslin/cmd/muslin/control"
)

// linkRun is a call of `muslin bench link` in this process.
type linkRun struct {
	stdout, stderr lockedBuffer
	err            error
	done           chan struct{}
}

// lockedBuffer is written by one goroutine and looked at by another.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func startLink(ctx context.Context, stdin io.Reader, args ...string) *linkRun {
	r := &linkRun{done: make(chan struct{})}
	cmd := newBenchLinkCommand()
	cmd.SetArgs(args)
	cmd.SetIn(stdin)
	cmd.SetOut(&r.stdout)
	cmd.SetErr(&r.stderr)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	go func() {
		defer close(r.done)
		r.err = cmd.ExecuteContext(ctx)
	}()
	return r
}

func runLink(t *testing.T, args ...string) *linkRun {
	t.Helper()
	r := startLink(t.Context(), strings.NewReader("y\n"), args...)
	<-r.done
	return r
}

// fakeDaemon serves a status on a control socket.
func fakeDaemon(t *testing.T, status *control.Status) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "muslin.sock")
	l, err := listenControl(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- serveHTTP(ctx, l, controlHandler(func(selection) *control.Status { return status }, func(control.Peers) {}, http.NotFound, http.NotFound))
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return socket
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// loopStatus is a daemon's whose addresses are all on loopback.
func loopStatus(own, publicIP string, peers ...control.PeerStatus) *control.Status {
	s := exampleStatus(time.Now())
	s.Node.Subnet, s.Node.PublicIP, s.Node.Iface, s.Peers = own, publicIP, "lo", peers
	return s
}

// Both sides as two people use them, with their daemons' word for the addresses.
func TestBenchLinkBothSides(t *testing.T) {
	port := freePort(t)
	// This host is both nodes; 127.1.2.0 and 127.1.1.0 are on loopback as all of 127.0.0.0/8 is.
	serving := fakeDaemon(t, loopStatus("127.1.2.0/24", "127.0.0.1"))
	measuring := fakeDaemon(t, loopStatus("127.1.1.0/24", "127.0.0.7", control.PeerStatus{Subnet: "127.1.2.0/24", PublicIP: "127.0.0.1"}))
	ctx, cancel := context.WithCancel(t.Context())
	server := startLink(ctx, nil, "--serve", "--control", serving, "--port", port, "--rate", "50M")
	defer func() {
		cancel()
		<-server.done
		if server.err != nil || !strings.Contains(server.stdout.String(), "ended") {
			t.Errorf("%v\n%s", server.err, server.stdout.String())
		}
	}()
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(server.stdout.String(), "Ctrl-C"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the server does not say what to type: %s", server.stdout.String())
		}
	}
	var commands [][]string
	for line := range strings.Lines(server.stdout.String()) {
		if args, ok := strings.CutPrefix(line, "  muslin bench link "); ok {
			commands = append(commands, strings.Fields(args))
		}
	}
	if len(commands) != 2 || !strings.Contains(server.stdout.String(), "50M bit/s") {
		t.Fatal(server.stdout.String())
	}
	quick := []string{"--seconds", "0.1", "--streams", "1", "--yes", "--control", measuring}

	text := runLink(t, append(commands[0], quick...)...)
	for _, want := range []string{"127.1.2.0:" + port, "127.0.0.1:" + port, "OVERLAY ÷ UNDERLAY", "TCP to the peer", "(MTU 65535)", "NOTE: what was measured as the overlay left from"} {
		if !strings.Contains(text.stdout.String(), want) {
			t.Errorf("no %q in\n%s", want, text.stdout.String())
		}
	}
	if text.err != nil || !strings.Contains(text.stderr.String(), "UDP round trip, underlay ...") {
		t.Errorf("%v, %s", text.err, text.stderr.String())
	}

	script := runLink(t, append(commands[1], append(quick, "--output", "json")...)...)
	var r link.Result
	if err := json.Unmarshal([]byte(script.stdout.String()), &r); err != nil || script.err != nil {
		t.Fatalf("%v, %v in\n%s", err, script.err, script.stdout.String())
	}
	if len(r.Measures) != 8 || r.Rate != 50e6 || r.Measures["tcp_to_peer"].Overlay.BitsPerSecond == 0 || len(r.Notes) != 0 {
		t.Errorf("%+v", r)
	}

	wrong := runLink(t, append([]string{"127.0.0.1", "--token", "wrong", "--port", port}, quick...)...)
	if wrong.err == nil || !strings.Contains(wrong.err.Error(), "token") {
		t.Errorf("%v", wrong.err)
	}
}

// Nothing is sent before a person, or --yes, says so.
func TestBenchLinkAsks(t *testing.T) {
	for name, c := range map[string]struct {
		terminal bool
		answer   string
		want     string
	}{
		"no terminal":         {false, "y\n", "no terminal"},
		"no":                  {true, "n\n", "nothing was measured"},
		"nothing":             {true, "", "nothing was measured"},
		"yes, nobody listens": {true, "y\n", "neither the overlay nor the underlay works"},
	} {
		t.Run(name, func(t *testing.T) {
			port := freePort(t)
			cmd := newBenchLinkCommand()
			b := &benchLink{overlayAddr: "127.0.0.1", underlayAddr: "127.0.0.2", token: "x", seconds: 3, streams: 4, rate: "100M", output: "text",
				terminal: func(any) bool { return c.terminal }}
			n, err := strconv.ParseUint(port, 10, 16)
			if err != nil {
				t.Fatal(err)
			}
			b.port = uint16(n)
			var asked bytes.Buffer
			cmd.SetIn(strings.NewReader(c.answer))
			cmd.SetErr(&asked)
			cmd.SetOut(io.Discard)
			cmd.SetContext(t.Context())
			if err := b.runMeasure(cmd, nil); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; want %q", err, c.want)
			}
			for _, words := range []string{"127.0.0.1", "127.0.0.2", "about 52s", "For 12s", "100M bit/s", "[y/N]"} {
				if strings.Contains(asked.String(), words) != c.terminal {
					t.Errorf("%q in the question: want %v\n%s", words, c.terminal, asked.String())
				}
			}
			if reached := strings.Contains(asked.String(), "reaching"); reached != strings.HasPrefix(name, "yes") {
				t.Errorf("reached for the peer: %v", reached)
			}
		})
	}
}

func TestBenchLinkFlags(t *testing.T) {
	starting := fakeDaemon(t, (&daemon{}).status())
	for name, c := range map[string]struct {
		args []string
		want []string
	}{
		"no node":            {[]string{"--token", "x"}, []string{"PEER", "--overlay-addr"}},
		"half of a node":     {[]string{"--token", "x", "--overlay-addr", "10.0.0.1"}, []string{"PEER"}},
		"no token":           {[]string{"10.1.2.0"}, []string{"--token", "--serve"}},
		"no daemon":          {[]string{"10.1.2.0", "--token", "x", "--control", "/nowhere"}, []string{"no daemon", "--overlay-addr"}},
		"starting":           {[]string{"10.1.2.0", "--token", "x", "--control", starting}, []string{"no packets yet"}},
		"serve, no daemon":   {[]string{"--serve", "--control", "/nowhere"}, []string{"no daemon", "--overlay-addr"}},
		"serve, starting":    {[]string{"--serve", "--control", starting}, []string{"no packets yet"}},
		"serve and a peer":   {[]string{"--serve", "10.1.2.0"}, []string{"10.1.2.0", "leave it out"}},
		"serve and theirs":   {[]string{"--serve", "--token", "x", "--seconds", "1", "--streams", "2"}, []string{"--token", "--seconds", "--streams"}},
		"for without serve":  {[]string{"10.1.2.0", "--token", "x", "--for", "1m"}, []string{"--for", "--serve"}},
		"no time":            {[]string{"--serve", "--for", "0s"}, []string{"--for"}},
		"no port":            {[]string{"--serve", "--port", "0"}, []string{"--port"}},
		"output":             {[]string{"10.1.2.0", "--token", "x", "--output", "xml"}, []string{"xml"}},
		"IPv6":               {[]string{"--serve", "--overlay-addr", "fd00::1", "--underlay-addr", "x"}, []string{"fd00::1", "--underlay-addr"}},
		"rate":               {[]string{"--serve", "--rate", "fast"}, []string{"fast", "100M"}},
		"slow":               {[]string{"--serve", "--rate", "10k"}, []string{"1M"}},
		"two nodes":          {[]string{"10.1.2.0", "10.1.3.0"}, []string{"arg"}},
		"long":               {[]string{"--overlay-addr", "127.0.0.1", "--underlay-addr", "127.0.0.1", "--token", "x", "--yes", "--seconds", "3600"}, []string{"1m0s"}},
		"not a number":       {[]string{"--overlay-addr", "127.0.0.1", "--underlay-addr", "127.0.0.1", "--token", "x", "--yes", "--seconds", "NaN"}, []string{"want"}},
		"streams":            {[]string{"--overlay-addr", "127.0.0.1", "--underlay-addr", "127.0.0.1", "--token", "x", "--yes", "--streams", "99"}, []string{"99"}},
		"not our address":    {[]string{"--serve", "--overlay-addr", "127.0.0.1", "--underlay-addr", "192.0.2.9"}, []string{"192.0.2.9", "no address of this host"}},
		"no subnet to serve": {[]string{"--serve", "--control", fakeDaemon(t, loopStatus("", "127.0.0.1"))}, []string{"subnet"}},
	} {
		r := runLink(t, c.args...)
		if r.err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(r.err.Error(), want) {
				t.Errorf("%s: %q lacks %q", name, r.err, want)
			}
		}
	}
}

// A port that is taken is named.
func TestBenchLinkPortTaken(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	r := runLink(t, "--serve", "--overlay-addr", "127.0.0.1", "--underlay-addr", "127.0.0.2", "--port", port)
	if r.err == nil || !strings.Contains(r.err.Error(), port) || !strings.Contains(r.err.Error(), "--port") {
		t.Errorf("%v", r.err)
	}
}

func TestParseRate(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "1000000": 1e6, "100M": 100e6, "2.5G": 2.5e9, "1500k": 1.5e6, "0G": 0} {
		if got, err := parseRate(s); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "M", "-1", "-1M", "1T", "1m", "100Mbit", "NaN", "Inf", "1e30", "1 M", "M1"} {
		if got, err := parseRate(s); err == nil {
			t.Errorf("%q is read as %d", s, got)
		}
	}
}

func TestFindPeer(t *testing.T) {
	s := loopStatus("10.244.1.0/24", "192.0.2.1",
		control.PeerStatus{Subnet: "10.244.2.0/24", PublicIP: "192.0.2.2"},
		control.PeerStatus{Subnet: "10.244.3.0/24", PublicIP: "192.0.2.3"},
		control.PeerStatus{Subnet: "10.244.4.0/24", PublicIP: "192.0.2.3"})
	for name, want := range map[string]string{
		"10.244.2.0/24": "10.244.2.0/24",
		"10.244.2.7/24": "10.244.2.0/24",
		"10.244.2.0":    "10.244.2.0/24",
		"10.244.4.9":    "10.244.4.0/24",
		"192.0.2.2":     "10.244.2.0/24",
	} {
		if p, err := findPeer(s, name); err != nil || p.Subnet != want {
			t.Errorf("%s: %+v, %v; want %s", name, p, err, want)
		}
	}
	for name, want := range map[string]string{
		"10.244.1.0":    "this node itself",
		"10.244.1.0/24": "this node itself",
		"192.0.2.1":     "this node itself",
		"192.0.2.3":     "10.244.3.0/24 or 10.244.4.0/24",
		"192.0.2.9":     "no peer",
		"10.244.2.0/25": "no peer",
		"10.244.0.0/16": "no peer",
		"node2":         "want a subnet",
		"":              "want a subnet",
	} {
		if p, err := findPeer(s, name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v; want %q", name, p, err, want)
		}
	}
}

// Behind NAT the PublicIP is not this host's: the server listens on the interface's address.
func TestAddrOnInterface(t *testing.T) {
	loopback := netip.MustParseAddr("127.0.0.1")
	for _, addr := range []netip.Addr{loopback, netip.MustParseAddr("192.0.2.77")} {
		if got, err := addrOnInterface(addr, "lo"); err != nil || got != loopback {
			t.Errorf("%s: %s, %v", addr, got, err)
		}
	}
	if got, err := addrOnInterface(netip.MustParseAddr("192.0.2.77"), "nowhere0"); err == nil {
		t.Errorf("%s on an interface that is not there", got)
	}
}

func TestVerdict(t *testing.T) {
	if err := verdict(&link.Result{Notes: []string{"a note"}}); err != nil {
		t.Error(err)
	}
	for _, r := range []*link.Result{{Failures: []string{"TCP: stalled"}}, {Both: []string{"TCP: stalled"}}} {
		if err := verdict(r); err == nil || !strings.Contains(err.Error(), "TCP: stalled") {
			t.Errorf("%+v: %v", r, err)
		}
	}
}
