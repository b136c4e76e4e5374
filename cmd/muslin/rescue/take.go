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

// Take takes from flannel what the daemon needs: the vxlan devices' port and routes, and the direct routes. The journal is
// saved. Done again it does what is left, which is nothing most of the time.
func (j *Journal) Take(log *slog.Logger) error {
	for _, g := range j.guards() {
		if err := netlink.RouteAdd(g); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add a route that drops what is meant for %v meanwhile: %w", g.Dst, err)
		}
	}
	for _, d := range j.Devices {
		l, err := host.LinkNamed(d.Name)
		if err != nil {
			return err
		}
		if l == nil || l.Attrs().Flags&net.FlagUp == 0 {
			continue
		}
		if err := netlink.LinkSetDown(l); err != nil {
			return fmt.Errorf("set flannel's device %s down: %w", d.Name, err)
		}
		log.Info("set flannel's device down", "device", d.Name, "port", d.Port)
	}
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
