//go:build linux

package compare

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"muslin/tunnel/kernel"
)

// Programs are the binaries that are measured.
type Programs struct {
	Muslin  string            // path
	Version string            // of muslin
	Rivals  map[string]string // path by the system's name, for another binary than the one in the PATH
}

// rivals makes each rival from the path of its binary. The program in the PATH is the default; flanneld has
// none.
var rivals = map[string]struct {
	program string
	system  func(bin string, p Programs) System
}{
	"wireguard-go": {"wireguard-go", func(bin string, _ Programs) System { return wireguardGo{bin} }},
	"nebula":       {"nebula", func(bin string, _ Programs) System { return nebula{bin} }},
	"tinc":         {"tincd", func(bin string, _ Programs) System { return tinc{bin} }},
	"openvpn":      {"openvpn", func(bin string, _ Programs) System { return openVPN{bin} }},
	"flannel-udp":  {"", func(bin string, p Programs) System { return flannelUDP{bin, p.Muslin} }},
}

// RivalNames lists the systems of other projects.
func RivalNames() []string { return slices.Sorted(maps.Keys(rivals)) }

// Catalogue lists every system that is known by name, in the order of the tables.
func Catalogue(p Programs) []System {
	ours := func(backend string, n nic, features string) System {
		return muslin{bin: p.Muslin, version: p.Version, backend: backend, nic: n, features: features}
	}
	six := func(backend string) System {
		return muslin{bin: p.Muslin, version: p.Version, backend: backend, six: true}
	}
	all := []System{
		plain{},
		kernelVXLAN{nicFull}, kernelVXLAN6{}, kernelVXLAN{nicNoTunnel}, kernelVXLAN{nicNoUSO},
		ours("vxlan", nicFull, ""), six("vxlan"), ours("vxlan", nicNoTunnel, ""), ours("vxlan", nicNoUSO, ""),
		ours("udp", nicFull, ""), ours("host-gw", nicFull, ""), ours(direct, nicFull, ""), ours("wireguard", nicFull, ""), six("wireguard"),
	}
	for _, name := range RivalNames() {
		all = append(all, rivals[name].system(cmp.Or(p.Rivals[name], rivals[name].program), p))
	}
	for _, backend := range []string{"vxlan", "udp"} {
		for _, r := range kernel.Ladder {
			all = append(all, ours(backend, nicFull, "-"+r.Name))
		}
		all = append(all, ours(backend, nicFull, "none"))
	}
	return all
}

// isDefault reports whether a system is measured where nothing else is asked for. The udp backend's data path
// is vxlan's but for the framing, so that of its rungs just the bottom one is.
func isDefault(s System) bool {
	e := s.Entry()
	return !e.Rung || !strings.HasPrefix(e.Name, "muslin-udp:") || e.Name == "muslin-udp:none"
}

// Select returns the systems of the catalogue whose names match one of the patterns (as of path.Match), in its
// order, then those that a pattern names without being in it: muslin with other features, for example
// "muslin-vxlan:none+mmsg". Without a pattern it returns what is measured by default.
func Select(p Programs, patterns []string) ([]System, error) {
	all := Catalogue(p)
	if len(patterns) == 0 {
		return slices.DeleteFunc(all, func(s System) bool { return !isDefault(s) }), nil
	}
	var names []string
	for _, s := range all {
		names = append(names, s.Entry().Name)
	}
	wanted, unmatched, err := match(patterns, names)
	if err != nil {
		return nil, err
	}
	selected := slices.DeleteFunc(all, func(s System) bool { return !wanted[s.Entry().Name] })
	for _, name := range unmatched {
		m, ok := parseMuslin(name)
		if !ok {
			return nil, fmt.Errorf("no system is called %s: there are %s, and muslin with other features, as muslin-vxlan:none+%s",
				name, strings.Join(names, ", "), kernel.Ladder[0].Name)
		}
		if _, err := kernel.ParseFeatures(m.features); err != nil {
			return nil, fmt.Errorf("system %s: %w", name, err)
		}
		m.bin, m.version = p.Muslin, p.Version
		selected = append(selected, m)
	}
	return selected, nil
}
