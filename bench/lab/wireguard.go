//go:build linux

package lab

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// WireGuard is a WireGuard device that is none of muslin's, set up with wg(8): the program wireguard-go's, or the kernel's.
type WireGuard struct {
	*Proc  // nil: the kernel's
	Host   *Host
	Device string
	Key    *ecdh.PrivateKey
}

// wireguardStart gives the daemon a /run of its own, where it keeps its socket under the device's name: two
// daemons with one name would meet there, and a killed one would leave it. $0 is the daemon, $1 the device.
const wireguardStart = `mount -t tmpfs tmpfs /run && mkdir /run/wireguard && exec "$0" -f "$1"`

// StartWireGuard starts the program bin on the host, with a new key, and waits until its device listens on the port. The
// device is down and has neither address nor peers.
func (h *Host) StartWireGuard(ctx context.Context, bin, device string, port int) (*WireGuard, error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	p, err := h.Start("wireguard-go-"+device, nil, "unshare", "--mount", "sh", "-c", wireguardStart, bin, device)
	if err != nil {
		return nil, err
	}
	w := &WireGuard{Proc: p, Host: h, Device: device, Key: key}
	// The device is there a moment before the socket.
	ctx, cancel := context.WithTimeout(ctx, Patience(10*time.Second))
	defer cancel()
	for {
		err := w.configure(ctx, port)
		if err == nil {
			return w, nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-p.Done():
			return nil, fmt.Errorf("%s ended: %s", bin, p.Output())
		case <-ctx.Done():
			return nil, err
		}
	}
}

// ErrNoWireGuard says that the kernel has none.
var ErrNoWireGuard = errors.New("this kernel has no WireGuard")

// AddWireGuard is StartWireGuard with a device of the kernel's.
func (h *Host) AddWireGuard(ctx context.Context, device string, port int) (*WireGuard, error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	if out, err := h.Run(ctx, "ip", "link", "add", device, "type", "wireguard"); err != nil {
		if strings.Contains(out+err.Error(), "Unknown device type") || strings.Contains(out+err.Error(), "not supported") {
			err = ErrNoWireGuard
		}
		return nil, err
	}
	w := &WireGuard{Host: h, Device: device, Key: key}
	return w, w.configure(ctx, port)
}

func (w *WireGuard) configure(ctx context.Context, port int) error {
	path, err := w.writeKey()
	if err != nil {
		return err
	}
	_, err = w.WG(ctx, "set", w.Device, "private-key", path, "listen-port", fmt.Sprint(port))
	return err
}

func (w *WireGuard) writeKey() (path string, err error) {
	path = filepath.Join(w.Host.Dir, w.Device+".key")
	return path, os.WriteFile(path, []byte(base64.StdEncoding.EncodeToString(w.Key.Bytes())), 0o600)
}

// UseKey gives the device another private key, as where one node has two devices of one key.
func (w *WireGuard) UseKey(ctx context.Context, key *ecdh.PrivateKey) error {
	w.Key = key
	path, err := w.writeKey()
	if err != nil {
		return err
	}
	_, err = w.WG(ctx, "set", w.Device, "private-key", path)
	return err
}

// Remove takes the device away.
func (w *WireGuard) Remove(ctx context.Context) error {
	if w.Proc != nil {
		w.Kill()
		return nil
	}
	_, err := w.Host.Run(ctx, "ip", "link", "del", w.Device)
	return err
}

// WG runs wg(8) where the device's socket is.
func (w *WireGuard) WG(ctx context.Context, args ...string) (string, error) {
	if w.Proc == nil {
		return w.Host.Run(ctx, append([]string{"wg"}, args...)...)
	}
	return w.Host.Run(ctx, append([]string{"nsenter", "--mount", "--target", fmt.Sprint(w.PID()), "wg"}, args...)...)
}

// PublicKey is the device's, as wg(8) prints it.
func (w *WireGuard) PublicKey() string {
	return base64.StdEncoding.EncodeToString(w.Key.PublicKey().Bytes())
}

// AddPeer lets in who has the public key, with inner addresses of the subnet, at the endpoint. More may be "preshared-key"
// and its file, and so on.
func (w *WireGuard) AddPeer(ctx context.Context, publicKey string, subnet netip.Prefix, endpoint netip.AddrPort, more ...string) error {
	_, err := w.WG(ctx, append([]string{"set", w.Device, "peer", publicKey, "allowed-ips", subnet.String(), "endpoint", endpoint.String()}, more...)...)
	return err
}
