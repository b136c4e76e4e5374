package capture

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"muslin/cmd/muslin/control"
	"muslin/lease"
	"muslin/tunnel"
	"muslin/tunnel/fib"
	"muslin/tunnel/kernel"
	"muslin/tunnel/way"
)

// plan is where packets are to be seen: of what the daemon carries by its stream, of what the kernel carries on devices.
type plan struct {
	ask    func(ctx context.Context) (*control.Stream, error) // nil: no daemon is to be asked
	stream *control.Stream                                    // once it was

	devices []device
	sockets []*packetSocket // of devices

	tun   string // that the daemon carries for
	vxlan bool   // what is in datagrams
}

func (p *plan) close() {
	if p.stream != nil {
		p.stream.Close()
	}
	for _, s := range p.sockets {
		_ = unix.Close(s.fd)
	}
}

// where is the devices, for a person.
func (p *plan) where() string {
	var all []string
	if p.ask != nil {
		all = append(all, p.tun)
	}
	for i := range p.devices {
		if name := p.devices[i].name; !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return strings.Join(all, ", ")
}

// plan decides where to look, and begins to.
func (c *Command) plan(ctx context.Context) (*plan, error) {
	p := new(plan)
	status, err := control.AskNetwork(ctx, c.Control, c.Net)
	switch {
	case errors.Is(err, control.ErrNobody):
		if ferr := c.planFlannel(p); ferr != nil {
			return nil, fmt.Errorf("%w; and %w", err, ferr)
		}
	case err != nil:
		return nil, err
	case status.State != control.StateRunning:
		return nil, fmt.Errorf("the daemon does not carry packets yet (%s): try again when `muslin status` says %s", status.State, control.StateRunning)
	default:
		if err := c.planDaemon(p, status); err != nil {
			return nil, err
		}
	}
	return p, c.begin(ctx, p)
}

// begin opens what was planned.
func (c *Command) begin(ctx context.Context, p *plan) (err error) {
	for i := range p.devices {
		s, err := openPacketSocket(&p.devices[i])
		if err != nil {
			p.close()
			return err
		}
		p.sockets = append(p.sockets, s)
	}
	if p.ask != nil {
		if p.stream, err = p.ask(ctx); err != nil {
			p.stream = nil
			p.close()
		}
	}
	return err
}

// choosePeer finds the peer that --peer names, in both address families.
func (c *Command) choosePeer(s *control.Status) error {
	if c.Peer == "" {
		return nil
	}
	addr, err := netip.ParseAddr(c.Peer)
	if prefix, perr := netip.ParsePrefix(c.Peer); perr == nil {
		addr, err = prefix.Addr(), nil
	}
	if err != nil {
		return fmt.Errorf("--peer %q: want a peer's PublicIP, its subnet, or an address in that: `muslin status` lists them", c.Peer)
	}
	add := func(p *control.PeerStatus) {
		if subnet, err := netip.ParsePrefix(p.Subnet); err == nil && !slices.Contains(c.Wanted.Subnets, subnet) {
			c.Wanted.Subnets = append(c.Wanted.Subnets, subnet)
		}
		if host, err := netip.ParseAddr(p.PublicIP); err == nil && !slices.Contains(c.Wanted.Hosts, host) {
			c.Wanted.Hosts = append(c.Wanted.Hosts, host)
		}
	}
	for i := range s.Peers {
		p := &s.Peers[i]
		subnet, err := netip.ParsePrefix(p.Subnet)
		if err != nil || p.PublicIP != addr.String() && !subnet.Contains(addr) {
			continue
		}
		add(p)
		for k := range s.Peers {
			if p.OtherSubnet != "" && s.Peers[k].Subnet == p.OtherSubnet {
				add(&s.Peers[k])
			}
		}
	}
	if c.Wanted.ofAnyPeer() {
		return fmt.Errorf("--peer %s: no peer has that PublicIP, that subnet, or that address in it: `muslin status --peers 0` lists them", c.Peer)
	}
	return nil
}

// planDaemon is for a node with a daemon: of what it carries itself it tells, what the kernel carries is seen on devices.
func (c *Command) planDaemon(p *plan, s *control.Status) error {
	if err := c.choosePeer(s); err != nil {
		return err
	}
	n := &s.Node
	points := c.Wanted.Points
	if c.Wanted.Flows {
		points = tunnel.PointInner | tunnel.PointDrop
	}
	p.vxlan = n.Backend == lease.BackendVXLAN
	inKernel := slices.ContainsFunc(s.Features, func(f kernel.Feature) bool { return f.Name == "kernel-wireguard" && f.On })
	encrypts := n.Backend == lease.BackendWireGuard
	peers := tableOf(s, func(*control.PeerStatus) bool { return true })

	switch {
	case n.Backend == lease.BackendHostGW:
		if err := onlyInner(points, c.Wanted.Flows, "with host-gw the kernel routes the packets, and there is nothing around them"); err != nil {
			return err
		}
		p.onDevice(n.Iface, tunnel.PointInner, 0, peers)
		return nil
	case inKernel:
		if points&tunnel.PointDrop != 0 && !c.Wanted.Flows {
			return errors.New("--point drops: the kernel's WireGuard drops by itself and does not say what (`ip -s link show " + n.TUN + "` counts); `muslin run --wireguard userspace` can be asked")
		}
		if points&tunnel.PointInner != 0 {
			for _, name := range namesOf(n.TUN, n.TUN6) {
				p.onDevice(name, tunnel.PointInner, 0, nil)
			}
		}
	}
	if points&tunnel.PointOuter != 0 && encrypts {
		for _, port := range portsOf(n) {
			p.onDevice(n.Iface, tunnel.PointOuter, port, nil)
		}
	}
	if inKernel {
		return nil
	}
	isDirect := func(p *control.PeerStatus) bool { return p.Way == string(way.Direct) }
	if points&tunnel.PointInner != 0 && slices.ContainsFunc(s.Peers, func(p control.PeerStatus) bool { return isDirect(&p) }) {
		p.onDevice(n.Iface, tunnel.PointInner, 0, tableOf(s, isDirect))
	}
	wanted := c.Wanted
	if encrypts {
		wanted.Points &^= tunnel.PointOuter
	}
	if wanted.Points == 0 {
		return nil
	}
	p.tun = strings.Join(namesOf(n.TUN, n.TUN6), ", ")
	p.ask = func(ctx context.Context) (*control.Stream, error) {
		q := wanted.Query()
		if c.Net != "" {
			q.Set("net", c.Net)
		}
		return control.Open(ctx, c.Control, Path+"?"+q.Encode())
	}
	return nil
}

// onDevice adds one of the kernel's devices. peers says whose the packets are; nil: all are the overlay's.
func (p *plan) onDevice(name string, at tunnel.Points, port uint16, peers *fib.Table) {
	d := device{name: name, point: at, port: port}
	if peers != nil {
		d.peers = func(remote netip.Addr) (netip.Addr, bool) {
			if peer := peers.Lookup(remote); peer != nil {
				return peer.PublicIP, true
			}
			return netip.Addr{}, false
		}
	}
	p.devices = append(p.devices, d)
}

func onlyInner(points tunnel.Points, flows bool, why string) error {
	if points == tunnel.PointInner || flows {
		return nil
	}
	return fmt.Errorf("%s: --point inner is what there is", why)
}

// namesOf are the devices that there are, one of a network of both families perhaps twice.
func namesOf(four, six string) (all []string) {
	for _, name := range []string{four, six} {
		if name != "" && !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}

func portsOf(n *control.NodeStatus) (all []uint16) {
	for _, port := range []uint16{n.Port, n.Port6} {
		if port != 0 && !slices.Contains(all, port) {
			all = append(all, port)
		}
	}
	return all
}

// tableOf is the peers of a status that are such.
func tableOf(s *control.Status, such func(*control.PeerStatus) bool) *fib.Table {
	var all []*fib.Peer
	for i := range s.Peers {
		p := &s.Peers[i]
		subnet, err := netip.ParsePrefix(p.Subnet)
		host, herr := netip.ParseAddr(p.PublicIP)
		if err == nil && herr == nil && such(p) {
			all = append(all, &fib.Peer{Subnet: subnet, PublicIP: host})
		}
	}
	return fib.New(all)
}

// planFlannel is for a node where flannel carries: its kernel devices are flannel.VNI, and flannel-v6.VNI.
func (c *Command) planFlannel(p *plan) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list the devices: %w", err)
	}
	if c.Peer != "" {
		return errors.New("without a daemon nobody knows the peers: say host ADDRESS instead of --peer")
	}
	if c.Wanted.Points&tunnel.PointDrop != 0 && !c.Wanted.Flows {
		return errors.New("flannel's kernel device does not say what it drops: --point inner or outer is what there is")
	}
	byIndex := make(map[int]string)
	for _, l := range links {
		byIndex[l.Attrs().Index] = l.Attrs().Name
	}
	for _, l := range links {
		v, ok := l.(*netlink.Vxlan)
		if !ok || !strings.HasPrefix(v.Name, "flannel") {
			continue
		}
		p.vxlan = true
		if c.Wanted.Points&tunnel.PointInner != 0 {
			p.onDevice(v.Name, tunnel.PointInner, 0, nil)
		}
		if underlay := byIndex[v.VtepDevIndex]; c.Wanted.Points&tunnel.PointOuter != 0 && underlay != "" {
			p.onDevice(underlay, tunnel.PointOuter, uint16(v.Port), nil)
		}
	}
	if len(p.devices) == 0 {
		return errors.New("there is no device of flannel's (flannel.VNI) to look at either")
	}
	return nil
}
