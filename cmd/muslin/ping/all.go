package ping

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/neighbour"
	"muslin/cmd/muslin/overlay"
	"muslin/cmd/muslin/text"
)

// How the mesh is gone through, whatever its size.
const (
	perSecond  = 200 // requests, to all peers together
	atOnce     = 16  // peers that are asked what they see
	maxAsked   = 200 // of them
	maxColumns = 24  // of the matrix as text; with more, what is out of order is listed
)

// Mesh is how the nodes reach each other.
type Mesh struct {
	Nodes []Node `json:"nodes"` // this one first
	Links []Link `json:"links"` // from a node's row to another: those of nodes that tell
	More  int    `json:"more"`  // peers that were not asked what they see, as there are too many
}

// Node is one, in one address family: a node of both is two.
type Node struct {
	Subnet   string `json:"subnet"`
	PublicIP string `json:"public_ip"`
	Own      bool   `json:"own"`
	Tells    bool   `json:"tells"` // it runs muslin and says what it sees
	Why      string `json:"why"`   // it does not
}

// Link is how one node sees another one.
type Link struct {
	From  string   `json:"from"` // subnets
	To    string   `json:"to"`
	Up    *bool    `json:"up"`     // null: not known
	RTT   *float64 `json:"rtt_us"` // microseconds; null: not known, or no answer
	Loss  *float64 `json:"loss"`   // 0 to 1; null: not known
	Stats *Stats   `json:"stats"`  // of what this node has sent itself; null: the node says so
}

// All pings every peer, and asks each how it sees the others.
func All(ctx context.Context, n *overlay.Network, o Options) (*Mesh, error) {
	m := &Mesh{Nodes: []Node{}, Links: []Link{}}
	for _, six := range []bool{false, true} {
		if own := n.Subnet(six); own.IsValid() {
			publicIP := n.Node.PublicIP
			if six {
				publicIP = n.Node.PublicIPv6
			}
			m.Nodes = append(m.Nodes, Node{Subnet: own.String(), PublicIP: publicIP, Own: true, Tells: true})
		}
	}
	pingers := make(map[bool]*pinger)
	for i := range n.Peers {
		a := n.NodeOf(&n.Peers[i])
		m.Nodes = append(m.Nodes, Node{Subnet: n.Peers[i].Subnet, PublicIP: n.Peers[i].PublicIP})
		if pingers[a.Is6()] == nil {
			p, err := newPinger(n.Own(a.Is6()), a.Is6())
			if err != nil {
				return nil, err
			}
			defer p.close()
			pingers[a.Is6()] = p
		}
	}
	m.Links = pingAll(ctx, n, pingers, o)
	told, more := askPeers(ctx, n, m.answering())
	m.More = more
	m.add(n, told)
	return m, nil
}

// answering are the subnets that have answered a request.
func (m *Mesh) answering() map[string]bool {
	all := make(map[string]bool)
	for _, l := range m.Links {
		if l.Stats != nil && l.Stats.Received > 0 {
			all[l.To] = true
		}
	}
	return all
}

// pingAll sends each peer its requests, in rounds. A round does not wait for the answers of the one before, so that a dead peer
// holds nobody up.
func pingAll(ctx context.Context, n *overlay.Network, pingers map[bool]*pinger, o Options) []Link {
	echoes := make([][]Echo, len(n.Peers)) // of each round, written to by one goroutine
	for i := range echoes {
		echoes[i] = make([]Echo, o.Count)
		for round := range echoes[i] {
			echoes[i][round].Why = stopped
		}
	}
	var wait sync.WaitGroup
	for round := 0; round < o.Count && ctx.Err() == nil; round++ {
		began := time.Now()
		for i := range n.Peers {
			if !sleep(ctx.Done(), time.Second/perSecond) {
				break
			}
			wait.Go(func() {
				to := n.NodeOf(&n.Peers[i])
				size := o.Size
				if size == 0 {
					size = DefaultSize + headersOf(to) - headers4
				}
				e := pingers[to.Is6()].echo(ctx, to, size, o.Timeout)
				e.Seq = round + 1
				echoes[i][round] = e
			})
		}
		if round+1 < o.Count {
			sleep(ctx.Done(), o.Interval-time.Since(began))
		}
	}
	wait.Wait()
	links := []Link{}
	for i := range n.Peers {
		stats := summarize(echoes[i], 0)
		if stats.Sent == 0 {
			continue
		}
		to := n.Peers[i].Subnet
		link := Link{From: n.Subnet(isIPv6(to)).String(), To: to, Loss: &stats.Loss, Stats: &stats}
		up := stats.Received > 0
		if link.Up = &up; up {
			link.RTT = &stats.Avg
		}
		links = append(links, link)
	}
	return links
}

func isIPv6(subnet string) bool { return strings.Contains(subnet, ":") }

// telling is what a peer says of its peers, or why it says nothing.
type telling struct {
	states []neighbour.PeerState
	why    error
}

var errNoPing = errors.New("it answered no ping, and so was not asked")

// askPeers asks each node once, and returns what it says under each of its subnets. A node that answered no ping, by neither
// family, is not asked: each of many would be waited for.
func askPeers(ctx context.Context, n *overlay.Network, answering map[string]bool) (told map[string]telling, more int) {
	told = make(map[string]telling)
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(atOnce)
	asked := make(map[string]bool)
	for i := range n.Peers {
		p := &n.Peers[i]
		if asked[p.OtherSubnet] {
			continue // the same node
		}
		asked[p.Subnet] = true
		if len(asked) > maxAsked {
			more++
			continue
		}
		g.Go(func() error {
			t := telling{why: errNoPing}
			if answering[p.Subnet] || answering[p.OtherSubnet] {
				t = askStates(ctx, n, p)
			}
			mu.Lock()
			defer mu.Unlock()
			told[p.Subnet] = t
			if p.OtherSubnet != "" {
				told[p.OtherSubnet] = t
			}
			return nil
		})
	}
	_ = g.Wait() // which has no error
	return told, more
}

func askStates(ctx context.Context, n *overlay.Network, p *control.PeerStatus) telling {
	t := telling{why: ErrHostGateway}
	for _, q := range n.Asked(p) {
		var all neighbour.Peers
		if t.why = neighbour.Ask(ctx, q.From, q.To, neighbour.PeersPath, &all); t.why == nil {
			t.states = all.Peers
			break
		}
	}
	return t
}

// add puts what the peers say to what we have seen.
func (m *Mesh) add(n *overlay.Network, told map[string]telling) {
	for i := range m.Nodes {
		node := &m.Nodes[i]
		if node.Own {
			continue
		}
		t, asked := told[node.Subnet]
		switch {
		case !asked:
			node.Why = "not asked: there are too many"
			continue
		case t.why != nil:
			node.Why = reason(t.why)
			continue
		}
		node.Tells = true
		for _, s := range t.states {
			if isIPv6(s.Subnet) != isIPv6(node.Subnet) {
				continue
			}
			link := Link{From: node.Subnet, To: s.Subnet, Up: s.Up, Loss: s.Loss}
			if s.RTT != nil {
				us := float64(*s.RTT)
				link.RTT = &us
			}
			m.Links = append(m.Links, link)
		}
	}
}

// reason is an error that is to be expected in a few words.
func reason(err error) string {
	for _, known := range []error{neighbour.ErrNobody, neighbour.ErrSilent, neighbour.ErrLate, neighbour.ErrRights} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return err.Error()
}

// Answered reports whether every peer answered every request of ours.
func (m *Mesh) Answered() bool {
	for _, l := range m.Links {
		if l.Stats != nil && l.Stats.Received < l.Stats.Sent {
			return false
		}
	}
	return true
}

// Print writes the mesh as a matrix for each address family, or where it is too large for that, what is out of order.
func (m *Mesh) Print(w io.Writer) error {
	between := ""
	for _, six := range []bool{false, true} {
		var nodes []Node
		for _, node := range m.Nodes {
			if isIPv6(node.Subnet) == six {
				nodes = append(nodes, node)
			}
		}
		if len(nodes) < 2 {
			continue
		}
		if _, err := io.WriteString(w, between); err != nil {
			return err
		}
		if err := m.matrix(w, nodes); err != nil {
			return err
		}
		between = "\n"
	}
	return m.silent(w)
}

func (m *Mesh) matrix(w io.Writer, nodes []Node) error {
	links := make(map[[2]string]*Link, len(m.Links))
	for i := range m.Links {
		links[[2]string{m.Links[i].From, m.Links[i].To}] = &m.Links[i]
	}
	p := text.NewPrinter(w)
	if len(nodes) > maxColumns {
		p.Line("%d nodes: what is out of order, from and to (all of it: --output json)", len(nodes))
		bad := 0
		for i := range m.Links {
			l := &m.Links[i]
			if isIPv6(l.From) == isIPv6(nodes[0].Subnet) && l.bad() {
				bad++
				p.Line("  %s	%s	%s", l.From, l.To, l.cell())
			}
		}
		if bad == 0 {
			p.Line("  nothing: of %d nodes that tell", countTelling(nodes))
		}
		return p.Finish()
	}
	head := "from / to, ms"
	for _, to := range nodes {
		head += "	" + base(to.Subnet)
	}
	p.Line("%s", head)
	for _, from := range nodes {
		if !from.Tells {
			continue
		}
		row := from.Subnet
		if from.Own {
			row += " (this node)"
		}
		for _, to := range nodes {
			cell := "?"
			if l := links[[2]string{from.Subnet, to.Subnet}]; l != nil {
				cell = l.cell()
			} else if from.Subnet == to.Subnet {
				cell = "-"
			}
			row += "	" + cell
		}
		p.Line("%s", row)
	}
	return p.Finish()
}

// countTelling is how many of the nodes tell.
func countTelling(nodes []Node) (n int) {
	for _, node := range nodes {
		if node.Tells {
			n++
		}
	}
	return n
}

func base(subnet string) string {
	if p, err := netip.ParsePrefix(subnet); err == nil {
		return p.Addr().String()
	}
	return subnet
}

func (l *Link) bad() bool { return l.Up != nil && !*l.Up || l.Loss != nil && *l.Loss > 0 }

// cell is a link in a word.
func (l *Link) cell() string {
	word := "?"
	switch {
	case l.Up != nil && !*l.Up:
		return "DOWN"
	case l.RTT != nil:
		word = ms(*l.RTT)
	case l.Up != nil:
		word = "up"
	}
	if l.Loss != nil && *l.Loss > 0 {
		word += " LOSS " + percent(*l.Loss)
	}
	return word
}

// silent says which nodes have no row, by the reasons.
func (m *Mesh) silent(w io.Writer) error {
	var order []string
	by := make(map[string][]string)
	for _, node := range m.Nodes {
		if node.Tells {
			continue
		}
		if by[node.Why] == nil {
			order = append(order, node.Why)
		}
		by[node.Why] = append(by[node.Why], node.Subnet)
	}
	for _, why := range order {
		names := by[why]
		more := ""
		if len(names) > 5 {
			more = fmt.Sprintf(" and %d more", len(names)-5)
			names = names[:5]
		}
		if _, err := fmt.Fprintf(w, "\nno row of %s%s: %s\n", strings.Join(names, ", "), more, why); err != nil {
			return err
		}
	}
	return nil
}
