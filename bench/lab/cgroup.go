//go:build linux

package lab

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Cgroup makes an empty cgroup for the lab in the unified hierarchy, below this process's own, and returns its
// directory. It goes with the lab. For programs that must be the manager of a hierarchy, such as systemd.
func (l *Lab) Cgroup() (string, error) {
	if l.cgroup == "" {
		return "", errors.New("the lab's cgroup: no unified cgroup hierarchy is mounted: `mount -t cgroup2 cgroup2 DIR`")
	}
	if err := os.MkdirAll(l.cgroup, 0o755); err != nil {
		return "", fmt.Errorf("make the lab's cgroup: %w", err)
	}
	return l.cgroup, nil
}

// cgroupPath is where the lab's cgroup would be, "" where there is no unified hierarchy (cgroups(7)).
func cgroupPath(id string) string {
	var own, mount string
	eachLine("/proc/self/cgroup", func(line string) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			own = path
		}
	})
	eachLine("/proc/self/mountinfo", func(line string) {
		before, after, _ := strings.Cut(line, " - ")
		if f := strings.Fields(before); len(f) > 4 && strings.HasPrefix(after, "cgroup2 ") && f[3] == "/" {
			mount = f[4]
		}
	})
	if own == "" || mount == "" {
		return ""
	}
	return filepath.Join(mount, own, strings.TrimSuffix(namespacePrefix(id), "-"))
}

func eachLine(path string, do func(line string)) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		do(lines.Text())
	}
}
