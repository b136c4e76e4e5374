package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/health"
	"muslin/lease"
	"muslin/tunnel"
	"muslin/tunnel/host"
	"muslin/tunnel/kernel"
	"muslin/tunnel/pulse"
	"muslin/tunnel/tun"
	"muslin/tunnel/underlay"
	"muslin/tunnel/waiter"
)

// device is what both kinds of TUN device have beside moving packets.
type device interface {
	tunnel.Device
	Name() string
	Features() []kernel.Feature
	Files() ([]*os.File, error)
	Persist() error
	Keep(bool)
}

// openTUN opens the TUN device. One that a killed daemon left, and that cannot be as it is wanted, gives way to
// a new one.
func (d *daemon) openTUN(cfg tun.Config) (dev device, err error) {
	if cfg.Features.On(kernel.TUNDrain) {
		dev, err = tun.Open(cfg)
	} else {
		dev, err = tun.OpenPortable(cfg)
	}
	switch {
	case err == nil:
		return dev, nil
	case !errors.Is(err, tun.ErrOtherMode):
		return nil, err
	case !cfg.Reuse:
		return nil, fmt.Errorf("%w: stop the running daemon, and start this one without --replace", err)
	}
	d.log.Warn("the TUN device of a daemon that was killed is made anew, as it is wanted otherwise now", "tun", cfg.Name, "err", err)
	if err := host.DeleteLeftover(cfg.Name); err != nil {
		return nil, fmt.Errorf("delete the TUN device %q: %w; run `muslin cleanup`", cfg.Name, err)
	}
	cfg.Reuse = false
	return d.openTUN(cfg)
}

// queueCount is --queues, or what this machine gains from: each queue keeps two threads busy, and one carries
// some ten Gb/s. A device that is taken over has as many as it has.
func (d *daemon) queueCount(features kernel.Features, node *node) (int, error) {
	wanted := d.opts.flags.queues
	if node.encrypts() { // whose engine has one
		if wanted > 1 {
			return 0, fmt.Errorf("--queues %d: with wireguard there is one; leave the flag out", wanted)
		}
		wanted = 1
	}
	if n, settled, err := d.place.queues(node, wanted); settled || err != nil {
		return n, err
	}
	switch {
	case !features.On(kernel.MultiQueue):
		return 1, nil
	case wanted != 0:
		return wanted, nil
	}
	return min(max(1, runtime.NumCPU()/4), 8), nil
}

// keepProcessors gives the Go runtime more processors than there are workers. A worker in a system call keeps
// its processor only while another one is idle; with none to spare the runtime's monitor takes it away every
// few microseconds and wakes a thread that finds nothing to do (docs/decisions/processors.md). These workers are
// added to those of other networks and of the other address family, until release.
func keepProcessors(n int) (release func()) {
	if os.Getenv("GOMAXPROCS") != "" {
		return func() {}
	}
	workers.add(n)
	return sync.OnceFunc(func() { workers.add(-n) })
}

// workers are those of the whole process.
var workers workerCount

type workerCount struct {
	mu sync.Mutex
	n  int
}

func (w *workerCount) add(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n += n
	runtime.GOMAXPROCS(runtime.NumCPU() + w.n)
}

// carry opens both sides, takes the lease, and runs everything until ctx ends or something fails. found says
// that the TUN device of a killed daemon is there.
func (d *daemon) carry(ctx context.Context, src *source, node *node, previous previousSubnets, found foundDevices) error {
	c, err := d.openCarrier(ctx, node, found)
	if err != nil && d.place.isKept() {
		c, err = d.openWithoutKept(ctx, node, previous, err)
	}
	if err != nil {
		return err
	}
	defer c.close()

	d.view.waiting("acquiring a subnet")
	member, err := d.join(ctx, src, node, previous)
	if err != nil {
		return err
	}
	var families []family
	var state hosts
	for i, n := range node.all() {
		one := parts(c)[i]
		if i > 0 && node.oneTunnel() { // whose device was set up for both
			families = append(families, family{n, one, state[0]})
			continue
		}
		s, err := host.Setup(d.hostConfig(one.name(), member, src.config, n))
		if err != nil {
			return err
		}
		families, state = append(families, family{n, one, s}), append(state, s)
		defer d.undo(s)
	}
	routers, closeRouters, err := d.openRouters(node, member)
	if err != nil {
		return err
	}
	defer closeRouters()
	c.persist(d)
	file := lease.SubnetFile{Network: src.config.Network, Subnet: member.subnet, Network6: src.config.IPv6Network, Subnet6: member.subnet6,
		MTU: node.mtu, IPMasq: d.opts.flags.ipMasq}
	if err := file.Write(d.opts.flags.subnetFile); err != nil {
		return err
	}
	for i, n := range node.all() {
		if err := d.take(n); err != nil {
			return err
		}
		if err := parts(c)[i].connect(d, n, member.of(n), member.peers.Table()); err != nil {
			return err
		}
	}
	if err := d.takeDirect(); err != nil {
		return err
	}
	takeBack := sync.OnceFunc(d.leaveWithSystemd(c))
	defer takeBack()
	prober, watch := d.openProber(node, c), health.NewWatch(c.queues)
	d.openWatcher(c, node)
	defer d.watcher.Close()
	answers := d.openAnswers(ctx, node, member, c)
	defer answers.close()
	d.view.set(func(v *viewState) {
		v.member, v.carrier, v.mtu, v.host, v.routers, v.prober, v.workers = member, c, file.MTU, state, routers, prober, watch
	})
	d.givePrivilegesUp(state.Needs())
	mtu := &mtuFollower{d: d, node: node, families: families, file: file}
	r := &running{d: d, src: src, node: node, member: member, carrier: c, state: state, routers: routers, prober: prober, answers: answers, workers: watch}
	err = runTasks(ctx, r.tasks(mtu))
	d.part(c, takeBack, err)
	return err
}

// foundDevices says of which names the devices of a killed daemon are there.
type foundDevices map[string]bool

func findDevices(node *node) (foundDevices, error) {
	found := make(foundDevices)
	for _, n := range node.all() {
		there, err := host.Leftover(n.stateDir, n.tun)
		if err != nil {
			return nil, err
		}
		found[n.tun] = there
	}
	return found, nil
}

// openCarrier opens what the backend needs, or takes it over, for each family.
func (d *daemon) openCarrier(ctx context.Context, node *node, found foundDevices) (carrier, error) {
	four, err := d.openFamily(ctx, node, found[node.tun])
	if err != nil || node.second == nil {
		return four, err
	}
	if node.oneTunnel() {
		c, err := withSix(four)
		if err != nil {
			four.close()
		}
		return c, err
	}
	six, err := d.openFamily(ctx, node.second, found[node.second.tun])
	if err != nil {
		four.close()
		return nil, err
	}
	return both{four, six}, nil
}

func (d *daemon) openFamily(ctx context.Context, node *node, found bool) (part, error) {
	if node.hostGateway() {
		return absent{}, nil
	}
	if node.encrypts() {
		if k, err := d.openKernelWireGuard(node, found); k != nil || err != nil {
			return k, err
		}
	}
	if found && host.TypeOf(node.tun) == host.TypeWireGuard { // which holds the port
		if err := host.DeleteLeftover(node.tun); err != nil {
			return nil, fmt.Errorf("delete the WireGuard device %q: %w; run `muslin cleanup`", node.tun, err)
		}
		found = false
	}
	return d.openSides(ctx, node, found)
}

// openSides opens the sockets and the TUN device, or takes them over, with the features that this kernel has.
func (d *daemon) openSides(ctx context.Context, node *node, found bool) (part, error) {
	d.view.waiting("trying out the kernel's features")
	wanted := d.opts.features
	if d.opts.sourceCheck == tunnel.SourceCheckOff {
		wanted = wanted.Without(kernel.EarlyFilter, "--source-check=off lets every address in")
	}
	if node.encrypts() {
		wanted = wanted.Without(kernel.BusyPoll, "with wireguard the processors have better to do")
	}
	features := d.examine(ctx, wanted)
	queues, err := d.queueCount(features, node)
	if err != nil {
		return nil, err
	}
	var turns *waiter.Turns
	if features.On(kernel.BusyPoll) {
		turns = new(waiter.Turns)
	}
	var conn outer
	var open func() (outer, error)
	cfg := underlay.Config{
		Local: node.iface.Addr, Port: node.port, Queues: queues, Features: features, MaxSegments: kernel.UDPMaxSegments(),
		Logger: d.log, Turns: turns, Adopt: d.place.of(node).sockets}
	senders, receivers := queues, queues
	addr := netip.AddrPortFrom(node.iface.Addr, node.port)
	switch {
	case node.encrypts():
		conn, err = d.openEncrypted(node)
		err = host.ExplainBind(addr, err)
	case d.sharesPort(node):
		var m *portMember
		if m, err = d.among.ports.join(d.name, node, cfg); err == nil {
			conn, turns, receivers = m, m.shared.turns, 0 // which the port has
		}
	default:
		open = func() (outer, error) {
			conn, err := underlay.Open(cfg)
			if err != nil {
				return nil, host.ExplainBind(addr, err)
			}
			return conn, nil
		}
		var waits bool
		if waits, err = d.waitsForPort(node); err == nil && !waits {
			conn, err = open()
		}
	}
	if err != nil {
		return nil, err
	}
	release := keepProcessors(senders + receivers)
	dev, err := d.openTUN(tun.Config{
		Name: node.tun, Queues: queues, Features: features, Logger: d.log, Turns: turns, Park: node.encrypts(), Adopt: d.place.of(node).tun, Reuse: found})
	if err != nil {
		release()
		if conn != nil {
			conn.Close()
		}
		return nil, err
	}
	return &sides{conn: conn, open: open, dev: dev, six: node.six, release: release}, nil
}

// sharesPort reports whether other networks of this process may have the node's UDP port, too.
func (d *daemon) sharesPort(node *node) bool {
	return d.among != nil && node.backend == lease.BackendVXLAN
}

// examine says which of the wanted features this kernel has.
func (d *daemon) examine(ctx context.Context, wanted kernel.Features) kernel.Features {
	if d.among != nil {
		return d.among.examine(ctx, wanted)
	}
	features, _ := kernel.Examine(ctx, wanted)
	return features
}

// openWithoutKept is openSides when what systemd has kept of the last daemon could not be taken over.
func (d *daemon) openWithoutKept(ctx context.Context, node *node, previous previousSubnets, why error) (carrier, error) {
	if err := d.giveUpKept(ctx, why); err != nil {
		return nil, err
	}
	found, err := findDevices(node)
	if err != nil {
		return nil, err
	}
	if err := d.checkConflicts(node, previous, found); err != nil {
		return nil, err
	}
	return d.openCarrier(ctx, node, found)
}

// openProber opens what asks the peers whether they are alive. It is no reason not to start. With host-gw nobody is
// asked: no node has an address of its own in its subnet.
func (d *daemon) openProber(node *node, c carrier) *pulse.Prober {
	if c.name() == "" {
		return pulse.New(pulse.Config{Logger: d.log})
	}
	cfg := pulse.Config{Table: c.table, Logger: d.log}
	for _, n := range node.all() {
		open, to := pulse.Open, &cfg.Conn
		if n.six {
			open, to = pulse.Open6, &cfg.Conn6
		}
		conn, err := open()
		if err != nil {
			d.log.Warn("of peers that nothing is heard of it will not be known whether they are alive", "network", n.network, "err", err)
			continue
		}
		*to = conn
	}
	return pulse.New(cfg)
}

// undo puts the host back as it was, unless another daemon runs there or is to go on with it.
func (d *daemon) undo(state *host.State) {
	if d.departure != nil || d.left || !d.isAlone() {
		return
	}
	if err := state.Undo(); err != nil {
		d.log.Error("could not undo every change to the host; run \"muslin cleanup\"", "err", err)
	}
}

func (d *daemon) hostConfig(tun string, member *membership, cfg *lease.Config, node *node) host.SetupConfig {
	f := d.opts.flags
	c := host.SetupConfig{
		Name:            d.name,
		TUN:             tun,
		MTU:             int(node.mtu),
		Outer:           host.Outer{Iface: node.iface.Name, Port: node.port, IPv6: node.six || node.wg.Mode == lease.ModeIPv6},
		DirectRoutes:    node.directRouting,
		BlackholeRoute:  f.blackhole,
		ForwardRules:    f.forwardRules,
		IPMasq:          f.ipMasq,
		MasqRandomFully: !f.noRandom,
		UseNFTables:     cfg.EnableNFTables,
		Resync:          d.opts.resync,
		StateDir:        node.stateDir,
		Shared:          d.place.from != nil,
		Logger:          d.log,
	}
	carried := node.all()
	if !node.oneTunnel() {
		carried = carried[:1]
	}
	for _, n := range carried {
		subnet := member.of(n)
		address := netip.PrefixFrom(subnet.Addr(), subnet.Addr().BitLen())
		if n.six {
			c.Address6, c.Network6, c.Subnet6 = address, n.network, subnet
		} else {
			c.Address, c.Network, c.Subnet = address, n.network, subnet
		}
	}
	return c
}

// tasks are all that goes on side by side. With another daemon in our place, most wait until it is gone.
func (r *running) tasks(mtu *mtuFollower) []task {
	d := r.d
	r.guards = []*pausable{newPausable(mtu.run)}
	for _, s := range r.state {
		r.guards = append(r.guards, newPausable(s.Run))
	}
	for _, router := range r.routers.all() {
		r.guards = append(r.guards, newPausable(router.Run))
	}
	all := append(r.carrier.tasks(), r.member.peers.Run, r.prober.Run, r.workers.Run)
	if r.member.keeper != nil {
		memory := newRememberer(d.memoryPath(), d.log)
		memory.know = func() *lease.Memory { return r.member.memory(r.src) }
		r.member.changed = memory.touch
		r.keepers = []*pausable{newPausable(r.member.keeper.Run), newPausable(memory.run)}
		all = append(all, r.member.feed.Run, r.member.config.Run)
	}
	r.member.onTable = r.setTable
	for _, p := range append(r.guards, r.keepers...) {
		all = append(all, d.whenAlone(p.Run))
	}
	if r.src.memory != nil {
		all = append(all, d.whenAlone(func(ctx context.Context) error { return d.catchUp(ctx, r.src) }))
	}
	if d.place.from != nil {
		all = append(all, r.succeed)
	}
	all = append(all, d.watcher.Run)
	all = append(all, d.answerPeers(r.answers)...)
	all = append(all,
		d.whenAlone(d.announce),
		d.whenAlone(d.standIn),
		d.whenAlone(r.giveWay),
		d.whenAlone(r.leave),
		func(ctx context.Context) error { return reportDrops(ctx, d.log, r.carrier) })
	if d.among == nil {
		all = append(all, d.whenAlone(func(ctx context.Context) error {
			return notifySystemd(ctx, d.log, func() bool { return d.departure != nil || d.left })
		}))
	}
	return all
}

// runTasks runs them until ctx ends or one of them fails.
func runTasks(ctx context.Context, tasks []task) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, t := range tasks {
		g.Go(func() error { return t(ctx) })
	}
	return g.Wait()
}

// announce says that packets are carried.
func (d *daemon) announce(context.Context) error {
	d.view.set(func(v *viewState) { v.state, v.running, v.since = control.StateRunning, true, time.Now() })
	d.logStart()
	if d.settled != nil {
		d.settled()
	}
	return nil
}

// logStart says in one place what runs now and what this kernel gives.
func (d *daemon) logStart() {
	s := d.statusOf(those(control.Peers{}))
	attrs := []any{"subnet", s.Node.Subnet, "network", s.Node.Network, "public_ip", s.Node.PublicIP, "iface", s.Node.Iface,
		"backend", s.Node.Backend, "port", s.Node.Port, "mtu", s.Node.MTU, "tun", s.Node.TUN, "version", s.Version, "kernel", s.Kernel}
	if s.Node.Subnet6 != "" {
		attrs = append(attrs, "subnet_ipv6", s.Node.Subnet6, "network_ipv6", s.Node.Network6, "public_ipv6", s.Node.PublicIPv6, "tun_ipv6", s.Node.TUN6)
	}
	if s.Node.VNI != nil {
		attrs = append(attrs, "vni", strconv.Itoa(int(*s.Node.VNI)), "vtep", s.Node.VtepMAC)
	}
	d.log.Info("carrying packets", attrs...)
	if warning := d.view.get().node.warnStrict(); warning != "" {
		d.log.Warn(warning)
	}
	for _, f := range s.Features {
		d.log.Info("feature", "feature", f.Name, "on", f.On, "reason", f.Reason)
	}
	if os.Getenv("NOTIFY_SOCKET") == "" {
		d.log.Info("this node, its peers and every drop: muslin status --control " + d.opts.flags.control)
	}
}
