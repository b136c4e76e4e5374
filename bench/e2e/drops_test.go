//go:build linux

package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"syscall"
	"testing"
	"time"

	"muslin/bench/hostile"
	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// dropLab is two nodes, the first of which drops packets:
//
//	p1a ── cni0 ─ h1 (muslin, embedded etcd) ── br0 ── h2 (muslin) ─ cni0 ── p2a
type dropLab struct {
	host  *lab.Host   // h1
	m     *lab.Muslin // on h1
	other *lab.Muslin // on h2
	a, b  *lab.Pod    // p1a, p2a
}

// drops are the ways to have a packet dropped that takes more than a datagram from the underlay: those are in
// package hostile. Each says how often the reason must be counted for it, and 0 where it has made sure itself.
var drops = map[string]func(t *testing.T, x *dropLab) uint64{
	"tun-overflow":     fillTUN,
	"no-route":         toNobody,
	"own-subnet":       toNoPod,
	"too-big":          beyondMTU,
	"malformed":        handOverNonsense,
	"ipv6":             handOverIPv6,
	"send-failed":      firewallOutput,
	"send-buffer-full": sendIntoSlowLink,
	"outer-checksum":   spoilChecksum,
	"tun-write":        setTUNDown,
	"socket-overflow":  fillSocket,
}

// Every drop reason is reached by a packet that is sent to a running daemon, here or in TestHostileDatagrams, and
// counted as often as it was sent.
func TestEveryDropReason(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "nft", "tc", "ethtool")
	for _, reason := range dropReasons(t) {
		if slices.Contains(ipv6Drops, reason) {
			continue
		}
		if drops[reason] == nil && !slices.ContainsFunc(hostileCases(), func(c hostile.Case) bool { return c.Drop == reason }) {
			t.Errorf("no test reaches %s", reason)
		}
	}
	l := newLab(t, 2)
	leaveIll(l, "packets of every kind are dropped, some by the thousand")
	daemons := join(t, l, "vxlan")
	x := &dropLab{host: l.Host(1), m: daemons[0], other: daemons[1], a: l.Host(1).Pods()[0], b: l.Host(2).Pods()[0]}
	expectPing(t, x.a.Node, x.b.Addr, 3)
	for _, reason := range dropReasons(t) {
		if drops[reason] == nil {
			continue
		}
		t.Run(reason, func(t *testing.T) {
			before := x.count(t, reason)
			want := drops[reason](t, x)
			if want > 0 {
				x.waitCount(t, reason, before+want)
			} else if x.count(t, reason) == before {
				t.Errorf("%s was not counted", reason)
			}
			eventually(t, 20*time.Second, func() error { // the daemon has mended what it can
				if r, err := x.a.Ping(t.Context(), x.b.Addr, lab.PingOptions{Count: 1}); err != nil || r.Received != 1 {
					return fmt.Errorf("no ping after it: %+v, %v", r, err)
				}
				return nil
			})
		})
	}
}

// ipv6Drops are those of an overlay that carries IPv6: testDualStack reaches them.
var ipv6Drops = []string{"ipv4", "link-local", "inner-ipv4"}

var reasonRow = regexp.MustCompile("(?m)^\\| `([a-z0-9-]+)` \\|")

// dropReasons are those that docs/drops.md lists, which is held to the code by a test of its own.
func dropReasons(t *testing.T) (all []string) {
	t.Helper()
	page := must(os.ReadFile("../../docs/drops.md"))(t)
	for _, m := range reasonRow.FindAllSubmatch(page, -1) {
		all = append(all, string(m[1]))
	}
	if len(all) < 20 {
		t.Fatalf("docs/drops.md lists %d reasons", len(all))
	}
	return all
}

// hostileCases are what TestHostileDatagrams sends, whatever the addresses are.
func hostileCases() []hostile.Case {
	from, to := netip.MustParseAddr("10.244.7.2"), netip.MustParseAddr("10.244.8.2")
	inner := hostile.Inner(from, to)
	return append(inner, hostile.InVXLAN(net.HardwareAddr{2, 0, 0, 0, 0, 1}, inner, hostile.InnerUDP(from, to, 0, 40))...)
}

func (x *dropLab) count(t *testing.T, reason string) uint64 {
	t.Helper()
	return status(t, x.m).Drops[reason]
}

func (x *dropLab) waitCount(t *testing.T, reason string, want uint64) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		if got := x.count(t, reason); got != want {
			return fmt.Errorf("%s is counted %d times, want %d", reason, got, want)
		}
		return nil
	})
}

// waitSum waits until what was counted since before and what the sink has taken are all that was sent, and returns
// how many were counted. Some must be.
func (x *dropLab) waitSum(t *testing.T, reason string, before uint64, sink *net.UDPConn, sent uint64) uint64 {
	t.Helper()
	var received, counted uint64
	eventually(t, 20*time.Second, func() error {
		received += drain(t, sink)
		counted = x.count(t, reason) - before
		if received+counted != sent {
			return fmt.Errorf("%d received and %d counted as %s, of %d", received, counted, reason, sent)
		}
		return nil
	})
	t.Logf("%d received and %d dropped, of %d", received, counted, sent)
	return counted
}

// drain takes what waits at a socket.
func drain(t *testing.T, conn *net.UDPConn) (n uint64) {
	t.Helper()
	buf := make([]byte, 2000)
	for {
		if err := conn.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(buf); err != nil {
			return n
		}
		n++
	}
}

// stopped has the daemon stand still while something happens.
func (x *dropLab) stopped(t *testing.T, happens func()) {
	t.Helper()
	if err := x.m.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := x.m.Signal(syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	}()
	happens()
}

// send sends n datagrams with a payload of size bytes, and of one more each time with grows.
func send(t *testing.T, from *lab.Node, to netip.Addr, n, size int, grows bool) {
	t.Helper()
	conn := listenUDP(t, from, netip.AddrPortFrom(netip.IPv4Unspecified(), 0))
	defer conn.Close()
	for range n {
		if _, err := conn.WriteToUDPAddrPort(make([]byte, size), netip.AddrPortFrom(to, 7300)); err != nil {
			t.Fatal(err)
		}
		if grows {
			size++
		}
	}
}

func sink(t *testing.T, p *lab.Pod) *net.UDPConn {
	t.Helper()
	return listenUDP(t, p.Node, netip.AddrPortFrom(p.Addr, 7300))
}

// More packets than the TUN device's queue holds wait for a daemon that does not run.
func fillTUN(t *testing.T, x *dropLab) uint64 {
	const sent = 3000
	before, at := x.count(t, "tun-overflow"), sink(t, x.b)
	x.stopped(t, func() { send(t, x.a.Node, x.b.Addr, sent, 40, false) })
	x.waitSum(t, "tun-overflow", before, at, sent)
	return 0
}

func toNobody(t *testing.T, x *dropLab) uint64 {
	send(t, x.a.Node, netip.MustParseAddr("10.244.0.9"), 5, 40, false) // in the first subnet, which nobody gets
	return 5
}

// A route leads an address of our own subnet to the TUN device, as the overlay's own does without a pod bridge.
func toNoPod(t *testing.T, x *dropLab) uint64 {
	b := x.a.Addr.As4()
	b[3] = 77
	nobody := netip.AddrFrom4(b)
	runIn(t, x.host.Node, "ip", "route", "add", nobody.String(), "dev", "muslin0")
	defer runIn(t, x.host.Node, "ip", "route", "del", nobody.String(), "dev", "muslin0")
	send(t, x.host.Node, nobody, 5, 40, false)
	return 5
}

// The host hands over packets that were let in with a larger MTU, before the daemon sets it right again.
func beyondMTU(t *testing.T, x *dropLab) uint64 {
	x.stopped(t, func() {
		runIn(t, x.host.Node, "ip", "link", "set", "muslin0", "mtu", "9000")
		send(t, x.host.Node, x.b.Addr, 5, 3000, false)
	})
	return 5
}

func (x *dropLab) handOver(t *testing.T, packet []byte, n int) uint64 {
	t.Helper()
	if err := x.host.Do(func() error { return hostile.Send("muslin0", slices.Repeat([][]byte{packet}, n)...) }); err != nil {
		t.Fatal(err)
	}
	return uint64(n)
}

// A packet socket sends what it likes out of the TUN device.
func handOverNonsense(t *testing.T, x *dropLab) uint64 {
	return x.handOver(t, []byte("this is no IP packet, whatever it says"), 5)
}

func handOverIPv6(t *testing.T, x *dropLab) uint64 {
	packet := make([]byte, 48) // RFC 8200, section 3: version 6, 8 bytes of payload, no next header
	packet[0], packet[5], packet[6], packet[7] = 0x60, 8, 59, 64
	return x.handOver(t, packet, 5)
}

func firewallOutput(t *testing.T, x *dropLab) uint64 {
	port := status(t, x.m).Node.Port
	runIn(t, x.host.Node, "nft", fmt.Sprintf("table ip muzzle { chain out { type filter hook output priority 0; udp dport %d drop; }; }", port))
	defer runIn(t, x.host.Node, "nft", "delete table ip muzzle")
	before := x.count(t, "send-failed")
	send(t, x.a.Node, x.b.Addr, 5, 40, false)
	x.waitCount(t, "send-failed", before+5)
	return 0
}

// The link takes 1 Mbit/s and queues a tenth of a second of it. Each datagram is longer than the one before, so that
// none leave as a run, which the kernel would count as one.
func sendIntoSlowLink(t *testing.T, x *dropLab) uint64 {
	const sent = 200
	runIn(t, x.host.Node, "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "1mbit", "burst", "4kb", "latency", "100ms")
	defer runIn(t, x.host.Node, "tc", "qdisc", "del", "dev", "eth0", "root")
	before, at := x.count(t, "send-buffer-full"), sink(t, x.b)
	send(t, x.a.Node, x.b.Addr, sent, 1000, true)
	x.waitSum(t, "send-buffer-full", before, at, sent)
	return 0
}

// outer is a frame from h2 to the overlay's port of h1, with a datagram of another VXLAN network in it.
func (x *dropLab) outer(t *testing.T, payload int) []byte {
	t.Helper()
	port := status(t, x.m).Node.Port
	from, to := x.other.Host.Addr, x.host.Addr
	content := hostile.VXLAN{Flags: 8, VNI: 2, Dst: make([]byte, 6), Src: make([]byte, 6), EtherType: 0x0800, Inner: hostile.InnerUDP(x.b.Addr, x.a.Addr, 0, payload)}
	return hostile.Ethernet(labtest.HardwareAddr(t, x.host), labtest.HardwareAddr(t, x.other.Host), hostile.UDP(netip.AddrPortFrom(from, port), netip.AddrPortFrom(to, port), content.Bytes()))
}

// The host's NIC leaves checksums to the kernel, as a virtual link does not do by itself.
func spoilChecksum(t *testing.T, x *dropLab) uint64 {
	runIn(t, x.host.Node, "ethtool", "-K", "eth0", "rx", "off")
	defer runIn(t, x.host.Node, "ethtool", "-K", "eth0", "rx", "on")
	const checksum = 14 + 20 + 6 // Ethernet, IPv4, and the field's place in the UDP header
	frame := x.outer(t, 100)
	sum := udpSum(frame[14:])
	binary.BigEndian.PutUint16(frame[checksum:], sum^0x0101)
	before, other := x.count(t, "outer-checksum"), x.count(t, "vxlan-vni")
	sendFrames(t, x.other.Host, frame, 5)
	x.waitCount(t, "outer-checksum", before+5)
	binary.BigEndian.PutUint16(frame[checksum:], sum)
	sendFrames(t, x.other.Host, frame, 5)
	x.waitCount(t, "vxlan-vni", other+5) // with the right one it is wrong in another way
	return 0
}

func sendFrames(t *testing.T, h *lab.Host, frame []byte, n int) {
	t.Helper()
	if err := h.Do(func() error { return hostile.Send("eth0", slices.Repeat([][]byte{frame}, n)...) }); err != nil {
		t.Fatal(err)
	}
}

// udpSum is the checksum (RFC 768) of an IPv4 packet's UDP datagram whose field for it is 0.
func udpSum(packet []byte) uint16 {
	udp := packet[20:]
	pseudo := binary.BigEndian.AppendUint16([]byte{0, 17}, uint16(len(udp)))
	return ^onesSum(udp, onesSum(append(slices.Clone(packet[12:20]), pseudo...), 0))
}

// Somebody sets the device down while datagrams wait for a daemon that stands still. It sets the device up again,
// and may do so before it writes.
func setTUNDown(t *testing.T, x *dropLab) uint64 {
	const sent = 20
	for range 10 {
		before, at := x.count(t, "tun-write"), sink(t, x.a)
		tx := status(t, x.other).Peers[0].TxPackets
		x.stopped(t, func() {
			runIn(t, x.host.Node, "ip", "link", "set", "muslin0", "down")
			send(t, x.b.Node, x.a.Addr, sent, 40, false)
			eventually(t, 5*time.Second, func() error {
				if n := status(t, x.other).Peers[0].TxPackets - tx; n < sent {
					return fmt.Errorf("%d of %d are on the way", n, sent)
				}
				return nil
			})
		})
		counted := x.waitSum(t, "tun-write", before, at, sent)
		at.Close()
		if counted > 0 {
			return 0
		}
	}
	return 0
}

// More datagrams wait than the receive buffer holds.
func fillSocket(t *testing.T, x *dropLab) uint64 {
	const sent = 30_000
	before, other := x.count(t, "socket-overflow"), x.count(t, "vxlan-vni")
	frame := x.outer(t, 1300)
	x.stopped(t, func() { sendFrames(t, x.other.Host, frame, sent) })
	var overflow, received uint64
	eventually(t, 20*time.Second, func() error {
		d := status(t, x.m).Drops
		if overflow, received = d["socket-overflow"]-before, d["vxlan-vni"]-other; overflow+received != sent {
			return fmt.Errorf("%d overflowed and %d received, of %d", overflow, received, sent)
		}
		return nil
	})
	t.Logf("%d received and %d dropped, of %d", received, overflow, sent)
	return 0
}
