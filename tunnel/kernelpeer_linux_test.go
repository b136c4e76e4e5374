package tunnel_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"muslin/encap"
	"muslin/tunnel"
	"muslin/tunnel/fib"
	"muslin/tunnel/gso"
	"muslin/tunnel/kernel"
	"muslin/tunnel/netnstest"
	"muslin/tunnel/tun"
	"muslin/tunnel/underlay"
)

// A VTEP of IPv6 on real devices and sockets, beside a kernel VXLAN device that is set up as flannel does it, or another
// VTEP:
//
//	near                                                              far
//	pod fd00:1::5 (on lo)                                             pod fd00:2::7 (on lo)
//	muslin0 fd00:1::/128 ── VTEP ── out0 2001:db8::1 ══ 2001:db8::2 far0 ── flannel-v6.1 fd00:2::/128, or VTEP ── muslin0
//
// Nothing is IPv4.

const (
	nearMAC = "02:00:00:00:06:01"
	farMAC  = "02:00:00:00:06:02"

	overlayPort = 8472
	innerMTU    = 1430 // of 1500, for VXLAN over IPv6
)

var (
	nearPod = netip.MustParseAddr("fd00:1::5")
	farPod  = netip.MustParseAddr("fd00:2::7")

	nearPeer = fib.Peer{Subnet: netip.MustParsePrefix("fd00:1::/64"), PublicIP: netip.MustParseAddr("2001:db8::1")}
	farPeer  = fib.Peer{Subnet: netip.MustParsePrefix("fd00:2::/64"), PublicIP: netip.MustParseAddr("2001:db8::2")}
)

// hosts are the two ends, without an overlay.
type hosts struct{ near, far *netnstest.Namespace }

func newHosts(t *testing.T) *hosts {
	t.Helper()
	h := &hosts{netnstest.New(t), netnstest.New(t)}
	h.near.Sh(t, fmt.Sprintf(`
		ip link set lo up
		ip -6 addr add %v/128 dev lo nodad
		sysctl -qw net.ipv4.tcp_ecn=1
		ip link add out0 type veth peer name far0 netns %d`, nearPod, h.far.Thread))
	h.far.Sh(t, fmt.Sprintf(`
		ip link set lo up
		ip -6 addr add %v/128 dev lo nodad
		sysctl -qw net.ipv4.tcp_ecn=1
		ip -6 addr add 2001:db8::2/64 dev far0 nodad
		ip link set far0 up`, farPod))
	h.near.Sh(t, `
		ip -6 addr add 2001:db8::1/64 dev out0 nodad
		ip link set out0 up`)
	h.near.AwaitIPv6(t, nearPod, nearPeer.PublicIP)
	h.far.AwaitIPv6(t, farPod, farPeer.PublicIP)
	return h
}

// addKernelPeer makes the far end's VXLAN device as flannel does, for the one peer that there is. Its MAC is farMAC.
func (h *hosts) addKernelPeer(t *testing.T) {
	t.Helper()
	if out := h.far.Sh(t, "ip link add probe type vxlan id 2 dev far0 dstport 1 2>&1 && ip link del probe || echo failed"); strings.Contains(out, "failed") {
		netnstest.Lacks(t, "a kernel with VXLAN: "+out)
	}
	h.far.Sh(t, fmt.Sprintf(`
		ip link add flannel-v6.1 address %[1]s type vxlan id 1 local 2001:db8::2 dev far0 dstport %[3]d nolearning
		ip -6 addr add fd00:2::/128 dev flannel-v6.1 nodad
		ip link set flannel-v6.1 up
		ip -6 neigh add fd00:1:: lladdr %[2]s dev flannel-v6.1 nud permanent
		bridge fdb add %[2]s dev flannel-v6.1 dst 2001:db8::1 self permanent
		ip -6 route add fd00:1::/64 via fd00:1:: dev flannel-v6.1 onlink`, farMAC, nearMAC, overlayPort))
	h.far.AwaitIPv6(t, farPeer.Subnet.Addr())
}

// vtep is one of ours on a host.
type vtep struct {
	*tunnel.VTEP
	ns           *netnstest.Namespace
	superpackets [2]atomic.Int64 // that the device took, and gave
}

// counted is a device whose superpackets are counted.
type counted struct {
	tunnel.Device
	v *vtep
}

type countedQueue struct {
	tunnel.DeviceQueue
	v *vtep
}

func (d counted) Queues() (all []tunnel.DeviceQueue) {
	for _, q := range d.Device.Queues() {
		all = append(all, countedQueue{q, d.v})
	}
	return all
}

func (q countedQueue) Read(slab []byte, ps []tunnel.Packet, headroom int) (int, error) {
	n, err := q.DeviceQueue.Read(slab, ps, headroom)
	for _, p := range ps[:n] {
		if p.Info.Kind == gso.TCPv6 {
			q.v.superpackets[1].Add(1)
		}
	}
	return n, err
}

func (q countedQueue) Write(runs []gso.Run) (int, error) {
	for _, r := range runs {
		if r.Info.Kind == gso.TCPv6 {
			q.v.superpackets[0].Add(1)
		}
	}
	return q.DeviceQueue.Write(runs)
}

func openTUN(cfg tun.Config) (tunnel.Device, error) {
	if !cfg.Features.On(kernel.TUNDrain) {
		return tun.OpenPortable(cfg)
	}
	return tun.Open(cfg)
}

// addVTEP makes and runs a VTEP of own on a host, whose peer is other.
func addVTEP(t *testing.T, ns *netnstest.Namespace, features string, framing encap.Framing, own, other fib.Peer) *vtep {
	t.Helper()
	wanted, err := kernel.ParseFeatures(features)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	v := &vtep{ns: ns}
	ns.Do(t, func() error {
		dev, err := openTUN(tun.Config{Name: "muslin0", Queues: 1, Features: wanted, Logger: log})
		if err != nil {
			return err
		}
		conn, err := underlay.Open(underlay.Config{
			Local: own.PublicIP, Port: overlayPort, Queues: 1, Features: wanted, MaxSegments: kernel.UDPMaxSegments(), Logger: log,
		})
		if err != nil {
			return errors.Join(err, dev.Close())
		}
		v.VTEP, err = tunnel.New(tunnel.Config{
			Device: counted{dev, v}, Underlay: conn, Framing: framing, Network: netip.MustParsePrefix("fd00::/16"), Subnet: own.Subnet,
			Port: overlayPort, MTU: encap.OuterMTU(1500).Inner(framing), Jumbo: 16 << 10,
		})
		return err
	})
	v.SetTable(fib.New([]*fib.Peer{&other, {Subnet: netip.MustParsePrefix("10.2.0.0/24"), PublicIP: netip.MustParseAddr("192.0.2.2")}}))
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	ns.Sh(t, fmt.Sprintf(`
		ip -6 addr add %v/128 dev muslin0 nodad
		ip link set muslin0 mtu %d up
		ip -6 route add fd00::/16 dev muslin0`, own.Subnet.Addr(), v.MTU()))
	ns.AwaitIPv6(t, own.Subnet.Addr())
	return v
}

// checkDrops wants no reason counted but these, and those of every network: what the kernel says to the link, and a
// sender that is faster than the daemon.
func (v *vtep) checkDrops(t *testing.T, allowed ...string) (all map[string]uint64) {
	t.Helper()
	v.ns.Do(t, func() error { all = v.Drops(); return nil }) // some of the counters are the namespace's
	for reason, n := range all {
		if !slices.Contains(append(allowed, "link-local", "tun-overflow"), reason) {
			t.Errorf("%d packets dropped: %s", n, reason)
		}
	}
	return all
}

func ping(t *testing.T, ns *netnstest.Namespace, from, to netip.Addr, options string) {
	t.Helper()
	// Of several ping waits two round trips for the last one only (ping(8), -W), which may be less than a stall.
	ns.Sh(t, fmt.Sprintf("for i in 1 2 3; do ping -n -c 1 -W 10 %s -I %v %v; done", options, from, to))
}

// transfer sends n bytes over TCP from one pod to the other, and checks them.
func transfer(t *testing.T, from, to *netnstest.Namespace, src, dst netip.Addr, n int) {
	t.Helper()
	var listener *net.TCPListener
	to.Do(t, func() (err error) {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(dst, 5001)))
		return err
	})
	defer listener.Close()
	data := make([]byte, n)
	random := rand.NewChaCha8([32]byte{1})
	random.Read(data)
	deadline := time.Now().Add(30 * time.Second)
	result := make(chan error, 1)
	go func() {
		listener.SetDeadline(deadline)
		conn, err := listener.AcceptTCP()
		if err != nil {
			result <- err
			return
		}
		defer conn.Close()
		conn.SetDeadline(deadline)
		sum := sha256.New()
		got, err := io.Copy(sum, conn)
		if err == nil && !bytes.Equal(sum.Sum(nil), hash(data)) {
			err = fmt.Errorf("%d bytes received, and not the %d that were sent", got, n)
		}
		result <- err
	}()
	var conn *net.TCPConn
	from.Do(t, func() (err error) {
		conn, err = net.DialTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, 0)), net.TCPAddrFromAddrPort(netip.AddrPortFrom(dst, 5001)))
		return err
	})
	conn.SetDeadline(deadline)
	if _, err := conn.Write(data); err != nil {
		t.Errorf("%v to %v: write: %v", src, dst, err)
	}
	conn.Close()
	if err := <-result; err != nil {
		t.Errorf("%v to %v: %v", src, dst, err)
	}
}

func hash(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:]
}

// udpExchange sends datagrams of these lengths to a pod, each with its answer: through fragments where one is longer
// than the overlay's MTU.
func udpExchange(t *testing.T, from, to *netnstest.Namespace, src, dst netip.Addr, lengths ...int) {
	t.Helper()
	listen := func(ns *netnstest.Namespace, at netip.Addr, port uint16) (conn *net.UDPConn) {
		ns.Do(t, func() (err error) {
			conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, port)))
			return err
		})
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		return conn
	}
	a, b := listen(from, src, 0), listen(to, dst, 5002)
	defer a.Close()
	defer b.Close()
	buf := make([]byte, 1<<16)
	for i, length := range lengths {
		payload := bytes.Repeat([]byte{byte(i + 1)}, length)
		if _, err := a.WriteToUDPAddrPort(payload, netip.AddrPortFrom(dst, 5002)); err != nil {
			t.Fatal(err)
		}
		n, back, err := b.ReadFromUDPAddrPort(buf)
		if err != nil || !bytes.Equal(buf[:n], payload) || back.Addr() != src {
			t.Fatalf("%d bytes from %v: %d came from %v (%v)", length, src, n, back, err)
		}
		if _, err := b.WriteToUDPAddrPort(payload, back); err != nil {
			t.Fatal(err)
		}
		if n, _, err := a.ReadFromUDPAddrPort(buf); err != nil || !bytes.Equal(buf[:n], payload) {
			t.Fatalf("%d bytes back: %d came (%v)", length, n, err)
		}
	}
}

// exchange is traffic of all kinds both ways.
func exchange(t *testing.T, h *hosts) {
	t.Helper()
	exchangeBetween(t, h.near, h.far, nearPod, farPod)
	ping(t, h.near, netip.MustParseAddr("fd00:1::"), netip.MustParseAddr("fd00:2::"), "")
}

// exchangeBetween is that between two pods.
func exchangeBetween(t *testing.T, nearNS, farNS *netnstest.Namespace, near, far netip.Addr) {
	t.Helper()
	headers, mtu := 48, innerMTU
	if near.Is4() {
		headers, mtu = 28, innerMTU+20
	}
	for _, size := range []string{"", fmt.Sprintf("-M do -s %d", mtu-headers), "-s 5000"} {
		ping(t, nearNS, near, far, size)
		ping(t, farNS, far, near, size)
	}
	transfer(t, nearNS, farNS, near, far, 8<<20)
	transfer(t, farNS, nearNS, far, near, 8<<20)
	lengths := []int{0, 1, 100, mtu - headers, mtu - headers + 1, 9000}
	udpExchange(t, nearNS, farNS, near, far, lengths...)
	udpExchange(t, farNS, nearNS, far, near, lengths...)
}

func vxlan6(t *testing.T, own string) encap.Framing {
	t.Helper()
	vni, err := encap.NewVNI(1)
	if err != nil {
		t.Fatal(err)
	}
	mac, err := encap.ParseMAC(own)
	if err != nil {
		t.Fatal(err)
	}
	return encap.NewVXLAN6(vni, mac)
}

func withMAC(t *testing.T, p fib.Peer, mac string) fib.Peer {
	t.Helper()
	m, err := encap.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	p.MAC = m
	return p
}

// The kernel's own VXLAN device and we understand each other, whatever of the offloads is on.
func TestKernelPeer6(t *testing.T) {
	for _, c := range []struct{ name, features, peer string }{
		{"auto", "auto", ""},
		{"peer without offloads", "auto", "ethtool -K flannel-v6.1 tso off gso off tx off; ethtool -K far0 tso off gso off tx off"},
		{"no superpackets", "-tun-tso,-tun-uso,-tun-tcp-gro,-tun-udp-gro,-udp-gso,-udp-gro", ""},
		{"no vnet", "-tun-vnet,-tun-napi", ""},
		{"one at a time, portable", "none", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHosts(t)
			h.addKernelPeer(t)
			if c.peer != "" {
				h.far.Sh(t, c.peer)
			}
			v := addVTEP(t, h.near, c.features, vxlan6(t, nearMAC), nearPeer, withMAC(t, farPeer, farMAC))
			exchange(t, h)
			v.checkDrops(t)
			taken, given := v.superpackets[0].Load(), v.superpackets[1].Load()
			if on := c.features == "auto"; on != (given > 0) {
				t.Errorf("the device gave %d superpackets of TCP", given)
			}
			if c.features == "auto" && taken == 0 {
				t.Error("the device took no superpacket of TCP")
			}
			if link := h.far.Sh(t, "ip -s -j link show flannel-v6.1"); !strings.Contains(link, `"rx":{"bytes":`) || !strings.Contains(link, `"errors":0,"dropped":0`) {
				t.Errorf("the kernel's device is not content: %s", link)
			}
			if sums := h.far.Sh(t, "awk '/Udp6InCsumErrors|Udp6NoPorts|TcpInCsumErrors/ && $2 > 0' /proc/net/snmp6"); sums != "" {
				t.Errorf("the peer counts %s", sums)
			}
			if n := v.Table().Lookup(farPod).Counters; n.RxPackets.Load() == 0 || n.TxPackets.Load() == 0 {
				t.Error("the peer's counters stand still")
			}
		})
	}
}

// Two of ours, in both framings.
func TestTwoVTEPs6(t *testing.T) {
	for _, c := range []struct {
		name      string
		near, far encap.Framing
	}{
		{"vxlan", vxlan6(t, nearMAC), vxlan6(t, farMAC)},
		{"udp", encap.UDP{Inner: encap.IPv6}, encap.UDP{Inner: encap.IPv6}},
	} {
		for _, features := range []string{"auto", "-tun-vnet,-tun-napi,-udp-gso,-udp-gro"} {
			t.Run(c.name+"/"+features, func(t *testing.T) {
				h := newHosts(t)
				near := addVTEP(t, h.near, features, c.near, nearPeer, withMAC(t, farPeer, farMAC))
				far := addVTEP(t, h.far, "auto", c.far, farPeer, withMAC(t, nearPeer, nearMAC))
				exchange(t, h)
				near.checkDrops(t)
				far.checkDrops(t)
				if features == "auto" && (near.superpackets[0].Load() == 0 || far.superpackets[0].Load() == 0) {
					t.Errorf("the devices took %d and %d superpackets of TCP", near.superpackets[0].Load(), far.superpackets[0].Load())
				}
			})
		}
	}
}

// The kernel understands the ICMPv6 errors: who sends to nobody is told at once, and who sends too much learns the MTU.
// What it says to the link by itself is counted as that.
func TestICMP6ToTheKernel(t *testing.T) {
	h := newHosts(t)
	h.addKernelPeer(t)
	v := addVTEP(t, h.near, "auto", vxlan6(t, nearMAC), nearPeer, withMAC(t, farPeer, farMAC))
	for to, want := range map[string]error{"fd00:9::1": syscall.ENETUNREACH, "fd00:1::99": syscall.EHOSTUNREACH} {
		h.near.Do(t, func() error {
			d := net.Dialer{Timeout: 10 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(nearPod, 0))}
			conn, err := d.Dial("tcp6", net.JoinHostPort(to, "80"))
			if err == nil {
				conn.Close()
			}
			if !errors.Is(err, want) {
				return fmt.Errorf("connecting to %s: %v, want %v", to, err, want)
			}
			return nil
		})
	}
	h.near.Sh(t, "ip link set muslin0 mtu 9000") // as somebody might by hand
	out := h.near.Sh(t, fmt.Sprintf("ping -6 -n -c 2 -i 0.02 -W 5 -M do -s 5000 -I %v %v || true", nearPod, farPod))
	if !strings.Contains(out, fmt.Sprint("mtu=", innerMTU)) && !strings.Contains(out, fmt.Sprint("mtu: ", innerMTU)) {
		t.Errorf("ping is not told of the MTU: %s", out)
	}
	udpExchange(t, h.near, h.far, nearPod, farPod, 5000) // in fragments that fit
	transfer(t, h.near, h.far, nearPod, farPod, 1<<20)
	if route := h.near.Sh(t, fmt.Sprintf("ip -6 route get %v from %v", farPod, nearPod)); !strings.Contains(route, fmt.Sprint("mtu ", innerMTU)) {
		t.Errorf("the kernel has not learnt the MTU: %s", route)
	}
	for range 100 { // the reports of a device that comes up are repeated for a second
		if v.checkDrops(t, "no-route", "own-subnet", "too-big")["link-local"] > 0 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	drops := v.checkDrops(t, "no-route", "own-subnet", "too-big")
	for _, reason := range []string{"no-route", "own-subnet", "too-big", "link-local"} {
		if drops[reason] == 0 {
			t.Errorf("%s was not counted: %v", reason, drops)
		}
	}
}
