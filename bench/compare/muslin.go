//go:build linux

package compare

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"muslin/bench/lab"
	"muslin/tunnel/kernel"
)

// muslin is this project's daemon on both hosts, with the leases from a peers file: an etcd would take
// processor time beside what is measured.
type muslin struct {
	bin      string
	version  string
	backend  string // one of backends
	nic      nic
	six      bool   // over IPv6, and carrying IPv6 alone
	features string // as --features has it; empty: the daemon's default
}

// direct is vxlan where nodes are neighbours and the config asks for direct routes.
const direct = "direct"

var backends = []string{"vxlan", "udp", "host-gw", direct, "wireguard"}

// backends6 are those that are measured over IPv6, too.
var backends6 = []string{"vxlan", "wireguard"}

// config is the network's.
func (m muslin) config() string {
	networks, backend := fmt.Sprintf(`"Network":%q`, podNetwork), fmt.Sprintf(`{"Type":%q}`, m.backend)
	if m.six {
		networks = fmt.Sprintf(`"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":%q`, podNetwork6)
	}
	if m.backend == direct {
		backend = `{"Type":"vxlan","DirectRouting":true}`
	}
	return "{" + networks + `,"Backend":` + backend + "}\n"
}

// name is "muslin-vxlan", "muslin-vxlan6", "muslin-vxlan-nouso", "muslin-udp:none" or "muslin-vxlan:-udp-gso+-tun-uso": as a
// comma divides the names of systems, a plus divides those of features.
func (m muslin) name() string {
	name := "muslin-" + m.backend
	if m.six {
		name += "6"
	}
	name = withNIC(name, m.nic)
	if m.features != "" {
		name += ":" + strings.ReplaceAll(m.features, ",", "+")
	}
	return name
}

// parseMuslin is name's inverse. It reports false where the name is not muslin's.
func parseMuslin(name string) (muslin, bool) {
	name, features, colon := strings.Cut(name, ":")
	if colon && features == "" {
		return muslin{}, false
	}
	features = strings.ReplaceAll(features, "+", ",")
	for _, backend := range backends {
		for _, n := range []nic{nicFull, nicNoTunnel, nicNoUSO} {
			for _, six := range []bool{false, slices.Contains(backends6, backend)} {
				if m := (muslin{backend: backend, nic: n, six: six}); m.name() == name {
					m.features = features
					return m, true
				}
			}
		}
	}
	return muslin{}, false
}

func (m muslin) Entry() Entry {
	about := "muslin, " + m.backend
	if m.six {
		about += " over IPv6"
	}
	about += m.nic.about()
	if m.features != "" {
		about += ", --features=" + m.features
	}
	return Entry{Name: m.name(), About: about, Rung: m.features != "", IPv6: m.six, Version: m.version}
}

func (m muslin) Setup(ctx context.Context, l *lab.Lab) (Joined, error) {
	joined := Joined{Version: m.version}
	if m.features != "" {
		if _, err := kernel.ParseFeatures(m.features); err != nil {
			return joined, err
		}
	}
	if err := m.nic.apply(ctx, l); err != nil {
		return joined, err
	}
	keys, err := m.makeKeys(l)
	if err != nil {
		return joined, err
	}
	peers := filepath.Join(l.Dir(), "peers.json")
	if err := os.WriteFile(peers, []byte(m.peersFile(l, keys)), 0o644); err != nil {
		return joined, err
	}
	config := filepath.Join(l.Dir(), "net-conf.json")
	if err := os.WriteFile(config, []byte(m.config()), 0o644); err != nil {
		return joined, err
	}
	if m.six {
		if err := underlay6(ctx, l); err != nil {
			return joined, err
		}
	}
	flags := []string{"--peers-file", peers, "--net-config-path", config}
	if m.features != "" {
		flags = append(flags, "--features", m.features)
	}
	for _, h := range l.Hosts() {
		daemon, err := h.StartMuslin(ctx, m.bin, append(flags, "--wireguard-key-file", keyFile(h))...)
		if err != nil {
			return joined, err
		}
		if err := m.addPod(ctx, daemon); err != nil {
			return joined, err
		}
		joined.Daemons = append(joined.Daemons, daemon.Proc)
		if m.features != "" {
			continue // its name says what is off
		}
		status, err := daemon.Status(ctx)
		if err != nil {
			return joined, err
		}
		if note := featuresOff(status); note != "" && !slices.Contains(joined.Notes, note) {
			joined.Notes = append(joined.Notes, note)
		}
	}
	return joined, nil
}

func (m muslin) addPod(ctx context.Context, daemon *lab.Muslin) error {
	if !m.six {
		_, err := daemon.AddPod(ctx, "a")
		return err
	}
	status, err := daemon.Status(ctx)
	if err != nil {
		return err
	}
	return addPod6(ctx, daemon.Host, status.Node.MTU)
}

// featuresOff says which features of the ladder the daemon does without, and why.
func featuresOff(s *lab.Status) string {
	var off []string
	for _, f := range s.Features {
		if !f.On && slices.Contains(kernel.FeatureNames(), f.Name) {
			off = append(off, fmt.Sprintf("%s (%s)", f.Name, f.Reason))
		}
	}
	if off == nil {
		return ""
	}
	return "off: " + strings.Join(off, ", ")
}

func keyFile(h *lab.Host) string { return filepath.Join(h.Dir, "wireguard-key") }

// makeKeys makes each host's WireGuard key, and returns the public ones.
func (m muslin) makeKeys(l *lab.Lab) (map[*lab.Host]string, error) {
	keys := make(map[*lab.Host]string)
	if m.backend != "wireguard" {
		return keys, nil
	}
	for _, h := range l.Hosts() {
		key, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(keyFile(h), []byte(base64.StdEncoding.EncodeToString(key.Bytes())), 0o400); err != nil {
			return nil, err
		}
		keys[h] = base64.StdEncoding.EncodeToString(key.PublicKey().Bytes())
	}
	return keys, nil
}

func (m muslin) peersFile(l *lab.Lab, keys map[*lab.Host]string) string {
	var leases []string
	for _, h := range l.Hosts() {
		if m.six {
			leases = append(leases, m.lease6(h, keys[h]))
			continue
		}
		backend := ""
		switch m.backend {
		case "vxlan", direct:
			backend = fmt.Sprintf(`,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:%02x"}`, h.Number)
		case "host-gw":
			backend = `,"BackendType":"host-gw"`
		case "wireguard":
			backend = fmt.Sprintf(`,"BackendType":"wireguard","BackendData":{"PublicKey":%q,"Port":51820}`, keys[h])
		}
		leases = append(leases, fmt.Sprintf(`  "%s-%d": {"PublicIP":%q,"PublicIPv6":null%s}`, subnet(h).Addr(), subnet(h).Bits(), h.Addr, backend))
	}
	return "{\n" + strings.Join(leases, ",\n") + "\n}\n"
}

// lease6 is a host's line in a peers file of IPv6 alone.
func (m muslin) lease6(h *lab.Host, key string) string {
	backend := ""
	switch m.backend {
	case "vxlan":
		backend = fmt.Sprintf(`,"BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"0a:00:00:00:06:%02x"}`, h.Number)
	case "wireguard":
		backend = fmt.Sprintf(`,"BackendType":"wireguard","BackendV6Data":{"PublicKey":%q}`, key)
	}
	return fmt.Sprintf(`  "0.0.0.0-0&%s-%d": {"PublicIP":"0.0.0.0","PublicIPv6":%q%s}`, subnet6(h).Addr(), subnet6(h).Bits(), addr6(h), backend)
}
