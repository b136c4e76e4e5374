package lease

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"muslin/tunnel/fib"
)

// StaticConfig says which peers file to follow and for whom.
type StaticConfig struct {
	Path     string
	PublicIP netip.Addr       // ours: it picks our own lease out of the file
	Network  netip.Prefix     // the overlay's; zero: leases may lie anywhere
	Poll     time.Duration    // how often to look for a change of the file; 0 means one second
	OnTable  func(*fib.Table) // at each change, from Run's goroutine
	Logger   *slog.Logger     // nil means slog.Default

	Mode       string       // of a wireguard network: see ModeSeparate, which is also meant by ""
	PublicIPv6 netip.Addr   // ours; zero: the IPv6 halves of leases are not used. Without a PublicIP it picks our lease
	Network6   netip.Prefix // the overlay's of IPv6
}

// Static takes the peers from a file instead of a store: the leases as the store had them, one JSON
// object from lease key to lease value.
//
//	{
//	  "10.244.1.0-24": {"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"be:e3:93:3d:62:d0"}},
//	  "10.244.2.0-24": {"PublicIP":"192.0.2.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"76:0a:15:7b:a4:2c"}}
//	}
type Static struct {
	cfg     StaticConfig
	own     Lease
	content []byte // that the table was made from
	stamp   stamp

	mu     sync.Mutex
	roster *roster
	status WatchStatus
}

// NewStatic reads the file and finds our own lease in it. Backend, VNI and MAC of this node are those
// of that lease, since the peers' files name them.
func NewStatic(cfg StaticConfig) (*Static, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Poll == 0 {
		cfg.Poll = time.Second
	}
	s := &Static{cfg: cfg, stamp: stampOf(cfg.Path)}
	content, entries, err := readPeersFile(cfg.Path)
	if err != nil {
		return nil, err
	}
	if s.own, err = cfg.ownLease(entries); err != nil {
		return nil, err
	}
	s.content = content
	node := Node{
		Subnet: s.own.Subnet, PublicIP: cfg.PublicIP, Network: cfg.Network,
		Backend: s.own.Attrs.BackendType, VNI: s.own.Attrs.VNI, Key: s.own.Attrs.Key, Mode: cfg.Mode,
	}
	if cfg.PublicIPv6.IsValid() {
		node.Subnet6, node.PublicIPv6, node.Network6 = s.own.Subnet6, cfg.PublicIPv6, cfg.Network6
	}
	if !cfg.PublicIP.IsValid() {
		node.Subnet, node.VNI, node.Key = netip.Prefix{}, s.own.Attrs.VNI6, s.own.Attrs.Key6
	}
	s.roster = newRoster(node, cfg.Logger)
	s.roster.replace(entries)
	return s, nil
}

// Own is our own lease, which a later change of the file does not move.
func (s *Static) Own() Lease { return s.own }

// Status may be called from anywhere.
func (s *Static) Status() WatchStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status
	st.Skipped = maps.Clone(st.Skipped)
	return st
}

// Leases is every lease of the file, sorted by key.
func (s *Static) Leases() []Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.roster.leases()
}

// Table is the peers as they are known now.
func (s *Static) Table() *fib.Table {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, _ := s.roster.update()
	return t
}

// Run hands out the table, and a new one when the file changes, until ctx ends. A file that turned bad
// is logged and changes nothing.
func (s *Static) Run(ctx context.Context) error {
	s.publish()
	tick := time.NewTicker(s.cfg.Poll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if now := stampOf(s.cfg.Path); now != s.stamp {
			s.stamp = now
			s.reload()
		}
	}
}

func (s *Static) reload() {
	content, entries, err := readPeersFile(s.cfg.Path)
	if err == nil {
		var own Lease
		own, err = s.cfg.ownLease(entries)
		if err == nil && (own.halves() != s.own.halves() || !own.Attrs.Equal(s.own.Attrs)) {
			err = fmt.Errorf("peers file %s: our own lease changed from %s, %s to %s, %s: restart to use it", s.cfg.Path, s.own.halves(), s.own.Attrs, own.halves(), own.Attrs)
		}
	}
	if err != nil {
		s.cfg.Logger.Error("cannot use the changed peers file: the peers stay as they were", "err", err)
		s.mu.Lock()
		s.status.Healthy, s.status.LastError = false, err.Error()
		s.mu.Unlock()
		return
	}
	if bytes.Equal(content, s.content) && s.Status().Healthy {
		return
	}
	s.content = content
	s.mu.Lock()
	s.roster.replace(entries)
	s.mu.Unlock()
	s.publish()
}

func (s *Static) publish() {
	s.mu.Lock()
	t, _ := s.roster.update()
	skipped := maps.Clone(s.roster.skipped)
	s.mu.Unlock()
	s.cfg.OnTable(t)
	s.cfg.Logger.Info("peers read from file", "path", s.cfg.Path, "peers", len(t.Peers()), "skipped", describe(skipped))
	s.mu.Lock() // last: who sees this file's status finds its table in use
	s.status = WatchStatus{Healthy: true, Revision: s.status.Revision + 1, Peers: len(t.Peers()), Skipped: skipped}
	s.mu.Unlock()
}

// stamp changes whenever the file does: editors change the time or the size, a rename the inode.
type stamp struct {
	modified time.Time
	size     int64
	inode    uint64
}

func stampOf(path string) stamp {
	fi, err := os.Stat(path)
	if err != nil {
		return stamp{size: -1}
	}
	return stamp{fi.ModTime(), fi.Size(), inodeOf(fi)}
}

// readPeersFile is strict: a key or value that the store's Watcher would skip is an error here, because
// somebody has just written it by hand.
func readPeersFile(path string) ([]byte, []Entry, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read peers file: %w: name an existing one with --peers-file", err)
	}
	entries, err := ParsePeersFile(data)
	if err != nil {
		return nil, nil, fmt.Errorf("peers file %s: %w", path, err)
	}
	return data, entries, nil
}

// ParsePeersFile reads the leases of a peers file. Errors say where they are.
func ParsePeersFile(data []byte) ([]Entry, error) {
	o, err := decodeObject(data)
	if err != nil {
		return nil, err
	}
	if len(o.fields) == 0 {
		return nil, errors.New(`has no lease in it: want {"10.244.1.0-24": {"PublicIP": …}, …}`)
	}
	var entries []Entry
	at := make(map[string]int)
	for _, f := range o.fields {
		if was, ok := at[f.name]; ok {
			return nil, fmt.Errorf("%s: lease %s is there already, at %s: remove one of the two", position(data, f.at), f.name, position(data, was))
		}
		at[f.name] = f.at
		e := Entry{Key: f.name, Value: f.raw, Reserved: true}
		if _, err := ParseLease(e); err != nil {
			return nil, fmt.Errorf("%s: %w", position(data, f.at), err)
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// MarshalPeersFile writes leases as a peers file, one per line, sorted by key.
func MarshalPeersFile(leases []Lease) ([]byte, error) {
	sorted := slices.SortedFunc(slices.Values(leases), func(a, b Lease) int { return strings.Compare(a.Key, b.Key) })
	var b bytes.Buffer
	b.WriteString("{")
	for i, l := range sorted {
		value, err := json.Marshal(l.Attrs)
		if err != nil {
			return nil, fmt.Errorf("peers file: lease %s: %w", l.Key, err)
		}
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(&b, "\n  %q: %s", l.Key, value)
	}
	b.WriteString("\n}\n")
	return b.Bytes(), nil
}

// ownLease finds ours by our PublicIP, as flannel does, or by our PublicIPv6 where we have no other.
func (cfg StaticConfig) ownLease(entries []Entry) (Lease, error) {
	path, ours, name, flag := cfg.Path, cfg.PublicIP, "PublicIP", "--public-ip"
	address := func(a Attrs) netip.Addr { return a.PublicIP }
	if !ours.IsValid() {
		ours, name, flag = cfg.PublicIPv6, "PublicIPv6", "--public-ipv6"
		address = func(a Attrs) netip.Addr { return a.PublicIPv6 }
	}
	var own []Lease
	var others []string
	for _, e := range entries {
		l, err := ParseLease(e)
		if err != nil {
			return Lease{}, err
		}
		if address(l.Attrs) == ours {
			own = append(own, l)
		}
		others = append(others, address(l.Attrs).String())
	}
	switch {
	case len(own) == 0:
		return Lease{}, fmt.Errorf("peers file %s: no lease has our %s %s (there are %s): add ours, or give the right address with %s", path, name, ours, clip(strings.Join(others, ", ")), flag)
	case len(own) > 1:
		return Lease{}, fmt.Errorf("peers file %s: leases %s and %s both have our %s %s: remove one", path, own[0].Key, own[1].Key, name, ours)
	case cfg.PublicIP.IsValid() && !own[0].Subnet.IsValid():
		return Lease{}, fmt.Errorf("peers file %s: our lease %s has no IPv4 subnet", path, own[0].Key)
	case cfg.PublicIPv6.IsValid() && !own[0].Subnet6.IsValid():
		return Lease{}, fmt.Errorf("peers file %s: our lease %s has no IPv6 subnet", path, own[0].Key)
	}
	if t := own[0].Attrs.BackendType; !carries(t) {
		return Lease{}, fmt.Errorf("peers file %s: our lease %s is of backend %q, but this version carries %s only", path, own[0].Key, clip(t), list(carried, "and"))
	}
	return own[0], nil
}
