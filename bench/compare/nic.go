//go:build linux

package compare

import (
	"context"
	"fmt"

	"muslin/bench/lab"
)

// nic says what the hosts' network cards can do. A veth device, which the lab has in their place, does
// everything that a card could, and hands superpackets on uncut: it stands for an ideal card.
type nic string

const (
	nicFull     nic = ""         // everything
	nicNoTunnel nic = "notunnel" // does not segment what is inside a tunnel
	nicNoUSO    nic = "nouso"    // does not segment UDP at all, inside a tunnel or not
)

// Names of offloads as ethtool(8) has them.
const (
	udpTunnel     = "tx-udp_tnl-segmentation"
	udpTunnelCsum = "tx-udp_tnl-csum-segmentation"
	udpSegment    = "tx-udp-segmentation"
	checksum      = "tx-checksumming"
)

func (n nic) about() string {
	switch n {
	case nicNoTunnel:
		return ", NIC without tunnel offload"
	case nicNoUSO:
		return ", NIC without UDP segmentation"
	}
	return ""
}

// offloads are what the card has on and off.
func (n nic) offloads() map[string]bool {
	o := map[string]bool{udpTunnel: n == nicFull, udpTunnelCsum: n == nicFull}
	if n == nicNoUSO {
		o[udpSegment] = false
	}
	return o
}

// apply makes the hosts' devices such cards, and looks whether that is what came of it: offloads depend on each
// other, and a kernel may lack one.
func (n nic) apply(ctx context.Context, l *lab.Lab) error {
	if err := missing("ethtool"); err != nil {
		return err
	}
	for _, h := range l.Hosts() {
		want := n.offloads()
		got, err := h.SetOffloads(ctx, "eth0", want)
		if err != nil {
			return err
		}
		want[checksum] = true
		for name, on := range want {
			if got[name] != on {
				return fmt.Errorf("eth0 of %s: %s on is %v and should be %v: this kernel's veth device cannot stand for a network card%s", h.Name, name, got[name], on, n.about())
			}
		}
	}
	return nil
}
