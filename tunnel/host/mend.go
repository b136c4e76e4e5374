//go:build linux

package host

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// dockerUser is the chain that Docker leaves to the host's owner, before its own.
const dockerUser = "DOCKER-USER"

// program is the name of the iptables that has the table; "": none has.
func (o obstacle) program() string {
	name := commandFor(o.six)
	has := func(program string) bool {
		_, err := exec.LookPath(program)
		return err == nil
	}
	switch {
	case o.legacy:
		if has(name + "-legacy") {
			return name + "-legacy"
		}
		return name
	case o.table.Family == nftables.TableFamilyINet || !slices.Contains([]string{"FORWARD", "INPUT", "PREROUTING", "POSTROUTING"}, o.chain) ||
		!slices.Contains([]string{"filter", "mangle", "security", "raw"}, o.table.Name):
		return ""
	case has(name+"-nft") && (&ipTables{name: name}).isLegacy():
		return name + "-nft"
	}
	return name
}

// place names the table, and the chain.
func (o obstacle) place(program string) string {
	at := o.chain
	if o.at != o.chain {
		at += ", by " + o.at
	}
	if o.legacy {
		return fmt.Sprintf("%s table %s, chain %s", program, o.table.Name, at)
	}
	return fmt.Sprintf("nftables table %s %s, chain %s", nftFamilies[o.table.Family], o.table.Name, at)
}

var nftFamilies = map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet"}

// nftChain names the chain as nft(8) takes it.
func (o obstacle) nftChain() string {
	return fmt.Sprintf("%s %s %s", nftFamilies[o.table.Family], o.table.Name, o.chain)
}

// Obstacle is a firewall chain of another owner that drops what the overlay has to get through, for certain.
type Obstacle struct {
	Firewalld bool         // it is firewalld's
	Input     bool         // it drops the datagrams of the underlay; else what is forwarded
	IPv6      bool         // it drops packets of IPv6
	Peer      netip.Prefix // only those to and from a peer with this subnet; invalid: all
	Summary   string       // table, chain, what it does, to what
	Fix       string       // the command
}

// Obstacles looks for them, and for those that concern single peers only, by their subnets. It takes the networks, the
// subnets, the TUN device's name, Outer and Pods of the config.
func (c SetupConfig) Obstacles(peers ...netip.Prefix) ([]Obstacle, error) {
	found, err := c.obstacles(peers...)
	if err != nil {
		return nil, err
	}
	var out []Obstacle
	for _, o := range found {
		summary, fix := o.explain(c)
		out = append(out, Obstacle{Firewalld: o.table.Name == firewalld, Input: o.input, IPv6: o.six, Peer: o.peer, Summary: summary, Fix: fix})
	}
	return out, nil
}

// sentence is both.
func (o obstacle) sentence(c SetupConfig) string {
	summary, fix := o.explain(c)
	return fmt.Sprintf("%s: run \"%s\"", summary, fix)
}

// explain names the chain and what it does, and the command that mends it until that owner puts its rules in anew.
func (o obstacle) explain(c SetupConfig) (summary, fix string) {
	program := o.program()
	does := "drops"
	if o.reject {
		does = "rejects"
	}
	owner := "another program's firewall"
	if o.table.Name == firewalld {
		owner = firewalld
	}
	if o.peer.IsValid() {
		c.Network, c.Network6 = o.peer, o.peer
	}
	what := o.what + ", and no rule of ours can overrule it"
	if o.peer.IsValid() {
		what = fmt.Sprintf("%s, of %s, and no rule of ours can overrule it", o.what, o.peer)
	}
	mend := o.mendForward(c, program)
	if o.input {
		what = fmt.Sprintf("the other nodes' datagrams to UDP port %d", c.Outer.Port)
		mend = o.mendInput(c, program)
	}
	return fmt.Sprintf("%s (%s) %s %s", owner, o.place(program), does, what), mend
}

const firewalld = "firewalld" // its table, and the program

func (o obstacle) mendForward(c SetupConfig, program string) string {
	network := c.Network
	if o.six {
		network = c.Network6
	}
	if o.table.Name == firewalld {
		return fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-source=%s && firewall-cmd --reload", network)
	}
	if program == "" {
		ip := "ip"
		if o.six {
			ip = "ip6"
		}
		return fmt.Sprintf("nft insert rule %[1]s %[2]s saddr %[3]s accept && nft insert rule %[1]s %[2]s daddr %[3]s accept", o.nftChain(), ip, network)
	}
	chain := o.chain
	if o.docker {
		chain = dockerUser
	}
	table := o.option()
	return fmt.Sprintf("%s %s-I %s -s %s -j ACCEPT && %s %s-I %s -d %s -j ACCEPT", program, table, chain, network, program, table, chain, network)
}

func (o obstacle) mendInput(c SetupConfig, program string) string {
	switch {
	case o.table.Name == firewalld:
		zone := ""
		if name, ok := strings.CutPrefix(o.at, "filter_IN_"); ok {
			zone = "--zone=" + name + " "
		}
		return fmt.Sprintf("firewall-cmd --permanent %s--add-port=%d/udp && firewall-cmd --reload", zone, c.Outer.Port)
	case program == "":
		return fmt.Sprintf("nft insert rule %s udp dport %d accept", o.nftChain(), c.Outer.Port)
	}
	return fmt.Sprintf("%s %s-I %s -p udp --dport %d -j ACCEPT", program, o.option(), o.chain, c.Outer.Port)
}

// option is what a command needs for another table than filter.
func (o obstacle) option() string {
	if o.table.Name == "filter" {
		return ""
	}
	return "-t " + o.table.Name + " "
}

// lookForObstacles logs what is new among the chains that drop our packets, and keeps it for ObstacleWarnings.
func (s *State) lookForObstacles() {
	s.mu.Lock()
	c := s.config
	s.mu.Unlock()
	found, err := c.obstacles()
	if err != nil {
		// A ruleset that changes under the look is looked at again.
		s.log.Debug("cannot look for other owners' firewall chains", "error", err)
		return
	}
	var now []string
	for _, o := range found {
		now = append(now, o.sentence(c))
	}
	var before []string
	if p := s.obstacles.Load(); p != nil {
		before = *p
	}
	for _, sentence := range now {
		if !slices.Contains(before, sentence) {
			s.log.Warn(sentence, "tun", c.TUN)
		}
	}
	if len(now) == 0 && len(before) > 0 {
		s.log.Info("no other owner's firewall chain drops the overlay's packets any more", "tun", c.TUN)
	}
	s.obstacles.Store(&now)
}

// Warnings are sentences about firewall rules of ours that this host refuses.
func (s *State) Warnings() []string { return slices.Clone(s.firewallWarnings) }

// ObstacleWarnings are sentences about other owners' rules that drop what the overlay has to get through.
func (s *State) ObstacleWarnings() []string {
	if p := s.obstacles.Load(); p != nil {
		return slices.Clone(*p)
	}
	return nil
}
