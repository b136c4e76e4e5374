package wireguard

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"muslin/tunnel/fib"
)

// The table of a network of both families, as its Mode makes it, for each tunnel that there may be.
func TestMembersByFamily(t *testing.T) {
	one, two := fib.PublicKey{1}, fib.PublicKey{2}
	peer := func(subnet, at string, key fib.PublicKey, port uint16) *fib.Peer {
		return &fib.Peer{Subnet: netip.MustParsePrefix(subnet), PublicIP: netip.MustParseAddr(at), Key: key, Port: port}
	}
	separate := fib.New([]*fib.Peer{
		peer("10.2.0.0/24", "192.0.2.2", one, 7), peer("fd00:2::/64", "2001:db8::2", one, 8),
		peer("10.3.0.0/24", "192.0.2.3", two, 0), peer("fd00:3::/64", "2001:db8::3", two, 0),
	})
	together := fib.New([]*fib.Peer{
		peer("10.2.0.0/24", "2001:db8::2", one, 7), peer("fd00:2::/64", "2001:db8::2", one, 7),
		peer("10.3.0.0/24", "192.0.2.3", two, 0), peer("fd00:3::/64", "192.0.2.3", two, 0),
	})
	for _, test := range []struct {
		name  string
		table *fib.Table
		inner func(netip.Addr) bool
		want  string
	}{
		{"separate, IPv4", separate, netip.Addr.Is4, "01 192.0.2.2:7 [10.2.0.0/24]; 02 192.0.2.3:99 [10.3.0.0/24]"},
		{"separate, IPv6", separate, netip.Addr.Is6, "01 [2001:db8::2]:8 [fd00:2::/64]; 02 [2001:db8::3]:99 [fd00:3::/64]"},
		{"together", together, nil, "01 [2001:db8::2]:7 [10.2.0.0/24 fd00:2::/64]; 02 192.0.2.3:99 [10.3.0.0/24 fd00:3::/64]"},
	} {
		m := members{port: 99, inner: test.inner}
		var got []string
		for key, p := range m.wanted(test.table) {
			got = append(got, fmt.Sprintf("%x %s %v", key[:1], p.endpoint, p.subnets))
		}
		slices.Sort(got)
		if text := strings.Join(got, "; "); text != test.want || m.Shared() != "" {
			t.Errorf("%s: %s, want %s; %s", test.name, text, test.want, m.Shared())
		}
	}
}
