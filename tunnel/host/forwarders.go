//go:build linux

package host

import (
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Who starts after us finds forwarding switched on, relies on it, and does not write it again: so does Docker. What the
// kernel does not tell, its rules do. Who forwards has some that say what, or that masquerade it.

// forwarders counts the rules that others have for what is forwarded, by the chain, as a sentence names it: what base
// chains on the forward hook have, and those of NAT on the postrouting hook.
func forwarders(six bool) (map[string]int, error) {
	out := make(map[string]int)
	if chains, w, err := readNFTables(); err == nil { // else the kernel has none
		defer w.conn.CloseLasting()
		if err := countForwarders(out, six, chains, w); err != nil {
			return nil, err
		}
	}
	tables, _ := legacyTables(six)
	for _, name := range tables {
		if name != "filter" && name != "nat" {
			continue
		}
		chains, w, err := readLegacy(six, name)
		if err == nil {
			err = countForwarders(out, six, chains, w)
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func countForwarders(out map[string]int, six bool, chains []*nftables.Chain, w *walk) error {
	packet := specimen{six: six}
	for _, chain := range chains {
		if chain.Hooknum == nil || !packet.meets(chain.Table.Family) || strings.HasPrefix(chain.Table.Name, nfTable) {
			continue
		}
		if h := *chain.Hooknum; h != *nftables.ChainHookForward && (h != *nftables.ChainHookPostrouting || chain.Type == nftables.ChainTypeFilter && chain.Table.Name != "nat") {
			continue
		}
		rules, err := w.list(chain.Table, chain.Name)
		if err != nil {
			return err
		}
		n := len(slices.DeleteFunc(slices.Clone(rules), leadsToUs))
		if w.conn == nil {
			n-- // the policy is the last one
		}
		o := obstacle{table: chain.Table, legacy: w.conn == nil, chain: chain.Name, at: chain.Name, six: six}
		out[o.place(withLegacy.command(six))] = n
	}
	return nil
}

// leadsToUs reports whether a rule jumps to a chain of ours.
func leadsToUs(r *nftables.Rule) bool {
	return slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
		v, ok := e.(*expr.Verdict)
		return ok && strings.HasPrefix(v.Chain, "MUSLIN-")
	})
}

// newForwarder names a chain that has more such rules now than before; "": none has.
func newForwarder(before map[string]int, six bool) (string, error) {
	now, err := forwarders(six)
	if err != nil || before == nil {
		return "", err
	}
	for _, chain := range slices.Sorted(maps.Keys(now)) {
		if now[chain] > before[chain] {
			return chain, nil
		}
	}
	return "", nil
}

// keeps reports whether forwarding of a switch's family, which we have switched on, stays so, and says why.
func (u *undoing) keeps(j *journal, s sysctl) bool {
	if now, err := readSysctl(s.Path); err != nil || now != s.Set {
		return false
	}
	six := s.Path == ip6Forward
	chain, err := newForwarder(j.forwarders(six), six)
	if err != nil {
		u.log.Warn("cannot tell whether anybody else relies on forwarding", "error", err)
	}
	if chain == "" {
		return false
	}
	u.say("left %s at %s: since it was switched on, others have added rules for what this host forwards (%s); `sysctl -w %s=%s` switches it off", s.Path, s.Set, chain, s.name(), s.Was)
	return true
}

// name is the switch's for sysctl(8).
func (s sysctl) name() string {
	return strings.ReplaceAll(strings.TrimPrefix(s.Path, "/proc/sys/"), "/", ".")
}

// noteForwarders keeps what others have before forwarding of a family is switched on. Where that cannot be read,
// forwarding is switched off at the end whoever relies on it.
func (j *journal) noteForwarders(six bool, log *slog.Logger) {
	found, err := forwarders(six)
	if err != nil {
		log.Warn("cannot read others' rules for what is forwarded", "error", err)
		return
	}
	if six {
		j.Forwarders6 = found
	} else {
		j.Forwarders = found
	}
}

func (j *journal) forwarders(six bool) map[string]int {
	if six {
		return j.Forwarders6
	}
	return j.Forwarders
}
