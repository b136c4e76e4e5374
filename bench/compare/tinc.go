//go:build linux

package compare

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"muslin/bench/lab"
)

// tinc is tinc 1.0. It encrypts.
type tinc struct{ bin string }

func (tinc) Entry() Entry { return Entry{Name: "tinc", About: "tinc; encrypts", Rival: true} }

const tincKeyBits = 2048 // tincd's own default

func (t tinc) Setup(ctx context.Context, l *lab.Lab) (Joined, error) {
	if err := missing(t.bin); err != nil {
		return Joined{}, err
	}
	joined := Joined{
		Version: versionLine(ctx, t.bin, "--version"),
		Notes:   []string{"the device's MTU is 1500, and tinc keeps TCP segments below what fits an outer datagram"},
	}
	if err := t.writeConfigs(l); err != nil {
		return joined, err
	}
	for _, h := range l.Hosts() {
		daemon, err := h.Start("tinc", nil, t.bin, "-c", tincDir(h), "-D", "--pidfile="+filepath.Join(h.Dir, "tinc.pid"))
		if err != nil {
			return joined, err
		}
		joined.Daemons = append(joined.Daemons, daemon)
		mtu, err := deviceMTU(ctx, h, "tinc0", daemon)
		if err != nil {
			return joined, err
		}
		if err := ip(ctx, h, "link set tinc0 up"); err != nil {
			return joined, err
		}
		if err := ip(ctx, h, "route add %s dev tinc0", subnet(other(l, h))); err != nil {
			return joined, err
		}
		if err := addPod(ctx, h, mtu); err != nil {
			return joined, err
		}
	}
	joined.Settled = func(context.Context) (bool, error) { return tincSettled(joined.Daemons) }
	return joined, nil
}

func tincDir(h *lab.Host) string { return filepath.Join(h.Dir, "tinc") }

func (t tinc) writeConfigs(l *lab.Lab) error {
	hosts := make(map[string]string) // by name: what everybody is told about a host
	for _, h := range l.Hosts() {
		key, err := rsa.GenerateKey(rand.Reader, tincKeyBits)
		if err != nil {
			return err
		}
		private := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
		public := pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(&key.PublicKey)})
		hosts[h.Name] = fmt.Sprintf("Address = %s\nSubnet = %s\n%s", h.Addr, subnet(h), public)
		if err := os.MkdirAll(filepath.Join(tincDir(h), "hosts"), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(tincDir(h), "rsa_key.priv"), private, 0o600); err != nil {
			return err
		}
		config := fmt.Sprintf("Name = %s\nConnectTo = %s\nInterface = tinc0\nDeviceType = tun\nAddressFamily = ipv4\n", h.Name, other(l, h).Name)
		if err := os.WriteFile(filepath.Join(tincDir(h), "tinc.conf"), []byte(config), 0o644); err != nil {
			return err
		}
	}
	for _, h := range l.Hosts() {
		for name, content := range hosts {
			if err := os.WriteFile(filepath.Join(tincDir(h), "hosts", name), []byte(content), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// tincPMTU is how a node's line ends in what tincd prints on SIGUSR2.
var tincPMTU = regexp.MustCompile(`pmtu (\d+) \(min (\d+) max (\d+)\)`)

// tincSettled reports whether both daemons have found out the largest datagram that gets through. Until then,
// which takes them some ten seconds, large packets travel over TCP.
func tincSettled(daemons []*lab.Proc) (bool, error) {
	settled := true
	for _, d := range daemons {
		if err := d.Signal(syscall.SIGUSR2); err != nil {
			return false, err
		}
		settled = settled && tincFoundPMTU(d.Output())
	}
	return settled, nil
}

// tincFoundPMTU looks at the last list of nodes in a log: the other node's least and greatest possible MTU
// have met. The daemon's own entry has 0.
func tincFoundPMTU(log string) bool {
	found := tincPMTU.FindAllStringSubmatch(log[max(strings.LastIndex(log, "Nodes:"), 0):], -1)
	for _, m := range found {
		if m[2] != "0" && m[2] == m[3] {
			return true
		}
	}
	return false
}
