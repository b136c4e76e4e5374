package main

import (
	"fmt"
	"net/netip"
	"slices"

	"muslin/tunnel/direct"
	"muslin/tunnel/fib"
	"muslin/tunnel/host"
	"muslin/tunnel/way"
)

// routers keep the direct routes to peers of each family; each is nil without that family, and where the network's config
// does not ask for such routes.
type routers struct{ four, six *direct.Router }

// of is that of a peer's family.
func (r routers) of(p *fib.Peer) *direct.Router {
	if p.Subnet.Addr().Is4() {
		return r.four
	}
	return r.six
}

// all are those that there are.
func (r routers) all() []*direct.Router {
	return slices.DeleteFunc([]*direct.Router{r.four, r.six}, func(r *direct.Router) bool { return r == nil })
}

// openRouters opens what keeps the direct routes to peers, for close to close.
func (d *daemon) openRouters(node *node, member *membership) (all routers, close func(), err error) {
	var tables []*direct.Table
	close = func() {
		for _, t := range tables {
			t.Close()
		}
	}
	if !node.directRouting {
		return all, close, nil
	}
	for _, n := range node.all() {
		r, table, err := d.openRouter(n, member.of(n))
		if err != nil {
			close()
			return routers{}, nil, err
		}
		tables = append(tables, table)
		if n.six {
			all.six = r
		} else {
			all.four = r
		}
	}
	return all, close, nil
}

func (d *daemon) openRouter(node *node, subnet netip.Prefix) (*direct.Router, *direct.Table, error) {
	cfg := direct.TableConfig{Protocol: host.RouteProtocol, Network: node.network, Iface: node.iface.Name}
	if !node.hostGateway() { // where there is no TUN device, nothing has that address
		cfg.Source = subnet.Addr()
	}
	table, err := direct.Open(cfg)
	if err != nil {
		return nil, nil, err
	}
	return direct.New(direct.Config{
		Kernel: table, Iface: node.iface.Name, Subnet: subnet, Routing: true, Alone: node.hostGateway(), Resync: d.opts.resync,
		Logger: d.log.With("network", node.network),
	}), table, nil
}

// setTable puts a new table of peers to use: first where packets are encapsulated, which always works.
func (r *running) setTable(t *fib.Table) {
	r.carrier.setTable(t)
	for _, router := range r.routers.all() {
		router.SetTable(t)
	}
}

// choice is the way to a peer and what decided.
func (v *viewState) choice(p *fib.Peer) way.Choice {
	if r := v.routers.of(p); r != nil {
		return r.Choice(p)
	}
	return way.Choose(way.Facts{PublicIP: p.PublicIP, Encrypted: v.node.encrypts()})
}

// warnStrict is a sentence about the kernel's check of senders where it could drop what peers send directly; empty:
// it could not. Of IPv6 the kernel has no such check.
func (n *node) warnStrict() string {
	if !n.directRouting || n.hostGateway() || n.six { // where there is but one way
		return ""
	}
	name := host.StrictReversePath(n.iface.Name)
	if name == "" {
		return ""
	}
	return fmt.Sprintf("rp_filter of %s is strict: the kernel drops what a peer sends directly while this node encapsulates to it, as happens while a path changes; run \"sysctl -w %s=2\"",
		n.iface.Name, name)
}
