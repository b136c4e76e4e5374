// Package trace follows one packet: from a pod of this node to an address of the overlay, and the answer back. The packet is
// a real one, sent in the pod's place; the daemons of both ends say where they saw it (package sight). What is made of what
// they saw is in stages.go, in the order of the packet's way.
package trace

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"time"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/neighbour"
	"muslin/cmd/muslin/overlay"
	"muslin/cmd/muslin/ping"
	"muslin/cmd/muslin/sight"
	"muslin/tunnel/host"
	"muslin/tunnel/way"
)

// Options are the command's arguments and flags.
type Options struct {
	Src, Dst netip.Addr
	Proto    string // sight.ICMP, …
	Port     uint16 // of the destination; of TCP and UDP
	Timeout  time.Duration
}

// Trace is what became of the packet.
type Trace struct {
	Src     string `json:"src"`
	Dst     string `json:"dst"`
	Proto   string `json:"proto"`
	Port    uint16 `json:"port"` // 0 with icmp
	Way     string `json:"way"`  // as in `muslin route`
	SentBy  string `json:"sent_by"`
	Steps   []Step `json:"steps"`
	Arrived *bool  `json:"arrived"` // at the destination; null: nobody there tells
	Answer  string `json:"answer"`  // "echo reply", "SYN/ACK", "RST", "port unreachable", "datagram"; empty: none came back
	Stopped string `json:"stopped"` // the stage at which the packet, or its answer, was lost; empty: nowhere
	Reason  string `json:"reason"`
	Fix     string `json:"fix"`

	Here     *sight.Report `json:"here"`  // what was seen on this node
	There    *sight.Report `json:"there"` // and on the destination's; null: it does not tell
	ThereWhy string        `json:"there_why"`
}

// Step is one stage of the way.
type Step struct {
	Stage string `json:"stage"`
	Node  string `json:"node"`  // "here", or "there": the destination's
	State string `json:"state"` // Passed, Lost, Unknown
	Text  string `json:"text"`
	Fix   string `json:"fix"` // what to do; of Lost, and of Unknown at which it ends
}

// States of a Step.
const (
	Passed  = "passed"
	Lost    = "lost"
	Unknown = "unknown"
)

// Good reports whether the packet went all the way, and its answer came back where one is to be expected.
func (t *Trace) Good() bool { return t.Stopped == "" }

// evidence is all that the stages are made of.
type evidence struct {
	packet  sight.Packet
	how     string // of sending: fromPod, fromHost, inPlace
	space   string
	sendErr error

	route *control.RouteAnswer // this node's, to the destination
	node  control.NodeStatus
	drops map[string]uint64 // of this node, of everybody

	here     *sight.Report
	there    *sight.Report // nil: it does not tell
	thereErr error

	outer    host.KernelRoute // to the peer's PublicIP
	outerErr error
	alive    *bool // the peer's PublicIP answers pings in the underlay; nil: not asked
}

// Run follows a packet.
func Run(ctx context.Context, n *overlay.Network, o Options) (*Trace, error) {
	if err := fromHere(n, o.Src); err != nil {
		return nil, err
	}
	if !n.Contains(o.Dst) {
		return nil, fmt.Errorf("%s does not lie in the overlay %s: muslin has no part in what becomes of a packet to it. Of a service's address, trace to the containers behind it; of one outside, `ip route get %[1]s` and the masquerade rules (`nft list ruleset`, `iptables -t nat -S POSTROUTING`) say how it leaves", o.Dst, n.Networks())
	}
	route, err := control.AskRoute(ctx, n.Socket, n.Name, o.Dst)
	if err != nil {
		return nil, err
	}
	s, err := newSender(o.Src, o.Dst, o.Proto, o.Port)
	if err != nil {
		return nil, err
	}
	defer s.close()
	e := &evidence{packet: s.packet, how: s.how, space: s.space, route: route, node: n.Node, drops: n.Drops}
	w := &watches{network: n, order: sight.Order{Packet: s.packet, Seconds: min(o.Timeout+4*time.Second, sight.MaxWatch).Seconds()}}
	e.thereErr = w.armThere(ctx, route.Peer)
	if errors.Is(e.thereErr, neighbour.ErrLate) {
		e.thereErr = w.armThere(ctx, route.Peer)
	}
	if err := w.armHere(ctx); err != nil { // after the peer, which may take its time
		return nil, err
	}
	if e.sendErr = s.send(); e.sendErr == nil {
		if err := w.wait(ctx, o.Timeout); err != nil {
			return nil, err
		}
	}
	for try := 0; try == 0 || try == 1 && errors.Is(err, context.DeadlineExceeded); try++ { // it is busy
		e.here, err = w.seenHere(ctx, true)
	}
	if err != nil {
		return nil, err
	}
	if e.thereErr == nil {
		e.there, e.thereErr = w.seenThere(ctx)
	}
	e.lookAround(ctx)
	return e.trace(o), nil
}

// fromHere refuses a source whose node is another one.
func fromHere(n *overlay.Network, src netip.Addr) error {
	if !n.Contains(src) {
		own := ""
		if a := n.Own(src.Is6()); a.IsValid() {
			own = ", " + a.String()
		}
		return fmt.Errorf("%s does not lie in the overlay %s: give the address of a container of this node, or this node's own%s, which masquerading also makes the source of a packet from outside", src, n.Networks(), own)
	}
	to, err := host.RouteTo(src)
	if err == nil && (to.Local || to.Device != n.Node.TUN && to.Device != n.Node.TUN6 && to.Device != n.Node.Iface) {
		return nil // whatever the leases say
	}
	place := n.At(src)
	switch {
	case place.Peer != nil:
		return fmt.Errorf("%s is on another node, %s: run `muslin trace %s …` there", src, place.Peer.PublicIP, src)
	case !place.Own:
		return fmt.Errorf("%s is on no node: nobody has a lease for it (`muslin leases list`)", src)
	}
	return fmt.Errorf("%s lies in this node's subnet %s, but no route here leads to a container with that address: is its bridge up? (`ip route get %s`)", src, n.Subnet(src.Is6()), src)
}

// watches are the two that look for the packet.
type watches struct {
	network     *overlay.Network
	order       sight.Order
	here, there string // their names
	question    overlay.Question
}

func (w *watches) path(id string, end bool) string {
	query := url.Values{}
	if id != "" {
		query.Set("id", id)
	}
	if end {
		query.Set("end", "true")
	}
	return sight.Path + "?" + query.Encode()
}

// local is path for the control socket, of several networks of the one.
func (w *watches) local(id string, end bool) string {
	if w.network.Name == "" {
		return w.path(id, end)
	}
	return w.path(id, end) + "&" + url.Values{"net": {w.network.Name}}.Encode()
}

func (w *watches) armHere(ctx context.Context) error {
	var armed sight.Armed
	err := control.Order(ctx, w.network.Socket, w.local("", false), w.order, &armed)
	w.here = armed.ID
	return err
}

var errNoPeer = errors.New("the destination is on no other node")

func (w *watches) armThere(ctx context.Context, p *control.PeerStatus) error {
	if p == nil {
		return errNoPeer
	}
	questions := w.network.Asked(p)
	if len(questions) == 0 {
		return ping.ErrHostGateway
	}
	// Both families at once: where one carries nothing, that would take seconds. The slower one comes to its end by itself: the
	// other node would not hear of it when it is broken off (neighbour's packets are of a TTL that a kernel's own RST has not),
	// and send its answer for minutes.
	ctx = context.WithoutCancel(ctx)
	type answer struct {
		of  int
		id  string
		err error
	}
	answers := make(chan answer, len(questions))
	for i, q := range questions {
		go func() {
			var armed sight.Armed
			err := neighbour.Tell(ctx, q.From, q.To, sight.Path, w.order, &armed)
			answers <- answer{i, armed.ID, err}
		}()
	}
	var why error // by the packet's own family, if by none
	for range questions {
		a := <-answers
		if a.err == nil {
			w.there, w.question = a.id, questions[a.of]
			return nil
		}
		if why == nil || a.of == 0 {
			why = a.err
		}
	}
	return why
}

func (w *watches) seenHere(ctx context.Context, end bool) (*sight.Report, error) {
	var r sight.Report
	return &r, control.Ask(ctx, w.network.Socket, w.local(w.here, end), &r)
}

// seenThere asks the other node what it has seen: twice, as one that is busy, or just puts its firewall rules back, may not
// answer in time. It keeps what it saw for that.
func (w *watches) seenThere(ctx context.Context) (*sight.Report, error) {
	var r sight.Report
	var err error
	for range 2 {
		ctx, cancel := context.WithTimeout(ctx, 2*neighbour.Patience)
		err = neighbour.Ask(ctx, w.question.From, w.question.To, w.path(w.there, true), &r)
		cancel()
		if err == nil {
			return &r, nil
		}
		if !errors.Is(err, neighbour.ErrLate) && !errors.Is(err, neighbour.ErrSilent) {
			break
		}
	}
	return nil, fmt.Errorf("it was to look for the packet, and does not say what it saw: %w", err)
}

// wait waits until the answer is where the packet came from, or for so long.
func (w *watches) wait(ctx context.Context, long time.Duration) error {
	const step = 20 * time.Millisecond
	for end := time.Now().Add(long); time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(step):
		}
		r, err := w.seenHere(ctx, false)
		if err != nil {
			return err
		}
		if returned(r) != nil {
			time.Sleep(5 * step) // what the other end has seen has come in there, too
			return nil
		}
	}
	return nil
}

// lookAround looks at what lies below the overlay, where the packet may have been lost there.
func (e *evidence) lookAround(ctx context.Context) {
	p := e.route.Peer
	if p == nil {
		return
	}
	to, err := netip.ParseAddr(p.PublicIP)
	if err != nil {
		return
	}
	if p.Endpoint != "" {
		if at, err := netip.ParseAddrPort(p.Endpoint); err == nil {
			to = at.Addr()
		}
	}
	e.outer, e.outerErr = host.RouteTo(to)
	if e.there == nil && returned(e.here) == nil && e.route.Way != string(way.None) {
		e.alive = ping.Alive(ctx, to, time.Second)
	}
}
