package rescue

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"

	"muslin/tunnel/host"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Prepare makes what giving everything back whole needs and what may fail, while the daemon still carries packets: a device
// that is gone is made again, down. Where the kernel cannot, everything stays as it is. It returns the devices that it made.
func (j *Journal) Prepare() (made []string, err error) {
	for i := range j.Devices {
		d := &j.Devices[i]
		l, err := host.LinkNamed(d.Name)
		if err != nil {
			return made, err
		}
		if l == nil {
			if err := d.create(); err != nil {
				return made, err
			}
			made = append(made, d.Name)
			continue
		}
		if _, ok := l.(*netlink.Vxlan); !ok {
			return made, fmt.Errorf("there is a device %s that is no vxlan device: delete it (`ip link del %[1]s`)", d.Name)
		}
	}
	return made, nil
}

// create makes the device as flannel does (newVXLANDevice in pkg/backend/vxlan/device.go, v0.26.7).
func (d *Device) create() error {
	under, err := host.LinkNamed(d.Under)
	if err == nil && under == nil {
		err = fmt.Errorf("there is no interface %q below it", d.Under)
	}
	if err != nil {
		return fmt.Errorf("make flannel's device %s again: %w", d.Name, err)
	}
	mac, err := net.ParseMAC(d.Keep)
	if err != nil {
		return fmt.Errorf("make flannel's device %s again: %w", d.Name, err)
	}
	v := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: d.Name, HardwareAddr: mac, MTU: d.MTU, TxQLen: d.QueueLen},
		VxlanId:   int(d.VNI), VtepDevIndex: under.Attrs().Index, SrcAddr: d.Local.AsSlice(), Port: int(d.Port),
		Learning: d.Learning, GBP: d.GBP, UDPCSum: d.Checksum,
	}
	err = netlink.LinkAdd(v)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("make flannel's device %s again: this kernel has no vxlan: `modprobe vxlan`, or boot one that has it", d.Name)
	case err != nil:
		return fmt.Errorf("make flannel's device %s again: %w", d.Name, err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+d.Name+"/accept_ra", []byte("0"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("switch router advertisements off on %s: %w", d.Name, err)
	}
	return nil
}

// Give gives flannel everything back. Whole, it is as flannel has it with these peers, whatever was broken; where the peers are not
// known, with those of before. Otherwise it is as it was found. It goes on after an error, and can be done again.
func (j *Journal) Give(whole bool, peers Peers, log *slog.Logger) error {
	var failed []error
	for i := range j.Devices {
		d := &j.Devices[i]
		switch {
		case whole || d.Found:
			if err := j.giveDevice(d, whole, peers); err != nil {
				failed = append(failed, err)
				continue
			}
			log.Info("gave flannel's device back", "device", d.Name)
		case d.Made:
			failed = append(failed, d.unmake())
		}
	}
	failed = append(failed, j.giveDirect(whole, peers), j.giveSubnetFile(whole))
	if err := errors.Join(failed...); err != nil {
		return err // the guards stay, rather than that packets for the overlay take the default route
	}
	for _, g := range j.guards() {
		if err := netlink.RouteDel(g); err != nil && !errors.Is(err, unix.ESRCH) {
			failed = append(failed, fmt.Errorf("delete the route that drops what is meant for %v: %w", g.Dst, err))
		}
	}
	return errors.Join(failed...)
}

func (j *Journal) giveDevice(d *Device, whole bool, peers Peers) error {
	l, err := host.LinkNamed(d.Name)
	if err != nil {
		return err
	}
	if l == nil {
		if err := d.create(); err != nil {
			return err
		}
		if l, err = host.LinkNamed(d.Name); err != nil || l == nil {
			return fmt.Errorf("flannel's device %s is gone again: %w", d.Name, err)
		}
	}
	want := *d
	if whole {
		want = j.whole(d, peers)
		if err := d.keepMAC(l); err != nil {
			return err
		}
	} else if mac, err := net.ParseMAC(d.MAC); err == nil && l.Attrs().HardwareAddr.String() != d.MAC {
		if err := netlink.LinkSetHardwareAddr(l, mac); err != nil {
			return fmt.Errorf("give %s the MAC %s again, which it had: %w", d.Name, d.MAC, err)
		}
	}
	if !d.Six { // which the kernel takes off a device that goes down
		if err := giveAddresses(l, want.Addresses); err != nil {
			return err
		}
	}
	if !want.Up {
		return nil
	}
	prune := whole && peers != nil
	// Entries are kept by a device that is down; neighbours and routes are not.
	if err := forward(l, &want, prune); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			err = fmt.Errorf("UDP port %d is in use (`ss -lunp`)", d.Port)
		}
		return fmt.Errorf("set %s up: %w", d.Name, err)
	}
	if d.Six {
		if err := giveAddresses(l, want.Addresses); err != nil {
			return err
		}
	}
	for _, six := range []bool{false, true} {
		if err := lead(l, &want, six, prune, j.network(d.Six)); err != nil {
			return err
		}
	}
	return nil
}

// keepMAC gives it the MAC that the peers have of it.
func (d *Device) keepMAC(l netlink.Link) error {
	mac, err := net.ParseMAC(d.Keep)
	if err != nil || l.Attrs().HardwareAddr.String() == d.Keep {
		return nil
	}
	if err := netlink.LinkSetHardwareAddr(l, mac); err != nil {
		return fmt.Errorf("give %s the MAC %s, which the peers have of it: %w", d.Name, d.Keep, err)
	}
	return nil
}

// unmake deletes a device that was not there when it all began.
func (d *Device) unmake() error {
	l, err := host.LinkNamed(d.Name)
	if err != nil || l == nil || l.Type() != "vxlan" || l.Attrs().Flags&net.FlagUp != 0 {
		return err // it is somebody's
	}
	if err := netlink.LinkDel(l); err != nil {
		return fmt.Errorf("delete %s, which was not there before: %w", d.Name, err)
	}
	return nil
}

// whole is the device as flannel has it: the peers' part of it is made of their leases, where those are known.
func (j *Journal) whole(d *Device, peers Peers) Device {
	w := *d
	w.Up = true
	base := j.subnet(d.Six).Masked().Addr()
	if own := netip.PrefixFrom(base, base.BitLen()); !slices.ContainsFunc(w.Addresses, func(a Address) bool { return a.Prefix == own }) {
		w.Addresses = append(slices.Clone(w.Addresses), Address{Prefix: own})
	}
	if peers == nil {
		return w
	}
	network := j.network(d.Six)
	macs := make(map[string]bool) // of what were peers
	w.Neighbours, w.Forwarding, w.Routes = nil, nil, nil
	for _, n := range d.Neighbours {
		if network.Contains(n.Address) {
			macs[n.MAC] = true
		} else {
			w.Neighbours = append(w.Neighbours, n)
		}
	}
	for _, f := range d.Forwarding {
		if !macs[f.MAC] {
			w.Forwarding = append(w.Forwarding, f)
		}
	}
	for _, r := range d.Routes {
		if !ofPeer(r, network) {
			w.Routes = append(w.Routes, r)
		}
	}
	for _, p := range peers {
		if p.Subnet.Addr().Is6() != d.Six || p.Direct {
			continue
		}
		mac, at := p.MAC.String(), p.Subnet.Masked().Addr()
		w.Neighbours = append(w.Neighbours, Neighbour{at, mac})
		w.Forwarding = append(w.Forwarding, Forward{mac, p.PublicIP, netlink.NUD_PERMANENT})
		metric := 0
		if d.Six {
			metric = metric6
		}
		w.Routes = append(w.Routes, Route{Prefix: p.Subnet.Masked(), Gateway: at, Device: d.Name, OnLink: true, Protocol: unix.RTPROT_BOOT, Table: unix.RT_TABLE_MAIN, Metric: metric})
	}
	return w
}

// metric6 is what the kernel gives an IPv6 route without a metric (IP6_RT_PRIO_USER in include/uapi/linux/ipv6_route.h).
const metric6 = 1024

// ofPeer says that flannel made a route, for another node.
func ofPeer(r Route, network netip.Prefix) bool {
	return network.IsValid() && network.Contains(r.Prefix.Addr()) && r.Gateway == r.Prefix.Addr()
}

func giveAddresses(l netlink.Link, want []Address) error {
	for _, a := range want {
		has, err := addressesOf(l, a.Prefix.Addr().Is6())
		if err != nil {
			return err
		}
		if slices.ContainsFunc(has, func(h Address) bool { return h.Prefix == a.Prefix }) {
			continue
		}
		if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(a.Prefix), Flags: a.Flags}); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("give %s the address %s: %w", l.Attrs().Name, a.Prefix, err)
		}
	}
	return nil
}

// failing says what an error was about; what has gone by itself is none.
func failing(what, device string, err error) error {
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return fmt.Errorf("%s on %s: %w", what, device, err)
}

// forward adds the forwarding entries that are missing; prune takes away what flannel would have taken away meanwhile.
func forward(l netlink.Link, want *Device, prune bool) error {
	has, err := forwardingOf(l)
	if err != nil {
		return err
	}
	entry := func(f Forward) *netlink.Neigh {
		mac, _ := net.ParseMAC(f.MAC)
		return &netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: f.State, IP: f.To.AsSlice(), HardwareAddr: mac}
	}
	for _, f := range has {
		if prune && !slices.ContainsFunc(want.Forwarding, func(w Forward) bool { return w.MAC == f.MAC }) {
			if err := failing("delete forwarding entry "+f.MAC, want.Name, netlink.NeighDel(entry(f))); err != nil {
				return err
			}
		}
	}
	for _, f := range want.Forwarding {
		if !slices.Contains(has, f) {
			if err := failing("add forwarding entry "+f.MAC, want.Name, netlink.NeighSet(entry(f))); err != nil {
				return err
			}
		}
	}
	return nil
}

// lead adds the neighbours and routes of a family that are missing, and prunes likewise. The route comes last: before, the
// kernel would ask for its gateway's MAC.
func lead(l netlink.Link, want *Device, six, prune bool, network netip.Prefix) error {
	index := l.Attrs().Index
	near, err := neighboursOf(l, six)
	if err != nil {
		return err
	}
	neighbour := func(n Neighbour) *netlink.Neigh {
		mac, _ := net.ParseMAC(n.MAC)
		return &netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, Type: unix.RTN_UNICAST, IP: n.Address.AsSlice(), HardwareAddr: mac}
	}
	routes, err := routesTo(l, six)
	if err != nil {
		return err
	}
	if prune {
		for _, r := range routes {
			if ofPeer(r, network) && !slices.ContainsFunc(want.Routes, func(w Route) bool { return w.Prefix == r.Prefix }) {
				if err := failing("delete route "+r.Prefix.String(), want.Name, netlink.RouteDel(r.netlink(index))); err != nil {
					return err
				}
			}
		}
		for _, n := range near {
			if network.Contains(n.Address) && !slices.ContainsFunc(want.Neighbours, func(w Neighbour) bool { return w.Address == n.Address }) {
				if err := failing("delete neighbour "+n.Address.String(), want.Name, netlink.NeighDel(neighbour(n))); err != nil {
					return err
				}
			}
		}
	}
	for _, n := range want.Neighbours {
		if n.Address.Is6() == six && !slices.Contains(near, n) {
			if err := failing("add neighbour "+n.Address.String(), want.Name, netlink.NeighSet(neighbour(n))); err != nil {
				return err
			}
		}
	}
	for _, r := range want.Routes {
		if r.Prefix.Addr().Is6() == six && !slices.Contains(routes, r) {
			if err := failing("add route "+r.Prefix.String(), want.Name, netlink.RouteReplace(r.netlink(index))); err != nil {
				return err
			}
		}
	}
	return nil
}

// giveDirect puts flannel's direct routes back, in the place of ours where those are still there: who removes ours leaves them alone,
// by their protocol.
func (j *Journal) giveDirect(whole bool, peers Peers) error {
	var failed []error
	for _, r := range j.Direct {
		if whole && peers != nil && !slices.ContainsFunc(peers, func(p Peer) bool { return p.Subnet.Masked() == r.Prefix }) {
			continue // the node has gone meanwhile
		}
		l, err := host.LinkNamed(r.Device)
		if err == nil && l == nil {
			err = errors.New("the interface is gone")
		}
		if err == nil {
			err = netlink.RouteReplace(r.netlink(l.Attrs().Index))
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("put back flannel's route %s via %s on %s: %w", r.Prefix, r.Gateway, r.Device, err))
		}
	}
	for _, p := range peers {
		if !whole || !p.Direct || slices.ContainsFunc(j.Direct, func(r Route) bool { return r.Prefix == p.Subnet.Masked() }) {
			continue
		}
		if err := netlink.RouteReplace(&netlink.Route{Dst: ipNet(p.Subnet.Masked()), Gw: p.PublicIP.AsSlice()}); err != nil {
			failed = append(failed, fmt.Errorf("add flannel's route %s via %s: %w", p.Subnet, p.PublicIP, err))
		}
	}
	return errors.Join(failed...)
}

// giveSubnetFile puts back what flannel told the container runtimes. Where that was missing, or of another subnet, the whole is what
// muslin told them.
func (j *Journal) giveSubnetFile(whole bool) error {
	switch {
	case whole && (j.SubnetText == "" || j.SubnetStale):
		return nil
	case j.SubnetText == "":
		if err := os.Remove(j.SubnetFile); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the subnet file, which was not there before: %w", err)
		}
		return nil
	}
	if now, err := os.ReadFile(j.SubnetFile); err == nil && string(now) == j.SubnetText {
		return nil
	}
	if err := replaceFile(j.SubnetFile, []byte(j.SubnetText), 0o644); err != nil {
		return fmt.Errorf("put back %s: %w", j.SubnetFile, err)
	}
	return nil
}
