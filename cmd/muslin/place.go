package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"muslin/cmd/muslin/fdstore"
	"muslin/lease"
	"muslin/tunnel/handover"
	"muslin/tunnel/underlay"
)

// place is what this daemon takes over from an earlier process instead of opening it: nothing, in the zero
// value. The files stay the place's: whoever takes one over makes a descriptor of his own.
type place struct {
	from  *handover.Successor // the daemon that still runs there; nil: none
	about about               // what it says of itself

	tun             []*os.File // one for each queue
	sockets         underlay.Sockets
	six             half     // the same of IPv6
	answers         *os.File // of peers' questions
	control, lock   *os.File // nil: there is none
	health, metrics *os.File // likewise
	web             *os.File

	kept []fdstore.File // tun and sockets, if systemd has kept them of a daemon that has ended
}

// half is what is taken over of one address family.
type half struct {
	tun     []*os.File
	sockets underlay.Sockets
	answers *os.File
}

// of is that of a node's family.
func (p *place) of(n *node) half {
	if n.six {
		return p.six
	}
	return half{p.tun, p.sockets, p.answers}
}

// about is what a daemon says of itself to its successor.
type about struct {
	Settings []setting     `json:"settings"`
	Memory   *lease.Memory `json:"memory,omitempty"` // none with a peers file
}

// setting is something in which two daemons must agree for one to take the other's place.
type setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// The names of descriptors in an offer.
const (
	fileTUN     = "tun"
	fileReceive = "receive"
	fileSend    = "send"
	fileControl = "control"
	fileHealth  = "health"
	fileMetrics = "metrics"
	fileWeb     = "web"
	fileLock    = "lock"
	fileAnswers = "answers"

	fileSix = "6" // behind the first three, and the last: of IPv6
)

// findPlace asks the running daemon for its place, if that is wanted and one is there. Otherwise it is what systemd
// has kept of the last one (kept.go).
func (d *daemon) findPlace(ctx context.Context) (place, error) {
	switch {
	case d.among != nil:
		return place{}, nil
	case !d.opts.flags.replace:
		return keptPlace(), nil
	}
	s, err := handover.Call(ctx, d.opts.flags.control, handover.Hello{Version: buildVersion()}, handover.DefaultLimits)
	if errors.Is(err, handover.ErrNobody) || errors.Is(err, handover.ErrDied) { // or died while it was asked
		d.log.Info("nobody is there to be replaced: starting as without --replace", "control", d.opts.flags.control)
		return place{}, nil
	}
	if err != nil {
		return place{}, fmt.Errorf("--replace: the running daemon stays: %w", err)
	}
	first := func(name string) *os.File {
		if all := s.Offer.Named(name); len(all) > 0 {
			return all[0]
		}
		return nil
	}
	p := place{
		from:    s,
		tun:     s.Offer.Named(fileTUN),
		sockets: underlay.Sockets{Receive: s.Offer.Named(fileReceive), Send: s.Offer.Named(fileSend)},
		six: half{tun: s.Offer.Named(fileTUN + fileSix),
			sockets: underlay.Sockets{Receive: s.Offer.Named(fileReceive + fileSix), Send: s.Offer.Named(fileSend + fileSix)}, answers: first(fileAnswers + fileSix)},
		answers: first(fileAnswers),
		control: first(fileControl), health: first(fileHealth), metrics: first(fileMetrics), web: first(fileWeb), lock: first(fileLock),
	}
	if err := json.Unmarshal(s.Offer.About, &p.about); err != nil {
		err = fmt.Errorf("--replace: what the running daemon says of itself makes no sense: %w", err)
		p.end(err)
		return place{}, err
	}
	d.log.Info("taking the place of the running daemon", "its_version", s.Offer.Version, "version", buildVersion())
	return p, nil
}

// end closes the place. A daemon that still runs there hears why it is not replaced.
func (p *place) end(why error) {
	p.close()
	if p.from == nil {
		return
	}
	if why != nil {
		p.from.Fail(why)
	}
	p.from.Close()
}

// settings are this daemon's.
func (d *daemon) settings(n *node, subnets previousSubnets) []setting {
	all := d.settingsOf(n, subnets.of(n))
	if n.second == nil {
		return append(all, setting{"IPv6", "none"})
	}
	for _, s := range d.settingsOf(n.second, subnets.six) {
		all = append(all, setting{s.Name + " (IPv6)", s.Value})
	}
	return append(all, setting{"IPv6", "yes"})
}

func (d *daemon) settingsOf(n *node, subnet netip.Prefix) []setting {
	vni, mac := "none", "none"
	if n.backend == lease.BackendVXLAN {
		vni, mac = fmt.Sprint(n.vni.Uint32()), n.mac.String()
	}
	return []setting{
		{"--tun-name", d.opts.flags.tunName},
		{"--embedded-etcd", strconv.FormatBool(d.opts.flags.embedded)},
		{"PublicIP", n.iface.PublicIP.String()},
		{"underlay address", netip.AddrPortFrom(n.iface.Addr, n.port).String()},
		{"backend", n.backend},
		{"VNI", vni},
		{"VtepMAC", mac},
		{"WireGuard key", n.key.String()},
		{"network", n.network.String()},
		{"subnet", subnet.String()},
	}
}

// fits makes sure that the daemon that still runs there is one like us. A setting that only one of the two
// versions knows is nobody's concern.
func (p *place) fits(ours []setting) error {
	if p.from == nil {
		return nil
	}
	for _, theirs := range p.about.Settings {
		for _, own := range ours {
			if own.Name == theirs.Name && own.Value != theirs.Value {
				return fmt.Errorf("--replace: %s is %s with the running daemon and %s here: give the same flags, or stop it and start this one without --replace", own.Name, theirs.Value, own.Value)
			}
		}
	}
	return nil
}

// queues is how many queues the place has, if that is settled.
func (p *place) queues(node *node, wanted int) (n int, settled bool, err error) {
	n = len(p.of(node).tun)
	if n > 0 && wanted != 0 && wanted != n {
		return 0, false, fmt.Errorf("--queues %d: the TUN device has %d, which is settled when it is made: leave the flag out, or stop the running daemon and start this one without --replace", wanted, n)
	}
	return n, n > 0, nil
}

// listenControl makes the control socket, or takes it over. What is taken over is not removed with the
// listener until that is said.
func (p *place) listenControl(path string) (*net.UnixListener, error) {
	if p.control == nil {
		return listenControl(path)
	}
	l, err := net.FileListener(p.control)
	if err != nil {
		return nil, fmt.Errorf("take over the control socket: %w", err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("take over the control socket: it is a %s socket", l.Addr().Network())
	}
	return u, nil
}

// lockState locks the state directory, or takes over its lock, which the process that still runs there keeps.
func (p *place) lockState(dir string) (*os.File, error) {
	if p.lock == nil {
		f, err := lockState(dir)
		if errors.Is(err, errStateInUse) {
			return nil, fmt.Errorf("%w; stop it, or give this daemon its own --state-dir, --control, --tun-name and --subnet-file", err)
		}
		return f, err
	}
	theirs, err := p.lock.Stat()
	if err != nil {
		return nil, fmt.Errorf("take over the state directory: %w", err)
	}
	if here, err := os.Stat(filepath.Join(dir, lockName)); err != nil || !os.SameFile(here, theirs) {
		return nil, fmt.Errorf("--replace: the running daemon works with another state directory than %s; give the same --state-dir", dir)
	}
	return dup(p.lock)
}

// dup is another descriptor of the same open file, and so of its lock.
func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("another descriptor of %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
