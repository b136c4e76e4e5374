//go:build linux

package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Dump asks the kernel for a list, again when the list changed while it was being read: a host that
// starts many containers changes its links and routes all the time.
func Dump[T any](what string, list func() ([]T, error)) ([]T, error) {
	for try := 0; ; try++ {
		out, err := list()
		if errors.Is(err, netlink.ErrDumpInterrupted) && try < 10 {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", what, err)
		}
		return out, nil
	}
}

func links() ([]netlink.Link, error) { return Dump("links", netlink.LinkList) }

// addresses lists the addresses of all links, of the family unix.AF_INET or unix.AF_INET6.
func addresses(family int) ([]netlink.Addr, error) {
	return Dump("addresses", func() ([]netlink.Addr, error) { return netlink.AddrList(nil, family) })
}

// mainRoutes lists the routes of the main table. A kernel without IPv6 answers with those of IPv4, whatever it is
// asked for.
func mainRoutes(family int) ([]netlink.Route, error) {
	all, err := Dump("routes", func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	return slices.DeleteFunc(all, func(r netlink.Route) bool { return r.Family != family }), err
}

// familyOf is that of an address, for netlink.
func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// LinkNamed returns the device of that name, or nil when there is none.
func LinkNamed(name string) (netlink.Link, error) {
	l, err := netlink.LinkByName(name)
	if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up device %q: %w", name, err)
	}
	return l, nil
}

// prefixOf turns the library's idea of a destination into ours: nil is the default route.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	ones, _ := n.Mask.Size()
	ip, _ := netip.AddrFromSlice(n.IP)
	return netip.PrefixFrom(ip.Unmap(), ones)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{
		IP:   net.IP(p.Addr().AsSlice()),
		Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}
}
