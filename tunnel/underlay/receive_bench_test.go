package underlay

import "testing"

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
		b.Run(c.name, func(b *testing.B) {
			carrier := newCarrier(b, c.features, c.messages, c.segments, 1450)
			b.SetBytes(44 * 1450)
			b.ReportAllocs()
			for b.Loop() {
				carrier.carry(b)
			}
		})
	}
}
