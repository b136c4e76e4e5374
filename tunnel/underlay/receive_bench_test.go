package underlay

import (
	"net/netip"
	"testing"
)

// BenchmarkCarry sends 64 KB over loopback and receives it: ns and allocations cover both ends.
func BenchmarkCarry(b *testing.B) {
	for _, c := range []struct {
		name, features     string
		messages, segments int
	}{
		{"runs", "auto", 1, 44},
		{"sendmmsg", "-udp-gso", 44, 1},
		{"one by one", "none", 44, 1},
	} {
		run := func(name string, local netip.Addr) {
			b.Run(name, func(b *testing.B) {
				carrier := newCarrier(b, local, c.features, c.messages, c.segments, 1450)
				b.SetBytes(44 * 1450)
				b.ReportAllocs()
				for b.Loop() {
					carrier.carry(b)
				}
			})
		}
		run(c.name, loopback)
		run(c.name+"/ipv6", loopback6)
	}
}
