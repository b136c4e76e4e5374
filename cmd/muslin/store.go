package main

import (
	"context"
	"net/netip"
	"net/url"
	"path/filepath"
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
}

func (d *daemon) openStore(ctx context.Context, iface host.Interface) (*source, error) {
	if d.opts.flags.peersFile != "" {
		return d.openPeersFile(iface)
	}
	src := &source{kind: "etcd", close: func() {}}
	endpoints := d.opts.flags.store.list()
	if d.opts.flags.embedded {
		d.view.waiting("starting the embedded etcd")
		server, err := d.startEmbedded(ctx, iface)
		if err != nil {
			return nil, err
		}
		src.kind, endpoints = "embedded-etcd", server.ClientURLs()[:1]
		src.close = func() {
			if err := server.Close(); err != nil {
				d.log.Error("stop the embedded etcd", "err", err)
			}
		}
		d.view.set(func(v *viewState) { v.embedded = server })
	}
	store, err := d.opts.flags.store.dial(endpoints, d.log)
	if err != nil {
		src.close()
		return nil, err
	}
	stopServer := src.close
	src.store, src.close = store, func() { store.Close(); stopServer() }
	d.view.set(func(v *viewState) { v.kind, v.endpoints = src.kind, store.Endpoints() })
	if src.config, err = d.storedConfig(ctx, store); err != nil {
		src.close()
		return nil, err
	}
	return src, nil
}

// storedConfig waits for the store and the network's config in it, writing the one that the flags
// describe if there is none.
func (d *daemon) storedConfig(ctx context.Context, store *etcd.Store) (*lease.Config, error) {
	d.view.waiting("waiting for etcd at " + strings.Join(store.Endpoints(), ","))
	if err := waitConnected(ctx, store, d.log); err != nil {
		return nil, err
	}
	if d.opts.wantConfig != nil {
		created, err := lease.EnsureConfig(ctx, store, d.opts.wantConfig)
		if err != nil {
			return nil, err
		}
		if created {
			d.log.Info("wrote the network's config", "config", string(d.opts.wantConfig))
		}
	}
	d.view.waiting("waiting for the network's config in etcd (muslin config set, or run --network)")
	cfg, _, err := lease.WaitConfig(ctx, store, d.log)
	return cfg, err
}

func (d *daemon) startEmbedded(ctx context.Context, iface host.Interface) (*etcd.Embedded, error) {
	port := d.opts.flags.embeddedPort
	var urls []url.URL
	for _, addr := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), iface.Addr} {
		urls = append(urls, url.URL{Scheme: "http", Host: netip.AddrPortFrom(addr, port).String()})
	}
	server, err := etcd.StartEmbedded(ctx, etcd.EmbeddedConfig{
		Dir:        filepath.Join(d.opts.flags.stateDir, "etcd"),
		ClientURLs: urls,
		Logger:     d.log,
	})
	if err != nil {
		return nil, err
	}
	d.log.Warn("the embedded etcd serves everybody who reaches it, without a password: keep the port to the nodes",
		"endpoints", strings.Join(server.ClientURLs(), ","))
	return server, nil
}

func (d *daemon) openPeersFile(iface host.Interface) (*source, error) {
	cfg, err := lease.ParseConfig(d.opts.wantConfig)
	if err != nil {
		return nil, err
	}
	member := new(membership)
	static, err := lease.NewStatic(lease.StaticConfig{
		Path: d.opts.flags.peersFile, PublicIP: iface.PublicIP, Network: cfg.Network, OnTable: member.publish, Logger: d.log})
	if err != nil {
		return nil, err
	}
	member.peers, member.subnet = static, static.Own().Subnet
	d.view.set(func(v *viewState) { v.kind, v.endpoints = "peers-file", []string{d.opts.flags.peersFile} })
	return &source{kind: "peers-file", static: static, member: member, config: cfg, close: func() {}}, nil
}

// membership is our place in the network: the lease that we hold, and the peers.
type membership struct {
	subnet  netip.Prefix
	keeper  *lease.Keeper // nil with a peers file
	peers   peerSource
	feed    *lease.Feed      // of both; nil with a peers file
	onTable func(*fib.Table) // set before any task runs
}

// peerSource is a lease.Watcher or a lease.Static.
type peerSource interface {
	Run(ctx context.Context) error
	Status() lease.WatchStatus
}

func (m *membership) publish(t *fib.Table) { m.onTable(t) }

// tasks are what keeps the membership up.
func (m *membership) tasks() []func(context.Context) error {
	tasks := []func(context.Context) error{m.peers.Run}
	if m.keeper != nil {
		tasks = append(tasks, m.keeper.Run, m.feed.Run)
	}
	return tasks
}

// previousSubnet is the subnet that this host had before, whose pod bridge may still be up. Of the leases with
// our PublicIP that is the one that the subnet file names, else a reserved one, else any; without one it is
// the subnet file's, or none.
func (d *daemon) previousSubnet(ctx context.Context, src *source, iface host.Interface) netip.Prefix {
	if src.static != nil {
		return src.static.Own().Subnet
	}
	entries, _, err := src.store.List(ctx)
	if err != nil {
		d.log.Warn("the leases cannot be listed for the subnet that this host had", "err", err)
	}
	file, err := lease.ReadSubnetFile(d.opts.flags.subnetFile)
	if err != nil {
		d.log.Warn("the subnet file of an earlier run cannot be read", "err", err)
	}
	var own lease.Lease
	for _, e := range entries {
		l, err := lease.ParseLease(e)
		if err != nil || l.Attrs.PublicIP != iface.PublicIP {
			continue
		}
		if l.Subnet == file.Subnet {
			return l.Subnet
		}
		if !own.Subnet.IsValid() || l.Reserved && !own.Reserved {
			own = l
		}
	}
	if own.Subnet.IsValid() {
		return own.Subnet
	}
	return file.Subnet
}

// join takes our subnet.
func (d *daemon) join(ctx context.Context, src *source, n *node, previous netip.Prefix) (*membership, error) {
	if src.static != nil {
		return src.member, nil
	}
	feed := lease.NewFeed(src.store, d.log)
	keeper, err := lease.NewKeeper(lease.KeeperConfig{
		Store: src.store, Feed: feed, Network: src.config, Attrs: n.attrs(), Previous: previous,
		TTL: d.opts.flags.leaseTTL, Margin: d.opts.renewMargin, Logger: d.log})
	if err != nil {
		return nil, err
	}
	got, err := keeper.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	m := &membership{subnet: got.Subnet, keeper: keeper, feed: feed}
	m.peers = lease.NewWatcher(lease.WatcherConfig{
		Feed: feed,
		Node: lease.Node{
			Subnet: got.Subnet, PublicIP: n.iface.PublicIP, Backend: n.backend, VNI: n.vni, Network: src.config.Network},
		OnTable: m.publish,
		Logger:  d.log,
	})
	return m, nil
}
