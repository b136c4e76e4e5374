package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"muslin/cmd/muslin/doctor/wire"
	"muslin/encap"
	"muslin/lease"
)

// largest is the size of the largest packet to a peer, in bytes; 0: it is not known.
func (p *Patient) largest(h half) int {
	mtu := p.Local.MTU
	if d := p.device(h.six); d != nil {
		mtu = d.MTU
	}
	if h.status != nil && h.status.PathMTU > 0 {
		mtu = h.status.PathMTU
	}
	return mtu
}

// blackHole is about a peer that answers small packets and no large ones.
func (p *Patient) blackHole(ctx context.Context, h half, size int) []said {
	passes, fails, err := p.search(ctx, h, size)
	if err != nil || passes == 0 || passes >= size {
		return nil // it was a loss of another kind
	}
	outer := ""
	if over := p.overhead(h); over > 0 && !h.direct() {
		outer = fmt.Sprintf(", or Backend.MTU to %d with muslin config set", passes+over)
	}
	fix := fmt.Sprintf("mend the hop that takes less, or let its ICMP errors through; between two muslins it is found within minutes, where --path-mtu-interval is not 0%s", outer)
	return []said{{Finding: Finding{ID: "mtu-black-hole", Severity: Broken, Confidence: Certain, Node: h.node.Name(),
		Summary:  fmt.Sprintf("large packets between here and %s vanish: a hop takes less than the interfaces say, and says nothing", h.outer),
		Evidence: fmt.Sprintf("of the overlay's packets those of up to %d bytes are answered, those of %d and more are not; its MTU is %d", passes, fails, size),
		Fix:      fix}}}
}

// overhead is what the overlay's framing adds; 0: it is not known.
func (p *Patient) overhead(h half) int {
	switch {
	case p.Local.Backend == lease.BackendVXLAN && h.six:
		return encap.Overhead(encap.NewVXLAN6(p.Local.VNI, h.mac))
	case p.Local.Backend == lease.BackendVXLAN:
		return encap.Overhead(encap.NewVXLAN(p.Local.VNI, h.mac))
	}
	return 0
}

// search finds the largest packet that a peer answers, to a few bytes, and the smallest that it does not.
func (p *Patient) search(ctx context.Context, h half, size int) (passes, fails int, err error) {
	echoes, err := wire.OpenEchoes(h.six, netip.Addr{})
	if err != nil {
		return 0, 0, err
	}
	defer echoes.Close()
	low, high := wire.SmallEcho(h.answerer()), size
	for range 2 {
		const steps = 24
		var questions []wire.Question
		for i := range steps {
			questions = append(questions, wire.Question{To: h.answerer(), Size: low + (high-low)*(i+1)/steps})
		}
		answers := echoes.Ask(ctx, askTries, askEvery/2, questions)
		passes, fails = low, high
		for i, a := range answers {
			if a.Got > 0 {
				passes = questions[i].Size
			}
		}
		for i := range slices.Backward(answers) {
			if n := questions[i].Size; answers[i].Got == 0 && n > passes {
				fails = n
			}
		}
		low, high = passes, fails
	}
	return passes, fails, nil
}

// smallerPath is about a path whose black hole the daemon has found: packets pass, and those of flannel's nodes into it do
// not.
func (p *Patient) smallerPath(h half) []said {
	s := h.status
	if s == nil || s.PathMTUState != "smaller" || s.PathMTUBy != "probe" {
		return nil
	}
	return []said{{Finding: Finding{ID: "mtu-black-hole", Severity: Warning, Confidence: Certain, Node: h.node.Name(),
		Summary:  fmt.Sprintf("a hop between here and %s takes less than the interfaces say, and says nothing; muslin keeps to what it takes, flannel's nodes do not", h.outer),
		Evidence: fmt.Sprintf("probes of more than %d bytes vanish, of an overlay's MTU of %d", s.PathMTU, p.Local.MTU),
		Fix:      fmt.Sprintf("mend that hop, or let its ICMP errors through; or set Backend.MTU to %d with muslin config set", s.PathMTU+p.overhead(h))}}}
}
