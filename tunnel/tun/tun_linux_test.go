package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"muslin/tunnel"
)

// offset is the headroom of the tests: that of VXLAN.
const offset = 22

func serialize(t testing.TB, all ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, all...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

// outgoing is a packet from the host to somebody behind the device.
func outgoing(t testing.TB, id uint16, payload int) []byte {
	ip := &layers.IPv4{Version: 4, TTL: 64, Id: id, Protocol: layers.IPProtocolUDP, SrcIP: net.IP{10, 9, 0, 1}, DstIP: net.IP{10, 9, 0, 77}}
	udp := &layers.UDP{SrcPort: 4000, DstPort: 5000}
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	return serialize(t, ip, udp, gopacket.Payload(bytes.Repeat([]byte{byte(id)}, payload)))
}

// echo is somebody's ping to the host.
func echo(t testing.TB, seq uint16) []byte {
	return serialize(t,
		&layers.IPv4{Version: 4, TTL: 64, Id: seq + 1, Protocol: layers.IPProtocolICMPv4, SrcIP: net.IP{10, 9, 0, 2}, DstIP: net.IP{10, 9, 0, 1}},
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0), Id: 7, Seq: seq},
		gopacket.Payload("are you there?"))
}

func behindHeadroom(packets ...[]byte) (bufs [][]byte) {
	for _, p := range packets {
		bufs = append(bufs, append(make([]byte, offset), p...))
	}
	return bufs
}

// reading is a set of buffers for Read, each poisoned.
type reading struct {
	bufs  [][]byte
	sizes []int
}

func newReading(n int) *reading {
	r := &reading{sizes: make([]int, n)}
	for range n {
		r.bufs = append(r.bufs, bytes.Repeat([]byte{0xa5}, offset+2000))
	}
	return r
}

// read reads until n packets are there, and returns them with the number that each call took. It closes
// the device when they do not come.
func (r *reading) read(t testing.TB, d device, n int) (packets [][]byte, calls []int) {
	t.Helper()
	watchdog := time.AfterFunc(10*time.Second, func() { d.Close() })
	defer watchdog.Stop()
	for len(packets) < n {
		got, err := d.Read(r.bufs, r.sizes, offset)
		if err != nil {
			t.Fatalf("Read after %d of %d packets: %v", len(packets), n, err)
		}
		for i := range got {
			packets = append(packets, bytes.Clone(r.bufs[i][offset:offset+r.sizes[i]]))
			if !bytes.Equal(r.bufs[i][:offset], bytes.Repeat([]byte{0xa5}, offset)) {
				t.Error("Read wrote into the headroom")
			}
		}
		calls = append(calls, got)
	}
	return packets, calls
}

func send(t testing.TB, fd int, packets ...[]byte) {
	t.Helper()
	for _, p := range packets {
		if err := unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: [4]byte(p[16:20])}); err != nil {
			t.Fatal(err)
		}
	}
}

// What the kernel sends is read byte for byte, in order; Device takes what waits in one call.
func TestRead(t *testing.T) {
	for _, twin := range twins {
		t.Run(twin.name, func(t *testing.T) {
			newNamespace(t)
			d := openUp(t, twin.open)
			var want [][]byte
			for i, payload := range []int{0, 1, 18, 100, 511, 512, 1000, 1400, 1471, 1472} {
				want = append(want, outgoing(t, uint16(i+1), payload))
			}
			send(t, rawSocket(t), want...)
			got, calls := newReading(4).read(t, d, len(want))
			for i := range want {
				if !bytes.Equal(got[i], want[i]) {
					t.Errorf("packet %d: read\n%x, sent\n%x", i, got[i], want[i])
				}
			}
			wantCalls := 10 // Portable: one packet a call
			if twin.drain {
				wantCalls = 3 // 4 + 4 + 2
			}
			if len(calls) != wantCalls {
				t.Errorf("the packets came in calls of %v, want %d calls", calls, wantCalls)
			}
		})
	}
}

// A blocked Read is woken by the packet that comes.
func TestReadWaits(t *testing.T) {
	for _, twin := range twins {
		t.Run(twin.name, func(t *testing.T) {
			newNamespace(t)
			d := openUp(t, twin.open)
			want := outgoing(t, 3, 33)
			fd := rawSocket(t)
			done := make(chan []byte, 1)
			go func() {
				r := newReading(2)
				if n, err := d.Read(r.bufs, r.sizes, offset); err != nil || n != 1 {
					t.Errorf("Read = %d, %v", n, err)
				}
				done <- r.bufs[0][offset : offset+r.sizes[0]]
			}()
			send(t, fd, want)
			if got := within(t, "Read", done); !bytes.Equal(got, want) {
				t.Errorf("read %x, sent %x", got, want)
			}
		})
	}
}

// What is written reaches the kernel: it answers pings.
func TestWrite(t *testing.T) {
	for _, twin := range twins {
		t.Run(twin.name, func(t *testing.T) {
			newNamespace(t)
			d := openUp(t, twin.open)
			if n, err := d.Write(nil, offset); n != 0 || err != nil {
				t.Errorf("Write of nothing = %d, %v", n, err)
			}
			const pings = 5
			var requests [][]byte
			for seq := range uint16(pings) {
				requests = append(requests, echo(t, seq))
			}
			if n, err := d.Write(behindHeadroom(requests...), offset); n != pings || err != nil {
				t.Fatalf("Write = %d, %v, want %d", n, err, pings)
			}
			replies, _ := newReading(64).read(t, d, pings)
			for i, p := range replies {
				checkReply(t, p, uint16(i))
			}
		})
	}
}

func checkReply(t *testing.T, p []byte, seq uint16) {
	t.Helper()
	decoded := gopacket.NewPacket(p, layers.LayerTypeIPv4, gopacket.Default)
	icmp, ok := decoded.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
	if !ok {
		t.Fatalf("no ICMP in %x", p)
	}
	ip := decoded.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	if icmp.TypeCode.Type() != layers.ICMPv4TypeEchoReply || icmp.Seq != seq || string(icmp.Payload) != "are you there?" || !ip.DstIP.Equal(net.IP{10, 9, 0, 2}) {
		t.Errorf("reply %d is %v of seq %d to %v with %q", seq, icmp.TypeCode, icmp.Seq, ip.DstIP, icmp.Payload)
	}
}

// A packet that the kernel refuses keeps none of the others back.
func TestWriteGoesOnAfterARefusal(t *testing.T) {
	for _, twin := range twins {
		t.Run(twin.name, func(t *testing.T) {
			newNamespace(t)
			d := openUp(t, twin.open)
			garbage := []byte{0xff, 0, 0, 1} // no IP version
			n, err := d.Write(behindHeadroom(echo(t, 0), garbage, echo(t, 1), garbage, echo(t, 2)), offset)
			if n != 3 || !errors.Is(err, unix.EINVAL) {
				t.Errorf("Write = %d, %v, want 3 packets and EINVAL", n, err)
			}
			replies, _ := newReading(64).read(t, d, 3)
			for i, p := range replies {
				checkReply(t, p, uint16(i))
			}
		})
	}
}

func TestWriteWhileDown(t *testing.T) {
	for _, twin := range twins {
		t.Run(twin.name, func(t *testing.T) {
			newNamespace(t)
			d := openUp(t, twin.open)
			if err := netlink.LinkSetDown(find(t, d.Name())); err != nil {
				t.Fatal(err)
			}
			if n, err := d.Write(behindHeadroom(echo(t, 0), echo(t, 1)), offset); n != 0 || !errors.Is(err, unix.EIO) {
				t.Errorf("Write to a device that is down = %d, %v, want 0 and EIO", n, err)
			}
			if err := netlink.LinkSetUp(find(t, d.Name())); err != nil {
				t.Fatal(err)
			}
			if n, err := d.Write(behindHeadroom(echo(t, 2)), offset); n != 1 || err != nil {
				t.Errorf("Write when it is up again = %d, %v", n, err)
			}
			replies, _ := newReading(4).read(t, d, 1)
			checkReply(t, replies[0], 2)
		})
	}
}

// Far more than any queue on the way holds: Write waits rather than lose a packet, and keeps the order.
func TestFlood(t *testing.T) {
	for _, twin := range twins {
		t.Run(twin.name, func(t *testing.T) {
			newNamespace(t)
			d := openUp(t, twin.open)
			if dev, ok := d.(*Device); ok && twin.napi {
				shrinkQueue(t, dev)
			}
			const packets, size = 4096, 1000 // 4 MB
			fd := udpSocket(t, 5000, 4*packets*size)
			var all [][]byte
			for number := range uint32(packets) {
				all = append(all, numbered(t, number, size))
			}
			all = behindHeadroom(all...)
			errs := make(chan error, 1)
			go func() {
				defer close(errs)
				for batch := range slices.Chunk(all, tunnel.BatchSize) {
					if n, err := d.Write(batch, offset); n != len(batch) || err != nil {
						errs <- fmt.Errorf("Write of %d packets = %d, %w", len(batch), n, err)
						return
					}
				}
			}()
			buf := make([]byte, 2*size)
			for want := range uint32(packets) {
				n, err := unix.Read(fd, buf)
				if err != nil {
					t.Fatalf("packet %d: %v (%v)", want, err, <-errs)
				}
				if n != size-28 || binary.BigEndian.Uint32(buf) != want {
					t.Fatalf("got packet %d of %d bytes, want packet %d", binary.BigEndian.Uint32(buf), n, want)
				}
			}
			if err := <-errs; err != nil {
				t.Error(err)
			}
		})
	}
}

// shrinkQueue leaves room for a few packets between Write and the kernel's polling thread.
func shrinkQueue(t testing.TB, d *Device) {
	t.Helper()
	fd, err := d.file.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer d.file.End()
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETSNDBUF, 16<<10); err != nil {
		t.Fatal(err)
	}
}

// numbered is a UDP packet of size bytes to the host's port 5000.
func numbered(t testing.TB, number uint32, size int) []byte {
	ip := &layers.IPv4{Version: 4, TTL: 64, Id: uint16(number), Protocol: layers.IPProtocolUDP, SrcIP: net.IP{10, 9, 0, 2}, DstIP: net.IP{10, 9, 0, 1}}
	udp := &layers.UDP{SrcPort: 4000, DstPort: 5000}
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	payload := make([]byte, size-28)
	binary.BigEndian.PutUint32(payload, number)
	return serialize(t, ip, udp, gopacket.Payload(payload))
}

func TestNoAllocation(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for _, twin := range twins {
		t.Run(twin.name, func(t *testing.T) {
			newNamespace(t)
			d := openUp(t, twin.open)
			requests := behindHeadroom(echo(t, 0), echo(t, 1), echo(t, 2))
			r := newReading(tunnel.BatchSize)
			n := testing.AllocsPerRun(100, func() {
				if n, err := d.Write(requests, offset); n != len(requests) || err != nil {
					t.Fatalf("Write = %d, %v", n, err)
				}
				for got := 0; got < len(requests); {
					n, err := d.Read(r.bufs, r.sizes, offset)
					if err != nil {
						t.Fatal(err)
					}
					got += n
				}
			})
			if n != 0 {
				t.Errorf("%v allocations for %d packets written and read", n, len(requests))
			}
		})
	}
}

// within fails the test when nothing comes out of done in ten seconds.
func within[T any](t *testing.T, what string, done <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: nothing in 10 seconds", what)
	}
	return v
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
