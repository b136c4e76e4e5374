// Package neighbour is what a daemon tells the other nodes of its network: read-only questions over the overlay, HTTP and
// JSON on TCP. It has both ends: the Server in the daemon, and Ask.
//
// Who may ask, and why over the overlay, is in docs/decisions/peers-answers.md. In short: the server listens at the base
// address of this node's subnet, takes a connection only from the base address of a peer's, from a port that takes root
// there, and from packets that nobody has forwarded; what it tells is about the node and about the one who asks. It
// changes nothing but what it looks at for some seconds.
//
//	GET /v1/about   About
//	GET /v1/peers   Peers
//	POST /v1/trace  sight.Order: look for a packet of the asker's; sight.Armed
//	GET /v1/trace   sight.Report, of what was seen of it
package neighbour

import "time"

// Port is the TCP port, the same on every node.
const Port = 7886

// Paths of the questions.
const (
	AboutPath = "/v1/about"
	PeersPath = "/v1/peers"
)

// About is what a node says of itself, and of the node that asks. Both may be of different versions: fields are added,
// never renamed or removed.
type About struct {
	Version    string     `json:"version"`
	Kernel     string     `json:"kernel"`
	Now        time.Time  `json:"now"`   // its clock, when it answered
	Since      *time.Time `json:"since"` // it carries packets, and counts them, from then on
	PublicIP   string     `json:"public_ip"`
	PublicIPv6 string     `json:"public_ipv6"`
	Subnet     string     `json:"subnet"` // CIDR
	Subnet6    string     `json:"subnet_ipv6"`
	Backend    string     `json:"backend"`
	VNI        *uint32    `json:"vni"` // null for all but vxlan
	Port       uint16     `json:"port"`
	Port6      uint16     `json:"port_ipv6"`
	MTU        int        `json:"mtu"`      // bytes, inner
	VtepMAC    string     `json:"vtep_mac"` // that it takes datagrams for; empty for all but vxlan
	VtepMAC6   string     `json:"vtep_mac_ipv6"`
	PublicKey  string     `json:"public_key"` // empty for all but wireguard

	Drops    map[string]uint64 `json:"drops"`    // packets of everybody, by reason; only reasons that occurred
	Warnings []string          `json:"warnings"` // what its `muslin status` warns of

	You *Peer `json:"you"` // the node that asks, in the family that it asks by
}

// Peer is a peer as the node that answers sees it. Packets and bytes are of inner IP and count from About.Since.
type Peer struct {
	Subnet    string     `json:"subnet"`
	PublicIP  string     `json:"public_ip"`
	Backend   string     `json:"backend"`
	VtepMAC   string     `json:"vtep_mac"`
	TxPackets uint64     `json:"tx_packets"`
	TxBytes   uint64     `json:"tx_bytes"`
	RxPackets uint64     `json:"rx_packets"`
	RxBytes   uint64     `json:"rx_bytes"`
	LastRx    *time.Time `json:"last_rx"` // by its clock; null: nothing yet
	Up        *bool      `json:"up"`      // null: not known
	DownSince *time.Time `json:"down_since"`

	Way       string `json:"way"` // as in `muslin status`
	WayRule   string `json:"way_rule"`
	WayReason string `json:"way_reason"`
	Endpoint  string `json:"endpoint"` // with wireguard: where its datagrams go

	PathMTUState string `json:"path_mtu_state"`
	PathMTU      int    `json:"path_mtu"`

	RTT  *int64   `json:"rtt_us"` // microseconds; null: not known
	Loss *float64 `json:"loss"`   // 0 to 1; null: not known
}

// Peers is what a node says of its peers: those of all families, in the order of their subnets.
type Peers struct {
	Peers []PeerState `json:"peers"`
	More  int         `json:"more"` // are left out: MaxPeers are told at most
}

// MaxPeers is how many peers an answer has at most. It keeps an answer below 200 KiB.
const MaxPeers = 1000

// PeerState is how a node reaches one of its peers.
type PeerState struct {
	Subnet string   `json:"subnet"`
	Up     *bool    `json:"up"`     // null: not known
	RTT    *int64   `json:"rtt_us"` // microseconds; null: not known
	Loss   *float64 `json:"loss"`   // 0 to 1; null: not known
}
