package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"muslin/lease"
)

// The file that --config names: YAML, of which JSON is a part. Each network is a map of the flags of `muslin run`,
// read into a flag set of its own, so that validation, messages and meaning are those of the flags.
//
//	etcd-endpoints: http://127.0.0.1:2379    # beside "networks": for every network
//	networks:
//	  blue:
//	    network: 10.1.0.0/16
//	  green:
//	    network: 10.2.0.0/16
//	    backend: {Type: vxlan, VNI: 2, Port: 8473}

const networksKey = "networks"

// Flags that are the whole process's, and stand on its command line or in its environment.
var processFlags = []string{"config", "replace", "healthz-ip", "healthz-port", "metrics", "metrics-peers", "pprof", "web", "web-token-file", "log-level", "log-format"}

// Those of them that may stand in the file as well, beside "networks". There they count before the command line.
var processFlagsInFile = []string{"web", "web-token-file"}

// Flags that no two networks can have in common, and that are therefore given with each network. The first two mean the
// process's own where they stand on its command line.
var networkFlags = []string{"state-dir", "control", "tun-name", "subnet-file", "network", "net-config-path", "peers-file", "wireguard-key-file"}

// subnetDir is where networks have their subnet files unless they say otherwise: flannel's --subnet-dir, of the time when
// one flanneld could have several networks.
var subnetDir = filepath.Join(filepath.Dir(lease.DefaultSubnetFile), "networks")

// tunPrefix is in front of a network's name in that of its TUN device, which has 15 characters at most.
const tunPrefix = "mu-"

var networkName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,11}$`)

// takenNames are files in a state directory, sockets in the control socket's directory, and keys that flannel reads
// below its prefix.
var takenNames = []string{"muslin", "config", "subnets", "etcd", "ipv6", lockName, "vtep-mac", "vtep-mac-v6"}

// networkSettings are what the file says of one network.
type networkSettings struct {
	name  string
	where string // "FILE:LINE"
	set   *pflag.FlagSet
	flags *runFlags
	opts  *options // once checked
}

// same reports whether a network that runs by s need not be started again for o.
func (s *networkSettings) same(o *networkSettings) bool {
	return bytes.Equal(s.opts.wantConfig, o.opts.wantConfig) && maps.Equal(flagValues(s.set), flagValues(o.set))
}

func flagValues(set *pflag.FlagSet) map[string]string {
	all := make(map[string]string)
	set.VisitAll(func(f *pflag.Flag) { all[f.Name] = f.Value.String() })
	return all
}

// processSettings are the flags of a process with several networks.
type processSettings struct {
	flags *runFlags
	set   *pflag.FlagSet
	log   *slog.Logger

	inFile map[string]string // processFlagsInFile, as they were read last
	taken  map[string]string // the same as the process has taken them
}

// takeFromFile has what the file says of the process count.
func (p *processSettings) takeFromFile() error {
	for name, value := range p.inFile {
		if err := p.set.Set(name, value); err != nil {
			return fmt.Errorf("%s: %s: %w", p.flags.config, name, err)
		}
	}
	p.taken = p.inFile
	return nil
}

// check refuses flags that belong into the file.
func (p *processSettings) check() error {
	if p.flags.replace {
		return errors.New("--replace: with --config a process cannot take another one's place yet: stop the running one and start this one, or have it read the file again (SIGHUP, `systemctl reload`)")
	}
	var bad []error
	for _, name := range networkFlags[2:] {
		if p.set.Changed(name) {
			bad = append(bad, fmt.Errorf("--%s: with --config it belongs into the file, to the network that it is meant for", name))
		}
	}
	return errors.Join(bad...)
}

// readNetworks reads the file and checks it.
func readNetworks(p *processSettings) ([]*networkSettings, error) {
	data, err := os.ReadFile(p.flags.config)
	if err != nil {
		return nil, fmt.Errorf("--config: %w", err)
	}
	all, err := parseNetworks(p, data)
	if err != nil {
		return nil, err
	}
	return all, checkNetworks(p, all)
}

// parseNetworks makes the networks' flags of the file, in the order of their names, and opens nothing. An error names all
// that is wrong, each with its line.
func parseNetworks(p *processSettings, data []byte) ([]*networkSettings, error) {
	f := &fileParser{p: p}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%s: the file is empty: want %q, a map of networks by their names", p.flags.config, networksKey)
	case err != nil:
		return nil, f.syntax(err)
	}
	if err := dec.Decode(&more); err == nil {
		return nil, fmt.Errorf("%s:%d: a second document: want one", p.flags.config, more.Line)
	} else if !errors.Is(err, io.EOF) {
		return nil, f.syntax(err)
	}
	all := f.file(doc.Content[0])
	if len(f.bad) > 0 {
		return nil, errors.Join(f.bad...)
	}
	slices.SortFunc(all, func(a, b *networkSettings) int { return strings.Compare(a.name, b.name) })
	return all, nil
}

type fileParser struct {
	p   *processSettings
	bad []error
}

func (f *fileParser) where(n *yaml.Node) string {
	return fmt.Sprintf("%s:%d", f.p.flags.config, n.Line)
}

func (f *fileParser) fail(n *yaml.Node, format string, args ...any) {
	f.bad = append(f.bad, fmt.Errorf("%s: %w", f.where(n), fmt.Errorf(format, args...)))
}

// syntax is about a file that is no YAML. The library says the line.
func (f *fileParser) syntax(err error) error {
	return fmt.Errorf("%s: no YAML: %s", f.p.flags.config, strings.TrimPrefix(err.Error(), "yaml: "))
}

// entry is a key of a map with its value.
type entry struct{ key, value *yaml.Node }

// entries are those of a map; a key that is there twice is refused.
func (f *fileParser) entries(n *yaml.Node, what string) []entry {
	n = follow(n)
	if n.Kind != yaml.MappingNode {
		f.fail(n, "%s: want a map, NAME: VALUE", what)
		return nil
	}
	var all []entry
	first := make(map[string]int) // the line
	for i := 0; i+1 < len(n.Content); i += 2 {
		e := entry{follow(n.Content[i]), follow(n.Content[i+1])}
		if e.key.Kind != yaml.ScalarNode {
			f.fail(e.key, "%s: a key is a word", what)
			continue
		}
		if line, twice := first[e.key.Value]; twice {
			f.fail(e.key, "%s: %q is there twice, in line %d, too", what, e.key.Value, line)
			continue
		}
		first[e.key.Value] = e.key.Line
		all = append(all, e)
	}
	return all
}

// follow is what an alias stands for.
func follow(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func (f *fileParser) file(top *yaml.Node) []*networkSettings {
	f.p.inFile = make(map[string]string)
	var networks *yaml.Node
	var defaults []entry
	for _, e := range f.entries(top, "the file") {
		switch {
		case e.key.Value == networksKey:
			networks = e.value
			continue
		case slices.Contains(processFlagsInFile, e.key.Value):
			values, err := valuesFor(f.p.set.Lookup(e.key.Value), e.value)
			if err != nil {
				f.fail(e.key, "%s: %w", e.key.Value, err)
				continue
			}
			f.p.inFile[e.key.Value] = values[0]
			continue
		}
		defaults = append(defaults, e)
	}
	if networks == nil {
		if len(f.bad) == 0 {
			f.fail(top, "no %q: want a map of networks by their names", networksKey)
		}
		return nil
	}
	defaults = f.known(defaults, "", networkFlags)
	var all []*networkSettings
	entries := f.entries(networks, networksKey)
	if len(entries) == 0 && len(f.bad) == 0 {
		f.fail(networks, "%s: there is none: give at least one", networksKey)
	}
	for _, e := range entries {
		name := e.key.Value
		switch {
		case !networkName.MatchString(name):
			f.fail(e.key, "network %q: a name has 1 to 12 characters of a to z, 0 to 9 and -, and does not begin with -", name)
			continue
		case slices.Contains(takenNames, name):
			f.fail(e.key, "network %q: the name is taken, by a file or a key in etcd; choose another", name)
			continue
		}
		all = append(all, f.network(e, defaults))
	}
	return all
}

// known are the entries that are flags and may stand there.
func (f *fileParser) known(all []entry, of string, refused []string) []entry {
	set := pflag.NewFlagSet("", pflag.ContinueOnError)
	new(runFlags).register(set)
	return slices.DeleteFunc(all, func(e entry) bool {
		key := e.key.Value
		switch {
		case slices.Contains(processFlagsInFile, key):
			f.fail(e.key, "%s%s is the process's: give it beside %q, or on the command line", of, key, networksKey)
		case slices.Contains(processFlags, key):
			f.fail(e.key, "%s%s is the process's: give it on the command line", of, key)
		case slices.Contains(refused, key):
			f.fail(e.key, "%s%s: no two networks can have that in common: give it with each network", of, key)
		case strings.HasPrefix(key, "-"):
			f.fail(e.key, "%sunknown setting %q: leave the dashes out", of, key)
		case set.Lookup(key) == nil:
			f.fail(e.key, "%sunknown setting %q: want a flag of `muslin run`, without its dashes", of, key)
		default:
			return false
		}
		return true
	})
}

// network puts a network's flags together: the process's, what the file has for all, what it has for this one, and
// what follows from the name.
func (f *fileParser) network(e entry, defaults []entry) *networkSettings {
	name, of := e.key.Value, "network "+e.key.Value+": "
	s := &networkSettings{name: name, where: f.where(e.key), flags: new(runFlags), set: pflag.NewFlagSet(name, pflag.ContinueOnError)}
	s.flags.register(s.set)
	f.inherit(s)
	f.layer(s, defaults, "")
	var own []entry
	if e.value.Tag != "!!null" { // "blue:" alone has all by default
		own = f.known(f.entries(e.value, "network "+name), of, nil)
	}
	f.layer(s, own, of)
	derived := map[string]string{
		"state-dir":   filepath.Join(f.p.flags.stateDir, name),
		"control":     filepath.Join(filepath.Dir(f.p.flags.control), name+".sock"),
		"tun-name":    tunPrefix + name,
		"subnet-file": filepath.Join(subnetDir, name+".env"),
		"etcd-prefix": path.Join(s.flags.store.prefix, name),
	}
	for _, e := range own {
		delete(derived, e.key.Value)
	}
	for flag, value := range derived {
		if err := s.set.Set(flag, value); err != nil {
			f.fail(e.key, "%s%w", of, err)
		}
	}
	return s
}

// inherit takes what the command line and the environment have.
func (f *fileParser) inherit(s *networkSettings) {
	f.p.set.VisitAll(func(from *pflag.Flag) {
		if !from.Changed || slices.Contains(processFlags, from.Name) || slices.Contains(networkFlags, from.Name) {
			return
		}
		to := s.set.Lookup(from.Name)
		if to == nil { // a command's own, as --help
			return
		}
		if list, ok := from.Value.(pflag.SliceValue); ok {
			_ = to.Value.(pflag.SliceValue).Replace(list.GetSlice()) // of strings: cannot fail
			return
		}
		if err := s.set.Set(from.Name, from.Value.String()); err != nil {
			f.bad = append(f.bad, fmt.Errorf("%s: network %s: %w", s.where, s.name, err))
		}
	})
}

// layer sets flags from the file, in place of what they were.
func (f *fileParser) layer(s *networkSettings, entries []entry, of string) {
	// Of two that exclude each other the nearer one counts.
	for _, pair := range [][2]string{{"etcd-password", "etcd-password-file"}, {"etcd-password-file", "etcd-password"}} {
		if slices.ContainsFunc(entries, func(e entry) bool { return e.key.Value == pair[0] }) {
			_ = s.set.Set(pair[1], "") // a string: cannot fail
		}
	}
	for _, e := range entries {
		flag := s.set.Lookup(e.key.Value)
		values, err := valuesFor(flag, e.value)
		switch list, ok := flag.Value.(pflag.SliceValue); {
		case err != nil:
		case ok:
			err = list.Replace(values)
		default:
			err = s.set.Set(flag.Name, values[0])
		}
		if err != nil {
			f.fail(e.key, "%s%s: %w", of, flag.Name, err)
		}
	}
}

// commaLists are flags whose text is a list with commas, for which the file may have a list.
var commaLists = []string{"etcd-endpoints", "features"}

// valuesFor is a value of the file as the flag would be given it: once, but for a flag that is repeatable.
func valuesFor(flag *pflag.Flag, n *yaml.Node) ([]string, error) {
	_, repeatable := flag.Value.(pflag.SliceValue)
	switch {
	case n.Tag == "!!null":
		return nil, errors.New("it has no value: give one, or leave it out")
	case n.Kind == yaml.ScalarNode:
		return []string{n.Value}, nil
	case n.Kind == yaml.MappingNode && flag.Name == "backend":
		var object map[string]any
		if err := n.Decode(&object); err != nil {
			return nil, fmt.Errorf("as a map it is the network config's Backend: %s", strings.TrimPrefix(err.Error(), "yaml: "))
		}
		text, err := json.Marshal(object)
		if err != nil {
			return nil, fmt.Errorf("as a map it is the network config's Backend: %w", err)
		}
		return []string{string(text)}, nil
	case n.Kind == yaml.SequenceNode && (repeatable || slices.Contains(commaLists, flag.Name)):
		var all []string
		for _, one := range n.Content {
			if one = follow(one); one.Kind != yaml.ScalarNode || one.Tag == "!!null" {
				return nil, fmt.Errorf("line %d: want a list of words", one.Line)
			}
			all = append(all, one.Value)
		}
		if !repeatable {
			all = []string{strings.Join(all, ",")}
		}
		return all, nil
	}
	return nil, errors.New("want one value")
}

// checkNetworks checks each network's flags, and what they have against each other.
func checkNetworks(p *processSettings, all []*networkSettings) error {
	var bad []error
	for _, s := range all {
		var err error
		if s.opts, err = s.flags.check(p.log.With("net", s.name)); err == nil {
			continue
		}
		each := []error{err}
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			each = joined.Unwrap()
		}
		for _, err := range each {
			bad = append(bad, fmt.Errorf("%s: network %s: %w", s.where, s.name, err))
		}
	}
	if len(bad) > 0 {
		return errors.Join(bad...)
	}
	for i, s := range all {
		if filepath.Clean(s.flags.stateDir) == filepath.Clean(p.flags.stateDir) {
			bad = append(bad, fmt.Errorf("%s: network %s: state-dir %s is the process's own; choose another", s.where, s.name, s.flags.stateDir))
		}
		if filepath.Clean(s.flags.control) == filepath.Clean(p.flags.control) {
			bad = append(bad, fmt.Errorf("%s: network %s: control %s is the process's own; choose another", s.where, s.name, s.flags.control))
		}
		for _, other := range all[:i] {
			for _, what := range s.clashes(other) {
				bad = append(bad, fmt.Errorf("%s: network %s and network %s (%s): %s", s.where, s.name, other.name, other.where, what))
			}
		}
	}
	return errors.Join(bad...)
}

// clashes are what two networks cannot both have, as sentences.
func (s *networkSettings) clashes(o *networkSettings) []string {
	var all []string
	a, b := s.flags, o.flags
	ourTUNs, theirTUNs := []string{a.tunName, s.opts.tunName6}, []string{b.tunName, o.opts.tunName6}
	if i := slices.IndexFunc(ourTUNs, func(name string) bool { return slices.Contains(theirTUNs, name) }); i >= 0 {
		all = append(all, fmt.Sprintf("both have the TUN device %s: give them different tun-names", ourTUNs[i]))
	}
	for _, p := range []struct{ flag, ours, theirs string }{
		{"state-dir", a.stateDir, b.stateDir},
		{"control", a.control, b.control},
		{"subnet-file", a.subnetFile, b.subnetFile},
	} {
		if filepath.Clean(p.ours) == filepath.Clean(p.theirs) {
			all = append(all, fmt.Sprintf("both have the %s %s: give them different ones", p.flag, p.ours))
		}
	}
	if a.embedded && b.embedded && a.embeddedPort == b.embeddedPort {
		all = append(all, fmt.Sprintf("both run an etcd on port %d: let one have embedded-etcd, and the other etcd-endpoints: http://127.0.0.1:%d", a.embeddedPort, a.embeddedPort))
	}
	if a.peersFile == "" && b.peersFile == "" && a.endpointsKey() == b.endpointsKey() && path.Clean(a.store.prefix) == path.Clean(b.store.prefix) {
		all = append(all, fmt.Sprintf("both are the network under %s of the same etcd: give them different etcd-prefixes", a.store.prefix))
	}
	ours, err := lease.ParseConfig(s.opts.wantConfig)
	theirs, err2 := lease.ParseConfig(o.opts.wantConfig)
	if err != nil || err2 != nil { // not known before etcd says so (networks.join)
		return all
	}
	if what := overlap([]netip.Prefix{ours.Network, ours.IPv6Network}, []netip.Prefix{theirs.Network, theirs.IPv6Network}); what != "" {
		all = append(all, what)
	}
	if slices.Equal(a.iface, b.iface) && slices.Equal(a.ifaceRegex, b.ifaceRegex) && a.canReach == b.canReach && a.publicIP == b.publicIP {
		if what := portClash(ours.Backend, theirs.Backend); what != "" {
			all = append(all, what)
		}
	}
	return all
}

// endpointsKey tells which etcd it is.
func (r *runFlags) endpointsKey() string {
	if r.embedded {
		return fmt.Sprintf("http://127.0.0.1:%d", r.embeddedPort)
	}
	all := r.store.list()
	slices.Sort(all)
	return strings.Join(all, ",")
}

// overlap is a sentence about addresses that two overlays both have; empty: none.
func overlap(ours, theirs []netip.Prefix) string {
	for _, a := range ours {
		for _, b := range theirs {
			if a.IsValid() && b.IsValid() && a.Overlaps(b) {
				return fmt.Sprintf("their addresses overlap: %s and %s; choose another Network for one of them", a, b)
			}
		}
	}
	return ""
}

// portClash is a sentence about a UDP port of one address that two backends both want; empty: there is none.
func portClash(a, b lease.Backend) string {
	switch {
	case a.Port != b.Port || a.Type == lease.BackendHostGW || b.Type == lease.BackendHostGW:
		return ""
	case a.Type == lease.BackendVXLAN && b.Type == lease.BackendVXLAN && a.VNI == b.VNI:
		return fmt.Sprintf("both are VNI %d on UDP port %d: give one another Backend.VNI", a.VNI.Uint32(), a.Port)
	case a.Type == lease.BackendVXLAN && b.Type == lease.BackendVXLAN:
		return "" // ports.join
	}
	return fmt.Sprintf("both want UDP port %d: give one another Backend.Port", a.Port)
}
