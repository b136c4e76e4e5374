package main

import (
	"fmt"
	"net/netip"

	"muslin/tunnel/direct"
	"muslin/tunnel/fib"
	"muslin/tunnel/host"
	"muslin/tunnel/way"
)

// openRouter opens what keeps the direct routes to peers, for close to close; nil where the network's config does
// not ask for them.
func (d *daemon) openRouter(node *node, subnet netip.Prefix) (r *direct.Router, close func() error, err error) {
	if !node.directRouting {
		return nil, func() error { return nil }, nil
	}
	cfg := direct.TableConfig{Protocol: host.RouteProtocol, Network: node.network, Iface: node.iface.Name}
	if !node.hostGateway() { // where there is no TUN device, nothing has that address
		cfg.Source = subnet.Addr()
	}
	table, err := direct.Open(cfg)
	if err != nil {
		return nil, nil, err
	}
	return direct.New(direct.Config{
		Kernel: table, Iface: node.iface.Name, Subnet: subnet, Routing: true, Alone: node.hostGateway(), Resync: d.opts.resync, Logger: d.log,
	}), table.Close, nil
}

// setTable puts a new table of peers to use: first where packets are encapsulated, which always works.
func (r *running) setTable(t *fib.Table) {
	r.carrier.setTable(t)
	if r.router != nil {
		r.router.SetTable(t)
	}
}

// choice is the way to a peer and what decided.
func (v *viewState) choice(p *fib.Peer) way.Choice {
	if v.router == nil {
		return way.Choose(way.Facts{PublicIP: p.PublicIP, Encrypted: v.node.encrypts()})
	}
	return v.router.Choice(p)
}

// warnStrict is a sentence about the kernel's check of senders where it could drop what peers send directly; empty:
// it could not.
func (n *node) warnStrict() string {
	if !n.directRouting || n.hostGateway() { // where there is but one way
		return ""
	}
	name := host.StrictReversePath(n.iface.Name)
	if name == "" {
		return ""
	}
	return fmt.Sprintf("rp_filter of %s is strict: the kernel drops what a peer sends directly while this node encapsulates to it, as happens while a path changes; run \"sysctl -w %s=2\"",
		n.iface.Name, name)
}

// warnRefused is a sentence about peers whose direct routes the kernel does not take, and that are encapsulated or, with
// host-gw, not reached at all; empty: there are none.
func warnRefused(peers []PeerStatus) string {
	n, first, stays := 0, "", "stays encapsulated"
	for _, p := range peers {
		if p.Way == string(way.None) {
			stays = "is left out"
		} else if p.WayRule != string(way.RuleRefused) {
			continue
		}
		if n++; n == 1 {
			first = fmt.Sprintf("%s: %s", p.Subnet, p.WayReason)
		}
	}
	switch n {
	case 0:
		return ""
	case 1:
		return "a peer " + stays + ": " + first
	}
	return fmt.Sprintf("each of %d peers %s, such as %s", n, stays, first)
}
