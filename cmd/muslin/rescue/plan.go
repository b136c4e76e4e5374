package rescue

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"muslin/lease"
	"muslin/tunnel/host"
)

// Plan is what a rescue is about to do, as far as a person wants to know it.
type Plan struct {
	Journal  *Journal
	Running  []Process // flannelds of this network that run
	Others   []Process // and of other networks
	Stop     bool      // they are to be stopped
	Source   string    // where config and peers are known from, as in "from etcd at …"
	Peers    []Peer
	TUN      string
	Port     uint16 // 0: none
	Found    string // about the lease: what there is
	Lease    string // and what becomes of it
	NoLease  bool   // etcd answers, and has none
	Adopted  []string
	Warnings []string
}

// plan says what is to be done.
func (s *Search) plan(j *Journal) *Plan {
	p := &Plan{Journal: j, Running: s.Running, Others: s.Others, Stop: s.StopFlannel && len(s.Running) > 0, Source: s.source, Peers: s.peers,
		TUN: s.TUN, Port: s.config.Backend.Port, Adopted: s.Adopted, Warnings: s.warnings}
	if s.config.Backend.Type == lease.BackendHostGW {
		p.Port = 0
	}
	switch {
	case j.Lease != nil:
		p.Found = fmt.Sprintf("lease %s of %s", j.Lease.Key, s.own.Attrs)
	default:
		p.Found = "by " + j.SubnetFile
	}
	mac := ""
	if len(j.Devices) > 0 {
		mac = ", with the same VtepMAC, so that no other node has to learn anything"
		if j.NewMAC {
			mac = ", with a VtepMAC of muslin's own, which the other nodes learn from it"
		}
	}
	switch {
	case s.storeErr != nil || s.PeersFile != "":
		p.Lease = "go by the lease that this node had"
		if s.storeErr != nil {
			p.Lease += ", until etcd answers"
			p.Warnings = append(p.Warnings, "etcd: "+strings.TrimPrefix(s.storeErr.Error(), "etcd "))
		}
	case s.own == nil:
		p.NoLease = true
		p.Lease = fmt.Sprintf("take a lease for %v again, since etcd has none of this node%s", subnets(j.Subnet, j.Subnet6), mac)
	default:
		p.Lease = "take the lease over and keep it" + mac
	}
	if j.SubnetStale {
		p.Warnings = append(p.Warnings, fmt.Sprintf("%s is of another time: it says %s, and the lease %s", j.SubnetFile, subnets(s.file.Subnet, s.file.Subnet6), subnets(j.Subnet, j.Subnet6)))
	}
	if s.NewMAC {
		p.Warnings = append(p.Warnings, "with --new-mac packets from other nodes are lost until they have the new one")
	}
	return p
}

// Print says what was found, and in numbered lines what will be done.
func (p *Plan) Print(w io.Writer) error {
	var b strings.Builder
	j := p.Journal
	fmt.Fprintf(&b, "flannel on this node: %s, subnet %s (%s)\n", j.Backend, subnets(j.Subnet, j.Subnet6), p.Found)
	for _, d := range j.Devices {
		fmt.Fprintf(&b, "  %s: %s\n", d.Name, d.describe())
	}
	if len(j.Direct) > 0 {
		fmt.Fprintf(&b, "  %s\n", plural(len(j.Direct), "direct route"))
	}
	fmt.Fprintf(&b, "  %s, %s\n", plural(len(p.Peers), "peer"), p.Source)
	for _, a := range p.Adopted {
		fmt.Fprintf(&b, "  taken from the flanneld that runs: %s\n", a)
	}
	wrong := p.Wrong()
	const shown = 5
	for _, line := range wrong[:min(shown, len(wrong))] {
		fmt.Fprintf(&b, "  wrong: %s\n", line)
	}
	if more := len(wrong) - shown; more > 0 {
		fmt.Fprintf(&b, "  wrong: and %d more like that\n", more)
	}
	if len(wrong) == 0 && len(j.Devices) > 0 {
		fmt.Fprintf(&b, "  nothing is wrong with what flannel has set up here: what is broken is below it, or elsewhere\n")
	}
	for _, r := range p.Running {
		switch {
		case p.Stop:
			fmt.Fprintf(&b, "  %s runs, and will be stopped\n", r)
		default:
			fmt.Fprintf(&b, "  %s runs, and is left alone: it goes on renewing this lease, as muslin does; what it does to its device and routes has no effect meanwhile\n", r)
		}
	}
	for _, r := range p.Others {
		fmt.Fprintf(&b, "  %s runs for another network, and is left alone\n", r)
	}
	for _, warning := range p.Warnings {
		fmt.Fprintf(&b, "  %s\n", warning)
	}
	fmt.Fprintf(&b, "muslin will\n")
	for i, step := range p.Steps() {
		fmt.Fprintf(&b, "  %d. %s\n", i+1, step)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Steps are what will be done, in order.
func (p *Plan) Steps() []string {
	j := p.Journal
	steps := []string{"write down what flannel has here, in " + j.Path()}
	if p.Stop {
		for _, r := range p.Running {
			how := "SIGTERM"
			switch {
			case r.Unit != "":
				how = "systemctl stop " + r.Unit
			case r.Container != "":
				how += "; what runs its container may start it again, see docs/rescue.md"
			}
			steps = append(steps, fmt.Sprintf("stop %s (%s)", r, how))
		}
	}
	for _, d := range j.Devices {
		switch {
		case d.Up:
			stays := "its MAC, address and forwarding entries stay"
			if d.MAC != d.Keep && !j.NewMAC {
				stays = "its address and forwarding entries stay"
			}
			steps = append(steps, fmt.Sprintf("set %s down, which frees UDP port %d and takes its routes away; %s", d.Name, d.Port, stays))
		case d.Found:
			steps = append(steps, fmt.Sprintf("leave %s down", d.Name))
		}
	}
	if n := len(j.Direct); n > 0 {
		steps = append(steps, fmt.Sprintf("put its own in place of flannel's %s", plural(n, "direct route")))
	}
	steps = append(steps, p.Lease)
	carry := fmt.Sprintf("keep a route of its own to each of the %s", plural(len(p.Peers), "peer"))
	if p.Port != 0 {
		carry = fmt.Sprintf("carry the packets of %s in userspace: device %s, UDP port %d, one route", subnets(j.Network, j.Network6), p.TUN, p.Port)
	}
	steps = append(steps, carry+"; pods, their bridge and flannel's firewall rules stay as they are")
	for _, d := range j.Devices {
		switch {
		case j.NewMAC:
		case !d.Found:
			steps = append(steps, fmt.Sprintf("make %s again, and leave it down: a flanneld that is started meanwhile finds it, with the MAC that the peers know", d.Name))
		case d.MAC != d.Keep:
			steps = append(steps, fmt.Sprintf("give %s the MAC that the peers know, lest a flanneld that is started meanwhile tells them another", d.Name))
		}
	}
	return append(steps, "stay, as `muslin run` does; `muslin rescue --undo` gives flannel its data path back whole, Ctrl-C as it was found")
}

// Wrong is what differs from what flannel sets up for these peers.
func (p *Plan) Wrong() []string {
	var all []string
	if p.NoLease {
		all = append(all, "etcd has no lease of this node: the others do not know that it is there")
	}
	for i := range p.Journal.Devices {
		all = append(all, p.wrongWith(&p.Journal.Devices[i])...)
	}
	for _, peer := range p.Peers {
		if peer.Direct && !slices.ContainsFunc(p.Journal.Direct, func(r Route) bool { return r.Prefix == peer.Subnet && r.Gateway == peer.PublicIP }) {
			all = append(all, fmt.Sprintf("there is no route to %s via %s", peer.Subnet, peer.PublicIP))
		}
	}
	return all
}

func (p *Plan) wrongWith(d *Device) []string {
	if !d.Found {
		return []string{fmt.Sprintf("the device %s is not there", d.Name)}
	}
	if !d.Up {
		return []string{fmt.Sprintf("the device %s is down", d.Name)}
	}
	var all []string
	if d.MAC != d.Keep {
		all = append(all, fmt.Sprintf("%s has the MAC %s, and the peers know this node by %s", d.Name, d.MAC, d.Keep))
	}
	if base := p.Journal.subnet(d.Six).Masked().Addr(); !slices.ContainsFunc(d.Addresses, func(a Address) bool { return a.Prefix.Addr() == base }) {
		all = append(all, fmt.Sprintf("%s lacks the address %s", d.Name, base))
	}
	for _, peer := range p.Peers {
		base, mac := peer.Subnet.Addr(), peer.MAC.String()
		switch {
		case peer.Direct || base.Is6() != d.Six:
		case !slices.ContainsFunc(d.Routes, func(r Route) bool { return r.Prefix == peer.Subnet && r.Gateway == base }):
			all = append(all, fmt.Sprintf("there is no route to %s on %s", peer.Subnet, d.Name))
		case !slices.Contains(d.Neighbours, Neighbour{base, mac}):
			all = append(all, fmt.Sprintf("%s does not know the MAC of %s", d.Name, base))
		case !slices.ContainsFunc(d.Forwarding, func(f Forward) bool { return f.MAC == mac && f.To == peer.PublicIP }):
			all = append(all, fmt.Sprintf("%s has no forwarding entry for %s (%s)", d.Name, mac, peer.PublicIP))
		}
	}
	return all
}

func (d *Device) describe() string {
	state := "down"
	switch {
	case !d.Found:
		return fmt.Sprintf("not there; it was VNI %d, UDP port %d, %s", d.VNI, d.Port, d.Keep)
	case d.Up:
		state = "up"
	}
	return fmt.Sprintf("%s, VNI %d, UDP port %d, %s, %s, %s, %s", state, d.VNI, d.Port, d.MAC,
		plural(len(d.Routes), "route"), plural(len(d.Neighbours), "neighbour"), plural(len(d.Forwarding), "forwarding entry"))
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	if stem, ok := strings.CutSuffix(what, "y"); ok {
		return fmt.Sprintf("%d %sies", n, stem)
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func subnets(four, six netip.Prefix) string {
	switch {
	case !six.IsValid():
		return four.String()
	case !four.IsValid():
		return six.String()
	}
	return four.String() + " and " + six.String()
}

// GivingBack says in numbered lines what `--undo` will do.
func (j *Journal) GivingBack(runs bool, peers Peers) []string {
	var steps []string
	for _, d := range j.Devices {
		if l, err := host.LinkNamed(d.Name); err == nil && l == nil {
			steps = append(steps, fmt.Sprintf("make %s again: VNI %d, UDP port %d, %s, MTU %d", d.Name, d.VNI, d.Port, d.Keep, d.MTU))
		}
	}
	if runs {
		steps = append(steps, "have the daemon end, and undo what it changed in this host")
	} else {
		steps = append(steps, "undo what the daemon, which is not there any more, changed in this host")
	}
	of := "for the peers that there were"
	if peers != nil {
		of = fmt.Sprintf("for the %s that there are now", plural(len(peers), "peer"))
	}
	for _, d := range j.Devices {
		steps = append(steps, fmt.Sprintf("set %s up, with its address, and routes, neighbours and forwarding entries %s", d.Name, of))
	}
	if len(j.Direct) > 0 {
		steps = append(steps, fmt.Sprintf("put back flannel's %s", plural(len(j.Direct), "direct route")))
	}
	if j.NewMAC && j.Lease != nil {
		steps = append(steps, "write flannel's VtepMAC into the lease again")
	}
	for _, p := range j.Stopped {
		if p.Unit != "" {
			steps = append(steps, "systemctl start "+p.Unit)
		}
	}
	return append(steps, "forget the rescue: remove "+j.Path())
}

// PortHolder is another vxlan device that is up and has the port, which taking flannel's down would not free; "": none.
func (j *Journal) PortHolder(port uint16) (string, error) {
	all, err := host.Dump("links", netlink.LinkList)
	for _, l := range all {
		v, ok := l.(*netlink.Vxlan)
		if ok && v.Port == int(port) && v.Flags&1 != 0 && !slices.Contains(j.Names(), v.Name) {
			return v.Name, nil
		}
	}
	return "", err
}
