package doctor

import (
	"context"

	"muslin/tunnel/host"
)

var hostChecks = []Check{
	{Name: "forwarding", Run: checkForwarding},
}

// checkForwarding is about the switches without which the kernel hands nothing on between a container and the overlay.
func checkForwarding(_ context.Context, p *Patient) []Finding {
	four, six := p.Networks()
	var found []Finding
	for _, s := range []struct {
		carried    bool
		path, name string
	}{
		{four.IsValid(), "net/ipv4/ip_forward", "net.ipv4.ip_forward"},
		{six.IsValid(), "net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"},
	} {
		value, err := host.Sysctl(s.path)
		if !s.carried || err != nil || value != "0" {
			continue
		}
		f := broken("ip-forward", "this host does not forward: its containers reach no other node, and none reaches them",
			s.name+" = "+value, "sysctl -w "+s.name+"=1")
		f.Repair = &Repair{What: "set " + s.name + " to 1", Do: func(context.Context) error { return host.SetSysctl(s.path, "1") }}
		found = append(found, f)
	}
	return found
}
