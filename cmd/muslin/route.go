package main

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/text"
	"muslin/tunnel/fib"
	"muslin/tunnel/host"
	"muslin/tunnel/way"
)

func newRouteCommand() *cobra.Command {
	var output string
	var who asked
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
			if err := text.CheckOutput(output); err != nil {
				return err
			}
			to, err := control.ParseAddress(args[0])
			if err != nil {
				return err
			}
			answer, err := control.AskRoute(cmd.Context(), who.socket, who.net, to)
			if err != nil {
				return err
			}
			if output == "json" {
				err = text.JSON(cmd.OutOrStdout(), answer)
			} else {
				err = answer.Print(cmd.OutOrStdout(), time.Now())
			}
			if err == nil && !answer.Found() {
				err = fmt.Errorf("no way to %s: %s", answer.Address, answer.Reason)
			}
			return err
		},
	}
	who.register(cmd.Flags(), "the one that ADDRESS is in")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

// serveRoute is the control socket's handler.
func (d *daemon) serveRoute(w http.ResponseWriter, r *http.Request) {
	to, err := control.ParseAddress(r.URL.Query().Get("to"))
	if err != nil {
		http.Error(w, "to: "+err.Error(), http.StatusBadRequest)
		return
	}
	v := d.view.get()
	if !v.running {
		http.Error(w, "it does not carry packets yet ("+v.state+"): try again when `muslin status` says "+control.StateRunning, http.StatusServiceUnavailable)
		return
	}
	answerJSON(w, v.route(to))
}

// route answers for a daemon that runs.
func (v *viewState) route(to netip.Addr) *control.RouteAnswer {
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
	t := v.table()
	if q.peer = t.Lookup(to); q.peer != nil {
		g := v.glance(q.peer)
		status := []control.PeerStatus{v.peerStatus(t, g)}
		sessions, _ := v.sessions() // or else the lease says where it is
		sessions.fill(status)
		q.peerStatus, q.choice = &status[0], g.choice
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
	peerStatus *control.PeerStatus
	choice     way.Choice // with a peer

	kernel    host.KernelRoute
	kernelErr error
}

func (q *routeQuestion) answer() *control.RouteAnswer {
	a := &control.RouteAnswer{Address: q.to.String(), Notes: []string{}}
	a.Kernel = control.KernelAnswer{Device: q.kernel.Device, Gateway: text.Addr(q.kernel.Gateway), Source: text.Addr(q.kernel.Source), MTU: q.kernel.MTU}
	if q.kernelErr != nil {
		a.Kernel.Error = q.kernelErr.Error()
	}
	switch {
	case !q.network.Contains(q.to):
		a.Way, a.Rule = control.WayNone, control.RuleOutside
		a.Reason = fmt.Sprintf("it does not lie in the overlay %s: muslin has nothing to do with it", q.network)
	case q.subnet.Contains(q.to) && (q.peer == nil || q.peer.Subnet.Bits() <= q.subnet.Bits()):
		q.local(a)
	case q.peer == nil:
		a.Way, a.Rule = control.WayNone, control.RuleNoPeer
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
func (q *routeQuestion) local(a *control.RouteAnswer) {
	a.Way, a.Rule, a.Subnet = control.WayLocal, control.RuleOwnSubnet, q.subnet.String()
	a.Reason = "it lies in this node's own subnet"
	switch {
	case q.kernelErr == nil && q.kernel.Local:
		a.Device, a.MTU, a.MTURule = q.kernel.Device, q.kernel.MTU, control.MTUDevice
		a.Notes = append(a.Notes, "it is an address of this host itself")
	case q.kernelErr != nil || q.kernel.Device == q.tun:
		a.Notes = append(a.Notes, "this host has no bridge or route for it: no container has this address here")
	default:
		a.Device, a.NextHop, a.MTU, a.MTURule = q.kernel.Device, text.Addr(q.kernel.Gateway), q.kernel.MTU, control.MTUDevice
		q.expect(a, q.kernel.Device != q.underlay)
	}
}

// viaPeer is about an address that a peer has.
func (q *routeQuestion) viaPeer(a *control.RouteAnswer) {
	a.Way, a.Rule, a.Reason = string(q.choice.Way), string(q.choice.Rule), q.choice.Reason()
	a.Subnet, a.Peer, a.NextHop = q.peer.Subnet.String(), q.peerStatus, q.peer.PublicIP.String()
	switch q.choice.Way {
	case way.None:
		a.NextHop = ""
	case way.Direct:
		q.direct(a)
	default:
		a.Device, a.MTU, a.MTURule = q.tun, q.mtu, control.MTUOverlay
		if path := q.peerStatus.PathMTU; path != 0 && path < q.mtu {
			a.MTU, a.MTURule = path, control.MTUPath
			a.Notes = append(a.Notes, q.peerStatus.ExplainPath())
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
func (q *routeQuestion) direct(a *control.RouteAnswer) {
	a.Device, a.MTU, a.MTURule = q.underlay, q.outerMTU, control.MTUDevice
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
func (q *routeQuestion) expect(a *control.RouteAnswer, same bool) {
	switch {
	case same:
	case q.kernelErr != nil:
		a.Notes = append(a.Notes, fmt.Sprintf("the kernel does not do so: %v (`ip route get %s`)", q.kernelErr, q.to))
	default:
		rules := "ip rule"
		if q.to.Is6() {
			rules = "ip -6 rule"
		}
		a.Notes = append(a.Notes, fmt.Sprintf("the kernel does not do so: it sends by %s, by another program's route or rule that comes first (`ip route get %s`, `%s`)", a.Kernel.Describe(), q.to, rules))
	}
}
