package underlay

import (
	"log/slog"
	"net/netip"
	"testing"

	"muslin/tunnel"
)

// BenchmarkReceive sends batches of 64 datagrams over loopback and receives them: ns and allocations are
// per batch, and cover both ends.
func BenchmarkReceive(b *testing.B) {
	for _, c := range []struct {
		name     string
		portable bool
	}{{"recvmmsg", false}, {"ReadBatch", true}} {
		b.Run(c.name, func(b *testing.B) {
			local := netip.MustParseAddr("127.0.0.1")
			conn, err := Open(Config{Local: local, Port: 18472, Logger: slog.New(slog.DiscardHandler), Portable: c.portable})
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			out, in := make([]tunnel.Datagram, tunnel.BatchSize), make([]tunnel.Datagram, tunnel.BatchSize)
			full := make([]byte, 2048)
			for i := range out {
				out[i] = tunnel.Datagram{Buf: make([]byte, 1400), Addr: netip.AddrPortFrom(local, 18472)}
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := conn.Send(out); err != nil {
					b.Fatal(err)
				}
				for got := 0; got < len(out); {
					for i := range in {
						in[i].Buf = full
					}
					n, err := conn.Receive(in)
					if err != nil {
						b.Fatal(err)
					}
					got += n
				}
			}
		})
	}
}
