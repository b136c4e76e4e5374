package doctor

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"time"
)

// explainByRules looks for the rules of this host's firewall that may be the cause, and adds them to the evidence. They are
// read as text: it is a person who is to recognize them.
func (f *said) explainByRules(ctx context.Context, port uint16) {
	if f.rules == 0 {
		return
	}
	hook, chain := "input", "INPUT"
	if f.rules == ruleOut {
		hook, chain = "output", "OUTPUT"
	}
	if rules := rulesNaming(ctx, hook, chain, port); rules != nil {
		f.Confidence = Certain
		f.blame(rules)
	}
}

// rulesNaming are those of a hook that drop or reject, and name a port, and policies to drop.
func rulesNaming(ctx context.Context, hook, chain string, port uint16) []string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var rules []string
	if out, err := exec.CommandContext(ctx, "nft", "-n", "-a", "list", "ruleset").Output(); err == nil {
		rules = nftRules(string(out), hook, port)
	}
	if rules == nil {
		for _, save := range []string{"iptables-save", "ip6tables-save", "iptables-legacy-save", "ip6tables-legacy-save"} {
			if out, err := exec.CommandContext(ctx, save, "-c").Output(); err == nil {
				rules = append(rules, iptablesRules(save, string(out), chain, port)...)
			}
		}
	}
	return rules
}

// blame adds rules that may be the cause.
func (f *Finding) blame(rules []string) {
	const most = 3
	f.Evidence += "; rules that may be it: " + strings.Join(rules[:min(len(rules), most)], "; ")
	if i := strings.Index(rules[0], "(nft delete"); i >= 0 {
		f.Fix = strings.Trim(rules[0][i:], "()") + " # or: " + f.Fix
	}
}

var nftHandle = regexp.MustCompile(` # handle (\d+)$`)

// nftRules are those that drop or reject and name the port, and chains of the hook whose policy is to drop.
func nftRules(ruleset, hook string, port uint16) []string {
	var out []string
	var table, chain string
	names := regexp.MustCompile(fmt.Sprintf(`\b%d\b`, port))
	hooks := map[string]bool{hook: true, "prerouting": hook == "input", "ingress": hook == "input", "postrouting": hook == "output", "egress": hook == "output"}
	based := true // a chain without a hook may be jumped to from any
	for line := range strings.Lines(ruleset) {
		line = strings.TrimSpace(line)
		handle := nftHandle.FindStringSubmatch(line)
		text := nftHandle.ReplaceAllString(line, "")
		fields := strings.Fields(text)
		switch {
		case len(fields) > 2 && fields[0] == "table":
			table = fields[1] + " " + fields[2]
		case len(fields) > 1 && fields[0] == "chain":
			chain, based = fields[1], true
		case len(fields) > 3 && fields[0] == "type":
			i := strings.Index(text, " hook ")
			if i < 0 {
				continue
			}
			based = hooks[strings.Fields(text[i:])[1]]
			if based && strings.Contains(text, "policy drop") {
				out = append(out, fmt.Sprintf("table %s chain %s: policy drop", table, chain))
			}
		case based && handle != nil && names.MatchString(text) && (strings.Contains(text, "drop") || strings.Contains(text, "reject")):
			out = append(out, fmt.Sprintf("%q in table %s chain %s (nft delete rule %s %s handle %s)", text, table, chain, table, chain, handle[1]))
		}
	}
	return out
}

// iptablesRules are those of a table's dump that drop or reject and name the port, and a policy to drop.
func iptablesRules(command, dump, chain string, port uint16) []string {
	var out []string
	names := regexp.MustCompile(fmt.Sprintf(`\b%d\b`, port))
	program := strings.TrimSuffix(command, "-save")
	for line := range strings.Lines(dump) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, ":"+chain+" DROP"):
			out = append(out, fmt.Sprintf("%s: policy of %s is DROP", program, chain))
		case names.MatchString(line) && (strings.Contains(line, "-j DROP") || strings.Contains(line, "-j REJECT")):
			out = append(out, fmt.Sprintf("%s: %s", program, line))
		}
	}
	return out
}
