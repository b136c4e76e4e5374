//go:build linux

package e2e

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"testing"
	"time"

	"muslin/bench/hostile"
	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// A peer and a stranger send what they should not:
//
//	p1a ── cni0 ─ h1 (muslin, embedded etcd) ─┬─ br0 ─┬─ h2: holds a lease, no daemon; UDP socket
//	                                          └───────┴─ h3: holds none; UDP socket
//
// Each datagram must be counted under its own drop reason, as often as it was sent, and under no other.
func TestHostileDatagrams(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "etcdctl")
	for _, backend := range []string{"vxlan", "udp"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			testHostile(t, backend)
		})
	}
}

func testHostile(t *testing.T, backend string) {
	l := newLab(t, 3)
	leaveIll(l, "the second node is a socket of the test")
	m := startMuslin(t, l.Host(1), "--embedded-etcd", "--network", network, "--backend", backend)
	node := status(t, m).Node
	subnet := netip.MustParsePrefix("10.244.250.0/24")
	if subnet == node.Subnet.Masked() {
		subnet = netip.MustParsePrefix("10.244.251.0/24")
	}
	value := fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null}`, l.Host(2).Addr)
	if backend == "vxlan" {
		value = fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:00:02"}}`, l.Host(2).Addr)
	}
	store := labtest.EtcdOn(l.Host(1))
	store.Do(t, "put", prefix+leaseKey(subnet), value)
	waitPeers(t, m, 1)
	pod := addPod(t, m, "a")
	sink := listenUDP(t, pod.Node, netip.AddrPortFrom(pod.Addr, 7300))

	to := netip.AddrPortFrom(l.Host(1).Addr, node.Port)
	peer := listenUDP(t, l.Host(2).Node, netip.AddrPortFrom(l.Host(2).Addr, 0))
	stranger := listenUDP(t, l.Host(3).Node, netip.AddrPortFrom(l.Host(3).Addr, 0))
	from := subnet.Addr().Next().Next()
	cases := hostile.Inner(from, pod.Addr)
	if backend == "vxlan" {
		own := must(net.ParseMAC(node.VtepMAC))(t)
		cases = hostile.InVXLAN(own, cases, hostile.InnerUDP(from, pod.Addr, 0, 40))
	}
	want := maps.Clone(status(t, m).Drops)
	if want == nil {
		want = make(map[string]uint64)
	}
	var good, sent uint64
	for i, c := range cases {
		conn := peer
		if c.Stranger {
			conn = stranger
		}
		setTOS(t, conn, c.ECN)
		n := 2 + i%5
		for range n {
			if _, err := conn.WriteToUDPAddrPort(c.Datagram, to); err != nil {
				t.Fatalf("%s: %v", c.Name, err)
			}
		}
		sent += uint64(n)
		if c.Drop == "" {
			good += uint64(n)
		} else {
			want[c.Drop] += uint64(n)
		}
		eventually(t, 5*time.Second, func() error {
			s, err := m.Status(t.Context())
			if err != nil {
				return err
			}
			if !maps.Equal(s.Drops, want) || s.Peers[0].RxPackets != good {
				return fmt.Errorf("%s: drops %v and %d delivered, want %v and %d", c.Name, s.Drops, s.Peers[0].RxPackets, want, good)
			}
			return nil
		})
	}
	if sent < 50 || good == 0 {
		t.Errorf("%d datagrams sent, %d of them good: this test shows nothing", sent, good)
	}
	buf := make([]byte, 2000)
	for range good {
		if err := sink.SetReadDeadline(time.Now().Add(lab.Patience(5 * time.Second))); err != nil {
			t.Fatal(err)
		}
		if _, _, err := sink.ReadFromUDPAddrPort(buf); err != nil {
			t.Fatalf("a good packet did not reach the pod: %v", err)
		}
	}
	if !m.Running() {
		t.Error("the daemon ended")
	}
}
