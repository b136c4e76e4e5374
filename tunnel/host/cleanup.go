//go:build linux

package host

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
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
	if s.journal.Firewall != "" {
		u.firewall(s.journal.Firewall, s.firewall != nil)
	}
	u.routes(func(r netlink.Route) bool {
		return slices.ContainsFunc(s.journal.Routes, func(p plannedRoute) bool { return p.is(r) })
	})
	u.link(s.journal)
	u.sysctls(s.journal)
	if err := errors.Join(u.failed...); err != nil {
		return fmt.Errorf("undo the host changes: %w; then run `muslin cleanup`", err)
	}
	s.undone = true
	return s.journal.remove()
}

// Cleanup removes what a daemon that was killed left in this host, as its journal in stateDir says: all
// routes with RouteProtocol, its TUN device when no process holds it, its firewall rules, and it turns
// the kernel's switches back. Without a journal it still removes such routes and rules. It returns what
// it did, one phrase each, nothing when there was nothing. The caller makes sure that the daemon does not
// run.
func Cleanup(stateDir string, logger *slog.Logger) ([]string, error) {
	u := undoing{log: orDiscard(logger)}
	j, err := readJournal(stateDir)
	if err != nil {
		return nil, err
	}
	if j != nil && j.Boot != bootID() {
		// The boot undid it all. What the switches are now is somebody's decision of today.
		if err := j.remove(); err != nil {
			return nil, err
		}
		u.say("forgot the journal of host changes from before the last boot")
		j = nil
	}
	if j != nil && j.NetNS != netNS() {
		return nil, fmt.Errorf("the journal %s is of another network namespace (%s, this is %s): run `muslin cleanup` in that one (`ip netns exec NAME muslin cleanup`), or delete the journal if it is gone",
			j.path, j.NetNS, netNS())
	}

	if j == nil || j.Firewall == withNFTables {
		u.firewall(withNFTables, j != nil)
	}
	if _, err := exec.LookPath(iptablesCommand); err == nil && (j == nil || j.Firewall == withIPTables) {
		u.firewall(withIPTables, j != nil)
	}
	u.routes(func(r netlink.Route) bool { return r.Protocol == RouteProtocol })
	if j != nil {
		u.orphan(j)
		u.sysctls(j)
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

// firewall takes our rules out. Where it is not known that any were put in, a tool that does not work is
// no failure: on a kernel without its subsystem there is nothing to take out.
func (u *undoing) firewall(kind firewallKind, known bool) {
	var did bool
	fw, err := newFirewall(kind, rules{})
	if err == nil {
		did, err = fw.remove()
	}
	switch {
	case err != nil && known:
		u.fail(err)
	case err != nil:
		u.log.Warn("could not look for firewall rules of ours", "tool", kind, "error", err)
	}
	if did {
		u.say("removed the %s rules", kind)
	}
}

func (u *undoing) routes(ours func(netlink.Route) bool) {
	main, err := mainRoutes()
	if err != nil {
		u.fail(err)
		return
	}
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
		u.say("removed %s", what)
	}
}

// link gives the TUN back as it was. It is gone already if its owner closed it first.
func (u *undoing) link(j *journal) {
	tun, err := link(j.TUN.Name)
	if err != nil {
		u.fail(err)
		return
	}
	if tun == nil || tun.Attrs().Index != j.TUN.Index {
		return
	}
	a := tun.Attrs()
	change := func(what string, wanted bool, do func() error) {
		if !wanted {
			return
		}
		err := do()
		if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EADDRNOTAVAIL) {
			return
		}
		if err != nil {
			u.fail(fmt.Errorf("%s of %q: %w", what, j.TUN.Name, err))
			return
		}
		u.say("%s of %s", what, j.TUN.Name)
	}
	change("removed the address", true, func() error { return netlink.AddrDel(tun, &netlink.Addr{IPNet: ipNet(j.Addr)}) })
	change("undid the up state", !j.TUN.Up && a.Flags&net.FlagUp != 0, func() error { return netlink.LinkSetDown(tun) })
	change("put back the MTU", a.MTU != j.TUN.MTU, func() error { return netlink.LinkSetMTU(tun, j.TUN.MTU) })
	change("put back the queue length", a.TxQLen != j.TUN.QueueLen, func() error { return netlink.LinkSetTxQLen(tun, j.TUN.QueueLen) })
}

// orphan deletes the TUN that a killed daemon left. A TUN goes with its last file descriptor, unless
// somebody made it persistent.
func (u *undoing) orphan(j *journal) {
	tun, err := link(j.TUN.Name)
	if err != nil {
		u.fail(err)
		return
	}
	if tun == nil || tun.Attrs().Index != j.TUN.Index || typeOf(tun) != "tun" {
		return
	}
	pid, held := tunHolder(j.TUN.Name)
	if pid == os.Getpid() {
		// Persistent, and taken up again by the daemon that is starting: as good as new is enough.
		u.link(j)
		return
	}
	if held {
		u.log.Warn("left the TUN device alone: a process holds it", "tun", j.TUN.Name, "pid", pid, "command", command(pid))
		return
	}
	// A TUN has a carrier while a file descriptor is attached, whoever holds it.
	if a := tun.Attrs(); a.Flags&net.FlagUp != 0 && a.RawFlags&unix.IFF_LOWER_UP != 0 {
		u.log.Warn("left the TUN device alone: a process that cannot be seen from here holds it", "tun", j.TUN.Name)
		return
	}
	if err := netlink.LinkDel(tun); err != nil {
		u.fail(fmt.Errorf("delete the TUN device %q: %w; try `ip link del %s`", j.TUN.Name, err, j.TUN.Name))
		return
	}
	u.say("deleted the TUN device %s", j.TUN.Name)
}

func (u *undoing) sysctls(j *journal) {
	forward := false
	back := func(s sysctl) {
		did, err := s.restore()
		if err != nil {
			u.fail(err)
		}
		if did {
			u.say("set %s back to %s", s.Path, s.Was)
			forward = forward || s.Path == ipForward
		}
	}
	for _, s := range slices.Backward(j.Sysctls) {
		back(s)
	}
	if !forward {
		return
	}
	for _, s := range j.Along {
		back(s)
	}
}
