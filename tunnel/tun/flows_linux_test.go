package tun

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"muslin/tunnel"
	"muslin/tunnel/gso"
	"muslin/tunnel/kernel"
)

// mixture makes packets of several flows among each other: equal ones, shorter ones, ends of bursts.
func mixture(t testing.TB) (packets, forwarded [][]byte) {
	r := rand.New(rand.NewPCG(3, 4))
	flows := []spec{
		oneTCP(0), oneTCP(0).with(func(s *spec) { s.v6 = true }),
		oneUDP(0), oneUDP(0).with(func(s *spec) { s.v6 = true }),
		oneTCP(0).with(func(s *spec) { s.sport = 7 }), oneUDP(0).with(func(s *spec) { s.sport = 7 }),
	}
	for len(packets) < 600 {
		s := &flows[r.IntN(len(flows))]
		for n := 1 + r.IntN(20); n > 0; n-- {
			size := 1000
			if r.IntN(10) == 0 {
				size = 1 + r.IntN(1400)
			}
			s.payload = make([]byte, size)
			for i := range s.payload {
				s.payload[i] = byte(r.Uint32())
			}
			last := n == 1 && r.IntN(2) == 0
			packets = append(packets, s.build(t, last))
			forwarded = append(forwarded, s.forwarded().build(t, last))
			s.seq += uint32(size)
			s.id++
		}
	}
	return packets, forwarded
}

// flowOf is what a packet's flow is known by.
func flowOf(p []byte) string {
	if p[0]>>4 == 6 {
		return fmt.Sprintf("IPv6 %x %x", p[6], p[40:44])
	}
	return fmt.Sprintf("IPv4 %x %x", p[9], p[20:24])
}

func byFlow(packets [][]byte) map[string][][]byte {
	all := map[string][][]byte{}
	for _, p := range packets {
		all[flowOf(p)] = append(all[flowOf(p)], p)
	}
	return all
}

// Whatever is on, and joined before Write as the VTEP does, the next hop gets the same packets of each flow.
func TestTwinsDeliverTheSame(t *testing.T) {
	for _, w := range twins {
		t.Run(w.name, func(t *testing.T) {
			newDualNamespace(t)
			d, sink := openUp(t, w), openOther(t, plain)
			packets, forwarded := mixture(t)
			join := gso.NewCoalescer(tunnel.BatchSize)
			q := d.Queues()[0]
			segments, superpackets := 0, 0
			var got []packet
			for len(packets) > 0 {
				join.TCP, join.UDP = q.Joins()
				n := 0
				for n < len(packets) && join.Add(packets[n], gso.Info{}) {
					n++
				}
				all := join.Runs()
				for _, r := range all {
					if r.Segments > 1 {
						superpackets++
					}
				}
				write(t, d, all...)
				join.Reset()
				packets = packets[n:]
				segments += n
				more, _ := newReading(plain, 64, none).read(t, sink, n)
				got = append(got, more...)
			}
			want := byFlow(forwarded)
			flows := byFlow(bytesOf(got))
			if len(flows) != len(want) {
				t.Errorf("%d flows, want %d", len(flows), len(want))
			}
			for flow, packets := range flows {
				var all []packet
				for _, p := range packets {
					all = append(all, packet{bytes: p})
				}
				samePackets(t, "flow "+flow, all, want[flow])
			}
			if joins := w.on(kernel.TUNTCPGRO) || w.on(kernel.TUNUDPGRO); joins != (superpackets > 0) {
				t.Errorf("%d superpackets of %d packets", superpackets, segments)
			}
		})
	}
}

// far is a host of its own, in another network namespace, on a thread of its own.
type far struct{ calls chan func() }

func newFar(t testing.TB) *far {
	t.Helper()
	f := &far{calls: make(chan func())}
	begun := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the namespaces end with the thread
		begun <- errors.Join(unix.Unshare(unix.CLONE_NEWNET), mountSys())
		for call := range f.calls {
			call()
		}
	}()
	must(t, <-begun)
	t.Cleanup(func() { close(f.calls) })
	return f
}

// do runs f there.
func (f *far) do(t testing.TB, call func() error) {
	t.Helper()
	done := make(chan error)
	f.calls <- func() { done <- call() }
	must(t, <-done)
}

// A TCP connection between two hosts, each behind a device of its own:
//
//	host 10.9.0.1 ── muslin0 (the twin) ── test ── muslin0 (full, or portable) ── host 10.9.0.2
//
// All that it carries arrives, both ways, in superpackets where there can be any.
func TestConnection(t *testing.T) {
	for _, w := range twins {
		for _, other := range []twin{full, {"portable", "none"}} {
			t.Run(w.name+" to "+other.name, func(t *testing.T) {
				newNamespace(t)
				near := openUp(t, w)
				f := newFar(t)
				var distant device
				var listener *net.TCPListener
				f.do(t, func() (err error) {
					if distant, err = other.open("muslin0"); err != nil {
						return err
					}
					t.Cleanup(func() { distant.Close() })
					link, err := netlink.LinkByName("muslin0")
					if err != nil {
						return err
					}
					addr, err := netlink.ParseAddr("10.9.0.2/24")
					if err != nil {
						return err
					}
					if err := errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link)); err != nil {
						return err
					}
					listener, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IP{10, 9, 0, 2}, Port: 5000})
					return err
				})
				defer listener.Close()
				out, back := make(chan shuttled, 1), make(chan shuttled, 1)
				go func() { out <- shuttle(w, near, distant) }()
				go func() { back <- shuttle(other, distant, near) }()
				exchange(t, listener, 1<<20)
				must(t, near.Close())
				must(t, distant.Close())
				for _, c := range []struct {
					from, to twin
					s        shuttled
				}{{w, other, within(t, "shuttle", out)}, {other, w, within(t, "shuttle", back)}} {
					if c.s.err != nil {
						t.Errorf("%s to %s: %v", c.from.name, c.to.name, c.s.err)
					}
					if c.from.on(kernel.TUNTSO) != (c.s.superpackets > 0) {
						t.Errorf("%s to %s: %d superpackets", c.from.name, c.to.name, c.s.superpackets)
					}
				}
				if tcp, _ := queueOf(near).Joins(); tcp != w.on(kernel.TUNTCPGRO) {
					t.Errorf("Joins = %v", tcp)
				}
			})
		}
	}
}

// shuttled is what has gone one way.
type shuttled struct {
	superpackets int
	err          error
}

// shuttle carries what one device gives to the other, until one is closed.
func shuttle(w twin, from, to device) (s shuttled) {
	r := newReading(w, 8, none)
	in, out := from.Queues()[0], to.Queues()[0]
	for {
		n, err := in.Read(r.slab, r.ps, none)
		if err != nil {
			if !isClosed(err) {
				s.err = err
			}
			return s
		}
		for _, p := range r.ps[:n] {
			if p.Info.Kind != gso.None {
				s.superpackets++
			}
			run := gso.Run{Info: p.Info, Bufs: [][]byte{p.Buf}, Segments: p.Info.Segments(len(p.Buf)), Len: len(p.Buf)}
			if _, err := out.Write([]gso.Run{run}); err != nil {
				if !isClosed(err) {
					s.err = err
				}
				return s
			}
		}
	}
}

// exchange opens a connection and sends n bytes each way.
func exchange(t *testing.T, listener *net.TCPListener, n int) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	must(t, listener.SetDeadline(deadline))
	data := [2][]byte{random(n), random(n + 1)}
	results := make(chan error, 2)
	side := func(conn *net.TCPConn, err error, mine, theirs []byte) error {
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
		sent := make(chan error, 1)
		go func() {
			_, err := conn.Write(mine)
			sent <- errors.Join(err, conn.CloseWrite())
		}()
		got, err := io.ReadAll(conn)
		if err := errors.Join(err, <-sent); err != nil {
			return err
		}
		if sha256.Sum256(got) != sha256.Sum256(theirs) {
			return fmt.Errorf("%d bytes received, not the %d that were sent", len(got), len(theirs))
		}
		return nil
	}
	go func() {
		conn, err := listener.AcceptTCP()
		results <- side(conn, err, data[0], data[1])
	}()
	conn, err := net.DialTCP("tcp4", nil, &net.TCPAddr{IP: net.IP{10, 9, 0, 2}, Port: 5000})
	results <- side(conn, err, data[1], data[0])
	for range 2 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}
