//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Node is a namespace of the lab: a host, a pod or the switch.
type Node struct {
	Name  string // within the lab: "h1", "p1a", "sw"
	NetNS string // as `ip netns` shows it: "mlab-<id>-h1"

	lab *Lab
}

func (l *Lab) addNode(ctx context.Context, name string) (*Node, error) {
	n := &Node{Name: name, NetNS: namespacePrefix(l.id) + name, lab: l}
	if _, err := l.run(ctx, []string{"ip", "netns", "add", n.NetNS}); err != nil {
		return nil, err
	}
	for _, path := range []string{
		// No duplicate address detection: it would change the links' addresses a second after their
		// creation.
		"net/ipv6/conf/default/accept_dad",
		// Bridges that are bridges. Where br_netfilter is there, it takes every frame through the IP
		// firewall, the switch's included; a fresh Debian has not loaded it.
		"net/bridge/bridge-nf-call-iptables",
		"net/bridge/bridge-nf-call-ip6tables",
		"net/bridge/bridge-nf-call-arptables",
	} {
		if err := n.Sysctl(path, "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return n, n.ip(ctx, "link set lo up")
}

// ip runs ip-link(8) and its sisters in the node's namespace, one after the other.
func (n *Node) ip(ctx context.Context, commands ...string) error {
	for _, c := range commands {
		args := append([]string{"ip", "-n", n.NetNS}, strings.Fields(c)...)
		if _, err := n.lab.run(ctx, args); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) netnsExec(args []string) []string {
	return append([]string{"ip", "netns", "exec", n.NetNS}, args...)
}

// Run runs a command in the node's network namespace (and a mount namespace of its own, where /sys
// belongs to it) and returns its standard output and error together. A status other than 0 is an
// *ExitError. When ctx ends the command and its children are killed.
func (n *Node) Run(ctx context.Context, args ...string) (string, error) {
	return n.lab.run(ctx, n.netnsExec(args))
}

// Output is Run for a command whose standard output a program reads: its standard error is only in the
// *ExitError.
func (n *Node) Output(ctx context.Context, args ...string) (string, error) {
	var stdout, stderr strings.Builder
	err := n.lab.runInto(ctx, n.netnsExec(args), &stdout, &stderr)
	return stdout.String(), err
}

// Start starts a long-running command in the node's network namespace. name names its log; env is added
// to this process's environment. Close ends it.
func (n *Node) Start(name string, env []string, args ...string) (*Proc, error) {
	return n.lab.start(n.Name+"-"+name, env, n.netnsExec(args))
}

// Do calls fn on a thread that stands in the node's network namespace: sockets that fn opens belong to
// the node for good, and may be used from anywhere. fn must not start goroutines that open sockets, nor
// processes. Close waits for it.
func (n *Node) Do(fn func() error) error {
	if err := n.lab.enter(); err != nil {
		return err
	}
	defer n.lab.running.Done()
	result := make(chan error, 1)
	go func() { result <- n.inNamespace(fn) }()
	return <-result
}

func (n *Node) inNamespace(fn func() error) error {
	runtime.LockOSThread()
	home, err := os.Open(threadDir() + "/ns/net")
	if err != nil {
		return fmt.Errorf("enter namespace: %w", err)
	}
	defer home.Close()
	there, err := os.Open(filepath.Join(netnsDir, n.NetNS))
	if err != nil {
		return fmt.Errorf("enter namespace: %w", err)
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter namespace %s: %w", n.NetNS, err)
	}
	defer func() {
		// A thread that cannot go back stays locked, so that no other goroutine gets it. Going back
		// rather than ending the thread each time matters because it may be the process's first, which
		// Go cannot end and by which the system judges where the process is.
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return fn()
}

// threadDir is the calling thread's directory in /proc, which shows the network namespace that it stands in.
// /proc/thread-self is there since Linux 3.17 only (proc(5)).
func threadDir() string { return fmt.Sprintf("/proc/self/task/%d", unix.Gettid()) }

// Sysctl writes a sysctl of the node's network, named by its path below /proc/sys.
func (n *Node) Sysctl(path, value string) error {
	return n.Do(func() error { return os.WriteFile(filepath.Join("/proc/sys", path), []byte(value), 0o644) })
}

// ReadSysctl reads a sysctl of the node's network, named by its path below /proc/sys.
func (n *Node) ReadSysctl(path string) (string, error) {
	var value string
	err := n.Do(func() error {
		b, err := os.ReadFile(filepath.Join("/proc/sys", path))
		value = strings.TrimSpace(string(b))
		return err
	})
	return value, err
}

// emptyTable is a table of iptables' making that decides nothing, as nft lists it and as iptables-legacy does.
var emptyTable = regexp.MustCompile(`(?m)^table ip6? (filter|nat) \{\n(\tchain [A-Z]+ \{\n\t\ttype .* policy accept;\n\t\}\n\n?)*\}\n|^\*[a-z]+\n(:[A-Z]+ ACCEPT .*\n)*COMMIT\n`)

// passing is what the kernel changes by itself: a link's operational state, a bridge's timers; and what says when and
// how often.
var passing = regexp.MustCompile(` state [A-Z]+| [a-z_]+_timer +[0-9.]+|NO-CARRIER,|(?m:^#.*\n)|\[[0-9]+:[0-9]+\]`)

// Snapshot is what a daemon could leave in the node's network: links, addresses, routes of all tables, rules, the
// firewall's rules, and the sysctls of forwarding and of every interface. Two snapshots of an
// unchanged node are equal: counters and times are left out, and so are firewall tables without a rule:
// iptables leaves its standard chains behind once it was used.
func (n *Node) Snapshot(ctx context.Context) (string, error) {
	var b strings.Builder
	for _, args := range [][]string{
		{"ip", "-d", "link", "show"},
		{"ip", "addr", "show"},
		{"ip", "-4", "route", "show", "table", "all"},
		{"ip", "-6", "route", "show", "table", "all"},
		{"ip", "-4", "rule", "show"},
		{"ip", "-6", "rule", "show"},
		{"nft", "--stateless", "list", "ruleset"},
		{"iptables-legacy-save"}, // those over nftables are among nft's
		{"ip6tables-legacy-save"},
	} {
		if MissingTools(args[0]) != nil {
			continue // what is not installed cannot have been used
		}
		// Standard output only: ip warns of what goes away while it looks, in another namespace even.
		out, err := n.Output(ctx, args...)
		if err != nil {
			return "", fmt.Errorf("snapshot of %s: %w", n.Name, err)
		}
		fmt.Fprintf(&b, "# %s\n%s", commandLine(args), emptyTable.ReplaceAllString(passing.ReplaceAllString(out, ""), ""))
	}
	values, err := n.switches()
	if err != nil {
		return "", fmt.Errorf("snapshot of %s: %w", n.Name, err)
	}
	return b.String() + values, nil
}

// switches are the sysctls of forwarding and of every interface.
func (n *Node) switches() (string, error) {
	var b strings.Builder
	err := n.Do(func() error {
		for _, pattern := range []string{"ipv4/ip_forward", "ipv4/conf/*/*", "ipv6/conf/*/*"} {
			paths, err := filepath.Glob("/proc/sys/net/" + pattern)
			if err != nil {
				return err
			}
			for _, path := range paths {
				// Some cannot be read, such as a secret that was not set.
				if value, err := os.ReadFile(path); err == nil {
					fmt.Fprintf(&b, "%s = %s", strings.TrimPrefix(path, "/proc/sys/"), value)
				}
			}
		}
		return nil
	})
	return b.String(), err
}

// Host is a host of the lab: its eth0 leads to the switch.
type Host struct {
	*Node
	Number int        // from 1
	Addr   netip.Addr // of eth0, in a /24 with the other hosts
	Dir    string     // for the host's own state, below Lab.Dir

	pods []*Pod
}

// Lab is the lab that the host is in.
func (h *Host) Lab() *Lab { return h.lab }

// Pods are the host's pods in the order in which they were added.
func (h *Host) Pods() []*Pod { return h.pods }

// Pod is a workload on a host: a namespace whose eth0 hangs on the host's bridge cni0.
type Pod struct {
	*Node
	Host *Host
	Addr netip.Addr // of eth0

	bridge string // of the host's
}

// PodNetwork is what a container runtime takes from the daemon's subnet file.
type PodNetwork struct {
	Gateway netip.Prefix // address and length of the bridge: FLANNEL_SUBNET
	MTU     int          // in bytes: FLANNEL_MTU
}

// AddPod adds a pod as flannel's CNI plugin with its bridge delegate would: the first one brings up the
// bridge cni0 with the gateway address, pods get the addresses after the gateway's, and their default
// route leads to it. Not for several goroutines on one host at once.
func (h *Host) AddPod(ctx context.Context, name string, network PodNetwork) (*Pod, error) {
	return h.AddPodOn(ctx, "cni0", name, network)
}

// AddPodOn is AddPod on a bridge of that name, for a host in several networks.
func (h *Host) AddPodOn(ctx context.Context, bridge, name string, network PodNetwork) (*Pod, error) {
	pod, err := h.addPod(ctx, bridge, name, network)
	if err != nil {
		return nil, fmt.Errorf("add pod %s to host %s: %w", name, h.Name, err)
	}
	return pod, nil
}

func (h *Host) addPod(ctx context.Context, bridge, name string, network PodNetwork) (*Pod, error) {
	mtu := fmt.Sprint(network.MTU)
	addr, first := network.Gateway.Addr().Next(), true
	for _, p := range h.pods {
		if p.bridge == bridge {
			addr, first = addr.Next(), false
		}
	}
	if first {
		if err := h.ip(ctx,
			"link add "+bridge+" type bridge forward_delay 0",
			"link set "+bridge+" mtu "+mtu+" up",
			"addr add "+network.Gateway.String()+" dev "+bridge,
		); err != nil {
			return nil, err
		}
	}
	if !network.Gateway.Contains(addr) {
		return nil, fmt.Errorf("subnet %s is full", network.Gateway)
	}
	node, err := h.lab.addNode(ctx, fmt.Sprintf("p%d%s", h.Number, name))
	if err != nil {
		return nil, err
	}
	if err := h.ip(ctx,
		"link add veth-"+name+" mtu "+mtu+" type veth peer name eth0 mtu "+mtu+" netns "+node.NetNS,
		"link set veth-"+name+" master "+bridge+" up",
	); err != nil {
		return nil, err
	}
	if err := node.ip(ctx,
		fmt.Sprintf("addr add %s/%d dev eth0", addr, network.Gateway.Bits()),
		"link set eth0 up",
		"route add default via "+network.Gateway.Addr().String(),
	); err != nil {
		return nil, err
	}
	pod := &Pod{Node: node, Host: h, Addr: addr, bridge: bridge}
	h.pods = append(h.pods, pod)
	return pod, nil
}
