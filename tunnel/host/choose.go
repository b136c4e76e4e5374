//go:build linux

package host

import (
	"cmp"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// candidates are the tools for one family's rules, the one that is wanted first. That is iptables where its binary is,
// because the rules of Docker, kube-proxy and firewalld are then most likely there too and theirs and ours meet in one
// place. The others come in where this kernel lacks what the first one needs.
func candidates(useNFTables, six bool) []firewallKind {
	var out []firewallKind
	for _, kind := range []firewallKind{withIPTables, withNFTables, withLegacy} {
		if name := kind.command(six); name != "" {
			if _, err := exec.LookPath(name); err != nil {
				continue
			}
		}
		out = append(out, kind)
	}
	if useNFTables {
		slices.SortStableFunc(out, func(a, b firewallKind) int { return cmp.Compare(a.ownFirst(), b.ownFirst()) })
	}
	return out
}

// ownFirst sorts nftables, which muslin speaks itself, before the programs.
func (k firewallKind) ownFirst() int {
	if k == withNFTables {
		return 0
	}
	return 1
}

// putIn makes the firewall have the rules of one family: with the tool that is wanted, or else with another one that
// works here. Where none takes all of them, the forward rules alone are put in, or else the masquerade alone. What is
// missing then is said; the daemon runs without.
func (s *State) putIn(r rules) error {
	kinds := candidates(s.config.UseNFTables, r.six)
	wanted := s.journal.firewall(r.six)
	if i := slices.Index(kinds, wanted); i > 0 { // an earlier daemon had to take it
		kinds = slices.Insert(slices.Delete(kinds, i, i+1), 0, wanted)
	}
	var failed []error // one of each tool, by the kinds' order
	for _, part := range r.parts() {
		for i, kind := range kinds {
			s.journal.setFirewall(r.six, kind)
			if err := s.journal.save(); err != nil {
				return err
			}
			fw, err := putInWith(kind, part)
			if err != nil {
				failed = append(failed, err)
				continue
			}
			s.firewalls = append(s.firewalls, fw)
			if i > 0 {
				s.journal.setStandIn(r.six, fmt.Sprintf("%s has this node's firewall rules%s, as %s does not work here: %s", kind, ofFamily(r.six), kinds[0], oneLine(failed[0])))
			}
			if said := s.journal.standIn(r.six); said != "" {
				s.warnOfFirewall(said)
			}
			s.missing(r, part, allOf(failed[:min(len(kinds), len(failed))]))
			return s.journal.save()
		}
	}
	// A tool that does not work would fail the clean-up as well.
	s.journal.setFirewall(r.six, "")
	s.missing(r, rules{}, allOf(failed[:len(kinds)]))
	return s.journal.save()
}

// parts are the rules, and then what of them may be had by itself.
func (r rules) parts() []rules {
	all := []rules{r}
	if len(r.forward) > 0 && len(r.postrouting) > 0 {
		forward, postrouting := r, r
		forward.postrouting, postrouting.forward = nil, nil
		all = append(all, forward, postrouting)
	}
	return all
}

// putInWith leaves nothing behind when it fails.
func putInWith(kind firewallKind, r rules) (firewall, error) {
	fw, err := newFirewall(kind, r)
	if err != nil {
		return nil, err
	}
	if err := fw.apply(); err != nil {
		fw.remove() //nolint:errcheck // a tool that does not work does not do that either
		return nil, err
	}
	return fw, nil
}

// missing says which rules could not be put in, and what does not work without them.
func (s *State) missing(wanted, had rules, why error) {
	if len(wanted.forward) > len(had.forward) {
		s.noForward = why
		s.warnOfFirewall(fmt.Sprintf("no forward rules%s: where this host drops what it forwards, by the policy of FORWARD or by a rule, it drops the overlay's packets too; "+
			"let %s pass there, or load nf_tables, or ip_tables and iptable_filter with iptables installed, and start muslin again: %s", ofFamily(wanted.six), wanted.cluster, oneLine(why)))
	}
	if len(wanted.postrouting) > len(had.postrouting) {
		s.noMasquerade = why
		s.warnOfFirewall(fmt.Sprintf("no masquerade%s: what containers send out of the overlay keeps their addresses, to which no answer finds the way; "+
			"load nft_chain_nat and nft_masq, or iptable_nat and xt_MASQUERADE with iptables installed, and start muslin again: %s", ofFamily(wanted.six), oneLine(why)))
	}
}

func (s *State) warnOfFirewall(sentence string) {
	s.firewallWarnings = append(s.firewallWarnings, sentence)
	s.log.Warn(sentence, "tun", s.config.TUN)
}

// ofFamily is what a sentence about the rules says of their family.
func ofFamily(six bool) string {
	if six {
		return " of IPv6"
	}
	return ""
}

// allOf is why no tool did it.
func allOf(failed []error) error {
	var texts []string
	for _, err := range failed {
		texts = append(texts, oneLine(err))
	}
	return errors.New(strings.Join(texts, "; "))
}

// oneLine is an error as a part of a sentence: iptables writes several lines.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
