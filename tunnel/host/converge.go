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

// converge makes everything but the firewall as the plan says and returns what it had to change.
func (s *State) converge() (did []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.undone {
		return nil, nil
	}
	tun, err := s.tun()
	if err != nil {
		return nil, err
	}
	if s.config.TUN != "" && (tun == nil || tun.Attrs().Index != s.journal.TUN.Index) {
		return nil, fmt.Errorf("device %q: %w; start the daemon again", s.config.TUN, ErrTUNGone)
	}
	// The switches come before the device is up: from then on IPv6 would talk into it.
	steps := []func(netlink.Link) ([]string, error){s.convergeSysctls, s.convergeLink, s.convergeAddress, s.convergeLocal, s.convergeRoutes}
	if tun == nil {
		steps = []func(netlink.Link) ([]string, error){s.convergeSysctls, s.convergeRoutes}
	}
	for _, step := range steps {
		done, err := step(tun)
		did = append(did, done...)
		if err != nil {
			return did, err
		}
	}
	return did, nil
}

func (s *State) convergeSysctls(netlink.Link) (did []string, err error) {
	for _, c := range s.journal.Sysctls {
		if now, err := readSysctl(c.Path); err == nil && now == c.Set {
			continue
		}
		err := writeSysctl(c.Path, c.Set)
		switch {
		case err == nil:
			did = append(did, fmt.Sprintf("%s = %s", c.Path, c.Set))
		case c.Path == ipForward:
			return did, fmt.Errorf("switch forwarding on: %w; run `sysctl -w net.ipv4.ip_forward=1` where /proc/sys is writable", err)
		case c.Path == ip6Forward:
			return did, fmt.Errorf("switch forwarding of IPv6 on: %w; run `sysctl -w net.ipv6.conf.all.forwarding=1` where /proc/sys is writable", err)
		case c.keepsRouters():
			return did, fmt.Errorf("keep router advertisements: set %s to %s: %w; without it forwarding would take the IPv6 default route that came by one", c.Path, c.Set, err)
		case !s.sysctlTold:
			s.sysctlTold = true
			s.log.Warn("cannot set a switch of the TUN device; it works without, less well", "tun", s.config.TUN, "switch", c.Path, "error", err)
		}
	}
	return did, nil
}

func (s *State) convergeLink(tun netlink.Link) (did []string, err error) {
	name, a := s.config.TUN, tun.Attrs()
	if a.MTU != s.config.MTU {
		if err := netlink.LinkSetMTU(tun, s.config.MTU); err != nil {
			return did, fmt.Errorf("set MTU of %q to %d: %w", name, s.config.MTU, err)
		}
		did = append(did, fmt.Sprintf("MTU %d", s.config.MTU))
	}
	if a.TxQLen != TxQueueLen {
		if err := netlink.LinkSetTxQLen(tun, TxQueueLen); err != nil {
			return did, fmt.Errorf("set queue length of %q to %d: %w", name, TxQueueLen, err)
		}
		did = append(did, fmt.Sprintf("queue length %d", TxQueueLen))
	}
	if a.Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(tun); err != nil {
			return did, fmt.Errorf("set %q up: %w", name, err)
		}
		did = append(did, "link up")
	}
	return did, nil
}

func (s *State) convergeAddress(tun netlink.Link) (did []string, err error) {
	for _, h := range s.config.halves() {
		done, err := giveAddress(tun, h.address)
		if err != nil {
			return did, err
		}
		did = append(did, done...)
	}
	return did, nil
}

// giveAddress adds an address that is not there. One of IPv6 gets no duplicate address detection, during which it
// could not be used, and no route beside that of the network: the kernel would make one for it alone.
func giveAddress(tun netlink.Link, address netip.Prefix) (did []string, err error) {
	held, err := addresses(familyOf(address.Addr()))
	if err != nil {
		return nil, err
	}
	for _, a := range held {
		if a.LinkIndex == tun.Attrs().Index && prefixOf(a.IPNet) == address {
			return nil, nil
		}
	}
	a := &netlink.Addr{IPNet: ipNet(address)}
	if address.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE // the latter since 3.14 (761aac737eaa)
	}
	if err := netlink.AddrAdd(tun, a); err != nil {
		return nil, fmt.Errorf("give %q the address %s: %w", tun.Attrs().Name, address, err)
	}
	return []string{"address " + address.String()}, nil
}

// convergeLocal makes the kernel take our address for its own. Before 5.14 (94c821c74bf5) it gives every device with
// a subnet a broadcast route for the subnet's lowest address, too. That is our address, and the device the pods'
// bridge: when the bridge was there before us, as at every restart, its route would stand before ours and win.
func (s *State) convergeLocal(tun netlink.Link) (did []string, err error) {
	if did, err = s.convergeLocal6(); err != nil || !s.config.Address.IsValid() {
		return did, err
	}
	address := net.IP(s.config.Address.Addr().AsSlice())
	found, err := netlink.RouteGet(address)
	if err == nil && len(found) > 0 && found[0].Type == unix.RTN_LOCAL {
		return did, nil
	}
	// Added with neither NLM_F_APPEND nor NLM_F_EXCL, which is what the library's function for it does, a route
	// stands before its equals. It goes with the device.
	r := &netlink.Route{
		LinkIndex: tun.Attrs().Index, Dst: ipNet(s.config.Address), Src: address, Protocol: RouteProtocol,
		Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Table: unix.RT_TABLE_LOCAL,
	}
	if err := netlink.RouteAddEcmp(r); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("add local route %s on %q: %w", s.config.Address, s.config.TUN, err)
	}
	return append(did, "local route "+s.config.Address.String()), nil
}

func (s *State) convergeRoutes(tun netlink.Link) (did []string, err error) {
	main, err := mainRoutes(unix.AF_INET)
	if err == nil && s.config.has6() {
		var more []netlink.Route
		more, err = mainRoutes(unix.AF_INET6)
		main = append(main, more...)
	}
	if err != nil {
		return nil, err
	}
	for _, p := range s.journal.Routes {
		src := s.config.Address.Addr()
		if p.Prefix.Addr().Is6() {
			src = s.config.Address6.Addr()
		}
		if slices.ContainsFunc(main, func(r netlink.Route) bool { return p.is(r) }) {
			continue
		}
		if err := netlink.RouteAdd(p.route(tun, src)); err != nil {
			if errors.Is(err, unix.EEXIST) {
				err = fmt.Errorf("%w: another program's route is there (`ip%s route show %s`); remove it", err, option6(p.Prefix), p.Prefix)
			}
			return did, fmt.Errorf("add %s: %w", p, err)
		}
		did = append(did, p.String())
	}
	return did, nil
}

// option6 is what ip(8) needs for a prefix of IPv6.
func option6(p netip.Prefix) string {
	if p.Addr().Is6() {
		return " -6"
	}
	return ""
}

func (p plannedRoute) String() string {
	if p.Blackhole {
		return "blackhole route " + p.Prefix.String()
	}
	return "route " + p.Prefix.String()
}

func (p plannedRoute) kind() int {
	if p.Blackhole {
		return unix.RTN_BLACKHOLE
	}
	return unix.RTN_UNICAST
}

// is reports whether a route of the main table is the planned one.
func (p plannedRoute) is(r netlink.Route) bool {
	return r.Protocol == RouteProtocol && prefixOf(r.Dst) == p.Prefix && r.Type == p.kind()
}

// isDirect reports whether a route is one of package direct's for the peers of a network.
func isDirect(r netlink.Route, network netip.Prefix) bool {
	return network.IsValid() && r.Protocol == RouteProtocol && r.Gw != nil && network.Contains(prefixOf(r.Dst).Addr())
}

func (p plannedRoute) route(tun netlink.Link, src netip.Addr) *netlink.Route {
	r := &netlink.Route{Dst: ipNet(p.Prefix), Protocol: RouteProtocol, Type: p.kind(), Table: unix.RT_TABLE_MAIN}
	if p.Blackhole {
		r.Priority = blackholeMetric
		return r
	}
	r.LinkIndex = tun.Attrs().Index
	r.Scope = netlink.SCOPE_LINK
	r.Src = net.IP(src.AsSlice())
	return r
}
