//go:build linux

package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Survey is what a host has of a network, in the namespace of the calling thread: what one looks at who asks why
// packets do not pass. Nothing in it is the daemon's own view.
type Survey struct {
	Links     []Link
	Addresses []Address
	Routes    []Route     // of the main table, of both families
	Rules     []Rule      // of routing, beside the kernel's own three
	Sockets   []UDPSocket // of both families
	Conntrack Conntrack
}

// Link is a network device.
type Link struct {
	Name    string
	Index   int
	Type    string // as `ip -d link` calls it: "tun", "bridge", "physical", …
	MTU     int    // bytes
	Up      bool   // somebody set it up
	Carrier bool   // and it has a link
	MAC     string // empty: it has none
	Master  string // the bridge that it is a port of; empty: none

	VXLAN *VXLANLink // nil: it is none
}

// VXLANLink is what the kernel's vxlan device has beside.
type VXLANLink struct {
	VNI    uint32
	Port   uint16
	Local  netip.Addr // invalid: any of the host's
	Device string     // of the underlay; empty: not bound to one
	ForAll bool       // it receives for every VNI ("external")
}

// Address is one of a link's.
type Address struct {
	Prefix netip.Prefix // with host bits
	Link   string
}

// Route is one of the main table.
type Route struct {
	Prefix   netip.Prefix // masked; 0.0.0.0/0 and ::/0 are the default routes
	Device   string       // empty: none, as of a blackhole
	Gateway  netip.Addr   // invalid: none
	Kind     int          // unix.RTN_UNICAST, unix.RTN_BLACKHOLE, …
	Protocol int          // unix.RTPROT_KERNEL, RouteProtocol, …
	Metric   int
	Down     bool // its device has no link
}

// String is the route as a sentence names it: "route 10.244.3.0/24 via 192.0.2.9 on eth1".
func (r Route) String() string {
	s := "route " + r.Prefix.String()
	switch r.Kind {
	case unix.RTN_BLACKHOLE:
		s = "blackhole " + s
	case unix.RTN_UNREACHABLE:
		s = "unreachable " + s
	case unix.RTN_PROHIBIT:
		s = "prohibit " + s
	}
	if r.Gateway.IsValid() {
		s += " via " + r.Gateway.String()
	}
	if r.Device != "" {
		s += " on " + r.Device
	}
	return s
}

// Rule is one of `ip rule`.
type Rule struct {
	Priority int
	Table    int
	Src, Dst netip.Prefix // invalid: any
	In       string       // of packets that come in by this device; empty: any
	Narrower bool         // of those it wants some alone: with a mark, of a user, of a port
	Not      bool         // of all but those
	Six      bool
}

// UDPSocket is one that receives.
type UDPSocket struct {
	Local netip.AddrPort
	Inode string
	Drops uint64 // datagrams that the kernel dropped of it, for whatever reason
}

// UDPSockets are those of the calling thread's network namespace, of both families; none where /proc does not tell.
func UDPSockets() []UDPSocket {
	var all []UDPSocket
	for _, table := range []string{"udp", "udp6"} {
		for _, u := range udpSockets(table) {
			all = append(all, UDPSocket{Local: u.addr, Inode: u.inode, Drops: u.drops})
		}
	}
	return all
}

// Conntrack is the table of connections.
type Conntrack struct {
	Count, Max uint64 // entries; Max 0: there is no table
	Refused    uint64 // packets dropped because it was full
}

// LookAround surveys the host. What cannot be had is left out, and the error says why.
func LookAround() (*Survey, error) {
	s := new(Survey)
	all, err := links()
	if err != nil {
		return s, err
	}
	name := make(map[int]string, len(all))
	for _, l := range all {
		name[l.Attrs().Index] = l.Attrs().Name
	}
	for _, l := range all {
		s.Links = append(s.Links, linkOf(l, name))
	}
	var failed []error
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		failed = append(failed, s.addFamily(family, name))
	}
	s.Sockets = UDPSockets()
	s.Conntrack = readConntrack()
	return s, errors.Join(failed...)
}

func linkOf(l netlink.Link, name map[int]string) Link {
	a := l.Attrs()
	out := Link{Name: a.Name, Index: a.Index, Type: typeOf(l), MTU: a.MTU, Up: a.Flags&net.FlagUp != 0,
		Carrier: a.RawFlags&unix.IFF_LOWER_UP != 0, MAC: a.HardwareAddr.String(), Master: name[a.MasterIndex]}
	if v, ok := l.(*netlink.Vxlan); ok {
		out.VXLAN = &VXLANLink{VNI: uint32(v.VxlanId), Port: uint16(v.Port), Device: name[v.VtepDevIndex], ForAll: v.FlowBased}
		if local, ok := netip.AddrFromSlice(v.SrcAddr); ok && !local.IsUnspecified() {
			out.VXLAN.Local = local.Unmap()
		}
	}
	return out
}

func (s *Survey) addFamily(family int, name map[int]string) error {
	held, err := addresses(family)
	if err != nil {
		return err
	}
	for _, a := range held {
		s.Addresses = append(s.Addresses, Address{Prefix: prefixOf(a.IPNet), Link: name[a.LinkIndex]})
	}
	main, err := mainRoutes(family)
	if err != nil {
		return err
	}
	for _, r := range main {
		o := Route{Prefix: prefixOf(r.Dst), Device: name[indexOf(r)], Kind: r.Type, Protocol: int(r.Protocol), Metric: r.Priority, Down: r.Flags&unix.RTNH_F_LINKDOWN != 0}
		if r.Dst == nil && family == unix.AF_INET6 {
			o.Prefix = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		o.Gateway, _ = netip.AddrFromSlice(r.Gw)
		o.Gateway = o.Gateway.Unmap()
		s.Routes = append(s.Routes, o)
	}
	rules, err := Dump("routing rules", func() ([]netlink.Rule, error) { return netlink.RuleList(family) })
	if err != nil {
		return err
	}
	for _, r := range rules {
		// The kernel's own: local, main and default (linux/rtnetlink.h).
		if slices.Contains([]int{unix.RT_TABLE_LOCAL, unix.RT_TABLE_MAIN, unix.RT_TABLE_DEFAULT}, r.Table) && r.Src == nil && r.Dst == nil {
			continue
		}
		o := Rule{Priority: r.Priority, Table: r.Table, In: r.IifName, Not: r.Invert, Six: family == unix.AF_INET6}
		o.Narrower = r.Mark != 0 || r.Tos != 0 || r.OifName != "" || r.IPProto != 0 || r.UIDRange != nil || r.Dport != nil || r.Sport != nil
		if r.Src != nil {
			o.Src = prefixOf(r.Src)
		}
		if r.Dst != nil {
			o.Dst = prefixOf(r.Dst)
		}
		s.Rules = append(s.Rules, o)
	}
	return nil
}

// Link is the device of that name; nil: there is none.
func (s *Survey) Link(name string) *Link {
	if i := slices.IndexFunc(s.Links, func(l Link) bool { return l.Name == name }); i >= 0 {
		return &s.Links[i]
	}
	return nil
}

// Holder is the link that has an address; empty: none has.
func (s *Survey) Holder(a netip.Addr) string {
	for _, held := range s.Addresses {
		if held.Prefix.Addr() == a {
			return held.Link
		}
	}
	return ""
}

// readConntrack reads the counters of nf_conntrack. In /proc/net/stat they are a line for each processor, in hexadecimal,
// below their names; "drop" counts packets that found no room (net/netfilter/nf_conntrack_standalone.c).
func readConntrack() Conntrack {
	const root = sysctlRoot + "/netfilter/nf_conntrack_"
	var c Conntrack
	c.Count, c.Max = readUint(root+"count"), readUint(root+"max")
	f, err := procNet("stat/nf_conntrack")
	if err != nil {
		return c
	}
	defer f.Close()
	lines := readLines(f)
	if len(lines) == 0 {
		return c
	}
	column := slices.Index(strings.Fields(lines[0]), "drop")
	for _, line := range lines[1:] {
		if fields := strings.Fields(line); column >= 0 && column < len(fields) {
			n, _ := strconv.ParseUint(fields[column], 16, 64)
			c.Refused += n
		}
	}
	return c
}

func readUint(path string) uint64 {
	text, err := readSysctl(path)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(text, 10, 64)
	return n
}

// Sysctl reads a switch by its path below /proc/sys: "net/ipv4/ip_forward". The error is of the file.
func Sysctl(path string) (string, error) { return readSysctl("/proc/sys/" + path) }

// SetSysctl writes one.
func SetSysctl(path, value string) error {
	if err := writeSysctl("/proc/sys/"+path, value); err != nil {
		return fmt.Errorf("set %s to %s: %w", strings.ReplaceAll(path, "/", "."), value, err)
	}
	return nil
}

// SetLinkMTU gives a device an MTU, in bytes.
func SetLinkMTU(name string, mtu int) error {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetMTU(l, mtu)
	}
	if err != nil {
		return fmt.Errorf("set MTU of %q to %d: %w", name, mtu, err)
	}
	return nil
}

// SetLinkUp sets a device up.
func SetLinkUp(name string) error {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("set %q up: %w", name, err)
	}
	return nil
}

// Overlaps are what this host reaches elsewhere in an overlay's network, as CheckConflicts has it: none of the TUN device
// nor, in this node's own subnet, of pods' bridges.
func Overlaps(network, subnet netip.Prefix, tun string) ([]OverlappingRoute, error) {
	devices, err := links()
	if err != nil {
		return nil, err
	}
	err = overlapConflict(devices, Plan{TUN: tun}, network, subnet)
	if overlap := new(RouteOverlapError); errors.As(err, &overlap) {
		return overlap.Routes, nil
	}
	return nil, err
}
