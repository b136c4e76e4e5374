package underlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"muslin/tunnel"
	"muslin/tunnel/kernel"
)

// traffic makes messages of many flows, with every number of datagrams, length and cut into pieces, and
// remembers what must come of them.
type traffic struct {
	rand *rand.Rand
	next map[uint32]uint32 // flow to the place of its next datagram
	want map[string]uint8  // payload to ECN
}

const flows = 40

func newTraffic(seed uint64) *traffic {
	return &traffic{rand: rand.New(rand.NewPCG(1, seed)), next: map[uint32]uint32{}, want: map[string]uint8{}}
}

func (r *traffic) message(to netip.AddrPort) tunnel.Message {
	flow := uint32(r.rand.IntN(flows))
	segments := []int{1, 1, 2, 1 + r.rand.IntN(20), maxSegments, maxSegments + 1, 1 + r.rand.IntN(100)}[r.rand.IntN(7)]
	size := 8 + r.rand.IntN(200)
	m := tunnel.Message{Addr: to, Port: uint8(flow % tunnel.SourcePorts), ECN: uint8(r.rand.IntN(4)), Size: size, Segments: segments, Failed: 99, Err: errors.New("from the batch before")}
	var all []byte
	for i := range segments {
		length := size
		if i == segments-1 {
			length = 8 + r.rand.IntN(size-7)
		}
		d := make([]byte, length)
		for k := range d {
			d[k] = byte(r.rand.Uint32())
		}
		binary.BigEndian.PutUint32(d, flow)
		binary.BigEndian.PutUint32(d[4:], r.next[flow])
		r.next[flow]++
		r.want[string(d)] = m.ECN
		all = append(all, d...)
	}
	m.Len, m.Bufs = len(all), r.cut(all)
	return m
}

// cut cuts b where nobody would expect it, now and then into crumbs.
func (r *traffic) cut(b []byte) (pieces [][]byte) {
	longest := []int{1, 300}[r.rand.IntN(2)]
	for n := 1 + r.rand.IntN(tunnel.MaxBuffers); len(pieces) < n-1 && len(b) > 1; {
		k := 1 + r.rand.IntN(min(len(b)-1, longest))
		pieces, b = append(pieces, b[:k]), b[k:]
	}
	return append(pieces, b)
}

// Whatever way the datagrams go, they arrive as they are, those of a flow in order and from one port.
func TestSendKeepsFlowsInOrder(t *testing.T) {
	eachFamily(t, sendKeepsFlowsInOrder)
}

func sendKeepsFlowsInOrder(t *testing.T, local netip.Addr) {
	for i, features := range twins {
		t.Run(features, func(t *testing.T) {
			receiver, sender := open(t, "auto", on(local)), open(t, features, on(local))
			to := boundTo(t, receiver.queues[0].listener)
			r := newTraffic(uint64(i))
			arrived := newArrivals(r, sender)
			for range 20 {
				before := len(r.want)
				var ms []tunnel.Message
				for range 1 + r.rand.IntN(tunnel.BatchSize+20) {
					ms = append(ms, r.message(to))
				}
				done := make(chan error, 1)
				go func() { done <- sender.queues[0].Send(ms) }()
				got, _ := receive(t, receiver, len(r.want)-before, 8, 1<<16)
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				for i := range ms {
					if ms[i].Failed != 0 || ms[i].Err != nil {
						t.Fatalf("message %d: %d failed: %v", i, ms[i].Failed, ms[i].Err)
					}
				}
				arrived.check(t, got)
			}
			if arrived.ports[boundTo(t, sender.queues[0].listener)] {
				t.Error("a datagram came from the listening port")
			}
			want := 1
			if sender.cfg.Features.On(kernel.SourcePorts) {
				want = tunnel.SourcePorts
			}
			if len(arrived.ports) != want {
				t.Errorf("%d flows came from %d ports, want %d", flows, len(arrived.ports), want)
			}
		})
	}
}

// arrivals is what has arrived of some traffic.
type arrivals struct {
	r      *traffic
	ecn    bool
	ports  map[netip.AddrPort]bool
	portOf map[uint32]netip.AddrPort
	next   map[uint32]uint32
}

func newArrivals(r *traffic, sender *Conn) *arrivals {
	return &arrivals{r: r, ecn: sender.cfg.Features.On(kernel.OuterECN), ports: map[netip.AddrPort]bool{}, portOf: map[uint32]netip.AddrPort{}, next: map[uint32]uint32{}}
}

func (a *arrivals) check(t *testing.T, all []received) {
	t.Helper()
	for _, r := range all {
		ecn, ok := a.r.want[r.payload]
		if !ok {
			t.Fatalf("received what nobody sent: %s", summary([]received{r}))
		}
		flow, seq := binary.BigEndian.Uint32([]byte(r.payload)), binary.BigEndian.Uint32([]byte(r.payload[4:]))
		if a.next[flow] != seq {
			t.Fatalf("flow %d: datagram %d when %d was next", flow, seq, a.next[flow])
		}
		a.next[flow]++
		if a.portOf[flow].IsValid() && a.portOf[flow] != r.from {
			t.Errorf("flow %d comes from %v and from %v", flow, a.portOf[flow], r.from)
		}
		a.portOf[flow], a.ports[r.from] = r.from, true
		if !a.ecn {
			ecn = 0
		}
		if r.ecn != ecn || r.truncated {
			t.Errorf("flow %d, datagram %d: ECN %d, want %d; truncated: %v", flow, seq, r.ecn, ecn, r.truncated)
		}
	}
}

func TestBadDatagramFailsAlone(t *testing.T) {
	far := netip.MustParseAddrPort("240.0.0.1:9")
	manyFar := run(far, 3, datagrams(20, 100, 50)...)
	marked := manyFar
	marked.ECN = 2
	for _, c := range []struct {
		name string
		bad  tunnel.Message
		want error
	}{
		// The sockets are bound to the loopback address, from which nothing can go elsewhere.
		{"unreachable, Not-ECT", run(far, 3, make([]byte, 9)), unix.EINVAL},
		{"unreachable, with an ECN mark", tunnel.Message{Bufs: [][]byte{{1}}, Len: 1, Size: 1, Segments: 1, Addr: far, ECN: 2}, unix.EINVAL},
		{"unreachable run", manyFar, unix.EINVAL},
		{"unreachable run with an ECN mark", marked, unix.EINVAL},
		{"longer than any UDP datagram", run(netip.AddrPort{}, 3, make([]byte, 65536)), unix.EMSGSIZE},
		{"port 0", run(netip.AddrPortFrom(loopback, 0), 3, make([]byte, 9)), unix.EINVAL},
		{"run to port 0", run(netip.AddrPortFrom(loopback, 0), 3, datagrams(3, 50, 50)...), unix.EINVAL},
	} {
		t.Run(c.name, func(t *testing.T) {
			const n = tunnel.BatchSize
			for _, bad := range [][]int{{0}, {n / 2}, {n - 1}, {0, 1, 17, n - 1}} {
				var log logbook
				receiver := open(t, "auto", nil)
				sender := open(t, "auto", func(cfg *Config) { *cfg = config(t, "auto", &log) })
				to := boundTo(t, receiver.queues[0].listener)
				ms := singles(n, 5, to)
				want := map[string]uint8{}
				for i := range ms {
					if slices.Contains(bad, i) {
						ms[i] = c.bad
						if !ms[i].Addr.IsValid() {
							ms[i].Addr = to
						}
						continue
					}
					want[string(slices.Concat(ms[i].Bufs...))] = ms[i].ECN
				}
				if err := sender.queues[0].Send(ms); err != nil {
					t.Fatalf("Send: %v", err)
				}
				for i := range ms {
					switch {
					case !slices.Contains(bad, i) && (ms[i].Err != nil || ms[i].Failed != 0):
						t.Errorf("bad %v: message %d: %d failed: %v", bad, i, ms[i].Failed, ms[i].Err)
					case slices.Contains(bad, i) && (!errors.Is(ms[i].Err, c.want) || ms[i].Failed != ms[i].Segments):
						t.Errorf("bad %v: message %d: %d of %d failed: %v, want all, and %v", bad, i, ms[i].Failed, ms[i].Segments, ms[i].Err, c.want)
					}
				}
				all, _ := receive(t, receiver, n-len(bad), tunnel.BatchSize, 1000)
				for _, r := range all {
					ecn, ok := want[r.payload]
					if !ok || ecn != r.ecn {
						t.Errorf("bad %v: got %x with ECN %d: expected %v, with ECN %d", bad, r.payload, r.ecn, ok, ecn)
					}
					delete(want, r.payload)
				}
				if !sender.ecn.Load() {
					t.Error("a bad destination switched outer ECN off")
				}
				if got := sender.queues[0].MaxSegments(); got != maxSegments || !sender.senders[3].takes(maxSegments, 1400, receiver.cfg.Local) {
					t.Errorf("a bad destination changed what goes out in one piece: %d, %+v", got, sender.gsoFeature())
				}
				log.check(t, "none", 0)
			}
		})
	}
}

// A kernel that takes no IP_TOS for one datagram gets all of them, without ECN, and is not asked again.
func TestECNRefused(t *testing.T) {
	var log logbook
	receiver := open(t, "auto", nil)
	sender := open(t, "auto", func(cfg *Config) { *cfg = config(t, "auto", &log) })
	to := boundTo(t, receiver.queues[0].listener)
	const n = tunnel.BatchSize
	for round := range 2 {
		ms := singles(n, 1, to)
		q := sender.queues[0]
		for i := range ms {
			ms[i].Failed, ms[i].Err = 0, nil
			if err := q.add(&q.out.ways[0], &ms[i]); err != nil {
				t.Fatal(err)
			}
			if oob := q.out.whole.msgs[i].OOB; len(oob) > 0 {
				binary.NativeEndian.PutUint32(oob[unix.CmsgLen(0):], 256) // no kernel takes a TOS of nine bits
			}
		}
		if err := q.transmit(&q.out.ways[0], &q.out.whole); err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		all, _ := receive(t, receiver, n, n, 100)
		for _, r := range all {
			seen[r.payload] = true
			if r.ecn != 0 {
				t.Errorf("round %d: ECN %d", round, r.ecn)
			}
		}
		if len(seen) != n {
			t.Errorf("round %d: %d different datagrams, want %d", round, len(seen), n)
		}
		for i := range ms {
			if ms[i].Failed != 0 || ms[i].Err != nil {
				t.Errorf("round %d, message %d: %d failed: %v", round, i, ms[i].Failed, ms[i].Err)
			}
		}
		if f := sender.ecnFeature(); f.On || !strings.Contains(f.Reason, "refused") {
			t.Errorf("round %d: feature %+v", round, f)
		}
		log.check(t, "outer-ecn", 1)
	}
	// Runs have none either.
	m := run(to, 0, datagrams(10, 100, 100)...)
	m.ECN = 3
	send(t, sender, m)
	all, joined := receive(t, receiver, 10, 4, 4000)
	for _, r := range all {
		if r.ecn != 0 {
			t.Errorf("run: ECN %d", r.ecn)
		}
	}
	if !slices.Equal(joined, []int{10}) {
		t.Errorf("the run arrived as %v", joined)
	}
}

func TestSendError(t *testing.T) {
	wrap := func(errno syscall.Errno) error {
		return fmt.Errorf("write udp: %w", os.NewSyscallError("sendmmsg", errno))
	}
	if err := sendError(wrap(unix.ENOBUFS)); !errors.Is(err, tunnel.ErrSendBufferFull) {
		t.Errorf("ENOBUFS: %v", err)
	}
	if err := sendError(wrap(unix.EPERM)); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "firewall") {
		t.Errorf("EPERM: %v", err)
	}
	if err := sendError(wrap(unix.ENETUNREACH)); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("ENETUNREACH: %v", err)
	}
}

// An unconnected socket that is told of ICMP errors gets that of an earlier datagram. It costs no datagram.
func TestEarlierErrorIsNoFailure(t *testing.T) {
	for _, features := range twins {
		t.Run(features, func(t *testing.T) {
			receiver, sender := open(t, "auto", nil), open(t, features, nil)
			for _, s := range sender.senders {
				setInt(t, s.socket, unix.IPPROTO_IP, unix.IP_RECVERR, 1)
			}
			nobody := netip.AddrPortFrom(loopback, freePort(t))
			to := boundTo(t, receiver.queues[0].listener)
			for range 3 {
				send(t, sender, run(nobody, 0, []byte("nobody is there")))
				send(t, sender, run(to, 0, []byte("single")), run(nobody, 0, []byte("nobody is there")), run(to, 0, datagrams(5, 100, 100)...), run(to, 0, []byte("single")))
				got, _ := receive(t, receiver, 7, 8, 1000)
				if got[0].payload != "single" || len(got[1].payload) != 100 || got[6].payload != "single" {
					t.Errorf("received %s", summary(got))
				}
			}
		})
	}
}

// The cutter against the obvious: all bytes in one slice, cut at every size bytes.
func TestCutter(t *testing.T) {
	r := newTraffic(77)
	for range 2000 {
		whole := make([]byte, 1+r.rand.IntN(3000))
		for i := range whole {
			whole[i] = byte(r.rand.Uint32())
		}
		size := 1 + r.rand.IntN(500)
		bufs := r.cut(whole)
		if r.rand.IntN(2) == 0 { // cuts that fall on the datagrams' ends
			bufs = slices.Collect(slices.Chunk(whole, size*(1+r.rand.IntN(2))))
		}
		lengths := func() (n []int) {
			for _, b := range bufs {
				n = append(n, len(b))
			}
			return n
		}
		var got [][]byte
		dst := make([][]byte, len(bufs))
		for c := (cutter{bufs: bufs}); c.more(); {
			n := c.next(size, dst)
			if n == 0 {
				t.Fatalf("an empty datagram: %d bytes at every %d out of %v", len(whole), size, lengths())
			}
			got = append(got, slices.Concat(dst[:n]...))
		}
		if want := slices.Collect(slices.Chunk(whole, size)); !slices.EqualFunc(got, want, slices.Equal) {
			t.Fatalf("%d bytes at every %d out of %v: %d datagrams, want %d", len(whole), size, lengths(), len(got), len(want))
		}
	}
}
