//go:build linux

package kernel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"muslin/tunnel/netnstest"
)

// reached reports whether a check is made on this kernel.
func reached(t *testing.T, feature, what string) bool {
	t.Helper()
	for _, k := range checks {
		if k.feature == feature && k.what == what {
			return available(t).On(feature) && (k.when == nil || k.when())
		}
	}
	t.Fatalf("there is no check %s, %s", feature, what)
	return false
}

// What a broken kernel would do to the packets of a check is done to them on their way to it, and the
// feature must go off with a reason that says where.
func TestSelfTestCatches(t *testing.T) {
	netnstest.RequireRoot(t)
	// on does something to the nth packet or message of a check.
	on := func(n int, do func(p []byte) []byte) func(int, []byte) []byte {
		return func(i int, p []byte) []byte {
			if i == n {
				return do(p)
			}
			return p
		}
	}
	flip := func(at int) func(p []byte) []byte {
		return func(p []byte) []byte { p[at] ^= 0x40; return p }
	}
	lose := func([]byte) []byte { return nil }
	var third []byte
	again := func(n int, p []byte) []byte {
		switch n {
		case 3:
			third = slices.Clone(p)
		case 4:
			return third
		}
		return p
	}
	const header = ipLen + tcpLen
	type row struct {
		name          string
		feature, what string
		tamper        func(n int, p []byte) []byte // n counts from 1
		want          string
	}
	rows := []row{
		{"checksum", TUNVnet, "", on(1, flip(36)), "self-test: segment 1 of 1 differs at byte 36"},
		{"payload of the UDP packet", TUNVnet, "", on(2, flip(1000)), "self-test: segment 1 of 1 differs at byte 1000"},
		{"sequence number", TUNTCPGRO, "", on(2, flip(26)), "self-test: segment 2 of 46 differs at byte 26"},
		{"PSH on the wrong segment", TUNTCPGRO, "", on(1, func(p []byte) []byte { p[33] |= flagPSH; return p }), "self-test: segment 1 of 46 differs at byte 33"},
		{"a segment lost", TUNTCPGRO, "", on(46, lose), "self-test: 45 segments came of 46"},
		{"the second superpacket", TUNTCPGRO, "", on(48, flip(header)), "self-test: segment 2 of 2 differs at byte 40"},
		// What comes in one piece gets its checksums here, and so differs in these first.
		{"inside a superpacket", TUNTSO, "", on(1, flip(header+2*1400+9)), "self-test: segment 3 of 46 differs at byte 37"},
		{"a superpacket lost", TUNTSO, "", on(1, lose), "self-test: 0 segments came of 46"},
		{"a superpacket cut off", TUNTSO, "", on(1, func(p []byte) []byte { return p[:len(p)-1] }), "self-test: 1 segments came of 46"},
		{"UDP length", TUNUDPGRO, "forwarded", on(46, flip(25)), "self-test, forwarded: segment 46 of 46 differs at byte 25"},
		{"IP checksum", TUNUDPGRO, "forwarded", on(3, flip(10)), "self-test, forwarded: segment 3 of 46 has a wrong IP checksum"},
		{"a datagram twice and the next lost", TUNUDPGRO, "delivered", again, "self-test, delivered: segment 4 of 46 differs at byte 0"},
		{"dropped before the VXLAN device", TUNUDPGRO, "to a VXLAN device", func(int, []byte) []byte { return nil }, "self-test, to a VXLAN device: 0 segments came of 3"},
		{"inside a UDP superpacket", TUNUSO, "", on(2, flip(ipLen+udpLen+1400)), "self-test: segment 2 of 2 differs at byte 26"},
		{"port", UDPGSO, "", on(2, flip(20)), "self-test: segment 2 of 46 differs at byte 20"},
		{"UDP length of an equal tail", UDPGSO, "", on(48, flip(24)), "self-test: segment 2 of 2 differs at byte 24"},
		{"UDP checksum", UDPGSO, "", on(1, flip(26)), "self-test: segment 1 of 46 differs at byte 26"},
		{"payload", UDPGRO, "", on(1, flip(700)), "self-test: segment 1 of 46 differs at byte 700"},
		{"cut off", UDPGRO, "", func(n int, p []byte) []byte {
			if n == 1 && len(p) > 1400 || n == 46 { // in one piece or in 46
				return p[:len(p)-1]
			}
			return p
		}, "self-test: segment 46 of 46 has 332 bytes instead of 333"},
	}
	have := available(t)
	var reachable []row
	for _, r := range rows {
		if reached(t, r.feature, r.what) {
			reachable = append(reachable, r)
		} else {
			t.Logf("not on this kernel: %s, %s", r.feature, r.name)
		}
	}
	inNamespace(t, func(c *circuit) {
		for _, row := range reachable {
			n := 0
			c.tamper = func(feature, what string, p []byte) []byte {
				if feature != row.feature || what != row.what {
					return p
				}
				n++
				return row.tamper(n, p)
			}
			p := (&examiner{features: have}).test(c, row.feature)
			if p.Name != row.feature || p.Answer != No || p.Reason != row.want || p.Err == nil {
				t.Errorf("%s, %s: %v (%s), want %q", row.feature, row.name, p.Answer, p.Reason, row.want)
			}
		}
	})
}

// A feature that fails goes off with all that stand on it, and with nothing else.
func TestSelfTestTakesOut(t *testing.T) {
	netnstest.RequireRoot(t)
	features, probes := examine(context.Background(), Features{}, ample, func(feature, _ string, p []byte) []byte {
		if feature == TUNVnet {
			p[len(p)-1]++
		}
		return p
	})
	want := on(available(t).Without(TUNVnet, "broken"))
	if got := on(features); !slices.Equal(got, want) {
		t.Errorf("on are %v, want %v", got, want)
	}
	if why := features.Why(TUNVnet); why != "self-test: segment 1 of 1 differs at byte 1040" {
		t.Errorf("tun-vnet is off: %s", why)
	}
	// udp-gso is tested through tun-vnet, udp-gro then without it.
	for name, want := range map[string]Answer{UDPGSO: Unknown, UDPGRO: Yes, TUNTSO: No} {
		if p := probes[slices.Index(FeatureNames(), name)]; p.Answer != want {
			t.Errorf("%s: %v (%s), want %v", name, p.Answer, p.Reason, want)
		}
	}
}

// What goes through a feature that failed is not tested, and stays on.
func TestSelfTestThroughWhatFailed(t *testing.T) {
	netnstest.RequireRoot(t)
	features, probes := examine(context.Background(), Features{}, ample, func(feature, _ string, p []byte) []byte {
		if feature == TUNTCPGRO {
			return nil
		}
		return p
	})
	p := probes[slices.Index(FeatureNames(), TUNTSO)]
	if features.On(TUNTCPGRO) || !features.On(TUNTSO) || p.Answer != Unknown || !strings.Contains(p.Reason, "goes through tun-tcp-gro") {
		t.Errorf("tun-tso: on %v, %v (%s)", features.On(TUNTSO), p.Answer, p.Reason)
	}
}

// Every check ran: a check that nothing reached would pass for ever.
func TestSelfTestReachesEveryCheck(t *testing.T) {
	netnstest.RequireRoot(t)
	seen := make(map[string]int)
	examine(context.Background(), Features{}, ample, func(feature, what string, p []byte) []byte {
		seen[feature+", "+what]++
		return p
	})
	want := map[string]int{}
	for _, k := range checks {
		if reached(t, k.feature, k.what) {
			want[k.feature+", "+k.what] = map[string]int{
				TUNVnet: 2, TUNTSO: 2, TUNUSO: 2, UDPGRO: 2, // one message each
				TUNTCPGRO: 48, UDPGSO: 48, TUNUDPGRO: 48, // 46 and 2 segments
			}[k.feature]
		}
	}
	if reached(t, TUNUDPGRO, "to a VXLAN device") {
		want[TUNUDPGRO+", to a VXLAN device"] = 3
	}
	want[", "] = 1 // the plain packet
	if !since(t, *rung(UDPGRO)) && reached(t, UDPGRO, "") {
		want[UDPGRO+", "] = 48 // the loopback interface of these kernels cuts superpackets
	}
	if fmt.Sprint(seen) != fmt.Sprint(want) {
		t.Errorf("packets by check: %v, want %v", seen, want)
	}
}

// inNamespace runs f with a circuit of its own.
func inNamespace(t *testing.T, f func(c *circuit)) {
	t.Helper()
	netnstest.RequireRoot(t)
	done := make(chan error)
	onOwnThread(func() {
		done <- func() error {
			leave, err := enterNamespace()
			if err != nil {
				return err
			}
			defer leave()
			in, err := openTap(true)
			if err != nil {
				return err
			}
			defer in.close()
			out, err := openTap(true)
			if err != nil {
				return err
			}
			defer out.close()
			ctx, cancel := context.WithTimeout(context.Background(), ample)
			defer cancel()
			c, err := newCircuit(ctx, in, out)
			if err != nil {
				return err
			}
			defer c.close()
			f(c)
			return nil
		}()
	})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// A network that carries nothing says nothing about the kernel's offloads.
func TestSelfTestInABrokenNetwork(t *testing.T) {
	inNamespace(t, func(c *circuit) {
		if err := sysctl("ipv4/ip_forward", "0"); err != nil {
			t.Error(err)
			return
		}
		// Nothing will come; there is no need to wait for it.
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		defer cancel()
		c.ctx = ctx
		e := &examiner{found: make(chan Probe, maxFindings)}
		e.selfTest(c)
		close(e.found)
		answers := 0
		for p := range e.found {
			answers++
			if p.Answer != Unknown || !strings.Contains(p.Reason, "carries nothing") {
				t.Errorf("%s: %v (%s)", p.Name, p.Answer, p.Reason)
			}
		}
		if answers != len(testedFeatures()) {
			t.Errorf("%d answers", answers)
		}
	})
}

// A kernel that refuses superpackets, as Linux 6.6.44 did: here the device expects a longer virtio header, so
// that what it takes for a packet is none.
func TestTakesIsRefused(t *testing.T) {
	have := available(t)
	inNamespace(t, func(c *circuit) {
		tap, err := openTap(true)
		if err != nil {
			t.Error(err)
			return
		}
		defer tap.close()
		for name, proto := range map[string]byte{TUNTCPGRO: unix.IPPROTO_TCP, TUNUDPGRO: unix.IPPROTO_UDP} {
			if p := tap.takes(proto); have.On(name) && p.Answer == No {
				t.Errorf("%s: %v", name, p)
			}
		}
		if err := unix.IoctlSetPointerInt(tap.fd, unix.TUNSETVNETHDRSZ, 12); err != nil {
			t.Error(err)
			return
		}
		p := tap.takes(unix.IPPROTO_TCP)
		if p.Answer != No || p.Reason != "write of a superpacket of 46 segments: invalid argument" || !errors.Is(p.Err, unix.EINVAL) {
			t.Errorf("TCP: %v (%s)", p.Answer, p.Reason)
		}
		e := &examiner{found: make(chan Probe, 1)}
		e.try(TUNUDPGRO, func() Probe { return tap.takes(unix.IPPROTO_UDP) })
		want := "needs Linux 6.2 (write of a superpacket of 46 segments: invalid argument)"
		if p := <-e.found; p.Answer != No || p.Reason != want {
			t.Errorf("UDP: %v (%s), want %s", p.Answer, p.Reason, want)
		}
		if e.features.On(TUNUDPGRO) {
			t.Error("tun-udp-gro stays on")
		}
	})
}

// A refusal in the middle of a check is a fault; an error that says nothing about the kernel is not.
func TestRefused(t *testing.T) {
	for err, fault := range map[error]bool{unix.EINVAL: true, unix.EIO: true, unix.EOPNOTSUPP: true,
		unix.ENOMEM: false, unix.EPERM: false, unix.ENOBUFS: false, unix.ENETUNREACH: false, unix.EAGAIN: false} {
		got := refused("write", err)
		if isUntold := errors.As(got, new(untold)); isUntold == fault || !errors.Is(got, err) {
			t.Errorf("%v: %#v", err, got)
		}
	}
}
