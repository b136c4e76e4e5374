//go:build linux

package systemd

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
	"muslin/bench/probe"
)

// ending is a way for the daemon to end after which systemd starts the next one.
type ending struct {
	name    string
	command []string // ends it
	result  string   // what systemd calls that
	inHand  int      // how many packets may be lost each time, each way: what a worker had read and not yet written
}

var endings = []ending{
	{"killed", []string{"systemctl", "kill", "--kill-who=main", "--signal=KILL", "muslin"}, "signal", 2},
	// What a panic does: Go writes every goroutine's stack to the log and exits with status 2.
	{"panic", []string{"systemctl", "kill", "--kill-who=main", "--signal=QUIT", "muslin"}, "exit-code", 2},
	{"reload", []string{"systemctl", "reload", "muslin"}, "success", 0},
}

// The daemon ends, and the next one goes on with the queues and sockets that systemd kept. What comes meanwhile
// waits in the kernel: at 1,000 packets a second each way nothing is lost but what was in the daemon's hands when it
// was killed, and the longest delay is how long nobody read.
//
//	p1a ── h1 (systemd, muslin) ── br0 ── h2 (muslin, embedded etcd) ── p2a
func TestEndsAndGoesOn(t *testing.T) {
	for _, e := range endings {
		t.Run(e.name, func(t *testing.T) {
			o := newOverlay(t)
			before := labtest.Status(t, o.systemd.m).Node
			probes := o.probe(t)
			pid := o.systemd.show(t, "MainPID")
			const times = 3
			for i := range times {
				o.systemd.do(t, e.command...)
				o.waitNext(t, pid)
				pid = o.systemd.show(t, "MainPID")
				if n := o.systemd.show(t, "NRestarts"); n != fmt.Sprint(i+1) {
					t.Errorf("systemd counts %s starts, want %d", n, i+1)
				}
				// Until it is settled, and packets flow as before.
				for _, p := range probes {
					labtest.WaitReceived(t, p, 500)
				}
			}
			for _, p := range probes {
				r := p.Stop()
				t.Log(r)
				if r.Err != nil || r.Lost > times*e.inHand || r.Duplicated > 0 || r.Reordered > 0 {
					t.Errorf("%s", r)
				}
				if limit := 900 * time.Millisecond; r.LongestDelay > limit {
					t.Errorf("nobody read for %v, want %v at most: that is what the queue holds", r.LongestDelay, limit)
				}
			}
			expectMetrics(t, o)
			after := labtest.Status(t, o.systemd.m)
			if after.Node.Subnet != before.Subnet || after.Node.VtepMAC != before.VtepMAC {
				t.Errorf("the node is %+v, was %+v", after.Node, before)
			}
			if log := o.systemd.log(); strings.Contains(log, "is not what this one wants") || strings.Contains(log, "level=ERROR") {
				t.Error("the next daemon did not take it as it was")
			}
			if e.name == "panic" && !strings.Contains(o.systemd.log(), "goroutine ") {
				t.Error("it did not end as by a panic")
			}
		})
	}
}

// expectMetrics wants a scrape of the daemon that runs now, of its process as well, which is no longer root's.
func expectMetrics(t *testing.T, o *overlay) {
	t.Helper()
	resp, err := labtest.HTTPClient(o.systemd.m.Host.Node).Get("http://127.0.0.1:9469/metrics")
	if err != nil {
		t.Error(err)
		return
	}
	defer resp.Body.Close()
	text := string(labtest.Must(io.ReadAll(resp.Body))(t))
	for _, want := range []string{"\nmuslin_running 1\n", "\nprocess_open_fds "} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in a scrape:\n%.2000s", want, text)
		}
	}
}

// probe sends both ways between the pods.
func (o *overlay) probe(t *testing.T) []*probe.Probe {
	t.Helper()
	var all []*probe.Probe
	for _, way := range [][2]*lab.Pod{{o.from, o.to}, {o.to, o.from}} {
		all = append(all, labtest.StartProbe(t, way[0], way[1]))
	}
	return all
}

// waitNext waits until another daemon than pid carries packets.
func (o *overlay) waitNext(t *testing.T, pid string) {
	t.Helper()
	labtest.Eventually(t, 10*time.Second, func() error {
		now, state := o.systemd.show(t, "MainPID"), o.systemd.show(t, "ActiveState")
		if now == pid || now == "0" || state != "active" {
			return fmt.Errorf("process %s is %s", now, state)
		}
		return nil
	})
}

// The next daemon wants it otherwise: it gets new sockets and another device, and what systemd kept is closed.
//
//	p1a ── h1 (systemd, muslin) ── br0 ── h2 (muslin, embedded etcd) ── p2a
func TestGoesOnWithOtherSettings(t *testing.T) {
	t.Parallel()
	o := newOverlay(t)
	pid := o.systemd.show(t, "MainPID")
	settings := o.systemd.do(t, "cat", "/etc/muslin.env") + "MUSLIN_QUEUES=2\n"
	if err := os.WriteFile(o.systemd.root+"/etc/muslin.env", []byte(settings), 0o644); err != nil {
		t.Fatal(err)
	}
	o.systemd.do(t, "systemctl", "reload", "muslin")
	o.waitNext(t, pid)
	if n := o.systemd.show(t, "NFileDescriptorStore"); n != "20" {
		t.Errorf("systemd keeps %s descriptors, want 2 queues, 2 sockets that receive and 16 that send", n)
	}
	labtest.ExpectWords(t, o.systemd.log(), "is not what this one wants", "--queues 2")
	expectPing(t, o)
}

// The device was deleted while no daemon ran.
//
//	p1a ── h1 (systemd, muslin) ── br0 ── h2 (muslin, embedded etcd) ── p2a
func TestGoesOnWithoutItsDevice(t *testing.T) {
	t.Parallel()
	o := newOverlay(t)
	pid := o.systemd.show(t, "MainPID")
	must(o.systemd.host.Run(t.Context(), "ip", "link", "del", "muslin0"))(t)
	o.waitNext(t, pid)
	expectPing(t, o)
}

// An orderly stop leaves nothing with systemd, and a restart is a new start, with a gap.
//
//	p1a ── h1 (systemd, muslin) ── br0 ── h2 (muslin, embedded etcd) ── p2a
func TestStopTakesItBack(t *testing.T) {
	t.Parallel()
	o := newOverlay(t)
	if n := o.systemd.show(t, "NFileDescriptorStore"); n != "18" {
		t.Errorf("systemd keeps %s descriptors, want a queue, a socket that receives and 16 that send", n)
	}
	probes := o.probe(t)
	o.systemd.do(t, "systemctl", "restart", "muslin")
	for _, p := range probes {
		labtest.WaitReceived(t, p, 500)
		r := p.Stop()
		t.Log(r)
		if limit := lab.Patience(2 * time.Second); r.Err != nil || r.LongestGap > limit {
			t.Errorf("nothing got through for %v (%v), want %v at most", r.LongestGap, r.Err, limit)
		}
	}
	if log := o.systemd.log(); strings.Contains(log, "is not what this one wants") || strings.Contains(log, "level=ERROR") {
		t.Error("the restart found something")
	}
	expectPing(t, o)
	o.systemd.do(t, "systemctl", "stop", "muslin")
	if n := o.systemd.show(t, "NFileDescriptorStore"); n != "0" {
		t.Errorf("systemd keeps %s descriptors after the stop", n)
	}
}

// A successor that somebody starts by hand, as root, is none of the service's: it is refused, and told what to do
// instead.
//
//	p1a ── h1 (systemd, muslin) ── br0 ── h2 (muslin, embedded etcd) ── p2a
func TestReplacedByHand(t *testing.T) {
	t.Parallel()
	o := newOverlay(t)
	pid := o.systemd.show(t, "MainPID")
	out, err := o.systemd.run(t.Context(), "sh", "-c", "set -a; . /etc/muslin.env; exec timeout 20 /usr/local/bin/muslin run --replace")
	if err == nil {
		t.Error("it ended without an error")
	}
	labtest.ExpectWords(t, out, "--replace", "user 0", "systemctl reload")
	if now := o.systemd.show(t, "MainPID"); now != pid || o.systemd.show(t, "ActiveState") != "active" {
		t.Errorf("the service is process %s, was %s", now, pid)
	}
	expectPing(t, o)
}
