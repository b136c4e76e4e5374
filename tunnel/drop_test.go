package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"muslin/encap"
)

var errFirewall = errors.New("a firewall rule of the test")

// dropCase is a packet that causes one reason and no other.
type dropCase struct {
	reason  Reason
	name    string
	framing string // "vxlan", "udp", or "" for both
	family  string // "IPv4", "IPv6", or "" for both

	out func(t *testing.T, x *bench) []byte   // outbound: the packet
	in  func(t *testing.T, x *bench) Datagram // inbound: the datagram

	answer bool // outbound: the sender gets an ICMP error
}

// marked is in the payload of a packet that the fakes refuse.
const marked = "REFUSE ME"

func outPacket(dst, payload string) func(*testing.T, *bench) []byte {
	return func(t *testing.T, x *bench) []byte { return udpPacket(t, x.addr("10.1.0.5"), x.addr(dst), payload) }
}

const somePayload = "some payload, longer than padding goes: 46 bytes"

// spoiled is a good datagram from B, changed.
func spoiled(change func(d *Datagram)) func(*testing.T, *bench) Datagram {
	return func(t *testing.T, x *bench) Datagram {
		_, b, _, _ := x.nodes()
		d := x.from(t, b, udpPacket(t, x.addr("10.2.0.5"), x.addr("10.1.0.5"), somePayload))
		change(&d)
		return d
	}
}

// spoiledByte is a good datagram from B with another byte at offset at; in the inner packet when inner.
func spoiledByte(inner bool, at int, value byte) func(*testing.T, *bench) Datagram {
	return func(t *testing.T, x *bench) Datagram {
		return spoiled(func(d *Datagram) {
			if inner {
				d.Buf[x.cfg.Framing.Headroom()+at] = value
			} else {
				d.Buf[at] = value
			}
		})(t, x)
	}
}

func etherType(n uint16) func(*testing.T, *bench) Datagram {
	return spoiled(func(d *Datagram) { binary.BigEndian.PutUint16(d.Buf[20:], n) })
}

func between(src, dst string) func(*testing.T, *bench) Datagram {
	return func(t *testing.T, x *bench) Datagram {
		_, b, _, _ := x.nodes()
		return x.from(t, b, udpPacket(t, x.addr(src), x.addr(dst), "payload"))
	}
}

// strange is a good datagram, changed, from a stranger.
func strange(change func(d *Datagram)) func(*testing.T, *bench) Datagram {
	return func(t *testing.T, x *bench) Datagram {
		d := spoiled(change)(t, x)
		_, _, _, from := x.nodes()
		d.Addr = netip.AddrPortFrom(from, port)
		return d
	}
}

// chatter is what a kernel sends to the link of an interface by itself.
func chatter(src, dst string, next layers.IPProtocol, behind ...byte) func(*testing.T, *bench) []byte {
	return func(t *testing.T, _ *bench) []byte {
		return onIP(t, ipLayer(src, dst, next), gopacket.Payload(behind))
	}
}

// neverCame is the datagram that the kernel dropped before.
var neverCame = Datagram{}

var dropCases = []dropCase{
	{reason: DropTUNOverflow, name: "told by the device", out: func(t *testing.T, x *bench) []byte {
		x.device.overflow.Store(1)
		return nil // the packet that never came
	}},
	{reason: DropNoRoute, name: "leased by nobody", out: outPacket("10.9.0.1", "x"), answer: true},
	{reason: DropOwnSubnet, name: "no such pod", out: outPacket("10.1.0.200", "x"), answer: true},
	{reason: DropTooBig, name: "one byte", answer: true,
		out: func(t *testing.T, x *bench) []byte {
			return sized(t, x.addr("10.1.0.5"), x.addr("10.2.0.5"), testMTU+1)
		}},
	{reason: DropMalformed, name: "one byte", out: func(*testing.T, *bench) []byte { return []byte{0x45} }},
	{reason: DropMalformed, name: "version 7", out: func(*testing.T, *bench) []byte { return bytes.Repeat([]byte{0x75}, 40) }},
	{reason: DropMalformed, name: "trailing byte",
		out: func(t *testing.T, x *bench) []byte { return append(outPacket("10.2.0.5", "x")(t, x), 0) }},
	{reason: DropMalformed, family: "IPv6", name: "39 bytes", out: func(*testing.T, *bench) []byte { return bytes.Repeat([]byte{0x60}, 39) }},
	{reason: DropIPv6, family: "IPv4", name: "IPv6", out: func(t *testing.T, _ *bench) []byte { return ipv6Packet(t) }},
	{reason: DropIPv4, family: "IPv6", name: "IPv4", out: func(t *testing.T, _ *bench) []byte { return udpPacket(t, "10.1.0.5", "10.2.0.5", "x") }},
	{reason: DropIPv4, family: "IPv6", name: "IPv4, short", out: func(t *testing.T, _ *bench) []byte { return udpPacket(t, "10.1.0.5", "10.2.0.5", "") }},
	{reason: DropLinkLocal, family: "IPv6", name: "router solicitation", out: chatter("fe80::1", "ff02::2", 58, 133, 0, 0, 0, 0, 0, 0, 0)},
	{reason: DropLinkLocal, family: "IPv6", name: "multicast listener report", out: chatter("::", "ff02::16", 0,
		58, 0, 5, 2, 0, 0, 1, 0, 143, 0, 0, 0, 0, 0, 0, 0)}, // behind the router alert in a hop-by-hop header (RFC 3810, section 5)
	{reason: DropLinkLocal, family: "IPv6", name: "duplicate address detection", out: chatter("::", "ff02::1:ff00:1", 58, 135, 0, 0, 0, 0, 0, 0, 0)},
	{reason: DropLinkLocal, family: "IPv6", name: "to a neighbour", out: chatter("fe80::1", "fe80::2", 17, 1, 2, 3, 4, 0, 8, 0, 0)},
	{reason: DropLinkLocal, family: "IPv6", name: "to this interface's group", out: chatter("fe80::1", "ff01::1", 17, 1, 2, 3, 4, 0, 8, 0, 0)},
	{reason: DropNoRoute, family: "IPv6", name: "multicast of a site", out: chatter("fd00:1::5", "ff05::1", 17, 1, 2, 3, 4, 0, 8, 0, 0)},
	{reason: DropSendFailed, name: "refused", out: func(t *testing.T, x *bench) []byte {
		x.und.refuse = refuseDatagram(errFirewall)
		return outPacket("10.2.0.5", marked)(t, x)
	}},
	{reason: DropSendBufferFull, name: "no room", out: func(t *testing.T, x *bench) []byte {
		x.und.refuse = refuseDatagram(fmt.Errorf("sendmmsg: %w", ErrSendBufferFull))
		return outPacket("10.2.0.5", marked)(t, x)
	}},

	{reason: DropSendBufferFull, name: "told by the underlay", out: func(t *testing.T, x *bench) []byte {
		x.underlay.sendOverflow.Store(1)
		return nil
	}},

	{reason: DropOversized, name: "longer than any MTU", in: func(t *testing.T, x *bench) Datagram {
		_, b, _, _ := x.nodes()
		return x.from(t, b, sized(t, x.addr("10.2.0.5"), x.addr("10.1.0.5"), jumbo+1))
	}},
	{reason: DropOversized, name: "longer than the buffer", in: spoiled(func(d *Datagram) { d.Truncated = true })},
	{reason: DropShort, name: "19 bytes", in: spoiled(func(d *Datagram) { d.Buf = d.Buf[:19] })},
	{reason: DropShort, family: "IPv6", name: "39 bytes of IPv6", in: func(t *testing.T, x *bench) Datagram {
		return spoiled(func(d *Datagram) { d.Buf = d.Buf[:x.cfg.Framing.Headroom()+39] })(t, x)
	}},
	{reason: DropShort, name: "empty", in: spoiled(func(d *Datagram) { d.Buf = nil })},
	{reason: DropFlags, framing: "vxlan", name: "no I flag", in: spoiledByte(false, 0, 0)},
	{reason: DropFlags, framing: "vxlan", name: "reserved byte", in: spoiledByte(false, 7, 1)},
	{reason: DropVNI, framing: "vxlan", name: "VNI 43", in: spoiledByte(false, 6, 43)},
	{reason: DropMAC, framing: "vxlan", name: "old MAC", in: spoiledByte(false, 13, 0x99)},
	{reason: DropOwnMAC, framing: "vxlan", name: "our source MAC", in: spoiledByte(false, 19, 0x0a)},
	{reason: DropVLAN, framing: "vxlan", name: "802.1Q", in: etherType(0x8100)},
	{reason: DropARP, framing: "vxlan", name: "ARP", in: etherType(0x0806)},
	{reason: DropNotIP, framing: "vxlan", name: "LLDP", in: etherType(0x88cc)},
	{reason: DropInnerIPv6, family: "IPv4", name: "IPv6", in: func(t *testing.T, x *bench) Datagram { return x.from(t, nodeB, ipv6Packet(t)) }},
	{reason: DropInnerIPv4, family: "IPv6", name: "IPv4", in: func(t *testing.T, x *bench) Datagram {
		return x.from(t, nodeB6, udpPacket(t, "10.2.0.5", "10.1.0.5", "x"))
	}},
	{reason: DropInnerIPv4, family: "IPv6", name: "version 4", in: spoiledByte(true, 0, 0x45)},
	{reason: DropInnerVersion, name: "version 5", in: spoiledByte(true, 0, 0x55)},
	{reason: DropInnerHeader, family: "IPv4", name: "IHL 4", in: spoiledByte(true, 0, 0x44)},
	{reason: DropInnerLength, family: "IPv4", name: "total length too long", in: spoiledByte(true, 2, 0x10)},
	{reason: DropInnerLength, family: "IPv6", name: "payload length too long", in: spoiledByte(true, 4, 0x10)},
	{reason: DropInnerLength, family: "IPv6", name: "jumbogram", in: spoiled(func(d *Datagram) {
		ip := d.Buf[len(d.Buf)-48-len(somePayload):] // IPv6 and UDP before it
		ip[4], ip[5], ip[6] = 0, 0, 0
	})},
	{reason: DropInnerLength, name: "datagram too long", in: spoiled(func(d *Datagram) { d.Buf = append(d.Buf, 0) })},
	{reason: DropInnerChecksum, family: "IPv4", name: "TTL changed on the way", in: spoiledByte(true, 8, 63)},
	{reason: DropUnknownSource, name: "stranger", in: strange(func(*Datagram) {})},
	{reason: DropUnknownSource, name: "a peer's address of the other family", in: func(t *testing.T, x *bench) Datagram {
		d := spoiled(func(*Datagram) {})(t, x)
		d.Addr = netip.AddrPortFrom(netip.AddrFrom16(d.Addr.Addr().As16()), port) // IPv4, mapped
		if x.node.six() {
			d.Addr = netip.MustParseAddrPort("[::ffff:192.0.2.2]:8472")
		}
		return d
	}},
	{reason: DropUnknownSource, name: "a stranger's nonsense", in: strange(func(d *Datagram) { d.Buf, d.ECN = []byte("x"), encap.CE })},
	{reason: DropUnknownSource, name: "longer than the buffer", in: strange(func(d *Datagram) { d.Truncated = true })},
	{reason: DropUnknownSource, name: "told by the underlay", in: func(t *testing.T, x *bench) Datagram {
		x.underlay.losses.Refused = 1
		return neverCame
	}},
	{reason: DropOuterChecksum, name: "told by the underlay", in: func(t *testing.T, x *bench) Datagram {
		x.underlay.losses.Checksum = 1
		return neverCame
	}},
	{reason: DropInnerSource, name: "another peer's", in: between("10.3.0.5", "10.1.0.5")},
	{reason: DropInnerSource, name: "nobody's", in: between("10.9.0.5", "10.1.0.5")},
	{reason: DropInnerSource, name: "our own", in: between("10.1.0.6", "10.1.0.5")},
	{reason: DropInnerSource, family: "IPv6", name: "link-local", in: between("fe80::5", "fd00:1::5")},
	{reason: DropInnerSource, family: "IPv6", name: "IPv4, mapped", in: between("::ffff:10.2.0.5", "fd00:1::5")},
	{reason: DropInnerDestination, family: "IPv6", name: "link-local", in: between("fd00:2::5", "ff02::1")},
	{reason: DropInnerDestination, name: "another peer's", in: between("10.2.0.5", "10.3.0.5")},
	{reason: DropECN, name: "CE over Not-ECT", in: spoiled(func(d *Datagram) { d.ECN = encap.CE })},
	{reason: DropTUNWrite, name: "refused inbound", in: func(t *testing.T, x *bench) Datagram {
		x.dev.refuse = refuseMarked
		_, b, _, _ := x.nodes()
		return x.from(t, b, udpPacket(t, x.addr("10.2.0.5"), x.addr("10.1.0.5"), marked))
	}},
	{reason: DropSocketOverflow, name: "told by the underlay", in: func(t *testing.T, x *bench) Datagram {
		x.underlay.losses.Overflow = 1
		return neverCame
	}},
}

func refuseMarked(p []byte) error {
	if bytes.Contains(p, []byte(marked)) {
		return errors.New("the device is down")
	}
	return nil
}

func refuseDatagram(err error) func(d *outer) error {
	return func(d *outer) error {
		if bytes.Contains(d.buf, []byte(marked)) {
			return err
		}
		return nil
	}
}

// Each bad packet travels between two good ones: it is counted once, under its reason and no other, and
// the good ones arrive.
func TestEveryDropReason(t *testing.T) {
	covered := map[Reason]bool{}
	for _, c := range dropCases {
		covered[c.reason] = true
		for _, framing := range framingNames {
			if c.framing != "" && c.framing != framing {
				continue
			}
			for _, n := range []node{nodeA, nodeA6} {
				x := newBenchOf(t, n, framing, 1)
				family := x.cfg.Framing.Family().String()
				if c.family != "" && c.family != family {
					continue
				}
				t.Run(fmt.Sprintf("%v/%s/%s/%s", c.reason, c.name, framing, family), func(t *testing.T) {
					if c.out != nil {
						checkOutboundDrop(t, x, c)
					} else {
						checkInboundDrop(t, x, c)
					}
					if got, want := x.Drops(), map[string]uint64{c.reason.String(): 1}; !maps.Equal(got, want) {
						t.Errorf("drops %v, want %v", got, want)
					}
				})
			}
		}
	}
	for _, r := range Reasons() {
		if !covered[r] {
			t.Errorf("no case causes %v", r)
		}
	}
}

func checkOutboundDrop(t *testing.T, x *bench, c dropCase) {
	bad := c.out(t, x)
	good := [][]byte{outPacket("10.2.0.5", "first")(t, x), outPacket("10.3.0.5", "second")(t, x)}
	packets := [][]byte{good[0], bad, good[1]}
	if bad == nil {
		packets = good
	}
	checkFlows(t, x.unframedAll(x.sendPlain(t, packets...)), good)
	answers := 0
	if c.answer {
		answers = 1
	}
	if replies := x.dev.takeReplies(); len(replies) != answers {
		t.Errorf("%d answers, want %d ICMP errors", len(replies), answers)
	}
	if n := x.b.Counters.TxPackets.Load() + x.c.Counters.TxPackets.Load(); n != 2 {
		t.Errorf("the peers count %d packets sent, want 2", n)
	}
	if got := x.LastSendError(); (c.reason == DropSendFailed) != errors.Is(got, errFirewall) || c.reason != DropSendFailed && got != nil {
		t.Errorf("LastSendError = %v", got)
	}
}

func checkInboundDrop(t *testing.T, x *bench, c dropCase) {
	bad := c.in(t, x)
	_, b, peerC, _ := x.nodes()
	good := [][]byte{
		udpPacket(t, x.addr("10.2.0.5"), x.addr("10.1.0.5"), "first"), udpPacket(t, x.addr("10.3.0.5"), x.addr("10.1.0.5"), "second"),
	}
	ds := []Datagram{x.from(t, b, good[0]), bad, x.from(t, peerC, good[1])}
	if reflect.DeepEqual(bad, neverCame) {
		ds = slices.Delete(ds, 1, 2)
	}
	checkFlows(t, x.receive(t, ds...), good)
}

// An ICMP error that the device refuses is counted too.
func TestRefusedAnswerIsCounted(t *testing.T) {
	x := newBench(t, "vxlan")
	x.dev.refuseReply = func() error { return errors.New("the device is down") }
	x.sendPlain(t, udpPacket(t, "10.1.0.5", "10.9.0.1", "x"))
	want := map[string]uint64{"no-route": 1, "tun-write": 1}
	if got := x.Drops(); !maps.Equal(got, want) {
		t.Errorf("drops %v, want %v", got, want)
	}
}

func TestNoDropsAtFirst(t *testing.T) {
	if got := newBench(t, "udp").Drops(); len(got) != 0 {
		t.Errorf("drops of a new VTEP: %v", got)
	}
}

// Every fault of encap has a reason of its own.
func TestEveryFaultHasAReason(t *testing.T) {
	seen := map[Reason]encap.Fault{}
	for f := encap.FaultNone + 1; f <= encap.FaultIPLength; f++ {
		if int(f) >= len(inboundFault) {
			t.Fatalf("fault %d has no reason", f)
		}
		r := inboundFault[f]
		if r == DropTUNOverflow { // the zero value
			t.Errorf("fault %d has no reason", f)
		}
		if other, twice := seen[r]; twice {
			t.Errorf("faults %d and %d share the reason %v", f, other, r)
		}
		seen[r] = f
	}
}

func TestReasonNames(t *testing.T) {
	all := Reasons()
	if len(all) != int(numReasons) || all[0] != DropTUNOverflow {
		t.Fatalf("Reasons has %d, beginning with %v", len(all), all[0])
	}
	kebab := regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	names, sentences := map[string]bool{}, map[string]bool{}
	for _, r := range all {
		name, sentence := r.String(), r.Explain()
		if !kebab.MatchString(name) || names[name] {
			t.Errorf("reason %d is called %q: want kebab-case, and unique", r, name)
		}
		if len(sentence) < 15 || sentences[sentence] || strings.HasSuffix(sentence, ".") {
			t.Errorf("%s is explained by %q: want a sentence of its own", name, sentence)
		}
		if got := ExplainDrop(name); got != sentence {
			t.Errorf("ExplainDrop(%q) = %q, want %q", name, got, sentence)
		}
		names[name], sentences[sentence] = true, true
	}
	if got := ExplainDrop("no-such-reason"); got != "" {
		t.Errorf("ExplainDrop of an unknown name = %q", got)
	}
	if got := ExplainDrop(""); got != "" {
		t.Errorf("ExplainDrop of no name = %q", got)
	}
}
