package tunnel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"muslin/tunnel/fib"
)

func superpacket(t testing.TB, src, dst string, payload []byte) []byte {
	t.Helper()
	ip := ipLayer(src, dst, layers.IPProtocolTCP)
	return serialize(t, ip, &layers.TCP{SrcPort: 4000, DstPort: 5000, Seq: 1000, ACK: true, Window: 100}, gopacket.Payload(payload))
}

// A batch that is full of packets already, with superpackets at its front, in its middle and at its end:
// all goes out in order, and nothing is overwritten before it is written.
func TestSuperpacketsInOrder(t *testing.T) {
	for _, name := range []string{"vxlan", "udp"} {
		x := newBench(t, name)
		var ds []Datagram
		var want []byte
		for i := range BatchSize {
			payload := bytes.Repeat([]byte{byte(i + 1)}, 10)
			if i%31 == 0 || i == BatchSize-1 {
				payload = bytes.Repeat([]byte{byte(i + 1)}, 60000)
			}
			for j := 0; j+4 <= len(payload); j += 4 { // no two parts alike
				binary.BigEndian.PutUint32(payload[j:], uint32(i)<<24|uint32(j))
			}
			want = append(want, payload...)
			ds = append(ds, x.from(t, nodeB, superpacket(t, "10.2.0.1", "10.1.0.5", payload)))
		}
		var got []byte
		packets := x.receive(t, ds...)
		for i, p := range packets {
			if len(p) > int(testMTU) {
				t.Fatalf("%s: packet %d has %d bytes", name, i, len(p))
			}
			_, decoded := checkSound(t, p)
			got = append(got, decoded.Layer(layers.LayerTypeTCP).(*layers.TCP).Payload...)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes came out, want %d, in order", name, len(got), len(want))
		}
		if n := x.b.Counters.RxPackets.Load(); n != uint64(len(packets)) {
			t.Errorf("%s: %d packets counted, %d written", name, n, len(packets))
		}
		if d := x.Drops(); len(d) != 0 {
			t.Errorf("%s: drops %v", name, d)
		}
	}
}

func TestSuperpacketsNoAllocation(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	dev, und := &steadyDevice{}, &steadyUnderlay{}
	x := newBench(t, "vxlan")
	for i := range BatchSize {
		p := superpacket(t, fmt.Sprintf("10.2.0.%d", i+1), "10.1.0.5", make([]byte, 30000))
		und.datagrams = append(und.datagrams, x.from(t, nodeB, p))
	}
	v := newVTEP(t, nodeA, "vxlan", dev, und)
	v.SetTable(fib.New([]*fib.Peer{nodeB.peer()}))
	if n := testing.AllocsPerRun(5, func() { must(t, v.in.batch()) }); n != 0 {
		t.Errorf("%v allocations a batch", n)
	}
	if dev.written < 6*BatchSize*20 {
		t.Errorf("%d packets written", dev.written)
	}
}
