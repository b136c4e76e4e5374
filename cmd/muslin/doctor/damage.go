package doctor

import (
	"context"
	"fmt"
)

// damagedInside is about a peer whose answers come, and are not what was sent: whoever damages them makes the outer checksum
// fit, or there is none.
func (p *Patient) damagedInside(h half, n int) said {
	return said{Finding: Finding{ID: "checksum-corruption", Severity: Broken, Confidence: Certain, Node: h.node.Name(),
		Summary:  fmt.Sprintf("packets between here and %s are damaged inside the overlay's datagrams", h.outer),
		Evidence: fmt.Sprintf("%d answers to echo requests came with a wrong ICMP checksum", n),
		Fix:      fmt.Sprintf("on both hosts: ethtool -K %s tx off rx off; with a kernel's vxlan device also ethtool -K DEVICE tx-checksum-ip-generic off; if that does not help, the NIC, cable or switch between the two", p.Local.Iface)}}
}

// damaged is about datagrams that the daemon's kernel dropped for their checksum, so many that it is no single one, and that still
// come.
func (p *Patient) damaged(ctx context.Context) []said {
	if !p.Running() {
		return nil
	}
	var rx uint64
	for _, peer := range p.Status.Peers {
		rx += peer.RxPackets
	}
	n := p.Status.Drops["outer-checksum"]
	if n < 20 || n*1000 < rx {
		return nil
	}
	if now := p.count(ctx); !now.known || now.drops["outer-checksum"] == n {
		return nil // it was so
	}
	return []said{{Finding: Finding{ID: "checksum-corruption", Severity: Warning, Confidence: Likely,
		Summary:  "datagrams are damaged on their way to this node",
		Evidence: fmt.Sprintf("%d with a wrong UDP checksum were dropped, beside %d packets taken, since the daemon's start", n, rx),
		Fix:      fmt.Sprintf("ethtool -S %s | grep -i err # here and on the peers; on a peer whose NIC is at fault: ethtool -K eth0 tx off; else the cable or switch", p.Local.Iface)}}}
}
