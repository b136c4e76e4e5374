package rescue

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"muslin/tunnel/host"
)

// guardMetric loses against every route that leads anywhere.
const guardMetric = 1_000_001

// guards are routes for the overlay that drop: from the moment when flannel's are gone until ours are there, and the
// other way round, what is meant for the overlay must not take the default route.
func (j *Journal) guards() []*netlink.Route {
	var all []*netlink.Route
	for _, n := range []netip.Prefix{j.Network, j.Network6} {
		if n.IsValid() {
			all = append(all, &netlink.Route{Dst: ipNet(n), Type: unix.RTN_BLACKHOLE, Protocol: host.RouteProtocol, Priority: guardMetric, Table: unix.RT_TABLE_MAIN})
		}
	}
	return all
}

// Guard is the first step: nothing that is meant for the overlay takes the default route from here on. The journal is saved.
func (j *Journal) Guard() error {
	for _, g := range j.guards() {
		if err := netlink.RouteAdd(g); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add a route that drops what is meant for %v meanwhile: %w", g.Dst, err)
		}
	}
	return nil
}

// Holds reports whether flannel's device of a family is up, and has the UDP port.
func (j *Journal) Holds(six bool) (bool, error) {
	d := j.device(six)
	if d == nil {
		return false, nil
	}
	l, err := host.LinkNamed(d.Name)
	return l != nil && l.Attrs().Flags&net.FlagUp != 0, err
}

// TakeDevice takes the port and the routes of a family's vxlan device, if it has them. The routes go first, so that what the
// pods send waits in our TUN device, which has the route of the whole network, while the port changes hands.
func (j *Journal) TakeDevice(six bool, log *slog.Logger) error {
	d := j.device(six)
	if d == nil {
		return nil
	}
	l, err := host.LinkNamed(d.Name)
	if err != nil || l == nil || l.Attrs().Flags&net.FlagUp == 0 {
		return err
	}
	for _, r := range d.Routes {
		if !ofPeer(r, j.network(six)) {
			continue // it goes with the device
		}
		if err := netlink.RouteDel(r.netlink(l.Attrs().Index)); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("delete flannel's route %s: %w", r.Prefix, err)
		}
	}
	if err := netlink.LinkSetDown(l); err != nil {
		return fmt.Errorf("set flannel's device %s down: %w", d.Name, err)
	}
	log.Info("set flannel's device down", "device", d.Name, "port", d.Port)
	return nil
}

// StandIn has a flanneld that is started meanwhile, as by a supervisor, find its devices with the MAC that the peers know, which
// it writes into the lease before it learns that the port is taken: a device that is gone is made again, down, and one that has
// another MAC gets this one.
func (j *Journal) StandIn() error {
	if j.NewMAC {
		return nil
	}
	for i := range j.Devices {
		d := &j.Devices[i]
		l, err := host.LinkNamed(d.Name)
		if err != nil {
			return err
		}
		if l == nil {
			d.Made = !d.Found
			if err := j.Save(); err != nil {
				return err
			}
			if err := d.create(); err != nil {
				return err
			}
			continue
		}
		if err := d.keepMAC(l); err != nil {
			return err
		}
	}
	return nil
}

// TakeDirect takes flannel's direct routes.
func (j *Journal) TakeDirect() error {
	for _, r := range j.Direct {
		if err := j.takeRoute(r); err != nil {
			return err
		}
	}
	return nil
}

// takeRoute deletes a direct route of flannel's, if it is there: ours for the same peer comes in its place.
func (j *Journal) takeRoute(r Route) error {
	now, err := FindDirect(j.network(r.Prefix.Addr().Is6()))
	if err != nil || !slices.Contains(now, r) {
		return err
	}
	l, err := host.LinkNamed(r.Device)
	if err != nil || l == nil {
		return err
	}
	if err := netlink.RouteDel(r.netlink(l.Attrs().Index)); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("delete flannel's route %s via %s: %w", r.Prefix, r.Gateway, err)
	}
	return nil
}
