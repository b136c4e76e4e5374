package main

import (
	"net/netip"
	"testing"

	"muslin/encap"
	"muslin/tunnel/host"
)

func TestCheckOutside(t *testing.T) {
	for _, c := range []struct{ name, network, public, own, want string }{
		{"outside", "10.42.0.0/16", "192.0.2.1", "10.7.0.1", ""},
		{"the PublicIP", "10.42.0.0/16", "10.42.9.9", "192.0.2.1", "10.42.9.9, the address of this node on the underlay (eth7), lies inside the overlay's Network 10.42.0.0/16: its datagrams would be routed into the overlay again; give another --public-ip or --iface, or choose another Network"},
		{"the interface's own", "10.42.0.0/16", "192.0.2.1", "10.42.9.9", "10.42.9.9, the address of this node on the underlay (eth7), lies inside the overlay's Network 10.42.0.0/16: its datagrams would be routed into the overlay again; give another --public-ip or --iface, or choose another Network"},
		{"outside, IPv6", "fd42::/48", "2001:db8::1", "fd07::1", ""},
		{"IPv6", "fd42::/48", "fd42::9", "fd07::1", "fd42::9, the IPv6 address of this node on the underlay (eth7), lies inside the overlay's IPv6Network fd42::/48: its datagrams would be routed into the overlay again; give another --public-ipv6 or --iface, or choose another IPv6Network"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := &node{network: netip.MustParsePrefix(c.network),
				iface: host.Interface{Name: "eth7", Addr: netip.MustParseAddr(c.own), PublicIP: netip.MustParseAddr(c.public)}}
			n.six = n.network.Addr().Is6()
			got := ""
			if err := n.checkOutside(); err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}

// Either family gets what the backend says.
func TestChooseFraming(t *testing.T) {
	for _, c := range []struct {
		name, backend, public, own, want string
		overhead                         int // 0: nothing is put around a packet
	}{
		{"udp", "udp", "203.0.113.7", "192.0.2.1", "", 28},
		{"udp, IPv6", "udp", "2001:db8::7", "2001:db8::1", "", 48},
		{"host-gw", "host-gw", "192.0.2.1", "192.0.2.1", "", 0},
		{"host-gw, IPv6", "host-gw", "2001:db8::1", "2001:db8::1", "", 0},
		{"host-gw, NAT", "host-gw", "203.0.113.7", "192.0.2.1", "host-gw: the PublicIP 203.0.113.7 is not the address 192.0.2.1 that eth7 has: peers' routes lead to the PublicIP itself, so it cannot be a NAT gateway's; leave --public-ip out, or give --iface 203.0.113.7 if that is another address of this host", 0},
		{"host-gw, NAT, IPv6", "host-gw", "2001:db8::7", "2001:db8::1", "host-gw: the PublicIPv6 2001:db8::7 is not the address 2001:db8::1 that eth7 has: peers' routes lead to the PublicIPv6 itself, so it cannot be a NAT gateway's; leave --public-ipv6 out, or give --iface 2001:db8::7 if that is another address of this host", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := &node{backend: c.backend, iface: host.Interface{Name: "eth7", Addr: netip.MustParseAddr(c.own), PublicIP: netip.MustParseAddr(c.public)}}
			n.six = n.iface.Addr.Is6()
			got := ""
			if err := new(daemon).chooseFraming(nil, n); err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
			overhead := 0
			if n.framing != nil {
				overhead = 1500 - int(encap.OuterMTU(1500).Inner(n.framing))
			}
			if overhead != c.overhead {
				t.Errorf("overhead %d, want %d", overhead, c.overhead)
			}
		})
	}
}
