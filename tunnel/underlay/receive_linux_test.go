package underlay

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"muslin/tunnel"
)

// Both receivers get the same datagrams from a plain socket, and see in them what was sent.
func TestReceiversAgree(t *testing.T) {
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
			var results [2][]received
			for i, portable := range []bool{false, true} {
				conn := open(t, portable)
				to := boundTo(t, conn.listener)
				fd, from := plainSocket(t)
				var want []received
				for k, length := range c.lengths {
					ecn := k & 3
					if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, 0xb8|ecn); err != nil {
						t.Fatal(err)
					}
					payload := bytes.Repeat([]byte{byte(k + 1)}, length)
					sendPlain(t, fd, to, payload)
					want = append(want, received{string(payload[:min(length, c.size)]), from, uint8(ecn), length > c.size})
				}
				got := receive(t, conn, len(want), c.batch, c.size)
				if !slices.Equal(got, want) {
					t.Errorf("portable %v: received %s,\nwant %s", portable, summary(got), summary(want))
				}
				for k := range got {
					got[k].from = netip.AddrPort{} // each receiver had a sender of its own
				}
				results[i] = got
			}
			if !slices.Equal(results[0], results[1]) {
				t.Errorf("fast twin %s,\nslow twin %s", summary(results[0]), summary(results[1]))
			}
		})
	}
}

func summary(all []received) string {
	var b strings.Builder
	for _, r := range all {
		fmt.Fprintf(&b, "[%d bytes from %v, ECN %d, truncated %v] ", len(r.payload), r.from, r.ecn, r.truncated)
	}
	return b.String()
}

func TestOverflow(t *testing.T) {
	for _, portable := range []bool{false, true} {
		c := open(t, portable)
		if n := c.Overflow(); n != 0 {
			t.Fatalf("Overflow at the start = %d", n)
		}
		fd, err := c.listener.file.Begin()
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 16<<10); err != nil {
			t.Fatal(err)
		}
		c.listener.file.End()
		plain, _ := plainSocket(t)
		const n = 300
		for i := range n {
			sendPlain(t, plain, boundTo(t, c.listener), []byte{byte(i >> 8), byte(i)})
		}
		lost := c.Overflow()
		if lost == 0 || lost >= n {
			t.Fatalf("portable %v: Overflow = %d of %d datagrams into a small buffer", portable, lost, n)
		}
		if got := len(receive(t, c, n-int(lost), tunnel.BatchSize, 100)); got != n-int(lost) {
			t.Errorf("portable %v: %d received and %d lost of %d", portable, got, lost, n)
		}
		if again := c.Overflow(); again != lost {
			t.Errorf("portable %v: Overflow went from %d to %d with nothing sent", portable, lost, again)
		}
	}
}

func TestECNOfControlMessages(t *testing.T) {
	tos := func(level, typ int32, value byte) []byte {
		b := make([]byte, controlBytes)
		putCmsg(b, level, typ, 1)
		b[unix.CmsgLen(0)] = value
		return b
	}
	for _, c := range []struct {
		name string
		oob  []byte
		want uint8
	}{
		{"none", nil, 0},
		{"TOS", tos(unix.IPPROTO_IP, unix.IP_TOS, 0xbb), 3},
		{"another level", tos(unix.SOL_SOCKET, unix.IP_TOS, 3), 0},
		{"another type", tos(unix.IPPROTO_IP, unix.IP_TTL, 3), 0},
		{"header without a value", tos(unix.IPPROTO_IP, unix.IP_TOS, 3)[:unix.CmsgLen(0)], 0},
	} {
		if got := ecnOf(c.oob); got != c.want {
			t.Errorf("%s: ECN %d, want %d", c.name, got, c.want)
		}
	}
}
