package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"muslin/tunnel/fib"
	"muslin/tunnel/host"
	"muslin/tunnel/way"
)

// RouteAnswer is what `muslin route --output json` prints and what the control socket serves. Others script against
// it: fields are added, never renamed or removed (docs/configuration.md).
type RouteAnswer struct {
	Address string       `json:"address"`
	Way     string       `json:"way"`      // routeLocal, routeNone, or as PeerStatus.Way
	Rule    string       `json:"rule"`     // what decided: a rule below, or as PeerStatus.WayRule
	Reason  string       `json:"reason"`   // the same as a sentence
	Subnet  string       `json:"subnet"`   // that holds the address, CIDR; empty: nobody's does
	Peer    *PeerStatus  `json:"peer"`     // null: it is no peer's
	Device  string       `json:"device"`   // that the packet leaves by, as muslin has it; empty: none
	NextHop string       `json:"next_hop"` // where it, or its datagram, is sent to; empty: nowhere else
	MTU     int          `json:"mtu"`      // bytes, of the largest packet that this way takes; 0: there is none
	MTURule string       `json:"mtu_rule"` // what it is: a rule below; empty: there is none
	Kernel  KernelAnswer `json:"kernel"`
	Notes   []string     `json:"notes"` // sentences: where the kernel does something else, what else is to be known
}

// KernelAnswer is what the kernel does with a packet to the address.
type KernelAnswer struct {
	Device  string `json:"device"`
	Gateway string `json:"gateway"` // empty: none
	Source  string `json:"source"`  // of a packet of this host's own
	MTU     int    `json:"mtu"`     // bytes
	Error   string `json:"error"`   // why there is no way; the rest is empty then
}

// Ways of an address that is no peer's, and their rules.
const (
	routeLocal = "local"
	routeNone  = "none"

	ruleOwnSubnet = "own-subnet"
	ruleOutside   = "outside-network"
	ruleNoPeer    = "no-peer"
)

// Rules of RouteAnswer.MTU.
const (
	mtuDevice  = "device"   // the device's that the packet leaves by, or its route's
	mtuOverlay = "overlay"  // the underlay's less what is put around a packet
	mtuPath    = "path-mtu" // a hop on the way to the peer takes less
)

// found reports whether there is a way.
func (a *RouteAnswer) found() bool { return a.Way != routeNone }

func newRouteCommand() *cobra.Command {
	var control, output, name string
	cmd := &cobra.Command{
		Use:   "route ADDRESS",
		Short: "Show which way a packet to an address goes from this node, and why",
		Long: `route asks the running daemon which way a packet to ADDRESS goes from this node: to a container of this node,
directly or encapsulated to a peer, or nowhere; which peer, by which device and next hop, how large it may be, and
which rule decided. Beside that stands what the kernel does with such a packet; where the two differ, it says so.

The exit status is 0 if there is a way, and 1 if there is none.`,
		Example: `  muslin route 10.244.3.7
  muslin route 10.244.3.7 --output json | jq -r '.way, .reason'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			to, err := parseRouteAddress(args[0])
			if err != nil {
				return err
			}
			answer, err := askRoute(cmd.Context(), control, name, to)
			if err != nil {
				return err
			}
			if output == "json" {
				err = printJSON(cmd.OutOrStdout(), answer)
			} else {
				err = answer.print(cmd.OutOrStdout(), time.Now())
			}
			if err == nil && !answer.found() {
				err = fmt.Errorf("no way to %s: %s", answer.Address, answer.Reason)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&control, "control", defaultControl, "unix `socket` of the daemon")
	cmd.Flags().StringVar(&name, "net", "", "where a process runs several networks: the `name` of the one to ask (default: the one that ADDRESS is in)")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

func parseRouteAddress(text string) (netip.Addr, error) {
	to, err := netip.ParseAddr(text)
	if err != nil || to.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%q is not an address: give one such as 10.244.3.7", text)
	}
	return to.Unmap(), nil
}

const routePath = "/v1/route"

func askRoute(ctx context.Context, control, name string, to netip.Addr) (*RouteAnswer, error) {
	var a RouteAnswer
	query := url.Values{"to": {to.String()}}
	if name != "" {
		query.Set("net", name)
	}
	err := askControl(ctx, control, routePath+"?"+query.Encode(), &a)
	return &a, err
}

// serveRoute is the control socket's handler.
func (d *daemon) serveRoute(w http.ResponseWriter, r *http.Request) {
	to, err := parseRouteAddress(r.URL.Query().Get("to"))
	if err != nil {
		http.Error(w, "to: "+err.Error(), http.StatusBadRequest)
		return
	}
	v := d.view.get()
	if !v.running {
		http.Error(w, "it does not carry packets yet ("+v.state+"): try again when `muslin status` says "+stateRunning, http.StatusServiceUnavailable)
		return
	}
	answerJSON(w, v.route(to))
}

// route answers for a daemon that runs.
func (v *viewState) route(to netip.Addr) *RouteAnswer {
	kernel, err := host.RouteTo(to)
	i := 0
	if to.Is6() && v.node.second != nil {
		i = 1
	}
	node := v.node.all()[i]
	q := routeQuestion{
		to: to, network: node.network, subnet: v.member.of(node).Masked(), tun: parts(v.carrier)[i].name(), underlay: node.iface.Name,
		mtu: int(v.mtu), outerMTU: v.node.iface.MTU, port: node.port, kernel: kernel, kernelErr: err,
	}
	if q.peer = v.table().Lookup(to); q.peer != nil {
		status := []PeerStatus{v.peerStatus(q.peer)}
		_ = v.fillSessions(status) // or else the lease says where it is
		q.peerStatus, q.choice = &status[0], v.choice(q.peer)
	}
	return q.answer()
}

// routeQuestion is all that the answer hangs on.
type routeQuestion struct {
	to              netip.Addr
	network, subnet netip.Prefix // the overlay's, ours
	tun, underlay   string       // devices
	mtu             int          // of the TUN device, bytes
	outerMTU        int          // of the underlay's device, as it was at the start
	port            uint16       // of datagrams to peers

	peer       *fib.Peer // that holds the address; nil: none does
	peerStatus *PeerStatus
	choice     way.Choice // with a peer

	kernel    host.KernelRoute
	kernelErr error
}

func (q *routeQuestion) answer() *RouteAnswer {
	a := &RouteAnswer{Address: q.to.String(), Notes: []string{}}
	a.Kernel = KernelAnswer{Device: q.kernel.Device, Gateway: addrText(q.kernel.Gateway), Source: addrText(q.kernel.Source), MTU: q.kernel.MTU}
	if q.kernelErr != nil {
		a.Kernel.Error = q.kernelErr.Error()
	}
	switch {
	case !q.network.Contains(q.to):
		a.Way, a.Rule = routeNone, ruleOutside
		a.Reason = fmt.Sprintf("it does not lie in the overlay %s: muslin has nothing to do with it", q.network)
	case q.subnet.Contains(q.to) && (q.peer == nil || q.peer.Subnet.Bits() <= q.subnet.Bits()):
		q.local(a)
	case q.peer == nil:
		a.Way, a.Rule = routeNone, ruleNoPeer
		a.Reason = "no node of the overlay has a lease for it"
		if q.tun == "" { // host-gw: muslin has no part in what becomes of it
			return a
		}
		a.Reason += "; who sends to it gets ICMP net unreachable"
		q.expect(a, q.kernelErr == nil && q.kernel.Device == q.tun)
	default:
		q.viaPeer(a)
	}
	return a
}

// local is about an address in our own subnet.
func (q *routeQuestion) local(a *RouteAnswer) {
	a.Way, a.Rule, a.Subnet = routeLocal, ruleOwnSubnet, q.subnet.String()
	a.Reason = "it lies in this node's own subnet"
	switch {
	case q.kernelErr == nil && q.kernel.Local:
		a.Device, a.MTU, a.MTURule = q.kernel.Device, q.kernel.MTU, mtuDevice
		a.Notes = append(a.Notes, "it is an address of this host itself")
	case q.kernelErr != nil || q.kernel.Device == q.tun:
		a.Notes = append(a.Notes, "this host has no bridge or route for it: no container has this address here")
	default:
		a.Device, a.NextHop, a.MTU, a.MTURule = q.kernel.Device, addrText(q.kernel.Gateway), q.kernel.MTU, mtuDevice
		q.expect(a, q.kernel.Device != q.underlay)
	}
}

// viaPeer is about an address that a peer has.
func (q *routeQuestion) viaPeer(a *RouteAnswer) {
	a.Way, a.Rule, a.Reason = string(q.choice.Way), string(q.choice.Rule), q.choice.Reason()
	a.Subnet, a.Peer, a.NextHop = q.peer.Subnet.String(), q.peerStatus, q.peer.PublicIP.String()
	switch q.choice.Way {
	case way.None:
		a.NextHop = ""
	case way.Direct:
		q.direct(a)
	default:
		a.Device, a.MTU, a.MTURule = q.tun, q.mtu, mtuOverlay
		if path := q.peerStatus.PathMTU; path != 0 && path < q.mtu {
			a.MTU, a.MTURule = path, mtuPath
			a.Notes = append(a.Notes, q.peerStatus.explainPath())
		}
		a.NextHop = q.peerStatus.Endpoint // of WireGuard
		if a.NextHop == "" {
			a.NextHop = netip.AddrPortFrom(q.peer.PublicIP, cmp.Or(q.peer.Port, q.port)).String()
		}
		q.expect(a, q.kernelErr == nil && q.kernel.Device == q.tun)
	}
	if q.peerStatus.DownSince != nil {
		a.Notes = append(a.Notes, "the peer does not answer: it is down, or cannot be reached")
	}
}

// direct is about a peer that is reached so.
func (q *routeQuestion) direct(a *RouteAnswer) {
	a.Device, a.MTU, a.MTURule = q.underlay, q.outerMTU, mtuDevice
	switch {
	case q.kernelErr == nil && q.kernel.Device == q.underlay && q.kernel.Gateway == q.peer.PublicIP:
		a.MTU = q.kernel.MTU
	case q.kernelErr == nil && q.kernel.Device == q.tun:
		a.Notes = append(a.Notes, "the kernel does not do so: the direct route is missing, and the packet is encapsulated; muslin adds the route again within seconds")
	default:
		q.expect(a, false)
	}
}

// expect notes that the kernel does something else.
func (q *routeQuestion) expect(a *RouteAnswer, same bool) {
	switch {
	case same:
	case q.kernelErr != nil:
		a.Notes = append(a.Notes, fmt.Sprintf("the kernel does not do so: %v (`ip route get %s`)", q.kernelErr, q.to))
	default:
		rules := "ip rule"
		if q.to.Is6() {
			rules = "ip -6 rule"
		}
		a.Notes = append(a.Notes, fmt.Sprintf("the kernel does not do so: it sends by %s, by another program's route or rule that comes first (`ip route get %s`, `%s`)", a.Kernel.describe(), q.to, rules))
	}
}

// describe is the way alone.
func (k *KernelAnswer) describe() string {
	switch {
	case k.Error != "":
		return k.Error
	case k.Gateway != "":
		return k.Device + " via " + k.Gateway
	}
	return k.Device
}

// print writes the answer for a person.
func (a *RouteAnswer) print(w io.Writer, now time.Time) error {
	p := &printer{w: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	p.line("%s: %s", a.Address, a.Way)
	p.line("  because\t%s (%s)", a.Reason, a.Rule)
	if a.Peer != nil {
		p.line("  peer\t%s at %s, %s", a.Peer.Subnet, a.Peer.PublicIP, a.Peer.describeState(now))
	} else if a.Subnet != "" {
		p.line("  subnet\t%s", a.Subnet)
	}
	if a.Device != "" {
		hop := ""
		switch {
		case a.Way == string(way.Encapsulated), a.Way == string(way.Encrypted):
			hop = " in datagrams to " + a.NextHop
		case a.NextHop != "":
			hop = " via " + a.NextHop
		}
		p.line("  leaves by\t%s%s, MTU %d (%s)", a.Device, hop, a.MTU, a.MTURule)
	}
	if a.Kernel.Error != "" {
		p.line("  kernel\t%s", a.Kernel.Error)
	} else {
		p.line("  kernel\t%s, from %s, MTU %d", a.Kernel.describe(), dash(a.Kernel.Source), a.Kernel.MTU)
	}
	for _, note := range a.Notes {
		p.line("  NOTE\t%s", note)
	}
	return p.finish()
}
