//go:build linux

package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

const (
	journalName    = "host-changes.json"
	journalVersion = 1
)

// journal is what the daemon changes in the host, written before the first change. Everything in it may
// or may not have happened.
type journal struct {
	Version int    `json:"version"`
	Boot    string `json:"boot"`  // a reboot undoes everything by itself
	NetNS   string `json:"netns"` // the network namespace that was changed

	TUN    linkBefore     `json:"tun"`
	Addr   netip.Prefix   `json:"address"`
	Routes []plannedRoute `json:"routes"`

	Sysctls []sysctl `json:"sysctls"`
	// Along are switches that the kernel turns along with ip_forward: put back only after that one was.
	Along []sysctl `json:"along,omitempty"`

	Firewall firewallKind `json:"firewall,omitempty"`

	path string
}

// linkBefore is the TUN as it was found.
type linkBefore struct {
	Name     string `json:"name"`
	Index    int    `json:"index"`
	Up       bool   `json:"up"`
	MTU      int    `json:"mtu"`
	QueueLen int    `json:"queue_length"`
}

// plannedRoute is a route with our protocol number.
type plannedRoute struct {
	Prefix    netip.Prefix `json:"prefix"`
	Blackhole bool         `json:"blackhole,omitempty"` // else it leads to the TUN
}

func journalPath(stateDir string) string { return filepath.Join(stateDir, journalName) }

// bootID and netNS are "" where the kernel does not say: then they match nothing but another "".
func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

func netNS() string {
	if l, err := os.Readlink("/proc/thread-self/ns/net"); err == nil {
		return l
	}
	l, _ := os.Readlink("/proc/self/ns/net")
	return l
}

// readJournal returns nil when there is none.
func readJournal(stateDir string) (*journal, error) {
	path := journalPath(stateDir)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the journal of host changes: %w; give another directory with --state-dir", err)
	}
	j := &journal{path: path}
	if err := json.Unmarshal(b, j); err != nil {
		return nil, fmt.Errorf("read the journal of host changes %s: %w; look at it, undo by hand what it names, and delete it", path, err)
	}
	if j.Version != journalVersion {
		return nil, fmt.Errorf("the journal of host changes %s has version %d and this muslin reads %d: run `muslin cleanup` of the version that wrote it, or delete it", path, j.Version, journalVersion)
	}
	return j, nil
}

// save replaces the file at once. It need not reach the disk: what takes the machine down undoes the
// changes as well.
func (j *journal) save() error {
	b, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return fmt.Errorf("write the journal of host changes: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(j.path), 0o755); err != nil {
		return fmt.Errorf("make the state directory: %w; give a writable one with --state-dir", err)
	}
	if err := replaceFile(j.path, append(b, '\n')); err != nil {
		return fmt.Errorf("write the journal of host changes: %w; give a writable directory with --state-dir", err)
	}
	return nil
}

func replaceFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func (j *journal) remove() error {
	if err := os.Remove(j.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the journal of host changes: %w", err)
	}
	return nil
}
