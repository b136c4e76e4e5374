package doctor

import (
	"context"
	"strings"
)

var firewallChecks = []Check{
	{Name: "firewall", Needs: NeedLocal | NeedRoot, Run: checkFirewall},
}

// checkFirewall is about rules of others that drop what this host is to forward. Those that drop the datagrams of the
// underlay are Patient.Host.Obstacles with Input.
func checkFirewall(_ context.Context, p *Patient) []Finding {
	if p.Host.Firewall != nil {
		p.CannotTell("firewall", p.Host.Firewall)
		return nil
	}
	var found []Finding
	said := make(map[string]bool) // one finding for both directions
	for _, o := range p.Host.Obstacles {
		id := "forward-drop"
		if o.Firewalld {
			id = "firewalld-reject"
		}
		if o.Input || said[id+o.Fix] {
			continue
		}
		said[id+o.Fix] = true
		what, place, _ := strings.Cut(o.Summary, " (")
		place, does, _ := strings.Cut(place, ") ")
		f := broken(id, what+" "+does, place, o.Fix)
		f.Explains = []string{"peer-silent*"}
		if o.Firewalld {
			f.Explains = []string{"udp-filtered-here", "peer-silent*"}
		}
		found = append(found, f)
	}
	return found
}
