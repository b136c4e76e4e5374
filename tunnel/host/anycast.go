//go:build linux

package host

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The lowest address of an IPv6 subnet is that of all its routers (RFC 4291, section 2.6.1), and ours. While the host
// forwards, the kernel has an anycast route for it on the device with the subnet, the pods' bridge. When the bridge
// was there before us, as at every restart, that route stands before ours: then the kernel takes no TCP connection
// for our address (tcp_v6_conn_request in net/ipv6/tcp_ipv6.c), and answers pings from another one.
//
// No route can be put before it, so it goes while we are there. The kernel still answers neighbours that ask for the
// address on the bridge, which it does not do by the route.

// convergeLocal6 makes the kernel take our IPv6 address for its own.
func (s *State) convergeLocal6() (did []string, err error) {
	if !s.config.Address6.IsValid() {
		return nil, nil
	}
	address := s.config.Address6.Addr()
	found, err := netlink.RouteGet(net.IP(address.AsSlice()))
	if err != nil || len(found) == 0 || found[0].Type != unix.RTN_ANYCAST {
		return nil, nil
	}
	routes, err := anycastRoutes(address)
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if err := netlink.RouteDel(&r); err != nil {
			return did, fmt.Errorf("remove the anycast route %s: %w", address, err)
		}
		did = append(did, "anycast route "+address.String()+" out of the way")
	}
	return did, nil
}

func anycastRoutes(address netip.Addr) ([]netlink.Route, error) {
	all, err := Dump("anycast routes", func() ([]netlink.Route, error) {
		filter := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_ANYCAST}
		return netlink.RouteListFiltered(unix.AF_INET6, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
	})
	return slices.DeleteFunc(all, func(r netlink.Route) bool { return r.Dst == nil || prefixOf(r.Dst).Addr() != address }), err
}

// anycast puts the route back on each device that has the subnet and forwards. It is the kernel's but for the metric,
// which nobody else can make 0.
func (u *undoing) anycast(address netip.Prefix) {
	if !address.IsValid() {
		return
	}
	there, err := anycastRoutes(address.Addr())
	if err != nil {
		u.fail(err)
		return
	}
	held, err := addresses(unix.AF_INET6)
	if err != nil {
		u.fail(err)
		return
	}
	for _, a := range held {
		subnet := prefixOf(a.IPNet)
		if subnet.Bits() >= 127 || subnet.Masked().Addr() != address.Addr() ||
			slices.ContainsFunc(there, func(r netlink.Route) bool { return r.LinkIndex == a.LinkIndex }) {
			continue
		}
		l, err := netlink.LinkByIndex(a.LinkIndex)
		if err != nil {
			continue // gone meanwhile, and with it the need
		}
		if forwards, _ := readSysctl(sysctlRoot + "/ipv6/conf/" + l.Attrs().Name + "/forwarding"); forwards != "1" {
			continue
		}
		r := &netlink.Route{LinkIndex: a.LinkIndex, Dst: ipNet(address), Type: unix.RTN_ANYCAST, Table: unix.RT_TABLE_LOCAL, Protocol: unix.RTPROT_KERNEL}
		if err := netlink.RouteAdd(r); err != nil {
			u.fail(fmt.Errorf("put back the anycast route %s of %s: %w", address.Addr(), l.Attrs().Name, err))
			continue
		}
		u.say("put back the anycast route %s of %s", address.Addr(), l.Attrs().Name)
	}
}
