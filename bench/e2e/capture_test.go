//go:build linux

package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"muslin/bench/lab"
	"muslin/tunnel/kernel"
)

// capture is a tcpdump that runs on a node.
type capture struct {
	file string
	link layers.LinkType
}

func startCapture(t *testing.T, n *lab.Node, dir, iface, filter string) *capture {
	t.Helper()
	lab.RequireTool(t, "tcpdump")
	c := &capture{file: filepath.Join(dir, n.Name+"-"+iface+".pcap")}
	p := must(n.Start("tcpdump-"+iface+"-"+filepath.Base(dir), nil, "tcpdump", "-Z", "root", "--immediate-mode", "-s", "2048", "-B", "8192", "-U", "-n", "-i", iface, "-w", c.file, filter))(t)
	if err := p.WaitOutput(t.Context(), "listening on"); err != nil {
		t.Fatal(err)
	}
	return c
}

// packets are what was captured until now.
func (c *capture) packets() ([][]byte, error) {
	f, err := os.Open(c.file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := pcapgo.NewReader(f)
	if err != nil {
		return nil, err
	}
	c.link = r.LinkType()
	var all [][]byte
	for {
		data, _, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		all = append(all, data)
	}
}

// wait returns the packets once there are n.
func (c *capture) wait(t *testing.T, n int) [][]byte {
	t.Helper()
	all := c.atLeast(t, n)
	if len(all) != n {
		t.Fatalf("%s has %d packets, want %d", filepath.Base(c.file), len(all), n)
	}
	return all
}

// atLeast waits for so many packets, or more: tcpdump writes them a moment after they passed.
func (c *capture) atLeast(t *testing.T, n int) (all [][]byte) {
	t.Helper()
	eventually(t, 10*time.Second, func() (err error) {
		if all, err = c.packets(); err == nil && len(all) < n {
			err = fmt.Errorf("%s has %d packets, want %d", filepath.Base(c.file), len(all), n)
		}
		return err
	})
	return all
}

// What muslin puts on the wire, as tcpdump sees it and gopacket decodes it, next to what it took from the
// TUN device:
//
//	p1a ── cni0 ─ h1 (muslin) ─ eth0 ── br0 ── eth0 ─ h2 (muslin) ─ cni0 ── p2a
//	               └ tcpdump on muslin0   └ tcpdump on h2's eth0
//
// Checksum offload is off on h1's eth0, so that the checksums are on the wire rather than in a promise.
func TestOnTheWire(t *testing.T) {
	t.Parallel()
	lab.RequireTool(t, "ethtool", "tcpdump")
	for _, backend := range []string{"vxlan", "udp"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			testOnTheWire(t, backend)
		})
	}
}

func testOnTheWire(t *testing.T, backend string) {
	l := newLab(t, 2)
	// Without offloads on the TUN device, where the capture would show checksums that are not finished.
	daemons := join(t, l, backend, "--features=-tun-tso", "--path-mtu-interval=0") // nor probes among the packets
	ctx := t.Context()
	if _, err := l.Host(1).Run(ctx, "ethtool", "-K", "eth0", "tx", "off"); err != nil {
		t.Fatal(err)
	}
	a, b := l.Host(1).Pods()[0], l.Host(2).Pods()[0]
	node, peer := status(t, daemons[0]).Node, status(t, daemons[1]).Node
	port := node.Port
	// An echo first, so that no ARP or route lookup delays the flows.
	expectPing(t, a.Node, b.Addr, 1)
	inner := startCapture(t, l.Host(1).Node, t.TempDir(), "muslin0", "udp and dst host "+b.Addr.String())
	outer := startCapture(t, l.Host(2).Node, t.TempDir(), "eth0", fmt.Sprintf("udp and dst port %d and src host %s", port, l.Host(1).Addr))

	const flows, rounds = 24, 4
	tos := []int{0, 2, 1, 0xb8 | 3} // not ECN-capable, ECT(0), ECT(1), and CE with DSCP EF
	listenUDP(t, b.Node, netip.AddrPortFrom(b.Addr, 7200))
	var senders []*net.UDPConn
	for range flows {
		senders = append(senders, listenUDP(t, a.Node, netip.AddrPortFrom(a.Addr, 0)))
	}
	for round := range rounds {
		for i, s := range senders {
			setTOS(t, s, tos[round%len(tos)])
			if _, err := s.WriteToUDPAddrPort(make([]byte, 10+i*50), netip.AddrPortFrom(b.Addr, 7200)); err != nil {
				t.Fatal(err)
			}
		}
	}
	inners, outers := inner.wait(t, flows*rounds), outer.wait(t, flows*rounds)

	byContent := make(map[string]int) // inner packets that are still to be found in outer ones
	for _, p := range inners {
		byContent[string(p)]++
	}
	ports := make(map[layers.UDPPort]layers.UDPPort) // inner source port to outer
	used := make(map[layers.UDPPort]bool)
	for _, p := range outers {
		d := decodeOuter(t, p, node.VtepMAC, peer.VtepMAC)
		if byContent[string(d.inner)] == 0 {
			t.Fatalf("inner packet % x was not taken from the TUN device", d.inner)
		}
		byContent[string(d.inner)]--
		ip, udp := decodeInner(t, d.inner)
		want := ip.TOS & 3
		if lacks(kernel.OuterECN) {
			want = 0
		}
		if d.ip.TOS != want {
			t.Errorf("outer TOS %#x for inner %#x: want the ECN bits alone, %#x", d.ip.TOS, ip.TOS, want)
		}
		if before, ok := ports[udp.SrcPort]; ok && before != d.udp.SrcPort {
			t.Errorf("flow of port %d moved from outer port %d to %d", udp.SrcPort, before, d.udp.SrcPort)
		}
		ports[udp.SrcPort] = d.udp.SrcPort
		used[d.udp.SrcPort] = true
		if d.udp.DstPort != layers.UDPPort(port) {
			t.Errorf("outer destination port %d, want %d", d.udp.DstPort, port)
		}
	}
	if len(ports) != flows || len(used) < 4 {
		t.Errorf("%d flows used %d outer source ports, want %d flows and at least 4 ports", len(ports), len(used), flows)
	}
}

func setTOS(t *testing.T, conn *net.UDPConn, tos int) {
	t.Helper()
	raw := must(conn.SyscallConn())(t)
	var failed error
	if err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, tos)
	}); err != nil || failed != nil {
		t.Fatal("set IP_TOS:", err, failed)
	}
}

type outerPacket struct {
	ip    *layers.IPv4
	udp   *layers.UDP
	inner []byte
}

// decodeOuter decodes a captured frame, and checks all that is the same in every one. The two VtepMACs
// are empty for udp.
func decodeOuter(t *testing.T, frame []byte, src, dst string) outerPacket {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	ip, _ := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	udp, _ := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if ip == nil || udp == nil {
		t.Fatalf("not a UDP datagram: %v", p)
	}
	d := outerPacket{ip: ip, udp: udp, inner: udp.Payload}
	if ip.Flags&layers.IPv4DontFragment != 0 {
		t.Error("outer DF is set")
	}
	if ip.TTL != 64 || len(ip.Options) != 0 {
		t.Errorf("outer TTL %d, options %v; want the system's 64 and none", ip.TTL, ip.Options)
	}
	if got := onesSum(ip.Contents, 0); got != 0xffff {
		t.Errorf("outer IP checksum is wrong: header sums to %#x", got)
	}
	pseudo := binary.BigEndian.AppendUint16(append(bytes.Clone(ip.SrcIP.To4()), ip.DstIP.To4()...), 17)
	pseudo = binary.BigEndian.AppendUint16(pseudo, udp.Length)
	if udp.Checksum == 0 || onesSum(ip.Payload, onesSum(pseudo, 0)) != 0xffff {
		t.Errorf("outer UDP checksum %#04x is absent or wrong", udp.Checksum)
	}
	if src == "" {
		return d
	}
	// RFC 7348, section 5: flags 0x08, 24 reserved bits, VNI 1, 8 reserved bits.
	if want := []byte{8, 0, 0, 0, 0, 0, 1, 0}; !bytes.HasPrefix(udp.Payload, want) {
		t.Errorf("VXLAN header % x, want % x", udp.Payload[:8], want)
	}
	eth := gopacket.NewPacket(udp.Payload[8:], layers.LayerTypeEthernet, gopacket.Default)
	e, _ := eth.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	if e == nil {
		t.Fatalf("no inner Ethernet frame: %v", eth)
	}
	if e.SrcMAC.String() != src || e.DstMAC.String() != dst || e.EthernetType != layers.EthernetTypeIPv4 {
		t.Errorf("inner Ethernet %v to %v, type %v; want %s to %s, IPv4", e.SrcMAC, e.DstMAC, e.EthernetType, src, dst)
	}
	d.inner = e.Payload
	return d
}

func decodeInner(t *testing.T, packet []byte) (*layers.IPv4, *layers.UDP) {
	t.Helper()
	p := gopacket.NewPacket(packet, layers.LayerTypeIPv4, gopacket.Default)
	ip, _ := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	udp, _ := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if ip == nil || udp == nil {
		t.Fatalf("inner packet is not UDP: %v", p)
	}
	return ip, udp
}

// onesSum is the Internet checksum's sum (RFC 1071), the slow and obvious way.
func onesSum(b []byte, initial uint16) uint16 {
	sum := uint32(initial)
	for i := 0; i < len(b); i += 2 {
		word := uint32(b[i]) << 8
		if i+1 < len(b) {
			word |= uint32(b[i+1])
		}
		sum += word
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
