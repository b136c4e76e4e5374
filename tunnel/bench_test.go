package tunnel

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"muslin/encap"
	"muslin/tunnel/fib"
)

// node is one host of the tests' overlay.
type node struct {
	subnet netip.Prefix
	public netip.Addr
	mac    encap.MAC
}

// The overlay: us, and two peers. 10.9.0.0/24 is leased by nobody.
var (
	nodeA = node{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParseAddr("192.0.2.1"), encap.MAC{2, 0, 0, 0, 0, 0xa}}
	nodeB = node{netip.MustParsePrefix("10.2.0.0/24"), netip.MustParseAddr("192.0.2.2"), encap.MAC{2, 0, 0, 0, 0, 0xb}}
	nodeC = node{netip.MustParsePrefix("10.3.0.0/24"), netip.MustParseAddr("192.0.2.3"), encap.MAC{2, 0, 0, 0, 0, 0xc}}

	stranger = netip.MustParseAddr("198.51.100.1")
)

// The same three over IPv6. fd00:9::/64 is leased by nobody.
var (
	nodeA6 = node{netip.MustParsePrefix("fd00:1::/64"), netip.MustParseAddr("2001:db8::1"), encap.MAC{2, 0, 0, 0, 6, 0xa}}
	nodeB6 = node{netip.MustParsePrefix("fd00:2::/64"), netip.MustParseAddr("2001:db8::2"), encap.MAC{2, 0, 0, 0, 6, 0xb}}
	nodeC6 = node{netip.MustParsePrefix("fd00:3::/64"), netip.MustParseAddr("2001:db8::3"), encap.MAC{2, 0, 0, 0, 6, 0xc}}

	stranger6 = netip.MustParseAddr("2001:db8:bad::1")
)

const (
	port    = 8472
	testMTU = 1450
	jumbo   = 4096
)

var framingNames = []string{"vxlan", "udp"}

// families are the three nodes of each family.
var families = [][3]node{{nodeA, nodeB, nodeC}, {nodeA6, nodeB6, nodeC6}}

func (n node) six() bool { return n.subnet.Addr().Is6() }

// hosts is the format of the addresses in the node's subnet, by a number.
func (n node) hosts() string { return strings.TrimSuffix(n.subnet.Addr().String(), "0") + "%d" }

func (n node) peer() *fib.Peer { return &fib.Peer{Subnet: n.subnet, PublicIP: n.public, MAC: n.mac} }

// framing is the node's, by its name.
func framing(t testing.TB, n node, name string) encap.Framing {
	t.Helper()
	if name == (encap.UDP{}).Name() {
		if n.six() {
			return encap.UDP{Inner: encap.IPv6}
		}
		return encap.UDP{}
	}
	vni, err := encap.NewVNI(42)
	if err != nil {
		t.Fatal(err)
	}
	if n.six() {
		return encap.NewVXLAN6(vni, n.mac)
	}
	return encap.NewVXLAN(vni, n.mac)
}

// bench is a VTEP on fakes, with the other two nodes as its peers.
type bench struct {
	*VTEP
	node     node
	name     string // of the framing
	device   *fakeDevice
	underlay *fakeUnderlay
	dev      *fakeDeviceQueue // the first of device
	und      *fakeUnderlayQueue
	a, b, c  *fib.Peer
}

// nodes are the three of x's family, and the stranger.
func (x *bench) nodes() (a, b, c node, strange netip.Addr) {
	if x.node.six() {
		return nodeA6, nodeB6, nodeC6, stranger6
	}
	return nodeA, nodeB, nodeC, stranger
}

// addr is an address of the IPv4 overlay, or with x of IPv6 the one that has its place there: 10.2.0.5 is fd00:2::5.
func (x *bench) addr(four string) string {
	a := netip.MustParseAddr(four)
	if !x.node.six() || a.Is6() {
		return four
	}
	b := a.As4()
	if b[0] != 10 {
		panic("not of the tests' overlay: " + four)
	}
	return netip.AddrFrom16([16]byte{0xfd, 3: b[1], 14: b[2], 15: b[3]}).String()
}

// newBench6 is newBench over IPv6.
func newBench6(t testing.TB, framingName string, edit ...func(*Config)) *bench {
	t.Helper()
	return newBenchOf(t, nodeA6, framingName, 1, edit...)
}

// newBench is a bench of node A with one queue.
func newBench(t testing.TB, framingName string, edit ...func(*Config)) *bench {
	t.Helper()
	return newBenchOf(t, nodeA, framingName, 1, edit...)
}

func newBenchOf(t testing.TB, n node, framingName string, queues int, edit ...func(*Config)) *bench {
	t.Helper()
	x := &bench{node: n, name: framingName, device: newFakeDevice(queues), underlay: newFakeUnderlay(queues)}
	x.dev, x.und = x.device.queues[0], x.underlay.queues[0]
	x.VTEP = newVTEP(t, n, framingName, x.device, x.underlay, edit...)
	x.renewPeers()
	return x
}

// renewPeers gives x peers whose counters are 0, of its family. Those of the other are in the table, too, but for
// nodeA's, whose subnet x may have to have for itself.
func (x *bench) renewPeers() {
	x.a, x.b, x.c = nodeA.peer(), nodeB.peer(), nodeC.peer()
	others := []*fib.Peer{nodeB6.peer(), nodeC6.peer()}
	if x.node.six() {
		x.a, x.b, x.c = nodeA6.peer(), nodeB6.peer(), nodeC6.peer()
		others = []*fib.Peer{nodeB.peer(), nodeC.peer()}
	}
	for _, p := range []*fib.Peer{x.a, x.b, x.c} {
		if p.PublicIP != x.node.public {
			others = append(others, p)
		}
	}
	x.SetTable(fib.New(others))
}

func newVTEP(t testing.TB, n node, framingName string, dev Device, und Underlay, edit ...func(*Config)) *VTEP {
	t.Helper()
	cfg := Config{
		Device: dev, Underlay: und, Framing: framing(t, n, framingName), Subnet: n.subnet,
		Port: port, MTU: testMTU, Jumbo: jumbo,
	}
	for _, f := range edit {
		f(&cfg)
	}
	v, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// limitSegments sets how many datagrams the first queue's messages may hold.
func (x *bench) limitSegments(n int) {
	x.und.segments = func() int { return n }
	x.out[0].msgs.reset()
}

// check fails the test for each breach of the interfaces' contracts.
func (x *bench) check(t testing.TB) {
	t.Helper()
	x.device.check(t)
	x.underlay.check(t)
}

// sendMessages takes packets through the first queue's outbound worker and returns the messages of each
// Send.
func (x *bench) sendMessages(t testing.TB, packets ...inner) [][]sentMessage {
	t.Helper()
	x.und.sends = nil
	x.dev.pending = packets
	for len(x.dev.pending) > 0 {
		if err := x.out[0].batch(); err != nil {
			t.Fatalf("outbound batch: %v", err)
		}
	}
	x.check(t)
	return x.und.sends
}

// send takes packets through the outbound worker and returns the datagrams.
func (x *bench) send(t testing.TB, packets ...inner) (ds []outer) {
	t.Helper()
	for _, ms := range x.sendMessages(t, packets...) {
		for _, m := range ms {
			ds = append(ds, m.datagrams...)
		}
	}
	return ds
}

func (x *bench) sendPlain(t testing.TB, packets ...[]byte) []outer {
	t.Helper()
	return x.send(t, plain(packets...)...)
}

// receive takes datagrams through the first queue's inbound worker and returns the packets that reached the
// device.
func (x *bench) receive(t testing.TB, ds ...Datagram) [][]byte {
	t.Helper()
	x.und.pending = ds
	for len(x.und.pending) > 0 {
		if err := x.in[0].batch(); err != nil {
			t.Fatalf("inbound batch: %v", err)
		}
	}
	x.check(t)
	return x.dev.takeWritten()
}

// from frames a packet as a peer does that sends it to us.
func (x *bench) from(t testing.TB, n node, packet []byte) Datagram {
	t.Helper()
	f := framing(t, n, x.name)
	buf := append(make([]byte, f.Headroom()), packet...)
	f.Encode(buf, x.node.mac)
	return Datagram{Buf: buf, Addr: netip.AddrPortFrom(n.public, 40000)}
}

// unframed is the inner packet of a datagram that a VTEP of the tests sent.
func (x *bench) unframed(d outer) []byte { return d.buf[x.cfg.Framing.Headroom():] }

func (x *bench) unframedAll(ds []outer) (packets [][]byte) {
	for _, d := range ds {
		packets = append(packets, x.unframed(d))
	}
	return packets
}

// joined is what a socket with UDP_GRO makes of datagrams of one sender: all but the last of one length.
func joined(ds ...Datagram) Datagram {
	all := ds[0]
	all.Buf = nil
	for _, d := range ds {
		all.Buf = append(all.Buf, d.Buf...)
	}
	if len(ds) > 1 {
		all.Size = len(ds[0].Buf)
	}
	return all
}

// within fails the test when nothing comes out of done in ten seconds.
func within[T any](t testing.TB, what string, done <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: nothing in 10 seconds", what)
	}
	return v
}
