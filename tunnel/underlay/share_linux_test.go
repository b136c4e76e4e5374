package underlay

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"muslin/tunnel"
)

// The filter lets in the peers of all shares: each before its table is used, and kept out is only whom no share wants.
func TestEarlyFilterOfShares(t *testing.T) {
	c := open(t, "auto", nil) // its own peer is the loopback address
	a, b, both := loopbackHost(2), loopbackHost(3), loopbackHost(4)
	want := func(when string, want ...netip.Addr) {
		t.Helper()
		if got := passes(t, c, loopback, a, b, both); !slices.Equal(got, want) {
			t.Errorf("%s %v come through, want %v", when, got, want)
		}
	}
	one, two := c.Share(), c.Share()
	one.SetPeers(tableOf(a, both), func() { want("before the first table is used", a, both) })
	two.SetPeers(tableOf(b, both), func() { want("before the second table is used", a, b, both) })
	c.filter.narrow()
	want("with two shares", a, b, both)

	two.SetPeers(tableOf(both), func() {})
	want("before it is made narrow", a, b, both)
	c.filter.narrow()
	want("without the second share's own peer", a, both)

	// What is set while another process sees to the filter counts afterwards.
	c.Pause()
	two.SetPeers(tableOf(b), func() {})
	c.Resume()
	want("after a pause", a, b, both)

	for range 2 {
		one.Close()
	}
	c.filter.narrow()
	want("without the first share", b)
	used := false
	one.SetPeers(tableOf(a), func() { used = true })
	c.filter.narrow()
	if want("with a share that is closed", b); !used {
		t.Error("its table is not in use")
	}
	select {
	case <-c.filter.dirty:
	default:
		t.Error("Run is not told that the filter may be too wide")
	}
}

// The last share's peers stay let in, as another process may have the sockets by now.
func TestEarlyFilterOfNoShare(t *testing.T) {
	cfg := config(t, "auto", nil)
	c, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := c.Share()
	s.SetPeers(tableOf(loopback), func() {})
	s.Close()
	c.filter.narrow()
	if got := passes(t, c, loopback, loopbackHost(2)); len(got) != 0 {
		t.Errorf("%v come through as well", got)
	}
}

// Shares send through the same sockets, from the same source ports, and none receives.
func TestSharesSend(t *testing.T) {
	for _, features := range []string{"auto", "none"} {
		sender, receiver := open(t, features, nil), open(t, features, nil)
		to := boundTo(t, receiver.queues[0].listener)
		ports := make(map[uint8]uint16)
		for k := range 2 {
			s := sender.Share()
			defer s.Close()
			queues := s.Queues()
			if len(queues) != 1 {
				t.Fatalf("%d queues", len(queues))
			}
			if got, own := queues[0].MaxSegments(), sender.queues[0].MaxSegments(); got != own {
				t.Errorf("%d segments, want %d", got, own)
			}
			if _, err := queues[0].Receive(make([]tunnel.Datagram, 1)); !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("Receive: %v", err)
			}
			for port := range uint8(3) {
				m := run(to, port, []byte(fmt.Sprint("share ", k, ", port ", port)))
				if err := queues[0].Send([]tunnel.Message{m}); err != nil {
					t.Fatal(err)
				}
				got, _ := receive(t, receiver, 1, 8, 1<<16)
				checkPayloads(t, got, []byte(fmt.Sprint("share ", k, ", port ", port)))
				if was, ok := ports[port]; ok && was != got[0].from.Port() {
					t.Errorf("source port %d is %d with one share and %d with the other", port, was, got[0].from.Port())
				}
				ports[port] = got[0].from.Port()
			}
		}
		sockets, err := sender.Sockets()
		if err != nil {
			t.Fatal(err)
		}
		if n := len(sockets.Send); n != len(sender.senders) || len(sockets.Receive) != 1 {
			t.Errorf("%d sending sockets to hand over, want %d", n, len(sender.senders))
		}
		sockets.Close()
		if err := sender.Close(); err != nil {
			t.Error(err)
		}
		if err := sender.Share().Queues()[0].Send([]tunnel.Message{run(to, 0, []byte("x"))}); err == nil {
			t.Error("Send after Close")
		}
	}
}

// However many shares change their peers, a churn makes as few filters as one table's does.
func TestEarlyFilterChurnOfShares(t *testing.T) {
	c := open(t, "auto", nil)
	for i := range 100 {
		s := c.Share()
		for k := range 10 {
			s.SetPeers(tableOf(loopbackHost(uint32(1000+10*i+k))), func() {})
		}
		defer s.Close()
	}
	if c.filter.attached > 22 {
		t.Errorf("%d filters were made for 1000 changes", c.filter.attached)
	}
}
