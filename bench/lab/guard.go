//go:build linux

package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Everything that a lab leaves on the machine is taken away by one small shell process, its guard. The
// guard reads from a pipe that only the lab's owner can write to, and starts to clean when the pipe is
// closed: by Close, or by the kernel when the owner dies of a panic, a test's timeout, Ctrl-C or SIGKILL.
// Should the guard be killed too, the state file tells Sweep what to clean later.

const (
	netnsDir = "/run/netns" // where ip-netns(8) keeps names
	stateDir = "/run/muslin-lab"
)

// guardScript's arguments: namespace prefix, directory, state file, owner's pid, cgroup. It looks again until it
// finds nothing, as a command that the dying owner had started may have been faster than its own end.
const guardScript = `
trap '' INT TERM HUP
read -r _
for try in 1 2 3 4 5; do
	found=
	for path in ` + netnsDir + `/"$1"*; do
		[ -e "$path" ] || continue
		found=1
		for pid in $(ip netns pids "${path##*/}"); do [ "$pid" = "$4" ] || kill -9 "$pid"; done
		ip netns delete "${path##*/}"
	done
	[ "$found" ] || break
done
for try in 1 2 3 4 5 6 7 8 9; do
	[ -d "$5" ] || break
	find "$5" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.1
done
rm -rf "$2"
rm -f "$3"
rmdir "${3%/*}" 2>/dev/null
exit 0
`

type guard struct {
	id     string
	dir    string
	cgroup string
	pipe   io.Closer
	cmd    *exec.Cmd
	output *strings.Builder
}

// state is the content of a lab's state file.
type state struct {
	PID   int    `json:"pid"`   // of the owner
	Start uint64 `json:"start"` // of the owner, in clock ticks since boot, since a pid is used again
	Dir   string `json:"dir"`

	Cgroup string `json:"cgroup,omitempty"`
}

func statePath(id string) string { return filepath.Join(stateDir, id) }

func startGuard(id, dir, cgroup string) (*guard, error) {
	start, err := processStart(os.Getpid())
	if err != nil {
		return nil, fmt.Errorf("start time of this process: %w", err)
	}
	content, err := json.Marshal(state{PID: os.Getpid(), Start: start, Dir: dir, Cgroup: cgroup})
	if err != nil {
		return nil, err
	}
	if err := writeState(id, content); err != nil {
		return nil, fmt.Errorf("write state file: %w", err)
	}
	g := &guard{id: id, dir: dir, cgroup: cgroup, output: new(strings.Builder)}
	g.cmd = g.command()
	if g.pipe, err = g.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := g.cmd.Start(); err != nil {
		os.Remove(statePath(id))
		return nil, fmt.Errorf("start guard: %w", err)
	}
	return g, nil
}

// command has a session of its own, out of reach of the terminal's Ctrl-C.
func (g *guard) command() *exec.Cmd {
	cmd := exec.Command("/bin/sh", "-c", guardScript, "muslin-lab-guard",
		namespacePrefix(g.id), g.dir, statePath(g.id), strconv.Itoa(os.Getpid()), g.cgroup)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stdout, cmd.Stderr = g.output, g.output
	return cmd
}

// writeState tries again when another lab's guard has just removed the empty directory.
func writeState(id string, content []byte) error {
	for try := 0; ; try++ {
		if err := os.MkdirAll(stateDir, 0o755); err != nil {
			return err
		}
		err := os.WriteFile(statePath(id), content, 0o644)
		if !errors.Is(err, fs.ErrNotExist) || try == 10 {
			return err
		}
	}
}

// release lets the guard clean, and waits for it. One that is dead has a substitute: Ctrl-C ends it too, where it comes
// before the guard has its own session.
func (g *guard) release() error {
	g.pipe.Close()
	err := g.cmd.Wait()
	lab := &Lab{id: g.id, dir: g.dir, cgroup: g.cgroup}
	left := lab.Leftovers()
	if len(left) != 0 && err != nil {
		err = g.command().Run()
		left = lab.Leftovers()
	}
	if len(left) == 0 {
		return nil
	}
	return fmt.Errorf("clean lab %s: left behind: %s (guard: %v, output %q): remove them by hand, namespaces with `ip netns delete NAME`",
		g.id, strings.Join(left, ", "), err, g.output)
}

// Sweep cleans after labs whose owner and guard are both dead, and returns their IDs. Labs in use are not
// touched.
func Sweep() ([]string, error) {
	files, err := os.ReadDir(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("sweep labs: %w", err)
	}
	var swept []string
	for _, f := range files {
		content, err := os.ReadFile(statePath(f.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // its owner has just cleaned
		}
		if err != nil {
			return swept, fmt.Errorf("sweep labs: %w", err)
		}
		var s state
		if err := json.Unmarshal(content, &s); err != nil {
			continue // just being written
		}
		if start, err := processStart(s.PID); err == nil && start == s.Start {
			continue
		}
		g := &guard{id: f.Name(), dir: s.Dir, cgroup: s.Cgroup, output: new(strings.Builder)}
		g.cmd = g.command()
		if g.pipe, err = g.cmd.StdinPipe(); err != nil {
			return swept, err
		}
		if err := g.cmd.Start(); err != nil {
			return swept, fmt.Errorf("sweep lab %s: %w", g.id, err)
		}
		if err := g.release(); err != nil {
			return swept, err
		}
		swept = append(swept, g.id)
	}
	return swept, nil
}

// poll calls done every few milliseconds until it reports true or the time is over, and reports which.
func poll(limit time.Duration, done func() bool) bool {
	for deadline := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		if done() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}
