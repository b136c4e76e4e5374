package main

import (
	"net/netip"
	"testing"

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
