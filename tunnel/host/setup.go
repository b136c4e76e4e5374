//go:build linux

package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"muslin/tunnel/kernel"
)

// ErrTUNGone: the TUN device was deleted, or replaced by another of its name.
var ErrTUNGone = errors.New("the TUN device is gone")

// Setup makes the TUN device ready and the host forward. Where the journal in StateDir says that an earlier
// daemon did so for this very device, it takes that over as it is, and changes what differs; what else a
// killed daemon left it first clears away. When it fails it has undone what it did, and what it took over,
// unless that is still another's (Shared).
//
// Firewall rules that this host refuses are logged and shown by Features and Warnings.
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
	return LinkNamed(s.config.TUN)
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
	if old.NetNS != NetNS() && old.Boot == BootID() {
		s.log.Warn("forgetting host changes of an earlier daemon in another network namespace", "tun", old.TUN.Name)
		return nil, old.remove()
	}
	if old.Boot != BootID() { // which has undone it all; a set-up of this boot may be the other family's
		s.log.Info("forgot the journal of host changes from before the last boot", "tun", old.TUN.Name)
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
	j := &journal{Version: journalVersion, Boot: BootID(), NetNS: NetNS(), Name: c.Name, path: journalPath(c.StateDir)}
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
			forwarding = func() ([]sysctl, []sysctl, error) { return forwarding6Sysctls(c.Outer.Iface) }
		}
		main, along, err := forwarding()
		if err != nil {
			return nil, err
		}
		j.Sysctls, j.Along = append(j.Sysctls, main...), append(j.Along, along...)
		if len(main) > 0 {
			j.noteForwarders(h.network.Addr().Is6(), orDiscard(c.Logger))
		}
	}
	for _, r := range rulesFor(c) {
		j.setFirewall(r.six, candidates(c.UseNFTables, r.six)[0])
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

// Needs says what Run and Undo take.
func (s *State) Needs() Needs {
	var all Needs
	for _, f := range s.firewalls {
		n := f.needs()
		all.Programs, all.RawSocket = all.Programs || n.Programs, all.RawSocket || n.RawSocket
	}
	return all
}

// Masquerade is the feature of our masquerade rules, and NotAskedFor the reason of one that is off by its flag.
const (
	Masquerade  = "masquerade"
	NotAskedFor = "not asked for"
)

// Features says what became of the firewall rules, for status.
func (s *State) Features() []kernel.Feature {
	say := func(name string, wanted bool, why error) kernel.Feature {
		switch {
		case !wanted:
			return kernel.Feature{Name: name, Reason: NotAskedFor}
		case why != nil:
			return kernel.Feature{Name: name, Reason: oneLine(why)}
		}
		return kernel.Feature{Name: name, On: true, Reason: s.journal.tools()}
	}
	return []kernel.Feature{say("forward-rules", s.config.ForwardRules, s.noForward), say(Masquerade, s.config.IPMasq, s.noMasquerade)}
}
