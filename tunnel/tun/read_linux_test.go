package tun

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"muslin/tunnel"
	"muslin/tunnel/gso"
	"muslin/tunnel/kernel"
)

// vxlan and none are the headrooms of the framings.
const (
	vxlan = 22
	none  = 0
)

// maxPacket is the longest IP packet.
const maxPacket = 65535

// poison is what a slab is full of before Read.
var poison = bytes.Repeat([]byte{0xa5}, 1<<19)

// reading is what a test gives to Read: a slab with room for the longest packet and some short ones.
type reading struct {
	slab     []byte
	ps       []tunnel.Packet
	headroom int
	header   int // of the device
}

func newReading(w twin, packets, headroom int) *reading {
	return &reading{slab: make([]byte, tunnel.PacketRoom(headroom)+16<<10), ps: make([]tunnel.Packet, packets), headroom: headroom, header: w.header()}
}

// packet is what was read, without its headroom.
type packet struct {
	bytes []byte
	info  gso.Info
}

// once reads once and checks where the packets lie.
func (r *reading) once(t testing.TB, q tunnel.DeviceQueue) (packets []packet, err error) {
	t.Helper()
	copy(r.slab, poison)
	for i := range r.ps {
		r.ps[i] = tunnel.Packet{Info: gso.Info{Kind: 77, NeedsCsum: true}} // Read must assign all of it
	}
	n, err := q.Read(r.slab, r.ps, r.headroom)
	end := 0
	for _, p := range r.ps[:n] {
		// Packets lie one behind the other, with headroom before each and no more than the header needs.
		begin := cap(r.slab) - cap(p.Buf)
		if want := end + max(r.headroom, r.header) - r.headroom; begin != want {
			t.Errorf("a packet's headroom begins at %d of the slab, want %d", begin, want)
		}
		end = begin + len(p.Buf)
		if free := p.Buf[:max(0, r.headroom-r.header)]; !bytes.Equal(free, poison[:len(free)]) {
			t.Errorf("Read wrote into the headroom: %x", free)
		}
		packets = append(packets, packet{bytes.Clone(p.Buf[r.headroom:]), p.Info})
	}
	if rest := r.slab[end:]; !bytes.Equal(rest, poison[:len(rest)]) {
		t.Error("Read wrote behind the last packet")
	}
	return packets, err
}

// read reads until n TCP, UDP or ICMP packets are there, and returns them with the number that each call took.
// It closes the device when they do not come.
func (r *reading) read(t testing.TB, d device, n int) (packets []packet, calls []int) {
	t.Helper()
	watchdog := time.AfterFunc(10*time.Second, func() { d.Close() })
	defer watchdog.Stop()
	for len(packets) < n {
		got, err := r.once(t, d.Queues()[0])
		if err != nil {
			t.Fatalf("Read after %d of %d packets: %v", len(packets), n, err)
		}
		// What the host's IPv6 has to say of its own accord does not count.
		wanted := slices.DeleteFunc(got, func(p packet) bool { return p.bytes[0]>>4 == 6 && p.bytes[6] != 6 && p.bytes[6] != 17 })
		packets = append(packets, wanted...)
		if len(wanted) > 0 {
			calls = append(calls, len(wanted))
		}
	}
	return packets, calls
}

func bytesOf(packets []packet) (all [][]byte) {
	for _, p := range packets {
		all = append(all, p.bytes)
	}
	return all
}

func samePackets(t testing.TB, what string, got []packet, want [][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d packets, want %d", what, len(got), len(want))
	}
	for i := range min(len(got), len(want)) {
		if !bytes.Equal(got[i].bytes, want[i]) {
			t.Errorf("%s: packet %d of %d: %s", what, i, len(want), difference(got[i].bytes, want[i]))
			return
		}
	}
}

func send(t testing.TB, fd int, packets ...[]byte) {
	t.Helper()
	for _, p := range packets {
		must(t, unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: [4]byte(p[16:20])}))
	}
}

// outgoing is a packet from the host to somebody behind muslin0.
func outgoing(t testing.TB, id uint16, payload int) []byte {
	return oneUDP(payload).with(func(s *spec) { s.from, s.to, s.id = "9.1", "9.7", id }).build(t, true)
}

// What the kernel sends is read byte for byte, in order; Device takes what waits in one call.
func TestRead(t *testing.T) {
	for _, w := range twins {
		t.Run(w.name, func(t *testing.T) {
			newNamespace(t)
			d := openUp(t, w)
			for _, headroom := range []int{vxlan, none} {
				var want [][]byte
				for i, payload := range []int{0, 1, 18, 100, 511, 512, 1000, 1400, 1471, 1472} {
					want = append(want, outgoing(t, uint16(i+1), payload))
				}
				send(t, rawSocket(t), want...)
				got, calls := newReading(w, 4, headroom).read(t, d, len(want))
				samePackets(t, "read", got, want)
				for i, p := range got {
					if p.info != (gso.Info{}) {
						t.Errorf("packet %d has info %+v", i, p.info)
					}
				}
				wantCalls := []int{1, 1, 1, 1, 1, 1, 1, 1, 1, 1} // Portable: one packet a call
				if w.on(kernel.TUNDrain) {
					wantCalls = []int{4, 4, 2}
				}
				if !slices.Equal(calls, wantCalls) {
					t.Errorf("the packets came in calls of %v, want %v", calls, wantCalls)
				}
			}
		})
	}
}

// A blocked Read is woken by the packet that comes.
func TestReadWaits(t *testing.T) {
	for _, w := range twins {
		t.Run(w.name, func(t *testing.T) {
			newNamespace(t)
			d := openUp(t, w)
			want := outgoing(t, 3, 33)
			fd := rawSocket(t)
			done := make(chan []packet, 1)
			go func() {
				got, err := newReading(w, 2, vxlan).once(t, d.Queues()[0])
				if err != nil {
					t.Error(err)
				}
				done <- got
			}()
			send(t, fd, want)
			samePackets(t, "read", within(t, "Read", done), [][]byte{want})
		})
	}
}

// Read goes on while the longest packet would fit, and no longer.
func TestReadFillsTheSlab(t *testing.T) {
	for _, w := range []twin{full, plain} {
		t.Run(w.name, func(t *testing.T) {
			newNamespace(t)
			d := openUp(t, w)
			must(t, netlink.LinkSetMTU(find(t, "muslin0"), 65535))
			fd := rawSocket(t)
			for _, headroom := range []int{vxlan, none} {
				each, room := max(headroom, w.header())+1000, tunnel.PacketRoom(headroom)
				small := outgoing(t, 1, 972) // 1000 bytes
				for _, c := range []struct {
					name  string
					slab  int
					calls []int
				}{
					{"room for just one", room, []int{1, 1, 1, 1}},
					{"a byte short of two", each + room - 1, []int{1, 1, 1, 1}},
					{"room for two", each + room, []int{2, 2}},
					{"a byte short of four", 3*each + room - 1, []int{3, 1}},
					{"room for four", 3*each + room, []int{4}},
				} {
					send(t, fd, small, small, small, small)
					r := newReading(w, 10, headroom)
					r.slab = make([]byte, c.slab)
					got, calls := r.read(t, d, 4)
					samePackets(t, c.name, got, [][]byte{small, small, small, small})
					if !slices.Equal(calls, c.calls) {
						t.Errorf("headroom %d, %s: the packets came in calls of %v, want %v", headroom, c.name, calls, c.calls)
					}
				}
				longest := outgoing(t, 2, 65535-28)
				send(t, fd, longest, small)
				r := newReading(w, 10, headroom)
				r.slab = make([]byte, room)
				got, _ := r.read(t, d, 2)
				samePackets(t, "the longest packet", got, [][]byte{longest, small})
			}
		})
	}
}

var superpackets = []struct {
	name string
	spec spec
	size int
	uses string // the feature that reads it whole
}{
	{"TCP over IPv4", oneTCP(64000), 1448, kernel.TUNTSO},
	{"TCP over IPv4, two segments", oneTCP(1449), 1448, kernel.TUNTSO},
	{"TCP over IPv4, the longest", oneTCP(65535 - 40), 1460, kernel.TUNTSO},
	{"TCP over IPv4 with CWR", oneTCP(5000).with(func(s *spec) { s.cwr = true }), 1000, kernel.TUNTSO},
	{"TCP over IPv6", oneTCP(64000).with(func(s *spec) { s.v6 = true }), 1428, kernel.TUNTSO},
	{"UDP over IPv4", oneUDP(60000), 1400, kernel.TUNUSO},
	{"UDP over IPv4, small ones", oneUDP(63*50 + 7), 50, kernel.TUNUSO},
	{"UDP over IPv6", oneUDP(20000).with(func(s *spec) { s.v6 = true }), 1200, kernel.TUNUSO},
}

// What the kernel forwards as a superpacket is read as one, described as it is, where the features are on, and
// cut where they are not.
func TestReadSuperpackets(t *testing.T) {
	for _, w := range twins {
		t.Run(w.name, func(t *testing.T) {
			newDualNamespace(t)
			d, source := openUp(t, w), openOther(t, full)
			for _, c := range superpackets {
				s := c.spec.with(func(s *spec) { s.from, s.to = "8.2", "9.2" })
				segments := s.forwarded().segments(t, c.size)
				for _, headroom := range []int{vxlan, none} {
					r := s.run(t, c.size)
					if n, err := source.Queues()[0].Write([]gso.Run{r}); n != len(segments) || err != nil {
						t.Fatalf("%s: Write = %d, %v", c.name, n, err)
					}
					whole := w.on(c.uses)
					if !whole {
						_, info := s.undone(t)
						if !w.on(kernel.TUNTSO) {
							info = gso.Info{}
						}
						got, _ := newReading(w, 8, headroom).read(t, d, len(segments))
						for _, p := range got {
							if p.info != info || !gso.Complete(p.bytes, p.info) {
								t.Errorf("%s: info of a segment: %+v, want %+v", c.name, p.info, info)
							}
						}
						samePackets(t, c.name, got, segments)
						continue
					}
					want, info := s.forwarded().super(t, c.size)
					got, _ := newReading(w, 8, headroom).read(t, d, 1)
					samePackets(t, c.name, got, [][]byte{want})
					if got[0].info.HeaderLen < info.HeaderLen {
						t.Errorf("%s: HeaderLen %d, want at least %d", c.name, got[0].info.HeaderLen, info.HeaderLen)
					}
					if got[0].info.HeaderLen = info.HeaderLen; got[0].info != info {
						t.Errorf("%s: info %+v, want %+v", c.name, got[0].info, info)
					}
					samePackets(t, c.name+" cut", cut(t, got[0]), segments)
				}
			}
		})
	}
}

// cut cuts a superpacket as the VTEP does.
func cut(t testing.TB, p packet) (all []packet) {
	t.Helper()
	var s gso.Splitter
	if !s.Reset(p.bytes, p.info) {
		t.Fatalf("no superpacket: %+v, %x", p.info, p.bytes[:40])
	}
	for {
		front := make([]byte, s.HeaderLen())
		payload, ok := s.Next(front)
		if !ok {
			return all
		}
		all = append(all, packet{bytes: append(front, payload...)})
	}
}

// Superpackets and packets that wait together are read together.
func TestReadDrainsSuperpackets(t *testing.T) {
	newNamespace(t)
	d, source := openUp(t, full), openOther(t, full)
	var want [][]byte
	var all []gso.Run
	for i := range 3 {
		tcp := oneTCP(30000).with(func(s *spec) { s.from, s.to, s.sport = "8.2", "9.2", uint16(i) })
		udp := oneUDP(3000).with(func(s *spec) { s.from, s.to, s.sport = "8.2", "9.2", uint16(i) })
		small := oneUDP(3).with(func(s *spec) { s.from, s.to = "8.2", "9.2" })
		all = append(all, tcp.run(t, 1448), runs(small.build(t, true))[0], udp.run(t, 1000))
		a, _ := tcp.forwarded().super(t, 1448)
		c, _ := udp.forwarded().super(t, 1000)
		want = append(want, a, small.forwarded().build(t, true), c)
	}
	if n, err := source.Queues()[0].Write(all); n != 3*(21+1+3) || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	r := newReading(full, 64, vxlan)
	r.slab = make([]byte, 4*tunnel.PacketRoom(vxlan))
	got, calls := r.read(t, d, len(want))
	samePackets(t, "read", got, want)
	if !slices.Equal(calls, []int{9}) {
		t.Errorf("the packets came in calls of %v, want all in one", calls)
	}
}

// A checksum that the host leaves to its NIC is left to us where we said that we finish it.
func TestReadUnfinishedChecksum(t *testing.T) {
	for _, w := range twins {
		t.Run(w.name, func(t *testing.T) {
			newNamespace(t)
			d := openUp(t, w)
			fd := udpSocket(t, 4000, 1<<16)
			payload := random(333)
			must(t, unix.Sendto(fd, payload, 0, &unix.SockaddrInet4{Addr: [4]byte{10, 9, 0, 7}, Port: 5000}))
			got, _ := newReading(w, 4, vxlan).read(t, d, 1)
			p := got[0].bytes
			var want gso.Info
			if w.on(kernel.TUNTSO) {
				want = gso.Info{NeedsCsum: true, CsumStart: 20, CsumOffset: 6}
			}
			if got[0].info != want {
				t.Errorf("info %+v, want %+v", got[0].info, want)
			}
			if !gso.Complete(p, got[0].info) {
				t.Error("the info's offsets lie outside the packet")
			}
			finished := bytes.Clone(p)
			finish(finished, 20, 6)
			if !bytes.Equal(p, finished) || !bytes.Equal(p[28:], payload) {
				t.Errorf("read %x, want %x", p, finished)
			}
		})
	}
}

// within fails the test when nothing comes out of done in ten seconds.
func within[T any](t testing.TB, what string, done <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: nothing in 10 seconds", what)
	}
	return v
}

// isClosed reports whether err is what a closed device gives.
func isClosed(err error) bool { return errors.Is(err, os.ErrClosed) }
