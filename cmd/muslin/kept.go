package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"muslin/cmd/muslin/fdstore"
	"muslin/lease"
	"muslin/tunnel/handover"
	"muslin/tunnel/host"
)

// Under systemd, what packets wait in outlives the daemon: the unit's FileDescriptorStoreMax= has systemd keep
// the TUN device's queues and the sockets, and give them to the next daemon, which goes on with what has come
// meanwhile. That is so after a crash, and when the daemon was asked to leave for that (SIGUSR2).

// keptPlace is what systemd has kept of a daemon that has ended; the zero place where that is nothing.
func keptPlace() place {
	p := place{kept: fdstore.Received()}
	for _, f := range p.kept {
		switch f.Name {
		case fileTUN:
			p.tun = append(p.tun, f.File)
		case fileTUN + fileSix:
			p.six.tun = append(p.six.tun, f.File)
		case fileReceive + fileSix:
			p.six.sockets.Receive = append(p.six.sockets.Receive, f.File)
		case fileSend + fileSix:
			p.six.sockets.Send = append(p.six.sockets.Send, f.File)
		case fileReceive:
			p.sockets.Receive = append(p.sockets.Receive, f.File)
		case fileSend:
			p.sockets.Send = append(p.sockets.Send, f.File)
		}
	}
	return p
}

// isKept says that systemd has kept the place, so that no other daemon runs there.
func (p *place) isKept() bool { return p.from == nil && len(p.kept) > 0 }

// close closes what was kept, in this process.
func (p *place) close() {
	for _, f := range p.kept {
		f.File.Close()
	}
}

// giveUpKept has systemd close what it has kept, since this daemon wants it otherwise. What is bound and attached
// there cannot be opened anew before.
func (d *daemon) giveUpKept(ctx context.Context, why error) error {
	d.log.Warn("what systemd kept of the last daemon is not what this one wants: starting without it", "reason", why)
	counts := make(map[string]int)
	for _, f := range d.place.kept {
		counts[f.Name]++
	}
	d.place.close()
	d.place = place{}
	return dropKept(ctx, counts)
}

func dropKept(ctx context.Context, counts map[string]int) error {
	store := fdstore.Open()
	if !store.Exists() {
		return nil
	}
	var all []error
	for name, n := range counts {
		all = append(all, store.Drop(ctx, name, n))
	}
	return errors.Join(all...)
}

// leaveWithSystemd gives systemd what the next daemon is to go on with, and returns what takes it back when the
// daemon ends in good order. Without a systemd neither does anything.
func (d *daemon) leaveWithSystemd(c carrier) (takeBack func()) {
	store := fdstore.Open()
	if !store.Exists() || d.among != nil { // of several networks each would have to be told from the others
		return func() {}
	}
	var o handover.Offer
	err := c.offer(&o)
	counts, files := make(map[string]int), make(map[string][]*os.File)
	for _, f := range o.Files {
		counts[f.Name]++
		files[f.Name] = append(files[f.Name], f.File)
	}
	for name, all := range files {
		err = errors.Join(err, store.Keep(name, all))
	}
	o.Close()
	if err != nil {
		d.log.Warn("what packets wait in will not outlive a crash", "err", err)
	}
	return func() {
		if d.departure != nil || d.left {
			return
		}
		if err := dropKept(context.Background(), counts); err != nil {
			d.log.Warn("systemd was not told to close what it keeps of this daemon", "err", err)
		}
	}
}

// clearSecond clears away what a daemon that was killed has changed for IPv6 beside IPv4, where nothing has that place any more.
func (d *daemon) clearSecond(node *node) error {
	dir := filepath.Join(d.opts.flags.stateDir, stateIPv6)
	if node.second != nil && node.second.stateDir == dir || d.place.from != nil || !host.Journaled(dir) {
		return nil
	}
	if _, err := host.Cleanup(dir, d.log); err != nil {
		return fmt.Errorf("clear away what an earlier daemon left of IPv6: %w", err)
	}
	return nil
}

// checkConflicts looks for what stands in the daemon's way in this host. found says that the TUN device is there
// and ours; so is what systemd has kept.
func (d *daemon) checkConflicts(node *node, previous previousSubnets, found foundDevices) error {
	for _, n := range node.all() {
		if err := d.checkConflictsOf(n, previous.of(n), found[n.tun]); err != nil {
			return err
		}
	}
	return nil
}

func (d *daemon) checkConflictsOf(node *node, previous netip.Prefix, found bool) error {
	plan := host.Plan{
		Found: found || d.place.isKept(),
		VXLAN: node.backend == lease.BackendVXLAN,
		VNI:   node.vni.Uint32(),
	}
	if d.rescue != nil {
		plan.Taken, plan.Replaced = d.rescue.Names(), d.rescue.DirectPrefixes()
	}
	if node.six {
		plan.Network6, plan.Previous6 = node.network, previous
	} else {
		plan.Network, plan.Previous = node.network, previous
	}
	if node.hostGateway() {
		return host.CheckConflicts(plan)
	}
	plan.TUN = node.tun
	holdsPort := found && host.TypeOf(node.tun) == host.TypeWireGuard // the kernel's device, of a killed daemon
	if !d.place.isKept() && !holdsPort {
		plan.Listen = netip.AddrPortFrom(node.iface.Addr, node.port)
		plan.Shared = d.sharesPort(node)
	}
	return host.CheckConflicts(plan)
}

// errLeft ends a daemon that was asked to leave everything in its place.
var errLeft = errors.New("left everything in place for the next daemon")

// exitLeft is such a daemon's exit status. The unit has systemd start the next one.
const exitLeft = 75

// leave ends the daemon on SIGUSR2, with everything in its place: no packet is in its hands then.
func (r *running) leave(ctx context.Context) error {
	asked := make(chan os.Signal, 1)
	var all chan struct{}
	if r.d.among != nil {
		all = r.d.among.leaving
	} else {
		signal.Notify(asked, syscall.SIGUSR2)
		defer signal.Stop(asked)
	}
	select {
	case <-ctx.Done():
		return nil
	case <-asked:
	case <-all:
	}
	for _, p := range append(r.keepers, r.guards...) {
		p.Hold()
	}
	if r.src.embedded != nil {
		if err := r.src.embedded.stop(); err != nil {
			r.d.log.Error("stop the embedded etcd", "err", err)
		}
	}
	if err := r.carrier.pause(); err != nil {
		return fmt.Errorf("leave everything in place: %w", err)
	}
	r.carrier.keep(true)
	r.d.left = true
	return errLeft
}
