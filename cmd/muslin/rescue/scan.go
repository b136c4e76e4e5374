package rescue

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"muslin/tunnel/host"
)

// Device is flannel's vxlan device of one address family, and what hangs on it.
type Device struct {
	Name  string `json:"name"`
	Six   bool   `json:"six,omitempty"`
	Found bool   `json:"found"`          // it was there
	Up    bool   `json:"up"`             // and up
	Made  bool   `json:"made,omitempty"` // it was not there, and StandIn has made it

	// What it is made of: of a device that was not there, what flannel makes it of.
	VNI      uint32     `json:"vni"`
	Port     uint16     `json:"port"`
	MAC      string     `json:"mac"` // as found
	MTU      int        `json:"mtu"`
	Under    string     `json:"under"` // the interface below
	Local    netip.Addr `json:"local"`
	Learning bool       `json:"learning,omitempty"`
	GBP      bool       `json:"gbp,omitempty"`
	Checksum bool       `json:"udp_checksum,omitempty"`
	QueueLen int        `json:"queue_length"`

	Keep string `json:"keep"` // the VtepMAC that the peers have of this node

	Addresses  []Address   `json:"addresses,omitempty"`
	Routes     []Route     `json:"routes,omitempty"`
	Neighbours []Neighbour `json:"neighbours,omitempty"` // the permanent ones
	Forwarding []Forward   `json:"forwarding,omitempty"` // likewise
}

// Address is one of a device.
type Address struct {
	Prefix netip.Prefix `json:"prefix"`
	Flags  int          `json:"flags,omitempty"` // IFA_F_NODAD and its like
}

// Route is one that leads to a device.
type Route struct {
	Prefix   netip.Prefix `json:"prefix"`
	Gateway  netip.Addr   `json:"gateway,omitzero"`
	Device   string       `json:"device"`
	OnLink   bool         `json:"onlink,omitempty"`
	Source   netip.Addr   `json:"source,omitzero"`
	Protocol int          `json:"protocol"`
	Scope    int          `json:"scope"`
	Metric   int          `json:"metric,omitempty"`
	Table    int          `json:"table"`
	MTU      int          `json:"mtu,omitempty"`
}

// Neighbour says which MAC an overlay address has.
type Neighbour struct {
	Address netip.Addr `json:"address"`
	MAC     string     `json:"mac"`
}

// Forward says which host has a MAC.
type Forward struct {
	MAC   string     `json:"mac"`
	To    netip.Addr `json:"to,omitzero"`
	State int        `json:"state"`
}

// DeviceName is what flannel calls its device.
func DeviceName(vni uint32, six bool) string {
	if six {
		return fmt.Sprintf("flannel-v6.%d", vni)
	}
	return fmt.Sprintf("flannel.%d", vni)
}

func familyOf(six bool) int {
	if six {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// FindDevices finds flannel's vxlan devices, whatever their VNI.
func FindDevices() ([]Device, error) {
	all, err := host.Dump("links", netlink.LinkList)
	if err != nil {
		return nil, err
	}
	var found []Device
	for _, l := range all {
		v, ok := l.(*netlink.Vxlan)
		if !ok {
			continue
		}
		for _, six := range []bool{false, true} {
			if v.Name != DeviceName(uint32(v.VxlanId), six) {
				continue
			}
			d := Device{Name: v.Name, Six: six}
			if err := d.read(v, all); err != nil {
				return nil, err
			}
			found = append(found, d)
		}
	}
	return found, nil
}

// read takes down what the device is and what hangs on it.
func (d *Device) read(v *netlink.Vxlan, all []netlink.Link) error {
	d.Found, d.Up = true, v.Flags&net.FlagUp != 0
	d.VNI, d.Port, d.MAC, d.MTU = uint32(v.VxlanId), uint16(v.Port), v.HardwareAddr.String(), v.MTU
	d.Keep, d.Learning, d.GBP, d.Checksum, d.QueueLen = d.MAC, v.Learning, v.GBP, v.UDPCSum, v.TxQLen
	if local, ok := netip.AddrFromSlice(v.SrcAddr); ok {
		d.Local = local.Unmap()
	}
	if i := slices.IndexFunc(all, func(l netlink.Link) bool { return l.Attrs().Index == v.VtepDevIndex }); i >= 0 {
		d.Under = all[i].Attrs().Name
	}
	var err error
	if d.Addresses, err = addressesOf(v, d.Six); err != nil {
		return err
	}
	for _, six := range []bool{false, true} {
		routes, err := routesTo(v, six)
		if err != nil {
			return err
		}
		d.Routes = append(d.Routes, routes...)
		near, err := neighboursOf(v, six)
		if err != nil {
			return err
		}
		d.Neighbours = append(d.Neighbours, near...)
	}
	d.Forwarding, err = forwardingOf(v)
	return err
}

// addressesOf leaves out those that the kernel makes by itself.
func addressesOf(l netlink.Link, six bool) ([]Address, error) {
	all, err := host.Dump("addresses", func() ([]netlink.Addr, error) { return netlink.AddrList(l, familyOf(six)) })
	var out []Address
	for _, a := range all {
		if p := prefixOf(a.IPNet); !p.Addr().IsLinkLocalUnicast() {
			out = append(out, Address{p, a.Flags & (unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE)})
		}
	}
	return out, err
}

// routesTo are those of any table that lead to the device, but for the kernel's own.
func routesTo(l netlink.Link, six bool) ([]Route, error) {
	all, err := host.Dump("routes", func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(familyOf(six), &netlink.Route{LinkIndex: l.Attrs().Index}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	})
	var out []Route
	for _, r := range all {
		if r.Family == familyOf(six) && r.Protocol != unix.RTPROT_KERNEL && r.Table != unix.RT_TABLE_LOCAL && r.Type == unix.RTN_UNICAST {
			out = append(out, routeOf(r, l.Attrs().Name))
		}
	}
	return out, err
}

func routeOf(r netlink.Route, device string) Route {
	return Route{Prefix: prefixOf(r.Dst), Gateway: addrOf(r.Gw), Device: device, OnLink: r.Flags&unix.RTNH_F_ONLINK != 0, Source: addrOf(r.Src),
		Protocol: int(r.Protocol), Scope: int(r.Scope), Metric: r.Priority, Table: r.Table, MTU: r.MTU}
}

// netlink is the route as the library has it.
func (r Route) netlink(index int) *netlink.Route {
	out := &netlink.Route{LinkIndex: index, Dst: ipNet(r.Prefix), Protocol: netlink.RouteProtocol(r.Protocol), Scope: netlink.Scope(r.Scope),
		Priority: r.Metric, Table: r.Table, MTU: r.MTU}
	if r.Gateway.IsValid() {
		out.Gw = r.Gateway.AsSlice()
	}
	if r.Source.IsValid() {
		out.Src = r.Source.AsSlice()
	}
	if r.OnLink {
		out.SetFlag(netlink.FLAG_ONLINK)
	}
	return out
}

func neighboursOf(l netlink.Link, six bool) ([]Neighbour, error) {
	all, err := host.Dump("neighbours", func() ([]netlink.Neigh, error) { return netlink.NeighList(l.Attrs().Index, familyOf(six)) })
	var out []Neighbour
	for _, n := range all {
		if n.State&netlink.NUD_PERMANENT != 0 && len(n.HardwareAddr) == 6 {
			out = append(out, Neighbour{addrOf(n.IP), n.HardwareAddr.String()})
		}
	}
	return out, err
}

func forwardingOf(l netlink.Link) ([]Forward, error) {
	all, err := host.Dump("forwarding entries", func() ([]netlink.Neigh, error) { return netlink.NeighList(l.Attrs().Index, unix.AF_BRIDGE) })
	var out []Forward
	for _, n := range all {
		if n.State&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) != 0 && len(n.HardwareAddr) == 6 {
			out = append(out, Forward{n.HardwareAddr.String(), addrOf(n.IP), n.State})
		}
	}
	return out, err
}

// FindDirect finds the routes inside a network that lead straight to other nodes: host-gw's, and DirectRouting's.
func FindDirect(network netip.Prefix) ([]Route, error) {
	if !network.IsValid() {
		return nil, nil
	}
	six := network.Addr().Is6()
	links, err := host.Dump("links", netlink.LinkList)
	if err != nil {
		return nil, err
	}
	all, err := host.Dump("routes", func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(familyOf(six), &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	var out []Route
	for _, r := range all {
		i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Index == r.LinkIndex })
		to := prefixOf(r.Dst)
		if r.Family != familyOf(six) || i < 0 || r.Gw == nil || r.Protocol == host.RouteProtocol || r.Type != unix.RTN_UNICAST ||
			to.Bits() <= network.Bits() || !network.Contains(to.Addr()) || network.Contains(addrOf(r.Gw)) {
			continue
		}
		out = append(out, routeOf(r, links[i].Attrs().Name))
	}
	return out, err
}

// prefixOf turns the library's idea of a destination into ours: nil is the default route.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addrOf(n.IP), ones)
}

// addrOf is zero for nil.
func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
