//go:build linux

package systemd

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }

// must returns v, or ends the test.
func must[V any](v V, err error) func(t *testing.T) V { return labtest.Must(v, err) }

//go:embed boot.sh
var boot string

// enter waits until it was put into the cgroup, from which the cgroup namespace takes its root, and runs boot.sh.
// Its arguments: that, the directory, the cgroup's name.
const enter = `until grep -q "/$2\$" /proc/self/cgroup; do sleep 0.01; done
exec unshare --mount --pid --cgroup --uts --ipc --fork --kill-child sh -c "$0" boot.sh "$1"`

// targets are all that systemd knows beside muslin.service.
var targets = []string{"default", "sysinit", "basic", "shutdown", "multi-user", "network-online"}

// manager is a systemd that runs on a host of the lab.
type manager struct {
	host *lab.Host
	pid  int    // of systemd, as this process sees it
	root string // its root directory, as this process sees it
	m    *lab.Muslin
}

// startSystemd installs muslin as `make install` does, and starts systemd on the host.
func startSystemd(t *testing.T, h *lab.Host, settings ...string) *manager {
	t.Helper()
	lab.RequireTool(t, "unshare", "nsenter", "setpriv", "systemctl", "systemd-sysusers", "make")
	dir := filepath.Join(h.Dir, "root")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	install(t, dir)
	configure(t, dir+".etc", settings)
	cgroup := must(h.Lab().Cgroup())(t)
	p := must(h.Start("systemd", nil, "sh", "-c", enter, boot, dir, filepath.Base(cgroup)))(t)
	if err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte(strconv.Itoa(p.PID())), 0); err != nil {
		t.Fatal(err)
	}
	m := &manager{host: h}
	labtest.Eventually(t, 20*time.Second, func() error {
		if !p.Running() {
			t.Fatalf("systemd did not start:\n%s", p.Output())
		}
		return m.find(t, p)
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("systemd on %s:\n%s\nmuslin.service:\n%s", h.Name, p.Output(), m.log())
		}
		// The first process of a PID namespace takes the others with it.
		if err := unix.Kill(m.pid, unix.SIGKILL); err != nil {
			t.Error("end systemd:", err)
		}
		<-p.Done()
	})
	return m
}

// find returns nil once systemd is up.
func (m *manager) find(t *testing.T, p *lab.Proc) error {
	var err error
	if m.pid, err = childOf(p.PID()); err != nil {
		return err
	}
	m.root = fmt.Sprintf("/proc/%d/root", m.pid)
	m.m = &lab.Muslin{Host: m.host, Bin: labtest.Bin,
		Control: m.root + "/run/muslin/muslin.sock", SubnetFile: m.root + "/run/flannel/subnet.env"}
	state, err := m.run(t.Context(), "systemctl", "is-system-running")
	if strings.TrimSpace(state) != "running" {
		return fmt.Errorf("systemd is %q, %v; it said:\n%s", state, err, p.Output())
	}
	return nil
}

// install is `make install` with the binary under test.
func install(t *testing.T, dir string) {
	t.Helper()
	staged := dir + ".staged"
	command := exec.Command("make", "-s", "-C", "../..", "install", "DESTDIR="+staged, "BINARY="+labtest.Bin)
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", command, err, out)
	}
	if err := os.Rename(filepath.Join(staged, "usr/local"), dir+".install"); err != nil {
		t.Fatal(err)
	}
}

// configure writes what goes into /etc: the settings, and where the unit's log goes.
func configure(t *testing.T, etc string, settings []string) {
	t.Helper()
	files := map[string]string{
		"muslin.env": strings.Join(settings, "\n") + "\n",
		"systemd/system/muslin.service.d/log.conf": "[Service]\nStandardError=append:/var/log/muslin.log\n",
	}
	for _, name := range targets {
		files["systemd/system/"+name+".target"] = "[Unit]\nDescription=nothing by itself\n"
	}
	for name, content := range files {
		path := filepath.Join(etc, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// childOf is the one process that a process has started.
func childOf(pid int) (int, error) {
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(children)))
}

// run runs a command where systemd is: in its namespaces, with its files.
func (m *manager) run(ctx context.Context, args ...string) (string, error) {
	return m.host.Run(ctx, append([]string{"nsenter", "--target", strconv.Itoa(m.pid), "--mount", "--pid", "--ipc", "--uts", "--cgroup"}, args...)...)
}

func (m *manager) do(t *testing.T, args ...string) string {
	t.Helper()
	return must(m.run(t.Context(), args...))(t)
}

// show is a property of muslin.service.
func (m *manager) show(t *testing.T, property string) string {
	t.Helper()
	return strings.TrimSpace(m.do(t, "systemctl", "show", "--value", "--property", property, "muslin.service"))
}

// log is what muslin.service said so far.
func (m *manager) log() string {
	content, err := os.ReadFile(m.root + "/var/log/muslin.log")
	if err != nil {
		return err.Error()
	}
	return string(content)
}
