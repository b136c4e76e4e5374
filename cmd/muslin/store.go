package main

import (
	"context"
	"net/netip"
	"path"
	"strings"

	"muslin/lease"
	"muslin/lease/etcd"
	"muslin/tunnel/fib"
	"muslin/tunnel/host"
)

// source is where the leases come from: a store, or a peers file.
type source struct {
	kind   string        // as in StoreStatus
	store  *etcd.Store   // nil with a peers file
	static *lease.Static // nil with a store
	member *membership   // what static reports to
	config *lease.Config
	close  func()

	prefix   string          // of the store's keys
	raw      []byte          // config, as the store has it
	memory   *lease.Memory   // what config and lease are from; nil: from the store
	embedded *embeddedServer // nil: there is none
}

func (d *daemon) openStore(ctx context.Context, iface host.Interface) (*source, error) {
	if d.opts.flags.peersFile != "" {
		return d.openPeersFile(iface)
	}
	src, err := d.dialStore(iface)
	if err != nil {
		return nil, err
	}
	if src.embedded != nil {
		d.view.waiting("starting the embedded etcd")
		err = src.embedded.start(ctx)
	}
	if err == nil {
		src.config, src.raw, err = d.storedConfig(ctx, src.store, d.view.waiting)
	}
	if err != nil {
		src.close()
		return nil, err
	}
	return src, nil
}

// dialStore says which store there is, and waits for nothing.
func (d *daemon) dialStore(iface host.Interface) (*source, error) {
	src := &source{kind: "etcd", prefix: path.Clean(d.opts.flags.store.prefix)}
	endpoints := d.opts.flags.store.list()
	if d.opts.flags.embedded {
		src.embedded = &embeddedServer{d: d, iface: iface}
		own := src.embedded.urls()[0]
		src.kind, endpoints = "embedded-etcd", []string{own.String()}
	}
	var err error
	if src.store, err = d.opts.flags.store.dial(endpoints, d.log); err != nil {
		return nil, err
	}
	src.close = func() {
		src.store.Close()
		if src.embedded == nil {
			return
		}
		if err := src.embedded.stop(); err != nil {
			d.log.Error("stop the embedded etcd", "err", err)
		}
	}
	d.view.set(func(v *viewState) { v.kind, v.endpoints = src.kind, src.store.Endpoints() })
	return src, nil
}

// storedConfig waits for the store and the network's config in it, writing the one that the flags
// describe if there is none. waiting is told what for.
func (d *daemon) storedConfig(ctx context.Context, store *etcd.Store, waiting func(string)) (*lease.Config, []byte, error) {
	waiting("waiting for etcd at " + strings.Join(store.Endpoints(), ","))
	if err := waitConnected(ctx, store, d.log); err != nil {
		return nil, nil, err
	}
	if d.opts.wantConfig != nil {
		created, err := lease.EnsureConfig(ctx, store, d.opts.wantConfig)
		if err != nil {
			return nil, nil, err
		}
		if created {
			config, _ := lease.HideSecret(string(d.opts.wantConfig))
			d.log.Info("wrote the network's config", "config", config)
		}
	}
	waiting("waiting for the network's config in etcd (muslin config set, or run --network)")
	return lease.WaitConfig(ctx, store, d.log)
}

func (d *daemon) openPeersFile(iface host.Interface) (*source, error) {
	cfg, err := lease.ParseConfig(d.opts.wantConfig)
	if err != nil {
		return nil, err
	}
	var six netip.Addr
	if cfg.EnableIPv4 && !iface.Addr.IsValid() {
		_, err := host.ChooseInterface(d.opts.iface)
		return nil, err
	}
	four := iface.PublicIP
	if cfg.EnableIPv6 {
		opts := d.opts.iface
		opts.Families = host.BothFamilies
		if !cfg.EnableIPv4 {
			opts.Families, four = host.IPv6, netip.Addr{}
		}
		both, err := host.ChooseInterface(opts)
		if err != nil {
			return nil, err
		}
		six = both.PublicIPv6
	}
	member := new(membership)
	static, err := lease.NewStatic(lease.StaticConfig{
		Path: d.opts.flags.peersFile, PublicIP: four, Network: cfg.Network, OnTable: member.publish, Logger: d.log,
		PublicIPv6: six, Network6: cfg.IPv6Network, Mode: cfg.Backend.Mode})
	if err != nil {
		return nil, err
	}
	member.peers, member.subnet, member.subnet6 = static, static.Own().Subnet, static.Own().Subnet6
	d.view.set(func(v *viewState) { v.kind, v.endpoints = "peers-file", []string{d.opts.flags.peersFile} })
	return &source{kind: "peers-file", static: static, member: member, config: cfg, close: func() {}}, nil
}

// membership is our place in the network: the lease that we hold, and the peers.
type membership struct {
	subnet  netip.Prefix
	subnet6 netip.Prefix // zero without IPv6
	peers   peerSource
	keeper  *lease.Keeper  // nil with a peers file, as the rest
	watcher *lease.Watcher // is peers
	feed    *lease.Feed    // of keeper and watcher
	config  *lease.ConfigWatcher
	changed func()           // set before any task runs, as is onTable: what is worth remembering may be new
	onTable func(*fib.Table) // also with a peers file
}

// peerSource is a lease.Watcher or a lease.Static.
type peerSource interface {
	Run(ctx context.Context) error
	Table() *fib.Table
	Status() lease.WatchStatus
}

// of is the subnet of a node's family.
func (m *membership) of(n *node) netip.Prefix {
	if n.six {
		return m.subnet6
	}
	return m.subnet
}

func (m *membership) publish(t *fib.Table) {
	m.onTable(t)
	if m.changed != nil {
		m.changed()
	}
}

// previousSubnet is the subnet that this host had before, whose pod bridge may still be up. Of the leases with
// our PublicIP that is the one that the subnet file names, else a reserved one, else any; without one it is
// the subnet file's, or none. What is remembered stands in for a subnet file that is gone, as after a boot.
func (d *daemon) previousSubnet(ctx context.Context, src *source, node *node, remembered *lease.Memory) previousSubnets {
	switch {
	case src.static != nil:
		return previousSubnets{src.static.Own().Subnet, src.static.Own().Subnet6}
	case src.memory != nil:
		return previousSubnets{src.memory.Subnet(), src.memory.Subnet6()}
	}
	entries, _, err := src.store.List(ctx)
	if err != nil {
		d.log.Warn("the leases cannot be listed for the subnet that this host had", "err", err)
	}
	file, err := lease.ReadSubnetFile(d.opts.flags.subnetFile)
	if err != nil {
		d.log.Warn("the subnet file of an earlier run cannot be read", "err", err)
	}
	before := previousSubnets{file.Subnet, file.Subnet6}
	if !before.four.IsValid() {
		before.four = remembered.Subnet()
	}
	if !before.six.IsValid() {
		before.six = remembered.Subnet6()
	}
	var own lease.Lease
	for _, e := range entries {
		l, err := lease.ParseLease(e)
		if err != nil || !node.ours(l.Attrs) {
			continue
		}
		if l.Subnet == before.four && l.Subnet6 == before.six {
			own = l
			break
		}
		if own.Key == "" || l.Reserved && !own.Reserved {
			own = l
		}
	}
	if own.Subnet.IsValid() {
		before.four = own.Subnet
	}
	if own.Subnet6.IsValid() {
		before.six = own.Subnet6
	}
	return before
}

// previousSubnets are those that this host had before; each may be zero.
type previousSubnets struct{ four, six netip.Prefix }

// of is that of a node's family.
func (p previousSubnets) of(n *node) netip.Prefix {
	if n.six {
		return p.six
	}
	return p.four
}

// join takes our subnet.
func (d *daemon) join(ctx context.Context, src *source, n *node, previous previousSubnets) (*membership, error) {
	if src.static != nil {
		return src.member, nil
	}
	m := &membership{feed: lease.NewFeed(src.store, d.log)}
	var err error
	m.keeper, err = lease.NewKeeper(lease.KeeperConfig{
		Store: src.store, Feed: m.feed, Network: src.config, Attrs: n.attrs(), Previous: previous.four, Previous6: previous.six,
		TTL: d.opts.flags.leaseTTL, Margin: d.opts.renewMargin, Logger: d.log, Beside: d.rescue != nil,
		Changed: func(lease.KeepStatus) {
			if m.changed != nil {
				m.changed()
			}
		}})
	if err != nil {
		return nil, err
	}
	var known []lease.Entry
	if src.memory != nil {
		d.log.Info("starting from what is known of the network; the store is asked meanwhile", "subnet", src.memory.Lease.Subnet, "leases", len(src.memory.Leases))
		m.keeper.Remember(src.memory.Lease, d.place.from == nil)
		m.subnet, m.subnet6, known = src.memory.Lease.Subnet, src.memory.Lease.Subnet6, src.memory.Entries()
	} else {
		got, err := m.keeper.Acquire(ctx)
		if err != nil {
			return nil, err
		}
		m.subnet, m.subnet6 = got.Subnet, got.Subnet6
		if d.rescue != nil { // in flannel's place there is traffic from the first moment
			if known, _, err = src.store.List(ctx); err != nil {
				return nil, err
			}
		}
	}
	m.watcher = lease.NewWatcher(lease.WatcherConfig{
		Feed: m.feed,
		Node: lease.Node{
			Key: n.key.Public(), Mode: n.wg.Mode,
			Subnet: m.subnet, PublicIP: n.publicIP(), Backend: n.backend, VNI: n.vni, Network: src.config.Network,
			Subnet6: m.subnet6, PublicIPv6: n.publicIPv6(), Network6: src.config.IPv6Network},
		Known:   known,
		OnTable: m.publish,
		Logger:  d.log,
	})
	m.peers = m.watcher
	m.config = lease.NewConfigWatcher(src.store, src.config, m.subnet, m.subnet6, d.log)
	return m, nil
}
