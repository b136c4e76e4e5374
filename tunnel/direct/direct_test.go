package direct

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"muslin/tunnel/fib"
	"muslin/tunnel/way"
)

var (
	prefix = netip.MustParsePrefix
	addr   = netip.MustParseAddr
)

func TestRoutesFollowPeers(t *testing.T) {
	inBubble(t, func(k *fakeKernel) {
		k.hops[addr("203.0.113.3")] = way.Hop{Iface: "eth0", Gateway: addr("192.0.2.254")}
		k.hops[addr("198.51.100.4")] = way.Hop{Iface: "wlan0"}
		k.hops[addr("192.0.2.5")] = way.Hop{Err: "network is unreachable"}
	}, func(s *scene) {
		s.set("10.244.2.0/24", "192.0.2.2", "10.244.3.0/24", "203.0.113.3", "10.244.4.0/24", "198.51.100.4", "10.244.5.0/24", "192.0.2.5")
		s.want("10.244.2.0/24 via 192.0.2.2")
		s.wantRule("10.244.2.0/24", "192.0.2.2", way.RuleOnLink)
		s.wantRule("10.244.3.0/24", "203.0.113.3", way.RuleGateway)
		s.wantRule("10.244.4.0/24", "198.51.100.4", way.RuleInterface)
		s.wantRule("10.244.5.0/24", "192.0.2.5", way.RuleUnreachable)
		// One moves onto our link, one off it, one comes and one goes.
		s.set("10.244.2.0/24", "203.0.113.3", "10.244.3.0/24", "192.0.2.3", "10.244.6.0/24", "192.0.2.6")
		s.want("10.244.3.0/24 via 192.0.2.3, 10.244.6.0/24 via 192.0.2.6")
		s.set("10.244.3.0/24", "192.0.2.33", "10.244.6.0/24", "192.0.2.6")
		s.want("10.244.3.0/24 via 192.0.2.33, 10.244.6.0/24 via 192.0.2.6")
		s.set()
		s.want("")
		if _, _, added, removed := s.kernel.counts(); added != removed {
			s.Errorf("%d added, %d removed", added, removed)
		}
	})
}

// A path that gets a gateway loses its route, and gets it back with the path. The rest is not touched.
func TestUnderlayChanges(t *testing.T) {
	for name, c := range map[string]struct {
		deaf bool
		wait time.Duration
	}{
		"events":    {false, settleBusy},
		"no events": {true, resync},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(k *fakeKernel) { k.deaf = c.deaf }, func(s *scene) {
				s.set("10.244.2.0/24", "192.0.2.2", "10.244.3.0/24", "192.0.2.3")
				s.kernel.counts()
				s.kernel.change(Underlay, func() {
					s.kernel.hops[addr("192.0.2.2")] = way.Hop{Iface: "eth0", Gateway: addr("192.0.2.254")}
				})
				after(c.wait)
				s.want("10.244.3.0/24 via 192.0.2.3")
				s.wantRule("10.244.2.0/24", "192.0.2.2", way.RuleGateway)
				s.kernel.change(Underlay, func() { clear(s.kernel.hops) })
				after(c.wait)
				s.want("10.244.2.0/24 via 192.0.2.2, 10.244.3.0/24 via 192.0.2.3")
				if _, _, added, removed := s.kernel.counts(); added != 1 || removed != 1 {
					s.Errorf("%d added, %d removed; want 1 and 1", added, removed)
				}
			})
		})
	}
}

// After a quiet time a look comes at once; many events make few looks.
func TestManyEvents(t *testing.T) {
	inBubble(t, nil, func(s *scene) {
		s.set("10.244.2.0/24", "192.0.2.2")
		after(2 * time.Second)
		s.kernel.counts()
		s.kernel.change(Underlay, func() {})
		after(settleQuiet)
		if asked, _, _, _ := s.kernel.counts(); asked != 1 {
			s.Errorf("%d questions %v after the event, want 1", asked, settleQuiet)
		}
		for range 1000 {
			s.kernel.change(Underlay, func() {})
			after(time.Millisecond)
		}
		if asked, _, _, _ := s.kernel.counts(); asked < 5 || asked > 11 {
			s.Errorf("%d questions in a second full of events", asked)
		}
	})
}

func TestSettle(t *testing.T) {
	for _, c := range []struct{ since, took, want time.Duration }{
		{time.Hour, 0, settleQuiet},
		{time.Second, 100 * time.Millisecond, time.Second},
		{0, time.Millisecond, settleBusy},
		{0, 50 * time.Millisecond, time.Second},
		{900 * time.Millisecond, 50 * time.Millisecond, settleBusy},
	} {
		if got := settle(c.since, c.took); got != c.want {
			t.Errorf("settle(%v, %v) = %v, want %v", c.since, c.took, got, c.want)
		}
	}
}

func TestLostRouteComesBack(t *testing.T) {
	inBubble(t, nil, func(s *scene) {
		s.set("10.244.2.0/24", "192.0.2.2", "10.244.3.0/24", "192.0.2.3")
		s.kernel.change(Routes, func() { s.kernel.routes = s.kernel.routes[1:] })
		after(settleBusy)
		s.want("10.244.2.0/24 via 192.0.2.2, 10.244.3.0/24 via 192.0.2.3")
		if !strings.Contains(s.log.String(), "direct routes went that we did not remove") {
			s.Errorf("log:\n%s", s.log.String())
		}
	})
}

// The interface goes with all its routes, and comes again under another number.
func TestInterfaceComesAgain(t *testing.T) {
	inBubble(t, nil, func(s *scene) {
		s.set("10.244.2.0/24", "192.0.2.2")
		s.kernel.change(Routes|Underlay, func() {
			s.kernel.iface, s.kernel.routes = 0, nil
			s.kernel.hops[addr("192.0.2.2")] = way.Hop{Err: "network is unreachable"}
		})
		after(settleBusy)
		s.want("")
		s.wantRule("10.244.2.0/24", "192.0.2.2", way.RuleUnreachable)
		s.kernel.change(Underlay, func() {
			s.kernel.iface = 9
			clear(s.kernel.hops)
		})
		after(settleBusy)
		s.want("10.244.2.0/24 via 192.0.2.2")
	})
}

// A foreign route stays, the peer stays encapsulated, and that is said once.
func TestForeignRoute(t *testing.T) {
	inBubble(t, func(k *fakeKernel) { k.foreign[prefix("10.244.2.0/24")] = true }, func(s *scene) {
		s.set("10.244.2.0/24", "192.0.2.2", "10.244.3.0/24", "192.0.2.3")
		s.want("10.244.3.0/24 via 192.0.2.3")
		s.wantRule("10.244.2.0/24", "192.0.2.2", way.RuleRefused)
		if c := s.router.Choice(s.peers["10.244.2.0/24 192.0.2.2"]); !strings.Contains(c.Reason(), "another program's route is there") {
			s.Errorf("%+v", c)
		}
		after(3 * resync)
		if n := strings.Count(s.log.String(), "cannot be installed"); n != 1 {
			s.Errorf("said %d times:\n%s", n, s.log.String())
		}
		s.kernel.change(0, func() { clear(s.kernel.foreign) })
		after(resync)
		s.want("10.244.2.0/24 via 192.0.2.2, 10.244.3.0/24 via 192.0.2.3")
		s.wantRule("10.244.2.0/24", "192.0.2.2", way.RuleOnLink)
	})
}

// What a killed daemon left is in use until it is known who the peers are. Then what is right stays as it is.
func TestTakesUp(t *testing.T) {
	inBubble(t, func(k *fakeKernel) {
		k.routes = []Route{
			{prefix("10.244.2.0/24"), addr("192.0.2.2"), 2, false},
			{prefix("10.244.3.0/24"), addr("192.0.2.33"), 2, false}, // since moved
			{prefix("10.244.4.0/24"), addr("192.0.2.4"), 2, false},  // since gone
		}
	}, func(s *scene) {
		after(2 * resync)
		if _, _, added, removed := s.kernel.counts(); added+removed != 0 {
			s.Errorf("%d added, %d removed before it was known who the peers are", added, removed)
		}
		s.set("10.244.2.0/24", "192.0.2.2", "10.244.3.0/24", "192.0.2.3")
		s.want("10.244.2.0/24 via 192.0.2.2, 10.244.3.0/24 via 192.0.2.3")
		if _, _, added, removed := s.kernel.counts(); added != 1 || removed != 2 {
			s.Errorf("%d added, %d removed; want 1 and 2", added, removed)
		}
	})
}

// The same subnet twice, from who knows where: one is right.
func TestTwoRoutes(t *testing.T) {
	for _, first := range []string{"192.0.2.2", "192.0.2.9"} {
		inBubble(t, func(k *fakeKernel) {
			k.routes = []Route{{prefix("10.244.2.0/24"), addr("192.0.2.2"), 2, false}, {prefix("10.244.2.0/24"), addr("192.0.2.9"), 2, false}}
			if k.routes[0].Via != addr(first) {
				k.routes[0], k.routes[1] = k.routes[1], k.routes[0]
			}
		}, func(s *scene) {
			s.set("10.244.2.0/24", "192.0.2.2")
			s.want("10.244.2.0/24 via 192.0.2.2")
		})
	}
}

// A subnet that holds another node's gets no route, which would take that node's packets along.
func TestSubnetsInSubnets(t *testing.T) {
	inBubble(t, nil, func(s *scene) {
		s.set("10.244.0.0/22", "192.0.2.9", "10.244.4.0/23", "192.0.2.4", "10.244.5.0/24", "192.0.2.5")
		s.want("10.244.5.0/24 via 192.0.2.5")
		s.wantRule("10.244.0.0/22", "192.0.2.9", way.RuleHolds) // our own
		s.wantRule("10.244.4.0/23", "192.0.2.4", way.RuleHolds)
		s.set("10.244.0.0/22", "192.0.2.9", "10.244.4.0/23", "192.0.2.4")
		s.want("10.244.4.0/23 via 192.0.2.4")
	})
}

// What costs anything is done for what has changed, not for every peer.
func TestCostOfAChange(t *testing.T) {
	inBubble(t, nil, func(s *scene) {
		var pairs []string
		for i := range 2000 {
			pairs = append(pairs, fmt.Sprintf("10.%d.%d.0/24", i/200, i%200), fmt.Sprintf("192.0.%d.%d", i/200, i%200+1))
		}
		s.set(pairs...)
		after(resync)
		s.kernel.counts()
		s.set(append(pairs[2:], "10.99.0.0/24", "192.0.99.1")...)
		if asked, listed, added, removed := s.kernel.counts(); asked != 1 || listed != 0 || added != 1 || removed != 1 {
			s.Errorf("asked %d, listed %d, added %d, removed %d; want 1, 0, 1, 1", asked, listed, added, removed)
		}
		s.kernel.change(Routes, func() { s.kernel.routes = s.kernel.routes[5:] })
		after(settleBusy)
		if asked, listed, added, removed := s.kernel.counts(); asked != 0 || listed != 1 || added != 5 || removed != 0 {
			s.Errorf("asked %d, listed %d, added %d, removed %d; want 0, 1, 5, 0", asked, listed, added, removed)
		}
	})
}

func TestKernelFails(t *testing.T) {
	inBubble(t, nil, func(s *scene) {
		s.set("10.244.2.0/24", "192.0.2.2")
		s.kernel.change(Underlay, func() { s.kernel.fail = errors.New("no buffer space") })
		after(3 * resync)
		s.want("10.244.2.0/24 via 192.0.2.2")
		if n := strings.Count(s.log.String(), "no buffer space"); n != 1 {
			s.Errorf("said %d times:\n%s", n, s.log.String())
		}
		s.kernel.mu.Lock()
		s.kernel.fail, s.kernel.routes = nil, nil
		s.kernel.mu.Unlock()
		after(resync)
		s.want("10.244.2.0/24 via 192.0.2.2")
	})
}

// A peer that the router has not seen yet, or that has moved since, is encapsulated for all that is known.
func TestChoiceOfAStranger(t *testing.T) {
	inBubble(t, nil, func(s *scene) {
		s.set("10.244.2.0/24", "192.0.2.2")
		for _, p := range []*fib.Peer{
			{Subnet: prefix("10.244.2.0/24"), PublicIP: addr("192.0.2.3")},
			{Subnet: prefix("10.244.3.0/24"), PublicIP: addr("192.0.2.2")},
		} {
			if c := s.router.Choice(p); c.Rule != way.RuleUnknown {
				s.Errorf("%+v", c)
			}
		}
	})
}

// With host-gw who is no neighbour is not reached at all. That is said, once for each reason.
func TestLeftOut(t *testing.T) {
	inBubbleWith(t, Config{Routing: true, Alone: true}, func(k *fakeKernel) {
		k.hops[addr("192.0.2.3")] = way.Hop{Iface: "eth0", Gateway: addr("192.0.2.254")}
		k.foreign[prefix("10.244.4.0/24")] = true
	}, func(s *scene) {
		s.set("10.244.2.0/24", "192.0.2.2", "10.244.3.0/24", "192.0.2.3", "10.244.4.0/24", "192.0.2.4")
		after(3 * resync)
		s.want("10.244.2.0/24 via 192.0.2.2")
		for subnet, publicIP := range map[string]string{"10.244.3.0/24": "192.0.2.3", "10.244.4.0/24": "192.0.2.4"} {
			if c := s.router.Choice(s.peers[subnet+" "+publicIP]); c.Way != way.None {
				s.Errorf("%s: %+v", subnet, c)
			}
			if n := strings.Count(s.log.String(), "a peer is left out: host-gw reaches neighbours only; put both nodes on one link, or use another backend for the network\" subnet="+subnet); n != 1 {
				s.Errorf("said %d times of %s:\n%s", n, subnet, s.log.String())
			}
		}
		if strings.Contains(s.log.String(), "encapsulated") {
			s.Errorf("log:\n%s", s.log.String())
		}
		s.kernel.change(Underlay, func() { clear(s.kernel.hops) })
		after(settleBusy)
		s.want("10.244.2.0/24 via 192.0.2.2, 10.244.3.0/24 via 192.0.2.3")
	})
}

// Each address family has a router of its own, which leaves the other's peers and routes alone.
func TestOneFamily(t *testing.T) {
	six := Config{Routing: true, Subnet: netip.MustParsePrefix("fd00:244:0:1::/64")}
	pairs := []string{"10.244.2.0/24", "192.0.2.2", "10.244.3.0/24", "192.0.2.3", "fd00:244:0:2::/64", "2001:db8::2", "fd00:244:0:3::/64", "2001:db8::3"}
	inBubble(t, nil, func(s *scene) {
		s.set(pairs...)
		s.want("10.244.2.0/24 via 192.0.2.2, 10.244.3.0/24 via 192.0.2.3")
	})
	inBubbleWith(t, six, func(k *fakeKernel) {
		k.hops[netip.MustParseAddr("192.0.2.2")] = way.Hop{Iface: "eth0", Gateway: netip.MustParseAddr("192.0.2.254")}
	}, func(s *scene) {
		s.set(pairs...)
		s.want("fd00:244:0:2::/64 via 2001:db8::2, fd00:244:0:3::/64 via 2001:db8::3")
		if asked, _, added, _ := s.kernel.counts(); asked != 2 || added != 2 {
			t.Errorf("asked about %d, added %d", asked, added)
		}
		s.wantRule("fd00:244:0:2::/64", "2001:db8::2", way.RuleOnLink)

		// One that gets a gateway goes its own way.
		s.kernel.change(Underlay, func() {
			s.kernel.hops[netip.MustParseAddr("2001:db8::2")] = way.Hop{Iface: "eth0", Gateway: netip.MustParseAddr("fe80::1")}
		})
		after(time.Second)
		s.want("fd00:244:0:3::/64 via 2001:db8::3")
		s.wantRule("fd00:244:0:2::/64", "2001:db8::2", way.RuleGateway)
		s.wantRule("fd00:244:0:3::/64", "2001:db8::3", way.RuleOnLink)

		s.set(pairs[:6]...)
		s.want("")
	})
}

// A route that has lost its source address is made anew.
func TestAstray(t *testing.T) {
	inBubble(t, nil, func(s *scene) {
		s.set("10.244.2.0/24", "192.0.2.2", "10.244.3.0/24", "192.0.2.3")
		s.kernel.counts()
		s.kernel.change(Routes, func() { s.kernel.routes[1].Astray = true })
		after(time.Second)
		if _, _, added, removed := s.kernel.counts(); added != 1 || removed != 1 {
			t.Errorf("%d added, %d removed", added, removed)
		}
		for _, r := range s.kernel.routes {
			if r.Astray {
				t.Errorf("left as it is: %v", r)
			}
		}
	})
}
