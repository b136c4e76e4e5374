package doctor

import (
	"context"
	"fmt"
	"slices"

	"muslin/tunnel/kernel"
)

// What does not hold as much as is asked of it.
var loadChecks = []Check{
	{Name: "socket-buffer", Needs: NeedStatus, Run: checkSocketBuffer},
	{Name: "conntrack", Needs: NeedHost, Run: checkConntrack},
}

// A socket that has lost so many datagrams, and one in so many, is more than a burst at some time.
const (
	lostLeast = 100
	lostShare = 1000
)

// checkSocketBuffer is about datagrams that found the daemon's receive buffer full.
func checkSocketBuffer(_ context.Context, p *Patient) []Finding {
	lost := p.Status.Drops["socket-overflow"]
	received := lost
	for _, peer := range p.Status.Peers {
		received += peer.RxPackets
	}
	if lost < lostLeast || lost*lostShare < received {
		return nil
	}
	f := Finding{
		ID: "socket-buffer", Severity: Warning, Confidence: Likely,
		Summary:  "the daemon loses datagrams as it does not get enough CPU: its receive buffer runs over",
		Evidence: fmt.Sprintf("%d datagrams found the buffer full since the daemon started, of %d received and lost", lost, received),
		Fix:      fmt.Sprintf("top -H -p %d # and give the daemon more CPU (its cgroup's cpu.max, Nice= of the service), or --queues", p.Daemon.PID),
	}
	i := slices.IndexFunc(p.Status.Features, func(f kernel.Feature) bool { return f.Name == "receive-buffer" })
	if i >= 0 && !p.Status.Features[i].On {
		f.Confidence, f.Summary = Certain, "the receive buffer of the daemon's sockets is too small: datagrams are lost"
		f.Evidence += "; receive-buffer is " + p.Status.Features[i].Reason
		f.Fix = "sysctl -w net.core.rmem_max=16777216; systemctl restart muslin # and for good in /etc/sysctl.d; or give the service CAP_NET_ADMIN in the host's namespace"
	}
	return []Finding{f}
}

// checkConntrack is about a table of connections that is full, or nearly so: new ones are dropped then, whosever they are.
func checkConntrack(_ context.Context, p *Patient) []Finding {
	c := p.Host.Conntrack
	if c.Max == 0 || c.Count*100 < c.Max*80 {
		return nil
	}
	f := broken("conntrack-full", "the table of connections is full: the kernel drops packets of new ones",
		fmt.Sprintf("nf_conntrack_count %d, nf_conntrack_max %d; %d packets dropped for it so far (\"nf_conntrack: table full\" in dmesg)", c.Count, c.Max, c.Refused),
		fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d # and for good in /etc/sysctl.d; conntrack -L shows whose they are", max(2*c.Max, 262144)))
	f.Explains = acrossUnderlay
	if c.Count*100 < c.Max*95 {
		f.Severity, f.Summary = Warning, "the table of connections is nearly full: the kernel will drop packets of new ones"
	}
	return []Finding{f}
}
