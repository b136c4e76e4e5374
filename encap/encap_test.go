package encap

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestParseMAC(t *testing.T) {
	for _, c := range []struct {
		in, want string // want: empty for an error
	}{
		{"aa:bb:cc:dd:ee:0f", "aa:bb:cc:dd:ee:0f"},
		{"AA:BB:CC:DD:EE:0F", "aa:bb:cc:dd:ee:0f"},
		{"aa-bb-cc-dd-ee-0f", "aa:bb:cc:dd:ee:0f"},
		{"aabb.ccdd.ee0f", "aa:bb:cc:dd:ee:0f"},
		{"00:00:00:00:00:00", "00:00:00:00:00:00"},
		{"", ""},
		{"aa:bb:cc:dd:ee", ""},
		{"aa:bb:cc:dd:ee:ff:00:11", ""}, // EUI-64
		{"00:00:00:00:fe:80:00:00:00:00:00:00:02:00:5e:10:00:00:00:01", ""}, // InfiniBand
		{"aa:bb:cc:dd:ee:gg", ""},
		{"not a MAC", ""},
	} {
		m, err := ParseMAC(c.in)
		if (err == nil) != (c.want != "") {
			t.Errorf("ParseMAC(%q): error %v", c.in, err)
			continue
		}
		if err != nil {
			if m != (MAC{}) || !strings.Contains(err.Error(), c.in) {
				t.Errorf("ParseMAC(%q) = %v, %q: want zero, and the input named", c.in, m, err)
			}
			continue
		}
		if m.String() != c.want {
			t.Errorf("ParseMAC(%q) = %v, want %s", c.in, m, c.want)
		}
		if again, err := ParseMAC(m.String()); err != nil || again != m {
			t.Errorf("ParseMAC(%q) = %v, %v, want what it was printed from", m, again, err)
		}
	}
}

func TestMACKinds(t *testing.T) {
	for _, c := range []struct {
		m       MAC
		unicast bool
	}{
		{MAC{0x02, 0, 0, 0, 0, 1}, true},
		{MAC{0x00, 0, 0, 0, 0, 1}, true},
		{MAC{}, false},
		{MAC{0x01, 0, 0x5e, 0, 0, 1}, false},
		{MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, false},
	} {
		if got := c.m.IsUnicast(); got != c.unicast {
			t.Errorf("%v.IsUnicast() = %v", c.m, got)
		}
	}
	for first := range 256 {
		m := LocalMAC([6]byte{byte(first), 2, 3, 4, 5, 6})
		if m[0]&3 != 2 || m[0]&^3 != byte(first)&^3 || [5]byte(m[1:]) != [5]byte{2, 3, 4, 5, 6} {
			t.Errorf("LocalMAC(%#x, ...) = %v: want the two low bits of the first byte 1 0, and nothing else changed", first, m)
		}
	}
}

func TestVNI(t *testing.T) {
	for _, c := range []struct {
		n    uint32
		ok   bool
		text string
	}{
		{0, true, "0"}, {1, true, "1"}, {1<<24 - 1, true, "16777215"},
		{1 << 24, false, "0"}, {1<<32 - 1, false, "0"},
	} {
		v, err := NewVNI(c.n)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrVNIRange) {
			t.Errorf("NewVNI(%d): error %v", c.n, err)
		}
		if v.String() != c.text || c.ok && v.Uint32() != c.n {
			t.Errorf("NewVNI(%d) = %v, number %d", c.n, v, v.Uint32())
		}
	}
}

func TestOverhead(t *testing.T) {
	for _, c := range []struct {
		f     Framing
		bytes int
		inner InnerMTU // of an underlay with MTU 1500
	}{
		{NewVXLAN(VNI{}, MAC{}), 50, 1450},
		{UDP{}, 28, 1472},
		{NewVXLAN6(VNI{}, MAC{}), 70, 1430},
		{UDP{Inner: IPv6}, 48, 1452},
	} {
		if got := Overhead(c.f); got != c.bytes {
			t.Errorf("Overhead(%s) = %d, want %d", c.f.Name(), got, c.bytes)
		}
		if got := OuterMTU(1500).Inner(c.f); got != c.inner {
			t.Errorf("OuterMTU(1500).Inner(%s) = %d, want %d", c.f.Name(), got, c.inner)
		}
	}
}

func TestFamily(t *testing.T) {
	for _, c := range []struct {
		addr   string
		family Family
		ok     bool
	}{
		{"10.1.0.1", IPv4, true}, {"0.0.0.0", IPv4, true}, {"fd00::1", IPv6, true}, {"::", IPv6, true},
		{"::ffff:10.1.0.1", IPv6, false},
	} {
		if f, ok := FamilyOf(netip.MustParseAddr(c.addr)); ok != c.ok || ok && f != c.family {
			t.Errorf("FamilyOf(%s) = %v, %v", c.addr, f, ok)
		}
	}
	if f, ok := FamilyOf(netip.Addr{}); ok {
		t.Errorf("no address is of %v", f)
	}
	if IPv4.String() != "IPv4" || IPv6.String() != "IPv6" || IPv4.MinMTU() != 68 || IPv6.MinMTU() != 1280 {
		t.Error("a family's name, or what its links must carry")
	}
	for _, f := range []Framing{NewVXLAN(VNI{}, MAC{}), UDP{}} {
		if f.Family() != IPv4 {
			t.Errorf("%s carries %v", f.Name(), f.Family())
		}
	}
	for _, f := range []Framing{NewVXLAN6(VNI{}, MAC{}), UDP{Inner: IPv6}} {
		if f.Family() != IPv6 {
			t.Errorf("%s of IPv6 carries %v", f.Name(), f.Family())
		}
	}
}

// What runs once a packet allocates nothing.
func TestNoAllocation(t *testing.T) {
	p := tcpPacket(t, 1000, 80)
	h := parse(t, p)
	d := append(make([]byte, VXLANHeadroom), p...)
	var sender, receiver Framing = NewVXLAN(mustVNI(t, 1), peerMAC), NewVXLAN(mustVNI(t, 1), ourMAC)
	var udp Framing = UDP{}
	sender.Encode(d, ourMAC)
	if _, fault := receiver.Decode(d); fault != FaultNone {
		t.Fatalf("fault %d", fault)
	}
	p6 := tcpPacket6(t, 1000, 80)
	h6 := parse6(t, p6)
	d6 := append(make([]byte, VXLANHeadroom), p6...)
	var receiver6, udp6 Framing = NewVXLAN6(mustVNI(t, 1), ourMAC), UDP{Inner: IPv6}
	sender.Encode(d6, ourMAC)
	if _, fault := receiver6.Decode(d6); fault != FaultNone {
		t.Fatalf("fault %d", fault)
	}
	for name, f := range map[string]func(){
		"VXLAN.Encode": func() { sender.Encode(d, ourMAC) },
		"VXLAN.Decode": func() { _, _ = receiver.Decode(d) },
		"VXLAN refuse": func() { _, _ = sender.Decode(d) },
		"UDP.Encode":   func() { udp.Encode(p, ourMAC) },
		"UDP.Decode":   func() { _, _ = udp.Decode(p) },
		"ParseIPv4":    func() { var h Header; _ = ParseIPv4(p, 0, &h) },
		"VerifyHeader": func() { _ = VerifyHeader(p, &h) },
		"FlowHash":     func() { _ = FlowHash(p, &h) },
		"MergeECN":     func() { p[1], h.TOS = ECT0, ECT0; _ = MergeECN(p, &h, CE) },

		"VXLAN.Decode, IPv6": func() { _, _ = receiver6.Decode(d6) },
		"UDP.Decode, IPv6":   func() { _, _ = udp6.Decode(p6) },
		"ParseIPv6":          func() { var h Header; _ = ParseIPv6(p6, 0, &h) },
		"FlowHash6":          func() { _ = FlowHash6(p6, &h6) },
		"MergeECN, IPv6":     func() { p6[1], h6.TOS = ECT0<<4, ECT0; _ = MergeECN(p6, &h6, CE) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations a call", name, n)
		}
	}
}
