//go:build linux

package host

import (
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
)

// iptablesWait is how long to wait for another program's iptables lock, in seconds.
const iptablesWait = 10

// ipTables keeps the rules with the iptables or ip6tables binary, be it the legacy or the nft one.
type ipTables struct {
	cmd    *iptables.IPTables
	name   string // of the binary
	six    bool
	chains []ipChain
}

// ipChain is a chain of ours and the rule that leads to it.
type ipChain struct {
	table, parent, name string

	front bool // the jump stands before all others, and what the chain has is changed rule by rule
	jump  []string
	rules [][]string
	left  []string // the chain as it was listed after apply
}

func newIPTables(name string, r rules) (*ipTables, error) {
	protocol := iptables.ProtocolIPv4
	if r.six {
		protocol = iptables.ProtocolIPv6
	}
	cmd, err := iptables.New(iptables.Path(name), iptables.IPFamily(protocol), iptables.Timeout(iptablesWait))
	if err != nil {
		said, _ := exec.Command(name, "--version").CombinedOutput()
		return nil, fmt.Errorf("start %s: %w: %s", name, err, said)
	}
	chain := func(table, parent, name, comment string, list []rule) ipChain {
		c := ipChain{table: table, parent: parent, name: name}
		c.jump = []string{"-m", "comment", "--comment", comment, "-j", name}
		for _, one := range list {
			c.rules = append(c.rules, ipTablesRule(one, r.randomFully && cmd.HasRandomFully()))
		}
		return c
	}
	t := &ipTables{cmd: cmd, name: name, six: r.six}
	if r.apart {
		t.chains = []ipChain{chain("filter", "FORWARD", apartChain, "muslin apart", r.forward)}
		t.chains[0].front = true
		return t, nil
	}
	t.chains = []ipChain{
		chain("filter", "FORWARD", r.chain(forwardChain), "muslin forward", r.forward),
		chain("nat", "POSTROUTING", r.chain(postroutingChain), "muslin masquerade", r.postrouting),
	}
	return t, nil
}

func ipTablesRule(r rule, randomFully bool) []string {
	var out []string
	add := func(flag string, m match) {
		if !m.prefix.IsValid() {
			return
		}
		if m.not {
			out = append(out, "!")
		}
		out = append(out, flag, m.prefix.String())
	}
	if r.marked {
		out = append(out, "-m", "mark", "--mark", fmt.Sprintf("%#x/%#x", exemptMark, exemptMark))
	}
	add("-s", r.src)
	add("-d", r.dst)
	switch r.do {
	case accept:
		out = append(out, "-j", "ACCEPT")
	case leave:
		out = append(out, "-j", "RETURN")
	case drop:
		out = append(out, "-j", "DROP")
	case masquerade:
		out = append(out, "-j", "MASQUERADE")
		if randomFully {
			out = append(out, "--random-fully")
		}
	}
	return out
}

// needs says what iptables(8) takes. The legacy tool speaks to the kernel through a raw socket; before 1.8 there
// was no other, and its version names none.
func (t *ipTables) needs() Needs { return Needs{Programs: true, RawSocket: t.isLegacy()} }

func (t *ipTables) isLegacy() bool {
	version, err := exec.Command(t.name, "--version").Output()
	return err != nil || !strings.Contains(string(version), "nf_tables")
}

func (t *ipTables) ofIPv6() bool { return t.six }

func (t *ipTables) apply() error {
	for i := range t.chains {
		c := &t.chains[i]
		if len(c.rules) == 0 {
			continue // nor is its table touched, which this kernel may not have
		}
		if err := t.put(c); err != nil {
			return fmt.Errorf("put in %s chain %s: %w", t.name, c.name, err)
		}
	}
	return nil
}

// put fills the chain before the jump leads to it. The jump goes to the end, as flannel's does: what the
// host's owner put in front stays in front. A chain that an earlier daemon filled just so is left as it is:
// while it was emptied, a host that forwards nothing by itself would drop the overlay's packets.
func (t *ipTables) put(c *ipChain) error {
	filled, err := t.filled(c)
	if err != nil {
		return err
	}
	if c.front {
		if err := t.fill(c); err != nil {
			return err
		}
		if err := t.jumpFirst(c); err != nil {
			return err
		}
		c.left, err = t.cmd.List(c.table, c.name)
		return err
	}
	if !filled {
		if err := t.cmd.ClearChain(c.table, c.name); err != nil {
			return err
		}
		for _, r := range c.rules {
			if err := t.cmd.Append(c.table, c.name, r...); err != nil {
				return err
			}
		}
	}
	if err := t.cmd.AppendUnique(c.table, c.parent, c.jump...); err != nil {
		return err
	}
	left, err := t.cmd.List(c.table, c.name)
	c.left = left
	return err
}

// fill makes the chain have our rules, whatever it had, and at no time fewer of those that it keeps. It is for rules
// whose order is of no account.
func (t *ipTables) fill(c *ipChain) error {
	had, err := t.cmd.List(c.table, c.name)
	if err != nil { // there is none
		if err := t.cmd.NewChain(c.table, c.name); err != nil {
			return err
		}
	}
	for _, r := range c.rules {
		if err := t.cmd.AppendUnique(c.table, c.name, r...); err != nil {
			return err
		}
	}
	for _, line := range had {
		text, ok := strings.CutPrefix(line, "-A "+c.name+" ")
		if r := strings.Fields(text); ok && !slices.ContainsFunc(c.rules, func(w []string) bool { return slices.Equal(w, r) }) {
			if err := t.cmd.Delete(c.table, c.name, r...); err != nil {
				return err
			}
		}
	}
	return nil
}

// isFirst reports whether the jump to the chain is the first rule of its parent.
func (t *ipTables) isFirst(c *ipChain) (bool, error) {
	all, err := t.cmd.List(c.table, c.parent)
	if err != nil {
		return false, err
	}
	for _, line := range all {
		if strings.HasPrefix(line, "-A ") {
			return strings.HasSuffix(line, "-j "+c.name), nil
		}
	}
	return false, nil
}

// jumpFirst has the jump stand there, and nowhere else.
func (t *ipTables) jumpFirst(c *ipChain) error {
	first, err := t.isFirst(c)
	if err != nil || first {
		return err
	}
	had, err := t.cmd.Exists(c.table, c.parent, c.jump...)
	if err != nil {
		return err
	}
	if err := t.cmd.Insert(c.table, c.parent, 1, c.jump...); err != nil || !had {
		return err
	}
	all, err := t.cmd.List(c.table, c.parent)
	if err != nil {
		return err
	}
	at := 0
	for _, line := range all {
		if !strings.HasPrefix(line, "-A ") {
			continue
		}
		if at++; at > 1 && strings.HasSuffix(line, "-j "+c.name) {
			return t.cmd.DeleteById(c.table, c.parent, at)
		}
	}
	return nil
}

// filled reports whether the chain has our rules and no other.
func (t *ipTables) filled(c *ipChain) (bool, error) {
	now, err := t.cmd.List(c.table, c.name)
	if none := new(iptables.Error); errors.As(err, &none) && (none.ExitStatus() == 1 || none.ExitStatus() == 3) {
		return false, nil // no such chain, or no such table yet
	}
	if err != nil || len(now) != 1+len(c.rules) { // -N comes first
		return false, err
	}
	for _, r := range c.rules {
		if ok, err := t.cmd.Exists(c.table, c.name, r...); err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

func (t *ipTables) intact() (bool, error) {
	for _, c := range t.chains {
		if len(c.rules) == 0 {
			continue
		}
		now, err := t.cmd.List(c.table, c.name)
		if gone := new(iptables.Error); errors.As(err, &gone) && gone.ExitStatus() == 1 {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("list %s chain %s: %w", t.name, c.name, err)
		}
		if !slices.Equal(now, c.left) {
			return false, nil
		}
		if c.front {
			if ok, err := t.isFirst(&c); err != nil || !ok {
				return false, err
			}
			continue
		}
		if ok, err := t.cmd.Exists(c.table, c.parent, c.jump...); err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

func (t *ipTables) remove() (bool, error) {
	var any bool
	var failed []error
	for _, c := range t.chains {
		did, err := t.drop(c)
		any = any || did
		if err != nil {
			failed = append(failed, fmt.Errorf("take out %s chain %s: %w; try `%s -t %s -F %s`", t.name, c.name, err, t.name, c.table, c.name))
		}
	}
	return any, errors.Join(failed...)
}

// drop looks before it deletes: listing a chain leaves no trace with the nft variant of iptables, which
// makes its tables for every command that changes something. The legacy one has the kernel make the table for that.
func (t *ipTables) drop(c ipChain) (bool, error) {
	if tables, err := legacyTables(t.six); err == nil && !slices.Contains(tables, c.table) && t.isLegacy() {
		return false, nil
	}
	found, err := t.cmd.ListChains(c.table)
	if none := new(iptables.Error); errors.As(err, &none) && none.ExitStatus() == 3 {
		return false, nil // the kernel has no such table
	}
	if err != nil {
		return false, err
	}
	if !slices.Contains(found, c.name) {
		return false, nil
	}
	for {
		ok, err := t.cmd.Exists(c.table, c.parent, c.jump...)
		if err != nil {
			return false, err
		}
		if !ok {
			break
		}
		if err := t.cmd.Delete(c.table, c.parent, c.jump...); err != nil {
			return false, err
		}
	}
	if err := t.cmd.ClearAndDeleteChain(c.table, c.name); err != nil {
		if strings.Contains(err.Error(), "busy") {
			return false, fmt.Errorf("%w; another rule still leads to it", err)
		}
		return false, err
	}
	return true, nil
}
