//go:build linux

package compare

import (
	"context"

	"muslin/bench/lab"
)

// plain is routing without an overlay: the other pod's subnet is routed to the other host, as flannel's
// host-gw backend does it. No overlay can be faster.
type plain struct{}

func (plain) Entry() Entry { return Entry{Name: "plain", About: "plain routing (host-gw), no overlay"} }

func (plain) Setup(ctx context.Context, l *lab.Lab) (Joined, error) {
	for _, h := range l.Hosts() {
		far := other(l, h)
		if err := ip(ctx, h, "route add %s via %s", subnet(far), far.Addr); err != nil {
			return Joined{}, err
		}
	}
	return Joined{}, addPods(ctx, l, lab.DefaultMTU)
}

// kernelVXLAN is the kernel's VXLAN device, set up as flannel's vxlan backend does it.
type kernelVXLAN struct{ nic nic }

func (k kernelVXLAN) Entry() Entry {
	return Entry{Name: withNIC(Baseline, k.nic), About: "kernel VXLAN, as flannel sets it up" + k.nic.about()}
}

// withNIC is the name of a system on hosts with such cards.
func withNIC(name string, n nic) string {
	if n == nicFull {
		return name
	}
	return name + "-" + string(n)
}

// flannel's defaults.
const (
	kernelVNI  = 1
	kernelPort = 8472
)

func (k kernelVXLAN) Setup(ctx context.Context, l *lab.Lab) (Joined, error) {
	if err := missing("bridge"); err != nil {
		return Joined{}, err
	}
	if err := k.nic.apply(ctx, l); err != nil {
		return Joined{}, err
	}
	devices := make(map[*lab.Host]*lab.KernelVXLAN)
	for _, h := range l.Hosts() {
		device, err := h.SetupKernelVXLAN(ctx, kernelVNI, kernelPort, subnet(h))
		if err != nil {
			return Joined{}, err
		}
		devices[h] = device
		if err := addPod(ctx, h, device.MTU); err != nil {
			return Joined{}, err
		}
	}
	for _, h := range l.Hosts() {
		far := devices[other(l, h)]
		if err := devices[h].AddPeer(ctx, far.Subnet, far.MAC, far.Host.Addr); err != nil {
			return Joined{}, err
		}
	}
	return Joined{}, nil
}
