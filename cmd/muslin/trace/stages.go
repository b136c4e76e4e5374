package trace

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/neighbour"
	"muslin/cmd/muslin/sight"
	"muslin/lease"
	"muslin/tunnel/way"
)

// Stages, in the order of the way.
const (
	StagePod         = "pod"          // it was sent
	StageHost        = "host"         // it came to a device of this host
	StageRoute       = "route"        // the kernel has a way for it
	StageForward     = "forward"      // the kernel took it from the one device to the other
	StageTable       = "table"        // the daemon knows who has the destination
	StageEncapsulate = "encapsulate"  // its datagram was sent
	StageUnderlay    = "underlay"     // the kernel has a way for the datagram
	StageReceive     = "receive"      // it came there
	StageCheck       = "check"        // the daemon there let it in
	StageForwardPeer = "forward-peer" // the kernel there took it to the destination's device
	StageDeliver     = "deliver"      // the destination has answered
	StageReturn      = "return"       // the answer left that node
	StageReceiveBack = "receive-back" // it came here
	StageDeliverBack = "deliver-back" // and to where the packet came from
)

// way is what the packet takes.
func (e *evidence) way() string { return e.route.Way }

func (e *evidence) tun() string { return cmp.Or(e.here.Ground.TUN, e.node.TUN) }

// first is the first sighting of a kind; nil: there is none.
func first(r *sight.Report, what string, want func(*sight.Sighting) bool) *sight.Sighting {
	if r == nil {
		return nil
	}
	for i := range r.Sightings {
		if s := &r.Sightings[i]; s.What == what && want(s) {
			return s
		}
	}
	return nil
}

func atPoint(point string, inbound bool) func(*sight.Sighting) bool {
	return func(s *sight.Sighting) bool { return s.Point == point && s.Inbound == inbound }
}

// atDevice is at a device; of none of the excluded.
func atDevice(inbound bool, but ...string) func(*sight.Sighting) bool {
	return func(s *sight.Sighting) bool {
		return s.Point == sight.Device && s.Inbound == inbound && !slices.Contains(but, s.Device)
	}
}

func at(device string, inbound bool) func(*sight.Sighting) bool {
	return func(s *sight.Sighting) bool {
		return s.Point == sight.Device && s.Inbound == inbound && s.Device == device
	}
}

// returned is the answer, or the destination's own error, where the packet came from; nil: there is none.
func returned(r *sight.Report) *sight.Sighting {
	if r == nil {
		return nil
	}
	for i := range r.Sightings {
		s := &r.Sightings[i]
		fromDst := s.What == sight.Answer || s.What == sight.Error && s.Src == r.Dst.String()
		if !fromDst || s.Point != sight.Device {
			continue
		}
		if s.Device == r.Ground.TUN || s.Device == r.Ground.Underlay {
			if s.Inbound && hostsOwn(r) {
				return s
			}
			continue
		}
		if !s.Inbound {
			return s
		}
	}
	return nil
}

// hostsOwn reports whether the packet was this host's own: no device but the overlay's and the underlay's saw it come in.
func hostsOwn(r *sight.Report) bool {
	return first(r, sight.Itself, atDevice(true, r.Ground.TUN, r.Ground.Underlay)) == nil
}

// devices names those at which something was seen, in the order of time, once each.
func devices(r *sight.Report, what string, inbound bool, but ...string) string {
	var names []string
	for i := range r.Sightings {
		s := &r.Sightings[i]
		if s.What == what && atDevice(inbound, but...)(s) && !slices.Contains(names, s.Device) {
			names = append(names, s.Device)
		}
	}
	return strings.Join(names, ", ")
}

// trace makes the steps, until one at which the packet is lost.
func (e *evidence) trace(o Options) *Trace {
	t := &Trace{Src: o.Src.String(), Dst: o.Dst.String(), Proto: o.Proto, Port: o.Port, Way: e.way(), SentBy: e.how, Here: e.here, There: e.there, Steps: []Step{}}
	if e.thereErr != nil {
		t.ThereWhy = e.thereErr.Error()
	}
	back := returned(e.here)
	if back != nil {
		t.Answer = back.Says
	}
	forged := e.forged()
	for _, stage := range []func(*evidence) *Step{pod, arrival, route, forward, table, encapsulate, underlay, receive, check, forwardPeer, deliver, goBack, receiveBack, deliverBack} {
		s := stage(e)
		if s == nil {
			continue
		}
		if s.State == Lost && s.Stage == forged {
			s.Text += "; a host answers in the destination's name: the rule rejects it (reject with tcp reset)"
		} else if s.State != Passed && back != nil { // it was on the way nevertheless
			s.State, s.Fix = Passed, ""
			if s.Stage != StageReceive || e.there != nil {
				continue
			}
			s.Text = "it came there, as it was answered; more the other node does not tell: " + t.ThereWhy
		}
		t.Steps = append(t.Steps, *s)
		if s.State != Passed {
			t.Stopped, t.Reason, t.Fix = s.Stage, s.Text, s.Fix
			break
		}
	}
	t.Arrived = e.arrived()
	return t
}

// forged is the stage at which a host answers in the destination's place, as a rule of its firewall that rejects TCP has it: the
// packet went no further, and an RST came nevertheless. Empty: none does, or nobody tells.
func (e *evidence) forged() string {
	anything := func(*sight.Sighting) bool { return true }
	if back := returned(e.here); back == nil || back.Says != sight.RST || e.route.Peer == nil {
		return ""
	}
	came := func(s *sight.Sighting) bool {
		return s.Inbound && (s.Point != sight.Device || s.Device == e.here.Ground.TUN || s.Device == e.here.Ground.Underlay)
	}
	if want := e.leaves(); e.here.Devices && first(e.here, sight.Answer, came) == nil && first(e.here, sight.Itself, at(want, false)) == nil {
		return StageForward
	}
	if e.there == nil || !e.there.Devices || e.there.Ground.Local || first(e.there, sight.Itself, anything) == nil {
		return ""
	}
	if g := &e.there.Ground; first(e.there, sight.Itself, atDevice(false, g.TUN, g.Underlay)) == nil && replied(e.there) == nil {
		return StageForwardPeer
	}
	return ""
}

// arrived is whether the destination got it; nil: nobody tells.
func (e *evidence) arrived() *bool {
	yes := returned(e.here) != nil && e.forged() == ""
	switch {
	case yes:
	case e.forged() != "":
	case e.there != nil:
		g := &e.there.Ground
		yes = first(e.there, sight.Answer, func(*sight.Sighting) bool { return true }) != nil ||
			first(e.there, sight.Itself, atDevice(false, g.TUN, g.Underlay)) != nil
	case e.route.Peer != nil:
		return nil
	default:
		yes = e.way() == control.WayLocal && first(e.here, sight.Itself, atDevice(false, e.tun(), e.here.Ground.Underlay)) != nil
	}
	return &yes
}

func passed(stage, node, format string, args ...any) *Step {
	return &Step{Stage: stage, Node: node, State: Passed, Text: fmt.Sprintf(format, args...)}
}

func lost(stage, node, fix, format string, args ...any) *Step {
	return &Step{Stage: stage, Node: node, State: Lost, Text: fmt.Sprintf(format, args...), Fix: fix}
}

const (
	here  = "here"
	there = "there"
)

func pod(e *evidence) *Step {
	if e.sendErr != nil {
		who, where := "the pod", "in its network namespace "+e.space
		if e.how != fromPod {
			who, where = "this host", "here"
		}
		switch {
		case errors.Is(e.sendErr, unix.ENETUNREACH), errors.Is(e.sendErr, unix.EHOSTUNREACH):
			return lost(StagePod, here, fmt.Sprintf("`ip route get %s` %s: it wants a default route to the bridge's address, or one to the overlay", e.packet.Dst, where),
				"%s has no route to %s", who, e.packet.Dst)
		case errors.Is(e.sendErr, unix.EPERM):
			return lost(StagePod, here, "`nft list ruleset` "+where, "%s has a firewall that refuses it (OUTPUT)", who)
		}
		return lost(StagePod, here, "look at the device and the addresses "+where, "%s cannot send it: %v", who, e.sendErr)
	}
	switch e.how {
	case fromPod:
		return passed(StagePod, here, "sent by the pod %s, from its network namespace (%s)", e.packet.Src, e.space)
	case fromHost:
		return passed(StagePod, here, "sent by this host, whose address %s is", e.packet.Src)
	}
	return passed(StagePod, here, "sent by this host in the name of %s, as no network namespace here has that address: what the pod itself does, PREROUTING and FORWARD are left out", e.packet.Src)
}

func arrival(e *evidence) *Step {
	if e.how != fromPod {
		return nil
	}
	if !e.here.Devices {
		return passed(StageHost, here, "devices are not looked at: the daemon had no right to a packet socket (CAP_NET_RAW) at its start")
	}
	if names := devices(e.here, sight.Itself, true, e.tun(), e.here.Ground.Underlay); names != "" {
		if e.offBridge() && first(e.here, sight.Itself, atDevice(false)) == nil {
			g := &e.here.Ground
			return lost(StageHost, here, fmt.Sprintf("`ip link set DEVICE master %s up`, or have what runs containers do so; `ip route get %s`", cmp.Or(g.Source, "BRIDGE"), e.packet.Src),
				"it came to this host by %s, and not to %s, where the route to %s leads: the pod's device is on no bridge, or on another one", names, cmp.Or(g.Source, "any device"), e.packet.Src)
		}
		return passed(StageHost, here, "came to this host by %s", names)
	}
	if g := &e.here.Ground; e.way() == control.WayLocal && g.Device == g.Source {
		return lost(StageDeliver, here, fmt.Sprintf("is the container there? `ip neigh show %s`, and what runs containers here", e.packet.Dst),
			"nobody on %s has the address %s: the pod, on the same link, asked, and no container answered", g.Device, e.packet.Dst)
	}
	return lost(StageHost, here, fmt.Sprintf("in the pod `ip neigh` must know the gateway; here `ip link` must show the pod's veth and its bridge up, and `ip addr` the gateway's address on the bridge (is it that of FLANNEL_SUBNET?); `ip -n` or `nsenter --net=%s` looks into the pod", e.space),
		"it left the pod, and came to no device of this host: the pod's device, its bridge, or the gateway's address")
}

// offBridge reports whether the packet came by a device that no answer to its source goes to. What goes to a pod on the same
// bridge is seen at the two pods' devices alone.
func (e *evidence) offBridge() bool {
	g := &e.here.Ground
	return e.how == fromPod && g.Device != g.Source && first(e.here, sight.Itself, at(g.Source, true)) == nil
}

// route is the kernel's, to the destination.
func route(e *evidence) *Step {
	g := &e.here.Ground
	switch {
	case g.Error != "":
		return lost(StageRoute, here, "`ip route`: the route of the overlay is missing; the daemon puts it back within seconds, so look at what takes it away (`muslin status`, the log)", "the kernel has no route: %s", g.Error)
	case e.way() == control.WayLocal && g.Device == e.tun():
		return lost(StageRoute, here, "is the bridge of the pods up, and has it the address of FLANNEL_SUBNET? `ip addr`, `ip route`",
			"%s lies in this node's own subnet, and no pod route here leads to it: the kernel gives it to %s", e.packet.Dst, g.Device)
	}
	want := e.leaves()
	if want != "" && g.Device != want {
		return lost(StageRoute, here, fmt.Sprintf("`ip route get %s`, `ip rule`: take the other program's route away", e.packet.Dst),
			"the kernel sends to %s by %s, and not by %s: another program's route or rule comes first", e.packet.Dst, g.Device, want)
	}
	return passed(StageRoute, here, "the kernel's route: %s", describeRoute(g.Device, g.Gateway))
}

func describeRoute(device, gateway string) string {
	if gateway == "" {
		return "dev " + device
	}
	return "via " + gateway + " dev " + device
}

// leaves is the device that the packet should leave this host by; empty: any.
func (e *evidence) leaves() string {
	switch e.way() {
	case string(way.Direct):
		return e.here.Ground.Underlay
	case control.WayLocal:
		return ""
	}
	return e.tun()
}

// forward is from the pod's device to the one that it leaves by. What the host sends itself goes through OUTPUT instead.
func forward(e *evidence) *Step {
	want := e.leaves()
	if !e.here.Devices || e.here.Ground.Local {
		return nil
	}
	if want == "" {
		return forwardLocal(e)
	}
	if s := first(e.here, sight.Itself, at(want, false)); s != nil {
		if s.Src != e.packet.Src.String() {
			return passed(StageForward, here, "the kernel gave it to %s, with the source %s in place of %s: a masquerade rule takes packets between the overlay's subnets, too (`nft list ruleset`, `iptables -t nat -S POSTROUTING`)",
				want, s.Src, e.packet.Src)
		}
		return passed(StageForward, here, "the kernel gave it to %s", want)
	}
	if s := first(e.here, sight.Itself, atDevice(false, want)); s != nil && e.how != fromPod {
		return lost(StageForward, here, fmt.Sprintf("`ip route get %s from %s`, `ip rule`", e.packet.Dst, e.packet.Src), "it left by %s, and not by %s", s.Device, want)
	}
	return stuck(StageForward, here, e.here, e.packet.Dst.Is6(), e.how == fromPod)
}

// forwardLocal is to a pod of this node.
func forwardLocal(e *evidence) *Step {
	if names := devices(e.here, sight.Itself, false, e.tun(), e.here.Ground.Underlay); names != "" {
		return passed(StageForward, here, "the kernel gave it to %s", names)
	}
	if s := absent(StageDeliver, here, e.here, e.packet.Dst.String()); s != nil {
		return s
	}
	return stuck(StageForward, here, e.here, e.packet.Dst.Is6(), true)
}

// stuck says why a kernel did not forward a packet.
func stuck(stage, node string, r *sight.Report, six, forwards bool) *Step {
	g := &r.Ground
	sysctl := "net.ipv4.ip_forward"
	if six {
		sysctl = "net.ipv6.conf.all.forwarding"
	}
	complaint := ""
	if s := first(r, sight.Error, func(s *sight.Sighting) bool { return s.Src != r.Dst.String() }); s != nil {
		complaint = fmt.Sprintf("; %s says: %s", s.Src, s.Says)
	}
	switch {
	case forwards && !g.Forwards:
		return lost(stage, node, "`sysctl -w "+sysctl+"=1`", "the kernel forwards nothing: %s is 0%s", sysctl, complaint)
	case g.RPFilter != "":
		return lost(stage, node, "`sysctl -w "+strings.ReplaceAll(g.RPFilter, "/", ".")+"=2`", "the kernel drops it, as its source's route leads elsewhere and %s is strict%s", strings.ReplaceAll(g.RPFilter, "/", "."), complaint)
	case len(g.Warnings) > 0:
		return lost(stage, node, "the command in that sentence, on that node; `muslin doctor` there has it alone, and says what else is wrong", "the kernel does not forward it%s: %s", complaint, strings.Join(g.Warnings, "; "))
	case !forwards:
		return lost(stage, node, "`nft list ruleset`, `iptables -S OUTPUT`", "the kernel did not send it: a rule in OUTPUT or POSTROUTING drops it%s", complaint)
	}
	return lost(stage, node, "`nft list ruleset`, `iptables -S FORWARD`, `iptables-legacy -S FORWARD`: accept what comes from and goes to the overlay",
		"the kernel does not forward it: a rule in PREROUTING, FORWARD or POSTROUTING drops it%s", complaint)
}

// absent says that nobody on the destination's device has its address; nil: it is not known.
func absent(stage, node string, r *sight.Report, dst string) *Step {
	g := &r.Ground
	if g.Local || g.Neighbour != "failed" && g.Neighbour != "incomplete" {
		return nil
	}
	return lost(stage, node, fmt.Sprintf("is the container there, on that node? On it: `ip neigh show %s`, and what runs containers there", dst),
		"nobody on %s has the address %s: the kernel there asked, and no container answered", g.Device, dst)
}

// table is the daemon's: who has the destination.
func table(e *evidence) *Step {
	p := e.route.Peer
	if p == nil && e.way() == string(way.None) {
		return lost(StageTable, here, "`muslin leases list`: is there a node that should have the subnet, and does its daemon run?", "%s", e.route.Reason)
	}
	if s := first(e.here, sight.Itself, atPoint(sight.Drop, false)); s != nil && s.OuterDst == "" {
		return lost(StageTable, here, fixOf(s.Reason, e), "the daemon dropped it (%s): %s", s.Reason, s.Means)
	}
	switch {
	case e.way() == control.WayLocal:
		return nil
	case e.way() == string(way.None):
		return lost(StageTable, here, "`muslin route "+e.packet.Dst.String()+"`", "%s", e.route.Reason)
	}
	who := fmt.Sprintf("%s is held by the node %s at %s: %s, as %s", e.packet.Dst, p.Subnet, p.PublicIP, e.way(), e.route.Reason)
	if e.here.DataPath && e.way() != string(way.Direct) && first(e.here, sight.Itself, atPoint(sight.Inner, false)) == nil {
		return lost(StageTable, here, "`muslin status`: is the daemon well, and does tun-overflow grow among its drops?", "the kernel gave it to the TUN device, and the daemon has not read it")
	}
	return passed(StageTable, here, "%s", who)
}

func encapsulate(e *evidence) *Step {
	p := e.route.Peer
	switch {
	case p == nil, e.way() == string(way.Direct), e.way() == control.WayLocal:
		return nil
	case !e.here.DataPath:
		return passed(StageEncapsulate, here, "the kernel's WireGuard encrypts it to %s%s", p.Endpoint, handshake(p))
	case !e.here.OuterSeen:
		return passed(StageEncapsulate, here, "the daemon's WireGuard encrypts it to %s%s", p.Endpoint, handshake(p))
	}
	if s := first(e.here, sight.Itself, atPoint(sight.Drop, false)); s != nil {
		return lost(StageEncapsulate, here, fixOf(s.Reason, e), "its datagram to %s was not sent (%s): %s", s.OuterDst, s.Reason, s.Means)
	}
	s := first(e.here, sight.Itself, atPoint(sight.Outer, false))
	if s == nil {
		return lost(StageEncapsulate, here, "`muslin status`", "no datagram was sent for it")
	}
	what := "the packet as it is"
	if e.node.Backend == lease.BackendVXLAN && e.node.VNI != nil {
		what = fmt.Sprintf("VXLAN, VNI %d, to the MAC %s", *e.node.VNI, p.VtepMAC)
	}
	return passed(StageEncapsulate, here, "sent in %d bytes of UDP (%s) from %s to %s", s.Bytes, what, s.OuterSrc, s.OuterDst)
}

func handshake(p *control.PeerStatus) string {
	if p.LastHandshake == nil {
		return ", with which there was no handshake yet"
	}
	return ", last handshake " + p.LastHandshake.Format("15:04:05 MST")
}

func underlay(e *evidence) *Step {
	p := e.route.Peer
	switch {
	case p == nil:
		return nil
	case e.outerErr != nil:
		return lost(StageUnderlay, here, "`ip route get "+p.PublicIP+"`", "the kernel has no way to the node: %v", e.outerErr)
	case e.outer.Local:
		return lost(StageUnderlay, here, "two nodes have one PublicIP: give one of them another --public-ip", "%s, the PublicIP of the other node, is an address of this host", p.PublicIP)
	}
	gateway := ""
	if e.outer.Gateway.IsValid() {
		gateway = e.outer.Gateway.String()
	}
	return passed(StageUnderlay, here, "to %s the kernel goes %s", p.PublicIP, describeRoute(e.outer.Device, gateway))
}

// receive is at the other node. Where that one does not tell, all that can be said from here is said at this stage.
func receive(e *evidence) *Step {
	if e.route.Peer == nil {
		return nil
	}
	if e.there == nil {
		return e.beyond()
	}
	r := e.there
	anything := first(r, sight.Itself, func(*sight.Sighting) bool { return true })
	if anything == nil {
		return lost(StageReceive, there, e.fixUnderlay(), "it did not come to the other node, which can be asked over the overlay: lost on the underlay, or dropped by the firewall of that node before its daemon")
	}
	if s := first(r, sight.Itself, atPoint(sight.Outer, true)); s != nil {
		return passed(StageReceive, there, "received from %s at %s", s.OuterSrc, cmp.Or(s.OuterDst, "its port"))
	}
	if s := first(r, sight.Itself, atDevice(true)); s != nil {
		return passed(StageReceive, there, "came in by %s", s.Device)
	}
	return passed(StageReceive, there, "received")
}

func check(e *evidence) *Step {
	if e.there == nil {
		return nil
	}
	if s := first(e.there, sight.Itself, atPoint(sight.Drop, true)); s != nil {
		return lost(StageCheck, there, fixOf(s.Reason, e), "the daemon there dropped it (%s): %s", s.Reason, s.Means)
	}
	s := first(e.there, sight.Itself, atPoint(sight.Inner, true))
	if s == nil {
		return nil // it came past the daemon
	}
	return passed(StageCheck, there, "framing, sender (%s) and destination are in order: handed to %s", e.there.Ground.SourceCheck, e.there.Ground.TUN)
}

func forwardPeer(e *evidence) *Step {
	if e.there == nil || !e.there.Devices {
		return nil
	}
	g := &e.there.Ground
	switch {
	case g.Local:
		return passed(StageForwardPeer, there, "the address is that node's own")
	case g.Error != "", g.Device == g.TUN:
		return lost(StageForwardPeer, there, fmt.Sprintf("on that node: has the bridge of the containers the address of FLANNEL_SUBNET, and is it up? `ip route get %s`", e.packet.Dst),
			"no route there leads to a container with the address %s: the bridge is missing or down", e.packet.Dst)
	}
	if names := devices(e.there, sight.Itself, false, g.TUN, g.Underlay); names != "" {
		return passed(StageForwardPeer, there, "the kernel there (route dev %s) gave it to %s", g.Device, names)
	}
	if s := absent(StageDeliver, there, e.there, e.packet.Dst.String()); s != nil {
		return s
	}
	return stuck(StageForwardPeer, there, e.there, e.packet.Dst.Is6(), true)
}

// replied is the answer, or the destination's own error, as it left the destination.
func replied(r *sight.Report) *sight.Sighting {
	if r == nil {
		return nil
	}
	g := &r.Ground
	want := atDevice(true, g.TUN, g.Underlay)
	if g.Local {
		want = atDevice(false)
	}
	if s := first(r, sight.Answer, want); s != nil {
		return s
	}
	return first(r, sight.Error, func(s *sight.Sighting) bool { return want(s) && s.Src == r.Dst.String() })
}

func deliver(e *evidence) *Step {
	r, node := e.there, there
	if e.way() == control.WayLocal {
		r, node = e.here, here
	}
	if r == nil || !r.Devices {
		return nil
	}
	if s := replied(r); s != nil {
		return passed(StageDeliver, node, "the destination answered: %s%s", s.Says, meaning(s.Says))
	}
	if r.Ground.Local && returned(e.here) != nil {
		return passed(StageDeliver, node, "the destination answered")
	}
	if e.packet.Proto == sight.UDP {
		return passed(StageDeliver, node, "delivered; a datagram needs no answer, and none came")
	}
	if s := absent(StageDeliver, node, r, e.packet.Dst.String()); s != nil {
		return s
	}
	return lost(StageDeliver, node, "look inside the container: its firewall, whether its address is the one that was meant, and for tcp whether its program still accepts",
		"it was delivered, and the destination does not answer")
}

func meaning(says string) string {
	switch says {
	case sight.RST:
		return ": nothing listens at that port, and the way is in order"
	case "port unreachable":
		return ": nothing listens at that port, and the way is in order"
	}
	return ""
}

// goBack is the answer on its way out of the other node.
func goBack(e *evidence) *Step {
	if e.there == nil || !e.there.Devices || replied(e.there) == nil {
		return nil
	}
	r := e.there
	left := func(s *sight.Sighting) bool {
		return (s.Point == sight.Outer || s.Point == sight.Inner) && !s.Inbound || s.Point == sight.Device && !s.Inbound && (s.Device == r.Ground.TUN || s.Device == r.Ground.Underlay)
	}
	for _, what := range []string{sight.Answer, sight.Error} {
		if s := first(r, what, atPoint(sight.Drop, false)); s != nil {
			return lost(StageReturn, there, fixOf(s.Reason, e), "the daemon there dropped the answer (%s): %s", s.Reason, s.Means)
		}
		if s := first(r, what, left); s != nil {
			if s := first(r, what, atPoint(sight.Outer, false)); s != nil {
				return passed(StageReturn, there, "the answer left that node from %s to %s", s.OuterSrc, s.OuterDst)
			}
			return passed(StageReturn, there, "the answer left that node by %s", cmp.Or(s.Device, r.Ground.TUN))
		}
	}
	return lost(StageReturn, there, fmt.Sprintf("on that node: `ip route get %s`, `nft list ruleset`, `iptables -S FORWARD`", e.packet.Src),
		"the destination answered, and the kernel there did not give the answer to the overlay: its route to %s leads elsewhere, or a rule drops it", e.packet.Src)
}

func receiveBack(e *evidence) *Step {
	if e.route.Peer == nil || e.there == nil || replied(e.there) == nil && returned(e.here) == nil {
		return nil
	}
	for _, what := range []string{sight.Answer, sight.Error} {
		if s := first(e.here, what, atPoint(sight.Drop, true)); s != nil {
			return lost(StageReceiveBack, here, fixOf(s.Reason, e), "this node's daemon dropped the answer (%s): %s", s.Reason, s.Means)
		}
		if s := first(e.here, what, atPoint(sight.Outer, true)); s != nil {
			return passed(StageReceiveBack, here, "the answer was received from %s", s.OuterSrc)
		}
		if s := first(e.here, what, func(s *sight.Sighting) bool {
			return s.Inbound && (s.Point == sight.Inner || s.Point == sight.Device)
		}); s != nil {
			return passed(StageReceiveBack, here, "the answer came in by %s", cmp.Or(s.Device, e.tun()))
		}
	}
	return lost(StageReceiveBack, here, e.fixUnderlay(), "the answer left the other node, and did not come here: lost on the underlay, or dropped by this node's firewall")
}

func deliverBack(e *evidence) *Step {
	if s := returned(e.here); s != nil {
		says := s.Says
		if says == sight.RST && e.there == nil && e.route.Peer != nil {
			says += ": nothing listens at that port, or a firewall beyond this node rejects it"
		}
		if e.how == fromHost {
			return passed(StageDeliverBack, here, "the answer (%s) is back at this host", says)
		}
		return passed(StageDeliverBack, here, "the answer (%s) is back at the pod, by %s", says, s.Device)
	}
	if !e.here.Devices {
		return nil
	}
	for _, what := range []string{sight.Answer, sight.Error} {
		if first(e.here, what, func(s *sight.Sighting) bool { return s.Inbound }) != nil {
			if e.offBridge() {
				return lost(StageDeliverBack, here, fmt.Sprintf("`ip link set %s master %s`, or have what runs containers do so", devices(e.here, sight.Itself, true, e.tun()), e.here.Ground.Source),
					"the answer came here, and does not get to the pod: its packets come in by %s, and the route to it leads to %s, which its device is no part of", devices(e.here, sight.Itself, true, e.tun()), cmp.Or(e.here.Ground.Source, "no device"))
			}
			return stuck(StageDeliverBack, here, e.here, e.packet.Dst.Is6(), true)
		}
	}
	return nil
}

// beyond is what can be said where nobody beyond this node tells.
func (e *evidence) beyond() *Step {
	p := e.route.Peer
	s := &Step{Stage: StageReceive, Node: there, State: Unknown}
	known := []string{}
	switch {
	case errors.Is(e.thereErr, neighbour.ErrNobody):
		known = append(known, "its node answers over the overlay, but not questions ("+neighbour.ErrNobody.Error()+")")
		s.Fix = fmt.Sprintf("the way to the node is in order: look there. On %s: does `muslin capture host %s` show the packet (beside flannel it needs nothing else), does the FORWARD chain accept it (`nft list ruleset`, `iptables -S FORWARD`), is there a container %[2]s?", p.PublicIP, e.packet.Dst)
	case errors.Is(e.thereErr, neighbour.ErrLate):
		known = append(known, fmt.Sprintf("the way to its node and back is in order, but its daemon tells nothing: %v", e.thereErr))
		s.Fix = fmt.Sprintf("trace again: one that is only busy answers the next time. If not, on %s: `muslin status`, `muslin doctor`, and `muslin trace %s %s` from there", p.PublicIP, e.packet.Dst, e.packet.Src)
	case errors.Is(e.thereErr, neighbour.ErrSilent):
		known = append(known, "its node cannot be asked: "+neighbour.ErrSilent.Error())
		s.Fix = e.fixUnderlay()
	default:
		known = append(known, fmt.Sprintf("its node cannot be asked: %v", e.thereErr))
		s.Fix = fmt.Sprintf("look on %s: does `muslin capture host %s` show the packet, does the FORWARD chain accept it (`nft list ruleset`, `iptables -S FORWARD`), is there a container %[2]s?", p.PublicIP, e.packet.Dst)
	}
	if c := first(e.here, sight.Error, func(c *sight.Sighting) bool { return c.Inbound && c.Src != e.here.Dst.String() }); c != nil {
		known = append([]string{fmt.Sprintf("%s has sent an ICMP error about it: %s", c.Src, c.Says)}, known...)
		s.Fix = fmt.Sprintf("look at what %s refuses it for, on the node %s or behind it: `nft list ruleset`, `iptables -S FORWARD`, `ip route get %s`", c.Src, p.PublicIP, e.packet.Dst)
	}
	if e.alive != nil {
		known = append(known, map[bool]string{
			true:  fmt.Sprintf("%s answers pings on the underlay", p.PublicIP),
			false: fmt.Sprintf("%s does not answer pings on the underlay either: the host is down, or pings are forbidden", p.PublicIP)}[*e.alive])
	}
	if e.alive != nil && !*e.alive {
		s.Fix = fmt.Sprintf("is the host %s up, and does this one reach it (`ping %[1]s`, `ip neigh show %[1]s`)? If so: %s", p.PublicIP, s.Fix)
	}
	switch {
	case p.DownSince != nil && p.LastRx != nil:
		known = append(known, "it was heard over the overlay last at "+p.LastRx.Format("15:04:05 MST"))
	case p.DownSince != nil:
		known = append(known, "nothing was ever heard of it over the overlay")
	}
	for _, reason := range []string{"vxlan-vni", "vxlan-mac", "vxlan-own-mac", "unknown-source", "inner-source"} {
		if n := e.drops[reason]; n > 0 {
			known = append(known, fmt.Sprintf("this node itself has dropped %d datagrams as %s, perhaps of that node: compare the config and the leases of both (`muslin leases list`)", n, reason))
		}
	}
	s.Text = "not known beyond this node, and the destination did not answer: " + strings.Join(known, "; ")
	return s
}

func (e *evidence) fixUnderlay() string {
	port := fmt.Sprintf("UDP port %d", e.node.Port)
	if e.way() == string(way.Direct) {
		port = "what is forwarded"
	}
	return fmt.Sprintf("does %s get through between the two hosts? On both `nft list ruleset`, on %s `tcpdump -n -i any host %s`; compare VNI, port and VtepMAC with `muslin leases list`; `muslin trace` the other way round on that node",
		port, e.route.Peer.PublicIP, cmp.Or(e.node.PublicIP, e.node.PublicIPv6))
}

// fixOf is what to do about a drop.
func fixOf(reason string, e *evidence) string {
	switch reason {
	case "no-route":
		return "`muslin leases list`: is there a node that should have the subnet, and does its daemon run?"
	case "own-subnet":
		return "is the bridge of the pods up, and has it the address of FLANNEL_SUBNET? `ip addr`, `ip route`"
	case "inner-source":
		return fmt.Sprintf("%s does not lie in the subnet that the other node's leases give to this one (%s): `muslin leases list` on both; give the pods addresses of FLANNEL_SUBNET", e.packet.Src, e.node.Subnet)
	case "unknown-source":
		return "the sender's address is not the PublicIP in its lease: `muslin leases list`, --public-ip, or NAT between the two (--source-check)"
	case "vxlan-vni", "vxlan-mac", "vxlan-own-mac", "vxlan-flags":
		return "compare the config's Backend and the leases of both nodes: `muslin config get`, `muslin leases list`"
	case "inner-destination":
		return "the other node holds another subnet than this one believes: `muslin leases list` on both"
	case "send-failed":
		return "`ip route get` to the node, and the OUTPUT rules here: `nft list ruleset`; the error is in the daemon's log"
	}
	return "docs/drops.md says more of " + reason
}
