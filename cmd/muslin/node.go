package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"muslin/encap"
	"muslin/lease"
	"muslin/tunnel/host"
	"muslin/tunnel/wireguard"
)

// node is what the network's config means on this host, for one address family. Each family has a device, a VTEP and a
// place in the host of its own, as with flannel.
type node struct {
	six    bool  // it is IPv6's
	second *node // that of IPv6, beside this one of IPv4; nil: the network has IPv4 alone

	tun      string // the device's name; none with host-gw
	stateDir string // of what this family has changed in the host

	iface   host.Interface
	network netip.Prefix         // the whole overlay
	backend string               // lease.BackendVXLAN, …
	port    uint16               // 0 with host-gw
	vni     encap.VNI            // vxlan
	mac     encap.MAC            // vxlan
	framing encap.Framing        // nil with host-gw
	key     wireguard.PrivateKey // wireguard
	wg      lease.Backend        // wireguard: what the rest of the config says
	mtu     encap.InnerMTU       // at the start (see mtuFollower)

	fixedMTU encap.OuterMTU // the config's, 0: as the underlay

	directRouting bool // peers that are neighbours on the underlay are reached without encapsulation
}

func (d *daemon) newNode(src *source, iface host.Interface) (*node, error) {
	cfg := src.config
	if err := cfg.Supported(); err != nil {
		return nil, err
	}
	if d.opts.flags.clampMSS && cfg.Backend.Type == lease.BackendHostGW {
		return nil, errors.New("--clamp-mss: with host-gw the kernel alone carries packets, by routes that have the underlay's MTU: leave the flag out, or have the kernel do it (`nft add rule inet filter forward tcp flags syn tcp option maxseg size set rt mtu`)")
	}
	n := &node{tun: d.opts.flags.tunName, stateDir: d.opts.flags.stateDir, iface: iface, network: cfg.Network,
		backend: cfg.Backend.Type, port: cfg.Backend.Port, vni: cfg.Backend.VNI, fixedMTU: cfg.Backend.MTU,
		directRouting: cfg.Backend.DirectRouting || cfg.Backend.Type == lease.BackendHostGW}
	if cfg.EnableIPv4 && !iface.Addr.IsValid() {
		_, err := host.ChooseInterface(d.opts.iface) // why it was chosen by IPv6
		return nil, err
	}
	if !cfg.EnableIPv4 {
		six, err := d.newSix(src, n, host.IPv6)
		if err == nil {
			err = six.checkPeersFile(src)
		}
		return six, err
	}
	if err := n.checkOutside(); err != nil {
		return nil, err
	}
	if err := n.checkPeersFile(src); err != nil {
		return nil, err
	}
	if err := d.chooseFraming(src, n); err != nil {
		return nil, err
	}
	if warning := n.warnMTU(encap.OuterMTU(iface.MTU)); warning != "" {
		cfg.Warnings = append(cfg.Warnings, warning)
	}
	var err error
	n.mtu, err = n.innerMTU(encap.OuterMTU(iface.MTU))
	if err != nil {
		return nil, err
	}
	if cfg.EnableIPv6 {
		if n.second, err = d.newSix(src, n, host.BothFamilies); err != nil {
			return nil, err
		}
		if !n.oneTunnel() {
			n.second.tun, n.second.stateDir = d.opts.tunName6, filepath.Join(d.opts.flags.stateDir, stateIPv6)
		}
		n.mtu = n.second.mtu // see innerMTU
	}
	return n, nil
}

// stateIPv6 is the directory in the state directory for what is changed in the host for IPv6.
const stateIPv6 = "ipv6"

// newSix is what the config means for IPv6, beside a node of IPv4 or in its place.
func (d *daemon) newSix(src *source, first *node, families host.Families) (*node, error) {
	opts := d.opts.iface
	opts.Families = families
	iface, err := host.ChooseInterface(opts)
	if err != nil {
		return nil, err
	}
	if families == host.BothFamilies && iface.Name != first.iface.Name {
		return nil, fmt.Errorf("the underlay's interface was %s, and is %s with IPv6: name one with --iface", first.iface.Name, iface.Name)
	}
	n := *first
	n.six, n.second = true, nil
	n.iface = iface
	n.iface.Addr, n.iface.PublicIP = iface.Addr6, iface.PublicIPv6
	n.network = src.config.IPv6Network
	if err := n.checkOutside(); err != nil {
		return nil, err
	}
	if err := d.chooseFraming(src, &n); err != nil {
		return nil, err
	}
	if n.mtu, err = n.innerMTU(encap.OuterMTU(iface.MTU)); err != nil {
		return nil, err
	}
	return &n, nil
}

// chooseFraming is what the backend puts around a packet of the node's family, and what it takes to do so.
func (d *daemon) chooseFraming(src *source, n *node) (err error) {
	switch n.backend {
	case lease.BackendVXLAN:
		if n.six {
			n.mac, err = d.vtepMAC(src, true, func(a lease.Attrs) encap.MAC { return a.MAC6 })
			n.framing = encap.NewVXLAN6(n.vni, n.mac)
		} else {
			n.mac, err = d.vtepMAC(src, false, func(a lease.Attrs) encap.MAC { return a.MAC })
			n.framing = encap.NewVXLAN(n.vni, n.mac)
		}
		return err
	case lease.BackendUDP:
		n.framing = encap.UDP{Inner: n.family()}
	case lease.BackendWireGuard:
		return d.newEncrypted(src, n)
	case lease.BackendHostGW:
		if n.iface.PublicIP != n.iface.Addr {
			name, flag := "PublicIP", "--public-ip"
			if n.six {
				name, flag = "PublicIPv6", "--public-ipv6"
			}
			return fmt.Errorf("host-gw: the %s %v is not the address %v that %s has: peers' routes lead to the %[1]s itself, so it cannot be a NAT gateway's; leave %[5]s out, or give --iface %[2]v if that is another address of this host",
				name, n.iface.PublicIP, n.iface.Addr, n.iface.Name, flag)
		}
	}
	return nil
}

// family is that of the node's packets, inner and outer.
func (n *node) family() encap.Family {
	if n.six {
		return encap.IPv6
	}
	return encap.IPv4
}

// ours reports whether a lease with these attributes is this node's.
func (n *node) ours(a lease.Attrs) bool {
	if n.six {
		return !a.PublicIP.IsValid() && a.PublicIPv6 == n.iface.PublicIP
	}
	return a.PublicIP == n.iface.PublicIP
}

// publicIP is zero without IPv4.
func (n *node) publicIP() netip.Addr {
	if n.six {
		return netip.Addr{}
	}
	return n.iface.PublicIP
}

// all are the nodes of each family.
func (n *node) all() []*node {
	if n.second == nil {
		return []*node{n}
	}
	return []*node{n, n.second}
}

// publicIPv6 is zero without IPv6.
func (n *node) publicIPv6() netip.Addr {
	switch {
	case n.six:
		return n.iface.PublicIP
	case n.second == nil:
		return netip.Addr{}
	}
	return n.second.iface.PublicIP
}

// hostGateway reports whether the kernel alone carries packets: there is neither TUN device nor socket.
func (n *node) hostGateway() bool { return n.backend == lease.BackendHostGW }

// attrs is what we publish in our lease.
func (n *node) attrs() lease.Attrs {
	a := lease.Attrs{BackendType: n.backend}
	for _, n := range n.all() {
		if n.six {
			a.PublicIPv6, a.VNI6, a.MAC6 = n.iface.PublicIP, n.vni, n.mac
		} else {
			a.PublicIP, a.VNI, a.MAC = n.iface.PublicIP, n.vni, n.mac
		}
		switch {
		case !n.encrypts():
		case n.six:
			a.Key6, a.Port6 = n.key.Public(), n.port
		default:
			a.Key, a.Port = n.key.Public(), n.port
		}
	}
	return a
}

// checkOutside makes sure that the node's own addresses on the underlay lie outside the overlay.
func (n *node) checkOutside() error {
	address, network, flag := "address", "Network", "--public-ip"
	if n.six {
		address, network, flag = "IPv6 address", "IPv6Network", "--public-ipv6"
	}
	for _, addr := range []netip.Addr{n.iface.PublicIP, n.iface.Addr} {
		if n.network.Contains(addr) {
			return fmt.Errorf("%v, the %s of this node on the underlay (%s), lies inside the overlay's %s %v: its datagrams would be routed into the overlay again; give another %s or --iface, or choose another %s",
				addr, address, n.iface.Name, network, n.network, flag, network)
		}
	}
	return nil
}

// checkPeersFile makes sure that a peers file describes us as the network's config does.
func (n *node) checkPeersFile(src *source) error {
	if src.static == nil {
		return nil
	}
	own := src.static.Own()
	subnet, vni := own.Subnet, own.Attrs.VNI
	if n.six {
		subnet, vni = own.Subnet6, own.Attrs.VNI6
	}
	if !n.network.Contains(subnet.Addr()) {
		return fmt.Errorf("peers file: our own lease %s does not lie in the network %v: give the --network that the file was written under", own.Key, n.network)
	}
	if own.Attrs.BackendType == n.backend && vni == n.vni {
		return nil
	}
	return fmt.Errorf("peers file: our own lease %s is %s, but the network's config says %s, VNI %v: give the --backend that the file was written under",
		own.Key, own.Attrs, n.backend, n.vni)
}

// vtepMAC is this node's VtepMAC. It is kept in the state directory, so that peers need no update after
// a restart. With a peers file it is what the peers' files say, and in flannel's place mostly what flannel's device has.
func (d *daemon) vtepMAC(src *source, six bool, leased func(lease.Attrs) encap.MAC) (encap.MAC, error) {
	if src.static != nil {
		return leased(src.static.Own().Attrs), nil
	}
	name := "vtep-mac"
	if six {
		name += "-v6"
	}
	if d.rescue != nil {
		if mac, kept := d.rescue.MAC(six); kept {
			return mac, nil
		}
	}
	path := filepath.Join(d.opts.flags.stateDir, name)
	data, err := os.ReadFile(path)
	switch {
	case err == nil:
		mac, err := encap.ParseMAC(strings.TrimSpace(string(data)))
		if err == nil && mac.IsUnicast() {
			return mac, nil
		}
		d.log.Warn("the saved VtepMAC is not a unicast MAC; making a new one", "file", path)
	case !errors.Is(err, fs.ErrNotExist):
		return encap.MAC{}, fmt.Errorf("saved VtepMAC: %w", err)
	}
	var random [6]byte
	rand.Read(random[:]) // never fails (crypto/rand)
	mac := encap.LocalMAC(random)
	if err := os.WriteFile(path, []byte(mac.String()+"\n"), 0o644); err != nil {
		return encap.MAC{}, fmt.Errorf("save the VtepMAC: %w; give another place with --state-dir", err)
	}
	return mac, nil
}
