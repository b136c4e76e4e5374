//go:build linux

// Package lab builds a small network on one machine: hosts joined by a switch, and pods on the hosts,
// each in a network namespace of its own. `muslin demo`, the end-to-end tests and the benchmarks all
// stand on it.
//
//	         mlab-ID-sw
//	┌──────── br0 ────────┐
//	│h1                   │h2
//	│eth0 198.18.0.1/24   │eth0 198.18.0.2/24
//	mlab-ID-h1            mlab-ID-h2
//	│cni0 (subnet's .1)   │cni0
//	│eth0 .2              │eth0 .2
//	mlab-ID-p1a           mlab-ID-p2a
//
// The room works by the commands a person would type (`ip`, `bridge`, `ethtool`), so that an error shows
// one that can be tried again by hand. It never creates a link, a route, a firewall rule or a sysctl
// outside the namespaces that it made, and takes everything away however its process ends (guard.go).
// Two labs do not see each other and may run at once.
package lab

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// DefaultMTU is Ethernet's, in bytes.
const DefaultMTU = 1500

// maxHosts leaves room for the gateway, .254 of the /24 between the hosts.
const maxHosts = 200

// Config says what New builds. The zero value of each field but Hosts is usable.
type Config struct {
	Hosts        int          // 1 to 200
	MTU          int          // of every eth0 between the hosts, in bytes; 0 means DefaultMTU
	DefaultRoute bool         // give the hosts a default route, to an address of the switch
	Dir          string       // parent of the lab's directory; empty means the system's temporary one
	Logger       *slog.Logger // nil discards
}

// Lab is a network of hosts. Its methods may be called by several goroutines at once.
type Lab struct {
	cfg   Config
	id    string
	dir   string
	log   *slog.Logger
	guard *guard
	fork  *forker
	sw    *Node
	hosts []*Host

	cgroup string // where Cgroup makes one; "" where there can be none

	mu      sync.Mutex
	procs   []*Proc
	daemons []*Muslin
	closed  bool
	running sync.WaitGroup  // of what is in progress: see enter
	life    context.Context // ends the commands when Close begins
	end     context.CancelFunc

	closing  sync.Once
	closeErr error
}

// New builds the network. It needs root. What was built up to an error, or until ctx ended, is gone when
// New returns the error. ctx counts for the building only; the lab lasts until Close.
func New(ctx context.Context, cfg Config) (*Lab, error) {
	if cfg.Hosts < 1 || cfg.Hosts > maxHosts {
		return nil, fmt.Errorf("build lab: %d hosts: give a number from 1 to %d", cfg.Hosts, maxHosts)
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("build lab: network namespaces need root: run this as root, for example with sudo")
	}
	if missing := MissingTools("ip"); missing != nil {
		return nil, fmt.Errorf("build lab: %w", missing)
	}
	if cfg.MTU == 0 {
		cfg.MTU = DefaultMTU
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Lab{cfg: cfg, id: newID(), log: cfg.Logger}
	l.life, l.end = context.WithCancel(context.Background())
	dir, err := os.MkdirTemp(cfg.Dir, "mlab-"+l.id+"-")
	if err != nil {
		return nil, fmt.Errorf("build lab: directory for state and logs: %w", err)
	}
	l.dir = dir
	l.cgroup = cgroupPath(l.id)
	if l.guard, err = startGuard(l.id, dir, l.cgroup); err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("build lab: %w", err)
	}
	l.fork = newForker()
	if err := l.build(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("build lab %s: %w", l.id, err), l.Close())
	}
	l.log.Debug("lab is up", "lab", l.id, "hosts", cfg.Hosts, "dir", dir)
	return l, nil
}

func (l *Lab) build(ctx context.Context) error {
	sw, err := l.addNode(ctx, "sw")
	if err != nil {
		return err
	}
	l.sw = sw
	mtu := fmt.Sprint(l.cfg.MTU)
	if err := sw.ip(ctx,
		"link add br0 type bridge forward_delay 0",
		"link set br0 mtu "+mtu+" up",
	); err != nil {
		return err
	}
	if l.cfg.DefaultRoute {
		if err := sw.ip(ctx, "addr add "+gateway.String()+"/24 dev br0"); err != nil {
			return err
		}
	}
	for i := 1; i <= l.cfg.Hosts; i++ {
		h, err := l.addHost(ctx, i)
		if err != nil {
			return err
		}
		l.hosts = append(l.hosts, h)
	}
	return nil
}

// gateway is the switch's own address, where there is a default route. 198.18.0.0/15 is set aside for
// tests of network equipment (RFC 2544, section C.2.2).
var gateway = netip.AddrFrom4([4]byte{198, 18, 0, 254})

func (l *Lab) addHost(ctx context.Context, number int) (*Host, error) {
	name := fmt.Sprintf("h%d", number)
	node, err := l.addNode(ctx, name)
	if err != nil {
		return nil, err
	}
	h := &Host{
		Node:   node,
		Number: number,
		Addr:   netip.AddrFrom4([4]byte{198, 18, 0, byte(number)}),
		Dir:    filepath.Join(l.dir, name),
	}
	if err := os.Mkdir(h.Dir, 0o755); err != nil {
		return nil, err
	}
	mtu := fmt.Sprint(l.cfg.MTU)
	if err := l.sw.ip(ctx,
		"link add "+name+" mtu "+mtu+" type veth peer name eth0 mtu "+mtu+" netns "+node.NetNS,
		"link set "+name+" master br0 up",
	); err != nil {
		return nil, err
	}
	commands := []string{
		"addr add " + h.Addr.String() + "/24 dev eth0",
		"link set eth0 up",
	}
	if l.cfg.DefaultRoute {
		commands = append(commands, "route add default via "+gateway.String())
	}
	if err := node.ip(ctx, commands...); err != nil {
		return nil, err
	}
	// A new namespace inherits the machine's setting. Off, so that who needs forwarding has to say so.
	return h, node.Sysctl("net/ipv4/ip_forward", "0")
}

// ID tells this lab's namespaces (mlab-<ID>-…) from another's.
func (l *Lab) ID() string { return l.id }

// Dir holds the lab's logs and its hosts' state. It is removed by Close.
func (l *Lab) Dir() string { return l.dir }

// Switch is the namespace that joins the hosts: bridge br0, and a port named like each host.
func (l *Lab) Switch() *Node { return l.sw }

// Host is host number i, counted from 1.
func (l *Lab) Host(i int) *Host { return l.hosts[i-1] }

// Hosts are all hosts, in order. The slice belongs to the lab.
func (l *Lab) Hosts() []*Host { return l.hosts }

// Close ends every process that the lab started (SIGTERM, after StopTimeout SIGKILL), removes the
// namespaces with all that is in them, and the directory. It may be called again and from several
// places; each call returns the same error. An error means that something is left, and names it.
func (l *Lab) Close() error {
	l.closing.Do(func() {
		l.mu.Lock()
		l.closed = true
		l.mu.Unlock()
		l.end()
		l.running.Wait() // after which nobody adds to procs

		var stopping sync.WaitGroup
		for _, p := range l.procs {
			stopping.Go(func() { _ = p.Stop() })
		}
		stopping.Wait()
		l.fork.close()
		l.closeErr = l.guard.release()
		l.log.Debug("lab is gone", "lab", l.id, "error", l.closeErr)
	})
	return l.closeErr
}

// idAlphabet has no digit or letter that is mistaken for another; its 32 letters take a byte evenly.
const idAlphabet = "abcdefghijkmnopqrstuvwxyz2345679"

func newID() string {
	var random [5]byte
	rand.Read(random[:])
	for i, b := range random {
		random[i] = idAlphabet[int(b)%len(idAlphabet)]
	}
	return string(random[:])
}

// Leftovers lists what still bears the lab's mark: namespaces, the directory, the state file, the cgroup. After
// a Close without an error it is empty.
func (l *Lab) Leftovers() []string {
	left, _ := filepath.Glob(filepath.Join(netnsDir, namespacePrefix(l.id)+"*"))
	for _, path := range []string{l.dir, statePath(l.id), l.cgroup} {
		if path == "" {
			continue
		}
		if _, err := os.Lstat(path); err == nil {
			left = append(left, path)
		}
	}
	return left
}

func namespacePrefix(id string) string { return "mlab-" + id + "-" }

// commandLine shows a command as it can be typed again.
func commandLine(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = a
		if a == "" || strings.ContainsAny(a, " \t\n\"'$&|;<>()*?{}\\`") {
			quoted[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}
