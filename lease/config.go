package lease

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"muslin/encap"
)

const maxVNI = 1<<24 - 1

// Config is the network's config, as it lies in the store, with every default filled in.
type Config struct {
	Network              netip.Prefix // masked
	SubnetLen            int          // bits, of every node's subnet
	SubnetMin, SubnetMax netip.Addr   // bases of the first and the last subnet that may be leased

	EnableIPv4, EnableIPv6, EnableNFTables bool

	// The IPv6 fields are zero unless EnableIPv6.
	IPv6Network                  netip.Prefix
	IPv6SubnetLen                int
	IPv6SubnetMin, IPv6SubnetMax netip.Addr

	Backend Backend

	// Warnings are sentences about what is legal but probably not meant.
	Warnings []string
}

// Backend is how nodes reach each other. What a type does not have is zero.
type Backend struct {
	Type string          // lower case
	Raw  json.RawMessage // as found; nil for a config without Backend

	VNI                          encap.VNI      // vxlan
	Port                         uint16         // vxlan, udp, wireguard; the default is filled in
	MTU                          encap.OuterMTU // vxlan, wireguard: 0 for the interface's
	DirectRouting, GBP, Learning bool           // vxlan

	PortV6    uint16        // wireguard, as the rest: of a device of its own for IPv6; the default is filled in
	Mode      string        // ModeSeparate or another
	PSK       PresharedKey  // zero: none
	Keepalive time.Duration // whole seconds, 0: none
}

var (
	configFields = []string{"Network", "SubnetLen", "SubnetMin", "SubnetMax", "EnableIPv4", "EnableIPv6", "EnableNFTables",
		"IPv6Network", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax", "Backend"}
	vxlanFields = []string{"Type", "VNI", "Port", "MTU", "DirectRouting", "GBP", "Learning"}
	udpFields   = []string{"Type", "Port"}
	hostFields  = []string{"Type"}
	wgFields    = []string{"Type", "ListenPort", "ListenPortV6", "MTU", "PSK", "PersistentKeepaliveInterval", "Mode"}

	// backendTypes are flannel's.
	backendTypes = []string{BackendVXLAN, BackendUDP, BackendHostGW, BackendWireGuard, "ipip", "ipsec", "alloc", "extension", "tencent-vpc"}
)

// ParseConfig reads a network config by flannel's rules. The error names the field, its value, the rule
// it breaks and what to write instead. Supported says whether muslin can carry the result.
func ParseConfig(data []byte) (*Config, error) {
	c, err := parseConfig(data)
	if err != nil {
		return nil, fmt.Errorf("network config: %w", err)
	}
	return c, nil
}

func parseConfig(data []byte) (*Config, error) {
	o, err := decodeObject(data)
	if err != nil {
		return nil, err
	}
	c := new(Config)
	for _, b := range []struct {
		name   string
		to     *bool
		absent bool
	}{
		{"EnableIPv4", &c.EnableIPv4, true},
		{"EnableIPv6", &c.EnableIPv6, false},
		{"EnableNFTables", &c.EnableNFTables, false},
	} {
		if *b.to, err = o.boolean(b.name, b.absent); err != nil {
			return nil, err
		}
	}
	if !c.EnableIPv4 && !c.EnableIPv6 {
		return nil, errors.New("EnableIPv4 and EnableIPv6 are both false: set one of them to true")
	}
	v4, err := o.family(familyIPv4, c.EnableIPv4)
	if err != nil {
		return nil, err
	}
	c.Network, c.SubnetLen, c.SubnetMin, c.SubnetMax = v4.network, v4.length, v4.first, v4.last
	v6, err := o.family(familyIPv6, c.EnableIPv6)
	if err != nil {
		return nil, err
	}
	c.IPv6Network, c.IPv6SubnetLen, c.IPv6SubnetMin, c.IPv6SubnetMax = v6.network, v6.length, v6.first, v6.last
	if err := c.parseBackend(o); err != nil {
		return nil, err
	}
	c.Warnings = append(o.complaints("", configFields), c.Warnings...)
	return c, nil
}

// family is what the rules about IPv4 and IPv6 networks differ in.
type family struct {
	version       int
	prefix        string // of the field names
	usualLen      int    // the default of SubnetLen…
	usualUpTo     int    // …for networks up to this length; two more than the network's beyond
	longest       int    // of the network
	longestSubnet int
}

var (
	familyIPv4 = family{version: 4, usualLen: 24, usualUpTo: 22, longest: 28, longestSubnet: 30}
	familyIPv6 = family{version: 6, prefix: "IPv6", usualLen: 64, usualUpTo: 62, longest: 124, longestSubnet: 126}
)

// family reads one address family's fields. Those of a family that is not enabled are known, but not
// looked at.
func (o *object) family(f family, enabled bool) (subnets, error) {
	network, subnetLen := f.prefix+"Network", f.prefix+"SubnetLen"
	subnetMin, subnetMax := f.prefix+"SubnetMin", f.prefix+"SubnetMax"
	if !enabled {
		for _, name := range []string{network, subnetLen, subnetMin, subnetMax} {
			o.raw(name)
		}
		return subnets{}, nil
	}
	var s subnets
	var err error
	if s.network, err = o.prefix(network, f.version); err != nil {
		return s, err
	}
	if !s.network.IsValid() {
		return s, fmt.Errorf("%s is missing: give the overlay's CIDR, such as %q: %q", network, network, exampleCIDR(f.version))
	}
	if s.length, err = o.subnetLen(subnetLen, network, s.network.Bits(), f); err != nil {
		return s, err
	}
	all := netip.PrefixFrom(s.network.Addr(), s.length)
	if s.first, err = o.subnetBase(subnetMin, nextSubnet(all).Addr(), network, s, f.version); err != nil {
		return s, err
	}
	if s.last, err = o.subnetBase(subnetMax, lastSubnet(s.network, s.length).Addr(), network, s, f.version); err != nil {
		return s, err
	}
	if s.last.Less(s.first) {
		return s, fmt.Errorf("%s %s is above %s %s: no subnet is left between them", subnetMin, s.first, subnetMax, s.last)
	}
	return s, nil
}

func (o *object) subnetLen(name, network string, networkLen int, f family) (int, error) {
	if networkLen > f.longest {
		return 0, fmt.Errorf("%s has length /%d: want /%d or shorter, so that at least four subnets fit", network, networkLen, f.longest)
	}
	n, _, err := o.integer(name, 0, int64(f.longestSubnet))
	if err != nil {
		return 0, err
	}
	switch {
	case n == 0 && networkLen <= f.usualUpTo:
		return f.usualLen, nil
	case n == 0:
		return networkLen + 2, nil
	case int(n) < networkLen+2:
		return 0, fmt.Errorf("%s is %d: want at least %d, two more than the length of %s, so that at least four subnets fit", name, n, networkLen+2, network)
	}
	return int(n), nil
}

func (o *object) subnetBase(name string, absent netip.Addr, network string, s subnets, version int) (netip.Addr, error) {
	a, err := o.addr(name, version)
	if err != nil {
		return a, fmt.Errorf("%w: want the first address of a subnet, such as %q", err, absent)
	}
	// flannel takes 0.0.0.0 for "not given".
	if !a.IsValid() || a.IsUnspecified() {
		return absent, nil
	}
	if !s.network.Contains(a) {
		return a, fmt.Errorf("%s %s lies outside %s %s: want the first address of a subnet in it", name, a, network, s.network)
	}
	if base := netip.PrefixFrom(a, s.length).Masked().Addr(); base != a {
		return a, fmt.Errorf("%s %s is not the first address of a /%d subnet: write %s", name, a, s.length, base)
	}
	return a, nil
}

func (c *Config) parseBackend(o *object) error {
	b := &c.Backend
	b.Raw = o.raw("Backend")
	if b.Raw == nil {
		if o.has("Backend") {
			return errors.New(`Backend is null: leave it out, or give its type, such as "Backend": {"Type": "vxlan"}`)
		}
		// flannel's documentation says vxlan here; its code does udp, and so do its nodes.
		b.Type, b.Port = BackendUDP, defaultUDPPort
		return nil
	}
	in, err := decodeObject(b.Raw)
	if err != nil {
		return fmt.Errorf("Backend: %w", err)
	}
	kind, err := in.text("Type")
	if err != nil {
		return fmt.Errorf("Backend.%w", err)
	}
	if kind == "" {
		return errors.New(`Backend.Type is missing: give it, such as "Backend": {"Type": "vxlan"}`)
	}
	b.Type = strings.ToLower(kind)
	switch b.Type {
	case BackendVXLAN:
		err = b.parseVXLAN(in)
		c.Warnings = append(in.complaints("Backend.", vxlanFields), b.warnings()...)
	case BackendUDP:
		b.Port, err = in.port("Port", defaultUDPPort)
		c.Warnings = in.complaints("Backend.", udpFields)
	case BackendHostGW:
		c.Warnings = in.complaints("Backend.", hostFields)
	case BackendWireGuard:
		err = b.parseWireGuard(in)
		c.Warnings = in.complaints("Backend.", wgFields)
	}
	if err != nil {
		return fmt.Errorf("Backend.%w", err)
	}
	return nil
}

func (b *Backend) parseVXLAN(in *object) error {
	n, given, err := in.integer("VNI", 0, maxVNI)
	if err != nil {
		return fmt.Errorf("%w; a VNI has 24 bits", err)
	}
	if !given {
		n = defaultVNI
	}
	if b.VNI, err = encap.NewVNI(uint32(n)); err != nil {
		return err
	}
	if b.Port, err = in.port("Port", defaultVXLANPort); err != nil {
		return err
	}
	if b.MTU, err = in.mtu(); err != nil {
		return err
	}
	if b.DirectRouting, err = in.boolean("DirectRouting", false); err != nil {
		return err
	}
	if b.GBP, err = in.boolean("GBP", false); err != nil {
		return err
	}
	b.Learning, err = in.boolean("Learning", false)
	return err
}

func (in *object) mtu() (encap.OuterMTU, error) {
	mtu, _, err := in.integer("MTU", 0, 65535)
	if err != nil {
		return 0, err
	}
	// RFC 791, section 3.2: every IPv4 host takes 576 bytes; less leaves no room for an overlay.
	if mtu != 0 && mtu < 576 {
		return 0, fmt.Errorf("MTU is %d: want 0 for the interface's, or 576 to 65535", mtu)
	}
	return encap.OuterMTU(mtu), nil
}

func (in *object) port(name string, absent uint16) (uint16, error) {
	n, _, err := in.integer(name, 0, 65535)
	if err != nil {
		return 0, fmt.Errorf("%w; 0 means %d", err, absent)
	}
	if n == 0 {
		return absent, nil
	}
	return uint16(n), nil
}

func (b *Backend) warnings() []string {
	var out []string
	if b.GBP {
		out = append(out, "Backend.GBP is true, but this version has no group policies: it sends none, and drops datagrams that carry one")
	}
	if b.Learning {
		out = append(out, "Backend.Learning is true, but this version learns nothing from traffic: peers come from leases alone")
	}
	return out
}

// Supported returns nil if this version can carry the network, or a sentence that says what it cannot
// carry and what to do.
func (c *Config) Supported() error {
	switch t := c.Backend.Type; {
	case t == BackendWireGuard && c.Backend.Mode == ModeIPv6 && !c.EnableIPv6:
		return errors.New(`network config: Backend.Mode "ipv6" goes over IPv6, but EnableIPv6 is false, so that nodes lease no IPv6 address: set it to true, or use "separate", "auto" or "ipv4"`)
	case t == BackendWireGuard && c.Backend.Mode == ModeIPv4 && !c.EnableIPv4:
		return errors.New(`network config: Backend.Mode "ipv4" goes over IPv4, but EnableIPv4 is false, so that nodes lease no IPv4 address: set it to true, or use "separate", "auto" or "ipv6"`)
	case t == BackendWireGuard && c.Backend.Mode == ModeSeparate && c.EnableIPv4 && c.EnableIPv6 && c.Backend.Port == c.Backend.PortV6:
		return fmt.Errorf("network config: Backend.ListenPort and Backend.ListenPortV6 are both %d, but each family has a tunnel of its own, which needs a port of its own: give another ListenPortV6, or use Mode \"auto\", \"ipv4\" or \"ipv6\"", c.Backend.Port)
	case carries(t):
		return nil
	case slices.Contains(backendTypes, t):
		return fmt.Errorf("network config: Backend.Type %q is flannel's, but this version carries %s only: use one of those", t, list(carried, "and"))
	default:
		hint := ""
		if near := Nearest(t, backendTypes); near != "" {
			hint = fmt.Sprintf(" (did you mean %s?)", near)
		}
		return fmt.Errorf("network config: Backend.Type %q is not known%s: use %s", clip(t), hint, list(carried, "or"))
	}
}

// list makes "a, b and c" of several words.
func list(words []string, and string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " " + and + " " + words[last]
}
