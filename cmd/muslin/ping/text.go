package ping

import (
	"fmt"
	"io"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/overlay"
)

// begin is what stands above the echoes.
func (r *Report) begin(w io.Writer, to overlay.Place) {
	fmt.Fprintf(w, "PING %s (%s) from %s: packets of %d bytes, with DF\n", r.Address, describe(to), r.From, r.Size)
	fmt.Fprintf(w, "  there: %s\n", r.There.describe())
	for _, note := range r.There.Notes {
		fmt.Fprintf(w, "         NOTE: %s\n", note)
	}
}

// describe says who holds an address.
func describe(to overlay.Place) string {
	switch {
	case to.Own:
		return "this node's own"
	case to.Peer == nil:
		return "nobody's"
	case to.Node:
		return fmt.Sprintf("the node %s at %s", to.Peer.Subnet, to.Peer.PublicIP)
	}
	return fmt.Sprintf("in %s at %s", to.Peer.Subnet, to.Peer.PublicIP)
}

func (w *Way) describe() string {
	if !w.Known {
		return "not known: " + w.Why
	}
	text := w.Way
	if w.NextHop != "" {
		switch w.Way {
		case "encapsulated", "encrypted":
			text += " in datagrams to " + w.NextHop
		default:
			text += " via " + w.NextHop
		}
	}
	if w.Device != "" {
		text += " by " + w.Device
	}
	if w.MTU != 0 {
		text += fmt.Sprintf(", MTU %d (%s)", w.MTU, w.MTURule)
	}
	if w.Up != nil && !*w.Up {
		text += ", DOWN"
	}
	if w.Reason != "" {
		text += ": " + w.Reason
	}
	return text
}

func (e *Echo) print(w io.Writer) {
	switch {
	case e.answered():
		fmt.Fprintf(w, "%d bytes from %s: seq %d, ttl %d, %s ms\n", e.Size, e.From, e.Seq, e.TTL, ms(e.US))
	case e.From != "" && e.MTU != 0:
		fmt.Fprintf(w, "seq %d: %s says: %s, at most %d bytes\n", e.Seq, e.From, e.Why, e.MTU)
	case e.From != "":
		fmt.Fprintf(w, "seq %d: %s says: %s\n", e.Seq, e.From, e.Why)
	default:
		fmt.Fprintf(w, "seq %d: %s\n", e.Seq, e.Why)
	}
}

// end is what stands below them.
func (r *Report) end(w io.Writer) {
	again := ""
	if r.Duplicates > 0 {
		again = fmt.Sprintf(", %d more than once or late", r.Duplicates)
	}
	fmt.Fprintf(w, "\n%s: %d sent, %d answered%s, %s lost\n", r.Address, r.Sent, r.Received, again, percent(r.Loss))
	if r.Received > 0 {
		fmt.Fprintf(w, "  round trip: min %s, avg %s, max %s, p99 %s ms, jitter %s ms\n", ms(r.Min), ms(r.Avg), ms(r.Max), ms(r.P99), ms(r.Jitter))
	}
	if s := r.Sweep; s != nil {
		fmt.Fprintf(w, "  size: %s\n", s.describe(&r.There))
	}
	fmt.Fprintf(w, "  back: %s\n", r.Back.describe())
}

func (s *Sweep) describe(believed *Way) string {
	text := ""
	switch {
	case s.Largest == 0 && s.Reached == 0:
		return "no packet was answered, of whatever size"
	case s.Largest == s.Tried:
		return fmt.Sprintf("up to %d bytes, all that this host's device takes; the daemon believes %d (%s)", s.Largest, believed.MTU, believed.MTURule)
	case s.By != "":
		text = fmt.Sprintf("up to %d bytes; of a larger one %s says: %s", s.Largest, s.By, s.Why)
	default:
		text = fmt.Sprintf("up to %d bytes; larger ones vanish", s.Largest)
	}
	text += fmt.Sprintf("; the daemon believes %d (%s)", believed.MTU, believed.MTURule)
	if s.Reached > s.Largest {
		return fmt.Sprintf("packets of %d bytes come there, and answers of up to %d back: larger ones are lost on the way back; the daemon here believes %d there (%s)", s.Reached, s.Largest, believed.MTU, believed.MTURule)
	}
	if believed.MTURule != control.MTUPath && s.By == "" {
		text += ", and finds the path's within seconds where there is traffic (--path-mtu-interval)"
	}
	return text
}
