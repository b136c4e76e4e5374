//go:build linux

package compare

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"

	"muslin/bench/lab"
)

// Over IPv6 the addresses are these: host i is fd99::i, and has the pods' subnet fd00:244:0:i::/64.
const podNetwork6 = "fd00:244::/48"

func addr6(h *lab.Host) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("fd99::%d", h.Number)) }

func subnet6(h *lab.Host) netip.Prefix {
	return netip.MustParsePrefix(fmt.Sprintf("fd00:244:0:%d::/64", h.Number))
}

// underlay6 gives the hosts their addresses.
func underlay6(ctx context.Context, l *lab.Lab) error {
	for _, h := range l.Hosts() {
		if err := ip(ctx, h, "addr add %s/64 dev eth0 nodad", addr6(h)); err != nil {
			return err
		}
	}
	return nil
}

// addPod6 is addPod with IPv6 alone.
func addPod6(ctx context.Context, h *lab.Host, mtu int) error {
	s := subnet6(h)
	if _, err := h.AddPod(ctx, "a", lab.PodNetwork{Gateway: netip.PrefixFrom(s.Addr().Next(), s.Bits()), MTU: mtu}); err != nil {
		return err
	}
	return h.Sysctl("net/ipv6/conf/all/forwarding", "1")
}

// kernelVXLAN6 is the kernel's VXLAN device over IPv6, with inner IPv6, set up as flannel does it, but for the MTU: flannel
// counts 20 bytes too few, and fragments.
type kernelVXLAN6 struct{}

func (kernelVXLAN6) Entry() Entry {
	return Entry{Name: Baseline + "6", About: "kernel VXLAN over IPv6, as flannel sets it up", IPv6: true}
}

func (kernelVXLAN6) Setup(ctx context.Context, l *lab.Lab) (Joined, error) {
	const device, mtu = "flannel-v6.1", lab.DefaultMTU - 70
	if err := missing("bridge"); err != nil {
		return Joined{}, err
	}
	if err := nicFull.apply(ctx, l); err != nil {
		return Joined{}, err
	}
	if err := underlay6(ctx, l); err != nil {
		return Joined{}, err
	}
	macs := make(map[*lab.Host]string)
	for _, h := range l.Hosts() {
		for _, command := range []string{
			fmt.Sprintf("link add %s type vxlan id %d dev eth0 local %s dstport %d nolearning", device, kernelVNI, addr6(h), kernelPort),
			fmt.Sprintf("addr add %s/128 dev %s nodad", subnet6(h).Addr(), device),
			fmt.Sprintf("link set %s up mtu %d", device, mtu),
		} {
			if err := ip(ctx, h, "%s", command); err != nil {
				return Joined{}, err
			}
		}
		var links []struct {
			Address string `json:"address"`
		}
		out, err := h.Output(ctx, "ip", "-json", "link", "show", device)
		if err != nil {
			return Joined{}, err
		}
		if err := json.Unmarshal([]byte(out), &links); err != nil || len(links) != 1 {
			return Joined{}, fmt.Errorf("read `ip -json link show %s`: %d links, %w", device, len(links), err)
		}
		macs[h] = links[0].Address
		if err := addPod6(ctx, h, mtu); err != nil {
			return Joined{}, err
		}
	}
	for _, h := range l.Hosts() {
		far := other(l, h)
		if err := ip(ctx, h, "neigh add %s lladdr %s nud permanent dev %s", subnet6(far).Addr(), macs[far], device); err != nil {
			return Joined{}, err
		}
		if _, err := h.Run(ctx, "bridge", "fdb", "add", macs[far], "dst", addr6(far).String(), "dev", device, "self", "permanent"); err != nil {
			return Joined{}, err
		}
		if err := ip(ctx, h, "-6 route add %s via %s dev %s onlink", subnet6(far), subnet6(far).Addr(), device); err != nil {
			return Joined{}, err
		}
	}
	return Joined{}, nil
}
