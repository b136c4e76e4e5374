package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"muslin/tunnel"
	"muslin/tunnel/gso"
	"muslin/tunnel/kernel"
	"muslin/tunnel/racetest"
)

// write wants everything to be taken.
func write(t testing.TB, d device, all ...gso.Run) {
	t.Helper()
	want := 0
	for _, r := range all {
		want += r.Segments
	}
	if n, err := d.Queues()[0].Write(all); n != want || err != nil {
		t.Fatalf("Write = %d, %v, want %d", n, err, want)
	}
}

// readSegments reads until n segments are there, cut where they came as superpackets and with finished
// checksums. whole is how many superpackets there were.
func readSegments(t testing.TB, w twin, d device, n int) (all []packet, whole int) {
	t.Helper()
	for len(all) < n {
		got, _ := newReading(w, tunnel.BatchSize, vxlan).read(t, d, 1)
		for _, p := range got {
			if p.info.Kind != gso.None {
				all = append(all, cut(t, p)...)
				whole++
				continue
			}
			if !gso.Complete(p.bytes, p.info) {
				t.Errorf("info's offsets lie outside the packet: %+v", p.info)
			}
			all = append(all, p)
		}
	}
	return all, whole
}

// What is written reaches the kernel: it answers pings.
func TestWrite(t *testing.T) {
	for _, w := range twins {
		t.Run(w.name, func(t *testing.T) {
			newNamespace(t)
			d := openUp(t, w)
			write(t, d)
			const pings = 5
			var requests [][]byte
			for seq := range uint16(pings) {
				requests = append(requests, echo(t, seq))
			}
			write(t, d, runs(requests...)...)
			replies, _ := newReading(w, 64, vxlan).read(t, d, pings)
			for i, p := range replies {
				checkReply(t, p.bytes, uint16(i))
			}
		})
	}
}

// Superpackets go through the kernel as such where the features are on; where they are not, their segments do.
func TestWriteSuperpackets(t *testing.T) {
	for _, w := range twins {
		t.Run(w.name, func(t *testing.T) {
			newDualNamespace(t)
			d, sink := openUp(t, w), openOther(t, full)
			for _, c := range superpackets {
				segments := c.spec.forwarded().segments(t, c.size)
				write(t, d, c.spec.run(t, c.size))
				got, whole := readSegments(t, full, sink, len(segments))
				samePackets(t, c.name, got, segments)
				joins, joined := kernel.TUNTCPGRO, w.napi() && !c.spec.udp // NAPI may join TCP itself
				if c.spec.udp {
					joins = kernel.TUNUDPGRO
				}
				if want := w.on(joins); want != (whole == 1) && !joined {
					t.Errorf("%s: %d superpackets, want one: %v", c.name, whole, want)
				}
			}
			tcp, udp := d.Queues()[0].Joins()
			if tcp != w.on(kernel.TUNTCPGRO) || udp != w.on(kernel.TUNUDPGRO) {
				t.Errorf("Joins = %v, %v", tcp, udp)
			}
		})
	}
}

// As many pieces as one system call takes.
func TestWriteManyPieces(t *testing.T) {
	newNamespace(t)
	d, sink := openUp(t, full), openOther(t, full)
	s := oneTCP(1023 * 60)
	r := s.run(t, 60)
	if len(r.Bufs) != 1023 {
		t.Fatalf("%d pieces", len(r.Bufs))
	}
	write(t, d, r)
	got, whole := readSegments(t, full, sink, 1023)
	samePackets(t, "read", got, s.forwarded().segments(t, 60))
	if whole != 1 {
		t.Errorf("%d superpackets", whole)
	}
}

// More datagrams than every kernel takes in one superpacket, as a peer's kernel may join them, are cut.
func TestWriteManyDatagrams(t *testing.T) {
	newNamespace(t)
	var log logbook
	d, sink := openUpQueues(t, full, 1, &log), openOther(t, full)
	s := oneUDP(100*50 + 1)
	write(t, d, s.run(t, 50))
	got, whole := readSegments(t, full, sink, 101)
	samePackets(t, "read", got, s.forwarded().segments(t, 50))
	if _, udp := d.Queues()[0].Joins(); whole != 0 || !udp {
		t.Errorf("%d superpackets; Joins of UDP = %v", whole, udp)
	}
	log.check(t)
}

// A UDP superpacket reaches a socket: whole where it asked for that (UDP_GRO), as datagrams where not.
func TestWriteUDPToASocket(t *testing.T) {
	for _, w := range twins {
		t.Run(w.name, func(t *testing.T) {
			newNamespace(t)
			d := openUp(t, w)
			fd := udpSocket(t, 5000, 1<<20)
			s := oneUDP(20*700 + 55).with(func(s *spec) { s.to = "9.1" })
			want := slices.Collect(slices.Chunk(s.payload, 700))
			for _, gro := range []int{0, 1} {
				must(t, unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, gro))
				write(t, d, s.run(t, 700))
				var got [][]byte
				reads := 0
				for buf := make([]byte, maxPacket); len(got) < len(want); reads++ {
					oob := make([]byte, 64)
					n, oobn, err := receive(fd, buf, oob)
					must(t, err)
					size := n
					if all, err := unix.ParseSocketControlMessage(oob[:oobn]); err != nil {
						t.Fatal(err)
					} else if len(all) > 0 {
						size = int(binary.NativeEndian.Uint32(all[0].Data))
					}
					got = append(got, slices.Collect(slices.Chunk(bytes.Clone(buf[:n]), size))...)
				}
				if !slices.EqualFunc(got, want, bytes.Equal) {
					t.Errorf("UDP_GRO %d: %d datagrams, not those that were written", gro, len(got))
				}
				// In NAPI mode the kernel may join them itself.
				if whole := gro == 1 && w.on(kernel.TUNUDPGRO); whole != (reads == 1) && !(w.napi() && gro == 1) {
					t.Errorf("UDP_GRO %d: %d reads", gro, reads)
				}
			}
		})
	}
}

// A checksum that is not finished is so for the next hop.
func TestWriteUnfinishedChecksum(t *testing.T) {
	for _, w := range twins {
		t.Run(w.name, func(t *testing.T) {
			newDualNamespace(t)
			d, sink := openUp(t, w), openOther(t, plain)
			var want [][]byte
			var all []gso.Run
			for _, s := range []spec{
				oneTCP(100), oneUDP(101), oneUDP(0),
				oneTCP(77).with(func(s *spec) { s.v6 = true }), oneUDP(1000).with(func(s *spec) { s.v6 = true }),
			} {
				p, info := s.undone(t)
				all = append(all, gso.Run{Info: info, Bufs: [][]byte{p}, Segments: 1, Len: len(p)})
				want = append(want, s.forwarded().build(t, true))
			}
			write(t, d, all...)
			got, _ := newReading(plain, 64, none).read(t, sink, len(want))
			samePackets(t, "read", got, want)
		})
	}
}

// A packet that the kernel refuses keeps none of the others back.
func TestWriteGoesOnAfterARefusal(t *testing.T) {
	for _, w := range twins {
		t.Run(w.name, func(t *testing.T) {
			newNamespace(t)
			d, sink := openUp(t, w), openOther(t, plain)
			garbage := []byte{0xff, 0, 0, 1} // no IP version
			noSuper := oneTCP(5000).run(t, 1000)
			noSuper.Info.Kind = gso.UDP
			tcp := oneTCP(5000)
			all := append(runs(echo(t, 0), garbage, echo(t, 1), garbage), tcp.run(t, 1000), noSuper)
			all = append(all, runs(echo(t, 2))...)
			if n, err := d.Queues()[0].Write(all); n != 3+5 || !errors.Is(err, unix.EINVAL) {
				t.Errorf("Write = %d, %v, want 8 packets and EINVAL", n, err)
			}
			replies, _ := newReading(w, 64, vxlan).read(t, d, 3)
			for i, p := range replies {
				checkReply(t, p.bytes, uint16(i))
			}
			got, _ := newReading(plain, 64, none).read(t, sink, 5)
			samePackets(t, "forwarded", got, tcp.forwarded().segments(t, 1000))
			if tcp, udp := d.Queues()[0].Joins(); tcp != w.on(kernel.TUNTCPGRO) || udp != w.on(kernel.TUNUDPGRO) {
				t.Errorf("what no kernel would take switched a feature off: Joins = %v, %v", tcp, udp)
			}
		})
	}
}

// A device that is down refuses all that it gets, so nothing is said about superpackets.
func TestWriteWhileDown(t *testing.T) {
	for _, w := range twins {
		t.Run(w.name, func(t *testing.T) {
			newNamespace(t)
			var log logbook
			d, sink := openUpQueues(t, w, 1, &log), openOther(t, plain)
			must(t, netlink.LinkSetDown(find(t, d.Name())))
			tcp, udp := oneTCP(5000), oneUDP(5000)
			all := append(runs(echo(t, 0), echo(t, 1)), tcp.run(t, 1000), udp.run(t, 1000))
			if n, err := d.Queues()[0].Write(all); n != 0 || !errors.Is(err, unix.EIO) {
				t.Errorf("Write to a device that is down = %d, %v, want 0 and EIO", n, err)
			}
			if tcp, udp := d.Queues()[0].Joins(); tcp != w.on(kernel.TUNTCPGRO) || udp != w.on(kernel.TUNUDPGRO) {
				t.Errorf("Joins = %v, %v", tcp, udp)
			}
			checkFeatures(t, d, w, 1)
			log.check(t)
			must(t, netlink.LinkSetUp(find(t, d.Name())))
			write(t, d, append(runs(echo(t, 2)), tcp.run(t, 1000), udp.run(t, 1000))...)
			replies, _ := newReading(w, 4, vxlan).read(t, d, 1)
			checkReply(t, replies[0].bytes, 2)
			got, _ := newReading(plain, 64, none).read(t, sink, 10)
			samePackets(t, "forwarded", got, append(tcp.forwarded().segments(t, 1000), udp.forwarded().segments(t, 1000)...))
		})
	}
}

// Far more than any queue on the way holds: Write waits rather than lose a packet, and keeps the order.
func TestFlood(t *testing.T) {
	for _, w := range twins {
		t.Run(w.name, func(t *testing.T) {
			newNamespace(t)
			d := openUp(t, w)
			if w.napi() {
				shrinkQueue(t, d.(*Device))
			}
			const packets, size = 4096, 1000 // 4 MB
			fd := udpSocket(t, 5000, 4*packets*size)
			var all []gso.Run
			for number := range uint32(packets) {
				all = append(all, runs(numbered(t, number, size))...)
			}
			errs := make(chan error, 1)
			go func() {
				defer close(errs)
				for batch := range slices.Chunk(all, tunnel.BatchSize) {
					if n, err := d.Queues()[0].Write(batch); n != len(batch) || err != nil {
						errs <- fmt.Errorf("Write of %d packets = %d, %w", len(batch), n, err)
						return
					}
				}
			}()
			buf := make([]byte, 2*size)
			for want := range uint32(packets) {
				n, err := read(fd, buf)
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
	fd, err := d.queues[0].file.Begin()
	must(t, err)
	defer d.queues[0].file.End()
	must(t, unix.IoctlSetPointerInt(fd, unix.TUNSETSNDBUF, 16<<10))
}

// numbered is a UDP packet of size bytes to the host's port 5000.
func numbered(t testing.TB, number uint32, size int) []byte {
	payload := binary.BigEndian.AppendUint32(nil, number)
	payload = append(payload, make([]byte, size-32)...)
	return oneUDP(0).with(func(s *spec) { s.to, s.payload, s.id = "9.1", payload, uint16(number) }).build(t, true)
}

func TestNoAllocation(t *testing.T) {
	if racetest.Enabled {
		t.Skip("the race detector allocates")
	}
	for _, w := range twins {
		t.Run(w.name, func(t *testing.T) {
			newNamespace(t)
			d, sink := openUp(t, w), openOther(t, full)
			all := runs(echo(t, 0), echo(t, 1), echo(t, 2))
			back := len(all) // come back from the host
			forward := 0     // segments that go on to the sink
			if w.on(kernel.TUNDrain) {
				all = append(all, oneTCP(60000).run(t, 1448), oneUDP(6000).run(t, 1000))
				forward = 42 + 6
			}
			in, out := newReading(w, tunnel.BatchSize, vxlan), newReading(full, tunnel.BatchSize, vxlan)
			q := queueOf(d)
			n := testing.AllocsPerRun(100, func() {
				if n, err := q.Write(all); n != back+forward || err != nil {
					t.Fatalf("Write = %d, %v", n, err)
				}
				drain(t, d, in, back)
				drain(t, sink, out, forward)
			})
			if n != 0 {
				t.Errorf("%v allocations for %d packets written and %d read", n, back+forward, back)
			}
		})
	}
}

// drain reads n segments and allocates nothing itself.
func drain(t testing.TB, d device, r *reading, n int) {
	q := queueOf(d)
	var s gso.Splitter
	for got := 0; got < n; {
		k, err := q.Read(r.slab, r.ps, r.headroom)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range r.ps[:k] {
			switch {
			case s.Reset(p.Buf[r.headroom:], p.Info):
				got += s.Segments()
			default:
				got++
			}
		}
	}
}

func queueOf(d device) tunnel.DeviceQueue {
	if dev, ok := d.(*Device); ok {
		return dev.queues[0]
	}
	return d.(*Portable)
}
