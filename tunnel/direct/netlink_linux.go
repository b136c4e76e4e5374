package direct

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"muslin/tunnel/way"
)

// Table is the main routing table of the network namespace of the thread that called Open. It implements Kernel.
type Table struct {
	cfg    TableConfig
	handle *netlink.Handle
	asks   *netlink.Handle // for Hops; the same but with IPv6
}

// TableConfig says which routes are ours.
type TableConfig struct {
	Protocol int          // number that marks them
	Network  netip.Prefix // the overlay, in which they lie; they are of its address family
	Iface    string       // the underlay's interface, by which new ones lead
	Source   netip.Addr   // that this host's own packets have by them, as by the overlay's route to the TUN device; zero: as the kernel chooses
}

// Open opens what it asks the kernel by, for Close to close.
func Open(cfg TableConfig) (*Table, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket for direct routes: %w", err)
	}
	// Since 4.20 (e8ba330ac0c5) the kernel looks at a list's filter itself. Before, it gives all routes, and the
	// library leaves out the others.
	_ = h.SetStrictCheck(true)
	t := &Table{cfg: cfg, handle: h, asks: h}
	if t.six() {
		// With that check the kernel takes no question of IPv6's that has RTM_F_LOOKUP_TABLE (inet6_rtm_valid_getroute_req in
		// net/ipv6/route.c), as the library's have.
		if t.asks, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			h.Close()
			return nil, fmt.Errorf("open a netlink socket for direct routes: %w", err)
		}
	}
	return t, nil
}

// Close implements io.Closer.
func (t *Table) Close() error {
	t.handle.Close()
	t.asks.Close()
	return nil
}

// Iface implements Kernel.
func (t *Table) Iface() (int, error) {
	l, err := t.handle.LinkByName(t.cfg.Iface)
	if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look up device %q: %w", t.cfg.Iface, err)
	}
	return l.Attrs().Index, nil
}

// Hops implements Kernel.
func (t *Table) Hops(to []netip.Addr) ([]way.Hop, error) {
	names := make(map[int]string)
	hops := make([]way.Hop, len(to))
	for i, addr := range to {
		found, err := t.asks.RouteGet(net.IP(addr.AsSlice()))
		switch no := syscall.Errno(0); {
		case errors.As(err, &no) && noWay(no):
			hops[i] = way.Hop{Err: no.Error()}
		case err != nil:
			return nil, fmt.Errorf("ask for the route to %s: %w", addr, err)
		case len(found) != 1:
			hops[i] = way.Hop{Err: fmt.Sprintf("the kernel gives %d routes", len(found))}
		default:
			if hops[i], err = t.hop(&found[0], names); err != nil {
				return nil, err
			}
		}
	}
	return hops, nil
}

// noWay reports whether an error is the kernel's answer that there is no way: no route, an unreachable one, a
// prohibiting one, a blackhole (fib_props in net/ipv4/fib_semantics.c; those of IPv6 are the same, ip6_rt_type_to_error
// in net/ipv6/route.c).
func noWay(no syscall.Errno) bool {
	return no == unix.ENETUNREACH || no == unix.EHOSTUNREACH || no == unix.EACCES || no == unix.EINVAL
}

func (t *Table) hop(r *netlink.Route, names map[int]string) (h way.Hop, err error) {
	var known bool
	if h.Iface, known = names[r.LinkIndex]; !known {
		l, err := t.handle.LinkByIndex(r.LinkIndex)
		switch missing := (netlink.LinkNotFoundError{}); {
		case errors.As(err, &missing): // gone since
			h.Iface = fmt.Sprintf("interface number %d", r.LinkIndex)
		case err != nil:
			return h, fmt.Errorf("look up device number %d: %w", r.LinkIndex, err)
		default:
			h.Iface = l.Attrs().Name
		}
		names[r.LinkIndex] = h.Iface
	}
	switch via, six := r.Via.(*netlink.Via); {
	case r.Gw != nil:
		h.Gateway, _ = netip.AddrFromSlice(r.Gw)
		h.Gateway = h.Gateway.Unmap()
	case six: // an IPv6 gateway for IPv4 (RFC 5549)
		h.Gateway, _ = netip.AddrFromSlice(via.Addr)
	}
	return h, nil
}

// six reports whether it is about IPv6.
func (t *Table) six() bool { return t.cfg.Network.Addr().Is6() }

func (t *Table) family() int {
	if t.six() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// metric is that of our routes: what the kernel gives a route for which none is asked for, as flannel does. Of IPv6 that is
// IP6_RT_PRIO_USER (linux/ipv6_route.h), and a route with a lower one comes first.
func (t *Table) metric() int {
	if t.six() {
		return 1024
	}
	return 0
}

// Routes implements Kernel.
func (t *Table) Routes() ([]Route, error) {
	filter := &netlink.Route{Table: unix.RT_TABLE_MAIN, Protocol: netlink.RouteProtocol(t.cfg.Protocol)}
	for try := 0; ; try++ {
		var out []Route
		err := t.handle.RouteListFilteredIter(t.family(), filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL, func(r netlink.Route) bool {
			if route, ok := t.ours(&r); ok {
				out = append(out, route)
			}
			return true
		})
		if errors.Is(err, netlink.ErrDumpInterrupted) && try < 10 {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list direct routes: %w", err)
		}
		return out, nil
	}
}

func (t *Table) ours(r *netlink.Route) (Route, bool) {
	// The library's filter ends at the first criterion that applies.
	if r.Table != unix.RT_TABLE_MAIN || int(r.Protocol) != t.cfg.Protocol || r.Type != unix.RTN_UNICAST || r.Dst == nil || r.Priority != t.metric() {
		return Route{}, false
	}
	via, _ := netip.AddrFromSlice(r.Gw)
	to, _ := netip.AddrFromSlice(r.Dst.IP)
	via, to = via.Unmap(), to.Unmap()
	bits, _ := r.Dst.Mask.Size()
	if !via.IsValid() || via.Is6() != t.six() || bits <= t.cfg.Network.Bits() || !t.cfg.Network.Contains(to) {
		return Route{}, false
	}
	// When an address goes, the kernel removes the routes that have it for their source, but of IPv6 it takes it out of them
	// (rt6_remove_prefsrc in net/ipv6/route.c).
	src, _ := netip.AddrFromSlice(r.Src)
	return Route{Subnet: netip.PrefixFrom(to, bits), Via: via, Iface: r.LinkIndex, Astray: src.Unmap() != t.cfg.Source}, true
}

// Add implements Kernel.
func (t *Table) Add(r Route) error {
	err := t.handle.RouteAdd(t.route(r))
	switch {
	case errors.Is(err, unix.EEXIST):
		command := "ip"
		if t.six() {
			command = "ip -6"
		}
		return fmt.Errorf("another program's route is there (`%s route show %s`); remove it", command, r.Subnet)
	case err != nil:
		return fmt.Errorf("add route %s via %s: %w", r.Subnet, r.Via, err)
	}
	return nil
}

// Remove implements Kernel.
func (t *Table) Remove(r Route) error {
	route := t.route(r)
	route.Src = nil // whatever it has
	err := t.handle.RouteDel(route)
	// ESRCH: gone. ENODEV: gone with its device.
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove route %s via %s: %w", r.Subnet, r.Via, err)
	}
	return nil
}

func (t *Table) route(r Route) *netlink.Route {
	return &netlink.Route{
		Dst: &net.IPNet{IP: net.IP(r.Subnet.Addr().AsSlice()), Mask: net.CIDRMask(r.Subnet.Bits(), r.Subnet.Addr().BitLen())},
		Gw:  net.IP(r.Via.AsSlice()), LinkIndex: r.Iface, Src: t.cfg.Source.AsSlice(),
		Protocol: netlink.RouteProtocol(t.cfg.Protocol), Type: unix.RTN_UNICAST, Table: unix.RT_TABLE_MAIN, Priority: t.metric(),
	}
}

// rtmgrpIPv4Rule and rtmgrpIPv6Rule are the groups of changes of policy rules (RTNLGRP_IPV4_RULE and RTNLGRP_IPV6_RULE in
// linux/rtnetlink.h), which package unix leaves out.
const (
	rtmgrpIPv4Rule = 1 << (8 - 1)
	rtmgrpIPv6Rule = 1 << (19 - 1)
)

// groups are those of what may change the way to a PublicIP.
func (t *Table) groups() uint32 {
	if t.six() {
		return unix.RTMGRP_LINK | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV6_ROUTE | rtmgrpIPv6Rule
	}
	return unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV4_ROUTE | rtmgrpIPv4Rule
}

// Watch implements Kernel.
func (t *Table) Watch(changed func(Change)) (stop func(), err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: t.groups()}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("subscribe to changes of links, addresses, routes and rules: %w", err)
	}
	sock := os.NewFile(uintptr(fd), "netlink")
	var reader sync.WaitGroup
	reader.Go(func() { t.watch(sock, changed) })
	return func() {
		sock.Close()
		reader.Wait()
	}, nil
}

// watch tells of changes until sock is closed.
func (t *Table) watch(sock *os.File, changed func(Change)) {
	buf := make([]byte, 64<<10)
	for {
		n, err := sock.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			// The kernel had more to tell than the socket holds: anything may have happened.
			changed(Routes | Underlay)
			continue
		case err != nil:
			return
		}
		messages, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			changed(Routes | Underlay)
			continue
		}
		var all Change
		for _, m := range messages {
			all |= t.changeBy(&m)
		}
		if all != 0 {
			changed(all)
		}
	}
}

// changeBy is what a message may mean. The table and the protocol of a route are bytes 4 and 5 of struct rtmsg
// (linux/rtnetlink.h). When a link goes down the kernel removes its routes without a word, ours among them.
func (t *Table) changeBy(m *syscall.NetlinkMessage) Change {
	switch m.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		switch {
		case len(m.Data) < unix.SizeofRtMsg || m.Data[4] == unix.RT_TABLE_LOCAL:
			return 0
		case int(m.Data[5]) != t.cfg.Protocol:
			return Underlay
		case m.Header.Type == unix.RTM_DELROUTE:
			return Routes
		}
	case unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWADDR, unix.RTM_DELADDR, unix.RTM_NEWRULE, unix.RTM_DELRULE:
		return Routes | Underlay
	}
	return 0
}
