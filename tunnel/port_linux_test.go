package tunnel_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"muslin/encap"
	"muslin/tunnel"
	"muslin/tunnel/fib"
	"muslin/tunnel/gso"
	"muslin/tunnel/kernel"
	"muslin/tunnel/netnstest"
	"muslin/tunnel/tun"
	"muslin/tunnel/underlay"
)

// Networks 1 and 2 share UDP port 8472 at either end, by a Port or as the kernel's vxlan devices do:
//
//	near                                                                        far
//	pod 10.1.1.5 ─ muslin1 10.1.1.0 ─ VTEP 1 ┐                               ┌ vx1 10.1.2.0, or VTEP 1 ─ muslin1 ─ pod 10.1.2.7
//	                                         ├ out0 198.18.0.1 ═ far0 .2 ────┤
//	pod 10.2.1.5 ─ muslin2 10.2.1.0 ─ VTEP 2 ┘                               └ vx2 10.2.2.0, or VTEP 2 ─ muslin2 ─ pod 10.2.2.7
//
// Over IPv6: fd00:1:1::/64 for 10.1.1.0/24, and 2001:db8::1.
type sharedLab struct {
	six       bool
	near, far *netnstest.Namespace
	nets      []*sharedNet
}

// sharedNet is one of the networks.
type sharedNet struct {
	vni             uint32
	overlay         netip.Prefix
	near, far       fib.Peer
	nearPod, farPod netip.Addr
}

// framing is that of one end.
func (n *sharedNet) framing(t testing.TB, own fib.Peer) *encap.VXLAN {
	t.Helper()
	vni, err := encap.NewVNI(n.vni)
	if err != nil {
		t.Fatal(err)
	}
	if own.PublicIP.Is6() {
		return encap.NewVXLAN6(vni, own.MAC)
	}
	return encap.NewVXLAN(vni, own.MAC)
}

// sharedNets are two networks, of the family that the two hosts' addresses have.
func sharedNets(public [2]string) (all []*sharedNet) {
	subnet, bits, overlay := "10.%d.%d.0", 24, 16
	if netip.MustParseAddr(public[0]).Is6() {
		subnet, bits, overlay = "fd00:%d:%d::", 64, 32
	}
	for i := 1; i <= 2; i++ {
		var peers [2]fib.Peer
		var pods [2]netip.Addr
		for end := range peers {
			peers[end] = fib.Peer{
				Subnet:   netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf(subnet, i, end+1)), bits),
				PublicIP: netip.MustParseAddr(public[end]), MAC: encap.MAC{2, 0, 0, 0, byte(i), byte(end + 1)},
			}
			pods[end] = peers[end].Subnet.Addr()
			for range 5 + 2*end {
				pods[end] = pods[end].Next()
			}
		}
		all = append(all, &sharedNet{
			vni: uint32(i), overlay: netip.PrefixFrom(peers[0].Subnet.Addr(), overlay).Masked(),
			near: peers[0], far: peers[1], nearPod: pods[0], farPod: pods[1],
		})
	}
	return all
}

func newSharedLab(t *testing.T, six bool) *sharedLab {
	t.Helper()
	l := &sharedLab{six: six, near: netnstest.New(t), far: netnstest.New(t)}
	public, bits := [2]string{"198.18.0.1", "198.18.0.2"}, 24
	if six {
		public, bits = [2]string{"2001:db8::1", "2001:db8::2"}, 64
	}
	l.nets = sharedNets(public)
	if !six {
		for _, ns := range []*netnstest.Namespace{l.near, l.far} { // so that the kernel says nothing by itself
			ns.Sh(t, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1 || true")
		}
	}
	l.near.Sh(t, fmt.Sprintf("ip link add out0 type veth peer name far0 netns %d", l.far.Thread))
	for i, ns := range []*netnstest.Namespace{l.near, l.far} {
		dev := []string{"out0", "far0"}[i]
		ns.Sh(t, fmt.Sprintf("ip link set lo up; ip link set %s up; ip addr add %s/%d dev %s %s", dev, public[i], bits, dev, l.nodad()))
		for _, n := range l.nets {
			ns.Sh(t, fmt.Sprintf("ip addr add %v/%d dev lo %s", []netip.Addr{n.nearPod, n.farPod}[i], n.nearPod.BitLen(), l.nodad()))
			l.await(t, ns, []netip.Addr{n.nearPod, n.farPod}[i])
		}
		l.await(t, ns, netip.MustParseAddr(public[i]))
	}
	return l
}

func (l *sharedLab) nodad() string {
	if l.six {
		return "nodad"
	}
	return ""
}

func (l *sharedLab) await(t *testing.T, ns *netnstest.Namespace, a netip.Addr) {
	t.Helper()
	if l.six {
		ns.AwaitIPv6(t, a)
	}
}

// addKernelPeers makes the far end's vxlan devices as flannel does.
func (l *sharedLab) addKernelPeers(t *testing.T) {
	t.Helper()
	for _, n := range l.nets {
		l.far.Sh(t, fmt.Sprintf(`
			ip link add vx%[1]d address %[2]v type vxlan id %[1]d local %[3]v dev far0 dstport %[4]d nolearning
			ip addr add %[5]v/%[6]d dev vx%[1]d %[10]s
			ip link set vx%[1]d up
			ip neigh add %[7]v lladdr %[8]v dev vx%[1]d nud permanent
			bridge fdb add %[8]v dev vx%[1]d dst %[9]v self permanent
			ip route add %[11]v via %[7]v dev vx%[1]d onlink`,
			n.vni, n.far.MAC, n.far.PublicIP, overlayPort, n.far.Subnet.Addr(), n.far.PublicIP.BitLen(), n.near.Subnet.Addr(), n.near.MAC,
			n.near.PublicIP, l.nodad(), n.near.Subnet))
		l.await(t, l.far, n.far.Subnet.Addr())
	}
}

// observed is an underlay of which it is seen what comes joined.
type observed struct {
	*underlay.Conn
	mixed atomic.Int64 // joined datagrams of several networks
}

type observedQueue struct {
	tunnel.UnderlayQueue
	u *observed
}

func (u *observed) Queues() (all []tunnel.UnderlayQueue) {
	for _, q := range u.Conn.Queues() {
		all = append(all, observedQueue{q, u})
	}
	return all
}

func (q observedQueue) Receive(ds []tunnel.Datagram) (int, error) {
	n, err := q.UnderlayQueue.Receive(ds)
	for _, d := range ds[:max(n, 0)] {
		for at := 0; d.Size > 0 && at+8 <= len(d.Buf); at += d.Size {
			if d.Buf[at+6] != d.Buf[6] {
				q.u.mixed.Add(1)
				break
			}
		}
	}
	return n, err
}

// running has a function run until it is stopped, or at the test's end; its error must be nil then.
func running(t *testing.T, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// sharedEnd is a port of ours on one host.
type sharedEnd struct {
	l        *sharedLab
	ns       *netnstest.Namespace
	features kernel.Features
	queues   int
	und      *observed
	port     *tunnel.Port
}

func (l *sharedLab) openEnd(t *testing.T, ns *netnstest.Namespace, features string, queues int) *sharedEnd {
	t.Helper()
	wanted, err := kernel.ParseFeatures(features)
	if err != nil {
		t.Fatal(err)
	}
	local := l.nets[0].near.PublicIP
	if ns == l.far {
		local = l.nets[0].far.PublicIP
	}
	e := &sharedEnd{l: l, ns: ns, features: wanted, queues: queues}
	ns.Do(t, func() error {
		conn, err := underlay.Open(underlay.Config{
			Local: local, Port: overlayPort, Queues: queues, Features: wanted, MaxSegments: kernel.UDPMaxSegments(), Logger: slog.New(slog.DiscardHandler),
		})
		e.und = &observed{Conn: conn}
		return err
	})
	e.port = tunnel.NewPort(e.und)
	running(t, e.und.Conn.Run)
	running(t, e.port.Run)
	return e
}

// join has the end take part in a network, until stop.
func (e *sharedEnd) join(t *testing.T, n *sharedNet) (v *vtep, stop func()) {
	t.Helper()
	own, other := n.near, n.far
	if e.ns == e.l.far {
		own, other = other, own
	}
	name := fmt.Sprintf("muslin%d", n.vni)
	framing := n.framing(t, own)
	vni, err := encap.NewVNI(n.vni)
	if err != nil {
		t.Fatal(err)
	}
	v = &vtep{ns: e.ns}
	e.ns.Do(t, func() error {
		dev, err := openTUN(tun.Config{Name: name, Queues: e.queues, Features: e.features, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return err
		}
		member, err := e.port.Join(vni)
		if err != nil {
			return errors.Join(err, dev.Close())
		}
		v.VTEP, err = tunnel.New(tunnel.Config{
			Device: counted{dev, v}, Underlay: member, Framing: framing, Network: n.overlay, Subnet: own.Subnet,
			Port: overlayPort, MTU: encap.OuterMTU(1500).Inner(framing), Jumbo: 16 << 10,
		})
		return err
	})
	v.SetTable(fib.New([]*fib.Peer{&other}))
	e.ns.Sh(t, fmt.Sprintf(`
		ip addr add %v/%d dev %s %s
		ip link set %s mtu %d up
		ip route add %v dev %s`, own.Subnet.Addr(), own.Subnet.Addr().BitLen(), name, e.l.nodad(), name, v.MTU(), other.Subnet, name))
	stop = running(t, v.Run) // now that the device is up: what the far end sends again may come at once
	e.l.await(t, e.ns, own.Subnet.Addr())
	return v, stop
}

// exchangeAll is traffic of all kinds both ways, in all networks at once.
func (l *sharedLab) exchangeAll(t *testing.T) {
	t.Helper()
	t.Run("traffic", func(t *testing.T) {
		for _, n := range l.nets {
			t.Run(fmt.Sprint("VNI ", n.vni), func(t *testing.T) {
				t.Parallel()
				exchangeBetween(t, l.near, l.far, n.nearPod, n.farPod)
			})
		}
	})
}

// The kernel's own vxlan devices share a port, too: both networks carry everything beside each other, one comes and goes
// while no packet of the other is lost, and what the kernel has joined of several networks is told apart.
func TestSharedPortAndKernel(t *testing.T) {
	for _, family := range []string{"IPv4", "IPv6"} {
		t.Run(family, func(t *testing.T) {
			l := newSharedLab(t, family == "IPv6")
			if out := l.far.Sh(t, "ip link add probe type vxlan id 3 dev far0 dstport 1 2>&1 && ip link del probe || echo failed"); out != "" {
				netnstest.Lacks(t, "a kernel with VXLAN: "+out)
			}
			l.addKernelPeers(t)
			near := l.openEnd(t, l.near, "auto", 1)
			stays, _ := near.join(t, l.nets[0])
			other, stop := near.join(t, l.nets[1])
			l.exchangeAll(t)
			for _, v := range []*vtep{stays, other} {
				v.checkDrops(t)
				if v.superpackets[0].Load() == 0 || v.superpackets[1].Load() == 0 {
					if l.six { // those of IPv4 are not counted
						t.Errorf("superpackets: %d taken, %d given", v.superpackets[0].Load(), v.superpackets[1].Load())
					}
				}
			}

			stream := l.startStream(t, l.nets[0])
			for range 5 {
				stop()
				other, stop = near.join(t, l.nets[1])
				transfer(t, l.far, l.near, l.nets[1].farPod, l.nets[1].nearPod, 1<<20)
				transfer(t, l.near, l.far, l.nets[1].nearPod, l.nets[1].farPod, 1<<20)
			}
			if n := stream(); n < 1000 {
				t.Errorf("a stream of %d packets is no test", n)
			}
			stays.checkDrops(t, "vxlan-vni") // of the network that is away

			l.checkMixed(t, near, stays, other)
		})
	}
}

// startStream has datagrams go from the near pod of a network to the far one and back, many under way at once. With the
// end each must have come, in order; end returns how many there were.
func (l *sharedLab) startStream(t *testing.T, n *sharedNet) (end func() (packets int)) {
	t.Helper()
	const underWay = 64
	listen := func(ns *netnstest.Namespace, at netip.Addr) (conn *net.UDPConn) {
		ns.Do(t, func() (err error) {
			conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 5003)))
			return err
		})
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	a, b := listen(l.near, n.nearPod), listen(l.far, n.farPod)
	go func() {
		buf := make([]byte, 100)
		for {
			size, from, err := b.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			b.WriteToUDPAddrPort(buf[:size], from)
		}
	}()
	window := make(chan struct{}, underWay)
	var ending atomic.Bool
	sent, done := make(chan int, 1), make(chan struct{})
	var got atomic.Int64
	go func() {
		i := 0
		for ; !ending.Load(); i++ {
			window <- struct{}{}
			if _, err := a.WriteToUDPAddrPort(binary.BigEndian.AppendUint32(nil, uint32(i)), netip.AddrPortFrom(n.farPod, 5003)); err != nil {
				t.Error(err)
				break
			}
		}
		sent <- i
	}()
	go func() {
		defer close(done)
		buf := make([]byte, 100)
		for i := uint32(0); ; i++ {
			size, err := a.Read(buf)
			if err != nil {
				return
			}
			if size != 4 || binary.BigEndian.Uint32(buf) != i {
				t.Errorf("%x came back, want packet %d", buf[:size], i)
			}
			got.Add(1)
			<-window
		}
	}()
	return func() int {
		ending.Store(true)
		var n int
		select {
		case n = <-sent:
		case <-time.After(2 * time.Second): // it waits for answers that do not come
			t.Errorf("%d packets came back, and then no more", got.Load())
			return 0
		}
		for late := time.Now().Add(2 * time.Second); got.Load() < int64(n) && time.Now().Before(late); {
			time.Sleep(time.Millisecond)
		}
		a.SetReadDeadline(time.Now())
		<-done
		if got.Load() != int64(n) {
			t.Errorf("%d packets of %d came back", got.Load(), n)
		}
		return n
	}
}

// datagram is one that the far end sends to the near pod, with a number of four bytes.
func (n *sharedNet) datagram(t testing.TB, number int) []byte {
	t.Helper()
	all := []gopacket.SerializableLayer{&layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: n.farPod.AsSlice(), DstIP: n.nearPod.AsSlice()}}
	if n.farPod.Is6() {
		all[0] = &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: n.farPod.AsSlice(), DstIP: n.nearPod.AsSlice()}
	}
	udp := &layers.UDP{SrcPort: 5004, DstPort: 5004}
	buf := gopacket.NewSerializeBuffer()
	err := udp.SetNetworkLayerForChecksum(all[0].(gopacket.NetworkLayer))
	if err == nil {
		err = gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
			append(all, udp, gopacket.Payload(binary.BigEndian.AppendUint32(nil, uint32(number))))...)
	}
	if err != nil {
		t.Fatal(err)
	}
	framed := append(make([]byte, encap.VXLANHeadroom), buf.Bytes()...)
	n.framing(t, n.far).Encode(framed, n.near.MAC)
	return framed
}

// checkMixed has a peer send datagrams of both networks, and of a third that nobody has, that arrive joined. Each pod gets
// its own, in order, and the third's are counted.
func (l *sharedLab) checkMixed(t *testing.T, near *sharedEnd, stays, other *vtep) {
	t.Helper()
	const rounds, perNet = 20, 8
	var pods []*net.UDPConn
	for _, n := range l.nets {
		l.near.Do(t, func() error {
			conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(n.nearPod, 5004)))
			if err == nil {
				pods = append(pods, conn)
				t.Cleanup(func() { conn.Close() })
			}
			return err
		})
	}
	nobody := *l.nets[1]
	nobody.vni = 77
	before := stays.checkDrops(t, "vxlan-vni")["vxlan-vni"]
	near.und.mixed.Store(0)
	l.far.Do(t, func() error {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(l.nets[0].far.PublicIP, 0)))
		if err != nil {
			return err
		}
		defer conn.Close()
		oob := make([]byte, unix.CmsgSpace(2))
		header := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
		header.Level, header.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
		header.SetLen(unix.CmsgLen(2))
		for round := range rounds {
			var all []byte
			size := 0
			for i := range perNet {
				for _, n := range []*sharedNet{l.nets[i%2], &nobody, l.nets[1-i%2]} {
					p := n.datagram(t, round*perNet+i)
					all, size = append(all, p...), len(p)
				}
			}
			binary.NativeEndian.PutUint16(oob[unix.CmsgLen(0):], uint16(size))
			if _, _, err := conn.WriteMsgUDPAddrPort(all, oob, netip.AddrPortFrom(l.nets[0].near.PublicIP, overlayPort)); err != nil {
				return err
			}
		}
		return nil
	})
	for i, pod := range pods {
		pod.SetReadDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, 100)
		for want := range rounds * perNet {
			n, err := pod.Read(buf)
			if err != nil || n != 4 || binary.BigEndian.Uint32(buf) != uint32(want) {
				t.Fatalf("the pod of network %d got %x, want packet %d (%v)", i+1, buf[:n], want, err)
			}
		}
	}
	if n := near.und.mixed.Load(); n == 0 {
		t.Error("nothing of it was joined")
	}
	drops := stays.checkDrops(t, "vxlan-vni")["vxlan-vni"] + other.checkDrops(t, "vxlan-vni")["vxlan-vni"] - before
	if drops != rounds*perNet {
		t.Errorf("%d datagrams of nobody's network counted, want %d", drops, rounds*perNet)
	}
}

// Two ports of ours, with several queues, and without whatever a kernel may lack.
func TestSharedPortBothEnds(t *testing.T) {
	for _, c := range []struct {
		features string
		queues   int
	}{{"auto", 2}, {"none", 1}} {
		t.Run(c.features, func(t *testing.T) {
			l := newSharedLab(t, false)
			var vteps []*vtep
			for _, ns := range []*netnstest.Namespace{l.near, l.far} {
				e := l.openEnd(t, ns, c.features, c.queues)
				for _, n := range l.nets {
					v, _ := e.join(t, n)
					vteps = append(vteps, v)
				}
			}
			l.exchangeAll(t)
			for _, v := range vteps {
				v.checkDrops(t)
			}
		})
	}
}

// sink is a Device that counts what it is given.
type sink struct {
	got  atomic.Int64
	wake *sync.Cond

	mu             sync.Mutex // held for what follows
	paused, closed bool
}

func newSink() *sink {
	s := new(sink)
	s.wake = sync.NewCond(&s.mu)
	return s
}

func (s *sink) set(paused, closed bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paused, s.closed = paused, s.closed || closed
	s.wake.Broadcast()
	return nil
}

func (s *sink) Queues() []tunnel.DeviceQueue { return []tunnel.DeviceQueue{s} }
func (s *sink) Read([]byte, []tunnel.Packet, int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.paused && !s.closed {
		s.wake.Wait()
	}
	if s.closed {
		return 0, os.ErrClosed
	}
	return 0, os.ErrDeadlineExceeded
}
func (s *sink) Write(runs []gso.Run) (taken int, err error) {
	for _, r := range runs {
		taken += r.Segments
	}
	s.got.Add(int64(taken))
	return taken, nil
}
func (*sink) Reply([]byte, int) error { return nil }
func (*sink) Joins() (tcp, udp bool)  { return true, true }
func (*sink) Overflow() uint64        { return 0 }
func (s *sink) Pause() error          { return s.set(true, false) }
func (s *sink) Resume() error         { return s.set(false, false) }
func (s *sink) Close() error          { return s.set(true, true) }

// sunk is a port over the loopback interface, with a VTEP for each network that counts what comes.
type sunk struct {
	conn  *underlay.Conn
	vteps []*tunnel.VTEP
	sinks []*sink
	stop  []func()
}

// openSunk is how a daemon starts, in the place of another one or not.
func openSunk(t *testing.T, nets []*sharedNet, adopt underlay.Sockets) *sunk {
	t.Helper()
	features, err := kernel.ParseFeatures("auto")
	if err != nil {
		t.Fatal(err)
	}
	s := new(sunk)
	s.conn, err = underlay.Open(underlay.Config{
		Local: nets[0].near.PublicIP, Queues: 1, Features: features, MaxSegments: kernel.UDPMaxSegments(), Logger: slog.New(slog.DiscardHandler), Adopt: adopt,
	})
	if err != nil {
		t.Fatal(err)
	}
	port := tunnel.NewPort(s.conn)
	running(t, port.Run)
	for _, n := range nets {
		vni, err := encap.NewVNI(n.vni)
		if err != nil {
			t.Fatal(err)
		}
		member, err := port.Join(vni)
		if err != nil {
			t.Fatal(err)
		}
		dev := newSink()
		v, err := tunnel.New(tunnel.Config{
			Device: dev, Underlay: member, Framing: n.framing(t, n.near), Network: n.overlay, Subnet: n.near.Subnet, Port: overlayPort, MTU: 1400, Jumbo: 16 << 10,
		})
		if err == nil && adopt.Receive != nil {
			err = v.Pause()
		}
		if err != nil {
			t.Fatal(err)
		}
		v.SetTable(fib.New([]*fib.Peer{&n.far}))
		s.vteps, s.sinks = append(s.vteps, v), append(s.sinks, dev)
		s.stop = append(s.stop, running(t, v.Run))
	}
	return s
}

// each does something to every VTEP.
func (s *sunk) each(t *testing.T, do func(*tunnel.VTEP) error) {
	t.Helper()
	for _, v := range s.vteps {
		if err := do(v); err != nil {
			t.Error(err)
		}
	}
}

// A port changes hands with all its networks, after a successor that gave up: each packet comes to the one or to the other.
func TestSharedPortChangesHands(t *testing.T) {
	nets := sharedNets([2]string{"127.0.0.1", "127.0.0.2"})
	old := openSunk(t, nets, underlay.Sockets{})
	sockets, err := old.conn.Sockets()
	if err != nil {
		t.Fatal(err)
	}
	defer sockets.Close()
	to, err := unix.Getsockname(int(sockets.Receive[0].Fd()))
	if err != nil {
		t.Fatal(err)
	}
	from, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(nets[0].far.PublicIP, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	datagrams := [][]byte{nets[0].datagram(t, 1), nets[1].datagram(t, 2)}
	send := func(i int) {
		if _, err := from.WriteToUDPAddrPort(datagrams[i], netip.AddrPortFrom(nets[0].near.PublicIP, uint16(to.(*unix.SockaddrInet4).Port))); err != nil {
			t.Error(err)
		}
	}
	count := func(i int, all ...*sunk) (n int64) {
		for _, s := range all {
			n += s.sinks[i].got.Load()
		}
		return n
	}
	await := func(what string, ready func() bool) {
		t.Helper()
		for late := time.Now().Add(10 * time.Second); !ready(); time.Sleep(time.Millisecond) {
			if time.Now().After(late) {
				t.Fatalf("%s: not in 10 seconds", what)
			}
		}
	}
	var before [2]int64 // what came until the VTEPs ran
	dropped := make([]map[string]uint64, 2)
	for i := range nets {
		await("the first packet", func() bool {
			send(i)
			return count(i, old) > 0
		})
		time.Sleep(10 * time.Millisecond)
		before[i] = count(i, old)
	}
	for i, v := range old.vteps {
		dropped[i] = v.Drops()
	}
	var ending atomic.Bool
	sent := make(chan int64, 1)
	go func() {
		n := int64(0)
		for ; !ending.Load(); n++ {
			send(0)
			send(1)
			if n%8 == 0 { // what waits has to fit the receive buffer
				time.Sleep(100 * time.Microsecond)
			}
		}
		sent <- n
	}()
	await("packets", func() bool { return count(0, old) > 100 && count(1, old) > 100 })

	failing := openSunk(t, nets, sockets)
	old.each(t, (*tunnel.VTEP).Pause)
	failing.each(t, (*tunnel.VTEP).Resume)
	await("packets of a successor", func() bool { return count(0, failing) > 100 && count(1, failing) > 100 })
	failing.each(t, (*tunnel.VTEP).Pause)
	old.each(t, (*tunnel.VTEP).Resume)
	for _, stop := range failing.stop {
		stop()
	}
	then := count(0, old)
	await("packets of the first one again", func() bool { return count(0, old) > then+100 })

	next := openSunk(t, nets, sockets)
	old.each(t, (*tunnel.VTEP).Pause)
	gone := [2]int64{count(0, old), count(1, old)}
	next.each(t, (*tunnel.VTEP).Resume)
	for _, stop := range old.stop {
		stop()
		time.Sleep(5 * time.Millisecond) // in which a port that reads would take packets away
	}
	ending.Store(true)
	n := <-sent
	for i := range nets {
		want := before[i] + n
		await(fmt.Sprintf("all packets of network %d", i+1), func() bool { return count(i, old, failing, next) >= want })
		if got := count(i, old, failing, next); got != want || count(i, old) != gone[i] {
			t.Errorf("network %d: %d packets came of %d, and %d to one that had stopped", i+1, got, want, count(i, old)-gone[i])
		}
	}
	for _, s := range []*sunk{old, failing, next} {
		for i, v := range s.vteps {
			for reason, n := range v.Drops() {
				if s == old {
					n -= dropped[i][reason]
				}
				if n > 0 && reason != "send-buffer-full" { // which is the namespace's
					t.Errorf("network %d: %d packets dropped: %s", i+1, n, reason)
				}
			}
		}
	}
}
