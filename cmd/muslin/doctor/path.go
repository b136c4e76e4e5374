package doctor

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"muslin/cmd/muslin/doctor/wire"
)

var pathChecks = []Check{
	{Name: "peers", Needs: NeedLocal | NeedPeers | NeedRoot, Essential: true, Run: checkPeers},
	{Name: "public-ips", Needs: NeedLocal | NeedHost | NeedRoot, Run: checkTwins},
}

// checkPeers asks peers over the overlay, as packets go, and looks into those that do not answer; and asks those that do
// whether they answer large packets as well.
func checkPeers(ctx context.Context, p *Patient) []Finding {
	asked, down := p.sample()
	var found []said
	var silent []half
	if p.carries() {
		answers, err := p.askOverlay(ctx, asked, down)
		if err != nil {
			p.CannotTell("peers", err)
			return nil
		}
		for i, h := range slices.Concat(asked, down) {
			switch {
			case answers[i].small.Got == 0 && answers[i].small.Damaged > 0:
				found = append(found, p.damagedInside(h, answers[i].small.Damaged))
			case answers[i].small.Got == 0:
				silent = append(silent, h)
			case answers[i].large.Got == 0 && answers[i].size > 0:
				found = append(found, p.blackHole(ctx, h, answers[i].size)...)
			default:
				found = append(found, p.smallerPath(h)...)
			}
		}
	} else {
		silent = asked
	}
	answering := len(asked) + len(down) - len(silent)
	if len(silent) > 0 || p.rumours() {
		more, err := p.lookInto(ctx, silent, answering)
		if err != nil {
			p.CannotTell("peers", err)
		}
		found = append(found, more...)
	}
	found = append(found, p.damaged(ctx)...)
	var out []Finding
	for _, f := range grouped(found) {
		f.explainByRules(ctx, p.Local.Port)
		out = append(out, f.Finding)
	}
	return out
}

// overlaid is what came of asking a peer over the overlay.
type overlaid struct {
	small, large wire.Answer
	size         int // of the large one; 0: none was sent
}

const (
	askTries = 3
	askEvery = 500 * time.Millisecond
)

// askOverlay sends each peer a small packet and one as large as the overlay takes; and those that are thought to be down a small
// one. The answers stand in that order.
func (p *Patient) askOverlay(ctx context.Context, peers, down []half) ([]overlaid, error) {
	out := make([]overlaid, len(peers)+len(down))
	var all sync.WaitGroup
	var failed [2]error
	for i, six := range []bool{false, true} {
		var questions []wire.Question
		var into []*wire.Answer
		for k := range out {
			var h half
			if k < len(peers) {
				h = peers[k]
			} else {
				h = down[k-len(peers)]
			}
			if h.six != six {
				continue
			}
			questions = append(questions, wire.Question{To: h.answerer()})
			into = append(into, &out[k].small)
			if size := p.largest(h); size > 0 && k < len(peers) {
				out[k].size = size
				questions = append(questions, wire.Question{To: h.answerer(), Size: size})
				into = append(into, &out[k].large)
			}
		}
		if questions == nil {
			continue
		}
		all.Go(func() {
			echoes, err := wire.OpenEchoes(six, netip.Addr{})
			if err != nil {
				failed[i] = err
				return
			}
			defer echoes.Close()
			for k, a := range echoes.Ask(ctx, askTries, askEvery, questions) {
				*into[k] = a
			}
		})
	}
	all.Wait()
	return out, errors.Join(failed[:]...)
}
