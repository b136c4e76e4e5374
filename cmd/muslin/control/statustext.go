package control

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"muslin/cmd/muslin/text"
	"muslin/lease"
	"muslin/tunnel"
	"muslin/tunnel/pathmtu"
	"muslin/tunnel/way"
)

// describeSince says from when on the counters count.
func (s *Status) describeSince(now time.Time) string {
	if s.Since == nil {
		return ""
	}
	return fmt.Sprintf(", and counting, for %s", now.Sub(*s.Since).Round(time.Second))
}

// print writes the status for a person, with so many peers at most, 0 for all.
func (s *Status) Print(w io.Writer, now time.Time, most int) error {
	p := text.NewPrinter(w)
	p.Line("muslin %s: %s%s", s.Version, s.State, s.describeSince(now))
	for _, warning := range s.Warnings {
		p.Line("WARNING: %s", warning)
	}
	n := s.Node
	title := "\nnode"
	for _, h := range n.halves() {
		p.Line("%s\t%s on %s\tsubnet %s of %s\tMTU %d", title, text.Dash(h.publicIP), text.Dash(n.Iface), text.Dash(h.subnet), text.Dash(h.network), n.MTU)
		title = ""
	}
	p.Line("\t%s\tlease %s\tkernel %s", n.DescribeBackend(), n.DescribeLease(now), s.Kernel)
	p.Line("store\t%s %s\t%s\trevision %d", s.Store.Kind, strings.Join(s.Store.Endpoints, ","), s.HealthWord(), s.Store.Revision)
	if s.Store.LastError != "" {
		p.Line("\t%s", s.Store.LastError)
	}
	p.Line("user\t%d with %s", s.Privileges.UID, s.Privileges.describe())
	p.Line("\n%d peers%s%s", len(s.Peers), s.describeDirect(), s.describeDown())
	if len(s.Peers) > 0 {
		p.Line("  SUBNET\tPUBLIC IP\tBACKEND\tWAY\tSTATE\tSENT\tRECEIVED\tLAST HEARD")
	}
	listed := heardLast(s.Peers, most)
	for _, peer := range listed {
		p.Line("  %s\t%s\t%s\t%s\t%s\t%d pkt %s\t%d pkt %s\t%s", peer.Subnet, peer.PublicIP, peer.Backend, peer.Way, peer.DescribeState(now)+peer.describeQuality()+peer.describePath(now),
			peer.TxPackets, text.Bytes(peer.TxBytes), peer.RxPackets, text.Bytes(peer.RxBytes), text.Ago(now, peer.LastRx))
	}
	if rest := len(s.Peers) - len(listed); rest > 0 {
		p.Line("  and %d more; all of them: muslin status --peers 0", rest)
	}
	counts(p, "drops", s.Drops, tunnel.ExplainDrop)
	counts(p, "leases not used", s.Skipped, lease.ExplainSkip)
	printQueues(p, s.Queues)
	p.Line("\nfeatures")
	for _, f := range s.Features {
		p.Line("  %s\t%s\t%s", f.Name, text.OnOff(f.On), f.Reason)
	}
	return p.Finish()
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

func (p *PeerStatus) DescribeState(now time.Time) string {
	switch {
	case p.DownSince != nil && p.PublicKey != "" && p.LastHandshake == nil:
		return "DOWN for " + now.Sub(*p.DownSince).Round(time.Second).String() + ", no handshake yet"
	case p.DownSince != nil && p.OtherUp != nil && *p.OtherUp:
		return "DOWN for " + now.Sub(*p.DownSince).Round(time.Second).String() + ", up by " + p.OtherFamily()
	case p.DownSince != nil:
		return "DOWN for " + now.Sub(*p.DownSince).Round(time.Second).String()
	case p.Up == nil:
		return "not known"
	}
	return "up"
}

// Family is a peer's address family, and OtherFamily the other one.
func (p *PeerStatus) Family() string {
	if strings.Contains(p.Subnet, ":") {
		return "IPv6"
	}
	return "IPv4"
}

func (p *PeerStatus) OtherFamily() string {
	if p.Family() == "IPv4" {
		return "IPv6"
	}
	return "IPv4"
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

// DescribeBackend is the backend with what it is set to.
func (n *NodeStatus) DescribeBackend() string {
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
		return text.Dash(n.Backend)
	}
	return fmt.Sprintf("%s port %d", text.Dash(n.Backend), n.Port)
}

// DescribeLease is when the lease expires.
func (n *NodeStatus) DescribeLease(now time.Time) string {
	switch {
	case n.Subnet == "" && n.Subnet6 == "":
		return "none yet"
	case n.LeaseExpires == nil:
		return "does not expire"
	}
	return "expires in " + n.LeaseExpires.Sub(now).Round(time.Minute).String()
}

// counts prints a table of counters with what each means.
func counts[N int | uint64](p *text.Printer, title string, by map[string]N, explain func(string) string) {
	if len(by) == 0 {
		p.Line("\n%s: none", title)
		return
	}
	p.Line("\n%s", title)
	for _, name := range slices.Sorted(maps.Keys(by)) {
		p.Line("  %s\t%d\t%s", name, by[name], explain(name))
	}
}

// HealthWord is whether the store is in order.
func (s *Status) HealthWord() string {
	switch {
	case s.Store.Healthy:
		return "healthy"
	case s.State != StateRunning:
		return "not watched yet"
	}
	return "NOT IN ORDER: peers stay as last known"
}

// describeQuality is what stands behind a peer's state: the round trip, where it is known, and loss, where there is any.
func (p *PeerStatus) describeQuality() string {
	quality := ""
	if p.RTT != nil {
		quality = ", " + text.Millis(*p.RTT)
	}
	if p.Loss != nil && *p.Loss > 0 && p.DownSince == nil {
		quality += ", " + text.Percent(*p.Loss) + " lost"
	}
	return quality
}

// describePath is what stands behind a peer's state; empty: there is nothing to be said of its path.
func (p *PeerStatus) describePath(now time.Time) string {
	text := ""
	if p.PathMTU != 0 {
		text = fmt.Sprintf(", MTU %d (%s)", p.PathMTU, p.PathMTUBy)
	}
	switch p.PathMTUState {
	case string(pathmtu.Smaller):
		text += " for " + now.Sub(*p.PathMTUSince).Round(time.Second).String()
	case string(pathmtu.Unknown):
		text += ", path MTU not known"
	}
	return text
}

// ExplainPath says why the MTU towards a peer is smaller than the overlay's.
func (p *PeerStatus) ExplainPath() string {
	who := "probes vanish that are longer: a hop on the way takes less, and does not say so by ICMP"
	if p.PathMTUBy == string(pathmtu.ICMP) {
		who = "a router on the way has said so by ICMP"
	}
	return fmt.Sprintf("the path to %s takes inner packets of up to %d bytes: %s", p.PublicIP, p.PathMTU, who)
}
