package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"muslin/cmd/muslin/privilege"
	"muslin/encap"
	"muslin/lease"
	"muslin/tunnel"
	"muslin/tunnel/host"
	"muslin/tunnel/kernel"
	"muslin/tunnel/tun"
	"muslin/tunnel/underlay"
)

func newRunCommand() *cobra.Command {
	var flags runFlags
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the daemon: join the overlay network and carry its packets",
		Long: `run joins this host to the overlay network: it takes a subnet by a lease in etcd, opens a TUN device
with one route for the whole network, and carries packets to and from the other nodes.

It stays in the foreground and logs to standard error. SIGTERM or Ctrl-C ends it in good order: what it
changed in the host is undone, the lease stays and is taken up again at the next start.

What it needs: root (or CAP_NET_ADMIN), /dev/net/tun, and an etcd (v3) that all nodes reach, which the
first host can run itself with --embedded-etcd.`,
		Example: `  # two hosts, without an etcd of your own:
  first#  muslin run --embedded-etcd --network 10.244.0.0/16
  second# muslin run --etcd-endpoints http://FIRST:2379

  # among flannel nodes: the network's config is in etcd already
  muslin run --etcd-endpoints https://etcd:2379 --etcd-cafile ca.pem --etcd-certfile node.pem --etcd-keyfile node-key.pem

  # the store is gone; saved were "muslin leases list --output peers-file" and "muslin config get"
  muslin run --peers-file peers.json --net-config-path net-conf.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts, err := flags.options(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			// Whoever read our log may go away; the daemon stays, and undoes its changes at its end.
			signal.Ignore(syscall.SIGPIPE)
			d := newDaemon(opts)
			err = d.run(cmd.Context())
			if err != nil && d.view.ready() {
				return ranError{err}
			}
			return err
		},
	}
	flags.register(cmd.Flags())
	cmd.Flags().SortFlags = false
	return cmd
}

// The daemon's start, in order. Each step refuses with a sentence that says what to do:
//
//  1. run        what must be true of any host: privileges, TUN, an underlay interface, one daemon;
//     the control socket answers from here on, so that status can tell what the rest waits for
//  2. openStore  etcd, embedded or not, or a peers file (store.go)
//  3. network    the network's config, what it means here (node.go), conflicts with the host
//  4. carry      sockets, TUN device, lease; then host set-up, subnet file, and all tasks side by side
//
// What a step opened or changed it undoes when it returns.
type daemon struct {
	opts *options
	log  *slog.Logger
	view view // what status shows of the rest
}

func newDaemon(opts *options) *daemon {
	return &daemon{opts: opts, log: opts.log}
}

func (d *daemon) run(ctx context.Context) error {
	if err := kernel.Preflight(); err != nil {
		return err
	}
	if err := privilege.Inherit(privilege.Of(unix.CAP_NET_ADMIN, unix.CAP_NET_RAW)); err != nil {
		d.log.Warn("iptables may be refused by the kernel", "err", err)
	}
	iface, err := host.ChooseInterface(d.opts.iface)
	if err != nil {
		return err
	}
	d.view.set(func(v *viewState) { v.iface = iface })
	control, err := listenControl(d.opts.flags.control)
	if err != nil {
		return err
	}
	defer control.Close() // removes the socket's file, too
	lock, err := lockState(d.opts.flags.stateDir)
	if err != nil {
		return fmt.Errorf("%w; stop it, or give this daemon its own --state-dir, --control, --tun-name and --subnet-file", err)
	}
	defer lock.Close()

	// The servers outlive the network part, so that status answers until everything is undone. One that
	// fails ends it.
	servers, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, failed := errgroup.WithContext(servers)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(failed, cancel)()
	if addr := d.opts.health; addr.Port() != 0 {
		health, err := net.Listen("tcp", addr.String())
		if err != nil {
			return fmt.Errorf("--healthz-port: %w", err)
		}
		g.Go(func() error { return serveHTTP(servers, health, healthHandler(d.view.ready)) })
	}
	g.Go(func() error { return serveHTTP(servers, control, controlHandler(d.status)) })
	err = d.network(ctx, iface)
	stop()
	if errors.Is(err, context.Canceled) {
		err = nil // stopped while it waited for something
	}
	if err := errors.Join(err, g.Wait()); err != nil {
		return err
	}
	if d.view.get().member != nil {
		d.log.Info("stopped; the lease stays")
	} else {
		d.log.Info("stopped before there was a lease")
	}
	return nil
}

// network joins the overlay and carries packets until ctx ends.
func (d *daemon) network(ctx context.Context, iface host.Interface) error {
	src, err := d.openStore(ctx, iface)
	if err != nil {
		return err
	}
	defer src.close()
	node, err := d.newNode(src, iface)
	if err != nil {
		return err
	}
	for _, w := range src.config.Warnings {
		d.log.Warn("network config: " + w)
	}
	previous := d.previousSubnet(ctx, src, iface)
	if err := host.CheckConflicts(host.Plan{
		TUN:      d.opts.flags.tunName,
		Network:  src.config.Network,
		Previous: previous,
		Listen:   netip.AddrPortFrom(iface.Addr, node.port),
		VXLAN:    node.backend == lease.BackendVXLAN,
		VNI:      node.vni.Uint32(),
	}); err != nil {
		return err
	}
	d.view.set(func(v *viewState) { v.node, v.warnings = node, src.config.Warnings })
	return d.carry(ctx, src, node, previous)
}

// device is what both kinds of TUN device have beside moving packets.
type device interface {
	tunnel.Device
	Name() string
	Features() []kernel.Feature
}

func openTUN(cfg tun.Config) (device, error) {
	if !cfg.Features.On(kernel.TUNDrain) {
		return tun.OpenPortable(cfg)
	}
	return tun.Open(cfg)
}

// queueCount is --queues, or what this machine gains from: each queue keeps two threads busy, and one carries
// some ten Gb/s.
func (d *daemon) queueCount(features kernel.Features) int {
	if !features.On(kernel.MultiQueue) {
		return 1
	}
	if n := d.opts.flags.queues; n != 0 {
		return n
	}
	return min(max(1, runtime.NumCPU()/4), 8)
}

// keepProcessors gives the Go runtime more processors than there are workers. A worker in a system call keeps
// its processor only while another one is idle; with none to spare the runtime's monitor takes it away every
// few microseconds and wakes a thread that finds nothing to do (docs/decisions/processors.md).
func keepProcessors(queues int) {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.NumCPU() + 2*queues)
	}
}

// carry opens both sides, takes the lease, and runs everything until ctx ends or something fails.
func (d *daemon) carry(ctx context.Context, src *source, node *node, previous netip.Prefix) error {
	d.view.waiting("trying out the kernel's features")
	wanted := d.opts.features
	if d.opts.sourceCheck == tunnel.SourceCheckOff {
		wanted = wanted.Without(kernel.EarlyFilter, "--source-check=off lets every address in")
	}
	features, _ := kernel.Examine(ctx, wanted)
	queues := d.queueCount(features)
	keepProcessors(queues)
	conn, err := underlay.Open(underlay.Config{
		Local: node.iface.Addr, Port: node.port, Queues: queues, Features: features, MaxSegments: kernel.UDPMaxSegments(), Logger: d.log})
	if err != nil {
		return host.ExplainBind(netip.AddrPortFrom(node.iface.Addr, node.port), err)
	}
	defer conn.Close()
	dev, err := openTUN(tun.Config{Name: d.opts.flags.tunName, Queues: queues, Features: features, Logger: d.log})
	if err != nil {
		return err
	}
	defer dev.Close()

	d.view.waiting("acquiring a subnet")
	member, err := d.join(ctx, src, node, previous)
	if err != nil {
		return err
	}
	subnet := member.subnet
	vtep, err := tunnel.New(tunnel.Config{
		Device:      dev,
		Underlay:    conn,
		Framing:     node.framing,
		Network:     node.network,
		Subnet:      subnet,
		Port:        node.port,
		MTU:         node.mtu,
		Jumbo:       max(16<<10, node.iface.MTU), // beyond any Ethernet's jumbo frame
		SourceCheck: d.opts.sourceCheck,
	})
	if err != nil {
		return err
	}
	state, err := host.Setup(d.hostConfig(dev.Name(), subnet, src.config, node.mtu))
	if err != nil {
		return err
	}
	defer func() {
		if err := state.Undo(); err != nil {
			d.log.Error("could not undo every change to the host; run \"muslin cleanup\"", "err", err)
		}
	}()
	file := lease.SubnetFile{Network: src.config.Network, Subnet: subnet, MTU: node.mtu, IPMasq: d.opts.flags.ipMasq}
	if err := file.Write(d.opts.flags.subnetFile); err != nil {
		return err
	}
	d.view.set(func(v *viewState) {
		v.member, v.vtep, v.conn, v.dev, v.host = member, vtep, conn, dev, state
	})
	member.onTable = vtep.SetTable
	d.givePrivilegesUp(state.Needs())
	mtu := &mtuFollower{d: d, node: node, vtep: vtep, conn: conn, state: state, file: file}
	tasks := append(member.tasks(), vtep.Run, conn.Run, state.Run, mtu.run,
		func(ctx context.Context) error { return reportDrops(ctx, d.log, vtep) },
		func(ctx context.Context) error { return notifySystemd(ctx, d.log) })
	return d.runTasks(ctx, tasks)
}

func (d *daemon) hostConfig(tun string, subnet netip.Prefix, cfg *lease.Config, mtu encap.InnerMTU) host.SetupConfig {
	f := d.opts.flags
	return host.SetupConfig{
		TUN:             tun,
		Address:         netip.PrefixFrom(subnet.Addr(), subnet.Addr().BitLen()),
		MTU:             int(mtu),
		Network:         cfg.Network,
		Subnet:          subnet,
		BlackholeRoute:  f.blackhole,
		ForwardRules:    f.forwardRules,
		IPMasq:          f.ipMasq,
		MasqRandomFully: !f.noRandom,
		UseNFTables:     cfg.EnableNFTables,
		Resync:          d.opts.resync,
		StateDir:        f.stateDir,
		Logger:          d.log,
	}
}

// runTasks runs all that goes on side by side, until ctx ends or one of it fails.
func (d *daemon) runTasks(ctx context.Context, tasks []func(context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, task := range tasks {
		g.Go(func() error { return task(ctx) })
	}
	d.view.set(func(v *viewState) { v.state, v.running = stateRunning, true })
	d.logStart()
	return g.Wait()
}

// logStart says in one place what runs now and what this kernel gives.
func (d *daemon) logStart() {
	s := d.status()
	attrs := []any{"subnet", s.Node.Subnet, "network", s.Node.Network, "public_ip", s.Node.PublicIP, "iface", s.Node.Iface,
		"backend", s.Node.Backend, "port", s.Node.Port, "mtu", s.Node.MTU, "tun", s.Node.TUN, "version", s.Version, "kernel", s.Kernel}
	if s.Node.VNI != nil {
		attrs = append(attrs, "vni", strconv.Itoa(int(*s.Node.VNI)), "vtep", s.Node.VtepMAC)
	}
	d.log.Info("carrying packets", attrs...)
	for _, f := range s.Features {
		d.log.Info("feature", "feature", f.Name, "on", f.On, "reason", f.Reason)
	}
	if os.Getenv("NOTIFY_SOCKET") == "" {
		d.log.Info("this node, its peers and every drop: muslin status --control " + d.opts.flags.control)
	}
}
