//go:build linux

package host

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// KernelRoute is what the kernel does with a packet of this host's own, as `ip route get` shows it.
type KernelRoute struct {
	Device  string     // that it leaves by
	Local   bool       // it is for this host itself
	Gateway netip.Addr // invalid: none
	Source  netip.Addr // that the packet gets; invalid: the kernel does not say
	MTU     int        // bytes: of the path, where the kernel knows it, else of the device
}

// RouteTo asks the kernel for the way to an address. An error says why there is none.
func RouteTo(to netip.Addr) (KernelRoute, error) {
	return routeTo(to, nil)
}

// RouteForwarded asks the same of a packet that comes in by a device from a container's address, which must not be this
// host's. Rules of routing may make a difference.
func RouteForwarded(to, from netip.Addr, in string) (KernelRoute, error) {
	return routeTo(to, &netlink.RouteGetOptions{Iif: in, SrcAddr: net.IP(from.AsSlice())})
}

func routeTo(to netip.Addr, how *netlink.RouteGetOptions) (KernelRoute, error) {
	found, err := netlink.RouteGetWithOptions(net.IP(to.AsSlice()), how)
	if err != nil {
		return KernelRoute{}, fmt.Errorf("route to %s: %w", to, err)
	}
	if len(found) != 1 {
		return KernelRoute{}, fmt.Errorf("route to %s: the kernel gives %d", to, len(found))
	}
	r := found[0]
	out := KernelRoute{Local: r.Type == unix.RTN_LOCAL, MTU: r.MTU}
	out.Gateway, _ = netip.AddrFromSlice(r.Gw)
	out.Gateway = out.Gateway.Unmap()
	out.Source, _ = netip.AddrFromSlice(r.Src)
	out.Source = out.Source.Unmap()
	l, err := netlink.LinkByIndex(r.LinkIndex)
	if err != nil {
		return KernelRoute{}, fmt.Errorf("route to %s: device number %d: %w", to, r.LinkIndex, err)
	}
	out.Device = l.Attrs().Name
	if out.MTU == 0 {
		out.MTU = l.Attrs().MTU
	}
	return out, nil
}

// NeighbourState is what the kernel knows of an address's link layer on a device, as `ip neigh` shows it: "reachable", "stale",
// "failed", "incomplete" and others; empty: nothing.
func NeighbourState(device string, of netip.Addr) (string, error) {
	l, err := netlink.LinkByName(device)
	if err != nil {
		return "", fmt.Errorf("neighbours on %s: %w", device, err)
	}
	family := unix.AF_INET
	if of.Is6() {
		family = unix.AF_INET6
	}
	all, err := netlink.NeighList(l.Attrs().Index, family)
	if err != nil {
		return "", fmt.Errorf("neighbours on %s: %w", device, err)
	}
	for _, n := range all {
		if a, ok := netip.AddrFromSlice(n.IP); ok && a.Unmap() == of {
			return neighbourStates[n.State], nil
		}
	}
	return "", nil
}

var neighbourStates = map[int]string{
	netlink.NUD_INCOMPLETE: "incomplete", netlink.NUD_REACHABLE: "reachable", netlink.NUD_STALE: "stale", netlink.NUD_DELAY: "delay",
	netlink.NUD_PROBE: "probe", netlink.NUD_FAILED: "failed", netlink.NUD_NOARP: "noarp", netlink.NUD_PERMANENT: "permanent",
}

// Forwards reports whether the kernel forwards packets of a family at all.
func Forwards(six bool) bool {
	path := sysctlRoot + "/ipv4/ip_forward"
	if six {
		path = sysctlRoot + "/ipv6/conf/all/forwarding"
	}
	value, err := readSysctl(path)
	return err == nil && value != "0"
}
