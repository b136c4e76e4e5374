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

	"github.com/vishvananda/netlink"
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
	Addr6  netip.Prefix   `json:"address6,omitzero"`
	Routes []plannedRoute `json:"routes"`
	// Direct is where package direct adds and removes routes with our protocol and a gateway; zero: nowhere.
	Direct  netip.Prefix `json:"direct_routes,omitzero"`
	Direct6 netip.Prefix `json:"direct_routes6,omitzero"`

	Sysctls []sysctl `json:"sysctls"`
	// Along are switches that the kernel turns along with that for the forwarding of their family: put back only
	// after that one was.
	Along []sysctl `json:"along,omitempty"`

	// How many rules others had for what is forwarded, by chain, before that was switched on (forwarders.go).
	Forwarders  map[string]int `json:"forwarders,omitzero"`
	Forwarders6 map[string]int `json:"forwarders6,omitzero"`

	Name      string       `json:"name,omitempty"` // of the overlay, in the names of its rules
	Firewall  firewallKind `json:"firewall,omitempty"`
	Firewall6 firewallKind `json:"firewall6,omitempty"` // of the rules for IPv6
	// Why that tool is not the one that was wanted, as a sentence; empty: it is.
	StandIn  string `json:"stand_in,omitempty"`
	StandIn6 string `json:"stand_in6,omitempty"`

	// What several overlays have in common (apart.go), and which tool has the rules that keep them apart.
	Common bool         `json:"common,omitempty"`
	Apart  firewallKind `json:"apart,omitempty"`
	Apart6 firewallKind `json:"apart6,omitempty"`

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

// BootID tells this run of the kernel from others. It is "", as NetNS is, where the kernel does not say: then it
// matches nothing but another "".
func BootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// NetNS tells the network namespace of the calling thread from others.
func NetNS() string {
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

// Journaled reports whether a daemon that had this state directory has left a journal there.
func Journaled(stateDir string) bool {
	_, err := os.Stat(journalPath(stateDir))
	return err == nil
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
// it found before it did counts, for now that is changed already; and what we make of it.
func (j *journal) inherit(old *journal) {
	j.TUN = old.TUN
	j.Sysctls = inheritSysctls(old.Sysctls, j.Sysctls)
	j.Along = inheritSysctls(old.Along, j.Along)
	if old.Forwarders != nil {
		j.Forwarders = old.Forwarders
	}
	if old.Forwarders6 != nil {
		j.Forwarders6 = old.Forwarders6
	}
	for _, six := range []bool{false, true} {
		if kind := old.firewall(six); old.standIn(six) != "" && j.firewall(six) != "" && j.firewall(six) != kind {
			j.setFirewall(six, kind) // what stands stays
			j.setStandIn(six, old.standIn(six))
		}
	}
}

// inheritSysctls has what was found in its order, in which it is to be set, behind the rest of the old ones.
func inheritSysctls(old, found []sysctl) []sysctl {
	var all []sysctl
	for _, o := range old {
		i := slices.IndexFunc(found, func(s sysctl) bool { return o.Path == s.Path })
		if i < 0 {
			all = append(all, o)
		} else {
			found[i].Was = o.Was
		}
	}
	return append(all, found...)
}

// beyond is a journal of what the other one has that this one has not; of switches nothing.
func (j *journal) beyond(other *journal) *journal {
	more := new(journal)
	for _, r := range other.Routes {
		if !slices.Contains(j.Routes, r) {
			more.Routes = append(more.Routes, r)
		}
	}
	differ := func(to *netip.Prefix, theirs, ours netip.Prefix) {
		if theirs != ours {
			*to = theirs
		}
	}
	differ(&more.Direct, other.Direct, j.Direct)
	differ(&more.Direct6, other.Direct6, j.Direct6)
	differ(&more.Addr, other.Addr, j.Addr)
	differ(&more.Addr6, other.Addr6, j.Addr6)
	more.Name = other.Name
	for _, six := range []bool{false, true} {
		if theirs := other.firewall(six); theirs != j.firewall(six) || other.Name != j.Name {
			more.setFirewall(six, theirs)
		}
	}
	return more
}

// about reports whether the journal is about a family; one that names nothing is about both.
func (j *journal) about(family int) bool {
	named := []netip.Prefix{j.Addr, j.Addr6, j.Direct, j.Direct6}
	for _, r := range j.Routes {
		named = append(named, r.Prefix)
	}
	named = slices.DeleteFunc(named, func(p netip.Prefix) bool { return !p.IsValid() })
	return len(named) == 0 || slices.ContainsFunc(named, func(p netip.Prefix) bool { return familyOf(p.Addr()) == family })
}

// owns reports whether a route of the main table is one that the journal names.
func (j *journal) owns(r netlink.Route) bool {
	return isDirect(r, j.Direct) || isDirect(r, j.Direct6) || slices.ContainsFunc(j.Routes, func(p plannedRoute) bool { return p.is(r) })
}

// pick is the one of two fields that is a family's.
func pick[T any](six bool, of4, of6 *T) *T {
	if six {
		return of6
	}
	return of4
}

// firewall is the tool that has our rules of one family, "" for none.
func (j *journal) firewall(six bool) firewallKind { return *pick(six, &j.Firewall, &j.Firewall6) }

func (j *journal) setFirewall(six bool, kind firewallKind) {
	*pick(six, &j.Firewall, &j.Firewall6) = kind
}

func (j *journal) standIn(six bool) string { return *pick(six, &j.StandIn, &j.StandIn6) }

func (j *journal) setStandIn(six bool, why string) { *pick(six, &j.StandIn, &j.StandIn6) = why }

// tools names the tools that have our rules.
func (j *journal) tools() string {
	if j.Firewall == "" || j.Firewall6 == "" || j.Firewall == j.Firewall6 {
		return string(max(j.Firewall, j.Firewall6))
	}
	return string(j.Firewall) + ", " + string(j.Firewall6)
}

func (j *journal) remove() error {
	for _, path := range []string{j.path + ".new", j.path} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the journal of host changes: %w", err)
		}
	}
	return nil
}
