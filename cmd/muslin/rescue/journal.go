// Package rescue takes the data path over from flannel on one host, and gives it back: what flannel has set up here, what of
// that stands in the daemon's way, and how it is put back as it was found, or whole.
//
// flannel's vxlan device is not deleted but set down. Down, it leaves its UDP port and its routes, and keeps its name,
// index, MAC, address and forwarding entries, so that a flanneld that still runs, or is started again, finds it.
//
// Everything that is changed is in a journal in the state directory (rescue.json) before it is changed; everything here
// may be done again after it was done in part. The package speaks netlink to the kernel in the network namespace of
// the calling thread. It carries no packets, and writes nothing into etcd: the daemon does, and the command.
//
// What does flannel have here? scan.go. Who knows the network, and the peers? search.go, know.go, peers.go. What will be
// done? plan.go. What is taken? take.go. What is given back, and what is flannel's data path when it is whole? give.go.
// Is flanneld still there? flanneld.go.
package rescue

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"muslin/encap"
	"muslin/tunnel/host"
)

const (
	journalName    = "rescue.json"
	journalVersion = 1
)

// Journal is what flannel had in this host before the rescue.
type Journal struct {
	Version int       `json:"version"`
	Boot    string    `json:"boot"`  // a reboot undoes everything by itself
	NetNS   string    `json:"netns"` // the network namespace that it is about
	Since   time.Time `json:"since"`

	Backend  string       `json:"backend"` // as lease.BackendVXLAN
	Network  netip.Prefix `json:"network,omitzero"`
	Network6 netip.Prefix `json:"network6,omitzero"`
	Subnet   netip.Prefix `json:"subnet,omitzero"`
	Subnet6  netip.Prefix `json:"subnet6,omitzero"`

	Devices []Device `json:"devices"`                 // with vxlan, one for each address family
	Direct  []Route  `json:"direct_routes,omitempty"` // straight to peers, of host-gw and DirectRouting

	Lease  *LeaseBefore `json:"lease,omitempty"` // nil: it could not be read, as without etcd
	NewMAC bool         `json:"new_mac,omitempty"`

	// Peers are the other nodes as they were known, for when nobody can be asked.
	Peers Peers `json:"peers,omitempty"`

	// Flags are the daemon's, given or found out: whoever goes on with this, or gives it back, needs them, too.
	Flags map[string][]string `json:"flags,omitempty"`

	SubnetFile  string `json:"subnet_file"` // its path, and what was in it; "": there was none
	SubnetText  string `json:"subnet_text"`
	SubnetStale bool   `json:"subnet_stale,omitempty"` // it names another subnet than the lease

	Stopped []Process `json:"stopped,omitempty"` // flannelds that were stopped because that was asked for

	// Ran are the processes of the flannelds that ran when it began.
	Ran []int `json:"ran,omitempty"`

	// Copies are files that were copied out of flanneld's container into the state directory.
	Copies []string `json:"copies,omitempty"`

	path string
}

// LeaseBefore is flannel's lease as it was in etcd.
type LeaseBefore struct {
	Key   string `json:"key"` // below "<prefix>/subnets/"
	Value string `json:"value"`
}

// NewJournal is one of this host and this moment; it is written by Save.
func NewJournal(stateDir string) *Journal {
	return &Journal{Version: journalVersion, Boot: host.BootID(), NetNS: host.NetNS(), Since: time.Now().UTC().Truncate(time.Second),
		path: filepath.Join(stateDir, journalName)}
}

// Read returns nil when there is no rescue that had this state directory. Check whether it is still true (Rebooted, Here).
func Read(stateDir string) (*Journal, error) {
	path := filepath.Join(stateDir, journalName)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	j := &Journal{path: path}
	if err == nil {
		err = json.Unmarshal(data, j)
	}
	if err != nil {
		return nil, fmt.Errorf("read the journal of the rescue, %s: %w; look at what it says, put it back by hand, and delete it", path, err)
	}
	if j.Version != journalVersion {
		return nil, fmt.Errorf("the journal of the rescue, %s, has version %d and this muslin reads %d: run `muslin rescue --undo` of the version that wrote it", path, j.Version, journalVersion)
	}
	return j, nil
}

// Path is the journal's file.
func (j *Journal) Path() string { return j.path }

// Rebooted says that the host was started again since, which has undone everything.
func (j *Journal) Rebooted() bool { return j.Boot != host.BootID() }

// Here is an error where the journal is about another network namespace.
func (j *Journal) Here() error {
	if j.NetNS == host.NetNS() {
		return nil
	}
	return fmt.Errorf("the rescue in %s is of another network namespace (%s, this is %s): run this in that one (`ip netns exec NAME …`), or delete the file if the namespace is gone", j.path, j.NetNS, host.NetNS())
}

// Save writes it to the disk: after a power failure it still says what happened.
func (j *Journal) Save() error {
	data, err := json.MarshalIndent(j, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(j.path), 0o700)
	}
	if err == nil {
		err = replaceFile(j.path, append(data, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("write the journal of the rescue: %w; give a writable directory with --state-dir", err)
	}
	return nil
}

// Remove ends the rescue.
func (j *Journal) Remove() error {
	for _, path := range append(slices.Clone(j.Copies), unfinished(j.path), j.path) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the journal of the rescue: %w", err)
		}
	}
	return nil
}

// Copy is where a credential of that flag is copied to.
func Copy(stateDir, flag string) string { return filepath.Join(stateDir, copyPrefix+flag) }

const copyPrefix = "flannel-"

// Sweep removes what a rescue left that was killed before it had a journal.
func Sweep(stateDir string) error {
	copies, err := filepath.Glob(Copy(stateDir, "etcd-*file"))
	for _, path := range append(copies, unfinished(filepath.Join(stateDir, journalName))) {
		if e := os.Remove(path); !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

func unfinished(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
}

// replaceFile writes under a name that is always the same: a process that is killed meanwhile leaves one file at most.
func replaceFile(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(unfinished(path), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(unfinished(path), path)
}

// device is that of one address family, or nil.
func (j *Journal) device(six bool) *Device {
	for i := range j.Devices {
		if j.Devices[i].Six == six {
			return &j.Devices[i]
		}
	}
	return nil
}

// MAC is the VtepMAC that this node keeps in a family, since its peers know it; false: it takes one of its own.
func (j *Journal) MAC(six bool) (encap.MAC, bool) {
	d := j.device(six)
	if j.NewMAC || d == nil || d.Keep == "" {
		return encap.MAC{}, false
	}
	mac, err := encap.ParseMAC(d.Keep)
	return mac, err == nil && mac.IsUnicast()
}

// Names are those of flannel's devices.
func (j *Journal) Names() []string {
	var all []string
	for _, d := range j.Devices {
		all = append(all, d.Name)
	}
	return all
}

// DirectPrefixes are where flannel's direct routes lead.
func (j *Journal) DirectPrefixes() []netip.Prefix {
	var all []netip.Prefix
	for _, r := range j.Direct {
		all = append(all, r.Prefix)
	}
	return all
}

// network is the overlay's of a family.
func (j *Journal) network(six bool) netip.Prefix {
	if six {
		return j.Network6
	}
	return j.Network
}

// subnet is this node's of a family.
func (j *Journal) subnet(six bool) netip.Prefix {
	if six {
		return j.Subnet6
	}
	return j.Subnet
}
