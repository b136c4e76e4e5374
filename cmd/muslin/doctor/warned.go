package doctor

import (
	"context"
	"fmt"
	"strings"

	"muslin/cmd/muslin/control"
	"muslin/lease"
	"muslin/tunnel/host"
)

var warnedChecks = []Check{
	{Name: "warnings", Needs: NeedStatus, Run: checkWarnings},
}

// aboutStore are findings that say why a lease is not renewed.
var aboutStore = []string{"etcd-*", "peers-file-*", "clock-skew", "lease-*", "subnet-overlap-lease", "public-ip-duplicate"}

// checkWarnings makes findings of what the daemon warns of, as far as somebody has to do something about it and no check
// looks for it by itself.
func checkWarnings(_ context.Context, p *Patient) []Finding {
	s := p.Status
	if s.State == control.StateFailed {
		return nil // which checkDaemon says
	}
	said := make(map[control.About][]string)
	for i, about := range s.About[:min(len(s.About), len(s.Warnings))] {
		said[about] = append(said[about], s.Warnings[i])
	}
	var found []Finding
	for _, w := range []struct {
		about control.About
		Finding
	}{
		{control.AboutStore, Finding{ID: "embedded-etcd", Severity: Broken, Confidence: Certain, Summary: "the etcd in this node's daemon has stopped: no lease is renewed or taken, here and on all nodes that ask it",
			Fix: "df -h " + p.Options.StateDir + " # make room if it is full, without which no daemon starts, and then: systemctl restart muslin", Explains: append([]string{"etcd-unreachable"}, aboutStore...)}},
		{control.AboutWorker, Finding{ID: "daemon-wedged", Severity: Broken, Confidence: Likely, Summary: "a worker of the daemon hangs: the packets of its queue are not carried",
			Fix: "systemctl restart muslin # after: muslin status --output json > /tmp/muslin-status.json, for a report of the fault", Explains: []string{"peer-*", "udp-*", "socket-buffer", "mtu-*"}}},
		{control.AboutLeftOut, Finding{ID: "route-refused", Severity: Broken, Confidence: Certain, Summary: "peers are not reached, since no direct route to them is possible, and the network has no other way",
			Fix: "mend the path, as the reason says, or set the network's backend to vxlan with DirectRouting (muslin config set)", Explains: []string{"peer-silent*"}, unless: []string{"route-wrong", "route-missing", "subnet-overlap-*"}}},
		{control.AboutEncapsulate, Finding{ID: "route-refused", Severity: Warning, Confidence: Certain, Summary: "packets to peers are encapsulated that might go directly: the kernel does not take the direct route",
			Fix: "ip route show; ip -6 route show # and remove the other program's route that the reason names", unless: []string{"route-wrong", "route-missing", "subnet-overlap-*"}}},
		{control.AboutSharedKey, Finding{ID: "wireguard-key-shared", Severity: Broken, Confidence: Certain, Summary: "hosts have one WireGuard key, as when one was made from the other's image: only one of them is reached",
			Fix: "delete the key's file (wireguard-key in the state directory) on all of them but one, and: systemctl restart muslin", Explains: []string{"peer-silent*", "lease-dead-node*", "public-ip-*"}}},
		{control.AboutNewConfig, Finding{ID: "config-changed", Severity: Warning, Confidence: Certain, Summary: "the network's config was changed since the daemon started, which goes on with the old one",
			Fix: "systemctl restart muslin # on all nodes; if the change was a mistake, put the old one back with muslin config set", unless: []string{"backend-mismatch", "vni-mismatch", "port-mismatch", "network-config"}}},
		{control.AboutLease, Finding{ID: "lease-not-renewed", Severity: Warning, Confidence: Likely, Summary: "the daemon could not renew this node's lease the last time that it tried; it goes on trying",
			Fix: p.etcdctl() + " endpoint status --cluster -w table", unless: append([]string{"embedded-etcd"}, aboutStore...)}},
		{control.AboutConflict, Finding{ID: "lease-conflict", Severity: Warning, Confidence: Likely, Summary: "somebody else has written this node's lease within the last five minutes, or has one for the same addresses",
			Fix: "give each host a --public-ip of its own; of a flanneld on this host beside muslin: systemctl stop flanneld", unless: append([]string{"vtep-mac-*", "public-ip-*"}, aboutStore...)}},
		{control.AboutConfig, Finding{ID: "config-doubtful", Severity: Warning, Confidence: Certain, Summary: "the network's config has something that is hardly meant, or not done",
			Fix: "muslin config get > net-conf.json # mend it there, then: muslin config set net-conf.json"}},
		{control.AboutRights, Finding{ID: "rights-kept", Severity: Warning, Confidence: Certain, Summary: "the daemon keeps rights that it does not need", Fix: "systemctl restart muslin # see SECURITY.md if it stays so"}},
		{control.AboutSessions, Finding{ID: "wireguard-sessions", Severity: Warning, Confidence: Likely, Summary: "the kernel's WireGuard device does not tell its sessions: it may be gone", Fix: "systemctl restart muslin"}},
	} {
		if sentences := said[w.about]; len(sentences) > 0 {
			w.Evidence = strings.Join(sentences, "; ")
			found = append(found, w.Finding)
		}
	}
	if n := s.Skipped[lease.SkipKeyOurs]; n > 0 {
		found = append(found, Finding{ID: "wireguard-key-shared", Severity: Broken, Confidence: Certain, Summary: "another host has this node's WireGuard key, as when it was made from this one's image: there is no traffic with it",
			Evidence: fmt.Sprintf("muslin status: %d leases are not used for it", n), Fix: "delete the key's file (wireguard-key in the state directory) on that host, and there: systemctl restart muslin"})
	}
	for _, f := range s.Features {
		if f.Name == host.Masquerade && !f.On && f.Reason != host.NotAskedFor {
			found = append(found, Finding{ID: "masquerade-missing", Severity: Warning, Confidence: Certain,
				Summary:  "what containers send out of the overlay keeps their addresses, to which no answer finds the way: this host takes no masquerade rule",
				Evidence: "muslin status: masquerade is off: " + f.Reason, Fix: "modprobe -a nft_chain_nat nft_masq; systemctl restart muslin # or iptable_nat and xt_MASQUERADE, with iptables installed"})
		}
	}
	return found
}
