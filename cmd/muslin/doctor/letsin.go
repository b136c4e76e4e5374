package doctor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// letsIn reports whether for certain nothing in this host keeps a peer's datagrams from the daemon: no rule of a firewall that
// may drop them, no tc, no XDP. Then what the daemon does not hear does not come here.
func (p *Patient) letsIn(ctx context.Context) bool {
	if old, err := os.ReadFile("/proc/net/ip_tables_names"); err == nil && len(old) > 0 { // iptables-legacy
		return false
	}
	link, err := netlink.LinkByName(p.Local.Iface)
	if err != nil || link.Attrs().Xdp != nil && link.Attrs().Xdp.Attached {
		return false
	}
	qdiscs, err := netlink.QdiscList(link)
	if err != nil || slices.ContainsFunc(qdiscs, func(q netlink.Qdisc) bool { return q.Type() == "clsact" || q.Type() == "ingress" }) {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	ruleset, err := exec.CommandContext(ctx, "nft", "-n", "list", "ruleset").Output()
	return err == nil && !mayDropIn(string(ruleset), p.Local.Port)
}

var (
	jumps  = regexp.MustCompile(`\b(?:jump|goto) (\S+)`)
	drops  = regexp.MustCompile(`\b(?:drop|reject|queue|dnat|redirect|tproxy|xt)\b`)
	dports = regexp.MustCompile(`\budp dport (\d+)\b`)
	// others are marks of rules that no datagram of a peer's meets.
	others = regexp.MustCompile(`\b(?:tcp|sctp|icmp|icmpv6|igmp) |l4proto (?:1|6|58|132)\b|ct state invalid\b|iifname "lo"`)
)

// mayDropIn reports whether a ruleset of nft may drop what comes in for a UDP port: by a rule that it may meet on its way, jumps
// followed, or by a policy.
func mayDropIn(ruleset string, port uint16) bool {
	type chain struct {
		drops bool
		to    []string
	}
	chains := make(map[string]*chain)
	var table, name string
	var now *chain
	var next []string // chains that are to be looked at
	for line := range strings.Lines(ruleset) {
		line = strings.TrimSpace(line)
		fields := strings.Fields(line)
		switch {
		case len(fields) > 2 && fields[0] == "table":
			table, now = fields[1]+" "+fields[2]+" ", nil
		case len(fields) > 1 && fields[0] == "chain":
			name, now = table+fields[1], new(chain)
			chains[name] = now
		case now == nil: // a set's, or a map's
		case len(fields) > 3 && fields[0] == "type":
			if hook := fields[3]; hook == "input" || hook == "prerouting" || hook == "ingress" {
				now.drops = strings.Contains(line, "policy drop")
				next = append(next, name)
			}
		case line == "}":
			now = nil
		default:
			if others.MatchString(line) {
				continue
			}
			if of := dports.FindStringSubmatch(line); of != nil && of[1] != fmt.Sprint(port) {
				continue
			}
			now.drops = now.drops || drops.MatchString(line)
			for _, to := range jumps.FindAllStringSubmatch(line, -1) {
				now.to = append(now.to, table+strings.Trim(to[1], ",}"))
			}
		}
	}
	looked := make(map[string]bool)
	for len(next) > 0 {
		name := next[0]
		next = next[1:]
		c := chains[name]
		if c == nil || looked[name] {
			continue
		}
		if looked[name] = true; c.drops {
			return true
		}
		next = append(next, c.to...)
	}
	return false
}
