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

	"muslin/tunnel/kernel"
)

// ErrTUNGone: the TUN device was deleted, or replaced by another of its name.
var ErrTUNGone = errors.New("the TUN device is gone")

// Setup makes the TUN device ready and the host forward. Where the journal in StateDir says that an earlier
// daemon did so for this very device, it takes that over as it is, and changes what differs; what else a
// killed daemon left it first clears away. When it fails it has undone what it did, and what it took over,
// unless that is still another's (Shared).
//
// A firewall that refuses the forward rules is logged and shown by Features, since a host without one
// forwards anyway; one that refuses the masquerade that was asked for is an error.
func Setup(c SetupConfig) (*State, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	s := &State{config: c, log: orDiscard(c.Logger)}
	tun, err := s.tun()
	if err != nil {
		return nil, err
	}
	if tun == nil && c.TUN != "" {
		return nil, fmt.Errorf("set up %q: no such device; open the TUN first", c.TUN)
	}
	old, err := s.predecessor(tun)
	if err != nil {
		return nil, err
	}
	if s.journal, err = c.plan(tun); err != nil {
		return nil, err
	}
	if old != nil {
		s.journal.inherit(old)
		if err := s.undoBeyond(old, tun); err != nil {
			return nil, err
		}
	}
	if err := s.journal.save(); err != nil {
		return nil, err
	}
	if err := s.change(); err != nil {
		if c.Shared {
			return nil, err
		}
		return nil, errors.Join(err, s.Undo())
	}
	return s, nil
}

// tun is the TUN device; nil: it is not there, or none is wanted.
func (s *State) tun() (netlink.Link, error) {
	if s.config.TUN == "" {
		return nil, nil
	}
	return link(s.config.TUN)
}

func (c SetupConfig) check() error {
	six := half{c.Address6, c.Network6, c.Subnet6}
	if four := (half{c.Address, c.Network, c.Subnet}); four != (half{}) || six == (half{}) {
		for name, p := range map[string]netip.Prefix{"Network": c.Network, "Subnet": c.Subnet, "Address": c.Address} {
			if !p.IsValid() || !p.Addr().Is4() {
				return fmt.Errorf("set up %q: %s %v is not an IPv4 prefix", c.TUN, name, p)
			}
		}
	}
	if six != (half{}) {
		for name, p := range map[string]netip.Prefix{"Network6": c.Network6, "Subnet6": c.Subnet6, "Address6": c.Address6} {
			if !p.IsValid() || !p.Addr().Is6() || p.Addr().Is4In6() {
				return fmt.Errorf("set up %q: %s %v is not an IPv6 prefix", c.TUN, name, p)
			}
		}
		if err := c.checkMTU(c.MTU); err != nil {
			return err
		}
	}
	if c.StateDir == "" {
		return fmt.Errorf("set up %q: no state directory for the journal; give one with --state-dir", c.TUN)
	}
	return nil
}

// minMTU6 is the smallest MTU of a link that carries IPv6 (RFC 8200, section 5). Below it the kernel takes IPv6 off
// the device (addrconf_notify in net/ipv6/addrconf.c), addresses, routes and all.
const minMTU6 = 1280

func (c SetupConfig) checkMTU(mtu int) error {
	if c.has6() && c.TUN != "" && mtu < minMTU6 {
		return fmt.Errorf("set up %q: MTU %d is less than the %d that IPv6 needs: raise the underlay's MTU, or set EnableIPv6 to false in the network config", c.TUN, mtu, minMTU6)
	}
	return nil
}

// predecessor is the journal of the daemon that had this device before us. What is left of another one is
// cleared away.
func (s *State) predecessor(tun netlink.Link) (*journal, error) {
	old, err := readJournal(s.config.StateDir)
	if err != nil || old == nil {
		return nil, err
	}
	if old.isOf(tun) {
		return old, nil
	}
	if old.NetNS != netNS() && old.Boot == bootID() {
		s.log.Warn("forgetting host changes of an earlier daemon in another network namespace", "tun", old.TUN.Name)
		return nil, old.remove()
	}
	if _, err := Cleanup(s.config.StateDir, s.log); err != nil {
		return nil, fmt.Errorf("clear away what an earlier daemon left: %w", err)
	}
	return nil, nil
}

// undoBeyond undoes what another daemon did for this device, by its journal, and we do not want.
func (s *State) undoBeyond(other *journal, tun netlink.Link) error {
	u := undoing{log: s.log}
	more := s.journal.beyond(other)
	u.firewalls(more, func(bool) bool { return true })
	u.routes(more.owns)
	if tun != nil {
		u.addresses(tun, more)
	}
	if err := errors.Join(u.failed...); err != nil {
		return fmt.Errorf("undo what another daemon did otherwise: %w", err)
	}
	return nil
}

// Restore has the host again as Setup left it, after another daemon with the same device, which did not take
// it over in the end, has been at it. Call it while Run does not run.
func (s *State) Restore() error {
	tun, err := s.tun()
	if err != nil {
		return err
	}
	theirs, err := readJournal(s.config.StateDir)
	if err != nil {
		return err
	}
	if (tun != nil || s.config.TUN == "") && theirs != nil {
		err = s.undoBeyond(theirs, tun)
	}
	err = errors.Join(err, s.journal.save())
	for _, f := range s.firewalls {
		err = errors.Join(err, f.apply())
	}
	_, more := s.converge()
	return errors.Join(err, more)
}

// plan is everything that Setup is about to change.
func (c SetupConfig) plan(tun netlink.Link) (*journal, error) {
	j := &journal{Version: journalVersion, Boot: bootID(), NetNS: netNS(), path: journalPath(c.StateDir)}
	if tun != nil {
		a := tun.Attrs()
		j.TUN = linkBefore{Name: a.Name, Index: a.Index, Up: a.Flags&net.FlagUp != 0, MTU: a.MTU, QueueLen: a.TxQLen}
		j.Addr, j.Addr6 = c.Address, c.Address6
		for _, h := range c.halves() {
			j.Routes = append(j.Routes, plannedRoute{Prefix: h.network.Masked()})
		}
		j.Sysctls = deviceSysctls(c.TUN, c.Network.IsValid(), c.has6())
	}
	for _, h := range c.halves() {
		if c.BlackholeRoute {
			j.Routes = append(j.Routes, plannedRoute{Prefix: h.subnet.Masked(), Blackhole: true})
		}
		if c.DirectRoutes && h.network.Addr().Is4() {
			j.Direct = h.network.Masked()
		} else if c.DirectRoutes {
			j.Direct6 = h.network.Masked()
		}
		forwarding := forwardingSysctls
		if h.network.Addr().Is6() {
			forwarding = func() ([]sysctl, []sysctl, error) { return forwarding6Sysctls(c.Underlay) }
		}
		main, along, err := forwarding()
		if err != nil {
			return nil, err
		}
		j.Sysctls, j.Along = append(j.Sysctls, main...), append(j.Along, along...)
	}
	for _, r := range rulesFor(c) {
		j.setFirewall(r.six, chooseFirewall(c.UseNFTables, r.six))
	}
	return j, nil
}

func (s *State) change() error {
	if _, err := s.converge(); err != nil {
		return err
	}
	for _, r := range rulesFor(s.config) {
		if err := s.putIn(r); err != nil {
			return err
		}
	}
	return nil
}

// putIn makes the firewall have the rules of one family.
func (s *State) putIn(r rules) error {
	kind := s.journal.firewall(r.six)
	fw, err := newFirewall(kind, r)
	if err == nil {
		err = fw.apply()
	}
	if err == nil {
		s.firewalls = append(s.firewalls, fw)
		return nil
	}
	if s.config.IPMasq {
		return err
	}
	s.firewallErr = err
	s.log.Warn("no forward rules: if this host's firewall drops forwarded packets, allow the overlay there", "network", r.cluster, "error", err)
	u := undoing{log: s.log}
	u.firewall(kind, r.six, false)
	// A tool that does not work would fail the clean-up as well.
	s.journal.setFirewall(r.six, "")
	return s.journal.save()
}

// Needs says what Run and Undo take.
func (s *State) Needs() Needs {
	var all Needs
	for _, f := range s.firewalls {
		n := f.needs()
		all.Programs, all.RawSocket = all.Programs || n.Programs, all.RawSocket || n.RawSocket
	}
	return all
}

// Features says what became of the firewall rules, for status.
func (s *State) Features() []kernel.Feature {
	say := func(name string, wanted bool) kernel.Feature {
		switch {
		case !wanted:
			return kernel.Feature{Name: name, Reason: "not asked for"}
		case s.firewallErr != nil:
			return kernel.Feature{Name: name, Reason: s.firewallErr.Error()}
		}
		return kernel.Feature{Name: name, On: true, Reason: s.journal.tools()}
	}
	return []kernel.Feature{say("forward-rules", s.config.ForwardRules), say("masquerade", s.config.IPMasq)}
}

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
