//go:build linux

package host

import (
	"fmt"
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
	case o.table.Family == nftables.TableFamilyINet || o.chain != "FORWARD" && o.chain != "INPUT" ||
		!slices.Contains([]string{"filter", "mangle", "security"}, o.table.Name):
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
	family := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet"}
	return fmt.Sprintf("nftables table %s %s, chain %s", family[o.table.Family], o.table.Name, at)
}

// Obstacle is a firewall chain of another owner that drops what the overlay has to get through, for certain.
type Obstacle struct {
	Firewalld bool   // it is firewalld's
	Input     bool   // it drops the datagrams of the underlay; else what is forwarded
	IPv6      bool   // it drops packets of IPv6
	Summary   string // table, chain, what it does, to what
	Fix       string // a command where there is one, else what to do
}

// Obstacles looks for them. It takes the networks, the subnets, the TUN device's name and Outer of the config.
func (c SetupConfig) Obstacles() ([]Obstacle, error) {
	found, err := c.obstacles()
	if err != nil {
		return nil, err
	}
	var out []Obstacle
	for _, o := range found {
		summary, fix := o.explain(c)
		out = append(out, Obstacle{Firewalld: o.table.Name == firewalld, Input: o.input, IPv6: o.six, Summary: summary, Fix: fix})
	}
	return out, nil
}

// sentence is both.
func (o obstacle) sentence(c SetupConfig) string {
	summary, fix := o.explain(c)
	if o.mendable() {
		fix = fmt.Sprintf("run \"%s\"", fix)
	}
	return summary + ": " + fix
}

// explain names the chain and what it does, and the command that mends it, or what to do if there is none.
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
	what := fmt.Sprintf("packets %s, and no rule of ours can overrule it", o.what)
	mend := o.mendForward(c, program)
	if o.input {
		what = fmt.Sprintf("the other nodes' datagrams to UDP port %d", c.Outer.Port)
		mend = o.mendInput(c, program)
	}
	return fmt.Sprintf("%s (%s) %s %s", owner, o.place(program), does, what), mend
}

// mendable reports whether there is a command.
func (o obstacle) mendable() bool { return o.table.Name == firewalld || o.program() != "" }

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
		return fmt.Sprintf("accept %s there, as source and as destination", network)
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
		return fmt.Sprintf("accept UDP port %d there", c.Outer.Port)
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

// lookForObstacles logs what is new among the chains that drop our packets, and keeps it for Warnings.
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

// Warnings are sentences about firewall rules: ours that this host refuses, and other owners' that drop what the overlay
// has to get through.
func (s *State) Warnings() []string {
	all := slices.Clone(s.firewallWarnings)
	if p := s.obstacles.Load(); p != nil {
		all = append(all, *p...)
	}
	return all
}
