package capture

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/rescue"
	"muslin/lease"
	"muslin/tunnel"
	"muslin/tunnel/fib"
	"muslin/tunnel/host"
)

// On a node where flannel carries, what its backends have set up says where packets are to be seen:
//
//	backend    inner                                   outer
//	vxlan      flannel.VNI, flannel-v6.VNI             what the device lies on, its port
//	udp        flannel0, the TUN device of flanneld    the interface with the address of flanneld's socket, its port
//	wireguard  flannel-wg, flannel-wg-v6               the interfaces that lead to its peers, its port
//	host-gw    the interfaces that routes of nodes     none
//	           lead to, as vxlan's with DirectRouting

// planFlannel is for such a node.
func (c *Command) planFlannel(p *plan) error {
	if c.Wanted.Points&tunnel.PointDrop != 0 && !c.Wanted.Flows {
		return errors.New("flannel does not say what it drops: --point inner or outer is what there is")
	}
	var peers []control.PeerStatus
	for _, find := range []func(*plan) ([]control.PeerStatus, error){c.flannelVXLAN, c.flannelUDP, c.flannelWireGuard, c.flannelRoutes} {
		more, err := find(p)
		if err != nil {
			return err
		}
		peers = append(peers, more...)
	}
	if len(p.devices) == 0 && len(peers) > 0 {
		return onlyInner(c.Wanted.Points, false, "with flannel's host-gw the kernel routes the packets, and there is nothing around them")
	}
	if len(p.devices) == 0 {
		return errors.New("there is nothing of flannel's to look at either: no device (flannel.VNI, flannel0, flannel-wg), and no route to another node in the network of its subnet file (--subnet-file)")
	}
	p.learn(&control.Status{Peers: peers})
	if c.Peer != "" && len(peers) == 0 {
		return errors.New("--peer: without a daemon, and with this backend of flannel's, nobody here knows the peers: say host ADDRESS instead")
	}
	return c.choosePeer(peers, "`ip route` and `bridge fdb` show those that flannel has told the kernel of")
}

// see adds a device, if its point is wanted, and it is not there yet.
func (c *Command) see(p *plan, d *device) {
	same := func(other *device) bool {
		return other.name == d.name && other.point == d.point && other.port == d.port
	}
	if (c.Wanted.Points&d.point != 0 || c.Wanted.Flows && d.point == tunnel.PointInner) && !slices.ContainsFunc(p.devices, same) {
		p.devices = append(p.devices, d)
	}
}

func (c *Command) flannelVXLAN(p *plan) (peers []control.PeerStatus, err error) {
	devices, err := rescue.FindDevices()
	if err != nil {
		return nil, err
	}
	for _, d := range devices {
		p.framing = vxlanFraming
		c.see(p, &device{name: d.Name, point: tunnel.PointInner, peers: p.peers})
		if d.Under != "" {
			c.see(p, &device{name: d.Under, point: tunnel.PointOuter, port: d.Port})
		}
		routed, _ := d.Peers(netip.Prefix{}, 0)
		for _, peer := range routed {
			peers = append(peers, control.PeerStatus{Subnet: peer.Subnet.String(), PublicIP: peer.PublicIP.String()})
		}
	}
	return peers, nil
}

func (c *Command) flannelUDP(p *plan) ([]control.PeerStatus, error) {
	links, err := host.Dump("links", netlink.LinkList)
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		name := l.Attrs().Name
		number, ok := strings.CutPrefix(name, "flannel")
		if _, isTUN := l.(*netlink.Tuntap); !isTUN || !ok {
			continue
		}
		if _, err := strconv.ParseUint(number, 10, 8); err != nil {
			continue // its name is flannel%d (pkg/backend/udp/udp_network_amd64.go, v0.26.7)
		}
		p.framing = udpFraming
		c.see(p, &device{name: name, point: tunnel.PointInner, peers: p.peers})
		at := socketOf(name)
		if under := interfaceOf(at.Addr()); under != "" {
			c.see(p, &device{name: under, point: tunnel.PointOuter, port: at.Port()})
		} else if c.Wanted.Points&tunnel.PointOuter != 0 {
			return nil, fmt.Errorf("the UDP socket of the flanneld that has %s is not to be seen from here: --point inner is what there is; or run this in the PID namespace of the host", name)
		}
	}
	return nil, nil
}

// udpDefaultPort is flannel's own for its udp backend.
const udpDefaultPort = 8285

// socketOf is where the process that has a TUN device receives datagrams: flannel's has one UDP socket, bound to the interface's
// own address. Where that process is not to be seen, it is a socket with flannel's port. Zero: there is none.
func socketOf(tun string) netip.AddrPort {
	sockets := make(map[string]netip.AddrPort)
	for _, u := range host.UDPSockets() {
		if at := u.Local.Addr(); at.Is4() && !at.IsUnspecified() {
			sockets["socket:["+u.Inode+"]"] = u.Local
		}
	}
	all, _ := filepath.Glob("/proc/[0-9]*/fdinfo/*") // whose only error is a bad pattern
	for _, path := range all {
		// By tun_chr_show_fdinfo in drivers/net/tun.c. A kernel that is too old for it leaves the port to say.
		if info, err := os.ReadFile(path); err != nil || !strings.Contains(string(info), "iff:\t"+tun+"\n") {
			continue
		}
		fds, _ := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(path)), "fd", "*"))
		for _, fd := range fds {
			to, _ := os.Readlink(fd)
			if at, ok := sockets[to]; ok {
				return at
			}
		}
	}
	for _, at := range sockets {
		if at.Port() == udpDefaultPort {
			return at
		}
	}
	return netip.AddrPort{}
}

// interfaceOf is the one that has an address; empty: none has.
func interfaceOf(a netip.Addr) string {
	all, err := net.Interfaces()
	if err != nil || !a.IsValid() {
		return ""
	}
	for _, i := range all {
		addrs, err := i.Addrs()
		if err != nil {
			continue // it is gone
		}
		for _, have := range addrs {
			if n, ok := have.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == a {
					return i.Name
				}
			}
		}
	}
	return ""
}

func (c *Command) flannelWireGuard(p *plan) (peers []control.PeerStatus, err error) {
	for _, name := range []string{"flannel-wg", "flannel-wg-v6"} { // pkg/backend/wireguard/wireguard.go, v0.26.7
		if _, err := net.InterfaceByName(name); err != nil {
			continue
		}
		p.framing = wireGuard
		c.see(p, &device{name: name, point: tunnel.PointInner, peers: p.peers})
		client, err := wgctrl.New()
		if err != nil {
			return nil, fmt.Errorf("ask for the peers of %s: %w", name, err)
		}
		d, err := client.Device(name)
		client.Close()
		if err != nil {
			return nil, fmt.Errorf("ask for the peers of %s: %w", name, err)
		}
		for i := range d.Peers {
			if d.Peers[i].Endpoint == nil {
				continue
			}
			at := d.Peers[i].Endpoint.AddrPort().Addr().Unmap()
			for _, allowed := range d.Peers[i].AllowedIPs {
				peers = append(peers, control.PeerStatus{Subnet: allowed.String(), PublicIP: at.String()})
			}
			if to, err := host.RouteTo(at); err == nil {
				c.see(p, &device{name: to.Device, point: tunnel.PointOuter, port: uint16(d.ListenPort)})
			}
		}
	}
	return peers, nil
}

// flannelRoutes are host-gw's and DirectRouting's, which lead straight to other nodes.
func (c *Command) flannelRoutes(p *plan) (peers []control.PeerStatus, err error) {
	var networks []netip.Prefix
	for _, path := range c.SubnetFiles {
		file, err := lease.ReadSubnetFile(path)
		if err != nil {
			return nil, err
		}
		for _, n := range []netip.Prefix{file.Network, file.Network6} {
			if n.IsValid() {
				networks = append(networks, n.Masked())
			}
		}
		if networks != nil {
			break
		}
	}
	direct := make(map[string][]*fib.Peer) // by the device
	for _, n := range networks {
		routes, err := rescue.FindDirect(n)
		if err != nil {
			return nil, err
		}
		for _, r := range routes {
			direct[r.Device] = append(direct[r.Device], &fib.Peer{Subnet: r.Prefix, PublicIP: r.Gateway})
			peers = append(peers, control.PeerStatus{Subnet: r.Prefix.String(), PublicIP: r.Gateway.String()})
		}
	}
	for name, some := range direct {
		table := new(peerTable)
		table.now.Store(fib.New(some))
		c.see(p, &device{name: name, point: tunnel.PointInner, peers: table, only: networks})
	}
	return peers, nil
}
