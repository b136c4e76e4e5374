//go:build linux

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// KernelVXLAN is the Linux kernel's own VXLAN device on a host, set up as flannel sets it up: the
// independent twin that muslin has to understand.
type KernelVXLAN struct {
	Host   *Host
	Device string       // "flannel.<VNI>"
	Subnet netip.Prefix // this host's lease
	MAC    string       // the device's: the lease's VtepMAC
	MTU    int          // of the device, in bytes
}

// SetupKernelVXLAN makes the device `flannel.<vni>` with the subnet's base as its /32 address, and
// switches forwarding on. Offloads keep their defaults. Everything is typed as an operator would repeat
// flannel by hand.
func (h *Host) SetupKernelVXLAN(ctx context.Context, vni uint32, port int, subnet netip.Prefix) (*KernelVXLAN, error) {
	v := &KernelVXLAN{Host: h, Device: fmt.Sprintf("flannel.%d", vni), Subnet: subnet.Masked()}
	if err := v.setup(ctx, vni, port); err != nil {
		return nil, fmt.Errorf("set up kernel VXLAN on %s: %w", h.Name, err)
	}
	return v, nil
}

func (v *KernelVXLAN) setup(ctx context.Context, vni uint32, port int) error {
	if err := v.Host.ip(ctx,
		fmt.Sprintf("link add %s type vxlan id %d dev eth0 local %s dstport %d nolearning", v.Device, vni, v.Host.Addr, port),
		fmt.Sprintf("addr add %s/32 dev %s", v.Subnet.Addr(), v.Device),
		fmt.Sprintf("link set %s up", v.Device),
	); err != nil {
		return err
	}
	out, err := v.Host.Run(ctx, "ip", "-json", "link", "show", v.Device)
	if err != nil {
		return err
	}
	var links []struct {
		Address string `json:"address"`
		MTU     int    `json:"mtu"`
	}
	if err := json.Unmarshal([]byte(out), &links); err != nil {
		return fmt.Errorf("read `ip -json link`: %w", err)
	}
	if len(links) != 1 {
		return errors.New("device is not there after its creation")
	}
	v.MAC, v.MTU = links[0].Address, links[0].MTU
	return v.Host.Sysctl("net/ipv4/ip_forward", "1")
}

// AddPeer adds what flannel adds for a peer's lease: a permanent neighbour, a permanent forwarding entry
// and an onlink route.
func (v *KernelVXLAN) AddPeer(ctx context.Context, subnet netip.Prefix, mac string, publicIP netip.Addr) error {
	base := subnet.Masked().Addr().String()
	if err := v.Host.ip(ctx, strings.Join([]string{"neigh replace", base, "lladdr", mac, "nud permanent dev", v.Device}, " ")); err != nil {
		return err
	}
	if _, err := v.Host.Run(ctx, "bridge", "fdb", "replace", mac, "dst", publicIP.String(), "dev", v.Device, "self", "permanent"); err != nil {
		return err
	}
	return v.Host.ip(ctx, strings.Join([]string{"route replace", subnet.Masked().String(), "via", base, "dev", v.Device, "onlink"}, " "))
}

// AddDirectPeer adds what flannel with DirectRouting adds for the lease of a peer on its own link: a route, and
// neither neighbour nor forwarding entry. In place of the route to the device, if there is one.
func (v *KernelVXLAN) AddDirectPeer(ctx context.Context, subnet netip.Prefix, publicIP netip.Addr) error {
	return v.Host.ip(ctx, strings.Join([]string{"route replace", subnet.Masked().String(), "via", publicIP.String()}, " "))
}

// PodNetwork is what flannel would write into the subnet file.
func (v *KernelVXLAN) PodNetwork() PodNetwork {
	return PodNetwork{Gateway: netip.PrefixFrom(v.Subnet.Addr().Next(), v.Subnet.Bits()), MTU: v.MTU}
}

// LeaseKey and LeaseValue are what flannel writes into etcd for this host.
func (v *KernelVXLAN) LeaseKey(prefix string) string {
	return fmt.Sprintf("%s/subnets/%s-%d", prefix, v.Subnet.Addr(), v.Subnet.Bits())
}

// LeaseValue: see LeaseKey.
func (v *KernelVXLAN) LeaseValue(vni uint32) string {
	return fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":%d,"VtepMAC":%q}}`, v.Host.Addr, vni, v.MAC)
}
