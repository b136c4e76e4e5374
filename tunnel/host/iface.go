//go:build linux

package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Families says which address families the underlay is to carry.
type Families int

const (
	IPv4 Families = iota
	IPv6
	BothFamilies
)

// InterfaceOptions is how the underlay's interface is chosen, in this order: Iface, IfaceRegex,
// CanReach, PublicIP (or PublicIPv6), the default route. The zero value means the default route of IPv4. With both
// families it is chosen by IPv4, and has to have an IPv6 address as well.
type InterfaceOptions struct {
	Families   Families
	Iface      []string   // interface names or addresses; the first that fits wins
	IfaceRegex []string   // each is matched against every interface's name, then its addresses
	CanReach   netip.Addr // the interface that the kernel would send a packet to this address from
	PublicIP   netip.Addr // the address that peers send to; may belong to a NAT gateway
	PublicIPv6 netip.Addr // the same of IPv6
}

// Interface is the underlay's interface. What is of a family that was not asked for is zero.
type Interface struct {
	Name       string
	Index      int
	Addr       netip.Addr // its IPv4 address, to bind to
	Addr6      netip.Addr // its IPv6 address, to bind to; not a link-local one, which names no host beyond the link
	MTU        int        // bytes
	PublicIP   netip.Addr // InterfaceOptions.PublicIP, or Addr where that is not given
	PublicIPv6 netip.Addr // InterfaceOptions.PublicIPv6, or Addr6 where that is not given
}

// NoInterfaceError is why no interface could be chosen, with what was looked at.
type NoInterfaceError struct {
	Wanted string   // what was searched for
	Advice string   // which flag to give
	Have   []string // "name (address, address)"
}

func (e *NoInterfaceError) Error() string {
	have := "no interface"
	if len(e.Have) > 0 {
		have = strings.Join(e.Have, ", ")
	}
	return fmt.Sprintf("choose the underlay interface: %s; this host has %s; %s", e.Wanted, have, e.Advice)
}

// ChooseInterface returns the interface that carries the underlay. Failure to find one is a
// *NoInterfaceError.
func ChooseInterface(opts InterfaceOptions) (Interface, error) {
	by := IPv4
	if opts.Families == IPv6 {
		by = IPv6
	}
	all, err := interfaces(by)
	if err != nil {
		return Interface{}, err
	}
	chosen, err := choose(all, opts)
	if err == nil && opts.Families == BothFamilies {
		err = addIPv6(&chosen, opts)
	}
	if err != nil {
		if no := new(NoInterfaceError); errors.As(err, &no) && no.Have == nil {
			no.Have = describe(all, by)
		}
		return Interface{}, err
	}
	chosen.PublicIP, chosen.PublicIPv6 = chosen.Addr, chosen.Addr6
	if opts.PublicIP.IsValid() && opts.Families != IPv6 {
		chosen.PublicIP = opts.PublicIP
	}
	if opts.PublicIPv6.IsValid() && opts.Families != IPv4 {
		chosen.PublicIPv6 = opts.PublicIPv6
	}
	return chosen, nil
}

// addIPv6 gives an interface that was chosen by IPv4 its IPv6 address: PublicIPv6 if it has that, else its first. As
// with flannel, a default route of IPv6 by another interface is refused where nothing but default routes tells which
// interface it is to be.
func addIPv6(chosen *Interface, opts InterfaceOptions) error {
	all, err := interfaces(IPv6)
	if err != nil {
		return err
	}
	no := &NoInterfaceError{Have: describe(all, IPv6)}
	n := slices.IndexFunc(all, func(c candidate) bool { return c.Index == chosen.Index })
	if n < 0 || len(all[n].addrs) == 0 {
		no.Wanted = fmt.Sprintf("%s (%s) has no usable IPv6 address; one that is only good for the link does not count", chosen.Name, chosen.Addr)
		no.Advice = "give it one, or give --iface an interface that has both"
		return no
	}
	chosen.Addr6 = all[n].addrs[0]
	if slices.Contains(all[n].addrs, opts.PublicIPv6) {
		chosen.Addr6 = opts.PublicIPv6
		return nil
	}
	if i, ok := holder(all, opts.PublicIPv6); ok {
		no.Wanted = fmt.Sprintf("--public-ipv6 %s is the address of %s, but the IPv4 underlay is %s", opts.PublicIPv6, i.Name, chosen.Name)
		no.Advice = "give --iface the one interface that is to carry both"
		return no
	}
	if len(opts.Iface)+len(opts.IfaceRegex) > 0 || opts.CanReach.IsValid() || opts.PublicIP.IsValid() {
		return nil
	}
	best, err := defaultRoute(unix.AF_INET6)
	if err != nil || best == nil || indexOf(*best) == chosen.Index {
		return err
	}
	other := fmt.Sprintf("interface number %d", indexOf(*best))
	if n := slices.IndexFunc(all, func(c candidate) bool { return c.Index == indexOf(*best) }); n >= 0 {
		other = all[n].Name
	}
	no.Wanted = fmt.Sprintf("the default route of IPv4 leaves by %s, that of IPv6 by %s", chosen.Name, other)
	no.Advice = "give --iface the one interface that is to carry both"
	return no
}

// candidate is an interface with its addresses of one family, the best to bind to first.
type candidate struct {
	Interface
	addrs []netip.Addr
}

func (c candidate) with(addr netip.Addr) Interface {
	i := c.Interface
	if addr.Is4() {
		i.Addr = addr
	} else {
		i.Addr6 = addr
	}
	return i
}

func interfaces(by Families) ([]candidate, error) {
	devices, err := links()
	if err != nil {
		return nil, err
	}
	held, err := addresses(netlinkFamily(by))
	if err != nil {
		return nil, err
	}
	all := make([]candidate, 0, len(devices))
	for _, l := range devices {
		a := l.Attrs()
		c := candidate{Interface: Interface{Name: a.Name, Index: a.Index, MTU: a.MTU}}
		worst := make(map[netip.Addr]int)
		for _, addr := range held {
			ip, ok := netip.AddrFromSlice(addr.IP)
			ip = ip.Unmap()
			if !ok || addr.LinkIndex != a.Index || !usable(ip, addr.Flags) {
				continue
			}
			worst[ip] = rank(ip, addr.Flags)
			c.addrs = append(c.addrs, ip)
		}
		slices.SortStableFunc(c.addrs, func(a, b netip.Addr) int { return worst[a] - worst[b] })
		all = append(all, c)
	}
	return all, nil
}

func netlinkFamily(f Families) int {
	if f == IPv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// usable reports whether a socket can be bound to an address and be reached there.
func usable(a netip.Addr, flags int) bool {
	if a.Is6() && (a.IsLinkLocalUnicast() || flags&unix.IFA_F_DADFAILED != 0) {
		return false
	}
	return !a.IsLoopback()
}

// rank puts IPv4's link-local addresses last: they are better than nothing, as in flannel. So are those of IPv6
// that go after a while: what their prefix's router has given up, and those that a host makes so as not to be known
// again (RFC 8981).
func rank(a netip.Addr, flags int) int {
	if a.IsLinkLocalUnicast() || a.Is6() && flags&(unix.IFA_F_DEPRECATED|unix.IFA_F_TEMPORARY) != 0 {
		return 1
	}
	return 0
}

func describe(all []candidate, by Families) []string {
	var out []string
	for _, c := range all {
		text := make([]string, 0, len(c.addrs))
		for _, a := range c.addrs {
			text = append(text, a.String())
		}
		if len(text) == 0 {
			text = append(text, "no "+by.String()+" address")
		}
		out = append(out, fmt.Sprintf("%s (%s)", c.Name, strings.Join(text, ", ")))
	}
	return out
}

// String is the name of the family that an interface is chosen by.
func (f Families) String() string {
	if f == IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

func choose(all []candidate, opts InterfaceOptions) (Interface, error) {
	if len(opts.Iface)+len(opts.IfaceRegex) > 0 {
		return chooseNamed(all, opts)
	}
	by, public := IPv4, opts.PublicIP
	if opts.Families == IPv6 {
		by, public = IPv6, opts.PublicIPv6
	}
	if opts.CanReach.IsValid() {
		return chooseReaching(all, opts.CanReach, by)
	}
	if public.IsValid() {
		if i, ok := holder(all, public); ok {
			return i, nil
		}
	}
	return chooseDefault(all, by)
}

func chooseNamed(all []candidate, opts InterfaceOptions) (Interface, error) {
	var misses []string
	for _, want := range opts.Iface {
		if ip, err := netip.ParseAddr(want); err == nil {
			if i, ok := holder(all, ip); ok {
				return i, nil
			}
			misses = append(misses, fmt.Sprintf("no interface has the address %s", want))
			continue
		}
		n := slices.IndexFunc(all, func(c candidate) bool { return c.Name == want })
		switch {
		case n < 0:
			misses = append(misses, fmt.Sprintf("there is no interface %q", want))
		case len(all[n].addrs) == 0:
			misses = append(misses, fmt.Sprintf("interface %q has no %s address", want, opts.Families))
		default:
			return all[n].with(all[n].addrs[0]), nil
		}
	}
	for _, want := range opts.IfaceRegex {
		re, err := regexp.Compile(want)
		if err != nil {
			return Interface{}, fmt.Errorf("choose the underlay interface: --iface-regex %q: %w; give a regular expression in Go's syntax", want, err)
		}
		if i, ok := matching(all, re); ok {
			return i, nil
		}
		misses = append(misses, fmt.Sprintf("no name and no address matches %q", want))
	}
	return Interface{}, &NoInterfaceError{
		Wanted: strings.Join(misses, ", "),
		Advice: "give --iface one of these names or addresses",
	}
}

// matching prefers a name to an address, as flannel does: "eth.*" is by far the commonest expression.
func matching(all []candidate, re *regexp.Regexp) (Interface, bool) {
	for _, c := range all {
		if len(c.addrs) > 0 && re.MatchString(c.Name) {
			return c.with(c.addrs[0]), true
		}
	}
	for _, c := range all {
		for _, a := range c.addrs {
			if re.MatchString(a.String()) {
				return c.with(a), true
			}
		}
	}
	return Interface{}, false
}

func holder(all []candidate, addr netip.Addr) (Interface, bool) {
	for _, c := range all {
		if slices.Contains(c.addrs, addr) {
			return c.with(addr), true
		}
	}
	return Interface{}, false
}

func chooseReaching(all []candidate, target netip.Addr, by Families) (Interface, error) {
	// The kernel answers for an address of its own with "lo".
	if i, ok := holder(all, target); ok {
		return i, nil
	}
	routes, err := netlink.RouteGet(net.IP(target.AsSlice()))
	if err != nil {
		return Interface{}, &NoInterfaceError{
			Wanted: fmt.Sprintf("no route to --iface-can-reach %s: %v", target, err),
			Advice: "add a route, or give --iface a name or an address",
		}
	}
	return bySourceOf(all, routes[0], fmt.Sprintf("the route to --iface-can-reach %s", target), by)
}

func chooseDefault(all []candidate, by Families) (Interface, error) {
	best, err := defaultRoute(netlinkFamily(by))
	if err != nil {
		return Interface{}, err
	}
	if best == nil {
		return Interface{}, &NoInterfaceError{
			Wanted: "there is no default route to tell it by",
			Advice: "give --iface a name or an address, or --iface-can-reach an address of another host",
		}
	}
	return bySourceOf(all, *best, "the default route", by)
}

// defaultRoute is the best one of the main table, or nil.
func defaultRoute(family int) (*netlink.Route, error) {
	main, err := mainRoutes(family)
	if err != nil {
		return nil, err
	}
	var best *netlink.Route
	for i, r := range main {
		if prefixOf(r.Dst).Bits() == 0 && r.Type == unix.RTN_UNICAST && (best == nil || r.Priority < best.Priority) {
			best = &main[i]
		}
	}
	return best, nil
}

func indexOf(r netlink.Route) int {
	if r.LinkIndex == 0 && len(r.MultiPath) > 0 {
		return r.MultiPath[0].LinkIndex
	}
	return r.LinkIndex
}

// bySourceOf returns the interface that a route leaves by, with the route's own source address if it
// names one.
func bySourceOf(all []candidate, r netlink.Route, what string, by Families) (Interface, error) {
	index := indexOf(r)
	n := slices.IndexFunc(all, func(c candidate) bool { return c.Index == index })
	if n < 0 || len(all[n].addrs) == 0 {
		name := fmt.Sprintf("interface number %d", index)
		if n >= 0 {
			name = all[n].Name
		}
		return Interface{}, &NoInterfaceError{
			Wanted: fmt.Sprintf("%s leaves by %s, which has no usable %s address", what, name, by),
			Advice: "give --iface a name or an address",
		}
	}
	if src, ok := netip.AddrFromSlice(r.Src); ok && slices.Contains(all[n].addrs, src.Unmap()) {
		return all[n].with(src.Unmap()), nil
	}
	return all[n].with(all[n].addrs[0]), nil
}
