//go:build linux

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ReadyTimeout is how long a daemon may take from its start until it is ready, before Patience.
const ReadyTimeout = 30 * time.Second

// readyPort is where the lab's daemons answer /readyz, on their namespace's loopback address.
const readyPort = 8081

// Muslin is a muslin daemon on a host of the lab.
type Muslin struct {
	*Proc
	Host *Host
	Bin  string // of the daemon, and of the commands that ask it

	StateDir   string // --state-dir
	Control    string // --control
	SubnetFile string // --subnet-file
}

// LaunchMuslin starts `muslin run` on the host, with state, control socket and subnet file in the host's
// directory, on interface eth0, and the given flags behind these (of a flag given twice the later
// counts). It does not wait: for daemons that are to fail. Launched again, the daemon finds its state.
func (h *Host) LaunchMuslin(bin string, flags ...string) (*Muslin, error) {
	return h.LaunchMuslinUnder(nil, bin, flags...)
}

// LaunchMuslinUnder is LaunchMuslin with a command in front that ends in an execve of what follows it, such as
// setpriv(1) with its flags.
func (h *Host) LaunchMuslinUnder(wrap []string, bin string, flags ...string) (*Muslin, error) {
	m := h.Muslin(bin)
	p, err := h.Start("muslin", nil, slices.Concat(wrap, h.MuslinArgs(bin), flags)...)
	if err != nil {
		return nil, err
	}
	m.Proc = p
	m.Enlist()
	return m, nil
}

// Enlist has a daemon that was started otherwise than by LaunchMuslin among the lab's Daemons.
func (m *Muslin) Enlist() {
	l := m.Host.lab
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Contains(l.daemons, m) {
		l.daemons = append(l.daemons, m)
	}
}

// Daemons are those that were launched in the lab, in order, the ones that have ended too.
func (l *Lab) Daemons() []*Muslin {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.daemons)
}

// Muslin says where the daemon on this host has its state, without starting one: Proc is nil.
func (h *Host) Muslin(bin string) *Muslin {
	return &Muslin{
		Host:       h,
		Bin:        bin,
		StateDir:   filepath.Join(h.Dir, "state"),
		Control:    filepath.Join(h.Dir, "muslin.sock"),
		SubnetFile: filepath.Join(h.Dir, "subnet.env"),
	}
}

// MuslinArgs is the command with the flags that LaunchMuslin gives to every daemon.
func (h *Host) MuslinArgs(bin string) []string {
	m := h.Muslin(bin)
	return []string{
		bin, "run",
		"--iface", "eth0",
		"--state-dir", m.StateDir,
		"--control", m.Control,
		"--subnet-file", m.SubnetFile,
		"--healthz-ip", "127.0.0.1",
		"--healthz-port", strconv.Itoa(readyPort),
	}
}

// StartMuslin is LaunchMuslin, and waits until the daemon is ready.
func (h *Host) StartMuslin(ctx context.Context, bin string, flags ...string) (*Muslin, error) {
	m, err := h.LaunchMuslin(bin, flags...)
	if err != nil {
		return nil, err
	}
	return m, m.WaitReady(ctx)
}

// WaitReady waits until /readyz answers 200. A daemon that ends before, or is not ready within
// ReadyTimeout, is an error that holds its log.
func (m *Muslin) WaitReady(ctx context.Context) error {
	limit := Patience(ReadyTimeout)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not ready within %v", limit))
	defer cancel()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
			return conn, m.Host.Do(func() error {
				conn, err = new(net.Dialer).DialContext(ctx, network, addr)
				return err
			})
		},
	}}
	url := fmt.Sprintf("http://127.0.0.1:%d/readyz", readyPort)
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if response, err := client.Do(request); err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-m.Done():
			return fmt.Errorf("%s ended with status %d before it was ready; its log:\n%s", m.Name, m.exitStatus(), m.Output())
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w; its log:\n%s", m.Name, context.Cause(ctx), m.Output())
		}
	}
}

// Command runs a muslin subcommand on the host, for example "status". It adds --control.
func (m *Muslin) Command(ctx context.Context, args ...string) (string, error) {
	return m.Host.Run(ctx, append(append([]string{m.Bin}, args...), "--control", m.Control)...)
}

// Status asks the daemon.
func (m *Muslin) Status(ctx context.Context) (*Status, error) {
	out, err := m.Host.Output(ctx, m.Bin, "status", "--output", "json", "--control", m.Control)
	if err != nil {
		return nil, err
	}
	var s Status
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return nil, fmt.Errorf("status of %s: %w in %s", m.Name, err, out)
	}
	return &s, nil
}

// PodNetwork reads the daemon's subnet file.
func (m *Muslin) PodNetwork() (PodNetwork, error) {
	content, err := os.ReadFile(m.SubnetFile)
	if err != nil {
		return PodNetwork{}, err
	}
	network, err := ParseSubnetEnv(string(content))
	if err != nil {
		return PodNetwork{}, fmt.Errorf("subnet file %s: %w", m.SubnetFile, err)
	}
	return network, nil
}

// AddPod adds a pod in the daemon's subnet.
func (m *Muslin) AddPod(ctx context.Context, name string) (*Pod, error) {
	network, err := m.PodNetwork()
	if err != nil {
		return nil, err
	}
	return m.Host.AddPod(ctx, name, network)
}

// ParseSubnetEnv reads a subnet file as flannel's CNI plugin does: KEY=VALUE lines, of which it needs the
// network, the subnet, the MTU and the masquerade flag. It is not the daemon's own reader, so that the two
// check each other.
func ParseSubnetEnv(content string) (PodNetwork, error) {
	values := make(map[string]string)
	for line := range strings.Lines(content) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return PodNetwork{}, fmt.Errorf("line %q is not KEY=VALUE", line)
		}
		values[key] = value
	}
	for _, key := range []string{"FLANNEL_NETWORK", "FLANNEL_SUBNET", "FLANNEL_MTU", "FLANNEL_IPMASQ"} {
		if values[key] == "" {
			return PodNetwork{}, fmt.Errorf("%s is missing", key)
		}
	}
	if _, err := netip.ParsePrefix(values["FLANNEL_NETWORK"]); err != nil {
		return PodNetwork{}, fmt.Errorf("FLANNEL_NETWORK: %w", err)
	}
	gateway, err := netip.ParsePrefix(values["FLANNEL_SUBNET"])
	if err != nil {
		return PodNetwork{}, fmt.Errorf("FLANNEL_SUBNET: %w", err)
	}
	mtu, err := strconv.ParseUint(values["FLANNEL_MTU"], 10, 32)
	if err != nil {
		return PodNetwork{}, fmt.Errorf("FLANNEL_MTU: %w", err)
	}
	return PodNetwork{Gateway: gateway, MTU: int(mtu)}, nil
}

// Status is `muslin status --output json`, an interface that others script against. It is declared here
// a second time on purpose: a daemon that renames a key is caught.
type Status struct {
	Version string `json:"version"`
	Node    struct {
		PublicIP     netip.Addr   `json:"public_ip"`
		Iface        string       `json:"iface"`
		Subnet       netip.Prefix `json:"subnet"`
		MTU          int          `json:"mtu"`
		Backend      string       `json:"backend"`
		VNI          uint32       `json:"vni"`
		Port         uint16       `json:"port"`
		VtepMAC      string       `json:"vtep_mac"`
		PublicKey    string       `json:"public_key"`
		PublicIPv6   string       `json:"public_ipv6"`
		Subnet6      string       `json:"subnet_ipv6"`
		VtepMAC6     string       `json:"vtep_mac_ipv6"`
		TUN6         string       `json:"tun_ipv6"`
		Port6        uint16       `json:"port_ipv6"`
		TUN          string       `json:"tun"`
		LeaseExpires string       `json:"lease_expires"`
	} `json:"node"`
	Store struct {
		Endpoints []string `json:"endpoints"`
		Healthy   bool     `json:"healthy"`
		Revision  int64    `json:"revision"`
		LastError string   `json:"last_error"`
	} `json:"store"`
	Peers   []PeerStatus `json:"peers"`
	Process struct {
		PID         int   `json:"pid"`
		Goroutines  int   `json:"goroutines"`
		Descriptors int   `json:"descriptors"`
		Resident    int64 `json:"resident_bytes"`
	} `json:"process"`
	Drops    map[string]uint64 `json:"drops"`
	Features []struct {
		Name   string `json:"name"`
		On     bool   `json:"on"`
		Reason string `json:"reason"`
	} `json:"features"`
	Privileges struct {
		UID          int `json:"uid"`
		Capabilities []struct {
			Name   string `json:"name"`
			Reason string `json:"reason"`
		} `json:"capabilities"`
		NoNewPrivs bool   `json:"no_new_privs"`
		Error      string `json:"error"`
	} `json:"privileges"`
	Warnings []string `json:"warnings"`
}

// PeerStatus is one of Status.Peers.
type PeerStatus struct {
	Subnet    netip.Prefix `json:"subnet"`
	PublicIP  netip.Addr   `json:"public_ip"`
	Backend   string       `json:"backend"`
	VtepMAC   string       `json:"vtep_mac"`
	TxPackets uint64       `json:"tx_packets"`
	TxBytes   uint64       `json:"tx_bytes"`
	RxPackets uint64       `json:"rx_packets"`
	RxBytes   uint64       `json:"rx_bytes"`
	LastRx    string       `json:"last_rx"`
	Up        *bool        `json:"up"`
	DownSince *time.Time   `json:"down_since"`
	Way       string       `json:"way"`
	WayRule   string       `json:"way_rule"`
	WayReason string       `json:"way_reason"`

	OtherSubnet string `json:"other_subnet"`
	OtherUp     *bool  `json:"other_up"`

	PublicKey     string     `json:"public_key"`
	Endpoint      string     `json:"endpoint"`
	LastHandshake *time.Time `json:"last_handshake"`
}

// Peer is the peer that holds a subnet.
func (s *Status) Peer(subnet netip.Prefix) (p PeerStatus, ok bool) {
	for _, p := range s.Peers {
		if p.Subnet == subnet {
			return p, true
		}
	}
	return PeerStatus{}, false
}
