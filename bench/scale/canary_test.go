//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"muslin/bench/crowd"
	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// canarySubnet is leased by a node that is two sockets.
var canarySubnet = netip.MustParsePrefix("10.200.0.0/24")

const vxlanPort = 8472 // flannel's

// canary is a lease whose PublicIP goes to and fro between two addresses of a host, and a stream of datagrams
// from another host into its subnet: where they arrive shows what the daemon between them knows.
//
//	from ── 1,000 datagrams a second ── daemon's TUN ── VXLAN ──► at[0] or at[1]
type canary struct {
	t      *testing.T
	client *clientv3.Client
	at     [2]*landing
	now    int         // index of where the lease points to
	paused atomic.Bool // the stream is
}

// startCanary makes the second address, the sockets and the stream, but no lease yet.
func startCanary(t *testing.T, from, to *lab.Host, client *clientv3.Client) *canary {
	t.Helper()
	second := netip.AddrFrom4([4]byte{198, 18, 1, byte(to.Number)})
	labtest.Must(to.Run(t.Context(), "ip", "addr", "add", second.String()+"/32", "dev", "eth0"))(t)
	labtest.Must(from.Run(t.Context(), "ip", "route", "add", second.String()+"/32", "via", to.Addr.String()))(t)
	c := &canary{t: t, client: client}
	for i, addr := range []netip.Addr{to.Addr, second} {
		c.at[i] = land(t, to, addr)
	}
	stream(t, from, &c.paused)
	return c
}

// landing is a socket on the overlay's port of one address. Who sends a channel to armed gets the time at which
// the next datagram arrives.
type landing struct {
	addr  netip.Addr
	armed chan chan time.Time
}

func land(t *testing.T, h *lab.Host, addr netip.Addr) *landing {
	t.Helper()
	conn := listen(t, h, netip.AddrPortFrom(addr, vxlanPort))
	l := &landing{addr: addr, armed: make(chan chan time.Time, 1)}
	done := make(chan struct{})
	t.Cleanup(func() { conn.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			if n, err := conn.Read(buf); err != nil {
				return
			} else if n < streamSize { // an overlay probe of the daemon's, perhaps
				continue
			}
			now := time.Now()
			select {
			case tell := <-l.armed:
				tell <- now
			default:
			}
		}
	}()
	return l
}

func listen(t *testing.T, h *lab.Host, addr netip.AddrPort) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	if err := h.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(addr))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return conn
}

// streamSize is the payload of the stream's datagrams, in bytes: longer than a whole echo request.
const streamSize = 200

// stream sends a datagram into the canary's subnet every millisecond, from the host itself.
func stream(t *testing.T, from *lab.Host, paused *atomic.Bool) {
	t.Helper()
	conn := listen(t, from, netip.AddrPort{})
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(canarySubnet.Addr().Next(), 9))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	t.Cleanup(func() { stop(); <-done; conn.Close() })
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		payload := make([]byte, streamSize)
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			if !paused.Load() {
				_, _ = conn.WriteToUDP(payload, to) // without a daemon there is no route
			}
		}
	}()
}

// put points the lease to one of the addresses. It returns when etcd acknowledged that, and a channel that
// tells when the next datagram arrives there.
func (c *canary) put(i int) (acknowledged time.Time, arrived <-chan time.Time) {
	c.t.Helper()
	tell := make(chan time.Time, 1)
	c.at[i].armed <- tell
	key := labtest.Prefix + labtest.LeaseKey(canarySubnet)
	if _, err := c.client.Put(c.t.Context(), key, crowd.Value(c.at[i].addr, 1, "02:ca:00:00:00:01")); err != nil {
		c.t.Fatal(err)
	}
	c.now = i
	return time.Now(), tell
}

// flip moves the lease to the other address, and returns how long after etcd's acknowledgement the first
// datagram arrived there. One that was faster than the acknowledgement counts as 0.
func (c *canary) flip() (time.Duration, error) {
	acknowledged, arrived := c.put(1 - c.now)
	select {
	case at := <-arrived:
		return max(0, at.Sub(acknowledged)), nil
	case <-time.After(lab.Patience(5 * time.Second)):
		return 0, fmt.Errorf("no datagram arrived at %s within 5 seconds of the lease's change", c.at[c.now].addr)
	}
}
