package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"muslin/lease"
)

var keyChecks = []Check{
	{Name: "keys", Needs: NeedStore, Run: checkKeys},
}

// checkKeys is about what lies among the leases, and is none that anybody can use.
func checkKeys(_ context.Context, p *Patient) []Finding {
	if p.Store.Kind != "etcd" {
		return nil
	}
	var foreign, unreadable, outside oddKeys
	for _, e := range p.Store.Entries {
		l, err := lease.ParseLease(e)
		switch {
		case err != nil && !l.Subnet.IsValid() && !l.Subnet6.IsValid():
			foreign.add(e.Key, "")
		case err != nil:
			unreadable.add(e.Key, err.Error())
		case p.outside(&l):
			outside.add(e.Key, l.Attrs.String())
		}
	}
	return append(append(
		foreign.finding("foreign-key", "what is no lease lies among the leases: a flanneld that starts or looks anew loses all its peers over it", "muslin leases release %s # after finding out who wrote it"),
		unreadable.finding("lease-unreadable", "a lease cannot be read: no node makes a peer of it, and a flanneld loses all its peers over it", "muslin leases release %s # and start that node's flanneld or muslin again, if it lives")...),
		outside.finding("lease-outside", "a lease lies outside of the network: no muslin sends there, as after the Network was changed", "muslin leases release %s # and start that node's flanneld or muslin again, if it lives, which then takes a subnet of the network")...)
}

// outside reports whether none of a lease's halves lies in the network.
func (p *Patient) outside(l *lease.Lease) bool {
	c := p.Store.Config
	if c == nil || l.Reserved {
		return false
	}
	out := false
	for _, half := range [][2]netip.Prefix{{l.Subnet, c.Network}, {l.Subnet6, c.IPv6Network}} {
		if !half[0].IsValid() || !half[1].IsValid() {
			continue
		}
		if inside(half[0], half[1]) {
			return false
		}
		out = true
	}
	return out
}

// oddKeys are those with the same trouble.
type oddKeys struct{ keys, seen []string }

func (o *oddKeys) add(key, why string) {
	seen := fmt.Sprintf("%q", key)
	if why != "" {
		seen += ": " + why
	}
	o.keys, o.seen = append(o.keys, key), append(o.seen, seen)
}

// finding is one for all of them, at most. The command of the fix takes a key, for a shell.
func (o *oddKeys) finding(id, summary, fix string) []Finding {
	if len(o.keys) == 0 {
		return nil
	}
	const most = 3
	shown := o.seen[:min(len(o.seen), most)]
	f := Finding{ID: id, Severity: Warning, Confidence: Certain, Summary: summary, Evidence: "muslin leases list: " + strings.Join(shown, "; "), Fix: fmt.Sprintf(fix, quote(o.keys[0]))}
	if n := len(o.keys) - 1; n > 0 {
		f.Summary += fmt.Sprintf("; so it is with %d more", n)
	}
	return []Finding{f}
}

// quote is a word for a shell.
func quote(word string) string {
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
