package pathmtu

import (
	"encoding/binary"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// extendedError is a control message as the kernel writes it.
func extendedError(level, kind int32, origin, icmpType, code byte, info uint32) []byte {
	const data = 16 + 16 // sock_extended_err, and the offender's sockaddr_in
	b := make([]byte, unix.CmsgSpace(data))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(data))
	e := b[unix.CmsgLen(0):]
	binary.NativeEndian.PutUint32(e, uint32(unix.EMSGSIZE))
	e[4], e[5], e[6] = origin, icmpType, code
	binary.NativeEndian.PutUint32(e[8:], info)
	return b
}

func TestParseExtendedError(t *testing.T) {
	four := func(origin, icmpType, code byte) []byte {
		return extendedError(unix.IPPROTO_IP, unix.IP_RECVERR, origin, icmpType, code, 1400)
	}
	six := func(origin, icmpType, code byte) []byte {
		return extendedError(unix.IPPROTO_IPV6, unix.IPV6_RECVERR, origin, icmpType, code, 1400)
	}
	for _, c := range []struct {
		name    string
		oob     []byte
		v4, six bool
	}{
		{"fragmentation needed", four(originICMP, 3, 4), true, false},
		{"port unreachable", four(originICMP, 3, 3), false, false},
		{"time exceeded", four(originICMP, 11, 4), false, false},
		{"of this host", four(1, 3, 4), false, false},
		{"packet too big", six(originICMP6, 2, 0), false, true},
		{"no route", six(originICMP6, 1, 0), false, false},
		{"behind another", append(extendedError(unix.SOL_SOCKET, 29, 0, 0, 0, 0), four(originICMP, 3, 4)...), true, false},
		{"cut short", four(originICMP, 3, 4)[:unix.CmsgLen(0)+8], false, false},
		{"nothing", nil, false, false},
	} {
		mtu, ok := parseExtendedError(c.oob, false)
		mtu6, ok6 := parseExtendedError(c.oob, true)
		if ok != c.v4 || ok6 != c.six || ok && mtu != 1400 || ok6 && mtu6 != 1400 {
			t.Errorf("%s: %d %v, IPv6 %d %v", c.name, mtu, ok, mtu6, ok6)
		}
	}
	if mtu, ok := parseExtendedError(extendedError(unix.IPPROTO_IPV6, unix.IPV6_RECVERR, originICMP6, 2, 0, 1<<32-1), true); !ok || mtu != 1<<16 {
		t.Errorf("an absurd MTU is %d, %v", mtu, ok)
	}
}

func FuzzParseExtendedError(f *testing.F) {
	f.Add(extendedError(unix.IPPROTO_IP, unix.IP_RECVERR, originICMP, 3, 4, 1400), false)
	f.Add(extendedError(unix.IPPROTO_IPV6, unix.IPV6_RECVERR, originICMP6, 2, 0, 1280), true)
	f.Fuzz(func(t *testing.T, oob []byte, six bool) {
		if mtu, ok := parseExtendedError(oob, six); mtu < 0 || mtu > 1<<16 || !ok && mtu != 0 {
			t.Errorf("%d, %v", mtu, ok)
		}
	})
}
