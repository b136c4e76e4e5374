package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"

	"muslin/cmd/muslin/fdstore"
	"muslin/cmd/muslin/health"
	"muslin/lease"
	"muslin/tunnel/handover"
	"muslin/tunnel/pulse"
)

// How a daemon gives its place to a successor ("muslin run --replace"). What a successor does is in place.go and
// succeed.go; what the two say to each other, in package handover.

// errReplaced ends a daemon whose place another one has.
var errReplaced = errors.New("another process has taken this daemon's place")

// handed is what has changed of our lease since the offer.
type handed struct {
	Revision int64     `json:"revision"`
	Expires  time.Time `json:"expires"`
	Reserved bool      `json:"reserved"`
}

// running is a daemon that carries packets, as far as a successor takes it over. It implements
// handover.Predecessor.
type running struct {
	d       *daemon
	src     *source
	node    *node
	member  *membership
	carrier carrier
	state   hosts
	routers routers
	prober  *pulse.Prober
	answers answers
	workers *health.Watch

	askedBy int // user of the process that wants our place

	keepers []*pausable // what writes to the store, or to the memory of it
	guards  []*pausable // what keeps the host as it is set up
}

// requestPlace is the control socket's handler for a successor.
func (d *daemon) requestPlace(w http.ResponseWriter, r *http.Request) {
	if d.among != nil {
		http.Error(w, notReplaced, http.StatusConflict)
		return
	}
	if !d.view.ready() {
		http.Error(w, "it does not carry packets yet ("+d.view.get().state+"): wait, or stop it and start this one without --replace", http.StatusServiceUnavailable)
		return
	}
	if !d.busy.CompareAndSwap(false, true) {
		http.Error(w, "another process is about to replace it", http.StatusConflict)
		return
	}
	c, err := handover.Accept(w, r)
	if err != nil {
		d.log.Warn("a request to replace this daemon failed", "err", err)
		d.busy.Store(false)
		return
	}
	d.requests <- c // has room for the one
}

// giveWay hands the daemon over to whoever asks for its place. It returns errReplaced when somebody has it.
func (r *running) giveWay(ctx context.Context) error {
	for {
		var c *net.UnixConn
		select {
		case <-ctx.Done():
			return nil
		case c = <-r.d.requests:
		}
		err := r.handOver(ctx, c)
		if err == nil {
			return errReplaced
		}
		r.d.log.Warn("a process that was to replace this daemon did not: this one goes on", "err", err)
		r.d.busy.Store(false)
	}
}

func (r *running) handOver(ctx context.Context, c *net.UnixConn) error {
	pid, uid, err := handover.Peer(c)
	if err != nil {
		c.Close()
		return err
	}
	r.askedBy = uid
	// When we are stopped meanwhile, the successor is told so; it is not as if we were dead.
	defer context.AfterFunc(ctx, func() { c.CloseRead() })()
	departure, err := handover.Give(c, r, handover.DefaultLimits)
	if err != nil {
		return err
	}
	r.carrier.keep(true)
	r.d.departure = departure
	r.d.log.Info("another process has this daemon's place", "pid", pid, "packets_waited", departure.Waited)
	if _, err := systemd.SdNotify(false, fmt.Sprintf("MAINPID=%d", pid)); err != nil {
		r.d.log.Warn("systemd was not told of the process that has our place", "pid", pid, "err", err)
	}
	return nil
}

// Offer implements handover.Predecessor.
func (r *running) Offer(h handover.Hello) (o handover.Offer, err error) {
	if err := r.ofOurUser(); err != nil {
		return o, err
	}
	r.d.log.Info("another process is about to replace this daemon", "its_version", h.Version, "version", buildVersion())
	o = handover.Offer{Version: buildVersion(), Parts: []string{handover.Packets}}
	if r.src.embedded != nil {
		o.Parts = append(o.Parts, handover.Store)
	}
	a := about{Settings: r.d.settings(r.node, previousSubnets{r.member.subnet, r.member.subnet6})}
	if r.member.keeper != nil {
		a.Memory = r.member.memory(r.src)
	}
	if o.About, err = json.Marshal(a); err != nil {
		return o, err
	}
	if err := r.addFiles(&o); err != nil {
		o.Close()
		return o, err
	}
	for _, g := range r.guards {
		g.Hold()
	}
	return o, nil
}

// ofOurUser refuses a successor that runs as another user: the files in the state directory would be closed to
// whoever comes after it. systemd would not follow it either.
func (r *running) ofOurUser() error {
	if r.askedBy == os.Geteuid() {
		return nil
	}
	hint := "start the new one as that user"
	if fdstore.Open().Exists() {
		hint = "it is a systemd service, which `systemctl reload` replaces without a lost packet"
	}
	return fmt.Errorf("it runs as user %d, and the new one as user %d: %s", os.Geteuid(), r.askedBy, hint)
}

func (r *running) addFiles(o *handover.Offer) error {
	if err := r.carrier.offer(o); err != nil {
		return err
	}
	if err := r.answers.offer(o); err != nil {
		return err
	}
	control, err := r.d.control.File()
	if err != nil {
		return err
	}
	add(o, fileControl, control)
	if err := r.d.endpoints.offer(o); err != nil {
		return err
	}
	lock, err := dup(r.d.lock)
	if err != nil {
		return err
	}
	add(o, fileLock, lock)
	return nil
}

func add(o *handover.Offer, name string, files ...*os.File) {
	for _, f := range files {
		o.Files = append(o.Files, handover.File{Name: name, File: f})
	}
}

// Release implements handover.Predecessor.
func (r *running) Release(part string) (any, error) {
	if part == handover.Store {
		return nil, r.src.embedded.stop()
	}
	for _, k := range r.keepers {
		k.Hold()
	}
	if err := r.carrier.pause(); err != nil {
		return nil, errors.Join(err, r.Resume(part))
	}
	if r.member.keeper == nil {
		return nil, nil
	}
	l := r.member.keeper.Status().Lease
	return handed{l.Revision, l.Expires, l.Reserved}, nil
}

// Resume implements handover.Predecessor.
func (r *running) Resume(part string) error {
	if part == handover.Store {
		return r.src.embedded.resume()
	}
	err := r.carrier.resume()
	for _, k := range r.keepers {
		k.Release()
	}
	return err
}

// GoOn implements handover.Predecessor. The other process may have changed what the two shared.
func (r *running) GoOn() {
	if err := errors.Join(r.carrier.restore(), r.state.Restore()); err != nil {
		r.d.log.Error("cannot undo all that the other process did", "err", err)
	}
	for _, g := range r.guards {
		g.Release()
	}
}

// apply puts what has changed into the lease that the offer gave.
func (h *handed) apply(l lease.Lease) lease.Lease {
	l.Revision, l.Expires, l.Reserved = h.Revision, h.Expires, h.Reserved
	return l
}
