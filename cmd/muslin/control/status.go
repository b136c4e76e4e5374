// Package control is the control socket as others see it: the questions that a daemon answers, what it answers, and how that
// reads for a person. The daemon's end is in cmd/muslin (control.go, view.go, networkstatus.go).
package control

import (
	"fmt"
	"strings"
	"time"

	"muslin/tunnel/kernel"
)

// Status is what `muslin status --output json` prints and what the control socket serves. Others script
// against it: fields are added, never renamed or removed (docs/configuration.md). Counters start at 0
// with the daemon.
type Status struct {
	Version   string            `json:"version"`
	State     string            `json:"state"` // "running", or what the start waits for
	Since     *time.Time        `json:"since"` // running: this process carries packets, and counts them, from then on
	Kernel    string            `json:"kernel"`
	Node      NodeStatus        `json:"node"`
	Store     StoreStatus       `json:"store"`
	Peers     []PeerStatus      `json:"peers"`               // all, unless the question was for some
	Counts    PeerCounts        `json:"peer_counts"`         // of all peers
	Drops     map[string]uint64 `json:"drops"`               // packets, by reason (tunnel/drop.go); only reasons that occurred
	Skipped   map[string]int    `json:"skipped"`             // keys in the store that are no peer of ours, by reason (package lease)
	Completed uint64            `json:"checksums_completed"` // inner packets whose sender had left the checksum to its NIC
	Queues    []QueueStatus     `json:"queues"`              // outbound and inbound of each queue; none where the kernel carries
	Features  []kernel.Feature  `json:"features"`            // in the order of the packet's way
	Warnings  []string          `json:"warnings"`            // sentences for the operator, the worst first
	About     []About           `json:"warnings_about"`      // what each of them is about

	Privileges PrivilegeStatus `json:"privileges"`
	Process    ProcessStatus   `json:"process"`
}

// StateRunning is Status.State once packets are carried.
const StateRunning = "running"

// NodeStatus is this node. Until it has a lease, what comes from the lease is null or empty.
type NodeStatus struct {
	PublicIP     string     `json:"public_ip"`
	Iface        string     `json:"iface"`
	Subnet       string     `json:"subnet"`  // CIDR
	Network      string     `json:"network"` // CIDR of the whole overlay
	MTU          int        `json:"mtu"`     // bytes, inner
	Backend      string     `json:"backend"`
	VNI          *uint32    `json:"vni"` // null for udp
	Port         uint16     `json:"port"`
	VtepMAC      string     `json:"vtep_mac"`   // empty for all but vxlan
	PublicKey    string     `json:"public_key"` // empty for all but wireguard
	TUN          string     `json:"tun"`
	LeaseExpires *time.Time `json:"lease_expires"` // null: a reservation, or a peers file

	// Of IPv6; empty where the network has none.
	PublicIPv6 string `json:"public_ipv6"`
	Subnet6    string `json:"subnet_ipv6"`
	Network6   string `json:"network_ipv6"`
	VtepMAC6   string `json:"vtep_mac_ipv6"`
	TUN6       string `json:"tun_ipv6"`
	Port6      uint16 `json:"port_ipv6"`
}

// StoreStatus is the daemon's view of the store.
type StoreStatus struct {
	Kind      string   `json:"kind"` // "etcd", "embedded-etcd" or "peers-file"
	Endpoints []string `json:"endpoints"`
	Healthy   bool     `json:"healthy"`
	Revision  int64    `json:"revision"` // up to which everything was seen
	LastError string   `json:"last_error"`
}

// PeerStatus is one peer and the traffic exchanged with it, in packets and bytes of inner IP.
type PeerStatus struct {
	Subnet    string     `json:"subnet"`
	PublicIP  string     `json:"public_ip"`
	Backend   string     `json:"backend"`
	VtepMAC   string     `json:"vtep_mac"` // empty for all but vxlan
	TxPackets uint64     `json:"tx_packets"`
	TxBytes   uint64     `json:"tx_bytes"`
	RxPackets uint64     `json:"rx_packets"`
	RxBytes   uint64     `json:"rx_bytes"`
	LastRx    *time.Time `json:"last_rx"` // null: nothing yet
	Up        *bool      `json:"up"`      // it is heard, or answers; null: not known (package tunnel/pulse)
	DownSince *time.Time `json:"down_since"`

	// As echo requests to its subnet's base address tell (package tunnel/pulse).
	RTT  *int64   `json:"rtt_us"` // microseconds, smoothed; null: not known
	Loss *float64 `json:"loss"`   // 0 to 1, of the last minute's or of the last six; null: not known

	// The same node in the other address family: a node of both is two peers, each up or down by itself.
	OtherSubnet string `json:"other_subnet"` // empty: there is none
	OtherUp     *bool  `json:"other_up"`

	Way       string `json:"way"`      // "encapsulated", "direct", "encrypted" or "none" (package tunnel/way)
	WayRule   string `json:"way_rule"` // what decided
	WayReason string `json:"way_reason"`

	// Of the path that datagrams take to it (package tunnel/pathmtu).
	PathMTUState string     `json:"path_mtu_state"` // "full", "smaller", "unknown" if it does not answer; empty: nobody asked
	PathMTU      int        `json:"path_mtu"`       // bytes, inner, of a smaller one; 0: none is known
	PathMTUBy    string     `json:"path_mtu_by"`    // whose word that is: "icmp" a router's, "probe" probes that vanished
	PathMTUSince *time.Time `json:"path_mtu_since"`

	// With wireguard; empty and null otherwise.
	PublicKey     string     `json:"public_key"`
	Endpoint      string     `json:"endpoint"`       // where its datagrams came from last, or where its lease says
	LastHandshake *time.Time `json:"last_handshake"` // null: none yet
}

// PeerCounts are of all peers, whichever the status has. Those of packets and bytes are sums over the peers that there are now: one
// that goes takes its own away.
type PeerCounts struct {
	Total   int            `json:"total"`
	Up      int            `json:"up"`
	Down    int            `json:"down"`
	Unknown int            `json:"unknown"`
	Ways    map[string]int `json:"ways"` // by PeerStatus.Way; only ways that there are

	TxPackets uint64 `json:"tx_packets"`
	TxBytes   uint64 `json:"tx_bytes"`
	RxPackets uint64 `json:"rx_packets"`
	RxBytes   uint64 `json:"rx_bytes"`
}

// PrivilegeStatus is what the daemon may do.
type PrivilegeStatus struct {
	UID          int                `json:"uid"`
	Capabilities []CapabilityStatus `json:"capabilities"`
	NoNewPrivs   bool               `json:"no_new_privs"` // neither it nor a program that it starts can gain a right
	Error        string             `json:"error"`        // why it kept more than it needs
}

// CapabilityStatus is a capability that the daemon has.
type CapabilityStatus struct {
	Name   string `json:"name"`
	Reason string `json:"reason"` // what it is kept for
}

// describe is the capabilities' names, or how many there are while the daemon still starts.
func (p PrivilegeStatus) describe() string {
	if !p.NoNewPrivs {
		return fmt.Sprintf("%d capabilities, most of them for the start only", len(p.Capabilities))
	}
	var names []string
	for _, c := range p.Capabilities {
		names = append(names, c.Name)
	}
	return strings.Join(names, ", ")
}

// ProcessStatus is what the daemon takes of the machine: what should stay as it is while it runs.
type ProcessStatus struct {
	PID         int       `json:"pid"`
	Started     time.Time `json:"started"`
	Goroutines  int       `json:"goroutines"`
	Descriptors int       `json:"descriptors"`    // open files and sockets
	Resident    int64     `json:"resident_bytes"` // memory
}

// About is what a warning is about, for programs.
type About string

// What there is to warn about.
const (
	AboutConfig      About = "config"       // what is legal in the network's config, and hardly meant
	AboutNewConfig   About = "new-config"   // the config in the store is not the one any more that the daemon runs with
	AboutNetwork     About = "network"      // it does not run
	AboutRights      About = "rights"       // the daemon keeps more than it needs
	AboutStore       About = "store"        // the embedded etcd has stopped
	AboutLease       About = "lease"        // this node's cannot be renewed
	AboutConflict    About = "conflict"     // somebody else writes it, or has one for the same addresses
	AboutVanished    About = "vanished"     // leases of other nodes have
	AboutWorker      About = "worker"       // one of the daemon's hangs
	AboutSessions    About = "sessions"     // the kernel does not tell those of WireGuard
	AboutSharedKey   About = "shared-key"   // peers have one WireGuard key
	AboutReversePath About = "reverse-path" // strict rp_filter
	AboutHalfDown    About = "half-down"    // nodes answer by one address family
	AboutEncapsulate About = "encapsulated" // the kernel takes no direct route, and packets are encapsulated
	AboutLeftOut     About = "left-out"     // nor that: peers are not reached
	AboutFirewall    About = "firewall"     // rules of ours that are refused
	AboutObstacle    About = "obstacle"     // rules of others that drop
	AboutRescue      About = "rescue"       // it carries in flannel's place
)

// Warn puts a sentence before the milder ones.
func (s *Status) Warn(about About, sentence string) {
	s.Warnings = append([]string{sentence}, s.Warnings...)
	s.About = append([]About{about}, s.About...)
}

// Mention puts a sentence behind the worse ones.
func (s *Status) Mention(about About, sentence string) {
	s.Warnings, s.About = append(s.Warnings, sentence), append(s.About, about)
}
