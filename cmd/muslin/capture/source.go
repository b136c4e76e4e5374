package capture

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

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

	devices []*device
	sockets []*packetSocket // of devices

	peers  *peerTable // as they are now: on devices it says which packets are the overlay's
	follow bool       // who they are, as that may change

	tun     string  // that the daemon carries for
	framing framing // of datagrams
}

// peerTable is who the peers are at this moment.
type peerTable struct{ now atomic.Pointer[fib.Table] }

// of is the PublicIP of who has a remote address; false: no peer has.
func (t *peerTable) of(remote netip.Addr) (publicIP netip.Addr, known bool) {
	if t == nil {
		return netip.Addr{}, false
	}
	if peer := t.now.Load().Lookup(remote); peer != nil {
		return peer.PublicIP, true
	}
	return netip.Addr{}, false
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
	for _, d := range p.devices {
		if !slices.Contains(all, d.name) {
			all = append(all, d.name)
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
		p.peers = new(peerTable)
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
	for _, d := range p.devices {
		s, err := openPacketSocket(d, c.keep())
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

// choosePeer finds the peer that --peer names among these, in both address families. listed says where a person finds them.
func (c *Command) choosePeer(peers []control.PeerStatus, listed string) error {
	if c.Peer == "" {
		return nil
	}
	addr, err := netip.ParseAddr(c.Peer)
	if prefix, perr := netip.ParsePrefix(c.Peer); perr == nil {
		addr, err = prefix.Addr(), nil
	}
	if err != nil {
		return fmt.Errorf("--peer %q: want a peer's PublicIP, its subnet, or an address in that: %s", c.Peer, listed)
	}
	addr = addr.Unmap()
	add := func(p *control.PeerStatus) {
		if subnet, err := netip.ParsePrefix(p.Subnet); err == nil && !slices.Contains(c.Wanted.Subnets, subnet) {
			c.Wanted.Subnets = append(c.Wanted.Subnets, subnet)
		}
		if host, err := netip.ParseAddr(p.PublicIP); err == nil && !slices.Contains(c.Wanted.Hosts, host) {
			c.Wanted.Hosts = append(c.Wanted.Hosts, host)
		}
	}
	for i := range peers {
		p := &peers[i]
		subnet, err := netip.ParsePrefix(p.Subnet)
		if err != nil || p.PublicIP != addr.String() && !subnet.Contains(addr) {
			continue
		}
		add(p)
		for k := range peers {
			if p.OtherSubnet != "" && peers[k].Subnet == p.OtherSubnet {
				add(&peers[k])
			}
		}
	}
	if c.Wanted.ofAnyPeer() {
		return fmt.Errorf("--peer %s: no peer has that PublicIP, that subnet, or that address in it: %s", c.Peer, listed)
	}
	return nil
}

// planDaemon is for a node with a daemon: of what it carries itself it tells, what the kernel carries is seen on devices.
func (c *Command) planDaemon(p *plan, s *control.Status) error {
	if err := c.choosePeer(s.Peers, "`muslin status --peers 0` lists them"); err != nil {
		return err
	}
	n := &s.Node
	points := c.Wanted.Points
	if c.Wanted.Flows {
		points = tunnel.PointInner | tunnel.PointDrop
	}
	p.framing = framingOf(n.Backend)
	inKernel := slices.ContainsFunc(s.Features, func(f kernel.Feature) bool { return f.Name == "kernel-wireguard" && f.On })
	encrypts := n.Backend == lease.BackendWireGuard
	p.peers = new(peerTable)
	overlay := networksOf(n.Network, n.Network6)

	switch {
	case n.Backend == lease.BackendHostGW:
		if err := onlyInner(points, c.Wanted.Flows, "with host-gw the kernel routes the packets, and there is nothing around them"); err != nil {
			return err
		}
		p.devices = append(p.devices, &device{name: n.Iface, point: tunnel.PointInner, peers: p.peers, only: overlay})
		p.learn(s)
		p.follow = true
		return nil
	case inKernel:
		if points&tunnel.PointDrop != 0 && !c.Wanted.Flows {
			return errors.New("--point drops: the kernel's WireGuard drops by itself and does not say what (`ip -s link show " + n.TUN + "` counts); `muslin run --wireguard userspace` can be asked")
		}
		if points&tunnel.PointInner != 0 {
			for _, name := range namesOf(n.TUN, n.TUN6) {
				p.devices = append(p.devices, &device{name: name, point: tunnel.PointInner, peers: p.peers})
			}
			p.follow = true
		}
	}
	if points&tunnel.PointOuter != 0 && encrypts {
		for _, port := range portsOf(n) {
			p.devices = append(p.devices, &device{name: n.Iface, point: tunnel.PointOuter, port: port})
		}
	}
	if inKernel {
		p.learn(s)
		return nil
	}
	if points&tunnel.PointInner != 0 && mayBeDirect(s.Peers) {
		// Each end decides by itself, so that a peer's packets may come directly while ours do not go so: a packet of the overlay's
		// there is a direct one.
		p.devices = append(p.devices, &device{name: n.Iface, point: tunnel.PointInner, peers: p.peers, only: overlay})
		p.follow = true
	}
	p.learn(s)
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

// learn takes down who the peers are by now.
func (p *plan) learn(s *control.Status) {
	var all []*fib.Peer
	for i := range s.Peers {
		peer := &s.Peers[i]
		subnet, err := netip.ParsePrefix(peer.Subnet)
		host, herr := netip.ParseAddr(peer.PublicIP)
		if err == nil && herr == nil {
			all = append(all, &fib.Peer{Subnet: subnet, PublicIP: host})
		}
	}
	p.peers.now.Store(fib.New(all))
}

// mayBeDirect reports whether the network's config asks for direct routes, as far as the peers show it.
func mayBeDirect(peers []control.PeerStatus) bool {
	return len(peers) == 0 || slices.ContainsFunc(peers, func(p control.PeerStatus) bool {
		return p.WayRule != string(way.RuleOff) && p.WayRule != string(way.RuleWireGuard)
	})
}

// networksOf are the overlay's, of one family or both.
func networksOf(four, six string) (all []netip.Prefix) {
	for _, text := range []string{four, six} {
		if n, err := netip.ParsePrefix(text); err == nil {
			all = append(all, n.Masked())
		}
	}
	return all
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
