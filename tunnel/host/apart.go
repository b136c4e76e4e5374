//go:build linux

package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Common is what several overlays of one process have in common in this host: the switches for forwarding, which must
// stay on until the last of them is gone, and the rules that keep them apart. With the host forwarding between its
// devices, a packet of one overlay would otherwise find its way to another's containers, and the forward rules of both
// would accept it.
//
// Such a rule drops; so it does best in an nftables table, where no accept of anybody's overrules it, iptables or not.
// Where the kernel has no nf_tables, the rules are in an iptables chain with the jump to it before all others. Where no tool
// works, a second overlay is refused: it would not be apart.
//
// It is safe for concurrent use.
type Common struct {
	log    *slog.Logger
	resync time.Duration

	mu        sync.Mutex
	journal   *journal
	firewalls []firewall
	undone    bool
}

// Overlay is one of them.
type Overlay struct {
	Network, Network6 netip.Prefix // of a family that it does not carry: zero
	Iface             string       // the underlay's
}

// OpenCommon changes nothing yet. What a killed process had changed by the journal in the state directory is taken over.
// resync is the period of Run's check; 0 means DefaultResync.
func OpenCommon(stateDir string, resync time.Duration, logger *slog.Logger) (*Common, error) {
	c := &Common{log: orDiscard(logger), resync: resync}
	if c.resync <= 0 {
		c.resync = DefaultResync
	}
	c.journal = &journal{Version: journalVersion, Boot: BootID(), NetNS: NetNS(), Common: true, path: journalPath(stateDir)}
	old, err := readJournal(stateDir)
	switch {
	case err != nil || old == nil:
		return c, err
	case old.Boot != BootID(): // which has undone it all
		return c, old.remove()
	case old.NetNS != NetNS():
		c.log.Warn("forgetting host changes of an earlier process in another network namespace")
		return c, old.remove()
	case !old.Common:
		return nil, fmt.Errorf("a daemon with one network was killed and has left what it changed in this host (%s): run `muslin cleanup --state-dir %s` first", old.path, stateDir)
	}
	c.journal = old
	return c, nil
}

// Set makes the host have what these overlays need together, in place of what it had for others. An overlay is among
// them before anything else of it is set up, and until that is undone.
func (c *Common) Set(overlays []Overlay) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.undone {
		return nil
	}
	return errors.Join(c.forward(overlays), c.keepApart(overlays))
}

// forward switches forwarding on for each family that there is, and back for one that there is no more.
func (c *Common) forward(overlays []Overlay) error {
	wanted := make(map[string]string) // family to an underlay's interface
	for _, o := range overlays {
		if o.Network.IsValid() {
			wanted["ipv4"] = o.Iface
		}
		if o.Network6.IsValid() {
			wanted["ipv6"] = o.Iface
		}
	}
	var failed []error
	for _, family := range []string{"ipv4", "ipv6"} {
		iface, want := wanted[family]
		has := slices.ContainsFunc(c.journal.Sysctls, func(s sysctl) bool { return s.family() == family })
		switch {
		case want && !has:
			main, along, err := forwardingSysctls()
			if family == "ipv6" {
				main, along, err = forwarding6Sysctls(iface)
			}
			if err != nil {
				failed = append(failed, err)
				continue
			}
			c.journal.Sysctls, c.journal.Along = append(c.journal.Sysctls, main...), append(c.journal.Along, along...)
			if len(main) == 0 {
				continue
			}
			c.journal.noteForwarders(family == "ipv6", c.log)
			if err := c.journal.save(); err != nil {
				failed = append(failed, err)
				continue
			}
		case !want && has:
			u := undoing{log: c.log}
			u.sysctls(c.journal.ofFamily(family, true))
			c.journal = c.journal.ofFamily(family, false)
			failed = append(failed, append(u.failed, c.journal.save())...)
		}
	}
	_, err := c.turn()
	return errors.Join(append(failed, err)...)
}

// ofFamily is the journal with the switches of one family alone, or with all but those.
func (j *journal) ofFamily(family string, only bool) *journal {
	out := *j
	other := func(s sysctl) bool { return (s.family() == family) != only }
	out.Sysctls = slices.DeleteFunc(slices.Clone(j.Sysctls), other)
	out.Along = slices.DeleteFunc(slices.Clone(j.Along), other)
	return &out
}

// turn sets the switches that are not as they should be.
func (c *Common) turn() (did []string, err error) {
	for _, s := range c.journal.Sysctls {
		if now, err := readSysctl(s.Path); err == nil && now == s.Set {
			continue
		}
		if err := writeSysctl(s.Path, s.Set); err != nil {
			name := strings.ReplaceAll(strings.TrimPrefix(s.Path, "/proc/sys/"), "/", ".")
			return did, fmt.Errorf("switch forwarding on: %w; run `sysctl -w %s=%s` where /proc/sys is writable", err, name, s.Set)
		}
		did = append(did, fmt.Sprintf("%s = %s", s.Path, s.Set))
	}
	return did, nil
}

// apartRules are those of one family: from each overlay to every other one nothing is forwarded.
func apartRules(overlays []Overlay, six bool) rules {
	r := rules{six: six, apart: true}
	network := func(o Overlay) netip.Prefix {
		if six {
			return o.Network6.Masked()
		}
		return o.Network.Masked()
	}
	for i, from := range overlays {
		for j, to := range overlays {
			if i != j && network(from).IsValid() && network(to).IsValid() {
				r.forward = append(r.forward, rule{src: match{prefix: network(from)}, dst: match{prefix: network(to)}, do: drop})
			}
		}
	}
	return r
}

func (c *Common) keepApart(overlays []Overlay) error {
	c.firewalls = nil
	for _, six := range []bool{false, true} {
		if err := c.putApart(apartRules(overlays, six)); err != nil {
			return fmt.Errorf("keep networks apart: %w", err)
		}
	}
	return nil
}

// putApart has the rules of one family be these, or none.
func (c *Common) putApart(r rules) error {
	kind := c.journal.apart(r.six)
	if r.empty() {
		if kind == "" {
			return nil
		}
		u := undoing{log: c.log}
		u.firewall(kind, r, true)
		if err := errors.Join(u.failed...); err != nil {
			return err
		}
		c.journal.setApart(r.six, "")
		return c.journal.save()
	}
	if kind != "" { // with which they are in already
		fw, err := newFirewall(kind, r)
		if err == nil {
			err = fw.apply()
		}
		if err == nil {
			c.firewalls = append(c.firewalls, fw)
		}
		return err
	}
	var failed []error
	for _, kind := range candidates(true, r.six) {
		c.journal.setApart(r.six, kind)
		if err := c.journal.save(); err != nil {
			return err
		}
		fw, err := putInWith(kind, r)
		if err == nil {
			c.firewalls = append(c.firewalls, fw)
			return nil
		}
		failed = append(failed, err)
	}
	c.journal.setApart(r.six, "")
	return errors.Join(allOf(failed), c.journal.save())
}

// Needs says what all of this takes.
func (c *Common) Needs() Needs {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all Needs
	for _, f := range c.firewalls {
		n := f.needs()
		all.Programs, all.RawSocket = all.Programs || n.Programs, all.RawSocket || n.RawSocket
	}
	return all
}

// Run puts back what something else removes, until ctx ends.
func (c *Common) Run(ctx context.Context) error {
	tick := time.NewTicker(c.resync)
	defer tick.Stop()
	watch := newRulesWatch(c.log)
	defer watch.close()
	repairs := repairs{log: c.log, period: c.resync}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-watch.events:
			watch.arm()
			continue
		case <-watch.look.C:
			watch.looked()
		case <-tick.C:
		}
		repairs.report(c.converge())
	}
}

func (c *Common) converge() (did []string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.undone {
		return nil, nil
	}
	did, err = c.turn()
	for _, f := range c.firewalls {
		ok, wrong := f.intact()
		if wrong == nil && !ok {
			if wrong = f.apply(); wrong == nil {
				did = append(did, "the rules that keep networks apart")
			}
		}
		err = errors.Join(err, wrong)
	}
	return did, err
}

// Undo puts the host back. Call it when Run has returned and no overlay is left. On an error the journal stays, for
// Cleanup to try again.
func (c *Common) Undo() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	u := undoing{log: c.log}
	for _, six := range []bool{false, true} {
		if kind := c.journal.apart(six); kind != "" {
			u.firewall(kind, rules{six: six, apart: true}, true)
		}
	}
	u.sysctls(c.journal)
	if err := errors.Join(u.failed...); err != nil {
		return fmt.Errorf("undo the host changes: %w; then run `muslin cleanup`", err)
	}
	c.undone = true
	return c.journal.remove()
}

// apart is the tool that has the rules of one family, "" for none. A nil journal has none.
func (j *journal) apart(six bool) firewallKind {
	if j == nil {
		return ""
	}
	return *pick(six, &j.Apart, &j.Apart6)
}

func (j *journal) setApart(six bool, kind firewallKind) { *pick(six, &j.Apart, &j.Apart6) = kind }
