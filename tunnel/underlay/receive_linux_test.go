package underlay

import (
	"bytes"
	"encoding/binary"
	"math"
	"net/netip"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"muslin/tunnel"
)

// All receivers get the same datagrams from a plain socket, and see in them what was sent.
func TestReceiversAgree(t *testing.T) { eachFamily(t, receiversAgree) }

func receiversAgree(t *testing.T, local netip.Addr) {
	level, option := unix.IPPROTO_IP, unix.IP_TOS
	if local.Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	for _, c := range []struct {
		name        string
		batch, size int
		lengths     []int
	}{
		{"one at a time", 1, 2000, []int{0, 1, 20, 1500, 1999, 2000}},
		{"truncated", 4, 1500, []int{1499, 1500, 1501, 2, 16000, 0, 3}},
		{"up to 16000 bytes", 7, 16384, []int{0, 1, 2, 3, 63, 64, 65, 1471, 1472, 1473, 8999, 9000, 15999, 16000}},
		{"more than a batch", 64, 200, slices.Repeat([]int{100, 200, 42}, 50)},
		{"more buffers than the receiver has", 100, 200, slices.Repeat([]int{7, 8}, 50)},
	} {
		t.Run(c.name, func(t *testing.T) {
			var first []received
			for _, features := range twins {
				conn := open(t, features, on(local))
				to := boundTo(t, conn.queues[0].listener)
				fd := boundSocket(t, local)
				from := name(t, fd)
				var want []received
				for k, length := range c.lengths {
					ecn := k & 3
					if err := unix.SetsockoptInt(fd, level, option, 0xb8|ecn); err != nil {
						t.Fatal(err)
					}
					payload := bytes.Repeat([]byte{byte(k + 1)}, length)
					sendPlain(t, fd, to, payload)
					want = append(want, received{string(payload[:min(length, c.size)]), from, uint8(ecn), length > c.size})
				}
				got, _ := receive(t, conn, len(want), c.batch, c.size)
				if !slices.Equal(got, want) {
					t.Errorf("%s: received %s,\nwant %s", features, summary(got), summary(want))
				}
				for k := range got {
					got[k].from = netip.AddrPort{} // each receiver had a sender of its own
				}
				if first == nil {
					first = got
				}
				if !slices.Equal(got, first) {
					t.Errorf("%s: received %s,\n%s: %s", features, summary(got), twins[0], summary(first))
				}
			}
		})
	}
}

// What was joined and does not fit is cut, and says so.
func TestJoinedAndTruncated(t *testing.T) {
	receiver, sender := open(t, "auto", nil), open(t, "auto", nil)
	all := datagrams(10, 1000, 1000)
	send(t, sender, run(boundTo(t, receiver.queues[0].listener), 1, all...))
	ds := []tunnel.Datagram{{Buf: make([]byte, 2500)}}
	if n, err := receiver.queues[0].Receive(ds); n != 1 || err != nil {
		t.Fatalf("Receive = %d, %v", n, err)
	}
	if d := ds[0]; !d.Truncated || d.Size != 1000 || !bytes.Equal(d.Buf, slices.Concat(all...)[:2500]) {
		t.Errorf("received %d bytes of datagrams of %d, truncated %v", len(d.Buf), d.Size, d.Truncated)
	}
}

func TestOverflow(t *testing.T) {
	for _, features := range twins {
		t.Run(features, func(t *testing.T) {
			quietLoopback(t)
			c := open(t, features, nil)
			if n := c.Losses(); n != (tunnel.Losses{}) {
				t.Fatalf("losses at the start: %+v", n)
			}
			listener := c.queues[0].listener
			setInt(t, listener, unix.SOL_SOCKET, unix.SO_RCVBUF, 16<<10)
			plain, _ := plainSocket(t)
			const n = 300
			for i := range n {
				sendPlain(t, plain, boundTo(t, listener), []byte{byte(i >> 8), byte(i)})
			}
			lost := c.Losses().Overflow
			if lost == 0 || lost >= n {
				t.Fatalf("an overflow of %d of %d datagrams into a small buffer", lost, n)
			}
			receive(t, c, n-int(lost), tunnel.BatchSize, 100)
			if again := c.Losses(); again != (tunnel.Losses{Overflow: lost}) {
				t.Errorf("from an overflow of %d the losses went to %+v with nothing sent", lost, again)
			}
		})
	}
}

// cmsg is a control message with its padding.
func cmsg(level, typ int32, data ...byte) []byte {
	b := make([]byte, unix.CmsgSpace(len(data)))
	putCmsg(b, level, typ, len(data))
	copy(b[unix.CmsgLen(0):], data)
	return b
}

// withLen is a control message that claims another length.
func withLen(b []byte, n int) []byte {
	(*unix.Cmsghdr)(unsafe.Pointer(&b[0])).SetLen(n)
	return b
}

func TestReadControl(t *testing.T) {
	tos := cmsg(unix.IPPROTO_IP, unix.IP_TOS, 0xbb)
	gro := cmsg(unix.IPPROTO_UDP, unix.UDP_GRO, binary.NativeEndian.AppendUint32(nil, 1234)...)
	class := cmsg(unix.IPPROTO_IPV6, unix.IPV6_TCLASS, binary.NativeEndian.AppendUint32(nil, 0xb9)...)
	join := func(all ...[]byte) []byte { return slices.Concat(all...) }
	for _, c := range []struct {
		name string
		oob  []byte
		ecn  uint8
		size int
	}{
		{"none", nil, 0, 0},
		{"TOS", tos, 3, 0},
		{"TOS without its padding", tos[:unix.CmsgLen(1)], 3, 0},
		{"TOS as an int", cmsg(unix.IPPROTO_IP, unix.IP_TOS, 0xba, 0, 0, 0), 2, 0},
		{"UDP_GRO", gro, 0, 1234},
		{"UDP_GRO without its padding", gro[:unix.CmsgLen(4)], 0, 1234},
		{"TOS, then UDP_GRO", join(tos, gro), 3, 1234},
		{"UDP_GRO, then TOS", join(gro, tos), 3, 1234},
		{"traffic class", class, 1, 0},
		{"traffic class, then UDP_GRO", join(class, gro), 1, 1234},
		{"traffic class of a byte", cmsg(unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 1), 0, 0},
		{"traffic class of another level", cmsg(unix.IPPROTO_IP, unix.IPV6_TCLASS, 1, 1, 1, 1), 0, 0},
		{"something else between them", join(tos, cmsg(unix.SOL_SOCKET, unix.SO_TIMESTAMP, make([]byte, 16)...), gro), 3, 1234},
		{"TOS of another level", cmsg(unix.SOL_SOCKET, unix.IP_TOS, 3), 0, 0},
		{"another type of the level", cmsg(unix.IPPROTO_IP, unix.IP_TTL, 3), 0, 0},
		{"UDP_GRO of another level", cmsg(unix.IPPROTO_IP, unix.UDP_GRO, 1, 1, 1, 1), 0, 0},
		{"TOS without a value", cmsg(unix.IPPROTO_IP, unix.IP_TOS), 0, 0},
		{"UDP_GRO of two bytes", cmsg(unix.IPPROTO_UDP, unix.UDP_GRO, 1, 1), 0, 0},
		{"empty message, then UDP_GRO", join(cmsg(unix.IPPROTO_IP, unix.IP_TOS), gro), 0, 1234},
		{"less than a header", tos[:unix.CmsgLen(0)-1], 0, 0},
		{"length 0", withLen(join(tos, gro), 0), 0, 0},
		{"length shorter than the header", withLen(join(tos, gro), unix.CmsgLen(0)-1), 0, 0},
		{"length beyond the end", withLen(cmsg(unix.IPPROTO_IP, unix.IP_TOS, 3), 100), 0, 0},
		{"length that is negative", withLen(cmsg(unix.IPPROTO_IP, unix.IP_TOS, 3), math.MinInt), 0, 0},
		{"length that is all ones", withLen(cmsg(unix.IPPROTO_IP, unix.IP_TOS, 3), -1), 0, 0},
		{"second message beyond the end", join(tos, withLen(slices.Clone(gro), 100)), 3, 0},
		{"second message cut short", join(tos, gro[:unix.CmsgLen(3)]), 3, 0},
	} {
		if ecn, size := readControl(c.oob); ecn != c.ecn || size != c.size {
			t.Errorf("%s: ECN %d and size %d, want %d and %d", c.name, ecn, size, c.ecn, c.size)
		}
	}
}

// FuzzReadControl compares with golang.org/x/sys's parser, which refuses as a whole what is malformed.
func FuzzReadControl(f *testing.F) {
	f.Add(cmsg(unix.IPPROTO_IP, unix.IP_TOS, 2))
	f.Add(append(cmsg(unix.IPPROTO_IP, unix.IP_TOS, 1), cmsg(unix.IPPROTO_UDP, unix.UDP_GRO, 0xa8, 5, 0, 0)...))
	f.Add(withLen(cmsg(unix.IPPROTO_IP, unix.IP_TOS, 2), 3))
	f.Add(append(cmsg(unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 1, 0, 0, 0), cmsg(unix.IPPROTO_UDP, unix.UDP_GRO, 0xa8, 5, 0, 0)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		oob := append(make([]byte, 0, len(b)+64), b...) // aligned
		ecn, size := readControl(oob)
		all, err := unix.ParseSocketControlMessage(oob)
		if err != nil {
			return
		}
		var wantECN uint8
		var wantSize int
		for _, m := range all {
			switch {
			case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TOS && len(m.Data) > 0:
				wantECN = m.Data[0] % 4
			case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_TCLASS && len(m.Data) >= 4:
				wantECN = uint8(binary.NativeEndian.Uint32(m.Data) % 4)
			case m.Header.Level == unix.IPPROTO_UDP && m.Header.Type == unix.UDP_GRO && len(m.Data) >= 4:
				wantSize = int(binary.NativeEndian.Uint32(m.Data))
			}
		}
		if ecn != wantECN || size != wantSize {
			t.Errorf("ECN %d and size %d, want %d and %d", ecn, size, wantECN, wantSize)
		}
	})
}
