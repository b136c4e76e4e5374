package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"muslin/lease"
	"muslin/tunnel"
	"muslin/tunnel/kernel"
	"muslin/tunnel/way"
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
	Peers     []PeerStatus      `json:"peers"`
	Drops     map[string]uint64 `json:"drops"`               // packets, by reason (tunnel/drop.go); only reasons that occurred
	Skipped   map[string]int    `json:"skipped"`             // keys in the store that are no peer of ours, by reason (package lease)
	Completed uint64            `json:"checksums_completed"` // inner packets whose sender had left the checksum to its NIC
	Features  []kernel.Feature  `json:"features"`            // in the order of the packet's way
	Warnings  []string          `json:"warnings"`            // sentences for the operator, the worst first

	Privileges PrivilegeStatus `json:"privileges"`
	Process    ProcessStatus   `json:"process"`
}

// stateRunning is Status.State once packets are carried.
const stateRunning = "running"

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

// someLines is how many peers the text lists unless told otherwise: what a person reads.
const someLines = 50

func newStatusCommand() *cobra.Command {
	var control, output, name string
	var most int
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show this node, its peers, and what was dropped and why",
		Long: `status asks the running daemon: this node and its lease, the store, every peer with its traffic, the
packets that were dropped by reason, and the features that this kernel gives. Of many peers the text lists those
that were heard of last.

With --output json the fields are an interface to script against; they are listed in
docs/configuration.md.`,
		Example: `  muslin status
  muslin status --peers 0
  muslin status --output json | jq '.drops'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			if most < 0 {
				return fmt.Errorf("--peers %d: want 0 for all, or how many to list at most", most)
			}
			var status interface {
				print(w io.Writer, now time.Time, most int) error
			}
			status, err := askNetwork(cmd.Context(), control, name)
			if errors.Is(err, errSeveral) {
				all := new(Networks)
				status, err = all, askControl(cmd.Context(), control, networksPath, all)
			}
			if err != nil {
				return err
			}
			if output == "json" {
				return printJSON(cmd.OutOrStdout(), status)
			}
			return status.print(cmd.OutOrStdout(), time.Now(), most)
		},
	}
	cmd.Flags().StringVar(&control, "control", defaultControl, "unix `socket` of the daemon")
	cmd.Flags().StringVar(&name, "net", "", "where a process runs several networks: the `name` of the one to show (default: all)")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cmd.Flags().IntVar(&most, "peers", someLines, "how many peers the text lists at `most`; 0: all")
	return cmd
}

// describeSince says from when on the counters count.
func (s *Status) describeSince(now time.Time) string {
	if s.Since == nil {
		return ""
	}
	return fmt.Sprintf(", and counting, for %s", now.Sub(*s.Since).Round(time.Second))
}

// print writes the status for a person, with so many peers at most, 0 for all.
func (s *Status) print(w io.Writer, now time.Time, most int) error {
	p := &printer{w: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	p.line("muslin %s: %s%s", s.Version, s.State, s.describeSince(now))
	for _, warning := range s.Warnings {
		p.line("WARNING: %s", warning)
	}
	n := s.Node
	title := "\nnode"
	for _, h := range n.halves() {
		p.line("%s\t%s on %s\tsubnet %s of %s\tMTU %d", title, dash(h.publicIP), dash(n.Iface), dash(h.subnet), dash(h.network), n.MTU)
		title = ""
	}
	p.line("\t%s\tlease %s\tkernel %s", n.describeBackend(), n.describeLease(now), s.Kernel)
	p.line("store\t%s %s\t%s\trevision %d", s.Store.Kind, strings.Join(s.Store.Endpoints, ","), s.healthWord(), s.Store.Revision)
	if s.Store.LastError != "" {
		p.line("\t%s", s.Store.LastError)
	}
	p.line("user\t%d with %s", s.Privileges.UID, s.Privileges.describe())
	p.line("\n%d peers%s%s", len(s.Peers), s.describeDirect(), s.describeDown())
	if len(s.Peers) > 0 {
		p.line("  SUBNET\tPUBLIC IP\tBACKEND\tWAY\tSTATE\tSENT\tRECEIVED\tLAST HEARD")
	}
	listed := heardLast(s.Peers, most)
	for _, peer := range listed {
		p.line("  %s\t%s\t%s\t%s\t%s\t%d pkt %s\t%d pkt %s\t%s", peer.Subnet, peer.PublicIP, peer.Backend, peer.Way, peer.describeState(now)+peer.describePath(now),
			peer.TxPackets, bytesText(peer.TxBytes), peer.RxPackets, bytesText(peer.RxBytes), ago(now, peer.LastRx))
	}
	if rest := len(s.Peers) - len(listed); rest > 0 {
		p.line("  and %d more; all of them: muslin status --peers 0", rest)
	}
	counts(p, "drops", s.Drops, tunnel.ExplainDrop)
	counts(p, "leases not used", s.Skipped, lease.ExplainSkip)
	p.line("\nfeatures")
	for _, f := range s.Features {
		p.line("  %s\t%s\t%s", f.Name, onOff(f.On), f.Reason)
	}
	return p.finish()
}

// describeDirect says how many peers packets get to without being encapsulated.
func (s *Status) describeDirect() string {
	n := 0
	for _, p := range s.Peers {
		if p.Way == string(way.Direct) {
			n++
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(", %d direct", n)
}

// describeDown says how many peers are down.
func (s *Status) describeDown() string {
	down := 0
	for _, p := range s.Peers {
		if p.DownSince != nil {
			down++
		}
	}
	if down == 0 {
		return ""
	}
	return fmt.Sprintf(", %d DOWN", down)
}

func (p *PeerStatus) describeState(now time.Time) string {
	switch {
	case p.DownSince != nil && p.PublicKey != "" && p.LastHandshake == nil:
		return "DOWN for " + now.Sub(*p.DownSince).Round(time.Second).String() + ", no handshake yet"
	case p.DownSince != nil && p.OtherUp != nil && *p.OtherUp:
		return "DOWN for " + now.Sub(*p.DownSince).Round(time.Second).String() + ", up by " + p.otherFamily()
	case p.DownSince != nil:
		return "DOWN for " + now.Sub(*p.DownSince).Round(time.Second).String()
	case p.Up == nil:
		return "not known"
	}
	return "up"
}

// family is a peer's address family, and otherFamily the other one.
func (p *PeerStatus) family() string {
	if strings.Contains(p.Subnet, ":") {
		return "IPv6"
	}
	return "IPv4"
}

func (p *PeerStatus) otherFamily() string {
	if p.family() == "IPv4" {
		return "IPv6"
	}
	return "IPv4"
}

// warnHalfDown is a sentence about nodes that answer by one address family only; empty: there are none. Such a node is
// alive, so it is the path.
func warnHalfDown(peers []PeerStatus) string {
	n, first := 0, ""
	for _, p := range peers {
		if p.DownSince == nil || p.OtherUp == nil || !*p.OtherUp {
			continue
		}
		if n++; n == 1 {
			first = fmt.Sprintf("%s at %s does not answer, while %s of the same node does: look for what drops %s between the two nodes (a firewall, or a path without it)",
				p.Subnet, p.PublicIP, p.OtherSubnet, p.family())
		}
	}
	if n > 1 {
		return fmt.Sprintf("%s; %d more nodes answer by one family only", first, n-1)
	}
	return first
}

// heardLast picks the peers that were heard of last, so many at most, and leaves them in their order.
func heardLast(peers []PeerStatus, most int) []PeerStatus {
	if most == 0 || len(peers) <= most {
		return peers
	}
	byTime := make([]int, len(peers))
	for i := range byTime {
		byTime[i] = i
	}
	slices.SortStableFunc(byTime, func(a, b int) int { return peers[b].heard().Compare(peers[a].heard()) })
	var picked []PeerStatus
	for _, i := range slices.Sorted(slices.Values(byTime[:most])) {
		picked = append(picked, peers[i])
	}
	return picked
}

// heard is the zero time for a peer that was never heard of.
func (p *PeerStatus) heard() time.Time {
	if p.LastRx == nil {
		return time.Time{}
	}
	return *p.LastRx
}

// nodeHalf is what a node has of one address family.
type nodeHalf struct{ publicIP, subnet, network string }

// halves are those of the families that the network has: of IPv4 also as long as that is not known.
func (n *NodeStatus) halves() []nodeHalf {
	four, six := nodeHalf{n.PublicIP, n.Subnet, n.Network}, nodeHalf{n.PublicIPv6, n.Subnet6, n.Network6}
	switch {
	case six == nodeHalf{}:
		return []nodeHalf{four}
	case four == nodeHalf{}:
		return []nodeHalf{six}
	}
	return []nodeHalf{four, six}
}

func (n *NodeStatus) describeBackend() string {
	if n.VNI != nil {
		macs := slices.DeleteFunc([]string{n.VtepMAC, n.VtepMAC6}, func(mac string) bool { return mac == "" })
		return fmt.Sprintf("%s VNI %d port %d MAC %s", n.Backend, *n.VNI, n.Port, strings.Join(macs, " and "))
	}
	if n.PublicKey != "" {
		ports := fmt.Sprintf("port %d", n.Port)
		if n.Port6 != 0 && n.Port6 != n.Port {
			ports = fmt.Sprintf("ports %d and %d", n.Port, n.Port6)
		}
		return fmt.Sprintf("%s %s key %s", n.Backend, ports, n.PublicKey)
	}
	if n.Port == 0 { // host-gw, or not known yet
		return dash(n.Backend)
	}
	return fmt.Sprintf("%s port %d", dash(n.Backend), n.Port)
}

func (n *NodeStatus) describeLease(now time.Time) string {
	switch {
	case n.Subnet == "" && n.Subnet6 == "":
		return "none yet"
	case n.LeaseExpires == nil:
		return "does not expire"
	}
	return "expires in " + n.LeaseExpires.Sub(now).Round(time.Minute).String()
}

// counts prints a table of counters with what each means.
func counts[N int | uint64](p *printer, title string, by map[string]N, explain func(string) string) {
	if len(by) == 0 {
		p.line("\n%s: none", title)
		return
	}
	p.line("\n%s", title)
	for _, name := range slices.Sorted(maps.Keys(by)) {
		p.line("  %s\t%d\t%s", name, by[name], explain(name))
	}
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "OFF"
}

func (s *Status) healthWord() string {
	switch {
	case s.Store.Healthy:
		return "healthy"
	case s.State != stateRunning:
		return "not watched yet"
	}
	return "NOT IN ORDER: peers stay as last known"
}

func ago(now time.Time, t *time.Time) string {
	if t == nil {
		return "never"
	}
	return now.Sub(*t).Round(time.Second).String() + " ago"
}

// bytesText is n in the largest binary unit that leaves at least 1.
func bytesText(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), 0
	for value >= 1024 && unit < 5 {
		value /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", value, " KMGTP"[unit])
}

func prefixText(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
