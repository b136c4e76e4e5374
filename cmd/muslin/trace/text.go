package trace

import (
	"fmt"
	"io"
)

// Print writes the way for a person.
func (t *Trace) Print(w io.Writer) error {
	port := ""
	if t.Port != 0 {
		port = fmt.Sprintf(" port %d", t.Port)
	}
	if _, err := fmt.Fprintf(w, "%s to %s, %s%s\n", t.Src, t.Dst, t.Proto, port); err != nil {
		return err
	}
	node := ""
	for _, s := range t.Steps {
		if s.Node != node {
			node = s.Node
			title := "on this node"
			if node == there {
				title = "on the destination's node"
			}
			if _, err := fmt.Fprintf(w, "\n%s\n", title); err != nil {
				return err
			}
		}
		mark := map[string]string{Passed: "ok  ", Lost: "LOST", Unknown: "??  "}[s.State]
		if _, err := fmt.Fprintf(w, "  %s %-13s %s\n", mark, s.Stage, s.Text); err != nil {
			return err
		}
	}
	return t.conclude(w)
}

func (t *Trace) conclude(w io.Writer) (err error) {
	switch {
	case t.Stopped != "":
		_, err = fmt.Fprintf(w, "\nit stops at %q: %s\nwhat to do: %s\n", t.Stopped, t.Reason, t.Fix)
	case t.Answer != "":
		_, err = fmt.Fprintf(w, "\nthere and back: %s\n", t.Answer)
	default:
		_, err = fmt.Fprintf(w, "\nit arrived\n")
	}
	return err
}
