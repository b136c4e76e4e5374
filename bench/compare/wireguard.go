//go:build linux

package compare

import (
	"context"
	"net/netip"

	"muslin/bench/lab"
)

// wireguardGo is WireGuard's userspace implementation, by its own program. It encrypts.
type wireguardGo struct{ bin string }

func (wireguardGo) Entry() Entry {
	return Entry{Name: "wireguard-go", About: "WireGuard in userspace; encrypts", Rival: true}
}

func (w wireguardGo) Setup(ctx context.Context, l *lab.Lab) (Joined, error) {
	if err := missing(w.bin, "wg", "unshare", "nsenter"); err != nil {
		return Joined{}, err
	}
	joined := Joined{Version: versionLine(ctx, w.bin, "--version")}
	devices := make(map[*lab.Host]*lab.WireGuard)
	for _, h := range l.Hosts() {
		device, err := h.StartWireGuard(ctx, w.bin, "wg0", wireguardPort)
		if err != nil {
			return joined, err
		}
		devices[h] = device
		joined.Daemons = append(joined.Daemons, device.Proc)
	}
	for _, h := range l.Hosts() {
		mtu, err := deviceMTU(ctx, h, "wg0", devices[h].Proc)
		if err != nil {
			return joined, err
		}
		if err := w.configure(ctx, devices[h], devices[other(l, h)]); err != nil {
			return joined, err
		}
		if err := addPod(ctx, h, mtu); err != nil {
			return joined, err
		}
	}
	return joined, nil
}

const wireguardPort = 51820

func (w wireguardGo) configure(ctx context.Context, own, far *lab.WireGuard) error {
	h := own.Host
	if err := own.AddPeer(ctx, far.PublicKey(), subnet(far.Host), netip.AddrPortFrom(far.Host.Addr, wireguardPort)); err != nil {
		return err
	}
	if err := ip(ctx, h, "link set wg0 up"); err != nil {
		return err
	}
	return ip(ctx, h, "route add %s dev wg0", subnet(far.Host))
}
