package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"muslin/cmd/muslin/privilege"
	"muslin/cmd/muslin/rescue"
	"muslin/cmd/muslin/sight"
	"muslin/lease"
	"muslin/tunnel/handover"
	"muslin/tunnel/host"
	"muslin/tunnel/kernel"
)

func newRunCommand() *cobra.Command {
	var flags runFlags
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the daemon: join the overlay network and carry its packets",
		Long: `run joins this host to the overlay network: it takes a subnet by a lease in etcd, opens a TUN device
with one route for the whole network, and carries packets to and from the other nodes. With the host-gw backend
it opens none, and keeps a route of the kernel's for each node.

It stays in the foreground and logs to standard error. SIGTERM or Ctrl-C ends it in good order: what it
changed in the host is undone, the lease stays and is taken up again at the next start.

Killed, it leaves the TUN device and its routes as they are, and the next start takes them up again. One that
runs is replaced without a lost packet by "muslin run --replace" with the same flags: by another version, too.

What it needs: root (or CAP_NET_ADMIN), /dev/net/tun, and an etcd (v3) that all nodes reach, which the
first host can run itself with --embedded-etcd.`,
		Example: `  # two hosts, without an etcd of your own:
  first#  muslin run --embedded-etcd --network 10.244.0.0/16
  second# muslin run --etcd-endpoints http://FIRST:2379

  # among flannel nodes: the network's config is in etcd already
  muslin run --etcd-endpoints https://etcd:2379 --etcd-cafile ca.pem --etcd-certfile node.pem --etcd-keyfile node-key.pem

  # several networks in one process, each as the file says; SIGHUP has it read the file again
  muslin run --config /etc/muslin/networks.yaml

  # put a new version in place of the daemon that runs; if it does not work, that one goes on
  muslin run --replace --etcd-endpoints https://etcd:2379

  # the store is gone; saved were "muslin leases list --output peers-file" and "muslin config get"
  muslin run --peers-file peers.json --net-config-path net-conf.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// Whoever read our log may go away; the daemon stays, and undoes its changes at its end.
			signal.Ignore(syscall.SIGPIPE)
			ctx, gone := context.WithCancel(cmd.Context())
			defer gone()
			if flags.config != "" {
				asked := make(chan struct{}, 1)
				go takeHangups().run(ctx, func() {
					select {
					case asked <- struct{}{}:
					default: // it is about to be read
					}
				}, gone)
				return runNetworks(ctx, &flags, cmd.Flags(), cmd.ErrOrStderr(), asked)
			}
			if err := goOn(cmd.Flags(), flags.stateDir); err != nil {
				return err
			}
			opts, err := flags.options(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if !hangupsIgnored {
				go takeHangups().run(ctx, func() { nothingToReload(opts.log) }, gone)
			}
			d := newDaemon(opts)
			err = d.run(ctx)
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
//  2. source     the network's config and what it means here (node.go): from etcd, embedded or not, or a
//     peers file (store.go); or from what was known last, without waiting for etcd (remember.go)
//  3. network    conflicts with the host
//  4. carry      sockets, TUN device, lease; then host set-up, subnet file, what a rescue takes from flannel (rescued.go), and
//     all tasks side by side (carry.go)
//
// What a step opened or changed it undoes when it returns. With --replace, what the running daemon has open is
// taken over instead (place.go), and that one carries packets until the last step (succeed.go).
type daemon struct {
	name    string    // of the network, where the process has several
	among   *networks // it is one of these; nil: the process has no other
	settled func()    // with among: to be called when packets are carried

	opts *options
	log  *slog.Logger
	view view // what status shows of the rest

	place     place
	control   *net.UnixListener
	endpoints endpoints
	lock      *os.File      // of the state directory
	alone     chan struct{} // closed by begin

	watcher *sight.Watcher // of packets that are traced

	requests  chan *net.UnixConn  // of a process that wants our place
	busy      atomic.Bool         // with one
	departure *handover.Departure // a successor has our place; nil: none has
	left      bool                // everything stays in place for the next daemon

	rescue     *rescue.Journal  // what was taken from flannel (rescued.go); nil: nothing
	resumed    bool             // by an earlier daemon
	toStop     []rescue.Process // flannelds that are to be stopped for it
	handedBack atomic.Bool      // `muslin rescue --undo` gives it back
	portFree   chan struct{}    // closed by freed: nothing of this daemon's has the port any more
	freed      func()
	given      bool   // it was given back
	end        func() // ends the daemon, as SIGTERM does
}

func newDaemon(opts *options) *daemon {
	d := &daemon{opts: opts, log: opts.log, alone: make(chan struct{}), requests: make(chan *net.UnixConn, 1), portFree: make(chan struct{})}
	d.freed = sync.OnceFunc(func() { close(d.portFree) })
	return d
}

func (d *daemon) run(ctx context.Context) (err error) {
	ctx, d.end = context.WithCancel(ctx)
	defer d.end()
	if err := kernel.Preflight(); err != nil {
		return err
	}
	if d.among == nil {
		if err := privilege.Inherit(privilege.Of(unix.CAP_NET_ADMIN, unix.CAP_NET_RAW)); err != nil {
			d.log.Warn("iptables may be refused by the kernel", "err", err)
		}
	}
	iface, err := chooseInterface(d.opts.iface)
	if err != nil {
		return err
	}
	d.view.set(func(v *viewState) { v.iface = iface })
	if d.place, err = d.findPlace(ctx); err != nil {
		return err
	}
	defer func() { d.place.end(err) }()
	if err := d.listen(); err != nil {
		return err
	}
	defer d.lock.Close()
	defer d.control.Close() // removes the socket's file, too
	if err := d.openRescue(); err != nil {
		return err
	}
	defer d.giveBack()
	if d.place.from == nil {
		if err := d.begin(); err != nil {
			return err
		}
	}
	if err := d.serve(ctx, iface); err != nil {
		return err
	}
	switch {
	case d.departure != nil:
		d.log.Info("stopped; another process has this daemon's place")
		d.departure.Left()
	case d.view.get().member != nil:
		d.log.Info("stopped; the lease stays")
	default:
		d.log.Info("stopped before there was a lease")
	}
	return nil
}

// chooseInterface is the underlay's interface by IPv4, or on a host that has none by IPv6. What the network's config wants
// of the two is not known yet (newNode).
func chooseInterface(opts host.InterfaceOptions) (host.Interface, error) {
	iface, err := host.ChooseInterface(opts)
	if err == nil {
		return iface, nil
	}
	opts.Families = host.IPv6
	if six, err6 := host.ChooseInterface(opts); err6 == nil {
		return six, nil
	}
	return iface, err
}

// listen opens what others find this daemon by, and locks out a second one. After an error nothing of it is
// open.
func (d *daemon) listen() (err error) {
	if d.control, err = d.place.listenControl(d.opts.flags.control); err != nil {
		return err
	}
	if d.lock, err = d.place.lockState(d.opts.flags.stateDir); err != nil {
		d.control.Close()
		return err
	}
	if d.endpoints, err = d.place.listenEndpoints(&d.opts.endpoints); err != nil {
		d.control.Close()
		d.lock.Close()
	}
	return err
}

// serve runs the network part and, around it, the servers, so that status answers until everything is undone. A
// server that fails ends it.
func (d *daemon) serve(ctx context.Context, iface host.Interface) error {
	servers, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, failed := errgroup.WithContext(servers)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(failed, cancel)()
	serve := func(l net.Listener, serve func(context.Context, net.Listener) error) {
		g.Go(func() error {
			defer l.Close()
			return d.whenAlone(func(ctx context.Context) error { return serve(ctx, l) })(servers)
		})
	}
	answer := func(l net.Listener, h http.Handler) {
		serve(l, func(ctx context.Context, l net.Listener) error { return serveHTTP(ctx, l, h) })
	}
	answer(d.control, ofNetwork(d.name, d.capturing(d.tracing(d.withRescue(controlHandler(d.statusOf, d.watch, d.serveRoute, d.requestPlace))))))
	says := said{alive: d.alive, ready: d.readiness, networks: d.networks, scrape: d.scrape, watch: d.watchOnly, findings: d.findings}
	d.endpoints.serve(answer, &d.opts.endpoints, says, d.log)
	d.endpoints.page(serve, &d.opts.endpoints, says, d.log)
	err := d.network(ctx, iface)
	if errors.Is(err, lease.ErrOutdated) {
		d.log.Warn("starting anew, without what was known of the network", "err", err)
		if err = d.forget(); err == nil {
			err = d.network(ctx, iface)
		}
	}
	d.freed()
	if d.departure != nil {
		d.control.SetUnlinkOnClose(false)
	}
	stop()
	if errors.Is(err, context.Canceled) || errors.Is(err, errReplaced) {
		err = nil // stopped while it waited for something, or replaced
	}
	return errors.Join(err, g.Wait())
}

// network joins the overlay and carries packets until ctx ends.
func (d *daemon) network(ctx context.Context, iface host.Interface) error {
	d.view.set(func(v *viewState) { v.running = false })
	remembered := d.recall()
	src, node, err := d.source(ctx, iface, remembered)
	if err != nil {
		return err
	}
	defer src.close()
	for _, w := range src.config.Warnings {
		d.log.Warn("network config: " + w)
	}
	previous := d.previousSubnet(ctx, src, node, remembered)
	if err := d.place.fits(d.settings(node, previous)); err != nil {
		return err
	}
	if d.among != nil {
		if err := d.among.join(d.name, node); err != nil {
			return err
		}
		defer d.among.part(d.name)
	}
	if err := d.clearSecond(node); err != nil {
		return err
	}
	if err := d.beginTaking(ctx); err != nil {
		return err
	}
	found, err := findDevices(node) // of no use to host-gw: Setup clears it away
	if err != nil {
		return err
	}
	if d.place.from == nil { // or else the running daemon has made sure
		if err := d.checkConflicts(node, previous, found); err != nil {
			return err
		}
	}
	d.view.set(func(v *viewState) { v.node, v.warnings = node, src.config.Warnings })
	return d.carry(ctx, src, node, previous, found)
}

// source is where the leases come from, and what the network's config means on this host.
func (d *daemon) source(ctx context.Context, iface host.Interface, known *lease.Memory) (*source, *node, error) {
	src, node, err := d.remembered(known, iface)
	switch {
	case err == nil:
		return src, node, nil
	case d.place.from != nil && d.opts.flags.peersFile == "":
		return nil, nil, fmt.Errorf("--replace: this daemon cannot go on with what the running one knows of the network: %w; stop that one, and start this one without --replace", err)
	case !errors.Is(err, errNoMemory):
		d.log.Info("starting without what was known of the network", "reason", err)
	}
	if src, err = d.openStore(ctx, iface); err != nil {
		return nil, nil, err
	}
	if node, err = d.newNode(src, iface); err != nil {
		src.close()
		return nil, nil, err
	}
	return src, node, nil
}
