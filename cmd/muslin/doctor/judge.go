package doctor

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"muslin/encap"
	"muslin/lease"
)

// The judge is one chain of questions, each of which has one cause as its answer: what was seen at the interface first,
// since a datagram that is there says what is wrong with it; then what the host's kernel and others say; then what follows
// from silence.

// verdict is a finding about a peer, from here on without its node.
func (e *evidence) verdict(id string, severity Severity, confidence, summary, seen, fix string) *said {
	return &said{Finding: Finding{ID: id, Severity: severity, Confidence: confidence, Summary: summary, Evidence: seen, Fix: fix, Node: e.peer.node.Name()}, peer: e.peer.node.Name()}
}

// judge names the cause; nil: there is nothing to say of this peer.
func (e *evidence) judge() *said {
	for _, ask := range []func() *said{e.refusedHere, e.wrongDatagram, e.filteredIn, e.notOurs, e.refusedThere, e.gone, e.silent} {
		if f := ask(); f != nil {
			return f
		}
	}
	return nil
}

// sent says what was tried, for the evidence.
func (e *evidence) sent() string {
	if e.made.Sent == 0 || e.own.node.Backend == lease.BackendWireGuard {
		return fmt.Sprintf("echo requests over the overlay to %s are not answered", e.peer.base())
	}
	return fmt.Sprintf("%d datagrams to %s, %d of them seen leaving, are not answered", e.made.Sent, e.peer.to(), e.left)
}

// host says how the host was heard.
func (e *evidence) hostText() string {
	switch {
	case e.host.Got > 0:
		return "the host answers ping"
	case e.closed.Refused.Port():
		return "the host refuses another UDP port"
	case e.alive:
		return "the host answers TCP"
	case e.route.found != (encap.MAC{}):
		return "on the link " + e.route.found.String() + " has the address, and answers neither ping nor TCP"
	}
	return "the host answers neither ping nor TCP nor on another UDP port"
}

func (e *evidence) portWord() string { return fmt.Sprintf("UDP %d", e.port) }

// openPort says how the port is opened on the peer's side or here.
func (e *evidence) openPort() string {
	return fmt.Sprintf("%s -I INPUT -p udp --dport %d -j ACCEPT # with firewalld: firewall-cmd --permanent --add-port=%d/udp && firewall-cmd --reload", e.iptables(), e.port, e.port)
}

// iptables is the program of the family.
func (e *evidence) iptables() string {
	if e.peer.six {
		return "ip6tables"
	}
	return "iptables"
}

// refusedHere is about datagrams that do not leave this host.
func (e *evidence) refusedHere() *said {
	switch {
	case e.route.err != nil:
		return e.verdict("public-ip-unreachable", Broken, Certain, fmt.Sprintf("this host has no route to %s", e.peer.outer),
			e.route.err.Error(), fmt.Sprintf("ip route add %s via GATEWAY dev %s # or start that node with a --public-ip that this one reaches", e.peer.outer, e.own.node.Iface))
	case e.route.overlay:
		return e.verdict("public-ip-unreachable", Broken, Certain, fmt.Sprintf("the route to %s leads into the overlay itself", e.peer.outer),
			"ip route get "+e.peer.outer.String()+": dev "+e.route.device, "start that node with a --public-ip of the underlay")
	case errors.Is(e.made.Err, unix.EPERM), e.made.Refused != nil && e.made.Refused.By == e.own.outer && (e.made.Refused.Prohibited() || e.made.Refused.Port()):
		f := e.verdict("udp-filtered-here", Broken, Certain, fmt.Sprintf("a firewall rule of this host drops what leaves for %s of its peers", e.portWord()),
			e.refusal(), fmt.Sprintf("%s -I OUTPUT -p udp --dport %d -j ACCEPT # or remove the rule", e.iptables(), e.port))
		f.kind, f.rules, f.Node = "out", ruleOut, e.own.node.Name()
		return f
	case e.made.Err == nil && e.made.Sent > 0 && e.left == 0 && e.watched() && (e.up() || e.route.found != (encap.MAC{}) || e.route.gateway.IsValid()):
		f := e.verdict("udp-filtered-here", Broken, Likely, fmt.Sprintf("this host's kernel takes what is meant for %s of its peers, and lets it out at no interface", e.portWord()),
			fmt.Sprintf("%d datagrams to %s, none of them seen leaving", e.made.Sent, e.peer.to()),
			fmt.Sprintf("tc filter show dev %s egress; nft list ruleset # one of them drops it", e.own.node.Iface))
		f.kind, f.rules, f.Node = "out", ruleOut, e.own.node.Name()
		return f
	}
	return nil
}

// refusal says how this host's kernel refused a datagram.
func (e *evidence) refusal() string {
	if e.made.Err != nil {
		return fmt.Sprintf("sending to %s: %v", e.peer.to(), e.made.Err)
	}
	return fmt.Sprintf("%s: %s, which is this host itself", e.peer.to(), e.made.Refused)
}

// watched reports whether interfaces were looked at.
func (e *evidence) watched() bool { return e.waited > 0 }

// filteredIn is about datagrams that are as they should be, and arrive at the interface but not at the overlay.
func (e *evidence) filteredIn() *said {
	good := e.good()
	dropped := 0
	for _, n := range e.counted.drops {
		dropped += int(n)
	}
	if good == 0 || !e.carried || !e.counted.known || e.counted.rx > 0 || dropped > 0 {
		return nil
	}
	f := e.verdict("udp-filtered-here", Broken, Likely, fmt.Sprintf("a firewall rule of this host drops %s that arrives from its peers", e.portWord()),
		fmt.Sprintf("%d datagrams of %s arrived at the interface, and none got to the overlay", good, e.peer.outer), e.openPort())
	f.kind, f.rules, f.Node = "in", ruleIn, e.own.node.Name()
	return f
}

// good is how many datagrams came from the peer in which nothing is wrong.
func (e *evidence) good() int {
	n := 0
	for _, s := range e.seen {
		if !s.Out && s.Src == e.peer.outer && s.DstPort == e.port && !s.BadChecksum {
			n += s.n
		}
	}
	return n
}

// notOurs is about what other checks find: an answer came, so that the path and the peer are in order.
func (e *evidence) notOurs() *said {
	if !e.answer || !e.carried {
		return nil
	}
	return e.verdict("peer-silent", Broken, Possible, fmt.Sprintf("%s is reached, and yet what this host sends over the overlay is not answered", e.peer.outer),
		fmt.Sprintf("datagrams made by hand are answered, echo requests to %s by the host's routes are not", e.peer.base()),
		fmt.Sprintf("muslin route %s # the cause is in this host: its routes, rp_filter, or its firewall", e.peer.base()))
}

// refusedThere is about ICMP errors.
func (e *evidence) refusedThere() *said {
	r := e.made.Refused
	elsewhere := r != nil && r.By != e.peer.outer && r.By != e.own.outer
	switch {
	case r.Port() && r.By == e.peer.outer && e.misshapen == nil:
		return e.closedPort()
	case r != nil && r.By == e.peer.outer && !r.TooBig():
		how := ""
		if r.Port() {
			how = "; and so is one that no UDP would read, of which a port where nobody listens says nothing"
		}
		return e.verdict("udp-filtered-at-peer", Broken, Certain, fmt.Sprintf("the firewall of %s refuses %s", e.peer.outer, e.portWord()),
			fmt.Sprintf("%s: %s%s", e.peer.to(), r, how), "on "+e.peer.outer.String()+": "+e.openPort())
	case elsewhere && (r.Prohibited() || r.Port() || r.Unreachable() && e.up()):
		f := e.verdict("udp-filtered-on-path", Broken, Certain, fmt.Sprintf("%s, on the way to %s, refuses %s", r.By, e.peer.outer, e.portWord()),
			fmt.Sprintf("%s: %s", e.peer.to(), r), fmt.Sprintf("let UDP %d through at %s, both ways", e.port, r.By))
		f.kind = r.By.String()
		return f
	}
	return nil
}

// closedPort is about a host that is there and has nobody at the port.
func (e *evidence) closedPort() *said {
	if n := max(e.came(), int(e.counted.rx)); n > 0 {
		return e.verdict("public-ip-nat", Broken, Likely, fmt.Sprintf("%s sends, and refuses what is sent to it at UDP %d: that address is a router's, whose NAT hands on nothing to that node (or a firewall there refuses it)", e.peer.outer, e.port),
			fmt.Sprintf("%s: %s; %d datagrams of the overlay came from there meanwhile", e.peer.to(), e.made.Refused, n),
			fmt.Sprintf("have the router at %s hand UDP %d on to that node; or an underlay without NAT; or on that node, if the address is its own: %s", e.peer.outer, e.port, e.openPort()))
	}
	if port := e.otherPort(); port != 0 {
		return e.verdict("port-mismatch", Broken, Likely, fmt.Sprintf("%s does not listen at UDP port %d, which is this network's, but at %d", e.peer.outer, e.port, port),
			fmt.Sprintf("port %d is refused there, port %d is not", e.port, port),
			restartOn(e.peer.outer, takesConfig))
	}
	return e.verdict("lease-dead-node", Broken, Likely, fmt.Sprintf("%s is up and nobody listens at UDP %d there: its flanneld or muslin does not run, but its lease is still there", e.peer.outer, e.port),
		fmt.Sprintf("%s: %s", e.peer.to(), e.made.Refused), fmt.Sprintf("ssh %s systemctl start muslin # or flanneld; if it is to stay without: %s", e.peer.outer, e.release()))
}

// otherPort is one that the host does not refuse, while it refuses others; 0: there is none.
func (e *evidence) otherPort() uint16 {
	for _, port := range slices.Sorted(maps.Keys(e.knocks)) {
		if k := e.knocks[port]; e.closed.Refused.Port() && k.Sent > 0 && k.Refused == nil && k.Err == nil {
			return port
		}
	}
	return 0
}

func (e *evidence) release() string {
	if e.peer.node.Lease == nil {
		return "its lease is gone already"
	}
	return "muslin leases release '" + e.peer.node.Lease.Key + "'"
}

// gone is about a host that is not there, or cannot be got at.
func (e *evidence) gone() *said {
	if e.up() {
		return nil
	}
	refused := e.host.Refused
	if !refused.Unreachable() {
		refused = e.made.Refused
	}
	switch {
	case e.route.failed, refused.Unreachable() && refused.By == e.own.outer:
		return e.verdict("lease-dead-node", Warning, Likely, fmt.Sprintf("%s is off, or has another address now: nobody on the link has that one, but its lease is still there", e.peer.outer),
			fmt.Sprintf("no answer to who has %s on %s%s", e.peer.outer, e.route.device, e.lastHeard()), "start that host; or, if it is to stay away: "+e.release())
	case refused.Unreachable():
		f := e.verdict("public-ip-unreachable", Broken, Certain, fmt.Sprintf("%s cannot be reached: a router has no way to it", e.peer.outer),
			fmt.Sprintf("ping %s: %s", e.peer.outer, refused), fmt.Sprintf("mend the route at %s, or start that node with a --public-ip that this one reaches", refused.By))
		f.kind = refused.By.String()
		return f
	case e.route.found != (encap.MAC{}):
		return nil // it is there, and a firewall drops whatever comes
	case !e.heard.IsZero():
		return e.verdict("lease-dead-node", Warning, Possible, fmt.Sprintf("%s has gone silent, but its lease is still there: the host is off, or the way to it is cut", e.peer.outer),
			e.hostText()+e.lastHeard(), "start that host; or, if it is to stay away: "+e.release())
	}
	confidence, age := Possible, ""
	if e.age > 0 && e.age < time.Hour {
		confidence, age = Likely, fmt.Sprintf("; its lease was written %v ago, so it lives", e.age.Round(time.Second))
	}
	private := ""
	if e.peer.outer.IsPrivate() && e.route.gateway.IsValid() {
		private = " (a private address, behind the gateway " + e.route.gateway.String() + ")"
	}
	return e.verdict("public-ip-unreachable", Broken, confidence, fmt.Sprintf("%s%s cannot be reached from here", e.peer.outer, private),
		e.hostText()+age, fmt.Sprintf("traceroute %s # start that node with a --public-ip that this one reaches, or open the way; a host that is gone: %s", e.peer.outer, e.release()))
}

func (e *evidence) lastHeard() string {
	if e.heard.IsZero() {
		return ""
	}
	return fmt.Sprintf("; heard last %v ago", time.Since(e.heard).Round(time.Second))
}

// mustAsk is how long a muslin may be silent that does not hear us.
const mustAsk = 10500 * time.Millisecond

func (e *evidence) oneWay() string {
	if e.bare {
		return fmt.Sprintf("%d datagrams to %s: it answered one past the overlay, and none in it came to an interface here", e.made.Sent, e.peer.to())
	}
	return fmt.Sprintf("it runs muslin, as it says by its other address family, which asks a peer that it does not hear every 10 s; none of that came here in %v", e.silentFor().Round(time.Second))
}

// mayBeTranslated reports whether this node's PublicIP is one that routers often translate on the way to the peer's.
func (e *evidence) mayBeTranslated() bool {
	return e.own.outer.IsPrivate() && !e.peer.outer.IsPrivate() && e.route.gateway.IsValid()
}

// seeSource is how one sees what a router makes of this node's address.
func (e *evidence) seeSource() string {
	return fmt.Sprintf("see on %s which address UDP %d comes from (tcpdump -ni any udp port %d), and start muslin here with that --public-ip", e.peer.outer, e.port, e.port)
}

// damagedThere is about a peer that answers datagrams without a checksum alone.
func (e *evidence) damagedThere() *said {
	f := e.verdict("checksum-corruption", Broken, Likely, fmt.Sprintf("datagrams from here are damaged on the way to %s, which drops them for their checksums", e.peer.outer),
		fmt.Sprintf("%s; datagrams without a checksum are answered", e.sent()),
		fmt.Sprintf("here: ethtool -K %s tx off; if that does not help, the NIC, cable or switch between the two", e.own.node.Iface))
	if e.spoilt {
		f.Confidence = Certain
		f.Evidence += ", and the answers quote something else than was sent"
	}
	return f
}

// silent is about a host that is there and does not answer at the overlay's port.
func (e *evidence) silent() *said {
	if e.answer {
		return nil // nothing here carries the overlay; the path and the peer are well
	}
	if e.peer.direct() || e.own.node.Backend == lease.BackendHostGW {
		return e.verdict("peer-silent", Broken, Possible, fmt.Sprintf("%s is there, and what is sent to it by the direct route, past any tunnel, is not answered", e.peer.outer),
			e.sent()+"; "+e.hostText(), "the network between must take the containers' own addresses, as many clouds do not: set DirectRouting to false; or that host's rp_filter or FORWARD rules drop them: muslin doctor there")
	}
	here := netip.AddrPortFrom(e.own.outer, e.port)
	why := []string{e.sent(), e.hostText()}
	switch {
	case e.anyMAC:
		return e.verdict("vtep-mac-wrong", Broken, Certain, fmt.Sprintf("the lease of %s names VTEP MAC %s, which is not its VTEP's: it drops what is sent to it", e.peer.outer, e.peer.mac),
			"a datagram to any MAC is answered, one to that MAC is not", restartOn(e.peer.outer, writesAgain))
	case e.bare, e.muslin && e.came() == 0 && e.counted.rx == 0 && e.silentFor() > mustAsk:
		f := e.verdict("udp-filtered-one-way", Broken, Likely, fmt.Sprintf("what %s sends to %s is dropped, and what is sent there arrives: its firewall for output, or one on the way here", e.peer.outer, here),
			e.oneWay(),
			fmt.Sprintf("on %s: %s -I OUTPUT -p udp --dport %d -j ACCEPT; in front of this node: let UDP %d in from %s", e.peer.outer, e.iptables(), e.port, e.port, e.peer.outer))
		f.kind = "in"
		return f
	case e.unchecked:
		return e.damagedThere()
	case e.came() > 0 || e.counted.rx > 0 || e.oneSided:
		if n := max(e.came(), int(e.counted.rx)); n > 0 {
			why = append(why, fmt.Sprintf("%d of its own datagrams came here", n))
		} else {
			why = append(why, fmt.Sprintf("the daemon heard it %v ago", time.Since(e.heard).Round(time.Second)))
		}
		if !e.local && e.own.outer.IsValid() {
			f := e.verdict("public-ip-nat", Broken, Possible, fmt.Sprintf("%s does not take what this node sends: this node's PublicIP %s is no address of this host, so what leaves may come from another one", e.peer.outer, e.own.outer),
				strings.Join(why, "; "), e.seeSource())
			f.kind = "out"
			return f
		}
		f := e.verdict("udp-filtered-at-peer", Broken, Likely, fmt.Sprintf("%s from here is dropped at %s, by its firewall or one before it, while what it sends arrives", e.portWord(), e.peer.outer),
			strings.Join(why, "; "), "on "+e.peer.outer.String()+": "+e.openPort()+"; between the two: let UDP through to "+e.peer.to())
		if e.mayBeTranslated() {
			f.Fix += "; or, if a router on the way translates this node's private address: " + e.seeSource()
		}
		f.kind = "out"
		return f
	}
	why = append(why, fmt.Sprintf("nothing of it came here in %v", e.silentFor().Round(time.Second)))
	if e.mayBeTranslated() && e.heard.IsZero() && e.deaf > lately {
		f := e.verdict("public-ip-nat", Broken, Possible, fmt.Sprintf("this node seems to be behind NAT: its PublicIP %s is a private one, %s is none, and nothing ever came from there (or UDP %d is filtered between the two)", e.own.outer, e.peer.outer, e.port),
			strings.Join(why, "; "), fmt.Sprintf("%s, and have its router hand UDP %d on to this host; or an underlay without NAT", e.seeSource(), e.port))
		f.kind = "out"
		return f
	}
	f := e.verdict("udp-filtered-at-peer", Broken, Likely, fmt.Sprintf("%s between here and %s is dropped, by the firewall there or one on the way", e.portWord(), e.peer.outer),
		strings.Join(why, "; "), "on "+e.peer.outer.String()+": "+e.openPort()+"; between the two: let UDP through to "+e.peer.to()+" and "+here.String()+"; muslin doctor there says more, also if it is but a daemon that hangs")
	f.kind = "both"
	return f
}
