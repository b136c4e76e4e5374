//go:build linux

package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dump asks the kernel for a list, again when the list changed while it was being read: a host that
// starts many containers changes its links and routes all the time.
func dump[T any](what string, list func() ([]T, error)) ([]T, error) {
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

func links() ([]netlink.Link, error) { return dump("links", netlink.LinkList) }

// addresses lists the IPv4 addresses of all links.
func addresses() ([]netlink.Addr, error) {
	return dump("addresses", func() ([]netlink.Addr, error) { return netlink.AddrList(nil, unix.AF_INET) })
}

// mainRoutes lists the IPv4 routes of the main table.
func mainRoutes() ([]netlink.Route, error) {
	return dump("routes", func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
}

// link returns the device of that name, or nil when there is none.
func link(name string) (netlink.Link, error) {
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
