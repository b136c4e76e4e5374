package trace

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"muslin/cmd/muslin/control"
	"muslin/cmd/muslin/neighbour"
	"muslin/cmd/muslin/sight"
)

var (
	src, dst = netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("10.244.2.7")
	p4       = sight.Packet{Src: src, Dst: dst, Proto: sight.ICMP, ID: 7}
)

func seen(point, device, what string, inbound bool) sight.Sighting {
	s := sight.Sighting{Point: point, Device: device, What: what, Inbound: inbound, Src: src.String(), Dst: dst.String()}
	if what == sight.Answer {
		s.Says, s.Src, s.Dst = "echo reply", dst.String(), src.String()
	}
	return s
}

// kernelCarries is a packet from pod to pod where the kernel's WireGuard carries it: no daemon sees it, and devices do.
func kernelCarries() *evidence {
	at := func(device, what string, inbound bool) sight.Sighting {
		return seen(sight.Device, device, what, inbound)
	}
	return &evidence{
		packet: p4, how: fromPod, node: control.NodeStatus{TUN: "muslin0", Backend: "wireguard"},
		route: &control.RouteAnswer{Way: "encrypted", Peer: &control.PeerStatus{Subnet: "10.244.2.0/24", PublicIP: "192.0.2.2", Endpoint: "192.0.2.2:51820"}},
		here: &sight.Report{Packet: p4, Devices: true, Ground: sight.Ground{TUN: "muslin0", Underlay: "eth0", Device: "muslin0", Source: "cni0", Forwards: true},
			Sightings: []sight.Sighting{at("cni0", sight.Itself, true), at("muslin0", sight.Itself, false), at("muslin0", sight.Answer, true), at("cni0", sight.Answer, false)}},
		there: &sight.Report{Packet: p4, Devices: true, Ground: sight.Ground{TUN: "muslin0", Underlay: "eth0", Device: "cni0", Source: "muslin0", Forwards: true},
			Sightings: []sight.Sighting{at("muslin0", sight.Itself, true), at("cni0", sight.Itself, false), at("cni0", sight.Answer, true), at("muslin0", sight.Answer, false)}},
	}
}

func without(r *sight.Report, drop func(*sight.Sighting) bool) {
	r.Sightings = slices.DeleteFunc(slices.Clone(r.Sightings), func(s sight.Sighting) bool { return drop(&s) })
}

// What was seen, less what a fault leaves out, is told as the stage that the fault is at.
func TestStages(t *testing.T) {
	answers := func(e *evidence) {
		for _, r := range []*sight.Report{e.here, e.there} {
			without(r, func(s *sight.Sighting) bool { return s.What == sight.Answer })
		}
	}
	resets := func(e *evidence) {
		for _, r := range []*sight.Report{e.here, e.there} {
			for i := range r.Sightings {
				if r.Sightings[i].What == sight.Answer {
					r.Sightings[i].Says = sight.RST
				}
			}
		}
	}
	for name, c := range map[string]struct {
		fault func(*evidence)
		stage string
		says  string
	}{
		"in order": {func(*evidence) {}, "", ""},
		"no route in the pod": {func(e *evidence) {
			e.sendErr = unix.ENETUNREACH
			answers(e)
		}, StagePod, "no route"},
		"not forwarded": {func(e *evidence) {
			answers(e)
			without(e.here, func(s *sight.Sighting) bool { return s.Device == "muslin0" })
			e.here.Ground.Forwards = false
		}, StageForward, "net.ipv4.ip_forward"},
		"did not come there": {func(e *evidence) { answers(e); e.there.Sightings = nil }, StageReceive, "did not come"},
		"strict rp_filter there": {func(e *evidence) {
			answers(e)
			without(e.there, func(s *sight.Sighting) bool { return s.Device == "cni0" })
			e.there.Ground.RPFilter = "net/ipv4/conf/muslin0/rp_filter"
		}, StageForwardPeer, "net.ipv4.conf.muslin0.rp_filter is strict"},
		"no such pod": {func(e *evidence) {
			answers(e)
			without(e.there, func(s *sight.Sighting) bool { return s.Device == "cni0" })
			e.there.Ground.Neighbour = "incomplete"
		}, StageDeliver, "nobody on cni0"},
		"a silent pod": {answers, StageDeliver, "does not answer"},
		"the answer goes elsewhere": {func(e *evidence) {
			without(e.here, func(s *sight.Sighting) bool { return s.What == sight.Answer })
			without(e.there, func(s *sight.Sighting) bool { return s.What == sight.Answer && s.Device == "muslin0" })
		}, StageReturn, "did not give the answer"},
		"the answer does not come": {func(e *evidence) {
			without(e.here, func(s *sight.Sighting) bool { return s.What == sight.Answer })
		}, StageReceiveBack, "did not come here"},
		"the answer is not forwarded": {func(e *evidence) {
			without(e.here, func(s *sight.Sighting) bool { return s.What == sight.Answer && s.Device == "cni0" })
		}, StageDeliverBack, "does not forward"},
		"a rule here rejects it with a TCP reset": {func(e *evidence) {
			resets(e)
			e.there.Sightings = nil
			without(e.here, func(s *sight.Sighting) bool { return s.Device == "muslin0" })
		}, StageForward, "in the destination's name"},
		"a rule there rejects it with a TCP reset": {func(e *evidence) {
			resets(e)
			without(e.there, func(s *sight.Sighting) bool { return s.Device == "cni0" })
		}, StageForwardPeer, "in the destination's name"},
		"an ICMP error, and nobody tells": {func(e *evidence) {
			answers(e)
			e.there, e.thereErr = nil, neighbour.ErrNobody
			e.here.Sightings = append(e.here.Sightings, sight.Sighting{Point: sight.Device, Device: "muslin0", What: sight.Error, Inbound: true, Says: "prohibited", Src: "10.244.2.0", Dst: src.String()})
		}, StageReceive, "10.244.2.0 has sent an ICMP error about it: prohibited"},
		"its daemon is busy":               {func(e *evidence) { answers(e); e.there, e.thereErr = nil, neighbour.ErrLate }, StageReceive, "the way to its node and back is in order"},
		"nobody tells":                     {func(e *evidence) { answers(e); e.there, e.thereErr = nil, neighbour.ErrSilent }, StageReceive, "not known beyond this node"},
		"nobody tells, and it is answered": {func(e *evidence) { e.there, e.thereErr = nil, neighbour.ErrNobody }, "", ""},
		"the daemon here is not allowed to look at devices": {func(e *evidence) {
			answers(e)
			e.here.Devices, e.here.Sightings = false, nil
			e.there, e.thereErr = nil, errors.New("because")
		}, StageReceive, "because"},
	} {
		e := kernelCarries()
		c.fault(e)
		got := e.trace(Options{Src: src, Dst: dst, Proto: sight.ICMP})
		if got.Stopped != c.stage || !strings.Contains(got.Reason+got.Fix, c.says) || (got.Stopped != "") != (got.Fix != "") {
			t.Errorf("%s: %q: %s; %s", name, got.Stopped, got.Reason, got.Fix)
		}
		if got.Good() != (c.stage == "") || (got.Answer != "") != (c.stage == "") && got.Answer != sight.RST || got.Stopped != "" && got.Answer != "" && *got.Arrived {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// An independent decoder finds every packet in order, its checksums as well.
func TestPackets(t *testing.T) {
	for _, p := range []sight.Packet{
		{Src: src, Dst: dst, Proto: sight.ICMP, ID: 7},
		{Src: src, Dst: dst, Proto: sight.TCP, SrcPort: 40001, DstPort: 80},
		{Src: src, Dst: dst, Proto: sight.UDP, SrcPort: 40001, DstPort: 53},
		{Src: netip.MustParseAddr("fd00:1::2"), Dst: netip.MustParseAddr("fd00:2::7"), Proto: sight.ICMP, ID: 7},
		{Src: netip.MustParseAddr("fd00:1::2"), Dst: netip.MustParseAddr("fd00:2::7"), Proto: sight.TCP, SrcPort: 40001, DstPort: 80},
	} {
		proto := map[string]int{sight.ICMP: unix.IPPROTO_ICMP, sight.TCP: unix.IPPROTO_TCP, sight.UDP: unix.IPPROTO_UDP}[p.Proto]
		first := gopacket.Decoder(layers.LayerTypeIPv4)
		if p.Dst.Is6() {
			first = layers.LayerTypeIPv6
			if p.Proto == sight.ICMP {
				proto = unix.IPPROTO_ICMPV6
			}
		}
		b := transport(&p, proto)
		packet := gopacket.NewPacket(append(ipHeader(&p, proto, len(b)), b...), first, gopacket.Default)
		if failed := packet.ErrorLayer(); failed != nil {
			t.Errorf("%+v: %v", p, failed.Error())
			continue
		}
		var again gopacket.SerializableLayer
		for _, l := range packet.Layers() {
			switch l := l.(type) {
			case *layers.ICMPv4:
				again = l
			case *layers.ICMPv6:
				again = l
			case *layers.TCP:
				again = l
			case *layers.UDP:
				again = l
			}
		}
		if l, ok := again.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			if err := l.SetNetworkLayerForChecksum(packet.NetworkLayer()); err != nil {
				t.Fatal(err)
			}
		}
		buf := gopacket.NewSerializeBuffer()
		if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{ComputeChecksums: true}, again, gopacket.Payload(again.(gopacket.Layer).LayerPayload())); err != nil || !bytes.Equal(buf.Bytes(), b) {
			t.Errorf("%+v: %x, want %x (%v)", p, b, buf.Bytes(), err)
		}
		if tcp, ok := packet.TransportLayer().(*layers.TCP); ok && (!tcp.SYN || tcp.ACK || tcp.DstPort != 80 || len(tcp.Payload) != 0) {
			t.Errorf("%+v: %+v", p, tcp)
		}
		if udp, ok := packet.TransportLayer().(*layers.UDP); ok && (udp.DstPort != 53 || len(udp.Payload) != 0) {
			t.Errorf("%+v: %+v", p, udp)
		}
	}
}
