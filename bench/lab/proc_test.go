//go:build linux

package lab

import (
	"strings"
	"testing"
	"time"
)

// A process that does nothing but work has its time counted, and one that sleeps next to none.
func TestProcCPU(t *testing.T) {
	t.Parallel()
	h := newLab(t, Config{Hosts: 1}).Host(1)
	busy, err := h.Start("busy", nil, "sh", "-c", "while :; do :; done")
	if err != nil {
		t.Fatal(err)
	}
	idle, err := h.Start("idle", nil, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	var used time.Duration
	if !poll(time.Minute, func() bool {
		used, err = busy.CPU()
		return err != nil || used >= 200*time.Millisecond
	}) || err != nil {
		t.Errorf("a busy process used %v in a minute (%v)", used, err)
	}
	if used, err := idle.CPU(); err != nil || used > 150*time.Millisecond {
		t.Errorf("a sleeping process used %v, %v", used, err)
	}
	idle.Kill()
	if used, err := idle.CPU(); err == nil {
		t.Errorf("a process that has ended: %v, want an error", used)
	}
}

func TestWaitListen(t *testing.T) {
	t.Parallel()
	RequireTool(t, "sockperf")
	h := newLab(t, Config{Hosts: 1}).Host(1)
	for network, flags := range map[string][]string{"tcp": {"--tcp"}, "udp": nil} {
		server, err := h.Start("sockperf-"+network, nil, append([]string{"sockperf", "server", "-i", "127.0.0.1", "-p", "11111"}, flags...)...)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.WaitListen(t.Context(), server, network, 11111); err != nil {
			t.Error(err)
		}
		if listens, err := h.listens(network, 11112); err != nil || listens {
			t.Errorf("somebody listens on %s port 11112: %v, %v", network, listens, err)
		}
		server.Kill()
		if err := h.WaitListen(t.Context(), server, network, 11111); err == nil || !strings.Contains(err.Error(), "ended with status 137") {
			t.Errorf("%s server that was killed: %v, want an error that says so", network, err)
		}
	}
}
