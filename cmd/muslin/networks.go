package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"muslin/cmd/muslin/fdstore"
	"muslin/cmd/muslin/privilege"
	"muslin/lease"
	"muslin/tunnel/host"
	"muslin/tunnel/kernel"
)

// networks are several networks in one process (docs/decisions/several-networks.md). Each is a daemon as it would be
// alone: with its state directory, its control socket, its lease, and what it changes in the host. Here is what they
// have in common: who runs, what each of them may have that no other one has, the host's forwarding, the process's
// rights, and the control socket that speaks for all.
type networks struct {
	p      *processSettings
	log    *slog.Logger
	common *host.Common

	control   *net.UnixListener
	endpoints endpoints
	lock      *os.File // of the process's state directory

	ports *ports // that vxlan networks have in common

	leaving chan struct{} // closed when everything is to stay in place for the next process

	mu      sync.Mutex
	members map[string]*member
	joined  map[string]*node // of those that are set up in the host, or about to be
	loaded  time.Time
	refused string // why the file, as it was read last, was not taken

	kept    reasons // capabilities, once the others were given up
	keptErr error

	examining sync.Mutex
	examined  map[string]kernel.Features // by what was wanted
}

// member is a network that runs, or is to.
type member struct {
	*networkSettings
	stop context.CancelFunc
	done chan struct{} // closed when all of it is undone

	settled func() // it runs, or has failed once
	ready   chan struct{}

	mu     sync.Mutex
	daemon *daemon
	failed error // why it does not run; nil: it does, or is starting
	again  time.Time
}

// How long a network that has failed waits until it starts again: from the first time on twice as long each time, but
// from the beginning after it has run for the longest of these.
const (
	firstPause   = time.Second
	longestPause = time.Minute
)

// settleTime is how long at most the process waits for its networks until it gives up what it needs for its start alone,
// and tells systemd that it is ready: one that waits for its etcd does not keep the others from that.
const settleTime = 10 * time.Second

// runNetworks runs what --config says until ctx ends. A signal in hangups has it read the file again.
func runNetworks(ctx context.Context, flags *runFlags, set *pflag.FlagSet, logTo io.Writer, hangups <-chan struct{}) error {
	log, err := newLogger(logTo, flags.logLevel, flags.logFormat)
	if err != nil {
		return err
	}
	p := &processSettings{flags: flags, set: set, log: log}
	if err := p.check(); err != nil {
		return err
	}
	if flags.store.passwordFile == "" {
		if err := flags.store.takePassword(log); err != nil {
			return err
		}
	}
	all, err := readNetworks(p)
	if err != nil {
		return err
	}
	if err := p.takeFromFile(); err != nil {
		return err
	}
	where, err := flags.endpointOptions()
	if err != nil {
		return err
	}
	if err := kernel.Preflight(); err != nil {
		return err
	}
	if err := privilege.Inherit(privilege.Of(unix.CAP_NET_ADMIN, unix.CAP_NET_RAW)); err != nil {
		log.Warn("iptables may be refused by the kernel", "err", err)
	}
	n := &networks{p: p, log: log, leaving: make(chan struct{}), members: make(map[string]*member), joined: make(map[string]*node),
		examined: make(map[string]kernel.Features), ports: newPorts(), loaded: time.Now()}
	if err := n.open(ctx, &where); err != nil {
		return err
	}
	defer n.lock.Close()
	defer n.control.Close()
	return n.run(ctx, all, &where, hangups)
}

// open is what no other process may have as well.
func (n *networks) open(ctx context.Context, where *endpointOptions) (err error) {
	var none place
	if n.control, err = none.listenControl(n.p.flags.control); err != nil {
		return err
	}
	if n.lock, err = none.lockState(n.p.flags.stateDir); err != nil {
		n.control.Close()
		return err
	}
	if n.endpoints, err = none.listenEndpoints(where); err == nil {
		n.common, err = host.OpenCommon(n.p.flags.stateDir, time.Duration(n.p.flags.resync)*time.Second, n.log)
	}
	if err != nil {
		n.control.Close()
		n.lock.Close()
		n.endpoints.close()
		return err
	}
	n.dropKept(ctx)
	return nil
}

// dropKept has systemd close what it has kept of a daemon with one network.
func (n *networks) dropKept(ctx context.Context) {
	counts := make(map[string]int)
	for _, f := range fdstore.Received() {
		counts[f.Name]++
		f.File.Close()
	}
	if err := dropKept(ctx, counts); err != nil && len(counts) > 0 {
		n.log.Warn("systemd was not told to close what it keeps of the last daemon", "err", err)
	}
}

func (n *networks) run(ctx context.Context, all []*networkSettings, where *endpointOptions, hangups <-chan struct{}) error {
	servers, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, failed := errgroup.WithContext(servers)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(failed, cancel)()
	serve := func(l net.Listener, serve func(context.Context, net.Listener) error) {
		g.Go(func() error {
			defer l.Close()
			return serve(servers, l)
		})
	}
	answer := func(l net.Listener, h http.Handler) {
		serve(l, func(ctx context.Context, l net.Listener) error { return serveHTTP(ctx, l, h) })
	}
	answer(n.control, n.handler())
	says := said{alive: n.alive, ready: n.readiness, networks: n.status, scrape: n.scrape, several: true, watch: n.watch, findings: n.findings}
	n.endpoints.serve(answer, where, says, n.log)
	n.endpoints.page(serve, where, says, n.log)
	g.Go(func() error { return n.common.Run(servers) })
	for _, s := range all {
		n.start(ctx, s)
	}
	n.log.Info("running several networks", "config", n.p.flags.config, "networks", n.names(), "version", buildVersion(),
		"status", "muslin status --control "+n.p.flags.control)
	g.Go(func() error { return n.settle(ctx) })

	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR2)
	defer signal.Stop(asked)
	left := false
	for !left && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-hangups:
			n.reload(ctx)
		case <-asked:
			left = true
			n.leave()
		}
	}
	n.wait(slices.Collect(maps.Values(n.all())))
	cancel()
	stop()
	err := g.Wait()
	if left {
		return cmp.Or(err, errLeft)
	}
	if undo := n.common.Undo(); undo != nil {
		n.log.Error("could not undo every change to the host; run \"muslin cleanup\"", "err", undo)
	}
	n.log.Info("stopped; the leases stay")
	return err
}

// all are the networks by their names, as they are now.
func (n *networks) all() map[string]*member {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.members)
}

func (n *networks) names() []string { return slices.Sorted(maps.Keys(n.all())) }

// wait waits until these have undone what they did.
func (n *networks) wait(members []*member) {
	for _, m := range members {
		<-m.done
	}
}

// start starts a network beside the others.
func (n *networks) start(ctx context.Context, s *networkSettings) {
	ctx, stop := context.WithCancel(ctx)
	m := &member{networkSettings: s, stop: stop, done: make(chan struct{}), ready: make(chan struct{})}
	m.settled = sync.OnceFunc(func() { close(m.ready) })
	m.begin(n)
	n.mu.Lock()
	n.members[s.name] = m
	n.mu.Unlock()
	go func() {
		defer close(m.done)
		defer stop()
		n.keepRunning(ctx, m)
	}()
}

// begin makes the daemon for the next try.
func (m *member) begin(n *networks) *daemon {
	d := newDaemon(m.opts)
	d.name, d.among, d.settled = m.name, n, m.settled
	m.mu.Lock()
	defer m.mu.Unlock()
	m.daemon, m.failed = d, nil
	return d
}

// keepRunning runs a network until ctx ends, whatever befalls it: the others have no part in that.
func (n *networks) keepRunning(ctx context.Context, m *member) {
	log := m.opts.log
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		began := time.Now()
		err := m.begin(n).run(ctx)
		if ctx.Err() != nil || errors.Is(err, errLeft) {
			if err != nil && !errors.Is(err, errLeft) {
				log.Error("the network did not end in good order", "err", err)
			}
			return
		}
		if time.Since(began) > longestPause {
			pause = firstPause
		}
		m.fail(err, time.Now().Add(pause))
		log.Error("the network does not run; the others do, and it starts again", "in", pause, "err", err)
		if wait(ctx, pause); ctx.Err() != nil {
			return
		}
	}
}

func (m *member) fail(err error, again time.Time) {
	m.mu.Lock()
	m.failed, m.again = cmp.Or(err, errors.New("it has ended")), again
	m.mu.Unlock()
	m.settled()
}

// now is the network as it is.
func (m *member) now() (d *daemon, again time.Time, failed error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.daemon, m.again, m.failed
}

func (m *member) running() bool {
	d, _, failed := m.now()
	return failed == nil && d.view.ready()
}

// reload reads the file again. Networks that are the same in it do not notice; a file that is wrong changes nothing.
func (n *networks) reload(ctx context.Context) {
	wanted, err := readNetworks(n.p)
	n.mu.Lock()
	n.refused = ""
	if err != nil {
		n.refused = err.Error()
	} else {
		n.loaded = time.Now()
	}
	n.mu.Unlock()
	if err != nil {
		n.log.Error("the file with the networks is wrong, and all stay as they are", "config", n.p.flags.config, "err", err)
		return
	}
	if !maps.Equal(n.p.inFile, n.p.taken) {
		n.log.Warn("what the file says of the page in the browser has changed: the next start takes it", "config", n.p.flags.config)
	}
	fresh := make(map[string]*networkSettings)
	for _, s := range wanted {
		fresh[s.name] = s
	}
	var removed, changed, added []string
	var stopping []*member
	same := 0
	for name, m := range n.all() {
		s := fresh[name]
		switch {
		case s == nil:
			removed = append(removed, name)
		case m.same(s):
			delete(fresh, name)
			same++
			continue
		default:
			changed = append(changed, name)
		}
		stopping = append(stopping, m)
	}
	for _, m := range stopping {
		m.stop()
	}
	n.wait(stopping)
	n.mu.Lock()
	for _, m := range stopping {
		delete(n.members, m.name)
	}
	n.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(fresh)) {
		if !slices.Contains(changed, name) {
			added = append(added, name)
		}
		n.start(ctx, fresh[name])
	}
	slices.Sort(removed)
	slices.Sort(changed)
	n.log.Info("read the file with the networks again", "config", n.p.flags.config, "added", added, "removed", removed, "changed", changed, "as_before", same)
}

// leave has every network that carries packets leave everything in its place, and ends the others.
func (n *networks) leave() {
	close(n.leaving)
	for _, m := range n.all() {
		if !m.running() {
			m.stop()
		}
	}
}

// join is asked by each network before it changes anything in the host, as soon as it knows what the network's config
// is. It refuses what another one has, and keeps the two apart.
func (n *networks) join(name string, node *node) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for other, theirs := range n.joined {
		if what := node.clash(theirs); what != "" && other != name {
			return fmt.Errorf("this network and network %s: %s", other, what)
		}
	}
	n.joined[name] = node
	err := n.common.Set(n.overlays())
	if err != nil {
		delete(n.joined, name)
		err = errors.Join(err, n.common.Set(n.overlays()))
	}
	return err
}

// part is join's counterpart, when everything is undone.
func (n *networks) part(name string) {
	select {
	case <-n.leaving:
		return
	default:
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.joined, name)
	if err := n.common.Set(n.overlays()); err != nil {
		n.log.Error("cannot undo what was changed in the host for a network that is gone", "net", name, "err", err)
	}
}

func (n *networks) overlays() []host.Overlay {
	var all []host.Overlay
	for _, name := range slices.Sorted(maps.Keys(n.joined)) {
		var o host.Overlay
		for _, half := range n.joined[name].all() {
			o.Iface = half.iface.Name
			if half.six {
				o.Network6 = half.network
			} else {
				o.Network = half.network
			}
		}
		all = append(all, o)
	}
	return all
}

// clash is a sentence about what two networks of one host cannot both have; empty: nothing.
func (n *node) clash(o *node) string {
	for _, ours := range n.all() {
		for _, theirs := range o.all() {
			if what := overlap([]netip.Prefix{ours.network}, []netip.Prefix{theirs.network}); what != "" {
				return what
			}
			if ours.iface.Addr != theirs.iface.Addr {
				continue
			}
			backend := func(n *node) lease.Backend { return lease.Backend{Type: n.backend, Port: n.port, VNI: n.vni} }
			if what := portClash(backend(ours), backend(theirs)); what != "" {
				return what
			}
		}
	}
	return ""
}

// examine is kernel.Examine, once for each set of features that is wanted: the answer is the same for all networks, and
// the full one takes rights that the process gives up after its start.
func (n *networks) examine(ctx context.Context, wanted kernel.Features) kernel.Features {
	n.examining.Lock()
	defer n.examining.Unlock()
	key := fmt.Sprint(wanted)
	if found, ok := n.examined[key]; ok {
		return found
	}
	found, _ := kernel.Examine(ctx, wanted)
	if ctx.Err() == nil {
		n.examined[key] = found
	}
	return found
}

// settle waits until the networks run as well as they will for now, gives up what the start alone needed, and tells
// systemd.
func (n *networks) settle(ctx context.Context) error {
	late, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	for _, m := range n.all() {
		select {
		case <-m.ready:
		case <-late.Done():
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	n.givePrivilegesUp()
	return notifySystemd(ctx, n.log, func() bool {
		select {
		case <-n.leaving:
			return true
		default:
			return false
		}
	})
}

// givePrivilegesUp leaves the process what it takes to set up a network: more may come.
func (n *networks) givePrivilegesUp() {
	keep := reasons{
		unix.CAP_NET_ADMIN:        "TUN devices, routes and firewall rules, of networks that are added, too",
		unix.CAP_NET_RAW:          "iptables-legacy speaks to the kernel through a raw socket, and a network that is added asks its peers whether they are alive by one",
		unix.CAP_NET_BIND_SERVICE: "a network that is added may have a port below 1024",
	}
	read, write := []string{n.p.flags.config}, []string{n.p.flags.stateDir, filepath.Dir(n.p.flags.control)}
	for _, m := range n.all() {
		read, write = append(read, m.flags.readAgain()...), append(write, m.flags.writtenTo()...)
	}
	keep.forFiles(read, write)
	err := privilege.Reduce(keep.set(), true)
	if err != nil {
		n.log.Warn("the process keeps rights that it does not need", "err", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.kept, n.keptErr = keep, err
}

func (n *networks) privileges() (kept reasons, keptErr error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.kept, n.keptErr
}
