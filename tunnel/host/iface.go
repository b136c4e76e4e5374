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

// InterfaceOptions is how the underlay's interface is chosen, in this order: Iface, IfaceRegex,
// CanReach, PublicIP, the default route. The zero value means the default route.
type InterfaceOptions struct {
	Iface      []string   // interface names or IPv4 addresses; the first that fits wins
	IfaceRegex []string   // each is matched against every interface's name, then its addresses
	CanReach   netip.Addr // the interface that the kernel would send a packet to this address from
	PublicIP   netip.Addr // the address that peers send to; may belong to a NAT gateway
}

// Interface is the underlay's interface.
type Interface struct {
	Name     string
	Index    int
	Addr     netip.Addr // its IPv4 address, to bind to
	MTU      int        // bytes
	PublicIP netip.Addr // InterfaceOptions.PublicIP, or Addr where that is not given
}

// NoInterfaceError is why no interface could be chosen, with what was looked at.
type NoInterfaceError struct {
	Wanted string   // what was searched for
	Advice string   // which flag to give
	Have   []string // "name (address, address)"
}

func (e *NoInterfaceError) Error() string {
	have := "no interface with an IPv4 address"
	if len(e.Have) > 0 {
		have = strings.Join(e.Have, ", ")
	}
	return fmt.Sprintf("choose the underlay interface: %s; this host has %s; %s", e.Wanted, have, e.Advice)
}

// ChooseInterface returns the interface that carries the underlay. Failure to find one is a
// *NoInterfaceError.
func ChooseInterface(opts InterfaceOptions) (Interface, error) {
	all, err := interfaces()
	if err != nil {
		return Interface{}, err
	}
	chosen, err := choose(all, opts)
	if err != nil {
		if no := new(NoInterfaceError); errors.As(err, &no) {
			no.Have = describe(all)
		}
		return Interface{}, err
	}
	chosen.PublicIP = chosen.Addr
	if opts.PublicIP.IsValid() {
		chosen.PublicIP = opts.PublicIP
	}
	return chosen, nil
}

// candidate is an interface with its IPv4 addresses, the best to bind to first.
type candidate struct {
	Interface
	addrs []netip.Addr
}

func (c candidate) with(addr netip.Addr) Interface {
	i := c.Interface
	i.Addr = addr
	return i
}

func interfaces() ([]candidate, error) {
	devices, err := links()
	if err != nil {
		return nil, err
	}
	held, err := addresses()
	if err != nil {
		return nil, err
	}
	all := make([]candidate, 0, len(devices))
	for _, l := range devices {
		a := l.Attrs()
		c := candidate{Interface: Interface{Name: a.Name, Index: a.Index, MTU: a.MTU}}
		for _, addr := range held {
			ip, ok := netip.AddrFromSlice(addr.IP.To4())
			if ok && addr.LinkIndex == a.Index && !ip.IsLoopback() {
				c.addrs = append(c.addrs, ip)
			}
		}
		slices.SortStableFunc(c.addrs, func(a, b netip.Addr) int { return rank(a) - rank(b) })
		all = append(all, c)
	}
	return all, nil
}

// rank puts link-local addresses last: they are better than nothing, as in flannel.
func rank(a netip.Addr) int {
	if a.IsLinkLocalUnicast() {
		return 1
	}
	return 0
}

func describe(all []candidate) []string {
	var out []string
	for _, c := range all {
		text := make([]string, 0, len(c.addrs))
		for _, a := range c.addrs {
			text = append(text, a.String())
		}
		if len(text) == 0 {
			text = append(text, "no IPv4 address")
		}
		out = append(out, fmt.Sprintf("%s (%s)", c.Name, strings.Join(text, ", ")))
	}
	return out
}

func choose(all []candidate, opts InterfaceOptions) (Interface, error) {
	if len(opts.Iface)+len(opts.IfaceRegex) > 0 {
		return chooseNamed(all, opts)
	}
	if opts.CanReach.IsValid() {
		return chooseReaching(all, opts.CanReach)
	}
	if opts.PublicIP.IsValid() {
		if i, ok := holder(all, opts.PublicIP); ok {
			return i, nil
		}
	}
	return chooseDefault(all)
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
			misses = append(misses, fmt.Sprintf("interface %q has no IPv4 address", want))
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

func chooseReaching(all []candidate, target netip.Addr) (Interface, error) {
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
	return bySourceOf(all, routes[0], fmt.Sprintf("the route to --iface-can-reach %s", target))
}

func chooseDefault(all []candidate) (Interface, error) {
	main, err := mainRoutes()
	if err != nil {
		return Interface{}, err
	}
	var best *netlink.Route
	for i, r := range main {
		if prefixOf(r.Dst).Bits() == 0 && r.Type == unix.RTN_UNICAST && (best == nil || r.Priority < best.Priority) {
			best = &main[i]
		}
	}
	if best == nil {
		return Interface{}, &NoInterfaceError{
			Wanted: "there is no default route to tell it by",
			Advice: "give --iface a name or an address, or --iface-can-reach an address of another host",
		}
	}
	return bySourceOf(all, *best, "the default route")
}

// bySourceOf returns the interface that a route leaves by, with the route's own source address if it
// names one.
func bySourceOf(all []candidate, r netlink.Route, what string) (Interface, error) {
	index := r.LinkIndex
	if index == 0 && len(r.MultiPath) > 0 {
		index = r.MultiPath[0].LinkIndex
	}
	n := slices.IndexFunc(all, func(c candidate) bool { return c.Index == index })
	if n < 0 || len(all[n].addrs) == 0 {
		name := fmt.Sprintf("interface number %d", index)
		if n >= 0 {
			name = all[n].Name
		}
		return Interface{}, &NoInterfaceError{
			Wanted: fmt.Sprintf("%s leaves by %s, which has no usable IPv4 address", what, name),
			Advice: "give --iface a name or an address",
		}
	}
	if src, ok := netip.AddrFromSlice(r.Src.To4()); ok && slices.Contains(all[n].addrs, src) {
		return all[n].with(src), nil
	}
	return all[n].with(all[n].addrs[0]), nil
}
