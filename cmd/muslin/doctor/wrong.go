package doctor

import (
	"fmt"

	"muslin/lease"
)

// wrongDatagram is about datagrams of the peer that arrive and have something wrong with them.
func (e *evidence) wrongDatagram() *said {
	vxlan := e.own.node.Backend == lease.BackendVXLAN
	for _, ask := range []func(sighting) *said{
		func(s sighting) *said {
			if !s.BadChecksum {
				return nil
			}
			return e.verdict("checksum-corruption", Broken, Certain, fmt.Sprintf("datagrams of %s are damaged on the way", e.peer.outer),
				fmt.Sprintf("%d with a wrong UDP checksum arrived here", s.n),
				fmt.Sprintf("on %s: ethtool -K %s tx off; if that does not help, the NIC, cable or switch between the two", e.peer.outer, e.own.node.Iface))
		},
		func(s sighting) *said {
			if s.Src == e.peer.outer || !vxlan || !s.VXLAN {
				return nil
			}
			return e.verdict("public-ip-nat", Broken, Certain, fmt.Sprintf("%s is behind NAT: what it sends comes from %s, which is no peer's PublicIP, and is dropped", e.peer.outer, s.Src),
				fmt.Sprintf("%d datagrams of VNI %d in the name of %s (VTEP MAC %s) came from %s:%d", s.n, s.VNI, s.From, s.InnerSrc, s.Src, s.SrcPort),
				fmt.Sprintf("on that node: muslin run --public-ip %s, if UDP %d there is handed on to it, or an underlay without NAT; on a trusted underlay --source-check=off here", s.Src, e.port))
		},
		func(s sighting) *said {
			if !vxlan || !s.VXLAN || s.VNI == e.own.node.VNI.Uint32() {
				return nil
			}
			return e.verdict("vni-mismatch", Broken, Certain, fmt.Sprintf("%s sends with VNI %d, and this node is in VNI %s", e.peer.outer, s.VNI, e.own.node.VNI),
				fmt.Sprintf("%d datagrams of VNI %d to port %d; its lease says %s", s.n, s.VNI, s.DstPort, e.peer.node.VNI),
				restartWhoHasAnother("VNI"))
		},
		func(s sighting) *said {
			if s.DstPort == e.port || vxlan && !s.VXLAN || !vxlan && !e.peer.subnet.Contains(s.From) {
				return nil
			}
			return e.verdict("port-mismatch", Broken, Certain, fmt.Sprintf("%s sends to UDP port %d, and this node has port %d", e.peer.outer, s.DstPort, e.port),
				fmt.Sprintf("%d datagrams of the overlay to port %d", s.n, s.DstPort),
				restartWhoHasAnother("port"))
		},
		func(s sighting) *said {
			if !vxlan || !s.VXLAN || s.InnerSrc != e.own.mac {
				return nil
			}
			return e.verdict("vtep-mac-duplicate", Broken, Certain, fmt.Sprintf("%s has this node's VTEP MAC %s: each drops what the other sends", e.peer.outer, e.own.mac),
				fmt.Sprintf("%d datagrams from there with the inner source %s", s.n, s.InnerSrc), e.newMAC())
		},
		func(s sighting) *said {
			if !vxlan || !s.VXLAN || s.InnerSrc == e.peer.mac || !e.peer.subnet.Contains(s.From) {
				return nil
			}
			return e.verdict("vtep-mac-wrong", Broken, Certain, fmt.Sprintf("the lease of %s names VTEP MAC %s, and its VTEP has %s: it drops what is sent to it", e.peer.outer, e.peer.mac, s.InnerSrc),
				fmt.Sprintf("%d datagrams from there with the inner source %s", s.n, s.InnerSrc), restartOn(e.peer.outer, writesAgain))
		},
		func(s sighting) *said {
			if !vxlan || !s.VXLAN || s.InnerDst == e.own.mac || s.InnerDst == everybody {
				return nil
			}
			return e.verdict("lease-stale", Broken, Certain, fmt.Sprintf("%s works from an old lease of this node: it sends to VTEP MAC %s, and this node's is %s", e.peer.outer, s.InnerDst, e.own.mac),
				fmt.Sprintf("%d datagrams from there with the inner destination %s", s.n, s.InnerDst), restartOn(e.peer.outer, watchesAgain))
		},
	} {
		for _, s := range e.seen {
			if s.Out {
				continue
			}
			if f := ask(s); f != nil {
				return f
			}
		}
	}
	return nil
}

func (e *evidence) newMAC() string {
	return fmt.Sprintf("on one of the two (the one made from the other's image): delete the file vtep-mac in muslin's state directory, or flannel's device (ip link del flannel.%s), and restart", e.own.node.VNI)
}
