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

	"muslin/bench/lab"
)

// wireguardGo is WireGuard's userspace implementation, by its own program. It encrypts.
type wireguardGo struct{ bin string }

func (wireguardGo) Entry() Entry {
	return Entry{Name: "wireguard-go", About: "WireGuard in userspace; encrypts", Rival: true}
}

// wireguardStart gives the daemon a /run of its own, where it keeps its socket under the device's name: two
// daemons with one name would meet there, and a killed one would leave it. $0 is the daemon.
const wireguardStart = `mount -t tmpfs tmpfs /run && mkdir /run/wireguard && exec "$0" -f wg0`

func (w wireguardGo) Setup(ctx context.Context, l *lab.Lab) (Joined, error) {
	if err := missing(w.bin, "wg", "unshare", "nsenter"); err != nil {
		return Joined{}, err
	}
	joined := Joined{Version: versionLine(ctx, w.bin, "--version")}
	keys := make(map[*lab.Host]*ecdh.PrivateKey)
	for _, h := range l.Hosts() {
		key, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			return joined, err
		}
		keys[h] = key
	}
	for _, h := range l.Hosts() {
		daemon, err := h.Start("wireguard-go", nil, "unshare", "--mount", "sh", "-c", wireguardStart, w.bin)
		if err != nil {
			return joined, err
		}
		joined.Daemons = append(joined.Daemons, daemon)
		mtu, err := deviceMTU(ctx, h, "wg0", daemon)
		if err != nil {
			return joined, err
		}
		if err := w.configure(ctx, h, other(l, h), daemon, keys); err != nil {
			return joined, err
		}
		if err := addPod(ctx, h, mtu); err != nil {
			return joined, err
		}
	}
	return joined, nil
}

const wireguardPort = 51820

func (w wireguardGo) configure(ctx context.Context, h, far *lab.Host, daemon *lab.Proc, keys map[*lab.Host]*ecdh.PrivateKey) error {
	path := filepath.Join(h.Dir, "wg.key")
	if err := os.WriteFile(path, []byte(base64.StdEncoding.EncodeToString(keys[h].Bytes())), 0o600); err != nil {
		return err
	}
	// The device is there a moment before the socket.
	if err := until(ctx, daemon, "its socket", func() (bool, error) {
		_, err := h.Run(ctx, "nsenter", "--mount", "--target", fmt.Sprint(daemon.PID()), "test", "-S", "/run/wireguard/wg0.sock")
		return err == nil, nil
	}); err != nil {
		return err
	}
	if _, err := h.Run(ctx, "nsenter", "--mount", "--target", fmt.Sprint(daemon.PID()),
		"wg", "set", "wg0", "private-key", path, "listen-port", fmt.Sprint(wireguardPort),
		"peer", base64.StdEncoding.EncodeToString(keys[far].PublicKey().Bytes()),
		"allowed-ips", subnet(far).String(), "endpoint", fmt.Sprintf("%s:%d", far.Addr, wireguardPort)); err != nil {
		return err
	}
	if err := ip(ctx, h, "link set wg0 up"); err != nil {
		return err
	}
	return ip(ctx, h, "route add %s dev wg0", subnet(far))
}
