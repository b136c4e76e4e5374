package gso

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func TestInfo(t *testing.T) {
	u16 := func(v uint16) []byte { return binary.NativeEndian.AppendUint16(nil, v) }
	for _, c := range []struct {
		name string
		info Info
		want []byte
	}{
		{"a plain packet", Info{}, make([]byte, InfoLen)},
		{"TCP, CWR on the first", Info{NeedsCsum: true, ECN: true, Kind: TCPv4, HeaderLen: 52, Size: 1398, CsumStart: 20, CsumOffset: 16},
			bytes.Join([][]byte{{1, 0x81}, u16(52), u16(1398), u16(20), u16(16)}, nil)},
		{"TCP over IPv6", Info{Kind: TCPv6, Size: 65535}, bytes.Join([][]byte{{0, 4}, u16(0), u16(65535), u16(0), u16(0)}, nil)},
		{"UDP", Info{NeedsCsum: true, Kind: UDP, Size: 1, CsumStart: 40, CsumOffset: 6}, bytes.Join([][]byte{{1, 5}, u16(0), u16(1), u16(40), u16(6)}, nil)},
		{"a checksum undone", Info{NeedsCsum: true, CsumStart: 20, CsumOffset: 6}, bytes.Join([][]byte{{1, 0}, u16(0), u16(0), u16(20), u16(6)}, nil)},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := bytes.Repeat([]byte{0xee}, InfoLen+1)
			if c.info.Encode(b); !bytes.Equal(b[:InfoLen], c.want) || b[InfoLen] != 0xee {
				t.Errorf("encoded as %x, want %x", b, c.want)
			}
			back := Info{NeedsCsum: true, ECN: true, Kind: 9, HeaderLen: 9, Size: 9, CsumStart: 9, CsumOffset: 9}
			if back.Decode(b); back != c.info {
				t.Errorf("decoded as %+v", back)
			}
		})
	}
	// A bit that says what the kernel checked already (VIRTIO_NET_HDR_F_DATA_VALID) leaves nothing undone.
	var info Info
	if info.Decode(append([]byte{2}, make([]byte, InfoLen-1)...)); info != (Info{}) {
		t.Errorf("%+v", info)
	}
}

func TestInfoSegments(t *testing.T) {
	for _, c := range []struct {
		info         Info
		length, want int
	}{
		{Info{}, 1500, 1},
		{Info{NeedsCsum: true, CsumStart: 20}, 1500, 1},
		{Info{Kind: TCPv4, HeaderLen: 40, Size: 100}, 40, 1},
		{Info{Kind: TCPv4, HeaderLen: 40, Size: 100}, 140, 1},
		{Info{Kind: TCPv4, HeaderLen: 40, Size: 100}, 141, 2},
		{Info{Kind: UDP, HeaderLen: 28, Size: 1}, 65535, 65507},
		{Info{Kind: UDP, HeaderLen: 28}, 100, 1},
		{Info{Kind: UDP, HeaderLen: 200, Size: 1}, 100, 1},
	} {
		if got := c.info.Segments(c.length); got != c.want {
			t.Errorf("%+v of %d bytes: %d segments, want %d", c.info, c.length, got, c.want)
		}
	}
}

// FuzzInfo: of a virtio header we keep what we know, and write it back as it was.
func FuzzInfo(f *testing.F) {
	f.Add([]byte{1, 1, 54, 0, 0xa8, 5, 20, 0, 16, 0})
	f.Add([]byte{2, 0x85, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < InfoLen {
			return
		}
		var i, again Info
		i.Decode(b)
		out := make([]byte, InfoLen)
		i.Encode(out)
		again.Decode(out)
		want := bytes.Clone(b[:InfoLen])
		want[0] &= flagNeedsCsum
		if again != i || !bytes.Equal(out, want) {
			t.Fatalf("%x is %+v, and written %x", b[:InfoLen], i, out)
		}
	})
}
