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
	"slices"
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
	// Direct is where package direct adds and removes routes with our protocol and a gateway; zero: nowhere.
	Direct netip.Prefix `json:"direct_routes,omitzero"`

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

// replaceFile writes under a name that is always the same, so that a daemon that is killed meanwhile leaves
// one file at most, which the next one writes over.
func replaceFile(path string, b []byte) error {
	unfinished := path + ".new"
	if err := os.WriteFile(unfinished, b, 0o600); err != nil {
		os.Remove(unfinished)
		return err
	}
	return os.Rename(unfinished, path)
}

// inherit adds what an earlier daemon changed for the same device, which is still there to be undone. What
// it found before it did counts, for now that is changed already.
func (j *journal) inherit(old *journal) {
	j.TUN = old.TUN
	j.Sysctls = inheritSysctls(old.Sysctls, j.Sysctls)
	j.Along = inheritSysctls(old.Along, j.Along)
}

func inheritSysctls(old, found []sysctl) []sysctl {
	all := slices.Clone(old)
	for _, s := range found {
		if !slices.ContainsFunc(old, func(o sysctl) bool { return o.Path == s.Path }) {
			all = append(all, s)
		}
	}
	return all
}

// beyond is what the other journal has that this one has not.
func (j *journal) beyond(other *journal) (routes []plannedRoute, direct netip.Prefix, addr bool, firewall firewallKind) {
	for _, r := range other.Routes {
		if !slices.Contains(j.Routes, r) {
			routes = append(routes, r)
		}
	}
	if other.Direct != j.Direct {
		direct = other.Direct
	}
	if other.Firewall != j.Firewall {
		firewall = other.Firewall
	}
	return routes, direct, other.Addr != j.Addr, firewall
}

func (j *journal) remove() error {
	for _, path := range []string{j.path + ".new", j.path} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the journal of host changes: %w", err)
		}
	}
	return nil
}
