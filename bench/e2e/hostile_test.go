//go:build linux

package e2e

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"muslin/bench/lab"
	"muslin/bench/labtest"
)

// vxlanFrame is a datagram in the making: all that a sender could get wrong.
type vxlanFrame struct {
	flags     byte
	vni       uint32
	reserved  byte // the last of the VXLAN header
	dst, src  net.HardwareAddr
	etherType uint16
	inner     []byte
}

func (f vxlanFrame) bytes() []byte {
	b := []byte{f.flags, 0, 0, 0}
	b = binary.BigEndian.AppendUint32(b, f.vni<<8|uint32(f.reserved))
	b = append(append(b, f.dst...), f.src...)
	b = binary.BigEndian.AppendUint16(b, f.etherType)
	return append(b, f.inner...)
}

// innerUDP is an IPv4 packet with a UDP datagram in it. tos, source and destination are the sender's to
// choose.
func innerUDP(src, dst netip.Addr, tos byte, payload int) []byte {
	b := []byte{0x45, tos, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0}
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, 7300)
	b = binary.BigEndian.AppendUint16(b, 7300)
	b = binary.BigEndian.AppendUint16(b, uint16(8+payload))
	b = append(b, 0, 0) // no UDP checksum
	b = append(b, make([]byte, payload)...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return mendHeader(b)
}

// mendHeader puts the right checksum into an IPv4 header of the usual 20 bytes.
func mendHeader(b []byte) []byte {
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], ^onesSum(b[:20], 0))
	return b
}

// changed is a copy of b with one byte replaced, and the header's checksum mended.
func changed(b []byte, at int, value byte) []byte {
	b = slices.Clone(b)
	b[at] = value
	return mendHeader(b)
}

// hostile is a datagram and what must become of it.
type hostile struct {
	name     string
	datagram []byte
	drop     string // "" for one that is good
	stranger bool   // sent from a host that no lease knows
	ecn      int    // of the outer header
}

// A peer and a stranger send what they should not:
//
//	p1a ── cni0 ─ h1 (muslin, embedded etcd) ─┬─ br0 ─┬─ h2: holds a lease, no daemon; UDP socket
//	                                          └───────┴─ h3: holds none; UDP socket
//
// Each datagram must be counted under its own drop reason, as often as it was sent, and under no other.
func TestHostileDatagrams(t *testing.T) {
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
	cases := hostileInner(from, pod.Addr)
	if backend == "vxlan" {
		cases = hostileVXLAN(t, node.VtepMAC, cases, innerUDP(from, pod.Addr, 0, 40))
	}
	want := maps.Clone(status(t, m).Drops)
	if want == nil {
		want = make(map[string]uint64)
	}
	var good, sent uint64
	for i, c := range cases {
		conn := peer
		if c.stranger {
			conn = stranger
		}
		setTOS(t, conn, c.ecn)
		n := 2 + i%5
		for range n {
			if _, err := conn.WriteToUDPAddrPort(c.datagram, to); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
		}
		sent += uint64(n)
		if c.drop == "" {
			good += uint64(n)
		} else {
			want[c.drop] += uint64(n)
		}
		eventually(t, 5*time.Second, func() error {
			s, err := m.Status(t.Context())
			if err != nil {
				return err
			}
			if !maps.Equal(s.Drops, want) || s.Peers[0].RxPackets != good {
				return fmt.Errorf("%s: drops %v and %d delivered, want %v and %d", c.name, s.Drops, s.Peers[0].RxPackets, want, good)
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

// hostileInner is what can be wrong with the inner packet in either framing. The datagram is the packet.
func hostileInner(from, to netip.Addr) []hostile {
	good := innerUDP(from, to, 0, 40) // 68 bytes: no room for Ethernet's padding
	badSum := slices.Clone(good)
	badSum[10] ^= 0xff
	v6 := slices.Clone(good)
	v6[0] = 0x65
	v7 := slices.Clone(good)
	v7[0] = 0x75
	return []hostile{
		{name: "good", datagram: good},
		{name: "good, congestion marks that may be merged", datagram: innerUDP(from, to, 2, 40), ecn: 3},
		{name: "IHL 4", datagram: changed(good, 0, 0x44), drop: "inner-header"},
		{name: "total length 1 more", datagram: changed(good, 3, good[3]+1), drop: "inner-length"},
		{name: "total length 1 less", datagram: changed(good, 3, good[3]-1), drop: "inner-length"},
		{name: "total length 0", datagram: changed(good, 3, 0), drop: "inner-length"},
		{name: "total length of the maximum", datagram: changed(changed(good, 3, 0xff), 2, 0xff), drop: "inner-length"},
		{name: "header checksum", datagram: badSum, drop: "inner-checksum"},
		{name: "inner source of nobody", datagram: innerUDP(netip.MustParseAddr("10.244.222.2"), to, 0, 40), drop: "inner-source"},
		{name: "inner source ours", datagram: innerUDP(to.Next(), to, 0, 40), drop: "inner-source"},
		{name: "inner source outside the network", datagram: innerUDP(netip.MustParseAddr("8.8.8.8"), to, 0, 40), drop: "inner-source"},
		{name: "inner destination of another node", datagram: innerUDP(from, netip.MustParseAddr("10.244.222.2"), 0, 40), drop: "inner-destination"},
		{name: "inner destination outside the network", datagram: innerUDP(from, netip.MustParseAddr("198.18.0.3"), 0, 40), drop: "inner-destination"},
		{name: "inner destination multicast", datagram: innerUDP(from, netip.MustParseAddr("224.0.0.1"), 0, 40), drop: "inner-destination"},
		{name: "outer CE on a packet that is not ECN-capable", datagram: good, ecn: 3, drop: "ecn"},
		{name: "unknown outer source", datagram: good, stranger: true, drop: "unknown-source"},
		{name: "IPv6", datagram: v6, drop: "inner-ipv6"},
		{name: "IP version 7", datagram: v7, drop: "inner-version"},
		{name: "empty", datagram: nil, drop: "short"},
		{name: "19 bytes", datagram: good[:19], drop: "short"},
		{name: "oversized", datagram: innerUDP(from, to, 0, 40000), drop: "oversized"},
	}
}

// hostileVXLAN puts the inner cases into good frames, and adds what can be wrong with the frame.
func hostileVXLAN(t *testing.T, mac string, inner []hostile, good []byte) []hostile {
	t.Helper()
	own := must(net.ParseMAC(mac))(t)
	frame := vxlanFrame{
		flags: 8, vni: 1, dst: own, src: net.HardwareAddr{0x0a, 0, 0, 0, 0, 2}, etherType: 0x0800, inner: good,
	}
	var all []hostile
	for _, c := range inner {
		f := frame
		f.inner = c.datagram
		switch c.name {
		case "IPv6", "IP version 7": // the EtherType speaks first: below
			continue
		}
		c.datagram = f.bytes()
		all = append(all, c)
	}
	add := func(name, drop string, change func(*vxlanFrame)) {
		f := frame
		change(&f)
		all = append(all, hostile{name: name, drop: drop, datagram: f.bytes()})
	}
	short := innerUDP(netip.AddrFrom4([4]byte(good[12:16])), netip.AddrFrom4([4]byte(good[16:20])), 0, 2)
	add("a short packet that a NIC padded to 46 bytes", "", func(f *vxlanFrame) { f.inner = append(short, make([]byte, 16)...) })
	add("padded beyond 46 bytes", "inner-length", func(f *vxlanFrame) { f.inner = append(short, make([]byte, 17)...) })
	add("no I flag", "vxlan-flags", func(f *vxlanFrame) { f.flags = 0 })
	add("GPE's P flag", "vxlan-flags", func(f *vxlanFrame) { f.flags = 0x0c })
	add("GBP's G flag", "vxlan-flags", func(f *vxlanFrame) { f.flags = 0x88 })
	add("reserved byte set", "vxlan-flags", func(f *vxlanFrame) { f.reserved = 1 })
	add("VNI 0", "vxlan-vni", func(f *vxlanFrame) { f.vni = 0 })
	add("VNI 2", "vxlan-vni", func(f *vxlanFrame) { f.vni = 2 })
	add("VNI of 24 bits", "vxlan-vni", func(f *vxlanFrame) { f.vni = 1<<24 - 1 })
	add("destination MAC of another", "vxlan-mac", func(f *vxlanFrame) { f.dst = net.HardwareAddr{0x0a, 0, 0, 0, 0, 9} })
	add("destination MAC broadcast", "vxlan-mac", func(f *vxlanFrame) { f.dst = net.HardwareAddr{255, 255, 255, 255, 255, 255} })
	add("source MAC ours", "vxlan-own-mac", func(f *vxlanFrame) { f.src = own })
	add("802.1Q tag", "vlan", func(f *vxlanFrame) { f.etherType = 0x8100; f.inner = append([]byte{0, 1, 8, 0}, good...) })
	add("802.1ad tag", "vlan", func(f *vxlanFrame) { f.etherType = 0x88a8; f.inner = append([]byte{0, 1, 8, 0}, good...) })
	add("ARP", "arp", func(f *vxlanFrame) { f.etherType = 0x0806; f.inner = make([]byte, 28) })
	add("LLDP", "not-ip", func(f *vxlanFrame) { f.etherType = 0x88cc })
	add("IPv6 by EtherType", "inner-ipv6", func(f *vxlanFrame) { f.etherType = 0x86dd; f.inner = make([]byte, 60); f.inner[0] = 0x60 })
	add("IPv6 in an IPv4 frame", "inner-ipv6", func(f *vxlanFrame) { f.inner = slices.Clone(good); f.inner[0] = 0x65 })
	add("IP version 0", "inner-version", func(f *vxlanFrame) { f.inner = slices.Clone(good); f.inner[0] = 0x05 })
	add("IHL past the end", "inner-header", func(f *vxlanFrame) { f.inner = changed(good[:24], 0, 0x4f) })
	for _, n := range []int{1, 7, 8, 21, 22, 41} {
		all = append(all, hostile{name: fmt.Sprintf("%d bytes", n), drop: "short", datagram: frame.bytes()[:n]})
	}
	return all
}
