package lease

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// crowd is a store with our lease and those of three nodes, and a Watcher of it.
type crowd struct {
	*testing.T
	m   *MemStore
	w   *Watcher
	got *tables
	log *logBuffer
}

const allThree = "10.244.2.0/24>192.0.2.2 10.244.3.0/24>192.0.2.3 10.244.4.0/24>192.0.2.4"

func withCrowd(t *testing.T, do func(c *crowd)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &crowd{T: t, m: NewMemStore()}
		for n := 1; n <= 4; n++ {
			c.put(n)
		}
		var stop func()
		c.w, c.got, c.log, stop = watching(t, c.m, testNode(t, BackendVXLAN))
		c.peers("at first", allThree)
		do(c)
		stop()
	})
}

// key is the lease of node n; node 1 is us.
func key(n int) string { return fmt.Sprintf("10.244.%d.0-24", n) }

func (c *crowd) put(n int) {
	c.m.PutRaw(key(n), vxlanValue(fmt.Sprintf("192.0.2.%d", n), 1, macB), TTL)
}

// remove deletes leases all at once, as `etcdctl del --prefix` does.
func (c *crowd) remove(nodes ...int) {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	for _, n := range nodes {
		c.m.remove(key(n))
	}
}

// heard has a packet come from a node.
func (c *crowd) heard(n int) {
	c.got.peer(fmt.Sprintf("10.244.%d.0/24", n)).Counters.LastRx.Store(time.Now().UnixNano())
}

func (c *crowd) peers(when, want string) {
	c.Helper()
	settle(holdCheck + gatherMost)
	if got := c.got.last(); got != want {
		c.Errorf("%s: peers %s, want %s\n%s", when, got, want, c.log.String())
	}
}

func (c *crowd) held(want int) {
	c.Helper()
	s := c.w.Status()
	if s.Held != want || (want > 0) != s.HeldUntil.After(time.Now()) {
		c.Errorf("%d held until %v, want %d", s.Held, s.HeldUntil, want)
	}
}

// The whole prefix is deleted. Nobody loses a peer, and who takes the lease again is as before.
func TestAllLeasesVanish(t *testing.T) {
	withCrowd(t, func(c *crowd) {
		before := c.got.count()
		c.remove(1, 2, 3, 4)
		c.peers("afterwards", allThree)
		c.held(3)
		c.put(1)
		c.put(3)
		c.peers("after one is back", allThree)
		c.held(2)
		if n := c.got.count(); n != before {
			t.Errorf("%d tables for nothing", n-before)
		}
		if n := c.log.count("level=ERROR"); n != 1 || c.log.count("peers=3") != 1 {
			t.Errorf("log:\n%s", c.log.String())
		}
		settle(holdMost - time.Minute)
		c.peers("four minutes later", allThree)
		settle(time.Minute)
		c.peers("at the end", "10.244.3.0/24>192.0.2.3")
		c.held(0)
	})
}

// One lease is deleted: its node is alive and silent, alive and heard, or dead.
func TestOneLeaseVanishes(t *testing.T) {
	withCrowd(t, func(c *crowd) {
		settle(time.Hour)
		c.remove(2)
		c.peers("never heard", "10.244.3.0/24>192.0.2.3 10.244.4.0/24>192.0.2.4")
		c.held(0)

		c.heard(3)
		c.remove(3)
		c.peers("heard", "10.244.3.0/24>192.0.2.3 10.244.4.0/24>192.0.2.4")
		c.held(1)
		if n := c.log.count("level=WARN"); n != 1 {
			t.Errorf("log:\n%s", c.log.String())
		}
		for range 20 {
			settle(silence / 2)
			c.heard(3)
		}
		c.peers("heard all the time", "10.244.3.0/24>192.0.2.3 10.244.4.0/24>192.0.2.4")
		settle(silence)
		c.peers("silent", "10.244.4.0/24>192.0.2.4")
		c.held(0)

		c.heard(4)
		c.remove(4)
		for began := time.Now(); time.Since(began) < holdMost-silence; settle(silence / 2) {
			c.heard(4)
		}
		c.peers("heard for almost too long", "10.244.4.0/24>192.0.2.4")
		for range 3 {
			if strings.Contains(c.got.last(), "10.244.4.0") {
				c.heard(4)
			}
			settle(silence / 2)
		}
		c.peers("heard for too long", "")
	})
}

// A peer that is reached directly is heard of only when it is asked.
func TestLeaseOfADirectPeerVanishes(t *testing.T) {
	withCrowd(t, func(c *crowd) {
		settle(time.Hour)
		c.got.peer("10.244.2.0/24").Counters.Answered.Store(time.Now().UnixNano())
		c.remove(2, 3)
		c.peers("answered", "10.244.2.0/24>192.0.2.2 10.244.4.0/24>192.0.2.4")
		settle(silence + holdCheck)
		c.peers("silent since", "10.244.4.0/24>192.0.2.4")
	})
}

// What cannot be read is written over the leases of nodes, of which one is heard.
func TestLeaseIsSpoilt(t *testing.T) {
	withCrowd(t, func(c *crowd) {
		c.heard(2)
		c.heard(4)
		for n := 2; n <= 4; n++ {
			c.m.PutRaw(key(n), "nonsense", TTL)
		}
		c.peers("afterwards", "10.244.2.0/24>192.0.2.2 10.244.4.0/24>192.0.2.4")
		c.held(2)
		c.put(2)
		settle(silence / 2)
		c.peers("one is mended", "10.244.2.0/24>192.0.2.2 10.244.4.0/24>192.0.2.4")
		c.held(1)
		if s := c.w.Status(); s.Skipped[SkipValue] != 1 {
			t.Errorf("skipped %v, want the one that nobody hears", s.Skipped)
		}
		settle(silence)
		c.peers("the other is silent", "10.244.2.0/24>192.0.2.2")
		if s := c.w.Status(); s.Skipped[SkipValue] != 2 || s.Held != 0 {
			t.Errorf("%+v", s)
		}
		c.heard(2)
		c.m.PutRaw(key(2), "nonsense", TTL)
		c.remove(2)
		c.peers("spoilt, then deleted", "10.244.2.0/24>192.0.2.2")
		settle(silence)
		c.peers("spoilt, deleted and silent", "")
		if s := c.w.Status(); s.Skipped[SkipValue] != 2 || s.Held != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// A subnet that somebody has a lease for is his, whoever was held for it.
func TestVanishedLeaseIsSuperseded(t *testing.T) {
	withCrowd(t, func(c *crowd) {
		c.remove(1, 2, 3)
		c.m.PutRaw(key(2), vxlanValue("192.0.2.22", 1, macA), TTL)
		c.m.PutRaw(key(3)+"&2001:db8:3::-64", vxlanValue("192.0.2.33", 1, macA), TTL)
		c.peers("afterwards", "10.244.2.0/24>192.0.2.22 10.244.3.0/24>192.0.2.33 10.244.4.0/24>192.0.2.4")
		c.held(0)
		if s := c.w.Status(); len(s.Skipped) != 0 {
			t.Errorf("skipped %v", s.Skipped)
		}
		settle(holdMost)
		c.peers("later", "10.244.2.0/24>192.0.2.22 10.244.3.0/24>192.0.2.33 10.244.4.0/24>192.0.2.4")
	})
}

// The watch was away, and some leases are not in the list when it is back.
func TestLeasesVanishUnseen(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(c *crowd) // while the store does not answer
		want string
		held int
	}{
		{"one expired", func(c *crowd) { c.remove(2) }, "10.244.3.0/24>192.0.2.3 10.244.4.0/24>192.0.2.4", 0},
		{"one that is heard was deleted", func(c *crowd) { c.heard(2); c.remove(2, 3) }, "10.244.2.0/24>192.0.2.2 10.244.4.0/24>192.0.2.4", 1},
		{"with ours", func(c *crowd) { c.remove(1, 2) }, allThree, 1},
		{"the store was set back", func(c *crowd) { c.setBack(3, 2, 3) }, allThree, 2},
		{"the store was made anew", func(c *crowd) { c.setBack(1, 1, 2, 3, 4) }, allThree, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			withCrowd(t, func(c *crowd) {
				c.m.Fail(ErrUnavailable)
				settle(silence / 2)
				test.do(c)
				c.m.Fail(nil)
				settle(watchRetryMost)
				c.peers("afterwards", test.want)
				c.held(test.held)
			})
		})
	}
}

// setBack makes the store one that never knew some nodes.
func (c *crowd) setBack(revision int64, without ...int) {
	c.remove(without...)
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	c.m.revision, c.m.compacted, c.m.log = revision, 0, nil
}
