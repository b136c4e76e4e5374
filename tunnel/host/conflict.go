//go:build linux

package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Plan is what the daemon means to use, for CheckConflicts to hold against the host.
type Plan struct {
	TUN       string       // name of the TUN device to be made
	Found     bool         // it is there and ours (Leftover), and so not checked
	Network   netip.Prefix // the overlay; the zero value is not checked
	Previous  netip.Prefix // this node's subnet of an earlier run; pod bridges may be in it
	Network6  netip.Prefix // the same of IPv6
	Previous6 netip.Prefix
	Listen    netip.AddrPort // the outer UDP socket; the zero value is not checked
	Shared    bool           // it may be this process's own already, and is not tried

	// Another program's that gives way to us: vxlan devices that are set down, now or before we bind the port, and stay
	// there; and routes that ours take the place of.
	Taken    []string
	Replaced []netip.Prefix

	VXLAN bool   // the backend is vxlan, and VNI counts
	VNI   uint32 // 24 bits
}

// VXLANDeviceError: a vxlan device of the kernel has our VNI and port, or owns our port.
type VXLANDeviceError struct {
	Device string
	Up     bool
	VNI    uint32
	Port   uint16
	OurVNI uint32
	ForAll bool // the device receives for every VNI ("external")
}

func (e *VXLANDeviceError) Error() string {
	state := "down"
	if e.Up {
		state = "up"
	}
	which := fmt.Sprintf("VNI %d", e.VNI)
	if e.ForAll {
		which = "every VNI"
	}
	if e.ForAll || e.VNI != e.OurVNI {
		return fmt.Sprintf("the kernel's vxlan device %s (%s, %s) owns UDP port %d, so no other VNI can be received there: "+
			"stop what made it and run `ip link del %s`, or set another Backend.Port in the network config (for all nodes)",
			e.Device, which, state, e.Port, e.Device)
	}
	return fmt.Sprintf("the kernel's vxlan device %s (%s, UDP port %d, %s) does this overlay's work already: "+
		"take over from flannel with `muslin rescue` and the same flags, or stop what made it and run `ip link del %s`, or set another Backend.VNI and Backend.Port in the network config (for all nodes)",
		e.Device, which, e.Port, state, e.Device)
}

// PortTakenError: the outer UDP port cannot be bound. Owner is the zero value when nobody could be found.
type PortTakenError struct {
	Addr  netip.AddrPort
	Owner Owner
}

func (e *PortTakenError) Error() string {
	advice := "stop it"
	switch {
	case e.Owner.Device != "":
		advice = "run `ip link del " + e.Owner.Device + "`"
	case e.Owner.PID == 0:
		advice = "find and stop it (`ss -lunp`, and containers with the host's network)"
	}
	return fmt.Sprintf("UDP port %s is taken by %s: %s, or set another Backend.Port in the network config (for all nodes)",
		e.Addr, e.Owner, advice)
}

// Unwrap is the error of the bind.
func (e *PortTakenError) Unwrap() error { return unix.EADDRINUSE }

// TUNTakenError: a device of the TUN's name exists.
type TUNTakenError struct {
	Name    string
	Type    string // "tun", "bridge", ...
	PID     int    // the process that holds it; 0 when none is found
	Command string
}

func (e *TUNTakenError) Error() string {
	switch {
	case e.Type != "tun":
		return fmt.Sprintf("the TUN name %q is taken by a %s device: delete it (`ip link del %s`) or give another name with --tun-name", e.Name, e.Type, e.Name)
	case e.PID != 0:
		return fmt.Sprintf("the TUN device %q is held by process %d (%s): stop it or give another name with --tun-name", e.Name, e.PID, e.Command)
	}
	return fmt.Sprintf("a TUN device %q exists and no process that can be seen holds it: if a killed muslin left it, run `muslin cleanup`, else `ip link del %s` or give another name with --tun-name", e.Name, e.Name)
}

// RouteOverlapError: the host routes part of the overlay, or all of it and more, elsewhere.
type RouteOverlapError struct {
	Network netip.Prefix
	Routes  []OverlappingRoute // at least one
}

// OverlappingRoute is one route of the main table, or one address of an interface.
type OverlappingRoute struct {
	Prefix  netip.Prefix
	Device  string     // "" for a blackhole and its like
	Gateway netip.Addr // invalid for a route without
	Address bool       // the prefix is an interface's address that has no route
}

func (r OverlappingRoute) String() string {
	s := "route " + r.Prefix.String()
	if r.Address {
		s = "address " + r.Prefix.String()
	}
	if r.Gateway.IsValid() {
		s += " via " + r.Gateway.String()
	}
	if r.Device != "" {
		s += " on " + r.Device
	}
	return s
}

func (e *RouteOverlapError) Error() string {
	const shown = 3
	var names []string
	for _, r := range e.Routes[:min(shown, len(e.Routes))] {
		names = append(names, r.String())
	}
	if more := len(e.Routes) - shown; more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	command, field := "ip", "Network"
	if e.Network.Addr().Is6() {
		command, field = "ip -6", "IPv6Network"
	}
	return fmt.Sprintf("the overlay %s overlaps what this host reaches elsewhere: %s; remove that (`%s route show`, `%s addr show`) or choose another %s in the network config",
		e.Network, strings.Join(names, ", "), command, command, field)
}

// CheckConflicts looks for what would stand in the way of the plan and changes nothing. It returns all
// that it finds, joined; errors.As finds a *VXLANDeviceError, *PortTakenError, *TUNTakenError and
// *RouteOverlapError in it.
func CheckConflicts(p Plan) error {
	devices, err := links()
	if err != nil {
		return err
	}
	var found []error
	device := vxlanConflict(devices, p)
	if device != nil {
		found = append(found, device)
	}
	// A vxlan device that is up is also why the port is taken; one sentence about it is enough.
	if p.Listen.IsValid() && !p.Shared && (device == nil || !device.Up) && !p.freed(devices) {
		found = append(found, CheckPort(p.Listen))
	}
	if p.TUN != "" && !p.Found {
		found = append(found, tunConflict(devices, p.TUN))
	}
	if p.Network.IsValid() {
		found = append(found, overlapConflict(devices, p, p.Network, p.Previous))
	}
	if p.Network6.IsValid() {
		found = append(found, overlapConflict(devices, p, p.Network6, p.Previous6))
	}
	return errors.Join(found...)
}

func vxlanConflict(devices []netlink.Link, p Plan) *VXLANDeviceError {
	for _, l := range devices {
		d, ok := l.(*netlink.Vxlan)
		if !ok || d.Port != int(p.Listen.Port()) || slices.Contains(p.Taken, d.Name) {
			continue
		}
		e := &VXLANDeviceError{
			Device: d.Name, Up: d.Flags&net.FlagUp != 0,
			VNI: uint32(d.VxlanId), Port: uint16(d.Port), OurVNI: p.VNI, ForAll: d.FlowBased,
		}
		// The kernel opens a vxlan device's socket when the device goes up.
		if e.Up || p.VXLAN && e.VNI == p.VNI && !e.ForAll {
			return e
		}
	}
	return nil
}

// freed reports whether a device that gives way has the port still.
func (p *Plan) freed(devices []netlink.Link) bool {
	return slices.ContainsFunc(devices, func(l netlink.Link) bool {
		d, ok := l.(*netlink.Vxlan)
		return ok && d.Port == int(p.Listen.Port()) && d.Flags&net.FlagUp != 0 && slices.Contains(p.Taken, d.Name)
	})
}

// udpNetwork is Go's name for UDP of one family.
func udpNetwork(a netip.Addr) string {
	if a.Is4() {
		return "udp4"
	}
	return "udp6"
}

// CheckPort binds the address for a moment. A port in use is a *PortTakenError.
func CheckPort(addr netip.AddrPort) error {
	c, err := new(net.ListenConfig).ListenPacket(context.Background(), udpNetwork(addr.Addr()), addr.String())
	if err == nil {
		return c.Close()
	}
	return ExplainBind(addr, err)
}

// ExplainBind turns the error of a failed bind into a *PortTakenError when it says that the address is in
// use, and adds the address otherwise.
func ExplainBind(addr netip.AddrPort, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EADDRINUSE):
		owner, _ := PortOwner(addr)
		return &PortTakenError{Addr: addr, Owner: owner}
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("bind UDP %s: %w; no interface has this address: see `ip addr show` and --iface", addr, err)
	}
	return fmt.Errorf("bind UDP %s: %w", addr, err)
}

func tunConflict(devices []netlink.Link, name string) error {
	n := slices.IndexFunc(devices, func(l netlink.Link) bool { return l.Attrs().Name == name })
	if n < 0 {
		return nil
	}
	e := &TUNTakenError{Name: name, Type: typeOf(devices[n])}
	if e.Type == "tun" {
		if pid, ok := tunHolder(name); ok {
			e.PID, e.Command = pid, command(pid)
		}
	}
	return e
}

// typeOf is the device's type as `ip -d link` calls it. The library says "tuntap" for what it can parse.
func typeOf(l netlink.Link) string {
	switch t := l.Type(); t {
	case "tuntap":
		return "tun"
	case "device":
		return "physical"
	default:
		return t
	}
}

func overlapConflict(devices []netlink.Link, p Plan, network, previous netip.Prefix) error {
	tun := p.TUN
	main, err := mainRoutes(familyOf(network.Addr()))
	if err != nil {
		return err
	}
	held, err := addresses(familyOf(network.Addr()))
	if err != nil {
		return err
	}
	name := make(map[int]string, len(devices))
	for _, l := range devices {
		name[l.Attrs().Index] = l.Attrs().Name
	}
	e := &RouteOverlapError{Network: network}
	for _, r := range main {
		dst := prefixOf(r.Dst)
		if dst.Bits() == 0 || r.Protocol == RouteProtocol || !dst.Overlaps(network) {
			continue
		}
		o := OverlappingRoute{Prefix: dst, Device: name[r.LinkIndex]}
		if slices.Contains(p.Taken, o.Device) || slices.Contains(p.Replaced, dst) {
			continue
		}
		o.Gateway, _ = netip.AddrFromSlice(r.Gw)
		o.Gateway = o.Gateway.Unmap()
		if o.Gateway.IsValid() && dst.Bits() < network.Bits() {
			// A wider route by way of a router, such as a site's 10.0.0.0/8: ours is the longer
			// prefix, and whoever chose Network inside the site's addresses meant it.
			continue
		}
		if ownPods(previous, dst) && !o.Gateway.IsValid() && o.Device != "" || tun != "" && o.Device == tun {
			continue
		}
		e.Routes = append(e.Routes, o)
	}
	for _, a := range held {
		prefix := prefixOf(a.IPNet)
		device := name[a.LinkIndex]
		if !prefix.Overlaps(network) || ownPods(previous, prefix.Masked()) || tun != "" && device == tun || slices.Contains(p.Taken, device) {
			continue
		}
		if !slices.ContainsFunc(e.Routes, func(r OverlappingRoute) bool { return r.Device == device }) {
			e.Routes = append(e.Routes, OverlappingRoute{Prefix: prefix, Device: device, Address: true})
		}
	}
	if len(e.Routes) == 0 {
		return nil
	}
	return e
}

// ownPods reports whether the prefix is this node's own subnet of last time or part of it: a pod bridge
// such as cni0 or docker0 that is still there, which the next lease will most likely be for again.
func ownPods(previous, prefix netip.Prefix) bool {
	return previous.IsValid() && previous.Bits() <= prefix.Bits() && previous.Contains(prefix.Addr())
}
