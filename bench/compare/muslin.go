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
	features string // as --features has it; empty: the daemon's default
}

// direct is vxlan where nodes are neighbours and the config asks for direct routes.
const direct = "direct"

var backends = []string{"vxlan", "udp", "host-gw", direct, "wireguard"}

// flag is --backend's value.
func (m muslin) flag() string {
	if m.backend == direct {
		return `{"Type":"vxlan","DirectRouting":true}`
	}
	return m.backend
}

// name is "muslin-vxlan", "muslin-vxlan-nouso", "muslin-udp:none" or "muslin-vxlan:-udp-gso+-tun-uso": as a
// comma divides the names of systems, a plus divides those of features.
func (m muslin) name() string {
	name := withNIC("muslin-"+m.backend, m.nic)
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
			if m := (muslin{backend: backend, nic: n}); m.name() == name {
				m.features = features
				return m, true
			}
		}
	}
	return muslin{}, false
}

func (m muslin) Entry() Entry {
	about := "muslin, " + m.backend + m.nic.about()
	if m.features != "" {
		about += ", --features=" + m.features
	}
	return Entry{Name: m.name(), About: about, Rung: m.features != "", Version: m.version}
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
	flags := []string{"--peers-file", peers, "--network", podNetwork, "--backend", m.flag()}
	if m.features != "" {
		flags = append(flags, "--features", m.features)
	}
	for _, h := range l.Hosts() {
		daemon, err := h.StartMuslin(ctx, m.bin, append(flags, "--wireguard-key-file", keyFile(h))...)
		if err != nil {
			return joined, err
		}
		if _, err := daemon.AddPod(ctx, "a"); err != nil {
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
