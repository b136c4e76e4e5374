package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/pflag"

	"muslin/cmd/muslin/rescue"
	"muslin/lease"
	"muslin/lease/etcd"
)

// A daemon that carries in flannel's place ("muslin rescue"). What it took from flannel stands in the journal in the state
// directory, and any daemon that is started with that directory goes on with it: "muslin run" and its --replace, too.

// rescuePath is where the control socket is asked to end a rescue.
const rescuePath = "/v1/rescue/end"

// portFreeHeader is in the answer when the daemon has let go of the port, while it undoes the rest.
const portFreeHeader = "Muslin-Port"

// goOn gives a daemon that goes on with a rescue the flags that the first one found out.
func goOn(set *pflag.FlagSet, stateDir string) error {
	j, err := rescue.Read(stateDir)
	if err != nil || j == nil || j.Rebooted() || j.Here() != nil {
		return nil // which openRescue says
	}
	for name, values := range j.Flags {
		if set.Changed(name) {
			continue
		}
		for _, v := range values {
			if err := set.Set(name, v); err != nil {
				return fmt.Errorf("%s: %w", j.Path(), err)
			}
		}
	}
	return nil
}

// openRescue writes down the rescue that is about to begin, or finds the one that is under way.
func (d *daemon) openRescue() error {
	if d.among != nil {
		return nil
	}
	if d.rescue != nil {
		return d.rescue.Save()
	}
	j, err := rescue.Read(d.opts.flags.stateDir)
	if err != nil || j == nil {
		return err
	}
	if j.Rebooted() {
		d.log.Warn("the host was started again since a rescue began, which has undone it: forgetting it", "since", j.Since)
		return j.Remove()
	}
	if err := j.Here(); err != nil {
		return err
	}
	d.log.Info("going on in flannel's place; `muslin rescue --undo` gives it back", "since", j.Since)
	d.rescue, d.resumed = j, true
	return nil
}

// beginTaking does what comes before anything is taken from flannel.
func (d *daemon) beginTaking(ctx context.Context) error {
	if d.rescue == nil {
		return nil
	}
	for _, p := range d.toStop {
		d.rescue.Stopped = append(d.rescue.Stopped, p.Known())
		if err := d.rescue.Save(); err != nil {
			return err
		}
		if err := p.Stop(ctx); err != nil {
			return err
		}
		d.log.Info("stopped flanneld, as was asked for", "pid", p.PID, "unit", p.Unit)
	}
	d.toStop = nil
	return d.rescue.Guard()
}

// waitsForPort reports whether flannel's device of the node's family has the UDP port still. The socket is opened when it has
// been taken, which is the last step: until then flannel carries, and from then on there is nothing to wait for.
func (d *daemon) waitsForPort(n *node) (bool, error) {
	if d.rescue == nil || n.backend != lease.BackendVXLAN {
		return false, nil
	}
	return d.rescue.Holds(n.six)
}

// take takes from flannel what stands in the way of one family.
func (d *daemon) take(n *node) error {
	if d.rescue == nil {
		return nil
	}
	return d.rescue.TakeDevice(n.six, d.log)
}

// standIn is a task. Without it a flanneld that is started may tell the other nodes another MAC, until muslin tells them the
// right one again.
func (d *daemon) standIn(context.Context) error {
	if d.rescue == nil {
		return nil
	}
	if err := d.rescue.StandIn(); err != nil {
		d.log.Warn("a flanneld that is started meanwhile will not find its device as it was", "err", err)
	}
	return nil
}

// takeDirect takes flannel's direct routes, in whose place ours come.
func (d *daemon) takeDirect() error {
	if d.rescue == nil {
		return nil
	}
	return d.rescue.TakeDirect()
}

// part lets go of the port, and gives flannel everything back or leaves that to who asked for it (endRescue), while what this
// daemon changed in the host is still there: so little is lost while the port changes hands. why is what ended the tasks: one that
// is outdated starts anew (serve), and keeps what it has taken.
func (d *daemon) part(c carrier, takeBack func(), why error) {
	if d.rescue == nil || d.departure != nil || d.left || !d.isAlone() || errors.Is(why, lease.ErrOutdated) {
		return
	}
	takeBack()
	for _, p := range parts(c) {
		if s, ok := p.(*sides); ok && s.conn != nil {
			s.conn.Close()
		}
	}
	d.freed()
	d.giveBack()
}

// giveBack gives flannel everything back as it was found, at the daemon's end; unless somebody else does, or goes on.
func (d *daemon) giveBack() {
	switch {
	case d.rescue == nil || d.given || d.handedBack.Load() || d.departure != nil || d.left || !d.isAlone():
		return
	case d.resumed && !d.view.ready():
		d.log.Warn("flannel's data path stays with the rescue, which is not over: start this again, or run `muslin rescue --undo`")
		return
	}
	err := d.rescue.Give(false, nil, d.log)
	if d.rescue.NewMAC && err == nil {
		err = d.restoreLease()
	}
	if err == nil {
		err = d.rescue.Remove()
	}
	if err != nil {
		d.log.Error("could not give everything back to flannel; run `muslin rescue --undo`", "err", err)
		return // run tries once more, when this daemon's own changes are undone
	}
	d.given = true
	d.log.Info("everything is with flannel again as it was found")
	for _, p := range d.rescue.Stopped {
		d.log.Warn("flanneld was stopped for the rescue, and is not started again", "command", p.Args, "unit", p.Unit)
	}
}

func (d *daemon) restoreLease() error {
	ctx, cancel := context.WithTimeout(context.Background(), rescue.StorePatience)
	defer cancel()
	store, err := d.opts.flags.store.reach(ctx, d.log)
	if err != nil {
		return err
	}
	defer store.Close()
	return restoreLease(ctx, store, d.rescue.Lease)
}

// restoreLease writes flannel's value into the lease again, if that is still this node's.
func restoreLease(ctx context.Context, store *etcd.Store, was *rescue.LeaseBefore) error {
	if was == nil {
		return nil
	}
	entry, err := findEntry(ctx, store, was.Key)
	if errors.Is(err, lease.ErrNotFound) {
		return nil // flanneld makes one when it is started
	}
	if err != nil {
		return err
	}
	now, err := lease.ParseLease(entry)
	before, errBefore := lease.DecodeAttrs([]byte(was.Value))
	if err := errors.Join(err, errBefore); err != nil {
		return err
	}
	if now.Attrs.Equal(before) {
		return nil
	}
	if now.Attrs.PublicIP != before.PublicIP || now.Attrs.PublicIPv6 != before.PublicIPv6 {
		return fmt.Errorf("the lease %s is held by %s now", was.Key, now.Attrs)
	}
	ttl := lease.TTL
	if entry.Reserved {
		ttl = lease.Permanent
	}
	_, err = store.PutLease(ctx, was.Key, []byte(was.Value), ttl, entry.Revision)
	return err
}

// withRescue answers on the control socket what is about a rescue, before the rest.
func (d *daemon) withRescue(rest http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", rest)
	mux.HandleFunc("POST "+rescuePath, d.endRescue)
	return mux
}

// endRescue is the control socket's handler for `muslin rescue --undo`, which does the rest.
func (d *daemon) endRescue(w http.ResponseWriter, _ *http.Request) {
	if d.rescue == nil {
		http.Error(w, "it does not carry in flannel's place", http.StatusConflict)
		return
	}
	d.handedBack.Store(true)
	d.log.Info("the rescue is over: ending, and leaving the rest to `muslin rescue --undo`")
	d.end()
	select {
	case <-d.portFree:
		w.Header().Set(portFreeHeader, "free")
	case <-time.After(rescue.StorePatience): // who asked waits for the daemon's end
	}
	w.WriteHeader(http.StatusNoContent)
}

// warnRescued is a sentence for status.
func (d *daemon) warnRescued() string {
	if d.rescue == nil {
		return ""
	}
	return fmt.Sprintf("carrying in flannel's place since %s: `muslin rescue --undo` gives flannel its data path back", d.rescue.Since.Format(time.RFC3339))
}
