package underlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"muslin/tunnel"
)

// batch makes n datagrams to one address: flow number i%flows, payload its flow and its place in it.
func batch(n, flows int, to netip.AddrPort) []tunnel.Datagram {
	ds := make([]tunnel.Datagram, n)
	for i := range ds {
		payload := make([]byte, 8, 100)
		binary.BigEndian.PutUint32(payload, uint32(i%flows))
		binary.BigEndian.PutUint32(payload[4:], uint32(i/flows))
		ds[i] = tunnel.Datagram{Buf: payload, Addr: to, Flow: uint32(i%flows) * 0x9e3779b1, ECN: uint8(i & 3), Err: errors.New("from the batch before")}
	}
	return ds
}

func TestSendKeepsFlowsInOrder(t *testing.T) {
	const n, flows = 300, 40 // more than one batch, more flows than sockets
	for _, portable := range []bool{false, true} {
		receiver, sender := open(t, portable), open(t, portable)
		ds := batch(n, flows, boundTo(t, receiver.listener))
		if err := sender.Send(ds); err != nil {
			t.Fatal(err)
		}
		for i := range ds {
			if ds[i].Err != nil {
				t.Fatalf("datagram %d: %v", i, ds[i].Err)
			}
		}
		ports := map[netip.AddrPort]bool{}
		portOf := map[uint32]netip.AddrPort{}
		next := map[uint32]uint32{}
		for _, r := range receive(t, receiver, n, tunnel.BatchSize, 100) {
			flow, seq := binary.BigEndian.Uint32([]byte(r.payload)), binary.BigEndian.Uint32([]byte(r.payload[4:]))
			if next[flow] != seq {
				t.Fatalf("flow %d: datagram %d when %d was next", flow, seq, next[flow])
			}
			next[flow]++
			if portOf[flow].IsValid() && portOf[flow] != r.from {
				t.Errorf("flow %d comes from %v and from %v", flow, portOf[flow], r.from)
			}
			portOf[flow], ports[r.from] = r.from, true
			if want := uint8((seq*flows + flow) & 3); r.ecn != want {
				t.Errorf("flow %d, datagram %d: ECN %d, want %d", flow, seq, r.ecn, want)
			}
		}
		if len(ports) < 8 || len(ports) > senders {
			t.Errorf("%d flows came from %d ports, want a spread over at most %d", flows, len(ports), senders)
		}
		if ports[boundTo(t, sender.listener)] {
			t.Error("a datagram came from the listening port")
		}
	}
}

func TestBadDatagramFailsAlone(t *testing.T) {
	far := netip.MustParseAddrPort("240.0.0.1:9")
	for _, c := range []struct {
		name  string
		spoil func(d *tunnel.Datagram)
		want  error
	}{
		// The sockets are bound to the loopback address, from which nothing can go elsewhere.
		{"unreachable, Not-ECT", func(d *tunnel.Datagram) { d.Addr, d.ECN = far, 0 }, unix.EINVAL},
		{"unreachable, with an ECN mark", func(d *tunnel.Datagram) { d.Addr, d.ECN = far, 2 }, unix.EINVAL},
		{"longer than any UDP datagram", func(d *tunnel.Datagram) { d.Buf = make([]byte, 65536) }, unix.EMSGSIZE},
		{"port 0", func(d *tunnel.Datagram) { d.Addr = netip.AddrPortFrom(loopback, 0) }, unix.EINVAL},
	} {
		t.Run(c.name, func(t *testing.T) {
			const n = tunnel.BatchSize
			for _, bad := range [][]int{{0}, {n / 2}, {n - 1}, {0, 1, 17, n - 1}} {
				receiver, sender := open(t, false), open(t, false)
				ds := batch(n, 5, boundTo(t, receiver.listener))
				want := map[string]uint8{}
				for i := range ds {
					if slices.Contains(bad, i) {
						c.spoil(&ds[i])
						continue
					}
					want[string(ds[i].Buf)] = ds[i].ECN
				}
				if err := sender.Send(ds); err != nil {
					t.Fatalf("Send: %v", err)
				}
				for i := range ds {
					switch {
					case !slices.Contains(bad, i) && ds[i].Err != nil:
						t.Errorf("bad %v: datagram %d: %v", bad, i, ds[i].Err)
					case slices.Contains(bad, i) && !errors.Is(ds[i].Err, c.want):
						t.Errorf("bad %v: datagram %d: error %v, want %v", bad, i, ds[i].Err, c.want)
					}
				}
				for _, r := range receive(t, receiver, n-len(bad), tunnel.BatchSize, 100) {
					ecn, ok := want[r.payload]
					if !ok || ecn != r.ecn {
						t.Errorf("bad %v: got %x with ECN %d: expected %v, with ECN %d", bad, r.payload, r.ecn, ok, ecn)
					}
					delete(want, r.payload)
				}
				if !sender.ecn.Load() {
					t.Error("a bad destination switched outer ECN off")
				}
			}
		})
	}
}

// A kernel that takes no IP_TOS for one datagram gets all of them, without ECN, and is not asked again.
func TestECNRefused(t *testing.T) {
	receiver, sender := open(t, false), open(t, false)
	for ecn := 1; ecn < 4; ecn++ {
		sender.out.tos[ecn] = tosMessage(256) // no kernel takes a TOS of nine bits
	}
	const n = tunnel.BatchSize
	for round := range 2 {
		ds := batch(n, 7, boundTo(t, receiver.listener))
		if err := sender.Send(ds); err != nil {
			t.Fatal(err)
		}
		for i := range ds {
			if ds[i].Err != nil {
				t.Fatalf("round %d, datagram %d: %v", round, i, ds[i].Err)
			}
		}
		seen := map[string]int{}
		for _, r := range receive(t, receiver, n, n, 100) {
			seen[r.payload]++
			if r.ecn != 0 {
				t.Errorf("round %d: ECN %d", round, r.ecn)
			}
		}
		if len(seen) != n {
			t.Errorf("round %d: %d different datagrams, want %d", round, len(seen), n)
		}
		on := true
		for _, f := range sender.Features() {
			if f.Name == "outer-ecn" {
				on = f.On
			}
		}
		if on {
			t.Errorf("round %d: Features still has outer-ecn on", round)
		}
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
