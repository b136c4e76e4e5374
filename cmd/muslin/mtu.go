package main

import (
	"context"
	"fmt"

	"muslin/encap"
	"muslin/lease"
	"muslin/tunnel/host"
	"muslin/tunnel/wireguard"
)

// maxOuterMTU is the longest packet that an IPv4 header can state; the loopback interface's MTU is one more.
const maxOuterMTU encap.OuterMTU = 65535

// innerMTU is what remains of the underlay's MTU for inner packets. Backend.MTU in the network's config
// stands in for the underlay's, and is to be lower.
//
// An overlay of both families has the MTU of IPv6, the smaller one, for both: it is the pods', too, and a kernel's VXLAN
// device may hand over TCP in superpackets without a word about their segments, which then are taken to be as long as the
// MTU allows (gso.Superpacket).
func (n *node) innerMTU(underlay encap.OuterMTU) (encap.InnerMTU, error) {
	outer := min(underlay, maxOuterMTU)
	if n.fixedMTU != 0 {
		outer = n.fixedMTU
	}
	inner := encap.InnerMTU(outer) // host-gw: nothing is put around a packet
	switch {
	case n.encrypts():
		inner -= wireguard.Overhead
	case n.framing != nil:
		inner = outer.Inner(n.framing)
	}
	name, least := "IPv4", encap.MinInnerMTU
	if n.six {
		name, least = "IPv6", encap.MinInnerMTU6
	}
	if inner < least {
		return 0, fmt.Errorf("MTU %d of %s leaves %d bytes inside %s: %s needs %d; raise the interface's MTU or the config's Backend.MTU",
			outer, n.iface.Name, inner, n.backend, name, least)
	}
	return inner, nil
}

// warnMTU is what an operator should know of the underlay's MTU beside the config's; empty: nothing.
func (n *node) warnMTU(underlay encap.OuterMTU) string {
	if n.fixedMTU <= underlay {
		return ""
	}
	return fmt.Sprintf("Backend.MTU %d is above the %d of %s: full packets go out as fragments; lower the one or raise the other",
		n.fixedMTU, underlay, n.iface.Name)
}

// mtuFollower applies a change of the underlay's MTU to everything that was set up by it.
type mtuFollower struct {
	d        *daemon
	node     *node
	families []family
	file     lease.SubnetFile // as it was written last
}

func (f *mtuFollower) run(ctx context.Context) error {
	return host.WatchMTU(ctx, f.node.iface.Name, encap.OuterMTU(f.node.iface.MTU), f.d.log, f.changed)
}

// changed keeps the old MTU where the new one is of no use. Pods that run keep the MTU that they were made
// with; what is too long for the new one is answered with ICMP.
func (f *mtuFollower) changed(outer encap.OuterMTU) {
	log := f.d.log.With("iface", f.node.iface.Name, "underlay_mtu", outer)
	for _, one := range f.families {
		one.carrier.pathMTUChanged()
	}
	if warning := f.node.warnMTU(outer); warning != "" {
		log.Warn("network config: " + warning)
	}
	families := f.families
	inner, err := families[len(families)-1].node.innerMTU(outer) // of IPv6, if there is one
	if err != nil {
		log.Error("the underlay's MTU has changed; the overlay's stays as it is", "mtu", f.file.MTU, "err", err)
		return
	}
	if inner == f.file.MTU {
		return
	}
	for _, one := range families {
		one.carrier.setMTU(inner)
		if one.carrier.name() == "" {
			continue
		}
		if err := one.state.SetMTU(inner); err != nil {
			log.Error("cannot give the TUN device the new MTU", "tun", one.carrier.name(), "mtu", inner, "err", err)
		}
	}
	f.d.view.set(func(v *viewState) { v.mtu = inner })
	f.file.MTU = inner
	if err := f.file.Write(f.d.opts.flags.subnetFile); err != nil {
		log.Error("new pods will get the old MTU", "mtu", inner, "err", err)
	}
	log.Info("the underlay's MTU has changed, and the overlay's with it", "mtu", inner)
}
