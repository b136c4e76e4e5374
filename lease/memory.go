package lease

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// Memory is the network as a node knew it last: enough to carry packets again before the store has answered.
// It is kept in a file, and handed to a successor.
type Memory struct {
	Prefix string          // of the store's keys: two prefixes are two networks
	Config json.RawMessage // the network's config, as the store had it
	Lease  Lease           // ours
	Leases []Lease         // everybody's; ours may be among them
}

// memoryFile is a Memory in JSON. Leases is a peers file: with config beside it, that is all that
// --peers-file needs.
type memoryFile struct {
	Version int             `json:"version"`
	Prefix  string          `json:"prefix"`
	Config  json.RawMessage `json:"config"`
	Lease   memoryLease     `json:"lease"`
	Leases  json.RawMessage `json:"leases"`
}

type memoryLease struct {
	Key      string    `json:"key"` // also one of Leases
	Revision int64     `json:"revision"`
	Expires  time.Time `json:"expires"`
	Reserved bool      `json:"reserved"`
}

const memoryVersion = 1

// MarshalJSON implements json.Marshaler.
func (m Memory) MarshalJSON() ([]byte, error) {
	all := make([]Lease, 0, len(m.Leases)+1)
	for _, l := range m.Leases {
		if l.Key != m.Lease.Key {
			all = append(all, l)
		}
	}
	leases, err := MarshalPeersFile(append(all, m.Lease))
	if err != nil {
		return nil, err
	}
	l := m.Lease
	return json.Marshal(memoryFile{memoryVersion, m.Prefix, m.Config, memoryLease{l.Key, l.Revision, l.Expires.UTC(), l.Reserved}, leases})
}

// UnmarshalJSON implements json.Unmarshaler. It is strict: a memory that cannot be read whole is none.
func (m *Memory) UnmarshalJSON(data []byte) error {
	var f memoryFile
	if err := json.Unmarshal(data, &f); err != nil {
		return err
	}
	if f.Version != memoryVersion {
		return fmt.Errorf("version %d, want %d", f.Version, memoryVersion)
	}
	entries, err := ParsePeersFile(f.Leases)
	if err != nil {
		return fmt.Errorf("leases: %w", err)
	}
	*m = Memory{Prefix: f.Prefix, Config: f.Config}
	for _, e := range entries {
		l, err := ParseLease(e)
		if err != nil {
			return err // not reached: ParsePeersFile has read it
		}
		if e.Key == f.Lease.Key {
			m.Lease = l
			m.Lease.Revision, m.Lease.Expires, m.Lease.Reserved = f.Lease.Revision, f.Lease.Expires, f.Lease.Reserved
		}
		m.Leases = append(m.Leases, l)
	}
	if m.Lease.Key == "" {
		return fmt.Errorf("our own lease %q is not among the leases", clip(f.Lease.Key))
	}
	return nil
}

// Entries is what the store would list.
func (m *Memory) Entries() []Entry {
	var all []Entry
	for _, l := range m.Leases {
		value, err := json.Marshal(l.Attrs)
		if err != nil {
			continue // not reached: these were read from JSON
		}
		all = append(all, Entry{Key: l.Key, Value: value, Revision: l.Revision, Reserved: l.Reserved})
	}
	return all
}

// Subnet is ours of IPv4, of a memory that may be nil; zero: there is none.
func (m *Memory) Subnet() netip.Prefix {
	if m == nil {
		return netip.Prefix{}
	}
	return m.Lease.Subnet
}

// Subnet6 is the same of IPv6.
func (m *Memory) Subnet6() netip.Prefix {
	if m == nil {
		return netip.Prefix{}
	}
	return m.Lease.Subnet6
}

// Holds says why a node with these attributes may not act on the memory at this time, or nil: the lease is
// ours until it expires, whatever became of the store meanwhile.
func (m *Memory) Holds(prefix string, attrs Attrs, now time.Time) error {
	cfg, err := ParseConfig(m.Config)
	switch {
	case err != nil:
		return err
	case m.Prefix != prefix:
		return fmt.Errorf("it is of the network under %s", m.Prefix)
	case !m.Lease.Attrs.Equal(attrs):
		return fmt.Errorf("this node was %s", m.Lease.Attrs)
	case !cfg.FitsLease(m.Lease.Subnet, m.Lease.Subnet6):
		return fmt.Errorf("the subnet %s does not fit the network's config", m.Lease.halves())
	case !m.Lease.Reserved && !now.Before(m.Lease.Expires):
		return fmt.Errorf("the lease has expired, at %s", m.Lease.Expires)
	}
	return nil
}

// WriteMemory replaces the file at once, with what Memory.MarshalJSON gave. The directory exists.
func WriteMemory(path string, content []byte) error {
	unfinished := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := replaceFile(unfinished, path, content, 0o600); err != nil {
		os.Remove(unfinished)
		return fmt.Errorf("write what is known of the network to %s: %w: make room, or name another place with --state-dir", path, err)
	}
	return nil
}

// ReadMemory reads such a file. One that is not there is nil without an error.
func ReadMemory(path string) (*Memory, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	m := new(Memory)
	if err == nil {
		err = json.Unmarshal(data, m)
	}
	if err != nil {
		return nil, fmt.Errorf("read what was known of the network from %s: %w", path, err)
	}
	return m, nil
}

// ErrOutdated says that what was remembered is no longer true.
var ErrOutdated = errors.New("what this node remembers of the network is no longer true")

// Remember makes l our lease, in place of Acquire: Run finds out whether it still is. A lease that has changed
// since, but holds our attributes, is ours. away says that there was a time without a keeper: if the lease is
// another's now, Run ends with ErrOutdated, since nothing of ours hangs on it yet.
func (k *Keeper) Remember(l Lease, away bool) {
	k.reusedAt = time.Time{}
	if away {
		k.reusedAt = time.Now()
	}
	k.holds(l)
	k.unsure, k.remembered = true, away
}

// outdated is Run's error, when it is about a lease that was only remembered.
func (k *Keeper) outdated(err error) error {
	if k.remembered && (errors.Is(err, ErrSubnetLost) || errors.Is(err, ErrPublicIPInUse)) {
		return fmt.Errorf("%w: %w", ErrOutdated, err)
	}
	return err
}
