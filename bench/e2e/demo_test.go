//go:build linux

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// demoRun is a `muslin demo` beside the test, in a lab of its own.
type demoRun struct {
	cmd *exec.Cmd
	out string // file with its output
}

func startDemo(t *testing.T, args ...string) *demoRun {
	t.Helper()
	lab.RequireRoot(t)
	lab.RequireTool(t, "ip", "iperf3")
	d := &demoRun{out: filepath.Join(t.TempDir(), "demo.log")}
	log := must(os.Create(d.out))(t)
	defer log.Close()
	d.cmd = exec.Command(labtest.Bin, append([]string{"demo"}, args...)...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as a shell does
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = d.cmd.Process.Kill()
		_ = d.cmd.Wait()
	})
	return d
}

func (d *demoRun) output() string {
	b, err := os.ReadFile(d.out)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// wait waits for the demo's end.
func (d *demoRun) wait(t *testing.T) int {
	t.Helper()
	timeout := time.AfterFunc(lab.Patience(time.Minute), func() { _ = d.cmd.Process.Kill() })
	defer timeout.Stop()
	_ = d.cmd.Wait() // the status says it
	return d.cmd.ProcessState.ExitCode()
}

// owned is the ID of the lab that the demo has, or "" before it has one.
func (d *demoRun) owned(t *testing.T) string {
	t.Helper()
	files, _ := filepath.Glob("/run/muslin-lab/*")
	for _, f := range files {
		var state struct{ PID int }
		content, err := os.ReadFile(f)
		if err == nil && json.Unmarshal(content, &state) == nil && state.PID == d.cmd.Process.Pid {
			return filepath.Base(f)
		}
	}
	return ""
}

func expectNothingLeft(t *testing.T, id string) {
	t.Helper()
	for _, pattern := range []string{"/run/netns/mlab-" + id + "-*", "/run/muslin-lab/" + id, os.TempDir() + "/mlab-" + id + "-*"} {
		if left, _ := filepath.Glob(pattern); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

// The demo comes to its table and leaves nothing.
func TestDemo(t *testing.T) {
	t.Parallel()
	d := startDemo(t, "--hosts", "2", "--backend", "udp")
	id := ""
	for id == "" && d.cmd.ProcessState == nil {
		if id = d.owned(t); id == "" {
			time.Sleep(time.Millisecond)
		}
		if strings.Contains(d.output(), "measuring") {
			break
		}
	}
	if id == "" {
		t.Fatalf("the demo has no lab: %s", d.output())
	}
	if status := d.wait(t); status != 0 {
		t.Errorf("status %d: %s", status, d.output())
	}
	expectWords(t, d.output(), "PING ms", "TCP Gb/s", "is gone")
	if rows := strings.Count(d.output(), "10.244."); rows < 2+4 {
		t.Errorf("%d addresses in the output, want 2 pods and a table of 2 rows: %s", rows, d.output())
	}
	expectNothingLeft(t, id)
}

// Ctrl-C while it starts, while it measures, and as the end of --keep.
func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		args       []string
		when       string // what it says last before the signal
		wantStatus int
		wantWords  []string
	}{
		"starting":  {[]string{"--hosts", "2"}, "building", 1, []string{"interrupted"}},
		"joining":   {[]string{"--hosts", "2"}, "host 1", 1, []string{"interrupted", "is gone"}},
		"measuring": {[]string{"--hosts", "2"}, "measuring", 1, []string{"interrupted", "is gone"}},
		"kept":      {[]string{"--hosts", "2", "--keep"}, "Ctrl-C", 0, []string{"ip netns exec", "is gone"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := startDemo(t, c.args...)
			eventually(t, 30*time.Second, func() error {
				if !strings.Contains(d.output(), c.when) {
					return os.ErrNotExist
				}
				return nil
			})
			id := d.owned(t)
			if err := syscall.Kill(-d.cmd.Process.Pid, syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			if status := d.wait(t); status != c.wantStatus {
				t.Errorf("status %d, want %d: %s", status, c.wantStatus, d.output())
			}
			expectWords(t, d.output(), c.wantWords...)
			if id != "" {
				expectNothingLeft(t, id)
			}
		})
	}
}

func TestDemoRefuses(t *testing.T) {
	t.Parallel()
	d := startDemo(t, "--hosts", "1", "--backend", "pigeon")
	if status := d.wait(t); status != 1 {
		t.Errorf("status %d, want 1", status)
	}
	expectWords(t, d.output(), "--hosts 1", "pigeon", "vxlan")
}
