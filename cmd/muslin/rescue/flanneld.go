package rescue

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"muslin/tunnel/host"
)

// Process is a flanneld in this network namespace.
type Process struct {
	PID  int      `json:"pid"`
	Args []string `json:"args"`           // its command line
	Unit string   `json:"unit,omitempty"` // the systemd service that it is; "": none

	Container string `json:"container,omitempty"` // that it runs in, as "docker 0123456789ab"; "": none

	env []string // its FLANNELD_ variables
}

// String names it, as in a sentence.
func (p Process) String() string {
	switch {
	case p.Unit != "":
		return fmt.Sprintf("flanneld (process %d, %s)", p.PID, p.Unit)
	case p.Container != "":
		return fmt.Sprintf("flanneld (process %d, in the container %s)", p.PID, p.Container)
	}
	return fmt.Sprintf("flanneld (process %d)", p.PID)
}

// FindFlanneld finds those that can be seen from here.
func FindFlanneld() []Process {
	var all []Process
	names, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, path := range names {
		comm, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(comm)) != "flanneld" {
			continue
		}
		dir := filepath.Dir(path)
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if ns, err := os.Readlink(dir + "/ns/net"); err != nil || ns != host.NetNS() {
			continue
		}
		line, err := os.ReadFile(dir + "/cmdline")
		if err != nil || len(line) == 0 {
			continue // it is ending
		}
		p := Process{PID: pid, Args: strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")}
		group, _ := os.ReadFile(dir + "/cgroup")
		p.Unit, p.Container = unitOf(string(group)), containerOf(string(group))
		environ, _ := os.ReadFile(dir + "/environ")
		for v := range strings.SplitSeq(string(environ), "\x00") {
			if strings.HasPrefix(v, "FLANNELD_") {
				p.env = append(p.env, v)
			}
		}
		all = append(all, p)
	}
	return all
}

// unitOf is the service in /proc/PID/cgroup, where systemd runs.
func unitOf(group string) string {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return ""
	}
	return serviceIn(group)
}

func serviceIn(group string) string {
	for line := range strings.Lines(group) { // hierarchy:controllers:path; of cgroup v1 systemd has one of its own
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, path, _ := strings.Cut(rest, ":")
		if controllers != "" && controllers != "name=systemd" {
			continue
		}
		if unit := filepath.Base(path); strings.HasPrefix(path, "/system.slice/") && strings.Contains(unit, "flannel") && strings.HasSuffix(unit, ".service") {
			return unit
		}
	}
	return ""
}

// containers are as the runtimes name their cgroups: "docker-ID.scope", "cri-containerd-ID.scope", "/docker/ID", or the bare ID
// below a pod's. An ID has 64 digits, of which people see 12.
var containers = regexp.MustCompile(`(?:([a-z]+(?:-[a-z]+)*)[-/:])?(?:conmon-)?([0-9a-f]{12})[0-9a-f]{52}`)

// containerOf is the container in /proc/PID/cgroup.
func containerOf(group string) string {
	m := containers.FindStringSubmatch(group)
	if m == nil {
		return ""
	}
	runtime := map[string]string{"docker": "docker", "libpod": "podman", "crio": "cri-o", "cri-containerd": "containerd"}[m[1]]
	return strings.TrimSpace(runtime + " " + m[2])
}

// Flag is what its command line says for a flag, which may be given several times, or else its environment. One without a
// value is "true".
func (p Process) Flag(name string) []string {
	var all []string
	for i, a := range p.Args {
		flag, value, given := strings.Cut(strings.TrimLeft(a, "-"), "=")
		switch {
		case flag != name || !strings.HasPrefix(a, "-"):
		case given:
			all = append(all, value)
		case i+1 < len(p.Args) && !strings.HasPrefix(p.Args[i+1], "-"):
			all = append(all, p.Args[i+1])
		default:
			all = append(all, "true")
		}
	}
	variable := "FLANNELD_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_")) + "="
	for _, v := range p.env {
		if value, ok := strings.CutPrefix(v, variable); ok && value != "" && len(all) == 0 {
			all = append(all, value)
		}
	}
	return all
}

// Known is what may be written down of it: all but a password.
func (p Process) Known() Process {
	p.Args = slices.Clone(p.Args)
	for i, a := range p.Args {
		flag, _, given := strings.Cut(strings.TrimLeft(a, "-"), "=")
		switch {
		case flag != "etcd-password" || !strings.HasPrefix(a, "-"):
		case given:
			p.Args[i] = "--etcd-password=…"
		case i+1 < len(p.Args):
			p.Args[i+1] = "…"
		}
	}
	return p
}

// stopping is how long a flanneld may take to end. It takes a second; now and then it says "Exiting cleanly" and stays.
const stopping = 3 * time.Second

// Stop ends it in good order, so that it does not come back: by systemd, where that started it. One that stays is killed: it
// has nothing to lose.
func (p Process) Stop(ctx context.Context) error {
	if p.Unit != "" {
		if out, err := exec.CommandContext(ctx, "systemctl", "stop", p.Unit).CombinedOutput(); err != nil {
			return fmt.Errorf("systemctl stop %s: %w: %s", p.Unit, err, strings.TrimSpace(string(out)))
		}
		return nil
	}
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGCONT} { // one that is stopped (SIGSTOP) would not hear the first
		if err := unix.Kill(p.PID, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("stop %s: %w", p, err)
		}
	}
	if p.ends(stopping) {
		return nil
	}
	if err := unix.Kill(p.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill %s: %w", p, err)
	}
	if p.ends(stopping) {
		return nil
	}
	return fmt.Errorf("%s did not end within %v of SIGKILL: the kernel holds it", p, stopping)
}

// ends waits for its end.
func (p Process) ends(within time.Duration) bool {
	for late := time.Now().Add(within); time.Now().Before(late); time.Sleep(10 * time.Millisecond) {
		if !p.runs() {
			return true
		}
	}
	return false
}

// runs reports whether the process is there, and not merely waited for.
func (p Process) runs() bool {
	state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	_, after, _ := strings.Cut(string(state), ") ")
	return err == nil && !strings.HasPrefix(after, "Z") && !strings.HasPrefix(after, "X")
}

// Start starts the service again that was stopped.
func (p Process) Start(ctx context.Context) error {
	if out, err := exec.CommandContext(ctx, "systemctl", "start", "--no-block", p.Unit).CombinedOutput(); err != nil {
		return fmt.Errorf("systemctl start %s: %w: %s", p.Unit, err, strings.TrimSpace(string(out)))
	}
	return nil
}
