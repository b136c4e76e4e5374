//go:build linux

package privilege

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// State is what the process may do.
type State struct {
	Effective, Permitted, Inheritable Set
	Bounding                          Set // what a program that it starts could gain at most
	Ambient                           Set // what a program that it starts keeps, without being root's
	NoNewPrivs                        bool
}

// Now reads the state of the process's first thread, which is every thread's after Reduce.
func Now() (State, error) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return State{}, fmt.Errorf("read this process's capabilities: %w", err)
	}
	s, err := parseStatus(string(text))
	if err != nil {
		return State{}, fmt.Errorf("read this process's capabilities: /proc/self/status: %w", err)
	}
	// The status has it since 4.10 only (af884cd4a5ae), the call since 3.5.
	nnp, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	s.NoNewPrivs = err == nil && nnp == 1
	return s, nil
}

// parseStatus reads the Cap lines of proc(5)'s status. CapAmb is there since 4.3 only.
func parseStatus(text string) (State, error) {
	var s State
	sets := map[string]*Set{
		"CapEff": &s.Effective, "CapPrm": &s.Permitted, "CapInh": &s.Inheritable, "CapBnd": &s.Bounding, "CapAmb": &s.Ambient}
	found := 0
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		set := sets[key]
		if set == nil {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil {
			return State{}, fmt.Errorf("%s: %w", key, err)
		}
		*set = Set(n)
		if key != "CapAmb" {
			found++
		}
	}
	if found < 4 {
		return State{}, fmt.Errorf("%d of the lines CapEff, CapPrm, CapInh and CapBnd", found)
	}
	return s, nil
}
