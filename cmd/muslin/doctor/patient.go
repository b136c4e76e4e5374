package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/rescue"
	"muslin/encap"
	"muslin/lease"
	"muslin/lease/etcd"
	"muslin/tunnel/host"
	"muslin/tunnel/kernel"
)

// Options say whom to examine, and how the daemon there was or would be started.
type Options struct {
	Control string // socket of the daemon
	Net     string // of several networks, this one
	Version string // of this command

	Store      etcd.Config // how etcd is asked
	Guessed    bool        // nobody said where etcd is
	Embedded   bool        // the daemon runs that etcd itself
	PeersFile  string      // in place of etcd
	NetConfig  []byte      // the network's config from the flags; nil: it is in the store
	StateDir   string
	SubnetFile string
	TUN        string
	Iface      host.InterfaceOptions
	Features   kernel.Features // wanted

	// Learn fills in what was not given, from what the daemon with that process ID was started with; 0: none runs. It says
	// in a sentence what it could not learn; empty: nothing. It may be nil.
	Learn func(o *Options, pid int) string
}

// Patient is what was gathered once and all checks look at. A part that could not be had is empty, and its error says
// why.
type Patient struct {
	Options Options

	Status    *control.Status // nil: no daemon has answered
	StatusErr error           // why
	Daemon    Daemon

	Flannel *Flannel // what flannel has on this node, or a muslin that has stopped left of it; nil: nothing
	Store   Store
	Host    Host
	Memory  *lease.Memory // what the daemon knew last; nil: nothing
	Local   Node          // this node, as far as it is known
	Peers   []Node        // the others, as the leases say

	mu      sync.Mutex
	unknown map[string]error // by the check that could not tell
}

// Daemon is the process.
type Daemon struct {
	PID    int  // 0: it is not known
	Silent bool // it is there, and does not answer
	Absent bool // nobody listens on its socket
	// Blind says what could not be learned of how it was started.
	Blind string
}

// Flannel is what flanneld leaves in a host.
type Flannel struct {
	File   lease.SubnetFile // zero: there is none
	Device *host.Link       // a vxlan device; nil: there is none
	Daemon bool             // a flanneld runs
}

// Store is the store as this command sees it.
type Store struct {
	Kind      string // "etcd" or "peers-file"
	Endpoints []string
	Raw       []byte        // the network's config; nil: there is none
	Config    *lease.Config // the same, read
	ConfigErr error         // why there is none: lease.ErrNoConfig, or what is wrong with it
	Entries   []lease.Entry // every key where leases lie
	Leases    []lease.Lease // those that can be read
	Revision  int64
	TTL       map[string]time.Duration // by key, of those that could be asked for; a reservation has none
	Err       error                    // why nothing could be had
}

// Host is this host.
type Host struct {
	host.Survey
	Err       error
	Obstacles []host.Obstacle // firewall chains of others that drop the overlay's packets
	Firewall  error           // why those are not known
}

// Node is this one or a peer.
type Node struct {
	PublicIP, PublicIPv6 netip.Addr
	Subnet, Subnet6      netip.Prefix
	Backend              string
	VNI                  encap.VNI // of vxlan
	MAC, MAC6            encap.MAC
	Port                 uint16 // of the network's, or with wireguard of the lease's
	MTU                  int    // bytes, inner; 0: not known
	Iface                string // this node's only: of the underlay
	TUN, TUN6            string // this node's only: of the overlay; empty: none

	Lease *lease.Lease   // nil: the store has none
	TTL   *time.Duration // that it has left; nil: not known, or a reservation

	Peer, Peer6 *control.PeerStatus // as the daemon has it; nil: it does not know it
}

// Name is the address that findings name a node by.
func (n *Node) Name() string {
	switch {
	case n.PublicIP.IsValid():
		return n.PublicIP.String()
	case n.PublicIPv6.IsValid():
		return n.PublicIPv6.String()
	}
	return ""
}

// How long parts of the gathering may take, so that time is left for the checks.
const (
	StatusTime = 2500 * time.Millisecond
	storeTime  = 6 * time.Second
	askTime    = 2 * time.Second // of one request to etcd; after that the reason is looked for
)

// Gather looks at everything once.
func Gather(ctx context.Context, o Options) *Patient {
	p := &Patient{Options: o}
	var all sync.WaitGroup
	all.Go(func() {
		survey, err := host.LookAround()
		p.Host.Survey, p.Host.Err = *survey, err
	})
	all.Go(func() {
		p.askDaemon(ctx)
		if o.Learn != nil {
			p.Daemon.Blind = o.Learn(&p.Options, p.Daemon.PID)
		}
		p.Memory, _ = lease.ReadMemory(filepath.Join(p.Options.StateDir, "network.json"))
		p.askStore(ctx)
	})
	all.Wait()
	p.lookForFlannel()
	p.findNodes()
	p.Host.Obstacles, p.Host.Firewall = p.setup().Obstacles(p.somePeers()...)
	return p
}

func (p *Patient) askDaemon(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, StatusTime)
	defer cancel()
	p.Status, p.StatusErr = control.AskNetwork(ctx, p.Options.Control, p.Options.Net)
	if p.StatusErr == nil {
		p.Daemon.PID = p.Status.Process.PID
		if pid, err := behindSocket(p.Options.Control); err == nil && !isMuslin(p.Daemon.PID) && isMuslin(pid) { // it is in a container, and counts otherwise
			p.Daemon.PID = pid
		}
		return
	}
	pid, err := behindSocket(p.Options.Control)
	p.Daemon.PID, p.Daemon.Silent = pid, err == nil && errors.Is(ctx.Err(), context.DeadlineExceeded)
	p.Daemon.Absent = errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
}

// isMuslin reports whether a process, as it is numbered here, may be a daemon.
func isMuslin(pid int) bool {
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && slices.Contains(strings.Split(string(args), "\x00"), "run")
}

// behindSocket is the process that listens there; 0: it is not to be seen.
func behindSocket(path string) (pid int, err error) {
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	err = raw.Control(func(fd uintptr) {
		if c, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(c.Pid)
		}
	})
	return pid, err
}

func (p *Patient) askStore(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	s := &p.Store
	if p.Options.PeersFile != "" {
		s.Kind, s.Endpoints = "peers-file", []string{p.Options.PeersFile}
		s.Entries, s.Err = readPeersFile(p.Options.PeersFile)
		s.read(p.Options.NetConfig)
		return
	}
	cfg := p.Options.Store
	s.Kind, s.Endpoints, cfg.Timeout = "etcd", cfg.Endpoints, askTime
	store, err := etcd.Dial(cfg)
	if err != nil {
		s.Err = err
		return
	}
	defer store.Close()
	s.Endpoints = store.Endpoints()
	raw, _, err := store.Config(ctx)
	if err != nil && !errors.Is(err, lease.ErrNoConfig) {
		s.Err = err
		return
	}
	if s.Entries, s.Revision, s.Err = store.List(ctx); s.Err == nil {
		s.read(raw)
		s.askTTLs(ctx, store)
	}
}

func readPeersFile(path string) ([]lease.Entry, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	entries, err := lease.ParsePeersFile(data)
	if err != nil {
		return nil, fmt.Errorf("peers file %s: %w", path, err)
	}
	return entries, nil
}

// read makes sense of what the store has.
func (s *Store) read(raw []byte) {
	s.Raw = raw
	if raw == nil {
		s.ConfigErr = lease.ErrNoConfig
	} else if s.Config, s.ConfigErr = lease.ParseConfig(raw); s.ConfigErr == nil {
		s.ConfigErr = s.Config.Supported()
	}
	for _, e := range s.Entries {
		if l, err := lease.ParseLease(e); err == nil {
			s.Leases = append(s.Leases, l)
		}
	}
}

// mostTTLs is how many leases are asked how long they live: each is two requests.
const mostTTLs = 512

func (s *Store) askTTLs(ctx context.Context, store *etcd.Store) {
	s.TTL = make(map[string]time.Duration)
	var mu sync.Mutex
	var all sync.WaitGroup
	turns := make(chan struct{}, 16)
	for _, l := range s.Leases[:min(len(s.Leases), mostTTLs)] {
		if l.Reserved {
			continue
		}
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			if left, err := store.TimeToLive(ctx, l.Key); err == nil {
				mu.Lock()
				defer mu.Unlock()
				s.TTL[l.Key] = left
			}
		})
	}
	all.Wait()
}

func (p *Patient) lookForFlannel() {
	f := new(Flannel)
	f.File, _ = lease.ReadSubnetFile(p.Options.SubnetFile)
	for i, l := range p.Host.Links {
		if l.VXLAN == nil {
			continue
		}
		if l.Name == fmt.Sprintf("flannel-v6.%d", l.VXLAN.VNI) {
			continue
		}
		if named := l.Name == fmt.Sprintf("flannel.%d", l.VXLAN.VNI); named || f.Device == nil && p.inOverlay(l.Name, f) {
			f.Device = &p.Host.Links[i]
		}
	}
	f.Daemon = len(rescue.FindFlanneld()) > 0
	if f.Device != nil || f.Daemon || f.File.Subnet.IsValid() || f.File.Subnet6.IsValid() {
		p.Flannel = f
	}
}

// inOverlay reports whether a device has an address of the overlay's: others make vxlan devices, too.
func (p *Patient) inOverlay(device string, f *Flannel) bool {
	networks := []netip.Prefix{f.File.Network, f.File.Network6}
	if c := p.Config(); c != nil {
		networks = append(networks, c.Network, c.IPv6Network)
	}
	return slices.ContainsFunc(p.Host.Addresses, func(a host.Address) bool {
		return a.Link == device && slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.IsValid() && n.Contains(a.Prefix.Addr()) })
	})
}

// Config is the network's: the store's, or the one that was known last, or that the flags describe; nil: none is known.
func (p *Patient) Config() *lease.Config {
	if p.Store.Config != nil {
		return p.Store.Config
	}
	for _, raw := range [][]byte{p.Options.NetConfig, p.rememberedConfig()} {
		if c, err := lease.ParseConfig(raw); raw != nil && err == nil {
			return c
		}
	}
	return nil
}

func (p *Patient) rememberedConfig() []byte {
	if p.Memory == nil {
		return nil
	}
	return p.Memory.Config
}

// Networks are the overlay's, of each family that it has; zero: it has not, or it is not known.
func (p *Patient) Networks() (four, six netip.Prefix) {
	if p.Status != nil {
		four, six = prefix(p.Status.Node.Network), prefix(p.Status.Node.Network6)
	}
	if c := p.Config(); !four.IsValid() && !six.IsValid() && c != nil {
		four, six = c.Network, c.IPv6Network
	}
	if p.Flannel != nil && !four.IsValid() && !six.IsValid() {
		four, six = p.Flannel.File.Network, p.Flannel.File.Network6
	}
	return four, six
}

// Running reports whether a daemon of muslin's carries packets here.
func (p *Patient) Running() bool { return p.Status != nil && p.Status.State == control.StateRunning }

// lacks says what is missing of what a check needs; nil: nothing.
func (p *Patient) lacks(n Needs) error {
	switch {
	case n&NeedRoot != 0 && kernel.NetAdmin().Answer == kernel.No:
		return errors.New("it takes root (CAP_NET_ADMIN)")
	case n&NeedStatus != 0 && p.Status == nil:
		return fmt.Errorf("no daemon answers: %w", p.StatusErr)
	case n&NeedStore != 0 && p.Store.Err != nil:
		return fmt.Errorf("the store was not reached: %w", p.Store.Err)
	case n&NeedHost != 0 && p.Host.Err != nil:
		return fmt.Errorf("this host could not be looked at: %w", p.Host.Err)
	case n&NeedLocal != 0 && !p.Local.Subnet.IsValid() && !p.Local.Subnet6.IsValid():
		return errors.New("this node's subnet is not known")
	case n&NeedPeers != 0 && len(p.Peers) == 0:
		return errors.New("no peers are known")
	}
	return nil
}

// CannotTell says why a check, by its name, could not be made, or not wholly. It may be called from anywhere.
func (p *Patient) CannotTell(check string, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.unknown == nil {
		p.unknown = make(map[string]error)
	}
	p.unknown[check] = why
}

func (p *Patient) untold(check string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unknown[check]
}

// setup is what the daemon's own look at the host takes, as far as it is known.
func (p *Patient) setup() host.SetupConfig {
	c := host.SetupConfig{TUN: p.Local.TUN, Outer: host.Outer{Iface: p.Local.Iface, Port: p.Local.Port}}
	c.Network, c.Network6 = p.Networks()
	c.Subnet, c.Subnet6 = p.Local.Subnet, p.Local.Subnet6
	if !c.Subnet.IsValid() {
		c.Network = netip.Prefix{}
	}
	if !c.Subnet6.IsValid() {
		c.Network6 = netip.Prefix{}
	}
	c.Outer.IPv6 = !c.Network.IsValid() && c.Network6.IsValid()
	if pods := p.podLinks(); len(pods) == 1 {
		c.Pods = pods[0]
	}
	return c
}

// somePeers are subnets of peers that packets are to be forwarded to.
func (p *Patient) somePeers() []netip.Prefix {
	const most = 32
	var all []netip.Prefix
	for i := range p.Peers {
		n := &p.Peers[i]
		for _, subnet := range []netip.Prefix{n.Subnet, n.Subnet6} {
			if subnet.IsValid() && !p.gone(n) && len(all) < most && !subnet.Overlaps(p.Local.Subnet) && !subnet.Overlaps(p.Local.Subnet6) {
				all = append(all, subnet)
			}
		}
	}
	return all
}

func prefix(s string) netip.Prefix {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}
	}
	return p.Masked()
}

func address(s string) netip.Addr {
	a, _ := netip.ParseAddr(s)
	return a
}

// ownAddress reports whether this host has the address.
func (p *Patient) ownAddress(a netip.Addr) bool {
	return a.IsValid() && slices.ContainsFunc(p.Host.Addresses, func(h host.Address) bool { return h.Prefix.Addr() == a })
}
