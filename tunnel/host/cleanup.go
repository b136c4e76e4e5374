//go:build linux

package host

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Undo puts the host back as Setup found it and deletes the journal. It may be called before or after
// the TUN is closed, and again. Call it when Run has returned. On an error the journal stays, for
// Cleanup to try again.
func (s *State) Undo() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.undone {
		return nil
	}
	u := undoing{log: s.log}
	u.firewalls(s.journal, func(six bool) bool {
		return slices.ContainsFunc(s.firewalls, func(f firewall) bool { return f.ofIPv6() == six })
	})
	u.routes(s.journal.owns)
	u.link(s.journal)
	u.sysctls(s.journal)
	u.anycast(s.journal.Addr6)
	if err := errors.Join(u.failed...); err != nil {
		return fmt.Errorf("undo the host changes: %w; then run `muslin cleanup`", err)
	}
	s.undone = true
	return s.journal.remove()
}

// Cleanup removes what a daemon that was killed left in this host, as its journal in stateDir says: all
// routes with RouteProtocol of the families that it is about, its TUN device when no process holds it, its firewall rules, and it turns
// the kernel's switches back. Without a journal it still removes such routes and rules, and a TUN device that
// such a route leads to. It returns what
// it did, one phrase each, nothing when there was nothing. The caller makes sure that the daemon does not
// run.
func Cleanup(stateDir string, logger *slog.Logger) ([]string, error) {
	u := undoing{log: orDiscard(logger)}
	j, err := readJournal(stateDir)
	if err != nil {
		return nil, err
	}
	if j != nil && j.Boot != BootID() {
		// The boot undid it all. What the switches are now is somebody's decision of today.
		if err := j.remove(); err != nil {
			return nil, err
		}
		u.say("forgot the journal of host changes from before the last boot")
		j = nil
	}
	if j != nil && j.NetNS != NetNS() {
		return nil, fmt.Errorf("the journal %s is of another network namespace (%s, this is %s): run `muslin cleanup` in that one (`ip netns exec NAME muslin cleanup`), or delete the journal if it is gone",
			j.path, j.NetNS, NetNS())
	}

	for _, six := range []bool{false, true} {
		r := rules{six: six}
		if j != nil {
			r.name = j.Name
		}
		for _, kind := range candidates(true, six) {
			if j == nil || j.firewall(six) == kind {
				u.firewall(kind, r, j != nil)
			}
		}
		if kind := j.apart(six); kind != "" {
			u.firewall(kind, rules{six: six, apart: true}, true)
		}
	}
	led := make(map[int]bool) // indices of the devices that those routes led to
	u.routes(func(r netlink.Route) bool {
		ours := r.Protocol == RouteProtocol && (j == nil || j.about(r.Family))
		if j != nil && (j.Name != "" || j.Common) { // the others' stay
			ours = j.owns(r) || ours && j.TUN.Index != 0 && r.LinkIndex == j.TUN.Index
		}
		led[r.LinkIndex] = led[r.LinkIndex] || ours && r.Gw == nil // one with a gateway leads to the underlay
		return ours
	})
	if j == nil {
		u.orphans(func(tun netlink.Link) bool { return led[tun.Attrs().Index] || isMarked(tun, stateDir) })
	} else {
		u.orphans(func(tun netlink.Link) bool { return j.isOf(tun) || isMarked(tun, stateDir) })
		u.sysctls(j)
		u.anycast(j.Addr6)
		if len(u.failed) == 0 {
			if err := j.remove(); err != nil {
				u.failed = append(u.failed, err)
			}
		}
	}
	return u.did, errors.Join(u.failed...)
}

// undoing goes on after a failure: each thing that can be undone is.
type undoing struct {
	log    *slog.Logger
	did    []string
	failed []error
}

func (u *undoing) say(format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	u.did = append(u.did, what)
	u.log.Info("undone in this host", "what", what)
}

func (u *undoing) fail(err error) { u.failed = append(u.failed, err) }

// firewalls takes out the rules that the journal names.
func (u *undoing) firewalls(j *journal, known func(six bool) bool) {
	for _, six := range []bool{false, true} {
		if kind := j.firewall(six); kind != "" {
			u.firewall(kind, rules{six: six, name: j.Name}, known(six))
		}
	}
}

// firewall takes our rules of one family out. Where it is not known that any were put in, a tool that does not work is
// no failure: on a kernel without its subsystem there is nothing to take out.
func (u *undoing) firewall(kind firewallKind, r rules, known bool) {
	var did bool
	fw, err := newFirewall(kind, r)
	if err == nil {
		did, err = fw.remove()
	}
	switch {
	case err != nil && known:
		u.fail(err)
	case err != nil:
		u.log.Warn("could not look for firewall rules of ours", "tool", kind, "error", err)
	}
	switch {
	case did && r.apart:
		u.say("removed the %s rules that keep networks apart", kind)
	case did && r.six:
		u.say("removed the %s rules of IPv6", kind)
	case did:
		u.say("removed the %s rules", kind)
	}
}

func (u *undoing) routes(ours func(netlink.Route) bool) {
	var main []netlink.Route
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		more, err := mainRoutes(family)
		if err != nil {
			u.fail(err)
			continue
		}
		main = append(main, more...)
	}
	direct := 0
	for _, r := range main {
		if !ours(r) {
			continue
		}
		what := plannedRoute{Prefix: prefixOf(r.Dst), Blackhole: r.Type == unix.RTN_BLACKHOLE}
		if err := netlink.RouteDel(&r); err != nil {
			// Gone with the TUN, between the look and the deletion.
			if !errors.Is(err, unix.ESRCH) {
				u.fail(fmt.Errorf("remove %s: %w", what, err))
			}
			continue
		}
		if r.Gw != nil {
			direct++ // perhaps one of thousands
		} else {
			u.say("removed %s", what)
		}
	}
	if direct > 0 {
		u.say("removed %d direct routes to peers", direct)
	}
}

// link gives the TUN back as it was. It is gone already if its owner closed it first.
func (u *undoing) link(j *journal) {
	if j.TUN.Name == "" {
		return
	}
	tun, err := LinkNamed(j.TUN.Name)
	if err != nil {
		u.fail(err)
		return
	}
	if tun == nil || tun.Attrs().Index != j.TUN.Index {
		return
	}
	a := tun.Attrs()
	u.addresses(tun, j)
	if !j.TUN.Up && a.Flags&net.FlagUp != 0 {
		u.change(tun, "undid the up state", netlink.LinkSetDown(tun))
	}
	if a.MTU != j.TUN.MTU {
		u.change(tun, "put back the MTU", netlink.LinkSetMTU(tun, j.TUN.MTU))
	}
	if a.TxQLen != j.TUN.QueueLen {
		u.change(tun, "put back the queue length", netlink.LinkSetTxQLen(tun, j.TUN.QueueLen))
	}
}

// addresses takes those that the journal names off the TUN.
func (u *undoing) addresses(tun netlink.Link, j *journal) {
	for _, addr := range []netip.Prefix{j.Addr, j.Addr6} {
		if addr.IsValid() {
			u.change(tun, "removed the address", netlink.AddrDel(tun, &netlink.Addr{IPNet: ipNet(addr)}))
		}
	}
}

// change notes what was done to the TUN, or why not. It may be gone meanwhile.
func (u *undoing) change(tun netlink.Link, what string, err error) {
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EADDRNOTAVAIL):
	case err != nil:
		u.fail(fmt.Errorf("%s of %q: %w", what, tun.Attrs().Name, err))
	default:
		u.say("%s of %s", what, tun.Attrs().Name)
	}
}

// orphans deletes the TUN that a killed daemon left. A TUN goes with its last file descriptor, unless it is
// persistent, as ours are.
func (u *undoing) orphans(ours func(netlink.Link) bool) {
	all, err := links()
	if err != nil {
		u.fail(err)
		return
	}
	for _, tun := range all {
		if isDevice(tun) && ours(tun) {
			u.orphan(tun)
		}
	}
}

func (u *undoing) orphan(tun netlink.Link) {
	name := tun.Attrs().Name
	if pid, held := attachedBy(tun); held {
		what := "a process that cannot be seen from here"
		if pid != 0 {
			what = fmt.Sprintf("process %d (%s)", pid, command(pid))
		}
		u.log.Warn("left the TUN device alone: it is held", "tun", name, "by", what)
		return
	}
	if err := netlink.LinkDel(tun); err != nil {
		u.fail(fmt.Errorf("delete the TUN device %q: %w; try `ip link del %s`", name, err, name))
		return
	}
	u.say("deleted the TUN device %s", name)
}

func (u *undoing) sysctls(j *journal) {
	forward := make(map[string]bool) // which families' forwarding was turned back
	back := func(s sysctl) {
		did, err := s.restore()
		if err != nil {
			u.fail(err)
		}
		if did {
			u.say("set %s back to %s", s.Path, s.Was)
			if s.Path == ipForward || s.Path == ip6Forward {
				forward[s.family()] = true
			}
		}
	}
	kept := make(map[string]bool)                  // which families' forwarding stays on
	for _, s := range slices.Backward(j.Sysctls) { // forwarding before what came before it
		switch {
		case (s.Path == ipForward || s.Path == ip6Forward) && u.keeps(j, s):
			kept[s.family()] = true
		case s.keepsRouters() && kept[s.family()]: // without it the default route would go
		default:
			back(s)
		}
	}
	for _, s := range j.Along {
		if forward[s.family()] {
			back(s)
		}
	}
}
